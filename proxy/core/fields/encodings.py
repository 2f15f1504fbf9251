"""Takes the content codings off a body and puts them on again: gzip, deflate, br, zstd, and several of them one round
the other. `proxy.core.fields.bodies` calls it before and after it replaces fields; `streams` for a body that comes
piece by piece.

Rules of this module:

- A body with any other coding is refused: a body that we cannot read must not pass.
- A body is decoded as a whole, or not at all: all members of a gzip file (RFC 1952, section 2.2) and all frames of
  zstd (RFC 8878, section 3) with their checksums, nothing missing, and nothing after the end.
- No body is decoded beyond the limit, which is checked while it is decoded, after each coding: a small body must fill
  neither the memory nor the time of others.
- deflate is a zlib stream (RFC 9110, section 8.4.1.2), or a raw one, as some send; it stays which it was. zstd has a
  window of 8 MiB at the most (RFC 9659).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Protocol

import brotli
import zstandard

from proxy.core.decisions import Denied
from proxy.core.fields.pauses import Pause, never
from proxy.core.reasons import Reason

MAX_CODINGS = 3  # one round the other
MAX_WINDOW = 8 * 1024 * 1024
# Levels that take less than 20 ms for 1 MiB of JSON (40 ms of tokens), and make it hardly longer than the next ones.
_DEFLATE_LEVEL, _BROTLI_QUALITY, _ZSTD_LEVEL = 4, 4, 1
# zlib copies the bytes after each member. So a body is fed in small pieces: it may consist of very many tiny members.
_PIECE = 4096
# 8 blocks of zstd at the most, so that a piece has 1 MiB at the most when decoded: zstandard itself knows no limit.
_ZSTD_PIECE = 32
_ENCODED = 64 * 1024  # bytes that are encoded at once: 2 ms at the most
_DECODED = 64 * 1024  # bytes that are decoded at once; brotli takes it for a rough number
_MOST_DECODED = 2 * 1024 * 1024  # more than one piece ever has, of any coding
_HINT = "send the body as it is, or with Content-Encoding: gzip, deflate, br or zstd"


class Encoding(StrEnum):
    """How a body is coded in the message."""

    GZIP = "gzip"
    DEFLATE = "deflate"
    RAW_DEFLATE = "deflate without zlib's header"
    BR = "br"
    ZSTD = "zstd"


_ENCODINGS = {
    "gzip": Encoding.GZIP,
    "x-gzip": Encoding.GZIP,  # another name of gzip (RFC 9110, section 8.4.1.3)
    "deflate": Encoding.DEFLATE,
    "br": Encoding.BR,
    "zstd": Encoding.ZSTD,
}
_WINDOW_BITS = {
    Encoding.GZIP: 16 + zlib.MAX_WBITS,  # the gzip format only
    Encoding.DEFLATE: zlib.MAX_WBITS,
    Encoding.RAW_DEFLATE: -zlib.MAX_WBITS,
}


def parse_encoding(value: str | None) -> tuple[Encoding, ...]:
    """Return the codings that a Content-Encoding field names, in the order in which they were applied; `identity` is
    none.

    Args:
        value: the field's value, several lines joined by commas; None if there is no such field.

    Raises:
        Denied: ENCODING_UNSUPPORTED for any other coding, an empty name among several, and more than `MAX_CODINGS`.
    """
    if not value:
        return ()
    names = [name.strip(" \t").lower() for name in value.split(",", MAX_CODINGS)]
    if names == [""]:
        return ()
    if len(names) > MAX_CODINGS:
        raise Denied(
            Reason.ENCODING_UNSUPPORTED, f"Content-Encoding names more than {MAX_CODINGS} codings", "use a single one"
        )
    found = [_ENCODINGS.get(name) for name in names if name != "identity"]
    known = tuple(coding for coding in found if coding is not None)
    if len(known) < len(found):
        raise Denied(
            Reason.ENCODING_UNSUPPORTED, "Content-Encoding names something else than gzip, deflate, br and zstd", _HINT
        )
    return known


def offers(coding: str) -> bool:
    """Tell whether a coding, by its name in a field, can be decoded here."""
    name = coding.strip(" \t").lower()
    return name in _ENCODINGS or name == "identity"


class _Stage(Protocol):
    """Takes one coding off."""

    coding: Encoding

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what a piece decodes to, some 64 KiB at a time, and never 2 MiB."""

    def end(self) -> None:
        """Check that nothing is missing."""


