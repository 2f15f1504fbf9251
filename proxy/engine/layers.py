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

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import connection, http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer, tls
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._http1 import Http1Client
from OpenSSL import SSL

from addons.exchange import Exchange, Upstream
from addons.pinning import have_expired
from addons.sessions import Session, Sessions
from proxy.core import bodies
from proxy.core.decisions import Denied, Reason, late_response
from proxy.core.heads import read_request_head
from proxy.core.hops import trailers_to_relay
from proxy.engine.http1client import CutOff
from proxy.engine.http2 import UNSENT_AT_MOST, AppHttp2, AwaitRoom, Leave, Tick, UpstreamHttp2
from proxy.engine.messages import headers_of

Commands = layer.CommandGenerator[None]
IsCongested = Callable[[connection.Connection], bool]

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

    def late(self, session: Session, what: str) -> None:
        """Write a line of something that was no request yet, and did not become one in time."""
        exchange = Exchange(session.policy, session.client)
        seconds = session.policy.limits.request_seconds
        exchange.stop(Denied(Reason.REQUEST_TIMEOUT, f"{what} within {seconds} s"))
        self.refused(exchange, None)


class NextLayer:
    """Decides, as the `next_layer` hook, what follows the app's TLS. Replaces mitmproxy's addon."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def next_layer(self, data: layer.NextLayer) -> None:
        """HTTP/2, which is what the app was given here for."""
        if data.context.client.alpn != b"h2":
            raise RuntimeError("an app that offered HTTP/2 does not speak it")
        data.layer = ProxyLayer(data.context, http_layers.HTTPMode.transparent, self._line)


class _Outside(layer.Layer):
    """Stands where mitmproxy has the layers outside the TLS. It is never asked anything."""

    def _handle_event(self, event: events.Event) -> Commands:
        raise RuntimeError("an event outside the TLS")


def inside_connect(ctx: context.Context, connect: Exchange) -> layer.Layer:
    """Return the layers for TLS inside a CONNECT."""
    assert connect.asked is not None
    ctx.server.address = (connect.asked.host, connect.asked.port)
    ctx.server.tls = True
    _Outside(ctx)
    return AppTls(ctx)


class ProxyLayer(http_layers.HttpLayer):
    """All HTTP of one client connection (or of what it carries inside CONNECT)."""

    def __init__(self, ctx: context.Context, mode: http_layers.HTTPMode, line: Line) -> None:
        super().__init__(ctx, mode)
        self._line = line

    def _handle_event(self, event: events.Event) -> Commands:
        if (
            isinstance(event, events.ConnectionClosed)
            and event.connection not in self.connections
            and event.connection is not self.context.server
        ):
            return  # the end of a connection that was forgotten already
        if isinstance(event, Tick):
            yield from self._end_what_is_late(event)
        elif isinstance(event, Leave):
            yield from self.event_to_child(self.connections[self.context.client], event)
        else:
            yield from super()._handle_event(event)

    def is_kept_waiting(self) -> bool:
        """Whether an app owes something that it has begun, for longer than it may."""
        return self._app_is_late() or any(self._is_late(stream) for stream in self.streams.values())

    def _app_is_late(self) -> bool:
        app = self.connections.get(self.context.client)
        return isinstance(app, AppHttp2) and self._is_past(app.owes_since)

    def _is_late(self, stream: http_layers.HttpStream) -> bool:
        return isinstance(stream, Stream) and (self._is_past(stream.held_since) or stream.upstream_is_late)

    def awaits_upstreams(self) -> bool:
        """Whether a request has been sent whose response has not begun."""
        return any(isinstance(stream, Stream) and stream.sent_since is not None for stream in self.streams.values())

    def _is_past(self, since: float | None) -> bool:
        seconds = self._line.sessions.of(self.context.client).policy.limits.request_seconds
        return since is not None and time.monotonic() - since >= seconds

    def _end_what_is_late(self, tick: Tick) -> Commands:
        for stream in list(self.streams.values()):
            is_silent = tick.silence is not None and isinstance(stream, Stream) and stream.sent_since is not None
            if is_silent or self._is_late(stream):
                yield from self.event_to_child(stream, tick)
        if self._app_is_late():
            self._line.late(self._line.sessions.of(self.context.client), "the app did not end a header block or frame")
            yield from self.event_to_child(self.connections[self.context.client], tick)

    def has_room(self, wait: AwaitRoom, is_congested: IsCongested) -> bool:
        """Tell whether more of a stream can be passed on.

        Args:
            wait: names the stream, and the direction.
            is_congested: tells of a connection whether its socket takes no more for now.
        """
        if wait.is_response:
            return self._has_app_room(wait.stream_id, is_congested)
        stream = self.streams.get(wait.stream_id)
        if not isinstance(stream, Stream) or stream.keeps_request:
            return True
        if stream.client_state != stream.state_stream_request_body:
            return False  # its upstream is still being dialled
        server = stream.context.server
        upstream = self._speaker(server)
        if isinstance(upstream, UpstreamHttp2):
            number = upstream.our_stream_id.get(wait.stream_id)
            if number is None or upstream.h2_conn.unsent(number) > UNSENT_AT_MOST:
                return False
        return not is_congested(server)

    def may_read(self, server: connection.Connection, is_congested: IsCongested) -> bool:
        """Tell whether to read from an upstream; one that speaks HTTP/2 is told in its own words to wait."""
        upstream = self._speaker(server)
        if isinstance(upstream, Http1Client) and upstream.stream_id is not None:
            return self._has_app_room(upstream.stream_id, is_congested)
        return True

    def _has_app_room(self, stream_id: int, is_congested: IsCongested) -> bool:
        app = self.connections.get(self.context.client)
        if not isinstance(app, AppHttp2):
            return True
        return not is_congested(self.context.client) and app.h2_conn.unsent(stream_id) <= UNSENT_AT_MOST

    def _speaker(self, server: connection.Connection) -> layer.Layer | None:
        """Return the layer that speaks HTTP with an upstream, inside its TLS, if it has come so far."""
        found = self.connections.get(server)
        while (inside := getattr(found, "child_layer", None)) is not None:
            found = inside
        return found

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
                if upstream is None or upstream.rule is not exchange.rule or have_expired(exchange.rule):
                    reuse = False
                else:
                    exchange.upstream = upstream
        before = set(self.connections)
        for command in super().get_connection(event, reuse=reuse):
            # The new connection is known before its first command is carried out, so before its handshake.
            for server in self.connections.keys() - before:
                if isinstance(server, connection.Server):
                    exchange.upstream = upstreams.setdefault(server.id, Upstream(exchange.policy, exchange.rule))
            before = set(self.connections)
            yield command

    def _forget_closed(self, upstreams: dict[str, Upstream]) -> None:
        """Drop connections that are over. mitmproxy keeps them, and gives the error of a failed one again and again."""
        in_use = {stream.flow.server_conn for stream in self.streams.values()}
        for server in list(self.connections):
            if (
                isinstance(server, connection.Server)
                and server.state is connection.ConnectionState.CLOSED
                and server not in self.waiting_for_establishment
                and server not in in_use
            ):
                del self.connections[server]
                upstreams.pop(server.id, None)


class Stream(http_layers.HttpStream):
    """One request and its response."""

    def __init__(self, ctx: context.Context, stream_id: int, line: Line) -> None:
        super().__init__(ctx, stream_id)
        self._line = line
        self._discarded = 0
        self._ends_at_once = False  # what has just come is all: no body follows
        self.held_since: float | None = None
        self.sent_since: float | None = None  # when the request was sent whose response has not begun

    @property
    def _exchange(self) -> Exchange:
        return self._line.sessions.exchange(self.flow)

    @property
    def keeps_request(self) -> bool:
        """Whether what comes of the request's body goes no further now: it is held, which has limits, or dropped."""
        return self.client_state in (
            self.state_consume_request_body,
            self.state_discard_request_body,
            self.state_done,
            self.state_errored,
        )

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
        if self.client_state != self.state_done:
            self.client_state = self.state_discard_request_body
        if self.flow.request.method == "HEAD" and self.flow.response is not None:
            self.flow.response.data.content = b""  # its length stays (RFC 9110, section 9.3.2)
        yield from self.send_response()
        self.server_state = self.state_errored

    def send_response(self, already_streamed: bool = False) -> Commands:
        """Send a response, and say at once that it is whole. mitmproxy says it when the request is whole, too."""
        yield from super().send_response(already_streamed)
        for message in (self.flow.request, self.flow.response):
            if message is not None:
                message.data.content = None  # streams are parts of circles, so they go only when these are looked for
        if self.server_state == self.state_done and self.client_state not in (self.state_done, self.state_errored):
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

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, Tick):
            if self.sent_since is not None:
                yield from self._upstream_late(event.silence)
            elif self.held_since is not None:  # not so where an earlier tick is over only now
                yield from self._held_too_long()
            return
        if isinstance(event, http_events.RequestTrailers | http_events.ResponseTrailers):
            kept = () if self._holds(event) else trailers_to_relay(event.trailers.fields)
            if not kept:
                return
            event.trailers = headers_of(kept)
        elif isinstance(event, http_events.RequestHeaders | http_events.ResponseHeaders):
            self._ends_at_once = event.end_stream
        yield from super()._handle_event(event)
        is_held = self.client_state == self.state_consume_request_body
        if not is_held:
            self.held_since = None
        elif self.held_since is None:
            self.held_since = time.monotonic()
        is_sent = self.client_state == self.state_done and self.server_state == self.state_wait_for_response_headers
        if not is_sent:
            self.sent_since = None
        elif self.sent_since is None:
            self.sent_since = time.monotonic()

    def _holds(self, event: http_events.HttpEvent) -> bool:
        """Tell whether an event is of a body that is held, and so another one afterwards."""
        if isinstance(event, http_events.RequestTrailers):
            return bool(self.client_state == self.state_consume_request_body)
        return bool(self.server_state == self.state_consume_response_body)

    @property
    def upstream_is_late(self) -> bool:
        """Whether the upstream has had its time to begin its response."""
        if self.sent_since is None:
            return False
        seconds = self._exchange.policy.response_seconds(self._exchange.rule)
        return seconds is not None and time.monotonic() - self.sent_since >= seconds

    def _upstream_late(self, silence: float | None) -> Commands:
        """Answer in place of an upstream that does not."""
        self.sent_since = None
        exchange = self._exchange
        late = late_response(exchange.policy.response_seconds(exchange.rule) or 0)
        if silence is not None:
            late = late_response(silence, "limits.idle_seconds")
        given_up = http_events.RequestProtocolError(self.stream_id, "", http_events.ErrorCode.CANCEL)
        yield http_layers.SendHttp(given_up, self.context.server)
        exchange.refuse(self.flow, late)
        yield from self._answer()

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Find or open the connection that the request goes out on, at once."""
        is_open: bool = yield from super().make_server_connection()
        self._exchange.has_left = self._exchange.has_left or is_open
        return is_open

    def _held_too_long(self) -> Commands:
        """Refuse a request whose body is still not whole."""
        self.held_since = None
        exchange = self._exchange
        self.request_body_buf.clear()
        late = f"the app did not send all of it within {exchange.policy.limits.request_seconds} s"
        exchange.refuse(self.flow, Denied(Reason.REQUEST_TIMEOUT, late))
        yield from self._answer()

    def state_consume_request_body(self, event: events.Event) -> Commands:
        """Hold a request's body up to the policy's limit."""
        if isinstance(event, http_events.RequestData):
            exchange = self._exchange
            if len(self.request_body_buf) + len(event.data) > exchange.policy.limits.held_body:
                self.request_body_buf.clear()
                exchange.refuse(self.flow, bodies.too_large(exchange.policy.limits.held_body))
                yield from self._answer()
                return
        yield from super().state_consume_request_body(event)

    def state_consume_response_body(self, event: events.Event) -> Commands:
        """Hold a response's body up to the policy's limit."""
        if isinstance(event, http_events.ResponseData):
            exchange = self._exchange
            limit = exchange.policy.limits.held_body
            if len(self.response_body_buf) + len(event.data) > limit:
                self.response_body_buf.clear()
                yield commands.CloseConnection(self.flow.server_conn)
                exchange.refuse(
                    self.flow,
                    Denied(Reason.DECRYPTION_FAILED, bodies.too_large(limit).detail),
                )
                yield from self._answer()
                return
        yield from super().state_consume_response_body(event)

    # -- errors are problem details, too

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        """Refuse what mitmproxy's validation refuses (smuggling), in our words: its own may quote header values."""
        if request:
            limits = self._exchange.policy.limits
            fields = self.flow.request.headers.fields
            data = self.flow.request.data
            size = sum(len(part) for part in (data.method, data.scheme, data.authority, data.path))
            size += sum(len(name) + len(value) + 4 for name, value in fields)
            if len(fields) > limits.header_count or size > limits.header_bytes:
                self._exchange.refuse(
                    self.flow,
                    Denied(Reason.HEADERS_TOO_LARGE, "the header fields are more, or longer, than the limits"),
                )
                yield from self._answer()
                return True
            is_invalid = bool(http_layers.validate_request(self.mode, self.flow.request, validate_inbound_headers=True))
            denied = Denied(Reason.BAD_REQUEST, "the request's header fields are ambiguous or malformed")
            if self.flow.request.is_http2:
                try:
                    head = read_request_head(_as_http1(self.flow.request))
                    if head.body > 0 and self._ends_at_once:  # RFC 9113, section 8.1.1
                        raise Denied(Reason.BAD_REQUEST, "the request says that a body follows, and none does")
                except Denied as e:
                    is_invalid, denied = True, e
        else:
            assert self.flow.response is not None
            is_invalid = _invalid(self.flow.response) or self._lacks_body(self.flow.response)
            denied = Denied(Reason.UPSTREAM_FAILED, "the upstream's header fields are ambiguous or malformed")
        if not is_invalid:
            return False
        if not request:
            yield commands.CloseConnection(self.flow.server_conn)
        self._exchange.refuse(self.flow, denied)
        yield from self._answer()
        return True

    def _lacks_body(self, response: http.Response) -> bool:
        if not response.is_http2 or not self._ends_at_once:
            return False  # in HTTP/1, what follows is read by that length
        has_none = self.flow.request.method == "HEAD" or response.status_code in (204, 304)
        return not has_none and response.headers.get("content-length", "0") != "0"

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
            is_answered = self.server_state == self.state_done and self.client_state == self.state_stream_request_body
            if is_answered and isinstance(event, http_events.RequestProtocolError):
                # mitmproxy tells the upstream only before its answer; it would wait for the rest of the request.
                yield http_layers.SendHttp(event, self.context.server)
            if isinstance(event, http_events.ResponseProtocolError) and self.client_state != self.state_errored:
                self._exchange.stop(self._broken_off())
            yield from super().handle_protocol_error(event)
            return
        exchange = self._exchange
        upstream = exchange.upstream
        failed = Denied(Reason.UPSTREAM_FAILED, "the upstream closed the connection, or its response is not valid HTTP")
        exchange.refuse(self.flow, upstream.denied if upstream and upstream.denied else failed)
        self.response_body_buf.clear()
        yield from self._answer()

    def _broken_off(self) -> Denied:
        """Return why the app's stream ends in the middle, or without an answer."""
        if self.flow.response is None:
            return Denied(Reason.UPSTREAM_FAILED, "the upstream reset the stream without a response")
        return Denied(Reason.UPSTREAM_CUT, "the upstream broke its response off before it was whole")


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

    def send_close(self, command: commands.CloseConnection) -> Commands:
        """Say that this is all, which mitmproxy does not."""
        if self.conn.tls_established:
            with contextlib.suppress(SSL.Error):  # the app closed the session meanwhile
                self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


class UpstreamTls(_Alerting, ServerTLSLayer):
    """The upstream's side of TLS."""

    def receive_close(self) -> Commands:
        """Tell the end of the connection from the end of what was to be said, as mitmproxy does not."""
        if not self.tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            yield from self.event_to_child(CutOff(self.conn))
