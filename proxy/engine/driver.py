"""One client connection: sockets on the outside, mitmproxy's layers on the inside, one queue between them.

Theory of operation. The layers are sans-I/O: events go in, commands come out, both synchronously. `Driver.feed` puts an
event into a queue; whoever finds the queue idle works it off, carries out the commands, and appends the events that
they cause. So a hook, which is a plain function call, is answered within the same turn, and no lock is needed.

Rules of this module:

- Whatever raises, in a layer, in a hook or here, closes the client connection and everything opened for it.
- Back-pressure both ways: while one socket's buffer is full, nothing more is read for it from the others.
- Every connection has a time limit in each of its phases: dialling, the TLS handshake, idling, closing.
- An upstream that turns out to be one of our own listeners is closed before anything is sent.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, server_hooks

from addons.exchange import Exchange, Upstream
from proxy.core.decisions import Denied, Reason
from proxy.engine.dispatch import HookFailed
from proxy.engine.http2 import AwaitRoom, AwaitTurn, Leave, Tick
from proxy.engine.layers import ProxyLayer, inside_connect
from proxy.engine.pairs import Ending, say_ending
from proxy.log import describe

if TYPE_CHECKING:
    from proxy.engine.app import AppSocket

logger = logging.getLogger("overcoat")

HANDSHAKE_SECONDS = 10.0
FLUSH_SECONDS = 30.0  # for a closed connection to take what is still in its buffer
FRESH_SECONDS = 1.0  # for an app that has just connected to send its request, before it is taken for idle
LATE_CHECK_SECONDS = 5.0  # between looks at what an app owes
LINGER_SECONDS = 1.0  # for an app to read an answer that came before it had sent everything


class Pipe(asyncio.Protocol):
    """One socket."""

    transport: asyncio.Transport

    def __init__(self, driver: Driver, conn: Connection, connection: socket.socket | None = None) -> None:
        self.driver = driver
        self.conn = conn
        self.connection = connection
        self.is_congested = False
        self.waits_for_turn = False
        self.has_ended = False
        self.out: list[bytes] = []  # what is written once, when the step that caused it is over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass data on."""
        self.driver.call(self.driver.received, self, data)

    def eof_received(self) -> bool:
        """Pass a half-close on; the transport stays open for what the other direction still has to say."""
        self.driver.call(self.driver.half_closed, self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end on."""
        self.driver.call(self.driver.lost, self)

    def flush(self) -> None:
        """Write what was gathered."""
        if self.out and not self.transport.is_closing():
            self.transport.write(self.out[0] if len(self.out) == 1 else b"".join(self.out))
        self.out.clear()

    def say_gone(self) -> None:
        """Let the other end know, where that is in this process, that nobody is here any more."""
        if self.connection is not None:
            say_ending(self.connection, Ending.GONE)

    def abort(self) -> None:
        """Close at once."""
        self.say_gone()
        self.transport.abort()

    def pause_writing(self) -> None:
        """Stop reading what would have to be written here."""
        self.is_congested = True
        self.driver.call(self.driver.settle)

    def resume_writing(self) -> None:
        """Read on."""
        self.is_congested = False
        self.driver.call(self.driver.settle)


class Driver:
    """Drives the layers of one client connection."""

    def __init__(self, app: AppSocket, connect: Exchange) -> None:
        """Take an app's connection over, at the beginning of the TLS inside its CONNECT."""
        self.engine = app.engine
        self.loop = app.loop
        self.client = app.client
        self.session = app.session
        self.pipes: dict[Connection, Pipe] = {}
        self.queue: collections.deque[events.Event] = collections.deque()
        self.is_working = False
        self.is_over = False
        self.has_crashed = False
        self.waits: list[AwaitRoom] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.timers: dict[object, asyncio.TimerHandle] = {}
        self.last_activity = self.opened = self.loop.time()
        self.is_leaving = False
        self.policy = connect.policy
        self.context = app.context
        self.layer = inside_connect(app.context, connect)

    def start(self, transport: asyncio.Transport, data: bytes) -> None:
        """Start with the bytes that came already."""
        pipe = self.pipes[self.client] = Pipe(self, self.client)
        pipe.connection_made(transport)
        transport.set_protocol(pipe)
        self.engine.connections.add(self)
        self.call(self._begin, pipe, data)

    def _begin(self, pipe: Pipe, data: bytes) -> None:
        self._watch_idle()
        self._watch_late()
        self.timers["handshake"] = self.loop.call_later(
            self.policy.limits.request_seconds, self.call, self._expect_handshake
        )
        self.feed(events.Start())
        self.received(pipe, data)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call for the event loop, which would only print what a function raises, message and all, and go on."""
        try:
            function(*arguments)
        except Exception as e:
            self._failed(e)

    def _failed(self, error: BaseException) -> None:
        logger.error("the engine failed, and a client connection is closed: %s", describe(error))
        self._crash()
        self._end()

    def _watch_idle(self) -> None:
        idle = self.loop.time() - self.last_activity
        limit = self.policy.limits.idle_seconds
        if idle >= limit and (http := self._http) is not None and http.awaits_upstreams():
            self.feed(Tick(silence=limit))
            self.last_activity = self.loop.time()
            self.timers["idle"] = self.loop.call_later(limit, self.call, self._watch_idle)
        elif idle >= limit:
            self.session.note_idle(limit)
            self.abort()
        else:
            self.timers["idle"] = self.loop.call_later(limit - idle, self.call, self._watch_idle)

    def _watch_late(self) -> None:
        """Let the layers look, now and then, for what does not come in time."""
        if (http := self._http) is not None and http.is_kept_waiting():
            self.feed(Tick())
        seconds = min(LATE_CHECK_SECONDS, self.policy.shortest_wait / 4)
        self.timers["late"] = self.loop.call_later(seconds, self.call, self._watch_late)

    def _expect_handshake(self) -> None:
        if not self.client.tls_established:
            self.session.note_tls_failed()
            self.abort()
        elif self._http is None:
            self.engine.line.late(self.session, "the app did not begin to speak HTTP/2")
            self.abort()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way (a tunnel counts as one for as long as it lasts)."""
        return self.session.is_idle

    def drain(self) -> None:
        """Close in words as soon as no request is under way. The first one of a new connection is, for a moment."""
        if not self.is_idle or self.is_over or self.is_leaving:
            return
        age = self.loop.time() - self.opened
        if self._http is None:
            self._close(self.client)
        elif not self.session.requests and age < FRESH_SECONDS:
            self.timers["fresh"] = self.loop.call_later(FRESH_SECONDS - age, self.call, self.settle)
        else:
            self.is_leaving = True
            self.feed(Leave())

    def cut_off(self, _denied: Denied) -> None:
        """End what is under way, without a word: the app was told with `Leave` that no more is taken."""
        self.abort()

    def abort(self) -> None:
        """Close everything at once."""
        for pipe in list(self.pipes.values()):
            pipe.abort()

    # -- what the sockets say

    def received(self, pipe: Pipe, data: bytes) -> None:
        """Take data from a socket."""
        self.last_activity = self.loop.time()
        if not pipe.conn.state & ConnectionState.CAN_READ:
            return  # lingering: the answer is out, what still comes is thrown away
        if pipe.conn is not self.client:
            self.session.received += len(data)
        self.feed(events.DataReceived(pipe.conn, data))

    def half_closed(self, pipe: Pipe) -> None:
        """Take an EOF from a socket."""
        pipe.has_ended = True
        if pipe.conn.state is ConnectionState.CLOSED:
            pipe.transport.close()  # lingering is over
            return
        pipe.conn.state &= ~ConnectionState.CAN_READ
        self.feed(events.ConnectionClosed(pipe.conn))
        if pipe.conn.state is ConnectionState.CLOSED:
            self._shut(pipe)

    def lost(self, pipe: Pipe) -> None:
        """Take the end of a socket."""
        self.pipes.pop(pipe.conn, None)
        self._cancel_timers(pipe.conn)
        could_read = bool(pipe.conn.state & ConnectionState.CAN_READ)
        pipe.conn.state = ConnectionState.CLOSED
        pipe.conn.timestamp_end = time.time()
        if could_read or pipe.conn is self.client:
            self.feed(events.ConnectionClosed(pipe.conn))
        if pipe.conn is self.client:
            self._end()
        else:
            self.session.upstreams.pop(pipe.conn.id, None)

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        for task in self.tasks:
            task.cancel()
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        for pipe in list(self.pipes.values()):
            pipe.abort()
        self.engine.connections.discard(self)
        self.client.timestamp_end = time.time()
        try:
            self.engine.dispatch(server_hooks.ClientDisconnectedHook(self.client))
        except HookFailed:
            self.engine.sessions.close(self.client)
        self.engine.ended()

    # -- events in, commands out

    def feed(self, event: events.Event) -> None:
        """Give the layers an event, and carry out what they say. Once the app is gone, so is the session: nothing."""
        if self.has_crashed or self.is_over:
            return
        self.queue.append(event)
        self.settle()

    def settle(self) -> None:
        """Work off what there is to do, then read only where what is read can be passed on."""
        if self.is_working:
            return
        self.is_working = True
        try:
            self._wake_who_has_room()
            while self.queue:
                for command in self.layer.handle_event(self.queue.popleft()):
                    self._carry_out(command)
                for pipe in self.pipes.values():
                    pipe.flush()
                if not self.queue:
                    self._wake_who_has_room()
        except HookFailed:
            self._crash()
        except Exception as e:
            logger.error("a protocol layer failed, and its client connection is closed: %s", describe(e))
            self._crash()
        finally:
            self.is_working = False
        self._balance()
        if self.engine.is_leaving(self.session):
            self.drain()

    @property
    def _http(self) -> ProxyLayer | None:
        return next((each for each in self.context.layers if isinstance(each, ProxyLayer)), None)

    def _is_congested(self, conn: Connection) -> bool:
        pipe = self.pipes.get(conn)
        return pipe is not None and pipe.is_congested

    def _wake_who_has_room(self) -> None:
        if not self.waits or (http := self._http) is None:
            return
        ready = [wait for wait in self.waits if http.has_room(wait, self._is_congested)]
        self.waits = [wait for wait in self.waits if wait not in ready]
        self.queue.extend(events.Wakeup(wait) for wait in ready)

    def _await_turn(self, command: AwaitTurn) -> None:
        pipe = self.pipes.get(command.conn)
        if pipe is not None:
            pipe.waits_for_turn = True

        def take_turn() -> None:
            if pipe is not None:
                pipe.waits_for_turn = False
            self.feed(events.Wakeup(command))

        self.loop.call_soon(self.call, take_turn)

    def _balance(self) -> None:
        """Pause and resume reading."""
        http = self._http
        for pipe in self.pipes.values():
            if pipe.transport.is_closing():
                continue
            if pipe.conn is self.client:
                # Its own, since what it sends may ask for an answer each (PING, SETTINGS), which it does not read.
                is_blocked = pipe.is_congested
            else:
                is_blocked = http is not None and not http.may_read(pipe.conn, self._is_congested)
            if is_blocked or pipe.waits_for_turn:
                pipe.transport.pause_reading()
            else:
                pipe.transport.resume_reading()

    def _crash(self) -> None:
        self.has_crashed = True
        self.queue.clear()
        self.session.failed(Denied(Reason.INTERNAL_ERROR, "a protocol layer failed"))
        self.abort()

    def _carry_out(self, command: commands.Command) -> None:
        if isinstance(command, commands.SendData):
            pipe = self.pipes.get(command.connection)
            if pipe is not None and not pipe.transport.is_closing():
                if command.connection is not self.client:
                    self.session.sent += len(command.data)
                pipe.out.append(command.data)
        elif isinstance(command, commands.StartHook):
            self.engine.dispatch(command)
            if command.blocking:
                self.queue.append(events.HookCompleted(command))
        elif isinstance(command, commands.OpenConnection):
            self._open(command)
        elif isinstance(command, commands.CloseTcpConnection) and command.half_close:
            self._half_close(command.connection)
        elif isinstance(command, commands.CloseConnection):
            self._close(command.connection)
        elif isinstance(command, AwaitRoom):
            self.waits.append(command)
        elif isinstance(command, AwaitTurn):
            self._await_turn(command)
        elif isinstance(command, commands.RequestWakeup):
            self._wake_later(command)
        elif not isinstance(command, commands.Log):  # mitmproxy's log lines quote bytes off the wire: dropped
            raise RuntimeError(f"the layers gave an unknown command: {type(command).__name__}")

    def _wake_later(self, command: commands.RequestWakeup) -> None:
        def wake() -> None:
            self.timers.pop(command, None)
            self.feed(events.Wakeup(command))

        self.timers[command] = self.loop.call_later(command.delay, self.call, wake)

    # -- closing

    def _half_close(self, conn: Connection) -> None:
        pipe = self.pipes.get(conn)
        if pipe is None or not conn.state & ConnectionState.CAN_WRITE:
            return
        conn.state &= ~ConnectionState.CAN_WRITE
        pipe.flush()
        if not pipe.transport.is_closing():
            with contextlib.suppress(OSError):  # the peer is gone already; connection_lost says so
                pipe.transport.write_eof()
        if conn.state is ConnectionState.CLOSED:
            self._shut(pipe)

    def _close(self, conn: Connection) -> None:
        conn.state = ConnectionState.CLOSED
        pipe = self.pipes.get(conn)
        if pipe is not None:
            self._shut(pipe)

    def _shut(self, pipe: Pipe) -> None:
        """Close a socket so that its peer still gets what is in the buffer, but within bounds."""
        transport = pipe.transport
        pipe.flush()
        if transport.is_closing():
            return
        if pipe.conn is self.client and not pipe.has_ended:
            # Closing with unread input makes the kernel reset the connection, and the app would lose its answer.
            try:
                transport.write_eof()
            except OSError:  # the app is gone already
                transport.abort()
                return
            transport.resume_reading()
            self.timers[(pipe.conn, "linger")] = self.loop.call_later(LINGER_SECONDS, transport.close)
        else:
            pipe.say_gone()
            transport.close()
        self.timers[(pipe.conn, "flush")] = self.loop.call_later(FLUSH_SECONDS, pipe.abort)

    def _cancel_timers(self, conn: Connection) -> None:
        for phase in ("linger", "flush", "handshake"):
            if timer := self.timers.pop((conn, phase), None):
                timer.cancel()

    # -- opening

    def _open(self, command: commands.OpenConnection) -> None:
        task = self.loop.create_task(self._dial(command))
        self.tasks.add(task)
        task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def _dial(self, command: commands.OpenConnection) -> None:
        server = command.connection
        upstream = self.session.upstreams.setdefault(server.id, Upstream(self.policy, None))
        denied = await self._connect(server)
        if denied is not None:
            upstream.denied = denied
            server.error = denied.detail
        elif server.tls:
            self.timers[(server, "handshake")] = self.loop.call_later(
                HANDSHAKE_SECONDS, self.call, self._handshake_timeout, server
            )
        if not self.is_over:
            self.feed(events.OpenConnectionCompleted(command, denied.detail if denied else None))

    async def _connect(self, server: Server) -> Denied | None:
        assert server.address is not None
        host, port = server.address
        server.timestamp_start = time.time()
        try:
            record = self.session.upstreams[server.id]
            connection = await self.engine.reach(host, port, record, self.layer.context)
        except Denied as denied:
            return denied
        try:
            transport, pipe = await self.loop.create_connection(lambda: Pipe(self, server, connection), sock=connection)
        except OSError:
            connection.close()
            return Denied(Reason.UPSTREAM_UNREACHABLE, f"{host} port {port} closed the connection at once")
        server.peername = transport.get_extra_info("peername")
        server.sockname = transport.get_extra_info("sockname")
        server.state = ConnectionState.OPEN
        server.timestamp_tcp_setup = time.time()
        self.pipes[server] = pipe
        return None

    def _handshake_timeout(self, server: Server) -> None:
        if server.tls_established:
            return
        if upstream := self.session.upstreams.get(server.id):
            upstream.denied = Denied(
                Reason.UPSTREAM_TIMEOUT, f"{server.sni} did not complete TLS in {HANDSHAKE_SECONDS:.0f} s"
            )
        if pipe := self.pipes.get(server):
            pipe.abort()


def is_same_machine(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Tell whether two socket addresses are certainly of this machine: equal, or both loopback."""
    first, second = ipaddress.ip_address(one[0].partition("%")[0]), ipaddress.ip_address(other[0].partition("%")[0])
    return first == second or (first.is_loopback and second.is_loopback)
