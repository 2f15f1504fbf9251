"""Lets request bodies stream that need not be held: long multipart forms, part by part, and bodies of other kinds that
an entry lets pass. `addons.encryption` asks it for each request whose body may have fields to change.

Rules of this module:

- A body is held until it is known that it may stream (`proxy.core.fields.uploads`); till then nothing of it has left.
- A form whose length changes says no length: it goes on in chunks, or in the frames of HTTP/2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mitmproxy import http

from addons import bodyheads
from addons.exchange import Exchange
from addons.headers import has_field
from proxy.core.fields import uploads
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.values import Setting


def may_be_long(exchange: Exchange, request: http.Request, entries: Sequence[FieldEntry]) -> bool:
    """Tell whether a body may be longer than what is held."""
    if not entries or exchange.looks_inside:
        return False
    head = bodyheads.head(request)
    return uploads.may_stream(head, entries) or uploads.passes(head, entries, b"") is not False


def hold(
    flow: http.HTTPFlow, exchange: Exchange, entries: Sequence[FieldEntry], setting: Callable[[], Setting]
) -> None:
    """Hold a request's body, as far as it must be; `setting` returns what counts for its fields."""
    exchange.holds_request = True
    request = flow.request
    if not may_be_long(exchange, request, entries):
        return
    head = bodyheads.signed_head(request)
    if uploads.passes(head, entries, b""):
        exchange.holds_request = False
        request.stream = exchange.count_sent
    elif uploads.may_stream(head, entries):

        def long_form(_beginning: bytes, is_too_long: bool) -> Callable[[bytes], bytes] | None:
            if not is_too_long:
                return None
            _say_no_length(request)
            exchange.holds_request = False
            return _Through(uploads.Upload(head, entries, setting()), exchange, entries)

        exchange.lets_stream = long_form
    else:

        def other_body(beginning: bytes, _is_too_long: bool) -> Callable[[bytes], bytes] | None:
            found = uploads.passes(head, entries, beginning)
            if found is not None:
                exchange.lets_stream = None
            if found:
                exchange.holds_request = False
            return exchange.count_sent if found else None

        exchange.lets_stream = other_body


class _Through:
    """Passes a long form on."""

    def __init__(self, upload: uploads.Upload, exchange: Exchange, entries: Sequence[FieldEntry]) -> None:
        self._upload = upload
        self._exchange = exchange
        self._entries = entries

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to take a piece."""
        return self._upload.takes_long(data)

    def __call__(self, data: bytes) -> bytes:
        """Take a piece of the form, or its end, which is an empty piece.

        Raises:
            Denied: it cannot go on.
        """
        out = self._upload.feed(data) if data else self._upload.end()
        if not data:
            self._exchange.count_fields(self._entries, self._upload.counts)
        return self._exchange.count_sent(out)


def _say_no_length(request: http.Request) -> None:
    headers = request.headers
    headers.fields = tuple(field for field in headers.fields if field[0].lower() != b"content-length")
    if not request.is_http2 and not has_field(headers, b"transfer-encoding"):
        headers.fields += ((b"Transfer-Encoding", b"chunked"),)
