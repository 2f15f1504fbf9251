"""The rules that imported pins become, in the order in which they must stand, and their text. The readers of each
format make `Pinned`s, and put them in order with `in_order`.

Rules of this module:

- The first rule that names a host counts here, and elsewhere the most specific one: so the most specific comes first.
- A host that is excepted from wider pins gets a rule without any, before theirs. An exception from nothing is left out.
- What a foreign file says goes into the text only as a host, a pin, a day or a comment on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

from proxy.core.destinations import BadDestination, canonical_host
from proxy.core.pins import Pin, parse_pin
from proxy.core.rules.policy import HostPattern

_KINDS = ("exact", "one_label", "any_depth")
_NO_NAME = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 60
_PLACEHOLDER = "A" * 43  # what OkHttp's documentation pins, so that the failure tells the right pins
MOST_HOSTS = 2000
MOST_PINS = 100  # of a host: where many hosts share pins, each rule repeats them
MOST_CHARACTERS = 200  # of a foreign file's words in a note


@dataclass(frozen=True, slots=True)
class Pinned:
    """Hosts with the same pins.

    Attributes:
        hosts: their patterns.
        pins: the pins; none for an exception.
        last_day: the last day on which the others' program holds hosts to them; None for no end.
        observes: whether that program only reports what does not match.
        notes: what could not be carried over, or stands here in another way.
        source: which part of the foreign file it is of: hosts of one part share a rule.
    """

    hosts: tuple[HostPattern, ...]
    pins: tuple[Pin, ...]
    last_day: date | None = None
    observes: bool = False
    notes: tuple[str, ...] = ()
    source: int = 0


@dataclass(frozen=True, slots=True)
class Imported:
    """What was read.

    Attributes:
        rules: the rules, in their order.
        notes: what could not be carried over, of the whole.
    """

    rules: tuple[Pinned, ...]
    notes: tuple[str, ...]


def in_order(found: Iterable[Pinned], notes: Iterable[str] = ()) -> Imported:
    """Return rules in the order in which they must stand.

    Args:
        found: hosts with their pins, in the order of the foreign file; of two with the same pattern the first counts.
        notes: what could not be carried over.
    """
    said = list(notes)
    single: dict[HostPattern, Pinned] = {}
    for each in found:
        for host in each.hosts:
            if host in single:
                said.append(f"{host} stands there more than once: the first counts")
            else:
                single[host] = replace(each, hosts=(host,))
    limit(len(single))
    pinned = [host for host, each in single.items() if each.pins]
    kept = [
        each
        for host, each in sorted(single.items(), key=lambda item: _order(item[0]))
        if each.pins or any(other.covers(host) for other in pinned)
    ]
    rules: list[Pinned] = []
    for each in kept:
        if rules and replace(rules[-1], hosts=()) == replace(each, hosts=()):
            rules[-1] = replace(each, hosts=rules[-1].hosts + each.hosts)
        else:
            rules.append(each)
    return Imported(tuple(rules), tuple(dict.fromkeys(said)))


def limit(count: int) -> None:
    """Check that there are not so many hosts that comparing each with each would take long.

    Raises:
        ValueError: there are.
    """
    if count > MOST_HOSTS:
        raise ValueError(f"it names more than {MOST_HOSTS} hosts")


def limit_pins(count: int) -> None:
    """Check that hosts have not so many pins that repeating them for each would take much memory.

    Raises:
        ValueError: they have.
    """
    if count > MOST_PINS:
        raise ValueError(f"it gives one host more than {MOST_PINS} pins")


def _order(pattern: HostPattern) -> tuple[int, int]:
    return -len(pattern.host.split(".")), _KINDS.index(pattern.kind)


def pattern_of(name: str, kind: str = "exact") -> HostPattern:
    """Return the pattern for a foreign file's name.

    Args:
        name: a host.
        kind: as `HostPattern.kind`.

    Raises:
        ValueError: it is no host. The message quotes it, cut and printable.
    """
    try:
        host = canonical_host(name)
    except BadDestination:
        raise ValueError(f"{quoted(name)} is no host") from None
    if kind not in _KINDS:
        raise AssertionError(kind)
    return HostPattern(kind, host)  # type: ignore[arg-type]  # it is one of the literals of that type


def pin_of_base64(text: str) -> Pin:
    """Return the pin of a SHA-256 in base64, with or without padding.

    Raises:
        ValueError: it is no SHA-256. The message quotes it, cut and printable.
    """
    bare = text.strip().rstrip("=")
    if bare == _PLACEHOLDER:
        raise ValueError(f"{quoted(text.strip())} is a placeholder and no pin")
    try:
        return parse_pin(f"sha256/{bare}{'=' * (-len(bare) % 4)}")
    except ValueError:
        raise ValueError(f"{quoted(text.strip())} is no SHA-256 in base64") from None


def last_day_before(text: str) -> date:
    """Return the day before the one on which another program stops pinning.

    Args:
        text: that day, as `YYYY-MM-DD`.

    Raises:
        ValueError: there is no such day.
    """
    try:
        return date.fromordinal(date.fromisoformat(text.strip()).toordinal() - 1)
    except ValueError:
        raise ValueError(f"{quoted(text.strip())} is no day (YYYY-MM-DD)") from None


def quoted(text: str) -> str:
    """Return a foreign file's words for a note: on one line, printable, and cut."""
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:MOST_CHARACTERS])
    return f'"{shown}"' if len(text) <= MOST_CHARACTERS else f'"{shown}…"'


def as_policy(imported: Imported, title: str) -> str:
    """Return the text of a policy file with the rules.

    Args:
        imported: the rules.
        title: where they come from.
    """
    lines = [f"# {line}" for line in (title, *imported.notes)]
    lines += ["version: 1", *(["rules:"] if imported.rules else [])]
    names: set[str] = set()
    for rule in imported.rules:
        lines += [f"  # {note}" for note in rule.notes]
        lines += _rule(rule, _name(rule.hosts, names))
    return "\n".join(lines) + "\n"


def _rule(rule: Pinned, name: str) -> Iterator[str]:
    yield f"  - name: {name}"
    yield f"    hosts: [{', '.join(_text(str(host)) for host in rule.hosts)}]"
    if not rule.pins:
        yield "    # no pins: an exception from those of a rule below"
        return
    yield "    pins:"
    yield "      any_of:"
    yield from (f"        - {pin}" for pin in rule.pins)
    if rule.last_day is not None:
        yield f"      expires: {rule.last_day}"
        yield "      after_expiry: warn  # as there; enforce denies the host then"
    if rule.observes:
        yield "      mode: observe"


def _text(host: str) -> str:
    return f'"{host}"' if host.startswith("*") or ":" in host else host


def _name(hosts: Sequence[HostPattern], taken: set[str]) -> str:
    base = _NO_NAME.sub("-", hosts[0].host).strip("-")[:_LONGEST_NAME] or "rule"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base[: _LONGEST_NAME - 4]}-{number}"
    taken.add(name)
    return name
