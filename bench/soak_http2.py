"""The HTTP/2 of the soak: an app with several streams at once, and an upstream that goes away and resets.

Rules of this module:

- Both stand on h2, and read nothing of the product's.
- A stream is answered once, with its own number; what the upstream has said that it did not look at (REFUSED_STREAM, a
  stream above the last one of GOAWAY) does not count as having arrived, and must be answered all the same.
- A connection of an app ends after some requests: politely (GOAWAY, with requests under way that must still be
  answered) or not at all politely (a reset).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

from bench.lab import HOST, NAME
from bench.measure import BODY
from bench.soak_kinds import KINDS, LARGE, Soak, Tally, answer_of

STREAMS = 8  # at once on a connection
PATIENCE = 60.0  # seconds that an app waits for an answer that must come
WINDOW = 256 * 1024  # of a stream: large answers wait for the app
PIECE = 10_000  # bytes of one DATA frame
GOES_AWAY_AFTER = (20, 150)  # streams of a connection to the upstream
ENDS_AFTER = (20, 200)  # requests on a connection of an app
VANISHES = 0.2  # share of an app's connections that end with a reset
LINGER = 2.0  # seconds that an upstream that is gone still reads
BEHIND = 16 * 1024  # unacknowledged bytes of an app that reads lazily

Fields = list[tuple[str, str]]


class Ended(Exception):
    """A stream, or its connection, ended before its answer was whole; the message says how."""


@dataclass(slots=True)
class _Exchange:
    """A stream of an app.

    Attributes:
        reads_lazily: whether the upstream is to wait for it.
    """

    reads_lazily: bool = False
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    unread: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_whole: bool = False
    ended: str = ""


class AppConnection:
    """A connection of an app."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fields: Fields) -> None:
        """Begin to speak HTTP/2.

        Args:
            reader: what comes.
            writer: where to send.
            fields: `:scheme` and `:authority`.
        """
        self._reader, self._writer, self._fields = reader, writer, fields
        self._protocol = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        codes = h2.settings.SettingCodes
        self._protocol.local_settings = h2.settings.Settings(
            client=True, initial_values={codes.INITIAL_WINDOW_SIZE: WINDOW, codes.ENABLE_PUSH: 0}
        )
        self._protocol.initiate_connection()
        self._protocol.increment_flow_control_window(WINDOW * STREAMS)
        self._exchanges: dict[int, _Exchange] = {}
        self.is_over = False
        self.has_vanished = False
        self._flush()
        self._reading = asyncio.create_task(self._read())

    def _flush(self) -> None:
        data = self._protocol.data_to_send()
        if data and not self.is_over:
            self._writer.write(data)

    async def _read(self) -> None:
        why = "the connection ended"
        try:
            while data := await self._reader.read(65536):
                for event in self._protocol.receive_data(data):
                    if isinstance(event, h2.events.ConnectionTerminated):
                        why = f"GOAWAY {event.error_code!r}"
                    self._take(event)
                self._flush()
        except (OSError, h2.exceptions.ProtocolError) as e:
            why = repr(e)
        finally:
            self.is_over = True
            for exchange in self._exchanges.values():
                exchange.ended = exchange.ended or why
                exchange.changed.set()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.WindowUpdated) and not event.stream_id:
            for each in self._exchanges.values():
                each.changed.set()
        exchange = self._exchanges.get(getattr(event, "stream_id", None) or 0)
        if exchange is None:
            if isinstance(event, h2.events.DataReceived):
                self._protocol.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            return
        if isinstance(event, h2.events.ResponseReceived):
            exchange.status = int(_field(event, ":status"))
        elif isinstance(event, h2.events.DataReceived):
            exchange.body += event.data or b""
            exchange.unread += event.flow_controlled_length or 0
            if not exchange.reads_lazily:
                self._acknowledge(event.stream_id or 0, exchange)
        elif isinstance(event, h2.events.StreamEnded):
            exchange.is_whole = True
        elif isinstance(event, h2.events.StreamReset):
            exchange.ended = exchange.ended or f"RST_STREAM {event.error_code!r}"
        exchange.changed.set()

    def _acknowledge(self, number: int, exchange: _Exchange) -> None:
        owed, exchange.unread = exchange.unread, 0
        if owed:
            self._protocol.acknowledge_received_data(owed, number)

    async def request(
        self, path: str, body: bytes | None, *, says_length: bool, gives_up: int | None, reads_lazily: bool
    ) -> tuple[int, bytes]:
        """Make a request.

        Args:
            path: its path.
            body: what to POST; None for GET.
            says_length: whether `content-length` is sent.
            gives_up: reset the stream after so many bytes of the body, or of waiting time in milliseconds without one.
            reads_lazily: open the window for the answer late.

        Returns:
            Status and body; status 0 if it was given up.

        Raises:
            Ended: there was no whole answer.
        """
        if self.is_over:
            raise Ended("the connection is over")
        number = self._protocol.get_next_available_stream_id()
        exchange = self._exchanges[number] = _Exchange(reads_lazily)
        fields = [(":method", "GET" if body is None else "POST"), *self._fields, (":path", path)]
        if body is not None:
            fields.append(("content-type", "application/json"))
            if says_length:
                fields.append(("content-length", str(len(body))))
        try:
            self._protocol.send_headers(number, fields, end_stream=body is None)
            self._flush()
            if body is not None:
                await self._send_body(number, exchange, body, gives_up)
            elif gives_up is not None:
                await asyncio.sleep(gives_up / 1000)
            if gives_up is not None:
                self._reset(number)
                return 0, b""
            await self._await_end(number, exchange)
            return exchange.status, bytes(exchange.body)
        finally:
            del self._exchanges[number]
            if exchange.unread and not self.is_over:
                with contextlib.suppress(h2.exceptions.ProtocolError):  # its stream is closed, and its window with it
                    self._acknowledge(number, exchange)
                self._flush()

    async def _send_body(self, number: int, exchange: _Exchange, body: bytes, gives_up: int | None) -> None:
        at, until = 0, len(body) if gives_up is None else gives_up
        while at < until:
            if exchange.ended or exchange.is_whole:
                self._reset(number)  # answered before all was sent, and the rest is of no use
                return
            exchange.changed.clear()
            room = self._protocol.local_flow_control_window(number)
            size = min(room, PIECE, until - at, self._protocol.max_outbound_frame_size)
            if size <= 0:
                await exchange.changed.wait()
                continue
            self._protocol.send_data(number, body[at : at + size], end_stream=at + size == len(body))
            at += size
            self._flush()
            await self._writer.drain()

    async def _await_end(self, number: int, exchange: _Exchange) -> None:
        while not exchange.is_whole:
            if exchange.ended:
                raise Ended(exchange.ended)
            exchange.changed.clear()
            if exchange.reads_lazily and exchange.unread > BEHIND:
                await asyncio.sleep(0.01)
                self._acknowledge(number, exchange)
                self._flush()
                continue
            await exchange.changed.wait()

    def _reset(self, number: int) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it is over, which is as good
            self._protocol.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def say_goaway(self) -> None:
        """Say that nothing more will be asked."""
        if not self.is_over:
            self._writer.write(GoAwayFrame(0).serialize())

    def vanish(self) -> None:
        """Be gone, with all that is under way."""
        self.has_vanished = self.is_over = True
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._reading


