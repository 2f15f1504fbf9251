"""Writes the decision line of a request that is over: one JSON object on one line. The addon `addons.telemetry` calls
it.

Rules of this module:

- The line is ASCII, byte for byte what `json.dumps` would write, except for the zeros at the end of `seconds`. It is
  built here by hand, because that takes a third of the time, which is a twelfth of the cost of a small request.
- Whatever a peer chose (path, method) and every sentence goes through the JSON encoder; nothing else needs it.
- No header value, query or body ever gets into it. Of a body that is observed, paths of members do, whose names were
  chosen by a person, not by chance (`proxy.core.fields.shapes`).
"""

from __future__ import annotations

import json
import time
from enum import StrEnum
from functools import lru_cache

from mitmproxy import http

from addons.exchange import Exchange
from addons.fieldcounts import FieldCounts
from addons.ids import id_of
from addons.outcomes import action_of, done, would_deny
from addons.upstream import Upstream
from proxy.core.decisions import Action
from proxy.core.destinations import Destination
from proxy.core.fields.entries import Work
from proxy.core.pins import PinVerdict
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.policy import Mode


class Event(StrEnum):
    """What a line is about that is not about an end."""

    OPENED = "opened"  # a tunnel, or a WebSocket
    RUNNING = "running"  # it still is open


# Characters of a path and of a method in a line: nobody can hide a request by making its line too long to be written.
MAX_PATH, MAX_METHOD = 2048, 64

_encode = json.JSONEncoder().encode
_quote = json.encoder.encode_basestring_ascii  # what that calls for a string


def line_of(
    exchange: Exchange, status: int | None, flow: http.HTTPFlow | None, seconds: float, event: Event | None = None
) -> str:
    """Return the decision line of an exchange, with its line feed.

    Args:
        exchange: the exchange.
        status: the status that the app was told; None if it was told none.
        flow: its flow, if it had one to the end.
        seconds: how long it took.
        event: what else than its end the line is about; then it has no outcome yet.
    """
    method, path = exchange.method, exchange.path
    if len(method) > MAX_METHOD or len(path) > MAX_PATH:
        method, path = _cut(method, MAX_METHOD), _cut(path, MAX_PATH)
    upstream, denied, trace = exchange.upstream, exchange.denied, exchange.trace_id
    would, address, group, pin = exchange.observing and would_deny(exchange), None, None, None
    if upstream is not None:
        would = would or upstream.would_refuse
        address, group, pin = upstream.address, upstream.group, upstream.pin
    second, millisecond = divmod(int(exchange.started * 1000), 1000)
    verdict = _verdict(
        exchange.rule_name,
        exchange.observing,
        done(exchange),
        exchange.outcome,
        denied and denied.reason,
        would,
        flow.server_conn.tls_version if flow is not None else None,
        group,
        pin,
    )
    return (
        f'{{"time": "{_date(second)}.{millisecond:03d}+00:00", "id": "{id_of(exchange.number)}", '
        f'{_who(exchange.client, exchange.user)}, "trace_id": {f'"{trace}"' if trace else "null"}, '
        f'{_whither(method, exchange.asked, address)}, "path": {_quote(path)}, {verdict}, '
        f"{_NO_FIELDS if exchange.fields is None else _fields(exchange)}, "
        f'"status": {"null" if status is None else status}, '
        f'"bytes_sent": {exchange.bytes_sent}, "bytes_received": {exchange.bytes_received}, '
        f'"seconds": {seconds:.6f}{_more(exchange, upstream, event)}}}\n'
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


_NO_FIELDS = '"encrypted": 0, "decrypted": 0'


def _fields(exchange: Exchange) -> str:
    """Return the part about marked fields, of an exchange that has had any."""
    assert exchange.fields is not None
    return _counted(exchange.fields.all(), exchange.observing)


@lru_cache(256)
def _counted(found: tuple[tuple[tuple[str, Work | Reason], int], ...], is_observing: bool) -> str:
    counts = FieldCounts(found)
    encrypted = 0 if is_observing else counts.total(Work.ENCRYPT)
    said: dict[str, object] = {"encrypted": encrypted, "decrypted": counts.total(Work.DECRYPT)}
    if not is_observing and (done := counts.by_entry()):
        said["fields"] = done
    if failures := counts.failures():
        said["field_failures"] = failures
    return _encode(said)[1:-1]


@lru_cache(256)
def _who(client: str, user: str | None) -> str:
    return f'"client": {_encode(client)}, "user": {_encode(user)}'


@lru_cache(256)
def _whither(method: str, asked: Destination | None, address: str | None) -> str:
    there = f'"destination": {_encode(asked and asked.authority)}, "upstream": {_encode(address)}'
    return f'"method": {_encode(method)}, {there}'


@lru_cache(4)
def _date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(256)
def _verdict(  # noqa: PLR0917  # in their order in the line
    rule: str | None,
    is_observing: bool,
    action: Action,
    outcome: Outcome | None,
    reason: Reason | None,
    would: bool,
    tls: str | None,
    key_exchange: str | None,
    pin: PinVerdict | None,
) -> str:
    """Return the part that is the same for most requests of a rule."""
    said = {
        "rule": rule,
        "mode": Mode.OBSERVE if is_observing else Mode.ENFORCE,
        "action": action,
        "outcome": outcome,
        "reason": reason and reason.code,
        "would_deny": would,
        "tls": tls,
        "key_exchange": key_exchange,
        "pin": pin and pin.value,
    }
    return _encode(said)[1:-1]


def _more(exchange: Exchange, upstream: Upstream | None, event: Event | None) -> str:
    """Return the parts that only some lines have."""
    noted = None if upstream is None else upstream.noted
    if noted is None and exchange.aside is not None:
        noted = exchange.aside.noted
    if event is None and exchange.denied is noted is None and not exchange.observing and not exchange.app_left:
        return ""
    more: dict[str, object] = {} if event is None else {"event": event}
    if exchange.observing:
        action = action_of(exchange)
        more["would"] = action.value
        more["would_upgrade"] = action is Action.UPGRADE
        more["would_encrypt"] = exchange.fields_encrypted
        if exchange.fields is not None and (fields := exchange.fields.by_entry()):
            more["would_fields"] = fields
        pins = [each.pin.value for each in (upstream, exchange.aside) if each is not None and each.pin]
        more["would_pin"] = pins[0] if pins else None
        if exchange.looks_secret:
            more["looks_secret"] = exchange.looks_secret
    if exchange.denied:
        more["detail"] = exchange.denied.detail
        if exchange.observed is not None and exchange.observed is not exchange.denied:
            would = exchange.observed.reason.code
            more["detail"] = f"{exchange.denied.detail}; enforcing would have denied it: {would}"
    elif exchange.app_left:
        is_tunnel = exchange.method == "CONNECT" or exchange.has_switched
        more["detail"] = f"the app {'broke it off' if is_tunnel else 'ended it before the response was complete'}"
    if noted is not None:
        more["pin_detail"] = noted.detail
    for each in (noted, exchange.denied):
        more |= {} if each is None else each.facts
    return f", {_encode(more)[1:-1]}" if more else ""
