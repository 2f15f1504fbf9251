"""Finds the denial that a request would get, by sending it through the protections themselves: the very addons that
decide on real requests, with nothing behind them. `proxy.commands.explain` shows it.

Rules of this module:

- Nothing is dialled or looked up. What only a server or the DNS knows (its certificate, its key, a name's address) is
  left open.
- It enforces, whatever the mode: what would be denied is asked.
- Who asks is left open, too: the client may use the proxy.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mitmproxy import http

from addons.encryption import Encryption
from addons.gate import Gate
from addons.localca import LocalCaGuard
from addons.outcomes import is_denied
from addons.pinning import expired_pins
from addons.sessions import Sessions
from addons.transport import Transport
from proxy.core.certificates.localca import Mandate
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import Destination
from proxy.core.fields.bodies import too_large
from proxy.core.fields.uploads import MOST_LOOKED_AT
from proxy.core.http.cookies import Cookies
from proxy.core.http.heads import Fields, HeadEnd, read_request_head
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Mirror, Mode, Policy, Rule
from proxy.core.rules.transport import denied_by_address
from proxy.core.who.clients import ClientRules
from proxy.core.who.credentials import Verifier
from proxy.disk.preload import is_preloaded
from proxy.engine.dispatch import Dispatcher
from proxy.engine.flows import new_client, new_flow
from proxy.engine.messages import request_of

_UNSAFE = re.compile(r"[^!-~]")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that an app might send.

    Attributes:
        scheme: `http` or `https`.
        destination: where it is to go.
        method: as sent.
        target: path and query; what is not visible ASCII is sent percent-encoded.
        fields: header fields. Host, and with a body Content-Length and Content-Type, are added if they are not there.
        body: None if nothing is known of one.
        mirror: the mirror to whose listener it comes, if it does.
    """

    scheme: str
    destination: Destination
    method: str
    target: str
    fields: Fields
    body: bytes | None
    mirror: Mirror | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A denial, and what the app is told of it.

    Attributes:
        denied: reason, detail and hint.
        status: the status of the answer; None if its connection is closed without one.
        rule: the rule that counted, or None.
    """

    denied: Denied
    status: int | None
    rule: Rule | None


def refusal_of(policy: Policy, asked: Asked, mandate: Mandate | None) -> Refusal | None:
    """Return why a request would be denied; None if nothing that is known here denies it.

    Args:
        policy: the policy. It is taken as enforced, for everybody.
        asked: the request.
        mandate: that of the local CA, if there is one yet.
    """
    rules = tuple(replace(rule, mode=None) for rule in policy.rules)
    return _Way(replace(policy, mode=Mode.ENFORCE, rules=rules, clients=ClientRules()), asked, mandate).refusal()


class _Way:
    """The way of one request through the addons."""

    def __init__(self, policy: Policy, asked: Asked, mandate: Mandate | None) -> None:
        self._policy, self._asked, self._mandate = policy, asked, mandate
        self._sessions = Sessions()
        known = KnownHosts(time.time, is_preloaded)
        addons = (
            Gate(self._sessions, Verifier(os.urandom(32), time.monotonic), known),
            *((LocalCaGuard(self._sessions, mandate),) if mandate is not None else ()),
            Transport(self._sessions, known, Cookies("explain")),
            Encryption(self._sessions),
        )
        self._dispatch = Dispatcher(addons, self._sessions, lambda: None)
        self._client = new_client(("127.0.0.1", 0), ("127.0.0.1", 0), time.time())
        self._client.sni = asked.destination.host if re.search("[a-z]", asked.destination.host) else None
        mirror = replace(asked.mirror, peers=None, is_open=True) if asked.mirror is not None else None
        self._sessions.open(self._client, policy, mirror=mirror)

    def refusal(self) -> Refusal | None:
        asked = self._asked
        if asked.mirror is not None:
            return self._request(asked.mirror.to)
        if asked.scheme == "http":
            return self._request(None)
        flow = self._flow(b"CONNECT", asked.destination.authority, (), None)
        if isinstance(flow, Refusal):
            return flow
        self._dispatch.call("http_connect", flow)
        exchange = self._sessions.exchange(flow)
        if (found := self._found(flow)) is not None:
            return found
        decision, rule = exchange.decision, exchange.rule
        assert decision is not None
        if decision.denied is not None:  # TLS behind a port where plain http may come is denied when it is there
            return Refusal(decision.denied, None, rule)
        if decision.action is Action.TUNNEL:
            return self._at_dial(rule, asked.destination)
        try:
            if self._mandate is not None:
                self._mandate.check(self._asked.destination.host, datetime.now(UTC))
        except Denied as denied:
            return Refusal(denied, None, rule)
        return self._request(asked.destination)

    def _request(self, inside: Destination | None) -> Refusal | None:
        asked = self._asked
        target = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), asked.target)
        if inside is None:
            target = f"http://{asked.destination.authority}{target}"
        fields = asked.fields
        names = {name.lower() for name, _ in fields}
        if asked.body is not None:
            if b"content-type" not in names:
                fields += ((b"Content-Type", b"application/json"),)
            if names.isdisjoint((b"content-length", b"transfer-encoding")):
                fields += ((b"Content-Length", b"%d" % len(asked.body)),)
        flow = self._flow(asked.method.encode("utf-8", "replace"), target, fields, inside)
        if isinstance(flow, Refusal):
            return flow
        self._dispatch.call("requestheaders", flow)
        exchange, body = self._sessions.exchange(flow), asked.body or b""
        if flow.response is None and exchange.holds_request:
            limit = exchange.policy.limits.held_body
            lets_stream = exchange.lets_stream
            try:
                stream = lets_stream(body[:MOST_LOOKED_AT], len(body) > limit) if lets_stream is not None else None
                if stream is not None:
                    stream(body)
                    stream(b"")
            except Denied as denied:
                exchange.deny_always(flow, denied)
                stream = None
            if stream is not None or flow.response is not None:
                pass
            elif len(body) > limit:
                exchange.deny_always(flow, too_large(limit))
            else:
                flow.request.data.content = body
                self._dispatch.call("request", flow)
        if (found := self._found(flow)) is not None:
            return found
        return self._at_dial(exchange.rule, Destination(flow.request.host, flow.request.port), flow)

    def _flow(self, method: bytes, target: str, fields: Fields, inside: Destination | None) -> http.HTTPFlow | Refusal:
        limits, host = self._policy.limits, self._asked.destination.authority.encode("ascii")
        if b"host" not in {name.lower() for name, _ in fields}:
            fields = ((b"Host", host), *fields)
        lines = b"".join(b"%s: %s\r\n" % field for field in fields)
        text = b"%s %s HTTP/1.1\r\n%s\r\n" % (method, target.encode("ascii"), lines)
        try:
            head = read_request_head(text[: HeadEnd(of_request=True).find(text, limits.header_bytes)])
            if len(head.fields) > limits.header_count:
                raise Denied(Reason.HEADERS_TOO_LARGE, f"there are more than {limits.header_count} header fields")
            mirror = self._asked.mirror
            request = request_of(head, inside, is_tls=inside is not None if mirror is None else not mirror.is_plain)
        except Denied as denied:
            return Refusal(denied, denied.reason.status, None)
        return new_flow(self._client, request)

    def _found(self, flow: http.HTTPFlow) -> Refusal | None:
        exchange = self._sessions.exchange(flow)
        if not is_denied(exchange):
            return None
        assert exchange.denied is not None
        return Refusal(exchange.denied, flow.response.status_code if flow.response else None, exchange.rule)

    def _at_dial(self, rule: Rule | None, target: Destination, flow: http.HTTPFlow | None = None) -> Refusal | None:
        """Return what would be denied when the server is dialled, as far as is known without that."""
        if self._asked.mirror is not None:
            return None  # where its server may be was checked when the policy was read, as far as that is known
        denied = denied_by_address(self._policy, rule, target.host)
        is_tls = flow is not None and flow.request.scheme == "https"
        if denied is None and (proxy := self._policy.proxy_to(target)) is not None:
            denied = expired_pins(proxy.rule, is_proxy=True)
            denied = denied and denied.again(f"the upstream proxy: {denied.detail}")
        if denied is None and is_tls:
            denied = expired_pins(rule)
        return None if denied is None else Refusal(denied, denied.reason.status, rule)
