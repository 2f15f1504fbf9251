"""HTTP/2 that reads no faster than it can pass on, and gives nobody more than his turn.

Theory of operation. mitmproxy acknowledges what it receives at once, with windows of two gigabytes, so that a peer who
sends faster than the other one reads fills the memory. Here it is told to go on (WINDOW_UPDATE) when what it has sent
has left: a layer that owes a stream an acknowledgement gives an `AwaitRoom`, and the driver answers it once there is
room. No connection is ever left unread for that, since it carries other streams, and the window updates that would end
the wait. What comes is read some frames at a time; for the rest the layer gives an `AwaitTurn`.

Rules of this module:

- What is received and not passed on is bounded by the windows, for each stream and for each connection.
- However small its frames are, one connection does not hold up the others, nor takes much more memory than they hold.
- What was begun (a frame, a header block) is ended in time, and a message is as long as it says.
- Streams may be given up, but not without end; so for interim responses.
"""

from __future__ import annotations

import re
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection, SendH2Data

from proxy.engine.upstream import MAX_INTERIM

Commands = layer.CommandGenerator[None]

STREAM_WINDOW = 1024 * 1024
CONNECTION_WINDOW = 8 * 1024 * 1024
OWED_AT_MOST = 64 * 1024  # before there is an acknowledgement, or a wait for room
UNSENT_AT_MOST = 64 * 1024  # of a stream, for there to be room
FRAMES_A_TURN = 32
MERGED_AT_MOST = 16 * 1024  # of what waits to be sent on a stream, in one piece
MAX_BLOCK = 128 * 1024  # bytes of a header block; decoded, h2 takes 64 KiB
MAX_TABLE = 4096  # bytes of the table by which field names and values are shortened (RFC 7541, section 4.2)
RESETS_AT_ONCE = 100  # of streams of one connection; more than a browser gives up with a page
RESETS_A_SECOND = 10  # … after that
_HEADER = 9  # RFC 9113, section 4.1
_PREFACE = 24  # … section 3.4
_DATA, _HEADERS, _PUSH_PROMISE, _CONTINUATION = 0, 1, 5, 9  # … section 6
_END_HEADERS = 4
_INTERIM_STATUS = re.compile(rb"1(?!01)[0-9]{2}")  # RFC 9113, section 8.6: no 101
_FINAL_STATUS = re.compile(rb"[2-5][0-9]{2}")


class Tick(events.Event):
    """Some time has passed: whoever is kept waiting looks at how long that was."""

    def __init__(self, silence: float | None = None) -> None:
        """Start.

        Args:
            silence: for how many seconds nothing has moved on the app's connection, if that is too long.
        """
        self.silence = silence


class Leave(events.Event):
    """The app's connection is to end, with a word (GOAWAY), while nothing is under way on it."""


class AwaitRoom(commands.RequestWakeup):
    """Asks for a `Wakeup` once more of a stream can be passed on."""

    def __init__(self, stream_id: int, *, is_response: bool) -> None:
        """Start.

        Args:
            stream_id: the stream's number on the app's connection.
            is_response: whether it is for the app; if not, for the upstream.
        """
        super().__init__(0)
        self.stream_id = stream_id
        self.is_response = is_response


class AwaitTurn(commands.RequestWakeup):
    """Asks for a `Wakeup` in the next turn, and for nothing to be read from the connection before."""

    def __init__(self, conn: Connection) -> None:
        super().__init__(0)
        self.conn = conn


