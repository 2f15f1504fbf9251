"""One HTTP/2 connection, as far as both sides are alike: frames, windows, turns and limits. `apps.http2` and
`upstreams.http2` subclass it.

Theory of operation. h2 keeps the state of the protocol (RFC 9113) and does no I/O: it gets one frame after the other,
and says what each means. Some errors would make h2 end the whole connection, with all its streams. So header fields and
lengths are judged by our own rules, and a malformed message ends only its stream (`http2state`). GOAWAY is read and
written here, because h2 takes it for the end of everything, while it only says which streams are still served.

A peer may send more (WINDOW_UPDATE) when what it has sent has been passed on. The connection itself is always read,
since it carries other streams, and the window updates that end a wait.

It is longer than 500 lines, because windows, turns, limits and ends all keep the books of the same streams.

Rules of this module:

- The bytes that are received and not yet passed on are limited by the windows, for each stream and for each connection.
  The bytes that wait to be sent on a stream are limited by the sender, which is told when to wait.
- One connection never holds up the others, however small its frames are.
- Frames that carry nothing (PING, SETTINGS, an empty DATA, …) are allowed in proportion to those that carry something,
  and to time; so are resets.
- Waiting bytes are sent at the end of a turn, in rotation: if a window is too small for all, each stream gets its part.
"""

from __future__ import annotations

import asyncio
import collections
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
from h2.errors import ErrorCodes

from proxy.core.http.allowances import Allowance
from proxy.core.http.heads import Fields
from proxy.engine.http2state import State, reset_here

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
OWED_AT_MOST = 64 * 1024  # received bytes after which a stream's peer is told that it may send more
UNSENT_AT_MOST = 64 * 1024  # waiting bytes of a stream after which its sender is told to wait
FRAMES_A_TURN = 32
WORK_A_TURN = 32 * 1024  # bytes of decoded header blocks; a longer block is the last of its turn
MAX_BLOCK = 128 * 1024  # bytes of an encoded header block; the policy limits the decoded one
RESETS_AT_ONCE = 100  # resets of streams on one connection; more than a browser sends when it leaves a page
RESETS_A_SECOND = 10  # … after that
EMPTY_AT_ONCE = 1000  # frames without content
EMPTY_A_SECOND = 100  # … after that
EMPTY_A_FRAME = 4  # … for each frame of a body in either direction: it causes window updates and PINGs
PAID_BY = 2048  # bytes that a frame cut short by a window must have to allow all of these

TOO_MANY_RESETS = "too many streams that were reset"
_HEADER = 9  # RFC 9113, section 4.1
_MAX_FRAME = 16384  # … section 4.2: the default, which we never raise
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = 0, 1, 3, 4, 5  # … section 6
_GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_LAST_ID = 2**31 - 1


def name_of(code: int) -> str:
    """Return the name of an error code (RFC 9113, section 7), or its number if it has none."""
    return ErrorCodes(code).name if code in ErrorCodes.__members__.values() else str(code)


def _has_data(flags: int, frame: bytes) -> bool:
    """Tell whether a DATA frame has more than padding."""
    size = len(frame) - _HEADER
    return size > (1 + frame[_HEADER] if size and flags & _PADDED else 0)


def _opens_nothing(frame: bytes) -> bool:
    """Tell whether a WINDOW_UPDATE has an increment of 0, which on a stream is an error of that stream only (RFC 9113,
    6.9).
    """
    return len(frame) == _HEADER + 4 and not int.from_bytes(frame[_HEADER:]) & _LAST_ID


