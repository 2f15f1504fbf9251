"""Reads and writes base64url (RFC 7515) and strict JSON objects, of which keys and tokens are made. The other modules
of `proxy.core.jose` and the command `overcoat keys` call it.

Rules of this module:

- Every value has one accepted spelling: no padding, no stray bits, no member name twice, no NaN, UTF-8 only.
- An error never quotes its input, which may be key material.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NoReturn

# What turns base64 as `binascii` writes it into base64url without padding: `text.translate(TO_URL, LEFT_OUT)`.
TO_URL = bytes.maketrans(b"+/", b"-_")
LEFT_OUT = b"=\n"
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


def base64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515, section 2)."""
    return binascii.b2a_base64(data).translate(TO_URL, LEFT_OUT).decode("ascii")


def unbase64url(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515, section 2), in its one canonical spelling only.

    Raises:
        ValueError: there is padding, a character outside the alphabet, an impossible length, or an unused bit that is
            set.
    """
    if _BASE64URL.fullmatch(text) and len(text) % 4 != 1:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if base64url(data) == text:
            return data
    raise ValueError("not canonical base64url without padding")


def parse_object(data: bytes) -> dict[str, object]:
    """Parse one JSON object (RFC 8259) in UTF-8, with no member name twice at any depth.

    Raises:
        ValueError: it is anything else. The message quotes none of it.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object in UTF-8 with unique member names")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name appears twice")
    return members


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
