"""What of a request and its response is marked: by which entries, and what their heads say of the bodies.

Rules of this module:

- An entry's `when` is asked about every way in which servers may read the request (`proxy.core.fields.readings`).
- In observe mode nothing is decrypted, and what would be encrypted is counted beside a body that passes as it came.
"""

from __future__ import annotations

from dataclasses import replace

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import has_field, values_of
from proxy.core.decisions import Denied
from proxy.core.fields import bodies, encodings, readings, signatures
from proxy.core.fields.entries import FieldEntry


def host(exchange: Exchange) -> str:
    """Return the canonical destination, which sealed values are bound to."""
    if exchange.asked is None:
        raise RuntimeError("no destination was decided before the body")
    return exchange.asked.host


def read_head(exchange: Exchange, request: http.Request) -> None:
    """Find out how the request may be read by its head, and whether its body may change that."""
    if exchange.rule is None:
        return
    query = request.path.partition("?")[2]
    found = exchange.readings = readings.readings(exchange.method, exchange.path, query, request.headers.fields)
    has_body = request.is_http2 or has_field(request.headers, b"content-length", b"transfer-encoding")
    if has_body and readings.may_name_method(values_of(request.headers, b"content-type")):
        by_any = readings.may_be_any_method(found)
        exchange.looks_inside = any(
            entry.when.applies(by_any) and not entry.when.applies(found) for entry in exchange.rule.encrypt
        )


def read_body(exchange: Exchange, request: http.Request, body: bytes) -> None:
    """Find out whether a request's body asks for another method.

    Raises:
        Denied: it cannot be read.
    """
    if not exchange.looks_inside or exchange.readings is None:
        return
    said = head(request)
    decoded = encodings.decode(body, encodings.parse_encoding(said.content_encoding), exchange.policy.limits.held_body)
    exchange.readings = readings.with_body(exchange.readings, decoded, said.content_types)


def encrypting(exchange: Exchange) -> tuple[FieldEntry, ...]:
    """Return the entries by which the request's fields are encrypted."""
    entries = exchange.rule.encrypt if exchange.rule else ()
    return tuple(entry for entry in entries if entry.when.applies(_found(exchange)))


def decrypting(exchange: Exchange) -> tuple[FieldEntry, ...]:
    """Return the entries by which the response's fields are decrypted: none in observe mode."""
    entries = exchange.rule.decrypt if exchange.rule and not exchange.observing else ()
    if not entries:
        return ()
    found = _found(exchange)
    if exchange.method == "HEAD" and found.methods is not None:  # it is answered as GET is (RFC 9110, section 9.3.2)
        found = replace(found, methods=found.methods | {"GET"})
    return tuple(entry for entry in entries if entry.when.applies(found))


def _found(exchange: Exchange) -> readings.Readings:
    return exchange.readings or readings.readings(exchange.method, exchange.path)


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
            body = bytes(self.held)
            read_body(exchange, self.request, body)
            if entries := encrypting(exchange):
                exchange.fields_encrypted = bodies.count_marked(body, signed_head(self.request), entries, limit)
        except Denied as denied:
            exchange.note(denied)
        self.held.clear()
        return data