class PacedConnection(BufferedH2Connection):
    """The state of a connection whose peer is told to go on only by `go_on`."""

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self.local_settings.initial_window_size = STREAM_WINDOW
        self.local_settings.acknowledge()
        self.owed: dict[int, int] = {}

    def initiate_connection(self) -> None:
        """Send the preface, with our windows instead of mitmproxy's."""
        h2.connection.H2Connection.initiate_connection(self)
        self.increment_flow_control_window(CONNECTION_WINDOW - self.inbound_flow_control_window)

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """Only note what is owed."""
        self.owed[stream_id] = self.owed.get(stream_id, 0) + acknowledged_size

    def go_on(self, stream_id: int) -> None:
        """Acknowledge all that a stream has sent."""
        if owed := self.owed.pop(stream_id, 0):
            super().acknowledge_received_data(owed, stream_id)

    def receive_data(self, data: bytes) -> list[h2.events.Event]:
        """Take bytes. Whatever table the peer would hold for our header fields, ours is searched from end to end."""
        found: list[h2.events.Event] = super().receive_data(data)
        encoder = self.encoder
        encoder.header_table_size = min(encoder.header_table_size, MAX_TABLE)
        if changes := encoder.table_size_changes:  # RFC 7541, section 4.2: the smallest one and the last one are told
            encoder.table_size_changes = sorted({min(changes), encoder.header_table_size})
            encoder.header_table.resized = True  # hpack forgets it where the last two are the same
        return found

    def reset_stream(self, stream_id: int, error_code: int = 0) -> None:
        """Give a stream up, and acknowledge what it has sent, which counts for the whole connection as well."""
        super().reset_stream(stream_id, error_code)
        self.go_on(stream_id)

    def send_data(
        self, stream_id: int, data: bytes | memoryview, end_stream: bool = False, pad_length: None = None
    ) -> None:
        """Send a piece, or let it wait: as part of the last one that waits, if both are small."""
        waiting = self.stream_buffers.get(stream_id)
        if waiting and not waiting[-1].end_stream and len(waiting[-1].data) + len(data) <= MERGED_AT_MOST:
            waiting.append(SendH2Data(waiting.pop().data + bytes(data), end_stream))
        else:
            super().send_data(stream_id, bytes(data), end_stream, pad_length)

    def end_stream(self, stream_id: int) -> None:
        """End a stream, unless its end waits already behind what is still to be sent."""
        waiting = self.stream_buffers.get(stream_id)
        if not waiting or not waiting[-1].end_stream:
            super().end_stream(stream_id)

    def unsent(self, stream_id: int) -> int:
        """Return how many bytes wait for the peer to open a stream's window."""
        return sum(len(chunk.data) for chunk in self.stream_buffers.get(stream_id, ()))


