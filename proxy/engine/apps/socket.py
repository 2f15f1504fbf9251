"""The socket of an app's connection: gives received bytes to its speaker, and writes what is to be sent. `server` makes
one for each connection that it accepts.

Everything is synchronous. When bytes come, the speaker handles them; what is to be sent is gathered, and written once,
by `flush`. Only dialling an upstream is a task.

Rules of this module:

- If anything raises, the connection is closed, and everything that was opened for it.
- Back-pressure works in both directions: nothing is read that cannot be passed on.
- An app that is answered before it has sent everything can still read the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable
from functools import cached_property

from mitmproxy.connection import Client, ConnectionState
from OpenSSL import SSL

from addons.exchange import Exchange
from addons.sessions import Session
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.handshakes import why_app_failed
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Listener
from proxy.engine.apps.house import House
from proxy.engine.apps.speaker import GONE, Speaker
from proxy.engine.apps.states import AFTER_SOCKET, SocketEvent, SocketState
from proxy.engine.clock import ResponseClock
from proxy.engine.dispatch import HookFailed
from proxy.engine.flows import new_client, new_context
from proxy.engine.hookdata import Context
from proxy.engine.life import Life
from proxy.engine.tlsstream import TlsStream, reasons
from proxy.log import describe

logger = logging.getLogger("overcoat")

_OVER = frozenset((SocketState.LOST, SocketState.RESET))
_CLOSING = _OVER | {SocketState.CLOSING, SocketState.ABORTED}
_PEER_HAS_ENDED = frozenset((7, 8, 9, 11))  # Linux's TCP_INFO: CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING


class AppSocket(Life):
    """One connection of an app."""

    client: Client
    session: Session
    speaker: Speaker

    def __init__(self, house: House, listener: Listener, meet: Callable[[AppSocket], None]) -> None:
        """Start.

        Args:
            house: what all connections share.
            listener: the listener that accepted it.
            meet: sets the first speaker, or refuses the app.
        """
        super().__init__(house.timers)
        self.state = SocketState.OPEN
        self._is_leaving = False  # whether the engine has asked for its end, once nothing is under way
        self.is_closing = False  # same as in `state`: we have sent our last bytes; what comes is thrown away
        self.house = house
        self.listener = listener
        self.loop = house.loop
        self._meet = meet
        self.tls: TlsStream | None = None
        self._tls_has_failed = False  # and that is told
        self._still_taken = math.inf
        self.is_congested = False  # whether the app reads too slowly
        self.before_close: Callable[[], None] | None = None  # writes what the speaker has gathered
        self._plain: list[bytes] = []  # bytes to encrypt
        self._out: list[bytes] = []
        self._idle_limit: float = house.policy.limits.idle_seconds
        self._may_be_gone = False
        self.clock = ResponseClock(house.timers, self.guarded)
        self._last_activity = self._opened = self.loop.time()

    @cached_property
    def context(self) -> Context:
        """mitmproxy's context object for hooks about TLS; most connections need none."""
        return new_context(self.client)

    # -- beginning and end

    def _go_on(self, event: SocketEvent) -> None:
        self.state = AFTER_SOCKET[event][self.state]
        self.is_closing = self.state in _CLOSING

    @property
    def has_ended(self) -> bool:
        """Whether the app has ended its side, and we have not ended ours."""
        return self.state is SocketState.ENDED

    @property
    def was_reset(self) -> bool:
        """Whether it is over, and did not end in order."""
        return self.state is SocketState.RESET

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        super().connection_made(transport)
        names = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client = new_client(*names, time.time())
        listener = self.listener
        self.session = self.house.sessions.open(self.client, self.house.policy, listener.kind, listener.mirror)
        self.house.began(self)
        self.guarded(self._start)

    def _start(self) -> None:
        self.speaker = GONE
        self._watch_idle()
        self.house.dispatch.call("client_connected", self.client)
        self._meet(self)

    def close_denied(self, denied: Denied) -> None:
        """Write the decision line of something that was no request, or did not come in time, and close."""
        self.write_denied(self.denied(denied), None)
        self.close()

    def note_departure(self) -> None:
        """Note that the app went away before its tunnel was open, or broke it off."""
        if (connect := self.session.connect) is not None:
            connect.app_left = True

    def denied(self, denied: Denied) -> Exchange:
        """Return an exchange for what was no request."""
        exchange = Exchange(self.session.policy, self.session.client)
        exchange.break_off(denied)
        return exchange

    def write_denied(self, exchange: Exchange, status: int | None) -> None:
        """Write the decision line of what was no request.

        Args:
            exchange: what `denied` returned.
            status: the status that the app was told, if any.
        """
        self.house.write_denied(exchange, status)

    def _watch_idle(self) -> None:
        idle = self.loop.time() - self._last_activity
        if idle >= self._idle_limit:
            has_left = self._may_be_gone and self.speaker.answers
            if not has_left and self.speaker.end_silence(self._idle_limit):
                self.touch()
                idle = 0.0
            else:
                if not has_left:  # else nothing was too slow
                    self.session.idled(self._idle_limit)
                self.abort()
        if not self.is_closing:
            self._start_timer("idle", self._idle_limit - idle, self.guarded, self._watch_idle)

    def expect(self, is_expected: bool) -> None:
        """Set whether the app owes something that must come within `limits.request_seconds` from now."""
        if not is_expected:
            if (timer := self._timers.pop("request", None)) is not None:
                timer.cancel()
        elif "request" not in self._timers and self.state not in _OVER:
            self._start_timer("request", self.session.policy.limits.request_seconds, self.guarded, self._too_slow)

    def _too_slow(self) -> None:
        self._stop_timer("request")
        if self.is_closing:
            return
        if self.tls is not None and not self.tls.is_established:
            self._tls_failed()
            self.close()
        else:
            self.speaker.too_slow()

    def later(self, name: str, seconds: float, step: Callable[[], None]) -> None:
        """Run a step later, unless the connection is over by then."""
        if self.state not in _OVER:
            self._start_timer(name, seconds, self.guarded, step)

    def expect_departure(self) -> None:
        """Use a shorter time limit: the app has ended its side, and may be gone, which TCP does not tell."""
        if self.state not in _OVER and not self._may_be_gone:
            self._may_be_gone = True
            self._idle_limit = min(self._idle_limit, timelimits.HALF_CLOSED_SECONDS)
            self.touch()
            self._watch_idle()

    def _watch_held(self) -> None:
        """Ask the kernel whether an app from which nothing is read is still there."""
        if _tcp_state(self.transport.get_extra_info("socket")) in _PEER_HAS_ENDED:
            self.expect_departure()
        self._start_timer("held", timelimits.HELD_CHECK_SECONDS, self.guarded, self._watch_held)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the socket is closed."""
        self._go_on(SocketEvent.LOSE if exc is None else SocketEvent.BREAK)
        self.client.state = ConnectionState.CLOSED
        self.client.timestamp_end = time.time()
        self._stop_timers()
        self.clock.close()
        if self.tls is not None and not self.tls.is_established and not self._tls_has_failed:
            self._tls_failed()
        try:
            self.speaker.gone()
            self.house.dispatch.call("client_disconnected", self.client)
        except Exception as e:
            if not isinstance(e, HookFailed):
                logger.error("the end of a client connection failed: %s", describe(e))
        self.house.sessions.close(self.client)
        self.speaker = GONE  # the old one refers back to this; without that circle, both are freed at once
        self.house.ended(self)

    def drain(self) -> None:
        """Close as soon as no request is under way. On a new connection, the first request counts as under way for a
        moment.
        """
        self._is_leaving = True
        connect = self.session.connect
        age = self.loop.time() - (self._opened if connect is None else connect.started_monotonic)
        is_fresh = not self.session.requests and age < timelimits.FRESH_SECONDS
        if self.speaker.drain(is_fresh) or not self.session.is_idle:
            return
        if is_fresh:
            self._start_timer("fresh", timelimits.FRESH_SECONDS - age, self.after_step)
        else:
            self.close()

    def cut_off(self, denied: Denied) -> None:
        """End everything under way: with an answer, if the app waits for one and has got nothing of it."""
        self.guarded(self._cut_off, denied)

    def _cut_off(self, denied: Denied) -> None:
        if not self.speaker.give_up(denied):
            self.abort()

    def abort(self) -> None:
        """Break off with a reset: an end in order could look like the end of a response."""
        self._go_on(SocketEvent.ABORT)
        self._end_with_reset()
        self.transport.abort()

    def crash(self, error: Exception) -> None:
        """Close at once, because something inside has failed."""
        if not isinstance(error, HookFailed):  # the dispatcher has logged it already
            logger.error("a client connection failed, and is closed: %s", describe(error))
        self.session.failed(Denied(Reason.INTERNAL_ERROR, "the engine failed"))
        self.abort()

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Run a step; if it raises, the connection is closed."""
        try:
            step(*arguments)
        except Exception as e:
            self.crash(e)
        self.after_step()

    def touch(self) -> None:
        """Note that bytes move."""
        self._last_activity = self.loop.time()

    def after_upstream(self) -> None:
        """Finish a step that an upstream's bytes caused."""
        self.touch()
        self.after_step()

    def after_step(self) -> None:
        """Write what was gathered; close if the engine wants this connection to end and nothing is under way."""
        self.flush()
        if self._is_leaving and not self.is_closing:
            self.drain()

    # -- reading

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the socket."""
        if self.is_closing:
            self._still_taken -= len(data)
            if self._still_taken < 0 and not self.transport.is_closing():
                # No reset: the app could lose our last bytes. And the kernel must not buffer much more.
                self.transport.pause_reading()
                with contextlib.suppress(OSError):  # the app is gone already
                    self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            return
        self._last_activity = self.loop.time()
        self.guarded(self.take, data)

    def take(self, data: bytes) -> None:
        """Give the speaker bytes from the socket."""
        if self.tls is None:
            self.speaker.feed(data)
        else:
            self._take_tls(data)

    def _take_tls(self, data: bytes) -> None:
        assert self.tls is not None
        if not self.tls.is_established:
            try:
                done = self.tls.handshake(data)
            except SSL.Error as error:
                self._out.append(self.tls.outgoing())
                self._tls_failed(why_app_failed(reasons(error)))
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

    def _tls_failed(self, why: str = "") -> None:
        self._tls_has_failed = True
        if not self.session.tls_failed(why):
            what = f"the peer of a mirror listener did not complete TLS{why}"
            self.write_denied(self.denied(Denied(Reason.APP_TLS_FAILED, what)), None)

    def eof_received(self) -> bool:
        """Handle a half-close."""
        self._go_on(SocketEvent.END)
        if self.is_closing:
            return False
        self.guarded(self.speaker.eof)
        return not self.is_closing

    def start_tls(self, conn: SSL.Connection) -> None:
        """Speak TLS from now on."""
        self._go_on(SocketEvent.START_TLS)
        self.tls = TlsStream(conn)
        self.client.tls = True

    def _pause(self, is_paused: bool) -> None:
        super()._pause(is_paused)
        if is_paused:
            self._start_timer("held", timelimits.HELD_CHECK_SECONDS, self.guarded, self._watch_held)
        else:
            self._stop_timer("held")

    # -- writing

    def write(self, data: bytes) -> None:
        """Send bytes to the app, at the next `flush`."""
        if self.is_closing:
            return
        (self._out if self.tls is None else self._plain).append(data)

    def _encrypt(self) -> None:
        """Encrypt what was gathered, in as few records as possible."""
        if self.tls is not None:
            data = b"".join(self._plain) if len(self._plain) > 1 else self._plain[0]
            self._plain.clear()
            with contextlib.suppress(SSL.Error):  # the app has closed the session; the end of the socket will follow
                self.tls.send(data)
                self._out.append(self.tls.outgoing())

    def flush(self) -> None:
        """Write what was gathered."""
        if self._plain:
            self._encrypt()
        if self._out:
            data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._out.clear()
            if not self.transport.is_closing():
                self.transport.write(data)

    def pause_writing(self) -> None:
        """Called when the app reads too slowly."""
        self.is_congested = True
        self.guarded(self.speaker.congested, True)

    def resume_writing(self) -> None:
        """Called when the app has caught up."""
        self.is_congested = False
        self.guarded(self.speaker.congested, False)

    def half_close(self) -> None:
        """Send an EOF, and go on reading."""
        self.flush()
        self._end_writing()

    def close(self, *, still_taken: float = math.inf) -> None:
        """Close after everything is sent, so that the app can still read it (closing with unread input would send a
        reset).

        Args:
            still_taken: how many bytes from the app are still read and thrown away, for a moment.
        """
        if self.is_closing:
            return
        self._still_taken = still_taken
        if self.before_close is not None:
            self.before_close()
        if self._plain:
            self._encrypt()
        has_ended = self.has_ended
        self._go_on(SocketEvent.CLOSE)
        if self.tls is not None:
            self.tls.close()
            self._out.append(self.tls.outgoing())
        self.flush()
        if self.transport.is_closing():
            return
        if not self._end_writing():  # the app is gone already
            self.transport.abort()
            return
        if self._holds:
            self._holds.clear()
            self._pause(False)
        if has_ended:
            self.transport.close()
        else:
            self._start_timer("linger", timelimits.LINGER_SECONDS, self.transport.close)
        if self.transport.get_write_buffer_size():
            self._limit_flush(self.abort)


def _tcp_state(connection: socket.socket) -> int | None:
    """Return the state of a connection in the kernel, if the system tells it (Linux)."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
