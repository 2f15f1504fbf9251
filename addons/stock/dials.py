"""The addon that controls upstream connections inside stock mitmproxy, which dials by itself: it lets mitmproxy dial
only where a request was let through, and cuts connections to forbidden addresses. `proxy.stock` puts it into the
pipeline. It is long for an addon, because what is let through, dialled and used are steps in one table a client.

Rules of this addon:

- Nothing is dialled for which no request was let through. `requestheaders`, which runs after all addons that decide,
  notes where a request may go, and under which rule; `server_connect` refuses any other address.
- A connection serves only requests of the rule whose pins it was opened with. mitmproxy compares only address and TLS;
  so if two rules lead to one address, a client connection can use only one of them.
- An address that is forbidden (`addons.stock.judging`) is not dialled. If mitmproxy has reached one all the same, the
  connection is cut before a byte is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from mitmproxy import connection, http, tls
from mitmproxy.exceptions import AddonHalt
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from addons.exchange import Exchange
from addons.pinning import expired_pins
from addons.sessions import Sessions
from addons.stock.guard import Cut
from addons.stock.judging import Judge
from addons.upstream import Upstream
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason
from proxy.core.rules.transport import untaken

_TOO_LARGE = "exceeds mitmproxy's body_size_limit"


class Target(NamedTuple):
    """The address of a connection, and whether it speaks TLS."""

    host: str
    port: int
    is_tls: bool


@dataclass(slots=True)
class _MayDial:
    """What may be dialled for one client connection.

    Attributes:
        let_through: for each target, the first request that was let through to it.
        carried: the CONNECT whose bytes are carried unchanged.
        last: for each target, what is known of the connection that was dialled last.
    """

    let_through: dict[Target, Exchange] = field(default_factory=dict)
    carried: Exchange | None = None
    last: dict[Target, Upstream] = field(default_factory=dict)


class Dials:
    """Decides what mitmproxy may dial. It comes after all addons that decide, and before `Telemetry`."""

    def __init__(self, sessions: Sessions, own_ports: Callable[[], Collection[int]], cut: Cut) -> None:
        """Start.

        Args:
            sessions: the live sessions.
            own_ports: returns the ports that mitmproxy itself listens on.
            cut: ends a connection before another byte is written to it.
        """
        self._sessions = sessions
        self._judge = Judge(own_ports)
        self._cut = cut
        self._may_dial: dict[str, _MayDial] = {}

    def client_connected(self, client: connection.Client) -> None:
        """Start with nothing that may be dialled."""
        self._may_dial[client.id] = _MayDial()

    def client_disconnected(self, client: connection.Client) -> None:
        """Forget a connection."""
        self._may_dial.pop(client.id, None)

    def carry(self, client: connection.Client, connect: Exchange) -> None:
        """Let the bytes of a CONNECT be carried to its destination."""
        self._may_dial[client.id].carried = connect

    # -- before dialling

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        """Judge the destination of a tunnel while the app can still be told."""
        exchange = self._sessions.exchange(flow)
        is_tunnel = exchange.decision is not None and exchange.decision.action is Action.TUNNEL
        if flow.response is None and is_tunnel and exchange.asked is not None:
            await self._judge_flow(flow, exchange, exchange.asked.host, exchange.asked.port)

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Let a request go to its target, and to no other."""
        exchange = self._sessions.exchange(flow)
        if flow.response is not None or flow.error is not None:
            return
        target = Target(flow.request.host, flow.request.port, flow.request.scheme == "https")
        may_dial = self._may_dial[flow.client_conn.id]
        first = may_dial.let_through.get(target, exchange)
        if first.rule is not exchange.rule:
            what = f"this connection has led to {target.host} port {target.port} under another rule already"
            exchange.deny_always(
                flow, Denied(Reason.DESTINATION_FORBIDDEN, what, "let one rule name both ports of the host")
            )
            return
        if target.is_tls and not exchange.observing and (expired := expired_pins(exchange.rule)) is not None:
            # Else mitmproxy would go on using an open connection.
            exchange.deny(flow, expired)
            return
        if target not in may_dial.let_through:  # else it was judged, and will be again at the next dial
            await self._judge_flow(flow, exchange, target.host, target.port)
        if flow.response is None:
            may_dial.let_through[target] = first

    async def _judge_flow(self, flow: http.HTTPFlow, exchange: Exchange, host: str, port: int) -> None:
        try:
            observed = await self._judge.before(exchange.policy, exchange.rule, host, port)
        except Denied as denied:
            exchange.deny_always(flow, denied)
        else:
            if observed is not None:
                exchange.deny(flow, observed)

    # -- while dialling

    async def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse a connection for which no request was let through."""
        server, may_dial = data.server, self._may_dial[data.client.id]
        if server.address is None or server.via is not None:
            raise RuntimeError("an upstream without an address, or through another proxy")
        host, port = server.address[:2]
        target = Target(host, port, server.tls)
        exchange = may_dial.carried or may_dial.let_through.get(target)
        if exchange is None or (may_dial.carried and (exchange.asked is None or (host, port) != _of(exchange))):
            raise RuntimeError("an upstream that no request was let through to")
        # HTTP/2 upstream only if the app speaks it, too: only then does mitmproxy pass trailers on.
        alpn = (b"h2", b"http/1.1") if data.client.alpn == b"h2" else (b"http/1.1",)
        record = Upstream(exchange.policy, exchange.rule, alpn=alpn)
        self._sessions.of(data.client).upstreams[server.id] = may_dial.last[target] = record
        if may_dial.carried is not None:
            exchange.upstream = record
        try:
            found = await self._judge.before(record.policy, record.rule, host, port)
            if found is not None and not exchange.observing:
                raise found
            record.observed = found
        except Denied as denied:
            record.denied = denied
            server.error = f"{denied.reason.code}: {denied.detail}"

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Cut a connection that did not lead where the look-up said."""
        server = data.server
        record = self._sessions.of(data.client).upstreams[server.id]
        if server.peername is None or server.sockname is None or server.address is None:
            raise RuntimeError("a connection without addresses")
        record.address = Destination(*server.peername[:2]).authority
        found = self._judge.reached(record, server.address[0], server.peername[:2], server.sockname[0])
        record.denied = found or record.denied
        if record.denied is not None:
            self._cut(data.client, server)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """Name the reason if nobody accepted the connection."""
        record = self._sessions.of(data.client).upstreams.get(data.server.id)
        if record is not None and record.denied is None and data.server.address is not None:
            record.denied = untaken(*data.server.address[:2])

    def tls_start_server(self, data: tls.TlsData) -> None:
        """Start no handshake on a connection that was cut."""
        if self._sessions.of(data.context.client).upstreams[data.conn.id].denied is not None:
            data.ssl_conn = None
            raise AddonHalt

    # -- afterwards

    def response(self, flow: http.HTTPFlow) -> None:
        """Find the connection that carried a request."""
        self._find(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """Find the connection that carried a request, or failed to; and name the reason if only mitmproxy knows it."""
        self._find(flow)
        exchange, upstream = self._sessions.exchange(flow), self._sessions.exchange(flow).upstream
        if exchange.denied is None and (upstream is None or upstream.denied is None) and flow.error is not None:
            found = _reason_of(flow.error.msg, exchange.has_left and _listens(flow), flow.response is not None)
            if found is not None:
                exchange.break_off(found)

    def _find(self, flow: http.HTTPFlow) -> None:
        exchange, server = self._sessions.exchange(flow), flow.server_conn
        target = Target(flow.request.host, flow.request.port, flow.request.scheme == "https")
        may_dial = self._may_dial[flow.client_conn.id]
        known = self._sessions.of(flow.client_conn).upstreams.get(server.id)
        if target in may_dial.let_through:
            exchange.upstream = known or (None if exchange.is_carried_out else may_dial.last.get(target))
        is_open = server.timestamp_tls_setup if server.tls else server.timestamp_tcp_setup
        exchange.has_left = exchange.has_left or is_open is not None


def _listens(flow: http.HTTPFlow) -> bool:
    return bool(flow.client_conn.state & connection.ConnectionState.CAN_WRITE)


def _reason_of(message: str, is_upstreams_fault: bool, has_begun: bool) -> Denied | None:
    """Return the denial for an error of mitmproxy; None if the app has ended the request."""
    if _TOO_LARGE in message:
        reason = Reason.BODY_TOO_LARGE if message.startswith("Request") else Reason.UPSTREAM_FAILED
        return Denied(reason, f"the body {_TOO_LARGE}")
    if not is_upstreams_fault:
        return None
    if has_begun:
        return Denied(Reason.UPSTREAM_CUT, "the upstream broke its response off before it was whole")
    return Denied(Reason.UPSTREAM_FAILED, "the upstream closed the connection, or its response is not valid HTTP")


def _of(exchange: Exchange) -> tuple[str, int] | None:
    return None if exchange.asked is None else (exchange.asked.host, exchange.asked.port)
