"""mitmproxy's HTTP layers, with our rules put in where theirs are open.

Rules of this module:

- An upstream connection is used only for requests of the rule whose pins it was opened under.
- A denial is answered at once and as problem details; the rest of the request's body is read and thrown away.
- A held body never grows past the policy's limit.
- Inside CONNECT, what is neither TLS nor HTTP is closed.

Every override names the behaviour of mitmproxy 12.2 that it replaces; `tests/proxy/engine/test_internals.py` fails
when those move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import connection, http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer, tls
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _events as http_events

from addons.encryption import body_too_large
from addons.exchange import Exchange, Sessions, Upstream
from proxy.core.decisions import Action, Denied, Reason
from proxy.core.destinations import BadDestination, canonical_host
from proxy.core.heads import check_request_head
from proxy.core.policy import HTTP_PORT
from proxy.engine.http1 import Http1App, Http1Upstream
from proxy.engine.sniffing import Heard, Speech, listen
from proxy.engine.tunnels import Refused, Tunnel

Commands = layer.CommandGenerator[None]

MAX_DISCARDED = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The options that mitmproxy's layers read. A plain object: theirs are deep-copied at each read."""

    body_size_limit: None = None
    connection_strategy: str = "lazy"
    http2_ping_keepalive: int = 58
    http_connect_send_host_header: bool = True
    keep_host_header: bool = True
    normalize_outbound_headers: bool = True
    proxy_debug: bool = False
    rawtcp: bool = False
    store_streamed_bodies: bool = False
    stream_large_bodies: None = None
    validate_inbound_headers: bool = True
    websocket: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """What the layers need of the pipeline.

    Attributes:
        sessions: the live sessions.
        refused: called with an exchange that ended in the layers, before any hook could close its books, and the
            status it was answered with.
    """

    sessions: Sessions
    refused: Callable[[Exchange, int | None], None]


