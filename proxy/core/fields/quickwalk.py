r"""The quick walker: finds the marked values in texts that a compiled parser has found to be JSON. `proxy.core.fields.
jsontext` asks it first, and `proxy.core.fields.plainwalk` if it says no.

Rules of this module:

- What is JSON is decided by msgspec, whose `Raw` reads a text without making anything of it. Of the compiled parsers it
  is the only one that needs neither memory nor more than a tenth of `json.loads`' time. It is never laxer than the
  plain walker (`tests/proxy/core/fields/test_walkers.py`), but for NUL in names, which is looked for here; where it is
  stricter (half a surrogate pair in a value, great depth), the plain walker has the last word.
- So the expressions here may rely on a text's being JSON: a bracket outside a string is a bracket, and what follows a
  string and a colon is a member's value. They would pass over nonsense as well.
- A value is passed over only if nothing in it can be selected: if no selector gets further without one of the names in
  `_Pattern`, and none of these stands in it in any spelling. A name with an escape in it is looked at; where case does
  not count, so is one that is not ASCII.
- Where indexes count, or values are selected whatever they are called, the plain walker reads that container.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from proxy.core.fields import plainwalk
from proxy.core.fields.automaton import Automaton
from proxy.core.fields.names import path_step, unescaped_name
from proxy.core.fields.pauses import STEP
from proxy.core.fields.spans import Found, Holder, Span, TooMuchSelected

_new_span = tuple.__new__  # a named tuple's own constructor takes four times as long

_OPEN_ARRAY, _COLON, _QUOTE, _BACKSLASH = b'[:"\\'
_BLANKS = b" \t\n\r"
_OPENERS = b"[{"
_MOST_NESTED = 3  # containers that one expression passes over; each byte is read at most so many times more

_LONG = 2048  # bytes: in a longer text it is worth looking first whether it can have anything
_MOST_LEAVES = 64  # values that one expression finds at most; its size grows with them

_BLANK = rb"[ \t\n\r]*+"
_AT_NAME = rb"(?!%s:)" % _BLANK  # negated: behind a string that is no name
_SCALAR = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^"\[{\]}, \t\n\r]++'

# Any value but one that is nested deeper than that.
_VALUE = _SCALAR
for _ in range(_MOST_NESTED):
    _VALUE = rb'%s|[\[{](?:[^"\[\]{}]++|%s)*+[\]}]' % (_SCALAR, _VALUE)

type _Match = Callable[[bytes, int], re.Match[bytes] | None]

# What `_looking` has found, by the number of its last group.
_CLOSING, _OPENING, _NAME, _ODD_NAME, _NAMED_SCALAR = range(1, 6)


def is_json(text: bytes) -> bool:
    """Tell whether a text is strict JSON in UTF-8, and no name in it is ambiguous. False is no last word on it."""
    read, error = _parser()
    try:
        read(text)
        if not text.isascii():
            text.decode()
    except (error, RecursionError, UnicodeDecodeError):
        return False
    return b"\\" not in text or b"\\u0000" not in text


@cache
def _parser() -> tuple[Callable[[bytes], object], type[Exception]]:
    """Return what reads a text without making anything of it, and what it raises if that is no JSON."""
    import msgspec  # noqa: PLC0415  # takes 1 MiB, which only policies with entries need; these load it

    return msgspec.json.Decoder(msgspec.Raw).decode, msgspec.DecodeError


def walk(found: Found) -> bool:
    """Find what is marked in a text, if the selectors are such that this walker can.

    Args:
        found: the text, for which `is_json` has been true, and what is looked for; what is found is noted there.

    Returns:
        Whether that was done. Otherwise what was noted is of no use.

    Raises:
        NotJson: never, unless the two parsers disagree.
        TooMuchSelected: more is selected than the limits allow.
    """
    text, automaton = found.text, found.automaton
    if not automaton.start or (len(text) >= _LONG and not _may_have(text, automaton)):
        return True
    if automaton.start & (automaton.unnamed | automaton.indexed) or automaton.counts_from_end:
        return False
    known = _known_places(automaton)
    if known is not None and known.find(found):
        return True
    begin = 0
    while text[begin] in _BLANKS:
        begin += 1
    if text[begin] not in _OPENERS:
        return True
    return _walk(found, begin, _looking(automaton.names, automaton.folded_names))


def _may_have(text: bytes, automaton: Automaton) -> bool:
    """Tell whether a name without which nothing is selected may stand in a text, be it as a name or elsewhere."""
    needed, needed_folded = automaton.needed, automaton.needed_folded
    if needed is None or (b"\\" in text and (b"\\u" in text or not automaton.needs_plain_names)):
        return True
    if any(name in text for name in needed):
        return True
    if not needed_folded:
        return False
    if not text.isascii():
        return True
    lower = text.lower()
    return any(name in lower for name in needed_folded)


def _walk(found: Found, begin: int, look: _Match) -> bool:
    """Read a text that is JSON.

    Args:
        found: see `walk`.
        begin: where the text begins behind blanks; with a container.
        look: passes over what need not be looked at.

    Returns:
        True; False only if the text is no JSON.
    """
    text, automaton = found.text, found.automaton
    stay, every, by_name, folds = automaton.stay, automaton.every, automaton.by_name, bool(automaton.by_folded)
    final, slow, steps = automaton.selected | automaton.holding, automaton.unnamed | automaton.indexed, automaton.steps
    alive = automaton.start  # the bits of the innermost open container
    all_alive = [0]  # … of those round it
    begins = [begin]  # where the open containers begin
    written: list[str] = []  # the steps to the second of them and so on, as they are written in a path, where needed
    prefix = ""  # the path of the innermost open container, if it was needed
    # A selected container that is open: the number of containers round it, its bits, path and name.
    held_depth, held_bits, held_path, held_name = -1, 0, "", (0, 0)
    data = b""
    position = begin + 1
    next_pause = position + STEP
    while token := look(text, position):
        kind, position = token.lastindex, token.end()
        if position > next_pause:
            next_pause = position + STEP
            found.pause()
        if kind == _CLOSING:
            begin, alive, prefix = begins.pop(), all_alive.pop(), ""
            if len(begins) == held_depth:
                found.add(held_bits, begin, position, held_path, held_name)
                held_depth = -1
            if not begins:
                return True
            if len(written) == len(begins):
                written.pop()
            continue
        if kind == _OPENING:
            bits = (alive & every) << 1 | alive & stay
        else:
            name, group = token[_NAME], _NAME
            if name is None:
                name, group = unescaped_name(token[_ODD_NAME]), _ODD_NAME
            accepting = automaton.accepting(name) if folds else by_name.get(name, every)
            bits = (alive & accepting) << 1 | alive & stay
            hit = bits & final
            if hit:
                if not prefix:
                    written += _steps(text, begins, len(written))
                    prefix = "$" + "".join(written)
                path = prefix + (steps.get(name) or path_step(name))
                name_start, name_end = token.span(group)
                if kind == _NAMED_SCALAR:
                    start, end = token.span(_NAMED_SCALAR)
                    found.add(hit, start, end, path, (name_start - 1, name_end + 1))
                    continue
                held_depth, held_bits, held_path, held_name = len(begins), hit, path, (name_start - 1, name_end + 1)
                bits = 0
            elif kind == _NAMED_SCALAR:
                continue
        begins.append(position - 1)
        prefix = ""
        if bits & slow:
            written += _steps(text, begins, len(written))
            data = data or text + plainwalk.SENTINEL
            position = plainwalk.walk_value(found, data, begins.pop(), bits, prefix="$" + "".join(written))
            written.pop()
        else:
            all_alive.append(alive)
            alive = bits
    return False


def _steps(text: bytes, begins: Sequence[int], known: int) -> Iterator[str]:
    """Yield the steps to the open containers as they are written in a path.

    Args:
        text: the text.
        begins: where they begin.
        known: how many steps are not wanted, the first being that from the first container to the second.
    """
    for at in range(known, len(begins) - 1):
        if text[begins[at]] == _OPEN_ARRAY:
            yield "[*]"
            continue
        end = begins[at + 1]
        while text[end - 1] != _QUOTE:  # blanks and the colon are between
            end -= 1
        start = text.rfind(b'"', 0, end - 1)
        while text[start - 1] == _BACKSLASH:  # a quote within the name
            start = text.rfind(b'"', 0, start)
        name = text[start + 1 : end - 1]
        yield path_step(unescaped_name(name) if b"\\" in name else name)


@lru_cache(maxsize=256)
def _looking(names: frozenset[bytes], folded_names: frozenset[bytes]) -> _Match:
    """Return what matches up to the next bracket or member that must be looked at.

    Args:
        names: the names that are compared as they are.
        folded_names: those that are compared without regard to case, folded.
    """
    spelled = [re.escape(name) for name in sorted(names)]
    spelled += [rb"(?i:%s)" % re.escape(name) for name in sorted(folded_names) if name.isascii()]
    named = rb"|".join(spelled) if spelled else rb"(?!)"
    plain = rb'[^"\\\x80-\xff]*+"' if folded_names else rb'[^"\\]*+"'
    string = rb'"(?!(?:%s)"%s:)(?:%s|(?:[^"\\]++|\\.)*+"%s)' % (named, _BLANK, plain, _AT_NAME)
    dull = rb'[^"\[\]{}]++|%s' % string
    for _ in range(_MOST_NESTED):
        dull = rb'[^"\[\]{}]++|%s|[\[{](?:%s)*+[\]}]' % (string, dull)
    return re.compile(
        rb'(?:%s)*+(?:([\]}])|([\[{])|"(?:(%s)|((?:[^"\\]++|\\.)*+))"%s:%s(?:[\[{]|(%s)))'
        % (dull, named, _BLANK, _BLANK, _SCALAR)
    ).match


@dataclass(frozen=True, slots=True)
class _KnownPlaces:
    """One expression that finds all values at once, where selectors have nothing but names in them, from the root on.

    Attributes:
        match: matches a text that is an object. For each value, one group is its name, the next one the value.
        leaves: of each value the number of the former group, the job that selects it, and its path.
        holding: the same for strings to look into, with the automaton's bits in the place of the job.
    """

    match: _Match
    leaves: tuple[tuple[int, int, str], ...]
    holding: tuple[tuple[int, int, str], ...]

    def find(self, found: Found) -> bool:
        """Find the values in a text that is JSON. Return whether that was done: not if one stands there twice, if there
        are names with escapes on the way, or values that are nested too deeply.
        """
        match = self.match(found.text, 0)
        if match is None:
            return False
        places = match.regs
        for group, job, path in self.leaves:
            start, end = places[group + 1]
            if start >= 0:
                found.spans.append(_new_span(Span, (start, end, path, job, places[group], 0, None)))
        found.spans.sort()
        for group, bits, path in self.holding:
            if places[group][0] >= 0:
                found.holders.append(Holder(bits, *places[group + 1], path))
        if len(found.spans) + len(found.holders) > found.most:
            raise TooMuchSelected(found.most)
        return True


@lru_cache(maxsize=256)
def _known_places(automaton: Automaton) -> _KnownPlaces | None:
    """Return the expression for selectors, if they are such that there is one."""
    if automaton.stay or automaton.every or automaton.indexed or automaton.by_folded:
        return None
    leaves: list[tuple[int, int, str]] = []
    holding: list[tuple[int, int, str]] = []
    groups = itertools.count(1, 2)

    def object_of(bits: int, path: str) -> bytes:
        members: list[bytes] = []
        names: list[bytes] = []
        for name, accepting in automaton.by_name.items():
            inner = (bits & accepting) << 1
            if not inner:
                continue
            names.append(re.escape(name))
            inner_path = path + path_step(name)
            hit = inner & automaton.selected
            if hit or inner & automaton.holding:
                group = next(groups)
                if hit:
                    leaves.append((group, automaton.job_of[hit & -hit], inner_path))
                else:
                    holding.append((group, inner, inner_path))
                members.append(rb'(?(%d)(?!))("%s")%s:%s(%s)' % (group, names[-1], _BLANK, _BLANK, _VALUE))
            else:
                value = rb"%s|(?!\{)(?:%s)" % (object_of(inner, inner_path), _VALUE)
                members.append(rb'"%s"%s:%s(?:%s)' % (names[-1], _BLANK, _BLANK, value))
        other = rb'"(?!(?:%s)")[^"\\]*+"%s:%s(?:%s)' % (rb"|".join(names), _BLANK, _BLANK, _VALUE)
        return rb"\{[, \t\n\r]*+(?:(?:%s|%s)[, \t\n\r]*+)*+\}" % (other, rb"|".join(members))

    expression = _BLANK + object_of(automaton.start, "$")
    if next(groups) > 2 * _MOST_LEAVES:
        return None
    return _KnownPlaces(re.compile(expression).match, tuple(leaves), tuple(holding))
