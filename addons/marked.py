"""Says which entries of a rule apply to a request and its response, and collects what the heads say about the bodies.
The addon `addons.encryption` calls it.

Rules of this module:

- An entry's `when` is asked about all readings of the request that servers may have (`proxy.core.fields.readings`).
- In observe mode nothing is decrypted; and values that would be encrypted are counted, while the body passes as it
  came.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import has_field, values_in, values_of, with_length
from proxy.core.decisions import FIELD_REASONS, Denied
from proxy.core.fields import bodies, encodings, readings, signatures
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.pauses import SHORT, Pause, never
from proxy.core.fields.values import Setting
from proxy.core.http.digests import without_digests
from proxy.core.http.heads import KEPT, Fields

_readings = lru_cache(KEPT)(readings.readings)  # most heads of an app come again


def host(exchange: Exchange) -> str:
    """Return the canonical destination, to which sealed values are bound."""
    if exchange.asked is None:
        raise RuntimeError("no destination was decided before the body")
    return exchange.asked.host


def read_head(exchange: Exchange, request: http.Request) -> None:
    """Find the readings of a request by its head, and whether its body may add to them."""
    if exchange.rule is None:
        return
    query = request.path.partition("?")[2]
    found = exchange.readings = _readings(exchange.method, exchange.path, query, request.headers.fields)
    others = [entry for entry in exchange.rule.request if not entry.when.applies(found)]
    if not others:
        return
    has_body = request.is_http2 or has_field(request.headers, b"content-length", b"transfer-encoding")
    if has_body and readings.may_name_method(values_of(request.headers, b"content-type")):
        by_any = readings.may_be_any_method(found)
        exchange.looks_inside = any(entry.when.applies(by_any) for entry in others)


def read_body(exchange: Exchange, request: http.Request, body: bytes, pause: Pause = never) -> None:
    """Find out whether a request's body asks for another method.

    Raises:
        Denied: the body cannot be read.
    """
    if not exchange.looks_inside or exchange.readings is None:
        return
    said = head(request)
    codings = encodings.parse_encoding(said.content_encoding)
    decoded = encodings.decode(body, codings, exchange.policy.limits.held_body, pause=pause)
    exchange.readings = readings.with_body(exchange.readings, decoded, said.content_types)


def of_request(exchange: Exchange) -> tuple[FieldEntry, ...]:
    """Return the entries that are about the request's body."""
    entries, found = exchange.rule.request if exchange.rule else (), _found(exchange)
    return tuple([entry for entry in entries if entry.when.applies(found)])


def of_response(exchange: Exchange) -> tuple[FieldEntry, ...]:
    """Return the entries that are about the response's body; none in observe mode."""
    entries = exchange.rule.response if exchange.rule and not exchange.observing else ()
    if not entries:
        return ()
    found = _found(exchange)
    if exchange.method == "HEAD" and found.methods is not None:  # servers answer it like GET (RFC 9110, section 9.3.2)
        found = replace(found, methods=found.methods | {"GET"})
    return tuple(entry for entry in entries if entry.when.applies(found))


def concerned(exchange: Exchange, denied: Denied) -> tuple[str, ...]:
    """Return the names of the entries whose work a denial has stopped; none if it is about something else.

    Args:
        exchange: the exchange, which is over.
        denied: why it was denied, or would have been.
    """
    if denied.entries or denied.reason not in FIELD_REASONS or exchange.asked is None:
        return denied.entries
    if exchange.has_left and not exchange.observing:  # in observe mode nothing is done with responses
        found = of_response(exchange)
    else:  # a body that is held only to look for another method is about any of them
        found = of_request(exchange) or (exchange.rule.request if exchange.rule else ())
    return tuple(entry.name for entry in found)


def _found(exchange: Exchange) -> readings.Readings:
    return exchange.readings or readings.readings(exchange.method, exchange.path)


def head(message: http.Message) -> bodies.BodyHead:
    """Return what a message's header fields say about its body."""
    return _head(message.data.headers.fields)


@lru_cache(KEPT)
def _head(fields: Fields) -> bodies.BodyHead:
    types, codings = values_in(fields, b"content-type"), values_in(fields, b"content-encoding")
    return bodies.BodyHead(tuple(types), ", ".join(codings) if codings else None)


@lru_cache(KEPT)
def length_said(fields: Fields) -> int:
    """Return the length of the body, as a request's header fields say it; 0 if they do not."""
    return max(map(int, values_in(fields, b"content-length")), default=0)


def signed_head(request: http.Request) -> bodies.BodyHead:
    """Return the same for a request whose body has come, with what signs it, also in its trailers."""
    query, trailers = request.data.path.partition(b"?")[2], request.data.trailers
    return _signed_head(request.data.headers.fields, () if trailers is None else trailers.fields, query)


@lru_cache(KEPT)
def _signed_head(fields: Fields, trailers: Fields, query: bytes) -> bodies.BodyHead:
    said, both = _head(fields), fields + trailers
    signature = signatures.covering(both, query.decode("latin-1"))
    return bodies.BodyHead(said.content_types, said.content_encoding, signature, both)


def told_head(response: http.Response) -> bodies.BodyHead:
    """Return the same for a response that is to be sealed, with what signs it. Digests do not count: they are left out
    of what is told.
    """
    fields = without_digests(response.headers.fields)
    return head(response)._replace(signature=signatures.covering(fields), fields=fields)


def takes_long(message: http.Message, body: bytes | bytearray) -> bool:
    """Tell whether it may take long to work on a held body."""
    return len(body) > SHORT or (len(body) > 0 and has_field(message.headers, b"content-encoding"))


def replace_body(message: http.Message, body: bytes) -> None:
    """Set the body to send, and its Content-Length if the message has one."""
    if message.data.content is body:
        return
    message.data.content = body
    headers = message.data.headers
    if not has_field(headers, b"transfer-encoding"):
        headers.fields = with_length(headers.fields, len(body))


class Tee:
    """Passes a body on unchanged and, in observe mode, counts the values that would have been encrypted."""

    def __init__(self, exchange: Exchange, request: http.Request, setting: Setting) -> None:
        self.exchange = exchange
        self.request = request
        self.setting = setting
        self.held = bytearray()

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to take a piece."""
        return not data and takes_long(self.request, self.held)

    def __call__(self, data: bytes) -> bytes:
        """Take a piece of the body, or its end, which is an empty piece."""
        exchange, limit = self.exchange, self.exchange.policy.limits.held_body
        if data:
            exchange.count_sent(data)
            if len(self.held) <= limit:
                self.held += data
            return data
        try:
            if len(self.held) > limit:
                raise bodies.too_large(limit)
            body = bytes(self.held)
            read_body(exchange, self.request, body, self.setting.pause)
            if entries := of_request(exchange):
                counts = bodies.count_marked(body, signed_head(self.request), entries, self.setting)
                exchange.count_fields(entries, counts)
        except Denied as denied:
            exchange.note_reason(denied)
        self.held.clear()
        return data