class Stream(ABC):
    """One stream: the bytes that wait to be sent on it, and those received for which its peer may not send more yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True  # until both sides have ended it, or one has reset it
        self.peer_has_ended = False
        self.has_ended = False  # we have ended it, or will after the bytes that wait
        self.is_all_sent = False
        self.is_congested = False
        self.expected: int | None = None  # bytes of the body still to come, if its length is known
        self._waiting: collections.deque[bytes] = collections.deque()
        self._sent = 0  # bytes of the first waiting piece that are sent
        self._unsent = 0
        self._trailers: Fields = ()
        self._owed = 0
        self._holds: set[str] = set()

    @abstractmethod
    def congested(self, is_congested: bool) -> None:
        """Called when nothing more should be sent for now, and when it may be again."""


class Connection[S: Stream](ABC):
    """The frames of one connection. Its owner feeds it with `received`, and sends `outgoing` once each turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_client: bool, header_bytes: int) -> None:
        self.loop = loop
        self.state = State(is_client=is_client, header_bytes=header_bytes)
        self.streams: dict[int, S] = {}
        self.is_over = False
        self.is_socket_congested = False
        self._is_client = is_client
        self._out: list[bytes] = []
        self._unread = bytearray()
        self._to_begin = 2  # the preface, and the settings that follow it (RFC 9113, section 3.4)
        if is_client:
            self._to_begin = 1
        # Streams with something to send that their own windows allow; the first one is next.
        self._ready: dict[S, None] = {}
        self._flush_waits = False
        self._has_looked = False  # at the header of a frame that is not complete
        self._block: int | None = None  # bytes of an unfinished header block; None if there is none
        self._waits_for_turn = False
        self._empty = Allowance(EMPTY_AT_ONCE, EMPTY_A_SECOND, time.monotonic)
        self._resets = Allowance(RESETS_AT_ONCE, RESETS_A_SECOND, time.monotonic)

    # -- for its owner

    @abstractmethod
    def event(self, event: h2.events.Event, stream: S | None) -> None:
        """Handle what a frame means; `stream` is the stream that it is about, if known."""

    @abstractmethod
    def goaway(self, last: int, code: int) -> None:
        """Called when the peer says that it serves no stream above `last`."""

    def request(self, number: int, fields: Fields, *, is_whole: bool) -> None:  # noqa: B027  # upstreams ask nothing
        """Begin a stream: its peer has sent the head of a request, and nothing more if `is_whole`."""

    def ended(self, stream: S) -> None:  # noqa: B027  # as above
        """Called when the peer has ended a stream that began with `request`."""

    @abstractmethod
    def broken(self, streams: list[S], why: str) -> None:
        """Called when the connection must end, after `outgoing` is sent: the peer broke the protocol, or did too much.

        Args:
            streams: the streams that end with it.
            why: what the peer did.
        """

    def owe(self, is_owed: bool) -> None:  # noqa: B027  # upstreams need not do anything
        """Called when the peer has begun something that it must finish, and when it has finished."""

    @abstractmethod
    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Run a step in a turn of its own, and handle what it raises."""

    @abstractmethod
    def pause(self, is_paused: bool) -> None:
        """Stop reading for now, or go on."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write bytes to the socket."""

    # -- receiving

    def received(self, data: bytes) -> None:
        """Take bytes."""
        self._unread += data
        if not self._waits_for_turn:
            self._read()

    def _read(self) -> None:
        unread, at, frames, work = self._unread, 0, 0, self.state.work + WORK_A_TURN
        if not self._is_client and self._to_begin == 2:
            if not PREFACE.startswith(unread[: len(PREFACE)]):
                self.fail(ErrorCodes.PROTOCOL_ERROR, "it does not begin as HTTP/2 does")
                return
            if len(unread) < len(PREFACE):
                return
            at, self._to_begin = len(PREFACE), 1
            if not self._feed(bytes(unread[:at])):
                return
        while frames < FRAMES_A_TURN and self.state.work < work and len(unread) - at >= _HEADER:
            size = _HEADER + int.from_bytes(unread[at : at + 3])
            kind, flags = unread[at + 3], unread[at + 4]
            if not self._has_looked and not self._look(kind, flags, size - _HEADER):
                return
            if len(unread) - at < size:
                break
            frame = bytes(unread[at : at + size])
            at += size
            frames += 1
            self._has_looked = False
            self._take_frame(kind, flags, frame)
            if self.is_over:
                return
        del unread[:at]
        self._note_owed(has_ended=frames > 0)
        if unread and (frames == FRAMES_A_TURN or self.state.work >= work):
            self._waits_for_turn = True
            self.pause(True)
            self.loop.call_soon(self.guarded, self._take_turn)

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self.pause(False)
        if not self.is_over:
            self._read()
            if not self._waits_for_turn:
                self.caught_up()

    @abstractmethod
    def caught_up(self) -> None:
        """Called when everything that has come is read."""

    @property
    def is_behind(self) -> bool:
        """Whether bytes have come that wait for a later turn."""
        return self._waits_for_turn

    def _look(self, kind: int, flags: int, size: int) -> bool:
        """Check a frame's header as soon as it is there; return whether the frame may go on."""
        self._has_looked = True
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            before = (self._block or 0) if kind == _CONTINUATION else 0
            self._block = None if flags & _END_HEADERS else before + size
        if size > _MAX_FRAME or (kind == _SETTINGS and flags & _ACK and size):
            self.fail(ErrorCodes.FRAME_SIZE_ERROR, "a frame that is too large")
        elif self._to_begin and kind != _SETTINGS:
            self.fail(ErrorCodes.PROTOCOL_ERROR, "it does not begin as HTTP/2 does")
        elif (self._block or 0) > MAX_BLOCK:
            self.fail(ErrorCodes.ENHANCE_YOUR_CALM, f"a header block of more than {MAX_BLOCK} bytes")
        return not self.is_over

    def _note_owed(self, *, has_ended: bool) -> None:
        """Note whether the peer owes the rest of a frame or a header block; the frames of one block count as
        one thing.
        """
        unread = self._unread
        is_body = len(unread) >= _HEADER and unread[3] == _DATA
        is_owed = self._to_begin > 0 or self._block is not None or (len(unread) > 0 and not is_body)
        if has_ended and self._block is None:
            self.owe(False)
        self.owe(is_owed)

    def _take_frame(self, kind: int, flags: int, frame: bytes) -> None:
        number = int.from_bytes(frame[5:9]) & _LAST_ID
        stream = self.streams.get(number)
        if kind == _HEADERS and stream is None and not self._is_client and self._take_request(number, flags, frame):
            return
        if kind == _DATA and stream is not None and _has_data(flags, frame):
            self._empty.earn(EMPTY_A_FRAME)
        elif not self._carries(kind, flags, number, stream) and not self._empty.take():
            self.fail(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry nothing, such as PING")
            return
        if kind == _GOAWAY and not number and len(frame) >= _HEADER + 8 and self._block is None:
            code = int.from_bytes(frame[13:17])
            self.goaway(int.from_bytes(frame[9:13]) & _LAST_ID, code)
            return
        if kind == _WINDOW_UPDATE and stream is not None and self._block is None and _opens_nothing(frame):
            self.state.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
            self._take_event(reset_here(number, ErrorCodes.PROTOCOL_ERROR))
            self.wants_flush()
            return
        self._to_begin = 0
        self._feed(frame)
        if kind == _SETTINGS and not self.is_over:
            self.state.bound_table()
            for each in self.streams.values():  # their windows may have grown
                self._may_go_on(each)

    def _carries(self, kind: int, flags: int, number: int, stream: S | None) -> bool:
        """Tell whether a frame carries a part of a message."""
        if kind == _HEADERS:
            return stream is not None or (not self._is_client and number > self.state.highest_inbound_stream_id)
        if kind == _DATA:
            return stream is not None and bool(flags & _END_STREAM)
        return kind == _CONTINUATION or (kind == _RST_STREAM and stream is not None)

    def _take_request(self, number: int, flags: int, frame: bytes) -> bool:
        """Take the head of a request, if the frame is all of it; return whether it was."""
        try:
            fields = self.state.receive_request(number, flags, frame)
        except h2.exceptions.ProtocolError as e:
            self._misfed(e)
            return True
        if fields is None:
            return False
        is_whole = bool(flags & _END_STREAM)
        self.request(number, fields, is_whole=is_whole)
        if is_whole and (stream := self.streams.get(number)) is not None:
            self.ended(stream)
        return True

    def _misfed(self, error: h2.exceptions.ProtocolError) -> None:
        """End the connection for a frame that may not come; the GOAWAY is ready to be sent."""
        self._end(f"a frame that may not be, or not now ({name_of(int(error.error_code))})")

    def _feed(self, data: bytes) -> bool:
        try:
            events = self.state.receive_data(data)
        except h2.exceptions.ProtocolError as e:
            self._misfed(e)
            return False
        for event in events:
            if self.is_over:
                return False
            self._take_event(event)
        if events:
            self.wants_flush()
        return not self.is_over

    def _take_event(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        stream = self.streams.get(number) if number else None
        if isinstance(event, h2.events.WindowUpdated):
            if stream is not None:
                self._may_go_on(stream)
        elif isinstance(event, h2.events.StreamReset):
            # A reset frees the peer at once, while its request still causes work here (CVE-2023-44487), whether the
            # peer resets the stream or makes us do so (CVE-2025-8671). An upstream cannot reset more streams than we
            # begin; which app causes these resets is not known, and the requests of other apps go on.
            if not self._is_client and not self._resets.take():
                self.fail(ErrorCodes.ENHANCE_YOUR_CALM, TOO_MANY_RESETS)
            elif stream is not None:
                self._close(stream)
                self.event(event, stream)
        elif isinstance(event, h2.events.RequestReceived):
            self.request(event.stream_id, tuple(event.headers), is_whole=event.stream_ended is not None)
        else:
            self.event(event, stream)

    def take_data(self, stream: S, event: h2.events.DataReceived) -> bytes:
        """Count data for which the stream's peer is to be told that it may send more; return the data."""
        stream._owed += event.flow_controlled_length or 0
        data = event.data or b""
        if stream.expected is not None:
            stream.expected -= len(data)
        return data

    def ignore_data(self, event: h2.events.DataReceived) -> None:
        """Open the window of the connection for data on a stream that is forgotten."""
        self.state.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)

    def told(self, stream: S) -> None:
        """Tell a stream's peer that it may send more, if there is enough to tell, and no reason to wait."""
        if stream._owed > OWED_AT_MOST and not stream._holds:
            self._acknowledge(stream)

    def _acknowledge(self, stream: S) -> None:
        owed, stream._owed = stream._owed, 0
        if owed and not self.is_over:
            self.state.acknowledge_received_data(owed, stream.number)
            self.wants_flush()

    def hold(self, stream: S, why: str, is_held: bool) -> None:
        """Let a stream's peer send no more while there is any reason to wait."""
        if is_held:
            stream._holds.add(why)
        elif why in stream._holds:
            stream._holds.discard(why)
            if not stream._holds:
                self._acknowledge(stream)

    # -- sending

    def send_head(self, stream: S, fields: list[tuple[bytes, bytes]], *, is_all: bool) -> None:
        """Send a head."""
        if stream.is_open:
            self.state.send_head(stream.number, fields, is_all=is_all)
            if is_all:
                self._ended(stream)
            self.wants_flush()

    def send(self, stream: S, data: bytes) -> None:
        """Send a piece of a body at the end of the turn, as far as the windows allow; the rest waits."""
        if not stream.is_open:
            return
        stream._waiting.append(data)
        stream._unsent += len(data)
        self._ready[stream] = None
        if stream._unsent > UNSENT_AT_MOST:
            self._send_what_waits()
        self.wants_flush()

    def finish(self, stream: S, trailers: Fields = ()) -> None:
        """End a stream, after everything that waits."""
        if not stream.is_open or stream.has_ended:
            return
        stream.has_ended = True
        stream._trailers = trailers
        self._ready[stream] = None
        self.wants_flush()

    def _may_go_on(self, stream: S) -> None:
        if stream._waiting:
            self._ready[stream] = None

    def _send_what_waits(self) -> None:
        """Send what the windows allow: one frame of each stream in turn."""
        stopped: list[S] = []  # stopped by the connection's window: they come next, in this order
        while self._ready and not self.is_over:
            stream = next(iter(self._ready))
            del self._ready[stream]
            if not stream.is_open or stream.is_all_sent:
                continue
            room = self.state.local_flow_control_window(stream.number) if stream._waiting else 0
            if room > 0 or not stream._waiting:
                if stream._waiting:
                    self._send_frame(stream, room)
                if not stream._waiting and stream.has_ended and not stream.is_all_sent:
                    self._send_end(stream)
                if stream._waiting:
                    self._ready[stream] = None
                    continue
            elif self.state.outbound_flow_control_window <= 0:
                stopped.append(stream)
            self._note_congestion(stream)
        if stopped:
            self._ready = dict.fromkeys(stopped) | self._ready

    def _send_frame(self, stream: S, room: int) -> None:
        """Send one frame of the waiting bytes, of at most `room` bytes."""
        first, at = stream._waiting[0], stream._sent
        left = len(first) - at
        size = min(left, room, _MAX_FRAME)  # even if the peer accepts larger ones: other streams wait for their turn
        is_cut = size < left
        data = first[at : at + size] if at or is_cut else first
        stream._unsent -= size
        if is_cut:
            stream._sent += size
        else:
            stream._waiting.popleft()
            stream._sent = 0
        is_last = stream.has_ended and not stream._waiting and not stream._trailers
        self.state.send_piece(stream.number, data, is_last=is_last)
        self._empty.earn(EMPTY_A_FRAME * min(1.0, size / PAID_BY) if is_cut else EMPTY_A_FRAME)
        if is_last:
            self._ended(stream)

    def _send_end(self, stream: S) -> None:
        if stream._trailers:
            self.state.send_headers(stream.number, stream._trailers, end_stream=True)
        else:
            self.state.end_stream(stream.number)
        self._ended(stream)

    def _ended(self, stream: S) -> None:
        stream.has_ended = stream.is_all_sent = True
        if stream.peer_has_ended:
            self._close(stream)

    def socket_congested(self, is_congested: bool) -> None:
        """Called when the socket takes no more for now, and when it does again."""
        self.is_socket_congested = is_congested
        for stream in list(self.streams.values()):
            self._note_congestion(stream)

    def _note_congestion(self, stream: S) -> None:
        is_congested = stream.is_open and (stream._unsent > UNSENT_AT_MOST or self.is_socket_congested)
        if is_congested != stream.is_congested:
            stream.is_congested = is_congested
            stream.congested(is_congested)

    def unsent(self, stream: S) -> int:
        """Return how many bytes of a stream wait to be sent."""
        return stream._unsent

    # -- ends

    def peer_ended(self, stream: S) -> None:
        """Note that the peer has ended its side of a stream."""
        stream.peer_has_ended = True
        if stream.is_all_sent:
            self._close(stream)

    def _close(self, stream: S) -> None:
        """Forget a stream. The data that it has received still counts for the window of the connection."""
        stream.is_open = False
        stream._waiting.clear()
        stream._unsent = 0
        stream._holds.clear()
        self._acknowledge(stream)
        self.streams.pop(stream.number, None)
        self.closed(stream)

    @abstractmethod
    def closed(self, stream: S) -> None:
        """Called when a stream is over."""

    def reset(self, stream: S, code: ErrorCodes) -> None:
        """Reset a stream."""
        if stream.is_open and not self.is_over:
            known = self.state.streams.get(stream.number)
            if known is not None and not known.closed:  # h2 may have closed it for a frame that we have not handled yet
                self.state.reset_stream(stream.number, code)
            self._close(stream)
            self.wants_flush()

    def say_goaway(self, last: int, code: ErrorCodes) -> None:
        """Send a GOAWAY: no stream above `last` is served. h2 is not told, because it would take that for the end."""
        self._out.append(self.state.data_to_send())
        self._out.append(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + last.to_bytes(4) + int(code).to_bytes(4))
        self.wants_flush()

    def fail(self, code: ErrorCodes, why: str) -> None:
        """End the connection because of what its peer did, which `why` says."""
        self.say_goaway(self.state.highest_inbound_stream_id, code)
        self._end(f"{why} ({code.name})")

    def _end(self, why: str) -> None:
        self.wants_flush()
        self.broken(self.end(), why)

    def end(self) -> list[S]:
        """End it; return the streams that were under way."""
        self.is_over = True
        self._unread.clear()
        self.owe(False)
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.is_open = False
            stream._waiting.clear()
        return streams

    def wants_flush(self) -> None:
        """Send at the end of the turn: everything at once, also what other streams add meanwhile."""
        if not self._flush_waits:
            self._flush_waits = True
            self.loop.call_soon(self.guarded, self.flush_now)

    def flush_now(self) -> None:
        """Send everything that is to be sent."""
        self._flush_waits = False
        if data := self.outgoing():
            self.write(data)

    def outgoing(self) -> bytes:
        """Take the bytes to send."""
        self._send_what_waits()
        data: bytes = self.state.data_to_send()
        if self._out:
            self._out.append(data)
            data = b"".join(self._out)
            self._out.clear()
        return data
