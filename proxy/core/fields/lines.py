"""Finds the JSON texts of a body that has several in a row: a line each (NDJSON, JSON Lines), or after a record
separator each (RFC 7464, `json-seq`). `texts` takes a whole body; `Lines` and `Sequence` take one that comes piece by
piece, change its texts, and let each go on as soon as it is there.

Rules of this module:

- A line ends with LF and nothing else, as a text may hold any other character that readers take for a line's end. CR
  before it is white space of JSON. A line of white space alone is no text.
- A record goes from one RS to the next. While it comes, it is complete with an LF behind a text that is closed.
- Whatever stands before the first RS counts as a record: a guessing reader may take it for one.
- Bytes outside the texts stay as they came. No text is held that is longer than the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Protocol

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason

_NO_TEXT = re.compile(rb"[ \t\r\n]*+\Z")
_RS = b"\x1e"
_MARKS = re.compile(rb"[\x1e\n\"\\{}\[\]]")  # what tells where a text is closed: strings, in which braces do not count


class Change(Protocol):
    """What happens to one text; it raises if the body must not go on."""

    def __call__(self, text: bytes, /) -> bytes:
        """Return the text to send instead; the same object if it stays."""


def texts(body: bytes, *, records: bool = False) -> Iterator[tuple[int, int]]:
    """Yield where the JSON texts of a whole body start and end.

    Args:
        body: the decoded body.
        records: whether record separators stand before its texts (`json-seq`); else each text is a line.
    """
    separator = _RS if records else b"\n"
    start, length = 0, len(body)
    while start < length:
        end = body.find(separator, start)
        if end < 0:
            end = length
        if not _NO_TEXT.match(body, start, end):
            yield start, end
        start = end + 1


def too_long(limit: int) -> Denied:
    """Return the denial of one text, or event, that is longer than what is held.

    Args:
        limit: the greatest length in bytes.
    """
    return Denied(
        Reason.BODY_TOO_LARGE,
        f"one JSON text of the body is longer than the {limit} bytes that are held to protect its fields",
    )


class _Texts:
    """A body with several JSON texts, which comes piece by piece."""

    def __init__(self, change: Change, limit: int, skip: Callable[[Denied], object]) -> None:
        """Start.

        Args:
            change: what happens to each text.
            limit: the greatest length of a text that is held, in bytes.
            skip: called for a text that is longer. It raises, or lets the text go on as it comes.
        """
        self._change = change
        self._limit = limit
        self._skip = skip
        self._held = bytearray()
        self._skips = False  # whether the rest of a text goes on as it comes

    @property
    def held(self) -> int:
        """How many bytes of a text are held."""
        return len(self._held)

    def end(self) -> bytes:
        """Return what is left when the body is complete: a last text without an end of its own."""
        out: list[bytes] = []
        self._complete(out)
        return b"".join(out)

    def _take(self, piece: bytes, out: list[bytes]) -> None:
        if not self._skips and len(self._held) + len(piece) > self._limit:
            self._skip(too_long(self._limit))
            self._skips = True
            out.append(bytes(self._held))
            self._held.clear()
        if self._skips:
            out.append(piece)
        else:
            self._held += piece

    def _complete(self, out: list[bytes]) -> None:
        self._skips = False
        held = bytes(self._held)
        self._held.clear()
        text = held.removeprefix(_RS)
        if _NO_TEXT.match(text):
            out.append(held)
        else:
            out += (held[: len(held) - len(text)], self._change(text))


class Lines(_Texts):
    """A body with one JSON text a line."""

    def feed(self, data: bytes) -> bytes:
        """Take a piece, and return what can go on."""
        out: list[bytes] = []
        start = 0
        while end := data.find(b"\n", start) + 1:
            self._take(data[start:end], out)
            self._complete(out)
            start = end
        self._take(data[start:], out)
        return b"".join(out)


class Sequence(_Texts):
    """A body with a record separator before each JSON text."""

    def __init__(self, change: Change, limit: int, skip: Callable[[Denied], object]) -> None:
        """Start; see `_Texts`."""
        super().__init__(change, limit, skip)
        self._depth = 0
        self._in_string = False
        self._escapes = False  # whether the next character is escaped

    def feed(self, data: bytes) -> bytes:
        """Take a piece, and return what can go on."""
        out: list[bytes] = []
        start, escaped = 0, 0 if self._escapes else -1
        for found in _MARKS.finditer(data):
            at, mark = found.start(), found[0]
            if mark == _RS:  # ends even what is not closed (RFC 7464, section 2.3)
                self._take(data[start:at], out)
                self._complete(out)
                start = at
            elif self._in_string:
                if at == escaped:
                    continue
                escaped = at + 1 if mark == b"\\" else escaped
                self._in_string = mark != b'"'
            elif mark == b"\n" and self._depth <= 0:
                self._take(data[start : at + 1], out)
                self._complete(out)
                start = at + 1
            else:
                self._in_string = mark == b'"'
                self._depth += (mark in b"{[") - (mark in b"}]")
        self._escapes = escaped == len(data)
        self._take(data[start:], out)
        return b"".join(out)

    def _complete(self, out: list[bytes]) -> None:
        self._depth, self._in_string = 0, False
        super()._complete(out)