class UpstreamConnection:
    """A connection to the upstream, which answers as the path says."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tally: Tally,
        random: Random,
        refused: set[int],
    ) -> None:
        """Take a connection.

        Args:
            reader: what comes.
            writer: where to send.
            tally: is told what arrives.
            random: when to go away.
            refused: the numbers of the requests that were refused already.
        """
        self._reader, self._writer, self._tally, self._refused = reader, writer, tally, refused
        self._protocol = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=True)
        )
        self._requests: dict[int, tuple[str, int, bytearray]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._windows = asyncio.Condition()
        self._goes_away_after = random.randint(*GOES_AWAY_AFTER)
        self._begun = 0
        self._last = 2**31 - 1

    async def serve(self) -> None:
        """Serve until the peer is gone, or all are answered that GOAWAY still promised."""
        self._protocol.initiate_connection()
        self._protocol.increment_flow_control_window(8 * 1024 * 1024)
        self._flush()
        try:
            while data := await self._reader.read(65536):
                for event in self._protocol.receive_data(data):
                    self._take(event)
                self._flush()
                async with self._windows:
                    self._windows.notify_all()
        except h2.exceptions.ProtocolError as e:
            self._tally.fault("no HTTP/2", f"what came to the upstream: {e!r}")
        finally:
            for task in self._answering:
                task.cancel()

    def _flush(self) -> None:
        if data := self._protocol.data_to_send():
            self._writer.write(data)

    def _take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None) or 0
        if isinstance(event, h2.events.RequestReceived):
            self._begin(number, _field(event, ":path"))
        elif isinstance(event, h2.events.DataReceived):
            self._protocol.acknowledge_received_data(event.flow_controlled_length or 0, number)
            if number in self._requests:
                self._requests[number][2].extend(event.data or b"")
        elif isinstance(event, h2.events.StreamReset):
            self._requests.pop(number, None)
        elif isinstance(event, h2.events.StreamEnded) and number in self._requests:
            kind, identifier, body = self._requests.pop(number)
            self._tally.arrived(kind, identifier, bytes(body))
            self._answer_later(number, kind, identifier)

    def _begin(self, number: int, path: str) -> None:
        if number > self._last:
            self._tally.seen["streams above GOAWAY's last"] += 1
            self._tally.unkept += path.startswith(UNKEPT)
            return  # not looked at, as was said
        kind, _, identifier = path.strip("/").removeprefix("h2-").partition("/")
        self._begun += 1
        self._tally.seen["streams of HTTP/2 to the upstream"] += 1
        if kind == "refused" and int(identifier) not in self._refused:
            self._refused.add(int(identifier))
            self._tally.seen["REFUSED_STREAM"] += 1
            self._protocol.reset_stream(number, h2.errors.ErrorCodes.REFUSED_STREAM)
        elif kind == "early":
            self._tally.arrived(kind, int(identifier), b"")
            self._answer_later(number, kind, int(identifier))
        else:
            self._requests[number] = (kind, int(identifier), bytearray())
        if self._begun == self._goes_away_after:
            # h2 would send nothing after a GOAWAY of its own.
            self._last = number
            self._tally.seen["GOAWAY by the upstream"] += 1
            self._writer.write(self._protocol.data_to_send() + GoAwayFrame(0, last_stream_id=number).serialize())
            task = asyncio.create_task(self._leave())
            self._answering.add(task)

    async def _leave(self) -> None:
        """Close once all are answered that were begun before GOAWAY."""
        while self._requests or len(self._answering) > 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(LINGER)  # what is still under way to us would have the system reset what we have sent
        self._writer.close()

    def _answer_later(self, number: int, kind: str, identifier: int) -> None:
        task = asyncio.create_task(self._answer(number, kind, identifier))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, kind: str, identifier: int) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError, OSError):  # the proxy has reset the stream, or is gone
            if kind == "resets":
                self._protocol.reset_stream(number, h2.errors.ErrorCodes.INTERNAL_ERROR)
                self._flush()
                return
            body = answer_of(kind, identifier)
            length = len(body) + 1000 if kind == "cut" else len(body)
            fields = [(":status", "200"), ("content-type", "text/plain"), ("content-length", str(length))]
            self._protocol.send_headers(number, fields)
            self._flush()
            if kind == "slow":
                await asyncio.sleep(0.02)
            await self._send(number, body, is_all=kind != "cut")
            if kind == "cut":
                self._protocol.reset_stream(number, h2.errors.ErrorCodes.INTERNAL_ERROR)
            elif kind == "early":
                self._protocol.reset_stream(number, h2.errors.ErrorCodes.NO_ERROR)
            self._flush()

    async def _send(self, number: int, body: bytes, *, is_all: bool) -> None:
        at = 0
        while at < len(body):
            size = min(self._protocol.local_flow_control_window(number), PIECE, len(body) - at)
            if size <= 0:
                async with self._windows:
                    await self._windows.wait()
                continue
            at += size
            self._protocol.send_data(number, body[at - size : at], end_stream=is_all and at == len(body))
            self._flush()
            await self._writer.drain()


def _field(event: h2.events.RequestReceived | h2.events.ResponseReceived, name: str) -> str:
    fields: dict[Any, Any] = dict(event.headers or ())
    return str(fields[name])


@dataclass(frozen=True, slots=True)
class _Route:
    """A way of an app's connection.

    Attributes:
        has_tls: whether the app speaks TLS, which the proxy opens.
        inside: whether it asks for a tunnel first.
        is_http2: whether the upstream speaks HTTP/2.
    """

    has_tls: bool
    inside: bool
    is_http2: bool


_ROUTES = (_Route(True, True, False), _Route(True, True, True), _Route(False, False, False), _Route(False, True, True))
UNKEPT = ("/h2-large/", "/h2-early/")  # bodies too large for the proxy to keep, so that it could send them once more
_PROTECTED = BODY.encode("ascii")
_BODIES = {
    "h2-post": b"{}",
    "h2-resets": b"{}",
    "h2-refused": b"{}",
    "h2-fields": _PROTECTED,
    "h2-held": _PROTECTED[:-1] + b', "more": "' + b"y" * 100_000 + b'"}',
    "h2-broken": _PROTECTED[:-1],
    "h2-reset-body": _PROTECTED,
    "h2-large": b"[" + b"1," * (LARGE // 2) + b"1]",
    "h2-early": b"[" + b"1," * (LARGE // 2) + b"1]",
}


class AppConnections:
    """One app: a connection after the other, each with several streams at once."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._names = [name for name in KINDS if name.startswith("h2-")]
        self._weights = [KINDS[name].weight for name in self._names]
        self._is_done = False

    async def run(self) -> None:
        """Make requests until there are no more."""
        random = self._soak.random
        while not self._is_done:
            route = random.choice(_ROUTES)
            try:
                connection = await self._open(route)
            except (OSError, EOFError) as e:
                self._soak.tally.fault("lost", f"a connection of HTTP/2 could not be opened: {e!r}")
                await asyncio.sleep(0.1)
                continue
            left = [random.randint(*ENDS_AFTER)]
            vanishing = random.random() < VANISHES
            await asyncio.gather(*(self._stream(connection, route, left, vanishing) for _ in range(STREAMS)))
            if not connection.has_vanished:
                await connection.close()

    async def _open(self, route: _Route) -> AppConnection:
        soak = self._soak
        port = soak.http2_port if route.is_http2 else soak.upstream_port
        reader, writer = await asyncio.open_connection(HOST, soak.port)
        authority = f"{NAME}:{port}" if route.inside else HOST
        if route.inside:
            writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer.split(b"\r\n")[0] + b" ":
                raise OSError(f"CONNECT was answered {answer[:80]!r}")
        if route.has_tls:
            await writer.start_tls(soak.http2_context, server_hostname=NAME)
        scheme = "https" if route.has_tls else "http"
        return AppConnection(reader, writer, [(":scheme", scheme), (":authority", authority)])

    async def _stream(self, connection: AppConnection, route: _Route, left: list[int], vanishing: bool) -> None:
        """Make one request after the other, until the connection has had enough of them."""
        soak = self._soak
        while left[0] > 0 and not connection.is_over:
            number = next(soak.http2_numbers, None)
            if number is None:
                self._is_done = True
                return
            left[0] -= 1
            if left[0] == 0:
                # Behind the request that is just to be made: to say GOAWAY is to say that no other will be.
                asyncio.get_running_loop().call_soon(connection.vanish if vanishing else connection.say_goaway)
                soak.tally.seen["connections of apps reset" if vanishing else "GOAWAY by apps"] += 1
            kind = soak.random.choices(self._names, self._weights)[0]
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._request(connection, route, kind, number)
            except TimeoutError:
                soak.tally.fault("lost", f"{kind} {number} got no answer in {PATIENCE:.0f} s ({route})")
            except (Ended, OSError, h2.exceptions.ProtocolError) as e:
                if connection.has_vanished:
                    kind = "h2-vanish"
                elif KINDS[kind].statuses:
                    soak.tally.fault("lost", f"{kind} {number} got no answer: {e!r} ({route})")
            soak.tally.kinds[number] = kind

    async def _request(self, connection: AppConnection, route: _Route, kind: str, number: int) -> None:
        soak = self._soak
        body = _BODIES.get(kind)
        gives_up = None
        if kind == "h2-reset":
            gives_up = soak.random.choice((0, 0, 2, 10))
        elif kind == "h2-reset-body":
            gives_up = len(_PROTECTED) - 9
        status, answer = await connection.request(
            f"/{kind}/{number}",
            body,
            says_length=soak.random.random() < 0.5,
            gives_up=gives_up,
            reads_lazily=kind == "h2-lazy",
        )
        if status:
            soak.tally.judge(
                kind, number, status, answer, may_be_refused=not route.is_http2 or f"/{kind}/".startswith(UNKEPT)
            )
