"""The frames and messages of WebSocket (RFC 6455, section 5): cuts the bytes of one direction into them, and writes
them anew. `proxy.engine.apps.messages` reads both directions of a WebSocket with it if messages may have marked fields.
`proxy.core.http.permessage` has the one extension that is read, permessage-deflate.

Rules of this module:

- It reads strictly: reserved bits and opcodes, a mask that lacks or must not be there, a length that could be shorter,
  a control frame in parts, a fragment of nothing, text that is no UTF-8: each is an error, with the code to close with.
- A message is held until it is whole, up to a limit, in no more memory than its bytes take. Control frames between its
  fragments come out at once, in their order.
- One call reads one frame, or as much of it as is there: the caller decides how many there are in one turn.
- Nothing that comes behind a close frame is looked at.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.http.permessage import BadMessage, Deflater, Inflater, TooLarge

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PROTOCOL_ERROR, INVALID_DATA, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR = 1002, 1007, 1008, 1009, 1011

_FIN, _RSV1, _RSV, _OPCODE = 0x80, 0x40, 0x70, 0x0F
_OPCODES = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
_MOST_CONTROL = 125  # bytes in a control frame (section 5.5)
_MOST_REASON = _MOST_CONTROL - 2


class BadFrame(Exception):
    """The peer does not keep to the protocol.

    Attributes:
        code: the status to close with (section 7.4.1).
        detail: one sentence on what is wrong, without anything that was sent.
    """

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(slots=True)
class Piece:
    """A frame, or a part of one.

    Attributes:
        opcode: the frame's opcode.
        is_first: whether the frame begins with it.
        is_last: whether the frame ends with it.
        is_final: whether the frame is the last of its message.
        is_compressed: whether the frame says that its message is compressed.
        length: the length of the frame's whole payload.
        raw: its bytes as they came.
        payload: its part of the payload, unmasked.
    """

    opcode: int
    is_first: bool
    is_last: bool
    is_final: bool
    is_compressed: bool
    length: int
    raw: bytes
    payload: bytes


class Frames:
    """Cuts the bytes of one direction into frames, or parts of them; only a control frame is always whole.

    Attributes:
        is_between: whether no frame has begun and not ended.
        has_closed: whether a close frame has come.
    """

    def __init__(self, *, is_masked: bool, may_compress: bool) -> None:
        """Start.

        Args:
            is_masked: whether frames must be masked, as a client's must, or must not be.
            may_compress: whether permessage-deflate was agreed on.
        """
        self._is_masked = is_masked
        self._may_compress = may_compress
        self._data = b""
        self._at = 0
        self._opcode = 0
        self._flags = 0
        self._length = 0
        self._left = 0  # bytes of the payload that are still to come
        self._mask = b""
        self._in_message = False
        self.is_between = True
        self.has_closed = False

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next(self) -> Piece | None:
        """Return what comes next; None if more bytes are needed.

        Raises:
            BadFrame: the peer does not keep to the protocol.
        """
        if self.has_closed:
            self._data, self._at = b"", 0
            return None
        start, is_first = self._at, self.is_between
        if is_first:
            head = self._head()
            if head is None or (self._opcode >= CLOSE and len(self._data) - head < self._length):
                return None
            self._at, self._left = head, self._length
        elif start == len(self._data):
            return None
        end = min(self._at + self._left, len(self._data))
        payload = self._data[self._at : end]
        if self._mask:
            payload = self._unmasked(payload)
        self._left -= end - self._at
        self._at = end
        is_last = self.is_between = not self._left
        is_final = bool(self._flags & _FIN)
        if self._opcode >= CLOSE:
            self.has_closed = self._opcode == CLOSE
        elif is_last:
            self._in_message = not is_final
        is_compressed = bool(self._flags & _RSV1)
        raw = self._data[start:end]
        return Piece(self._opcode, is_first, is_last, is_final, is_compressed, self._length, raw, payload)

    def _head(self) -> int | None:
        """Read the head of a frame; return where its payload begins, None if it is not there yet."""
        data, at = self._data, self._at
        there = len(data) - at
        if there < 2:
            return None
        flags, length = data[at], data[at + 1] & 0x7F
        self._check(flags, length, is_masked=data[at + 1] > 0x7F)
        at += 2
        if length > _MOST_CONTROL:
            size, least = (2, 126) if length == 126 else (8, 0x10000)
            if there < 2 + size:
                return None
            length = int.from_bytes(data[at : at + size], "big")
            if not least <= length < 1 << 63:
                raise BadFrame(PROTOCOL_ERROR, "a frame's length is not written as it must be")
            at += size
        if self._is_masked:
            self._mask = data[at : at + 4]
            at += 4
            if len(self._mask) < 4:
                return None
        self._opcode, self._flags, self._length = flags & _OPCODE, flags, length
        return at

    def _check(self, flags: int, length: int, *, is_masked: bool) -> None:
        opcode = flags & _OPCODE
        if opcode not in _OPCODES:
            raise BadFrame(PROTOCOL_ERROR, "a frame has a reserved opcode")
        if flags & _RSV and not (flags & _RSV == _RSV1 and self._may_compress and opcode in (TEXT, BINARY)):
            raise BadFrame(PROTOCOL_ERROR, "a frame has reserved bits, and no extension that was agreed on has them")
        if is_masked is not self._is_masked:
            what = "must not be" if is_masked else "must be"
            raise BadFrame(PROTOCOL_ERROR, f"a frame of this side {what} masked")
        if opcode >= CLOSE:
            if not flags & _FIN or length > _MOST_CONTROL:
                raise BadFrame(PROTOCOL_ERROR, "a control frame is a fragment, or too long")
        elif (opcode == CONTINUATION) is not self._in_message:
            raise BadFrame(PROTOCOL_ERROR, "a fragment belongs to no message, or a message begins within another one")

    def _unmasked(self, payload: bytes) -> bytes:
        """Unmask the next part of a payload."""
        size = len(payload)
        mask = self._mask * (size // 4 + 1)
        shift = size % 4
        self._mask = self._mask[shift:] + self._mask[:shift]
        return _xor(payload, mask[:size])


def _xor(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


@dataclass(slots=True)
class Message:
    """A whole message.

    Attributes:
        opcode: TEXT or BINARY.
        payload: its bytes, inflated; those of TEXT are UTF-8.
        was_compressed: whether it came compressed.
    """

    opcode: int
    payload: bytes
    was_compressed: bool


@dataclass(slots=True)
class Control:
    """A control frame: CLOSE, PING or PONG."""

    opcode: int
    payload: bytes


@dataclass(slots=True)
class Part:
    """A part of a message that is not whole yet, or of one that is not looked at.

    Attributes:
        raw: its bytes as they came.
    """

    raw: bytes


class Messages:
    """Reads the messages of one direction."""

    def __init__(self, frames: Frames, limit: int, inflater: Inflater | None) -> None:
        """Start.

        Args:
            frames: the frames of the direction.
            limit: the greatest length of a message in bytes, inflated.
            inflater: what inflates its messages, if permessage-deflate was agreed on.
        """
        self._frames = frames
        self._limit = limit
        self._inflater = inflater
        self._held = bytearray()
        self._opcode = 0
        self._is_compressed = False

    def read(self) -> Message | Control | Part | None:
        """Read one frame, or what is there of it; None if more bytes are needed.

        Raises:
            BadFrame: the peer does not keep to the protocol.
            TooLarge: the message is longer than the limit.
        """
        piece = self._frames.next()
        if piece is None:
            return None
        if piece.opcode >= CLOSE:
            return _control(piece)
        if piece.is_first and piece.opcode != CONTINUATION:
            self._opcode, self._is_compressed = piece.opcode, piece.is_compressed
        held, limit = self._held, self._limit
        is_whole = piece.is_last and piece.is_final
        if self._inflater is not None and self._is_compressed:
            try:
                held += self._inflater.inflate(piece.payload, limit - len(held))
                if is_whole:
                    held += self._inflater.end(limit - len(held))
            except BadMessage as e:
                raise BadFrame(INVALID_DATA, str(e)) from None
        else:
            if len(held) + (piece.length if piece.is_first else len(piece.payload)) > limit:
                raise TooLarge
            held += piece.payload
        if not is_whole:
            return Part(piece.raw)
        payload = bytes(held)
        held.clear()
        if self._opcode == TEXT and not is_utf8(payload):
            raise BadFrame(INVALID_DATA, "a text message is not UTF-8")
        return Message(self._opcode, payload, self._is_compressed)


class Passing:
    """Reads the frames of a direction whose messages are not looked at."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def read(self) -> Control | Part | None:
        """Read one frame, or what is there of it; None if more bytes are needed.

        Raises:
            BadFrame: the peer does not keep to the protocol.
        """
        piece = self._frames.next()
        if piece is None:
            return None
        return Part(piece.raw) if piece.opcode < CLOSE else _control(piece)


