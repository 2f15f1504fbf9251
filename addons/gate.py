"""The addon whose hooks the engine calls first for each request: checks who is asking and for which destination, that
all names in the request agree, and asks the transport rules for a decision, which later addons carry out.

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

from addons.exchange import Exchange
from addons.headers import values_of
from addons.sessions import Session, Sessions
from proxy.core.decisions import Action, Decision, Denied, Reason
from proxy.core.destinations import BadDestination, Destination, canonical
from proxy.core.http.heads import names_in
from proxy.core.http.names import check_host_fields, check_hosts_in, check_server_name, mirrored_host
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import ListenerKind, Mirror
from proxy.core.rules.transport import decide_https, decide_mirror, decide_plain_http
from proxy.core.who.clients import check_client
from proxy.core.who.credentials import Verifier, read_basic


class Gate:
    """Finds the destination of requests, checks their names, and asks the policy."""

    def __init__(self, sessions: Sessions, verifier: Verifier, known: KnownHosts) -> None:
        self.sessions = sessions
        self._known = known
        self._verifier = verifier

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
            _check_path(flow.request)
            data = flow.request.data
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
        _check_path(flow.request)
        authority = flow.request.data.authority.decode("ascii", "replace")
        exchange.asked = mirrored_host(flow.request.headers.fields, authority, flow.client_conn.sni, mirror.names)
        exchange.settle(*decide_mirror(exchange.policy, exchange.asked, to))
        if not flow.request.is_http2:
            flow.request.data.authority = b""

    def _admit(self, flow: http.HTTPFlow, exchange: Exchange, session: Session) -> None:
        """Check that the client may use the proxy.

        Raises:
            Denied: CLIENT_FORBIDDEN, PROXY_AUTHENTICATION_REQUIRED.
        """
        clients = exchange.policy.clients_of(session.mirror)
        if session.admitted_by is not exchange.policy:  # the policy may have changed
            check_client(clients, exchange.client, is_at_mirror=session.mirror is not None)
            session.admitted_by = exchange.policy
        if not clients.users:
            return
        if not self._shows_credentials(session, exchange):
            exchange.user = session.connect.user if session.connect is not None else None
            return
        shown = values_of(flow.request.headers, b"proxy-authorization")
        if len(shown) == 1 and (clients.users, shown[0]) == session.verified:
            exchange.user = session.user
            return  # others who guess from this address must not disturb a connection that was let in
        if len(shown) != 1 or not self._verifier.verify(clients.users, shown[0], exchange.client):
            raise Denied(
                Reason.PROXY_AUTHENTICATION_REQUIRED,
                "the request carries a name or a password that is not the proxy's"
                if shown
                else "the request carries no credentials for the proxy",
            )
        session.verified = (clients.users, shown[0])
        credentials = read_basic(shown[0])
        exchange.user = session.user = credentials[0] if credentials is not None else None

    def _shows_credentials(self, session: Session, exchange: Exchange) -> bool:
        """Tell whether an app sends credentials here: not if it does not know of a proxy, and not again inside
        CONNECT.
        """
        knows = session.listener_kind in (ListenerKind.FORWARD, ListenerKind.SOCKS5)
        return knows and (session.connect is None or session.connect is exchange)


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


def _canonical(flow: http.HTTPFlow) -> Destination:
    """Return the canonical destination of a request, and set it as the one to dial.

    Raises:
        Denied: BAD_REQUEST.
    """
    data = flow.request.data
    try:
        destination = canonical(data.host, data.port)
    except BadDestination as e:
        if not data.host:
            raise Denied(
                Reason.BAD_REQUEST,
                "the request has no destination: a proxy is sent an absolute-form target or CONNECT",
                "set this address as the app's HTTP_PROXY or HTTPS_PROXY instead of calling it directly",
            ) from None
        raise Denied(Reason.BAD_REQUEST, f"the request's destination is not valid: {e}") from None
    if not 1 <= destination.port <= 65535:
        raise Denied(Reason.BAD_REQUEST, f"port {destination.port} is not a number from 1 to 65535")
    data.host = destination.host  # not with the setter, which would rewrite Host
    return destination


def _check_path(request: http.Request) -> None:
    """Check that the path is a path. `:path` may hold anything, even a whole URL, which no glob of a policy would
    match.

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
    data = flow.request.data
    fields, authority = data.headers.fields, data.authority
    check_hosts_in(fields, destination, default_port)
    if authority:
        # `:authority`, or an absolute target inside CONNECT. The property is not used: it decodes A-labels.
        check_host_fields([authority.decode("ascii", "replace")], destination, default_port)
    elif flow.request.is_http2 and b"host" not in names_in(fields):
        raise Denied(Reason.BAD_REQUEST, "the request has neither `:authority` nor a Host field")
