"""h2's state of one HTTP/2 connection, changed so that the error of one stream does not end all others.
`http2.Connection` has one.

Rules of this module:

- Everything that we override in h2 and hpack is here; `tests/proxy/engine/test_http2.py` fails if those parts change.
- If a peer does something wrong on a stream, only that stream ends. If a header block cannot be decoded, the connection
  ends, since the state of the peer's table is unknown from then on (RFC 9113, section 4.3).
- Cached header blocks are dropped whenever the table that they refer to changes.
- Header blocks are read and written in linear time. hpack does not do that: its Huffman coder makes one number of a
  whole string, and its decoder copies the rest of the block for each literal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import hpack
import hyperframe.frame
from h2.connection import ConnectionInputs, ConnectionState, _decode_headers
from h2.errors import ErrorCodes
from h2.stream import H2StreamStateMachine, StreamClosedBy, StreamInputs, StreamState
from hpack.hpack import INDEX_INCREMENTAL, INDEX_NEVER, decode_integer, encode_integer
from hpack.huffman_table import decode_huffman

from proxy.core.http.heads import Fields

STREAM_WINDOW = 1024 * 1024
CONNECTION_WINDOW = 8 * 1024 * 1024
SHARED_STREAM_WINDOW = 256 * 1024  # of a stream on a connection to an upstream, which several apps share
MAX_STREAMS = 100  # at once
KEPT_BLOCK = 1024  # bytes of the longest header block that is cached
KEPT_LIST = 2048  # … of its decoded size, 32 for each field included; it may be a thousand times as long
KEPT_BLOCKS = 64
MAX_TABLE = 4096  # bytes of the table by which field names and values are shortened (RFC 7541, section 4.2)
MAX_HUFFMAN = 128  # bytes of the longest string that is Huffman-coded: the cost grows with the square
type _Frames = list[hyperframe.frame.Frame]
type _Events = list[h2.events.Event]
_NO_LIMIT = 2**31 - 1
_FRAME_HEADER = 9  # bytes of a frame's header (RFC 9113, section 4.1)
_DATA, _HEADERS, _CONTINUATION = 0x0, 0x1, 0x9  # types of frames (RFC 9113, section 6)
_END_STREAM, _END_HEADERS = 0x1, 0x4  # their flags
_LIVE = (ConnectionState.SERVER_OPEN, ConnectionState.CLIENT_OPEN)  # in which heads and bodies change nothing
_MAY_SEND = (StreamState.HALF_CLOSED_REMOTE, StreamState.OPEN)


def size_of(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the size of a header list (RFC 9113, section 6.5.2)."""
    return sum([len(name) + len(value) + 32 for name, value in fields])


class NeverIndexed(hpack.NeverIndexedHeaderTuple):
    """A field that no table may keep (RFC 7541, section 7.1.3).

    hpack's own class is equal to the same field without this mark. Then a cache keyed by fields would mix up the two,
    and the mark could get lost.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, hpack.NeverIndexedHeaderTuple) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return ~tuple.__hash__(self)


class _Undecodable(h2.exceptions.ProtocolError):
    """The header block cannot be decoded, so the table is unknown from now on (RFC 9113, section 4.3)."""

    error_code = ErrorCodes.COMPRESSION_ERROR


class _Memory[K, V]:
    """A cache of decoded blocks, or of encoded fields, as long as the table that they refer to does not change.

    An app that asks for the same again sends the same few bytes, which refer to entries of the table. Reading and
    writing heads is a fifth of the cost of a small request in HTTP/2; this saves most of it.
    """

    def __init__(self, table: hpack.table.HeaderTable) -> None:
        self._table = table
        self._newest: object = None  # the table's newest entry: it tells whether the table has changed
        self._size = self._most = 0
        self._kept: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return the value for a key, if there is one."""
        return self._kept.get(key) if self._is_as_it_was() else None

    def keep(self, key: K, value: V, *, size: int) -> None:
        """Keep the value for a key, unless making it has changed the table, or it is too large."""
        if self._is_as_it_was() and size <= KEPT_LIST and len(self._kept) < KEPT_BLOCKS:
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
        self.work = 0  # bytes of everything decoded so far
        self._memory: _Memory[bytes, tuple[tuple[hpack.HeaderTuple, ...], int]] = _Memory(self.header_table)

    def decode(self, data: bytes, raw: bool = False) -> Iterable[hpack.HeaderTuple]:
        known = self._memory.get(data) if len(data) <= KEPT_BLOCK else None
        if known is not None:
            self.work += known[1]
            return known[0]
        try:
            fields = tuple(super().decode(data, raw))
        except hpack.OversizedHeaderListError:
            raise
        except (hpack.HPACKError, IndexError) as e:
            raise _Undecodable(str(e)) from e
        size = size_of(fields)
        self.work += size
        if len(data) <= KEPT_BLOCK:
            self._memory.keep(data, (fields, size), size=size)
        return fields

    def _decode_literal(self, data: bytes | memoryview, should_index: bool) -> tuple[hpack.HeaderTuple, int]:
        """Read a literal field (RFC 7541, section 6.2) from its position, without copying the bytes after it."""
        first = data[0]
        bits = 6 if should_index else 4
        index, at = decode_integer(data, bits)
        if index:
            name = self.header_table.get_by_index(index)[0]
        else:
            name, at = _read_string(data, at)
        value, at = _read_string(data, at)
        if should_index:
            self.header_table.add(name, value)
        elif first & 0x10:
            return NeverIndexed(name, value), at
        return hpack.HeaderTuple(name, value), at


