"""The addon that the engine calls after the gate, to carry out its decision: it upgrades plain http to https, rejects
it, or lets it pass. `addons.translation` changes header fields for it, so that an upgraded app does not notice.

Rules of this addon:

- An upgraded request is dialled over TLS, on the rule's port; nothing later in the pipeline can undo that.
- The Host field names the destination that is dialled.
- What has come through this proxy before is refused, and so is what may go no further (Via, Max-Forwards).
- A redirect that would lead an upgraded app back to the very same request is denied.
"""

from __future__ import annotations

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from addons.outcomes import is_denied
from addons.sessions import Sessions
from addons.translation import CHANGED_IN_REQUESTS, CHANGED_IN_RESPONSES, Translation
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import HTTPS_PORT, Destination, parse_authority
from proxy.core.http.cookies import Cookies
from proxy.core.http.heads import names_in
from proxy.core.http.hops import has_come_through, one_forward_less, without_hop
from proxy.core.http.names import host_field, with_host
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.transport import decide_plain_http


class Transport:
    """Carries out the transport decision on requests and responses."""

    def __init__(self, sessions: Sessions, known: KnownHosts, cookies: Cookies) -> None:
        self.sessions = sessions
        self._known = known
        translation = Translation(known, cookies)
        self._view_of, self._to_server, self._to_app = translation.view_of, translation.to_server, translation.to_app

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Deny a CONNECT to a host whose https is rejected."""
        exchange = self.sessions.exchange(flow)
        # A CONNECT to a port other than 443 may be for plain http, which may have another rule.
        if exchange.asked is not None:
            rule, inside = decide_plain_http(exchange.policy, exchange.asked, self._known)
            is_let_pass = exchange.policy.observes(rule) and not exchange.observing  # unlike https here
            may_carry_http = inside.denied is None or is_let_pass
            if exchange.asked.port == HTTPS_PORT or not may_carry_http:
                _deny_if_decided(flow, exchange)
        exchange.via = tuple(values_of(flow.request.headers, b"via"))  # for the upstream proxy, if there is one
        if exchange.policy.via is not None:
            _check_via(flow, exchange, exchange.policy.via)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Upgrade, reject or allow a request."""
        exchange = self.sessions.exchange(flow)
        if flow.response is not None:
            return
        decision = exchange.decision
        if decision is not None and decision.denied is not None:
            exchange.deny(flow, decision.denied)
        data, policy = flow.request.data, exchange.policy
        headers = data.headers
        is_upgraded = decision is not None and decision.action is Action.UPGRADE and not exchange.observing
        if is_upgraded and decision is not None and decision.target is not None:
            # Not with the setters: they rewrite Host with their own default port.
            data.scheme = b"https"
            data.port = decision.target.port
            _follow(flow.request, decision.target)
        if policy.via is not None and not exchange.observing:
            _check_via(flow, exchange, policy.via)
            headers.fields += ((b"Via", _version(flow.request) + b" " + policy.via.encode()),)
        if exchange.method in ("OPTIONS", "TRACE") and not exchange.observing:
            headers.fields, may_go_on = one_forward_less(headers.fields)
            if not may_go_on:
                exchange.deny(flow, Denied(Reason.NO_FORWARDS_LEFT, "the request's Max-Forwards is 0"))
        exchange.view = self._view_of(exchange, is_upgraded=is_upgraded)
        names = names_in(headers.fields)
        if not names.isdisjoint(CHANGED_IN_REQUESTS):
            self._to_server(flow, exchange, names)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Translate an upgraded host's response for an app that asked over plain http."""
        exchange = self.sessions.exchange(flow)
        response, view = flow.response, exchange.view
        if response is None:
            return
        headers, policy = response.data.headers, exchange.policy
        if policy.via is not None and not exchange.observing:
            headers.fields += ((b"Via", _version(response) + b" " + policy.via.encode("ascii")),)
        names = names_in(headers.fields)
        if not names.isdisjoint(CHANGED_IN_RESPONSES):
            self._to_app(flow, exchange, headers, names)
        if is_denied(exchange):
            return
        if flow.request.is_http2 and not response.is_http2:  # elsewhere, they were removed with the rest of their head
            headers.fields = without_hop(headers.fields)
        if view is not None:
            trail, path = self.sessions.of(flow.client_conn).trail, flow.request.path
            try:
                trail.follow(exchange.method, response.data.status_code, view.asked, path, headers.fields)
            except Denied as denied:
                exchange.note_reason(denied)  # unless in observe mode, `response` replaces the response

    def response(self, flow: http.HTTPFlow) -> None:
        """Answer instead of a redirect that leads in a circle."""
        exchange = self.sessions.exchange(flow)
        if exchange.denied is not None and exchange.denied.reason is Reason.REDIRECT_LOOP and not exchange.observing:
            exchange.deny_always(flow, exchange.denied)


def _check_via(flow: http.HTTPFlow, exchange: Exchange, name: str) -> None:
    """Refuse a request that has passed this proxy before."""
    if has_come_through(values_of(flow.request.headers, b"via"), name):
        exchange.deny(
            flow,
            Denied(
                Reason.REQUEST_LOOP,
                "the request has come through this proxy before: its Via says so",
            ),
        )


def _version(message: http.Message) -> bytes:
    return b"2" if message.is_http2 else message.data.http_version.removeprefix(b"HTTP/")


def _deny_if_decided(flow: http.HTTPFlow, exchange: Exchange) -> None:
    if exchange.decision is not None and exchange.decision.denied is not None:
        exchange.deny(flow, exchange.decision.denied)


def _follow(request: http.Request, target: Destination) -> None:
    """Make Host and `:authority` name the target; leave them unchanged if they do so already."""
    headers = request.data.headers
    headers.fields = with_host(headers.fields, target)
    if request.data.authority and request.is_http2 and parse_authority(request.authority, HTTPS_PORT) != target:
        request.data.authority = host_field(target)