class _Paced(Http2Connection):
    """What both sides have in common."""

    h2_conn: PacedConnection
    _is_upstream: bool

    def _begin(self, preface: int) -> None:
        self._unread = bytearray()
        self._left = preface  # bytes that are still to come of what has begun
        self._has_turn = True
        self._awaiting: set[int] = set()
        self._end: events.ConnectionClosed | None = None
        self._expected: dict[int, int] = {}  # bytes of bodies that are still to come, where a length is declared
        self._block: int | None = None  # bytes of a header block that has not ended
        self._is_data = False  # what has begun is a frame of a body, which may take its time
        self._to_begin = 2 if preface else 0  # the preface, and the settings that follow it (RFC 9113, section 3.4)
        self.owes_since: float | None = time.monotonic() if preface else None

    def _outside(self, stream_id: int) -> int:
        """Return a stream's number on the app's connection."""
        return stream_id

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.DataReceived):
            self._unread += event.data
            if self._has_turn:
                yield from self._take_turn()
        elif isinstance(event, events.ConnectionClosed) and not self._has_turn:
            self._end = event
        elif isinstance(event, events.Wakeup) and isinstance(event.command, AwaitTurn):
            self._has_turn = True
            yield from self._take_turn()
        elif isinstance(event, events.Wakeup) and isinstance(event.command, AwaitRoom):
            for stream_id in [each for each in self._awaiting if self._outside(each) == event.command.stream_id]:
                self._awaiting.discard(stream_id)
                self.h2_conn.go_on(stream_id)
            if data := self.h2_conn.data_to_send():
                yield commands.SendData(self.conn, data)
        else:
            yield from super()._handle_event(event)

    def _take_turn(self) -> Commands:
        at = frames = 0
        while frames < FRAMES_A_TURN and at < len(self._unread):
            if not self._left:
                if len(self._unread) - at < _HEADER:
                    break
                self._left = _HEADER + int.from_bytes(self._unread[at : at + 3])
                self._look_at_frame(self._unread[at + 3], self._unread[at + 4], self._left - _HEADER)
                if (self._block or 0) > MAX_BLOCK:
                    yield from self.protocol_error("a header block too long", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                    return
            step = min(self._left, len(self._unread) - at)
            at += step
            self._left -= step
            frames += not self._left
        part = bytes(self._unread[:at])
        del self._unread[:at]
        self._to_begin = max(self._to_begin - frames, 0)
        self._note_owed(has_ended=frames > 0)
        if part:
            yield from super()._handle_event(events.DataReceived(self.conn, part))
        if frames == FRAMES_A_TURN and self._unread:
            self._has_turn = False
            yield AwaitTurn(self.conn)
        elif self._end is not None:
            yield from super()._handle_event(self._end)

    def _look_at_frame(self, kind: int, flags: int, length: int) -> None:
        self._is_data = kind == _DATA
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            before = (self._block or 0) if kind == _CONTINUATION else 0
            self._block = None if flags & _END_HEADERS else before + length

    def _note_owed(self, *, has_ended: bool) -> None:
        """Note since when the peer owes the rest of something; a header block is one thing, whatever its frames are."""
        is_owed = self._block is not None or (bool(self._left) and not self._is_data) or bool(self._unread)
        is_owed = is_owed or self._to_begin > 0
        if not is_owed:
            self.owes_since = None
        elif self.owes_since is None or (has_ended and self._block is None):
            self.owes_since = time.monotonic()

    def _expect(self, stream_id: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Note how long a body is said to be. What is no plain number is refused with the whole head."""
        length = dict(fields).get(b"content-length", b"")
        if length.isdigit():
            self._expected[stream_id] = int(length)

    def close_connection(self, msg: str) -> Commands:
        """Close; nobody owes anything any more."""
        self.owes_since = None
        yield from super().close_connection(msg)

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        """Acknowledge little at once, and more when there is room; see that bodies are as long as was said."""
        if isinstance(event, h2.events.DataReceived):
            if event.stream_id in self._expected:
                self._expected[event.stream_id] -= len(event.data)
            if not event.data and not event.stream_ended:  # no window counts these, but for their padding
                self.h2_conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                yield from self._await_room(event.stream_id)
                return False
        elif isinstance(event, h2.events.StreamReset):
            self._expected.pop(event.stream_id, None)
        elif isinstance(event, h2.events.StreamEnded) and self._expected.pop(event.stream_id, 0):
            # h2 looks only where a body ends with its last piece of data, not where it ends with trailers.
            if not self.is_closed(event.stream_id):  # by what was said in the other direction before
                self.h2_conn.reset_stream(event.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            reset = h2.events.StreamReset(stream_id=event.stream_id, error_code=h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return (yield from self.handle_h2_event(reset))
        is_over = yield from super().handle_h2_event(event)
        if isinstance(event, h2.events.DataReceived):
            yield from self._await_room(event.stream_id)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) and event.stream_id not in self._awaiting:
            self.h2_conn.go_on(event.stream_id)
        return is_over

    def _await_room(self, stream_id: int) -> Commands:
        if self.h2_conn.owed.get(stream_id, 0) > OWED_AT_MOST and stream_id not in self._awaiting:
            self._awaiting.add(stream_id)
            yield AwaitRoom(self._outside(stream_id), is_response=self._is_upstream)


class AppHttp2(_Paced, Http2Server):
    """The app's side."""

    _is_upstream = False
    _allowance: float = RESETS_AT_ONCE
    _refilled: float = 0.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.h2_conn = PacedConnection(self.h2_conf)
        self._begin(_PREFACE)

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, Tick):  # given only where the app owes something for too long
            yield from self.protocol_error("too slow", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        elif isinstance(event, Leave):
            yield from self.protocol_error("", h2.errors.ErrorCodes.NO_ERROR)
        else:
            yield from super()._handle_event(event)

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        """Close a connection whose streams are reset faster than they can be work for anybody.

        A reset frees the app at once, while what its request has set off goes on here (CVE-2023-44487), whether the app
        resets the stream or makes us do so (CVE-2025-8671).
        """
        if isinstance(event, h2.events.StreamReset):
            now = time.monotonic()
            self._allowance = min(RESETS_AT_ONCE, self._allowance + (now - self._refilled) * RESETS_A_SECOND) - 1
            self._refilled = now
            if self._allowance < 0:
                yield from self.protocol_error("too many resets", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return True
        elif isinstance(event, h2.events.RequestReceived) and event.stream_ended is None:
            self._expect(event.stream_id, event.headers)
        return (yield from super().handle_h2_event(event))


class UpstreamHttp2(_Paced, Http2Client):
    """The upstream's side."""

    _is_upstream = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.h2_conn = PacedConnection(self.h2_conf)
        self.h2_conn.local_settings.enable_push = 0
        self.h2_conn.local_settings.acknowledge()
        self._begin(0)
        self._interim: dict[int, int] = {}  # responses to each stream so far

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        """Take a final response with a status that is one, after so many interim ones."""
        if isinstance(event, h2.events.InformationalResponseReceived):
            self._interim[event.stream_id] = count = self._interim.get(event.stream_id, 0) + 1
            if count > MAX_INTERIM or not _has_status(event.headers, _INTERIM_STATUS):
                yield from self.protocol_error("interim responses that are none, or without an end")
                return True
        elif isinstance(event, h2.events.ResponseReceived):
            self._interim.pop(event.stream_id, None)
            if not _has_status(event.headers, _FINAL_STATUS):
                yield from self.protocol_error("a status that is none")
                return True
            if event.stream_ended is None and self.h2_conn.streams[event.stream_id].request_method != b"HEAD":
                self._expect(event.stream_id, event.headers)
        return (yield from super().handle_h2_event(event))

    def _outside(self, stream_id: int) -> int:
        return self.their_stream_id.get(stream_id, 0)


def _has_status(fields: list[tuple[bytes, bytes]], pattern: re.Pattern[bytes]) -> bool:
    return pattern.fullmatch(dict(fields).get(b":status", b"")) is not None
