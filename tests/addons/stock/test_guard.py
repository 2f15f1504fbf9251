"""Inside stock mitmproxy: whatever raises denies (ARCHITECTURE.md, rule 1), in each hook."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import connection, http
from mitmproxy.exceptions import AddonHalt
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import ClientHelloData, TlsData
from mitmproxy.websocket import WebSocketData, WebSocketMessage

from addons.exchange import Exchange
from addons.stock.guard import Closed, Guard
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy


def context_of(client: connection.Client) -> Any:
    """Return what mitmproxy's layers share, as far as a hook looks at it."""
    return SimpleNamespace(client=client, server=connection.Server(address=None), layers=[], options=None)


FLOW_HOOKS = ("http_connect", "requestheaders", "request", "responseheaders", "response")


class Raising:
    """An addon each of whose hooks raises, once it is asked."""

    def __getattr__(self, name: str) -> Any:
        def hook(_subject: object) -> None:
            raise RuntimeError(f"the secret of {name}")

        return hook


class Setting:
    """What makes a guard that lets everything pass, or nothing."""

    def __init__(self, *stages: object) -> None:
        self.cut: list[object] = []
        self.failures = 0
        self.guard = Guard(lambda _, server: self.cut.append(server))
        if stages:
            self.guard.open(stages, self._count)
        self.client = connection.Client(peername=("127.0.0.1", 5), sockname=("127.0.0.1", 8080))
        self.guard.sessions.open(self.client, Policy())

    def _count(self) -> None:
        self.failures += 1

    def flow(self, *, is_streamed: bool = False) -> http.HTTPFlow:
        flow = http.HTTPFlow(self.client, connection.Server(address=None), True)
        flow.request = http.Request.make("POST", "http://api.example/", b"{}")
        if is_streamed:
            flow.request.data.content = None
        return flow

    def call(self, name: str, subject: object) -> None:
        asyncio.run(getattr(self.guard, name)(subject))


@pytest.fixture(params=[True, False], ids=["a hook raises", "there are no stages"])
def failing(request: pytest.FixtureRequest) -> Setting:
    """A guard that can only deny."""
    return Setting(Raising()) if request.param else Setting()


class TestFlows:
    @pytest.mark.parametrize("hook", FLOW_HOOKS)
    def test_a_flow_is_answered_or_killed(self, failing: Setting, hook: str, caplog: pytest.LogCaptureFixture) -> None:
        flow = failing.flow()
        if hook.startswith("response"):
            flow.response = http.Response.make(200, b"what the upstream said")
        failing.call(hook, flow)
        denied = failing.guard.sessions.exchange(flow).denied
        assert denied is not None
        assert denied.reason is Reason.INTERNAL_ERROR
        is_killed = flow.error is not None
        assert is_killed == (hook == "responseheaders")
        if not is_killed:
            assert flow.response is not None
            assert flow.response.status_code == 500
            assert hook != "requestheaders" or flow.request.stream is False  # mitmproxy cannot answer what it streams
        assert "secret" not in caplog.text

    @pytest.mark.parametrize("hook", ["request", "response"])
    def test_one_whose_body_has_passed_is_killed(self, failing: Setting, hook: str) -> None:
        flow = failing.flow(is_streamed=True)
        if hook == "response":
            flow.response = http.Response.make()
            flow.response.data.content = None
        failing.call(hook, flow)
        assert flow.error is not None

    @pytest.mark.parametrize("hook", FLOW_HOOKS)
    def test_one_without_a_session_is_killed(self, hook: str) -> None:
        setting = Setting(Raising())
        flow = setting.flow()
        setting.guard.sessions.close(setting.client)
        flow.response = http.Response.make() if hook.startswith("response") else None
        setting.call(hook, flow)
        assert flow.error is not None

    def test_without_a_fault_nothing_is_denied(self) -> None:
        setting = Setting(SimpleNamespace())
        flow = setting.flow()
        for hook in ("requestheaders", "request"):
            setting.call(hook, flow)
        assert (flow.error, flow.response, setting.failures) == (None, None, 0)

    def test_what_cannot_even_be_denied_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setting = Setting(Raising())
        monkeypatch.setattr(Exchange, "break_off", lambda *_: 1 / 0)
        flow = setting.flow()
        setting.call("requestheaders", flow)
        assert flow.error is not None

    def test_a_message_of_a_websocket_does_not_go_on_and_ends_it(self, failing: Setting) -> None:
        flow = failing.flow()
        flow.websocket = WebSocketData(messages=[WebSocketMessage(1, True, b"{}")])
        failing.call("websocket_message", flow)
        assert flow.websocket.messages[0].dropped
        assert failing.cut == [None]

    def test_nor_does_one_that_is_denied_and_others_do(self) -> None:
        setting = Setting(SimpleNamespace())
        flow = setting.flow()
        flow.websocket = WebSocketData(messages=[WebSocketMessage(1, True, b"{}")])
        setting.call("websocket_message", flow)
        assert (flow.websocket.messages[0].dropped, setting.cut) == (False, [])
        setting.guard.sessions.exchange(flow).break_off(Denied(Reason.BODY_NOT_JSON, "why"))
        setting.call("websocket_message", flow)
        assert (flow.websocket.messages[0].dropped, setting.cut) == (True, [None])
        flow.websocket = None
        setting.call("websocket_message", flow)
        assert setting.cut == [None, None]

    def test_a_copy_of_a_flow_is_another_flow(self) -> None:
        setting = Setting(SimpleNamespace())
        flow = setting.flow()
        setting.call("error", flow)
        copy = flow.copy()
        assert copy.metadata["overcoat"] == flow.metadata["overcoat"]
        exchange = setting.guard.sessions.exchange(copy)
        assert isinstance(exchange, Exchange)
        assert exchange is not setting.guard.sessions.exchange(flow)
        copy.client_conn = copy.client_conn.copy()  # as where it is replayed
        with pytest.raises(KeyError):
            setting.guard.sessions.exchange(copy.copy())

    def test_a_refused_connect_is_the_last_word(self) -> None:
        setting = Setting(Raising())
        flow = setting.flow()
        setting.call("http_connect", flow)
        assert flow.response is not None
        assert flow.response.headers["connection"] == "close"

    def test_what_mitmproxy_saves_are_plain_values(self) -> None:
        setting = Setting(SimpleNamespace())
        flow = setting.flow()
        flow.metadata["of another addon"] = "kept"
        exchange = setting.guard.sessions.exchange(flow)
        assert isinstance(exchange, Exchange)
        assert setting.guard.sessions.exchange(flow) is exchange
        assert flow.metadata == {"of another addon": "kept"}


