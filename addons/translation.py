"""Changes header fields between an app and a server that see each other differently. The addon `addons.transport` calls
it for messages that have one of the fields that it looks at.

Rules of this module:

- An upgraded app believes that the server speaks plain http, and the server that the app speaks https. Where they tell
  each other about URLs, origins and cookies, that is translated; all other fields of both go on as they came.
- Fields for the proxy itself (`Proxy-*`) end here.
- What a server says of itself (RFC 6797) counts over TLS only.
- Behind a mirror listener, peers and server see each other's fields as they are.
"""

from __future__ import annotations

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from addons.outcomes import is_denied
from proxy.core.decisions import Action
from proxy.core.destinations import CACHED, Destination
from proxy.core.http.cookies import Cookies, Delivery, names_sent
from proxy.core.rules import appview
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Policy

_FOR_THE_PROXY = frozenset((b"proxy-connection", b"proxy-authorization"))
# All that is looked at here: most messages have none of it, and need not be shown to `Translation`.
CHANGED_IN_REQUESTS = _FOR_THE_PROXY | appview.OF_REQUESTS.keys() | {b"traceparent", b"cookie"}
CHANGED_IN_RESPONSES = appview.OF_RESPONSES.keys() | {b"strict-transport-security", b"alt-svc", b"set-cookie"}


class Translation:
    """Translates for all connections of a process."""

    def __init__(self, known: KnownHosts, cookies: Cookies) -> None:
        self._cookies = cookies
        self._known = known
        self._lasting = known.lasting()
        self._viewed: Policy | None = None  # the policy that these views are of; they refer to it
        self._views: dict[Destination, appview.View] = {}

    def view_of(self, exchange: Exchange, *, is_upgraded: bool) -> appview.View | None:
        """Return how the app sees the server of a request; None if it sees it as it is."""
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

    def to_server(self, flow: http.HTTPFlow, exchange: Exchange, names: frozenset[bytes]) -> None:
        """Change a request: what is for the proxy, or means another thing to the server than to the app."""
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

    def to_app(self, flow: http.HTTPFlow, exchange: Exchange, headers: http.Headers, names: frozenset[bytes]) -> None:
        """Change a response: what means another thing to the app than to the server. What the server says of itself is
        learned.
        """
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


def _is_mirrored(exchange: Exchange) -> bool:
    """Tell whether it is a request to a mirror listener, whose peers and server see each other's fields as they are."""
    return exchange.decision is not None and exchange.decision.action is Action.MIRROR