def _read_string(data: bytes | memoryview, at: int) -> tuple[bytes, int]:
    """Read a string (RFC 7541, section 5.2); return it and the position after it."""
    rest = data[at:]
    length, consumed = decode_integer(rest, 7)
    found = bytes(rest[consumed : consumed + length])
    if len(found) < length:
        raise hpack.HPACKDecodingError("a string is longer than its header block")
    return decode_huffman(found) if rest[0] & 0x80 else found, at + consumed + length


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
        if not is_resized and len(block) <= KEPT_BLOCK:
            self._memory.keep(fields, block, size=size_of(fields))
        return block

    def add(self, to_add: tuple[bytes, bytes], sensitive: bool, huffman: bool = False) -> bytes:
        """Write a field. One that no table may keep is marked so, even if the table has the same field without the
        mark.
        """
        if not sensitive:
            return super().add(to_add, sensitive, huffman)
        name, value = to_add
        known = self.header_table.search(name, value)
        if known is None:
            return self._encode_literal(name, value, INDEX_NEVER, huffman)
        return self._encode_indexed_literal(known[0], value, INDEX_NEVER, huffman)

    def _encode_literal(self, name: bytes, value: bytes, indexbit: bytes, huffman: bool = False) -> bytes:
        return indexbit + self._string(name, huffman) + self._string(value, huffman)

    def _encode_indexed_literal(self, index: int, value: bytes, indexbit: bytes, huffman: bool = False) -> bytes:
        prefix = encode_integer(index, 6 if indexbit == INDEX_INCREMENTAL else 4)
        prefix[0] |= indexbit[0]
        return bytes(prefix) + self._string(value, huffman)

    def _string(self, text: bytes, huffman: bool) -> bytes:
        """Return a string literal (RFC 7541, section 5.2), Huffman-coded if it is short."""
        if not huffman or len(text) > MAX_HUFFMAN:
            return bytes(encode_integer(len(text), 7)) + text
        coded = self.huffman_coder.encode(text)
        size = encode_integer(len(coded), 7)
        size[0] |= 0x80
        return bytes(size) + coded