def _control(piece: Piece) -> Control:
    if piece.opcode == CLOSE:
        _check_close(piece.payload)
    return Control(piece.opcode, piece.payload)


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    if len(payload) < 2 or not _may_be_sent(int.from_bytes(payload[:2], "big")):
        raise BadFrame(PROTOCOL_ERROR, "a close frame has no status that may be sent")
    if not is_utf8(payload[2:]):
        raise BadFrame(INVALID_DATA, "the reason in a close frame is not UTF-8")


def _may_be_sent(code: int) -> bool:
    """Tell whether a status may be sent (section 7.4, and IANA's registry)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


def is_utf8(text: bytes) -> bool:
    """Tell whether bytes are UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def close_payload(code: int, reason: str) -> bytes:
    """Return the payload of a close frame, whose reason is as long as it may be.

    Args:
        code: the status.
        reason: why.
    """
    text = reason.encode("utf-8")[:_MOST_REASON].decode("utf-8", "ignore")
    return struct.pack(">H", code) + text.encode("utf-8")


class Writer:
    """Writes the frames of one direction: each message as a single frame, with a mask of its own if there is any."""

    def __init__(self, deflater: Deflater | None, *, is_masked: bool) -> None:
        """Start.

        Args:
            deflater: what deflates its messages, if permessage-deflate was agreed on.
            is_masked: whether frames are masked, as those for a server must be.
        """
        self._deflater = deflater
        self._is_masked = is_masked

    def message(self, message: Message, pause: Callable[[], object] = lambda: None) -> bytes:
        """Return the frame of a message; it is compressed if it came so, and can be.

        Args:
            message: the message.
            pause: called now and then while it is compressed.
        """
        deflater = self._deflater if message.was_compressed else None
        if deflater is None:
            return self._frame(_FIN | message.opcode, message.payload)
        return self._frame(_FIN | _RSV1 | message.opcode, deflater.deflate(message.payload, pause))

    def control(self, control: Control) -> bytes:
        """Return the frame of a control message."""
        return self._frame(_FIN | control.opcode, control.payload)

    def _frame(self, flags: int, payload: bytes) -> bytes:
        size, masked = len(payload), 0x80 if self._is_masked else 0
        if size <= _MOST_CONTROL:
            head = bytes((flags, masked | size))
        elif size < 0x10000:
            head = struct.pack(">BBH", flags, masked | 126, size)
        else:
            head = struct.pack(">BBQ", flags, masked | 127, size)
        if not masked:
            return head + payload
        mask = secrets.token_bytes(4)
        return head + mask + _xor(payload, (mask * (size // 4 + 1))[:size])
