"""Content codings as others make and read them: Python's own modules, Brotli's and Zstandard's whole-body functions."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import brotli
import zstandard


def _unzstd(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


CODINGS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gzip": (gzip.compress, gzip.decompress),
    "deflate": (zlib.compress, zlib.decompress),
    "br": (brotli.compress, brotli.decompress),
    "zstd": (zstandard.compress, _unzstd),
}


def _names(coding: str) -> list[str]:
    return [name.strip().lower().removeprefix("x-") for name in coding.split(",") if name.strip() != "identity"]


def coded_as(coding: str, body: bytes) -> bytes:
    """Return a body in the codings that a Content-Encoding field names, in their order."""
    for name in _names(coding):
        body = CODINGS[name][0](body)
    return body


def decoded_from(coding: str, body: bytes) -> bytes:
    """Return a body without them."""
    for name in reversed(_names(coding)):
        body = CODINGS[name][1](body)
    return body
