"""Reads bodies of HTTP/1: finds where a body ends, and takes it out of its chunks, while the bytes come. The engine
feeds it with what it receives from apps and from servers.

Rules of this module (RFC 9112, sections 6 and 7):

- Requests are smuggled where two readers see different chunks. So, as for heads, only the plain form passes.
- Chunk extensions and trailers have a limit. Extensions are dropped: they are for one connection only.
- Each byte is looked at once, however small the pieces are. If the chunks are small themselves, only so many are read
  at once (`Body.has_more`).
"""

from __future__ import annotations

import re
from typing import Protocol

from proxy.core.http.heads import CHUNKED, FIELD_LINE, MAX_HEAD_BYTES, UNTIL_CLOSE, Fields

MAX_TRAILERS = 100  # fields after a body
MAX_CHUNK_LINE = 4096  # bytes of the line with a chunk's size and extensions
CHUNKS_AT_ONCE = 1024  # about 4 ms of work; one read of a socket may bring forty times as many

# Possessive, so that each byte of a line is looked at once.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)[ \t]*+(?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")


class BadFraming(Exception):
    """The body does not come as its head says."""


class Body(Protocol):
    """Reads one body out of a stream of bytes.

    Attributes:
        trailers: name and value of the fields after the body, once it has ended (RFC 9110, section 6.5).
        has_more: whether bytes that were fed are still to be read: call `feed(b"")` after other connections had their
            turn.
    """

    trailers: Fields
    has_more: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take bytes.

        Returns:
            The part of the body in these bytes, and the bytes after the body; None for these while the body goes on.

        Raises:
            BadFraming: the body does not come as its head says.
        """


class LengthBody:
    """A body of a known length (RFC 9112, section 6.2)."""

    trailers: Fields = ()
    has_more = False

    def __init__(self, length: int) -> None:
        self._remaining = length

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take bytes; see `Body`."""
        if len(data) < self._remaining:
            self._remaining -= len(data)
            return data, None
        return data[: self._remaining], data[self._remaining :]


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self.trailers: Fields = ()
        self.has_more = False
        self._unread = b""
        self._line = bytearray()  # the beginning of a line that is not complete
        self._remaining = 0  # bytes of the current chunk
        self._is_after_chunk = False  # the CRLF after the chunk has not come
        self._trailer: int | None = None  # length of the trailer section so far; None before it
        self._fields: list[tuple[bytes, bytes]] = []

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take bytes; see `Body`."""
        if self._line:
            self._line += data
            if b"\n" not in data:
                self._check_line()
                return b"", None
            data = bytes(self._line)
            self._line.clear()
        elif self._unread:
            data = self._unread + data
        pieces: list[bytes] = []
        at = chunks = 0
        while self._trailer is None and chunks < CHUNKS_AT_ONCE:
            if self._remaining:
                piece = data[at : at + self._remaining]
                pieces.append(piece)
                at += len(piece)
                self._remaining -= len(piece)
                self._is_after_chunk = not self._remaining
                if self._remaining:
                    break
            if self._is_after_chunk:
                end = data[at : at + 2]
                if end != b"\r\n":
                    if end not in (b"", b"\r"):
                        raise BadFraming
                    break
                at += 2
                self._is_after_chunk = False
            line = _CHUNK_LINE.match(data, at)
            if (len(data) if line is None else line.end()) - at > MAX_CHUNK_LINE:
                raise BadFraming
            if line is None:
                if data.find(b"\n", at) >= 0:
                    raise BadFraming
                self._line += data[at:]
                at = len(data)
                break
            at = line.end()
            chunks += 1
            self._remaining = int(line[1], 16)
            if not self._remaining:
                self._trailer = 0
        rest = None
        if self._trailer is not None:
            at, has_ended = self._read_trailer(data, at)
            if has_ended:
                rest, self.trailers = data[at:], tuple(self._fields)
            else:
                self._line += data[at:]
                at = len(data)
        self._unread = data[at:]
        self.has_more = chunks == CHUNKS_AT_ONCE and rest is None and self._unread != b""
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), rest

    def _read_trailer(self, data: bytes, at: int) -> tuple[int, bool]:
        """Read complete lines; return the position after them, and whether the last one was empty."""
        assert self._trailer is not None
        while (end := data.find(b"\r\n", at)) > at:
            field = FIELD_LINE.fullmatch(data, at, end)
            if field is None:
                raise BadFraming
            self._fields.append((field[1], field[2].rstrip(b" \t")))
            self._trailer += end + 2 - at
            self._check_trailer(0)
            at = end + 2
        has_ended = end == at
        if not has_ended and data.find(b"\n", at) >= 0:
            raise BadFraming
        self._check_trailer(0 if has_ended else len(data) - at)
        return (at + 2, True) if has_ended else (at, False)

    def _check_line(self) -> None:
        """Check that an incomplete line is not too long already."""
        if self._trailer is not None:
            self._check_trailer(len(self._line))
        elif len(self._line) > MAX_CHUNK_LINE:
            raise BadFraming

    def _check_trailer(self, unread: int) -> None:
        assert self._trailer is not None
        if self._trailer + unread > MAX_HEAD_BYTES or len(self._fields) > MAX_TRAILERS:
            raise BadFraming


class UntilCloseBody:
    """A body that ends when its connection is closed (RFC 9112, section 6.3)."""

    trailers: Fields = ()
    has_more = False

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Take bytes; see `Body`."""
        return data, None


def body_of(size: int) -> Body:
    """Return a reader for a body of `size` bytes, or of size `CHUNKED` or `UNTIL_CLOSE`."""
    if size == CHUNKED:
        return ChunkedBody()
    return UntilCloseBody() if size == UNTIL_CLOSE else LengthBody(size)


def chunk(data: bytes) -> bytes:
    """Return the data as one chunk (RFC 9112, section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def last_chunk(trailers: Fields) -> bytes:
    """Return the end of a body in chunks: the chunk of length 0, and the trailer section."""
    return b"0\r\n" + b"".join(b"%s: %s\r\n" % field for field in trailers) + b"\r\n"
