"""HTTP/1 with an app: one request after the other, each taken through the addons to an upstream and back.

Theory of operation. `AppHttp1` reads requests from the byte stream; a `Conversation` carries one of them. It makes
mitmproxy's flow objects and calls the same hooks that mitmproxy's layers would, in the same order, but without their
generators: for HTTP/1 those were most of the cost of a request.

Rules of this module:

- A held body is whole and protected before a connection is even asked for; any other body streams.
- A denial is answered at once and as problem details; the rest of the request's body is read and thrown away.
- A request goes out a second time only if it is idempotent, was sent on a reused connection, and not one byte of a
  response had come (RFC 9110, section 9.2.2).
- Fields that are about one connection (`Connection` and what it lists, `Keep-Alive`, `TE`) end here, both ways.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import h11
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy.layers.http._hooks import (
    HttpConnectErrorHook,
    HttpConnectHook,
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from addons.encryption import body_too_large
from addons.exchange import Exchange, Upstream, problem_response
from proxy.core.decisions import Action, Denied, Reason
from proxy.core.destinations import BadDestination, parse_authority
from proxy.core.heads import (
    BAD_REQUEST_LINE,
    CHUNKED,
    MAX_HEAD_BYTES,
    UNTIL_CLOSE,
    Fields,
    RequestHead,
    ResponseHead,
    can_become_a_head,
    read_request_head,
)
from proxy.core.policy import HTTP_PORT, HTTPS_PORT
from proxy.engine.connect import FirstBytes
from proxy.engine.upstream import Reader, UpstreamConnection, _reader, dial, keeps_alive

if TYPE_CHECKING:
    from proxy.engine.app import AppSocket

MAX_DISCARDED = 1024 * 1024
MAX_PIPELINED = MAX_HEAD_BYTES
_PORTS = {b"http": HTTP_PORT, b"https": HTTPS_PORT}
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))  # RFC 9110, section 9.2.2
_OF_THIS_HOP = frozenset((b"connection", b"keep-alive", b"te", b"proxy-connection"))
_NO_SERVER = Server(address=None)


class AppHttp1:
    """Reads requests from an app."""

    def __init__(self, app: AppSocket, tunnel: Exchange | None) -> None:
        """Start.

        Args:
            app: the app's socket.
            tunnel: the CONNECT that it speaks inside of, if any.
        """
        self.app = app
        self.tunnel = tunnel
        self.conversation: Conversation | None = None
        self._buffer = ReceiveBuffer()
        self._reader: Reader | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data
        self.advance()

    def advance(self) -> None:
        """Read on as far as the bytes go."""
        app = self.app
        while not app.is_closing and app.speaker is self:
            if self._reader is not None:
                if not self._read_body(self._reader):
                    return
            elif self.conversation is not None:
                # Pipelined requests wait in the kernel's buffer once ours is full.
                app.hold("pipelining", len(self._buffer) > MAX_PIPELINED)
                return
            elif not self._read_head():
                return

    def _read_head(self) -> bool:
        buffered = bytes(self._buffer)
        stripped = buffered.lstrip(b"\r\n") if buffered[:2] == b"\r\n" else buffered
        if stripped is not buffered:  # RFC 9112, section 2.2: empty lines before a request are passed over
            self._buffer.maybe_extract_at_most(len(buffered) - len(stripped))
        if stripped in (b"", b"\r"):
            return False
        end = stripped.find(b"\r\n\r\n")
        try:
            if (end if end >= 0 else len(stripped)) > MAX_HEAD_BYTES:
                raise Denied(Reason.HEADERS_TOO_LARGE, f"the head is longer than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                if not can_become_a_head(stripped):
                    raise Denied(Reason.BAD_REQUEST, BAD_REQUEST_LINE)
                if b"\n\n" in stripped:
                    raise Denied(Reason.BAD_REQUEST, "the head holds a line that ends in a bare LF")
                return False
            self._buffer.maybe_extract_at_most(end + 4)
            head = read_request_head(stripped[: end + 4])
            request = self._request(head)
        except Denied as denied:
            self._refuse(denied)
            return False
        self.conversation = conversation = Conversation(self, request, head)
        if head.method == b"CONNECT":
            conversation.connect()
            return not self.app.is_closing
        self._reader = _reader(head.body) if head.body else None
        conversation.start(has_body=self._reader is not None)
        if self._reader is None and not self.app.is_closing:
            conversation.request_end()
        return True

    def _request(self, head: RequestHead) -> http.Request:
        """Make mitmproxy's request object.

        Raises:
            Denied: the target is not one that a proxy can be sent here.
        """
        method, target = head.method, head.target
        scheme = authority = b""
        path, host, port = target, "", 0
        try:
            if method == b"CONNECT":
                if self.tunnel is not None:
                    raise Denied(Reason.BAD_REQUEST, "CONNECT inside CONNECT")
                authority, path = target, b""
                destination = parse_authority(target.decode("ascii"))
                host, port = destination.host, destination.port
            elif not target.startswith(b"/") and target != b"*":
                scheme, separator, rest = target.partition(b"://")
                scheme = scheme.lower()
                if not separator or scheme not in _PORTS:
                    raise BadDestination("its scheme is neither http nor https")
                end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
                authority, path = rest[:end], rest[end:]
                if not path.startswith(b"/"):
                    path = b"/" + path
                destination = parse_authority(authority.decode("ascii"), _PORTS[scheme])
                host, port = destination.host, destination.port
        except BadDestination as e:
            raise Denied(
                Reason.BAD_REQUEST,
                f"the request target is not valid: {e}",
                "a target needs a host, a port from 1 to 65535, and http or https",
            ) from None
        if self.tunnel is not None:
            assert self.tunnel.asked is not None
            host, port = self.tunnel.asked.host, self.tunnel.asked.port
            scheme = b"https" if self.app.tls is not None else b"http"
        elif not host:
            raise Denied(
                Reason.BAD_REQUEST,
                "the request names no host in its target: a proxy is sent `GET http://host/path` or CONNECT",
                "set this address as the app's HTTP_PROXY or HTTPS_PROXY instead of calling it directly",
            )
        elif method != b"CONNECT":
            authority = b""  # mitmproxy's sign for origin form, which is what upstreams are sent
        return http.Request(
            host, port, method, scheme, authority, path, b"HTTP/1.1" if head.is_http11 else b"HTTP/1.0",
            http.Headers(without_hop(head.fields)), None, None, time.time(), None,
        )  # fmt: skip

    def _refuse(self, denied: Denied) -> None:
        session = self.app.session
        exchange = Exchange(session.policy, session.client)
        exchange.note(denied)
        self.app.engine.line.refused(exchange, denied.reason.status)
        response = problem_response(denied, None)
        self.app.write(head_of(response, is_closing=True) + (response.data.content or b""))
        self.app.close()

    def _read_body(self, reader: Reader) -> bool:
        conversation = self.conversation
        assert conversation is not None
        try:
            event = reader(self._buffer)
        except h11.ProtocolError:
            conversation.broken()
            return False
        if event is None:
            return False
        if isinstance(event, h11.Data):
            conversation.request_data(bytes(event.data))
        else:
            self._reader = None
            conversation.request_end()
        return True

    def next(self, *, keep_alive: bool) -> None:
        """Go on after a conversation."""
        self.conversation = None
        if keep_alive:
            self.app.hold("pipelining", False)
            if len(self._buffer):
                # Not from within: the end of one request must not deepen the stack for the next.
                self.app.loop.call_soon(self.app.guarded, self.advance)
        else:
            self.app.close()

    def take_rest(self) -> bytes:
        """Take the bytes that came after a CONNECT."""
        return bytes(self._buffer.maybe_extract_at_most(len(self._buffer)) or b"")

    def eof(self) -> None:
        """The app will send no more."""
        if self._reader is not None and self.conversation is not None:
            self.conversation.gone()
        elif self.conversation is None:
            self.app.close()
        # Otherwise the request is whole, and its response is still wanted.

    def gone(self) -> None:
        """The app's connection is over."""
        if self.conversation is not None:
            self.conversation.gone()

    def congested(self, is_congested: bool) -> None:
        """Stop reading what the app cannot take."""
        if self.conversation is not None:
            self.conversation.app_congested(is_congested)


