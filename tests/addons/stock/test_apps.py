"""Inside stock mitmproxy: who is let in, and what is spoken (ARCHITECTURE.md, rules 1 and 4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import connection
from mitmproxy.exceptions import AddonHalt
from mitmproxy.proxy import layers
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.tls import ClientHelloData, TlsData

from addons.exchange import Exchange
from addons.stock.apps import Apps
from addons.stock.dials import Dials
from addons.stock.flows import StockSessions
from addons.stock.guard import Closed
from proxy.core.certificates.localca import Lifetime, Mandate
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Limits, Mode, Policy
from proxy.core.who.addresses import AddressKind, AddressSet
from proxy.core.who.clients import ClientRules

ASKED = Destination("api.example", 443)
ENDLESS = Lifetime(datetime(2020, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
ENDED = Lifetime(datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))


class Setting:
    """The addon, and a client connection on which a CONNECT was granted."""

    def __init__(
        self, action: Action = Action.INSPECT, *, policy: Policy | None = None, lifetime: Lifetime = ENDLESS
    ) -> None:
        self.policy = policy or Policy()
        self.sessions = StockSessions()
        self.dials = Dials(self.sessions, set, lambda *_: None)
        self.apps = Apps(self.sessions, self.policy, self.dials, Mandate(lifetime))
        self.client = self.connect()
        self.asked = Exchange(self.policy, "127.0.0.1", "CONNECT", asked=ASKED, decision=Decision(action, ASKED))
        self.sessions.of(self.client).connect = self.asked

    def connect(self, address: str = "127.0.0.1") -> connection.Client:
        client = connection.Client(peername=(address, 5), sockname=("127.0.0.1", 8080))
        self.apps.client_connected(client)
        self.dials.client_connected(client)
        return client

    def hello(self, name: str | None, *, has_extension: bool = True) -> ClientHelloData:
        extensions = [(0, b"")] if has_extension else []
        hello: Any = SimpleNamespace(sni=name, extensions=extensions)
        context: Any = SimpleNamespace(client=self.client)
        data = ClientHelloData(context, hello)
        self.apps.tls_clienthello(data)
        return data

    def next(self, first: bytes) -> Any:
        inside = layers.HttpLayer.__new__(layers.HttpLayer)
        context: Any = SimpleNamespace(
            client=self.client, server=connection.Server(address=None), layers=[inside], options=None
        )
        data: Any = SimpleNamespace(context=context, layer=None, data_client=lambda: first)
        self.apps.next_layer(data)
        return data.layer

    @property
    def is_refused(self) -> bool:
        context: Any = SimpleNamespace(client=self.client)
        try:
            self.apps.tls_start_client(TlsData(self.client, context))
        except AddonHalt:
            return True
        return False

    @property
    def reason(self) -> Reason | None:
        return self.asked.denied.reason if self.asked.denied else None


class TestClients:
    def test_one_that_may_connect_is_let_in(self) -> None:
        assert Setting().client.error is None

    def test_one_that_may_not_is_not(self) -> None:
        allowed = ClientRules(addresses=AddressSet(frozenset({AddressKind.LOOPBACK})))
        setting = Setting(policy=Policy(clients=allowed))
        assert (setting.connect("192.0.2.1").error or "").startswith("client_forbidden: ")

    @pytest.mark.parametrize("limits", [Limits(connections=2), Limits(client_connections=2)])
    def test_one_too_many_is_not_until_another_is_gone(self, limits: Limits) -> None:
        setting = Setting(policy=Policy(limits=limits))
        second = setting.connect()
        assert second.error is None
        assert (setting.connect().error or "").startswith("too_many_connections: ")
        setting.sessions.close(second)
        assert setting.connect().error is None


class TestTls:
    @pytest.mark.parametrize("name", ["api.example", "API.example"])
    def test_tls_to_the_host_of_connect_is_opened(self, name: str) -> None:
        setting = Setting()
        assert setting.hello(name).ignore_connection is False
        assert (setting.is_refused, setting.reason) == (False, None)

    def test_or_carried(self) -> None:
        assert Setting(Action.TUNNEL).hello("api.example").ignore_connection is True

    def test_without_a_server_name_it_may_be_an_address(self) -> None:
        assert Setting(Action.TUNNEL).hello(None, has_extension=False).ignore_connection is True

    @pytest.mark.parametrize("action", [Action.TUNNEL, Action.INSPECT])
    @pytest.mark.parametrize("name", ["other.example", None])
    def test_tls_to_another_host_or_to_none_that_is_valid_is_ended(self, action: Action, name: str | None) -> None:
        setting = Setting(action)
        assert setting.hello(name).ignore_connection is False
        assert (setting.is_refused, setting.reason) == (True, Reason.HOST_MISMATCH)

    def test_tls_to_a_host_whose_https_is_rejected_is_ended(self) -> None:
        setting = Setting()
        denied = Denied(Reason.HTTPS_REJECTED, "the rule rejects it")
        setting.asked.decision = Decision(Action.DENY, denied=denied)
        assert setting.hello("api.example").ignore_connection is False
        assert (setting.is_refused, setting.reason) == (True, Reason.HTTPS_REJECTED)

    def test_tls_that_the_local_ca_cannot_vouch_for_is_ended(self) -> None:
        setting = Setting(lifetime=ENDED)
        setting.hello("api.example")
        assert (setting.is_refused, setting.reason) == (True, Reason.LOCAL_CA_EXPIRED)
        tunnel = Setting(Action.TUNNEL, lifetime=ENDED)
        assert tunnel.hello("api.example").ignore_connection is True

    def test_in_observe_mode_it_is_carried_and_noted(self) -> None:
        setting = Setting(policy=Policy(mode=Mode.OBSERVE))
        assert setting.hello("other.example").ignore_connection is True
        assert (setting.is_refused, setting.reason) == (False, Reason.HOST_MISMATCH)

    def test_tls_outside_connect_is_an_error(self) -> None:
        setting = Setting()
        setting.sessions.of(setting.client).connect = None
        with pytest.raises(RuntimeError, match="outside CONNECT"):
            setting.hello("api.example")


class TestNextLayer:
    def test_outside_connect_there_are_requests(self) -> None:
        setting = Setting()
        context: Any = SimpleNamespace(
            client=setting.client, server=connection.Server(address=None), layers=[], options=None
        )
        data: Any = SimpleNamespace(context=context, layer=None)
        setting.apps.next_layer(data)
        assert isinstance(data.layer, layers.HttpLayer)
        assert data.layer.mode is HTTPMode.regular

    @pytest.mark.parametrize("first", [b"", b"\x16", b"GE"])
    def test_too_few_bytes_decide_nothing(self, first: bytes) -> None:
        with pytest.raises(AddonHalt):
            Setting().next(first)

    def test_http_is_read(self) -> None:
        setting = Setting()
        layer = setting.next(b"GET / HTT")
        assert isinstance(layer, layers.HttpLayer)
        assert layer.mode is HTTPMode.transparent
        assert setting.sessions.of(setting.client).speaks_http

    @pytest.mark.parametrize("first", [b"SSH-2.0-x\r\n", b"\r\nGET", b"\x05\x01\x00"])
    def test_anything_else_is_ended(self, first: bytes) -> None:
        setting = Setting()
        assert isinstance(setting.next(first), Closed)
        assert setting.reason is Reason.NOT_HTTP

    def test_in_observe_mode_it_is_carried(self) -> None:
        setting = Setting(policy=Policy(mode=Mode.OBSERVE))
        assert isinstance(setting.next(b"SSH-2.0-x\r\n"), layers.TCPLayer)
        assert setting.reason is Reason.NOT_HTTP


def test_the_policy_of_a_session_is_the_one_in_force() -> None:
    policy = replace(Policy(), source="this one")
    setting = Setting(policy=policy)
    assert setting.sessions.of(setting.client).policy is policy
