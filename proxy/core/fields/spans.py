"""What the two walkers of `proxy.core.fields.jsontext` have in common: what they find, how they refuse a text, and the
limits of both.

Rules of this module:

- No error quotes a byte of the text.
- What is found is limited: each path may be long, so their characters count, too.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.core.fields.automaton import Automaton
from proxy.core.fields.pauses import Pause, never

MAX_VALUES = 32 * 1024  # selected values in one text
MAX_DEPTH = (
    32 * 1024
)  # nested containers; an honest body has a dozen, and most receivers read no more than some hundreds
MAX_PATHS = 4 * 1024 * 1024  # characters in all their paths together; an honest body has a hundred


class NotJson(ValueError):
    """The text is not JSON as RFC 8259 defines it, or is ambiguous.

    Attributes:
        offset: the byte at which the problem begins, from 0.
    """

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(f"{problem} at byte {offset}")
        self.offset = offset


class TooMuchSelected(ValueError):
    """More values are selected than may be, or their paths have more than `MAX_PATHS` characters in all."""

    def __init__(self, most: int) -> None:
        super().__init__(f"more than {most} values are selected, or their paths hold more than {MAX_PATHS} characters")


class Span(NamedTuple):
    """A selected value.

    Attributes:
        start: the offset of its first byte.
        end: the offset after its last byte.
        path: its normalized path (RFC 9535, section 2.7), with `*` for each array index, names of ASCII letters, digits
            and `_` in dot form, and all characters beyond printable ASCII as `\\uXXXX`: `$.items[*].secret`. For a
            value in a text inside a string, the string's path stands before it: `$.Message$.card.number`.
        job: the number of the first job that selects it.
        name: where its member's name stands: the offsets of the first byte of the name's string and after its last
            one, quotes included. None if the value is an element of an array, or a whole text.
        depth: in how many strings it stands, one inside another: all its bytes are escaped so many times.
        inner: its bytes without these escapes; None if it stands in no string.
    """

    start: int
    end: int
    path: str
    job: int
    name: tuple[int, int] | None = None
    depth: int = 0
    inner: bytes | None = None

    def value(self, text: bytes) -> bytes:
        """Return the exact bytes of the value, as they are in the innermost text in which it stands.

        Args:
            text: the outermost text.
        """
        return text[self.start : self.end] if self.inner is None else self.inner


class Holder(NamedTuple):
    """A value that should be a string with JSON text in it.

    Attributes:
        bits: the automaton's bits at the value.
        start: the offset of its first byte.
        end: the offset after its last byte.
        path: its path; see `Span`.
    """

    bits: int
    start: int
    end: int
    path: str


class Found:
    """What has been found in one text so far.

    Attributes:
        text: the text.
        automaton: what is looked for in it.
        most: the greatest number of values.
        spans: the values, in the order of the text.
        holders: values to look into, likewise. None stands in a value of `spans`.
        pause: called again and again while the text is read.
    """

    __slots__ = ("_characters", "automaton", "holders", "most", "pause", "spans", "text")

    def __init__(self, text: bytes, automaton: Automaton, most: int = MAX_VALUES, pause: Pause = never) -> None:
        self.text = text
        self.pause = pause
        self.automaton = automaton
        self.spans: list[Span] = []
        self.holders: list[Holder] = []
        self.most, self._characters = most, MAX_PATHS

    def add(self, bits: int, start: int, end: int, path: str, name: tuple[int, int] | None) -> None:
        """Note a value.

        Args:
            bits: the automaton's bits at the value; one of them is the last of a selector.
            start: the offset of its first byte.
            end: the offset after its last byte.
            path: its path.
            name: where its name stands; see `Span`.

        Raises:
            TooMuchSelected: it is one too many.
        """
        self._characters -= len(path)
        if self._characters < 0 or len(self.spans) + len(self.holders) >= self.most:
            raise TooMuchSelected(self.most)
        hit = bits & self.automaton.selected
        if hit:  # the lowest bit is the first job's
            self.spans.append(Span(start, end, path, self.automaton.job_of[hit & -hit], name))
        else:
            self.holders.append(Holder(bits, start, end, path))
