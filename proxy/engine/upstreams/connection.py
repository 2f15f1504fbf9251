"""One connection to an upstream: TLS with its verification, then requests of HTTP/1, one after the other. `handshake`
makes it, `opening` and the pool give it to conversations. It always has one state; the table in `state` says what may
happen in each, and anything else raises, and ends the connection.

It is longer than 500 lines, because opening, requests, responses and ends are steps between the states of one table.

Rules of this module:

- No byte of the application is written before the handshake, including the check of the pins, is complete.
- A response is read strictly; bytes that are not plain HTTP/1 end the connection.
- A connection is reused only after a response that was complete, had a length or chunks, and was followed by nothing.
- Bytes that come before a request is sent are no answer to it, whatever they look like, and end the connection.
- If very many small chunks come at once, only some are read; the rest waits for a later turn, and so does the end after
  them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import select
import socket
import struct
import termios
from collections.abc import Callable
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Server
from OpenSSL import SSL

from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.handshakes import alert_of, ended_after
from proxy.core.http.framing import BadFraming, Body, UntilCloseBody, body_of, chunk, last_chunk
from proxy.core.http.heads import (
    MAX_HEAD_BYTES,
    UNTIL_CLOSE,
    Fields,
    HeadEnd,
    ResponseHead,
    names_in,
    read_response_head,
)
from proxy.core.http.hops import keeps_alive, trailers_to_relay
from proxy.core.reasons import Reason
from proxy.engine.life import Life
from proxy.engine.messages import frame, request_head
from proxy.engine.streams import Receiver
from proxy.engine.timers import Timers
from proxy.engine.tlsstream import TlsStream, reasons
from proxy.engine.upstreams.pairs import Ending, ending_of, say_ending
from proxy.engine.upstreams.state import AFTER, CLOSED, Event, State
from proxy.log import describe

logger = logging.getLogger("overcoat")

ONLY_HTTP2 = "the upstream seems to speak only HTTP/2, and the app speaks HTTP/1.1"
MAX_INTERIM = 20  # interim responses (1xx) to one request
_TURN = "turn"
# The rows of the table that each request needs, looked up only once.
_ANSWER = AFTER[Event.ANSWER]
_ASK = AFTER[Event.ASK]
_ASK_WHOLE = AFTER[Event.ASK_WHOLE]
_CARRY = AFTER[Event.CARRY]
_CLOSE = AFTER[Event.CLOSE]
_COMPLETE = AFTER[Event.COMPLETE]
_COMPLETE_LAST = AFTER[Event.COMPLETE_LAST]
_DISREGARD = AFTER[Event.DISREGARD]
_END = AFTER[Event.END]
_LOSE = AFTER[Event.LOSE]
_REST = AFTER[Event.REST]
_SECURE = AFTER[Event.SECURE]
_SENT = AFTER[Event.SENT]
_START_TLS = AFTER[Event.START_TLS]
_SWITCH = AFTER[Event.SWITCH]
_TAKE = AFTER[Event.TAKE]
_CARRYING = State.CARRYING
_UNANSWERED = (State.SENDING, State.WAITING)


class Home(Protocol):
    """Where a connection goes between two requests: `proxy.engine.upstreams.pool`."""

    def give(self, upstream: UpstreamConnection) -> None:
        """Take a connection whose response was complete, or close it."""

    def forget(self, upstream: UpstreamConnection) -> None:
        """Called when a connection that it has is over."""


class UpstreamConnection(Life):
    """One connection to an upstream."""

    def __init__(self, server: Server, record: Upstream, connection: socket.socket, timers: Timers) -> None:
        super().__init__(timers)
        self.state = State.READY
        self.server = server
        self.record = record
        self._connection = connection
        self.key: object = None
        self.home: Home | None = None
        self.tls: TlsStream | None = None
        self.receiver: Receiver | None = None
        self.uses = 0
        self.opened = 0.0
        self.idle_since = 0.0
        self.is_congested = False
        self._ready: asyncio.Future[None] | None = None
        self._unread = b""  # the beginning of a head that is not complete
        self._head_end = HeadEnd(of_request=False)
        self._body: Body | None = None
        self._is_broken = False  # whether it ended, and not in order
        self._method = b""
        self._interim = 0
        self._is_chunked = False  # whether the request's body is in chunks
        self._keeps_alive = True  # whether the response's head lets it stay open
        self._poll: select.poll | None = None
        self.is_http2 = False
        self.speaks_only_http2 = False  # as far as it is known
        self._early = b""  # bytes that a peer of HTTP/2 sent before `carry`

    # -- opening

    def start_tls(self, conn: SSL.Connection, ready: asyncio.Future[None]) -> None:
        """Begin the handshake.

        Args:
            conn: OpenSSL's connection, prepared to verify the server.
            ready: ends when the handshake is complete, or with a ConnectionError.
        """
        self.state = _START_TLS[self.state]
        self._ready = ready
        self.tls = TlsStream(conn)
        self._advance_handshake(b"")

    def _advance_handshake(self, data: bytes | memoryview) -> bool:
        assert self.tls is not None
        try:
            done = self.tls.handshake(data)
        except Exception as e:  # errors of OpenSSL, and whatever the verification callback raised
            self.record.errors = reasons(e)
            if alert_of(self.record.errors) == "no_application_protocol":  # RFC 7301
                self.record.denied = Denied(Reason.TLS_FAILED, ONLY_HTTP2)
            if not isinstance(e, SSL.Error):
                logger.error("a handshake with an upstream failed inside: %s", describe(e))
            self._write(self.tls.outgoing())
            self._fail_handshake(e)
            return False
        self._write(self.tls.outgoing())
        if done:
            self.state = _SECURE[self.state]
            self.is_http2 = self.tls.conn.get_alpn_proto_negotiated() == b"h2"
        if done and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        return done

    def _fail_handshake(self, error: Exception) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConnectionError(type(error).__name__))

    # -- the socket

    def taken(self, view: memoryview) -> None:
        """Handle bytes from the socket; TLS records go to OpenSSL directly from the buffer."""
        self.guarded(self._received, view if self.tls is not None else bytes(view))

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Run a step; if it raises, this connection ends, and the one that it serves."""
        receiver = self.receiver
        try:
            step(*arguments)
        except Exception as e:
            self.close()
            if receiver is None:
                raise
            receiver.crashed(e)
            return
        if receiver is not None:
            receiver.flush()

    def _received(self, data: bytes | memoryview) -> None:
        if self.tls is not None:
            if not self.tls.is_established:
                if not self._advance_handshake(data):
                    return
                data = b""
            data = self.tls.receive(data)
            if answer := self.tls.outgoing():  # key updates
                self._write(answer)
        if data:
            assert isinstance(data, bytes)
            self._take(data)
        if self.tls is not None and self.tls.has_ended and not self.is_closed:
            if self.state is _CARRYING and self.receiver is not None:
                self.receiver.switched_end()
            else:
                self._ended()

    def eof_received(self) -> bool:
        """Called when nothing more will come."""
        is_broken = ending_of(self._connection) is Ending.BROKEN
        if self.state is _CARRYING and self.receiver is not None and not is_broken:
            self.guarded(self.receiver.switched_end)
            return not self.transport.is_closing()
        self.guarded(self._ended, is_broken)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the socket is closed."""
        self._fail_handshake(ConnectionResetError())  # if it still goes on, also after an EOF, which has closed us
        try:
            self.guarded(self._ended, exc is not None)
        finally:
            self.state = _LOSE[self.state]
            self._stop_timers()

    def pause_writing(self) -> None:
        """Tell the sender to wait."""
        self.is_congested = True
        if self.receiver is not None:
            self.guarded(self.receiver.upstream_congested, True)

    def resume_writing(self) -> None:
        """Tell the sender to go on."""
        self.is_congested = False
        if self.receiver is not None:
            self.guarded(self.receiver.upstream_congested, False)

    def _write(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    # -- requests

    def ask(
        self, receiver: Receiver, request: http.Request, body: bytes, *, is_whole: bool, trailers: Fields, te: bool
    ) -> None:
        """Send a request; see `UpstreamStream`."""
        del te  # in HTTP/1 trailers are passed on in any case; the upstream is told nothing
        self.state = (_ASK_WHOLE if is_whole else _ASK)[self.state]
        self.receiver = receiver
        self.uses += 1
        self._method = request.data.method
        self._interim = 0
        self._body = None
        self._unread = b""
        if request.is_http2:
            frame(request, len(body) if is_whole else None)
        self._is_chunked = b"transfer-encoding" in names_in(request.data.headers.fields)
        out = request_head(request)
        if body:
            out += chunk(body) if self._is_chunked else body
        if is_whole and self._is_chunked:
            out += last_chunk(trailers_to_relay(trailers))
        self.send(out)

    def send_body(self, data: bytes) -> None:
        """Send a piece of the request's body."""
        self.send(chunk(data) if self._is_chunked else data)

    def end(self, trailers: Fields) -> None:
        """End the request."""
        self.state = _SENT[self.state]
        if self._is_chunked:
            self.send(last_chunk(trailers_to_relay(trailers)))

    def give_back(self) -> None:
        """Return to the pool, for another request."""
        if self.home is None:
            self.close()
        else:
            self.home.give(self)

    def rest(self, now: float) -> None:
        """Wait in the pool from now on."""
        self.state = _REST[self.state]
        self.idle_since = now
        self.hold("app", False)

    def wake(self) -> None:
        """Leave the pool for a request."""
        self.state = _TAKE[self.state]

    def part(self) -> None:
        """Never serve another conversation."""
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        if self.tls is None:
            self._write(data)
            return
        try:
            self.tls.send(data)
        except SSL.Error:  # the peer has closed the session: the response, or its failure, tells it
            return
        self._write(self.tls.outgoing())

    def take_early(self) -> bytes:
        """Take the bytes that came before `carry`."""
        early, self._early = self._early, b""
        return early

    def carry(self, receiver: Receiver) -> None:
        """From now on carry bytes that are not HTTP/1, to this receiver."""
        self.state = _CARRY[self.state]
        self.receiver = receiver

    def half_close(self) -> None:
        """Send an EOF, and go on reading. Over TLS that is a close_notify: many peers end everything at an EOF
        of TCP.
        """
        if self.tls is None:
            self._end_writing()
        elif not self.transport.is_closing():
            self.tls.close()
            self._write(self.tls.outgoing())

    def unsent(self) -> int:
        """Return how many bytes have not reached the upstream yet, including those in the kernel (Linux)."""
        held = 0
        with contextlib.suppress(OSError, ValueError):  # not Linux, or the socket is closed
            (held,) = struct.unpack("i", fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4)))
        return held + self.transport.get_write_buffer_size()

    def finish(self) -> None:
        """Close after the buffer is sent, within a time limit: the upstream may never take it."""
        say_ending(self._connection, Ending.GONE)
        self.receiver = None
        self.state = _CLOSE[self.state]
        self.transport.close()
        if self.state is not State.LOST:
            self._limit_flush(self.transport.abort)

    def reset(self) -> None:
        """Break off with a reset, so that the upstream cannot take what it has for everything."""
        self._end_with_reset()
        say_ending(self._connection, Ending.BROKEN)
        self.close()

    def close(self) -> None:
        """Close; the receiver is told nothing more."""
        self.receiver = None
        self.state = _CLOSE[self.state]
        self._drop()

    def _drop(self) -> None:
        say_ending(self._connection, Ending.GONE)
        self.transport.abort()

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.state in CLOSED

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection may take a request: nothing has come that no request has asked for."""
        return not self.transport.is_closing() and not self._has_input()

    def heard_early(self) -> bool:
        """Tell whether the peer of a new connection has sent bytes, or closed, before any request; then it is closed.

        The bytes in the socket are read first: with TLS they may be only a session ticket.
        """
        if not self.is_closed and self._has_input():
            with contextlib.suppress(OSError):  # there is only a part of a record, or the end, which is handled later
                if data := self._connection.recv(MAX_HEAD_BYTES):
                    self._received(data)
        return self.is_closed

    def _has_input(self) -> bool:
        """Tell whether anything has come, even a part of a record, or bytes not yet read from the socket."""
        if self.tls is not None and not self.tls.is_between_records:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    # -- receiving responses

    def _take(self, data: bytes) -> None:
        if self.receiver is None:
            if self.is_http2 and self.state is State.READY:
                self._early += data
            else:
                self.speaks_only_http2 = _begins_http2(data)
                self._end_idle()  # an idle upstream that speaks must not be reused
            return
        if self.state is _CARRYING:
            self.receiver.switched(data)
            return
        if self.state in _UNANSWERED:
            if _begins_http2(data):
                self._fail(Denied(Reason.UPSTREAM_FAILED, ONLY_HTTP2))
                return
            self.state = _ANSWER[self.state]
        rest: bytes | None = data
        try:
            while rest is not None and self.receiver is not None:
                rest = self._read_head(rest) if self._body is None else self._read_body(self._body, rest)
        except Denied as denied:
            self._fail(denied)
        except BadFraming:
            self._fail(Denied(Reason.UPSTREAM_FAILED, "the upstream's body is not framed as its head says"))

    def _read_head(self, data: bytes) -> bytes | None:
        """Read a head; return the bytes after it, or None if it is not complete."""
        assert self.receiver is not None
        data = self._unread + data
        end = self._head_end.find(data)
        if end is None:
            self._unread = data
            return None
        self._unread = b""
        head, rest = read_response_head(data[:end]), data[end:]
        if head.status < 200:
            if head.status == 101:
                self.state = _SWITCH[self.state]
                self.receiver.response_head(head)
                if rest and self.receiver is not None:
                    self.receiver.switched(rest)
                return None
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise Denied(Reason.UPSTREAM_FAILED, "the upstream sends interim responses (1xx) without an end")
            self.receiver.response_head(head)
            return rest
        if head.status == 408 and not self._is_answer(head):
            self.state = _DISREGARD[self.state]
            raise Denied(
                Reason.UPSTREAM_FAILED,
                "the upstream ended the connection (408) for having been idle, as the request came",
            )
        has_body = self._method != b"HEAD" and head.status not in (204, 304)
        size = head.body if has_body else 0
        self._keeps_alive = size != UNTIL_CLOSE and keeps_alive(head.is_http11, head.fields)
        self.receiver.response_head(head)
        if 0 <= size <= len(rest):  # all of the body is here, as nearly always
            if size and self.receiver is not None:
                self.receiver.response_data(rest[:size])
            if self.receiver is not None:
                self._complete(rest[size:])
            return None
        self._body = body_of(size)
        return rest

    def _is_answer(self, timeout: ResponseHead) -> bool:
        """Tell whether a 408 answers the request, and not the silence before it (RFC 9110, section 15.5.9).

        A request that was sent completely, on a connection that had been idle, was not late.
        """
        is_first = self.uses == 1 or self._interim > 0
        return is_first or self.state is State.EARLY or keeps_alive(timeout.is_http11, timeout.fields)

    def _read_body(self, body: Body, data: bytes) -> bytes | None:
        assert self.receiver is not None
        piece, rest = body.feed(data)
        if piece:
            self.receiver.response_data(piece)
        if rest is not None and self.receiver is not None:
            self._complete(rest, trailers_to_relay(body.trailers))
        elif body.has_more and _TURN not in self._holds:
            self.hold(_TURN, True)
            asyncio.get_running_loop().call_soon(self.guarded, self._take_turn, body)
        return None

    def _take_turn(self, body: Body) -> None:
        self.hold(_TURN, False)
        if self._body is not body or self.receiver is None:
            return  # nobody needs the rest any more
        self._take(b"")
        if self.end_waits and _TURN not in self._holds:
            self._ended(self._is_broken)

    def _complete(self, rest: bytes, trailers: Fields = ()) -> None:
        receiver, self.receiver = self.receiver, None
        assert receiver is not None
        self._body = None
        keeps_alive = self._keeps_alive and not rest
        self.state = (_COMPLETE if keeps_alive else _COMPLETE_LAST)[self.state]
        receiver.response_end(trailers)

    @property
    def can_reuse(self) -> bool:
        """Whether another request may be sent, after a response."""
        return self.state is State.DONE and not self.is_congested and not self.transport.is_closing()

    def _ended(self, is_broken: bool = False) -> None:
        if self.receiver is None:
            self._end_idle()
            return
        if _TURN in self._holds:
            self.state = _END[self.state]
            self._is_broken = self._is_broken or is_broken
            return
        # Over TLS, a body that ends with its connection is complete only after a close_notify (RFC 9112, section 9.8).
        is_all = self.tls.was_closed if self.tls is not None else ending_of(self._connection) is Ending.IN_ORDER
        if isinstance(self._body, UntilCloseBody) and is_all and not is_broken:
            self._complete(b"")
            return
        has_begun = self._body is not None or self._unread or self._interim
        how = "before its response was whole" if has_begun else "without an answer"
        self._fail(self.end_of_tls() or Denied(Reason.UPSTREAM_FAILED, f"the upstream closed the connection {how}"))

    def end_of_tls(self) -> Denied | None:
        """Return the denial if TLS was the reason why the upstream ended the connection; None if nothing tells."""
        if self.tls is None or self.server.address is None:
            return None
        has_answered = self.uses > 1 or self._body is not None or self._unread or self._interim
        if not self.tls.errors and (has_answered or self.state is _CARRYING):
            return None
        self.record.errors = self.tls.errors
        return ended_after(self.record.handshake(Destination(*self.server.address[:2])))

    @property
    def end_waits(self) -> bool:
        """Whether it has ended while earlier bytes wait for a later turn."""
        return self.state in (State.ENDED, State.LOST) and self.receiver is not None

    def _end_idle(self) -> None:
        was_idle, self.state = self.state is State.IDLE, _CLOSE[self.state]
        if was_idle and self.home is not None:
            self.home.forget(self)
        self._drop()

    def _fail(self, denied: Denied) -> None:
        receiver, self.receiver = self.receiver, None
        began = self.state not in _UNANSWERED
        self.state = _CLOSE[self.state]
        self._drop()
        if receiver is not None:
            receiver.response_failed(denied, began)


def _begins_http2(data: bytes) -> bool:
    """Tell whether bytes begin like the first frame of an HTTP/2 server: its settings (RFC 9113, section 3.4)."""
    return data[3:9] == b"\x04\x00\x00\x00\x00\x00"
