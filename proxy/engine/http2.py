"""HTTP/2 that reads no faster than it can pass on, and gives nobody more than his turn.

Theory of operation. mitmproxy acknowledges what it receives at once, with windows of two gigabytes, so that a peer who
sends faster than the other one reads fills the memory. Here it is told to go on (WINDOW_UPDATE) when what it has sent
has left: a layer that owes a stream an acknowledgement gives an `AwaitRoom`, and the driver answers it once there is
room. No connection is ever left unread for that, since it carries other streams, and the window updates that would end
the wait. What comes is read some frames at a time; for the rest the layer gives an `AwaitTurn`.

Rules of this module:

- What is received and not passed on is bounded by the windows, for each stream and for each connection.
- However small its frames are, one connection does not hold up the others.
- Streams may be given up, but not without end.
"""

from __future__ import annotations

import time

import h2.config
import h2.connection
import h2.errors
import h2.events
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

Commands = layer.CommandGenerator[None]

STREAM_WINDOW = 1024 * 1024
CONNECTION_WINDOW = 8 * 1024 * 1024
OWED_AT_MOST = 64 * 1024  # before there is an acknowledgement, or a wait for room
UNSENT_AT_MOST = 64 * 1024  # of a stream, for there to be room
FRAMES_A_TURN = 32
RESETS_AT_ONCE = 100  # of streams of one connection; more than a browser gives up with a page
RESETS_A_SECOND = 10  # … after that
_HEADER = 9  # RFC 9113, section 4.1
_PREFACE = 24  # … section 3.4


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
            step = min(self._left, len(self._unread) - at)
            at += step
            self._left -= step
            frames += not self._left
        part = bytes(self._unread[:at])
        del self._unread[:at]
        if part:
            yield from super()._handle_event(events.DataReceived(self.conn, part))
        if frames == FRAMES_A_TURN and self._unread:
            self._has_turn = False
            yield AwaitTurn(self.conn)
        elif self._end is not None:
            yield from super()._handle_event(self._end)

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        """Acknowledge little at once, and more when there is room."""
        is_over = yield from super().handle_h2_event(event)
        if isinstance(event, h2.events.DataReceived):
            stream_id = event.stream_id
            if self.h2_conn.owed.get(stream_id, 0) > OWED_AT_MOST and stream_id not in self._awaiting:
                self._awaiting.add(stream_id)
                yield AwaitRoom(self._outside(stream_id), is_response=self._is_upstream)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) and event.stream_id not in self._awaiting:
            self.h2_conn.go_on(event.stream_id)
        return is_over


class AppHttp2(_Paced, Http2Server):
    """The app's side."""

    _is_upstream = False
    _allowance: float = RESETS_AT_ONCE
    _refilled: float = 0.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.h2_conn = PacedConnection(self.h2_conf)
        self._begin(_PREFACE)

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

    def _outside(self, stream_id: int) -> int:
        return self.their_stream_id.get(stream_id, 0)