class State(h2.connection.H2Connection):
    """h2's state of a connection, in which the error of one stream does not end all others."""

    def __init__(self, *, is_client: bool, header_bytes: int) -> None:
        """Start.

        As a client we serve several apps on one connection, and none of them may use up its window: so the window of
        the connection has room for that of every stream.

        Args:
            is_client: whether we are the client.
            header_bytes: the greatest size of a header list; 32 bytes are added for each field (RFC 9113, 6.5.2).
        """
        unchecked = h2.config.H2Configuration(  # our own rules check messages: proxy.core.http.heads2
            client_side=is_client,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(unchecked)
        self._swept_at = 0  # the number of streams at which finished ones are next looked for
        codes = h2.settings.SettingCodes
        settings: dict[h2.settings.SettingCodes, int] = {
            codes.INITIAL_WINDOW_SIZE: SHARED_STREAM_WINDOW if is_client else STREAM_WINDOW,
            codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            codes.MAX_HEADER_LIST_SIZE: header_bytes,
        }
        if is_client:
            settings[codes.ENABLE_PUSH] = 0
        self.local_settings = h2.settings.Settings(client=is_client, initial_values=settings)
        self.decoder = self._blocks = _Decoder(header_bytes)
        self.encoder = _Encoder()
        self.initiate_connection()
        # We refuse streams over the limit ourselves: h2 would end the connection, even if the peer cannot know the
        # limit yet.
        self.local_settings.max_concurrent_streams = _NO_LIMIT
        self.local_settings.acknowledge()
        window = MAX_STREAMS * SHARED_STREAM_WINDOW if is_client else CONNECTION_WINDOW
        self.increment_flow_control_window(window - self.inbound_flow_control_window)

    def _open_streams(self, remainder: int) -> int:
        """Return the number of open streams; forget the finished ones.

        h2 looks through all streams whenever one begins. Its count of an app's streams is not needed: we have our own
        limit.
        """
        if not self.config.client_side and len(self.streams) < self._swept_at:
            return 0
        count = super()._open_streams(remainder)
        self._swept_at = 2 * len(self.streams) + 16
        return count

    def _begin_new_stream(self, stream_id: int, allowed_ids: h2.connection.AllowedStreamIDs) -> h2.stream.H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream.__class__ = _Stream
        return stream

    def receive_request(self, number: int, flags: int, frame: bytes) -> Fields | None:
        """Take the head of a request that is one frame, as nearly every head is: h2 would make a frame and two events
        of it, and look up each step of its stream (an eighth of the cost of a small request).

        Args:
            number: the number of its stream.
            flags: the frame's.
            frame: a whole HEADERS frame.

        Returns:
            The fields; None if the frame is anything else, or may be wrong, and h2 has to take it.

        Raises:
            h2.exceptions.ProtocolError: the block cannot be decoded, or is too large. The GOAWAY is ready to be sent.
        """
        is_plain = flags & ~_END_STREAM == _END_HEADERS and not self.incoming_buffer._headers_buffer
        is_new = number & 1 and number > self.highest_inbound_stream_id
        if not is_plain or not is_new or self.state_machine.state is not ConnectionState.SERVER_OPEN:
            return None
        if len(self.streams) >= self._swept_at:
            self._open_streams(1)
        try:
            fields = tuple(_decode_headers(self.decoder, frame[_FRAME_HEADER:]))
        except h2.exceptions.ProtocolError as e:
            self._terminate_connection(e.error_code)
            raise
        windows = self.local_settings.initial_window_size, self.remote_settings.initial_window_size
        self.streams[number] = stream = _Stream(number, self.config, *windows)
        stream.max_outbound_frame_size = self.max_outbound_frame_size
        self.highest_inbound_stream_id = number
        states = stream.state_machine
        states.client, states.headers_received = False, True
        states.state = StreamState.HALF_CLOSED_REMOTE if flags & _END_STREAM else StreamState.OPEN
        return fields

    def send_head(self, number: int, fields: Sequence[tuple[bytes, bytes]], *, is_all: bool) -> None:
        """Send a head. The head of a final response is written here: h2 would go through its fields four times.

        Args:
            number: the number of the stream, which is open.
            fields: the pseudo-header fields first; names in lower case.
            is_all: whether nothing follows on the stream.
        """
        first, status = fields[0]
        if first != b":status" or status < b"200":
            self.send_headers(number, fields, end_stream=is_all)
            return
        states = self.streams[number].state_machine
        if self.state_machine.state not in _LIVE:
            self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        if states.state in _MAY_SEND and states.client is False and not states.headers_sent:
            states.headers_sent = True
        else:
            states.process_input(StreamInputs.SEND_HEADERS)
        if is_all:
            _end(states)
        block, most = self.encoder.encode(fields), self.max_outbound_frame_size
        kind, flags = _HEADERS, _END_STREAM if is_all else 0
        while len(block) > most:
            self._data_to_send += _frame(kind, flags, number, block[:most])
            kind, flags, block = _CONTINUATION, 0, block[most:]
        self._data_to_send += _frame(kind, flags | _END_HEADERS, number, block)

    def send_piece(self, number: int, data: bytes, *, is_last: bool) -> None:
        """Send one frame of a body. h2 would make an object for it, and look up each window three times.

        Args:
            number: the number of the stream, which is open.
            data: at most as many bytes as its window, the connection's window and a frame have room for.
            is_last: whether nothing follows on the stream.

        Raises:
            h2.exceptions.FlowControlError: there is no room for it.
        """
        stream, size = self.streams[number], len(data)
        left, left_of_all = stream.outbound_flow_control_window - size, self.outbound_flow_control_window - size
        if left < 0 or left_of_all < 0 or size > self.max_outbound_frame_size:
            raise h2.exceptions.FlowControlError("there is no room for so much")
        states = stream.state_machine
        if self.state_machine.state not in _LIVE:
            self.state_machine.process_input(ConnectionInputs.SEND_DATA)
        if states.state not in _MAY_SEND:
            states.process_input(StreamInputs.SEND_DATA)
        if is_last:
            _end(states)
        stream.outbound_flow_control_window, self.outbound_flow_control_window = left, left_of_all
        self._data_to_send += _frame(_DATA, _END_STREAM if is_last else 0, number, data)

    @property
    def work(self) -> int:
        """The number of bytes that all header blocks came to so far, decoded: a short block may refer to long
        entries.
        """
        return self._blocks.work

    def bound_table(self) -> None:
        """Use a small table for our own header fields, even if the peer allows a large one: it is searched from end to
        end.
        """
        encoder = self.encoder
        encoder.header_table_size = min(encoder.header_table_size, MAX_TABLE)
        if changes := encoder.table_size_changes:  # RFC 7541, section 4.2: the smallest and the last size are sent
            encoder.table_size_changes = sorted({min(changes), encoder.header_table_size})
            encoder.header_table.resized = True  # hpack would not send it if the last two sizes are equal


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """Return a frame (RFC 9113, section 4.1)."""
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3), kind, flags, number.to_bytes(4), payload)


