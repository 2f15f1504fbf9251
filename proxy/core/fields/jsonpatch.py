"""Finds marked values in a JSON Patch (RFC 6902): those that will stand at a marked place of the document that is
patched. `proxy.core.fields.kinds` calls it.

Rules of this module:

- The value of an operation is handled if its path leads to a marked place, below one, or above one; then exactly the
  marked values inside are replaced, and bound to the place that they will have in the document.
- A step of a path may be a name or an index, as only the document tells; here it is both. A number and `-` are `*` in
  the place.
- Nothing is moved or copied to a marked place from another: what stands there could not be sealed.
- An operation whose path cannot be read in one way is denied. No message has a name or a value of the body in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from proxy.core.decisions import Denied
from proxy.core.fields.automaton import Marks
from proxy.core.fields.forms import check_number, unreadable
from proxy.core.fields.jsontext import Span, member_path, string_value
from proxy.core.fields.names import FOLDS, folded
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.selectors import Choice, Every, Selector, Slice, parse_selector
from proxy.core.fields.splice import Job, Spliced, spans_of, splice
from proxy.core.reasons import Reason

_ELEMENTS = [Marks((parse_selector("$[*]"),))]
# Some readers ignore the case of these names, too.
_MEMBERS = [Marks((parse_selector(f"$.{name}"),), ignore_case=True) for name in ("op", "path", "from", "value")]
_OP, _PATH, _FROM, _VALUE = range(len(_MEMBERS))
_INDEX = re.compile(r"-|0|[1-9][0-9]*+")
_HALF = re.compile("[\ud800-\udfff]")
_BAD_TILDE = re.compile(r"~(?![01])")
_HERE = parse_selector("$")

MAX_OPERATIONS = 2000
MAX_STEPS = 20_000  # in all paths; an honest one has a dozen

_HINT = "send each operation as RFC 6902 has it"


def splice_patch(text: bytes, jobs: Sequence[Job], most: int, *, pause: Pause = never) -> Spliced:
    """Replace the values of a patch that will stand at a marked place.

    Args:
        text: the patch, an array of operations.
        jobs: what to replace, and with what.
        most: the greatest number of values.
        pause: called again and again meanwhile.

    Raises:
        Denied: BODY_UNREADABLE, BODY_TOO_LARGE, BODY_NOT_JSON, or what a transform raises.
    """
    operations = spans_of(text, _ELEMENTS, pause=pause)
    if len(operations) > MAX_OPERATIONS or text.count(b"/") > MAX_STEPS:
        raise Denied(
            Reason.BODY_TOO_LARGE,
            f"the patch has more than {MAX_OPERATIONS} operations, or more than {MAX_STEPS} steps in all paths",
            "send it in smaller parts",
        )
    pieces: list[bytes] = []
    copied, counts = 0, [0] * len(jobs)
    replaced: list[Span] = []
    for operation in operations:
        value = _marked_value(text[operation.start : operation.end], jobs, pause)
        if value is None:
            continue
        span, inner, owners = value
        start, end = operation.start + span.start, operation.start + span.end
        spliced = splice(text[start:end], inner, most, pause=pause)
        check_number(sum(counts) + spliced.total, most)
        if any(each.path == "$" and jobs[owners[each.job]].rename is not None for each in spliced.spans):
            raise unreadable(
                "an operation of the patch is about a member that the rule renames, and says its name in its path",
                "send the object that the member stands in",
            )
        if spliced.total:
            pieces += (text[copied:start], spliced.body)
            copied = end
        for each in spliced.spans:
            job = owners[each.job]
            counts[job] += 1
            replaced.append(each._replace(start=start + each.start, end=start + each.end, job=job))
    if not replaced:
        return Spliced(text, tuple(counts))
    return Spliced(b"".join((*pieces, text[copied:])), tuple(counts), tuple(replaced))


def _marked_value(operation: bytes, jobs: Sequence[Job], pause: Pause) -> tuple[Span, list[Job], list[int]] | None:
    """Return where an operation's value stands, what is to be done in it, and whose of `jobs` each of these jobs is;
    None if it is not about a marked place.

    Raises:
        Denied: BODY_UNREADABLE.
    """
    found: list[list[Span]] = [[] for _ in _MEMBERS]
    for span in spans_of(operation, _MEMBERS, pause=pause):
        found[span.job].append(span)
    if any(len(each) > 1 for each in found):
        raise unreadable("an operation of the patch has a member twice", _HINT)
    steps = _steps(operation, found[_PATH])
    if steps is None:
        raise unreadable("an operation of the patch has no path, or none that can be read", _HINT)
    marked = [(number, rest) for number, job in enumerate(jobs) for rest in _rests(job.marks, tuple(steps))]
    if not marked:
        return None
    place = place_of(steps)
    if found[_FROM]:
        source = _steps(operation, found[_FROM])
        if source is None or place_of(source) != place:
            raise unreadable(
                "an operation of the patch moves or copies something to a marked place from another",
                "add the value there instead",
            )
    if not found[_VALUE]:
        return None
    inner = [_moved(jobs[number], marks, place) for number, marks in marked]
    return found[_VALUE][0], inner, [number for number, _ in marked]


def _moved(job: Job, marks: Marks, place: str) -> Job:
    transform = job.transform
    return replace(job, marks=marks, transform=lambda value, path: transform(value, place + path[1:]))


@lru_cache(maxsize=256)
def _rests(marks: Marks, steps: tuple[str, ...]) -> tuple[Marks, ...]:
    """Return what is left of marks below a place; see `after`."""
    if not marks.inside:
        rest = tuple(left for each in marks.selectors for left in after(each, steps, ignore_case=marks.ignore_case))
        return (replace(marks, selectors=rest),) if rest else ()
    outer, *inner = marks.inside
    return tuple(replace(marks, inside=(left, *inner)) for left in after(outer, steps, ignore_case=marks.ignore_case))


def _steps(operation: bytes, spans: Sequence[Span]) -> list[str] | None:
    """Return the steps of a JSON Pointer (RFC 6901); None if there is none that can be read."""
    if not spans:
        return None
    pointer = string_value(operation[spans[0].start : spans[0].end])
    if pointer is None or pointer[:1] not in ("", "/") or _BAD_TILDE.search(pointer) or _HALF.search(pointer):
        return None
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def place_of(steps: Sequence[str]) -> str:
    """Return the normalized path of a place in the document, with `*` for what may be an index.

    Args:
        steps: the steps of a JSON Pointer.
    """
    return "$" + "".join("[*]" if _INDEX.fullmatch(step) else member_path(step)[1:] for step in steps)


def after(selector: Selector, steps: Sequence[str], *, ignore_case: bool = False) -> list[Selector]:
    """Return what of a selector is left below a place: `$` if the place, or one above it, is selected; nothing if it
    selects nothing there; several selectors, if it has `..` in it.

    Args:
        selector: the selector.
        steps: the steps of a JSON Pointer to the place.
        ignore_case: whether names that differ in case only are the same.
    """
    segments = selector.segments
    states = {0}
    for step in steps:
        if len(segments) in states or not states:
            break
        following: set[int] = set()
        for state in states:
            if segments[state].descendant:
                following.add(state)
            if any(_accepts(choice, step, ignore_case) for choice in segments[state].choices):
                following.add(state + 1)
        states = following
    if len(segments) in states:
        return [_HERE]
    # A selector is known by its text.
    return [replace(selector, text=f"{selector.text}#{state}", segments=segments[state:]) for state in sorted(states)]


def _accepts(choice: Choice, step: str, ignore_case: bool) -> bool:
    """Tell whether a choice may select the child that a step names."""
    if isinstance(choice, str):
        if choice == step or not ignore_case or len(step) > FOLDS * len(choice.encode()):
            return choice == step
        return folded(choice.encode()) == folded(step.encode())
    if isinstance(choice, Every):
        return True
    if not _INDEX.fullmatch(step):
        return False
    return isinstance(choice, Slice) or step == "-" or choice < 0 or str(choice) == step
