"""One HTTP/2 connection, as far as an app's and an upstream's are alike: frames, windows, turns, bounds.

Theory of operation. h2 keeps the state of the protocol (RFC 9113) and does no I/O: it is fed one frame after the other
and says what they mean. What it would decide for everybody on a connection is decided here for one stream: header
fields and lengths are judged by our own rules, so that a malformed message ends its stream alone, and GOAWAY is read
and written here, since to h2 it is the end of everything, where it only says which streams are still served.

A peer is told to go on (WINDOW_UPDATE) when what it has sent has left. No connection is ever left unread for that,
since it carries other streams, and the window updates that end the wait.

Rules of this module:

- What is received and not passed on is bounded by the windows, for each stream and for each connection; what waits to
  be sent on a stream is bounded by whoever sends, which is told.
- However small its frames are, one connection does not hold up the others.
- Frames that carry nothing (PING, SETTINGS, an empty DATA, …) are paid for by those that do, or by time; so are resets.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import hpack
import hyperframe.frame
from h2.errors import ErrorCodes

from proxy.core.heads import Fields

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
STREAM_WINDOW = 1024 * 1024
CONNECTION_WINDOW = 8 * 1024 * 1024
SHARED_STREAM_WINDOW = 512 * 1024  # of an upstream's connection, which several apps share
MAX_STREAMS = 100  # at once
OWED_AT_MOST = 64 * 1024  # before a stream's sender is told to go on
UNSENT_AT_MOST = 64 * 1024  # of a stream, before its sender is told to wait
FRAMES_A_TURN = 32
MAX_BLOCK = 128 * 1024  # bytes of a header block; for what it decodes to there is the policy's limit
KEPT_BLOCK = 1024  # bytes of a header block that is remembered
KEPT_BLOCKS = 64
MAX_TABLE = 4096  # bytes of the table by which field names and values are shortened (RFC 7541, section 4.2)
RESETS_AT_ONCE = 100  # of streams of one connection; more than a browser gives up with a page
RESETS_A_SECOND = 10  # … after that
EMPTY_AT_ONCE = 1000  # frames that carry nothing
EMPTY_A_SECOND = 100  # … after that
EMPTY_A_FRAME = 4  # … for each frame of a body, either way: it opens windows, and is measured by PINGs

_HEADER = 9  # RFC 9113, section 4.1
_MAX_FRAME = 16384  # … section 4.2: we ask for no other
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = 0, 1, 3, 4, 5  # … section 6
_GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
type _Frames = list[hyperframe.frame.Frame]
type _Events = list[h2.events.Event]
_LAST_ID = 2**31 - 1
_NO_LIMIT = 2**31 - 1


class Allowance:
    """So much at once, and so much in a second after that."""

    __slots__ = ("_a_second", "_at_once", "_left", "_since")

    def __init__(self, at_once: int, a_second: int) -> None:
        self._at_once = self._left = float(at_once)
        self._a_second = a_second
        self._since = time.monotonic()

    def take(self) -> bool:
        """Take one; return whether it was there."""
        if self._left < 1:
            now = time.monotonic()
            self._left = min(self._at_once, self._left + (now - self._since) * self._a_second)
            self._since = now
        self._left -= 1
        return self._left >= 0

    def earn(self, count: int) -> None:
        """Have so many more."""
        self._left = min(self._at_once, self._left + count)


class _Undecodable(h2.exceptions.ProtocolError):
    """What is no header block leaves the table of them unknown (RFC 9113, section 4.3); to h2 it is any error."""

    error_code = ErrorCodes.COMPRESSION_ERROR


class _Memory[K, V]:
    """What the same block, or the same fields, came to, for as long as the table that both refer to stays as it was.

    An app that asks for the same again sends the same few bytes, which name entries of the table: reading and writing
    heads is a quarter of what a small request costs in HTTP/2, and this saves most of it.
    """

    def __init__(self, table: hpack.table.HeaderTable) -> None:
        self._table = table
        self._newest: object = None  # by which each change of the table's entries is seen
        self._size = self._most = 0
        self._kept: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return what is known of a key."""
        return self._kept.get(key) if self._is_as_it_was() else None

    def keep(self, key: K, value: V, *, size: int) -> None:
        """Keep what a key came to, unless that has changed the table, or there is too much of it."""
        if self._is_as_it_was() and size <= KEPT_BLOCK and len(self._kept) < KEPT_BLOCKS:
            self._kept[key] = value

    def _is_as_it_was(self) -> bool:
        entries, most = self._table.dynamic_entries, self._table.maxsize
        newest = entries[0] if entries else None
        if newest is self._newest and len(entries) == self._size and most == self._most:
            return True
        self._newest, self._size, self._most = newest, len(entries), most
        self._kept.clear()
        return False


