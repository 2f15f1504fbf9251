"""Says which entries of a rule apply to a request and its response. The addon `addons.encryption` calls it.

Rules of this module:

- An entry's `when` is asked about all readings of the request that servers may have (`proxy.core.fields.readings`).
- In observe mode no entry applies to a response: nothing is decrypted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from mitmproxy import http

from addons import bodyheads
from addons.exchange import Exchange
from addons.headers import has_field, values_of
from proxy.core.decisions import Denied
from proxy.core.fields import encodings, readings
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.pauses import Pause, never
from proxy.core.http.heads import KEPT
from proxy.core.reasons import FIELD_REASONS

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
    said = bodyheads.head(request)
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
