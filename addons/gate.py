"""The gate: who is asking for what, and do all its names agree?

Rules of this addon:

- Who may not use the proxy learns nothing else from it, in any mode.
- One canonical destination a request. It is what the policy is asked about and what is dialled.
- CONNECT authority, Host (or `:authority`) and the request target must name the same destination
  (ARCHITECTURE.md, rule 4).
- A request that was not meant for a proxy is refused: guessing its destination from the Host header would let the
  app's input choose it.
"""

from __future__ import annotations

import contextlib

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from addons.sessions import Session, Sessions
from proxy.core.decisions import Action, Decision, Denied, Reason
from proxy.core.destinations import BadDestination, Destination, canonical
from proxy.core.http.heads import names_in
from proxy.core.http.names import check_host_fields, check_hosts_in, check_server_name
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import ListenerKind
from proxy.core.rules.transport import decide_https, decide_plain_http
from proxy.core.who.clients import check_client
from proxy.core.who.credentials import Verifier


class Gate:
    """Finds the destination, checks that the request's names agree, and asks the policy."""

    def __init__(self, sessions: Sessions, verifier: Verifier, known: KnownHosts) -> None:
        self.sessions = sessions
        self._known = known
        self._verifier = verifier

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Decide on a CONNECT."""
        exchange, session = self.sessions.exchange(flow), self.sessions.of(flow.client_conn)
        session.connect = exchange
        try:
            self._admit(flow, exchange, session)
            exchange.asked = _canonical(flow)
            exchange.rule, exchange.decision = decide_https(exchange.policy, exchange.asked)
            # RFC 9110, section 9.3.6: the Host field of a CONNECT repeats its target.
            _check_host(flow, exchange.asked, exchange.asked.port)
            _check_listed(exchange, exchange.asked)
        except Denied as denied:
            _stop(flow, exchange, denied)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decide on a request."""
        exchange, session = self.sessions.exchange(flow), self.sessions.of(flow.client_conn)
        try:
            self._admit(flow, exchange, session)
            exchange.asked = _canonical(flow)
            _check_path(flow.request)
            is_https = flow.request.data.scheme == b"https"
            # Before the names are compared, so that the rule is known of a mismatch, too.
            if is_https:
                exchange.rule, exchange.decision = decide_https(exchange.policy, exchange.asked)
            else:
                exchange.rule, exchange.decision = decide_plain_http(exchange.policy, exchange.asked, self._known)
            if exchange.decision.action is Action.TUNNEL:  # an https:// target outside CONNECT: its TLS is ours
                exchange.decision = Decision(Action.INSPECT, exchange.asked)
            _check_host(flow, exchange.asked, 443 if is_https else 80)
            if session.connect is not None and session.connect.asked is not None:
                check_server_name(flow.client_conn.sni, session.connect.asked)
            if not flow.request.is_http2:
                flow.request.data.authority = b""  # upstreams get the origin form (RFC 9112, section 3.2.1)
        except Denied as denied:
            _stop(flow, exchange, denied)

    def _admit(self, flow: http.HTTPFlow, exchange: Exchange, session: Session) -> None:
        """Check who is asking.

        Raises:
            Denied: CLIENT_FORBIDDEN, PROXY_AUTHENTICATION_REQUIRED.
        """
        clients = exchange.policy.clients
        if session.admitted_by is not exchange.policy:  # the policy may be another one by now
            check_client(clients, exchange.client)
            session.admitted_by = exchange.policy
        if not clients.users or not self._shows_credentials(session, exchange):
            return
        shown = values_of(flow.request.headers, b"proxy-authorization")
        if len(shown) == 1 and (clients.users, shown[0]) == session.verified:
            return  # whoever guesses from the same address keeps no connection out that is in
        if len(shown) != 1 or not self._verifier.verify(clients.users, shown[0], exchange.client):
            raise Denied(
                Reason.PROXY_AUTHENTICATION_REQUIRED,
                "the request carries a name or a password that is not the proxy's"
                if shown
                else "the request carries no credentials for the proxy",
            )
        session.verified = (clients.users, shown[0])

    def _shows_credentials(self, session: Session, exchange: Exchange) -> bool:
        """Tell whether this is where an app shows them: not where it knows of no proxy, nor again inside CONNECT."""
        knows = session.entry in (ListenerKind.FORWARD, ListenerKind.SOCKS5)
        return knows and (session.connect is None or session.connect is exchange)


def _check_listed(exchange: Exchange, asked: Destination) -> None:
    """Check that a rule names what CONNECT asks for, if that is wanted; another may speak of plain http inside it.

    Raises:
        Denied: DESTINATION_FORBIDDEN.
    """
    denied = exchange.decision.denied if exchange.decision is not None else None
    is_unlisted = denied is not None and denied.reason is Reason.DESTINATION_FORBIDDEN
    if is_unlisted and exchange.policy.rule_for_plain_http(asked) is None:
        raise denied  # type: ignore[misc]  # is_unlisted says that it is there


def _stop(flow: http.HTTPFlow, exchange: Exchange, denied: Denied) -> None:
    """Deny what observe mode lets pass; refuse in any mode what names no destination at all, and who may not ask."""
    if exchange.asked is None:  # for the line
        with contextlib.suppress(Denied):
            exchange.asked = _canonical(flow)
    if denied.reason in (Reason.HOST_MISMATCH, Reason.DESTINATION_FORBIDDEN):
        exchange.deny(flow, denied)
    else:
        exchange.refuse(flow, denied)


def _canonical(flow: http.HTTPFlow) -> Destination:
    """Return the destination of a request, and make it the one that will be dialled.

    Raises:
        Denied: BAD_REQUEST.
    """
    request = flow.request
    if not request.data.host:
        raise Denied(
            Reason.BAD_REQUEST,
            "the request has no destination: a proxy is sent an absolute-form target or CONNECT",
            "set this address as the app's HTTP_PROXY or HTTPS_PROXY instead of calling it directly",
        )
    try:
        destination = canonical(request.data.host, request.data.port)
    except BadDestination as e:
        raise Denied(Reason.BAD_REQUEST, f"the request's destination is not valid: {e}") from None
    if not 1 <= destination.port <= 65535:
        raise Denied(Reason.BAD_REQUEST, f"port {destination.port} is not a number from 1 to 65535")
    request.data.host = destination.host  # not through the setter, which would rewrite the Host header
    return destination


def _check_path(request: http.Request) -> None:
    """Check that the path is one. `:path` may hold anything, even a whole URL, which no glob of a policy would match.

    Raises:
        Denied: BAD_REQUEST.
    """
    path = request.data.path
    if path[:1] != b"/" and not (path == b"*" and request.method == "OPTIONS"):
        raise Denied(Reason.BAD_REQUEST, "the request's path does not begin with a slash (RFC 9113, section 8.3.1)")


def _check_host(flow: http.HTTPFlow, destination: Destination, default_port: int) -> None:
    """Check that Host and `:authority` name the destination.

    Raises:
        Denied: BAD_REQUEST if a value is malformed, HOST_MISMATCH if it names another destination.
    """
    fields, authority = flow.request.headers.fields, flow.request.data.authority
    if not authority and flow.request.is_http2 and b"host" not in names_in(fields):
        raise Denied(Reason.BAD_REQUEST, "the request has neither `:authority` nor a Host field")
    check_hosts_in(fields, destination, default_port)
    if authority:
        # `:authority`, or an absolute-form target inside CONNECT. Not by the property, which decodes A-labels.
        check_host_fields([authority.decode("ascii", "replace")], destination, default_port)