class TestConnections:
    def test_a_client_is_not_let_in(self, failing: Setting) -> None:
        failing.call("client_connected", failing.client)
        assert failing.client.error == "internal_error"

    def test_nothing_follows(self, failing: Setting) -> None:
        data = SimpleNamespace(context=context_of(failing.client), layer=None)
        failing.call("next_layer", data)
        assert isinstance(data.layer, Closed)

    def test_no_upstream_is_dialled(self, failing: Setting) -> None:
        data = ServerConnectionHookData(connection.Server(address=("127.0.0.1", 443)), failing.client)
        failing.call("server_connect", data)
        assert data.server.error == "internal_error"

    def test_one_that_was_dialled_is_cut(self, failing: Setting) -> None:
        data = ServerConnectionHookData(connection.Server(address=("127.0.0.1", 443)), failing.client)
        failing.call("server_connected", data)
        assert failing.cut == [data.server]

    def test_or_where_that_fails_left_alone(self, failing: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(failing.guard, "_cut", lambda *_: 1 / 0)
        data = ServerConnectionHookData(connection.Server(address=("127.0.0.1", 443)), failing.client)
        with pytest.raises(asyncio.CancelledError):  # which mitmproxy does not swallow
            failing.call("server_connected", data)

    @pytest.mark.parametrize("hook", ["tls_start_client", "tls_start_server"])
    def test_there_is_no_handshake(self, failing: Setting, hook: str) -> None:
        data = TlsData(failing.client, context_of(failing.client))
        with pytest.raises(AddonHalt):
            failing.call(hook, data)
        assert data.ssl_conn is None

    def test_a_client_hello_leads_to_none(self, failing: Setting) -> None:
        context = context_of(failing.client)
        data = ClientHelloData(context, SimpleNamespace(), ignore_connection=True)  # type: ignore[arg-type]  # unread
        failing.call("tls_clienthello", data)
        assert data.ignore_connection is False
        failing.guard.open((SimpleNamespace(),), lambda: None)  # all is well again, but not for this connection
        with pytest.raises(AddonHalt):
            failing.call("tls_start_client", TlsData(failing.client, context))

    @pytest.mark.parametrize("hook", ["http_connect", "requestheaders"])
    def test_a_broken_connection_carries_no_further_request(self, failing: Setting, hook: str) -> None:
        failing.call("client_connected", failing.client)
        failing.guard.open((SimpleNamespace(),), lambda: None)
        flow = failing.flow()
        failing.call(hook, flow)
        assert flow.error is not None
        failing.call("client_disconnected", failing.client)
        other = failing.flow()
        failing.call(hook, other)
        assert other.error is None

    def test_raw_tcp_is_cut(self) -> None:
        setting = Setting(SimpleNamespace())
        setting.guard.tcp_start(setting.flow())
        assert setting.cut == [None]