def without_hop(fields: Fields) -> Fields:
    """Remove the fields that are about this connection only (RFC 9110, section 7.6.1); keep an offer of WebSocket."""
    listed: set[bytes] = set()
    upgrades = False
    for name, value in fields:
        key = name.lower()
        if key == b"connection":
            listed.update(option.strip(b" \t").lower() for option in value.split(b","))
        elif key == b"upgrade":
            upgrades = True
    if not listed and not any(name.lower() in _OF_THIS_HOP for name, _ in fields):
        return fields
    listed -= {b"upgrade", b"host", b"content-length", b"transfer-encoding", b"close", b"keep-alive"}
    kept = [(name, value) for name, value in fields if name.lower() not in _OF_THIS_HOP and name.lower() not in listed]
    if upgrades:
        kept.append((b"Connection", b"Upgrade"))
    return tuple(kept)


def head_of(response: http.Response, *, is_closing: bool) -> bytes:
    """Return a response's head as it is sent to the app."""
    data = response.data
    lines = [b"HTTP/1.1 %d %s" % (data.status_code, data.reason)]
    lines += [name + b": " + value for name, value in data.headers.fields]
    if is_closing:
        lines.append(b"Connection: close")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


class Conversation:
    """One request and its response."""

    def __init__(self, http1: AppHttp1, request: http.Request, head: RequestHead) -> None:
        self.http1 = http1
        self.app = http1.app
        self.engine = http1.app.engine
        self.head = head
        self.flow = http.HTTPFlow(self.app.client, _NO_SERVER, True)
        self.flow.request = request
        self.upstream: UpstreamConnection | None = None
        self.exchange: Exchange | None = None
        self._keep_alive = keeps_alive(head.is_http11, head.fields)
        self._is_chunked = head.body == CHUNKED
        self._mode = "hold"  # hold | stream | discard: what happens to the request's body
        self._held: list[bytes] = []
        self._size = 0
        self._out: list[bytes] = []  # what waits for the upstream
        self._request_is_whole = False
        self._response_began = False
        self._response_is_whole = False
        self._response_held: list[bytes] | None = None
        self._response_size = 0
        self._response_chunked = False
        self._was_reused = False
        self._sent = b""
        self._dialling: asyncio.Task[None] | None = None
        self._is_over = False
        self._websocket = False

    # -- the request

    def start(self, *, has_body: bool) -> None:
        """Take the head through the addons."""
        flow = self.flow
        self.engine.dispatch(HttpRequestHeadersHook(flow))
        self.exchange = self.engine.sessions.exchange(flow)
        if flow.error:
            self._cut_off()
        elif flow.response is not None:
            self._answer()
        elif has_body:
            if flow.request.stream:
                self._mode = "stream"
                self._out.append(self._request_head())
                self._acquire()
            elif flow.request.headers.pop("expect", "").lower() == "100-continue":
                self.app.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def request_data(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._mode == "hold":
            self._size += len(data)
            assert self.exchange is not None
            if self._size > self.exchange.policy.limits.held_body:
                self._held.clear()
                self.exchange.refuse(self.flow, body_too_large(self.exchange))
                self._answer()
            else:
                self._held.append(data)
        elif self._mode == "stream":
            self._send_piece(self._streamed(data))
        else:
            self._size += len(data)
            if self._size > MAX_DISCARDED:
                self.app.close()

    def _streamed(self, data: bytes) -> bytes:
        stream = self.flow.request.stream
        if not callable(stream):
            return data
        piece = stream(data)
        return piece if isinstance(piece, bytes) else b"".join(piece)

    def _send_piece(self, data: bytes) -> None:
        if data:
            self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._is_chunked else data)

    def request_end(self) -> None:
        """Take the end of the request."""
        flow = self.flow
        self._request_is_whole = True
        if self._mode == "discard":
            self._maybe_done()
            return
        flow.request.timestamp_end = time.time()
        if self._mode == "stream":
            self._send_piece(self._streamed(b""))
        else:
            flow.request.data.content = b"".join(self._held)
            self._held.clear()
        self.engine.dispatch(HttpRequestHook(flow))
        if flow.error:
            self._cut_off()
        elif self._mode == "stream":
            if self._is_chunked:
                self._send(b"0\r\n\r\n")
            if self.upstream is not None:
                self.upstream.request_end()
            self._maybe_done()
        elif flow.response is not None:
            self._answer()
        else:
            content = flow.request.data.content
            body = b""
            if self._is_chunked:
                body = (b"%x\r\n%s\r\n" % (len(content), content) if content else b"") + b"0\r\n\r\n"
            elif content:
                body = content
            self._sent = self._request_head() + body
            self._out.append(self._sent)
            self._acquire()

    def _request_head(self) -> bytes:
        data = self.flow.request.data
        lines = [data.method + b" " + data.path + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in data.headers.fields]
        lines.append(b"\r\n")
        return b"\r\n".join(lines)

    # -- the upstream

    def _acquire(self, *, fresh: bool = False) -> None:
        request = self.flow.request.data
        exchange = self.exchange
        assert exchange is not None
        key = (request.host, request.port, request.scheme, exchange.rule and exchange.rule.name, id(exchange.policy))
        if not fresh and (upstream := self.engine.pool.take(key)) is not None:
            self._was_reused = True
            self._connected(upstream)
            return
        self._was_reused = False
        server = Server(address=(request.host, request.port))
        server.tls = request.scheme == b"https"
        record = self.app.session.upstreams[server.id] = exchange.upstream = Upstream(exchange.rule)
        self._dialling = self.app.loop.create_task(self._dial(server, record, key))

    async def _dial(self, server: Server, record: Upstream, key: object) -> None:
        try:
            upstream = await dial(self.engine, server, key, record, self.app.context)
        except Denied as denied:
            record.denied = denied
            if not self._is_over:
                self.app.guarded(self._unreachable, denied)
        except Exception as e:
            self.app.crash(e)
        else:
            if self._is_over:
                upstream.close()
            else:
                self.app.guarded(self._connected, upstream)
        finally:
            self.app.session.upstreams.pop(server.id, None)

    def _unreachable(self, denied: Denied) -> None:
        assert self.exchange is not None
        self._out.clear()
        if self._response_began:
            self._cut_off()
            return
        self.exchange.refuse(self.flow, denied)
        self._answer()

    def _connected(self, upstream: UpstreamConnection) -> None:
        assert self.exchange is not None
        self.upstream = upstream
        self.exchange.upstream = upstream.record
        self.flow.server_conn = upstream.server
        self.app.hold("dialling", False)
        upstream.begin(self, self.head.method)
        if self._request_is_whole:
            upstream.request_end()
        out = b"".join(self._out)
        self._out.clear()
        if out:
            upstream.send(out)

    def _send(self, data: bytes) -> None:
        if self.upstream is not None:
            self.upstream.send(data)
        else:
            self._out.append(data)
            self.app.hold("dialling", True)

    # -- the response (as the upstream's Receiver)

    def response_head(self, head: ResponseHead) -> None:
        """Take the response's head."""
        flow = self.flow
        self._response_began = True
        if head.status < 200 and head.status != 101:
            if self.head.is_http11:
                response = http.Response(
                    b"HTTP/1.1", head.status, head.reason, http.Headers(head.fields), b"", None, 0, 0
                )
                self.app.write(head_of(response, is_closing=False))
            self._response_began = False
            return
        fields = without_hop(head.fields)
        has_body = head.body != 0 and self.head.method != b"HEAD" and head.status not in (204, 304)
        if head.body == UNTIL_CLOSE and has_body:
            self._keep_alive = False
        self._response_chunked = head.body == CHUNKED and has_body
        if self._response_chunked and not self.head.is_http11:  # RFC 9112, section 6.1
            fields = tuple(field for field in fields if field[0].lower() != b"transfer-encoding")
            self._response_chunked = self._keep_alive = False
        flow.response = http.Response(
            b"HTTP/1.1", head.status, head.reason, http.Headers(fields), None, None, time.time(), None
        )
        if head.status == 101 and not self._may_switch():
            self._fail(Denied(Reason.UPSTREAM_FAILED, "the upstream switched to a protocol that was not asked for"))
            return
        self.engine.dispatch(HttpResponseHeadersHook(flow))
        if flow.error:
            self._cut_off()
        elif head.status == 101:
            self._switch()
        elif flow.response.stream or not has_body:
            flow.response.stream = flow.response.stream or True
            self.app.write(head_of(flow.response, is_closing=not self._keep_alive))
        else:
            self._response_held = []

    def response_data(self, data: bytes) -> None:
        """Take a piece of the response's body."""
        response = self.flow.response
        if self._is_over or response is None:
            return
        if self._response_held is not None:
            self._response_size += len(data)
            assert self.exchange is not None
            if self._response_size > self.exchange.policy.limits.held_body:
                self._fail(Denied(Reason.DECRYPTION_FAILED, body_too_large(self.exchange).detail))
                return
            self._response_held.append(data)
            return
        if callable(response.stream):
            piece = response.stream(data)
            data = piece if isinstance(piece, bytes) else b"".join(piece)
        self._write_piece(data)

    def _write_piece(self, data: bytes) -> None:
        if data:
            self.app.write(b"%x\r\n%s\r\n" % (len(data), data) if self._response_chunked else data)

    def response_end(self) -> None:
        """Take the end of the response."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            self.engine.pool.give(upstream)
        if self._is_over or self.flow.response is None:
            return
        response = self.flow.response
        response.timestamp_end = time.time()
        held, self._response_held = self._response_held, None
        if held is not None:
            response.data.content = b"".join(held)
        self.engine.dispatch(HttpResponseHook(self.flow))
        response = self.flow.response
        assert response is not None
        if self.flow.error:
            self._cut_off()
            return
        if held is not None:
            content = response.data.content or b""
            self._response_chunked = self._response_chunked and "transfer-encoding" in response.headers
            self.app.write(head_of(response, is_closing=not self._keep_alive))
            self._write_piece(content)
        if self._response_chunked:
            self.app.write(b"0\r\n\r\n")
        self._response_is_whole = True
        self._maybe_done()

    def response_failed(self, denied: Denied, began: bool) -> None:
        """Take that there is no whole response."""
        self.upstream = None
        if self._is_over:
            return
        can_retry = self._was_reused and not began and self._sent and self.head.method in _IDEMPOTENT
        if can_retry:
            self._out.append(self._sent)
            self._acquire(fresh=True)
            return
        self._fail(denied)

    def _fail(self, denied: Denied) -> None:
        if self.upstream is not None:
            self.upstream.close()
            self.upstream = None
        assert self.exchange is not None
        streamed = self.flow.response is not None and bool(self.flow.response.stream)
        self._response_held = None
        if streamed:
            self._cut_off()
            return
        self.exchange.refuse(self.flow, denied)
        self._answer()

    # -- WebSocket

    def _may_switch(self) -> bool:
        assert self.flow.response is not None
        asked = self.flow.request.headers.get("upgrade", "").lower()
        answered = self.flow.response.headers.get("upgrade", "").lower()
        return asked == answered == "websocket" and self._request_is_whole

    def _switch(self) -> None:
        assert self.flow.response is not None
        self._websocket = True
        response = self.flow.response
        if "connection" not in response.headers:
            response.headers["Connection"] = "Upgrade"
        self.app.write(head_of(response, is_closing=False))
        self.engine.dispatch(HttpResponseHook(self.flow))
        self.app.speaker = Switched(self)

    def switched(self, data: bytes) -> None:
        """Take WebSocket bytes from the upstream."""
        self.app.write(data)

    # -- back-pressure

    def upstream_congested(self, congested: bool) -> None:
        """The upstream takes nothing more for now, or again."""
        self.app.hold("upstream", congested)

    def app_congested(self, is_congested: bool) -> None:
        """The app takes nothing more for now, or again."""
        if self.upstream is not None and not self.upstream.transport.is_closing():
            if is_congested:
                self.upstream.transport.pause_reading()
            else:
                self.upstream.transport.resume_reading()

    def switched_end(self) -> None:
        """The upstream ended what was switched to."""
        self._finish_with_error("the upstream closed the connection")

    def flush(self) -> None:
        """Send the app what was gathered."""
        self.app.after_upstream()

    def crashed(self, error: Exception) -> None:
        """Close everything."""
        self.upstream = None
        self.app.crash(error)

    # -- ends

    def _answer(self) -> None:
        """Send `flow.response`, made here."""
        response = self.flow.response
        assert response is not None
        response.timestamp_start = response.timestamp_end = time.time()
        self._mode = "discard"
        self._size = 0
        self._out.clear()
        self.app.hold("dialling", False)
        self.engine.dispatch(HttpResponseHook(self.flow))
        response = self.flow.response
        assert response is not None
        self._response_began = self._response_is_whole = True
        body = b"" if self.head.method == b"HEAD" else response.data.content or b""
        self.app.write(head_of(response, is_closing=not self._keep_alive) + body)
        self._maybe_done()

    def _maybe_done(self) -> None:
        if self._is_over or not self._response_is_whole:
            return
        if not self._request_is_whole:
            self._mode = "discard"  # the upstream has answered early; what the app still sends is of no use
            self._size = 0
            return
        self._is_over = True
        self.http1.next(keep_alive=self._keep_alive)

    def _cut_off(self) -> None:
        """End with neither a response nor the rest of one: the app must not take what it has for the whole."""
        self._finish_with_error("cut off")
        self.app.abort()

    def broken(self) -> None:
        """The app's body is not framed as its head says."""
        if not self._response_began:
            self._keep_alive = False
            assert self.exchange is not None
            self.exchange.refuse(self.flow, Denied(Reason.BAD_REQUEST, "the body is not framed as its head says"))
            self._leave_upstream()
            self._answer()
        self._finish_with_error("broken request")
        self.app.close()

    def gone(self) -> None:
        """The app went away."""
        self._finish_with_error("the app closed the connection")

    def _finish_with_error(self, message: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._leave_upstream()
        if not self._response_is_whole:
            self.flow.error = self.flow.error or mitmproxy_flow.Error(message)
            self.engine.dispatch(HttpErrorHook(self.flow))
        self.app.close()

    def _leave_upstream(self) -> None:
        if self.upstream is not None:
            self.upstream.close()
            self.upstream = None
        if self._dialling is not None and not self._dialling.done():
            self._dialling.cancel()

    # -- CONNECT

    def connect(self) -> None:
        """Take a CONNECT through the addons, and open what it asks for."""
        flow = self.flow
        self._request_is_whole = True
        self.engine.dispatch(HttpConnectHook(flow))
        self.exchange = exchange = self.engine.sessions.exchange(flow)
        if flow.error:
            self._cut_off()
            return
        # The upstream of a tunnel is opened before the 200, so that a failure can still be told. Not at port 80: what
        # comes may be http to upgrade, for which no plain connection must ever be opened.
        opens_first = (
            flow.response is None
            and exchange.decision is not None
            and exchange.decision.action is Action.TUNNEL
            and flow.request.port != HTTP_PORT
            and not exchange.observing
        )
        if flow.response is not None:
            self._refuse_connect()
        elif opens_first:
            self._dialling = self.app.loop.create_task(self._connect_first())
        else:
            self._open_tunnel(None)

    async def _connect_first(self) -> None:
        assert self.exchange is not None
        request = self.flow.request.data
        server = Server(address=(request.host, request.port))
        record = self.exchange.upstream = Upstream(self.exchange.rule)
        try:
            upstream = await dial(self.engine, server, None, record, self.app.context)
        except Denied as denied:
            record.denied = denied
            if not self._is_over:
                self.exchange.refuse(self.flow, denied)
                self.app.guarded(self._refuse_connect)
        except Exception as e:
            self.app.crash(e)
        else:
            if self._is_over:
                upstream.close()
            else:
                self.app.guarded(self._open_tunnel, upstream)

    def _refuse_connect(self) -> None:
        response = self.flow.response
        assert response is not None
        self.engine.dispatch(HttpConnectErrorHook(self.flow))
        self._is_over = True
        self.app.write(head_of(response, is_closing=not self._keep_alive) + (response.data.content or b""))
        self.http1.next(keep_alive=self._keep_alive)

    def _open_tunnel(self, upstream: UpstreamConnection | None) -> None:
        assert self.exchange is not None
        self._is_over = True
        self.app.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.app.speaker = speaker = FirstBytes(self.app, self.exchange, upstream)
        rest = self.http1.take_rest()
        if rest:
            speaker.feed(rest)


class Switched:
    """The app's side of a connection that switched to WebSocket: bytes pass both ways, close codes and all."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def feed(self, data: bytes) -> None:
        """Pass bytes on."""
        if self._conversation.upstream is not None:
            self._conversation.upstream.send(data)

    def eof(self) -> None:
        """The app ended it."""
        self._conversation.gone()

    def gone(self) -> None:
        """The app is gone."""
        self._conversation.gone()

    def congested(self, is_congested: bool) -> None:
        """Pass back-pressure on."""
        self._conversation.app_congested(is_congested)
