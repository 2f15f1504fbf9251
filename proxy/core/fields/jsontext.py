r"""Finds where the marked values stand in a JSON text, and changes nothing. `proxy.core.fields.splice` calls it for
each body, and replaces the values that it finds.

Rules of this module:

- A text must be exactly RFC 8259 JSON in UTF-8: no byte order mark, no NaN, no comments, no leading zeros, nothing
  after it. A name that another parser might read differently is refused, not guessed: one with half a surrogate pair,
  and one with NUL, where parsers in C end it (they read `"ssn\u0000x"` as `ssn`).
- Names are compared decoded (`"\u0073sn"` is `ssn`). If a name comes twice, both members are selected: some parsers
  take the first, others the last.
- If selected values are nested, only the outermost counts; if several jobs select the same value, the first. If one
  selects a string and another goes on inside it, the string counts as a whole.
- Work and memory grow linearly with the text, whatever its content and depth: open containers are kept on a stack of
  our own, no regular expression backtracks, and the selected values are limited, since each path may be long.
- No error quotes a byte of the text.

Two walkers do the work. `proxy.core.fields.plainwalk` reads everything strictly, takes any text and any selectors, and
knows where a text is wrong. `proxy.core.fields.quickwalk` is asked before it: it is several times as fast, but leaves
to the other what is not JSON, and what few bodies have. Both find the same, which a test holds against mutated texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from proxy.core.fields import plainwalk, quickwalk
from proxy.core.fields.automaton import Automaton, Marks, automaton_inside, automaton_of
from proxy.core.fields.escapes import inner_text, outer_offsets
from proxy.core.fields.names import path_step
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.spans import MAX_VALUES, Found, Holder, NotJson, Span, TooMuchSelected

__all__ = ["MAX_VALUES", "Marks", "NotJson", "Span", "TooMuchSelected", "find_spans", "is_name", "member_path"]


def find_spans(text: bytes, marks: Sequence[Marks], most: int = MAX_VALUES, *, pause: Pause = never) -> list[Span]:
    """Check that a text is JSON and find the values that are marked.

    Args:
        text: the whole text.
        marks: for each job what it marks.
        most: the greatest number of values.
        pause: called again and again meanwhile.

    Returns:
        The spans in the order of the text; none overlaps another.

    Raises:
        NotJson: the text, or one inside it, is not strict RFC 8259 JSON in UTF-8.
        TooMuchSelected: more is selected than that, or than the paths' limit allows.
    """
    return _find(text, automaton_of(tuple(marks)), most, pause)


def _find(text: bytes, automaton: Automaton, most: int, pause: Pause) -> list[Span]:
    found = Found(text, automaton, most, pause)
    is_json = quickwalk.is_json(text)
    pause()
    if not is_json or not quickwalk.walk(found):
        if not is_json:
            _check_encoding(text)
        found = Found(text, automaton, most, pause)
        plainwalk.walk(found, is_json=is_json)
    if not found.holders:
        return found.spans
    inner: list[Span] = []
    for holder in found.holders:
        inner += _look_inside(text, automaton, holder, most - len(found.spans) - len(inner), pause)
    return sorted(found.spans + inner)  # by their starts


def _look_inside(text: bytes, automaton: Automaton, holder: Holder, most: int, pause: Pause) -> list[Span]:
    """Find the values in the text that a string holds.

    Raises:
        NotJson: the value is no such string, though one job demands it.
        TooMuchSelected: there are more than `most`.
    """
    within = automaton_inside(automaton, holder.bits)
    string = text[holder.start : holder.end]
    if string == b"null":
        return []
    inner = inner_text(string) if string.startswith(b'"') else None
    try:
        if inner is None:
            raise NotJson("", 0)
        spans = _find(inner, within, most, pause)
    except NotJson:
        if any(each.is_strict for each in within.marks if each.selectors):
            raise NotJson(
                "a value that should be a string with JSON text in it is not; it begins", holder.start
            ) from None
        return []
    edges = [edge for span in spans for edge in (*(span.name or (span.start, span.start)), span.start, span.end)]
    outer = [holder.start + offset for offset in outer_offsets(string, edges, pause)]
    return [
        Span(
            start=outer[at + 2],
            end=outer[at + 3],
            path=holder.path + span.path,
            job=span.job,
            name=(outer[at], outer[at + 1]) if span.name else None,
            depth=span.depth + 1,
            inner=span.value(inner),
        )
        for at, span in zip(range(0, len(edges), 4), spans, strict=True)
    ]


def is_name(text: bytes) -> bool:
    """Tell whether a text is exactly one JSON string that may be a member's name in the texts that pass here.

    Args:
        text: with its quotes; valid UTF-8.
    """
    return plainwalk.is_name(text) is not None


def member_path(name: str) -> str:
    """Return the normalized path of a member of the root object (see `Span.path`).

    Args:
        name: the member's name, decoded.
    """
    return "$" + path_step(name.encode())


def string_value(value: bytes) -> str | None:
    """Return the text that a JSON string stands for.

    Args:
        value: the exact bytes of one JSON value, without blanks round it.

    Returns:
        The text with all escapes replaced; None if the value is no string, or cannot be written in UTF-8.
    """
    if not plainwalk.is_string(value) or _not_utf8_at(value) is not None:
        return None
    decoded: str = json.loads(value.decode())
    return decoded


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
