"""Takes the content encoding off a body and puts it on again: none, or gzip. `proxy.core.fields.bodies` calls it before
and after it replaces fields.

Rules of this module:

- A body with any other coding is refused: a body that we cannot read must not pass.
- A body is decoded as a whole, or not at all: every member of a gzip file (RFC 1952, section 2.2) with its checksum,
  nothing missing, and nothing after the last one.
- No body is decompressed beyond the limit: a small body must not fill the memory.
"""

from __future__ import annotations

import zlib
from enum import StrEnum

from proxy.core.decisions import Denied, Reason

_GZIP_ONLY = 16 + zlib.MAX_WBITS  # tells zlib to use the gzip format only
_LEVEL = 6
# zlib copies the bytes after each member. So a body is fed in small pieces: it may consist of very many tiny members.
_PIECE = 4096
_HINT = "send the body as it is, or with Content-Encoding: gzip"


class Encoding(StrEnum):
    """How a body is coded in the message."""

    IDENTITY = "identity"
    GZIP = "gzip"


_ENCODINGS = {
    "": Encoding.IDENTITY,
    "identity": Encoding.IDENTITY,
    "gzip": Encoding.GZIP,
    "x-gzip": Encoding.GZIP,  # another name of gzip (RFC 9110, section 8.4.1.3)
}


def parse_encoding(value: str | None) -> Encoding:
    """Return the coding that a Content-Encoding field names.

    Args:
        value: the field's value, several lines joined by commas; None if there is no such field.

    Raises:
        Denied: ENCODING_UNSUPPORTED for any other coding, and for more than one.
    """
    encoding = _ENCODINGS.get((value or "").strip(" \t").lower())
    if encoding is None:
        raise Denied(Reason.ENCODING_UNSUPPORTED, "Content-Encoding names something else than gzip or identity", _HINT)
    return encoding


def decode(body: bytes, encoding: Encoding, limit: int) -> bytes:
    """Return the decoded body.

    Args:
        body: the whole body as it came.
        encoding: its coding.
        limit: the greatest length of the decoded body in bytes.

    Raises:
        Denied: BODY_TOO_LARGE beyond the limit; ENCODING_UNSUPPORTED for a body that is no gzip, damaged, cut off, or
            followed by something else.
    """
    if encoding is Encoding.GZIP:
        return _gunzip(body, limit)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def beginning(body: bytes, content_encoding: str, most: int) -> bytes:
    """Return the beginning of a decoded body, for a look at it that decides nothing; empty if it cannot be read.

    Args:
        body: the beginning of the body as it came.
        content_encoding: the values of Content-Encoding, joined by commas; "" for none.
        most: the greatest length to return, in bytes.
    """
    try:
        if parse_encoding(content_encoding or None) is Encoding.GZIP:
            return zlib.decompressobj(_GZIP_ONLY).decompress(body, most)
    except (Denied, zlib.error):
        return b""
    return body[:most]


def encode(body: bytes, encoding: Encoding) -> bytes:
    """Return the encoded body; the same body always gives the same bytes.

    Args:
        body: the decoded body.
        encoding: the coding to use.
    """
    if encoding is Encoding.GZIP:
        return zlib.compress(body, _LEVEL, _GZIP_ONLY)  # zlib writes no time and no name into the header
    return body


def _gunzip(body: bytes, limit: int) -> bytes:
    decoded = bytearray()
    member = zlib.decompressobj(_GZIP_ONLY)
    for start in range(0, len(body), _PIECE):
        piece = body[start : start + _PIECE]
        while piece:
            if member.eof:
                member = zlib.decompressobj(_GZIP_ONLY)
            try:
                # One byte more than allowed shows that there is more. The number is never 0, which would mean no limit.
                decoded += member.decompress(piece, limit - len(decoded) + 1)
            except zlib.error:
                raise Denied(Reason.ENCODING_UNSUPPORTED, "the body is no intact gzip file", _HINT) from None
            if len(decoded) > limit:
                raise _too_large(limit)
            piece = member.unused_data  # empty unless the member ended within this piece
    if not member.eof:
        raise Denied(Reason.ENCODING_UNSUPPORTED, "the body is a gzip file that is cut off", _HINT)
    return bytes(decoded)


def _too_large(limit: int) -> Denied:
    return Denied(
        Reason.BODY_TOO_LARGE,
        f"the body has more than {limit} bytes when decoded",
        "raise limits.held_body if it must pass",
    )