class _Decoder(hpack.Decoder):
    def __init__(self, header_bytes: int) -> None:
        super().__init__(header_bytes)
        self._memory: _Memory[bytes, tuple[hpack.HeaderTuple, ...]] = _Memory(self.header_table)

    def decode(self, data: bytes, raw: bool = False) -> Iterable[hpack.HeaderTuple]:
        known = self._memory.get(data)
        if known is not None:
            return known
        try:
            fields = tuple(super().decode(data, raw))
        except hpack.OversizedHeaderListError:
            raise
        except (hpack.HPACKError, IndexError) as e:
            raise _Undecodable(str(e)) from e
        self._memory.keep(data, fields, size=len(data))
        return fields


class _Encoder(hpack.Encoder):
    def __init__(self) -> None:
        super().__init__()
        self._memory: _Memory[tuple[hpack.HeaderTuple, ...], bytes] = _Memory(self.header_table)

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        fields = tuple(headers)
        known = None if self.header_table.resized else self._memory.get(fields)
        if known is not None:
            return known
        is_resized = self.header_table.resized
        block = super().encode(fields, huffman)
        if not is_resized:
            self._memory.keep(fields, block, size=len(block))
        return block


class State(h2.connection.H2Connection):
    """h2's state of a connection, without what it does to all streams for the sake of one."""

    def __init__(self, *, is_client: bool, header_bytes: int) -> None:
        """Start.

        As a client we serve several apps, none of which may take the others' part of the connection's window: it has
        room for that of each stream.

        Args:
            is_client: whether we are the client.
            header_bytes: how much a header list may have; 32 are counted for each field besides (RFC 9113, 6.5.2).
        """
        unchecked = h2.config.H2Configuration(  # our own rules are asked: proxy.core.heads2
            client_side=is_client,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(unchecked)
        codes = h2.settings.SettingCodes
        settings: dict[h2.settings.SettingCodes, int] = {
            codes.INITIAL_WINDOW_SIZE: SHARED_STREAM_WINDOW if is_client else STREAM_WINDOW,
            codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            codes.MAX_HEADER_LIST_SIZE: header_bytes,
        }
        if is_client:
            settings[codes.ENABLE_PUSH] = 0
        self.local_settings = h2.settings.Settings(client=is_client, initial_values=settings)
        self.decoder, self.encoder = _Decoder(header_bytes), _Encoder()
        self.initiate_connection()
        # We refuse a stream too many: h2 would end the connection, even of who has not heard of the limit yet.
        self.local_settings.max_concurrent_streams = _NO_LIMIT
        self.local_settings.acknowledge()
        window = MAX_STREAMS * SHARED_STREAM_WINDOW if is_client else CONNECTION_WINDOW
        self.increment_flow_control_window(window - self.inbound_flow_control_window)

    def _begin_new_stream(self, stream_id: int, allowed_ids: h2.connection.AllowedStreamIDs) -> h2.stream.H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        # h2 ends the connection where a body is not as long as was said; here, that is seen to for each stream.
        setattr(stream, "_initialize_content_length", _leave_lengths_alone)  # noqa: B010  # mypy minds an assignment
        for name in ("receive_headers", "receive_data"):
            setattr(stream, name, functools.partial(_receive, stream, getattr(stream, name)))
        return stream

    def bound_table(self) -> None:
        """Use a small table for our header fields, whatever the peer would hold: it is searched from end to end."""
        encoder = self.encoder
        encoder.header_table_size = min(encoder.header_table_size, MAX_TABLE)
        if changes := encoder.table_size_changes:  # RFC 7541, section 4.2: the smallest one and the last one are told
            encoder.table_size_changes = sorted({min(changes), encoder.header_table_size})
            encoder.header_table.resized = True  # hpack forgets it where the last two are the same


def _leave_lengths_alone(_fields: object) -> None:
    """Stand in for h2's look at Content-Length."""


def _receive(
    stream: h2.stream.H2Stream, receive: Callable[..., tuple[_Frames, _Events]], *arguments: object
) -> tuple[_Frames, _Events]:
    """Have h2 take a frame of a stream; one that may not come now is the end of the stream, not of the connection."""
    try:
        return receive(*arguments)
    except h2.exceptions.StreamClosedError:
        raise
    except h2.exceptions.ProtocolError as e:
        stream.state_machine.state = h2.stream.StreamState.CLOSED
        stream.state_machine.stream_closed_by = h2.stream.StreamClosedBy.SEND_RST_STREAM
        closed = h2.exceptions.StreamClosedError(stream.stream_id)
        closed.error_code = e.error_code
        closed._events = [_reset_here(stream.stream_id, e.error_code)]
        raise closed from None


def _has_data(flags: int, frame: bytes) -> bool:
    """Tell whether a DATA frame has more than padding."""
    size = len(frame) - _HEADER
    return size > (1 + frame[_HEADER] if size and flags & _PADDED else 0)


def _opens_nothing(frame: bytes) -> bool:
    """Tell whether a WINDOW_UPDATE has no increment, which on a stream is wrong of that alone (RFC 9113, 6.9)."""
    return len(frame) == _HEADER + 4 and not int.from_bytes(frame[_HEADER:]) & _LAST_ID


def _reset_here(number: int, code: ErrorCodes) -> h2.events.StreamReset:
    event = h2.events.StreamReset(stream_id=number)
    event.error_code = code
    event.remote_reset = False
    return event


class Stream:
    """One stream: what waits to be sent on it, and what its peer is not yet told to go on for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True  # until both have ended it, or one has reset it
        self.peer_has_ended = False
        self.has_ended = False  # we have said, or will say behind what waits, that this is all
        self.is_all_sent = False
        self.is_congested = False
        self.expected: int | None = None  # bytes of the body that are still to come, where a length was said
        self._waiting: collections.deque[bytes] = collections.deque()
        self._unsent = 0
        self._trailers: Fields = ()
        self._owed = 0
        self._holds: set[str] = set()

    def congested(self, is_congested: bool) -> None:
        """Take that nothing more should be sent for now, or again."""
        raise NotImplementedError


class Connection[S: Stream]:
    """One connection's frames. Who owns it feeds `received`, and sends what `outgoing` gives."""

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
        self._ready: dict[S, None] = {}  # what has something to send, in its order
        self._has_looked = False  # at the header of the frame that is not whole yet
        self._block: int | None = None  # bytes of a header block that has not ended
        self._waits_for_turn = False
        self._empty = Allowance(EMPTY_AT_ONCE, EMPTY_A_SECOND)
        self._resets = Allowance(RESETS_AT_ONCE, RESETS_A_SECOND)

    # -- for who owns it

    def event(self, event: h2.events.Event, stream: S | None) -> None:
        """Take what a frame means; `stream` is the one that it is about, if that is known."""
        raise NotImplementedError

    def goaway(self, last: int, code: int) -> None:
        """Take that the peer serves no stream above `last`."""
        raise NotImplementedError

    def broken(self, streams: list[S]) -> None:
        """Take that the connection is to end, with what `outgoing` gives: it is not HTTP/2, or too much of it.

        Args:
            streams: those that end with it.
        """
        raise NotImplementedError

    def owe(self, is_owed: bool) -> None:
        """Take whether the peer has begun something that it must end."""

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step in a turn of its own."""
        raise NotImplementedError

    def pause(self, is_paused: bool) -> None:
        """Read nothing more for now, or again."""
        raise NotImplementedError

    def wants_flush(self) -> None:
        """Take that there is something to send."""

    # -- what comes

    def received(self, data: bytes) -> None:
        """Take bytes."""
        self._unread += data
        if not self._waits_for_turn:
            self._read()

    def _read(self) -> None:
        unread, at, frames = self._unread, 0, 0
        if not self._is_client and self._to_begin == 2:
            if not PREFACE.startswith(unread[: len(PREFACE)]):
                self.fail(ErrorCodes.PROTOCOL_ERROR)
                return
            if len(unread) < len(PREFACE):
                return
            at, self._to_begin = len(PREFACE), 1
            if not self._feed(bytes(unread[:at])):
                return
        while frames < FRAMES_A_TURN and len(unread) - at >= _HEADER:
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
        if frames == FRAMES_A_TURN and unread:
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

    def caught_up(self) -> None:
        """Take that all that has come is read."""

    @property
    def is_behind(self) -> bool:
        """Whether something has come that has a turn to come."""
        return self._waits_for_turn

    def _look(self, kind: int, flags: int, size: int) -> bool:
        """Look at a frame's header as soon as it is there; return whether it may go on."""
        self._has_looked = True
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            before = (self._block or 0) if kind == _CONTINUATION else 0
            self._block = None if flags & _END_HEADERS else before + size
        if size > _MAX_FRAME or (kind == _SETTINGS and flags & _ACK and size):
            self.fail(ErrorCodes.FRAME_SIZE_ERROR)
        elif self._to_begin and kind != _SETTINGS:
            self.fail(ErrorCodes.PROTOCOL_ERROR)
        elif (self._block or 0) > MAX_BLOCK:
            self.fail(ErrorCodes.ENHANCE_YOUR_CALM)
        return not self.is_over

    def _note_owed(self, *, has_ended: bool) -> None:
        """Note whether the peer owes the rest of something; a header block is one thing, whatever its frames are."""
        unread = self._unread
        is_body = len(unread) >= _HEADER and unread[3] == _DATA
        is_owed = self._to_begin > 0 or self._block is not None or (len(unread) > 0 and not is_body)
        if has_ended and self._block is None:
            self.owe(False)
        self.owe(is_owed)

    def _take_frame(self, kind: int, flags: int, frame: bytes) -> None:
        number = int.from_bytes(frame[5:9]) & _LAST_ID
        stream = self.streams.get(number)
        if kind == _DATA and stream is not None and _has_data(flags, frame):
            self._empty.earn(EMPTY_A_FRAME)
        elif not self._carries(kind, flags, number, stream) and not self._empty.take():
            self.fail(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        if kind == _GOAWAY and not number and len(frame) >= _HEADER + 8 and self._block is None:
            code = int.from_bytes(frame[13:17])
            self.goaway(int.from_bytes(frame[9:13]) & _LAST_ID, code)
            return
        if kind == _WINDOW_UPDATE and stream is not None and self._block is None and _opens_nothing(frame):
            self.state.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
            self._take_event(_reset_here(number, ErrorCodes.PROTOCOL_ERROR))
            self.wants_flush()
            return
        self._to_begin = 0
        self._feed(frame)
        if kind == _SETTINGS and not self.is_over:
            self.state.bound_table()
            self._send_all_that_waits()

    def _carries(self, kind: int, flags: int, number: int, stream: S | None) -> bool:
        """Tell whether a frame has something of a message."""
        if kind == _HEADERS:
            return stream is not None or (not self._is_client and number > self.state.highest_inbound_stream_id)
        if kind == _DATA:
            return stream is not None and bool(flags & _END_STREAM)
        return kind == _CONTINUATION or (kind == _RST_STREAM and stream is not None)

    def _feed(self, data: bytes) -> bool:
        try:
            events = self.state.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._end()  # h2 has its GOAWAY ready
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
            if number:
                if stream is not None:
                    self._send_what_waits(stream)
            else:
                self._send_all_that_waits()
        elif isinstance(event, h2.events.StreamReset):
            # It frees the peer at once, while what its request has set off goes on here (CVE-2023-44487), whether the
            # peer resets the stream or makes us do so (CVE-2025-8671). An upstream has no more streams to reset than we
            # begin; which app is to blame for what it resets nobody knows, and the others go on.
            if not self._is_client and not self._resets.take():
                self.fail(ErrorCodes.ENHANCE_YOUR_CALM)
            elif stream is not None:
                self._close(stream)
                self.event(event, stream)
        else:
            self.event(event, stream)

    def take_data(self, stream: S, event: h2.events.DataReceived) -> bytes:
        """Take note of what a stream's peer is to be told to go on for; return the data."""
        stream._owed += event.flow_controlled_length or 0
        data = event.data or b""
        if stream.expected is not None:
            stream.expected -= len(data)
        return data

    def ignore_data(self, event: h2.events.DataReceived) -> None:
        """Open the connection's window for data of a stream that nobody knows any more."""
        self.state.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)

    def told(self, stream: S) -> None:
        """Tell a stream's peer to go on, if there is enough to tell, and nobody waits."""
        if stream._owed > OWED_AT_MOST and not stream._holds:
            self._acknowledge(stream)

    def _acknowledge(self, stream: S) -> None:
        owed, stream._owed = stream._owed, 0
        if owed and not self.is_over:
            self.state.acknowledge_received_data(owed, stream.number)
            self.wants_flush()

    def hold(self, stream: S, why: str, is_held: bool) -> None:
        """Do not tell a stream's peer to go on while there is any reason not to."""
        if is_held:
            stream._holds.add(why)
        elif why in stream._holds:
            stream._holds.discard(why)
            if not stream._holds:
                self._acknowledge(stream)

    # -- what is sent

    def send_head(self, stream: S, fields: list[tuple[bytes, bytes]], *, is_all: bool) -> None:
        """Send a head."""
        if stream.is_open:
            self.state.send_headers(stream.number, fields, end_stream=is_all)
            if is_all:
                self._ended(stream)
            self.wants_flush()

    def send(self, stream: S, data: bytes) -> None:
        """Send a piece of a body at the end of the turn, as far as the windows go; the rest waits."""
        if not stream.is_open:
            return
        stream._waiting.append(data)
        stream._unsent += len(data)
        self._ready[stream] = None
        if stream._unsent > UNSENT_AT_MOST:
            self._send_what_waits(stream)
        self.wants_flush()

    def finish(self, stream: S, trailers: Fields = ()) -> None:
        """End a stream, behind all that waits."""
        if not stream.is_open or stream.has_ended:
            return
        stream.has_ended = True
        stream._trailers = trailers
        self._ready[stream] = None
        self.wants_flush()

    def _push(self, stream: S, data: bytes, *, is_last: bool) -> bytes:
        """Send what the windows allow, and return the rest."""
        room = self.state.local_flow_control_window(stream.number)
        most = self.state.max_outbound_frame_size
        if len(data) <= room and len(data) <= most:
            self.state.send_data(stream.number, data, end_stream=is_last)
            self._empty.earn(EMPTY_A_FRAME)
            return b""
        at = 0
        while at < len(data) and room > 0:
            size = min(len(data) - at, room, most)
            self.state.send_data(stream.number, data[at : at + size], end_stream=is_last and at + size == len(data))
            self._empty.earn(EMPTY_A_FRAME)
            at += size
            room -= size
        return data[at:]

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

    def _send_what_waits(self, stream: S) -> None:
        if stream.is_all_sent or not stream.is_open:
            return
        while stream._waiting:
            first = stream._waiting.popleft()
            is_last = stream.has_ended and not stream._waiting and not stream._trailers
            rest = self._push(stream, first, is_last=is_last)
            stream._unsent -= len(first) - len(rest)
            if rest:
                stream._waiting.appendleft(rest)
                break
            if is_last:
                self._ended(stream)
        if stream.has_ended and not stream.is_all_sent and not stream._waiting:
            self._send_end(stream)
        self._note_congestion(stream)
        self.wants_flush()

    def _send_all_that_waits(self) -> None:
        for stream in list(self.streams.values()):
            if stream._waiting:
                self._send_what_waits(stream)

    def socket_congested(self, is_congested: bool) -> None:
        """Take that the socket takes no more for now, or again."""
        self.is_socket_congested = is_congested
        for stream in list(self.streams.values()):
            self._note_congestion(stream)

    def _note_congestion(self, stream: S) -> None:
        is_congested = stream.is_open and (stream._unsent > UNSENT_AT_MOST or self.is_socket_congested)
        if is_congested != stream.is_congested:
            stream.is_congested = is_congested
            stream.congested(is_congested)

    def unsent(self, stream: S) -> int:
        """Return how many bytes of a stream wait for its windows."""
        return stream._unsent

    # -- ends

    def peer_ended(self, stream: S) -> None:
        """Take note that a stream's peer has sent all."""
        stream.peer_has_ended = True
        if stream.is_all_sent:
            self._close(stream)

    def _close(self, stream: S) -> None:
        """Forget a stream. What it has sent counts for the whole connection as well."""
        stream.is_open = False
        stream._waiting.clear()
        stream._unsent = 0
        stream._holds.clear()
        self._acknowledge(stream)
        self.streams.pop(stream.number, None)
        self.closed(stream)

    def closed(self, stream: S) -> None:
        """Take that a stream is over."""

    def reset(self, stream: S, code: ErrorCodes) -> None:
        """Give a stream up."""
        if stream.is_open and not self.is_over:
            known = self.state.streams.get(stream.number)
            if known is not None and not known.closed:  # by what has just come, and is not looked at yet
                self.state.reset_stream(stream.number, code)
            self._close(stream)
            self.wants_flush()

    def say_goaway(self, last: int, code: ErrorCodes) -> None:
        """Say that no stream above `last` is served. h2 knows nothing of it: to it, that would be the end."""
        self._out.append(self.state.data_to_send())
        self._out.append(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + last.to_bytes(4) + int(code).to_bytes(4))
        self.wants_flush()

    def fail(self, code: ErrorCodes) -> None:
        """End the connection for what its peer does."""
        self.say_goaway(self.state.highest_inbound_stream_id, code)
        self._end()

    def _end(self) -> None:
        self.wants_flush()
        self.broken(self.end())

    def end(self) -> list[S]:
        """Have done with it; return the streams that were under way."""
        self.is_over = True
        self._unread.clear()
        self.owe(False)
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.is_open = False
            stream._waiting.clear()
        return streams

    def outgoing(self) -> bytes:
        """Take the bytes to send."""
        while self._ready and not self.is_over:
            stream = next(iter(self._ready))
            del self._ready[stream]
            self._send_what_waits(stream)
        data: bytes = self.state.data_to_send()
        if self._out:
            self._out.append(data)
            data = b"".join(self._out)
            self._out.clear()
        return data
