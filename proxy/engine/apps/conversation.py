"""One request and its response: from the app through the addons to an upstream, and back. The speakers for HTTP/1 and
HTTP/2 make one conversation of each request that they have read.

A conversation makes mitmproxy's flow objects, and calls the hooks in the order in which mitmproxy's layers would. It
knows nothing about the wire: it is answered on an `AppStream`, and sends the request on an `UpstreamStream`, whatever
version of HTTP each of them speaks. It always has one state; the table in `states` says what may happen in each.

It is longer than 500 lines, because the request, the response and a WebSocket that follows are steps between the states
of one table, and change each other's at nearly every step: they cannot be read apart.

Rules of this module:

- A held body is complete and protected before a connection is even asked for; any other body streams.
- A denial is answered at once, with problem details; the rest of the request's body is read and thrown away.
- A request goes out a second time only if it is idempotent, was sent on a reused connection, and no byte of a response
  has come (RFC 9110, section 9.2.2). A 408 with which an idle connection ends does not count as a response. Any request
  goes out again, a few times, if the upstream has said that it did nothing about it (RFC 9113, section 8.7).
- A response that breaks off never looks complete.
- A connection that may be authenticated for one app is never given to another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.websocket import WebSocketData, WebSocketMessage

from addons.bodyheads import takes_long
from addons.exchange import Exchange
from addons.headers import has_field
from addons.outcomes import is_denied
from addons.pinning import have_expired
from addons.upstream import Upstream
from proxy.core.decisions import Denied, late_response
from proxy.core.destinations import Destination
from proxy.core.fields import bodies
from proxy.core.fields.pauses import Pause
from proxy.core.fields.uploads import MOST_LOOKED_AT
from proxy.core.http.heads import CHUNKED, UNTIL_CLOSE, Fields, RequestHead, ResponseHead, names_in
from proxy.core.http.hops import without_framing, without_hop
from proxy.core.http.websocket import BINARY, TEXT
from proxy.core.reasons import Reason
from proxy.core.rules.appview import interim_fields
from proxy.engine.apps.appstream import AppStream
from proxy.engine.apps.lanes import Lane, Result
from proxy.engine.apps.messages import Relay
from proxy.engine.apps.states import AFTER_CONVERSATION, ConversationEvent, ConversationState
from proxy.engine.apps.websocket import Switched, may_switch
from proxy.engine.flows import new_flow, new_server
from proxy.engine.messages import authenticates_connection, headers_of, response_of
from proxy.engine.streams import UpstreamStream, Version
from proxy.engine.upstreams.connection import ONLY_HTTP2, UpstreamConnection
from proxy.engine.upstreams.opening import open_stream

MAX_DISCARDED = 1024 * 1024  # bytes of a body that nobody needs any more
KEPT_AT_MOST = 64 * 1024  # bytes of a streamed body that are kept, in case it must be sent again
MAX_TRIES = 4  # attempts for a request that upstreams do nothing about
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))  # RFC 9110, section 9.2.2
_CONTINUE = http.Response(b"HTTP/1.1", 100, b"Continue", http.Headers(), None, None, 0.0, None)
_DISCARDING, _HELD, _HOLDING = ConversationState.DISCARDING, ConversationState.HELD, ConversationState.HOLDING
_OVER, _STREAMED, _STREAMING = ConversationState.OVER, ConversationState.STREAMED, ConversationState.STREAMING
_GATHERING = frozenset((ConversationState.GATHERING, ConversationState.EARLY_GATHERING))
_ANSWERING = frozenset((ConversationState.ANSWERING, ConversationState.EARLY_ANSWERING, ConversationState.SWITCHED))
_ANSWERED = frozenset((_DISCARDING, _OVER))
_PASSING_ON = frozenset((_STREAMING, ConversationState.EARLY_ANSWERING, ConversationState.EARLY_GATHERING))
_WAITING = frozenset((_HELD, _STREAMED, _STREAMING))  # states in which a response, or an upstream for one, is awaited
# The rows of the table that each request needs, looked up only once.
_ASK = AFTER_CONVERSATION[ConversationEvent.ASK]
_BEGIN = AFTER_CONVERSATION[ConversationEvent.BEGIN]
_BREAK = AFTER_CONVERSATION[ConversationEvent.BREAK]
_COMPLETE = AFTER_CONVERSATION[ConversationEvent.COMPLETE]
_END = AFTER_CONVERSATION[ConversationEvent.END]
_GATHER = AFTER_CONVERSATION[ConversationEvent.GATHER]
_DENY = AFTER_CONVERSATION[ConversationEvent.DENY]
_REQUEST_DATA = AFTER_CONVERSATION[ConversationEvent.REQUEST_DATA]
_RESPONSE_DATA = AFTER_CONVERSATION[ConversationEvent.RESPONSE_DATA]
_STREAM = AFTER_CONVERSATION[ConversationEvent.STREAM]
_SWITCH = AFTER_CONVERSATION[ConversationEvent.SWITCH]


class Conversation:
    """One request and its response."""

    _relay: Relay | None = None  # of a WebSocket whose messages are read
    # The two directions, once something in one has taken long.
    _sending: Lane | None = None
    _receiving: Lane | None = None

    def __init__(
        self, stream: AppStream, request: http.Request, head: RequestHead, front: Destination | None = None
    ) -> None:
        """Start.

        Args:
            stream: where the app has sent it, and gets the response.
            request: the request.
            head: its head as it came.
            front: its destination as the app knows it, if a reverse listener stands for it.
        """
        self.state = _HOLDING
        self.stream = stream
        self.app = stream.app
        self.house = stream.app.house
        self.head = head
        # Whether the app accepts trailers in the response (RFC 9110, section 10.1.4).
        self.takes_trailers = head.is_http2 and b"te" in names_in(head.fields)
        self.flow = new_flow(self.app.client, request)
        self.upstream: UpstreamStream | None = None
        self.exchange: Exchange = self.house.sessions.begin(self.flow)
        self.exchange.front = front
        self._held = bytearray()  # the request's body so far, in one piece
        self._held_since = 0.0  # when its body began to be awaited, if that is held
        self._size = 0  # bytes of the request's body that have come, or that were thrown away
        self._kept: bytearray | None = bytearray()  # all of a streamed body so far, while it is small
        self._waiting: list[bytes] = []  # pieces of a streamed body, until there is an upstream
        self._trailers: Fields = ()
        self._gathered: bytes | bytearray = b""  # the response's body so far, if it is held
        self._was_reused = False
        self._tries = 0
        self._holds_app = False  # whether the app waits for an upstream that takes no more for now
        self._counts = False  # whether a connection for this request alone is counted
        self._version = Version.HTTP1
        self._only_http1 = False  # whether the upstream wants HTTP/1.1
        self._dialling: asyncio.Task[None] | None = None
        self._expects = False
        self._awaits_continue = False  # whether the app may be waiting for a 100 before it sends its body

    # -- the request

    def start(self, *, has_body: bool) -> None:
        """Pass the head through the addons."""
        flow, exchange = self.flow, self.exchange
        self._expects = has_body and has_field(flow.request.headers, b"expect")
        self.house.dispatch.call("requestheaders", flow)
        if exchange.observing and flow.request.data.scheme == b"http":
            self.house.asides.note(exchange)
        if flow.response is not None:
            self._answer()
        elif has_body:
            if flow.request.stream:
                self.state = _STREAM[self.state]
                self._awaits_continue = self._expects
                self._acquire()
            else:
                self._held_since = time.monotonic()
                if self._expects and flow.request.headers.pop("expect").lower() == "100-continue":
                    self.stream.interim(_CONTINUE)
                    self._expects = False

    def request_data(self, data: bytes) -> None:
        """Handle a piece of the body."""
        if self._sending is not None and self._sending.is_busy:
            self._sending.behind(partial(self.request_data, data))
            return
        state = _REQUEST_DATA[self.state]
        self._size += len(data)
        if state is _HOLDING:
            self._hold(data)
        elif state in _PASSING_ON:
            self._pass_on(data)
            if self._awaits_continue:
                self._awaits_continue = False
                self._count_time()
        elif self._size > MAX_DISCARDED:
            self.stream.close()

    def _hold(self, data: bytes) -> None:
        """Keep a piece of the body; from where it need not be held any more, let it stream."""
        self._held += data
        limit = self.exchange.policy.limits.held_body
        is_too_long = self._size > limit
        if self.exchange.lets_stream is not None:
            try:
                stream = self.exchange.lets_stream(bytes(self._held[:MOST_LOOKED_AT]), is_too_long)
            except Denied as denied:
                self._held.clear()
                self._fail(denied)
                return
            if stream is not None:
                self._stream_from_here(stream)
                return
        if is_too_long:
            self._held.clear()
            self.exchange.deny_always(self.flow, bodies.too_large(limit))
            self._answer()

    def _stream_from_here(self, stream: Callable[[bytes], bytes]) -> None:
        held, self._held = bytes(self._held), bytearray()
        self._held_since = 0.0
        self.flow.request.stream = stream
        self.state = _STREAM[self.state]
        self._pass_on(held, self._acquire)

    def _pass_on(self, data: bytes, then: Callable[[], object] | None = None) -> None:
        """Send a piece of the body, and go on with `then`, unless what the body streams through denies it."""
        stream = self.flow.request.stream
        if callable(stream):
            if _takes_long(stream, data):
                self._lane(from_app=True).do(partial(stream, data), partial(self._passed, then))
            else:
                self._passed(then, partial(stream, data))
        else:
            self._send_piece(data)
            if then is not None:
                then()

    def _passed(self, then: Callable[[], object] | None, result: Result[bytes | Iterable[bytes]]) -> None:
        try:
            piece = result()
        except Denied as denied:
            if self.state not in _ANSWERED:
                self._leave_upstream()  # in the middle: it has no end, and so it never looks complete
                self._fail(denied)
            return
        if self.state in _ANSWERED:  # meanwhile
            return
        self._send_piece(piece if isinstance(piece, bytes) else b"".join(piece))
        if then is not None:
            then()

    def _send_piece(self, data: bytes) -> None:
        if not data:
            return
        if self.upstream is None and self._receiving is not None and self._receiving.is_busy:
            return  # the response is whole
        if self._kept is not None:
            self._kept += data
            if len(self._kept) > KEPT_AT_MOST:
                self._kept = None
        if self.upstream is not None:
            self.upstream.send_body(data)
        else:
            self._waiting.append(data)
            self.stream.hold("dialling", True)

    def request_end(self, trailers: Fields = ()) -> None:
        """Handle the end of the request. Trailers go on only with a body that was streamed."""
        if self._sending is not None and self._sending.is_busy:
            self._sending.behind(partial(self.request_end, trailers))
            return
        flow = self.flow
        before, self.state = self.state, _END[self.state]
        if self.state is _OVER:
            if before is _DISCARDING:
                self.stream.next()
            return
        if self._held_since:
            self.exchange.waited = time.monotonic() - self._held_since
        if self.state is _HELD:
            body = flow.request.data.content = bytes(self._held)
            self._held.clear()
            if trailers:
                flow.request.data.trailers = headers_of(trailers)  # for what they say of the body
            if self.exchange.holds_request and takes_long(flow.request, body):
                do = partial(self.house.dispatch.call, "request", flow)
                self._lane(from_app=True).do(do, self._worked_on)
            else:
                self.house.dispatch.call("request", flow)
                self._protected()
        else:
            self.exchange.sent = time.monotonic()
            self._pass_on(b"", partial(self._streamed, trailers))

    def _worked_on(self, result: Result[None]) -> None:
        result()
        self._protected()

    def _protected(self) -> None:
        """Go on with a request that was held, once the hooks have seen its body."""
        if self.flow.error:
            self._cut_off()
        elif self.flow.response is not None:
            self._answer()
        else:
            self._acquire()

    def _streamed(self, trailers: Fields) -> None:
        """End a request that was passed on."""
        self.house.dispatch.call("request", self.flow)
        if self.flow.error:
            self._cut_off()
            return
        self._trailers = trailers
        if self.upstream is not None:
            self.upstream.end(trailers)
        self._count_time()

    # -- the upstream

    def _acquire(self, *, fresh: bool = False) -> None:
        request = self.flow.request.data
        exchange = self.exchange
        self._tries += 1
        if not exchange.ready:
            exchange.ready = time.monotonic()
        mirror = self.app.session.mirror  # to whose server other ways lead than to hosts of that name
        rule = exchange.rule and exchange.rule.name
        key = (request.host, request.port, request.scheme, rule, exchange.policy, mirror is not None)
        self._version = version = self.stream.version(self.flow.request)
        if version is not Version.HTTP1 and self._needs_own_connection():
            version = Version.HTTP1
        may_take = not fresh and not have_expired(exchange.rule)
        if may_take and exchange.policy.upstream_proxy is not None and mirror is None:
            proxy = exchange.policy.proxy_to(Destination(request.host, request.port))
            may_take = proxy is None or not have_expired(proxy.rule)
        if may_take and (upstream := self.house.pool.take(key, version)):
            self._was_reused = True
            self._connected(upstream)
            return
        self._was_reused = False
        record = exchange.upstream = Upstream(exchange.policy, exchange.rule, mirror=mirror)
        self._dialling = self.app.loop.create_task(self._dial(record, key, version, may_share=may_take))

    def _needs_own_connection(self) -> bool:
        """Whether the request must not share a connection: it may authenticate it, or the upstream wants HTTP/1.1."""
        return self._only_http1 or (self.head.is_http2 and authenticates_connection(self.flow.request, None))

    async def _dial(self, record: Upstream, key: object, version: Version, *, may_share: bool) -> None:
        request, session = self.flow.request.data, self.app.session
        server = new_server((request.host, request.port), tls=request.scheme == b"https")
        try:
            self.house.check_room(session)
            self._count(True)
            session.upstreams[server.id] = record
            upstream = await open_stream(
                self.house.services, server, key, record, self.app.context, version=version, may_share=may_share
            )
        except Denied as denied:
            record.denied = denied
            if self.state is not _OVER:
                self._take_step(self._unreachable, denied)
        except Exception as e:
            self.crashed(e)
        else:
            if self.state is _OVER:
                upstream.close()
            else:
                self._take_step(self._connected, upstream)
        finally:
            session.upstreams.pop(server.id, None)
            if self.upstream is None:
                self._count(False)

    def _count(self, has_one: bool) -> None:
        """Note whether this request has, or dials, an upstream connection for itself alone."""
        if has_one != self._counts:
            self._counts = has_one
            self.house.sessions.take(self.app.session, 1 if has_one else -1)

    def _take_step[T](self, step: Callable[[T], None], argument: T) -> None:
        """Run a step; if it raises, this conversation ends, and everything that belongs to it alone."""
        try:
            step(argument)
        except Exception as e:
            self.crashed(e)
        self.app.after_step()

    def _unreachable(self, denied: Denied) -> None:
        self._waiting.clear()
        self.exchange.deny_always(self.flow, denied)
        self._answer()

    def _unfit(self, upstream: UpstreamStream) -> Denied | None:
        """Return why a connection cannot carry the request; None if it can."""
        if self._version is Version.ONLY_HTTP2 and not upstream.is_http2:
            return Denied(
                Reason.UPSTREAM_FAILED,
                "a gRPC call needs HTTP/2, and the upstream's connection is one of HTTP/1.1",
            )
        if self._was_reused or not upstream.heard_early():  # the pool has checked the connections that it gives
            return None
        why = "the upstream spoke, or closed the connection, before it was asked anything"
        if isinstance(upstream, UpstreamConnection):
            if denied := upstream.end_of_tls():
                return denied
            why = ONLY_HTTP2 if upstream.speaks_only_http2 else why
        return Denied(Reason.UPSTREAM_FAILED, why)

    def _connected(self, upstream: UpstreamStream) -> None:
        if (denied := self._unfit(upstream)) is not None:
            self.flow.server_conn = upstream.server
            upstream.close()
            self._unreachable(denied)
            return
        self.upstream = upstream
        self.state = _ASK[self.state]
        self._count(not upstream.is_http2)
        if self.stream.is_congested:
            upstream.hold("app", True)
        self.exchange.upstream = upstream.record
        self.flow.server_conn = upstream.server
        request, is_streamed = self.flow.request, self.state is not _HELD
        body = b"".join(self._waiting) if is_streamed else request.data.content or b""
        if self._waiting:
            self._waiting.clear()
            self.stream.hold("dialling", False)
        self.exchange.has_left = True
        is_whole, trailers = self.state is not _STREAMING, self._trailers if is_streamed else ()
        upstream.ask(self, request, body, is_whole=is_whole, trailers=trailers, te=self.takes_trailers)
        self._count_time()

    @property
    def _awaits_app(self) -> bool:
        """Whether the app is to go on: to send more, or to read."""
        if self.stream.is_congested or self.state is _HOLDING:
            return True
        if self.state not in _PASSING_ON or self._awaits_continue:
            return False
        return self.upstream is not None and not self.upstream.is_congested

    @property
    def _is_taken(self) -> bool:
        """Whether the upstream has taken everything that was to be sent so far."""
        return self.upstream is None or not self.upstream.is_congested

    def _count_time(self) -> None:
        """Let the time limit for the response run while the upstream is to go on; each call starts it anew."""
        seconds = self.exchange.policy.response_seconds(self.exchange.rule)
        if self.upstream is None or seconds is None or self.state not in _WAITING or self._awaits_app:
            self.stream.clock.stop()
        else:
            self.stream.clock.start(self.upstream, seconds, self._upstream_late)

    def _upstream_late(self) -> None:
        seconds = self.exchange.policy.response_seconds(self.exchange.rule) or 0
        self._fail(late_response(seconds, is_taken=self._is_taken))

    # -- the response (as the upstream's `Receiver`)

    def response_head(self, head: ResponseHead) -> None:
        """Handle the head of the response."""
        flow = self.flow
        if head.status < 200 and head.status != 101:
            if self.head.is_http11:
                fields = without_framing(without_hop(head.fields))
                if self.exchange.view is not None:
                    fields = interim_fields(fields, self.exchange.view)
                self.stream.interim(response_of(head, fields))
            self._awaits_continue = self._awaits_continue and head.status != 100
            self._count_time()
            return
        self.stream.clock.stop()
        self._kept = None
        self.exchange.headed = time.monotonic()
        fields = without_hop(head.fields)
        if head.status in (101, 204):
            fields = without_framing(fields)
        has_body = self._has_body(head.status)
        if (head.body == UNTIL_CLOSE and has_body) or self.house.is_last_response(self.app.session):
            self.stream.last()
        if self._expects and self.state is _STREAMING and not self._size:
            self.stream.last()  # the app may or may not send its body now (RFC 9110, section 10.1.1)
        if head.body == CHUNKED and not self.head.is_http11:  # RFC 9112, section 6.1: not even without a body
            fields = tuple(field for field in fields if field[0].lower() != b"transfer-encoding")
        flow.response = response_of(head, fields)
        if head.status == 101 and (self.state is _STREAMING or not may_switch(flow.request, flow.response)):
            self._fail(Denied(Reason.UPSTREAM_FAILED, "the upstream switched to a protocol that was not asked for"))
            return
        self.house.dispatch.call("responseheaders", flow)
        if flow.error:
            self._cut_off()
        elif self.exchange.denied is not None and is_denied(self.exchange):
            self._fail(self.exchange.denied)
        elif head.status == 101:
            self._switch()
        elif flow.response.stream or not has_body:
            self.state = _BEGIN[self.state]
            if not flow.response.stream:
                flow.response.stream = True
            # For gRPC, fields in a head without a body are trailers; before an empty body they are not.
            self.stream.begin(flow.response, has_body=has_body and not head.is_all)
        else:
            self.state = _GATHER[self.state]
            self._gathered = bytearray()

    def _has_body(self, status: int) -> bool:
        return self.head.method != b"HEAD" and status not in (204, 304)

    def response_data(self, data: bytes) -> None:
        """Handle a piece of the body of the response."""
        if self._receiving is not None and self._receiving.is_busy:
            self._receiving.behind(partial(self.response_data, data))
            return
        state = _RESPONSE_DATA[self.state]
        if state is _OVER:
            return
        response = self.flow.response
        assert response is not None
        if state in _GATHERING:
            self._gathered += data
            if len(self._gathered) > self.exchange.policy.limits.held_body:
                self._overflow()
        elif callable(response.stream):
            self._send_on(data)
        else:
            self.exchange.bytes_received += len(data)
            self.stream.send(data)

    def _overflow(self) -> None:
        """Deny a response that is too long to be held, or let it go on as it comes."""
        exchange, response = self.exchange, self.flow.response
        assert response is not None
        why = bodies.too_large(exchange.policy.limits.held_body)
        if exchange.lets_pass is None or not exchange.lets_pass(why):
            self._fail(bodies.unchangeable(exchange.response_work, why.detail))
            return
        self.state = _BEGIN[self.state]
        exchange.holds_response = False
        response.stream = True
        gathered, self._gathered = bytes(self._gathered), b""
        self.stream.begin(response, has_body=True)
        exchange.bytes_received += len(gathered)
        self.stream.send(gathered)

    def _lane(self, *, from_app: bool) -> Lane:
        """Return one direction, for what takes long."""
        turns, owner = self.house.turns, self.app
        if from_app:
            self._sending = self._sending or Lane(turns, owner, self._take_step, partial(self.stream.hold, "work"))
            return self._sending
        self._receiving = self._receiving or Lane(turns, owner, self._take_step, self._hold_upstream)
        return self._receiving

    def _cancel_work(self) -> None:
        for lane in (self._sending, self._receiving):
            if lane is not None:
                lane.cancel()

    def _hold_upstream(self, is_held: bool) -> None:
        if self.upstream is not None:
            self.upstream.hold("work", is_held)

    def _send_on(self, data: bytes, then: Callable[[], object] | None = None) -> None:
        """Send a piece of a response that is changed while it streams, or its end, which is an empty piece, and go on
        with `then`, unless what changes the body denies it.
        """
        assert self.flow.response is not None
        stream = self.flow.response.stream
        assert callable(stream)
        if _takes_long(stream, data):
            self._lane(from_app=False).do(partial(stream, data), partial(self._sent_on, then))
        else:
            self._sent_on(then, partial(stream, data))

    def _sent_on(self, then: Callable[[], object] | None, result: Result[bytes | Iterable[bytes]]) -> None:
        try:
            piece = result()
        except Denied as denied:
            self._fail(denied)
            return
        if data := piece if isinstance(piece, bytes) else b"".join(piece):
            self.stream.send(data)
        if then is not None:
            then()

    def response_end(self, trailers: Fields = ()) -> None:
        """Handle the end of the response. Trailers go on only with a body that was streamed as it came."""
        self.exchange.whole = time.monotonic()
        if self.state in _ANSWERING:
            self.stream.flush()  # what streams need not wait for the pool and the decision line
        upstream = self._release_upstream()
        if upstream is not None:
            if authenticates_connection(self.flow.request, self.flow.response):
                upstream.part()
            else:
                upstream.give_back()
        if self._receiving is not None and self._receiving.is_busy:
            self._receiving.behind(partial(self._response_whole, trailers))
        else:
            self._response_whole(trailers)

    def _response_whole(self, trailers: Fields) -> None:
        if self.state is _OVER:
            return
        response = self.flow.response
        assert response is not None
        if self.state in _GATHERING:
            body = response.data.content = bytes(self._gathered)
            self._gathered = b""
            do = partial(self.house.dispatch.call, "response", self.flow)
            if self.exchange.holds_response and takes_long(response, body):
                self._lane(from_app=False).do(do, self._opened)
            else:
                self._opened(do)
        elif callable(response.stream):
            self._send_on(b"", partial(self._response_streamed, trailers))
        else:
            self._response_streamed(trailers)

    def _response_streamed(self, trailers: Fields) -> None:
        """End a response that was passed on."""
        self.stream.flush()  # nor need what the end of a changed body has added
        self.house.dispatch.call("response", self.flow)
        if self.flow.error:
            self._cut_off()
        else:
            self._end_response(() if self.exchange.changes_response else trailers)

    def _opened(self, result: Result[None]) -> None:
        """Send a response that was held, once the hooks have seen its body."""
        result()
        response = self.flow.response
        assert response is not None
        if self.flow.error:
            self._cut_off()
            return
        content, has_body = response.data.content or b"", self._has_body(response.data.status_code)
        self.stream.begin(response, has_body=has_body)
        if content and has_body:
            self.stream.send(content)
        self._end_response(())

    def _end_response(self, trailers: Fields) -> None:
        after = _COMPLETE[self.state]
        self.stream.end(trailers)
        self.state = after
        if after is _OVER:
            self.stream.next()
        elif self.stream.is_last:  # the app may be waiting for the end before it sends the rest
            self.state = _BREAK[self.state]
            self.stream.close()
        else:
            self._size = 0

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Handle that there is no complete response."""
        self._release_upstream()
        if self._receiving is not None and self._receiving.is_busy:
            self._receiving.behind(partial(self.response_failed, denied, began, is_untouched=is_untouched))
            return
        if self.state is _OVER:
            return
        is_streamed = self.state is not _HELD
        if began or self.state not in _WAITING:
            may_retry = False
        elif is_untouched:
            can_change = not self._only_http1 or self._version is not Version.ONLY_HTTP2
            may_retry = can_change and self._tries < MAX_TRIES and (not is_streamed or self._kept is not None)
        else:
            may_retry = self._was_reused and not is_streamed and self.head.method in _IDEMPOTENT
        if is_untouched and self._tries >= MAX_TRIES:
            denied = denied.again(f"{denied.detail}; so it was {self._tries} times")
        if may_retry:
            if is_streamed and self._kept:
                self._waiting.append(bytes(self._kept))
            self._acquire(fresh=not is_untouched)
            return
        self._fail(denied)

    def wants_http1(self) -> None:
        """Note that the upstream wants the request in HTTP/1.1."""
        self._only_http1 = True

    def _fail(self, denied: Denied) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        if (upstream := self._release_upstream()) is not None:
            upstream.close()
        self._gathered = b""
        if self.state in _ANSWERING:  # the app has the status
            is_upstreams = denied.reason is Reason.UPSTREAM_FAILED
            self.exchange.break_off(Denied(Reason.UPSTREAM_CUT, denied.detail) if is_upstreams else denied)
            self._cut_off()
            return
        self.exchange.deny_always(self.flow, denied)
        self._answer()

    # -- WebSocket

    def _switch(self) -> None:
        assert self.flow.response is not None
        self.state = _SWITCH[self.state]
        self.stream.begin(self.flow.response, has_body=False)
        self.house.dispatch.call("response", self.flow)
        speaker = Switched(self)
        if (plan := self.exchange.plan) is not None:
            self.flow.websocket = WebSocketData()
            limit, observes = self.exchange.policy.limits.held_body, self.exchange.observing
            speaker = self._relay = Relay(self, plan, limit, observes=observes)
        if early := self.stream.switch(speaker):
            speaker.feed(early)

    def switched(self, data: bytes) -> None:
        """Pass WebSocket bytes from the upstream on."""
        self.exchange.count_received(data)
        if self._relay is not None:
            self._relay.feed_from_upstream(data)
        else:
            self.stream.send(data)

    def switched_to_app(self, data: bytes) -> None:
        """Pass WebSocket bytes on that were read."""
        self.stream.send(data)

    def switched_from_app(self, data: bytes) -> None:
        """Pass WebSocket bytes from the app on."""
        if self.upstream is not None:
            self.upstream.send(self.exchange.count_sent(data))

    def message(self, payload: bytes, *, is_text: bool, from_app: bool) -> bytes:
        """Show a WebSocket message to the addons; see `Talk`. No message is kept."""
        data, exchange = self.flow.websocket, self.exchange
        assert data is not None
        message = WebSocketMessage(TEXT if is_text else BINARY, from_app, payload)
        data.messages = [message]  # hooks look there before they pause: the other side may have a message meanwhile
        self.house.dispatch.call("websocket_message", self.flow)
        data.messages = []
        if exchange.denied is not None and is_denied(exchange):
            raise exchange.denied
        return message.content

    def long_message(
        self,
        payload: bytes,
        write: Callable[[bytes, Pause], bytes],
        then: Callable[[Result[bytes]], object],
        *,
        is_text: bool,
        from_app: bool,
    ) -> None:
        """Do the same piece by piece; see `Talk`."""

        def do() -> bytes:
            return write(self.message(payload, is_text=is_text, from_app=from_app), self.house.turns.pause)

        self._lane(from_app=from_app).do(do, then)

    def hold_side(self, from_app: bool, is_held: bool) -> None:
        """Read no more from one side of a WebSocket, or go on."""
        if from_app:
            self.stream.hold("messages", is_held)
        elif self.upstream is not None:
            self.upstream.hold("messages", is_held)

    def is_side_congested(self, of_app: bool) -> bool:
        """Tell whether a side of a WebSocket takes no more for now."""
        return self.stream.is_congested if of_app else not self._is_taken

    def later(self, step: Callable[[bool], None], argument: bool) -> None:
        """Run a step in the next turn."""
        self.app.loop.call_soon(self._take_step, step, argument)

    def note_switched(self, denied: Denied) -> None:
        """Note why enforcing would have ended the WebSocket."""
        self.exchange.note_reason(denied)

    def break_switched(self, denied: Denied, to_app: bytes, to_upstream: bytes) -> None:
        """End the WebSocket for a reason, with a last word to each side."""
        self.exchange.break_off(denied)
        if to_app:
            self.stream.send(to_app)
        if to_upstream:
            self.switched_from_app(to_upstream)
        self._finish_upstream()
        self._finish_with_error("the WebSocket was ended")

    # -- back-pressure

    def upstream_congested(self, congested: bool) -> None:
        """Called when the upstream takes no more for now, and when it does again."""
        self._holds_app = congested
        self.stream.hold("upstream", congested)
        if self._relay is not None:
            self._relay.upstream_congested(congested)
        self._count_time()

    def app_congested(self, is_congested: bool) -> None:
        """Called when the app takes no more for now, and when it does again."""
        if self.upstream is not None:
            self.upstream.hold("app", is_congested)
            self._count_time()

    def switched_end(self) -> None:
        """Called when the upstream has ended the WebSocket in order, or the app has if nothing is read of it."""
        if self._relay is not None:
            self._relay.eof_from_upstream()
        else:
            self.end_switched()

    def end_switched(self) -> None:
        """End the WebSocket in order: one side has."""
        self._finish_upstream()
        self._finish("websocket_end")

    def _finish_upstream(self) -> None:
        """Close the upstream's side of a WebSocket once everything is sent."""
        if (upstream := self._release_upstream()) is not None:
            upstream.finish()

    def flush(self) -> None:
        """Send the app what was gathered."""
        self.app.after_upstream()

    def crashed(self, error: Exception) -> None:
        """Close everything that belongs to this request alone."""
        self._cancel_work()
        if (upstream := self._release_upstream()) is not None:
            upstream.close()
        self.stream.crash(error)

    # -- ends

    def _answer(self) -> None:
        """Send `flow.response`, which was made here."""
        after = _DENY[self.state]
        if after is _OVER and self._sending is not None:
            self._sending.cancel()
        self._size = 0
        self._waiting.clear()
        self.stream.hold("dialling", False)
        self.house.dispatch.call("response", self.flow)
        response = self.flow.response
        assert response is not None
        self.state = after
        may_send_on = self._expects and after is _DISCARDING
        if may_send_on:
            self.stream.last()  # the app may or may not send its body now (RFC 9110, section 10.1.1)
        if self.house.is_last_response(self.app.session):
            self.stream.last()
        body = b"" if self.head.method == b"HEAD" else response.data.content or b""
        self.stream.answer(response, body)
        if may_send_on:
            self.state = _BREAK[self.state]
            self.stream.close()
        elif after is _OVER:
            self.stream.next()

    def _cut_off(self) -> None:
        """End without the rest of a response: the app must not take what it has for everything."""
        self.stream.abort()  # first of all: the next steps would end it in order
        self._finish_with_error("cut off")

    @property
    def holds_body(self) -> bool:
        """Whether the request's body is held until it is complete."""
        return self.state is _HOLDING

    def broken(self) -> None:
        """Called when the app's body does not come as its head says."""
        self.give_up(Denied(Reason.BAD_REQUEST, "the body is not framed as its head says"))

    def overdue(self, seconds: float) -> Denied | None:
        """Return the denial to answer with after so long a silence; None if no answer is possible any more."""
        if self.state in _ANSWERING or self.state in _ANSWERED or self.stream.is_congested:
            return None
        if self._awaits_app:
            return Denied(Reason.IDLE_TIMEOUT, f"no byte passed for {seconds:.0f} s")
        return late_response(seconds, "limits.idle_seconds", is_taken=self._is_taken)

    def give_up(self, denied: Denied) -> None:
        """End it, and the connection: with a denial, unless another answer has begun."""
        self.stream.last()
        if self.state not in _ANSWERED:
            self._leave_upstream()
            self._fail(denied)
        self.stream.close()

    def gone(self) -> None:
        """Called when the app is gone."""
        self._finish_with_error("the app closed the connection")

    def _finish_with_error(self, message: str) -> None:
        if self.state not in _ANSWERED:
            self.flow.error = self.flow.error or mitmproxy_flow.Error(message)
        self._finish("error")

    def _finish(self, hook: str) -> None:
        before = self.state
        if before is _OVER:
            return
        self.state = _BREAK[before]
        self._cancel_work()
        self._leave_upstream()
        if before is not _DISCARDING:
            self.house.dispatch.call(hook, self.flow)
        self.stream.close()

    def _release_upstream(self) -> UpstreamStream | None:
        """Let go of the upstream; if it was congested, the app need not wait for it any more."""
        if self._receiving is not None:
            self._hold_upstream(False)
        upstream, self.upstream = self.upstream, None
        self._count(False)
        self.stream.clock.stop()
        if self._holds_app:
            self._holds_app = False
            self.stream.hold("upstream", False)
        return upstream

    def _leave_upstream(self) -> None:
        if (upstream := self._release_upstream()) is not None:
            upstream.close()
        if self._dialling is not None and not self._dialling.done():
            self._dialling.cancel()


def _takes_long(stream: object, data: bytes) -> bool:
    """Tell whether it may take long to take a piece of a body; most of what takes one says nothing about it."""
    tells = getattr(stream, "takes_long", None)
    return tells is not None and tells(data) is True
