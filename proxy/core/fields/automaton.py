"""The selectors of all jobs as one bit-parallel automaton, which steps through a JSON text: so that any number of
selectors walk a body once. `proxy.core.fields.jsontext` makes it for its two walkers.

How it works. A selector of n segments owns n + 1 neighbouring bits. Bit k is set at a value if the selector's first k
segments lead there; the last bit means that the value is selected. The step down to a child is
`((bits & those whose next segment accepts the child) << 1) | (bits & those with '..' next)`.

Rules of this module:

- Of a job whose selectors go on inside a string, only the selector of that string is in the automaton of the text
  around it; the rest is in the automaton of the text inside (see `automaton_inside`).
- A name that escapes could spell is compared decoded. Where case does not count, both names are folded.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from proxy.core.fields.names import FOLDS, folded, path_step
from proxy.core.fields.selectors import MAX_INDEX, Choice, Every, Segment, Selector, Slice

MAX_INSIDE = 8  # texts inside one another


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What one job, or one entry of a policy, marks. It equals itself only, so that its automaton is found quickly.

    Attributes:
        selectors: which values; one is enough.
        inside: selectors of strings that hold JSON text, at most `MAX_INSIDE`: each is applied to the text in the
            string that the one before selected, and `selectors` to the last of these texts. Usually there are none.
        ignore_case: whether names that differ in case only are the same (see `proxy.core.fields.names`).
        is_strict: whether a body is refused if what `inside` selects is no string with JSON in it, or null.
    """

    selectors: tuple[Selector, ...]
    inside: tuple[Selector, ...] = ()
    ignore_case: bool = False
    is_strict: bool = True

    @property
    def texts(self) -> list[str]:
        """The selectors as a person reads them: `$.Message$.card.number` goes on inside `$.Message`."""
        before = "".join(each.text for each in self.inside)
        return [before + selector.text for selector in self.selectors]


@lru_cache(maxsize=256)
def in_each(marks: Marks) -> Marks:
    """Return the marks for each element of an array; those of the whole array, as `$`, are not among them."""
    outer = tuple(
        replace(each, text=f"$[*]{each.text[1:]}", segments=(Segment(False, (Every.EVERY,)), *each.segments))
        for each in marks.inside[:1] or marks.selectors
        if each.segments
    )
    if not marks.inside:
        return replace(marks, selectors=outer)
    return replace(marks, inside=(*outer, *marks.inside[1:])) if outer else Marks(())


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """All selectors of all jobs; each int is a set of bits, as the module's docstring explains.

    Attributes:
        marks: what it was made of.
        start: the bits of the root value.
        stay: the bits whose next segment is a descendant segment.
        by_name: the bits that accept a member of this name (UTF-8), wildcards included.
        by_folded: the bits that accept a member whose folded name is this, without the wildcards.
        longest: the greatest length of a name, in bytes, that may be one of these.
        every: the bits that accept any child.
        by_index: the bits that accept the element of this index, wildcards included.
        slices: the slices, and the bits that accept the elements in each; a negative index is a slice, too.
        in_object: the bits that may accept a member of an object.
        in_array: the bits that may accept an element of an array.
        counts_from_end: whether the lengths of arrays must be known.
        selected: the last bits of the selectors.
        holding: the last bits of the selectors of strings that hold JSON text.
        job_of: the job whose selector has this last bit.
        unnamed: the bits from which a value can be selected without stepping to a member by its name.
        indexed: the bits whose next segment has an index or a slice.
        names: the keys of `by_name`.
        folded_names: the keys of `by_folded`.
        steps: the keys of `by_name` as they are written in a path.
        needed: names in quotes, without one of which nothing is selected in a text; None if there are no such names.
        needed_folded: likewise, folded; one of either is enough.
        needs_plain_names: whether none of these can be written with another escape than `\\uXXXX`.
    """

    marks: tuple[Marks, ...]
    start: int
    stay: int
    by_name: dict[bytes, int]
    by_folded: dict[bytes, int]
    longest: int
    every: int
    by_index: dict[int, int]
    slices: tuple[tuple[slice, int], ...]
    in_object: int
    in_array: int
    counts_from_end: bool
    selected: int
    holding: int
    job_of: dict[int, int]
    unnamed: int
    indexed: int
    names: frozenset[bytes]
    folded_names: frozenset[bytes]
    steps: dict[bytes, str]
    needed: frozenset[bytes] | None
    needed_folded: frozenset[bytes]
    needs_plain_names: bool

    def accepting(self, name: bytes) -> int:
        """Return the bits that accept a member.

        Args:
            name: its decoded name, in UTF-8.
        """
        bits = self.by_name.get(name, self.every)
        return bits | self.by_folded.get(folded(name), 0) if len(name) <= self.longest else bits

    def ranges(self, alive: int, length: int) -> tuple[tuple[range, int], ...]:
        """Return the indexes that slices select of an array, and the bits that accept each.

        Args:
            alive: the bits of the array.
            length: its length; if it is not known, and does not matter, the greatest.
        """
        return tuple((range(*part.indices(length)), bits) for part, bits in self.slices if bits & alive)


@lru_cache(maxsize=256)
def automaton_inside(automaton: Automaton, bits: int) -> Automaton:
    """Return the automaton of the text inside a string: of each job whose bits are set, what comes next; of each other,
    nothing.

    Args:
        automaton: that of the text round the string.
        bits: those at the string that are in `holding`.
    """
    live = {job for bit, job in automaton.job_of.items() if bit & bits}
    return automaton_of(
        tuple(
            Marks(marks.selectors, marks.inside[1:], marks.ignore_case, marks.is_strict) if job in live else Marks(())
            for job, marks in enumerate(automaton.marks)
        )
    )