class Decoder:
    """Takes codings off a body that comes piece by piece."""

    def __init__(self, codings: Sequence[Encoding]) -> None:
        """Start.

        Args:
            codings: in the order in which they were applied.
        """
        self._stages: list[_Stage] = [_stage(coding) for coding in reversed(codings)]

    @property
    def codings(self) -> tuple[Encoding, ...]:
        """The codings as they were found: of deflate, whether it is raw."""
        return tuple(stage.coding for stage in reversed(self._stages))

    def feed(self, data: bytes, limit: int) -> Iterator[bytes]:
        """Yield what a piece decodes to.

        Args:
            data: the piece.
            limit: the greatest length of what it may decode to, in bytes.

        Raises:
            Denied: BODY_TOO_LARGE beyond the limit; ENCODING_UNSUPPORTED for what is damaged, or follows the end.
        """
        pieces: Iterator[bytes] = iter((data,))
        # Within others, what is still coded may be a little longer than what it decodes to.
        more = limit // 64 + 1024
        for depth, stage in enumerate(self._stages, 1):
            most = limit if depth == len(self._stages) else limit + more
            pieces = _limited(_decoded(stage, pieces), most, limit)
        return pieces if self._stages else _limited(pieces, limit, limit)

    def end(self) -> None:
        """Check that the body is complete.

        Raises:
            Denied: ENCODING_UNSUPPORTED: it is cut off.
        """
        for stage in self._stages:
            stage.end()


def _decoded(stage: _Stage, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from stage.pieces(piece)


def _limited(pieces: Iterator[bytes], most: int, limit: int) -> Iterator[bytes]:
    for piece in pieces:
        most -= len(piece)
        if most < 0:
            raise _too_large(limit)
        yield piece


def take_off(
    body: bytes, codings: Sequence[Encoding], limit: int, *, pause: Pause = never
) -> tuple[bytes, tuple[Encoding, ...]]:
    """Return the decoded body, and with what `encode` makes the same of it again.

    Args:
        body: the whole body as it came.
        codings: its codings; see `parse_encoding`.
        limit: the greatest length of the decoded body in bytes.
        pause: called again and again meanwhile.

    Raises:
        Denied: BODY_TOO_LARGE beyond the limit; ENCODING_UNSUPPORTED for a body that is not so coded, damaged, cut
            off, or followed by something else.
    """
    if not codings:
        if len(body) > limit:
            raise _too_large(limit)
        return body, ()
    decoder = Decoder(codings)
    decoded = bytearray()
    for piece in decoder.feed(body, limit):
        decoded += piece
        pause()
    decoder.end()
    return bytes(decoded), decoder.codings


def decode(body: bytes, codings: Sequence[Encoding], limit: int, *, pause: Pause = never) -> bytes:
    """Return the decoded body; see `take_off`."""
    return take_off(body, codings, limit, pause=pause)[0]


def beginning(body: bytes, content_encoding: str, most: int) -> bytes:
    """Return the beginning of a decoded body, for a look at it that decides nothing; empty if it cannot be read.

    Args:
        body: the beginning of the body as it came.
        content_encoding: the values of Content-Encoding, joined by commas; "" for none.
        most: the greatest length to return, in bytes.
    """
    decoded = bytearray()
    try:
        for piece in Decoder(parse_encoding(content_encoding)).feed(body, len(body) + most + _MOST_DECODED):
            decoded += piece
            if len(decoded) >= most:
                break
    except Denied:
        return b""
    return bytes(decoded[:most])


def encode(body: bytes, codings: Sequence[Encoding], *, pause: Pause = never) -> bytes:
    """Return the encoded body; the same body always gives the same bytes.

    Args:
        body: the decoded body.
        codings: the codings to use, one after the other.
        pause: called again and again meanwhile.
    """
    for coding in codings:
        feed, end = _encoder(coding, len(body))
        pieces = []
        for at in range(0, len(body), _ENCODED):
            pieces.append(feed(body[at : at + _ENCODED]))
            pause()
        body = b"".join([*pieces, end()])
    return body


def _encoder(coding: Encoding, size: int) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """Return what takes the pieces of a body of a known length, and what ends it."""
    if coding is Encoding.BR:
        brotlis = brotli.Compressor(quality=_BROTLI_QUALITY)
        return brotlis.process, brotlis.finish
    if coding is Encoding.ZSTD:
        zstds = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False).compressobj(size=size)
        return zstds.compress, zstds.flush
    # zlib writes no time and no name into the header of gzip.
    zlibs = zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return zlibs.compress, zlibs.flush