def _end(states: H2StreamStateMachine) -> None:
    """Note that nothing more is sent on a stream. If the peer has ended it, too, as nearly always, h2 is not asked."""
    if states.state is StreamState.HALF_CLOSED_REMOTE:
        states.state, states.stream_closed_by = StreamState.CLOSED, StreamClosedBy.SEND_END_STREAM
    else:
        states.process_input(StreamInputs.SEND_END_STREAM)


class _Stream(h2.stream.H2Stream):
    """h2's state of one stream. A frame that is not allowed now ends the stream, not the connection."""

    def receive_headers(
        self, headers: Iterable[hpack.struct.Header], end_stream: bool, header_encoding: bool | str | None
    ) -> tuple[_Frames, _Events]:
        return self._receive(super().receive_headers, headers, end_stream, header_encoding)

    def receive_data(self, data: bytes, end_stream: bool, flow_control_len: int) -> tuple[_Frames, _Events]:
        return self._receive(super().receive_data, data, end_stream, flow_control_len)

    def _receive(self, receive: Callable[..., tuple[_Frames, _Events]], *arguments: object) -> tuple[_Frames, _Events]:
        try:
            return receive(*arguments)
        except h2.exceptions.StreamClosedError:
            raise
        except h2.exceptions.ProtocolError as e:
            self.state_machine.state = StreamState.CLOSED
            self.state_machine.stream_closed_by = StreamClosedBy.SEND_RST_STREAM
            closed = h2.exceptions.StreamClosedError(self.stream_id)
            closed.error_code = e.error_code
            closed._events = [reset_here(self.stream_id, e.error_code)]
            raise closed from None

    def _initialize_content_length(self, headers: object) -> None:
        """Do nothing: h2 would end the connection if a body differs from its Content-Length; we check that for each
        stream.
        """


def reset_here(number: int, code: ErrorCodes) -> h2.events.StreamReset:
    """Return the event of a stream that we have reset for what its peer did."""
    event = h2.events.StreamReset(stream_id=number)
    event.error_code = code
    event.remote_reset = False
    return event
