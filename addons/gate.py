"""The addon whose hooks the engine calls first for each request: has `addons.admission` check who is asking, finds for
which destination, checks that all names in the request agree, and asks the transport rules for a decision, which later
addons carry out.

Rules of this addon:

- Clients that may not use the proxy learn nothing else from it, in any mode.
- Each request has one canonical destination. The policy is asked about it, and it is dialled.
- CONNECT authority, Host (or `:authority`) and the request target must name the same destination (ARCHITECTURE.md, rule
  4).
- A request that was not meant for a proxy is refused. If its destination were guessed from Host, the app's input could
  choose it.
"""

from __future__ import annotations

import contextlib

from mitmproxy import http

from addons.admission import Admission
from addons.exchange import Exchange
from addons.sessions import Sessions
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.http.heads import names_in
from proxy.core.http.names import (
    check_host_fields,
    check_hosts_in,
    check_path,
    check_server_name,
    mirrored_host,
    read_target,
)
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Mirror
from proxy.core.rules.transport import decide_https, decide_mirror, decide_plain_http
from proxy.core.who.credentials import Verifier


class Gate:
    """Finds the destination of requests, checks their names, and asks the policy."""

    def __init__(self, sessions: Sessions, verifier: Verifier, known: KnownHosts) -> None:
        self.sessions = sessions
        self._known = known
        self._admit = Admission(verifier).admit

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Decide on a CONNECT."""
        exchange, session = self.sessions.exchange(flow), self.sessions.of(flow.client_conn)
        session.connect = exchange
        exchange.trace(flow.request.headers)
        try:
            self._admit(flow, exchange, session)
            exchange.asked = _canonical(flow)
            exchange.settle(*decide_https(exchange.policy, exchange.asked))
            # RFC 9110, section 9.3.6: the Host field of a CONNECT repeats its target.
            _check_host(flow, exchange.asked, exchange.asked.port)
            _check_listed(exchange, exchange.asked)
        except Denied as denied:
            _deny(flow, exchange, denied)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decide on a request."""
        exchange, session = self.sessions.exchange(flow), self.sessions.of(flow.client_conn)
        try:
            self._admit(flow, exchange, session)
            if session.mirror is not None:
                self._mirror(flow, exchange, session.mirror)
                return
            exchange.asked = asked = _canonical(flow)
            data = flow.request.data
            check_path(data.path, data.method)
            is_https = data.scheme == b"https"
            # Before the names are compared, so that a mismatch has a rule, too.
            if is_https:
                rule, decision = decide_https(exchange.policy, asked)
            else:
                rule, decision = decide_plain_http(exchange.policy, asked, self._known)
            if decision.action is Action.TUNNEL:  # an https:// target outside CONNECT: Overcoat makes the TLS
                decision = Decision(Action.INSPECT, asked)
            exchange.settle(rule, decision)
            _check_host(flow, asked, 443 if is_https else 80)
            if session.connect is not None and session.connect.asked is not None:
                check_server_name(flow.client_conn.sni, session.connect.asked)
            if data.authority and not flow.request.is_http2:
                data.authority = b""  # upstreams get a target in origin form (RFC 9112, section 3.2.1)
        except Denied as denied:
            _deny(flow, exchange, denied)

    def _mirror(self, flow: http.HTTPFlow, exchange: Exchange, mirror: Mirror) -> None:
        """Decide on a request that came to a mirror listener: it is for the host that it names, and goes to the server.

        Raises:
            Denied: BAD_REQUEST, MISDIRECTED.
        """
        to = _canonical(flow)
        data = flow.request.data
        check_path(data.path, data.method)
        authority = data.authority.decode("ascii", "replace")
        exchange.asked = mirrored_host(flow.request.headers.fields, authority, flow.client_conn.sni, mirror.names)
        exchange.settle(*decide_mirror(exchange.policy, exchange.asked, to))
        if not flow.request.is_http2:
            data.authority = b""


def _check_listed(exchange: Exchange, asked: Destination) -> None:
    """Check that a rule names the destination of a CONNECT, if the policy wants that. A rule for plain http inside
    counts.

    Raises:
        Denied: DESTINATION_FORBIDDEN.
    """
    denied = exchange.decision.denied if exchange.decision is not None else None
    is_unlisted = denied is not None and denied.reason is Reason.DESTINATION_FORBIDDEN
    if is_unlisted and exchange.policy.rule_for_plain_http(asked) is None:
        raise denied  # type: ignore[misc]  # is_unlisted says that there is a denial


def _deny(flow: http.HTTPFlow, exchange: Exchange, denied: Denied) -> None:
    """Deny a request. In observe mode it passes, except if it names no destination, or the client may not use the
    proxy.
    """
    exchange.trace(flow.request.headers)
    if exchange.asked is None and denied.reason is not Reason.MISDIRECTED:  # for the decision line
        with contextlib.suppress(Denied):
            exchange.asked = _canonical(flow)
    if denied.reason in (Reason.HOST_MISMATCH, Reason.DESTINATION_FORBIDDEN):
        exchange.deny(flow, denied)
    else:
        exchange.deny_always(flow, denied)


def _check_host(flow: http.HTTPFlow, destination: Destination, default_port: int) -> None:
    """Check that Host and `:authority` name the destination.

    Raises:
        Denied: BAD_REQUEST if a value is malformed, HOST_MISMATCH if it names another destination.
    """
    data = flow.request.data
    fields, authority = data.headers.fields, data.authority
    check_hosts_in(fields, destination, default_port)
    if authority:
        # `:authority`, or an absolute target inside CONNECT. The property is not used: it decodes A-labels.
        check_host_fields([authority.decode("ascii", "replace")], destination, default_port)
    elif flow.request.is_http2 and b"host" not in names_in(fields):
        raise Denied(Reason.BAD_REQUEST, "the request has neither `:authority` nor a Host field")


def _canonical(flow: http.HTTPFlow) -> Destination:
    """Return the canonical destination of a request, and set it as the one to dial.

    Raises:
        Denied: BAD_REQUEST.
    """
    data = flow.request.data
    destination = read_target(data.host, data.port)
    data.host = destination.host  # not with the setter, which would rewrite Host
    return destination
