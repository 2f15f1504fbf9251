"""Changes the marked fields of responses on their way to the app: opens them, or seals them behind a mirror listener.
The addon `addons.encryption`, which sees to requests, calls it.

Rules of this module:

- A response with one JSON text is held until it is complete and its fields are changed. One with several texts goes on
  text by text; any other streams through.
- What cannot be looked at is denied, or breaks a stream off that has begun; or it goes on as it came, where all entries
  say `on_failure: pass`, and that is counted.
- Header fields that are true only of the body as it came go with no other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mitmproxy import http

from addons import bodyheads, marked
from addons.exchange import Exchange
from addons.headers import has_field, values_of
from proxy.core.decisions import Denied
from proxy.core.fields import bodies, responses, streams
from proxy.core.fields.entries import Work
from proxy.core.fields.values import Setting
from proxy.core.reasons import Reason

_PARTIAL = 206
_WITHOUT_BODY = (204, 304)


def begin(exchange: Exchange, flow: http.HTTPFlow, setting: Callable[[], Setting]) -> None:
    """Decide, when the head of a response is there, what becomes of its body.

    Args:
        exchange: its exchange, whose rule has entries for responses.
        flow: its flow.
        setting: returns what counts for its fields.
    """
    response = flow.response
    assert response is not None
    entries, status = marked.of_response(exchange), response.data.status_code
    if not entries or status == 101:  # it has no body
        response.stream = True
        return
    work = exchange.response_work
    label = responses.label_of(values_of(response.headers, b"content-type"))
    if work is Work.DECRYPT and label is responses.Label.OTHER and status != _PARTIAL:
        response.stream = True
        return
    if exchange.method == "HEAD" or status in _WITHOUT_BODY:  # its fields are about another body
        exchange.holds_response = True
        response.headers.fields = responses.told(response.headers.fields, with_length=False)
        return
    try:
        if status == _PARTIAL:
            raise Denied(Reason.DECRYPTION_FAILED, "the upstream sent a part of a body, which was not asked for")
        if responses.comes_in_texts(label):
            head = _head(exchange, response)
            if work is Work.ENCRYPT:
                bodies.check_before(head, entries, setting().today)
            _change_texts(exchange, flow, streams.Stream(label, head, entries, setting))
        else:
            exchange.holds_response = True
            exchange.lets_pass = partial(bodies.passes, entries=entries, setting=setting())
    except Denied as denied:
        if bodies.passes(denied, entries, setting()):
            response.stream = True
        else:
            exchange.holds_response = True
            exchange.deny_always(flow, bodies.unchangeable(work, denied.detail, denied.entries))


def _head(exchange: Exchange, response: http.Response) -> bodies.BodyHead:
    return bodyheads.head(response) if exchange.response_work is Work.DECRYPT else bodyheads.told_head(response)


def _change_texts(exchange: Exchange, flow: http.HTTPFlow, stream: streams.Stream) -> None:
    response = flow.response
    assert response is not None
    exchange.changes_response = True
    response.stream = _Changing(exchange, stream)
    response.headers.fields = responses.told(response.headers.fields, with_length=False, with_coding=False)
    # Where the body ends with the connection, chunks say whether it is whole.
    if flow.request.http_version == "HTTP/1.1" and not has_field(response.headers, b"transfer-encoding"):
        response.headers.fields += ((b"Transfer-Encoding", b"chunked"),)


class _Changing:
    """Changes a body that streams."""

    def __init__(self, exchange: Exchange, stream: streams.Stream) -> None:
        self._exchange = exchange
        self._stream = stream

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to take a piece."""
        return self._stream.takes_long(data)

    def __call__(self, data: bytes) -> bytes:
        """Take a piece of the body, or its end, which is an empty piece.

        Raises:
            Denied: it cannot go on.
        """
        exchange = self._exchange
        try:
            return self._stream.feed(exchange.count_received(data))
        except Denied as denied:
            exchange.break_off(denied)
            raise
        finally:
            exchange.count_fields(self._stream.entries, self._stream.take())


def complete(exchange: Exchange, flow: http.HTTPFlow, setting: Setting) -> None:
    """Change the fields of a held response.

    Args:
        exchange: its exchange.
        flow: its flow.
        setting: what counts for its fields.
    """
    response = flow.response
    assert response is not None
    if exchange.denied is not None:
        if exchange.is_carried_out:  # stock mitmproxy has put the upstream's body into the denial
            exchange.deny_always(flow, exchange.denied)
        return
    body, entries = response.data.content or b"", marked.of_response(exchange)
    work, head = exchange.response_work, _head(exchange, response)
    try:
        if work is Work.ENCRYPT and body:
            bodies.check_before(head, entries, setting.today)
        changed = bodies.change(body, head, entries, setting)
    except Denied as denied:
        if work is Work.ENCRYPT and denied.reason is not Reason.RESPONSE_NOT_SEALED:
            denied = bodies.unchangeable(work, denied.detail, denied.entries)
        exchange.deny_always(flow, denied)
        return
    exchange.count_fields(entries, changed.counts)
    exchange.bytes_received = len(body)
    if any(changed.counts):
        response.headers.fields = responses.told(response.headers.fields, with_length=True)
        bodyheads.replace_body(response, changed.body)
