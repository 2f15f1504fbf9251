"""Content-Encoding of bodies whose fields are protected: as it is, or gzip.

Rules of this module:

- What is not exactly one of the two codings is refused. A body that we cannot read is not one that we may pass.
- Decoding takes the whole body or fails: every member of a gzip file (RFC 1952, section 2.2), each with its checksum,
  nothing cut off and nothing behind it.
- No body is inflated beyond the limit: a small body must not fill the memory.
"""

from __future__ import annotations

import zlib
from enum import StrEnum

from proxy.core.decisions import Denied, Reason

_GZIP_ONLY = 16 + zlib.MAX_WBITS  # zlib's way to ask for a gzip header and trailer, and no other
_LEVEL = 6
# What follows a member is copied once a member, so a body of very many tiny members is fed in small pieces.
_PIECE = 4096
_HINT = "send the body as it is, or with Content-Encoding: gzip"


class Encoding(StrEnum):
    """How a body is coded on its way."""

    IDENTITY = "identity"
    GZIP = "gzip"


_ENCODINGS = {
    "": Encoding.IDENTITY,
    "identity": Encoding.IDENTITY,
    "gzip": Encoding.GZIP,
    "x-gzip": Encoding.GZIP,  # the same (RFC 9110, section 8.4.1.3)
}


def parse_encoding(value: str | None) -> Encoding:
    """Return the coding that a Content-Encoding field names.

    Args:
        value: the field's value, several lines joined by commas; None where there is no such field.

    Raises:
        Denied: ENCODING_UNSUPPORTED for any other coding, and for more than one.
    """
    encoding = _ENCODINGS.get((value or "").strip(" \t").lower())
    if encoding is None:
        raise Denied(Reason.ENCODING_UNSUPPORTED, "Content-Encoding names something else than gzip or identity", _HINT)
    return encoding


def decode(body: bytes, encoding: Encoding, limit: int) -> bytes:
    """Return the body without its coding.

    Args:
        body: the whole body as it came.
        encoding: its coding.
        limit: the most bytes that it may have when decoded.

    Raises:
        Denied: BODY_TOO_LARGE beyond the limit; ENCODING_UNSUPPORTED for what is no gzip, damaged, cut off or followed
            by something else.
    """
    if encoding is Encoding.GZIP:
        return _gunzip(body, limit)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def encode(body: bytes, encoding: Encoding) -> bytes:
    """Return the body with a coding put on; the same body always gives the same bytes.

    Args:
        body: the decoded body.
        encoding: the coding.
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
                # One byte more than allowed tells that there is more; never 0, which would mean no limit.
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
