"""The app's socket: gives what it says to the one who speaks with it, and writes what is to be sent.

`server` makes one for each connection that it accepts. Everything is synchronous: bytes come, the speaker (HTTP/1, a
tunnel's first bytes, a relay; see `speaker`) takes them, and what is to be sent is gathered and written once, by
`flush`. Only dialling an upstream is a task.

Rules of this module:

- Whatever raises closes the connection and everything opened for it.
- Back-pressure both ways: nothing is read that cannot be passed on.
- An app that is answered before it has sent everything still gets to read its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import Client, ConnectionState
from mitmproxy.proxy.context import Context
from OpenSSL import SSL

from addons.exchange import Exchange
from addons.sessions import Session
from proxy import timelimits
from proxy.core.decisions import Denied, Reason
from proxy.core.rules.policy import Listener
from proxy.engine.apps.house import House
from proxy.engine.apps.speaker import GONE, Speaker
from proxy.engine.apps.states import AFTER_SOCKET, SocketEvent, SocketState
from proxy.engine.clock import ResponseClock
from proxy.engine.dispatch import HookFailed
from proxy.engine.flows import new_client
from proxy.engine.sockets import RESET, Reading
from proxy.engine.tlsstream import TlsStream
from proxy.log import describe

if TYPE_CHECKING:
    from mitmproxy.options import Options

logger = logging.getLogger("overcoat")

_OVER = frozenset((SocketState.LOST, SocketState.RESET))
_CLOSING = _OVER | {SocketState.CLOSING, SocketState.ABORTED}
_PEER_HAS_ENDED = frozenset((7, 8, 9, 11))  # Linux's TCP_INFO: CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING


class AppSocket(Reading):
    """One connection from an app."""

    transport: asyncio.Transport
    client: Client
    session: Session
    context: Context
    speaker: Speaker

    def __init__(self, house: House, listener: Listener, meet: Callable[[AppSocket], None]) -> None:
        """Start.

        Args:
            house: what all connections share.
            listener: where it was accepted.
            meet: puts the first speaker in its place, or refuses the app.
        """
        self.state = SocketState.OPEN
        self.is_closing = False  # as `state` says: our last word is said, and what still comes is thrown away
        self.house = house
        self.listener = listener
        self.loop = house.loop
        self._meet = meet
        self.tls: TlsStream | None = None
        self._still_taken = math.inf
        self.is_congested = False  # the app reads more slowly than it is sent to
        self.before_close: Callable[[], None] | None = None  # writes what the speaker has gathered
        self._plain: list[bytes] = []  # to be encrypted
        self._out: list[bytes] = []
        self._holds: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._idle_limit: float = house.policy.limits.idle_seconds
        self._may_be_gone = False
        self.clock = ResponseClock(self.loop, self.guarded)
        self._last_activity = self._opened = self.loop.time()

    # -- life

    def _go_on(self, event: SocketEvent) -> None:
        self.state = AFTER_SOCKET[event][self.state]
        self.is_closing = self.state in _CLOSING

    @property
    def has_ended(self) -> bool:
        """Whether the app has ended its side, and we have not ended ours."""
        return self.state is SocketState.ENDED

    @property
    def was_reset(self) -> bool:
        """Whether it is over, and ended in no order."""
        return self.state is SocketState.RESET

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        self.transport = cast(asyncio.Transport, transport)
        names = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client = new_client(*names, time.time())
        self.session = self.house.sessions.open(self.client, self.house.policy, self.listener.kind)
        # What carries a client to the hooks has options as well, which no hook here reads.
        self.context = Context(self.client, cast("Options", None))
        self.house.began(self)
        self.guarded(self._start)

    def _start(self) -> None:
        self.speaker = GONE
        self._watch_idle()
        self.house.dispatch.call("client_connected", self.client)
        self._meet(self)

    def refused(self, denied: Denied, status: int | None = None) -> None:
        """Write a line of what was no request, or came too early or too late to be one, and close.

        Args:
            denied: why.
            status: the status that the app was told, if it was told one.
        """
        self.note_refused(denied, status)
        self.close()

    def note_refused(self, denied: Denied, status: int | None) -> None:
        """Write a line, as `refused` does, of what does not end the connection."""
        exchange = Exchange(self.session.policy, self.session.client)
        exchange.stop(denied)
        self.house.note_refused(exchange, status)

    def _watch_idle(self) -> None:
        idle = self.loop.time() - self._last_activity
        if idle >= self._idle_limit:
            has_left = self._may_be_gone and self.speaker.answers
            if not has_left and self.speaker.end_silence(self._idle_limit):
                self.touch()
                idle = 0.0
            else:
                if not has_left:  # else nothing was too slow for it
                    self.session.note_idle(self._idle_limit)
                self.abort()
        if not self.is_closing:
            self._timers["idle"] = self.loop.call_later(self._idle_limit - idle, self.guarded, self._watch_idle)

    def expect(self, is_expected: bool) -> None:
        """Say whether the app owes something that must come within `limits.request_seconds` from now."""
        if not is_expected:
            if (timer := self._timers.pop("request", None)) is not None:
                timer.cancel()
        elif "request" not in self._timers and self.state not in _OVER:
            self._timers["request"] = self.loop.call_later(
                self.session.policy.limits.request_seconds, self.guarded, self._too_slow
            )

    def _too_slow(self) -> None:
        self._timers.pop("request", None)
        if self.is_closing:
            return
        if self.tls is not None and not self.tls.is_established:
            self.session.note_tls_failed()
            self.close()
        else:
            self.speaker.too_slow()

    def later(self, name: str, seconds: float, step: Callable[[], None]) -> None:
        """Take a step later, unless the connection is over by then."""
        if self.state not in _OVER:
            self._timers[name] = self.loop.call_later(seconds, self.guarded, step)

    def expect_departure(self) -> None:
        """The app ended its side, and may be gone: no TCP tells that apart. What it waits for has a shorter time."""
        if self.state not in _OVER and not self._may_be_gone:
            self._may_be_gone = True
            self._idle_limit = min(self._idle_limit, timelimits.HALF_CLOSED_SECONDS)
            self.touch()
            self._timers["idle"].cancel()
            self._watch_idle()

    def _watch_held(self) -> None:
        """See whether an app that nothing is read from is still there, as far as the kernel knows."""
        if _tcp_state(self.transport.get_extra_info("socket")) in _PEER_HAS_ENDED:
            self.expect_departure()
        self._timers["held"] = self.loop.call_later(timelimits.HELD_CHECK_SECONDS, self.guarded, self._watch_held)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._go_on(SocketEvent.LOSE if exc is None else SocketEvent.BREAK)
        self.client.state = ConnectionState.CLOSED
        self.client.timestamp_end = time.time()
        for timer in self._timers.values():
            timer.cancel()
        self.clock.close()
        if self.tls is not None and not self.tls.is_established:
            self.session.note_tls_failed()
        try:
            self.speaker.gone()
            self.house.dispatch.call("client_disconnected", self.client)
        except Exception as e:
            if not isinstance(e, HookFailed):
                logger.error("the end of a client connection failed: %s", describe(e))
        self.house.sessions.close(self.client)
        self.speaker = GONE  # the old one points back here: without the circle, all of it is freed at once
        self.house.ended(self)

    def drain(self) -> None:
        """Close as soon as no request is under way. The first one of a new connection is, for a moment."""
        connect = self.session.connect
        age = self.loop.time() - (self._opened if connect is None else connect.started_monotonic)
        is_fresh = not self.session.requests and age < timelimits.FRESH_SECONDS
        if self.speaker.drain(is_fresh) or not self.session.is_idle:
            return
        if is_fresh:
            self._timers["fresh"] = self.loop.call_later(timelimits.FRESH_SECONDS - age, self.after_step)
        else:
            self.close()

    def cut_off(self, denied: Denied) -> None:
        """End what is under way: with an answer, where the app waits for one and has got nothing of it yet."""
        self.guarded(self._cut_off, denied)

    def _cut_off(self, denied: Denied) -> None:
        if not self.speaker.give_up(denied):
            self.abort()

    def abort(self) -> None:
        """Break the connection off: with a reset, since an end in order could be taken for the end of a response."""
        self._go_on(SocketEvent.ABORT)
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the app is gone already
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def crash(self, error: Exception) -> None:
        """Close at once, since something inside failed."""
        if not isinstance(error, HookFailed):  # the dispatcher has said so already
            logger.error("a client connection failed, and is closed: %s", describe(error))
        self.session.failed(Denied(Reason.INTERNAL_ERROR, "the engine failed"))
        self.abort()

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step; whatever it raises closes the connection."""
        try:
            step(*arguments)
        except Exception as e:
            self.crash(e)
        self.after_step()

    def touch(self) -> None:
        """Take note that something moves."""
        self._last_activity = self.loop.time()

    def after_upstream(self) -> None:
        """Finish what an upstream's bytes caused."""
        self.touch()
        self.after_step()

    def after_step(self) -> None:
        """Write what was gathered; end if the engine wants to be rid of this connection, and nothing is under way."""
        self.flush()
        if not self.is_closing and self.house.is_leaving(self.session):
            self.drain()

    # -- reading

    def data_received(self, data: bytes) -> None:
        """Take bytes off the socket."""
        if self.is_closing:
            self._still_taken -= len(data)
            if self._still_taken < 0 and not self.transport.is_closing():
                # No reset, which would take our last word from it; nor may the kernel take much more for us.
                self.transport.pause_reading()
                with contextlib.suppress(OSError):  # the app is gone already
                    self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            return
        self._last_activity = self.loop.time()
        self.guarded(self.take, data)

    def take(self, data: bytes) -> None:
        """Give the speaker bytes off the socket."""
        if self.tls is None:
            self.speaker.feed(data)
        else:
            self._take_tls(data)

    def _take_tls(self, data: bytes) -> None:
        assert self.tls is not None
        if not self.tls.is_established:
            try:
                done = self.tls.handshake(data)
            except SSL.Error:
                self._out.append(self.tls.outgoing())
                self.session.note_tls_failed()
                self.close()
                return
            self._out.append(self.tls.outgoing())
            if not done:
                return
            self.client.tls_version = self.tls.conn.get_protocol_version_name()  # type: ignore[assignment]  # a literal
            self.client.timestamp_tls_setup = time.time()
            data = b""
            self._go_on(SocketEvent.SECURE)
            self.expect(False)
            if self.tls.conn.get_alpn_proto_negotiated() == b"h2":
                self.client.alpn = b"h2"
                self.speaker.speak_http2()
        plain = self.tls.receive(data)
        if answer := self.tls.outgoing():
            self._out.append(answer)
        if plain:
            self.speaker.feed(plain)
        if self.tls.has_ended and not self.is_closing:
            self.speaker.eof()

    def eof_received(self) -> bool:
        """Take a half-close."""
        self._go_on(SocketEvent.END)
        if self.is_closing:
            return False
        self.guarded(self.speaker.eof)
        return not self.is_closing

    def start_tls(self, conn: SSL.Connection) -> None:
        """Speak TLS from here on."""
        self._go_on(SocketEvent.START_TLS)
        self.tls = TlsStream(conn)
        self.client.tls = True

    def hold(self, why: str, is_held: bool) -> None:
        """Stop reading from the app while there is any reason to."""
        before = bool(self._holds)
        if is_held:
            self._holds.add(why)
        else:
            self._holds.discard(why)
        if bool(self._holds) != before and not self.transport.is_closing():
            if self._holds:
                self.transport.pause_reading()
                self._timers["held"] = self.loop.call_later(
                    timelimits.HELD_CHECK_SECONDS, self.guarded, self._watch_held
                )
            else:
                self.transport.resume_reading()
                self._timers.pop("held").cancel()

    # -- writing

    def write(self, data: bytes) -> None:
        """Send to the app, at the next `flush`."""
        if self.is_closing:
            return
        (self._out if self.tls is None else self._plain).append(data)

    def _encrypt(self) -> None:
        """Encrypt what was gathered, in as few records as it fits into."""
        if self._plain and self.tls is not None:
            data = b"".join(self._plain) if len(self._plain) > 1 else self._plain[0]
            self._plain.clear()
            with contextlib.suppress(SSL.Error):  # the app closed the session meanwhile; its end is on the way
                self.tls.send(data)
                self._out.append(self.tls.outgoing())

    def flush(self) -> None:
        """Write what was gathered."""
        self._encrypt()
        if self._out:
            data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._out.clear()
            if not self.transport.is_closing():
                self.transport.write(data)

    def pause_writing(self) -> None:
        """Take that the app reads too slowly."""
        self.is_congested = True
        self.guarded(self.speaker.congested, True)

    def resume_writing(self) -> None:
        """Take that it caught up."""
        self.is_congested = False
        self.guarded(self.speaker.congested, False)

    def half_close(self) -> None:
        """Send an EOF, and read on."""
        self.flush()
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the app is gone already; connection_lost says so
                self.transport.write_eof()

    def close(self, *, still_taken: float = math.inf) -> None:
        """Close after what is to be sent, so that the app can still read it (closing with unread input would reset).

        Args:
            still_taken: how many bytes of what the app still sends are thrown away, for a moment.
        """
        if self.is_closing:
            return
        self._still_taken = still_taken
        if self.before_close is not None:
            self.before_close()
        self._encrypt()
        has_ended = self.has_ended
        self._go_on(SocketEvent.CLOSE)
        if self.tls is not None:
            self.tls.close()
            self._out.append(self.tls.outgoing())
        self.flush()
        if self.transport.is_closing():
            return
        try:
            self.transport.write_eof()
        except OSError:  # the app is gone already
            self.transport.abort()
            return
        if self._holds:
            self._holds.clear()
            self._timers.pop("held").cancel()
            self.transport.resume_reading()
        if has_ended:
            self.transport.close()
        else:
            self._timers["linger"] = self.loop.call_later(timelimits.LINGER_SECONDS, self.transport.close)
        self._timers["flush"] = self.loop.call_later(timelimits.FLUSH_SECONDS, self.abort)


def _tcp_state(connection: socket.socket) -> int | None:
    """Return the kernel's state of a connection, where it tells (Linux)."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
