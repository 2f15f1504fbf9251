"""The speaker for HTTP/2: makes a conversation of each stream that an app opens (`http2stream`), which is answered on
that stream. The speaker for HTTP/1 gives the connection over to it, after ALPN or when it reads HTTP/2's preface.

Rules of this module:

- A stream is decided by the policy in force when it begins, however old its connection is.
- A stream that cannot become a request is answered, and ends no other stream.
- A connection that is to end says so twice: first that no new stream should be begun, then which streams are served.
- WebSocket over HTTP/2 (RFC 8441) and CONNECT in a stream are not offered, and are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import h2.events
from h2.errors import ErrorCodes

from addons.exchange import Exchange
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.http.heads import KEPT, Fields, RequestHead
from proxy.core.http.heads2 import read_http2_request
from proxy.core.reasons import Reason
from proxy.engine.apps.conversation import Conversation
from proxy.engine.apps.http2stream import AppHttp2Stream, StreamOwner
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import Speaker
from proxy.engine.clock import ResponseClock
from proxy.engine.http2 import TOO_MANY_RESETS
from proxy.engine.http2state import KEPT_LIST, MAX_STREAMS, size_of
from proxy.engine.messages import ListenerTarget, aimed

logger = logging.getLogger("overcoat")

KEPT_HEADS = 64  # small heads of requests that are cached
STILL_TAKEN = 256 * 1024  # bytes that are still taken from an app that breaks the rules, so that it can read why
_PER_FIELD = 32  # RFC 9113, section 6.5.2
# Of the same requests on several connections the heads are one object, so what is cached by a head is found at once.
_kept_request = lru_cache(KEPT)(read_http2_request)


class AppHttp2(StreamOwner, Speaker):
    """Reads requests from an app that speaks HTTP/2."""

    answers = True

    def __init__(self, app: AppSocket, tunnel: Exchange | None, listener_target: ListenerTarget | None = None) -> None:
        """Start.

        Args:
            app: the app's socket.
            tunnel: the CONNECT inside which it is spoken, if any.
            listener_target: says where requests go that name no destination themselves, by the listener.
        """
        limits = app.session.policy.limits
        size = 2 * limits.header_bytes + _PER_FIELD * limits.header_count  # larger: a head that is too long is answered
        super().__init__(app.loop, is_client=False, header_bytes=size)
        self.app = app
        self.inside = tunnel.asked if tunnel is not None else None
        self.listener_target = listener_target
        self.is_leaving = False
        self._limits = limits  # those within which these heads are
        self._heads: dict[tuple[Fields, bool], RequestHead] = {}
        self._clocks: list[ResponseClock] = []
        # Streams that are over, since their answers have no bodies, before the upstreams have ended these.
        self._answered: set[AppHttp2Stream] = set()
        self._late: Denied | None = None
        self._last = 2**31 - 1  # the highest stream that is served
        self._app_has_left = False
        self._has_ended = False
        app.before_close = self.flush_now
        self.wants_flush()
        self.owe(True)
        if app.is_congested:
            self.socket_congested(True)

    # -- as the `Speaker`

    def feed(self, data: bytes) -> None:
        """Handle received bytes."""
        self.received(data)

    def eof(self) -> None:
        """Called when the app will send no more. A complete request still gets its response."""
        self._has_ended = True
        if self.is_behind or self.is_over:
            return
        for stream in list(self.streams.values()):
            if not stream.peer_has_ended:
                stream.gone()
        if self._is_idle:
            self.app.close()
        else:
            self.app.expect_departure()

    def caught_up(self) -> None:
        """Called when everything that has come is read."""
        if self._has_ended and not self.app.is_closing:
            self.eof()

    def gone(self) -> None:
        """Called when the app's connection is over."""
        self.app.before_close = None
        for stream in [*self.end(), *self._answered]:
            stream.gone()
        for clock in self._clocks:
            clock.close()
        self._clocks.clear()

    def congested(self, is_congested: bool) -> None:
        """Called when the app reads too slowly, and when it has caught up: meanwhile, nothing is read that would cause
        more answers.
        """
        self.app.hold("congested", is_congested)
        self.socket_congested(is_congested)

    def too_slow(self) -> None:
        """Called when a frame, or a header block, did not end in time."""
        seconds = self.app.session.policy.limits.request_seconds
        what = "begin to speak HTTP/2" if self._to_begin else "end a header block or frame"
        self._late = Denied(Reason.REQUEST_TIMEOUT, f"the app did not {what} within {seconds} s")
        self.fail(ErrorCodes.ENHANCE_YOUR_CALM, "too slow")

    def end_silence(self, seconds: float) -> bool:
        """Answer requests that wait for a silent upstream; return whether there were any.

        Args:
            seconds: how long nothing has moved.
        """
        found = False
        for stream in list(self.streams.values()):
            denied = stream.conversation.overdue(seconds) if stream.conversation is not None else None
            if denied is not None and stream.conversation is not None:
                found = True
                stream.conversation.give_up(denied)
        return found

    def give_up(self, denied: Denied) -> bool:
        """End everything under way, and the connection."""
        for stream in list(self.streams.values()):
            if stream.conversation is not None:
                stream.conversation.give_up(denied)
        self._leave_now()
        return True

    def drain(self, is_fresh: bool) -> bool:
        """Tell the app to begin no new stream, and close as soon as none is under way."""
        if self.is_leaving or self.is_over:
            return True
        if self._is_idle and not is_fresh:
            self._leave_now()
            return True
        self.is_leaving = True
        self.say_goaway(self._last, ErrorCodes.NO_ERROR)
        self.app.later("leave", timelimits.LEAVE_SECONDS, self._leave)
        return True

    @property
    def _is_idle(self) -> bool:
        return not self.streams

    def _leave(self) -> None:
        """Serve no further streams but those that are under way now."""
        self._last = self.state.highest_inbound_stream_id
        if self._is_idle:
            self._leave_now()
        elif not self.is_over:
            self.say_goaway(self._last, ErrorCodes.NO_ERROR)

    def _leave_now(self) -> None:
        if not self.is_over:
            self._last = self.state.highest_inbound_stream_id
            self.say_goaway(self._last, ErrorCodes.NO_ERROR)
        self.app.close()

    # -- as the `Connection`

    def event(self, event: h2.events.Event, stream: AppHttp2Stream | None) -> None:
        """Handle what a frame means."""
        if isinstance(event, h2.events.DataReceived):
            if stream is None:
                self.ignore_data(event)
            else:
                stream.data(self.take_data(stream, event))
                self.told(stream)
        elif stream is not None:
            if isinstance(event, h2.events.StreamEnded):
                self.ended(stream)
            elif isinstance(event, h2.events.TrailersReceived):
                stream.behind(event.headers or [])
            elif isinstance(event, h2.events.StreamReset):
                stream.gone()

    def ended(self, stream: AppHttp2Stream) -> None:
        """Handle the end of a request."""
        stream.ended()

    def request(self, number: int, fields: Fields, *, is_whole: bool) -> None:
        """Handle the head of a request."""
        stream = AppHttp2Stream(self, number)
        self.streams[number] = stream
        if number > self._last or len(self.streams) + len(self._answered) > MAX_STREAMS:
            if not self._resets.take():
                self.fail(ErrorCodes.ENHANCE_YOUR_CALM, TOO_MANY_RESETS)
            else:
                self.reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        if self._is_disowned:
            self.reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        self.app.session.policy = self.app.house.policy  # the policy in force when the stream begins
        try:
            head = self._read_head(fields, is_whole)
            head, request, front = aimed(head, self.inside, self.listener_target, is_tls=self.app.tls is not None)
        except Denied as denied:
            stream.deny(denied, fields)
            return
        stream.expected = head.body if head.body >= 0 else None
        stream.conversation = conversation = Conversation(stream, request, head, front)
        conversation.start(has_body=not is_whole)
        if not is_whole:
            stream.watch_held()

    @property
    def _is_disowned(self) -> bool:
        """Whether the users of the proxy have changed since this connection was let in by name and password."""
        connect, policy = self.app.session.connect, self.app.house.policy
        if connect is None or connect.policy is policy:
            return False
        return connect.policy.clients.users != policy.clients.users

    def _read_head(self, block: Fields, is_whole: bool) -> RequestHead:
        """Read the head of a request; a small one that has come before is not read again, nor are its limits checked.

        Raises:
            Denied: it is malformed, or longer than a head of HTTP/1 may be.
        """
        limits = self.app.session.policy.limits
        if limits is not self._limits:
            self._limits = limits
            self._heads.clear()
        head = self._heads.get((block, is_whole))
        if head is None:
            is_small = size_of(block) <= KEPT_LIST
            head = (_kept_request if is_small else read_http2_request)(block, is_whole=is_whole)
            self.check_limits(head.fields, len(head.method) + len(head.target), "header")
            if is_small:
                if len(self._heads) >= KEPT_HEADS:
                    self._heads.clear()
                self._heads[block, is_whole] = head
        return head

    def clock(self) -> ResponseClock:
        """Return a clock for a stream; it may be one that another stream has used."""
        return self._clocks.pop() if self._clocks else ResponseClock(self.app.house.timers, self.app.guarded)

    def take_clock(self, clock: ResponseClock) -> None:
        """Take a clock back."""
        clock.stop()
        if self.is_over or len(self._clocks) >= MAX_STREAMS:
            clock.close()
        else:
            self._clocks.append(clock)

    def check_limits(self, fields: Fields, before: int, what: str) -> None:
        """Check that fields are no more, and no longer, than those of a head of HTTP/1 may be."""
        limits = self.app.session.policy.limits
        if len(fields) > limits.header_count:
            raise Denied(Reason.HEADERS_TOO_LARGE, f"there are more than {limits.header_count} {what} fields")
        if before + sum([len(name) + len(value) + 4 for name, value in fields]) > limits.header_bytes:
            raise Denied(Reason.HEADERS_TOO_LARGE, f"the {what} fields are longer than {limits.header_bytes} bytes")

    def goaway(self, last: int, code: int) -> None:
        """Called when the app says that it will begin no new stream: those that it has begun are served."""
        self._app_has_left = True
        if self._is_idle:
            self._leave_now()

    def broken(self, streams: list[AppHttp2Stream], why: str) -> None:
        """Close the connection, and write why: in the decision lines of the requests under way, or in one of
        its own.
        """
        denied = self._late or Denied(Reason.BAD_REQUEST, f"Overcoat ended the app's connection of HTTP/2: {why}")
        asking = [stream for stream in streams if stream.is_asking]
        for stream in asking:
            stream.break_off(denied)
        if not asking:
            self.app.write_denied(self.app.denied(denied), None)
        for stream in streams:
            stream.gone()
        self.app.close(still_taken=STILL_TAKEN)

    def closed(self, stream: AppHttp2Stream) -> None:
        """Close the connection if this was the last stream, and the connection is to end."""
        stream.over()
        if stream.conversation is not None:
            self._answered.add(stream)
        if self._is_idle and (self._app_has_left or self._has_ended or (self.is_leaving and self._last < 2**31 - 1)):
            self.app.loop.call_soon(self.app.guarded, self._leave_if_idle)

    def _leave_if_idle(self) -> None:
        if self._is_idle and not self.app.is_closing:
            self._leave_now()

    def forget(self, stream: AppHttp2Stream) -> None:
        """Forget a stream whose conversation is over."""
        self._answered.discard(stream)

    def owe(self, is_owed: bool) -> None:
        """Called when the app has begun something that it must finish in time, and when it has."""
        self.app.expect(is_owed)

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Run a step in a turn of its own, and handle what it raises."""
        self.app.guarded(step, *arguments)

    def pause(self, is_paused: bool) -> None:
        """Stop reading for now, or go on."""
        self.app.hold("turn", is_paused)

    def write(self, data: bytes) -> None:
        """Write bytes to the socket."""
        self.app.write(data)