def _stage(coding: Encoding) -> _Stage:
    match coding:
        case Encoding.GZIP:
            return _Gzip()
        case Encoding.BR:
            return _Brotli()
        case Encoding.ZSTD:
            return _Zstd()
        case _:
            return _Deflate()


def _inflate(stream: zlib._Decompress, data: bytes, coding: Encoding) -> Iterator[bytes]:
    """Yield what a zlib stream decodes a piece to, up to its own end."""
    while True:
        try:
            decoded = stream.decompress(data, _DECODED)
        except zlib.error:
            raise _damaged(coding) from None
        yield decoded
        data = stream.unconsumed_tail
        if stream.eof or (not data and len(decoded) < _DECODED):  # a full piece: there may be more inside
            return


class _Gzip:
    def __init__(self) -> None:
        self.coding = Encoding.GZIP
        self._member = zlib.decompressobj(_WINDOW_BITS[self.coding])

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while piece:
                if self._member.eof:
                    self._member = zlib.decompressobj(_WINDOW_BITS[self.coding])
                yield from _inflate(self._member, piece, self.coding)
                piece = self._member.unused_data  # empty unless the member ended within this piece

    def end(self) -> None:
        if not self._member.eof:
            raise _cut_off(self.coding)


class _Deflate:
    def __init__(self) -> None:
        self.coding = Encoding.DEFLATE
        self._stream: zlib._Decompress | None = None  # None until its first two bytes are there
        self._start = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            if data[0] & 0x8F != 8 or (data[0] << 8 | data[1]) % 31:  # RFC 1950, section 2.2
                self.coding = Encoding.RAW_DEFLATE
            self._stream = zlib.decompressobj(_WINDOW_BITS[self.coding])
        elif data and self._stream.eof:
            raise _damaged(self.coding)
        yield from _inflate(self._stream, data, self.coding)
        if self._stream.unused_data:
            raise _damaged(self.coding)

    def end(self) -> None:
        if self._stream is None or not self._stream.eof:
            raise _cut_off(self.coding)


class _Brotli:
    def __init__(self) -> None:
        self.coding = Encoding.BR
        self._stream = brotli.Decompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                decoded: bytes = self._stream.process(data, output_buffer_limit=_DECODED)
            except brotli.error:
                raise _damaged(self.coding) from None
            yield decoded
            # Whether it takes more says nothing of what it has decoded: that is all there only if nothing more comes.
            if not decoded and self._stream.can_accept_more_data():
                return
            data = b""

    def end(self) -> None:
        if not self._stream.is_finished():
            raise _cut_off(self.coding)


class _Zstd:
    def __init__(self) -> None:
        self.coding = Encoding.ZSTD
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_PIECE):
            piece = data[start : start + _ZSTD_PIECE]
            while piece:
                if self._frame is None or self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
                try:
                    decoded = self._frame.decompress(piece)
                except zstandard.ZstdError:
                    raise _damaged(self.coding) from None
                yield decoded
                piece = self._frame.unused_data

    def end(self) -> None:
        if self._frame is None or not self._frame.eof:
            raise _cut_off(self.coding)


def _damaged(coding: Encoding) -> Denied:
    return Denied(Reason.ENCODING_UNSUPPORTED, f"the body is not intact {_name(coding)}, and nothing behind it", _HINT)


def _cut_off(coding: Encoding) -> Denied:
    return Denied(Reason.ENCODING_UNSUPPORTED, f"the body is {_name(coding)} that is cut off", _HINT)


def _name(coding: Encoding) -> str:
    return "deflate" if coding is Encoding.RAW_DEFLATE else coding.value


def _too_large(limit: int) -> Denied:
    return Denied(
        Reason.BODY_TOO_LARGE,
        f"the body has more than {limit} bytes when decoded",
        "raise limits.held_body if it must pass",
    )