@lru_cache(maxsize=256)
def automaton_of(jobs: tuple[Marks, ...]) -> Automaton:
    """Make the automaton of jobs.

    Args:
        jobs: what each marks, in the order in which they count.
    """
    build = _Build()
    for job, marks in enumerate(jobs):
        for selector in marks.inside[:1] or marks.selectors:
            build.add(selector, job, ignore_case=marks.ignore_case, holds=bool(marks.inside))
    return build.automaton(jobs)


class _Build:
    def __init__(self) -> None:
        self.bit = 1
        self.start = self.stay = self.every = self.selected = self.holding = self.unnamed = self.indexed = 0
        self.by_name: dict[bytes, int] = {}
        self.by_folded: dict[bytes, int] = {}
        self.by_index: dict[int, int] = {}
        self.slices: dict[tuple[int | None, int | None, int | None], int] = {}
        self.job_of: dict[int, int] = {}
        self.options: list[tuple[list[tuple[bytes, ...]], bool]] = []
        self.all_need_names = True
        self.needed: set[bytes] = set()
        self.needed_folded: set[bytes] = set()

    def add(self, selector: Selector, job: int, *, ignore_case: bool, holds: bool) -> None:
        self.start |= self.bit
        self.unnamed |= _unnamed(selector) * self.bit
        named = [tuple(str(name).encode() for name in each.choices) for each in selector.segments if _is_named(each)]
        self.options.append((named, ignore_case))
        for segment in selector.segments:
            if segment.descendant:
                self.stay |= self.bit
            for choice in segment.choices:
                self._choose(choice, ignore_case)
            self.bit <<= 1
        self.job_of[self.bit] = job
        if holds:
            self.holding |= self.bit
        else:
            self.selected |= self.bit
        self.bit <<= 1

    def _needed(self) -> None:
        """Choose for each selector the names of one segment: those that most selectors have, or else the longest, which
        are looked for most quickly.
        """
        shared = Counter(names for options, _ in self.options for names in set(options))
        for options, ignore_case in self.options:
            if not options:
                self.all_need_names = False
                continue
            names = max(options, key=lambda names: (shared[names], min(map(len, names))))
            if ignore_case:
                self.needed_folded.update(map(folded, names))
            else:
                self.needed.update(names)

    def _choose(self, choice: Choice, ignore_case: bool) -> None:
        if isinstance(choice, str):
            name = choice.encode()
            if ignore_case:
                _set(self.by_folded, folded(name), self.bit)
            else:
                _set(self.by_name, name, self.bit)
        elif isinstance(choice, Every):
            self.every |= self.bit
        else:
            self.indexed |= self.bit
            if isinstance(choice, Slice):
                if choice.step != 0:  # a step of 0 selects nothing (RFC 9535, section 2.3.4.2.2)
                    _set(self.slices, (choice.start, choice.end, choice.step), self.bit)
            elif choice < 0:
                _set(self.slices, (choice, choice + 1 or None, None), self.bit)
            else:
                _set(self.by_index, choice, self.bit)

    def automaton(self, jobs: tuple[Marks, ...]) -> Automaton:
        self._needed()
        named = indexed = 0
        for bits in (*self.by_name.values(), *self.by_folded.values()):
            named |= bits
        for bits in (*self.by_index.values(), *self.slices.values()):
            indexed |= bits
        return Automaton(
            marks=jobs,
            start=self.start,
            stay=self.stay,
            by_name={name: bits | self.every for name, bits in self.by_name.items()},
            by_folded=self.by_folded,
            longest=max(map(len, self.by_folded), default=-1) * FOLDS,
            every=self.every,
            by_index={index: bits | self.every for index, bits in self.by_index.items()},
            slices=tuple((slice(*part), bits) for part, bits in self.slices.items()),
            in_object=self.every | named,
            in_array=self.every | indexed,
            counts_from_end=any(_counts_from_end(*part) for part in self.slices),
            selected=self.selected,
            holding=self.holding,
            job_of=self.job_of,
            unnamed=self.unnamed,
            indexed=self.indexed,
            names=frozenset(self.by_name),
            folded_names=frozenset(self.by_folded),
            steps={name: path_step(name) for name in self.by_name},
            needed=_quoted(self.needed) if self.all_need_names else None,
            needed_folded=_quoted(self.needed_folded),
            needs_plain_names=not any(map(_has_escapes, self.needed | self.needed_folded)),
        )


_has_escapes = re.compile(rb'["\\/\x00-\x1f]').search


def _quoted(names: set[bytes]) -> frozenset[bytes]:
    return frozenset(b'"%s"' % name for name in names)


def _set[T](table: dict[T, int], key: T, bit: int) -> None:
    table[key] = table.get(key, 0) | bit


def _counts_from_end(start: int | None, end: int | None, step: int | None) -> bool:
    return (step or 1) < 0 or (start or 0) < 0 or (end or 0) < 0


def _unnamed(selector: Selector) -> int:
    """Return the bits of a selector, the first being 1, behind which no segment has names only."""
    last = max((at for at, each in enumerate(selector.segments) if _is_named(each)), default=-1)
    return (2 << len(selector.segments)) - (2 << last if last >= 0 else 1)


def _is_named(segment: Segment) -> bool:
    return all(isinstance(choice, str) for choice in segment.choices)


UNKNOWN_LENGTH = MAX_INDEX + 1  # longer than any index is great