class NextLayer:
    """Decides, as the `next_layer` hook, what follows CONNECT or the app's TLS. Replaces mitmproxy's addon."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def next_layer(self, data: layer.NextLayer) -> None:
        """Choose the layer, or leave it open until more bytes are there."""
        client = data.context.client
        session = self._line.sessions.of(client)
        connect = session.connect
        if connect is None or connect.asked is None or connect.decision is None:
            raise RuntimeError("a next layer outside CONNECT")
        if client.tls_established and client.alpn == b"h2":
            data.layer = ProxyLayer(data.context, http_layers.HTTPMode.transparent, self._line)
            return
        heard = listen(data.data_client())
        if heard.speech is Speech.UNDECIDED:
            return
        if heard.speech is Speech.HTTP:
            data.layer = ProxyLayer(data.context, http_layers.HTTPMode.transparent, self._line)
        elif heard.speech is Speech.TLS and not client.tls:
            data.layer = self._tls(data.context, connect, heard)
        else:
            data.layer = self._not_http(data.context, connect)

    def _tls(self, ctx: context.Context, connect: Exchange, heard: Heard) -> layer.Layer:
        assert connect.asked is not None
        assert connect.decision is not None
        if connect.decision.denied is not None:
            connect.note(connect.decision.denied)
        elif heard.sni is not None and not _same_host(heard.sni, connect.asked.host):
            connect.note(
                Denied(Reason.HOST_MISMATCH, f"the TLS server name is not the host of CONNECT {connect.asked}")
            )
        if connect.observing:
            return Tunnel(ctx)
        if connect.denied is not None:
            return Refused(ctx)
        if connect.decision.action is Action.TUNNEL:
            return Tunnel(ctx)
        ctx.server.tls = True
        return AppTls(ctx)

    def _not_http(self, ctx: context.Context, connect: Exchange) -> layer.Layer:
        connect.note(
            Denied(
                Reason.NOT_HTTP, f"what the app sent through CONNECT {connect.asked} is neither TLS nor an HTTP request"
            )
        )
        return Tunnel(ctx) if connect.observing and not ctx.client.tls else Refused(ctx)


def _same_host(sni: str, host: str) -> bool:
    try:
        return canonical_host(sni) == host
    except BadDestination:
        return False


class ProxyLayer(http_layers.HttpLayer):
    """All HTTP of one client connection (or of what it carries inside CONNECT)."""

    def __init__(self, ctx: context.Context, mode: http_layers.HTTPMode, line: Line) -> None:
        super().__init__(ctx, mode)
        self._line = line

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start) and self.context.client.alpn != b"h2":
            # HttpLayer takes the connection layer that stands here in place of its own.
            self.connections[self.context.client] = Http1App(self.context.fork(), self.mode, self._line)
        if (
            isinstance(event, events.ConnectionClosed)
            and event.connection not in self.connections
            and event.connection is not self.context.server
        ):
            return  # the end of a connection that was forgotten already
        yield from super()._handle_event(event)

    def make_stream(self, stream_id: int) -> Commands:
        """Make our kind of stream."""
        stream = self.streams[stream_id] = Stream(self.context.fork(), stream_id, self._line)
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: http_layers.GetHttpConnection, *, reuse: bool = True) -> Commands:
        """Find or open an upstream connection. mitmproxy matches address and TLS only; we match the rule as well."""
        stream = self.command_sources[event]
        assert isinstance(stream, Stream)
        exchange = self._line.sessions.exchange(stream.flow)
        upstreams = self._line.sessions.of(self.context.client).upstreams
        self._forget_closed(upstreams)
        for server in self.connections:
            if event.connection_spec_matches(server):
                upstream = upstreams.get(server.id)
                if upstream is None or upstream.rule is not exchange.rule:
                    reuse = False
                else:
                    exchange.upstream = upstream
        before = set(self.connections)
        for command in super().get_connection(event, reuse=reuse):
            # The new connection is known before its first command is carried out, so before its handshake.
            for server in self.connections.keys() - before:
                if isinstance(server, connection.Server):
                    exchange.upstream = upstreams.setdefault(server.id, Upstream(exchange.rule))
            before = set(self.connections)
            yield command

    def _forget_closed(self, upstreams: dict[str, Upstream]) -> None:
        """Drop connections that are over. mitmproxy keeps them, and gives the error of a failed one again and again."""
        for server in list(self.connections):
            if (
                isinstance(server, connection.Server)
                and server.state is connection.ConnectionState.CLOSED
                and server not in self.waiting_for_establishment
            ):
                del self.connections[server]
                upstreams.pop(server.id, None)


class Stream(http_layers.HttpStream):
    """One request and its response."""

    def __init__(self, ctx: context.Context, stream_id: int, line: Line) -> None:
        super().__init__(ctx, stream_id)
        self._line = line
        self._discarded = 0

    @property
    def _exchange(self) -> Exchange:
        return self._line.sessions.exchange(self.flow)

    # -- a denial is answered at once

    def start_request_stream(self) -> Commands:
        """Answer a request that was denied at its head, or start to stream it. mitmproxy can't do the former."""
        if self.flow.response is not None:
            yield from self._answer()
            return
        if (yield from self.make_server_connection()):
            yield http_layers.SendHttp(
                http_events.RequestHeaders(self.stream_id, self.flow.request, end_stream=False), self.context.server
            )
            self.client_state = self.state_stream_request_body

    def _answer(self) -> Commands:
        """Send `flow.response`, and throw away what is still to come of the request."""
        is_early = self.client_state != self.state_done
        if is_early:
            self.client_state = self.state_discard_request_body
        yield from self.send_response()
        self.server_state = self.state_errored
        if is_early and self.flow.request.is_http2:  # in HTTP/1 its length tells the app that the answer is whole
            yield http_layers.SendHttp(http_events.ResponseEndOfMessage(self.stream_id), self.context.client)

    def state_discard_request_body(self, event: events.Event) -> Commands:
        """Read on without keeping anything, so that the app can finish sending and read its answer."""
        if isinstance(event, http_events.RequestData):
            self._discarded += len(event.data)
            if self._discarded > MAX_DISCARDED:
                self.client_state = self.state_errored
                yield http_layers.SendHttp(
                    http_events.ResponseProtocolError(self.stream_id, "", http_events.ErrorCode.KILL),
                    self.context.client,
                )
                yield http_layers.DropStream(self.stream_id)
        elif isinstance(event, http_events.RequestEndOfMessage):
            self.client_state = self.state_done
            yield from self.flow_done()

    # -- bodies are held only so far

    def state_consume_request_body(self, event: events.Event) -> Commands:
        """Hold a request's body up to the policy's limit."""
        if isinstance(event, http_events.RequestData):
            exchange = self._exchange
            if len(self.request_body_buf) + len(event.data) > exchange.policy.limits.held_body:
                self.request_body_buf.clear()
                exchange.refuse(self.flow, body_too_large(exchange))
                yield from self._answer()
                return
        yield from super().state_consume_request_body(event)

    def state_consume_response_body(self, event: events.Event) -> Commands:
        """Hold a response's body up to the policy's limit."""
        if isinstance(event, http_events.ResponseData):
            exchange = self._exchange
            if len(self.response_body_buf) + len(event.data) > exchange.policy.limits.held_body:
                self.response_body_buf.clear()
                yield commands.CloseConnection(self.flow.server_conn)
                exchange.refuse(self.flow, Denied(Reason.DECRYPTION_FAILED, body_too_large(exchange).detail))
                yield from self._answer()
                return
        yield from super().state_consume_response_body(event)

    # -- errors are problem details, too

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        """Refuse what mitmproxy's validation refuses (smuggling), in our words: its own may quote header values."""
        if request:
            is_invalid = bool(http_layers.validate_request(self.mode, self.flow.request, validate_inbound_headers=True))
            denied = Denied(Reason.BAD_REQUEST, "the request's header fields are ambiguous or malformed")
            if self.flow.request.is_http2:
                try:
                    check_request_head(_as_http1(self.flow.request))
                except Denied as e:
                    is_invalid, denied = True, e
        else:
            assert self.flow.response is not None
            is_invalid = _invalid(self.flow.response)
            denied = Denied(Reason.UPSTREAM_FAILED, "the upstream's header fields are ambiguous or malformed")
        if not is_invalid:
            return False
        if not request:
            yield commands.CloseConnection(self.flow.server_conn)
        self._exchange.refuse(self.flow, denied)
        yield from self._answer()
        return True

    def handle_protocol_error(
        self, event: http_events.RequestProtocolError | http_events.ResponseProtocolError
    ) -> Commands:
        """Answer an upstream's failure with its reason, as long as no response has begun."""
        answerable = (
            isinstance(event, http_events.ResponseProtocolError)
            and event.code.http_status_code() is not None
            and self.client_state != self.state_errored
            and self.server_state
            in (self.state_uninitialized, self.state_wait_for_response_headers, self.state_consume_response_body)
        )
        if not answerable:
            yield from super().handle_protocol_error(event)
            return
        exchange = self._exchange
        upstream = exchange.upstream
        failed = Denied(Reason.UPSTREAM_FAILED, "the upstream closed the connection, or its response is not valid HTTP")
        exchange.refuse(self.flow, upstream.denied if upstream and upstream.denied else failed)
        self.response_body_buf.clear()
        yield from self._answer()

    # -- CONNECT

    def handle_connect_regular(self) -> Commands:
        """Open the upstream of a plain tunnel before saying 200, so that a failure can still be told.

        Not to port 80: what comes may be http to upgrade, for which no plain connection must ever be opened.
        """
        exchange = self._exchange
        opens_first = (
            self.flow.response is None
            and exchange.decision is not None
            and exchange.decision.action is Action.TUNNEL
            and self.flow.request.port != HTTP_PORT
            and not exchange.observing
        )
        if opens_first:
            upstream = exchange.upstream = Upstream(exchange.rule)
            self._line.sessions.of(self.context.client).upstreams[self.context.server.id] = upstream
            if (yield commands.OpenConnection(self.context.server)):
                exchange.refuse(
                    self.flow, upstream.denied or Denied(Reason.UPSTREAM_UNREACHABLE, "the upstream cannot be reached")
                )
        yield from super().handle_connect_regular()


