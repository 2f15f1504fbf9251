"""What `proxy.engine` relies on inside mitmproxy. A failure means: read the layers again before moving the version.

Proves that DESIGN rules 1 to 3 still hold where they rest on mitmproxy's own code: the states that `Stream` overrides,
the seams where our classes are put in, the options that its layers read, and the objects and hooks that `conversation`,
`connect` and `upstream` make themselves.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import h11
import mitmproxy.proxy.layers
import pytest
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import connection, flow, http
from mitmproxy import tls as mitmproxy_tls
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, context, events, layer, server_hooks, tunnel
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer, tls
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _hooks as http_hooks
from mitmproxy.proxy.layers.http import _http1, _http2

from addons.exchange import Exchange, Upstream
from addons.sessions import Sessions
from proxy.core.destinations import Destination
from proxy.core.pins import Pin, PinSet
from proxy.core.policy import Https, PlainHttp, Policy, Rule
from proxy.engine import driver, http2, layers, patches
from proxy.engine.http1client import ChunkedReader, Http1Upstream
from proxy.engine.layers import LayerOptions, Line, ProxyLayer, Stream, inside_connect

LAYERS = Path(mitmproxy.proxy.layers.__file__).parent
# Layers that are never in the stack here: QUIC, DNS, UDP, and the modes of being a proxy, which is done outside them.
UNUSED = ("quic", "dns.py", "udp.py", "modes.py")


def source_of(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]  # it takes what has source; this file gives it nothing else


def client_context() -> context.Context:
    """Return the context of an app that speaks HTTP/2, the only kind that the layers get."""
    client = connection.Client(
        peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), state=connection.ConnectionState.OPEN, alpn=b"h2"
    )
    return context.Context(client, LayerOptions())  # type: ignore[arg-type]  # what the app's socket passes as well


@pytest.fixture
def patched() -> Iterator[None]:
    """Apply our patches, and take them back: no other test of this process may rest on them."""
    places = [
        (http_layers, "Http1Client"),
        (http_layers, "Http2Server"),
        (http_layers, "Http2Client"),
        (tls, "ServerTLSLayer"),
        (http.MessageData, "__post_init__"),
        (flow, "uuid"),
        (connection, "uuid"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    patches.apply()
    assert all(vars(owner)[name] is not old for (owner, name), old in zip(places, before, strict=True))
    yield
    for (owner, name), old in zip(places, before, strict=True):
        setattr(owner, name, old)


def line() -> Line:
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
        "make_server_connection",
        "send_response",
        "flow_done",
    )

    @pytest.mark.parametrize("name", STATES)
    def test_the_state_is_a_method_of_mitmproxys_stream(self, name: str) -> None:
        assert inspect.isfunction(getattr(http_layers.HttpStream, name))

    @pytest.mark.parametrize("ours", [Stream, ProxyLayer, Http1Upstream, layers.UpstreamTls, http2.AppHttp2])
    def test_every_public_override_still_overrides_something(self, ours: type) -> None:
        own = {
            "state_discard_request_body",
            "has_room",
            "may_read",
            "awaits_upstreams",
            "is_kept_waiting",
        }  # a state of ours; for the driver
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

    def test_a_killed_flow_is_known_by_its_error(self) -> None:
        assert "flow.Error.KILLED_MESSAGE" in source_of(http_layers.HttpStream.check_killed)


class TestHttpLayer:
    def test_get_connection_has_the_signature_that_we_override(self) -> None:
        signature = inspect.signature(http_layers.HttpLayer.get_connection)
        assert list(signature.parameters) == ["self", "event", "reuse"]
        assert signature.parameters["reuse"].kind is inspect.Parameter.KEYWORD_ONLY
        assert signature.parameters["reuse"].default is True

    def test_a_new_connection_is_registered_before_its_first_command(self) -> None:
        source = source_of(http_layers.HttpLayer.get_connection)
        assert source.index("self.connections[context.server] = stack[0]") < source.rindex("events.Start()")

    def test_the_app_side_is_mitmproxys_own(self) -> None:
        proxy = ProxyLayer(client_context(), http_layers.HTTPMode.transparent, line())
        list(proxy.handle_event(events.Start()))
        assert type(proxy.connections[proxy.context.client]).__name__ == "Http2Server"

    def test_streams_are_of_our_kind(self) -> None:
        proxy = ProxyLayer(client_context(), http_layers.HTTPMode.transparent, line())
        list(proxy.make_stream(1))
        assert type(proxy.streams[1]) is Stream

    def test_the_layer_keeps_what_we_look_into(self) -> None:
        proxy = ProxyLayer(client_context(), http_layers.HTTPMode.transparent, line())
        assert (proxy.connections, proxy.streams, proxy.command_sources) == ({}, {}, {})
        assert proxy.waiting_for_establishment == {}
        assert "self.command_sources[command] = child" in source_of(http_layers.HttpLayer.event_to_child)

    def test_connections_match_by_address_and_tls_only_so_that_the_rule_is_ours_to_check(self) -> None:
        source = source_of(http_layers.GetHttpConnection.connection_spec_matches)
        compared = re.findall(r"self\.(\w+) == connection\.(\w+)$", source, re.MULTILINE)
        assert compared == [(name, name) for name in ("address", "tls", "via", "transport_protocol")]

    @pytest.mark.parametrize(
        ("opened_for", "expires", "is_used"),
        [
            pytest.param("asked", None, True, id="the same rule"),
            pytest.param("other", None, False, id="another rule, so other pins"),
            pytest.param(None, None, False, id="no rule"),
            pytest.param("unknown", None, False, id="nobody knows which"),
            pytest.param("asked", date(2020, 1, 1), False, id="the same rule, and its pins have expired"),
        ],
    )
    def test_a_connection_serves_only_the_rule_that_it_was_opened_for(
        self, monkeypatch: pytest.MonkeyPatch, opened_for: str | None, expires: date | None, is_used: bool
    ) -> None:
        pins = PinSet((Pin("spki", bytes(32)),), expires)
        rules = {name: Rule(name, (), PlainHttp.UPGRADE, Https.INSPECT, pins=pins) for name in ("asked", "other")}
        ctx, lines = client_context(), line()
        session = lines.sessions.open(ctx.client, Policy())
        proxy = ProxyLayer(ctx, http_layers.HTTPMode.transparent, lines)
        server = connection.Server(address=("api.example", 443))
        server.tls, server.state = True, connection.ConnectionState.OPEN
        proxy.connections[server] = proxy
        if opened_for != "unknown":
            session.upstreams[server.id] = Upstream(session.policy, rules.get(opened_for or ""))
        stream = Stream(ctx.fork(), 1, lines)
        stream.flow = http.HTTPFlow(ctx.client, server)
        stream.flow.request = http.Request.make("GET", "https://api.example/")
        lines.sessions.exchange(stream.flow).rule = rules["asked"]
        event = http_layers.GetHttpConnection(("api.example", 443), True, None)
        proxy.command_sources[event] = stream
        asked: list[bool] = []

        def get_connection(_self: object, _event: object, *, reuse: bool = True) -> Iterator[commands.Command]:
            asked.append(reuse)
            yield from ()

        monkeypatch.setattr(http_layers.HttpLayer, "get_connection", get_connection)
        list(proxy.get_connection(event))
        assert asked == [is_used]


class TestPatches:
    @pytest.mark.usefixtures("patched")
    def test_the_upstream_side_is_made_by_the_name_that_we_replace(self) -> None:
        assert "Http1Client(self.context)" in source_of(http_layers.HttpClient)
        assert vars(http_layers)["Http1Client"] is Http1Upstream
        ctx = client_context()
        ctx.server.state = connection.ConnectionState.OPEN
        made = http_layers.HttpClient(ctx)
        list(made.handle_event(events.Start()))
        assert type(made.child_layer) is Http1Upstream

    @pytest.mark.usefixtures("patched")
    def test_so_is_the_apps_side_of_http2(self) -> None:
        assert "Http2Server(self.context.fork())" in source_of(http_layers.HttpLayer)
        assert vars(http_layers)["Http2Server"] is http2.AppHttp2
        assert issubclass(http2.AppHttp2, _http2.Http2Server)
        assert "if (yield from self.handle_h2_event(h2_event)):" in source_of(_http2.Http2Connection)

    def test_ours_is_of_the_kind_that_it_replaces(self) -> None:
        assert issubclass(Http1Upstream, _http1.Http1Client)

    @pytest.mark.skipif(not __debug__, reason="python -O leaves mitmproxy's type check out by itself")
    def test_the_check_of_a_messages_types_is_nothing_but_that(self) -> None:
        body = source_of(http.MessageData.__post_init__).splitlines()[1:]
        assert [line.strip() for line in body] == [
            "for field in fields(self):",
            "val = getattr(self, field.name)",
            "typecheck.check_option_type(field.name, val, field.type)",
        ]
        for kind in (http.RequestData, http.ResponseData):
            assert "__post_init__" not in vars(kind)

    @pytest.mark.usefixtures("patched")
    def test_without_it_a_message_is_made_as_before(self) -> None:
        fields = http.Headers([(b"Host", b"a"), (b"x", b"1"), (b"X", b"2")])
        request = http.Request("a", 80, b"GET", b"http", b"", b"/", b"HTTP/1.1", fields, None, None, 1.0, None)
        assert (request.host, request.port, request.method, request.path) == ("a", 80, "GET", "/")
        assert request.headers.fields == fields.fields
        response = http.Response(b"HTTP/1.1", 200, b"OK", http.Headers(), None, None, 1.0, None)
        assert (response.status_code, response.reason, response.data.content) == (200, "OK", None)

    @pytest.mark.usefixtures("patched")
    def test_identifiers_are_unique(self) -> None:
        client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
        servers = [connection.Server(address=None) for _ in range(3)]
        flows = [http.HTTPFlow(client, servers[0], True) for _ in range(3)]
        identifiers = [client.id, *(server.id for server in servers), *(a_flow.id for a_flow in flows)]
        assert len(set(identifiers)) == 7
        assert all(identifier.isdecimal() for identifier in identifiers)  # or else the patch does nothing

    def test_applying_them_again_changes_nothing(self, patched: None) -> None:
        once = (vars(http_layers)["Http1Client"], http.MessageData.__dict__["__post_init__"])
        patches.apply()
        assert (vars(http_layers)["Http1Client"], http.MessageData.__dict__["__post_init__"]) == once


class TestLeavingQuicOut:
    def test_a_process_that_runs_the_engine_has_nothing_of_it_loaded(self) -> None:
        code = (
            "import sys, proxy.engine.server; print(*(name for name in sys.modules if 'quic' in name or 'h3' in name))"
        )
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert loaded.stdout.split() == ["mitmproxy.proxy.layers.quic"]

    def test_nothing_can_be_made_of_what_stands_for_it(self) -> None:
        code = """
            import proxy.engine.server
            from mitmproxy.proxy.layers import quic
            from mitmproxy.proxy.layers.http import Http3Client
            for left_out in (quic.ServerQuicLayer, quic.ClientQuicLayer, Http3Client):
                try:
                    left_out(None)
                except RuntimeError as e:
                    print(e)
        """
        made = subprocess.run(
            [sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True, timeout=60
        )
        assert made.stdout.count("left out: neither QUIC nor HTTP/3") == 3

    def test_the_layers_ask_of_it_only_whether_something_is_of_its_kind(self) -> None:
        source = source_of(http_layers)
        uses = {line.strip() for line in source.splitlines() if re.search(r"quic\.|Quic|Http3", line)}
        assert uses == {
            "from ..quic import QuicStreamEvent",
            "from ._http3 import Http3Client",
            "from ._http3 import Http3Server",
            "http_conn = Http3Server(self.context.fork())",
            "elif isinstance(event, (events.DataReceived, QuicStreamEvent)):",
            "child_layer = Http3Client(self.context.fork())",
            "stack /= quic.ServerQuicLayer(context)",
            "self.child_layer = Http3Client(self.context)",
        }


class TestMessages:
    def test_requests_and_responses_are_made_by_position(self) -> None:
        common = ["headers", "content", "trailers", "timestamp_start", "timestamp_end"]
        request = ["self", "host", "port", "method", "scheme", "authority", "path", "http_version", *common]
        assert list(inspect.signature(http.Request.__init__).parameters) == request
        response = ["self", "http_version", "status_code", "reason", *common]
        assert list(inspect.signature(http.Response.__init__).parameters) == response

    def test_fields_keep_their_order_their_spelling_and_their_repetitions(self) -> None:
        fields = ((b"b", b"1"), (b"A", b"2"), (b"a", b"3"))
        assert http.Headers(fields).fields == fields

    def test_a_flow_is_live_without_a_server(self) -> None:
        ctx = client_context()
        flow = http.HTTPFlow(ctx.client, connection.Server(address=None), True)
        assert (flow.response, flow.error, flow.metadata) == (None, None, {})
        assert flow.live

    def test_streaming_is_off_until_an_addon_says_otherwise(self) -> None:
        request = http.Request.make("GET", "http://api.example/")
        assert request.stream is False
        assert http.Response.make().stream is False

    @pytest.mark.parametrize(
        ("hook", "name"),
        [
            (http_hooks.HttpConnectHook, "http_connect"),
            (http_hooks.HttpConnectErrorHook, "http_connect_error"),
            (http_hooks.HttpRequestHeadersHook, "requestheaders"),
            (http_hooks.HttpRequestHook, "request"),
            (http_hooks.HttpResponseHeadersHook, "responseheaders"),
            (http_hooks.HttpResponseHook, "response"),
            (http_hooks.HttpErrorHook, "error"),
            (server_hooks.ClientConnectedHook, "client_connected"),
            (server_hooks.ClientDisconnectedHook, "client_disconnected"),
            (tls.TlsStartClientHook, "tls_start_client"),
            (tls.TlsStartServerHook, "tls_start_server"),
            (tls.TlsFailedServerHook, "tls_failed_server"),
        ],
    )
    def test_the_hooks_that_the_engine_makes_itself_take_one_thing_and_pass_it_on(
        self, hook: type[commands.StartHook], name: str
    ) -> None:
        subject = object()
        made = hook(subject)  # type: ignore[call-arg]  # each kind has one field of a type of its own
        assert (made.name, made.args()) == (name, [subject])


class TestChunks:
    """What stands in for h11's reader of chunks gives mitmproxy what it expects, and is where it looks."""

    def read(self, *pieces: bytes) -> tuple[list[object], bytes]:
        reader, buffer, found = ChunkedReader(), ReceiveBuffer(), []
        for piece in pieces:
            buffer += piece
            while not (found and isinstance(found[-1], h11.EndOfMessage)) and (event := reader(buffer)) is not None:
                found.append(event)
        return found, bytes(buffer)

    def test_what_reads_other_bodies_is_made_as_mitmproxy_does(self) -> None:
        assert "self.body_reader = make_body_reader(" in source_of(_http1.Http1Client.read_headers)
        assert type(_http1.make_body_reader(5)).__name__ == "ContentLengthReader"
        assert type(_http1.make_body_reader(-1)).__name__ == "Http10Reader"

    def test_what_came_at_once_is_one_piece_and_what_follows_the_end_stays(self) -> None:
        found, rest = self.read(b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX: 1\r\n\r\nGET")
        assert [bytes(event.data) for event in found if isinstance(event, h11.Data)] == [b"abc"]
        assert isinstance(found[-1], h11.EndOfMessage)
        assert not found[-1].headers  # for which mitmproxy raises
        assert rest == b"GET"

    def test_half_a_line_is_no_event(self) -> None:
        assert self.read(b"2", b"\r") == ([], b"")

    def test_what_is_no_chunk_and_an_end_before_the_last_one_are_protocol_errors(self) -> None:
        with pytest.raises(h11.RemoteProtocolError, match="framed"):
            self.read(b"x\r\n")
        with pytest.raises(h11.RemoteProtocolError, match="ended"):
            ChunkedReader().read_eof()
        assert "h11_event = self.body_reader.read_eof()" in source_of(_http1.Http1Connection.read_body)
        assert "except h11.ProtocolError" in source_of(_http1.Http1Connection.read_body)


class TestHttp1:
    def test_the_state_machine_is_what_we_override(self) -> None:
        assert list(inspect.signature(_http1.Http1Client.read_headers).parameters) == ["self", "event"]
        assert list(inspect.signature(_http1.Http1Connection.read_body).parameters) == ["self", "event"]
        assert list(inspect.signature(_http1.Http1Client.send).parameters) == ["self", "event"]
        assert list(inspect.signature(_http1.Http1Connection.mark_done).parameters) == ["self", "request", "response"]

    def test_the_buffer_and_the_request_in_hand_are_where_we_look(self) -> None:
        ctx = client_context()
        made = _http1.Http1Client(ctx)
        assert isinstance(made.buf, ReceiveBuffer)
        assert (made.request, made.stream_id) == (None, None)

    def test_a_body_without_a_length_is_sent_as_it_is_unless_the_head_says_chunked(self) -> None:
        assert '"chunked" in self.request.headers.get("transfer-encoding"' in source_of(_http1.Http1Client.send)

    def test_a_responses_fields_are_validated_by_a_function_that_raises(self) -> None:
        response = http.Response.make(200)
        response.headers.fields = ((b"Content-Length", b"1"), (b"Content-Length", b"2"))
        with pytest.raises(ValueError, match="content-length"):
            validate_headers(response)

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

    @pytest.mark.usefixtures("patched")
    def test_the_upstreams_layer_is_made_by_the_name_that_we_replace_and_gives_out_its_alert(self) -> None:
        assert "tls.ServerTLSLayer(context)" in source_of(http_layers.HttpLayer.get_connection)
        assert vars(tls)["ServerTLSLayer"] is layers.UpstreamTls
        assert issubclass(layers.UpstreamTls, ServerTLSLayer)
        assert issubclass(layers.AppTls, ClientTLSLayer)
        assert list(inspect.signature(tls.TLSLayer.on_handshake_error).parameters) == ["self", "err"]
        assert "self.tls.bio_read" in source_of(tls.TLSLayer.tls_interact)

    def test_the_end_of_a_connection_is_told_to_the_layer_inside_only_if_tls_has_not_ended_before(self) -> None:
        assert "get_shutdown() & SSL.RECEIVED_SHUTDOWN" in source_of(tls.TLSLayer.receive_close)
        assert "yield from self.event_to_child(events.ConnectionClosed(self.conn))" in source_of(
            tunnel.TunnelLayer.receive_close
        )
        assert issubclass(layers.CutOff, events.ConnectionClosed)

    def test_the_layers_take_the_contexts_that_we_give(self) -> None:
        assert list(inspect.signature(ClientTLSLayer.__init__).parameters) == ["self", "context"]
        assert list(inspect.signature(ServerTLSLayer.__init__).parameters) == ["self", "context", "conn"]

    def test_the_apps_tls_looks_at_the_layer_outside_it_and_finds_ours(self) -> None:
        assert "self.context.layers[-2]" in source_of(ClientTLSLayer.__init__)
        ctx = client_context()
        connect = Exchange(Policy(), "127.0.0.1", "CONNECT", asked=Destination("api.example", 443))
        made = inside_connect(ctx, connect)
        assert isinstance(made, ClientTLSLayer)
        assert made.server_tls_available is False
        assert (ctx.server.address, ctx.server.tls) == (("api.example", 443), True)

    def test_a_hook_is_given_the_connection_and_a_context_that_can_be_forked(self) -> None:
        ctx = client_context()
        of_this = ctx.fork()
        of_this.server = connection.Server(address=("api.example", 443))
        data = mitmproxy_tls.TlsData(of_this.server, of_this)
        assert data.ssl_conn is None
        assert data.context.client is ctx.client
        assert ctx.server is not of_this.server

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
