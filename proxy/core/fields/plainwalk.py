"""The strict walker: reads a JSON text from left to right, byte by byte, and finds the marked values in it. It takes
any text and any selectors; `proxy.core.fields.jsontext` calls it for what `proxy.core.fields.quickwalk` leaves to it.

Rules of this module: those of `proxy.core.fields.jsontext`; and no step recurses, whatever the depth.

If no bit of the automaton accepts any child of a container, one regular expression checks whole runs of children.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from typing import cast

from proxy.core.fields import spans
from proxy.core.fields.automaton import UNKNOWN_LENGTH, automaton_of
from proxy.core.fields.names import Step, path_step, unescaped_name
from proxy.core.fields.pauses import STEP, Pause
from proxy.core.fields.spans import Found, NotJson

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

SENTINEL = b"\0"  # matches nothing: behind the text, `data[position]` needs no check for the end

# These match at every position, even if only the empty string; so they always return a match.
type _AlwaysMatch = Callable[[bytes, int], re.Match[bytes]]
_skip_blank = cast(_AlwaysMatch, re.compile(_BLANK).match)
_skip_elements = cast(_AlwaysMatch, re.compile(rb"(?:%s%s,%s)*+" % (_SIMPLE, _BLANK, _BLANK)).match)
_skip_members = cast(_AlwaysMatch, re.compile(rb"(?:%s%s%s,%s)*+" % (_MEMBER_START, _SIMPLE, _BLANK, _BLANK)).match)

_match_value = re.compile(rb"(?:(%s)|[\[{])%s" % (_SIMPLE, _BLANK)).match
_match_member_start = re.compile(rb'"(%s)"%s:%s' % (_NAME_TEXT, _BLANK, _BLANK)).match
_find_structure = re.compile(rb"%s|\[%s\]|[\[\]{},]" % (_STRING + rb"?+", _BLANK)).finditer
_match_string = re.compile(_STRING).match
is_string = re.compile(_STRING).fullmatch
is_name = re.compile(rb'"%s"' % _NAME_TEXT).fullmatch


def walk(found: Found, *, is_json: bool = False) -> None:
    """Check that a text is JSON, and find what is marked in it.

    Args:
        found: the text, valid UTF-8, and what is looked for; what is found is noted there.
        is_json: whether it is known that it is JSON.

    Raises:
        NotJson: the text is not strict RFC 8259 JSON.
        TooMuchSelected: more is selected than the limits allow.
    """
    data = found.text + SENTINEL
    lengths = None
    if found.automaton.counts_from_end:
        if not is_json:
            _whole(
                Found(found.text, automaton_of(()), pause=found.pause), data, None
            )  # a simpler reader counts, which needs JSON
        lengths = _array_lengths(found.text, found.pause)
    _whole(found, data, lengths)


def _whole(found: Found, data: bytes, lengths: array[int] | None) -> None:
    position = _skip_blank(data, 0).end()
    end = walk_value(found, data, position, found.automaton.start, lengths=lengths)
    if end != len(found.text):
        raise NotJson("something follows the JSON text", end)


def walk_value(
    found: Found, data: bytes, position: int, bits: int, *, prefix: str = "$", lengths: array[int] | None = None
) -> int:
    """Read one value, and find what is marked in it.

    Args:
        found: what is looked for; what is found is noted there.
        data: the text and the sentinel.
        position: where the value begins.
        bits: the automaton's bits at it.
        prefix: its path.
        lengths: the length of each array that is not empty, in the order of their opening brackets, from this one on;
            None if no selector counts from the end.

    Returns:
        The offset after the value and the blanks behind it.

    Raises:
        NotJson: it is not strict RFC 8259 JSON.
        TooMuchSelected: more is selected than the limits allow.
    """
    automaton = found.automaton
    every, stay, by_index, accepting_name = automaton.every, automaton.stay, automaton.by_index, automaton.accepting
    in_object, in_array, final = automaton.in_object, automaton.in_array, automaton.selected | automaton.holding
    next_length = iter(lengths or ()).__next__
    # The innermost open container: its current name or index, its live bits, and what its slices select (of an array).
    # The three lists hold the same for the containers round it.
    step: Step = None
    alive = 0
    ranges: tuple[tuple[range, int], ...] = ()
    outer: list[Step] = []
    all_alive: list[int] = []
    all_ranges: list[tuple[tuple[range, int], ...]] = []
    written: list[str] = []  # the outer steps as they are written in a path, as far as they were needed
    # Where the name of the member at hand stands.
    name: tuple[int, int] | None = None
    # A selected container that is open: the number of containers round it, its bits, start, path and name. Inside it no
    # bit is alive, so there is never a second one.
    held_depth, held_bits, held_start, held_path, held_name = -1, 0, 0, "", name

    next_pause = position + STEP
    while True:
        # A value begins at `position`; `bits` are the automaton's at this value.
        if position > next_pause:
            next_pause = position + STEP
            found.pause()
        token = _match_value(data, position)
        if token is None:
            raise _no_value(data, position)
        hit = bits & final
        path = ""
        if hit:
            written += map(path_step, outer[len(written) :])
            path = prefix + "".join(written) + path_step(step)
        if token.lastindex:  # a value without values inside
            if hit:
                found.add(hit, position, token.end(1), path, name)
            position = token.end()
            # Containers may end here, too.
            while step is None or (byte := data[position]) != _COMMA:
                if step is None:
                    return position
                if byte != (_CLOSE_OBJECT if isinstance(step, bytes) else _CLOSE_ARRAY):
                    kind = "an object" if isinstance(step, bytes) else "an array"
                    raise NotJson(f"expected a comma or the end of {kind}", position)
                step, alive, ranges = outer.pop(), all_alive.pop(), all_ranges.pop()
                if len(written) > len(outer):
                    written.pop()
                position += 1
                if position > next_pause:
                    next_pause = position + STEP
                    found.pause()
                if len(outer) == held_depth:
                    found.add(held_bits, held_start, position, held_path, held_name)
                    held_depth = -1
                if data[position] <= _SPACE:
                    position = _skip_blank(data, position).end()
            position += 1
            if data[position] <= _SPACE:
                position = _skip_blank(data, position).end()
        else:  # a container opens
            if hit:
                held_depth, held_bits, held_start, held_path, held_name = len(outer), hit, position, path, name
                bits = 0
            if len(outer) >= spans.MAX_DEPTH:
                raise NotJson(f"more than {spans.MAX_DEPTH} arrays and objects are nested in one another", position)
            outer.append(step)
            all_alive.append(alive)
            all_ranges.append(ranges)
            ranges = ()
            if data[position] == _OPEN_ARRAY:
                step, alive = -1, bits & (in_array | stay)
                length = next_length() if lengths else UNKNOWN_LENGTH
                if alive & automaton.indexed:
                    ranges = automaton.ranges(alive, length)
            else:
                step, alive = b"", bits & (in_object | stay)
            position = token.end()

        # The next item of the innermost container begins at `position`. If no bit accepts any item, then items without
        # values inside are skipped, without counting them.
        if isinstance(step, bytes):
            if not alive & in_object:
                position = _skip_members(data, position).end()
            token = _match_member_start(data, position)
            if token is None:
                raise _no_member(data, position)
            step, name = token[1], (position, token.end(1) + 1)
            if b"\\" in step:
                step = unescaped_name(step)
            accepting = accepting_name(step) if alive else 0
            position = token.end()
        else:
            if not alive & in_array:
                position = _skip_elements(data, position).end()
            step, name = step + 1, None
            accepting = by_index.get(step, every)
            for indexes, accepted in ranges:
                if step in indexes:
                    accepting |= accepted
        bits = (alive & accepting) << 1 | alive & stay


def _array_lengths(text: bytes, pause: Pause) -> array[int]:
    """Count the elements of each array that is not empty, in the order of their opening brackets.

    Args:
        text: a JSON text that `walk_value` has accepted.
        pause: called again and again meanwhile.
    """
    lengths = array("Q")
    open_containers: list[int] = []  # the index of each array's length; -1 for an object
    next_pause = STEP
    for token in _find_structure(text):
        if token.start() > next_pause:
            next_pause = token.start() + STEP
            pause()
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
    name = _match_string(data, position)
    if name is None:
        return NotJson(
            "expected a member name, in double quotes and without control characters and unknown escapes,", position
        )
    if not is_name(data, position, name.end()):
        return NotJson(
            "a member name with NUL or half a surrogate pair in it, which parsers read differently, begins", position
        )
    return NotJson("expected a colon behind the member name that begins", position)
