"""What `proxy.engine` relies on inside mitmproxy. A failure means: read the layers again before moving the version.

Proves that DESIGN rules 1 to 3 still hold where they rest on mitmproxy's own code: the states that `Stream` overrides,
the seams where our classes are put in, and the options that its layers read.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import mitmproxy.proxy.layers
import pytest
from mitmproxy import connection, http
from mitmproxy import tls as mitmproxy_tls
from mitmproxy.proxy import commands, context, events, layer, tunnel
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer, TCPLayer, tls
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _http1

from proxy.engine import driver, layers
from proxy.engine.http1 import Http1App, Http1Upstream
from proxy.engine.layers import LayerOptions, Line, ProxyLayer, Stream

LAYERS = Path(mitmproxy.proxy.layers.__file__).parent
# Layers that are never in the stack here: QUIC, DNS, UDP, and the modes other than a regular proxy.
UNUSED = ("quic", "dns.py", "udp.py", "modes.py")


def source_of(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]  # it takes what has source; this file gives it nothing else


def client_context() -> context.Context:
    client = connection.Client(
        peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), state=connection.ConnectionState.OPEN
    )
    return context.Context(client, LayerOptions())  # type: ignore[arg-type]  # what the driver passes as well


def line() -> Line:
    from addons.exchange import Sessions

    return Line(Sessions(), lambda exchange, status: None)


def test_the_version_is_one_that_was_read() -> None:
    major, minor, *_ = version("mitmproxy").split(".")
    assert (major, minor) == ("12", "2")


class TestOptions:
    def test_every_option_that_the_layers_read_is_given(self) -> None:
        read = set()
        for path in LAYERS.rglob("*.py"):
            if not any(part in UNUSED for part in path.relative_to(LAYERS).parts):
                read |= set(re.findall(r"\boptions\.(\w+)", path.read_text(encoding="utf-8")))
        for module in (tunnel, layer, context):
            read |= set(re.findall(r"\boptions(?:\.|, \")(\w+)", source_of(module)))
        given = {field.name for field in dataclasses.fields(LayerOptions)}
        assert read - {"Options"} <= given
        assert given - read == set(), "options that nothing reads any more"

    def test_each_has_the_value_that_our_rules_need(self) -> None:
        ours = LayerOptions()
        assert ours.connection_strategy == "lazy"  # nothing is dialled before the transport decision
        assert ours.rawtcp is False  # what is no HTTP is no tunnel
        assert ours.validate_inbound_headers is True
        assert ours.stream_large_bodies is None  # a body that must be encrypted is never streamed by size
        assert ours.body_size_limit is None

    def test_the_options_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            LayerOptions().rawtcp = True  # type: ignore[misc]  # that it is frozen is the point


class TestStream:
    STATES = (
        "state_wait_for_request_headers",
        "state_stream_request_body",
        "state_consume_request_body",
        "state_wait_for_response_headers",
        "state_stream_response_body",
        "state_consume_response_body",
        "state_uninitialized",
        "state_done",
        "state_errored",
        "start_request_stream",
        "check_invalid",
        "check_killed",
        "handle_protocol_error",
        "handle_connect_regular",
        "make_server_connection",
        "send_response",
        "flow_done",
        "passthrough",
    )

    @pytest.mark.parametrize("name", STATES)
    def test_the_state_is_a_method_of_mitmproxys_stream(self, name: str) -> None:
        assert inspect.isfunction(getattr(http_layers.HttpStream, name))

    @pytest.mark.parametrize("ours", [Stream, ProxyLayer, Http1App, Http1Upstream])
    def test_every_public_override_still_overrides_something(self, ours: type) -> None:
        own = {"state_discard_request_body"}  # a state of ours
        theirs = [base for base in ours.__mro__[1:] if base.__module__.startswith("mitmproxy.")]
        for name, value in vars(ours).items():
            if inspect.isfunction(value) and not name.startswith("_") and name not in own:
                assert any(hasattr(base, name) for base in theirs), f"{ours.__name__}.{name} overrides nothing"

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("start_request_stream", ["self"]),
            ("check_invalid", ["self", "request"]),
            ("check_killed", ["self", "emit_error_hook"]),
            ("handle_protocol_error", ["self", "event"]),
            ("handle_connect_regular", ["self"]),
            ("send_response", ["self", "already_streamed"]),
        ],
    )
    def test_the_signature_is_the_one_that_we_call(self, name: str, parameters: list[str]) -> None:
        assert list(inspect.signature(getattr(http_layers.HttpStream, name)).parameters) == parameters

    def test_a_hook_comes_before_what_it_may_stop(self) -> None:
        head = source_of(http_layers.HttpStream.state_wait_for_request_headers)
        assert (
            head.index("check_invalid(True)") < head.index("HttpRequestHeadersHook") < head.index("check_killed(True)")
        )
        assert head.index("check_killed(True)") < head.index("start_request_stream()")
        body = source_of(http_layers.HttpStream.state_consume_request_body)
        assert body.index("HttpRequestHook") < body.index("check_killed(True)") < body.index("make_server_connection()")
        response = source_of(http_layers.HttpStream.send_response)
        assert response.index("HttpResponseHook") < response.index("check_killed(False)") < response.index("SendHttp")
        connect = source_of(http_layers.HttpStream.handle_connect)
        assert connect.index("HttpConnectHook") < connect.index("handle_connect_regular")

    def test_a_killed_flow_is_known_by_its_error(self) -> None:
        assert "flow.Error.KILLED_MESSAGE" in source_of(http_layers.HttpStream.check_killed)

    def test_tunnels_turn_half_closes_into_full_ones_unless_the_command_is_of_our_kind(self) -> None:
        from proxy.engine.tunnels import HalfClose

        assert "CloseTcpConnection" in source_of(http_layers.HttpStream.passthrough)
        assert not issubclass(HalfClose, commands.CloseConnection)
        assert inspect.isfunction(TCPLayer.relay_messages)
        assert "self._handle_event = self.relay_messages" in source_of(TCPLayer.start)


class TestHttpLayer:
    def test_get_connection_has_the_signature_that_we_override(self) -> None:
        signature = inspect.signature(http_layers.HttpLayer.get_connection)
        assert list(signature.parameters) == ["self", "event", "reuse"]
        assert signature.parameters["reuse"].kind is inspect.Parameter.KEYWORD_ONLY
        assert signature.parameters["reuse"].default is True

    def test_a_new_connection_is_registered_before_its_first_command(self) -> None:
        source = source_of(http_layers.HttpLayer.get_connection)
        assert source.index("self.connections[context.server] = stack[0]") < source.rindex("events.Start()")

    def test_the_app_side_that_was_put_in_before_stays(self) -> None:
        proxy = ProxyLayer(client_context(), http_layers.HTTPMode.regular, line())
        list(proxy.handle_event(events.Start()))
        assert type(proxy.connections[proxy.context.client]) is Http1App

    def test_http_2_apps_get_mitmproxys_own_app_side(self) -> None:
        ctx = client_context()
        ctx.client.alpn = b"h2"
        proxy = ProxyLayer(ctx, http_layers.HTTPMode.transparent, line())
        list(proxy.handle_event(events.Start()))
        assert type(proxy.connections[ctx.client]).__name__ == "Http2Server"

    def test_streams_are_of_our_kind(self) -> None:
        proxy = ProxyLayer(client_context(), http_layers.HTTPMode.regular, line())
        list(proxy.make_stream(1))
        assert type(proxy.streams[1]) is Stream

    def test_the_upstream_side_is_made_by_the_name_that_we_replace(self) -> None:
        assert "Http1Client(self.context)" in source_of(http_layers.HttpClient)
        assert vars(http_layers)["Http1Client"] is Http1Upstream

    def test_the_app_side_is_still_looked_up_in_connections(self) -> None:
        source = source_of(http_layers.HttpLayer._handle_event)
        assert "self.connections.setdefault(self.context.client, http_conn)" in source


class TestHttp1:
    def test_the_state_machine_is_what_we_override(self) -> None:
        assert list(inspect.signature(_http1.Http1Server.read_headers).parameters) == ["self", "event"]
        assert list(inspect.signature(_http1.make_body_reader).parameters) == ["expected_size"]
        for name in ("read_headers", "read_body", "wait", "done", "mark_done", "send"):
            assert inspect.isfunction(getattr(_http1.Http1Server, name)), name

    def test_trailers_still_raise_what_we_catch(self) -> None:
        assert "raise NotImplementedError" in source_of(_http1.Http1Connection.read_body)

    def test_trailers_raise_before_the_message_is_marked_as_done(self) -> None:
        source = source_of(_http1.Http1Connection.read_body)
        assert source.index("raise NotImplementedError") < source.index("ReceiveEndOfMessage(self.stream_id)")

    def test_a_request_that_is_validated_here_is_validated_there_by_the_same_function(self) -> None:
        parameters = inspect.signature(http_layers.validate_request).parameters
        assert list(parameters) == ["mode", "request", "validate_inbound_headers"]

    def test_error_codes_without_a_status_close_the_connection(self) -> None:
        for code in ("KILL", "PASSTHROUGH_CLOSE", "CLIENT_DISCONNECTED", "CANCEL"):
            assert http_events.ErrorCode[code].http_status_code() is None

    def test_the_setters_of_a_request_touch_host_and_the_data_behind_them_does_not(self) -> None:
        request = http.Request.make("GET", "http://api.example/", headers=http.Headers(Host="api.example"))
        request.data.port = 443
        request.data.scheme = b"https"
        request.data.host = "other.example"
        assert request.headers["Host"] == "api.example"
        request.port = 8443
        assert request.headers["Host"] != "api.example"


class TestTls:
    def test_the_connection_object_comes_from_a_hook_and_is_used_as_it_is(self) -> None:
        source = source_of(tls.TLSLayer.start_tls)
        assert "TlsStartServerHook(tls_start)" in source
        assert "TlsStartClientHook(tls_start)" in source
        assert "self.tls = tls_start.ssl_conn" in source
        assert [field.name for field in dataclasses.fields(mitmproxy_tls.TlsData)] == [
            "conn",
            "context",
            "ssl_conn",
            "is_dtls",
        ]

    def test_a_failed_handshake_calls_a_hook_and_then_closes(self) -> None:
        source = source_of(tls.TLSLayer.on_handshake_error)
        assert source.index("TlsFailedServerHook") < source.index("super().on_handshake_error")
        assert "CloseConnection" in source_of(tunnel.TunnelLayer.on_handshake_error)

    def test_the_upstreams_layer_is_made_by_the_name_that_we_replace_and_gives_out_its_alert(self) -> None:
        assert "tls.ServerTLSLayer(context)" in source_of(http_layers.HttpLayer.get_connection)
        assert vars(tls)["ServerTLSLayer"] is layers.UpstreamTls
        assert issubclass(layers.UpstreamTls, ServerTLSLayer)
        assert issubclass(layers.AppTls, ClientTLSLayer)
        assert list(inspect.signature(tls.TLSLayer.on_handshake_error).parameters) == ["self", "err"]
        assert "self.tls.bio_read" in source_of(tls.TLSLayer.tls_interact)

    def test_the_layers_take_the_contexts_that_we_give(self) -> None:
        assert list(inspect.signature(ClientTLSLayer.__init__).parameters) == ["self", "context"]
        assert list(inspect.signature(ServerTLSLayer.__init__).parameters) == ["self", "context", "conn"]

    def test_a_client_hello_is_parsed_or_not_complete_or_a_value_error(self) -> None:
        assert tls.parse_client_hello(b"\x16\x03\x01") is None
        with pytest.raises(ValueError, match="ClientHello"):
            tls.parse_client_hello(b"\x16\x03\x01\x00\x08\x01\x00\x00\x04abcd")


class TestDriver:
    def test_every_command_of_the_layers_is_known_to_the_driver(self) -> None:
        base = {commands.Command, commands.ConnectionCommand}
        known = {
            commands.SendData,
            commands.StartHook,
            commands.OpenConnection,
            commands.CloseConnection,
            commands.CloseTcpConnection,
            commands.RequestWakeup,
            commands.Log,
        }
        found = {
            value
            for value in vars(commands).values()
            if inspect.isclass(value) and issubclass(value, commands.Command) and value.__module__ == commands.__name__
        }
        assert found == base | known
        source = source_of(driver.Driver._carry_out)
        for command in known:
            assert command.__name__ in source

    def test_a_command_is_blocking_by_an_attribute_and_hooks_are_by_default(self) -> None:
        assert commands.StartHook.blocking is True
        assert commands.OpenConnection.blocking is True
        assert commands.SendData.blocking is False

    def test_the_hook_names_are_those_of_the_addons(self) -> None:
        from mitmproxy.hooks import all_hooks

        names = {
            "client_connected",
            "client_disconnected",
            "next_layer",
            "tls_start_client",
            "tls_start_server",
            "tls_failed_client",
            "tls_failed_server",
            "http_connect",
            "http_connect_error",
            "requestheaders",
            "request",
            "responseheaders",
            "response",
            "error",
        }
        assert names <= all_hooks.keys()

    def test_only_our_next_layer_hook_decides(self) -> None:
        assert "next_layer" in vars(layers.NextLayer)
        assert list(inspect.signature(layer.NextLayer.data_client).parameters) == ["self"]
