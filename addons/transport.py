"""The addon that the engine calls after the gate, to carry out its decision: it upgrades plain http to https, rejects
it, or lets it pass; and it translates header fields so that an upgraded app does not notice.

Rules of this addon:

- An upgraded request is dialled over TLS, on the rule's port; nothing later in the pipeline can undo that.
- The Host field names the destination that is dialled; all other fields of the app go on as they came.
- Fields for the proxy itself (`Proxy-*`) are removed here.
- An upgraded app believes that the server speaks plain http, and the server that the app speaks https. Where they tell
  each other about URLs, origins and cookies, that is translated. A redirect that would lead back to the very same
  request is denied.
"""

from __future__ import annotations

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from addons.outcomes import is_denied
from addons.sessions import Sessions
from proxy.core.decisions import Action, Denied, Reason
from proxy.core.destinations import CACHED, HTTPS_PORT, Destination, parse_authority
from proxy.core.http.cookies import Cookies, Delivery, names_sent
from proxy.core.http.heads import names_in
from proxy.core.http.hops import has_come_through, one_forward_less, without_hop
from proxy.core.http.names import host_field, with_host
from proxy.core.rules import appview
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Policy
from proxy.core.rules.transport import decide_plain_http

_FOR_THE_PROXY = frozenset((b"proxy-connection", b"proxy-authorization"))
# All that is looked at below but for Host, Via and Max-Forwards: most messages have none of it.
_CHANGED_IN_REQUESTS = _FOR_THE_PROXY | appview.OF_REQUESTS.keys() | {b"traceparent", b"cookie"}
_CHANGED_IN_RESPONSES = appview.OF_RESPONSES.keys() | {b"strict-transport-security", b"alt-svc", b"set-cookie"}


class Transport:
    """Carries out the transport decision on requests and responses."""

    def __init__(self, sessions: Sessions, known: KnownHosts, cookies: Cookies) -> None:
        self.sessions = sessions
        self._cookies = cookies
        self._known = known
        self._lasting = known.lasting()
        self._viewed: Policy | None = None  # the policy that these views are of; they refer to it
        self._views: dict[Destination, appview.View] = {}

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
        exchange.view = self._view(exchange, is_upgraded=is_upgraded)
        names = names_in(headers.fields)
        if not names.isdisjoint(_CHANGED_IN_REQUESTS):
            self._change_request(flow, exchange, names)

    def _change_request(self, flow: http.HTTPFlow, exchange: Exchange, names: frozenset[bytes]) -> None:
        """Change what is for the proxy, or means another thing to the server than to the app."""
        headers = flow.request.headers
        if not names.isdisjoint(_FOR_THE_PROXY):
            headers.fields = tuple(field for field in headers.fields if field[0].lower() not in _FOR_THE_PROXY)
        if b"traceparent" in names:
            exchange.trace(headers)
        if exchange.view is not None:
            if b"origin" in names:
                exchange.origin = values_of(headers, b"origin")[0]
            headers.fields = appview.request_fields(headers.fields, exchange.view)
        if b"cookie" in names and not _is_mirrored(exchange):
            exchange.jar = names_sent(headers.fields)
            headers.fields = self._cookies.sent(headers.fields, _delivery(flow, exchange))

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
        if not names.isdisjoint(_CHANGED_IN_RESPONSES):
            self._change_response(flow, exchange, headers, names)
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

    def _change_response(
        self, flow: http.HTTPFlow, exchange: Exchange, headers: http.Headers, names: frozenset[bytes]
    ) -> None:
        """Change what means another thing to the app than to the server, and learn what the server says of itself."""
        is_https, is_mirrored = flow.request.data.scheme == b"https", _is_mirrored(exchange)
        if b"strict-transport-security" in names and is_https and exchange.asked is not None and not is_mirrored:
            self._known.learn(exchange.asked.host, values_of(headers, b"strict-transport-security")[0])
        if is_denied(exchange):
            return
        # it leads past this proxy (RFC 7838), or past this mirror of the server
        if b"alt-svc" in names and (is_https or is_mirrored) and not exchange.observing:
            headers.fields = tuple(each for each in headers.fields if each[0].lower() != b"alt-svc")
        fields = headers.fields
        if b"set-cookie" in names and not is_mirrored:
            fields = self._cookies.received(fields, _delivery(flow, exchange), exchange.jar)
        if exchange.view is not None:
            fields = appview.response_fields(fields, exchange.view, exchange.origin)
        headers.fields = fields

    def _view(self, exchange: Exchange, *, is_upgraded: bool) -> appview.View | None:
        if exchange.asked is None:
            return None
        if exchange.front is not None:
            return appview.renamed(exchange.front, exchange.asked)
        if not is_upgraded:
            return None
        if exchange.policy is not self._viewed:
            self._viewed, self._views = exchange.policy, {}
        view = self._views.get(exchange.asked)
        if view is None:
            if len(self._views) >= CACHED:
                del self._views[next(iter(self._views))]
            view = appview.upgraded(exchange.policy, exchange.asked, self._known, self._lasting)
            self._views[exchange.asked] = view
        return view

    def response(self, flow: http.HTTPFlow) -> None:
        """Answer instead of a redirect that leads in a circle."""
        exchange = self.sessions.exchange(flow)
        if exchange.denied is not None and exchange.denied.reason is Reason.REDIRECT_LOOP and not exchange.observing:
            exchange.deny_always(flow, exchange.denied)


def _delivery(flow: http.HTTPFlow, exchange: Exchange) -> Delivery:
    """Return how this request goes to its server, for the translation of cookies."""
    host = exchange.asked.host if exchange.asked is not None else ""
    return Delivery(
        over_tls=flow.request.scheme == "https",
        is_translated=exchange.view is not None,
        host=host,
        behind=host if exchange.front is not None else None,
        may_be_plain=exchange.policy.lets_plain_http_pass,
    )


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


def _is_mirrored(exchange: Exchange) -> bool:
    """Tell whether it is a request to a mirror listener, whose peers and server see each other's fields as they are."""
    return exchange.decision is not None and exchange.decision.action is Action.MIRROR


def _deny_if_decided(flow: http.HTTPFlow, exchange: Exchange) -> None:
    if exchange.decision is not None and exchange.decision.denied is not None:
        exchange.deny(flow, exchange.decision.denied)


def _follow(request: http.Request, target: Destination) -> None:
    """Make Host and `:authority` name the target; leave them unchanged if they do so already."""
    headers = request.data.headers
    headers.fields = with_host(headers.fields, target)
    if request.data.authority and request.is_http2 and parse_authority(request.authority, HTTPS_PORT) != target:
        request.data.authority = host_field(target)
