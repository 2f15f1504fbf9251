"""Looks into request bodies in observe mode, so that the decision line says what would have been encrypted (`Tee`), and
which members look like secrets (`looks_secret`, `Watch`). `addons.encryption` lets bodies stream through them.

Rules of this module:

- The body passes as it came, at once. So much of it as is looked at is kept until its end.
- Nothing of a value is noted, and no name that may be a secret itself: `proxy.core.fields.shapes` sees to that.
- A body that cannot be read is no error: its reason is noted where an entry applies to it, and else nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mitmproxy import http

from addons import bodyheads, marked
from addons.exchange import Exchange
from addons.headers import values_of
from proxy.core.decisions import Denied
from proxy.core.fields import bodies
from proxy.core.fields.encodings import beginning
from proxy.core.fields.shapes import MOST_BYTES, shapes
from proxy.core.fields.values import Setting


class Watch:
    """Passes a request's body on, and notes what looks like a secret in it."""

    def __init__(
        self, exchange: Exchange, request: http.Request, then: Callable[[bytes], bytes | Iterable[bytes]]
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._then = then
        self._kept = bytearray()

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to take a piece: where what takes the body says so."""
        then = getattr(self._then, "takes_long", None)
        return then is not None and then(data) is True

    def __call__(self, data: bytes) -> bytes | Iterable[bytes]:
        """Take a piece of the body, or its end, which is an empty piece."""
        if data:
            self._kept += data[: MOST_BYTES - len(self._kept)]
        elif self._kept:
            coding = ", ".join(values_of(self._request.headers, b"content-encoding"))
            self._exchange.looks_secret = shapes(beginning(bytes(self._kept), coding, MOST_BYTES))
            self._kept.clear()
        return self._then(data)


class Tee:
    """Passes a body on unchanged and, in observe mode, counts the values that would have been encrypted."""

    def __init__(self, exchange: Exchange, request: http.Request, setting: Setting) -> None:
        self.exchange = exchange
        self.request = request
        self.setting = setting
        self.held = bytearray()

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to take a piece."""
        return not data and bodyheads.takes_long(self.request, self.held)

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
            marked.read_body(exchange, self.request, body, self.setting.pause)
            if entries := marked.of_request(exchange):
                counts = bodies.count_marked(body, bodyheads.signed_head(self.request), entries, self.setting)
                exchange.count_fields(entries, counts)
        except Denied as denied:
            exchange.note_reason(denied)
        self.held.clear()
        return data
