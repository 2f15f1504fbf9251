"""Finds where the selected values stand in a JSON text: a strict scanner that changes nothing and never recurses.
`proxy.core.fields.splice` calls it for each body, and replaces the values that it finds.

Rules of this module:

- A text must be exactly RFC 8259 JSON in UTF-8: no byte order mark, no NaN, no comments, no leading zeros, nothing
  after it. A name that another parser might read differently is refused, not guessed: one with half a surrogate pair,
  and one with NUL, where parsers in C end it (they read `"ssn\\u0000x"` as `ssn`).
- Names are compared decoded (`"\\u0073sn"` is `ssn`). If a name comes twice, both members are selected: some parsers
  take the first, others the last.
- If selected values are nested, only the outermost counts; if several jobs select the same value, the first.
- Work and memory grow linearly with the text, whatever its content and depth: open containers are kept on a stack of
  our own, no regular expression backtracks, and the selected values are limited, since each path may be long.
- No error quotes a byte of the text.

How it works. The selectors become one bit-parallel automaton. A selector of n segments owns n + 1 neighbouring bits.
Bit k is set at a value if the selector's first k segments lead there; the last bit means that the value is selected.
The step down to a child is
`((bits & those whose next segment accepts the child) << 1) | (bits & those with '..' next)`.
If no bit accepts any child, one regular expression checks whole runs of children.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from proxy.core.fields.selectors import Every, Selector
from proxy.core.jose.place import ascii_text

MAX_VALUES = 100_000  # selected values in one text
MAX_DEPTH = 128 * 1024  # nested containers; an honest body has a dozen, and scanning must stay quick
MAX_PATHS = 4 * 1024 * 1024  # characters in all their paths together; an honest body has a hundred

# For each open container: the decoded name of the current member in UTF-8 (an object), or the current index (an array).
# None stands for the text itself, outside all containers.
type _Step = bytes | int | None

_QUOTE, _COMMA, _OPEN_ARRAY, _CLOSE_ARRAY, _CLOSE_OBJECT = b'",[]}'
_SPACE = 0x20

_BLANK = rb"[ \t\n\r]*+"
_PLAIN = rb'[^"\\\x00-\x1f]++'
_HEX = rb"[0-9A-Fa-f]"
_STRING = rb'"(?:%s|\\(?:["\\/bfnrt]|u%s{4}))*+"' % (_PLAIN, _HEX)
# In a name, \uD800 to \uDBFF and \uDC00 to \uDFFF must come as a pair, in this order; \u0000 is refused.
_PAIR = rb"[Dd][89ABab]%s{2}\\u[Dd][C-Fc-f]%s{2}" % (_HEX, _HEX)
_UNIT = rb"(?!0000)(?:[0-9A-CEFa-cef]%s|[Dd][0-7])%s{2}" % (_HEX, _HEX)
_NAME_TEXT = rb'(?:%s|\\(?:["\\/bfnrt]|u(?:%s|%s)))*+' % (_PLAIN, _UNIT, _PAIR)
_NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_EMPTY = rb"\[%s\]|\{%s\}" % (_BLANK, _BLANK)
# A value without values inside. Empty containers count as such, so an open container has at least one item.
_SIMPLE = rb"(?:%s|%s|true|false|null|%s)" % (_STRING, _NUMBER, _EMPTY)
_MEMBER_START = rb'"%s"%s:%s' % (_NAME_TEXT, _BLANK, _BLANK)

# These match at every position, even if only the empty string; so they always return a match.
type _AlwaysMatch = Callable[[bytes, int], re.Match[bytes]]
_skip_blank = cast(_AlwaysMatch, re.compile(_BLANK).match)
_skip_elements = cast(_AlwaysMatch, re.compile(rb"(?:%s%s,%s)*+" % (_SIMPLE, _BLANK, _BLANK)).match)
_skip_members = cast(_AlwaysMatch, re.compile(rb"(?:%s%s%s,%s)*+" % (_MEMBER_START, _SIMPLE, _BLANK, _BLANK)).match)

_match_value = re.compile(rb"(?:(%s)|[\[{])%s" % (_SIMPLE, _BLANK)).match
_match_member_start = re.compile(rb'"(%s)"%s:%s' % (_NAME_TEXT, _BLANK, _BLANK)).match
_find_structure = re.compile(rb"%s|\[%s\]|[\[\]{},]" % (_STRING + rb"?+", _BLANK)).finditer
_string_pattern = re.compile(_STRING)
_is_name = re.compile(rb'"%s"' % _NAME_TEXT).fullmatch

# A member whose name has no escapes, and is none of the names in the lookahead.
_OTHER_MEMBER = rb'"(?!(?:%s)")(?:%s)?+"%s:%s%s%s,%s'

_is_shorthand = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_PATH_ESCAPES = {ord(character): "\\" + letter for character, letter in zip("\b\t\n\f\r'\\", "btnfr'\\", strict=True)}


class NotJson(ValueError):
    """The text is not JSON as RFC 8259 defines it, or is ambiguous.

    Attributes:
        offset: the byte at which the problem begins, from 0.
    """

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(f"{problem} at byte {offset}")
        self.offset = offset


class TooMuchSelected(ValueError):
    """More than `MAX_VALUES` values are selected, or their paths have more than `MAX_PATHS` characters in all."""


@dataclass(frozen=True, slots=True)
class Span:
    """A selected value.

    Attributes:
        start: the offset of its first byte.
        end: the offset after its last byte.
        path: its normalized path (RFC 9535, section 2.7), with `*` for each array index, names of ASCII letters, digits
            and `_` in dot form, and all characters beyond printable ASCII as `\\uXXXX`: `$.items[*].secret`.
        job: the number of the first job that selects it.
        name: where its member's name stands: the offsets of the first byte of the name's string and after its last
            one, quotes included. None if the value is an element of an array, or the whole text.
    """

    start: int
    end: int
    path: str
    job: int
    name: tuple[int, int] | None = None


def find_spans(text: bytes, selectors: Sequence[Sequence[Selector]]) -> list[Span]:
    """Check that a text is JSON and find the values that selectors select.

    Args:
        text: the whole text.
        selectors: one sequence of selectors for each job.

    Returns:
        The spans in the order of the text; none overlaps another.

    Raises:
        NotJson: the text is not strict RFC 8259 JSON in UTF-8.
        TooMuchSelected: more is selected than the module's limits allow.
    """
    _check_encoding(text)
    automaton = _automaton(tuple(map(tuple, selectors)))
    if not automaton.by_index_from_end:
        return _scan(text, automaton, None)
    _scan(text, _NOTHING, None)  # a simpler reader counts the lengths; it relies on the text being JSON
    return _scan(text, automaton, _array_lengths(text))


def is_name(text: bytes) -> bool:
    """Tell whether a text is exactly one JSON string that may be a member's name in the texts that pass here.

    Args:
        text: with its quotes; valid UTF-8.
    """
    return _is_name(text) is not None


def member_path(name: str) -> str:
    """Return the normalized path of a member of the root object (see `Span.path`).

    Args:
        name: the member's name, decoded.
    """
    return "$" + _path_step(name.encode())


def string_value(value: bytes) -> str | None:
    """Return the text that a JSON string stands for.

    Args:
        value: the exact bytes of one JSON value, without blanks round it.

    Returns:
        The text with all escapes replaced; None if the value is no string, or cannot be written in UTF-8.
    """
    if not _string_pattern.fullmatch(value) or _not_utf8_at(value) is not None:
        return None
    decoded: str = json.loads(value.decode())
    return decoded


@dataclass(frozen=True, slots=True)
class _Automaton:
    """All selectors of all jobs; each int is a set of bits, as the module's docstring explains.

    Attributes:
        start: the bits of the root value.
        stay: the bits whose next segment is a descendant segment.
        by_name: the bits that accept a member of this name (UTF-8), wildcards included.
        any_name: the bits that accept a member of any other name.
        by_index: the bits that accept the element of this index, wildcards included.
        by_index_from_end: the bits that accept the element of this negative index, without the wildcards.
        any_index: the bits that accept an element of any other index.
        in_object: the bits that may accept a member of an object.
        in_array: the bits that may accept an element of an array.
        skip_others: passes over the simple members of an object that have other names than those in `by_name`.
        selected: the last bits of the selectors.
        job_of: the job whose selector has this last bit.
    """

    start: int
    stay: int
    by_name: dict[bytes, int]
    any_name: int
    by_index: dict[int, int]
    by_index_from_end: dict[int, int]
    any_index: int
    in_object: int
    in_array: int
    skip_others: _AlwaysMatch
    selected: int
    job_of: dict[int, int]


@lru_cache(maxsize=256)
def _automaton(jobs: tuple[tuple[Selector, ...], ...]) -> _Automaton:
    start = stay = every = selected = 0
    by_name: dict[bytes, int] = {}
    by_index: dict[int, int] = {}
    job_of: dict[int, int] = {}
    bit = 1
    for job, selectors in enumerate(jobs):
        for selector in selectors:
            start |= bit
            for segment in selector.segments:
                if segment.descendant:
                    stay |= bit
                for choice in segment.choices:
                    if isinstance(choice, str):
                        name = choice.encode()
                        by_name[name] = by_name.get(name, 0) | bit
                    elif isinstance(choice, Every):
                        every |= bit
                    else:
                        by_index[choice] = by_index.get(choice, 0) | bit
                bit <<= 1
            selected |= bit
            job_of[bit] = job
            bit <<= 1
    in_object = in_array = every
    for bits in by_name.values():
        in_object |= bits
    for bits in by_index.values():
        in_array |= bits
    return _Automaton(
        start=start,
        stay=stay,
        by_name={name: bits | every for name, bits in by_name.items()},
        any_name=every,
        by_index={index: bits | every for index, bits in by_index.items() if index >= 0},
        by_index_from_end={index: bits for index, bits in by_index.items() if index < 0},
        any_index=every,
        in_object=in_object,
        in_array=in_array,
        skip_others=_skipping_others(by_name),
        selected=selected,
        job_of=job_of,
    )


def _skipping_others(names: Iterable[bytes]) -> _AlwaysMatch:
    excluded = b"|".join(map(re.escape, names))
    member = _OTHER_MEMBER % (excluded, _PLAIN, _BLANK, _BLANK, _SIMPLE, _BLANK, _BLANK)
    return cast(_AlwaysMatch, re.compile(rb"(?:%s)*+" % member).match)


_NOTHING = _automaton(())


def _check_encoding(text: bytes) -> None:
    """Refuse a text that is not UTF-8, or has a byte order mark (RFC 8259, section 8.1)."""
    if text.isascii():
        return
    if text.startswith(b"\xef\xbb\xbf"):
        raise NotJson("the text begins with a byte order mark, which RFC 8259 forbids,", 0)
    offset = _not_utf8_at(text)
    if offset is not None:
        raise NotJson("the text is not UTF-8", offset)


def _not_utf8_at(text: bytes) -> int | None:
    """Return the offset of the first byte that is not UTF-8. (UnicodeDecodeError would carry the text along.)"""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _scan(text: bytes, automaton: _Automaton, lengths: array[int] | None) -> list[Span]:
    """Read the text once from left to right.

    Args:
        text: valid UTF-8.
        automaton: the selectors.
        lengths: the length of each array that is not empty, in the order of their opening brackets; None if no
            selector counts from the end.
    """
    spans: list[Span] = []
    path_characters = 0
    by_name, any_name, stay = automaton.by_name, automaton.any_name, automaton.stay
    by_index, by_index_from_end, any_index = automaton.by_index, automaton.by_index_from_end, automaton.any_index
    in_object, in_array, selected = automaton.in_object, automaton.in_array, automaton.selected
    skip_others = automaton.skip_others
    next_length = iter(lengths or ()).__next__
    # The innermost open container: its current name or index, its live bits, and its length (for an array, if lengths
    # are known). The three lists hold the same for the containers round it.
    step: _Step = None
    alive = length = 0
    outer: list[_Step] = []
    all_alive: list[int] = []
    all_lengths: list[int] = []
    written: list[str] = []  # the outer steps as they are written in a path, as far as they were needed
    # Where the name of the member at hand stands.
    name: tuple[int, int] | None = None
    # A selected container that is open: the number of containers round it, its start, path, job and name. Inside it no
    # bit is alive, so there is never a second one.
    held_depth, held_start, held_path, held_job, held_name = -1, 0, "", 0, name

    data = text + b"\0"  # a sentinel that matches nothing: data[position] needs no check for the end
    position = 0
    if data[position] <= _SPACE:
        position = _skip_blank(data, position).end()
    bits = automaton.start
    while True:
        # A value begins at `position`; `bits` are the automaton's at this value.
        token = _match_value(data, position)
        if token is None:
            raise _no_value(data, position)
        hit = bits & selected
        path, job = "", 0
        if hit:
            written += map(_path_step, outer[len(written) :])
            path = "$" + "".join(written) + _path_step(step)
            job = automaton.job_of[hit & -hit]  # the lowest bit is the first job's
            path_characters += len(path)
            if len(spans) >= MAX_VALUES or path_characters > MAX_PATHS:
                raise TooMuchSelected(
                    f"more than {MAX_VALUES} values are selected, or their paths hold more than {MAX_PATHS} characters"
                )
        if token.lastindex:  # a value without values inside
            if hit:
                spans.append(Span(position, token.end(1), path, job, name))
            position = token.end()
            # Containers may end here, too.
            while (byte := data[position]) != _COMMA or step is None:
                if step is None:
                    if position != len(text):
                        raise NotJson("something follows the JSON text", position)
                    return spans
                if byte != (_CLOSE_OBJECT if isinstance(step, bytes) else _CLOSE_ARRAY):
                    kind = "an object" if isinstance(step, bytes) else "an array"
                    raise NotJson(f"expected a comma or the end of {kind}", position)
                step, alive, length = outer.pop(), all_alive.pop(), all_lengths.pop()
                if len(written) > len(outer):
                    written.pop()
                position += 1
                if len(outer) == held_depth:
                    spans.append(Span(held_start, position, held_path, held_job, held_name))
                    held_depth = -1
                if data[position] <= _SPACE:
                    position = _skip_blank(data, position).end()
            position += 1
            if data[position] <= _SPACE:
                position = _skip_blank(data, position).end()
        else:  # a container opens
            if hit:
                held_depth, held_start, held_path, held_job, held_name = len(outer), position, path, job, name
                bits = 0
            if len(outer) >= MAX_DEPTH:
                raise NotJson(f"more than {MAX_DEPTH} arrays and objects are nested in one another", position)
            outer.append(step)
            all_alive.append(alive)
            all_lengths.append(length)
            if data[position] == _OPEN_ARRAY:
                step, alive, length = -1, bits & (in_array | stay), next_length() if lengths else 0
            else:
                step, alive = b"", bits & (in_object | stay)
            position = token.end()

        # The next item of the innermost container begins at `position`. If no bit accepts any item, then items without
        # values inside are skipped, without counting them.
        if isinstance(step, bytes):
            if not alive & in_object:
                position = _skip_members(data, position).end()
            elif not alive & any_name:
                position = skip_others(data, position).end()
            token = _match_member_start(data, position)
            if token is None:
                raise _no_member(data, position)
            step, name = token[1], (position, token.end(1) + 1)
            if b"\\" in step:
                step = _unescaped(step)
            accepting = by_name.get(step, any_name)
            position = token.end()
        else:
            if not alive & in_array:
                position = _skip_elements(data, position).end()
            step, name = step + 1, None
            accepting = by_index.get(step, any_index)
            if lengths:
                accepting |= by_index_from_end.get(step - length, 0)
        bits = (alive & accepting) << 1 | alive & stay


def _array_lengths(text: bytes) -> array[int]:
    """Count the elements of each array that is not empty, in the order of their opening brackets.

    Args:
        text: a JSON text that `_scan` has accepted.
    """
    lengths = array("Q")
    open_containers: list[int] = []  # the index of each array's length; -1 for an object
    for token in _find_structure(text):
        what = token[0]
        if what == b"[":
            open_containers.append(len(lengths))
            lengths.append(1)
        elif what == b"{":
            open_containers.append(-1)
        elif what == b",":
            if open_containers[-1] >= 0:
                lengths[open_containers[-1]] += 1
        elif what in (b"]", b"}"):
            open_containers.pop()
    return lengths


def _unescaped(name: bytes) -> bytes:
    """Decode a member name with escapes, none of which is half a surrogate pair."""
    decoded: str = json.loads('"' + name.decode() + '"')
    return decoded.encode()


def _path_step(step: _Step) -> str:
    if step is None:
        return ""
    if isinstance(step, int):
        return "[*]"
    name = step.decode()
    return f".{name}" if _is_shorthand(name) else f"['{ascii_text(name.translate(_PATH_ESCAPES))}']"


def _no_value(data: bytes, position: int) -> NotJson:
    """Return the error for a position where a value should begin; `data` ends with the sentinel."""
    if position == len(data) - 1:
        return NotJson("the text ends where a value should begin,", position)
    if data[position] == _QUOTE:
        return NotJson(
            "a string that is not closed, or has a control character or an unknown escape in it, begins", position
        )
    return NotJson("expected a value", position)


def _no_member(data: bytes, position: int) -> NotJson:
    """Return the error for a position where a member should begin; `data` ends with the sentinel."""
    name = _string_pattern.match(data, position)
    if name is None:
        return NotJson("expected a member name, a string without control characters and unknown escapes,", position)
    if not _is_name(data, position, name.end()):
        return NotJson(
            "a member name with NUL or half a surrogate pair in it, which parsers read differently, begins", position
        )
    return NotJson("expected a colon behind the member name that begins", position)
