"""Looks into request bodies in observe mode, so that the decision line says which of their members look like secrets
(`looks_secret`). The addon `addons.encryption` puts a `Watch` before whatever else takes the body.

Rules of this module:

- The body passes as it came, at once. Its beginning is kept until its end, or until it is enough.
- Nothing of a value is noted, and no name that may be a secret itself: `proxy.core.fields.shapes` sees to that.
- A body that cannot be read is no error here: nothing is noted of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from proxy.core.fields.encodings import beginning
from proxy.core.fields.shapes import MOST_BYTES, shapes


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
