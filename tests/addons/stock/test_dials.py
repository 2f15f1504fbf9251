"""What stock mitmproxy may dial, and which connection carries a request (ARCHITECTURE.md, rules 3 and 4)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import connection, http
from mitmproxy import flow as mitmproxy_flow
from mitmproxy.exceptions import AddonHalt
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from addons.exchange import Exchange
from addons.stock.dials import Dials
from addons.stock.flows import StockSessions
from proxy.core.decisions import Action, Decision
from proxy.core.destinations import Destination
from proxy.core.pins import Pin, PinSet
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Egress, HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.who.addresses import AddressKind, AddressSet

RULE = Rule("one", (HostPattern("exact", "127.0.0.1"),), PlainHttp.UPGRADE, Https.INSPECT)
OTHER = replace(RULE, name="other")
LOOPBACK = Policy(destinations=AddressSet(frozenset({AddressKind.LOOPBACK})))


class Line:
    """One client connection, and what was cut of it."""

    def __init__(self, policy: Policy = LOOPBACK, own_ports: Collection[int] = ()) -> None:
        self.cut: list[connection.Server | None] = []
        self.sessions = StockSessions()
        self.client = connection.Client(peername=("127.0.0.1", 5), sockname=("127.0.0.1", 8080))
        self.client.state = connection.ConnectionState.OPEN
        self.sessions.open(self.client, policy)
        self.dials = Dials(self.sessions, lambda: own_ports, lambda _, server: self.cut.append(server))
        self.dials.client_connected(self.client)

    def ask(self, rule: Rule | None = RULE, host: str = "127.0.0.1", port: int = 443) -> Exchange:
        """Let a request go as far as to this addon."""
        flow = self.flow(host, port)
        exchange = self.sessions.exchange(flow)
        exchange.rule = rule
        asyncio.run(self.dials.requestheaders(flow))
        return exchange

    def flow(self, host: str = "127.0.0.1", port: int = 443) -> http.HTTPFlow:
        flow = http.HTTPFlow(self.client, connection.Server(address=None))
        flow.request = http.Request.make("GET", f"https://{host}:{port}/")
        return flow

    def dial(self, host: str = "127.0.0.1", port: int = 443, *, is_tls: bool = True) -> ServerConnectionHookData:
        """Let mitmproxy ask whether it may dial."""
        server = connection.Server(address=(host, port))
        server.tls = is_tls
        data = ServerConnectionHookData(server, self.client)
        asyncio.run(self.dials.server_connect(data))
        return data

    def reach(self, data: ServerConnectionHookData, peer: str = "127.0.0.1", here: str = "127.0.0.1") -> None:
        """Let mitmproxy have dialled."""
        assert data.server.address is not None
        data.server.peername, data.server.sockname = (peer, data.server.address[1]), (here, 40000)
        self.dials.server_connected(data)


def reason(exchange: Exchange) -> Reason | None:
    return exchange.denied.reason if exchange.denied else None


class TestLetThrough:
    def test_what_a_request_was_let_through_to_is_dialled(self) -> None:
        line = Line()
        assert reason(line.ask()) is None
        data = line.dial()
        assert data.server.error is None
        assert line.sessions.of(line.client).upstreams[data.server.id].rule is RULE
        line.reach(data)
        assert line.cut == []

    @pytest.mark.parametrize(
        ("host", "port", "is_tls"), [("127.0.0.2", 443, True), ("127.0.0.1", 444, True), ("127.0.0.1", 443, False)]
    )
    def test_no_other_address_port_or_plain_http_is(self, host: str, port: int, is_tls: bool) -> None:
        line = Line()
        line.ask()
        with pytest.raises(RuntimeError, match="no request was let through"):
            line.dial(host, port, is_tls=is_tls)

    def test_nothing_is_dialled_for_a_denied_request(self) -> None:
        line = Line()
        flow = line.flow()
        flow.response = http.Response.make(403)
        asyncio.run(line.dials.requestheaders(flow))
        with pytest.raises(RuntimeError, match="no request was let through"):
            line.dial()

    def test_nor_for_one_that_mitmproxy_has_refused(self) -> None:
        line = Line()
        flow = line.flow()
        flow.error = mitmproxy_flow.Error("Received invalid header")
        asyncio.run(line.dials.requestheaders(flow))
        with pytest.raises(RuntimeError, match="no request was let through"):
            line.dial()

    def test_nor_through_another_proxy(self) -> None:
        line = Line()
        line.ask()
        server = connection.Server(address=("127.0.0.1", 443), via=("http", ("127.0.0.3", 3128)))
        server.tls = True
        with pytest.raises(RuntimeError, match="through another proxy"):
            asyncio.run(line.dials.server_connect(ServerConnectionHookData(server, line.client)))

    def test_a_carried_connect_leads_where_it_asked(self) -> None:
        line = Line()
        connect = Exchange(LOOPBACK, "127.0.0.1", "CONNECT", asked=Destination("127.0.0.1", 8443))
        line.dials.carry(line.client, connect)
        assert line.dial(port=8443).server.error is None
        assert connect.upstream is not None
        with pytest.raises(RuntimeError, match="no request was let through"):
            line.dial(port=8444)

    def test_two_rules_share_no_connection(self) -> None:
        line = Line()
        line.ask(RULE)
        assert reason(line.ask(RULE)) is None
        assert reason(line.ask(OTHER)) is Reason.DESTINATION_FORBIDDEN

    def test_pins_that_have_expired_end_the_use_of_open_connections(self) -> None:
        line = Line()
        pins = PinSet((Pin("spki", b"x" * 32),), date(2020, 1, 1))
        assert reason(line.ask(replace(RULE, pins=pins))) is Reason.PINS_EXPIRED


class TestAddresses:
    def test_a_forbidden_address_is_not_dialled(self) -> None:
        line = Line(Policy())
        assert reason(line.ask()) is Reason.DESTINATION_FORBIDDEN

    def test_in_observe_mode_it_is_and_that_is_noted(self) -> None:
        line = Line(Policy(mode=Mode.OBSERVE))
        exchange = line.ask()
        assert reason(exchange) is Reason.DESTINATION_FORBIDDEN
        assert not exchange.is_carried_out
        data = line.dial()
        assert data.server.error is None
        line.reach(data)
        assert line.cut == []

    def test_one_that_became_forbidden_is_not_dialled_either(self) -> None:
        line = Line(replace(LOOPBACK, egress=Egress.ANY))
        exchange = line.ask(replace(RULE, destinations=None))
        exchange.rule = replace(RULE, destinations=AddressSet())
        data = line.dial()
        assert data.server.error is not None
        assert data.server.error.startswith("destination_forbidden: ")

    def test_a_name_that_has_led_to_another_address_is_cut(self) -> None:
        line = Line()
        line.ask()
        data = line.dial()
        line.reach(data, "10.0.0.1", "10.0.0.2")
        assert line.cut == [data.server]
        record = line.sessions.of(line.client).upstreams[data.server.id]
        assert record.denied is not None
        assert record.denied.reason is Reason.DESTINATION_FORBIDDEN

    def test_no_handshake_begins_on_one_that_was_cut(self) -> None:
        line = Line()
        line.ask()
        data = line.dial()
        context: Any = SimpleNamespace(client=line.client)
        handshake = TlsData(data.server, context, SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD)))
        line.reach(data)
        line.dials.tls_start_server(handshake)
        assert handshake.ssl_conn is not None
        line.reach(data, "10.0.0.1", "10.0.0.2")
        with pytest.raises(AddonHalt):
            line.dials.tls_start_server(handshake)
        assert handshake.ssl_conn is None

    def test_our_own_port_is_no_destination(self) -> None:
        assert reason(Line(own_ports={443}).ask()) is Reason.DESTINATION_FORBIDDEN

    def test_nor_is_it_used_once_it_was_reached_by_another_address(self) -> None:
        line = Line(replace(LOOPBACK, destinations=AddressSet(frozenset(AddressKind))), own_ports={443})
        line.ask(host="192.168.9.9")
        data = line.dial("192.168.9.9")
        line.reach(data, "192.168.9.9", "192.168.9.9")
        assert line.cut == [data.server]

    def test_a_tunnel_is_judged_before_it_is_granted(self) -> None:
        line = Line(Policy())
        flow = line.flow()
        exchange = line.sessions.exchange(flow)
        exchange.asked = Destination("127.0.0.1", 443)
        exchange.decision = Decision(Action.TUNNEL, exchange.asked)
        asyncio.run(line.dials.http_connect(flow))
        assert reason(exchange) is Reason.DESTINATION_FORBIDDEN


class TestReasons:
    @pytest.mark.parametrize(
        ("message", "is_sent", "has_begun", "expected"),
        [
            ("Request body exceeds mitmproxy's body_size_limit.", False, False, Reason.BODY_TOO_LARGE),
            ("Response body exceeds mitmproxy's body_size_limit.", True, False, Reason.UPSTREAM_FAILED),
            ("server closed connection", True, False, Reason.UPSTREAM_FAILED),
            ("server closed connection", True, True, Reason.UPSTREAM_CUT),
            ("client disconnected", False, False, None),
        ],
    )
    def test_an_error_of_mitmproxys_has_a_reason(
        self, message: str, is_sent: bool, has_begun: bool, expected: Reason | None
    ) -> None:
        line = Line()
        line.ask()
        flow = line.flow()
        flow.server_conn = line.dial().server
        if is_sent:
            flow.server_conn.timestamp_tls_setup = 1.0
        if has_begun:
            flow.response = http.Response.make()
        flow.error = mitmproxy_flow.Error(message)
        line.dials.error(flow)
        assert reason(line.sessions.exchange(flow)) is expected

    def test_nobody_took_the_connection(self) -> None:
        line = Line()
        line.ask()
        data = line.dial()
        line.dials.server_connect_error(data)
        flow = line.flow()
        flow.error = mitmproxy_flow.Error("refused")
        line.dials.error(flow)
        upstream = line.sessions.exchange(flow).upstream
        assert upstream is not None
        assert upstream.denied is not None
        assert upstream.denied.reason is Reason.UPSTREAM_UNREACHABLE
