"""Replaces selected values of a JSON text, and knows the form of an encrypted value in JSON. `proxy.core.fields.bodies`
calls it to encrypt and decrypt.

Rules of this module:

- Every byte outside the selected values, and the names that a job changes with them, stays as it came; if nothing is
  selected, the body is the same object.
- A body is changed only if the whole of it is JSON; and each replacement must be JSON, too.
- An encrypted value is a JSON string that holds a compact JWE (RFC 7516), without any escapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.core.decisions import Denied
from proxy.core.fields.automaton import Marks
from proxy.core.fields.escapes import escaped
from proxy.core.fields.jsontext import find_spans, is_name, string_value
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.spans import MAX_VALUES, NotJson, Span, TooMuchSelected
from proxy.core.reasons import Reason

# Such a string is one JSON value: no parser is needed to check it.
_is_token_string = re.compile(rb'"[A-Za-z0-9_.-]*"').fullmatch


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do with selected values.

    Attributes:
        marks: which values.
        transform: takes a value's exact JSON bytes (as they are in the text inside a string, if it stands there) and
            its path (`Span.path`); returns the JSON bytes that replace it, or None if it stays as it is. It raises if
            the body must not go on.
        rename: the JSON string that takes the place of the member's name where the value was replaced, or None. An
            element of an array and the whole body have no name: of these only the value is replaced.

    Raises:
        ValueError: `rename` is no JSON string, or no name that would pass in a body.
    """

    marks: Marks
    transform: Callable[[bytes, str], bytes | None]
    rename: bytes | None = None

    def __post_init__(self) -> None:
        if self.rename is not None and not is_name(self.rename):
            raise ValueError("a member is renamed to one JSON string, without NUL and halves of surrogate pairs")


class Spliced(NamedTuple):
    """The result of `splice`.

    Attributes:
        body: the new body.
        counts: how many values each job replaced.
        spans: where the replaced values stood in the old body, in its order.
    """

    body: bytes
    counts: tuple[int, ...]
    spans: tuple[Span, ...] = ()

    @property
    def total(self) -> int:
        """The number of values that were replaced."""
        return sum(self.counts)


def spans_of(body: bytes, marks: Sequence[Marks], most: int = MAX_VALUES, *, pause: Pause = never) -> list[Span]:
    """Return where the marked values of a body stand; see `find_spans`, which has the same arguments.

    Raises:
        Denied: BODY_NOT_JSON if the body is not strict JSON, BODY_TOO_LARGE if too many values are selected.
    """
    try:
        return find_spans(body, marks, most, pause=pause)
    except NotJson as problem:
        raise Denied(
            Reason.BODY_NOT_JSON,
            f"the body has fields to protect, but: {problem}",
            "send one JSON text in UTF-8 (RFC 8259), or narrow the rule's `when`",
        ) from None
    except TooMuchSelected as problem:
        raise Denied(
            Reason.BODY_TOO_LARGE, f"the body has too many fields to protect: {problem}", "send it in smaller parts"
        ) from None


def splice(body: bytes, jobs: Sequence[Job], most: int = MAX_VALUES, *, pause: Pause = never) -> Spliced:
    """Replace the values that jobs select. If several jobs select a value, the first counts; of nested values, the
    outermost.

    Args:
        body: the decoded body.
        jobs: what to replace, and with what.
        most: the greatest number of values, which is checked before the first is replaced.
        pause: called again and again meanwhile.

    Raises:
        Denied: BODY_NOT_JSON if the body is not strict JSON, BODY_TOO_LARGE if too many values are selected.
        ValueError: a transform returned something that is not JSON.
    """
    spans = spans_of(body, [job.marks for job in jobs], most, pause=pause)
    counts = [0] * len(jobs)
    if not spans:
        return Spliced(body, tuple(counts))
    pieces: list[bytes] = []
    kept: set[Span] = set()
    copied = 0
    for span in spans:
        start, end, path, number, name, depth, inner = span
        job = jobs[number]
        pause()
        replacement = job.transform(body[start:end] if inner is None else inner, path)
        if replacement is None:
            kept.add(span)
            continue
        if not _is_token_string(replacement):
            _check_replacement(replacement, number)
        if job.rename is not None and name is not None:
            pieces += body[copied : name[0]], escaped(job.rename, depth)
            copied = name[1]
        pieces += body[copied:start], escaped(replacement, depth) if depth else replacement
        copied = end
        counts[number] += 1
    if not pieces:
        return Spliced(body, tuple(counts))
    pieces.append(body[copied:])
    replaced = [span for span in spans if span not in kept] if kept else spans
    return Spliced(b"".join(pieces), tuple(counts), tuple(replaced))


def _check_replacement(replacement: bytes, job: int) -> None:
    """Refuse a replacement that is not one value: `1,"admin":true` from a JWE must not become a member of the body."""
    try:
        find_spans(replacement, ())
    except NotJson:
        raise ValueError(f"the transform of job {job} returned something that is not one JSON value") from None


def token_of(value: bytes) -> str | None:
    """Return the text of a JSON string, with its escapes replaced; None if the value is no string.

    Args:
        value: the exact bytes of one JSON value, as a job's transform gets them.
    """
    return string_value(value)
