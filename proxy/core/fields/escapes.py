r"""Texts inside JSON strings: from a string to the text that it stands for, back, and which byte stands for which.
`proxy.core.fields.jsontext` looks into such texts; `proxy.core.fields.splice` puts values into them.

Rules of this module:

- Only what is put in is escaped anew. The escapes round it stay as they were.
- What is put in is escaped no more than RFC 8259 demands: `"` and `\`, and the blanks that may stand between values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from proxy.core.fields.pauses import STEP, Pause, never

# A whole pair is one escape: it stands for one character.
_find_escapes = re.compile(
    rb"\\(?:u([Dd][89ABab][0-9A-Fa-f]{2})\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}|u([0-9A-Fa-f]{4})|.)"
).finditer


def inner_text(string: bytes) -> bytes | None:
    """Return the text that a JSON string stands for.

    Args:
        string: a valid JSON string with its quotes; valid UTF-8.

    Returns:
        The text in UTF-8; None if it has half a surrogate pair, and cannot be written so.
    """
    if b"\\" not in string:
        return string[1:-1]
    decoded: str = json.loads(string)
    try:
        return decoded.encode()
    except UnicodeEncodeError:
        return None


def outer_offsets(string: bytes, inner: Sequence[int], pause: Pause = never) -> list[int]:
    """Return where bytes of the inner text stand in the string.

    Args:
        string: as for `inner_text`.
        inner: offsets in the inner text, in ascending order; each is the first byte of a character, or the end.
        pause: called again and again meanwhile.
    """
    outer: list[int] = []
    # Up to `at` in the string, `before` bytes of the inner text have been passed.
    at, before = 1, 0
    wanted = iter(inner)
    next_wanted, next_pause = next(wanted, None), STEP
    for escape in _find_escapes(string):
        if at > next_pause:
            next_pause = at + STEP
            pause()
        while next_wanted is not None and next_wanted <= before + escape.start() - at:
            outer.append(at + next_wanted - before)
            next_wanted = next(wanted, None)
        if next_wanted is None:
            return outer
        before += escape.start() - at + _inner_length(escape)
        at = escape.end()
    while next_wanted is not None:
        outer.append(at + next_wanted - before)
        next_wanted = next(wanted, None)
    return outer


def _inner_length(escape: re.Match[bytes]) -> int:
    if escape[1] is not None:
        return 4
    if escape[2] is None:
        return 1
    code = int(escape[2], 16)
    return 1 if code < 0x80 else 2 if code < 0x800 else 3


def escaped(text: bytes, depth: int) -> bytes:
    """Return JSON text as it is written within a string that stands in a string, and so on.

    Args:
        text: valid JSON; without control characters other than blanks, therefore.
        depth: in how many strings it is to stand; 0 changes nothing.
    """
    for _ in range(depth):
        text = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        text = text.replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")
    return text