def _as_http1(request: http.Request) -> bytes:
    """Return the head of an HTTP/2 request as it would be in HTTP/1.1, whose ambiguities it must not have either."""
    lines = [request.data.method + b" " + request.data.path + b" HTTP/1.1"]
    if "host" not in request.headers:
        lines.append(b"Host: " + request.data.authority)
    lines += [name + b": " + value for name, value in request.headers.fields]
    return b"\r\n".join([*lines, b"", b""])


def _invalid(response: http.Response) -> bool:
    try:
        validate_headers(response)
    except ValueError:
        return True
    return False


class _Alerting(tls.TLSLayer):
    """Says why a handshake failed. mitmproxy closes the connection with OpenSSL's alert still in its buffer."""

    def on_handshake_error(self, err: str) -> Commands:
        """Send the alert before the connection is closed."""
        if self.tls is not None:
            yield from self.tls_interact()
        yield from super().on_handshake_error(err)


class AppTls(_Alerting, ClientTLSLayer):
    """The app's side of TLS."""


class UpstreamTls(_Alerting, ServerTLSLayer):
    """The upstream's side of TLS."""


# HttpLayer and HttpClient make these layers by module-level names, and have no other seam.
setattr(http_layers, "Http1Client", Http1Upstream)  # noqa: B010  # mypy rightly minds a plain assignment
setattr(tls, "ServerTLSLayer", UpstreamTls)  # noqa: B010  # the same
