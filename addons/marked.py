"""What of a request and its response is marked: by which entries, and what their heads say of the bodies.

Rules of this module:

- In observe mode nothing is decrypted, and what would be encrypted is counted beside a body that passes as it came.
"""

from __future__ import annotations

from dataclasses import replace

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from proxy.core import bodies, signatures
from proxy.core.decisions import Denied
from proxy.core.policy import FieldEntry


def host(exchange: Exchange) -> str:
    """Return the canonical destination, which sealed values are bound to."""
    if exchange.asked is None:
        raise RuntimeError("no destination was decided before the body")
    return exchange.asked.host


def encrypting(exchange: Exchange) -> tuple[FieldEntry, ...]:
    """Return the entries by which the request's fields are encrypted."""
    entries = exchange.rule.encrypt if exchange.rule else ()
    return tuple(entry for entry in entries if entry.when.applies(exchange.method, exchange.path))


def decrypting(exchange: Exchange) -> tuple[FieldEntry, ...]:
    """Return the entries by which the response's fields are decrypted: none in observe mode."""
    entries = exchange.rule.decrypt if exchange.rule and not exchange.observing else ()
    # HEAD is answered as GET is (RFC 9110, section 9.3.2).
    methods = (exchange.method, "GET") if exchange.method == "HEAD" else (exchange.method,)
    return tuple(entry for entry in entries if any(entry.when.applies(method, exchange.path) for method in methods))


def head(message: http.Message) -> bodies.BodyHead:
    """Return what a message's header fields say of its body."""
    codings = values_of(message.headers, b"content-encoding")
    return bodies.BodyHead(values_of(message.headers, b"content-type"), ", ".join(codings) if codings else None)


def signed_head(request: http.Request) -> bodies.BodyHead:
    """Return the same of a request whose body is there, with what signs that."""
    query = request.data.path.partition(b"?")[2].decode("latin-1")
    return replace(head(request), signature=signatures.covering(request.headers.fields, query))


class Tee:
    """Passes a body on untouched and counts, in observe mode, what would have been encrypted in it."""

    def __init__(self, exchange: Exchange, request: http.Request) -> None:
        self.exchange = exchange
        self.request = request
        self.held = bytearray()

    def __call__(self, data: bytes) -> bytes:
        """Take a piece of the body, or its end, which is an empty one."""
        exchange, limit = self.exchange, self.exchange.policy.limits.held_body
        if data:
            exchange.count_sent(data)
            if len(self.held) <= limit:
                self.held += data
            return data
        try:
            if len(self.held) > limit:
                raise bodies.too_large(limit)
            exchange.fields_encrypted = bodies.count_marked(
                bytes(self.held), signed_head(self.request), encrypting(exchange), limit
            )
        except Denied as denied:
            exchange.note(denied)
        self.held.clear()
        return data
