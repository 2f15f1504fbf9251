"""Checks the pins of a host against what it showed: which match and where, whether a backup is there, and what ends
when. `overcoat pins check` prints it; `overcoat check` asks whether there is a backup.

Rules of this module:

- A backup is a pin that stands nowhere in the chain: only such a one helps on the day when the chain's keys change. The
  keys of one chain are no backup of each other, nor is a key that of its own certificate.
- Days are whole ones until an end, rounded down: what ends today has 0. On a pin's last day it still counts.
- What ends first in a chain counts, whichever certificate that is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from cryptography import x509

from proxy.core.pins import Level, Pin, PinMatch, PinSet, PinVerdict, certificate_pin, check_pins, level_of, spki_pin


class Result(StrEnum):
    """What came of checking a host."""

    MATCH = "match"
    MISMATCH = "mismatch"
    EXPIRED = "expired"  # the pins' last day is past
    UNPINNED = "unpinned"  # its certificate is valid, and its rule has no pins
    FAILED = "failed"  # it was not reached, or its certificate is not valid


@dataclass(frozen=True, slots=True)
class HostCheck:
    """What came of checking one host.

    Attributes:
        host: where it was sought, host and port.
        rule: the rule's name.
        result: the result.
        matches: the pins in its chain, from leaf to root.
        backups: the pins that stand nowhere in it.
        ends: when the first certificate of the chain ends; None if there is no chain.
        ends_at: which one that is.
        expires: the last day of the pins; None for no end, or no pins.
        observes: whether the pins are only observed.
        detail: one sentence on what is wrong; "" if nothing is.
        seen: the pins of the chain, of keys and of whole certificates, from leaf to root.
    """

    host: str
    rule: str
    result: Result
    matches: tuple[PinMatch, ...] = ()
    backups: tuple[Pin, ...] = ()
    ends: datetime | None = None
    ends_at: Level | None = None
    expires: date | None = None
    observes: bool = False
    detail: str = ""
    seen: tuple[Pin, ...] = ()

    @property
    def level(self) -> Level | None:
        """The level of the first pin that matched."""
        return self.matches[0].level if self.matches else None


def check_host(host: str, rule: str, pins: PinSet | None, chain: Sequence[bytes], now: datetime) -> HostCheck:
    """Check the chain that a host has shown.

    Args:
        host: where it was sought.
        rule: the rule's name.
        pins: the rule's pins, or None.
        chain: the verified chain in DER, leaf to root; it is not empty.
        now: the present time in UTC.
    """
    loaded = [x509.load_der_x509_certificate(each).not_valid_after_utc for each in chain]
    ends = min(loaded)
    ends_at = level_of(loaded.index(ends), len(chain))
    seen = tuple(pin for each in chain for pin in (spki_pin(each), certificate_pin(each)))
    if pins is None:
        return HostCheck(host, rule, Result.UNPINNED, ends=ends, ends_at=ends_at, seen=seen)
    found = check_pins(pins, chain, now.date())
    detail = ""
    if found.verdict is PinVerdict.EXPIRED:
        detail = f"the pins of {rule} expired on {pins.expires}"
    elif found.verdict is PinVerdict.MISMATCH:
        detail = f"nothing in the verified chain has a pin of {rule}; the server's key is {seen[0]}"
    return HostCheck(
        host,
        rule,
        Result(found.verdict.value),
        found.matches,
        backups(pins, seen),
        ends,
        ends_at,
        pins.expires,
        pins.observes,
        detail,
        seen,
    )


def failed_host(host: str, rule: str, pins: PinSet | None, detail: str) -> HostCheck:
    """Return the check of a host that could not be asked.

    Args:
        host: where it was sought.
        rule: the rule's name.
        pins: the rule's pins, or None.
        detail: why not.
    """
    expires = pins.expires if pins is not None else None
    return HostCheck(host, rule, Result.FAILED, expires=expires, detail=detail)


def backups(pins: PinSet, seen: Collection[Pin]) -> tuple[Pin, ...]:
    """Return the pins of a set that are none of those that were seen."""
    return tuple(pin for pin in pins.any_of if pin not in seen)


def days_until(end: datetime | date, now: datetime) -> int:
    """Return the whole days until an end: negative if it is past.

    Args:
        end: a moment in UTC, or a last day.
        now: the present time in UTC.
    """
    if isinstance(end, datetime):
        return (end - now).days
    return (end - now.date()).days


def troubles(check: HostCheck, days: int, now: datetime) -> list[str]:
    """Return what is to be done about a host now, one sentence each; none if it can wait.

    Args:
        check: what came of checking it.
        days: what has fewer days left than this is to be dealt with now.
        now: the present time in UTC.
    """
    said = [f"{check.result.value}: {check.detail}"] if check.detail else []
    if check.ends is not None and days_until(check.ends, now) < days:
        whose = {Level.LEAF: "its certificate", Level.INTERMEDIATE: "an intermediate CA of its chain"}
        what = whose.get(check.ends_at or Level.LEAF, "the root of its chain")
        said.append(f"{what} ends on {check.ends:%Y-%m-%d %H:%M} UTC ({_days(days_until(check.ends, now))})")
    if check.expires is not None and check.result is not Result.EXPIRED and days_until(check.expires, now) < days:
        said.append(f"the pins of {check.rule} expire on {check.expires} ({_days(days_until(check.expires, now))})")
    return said


def _days(count: int) -> str:
    return f"in {count} day{'' if count == 1 else 's'}" if count >= 0 else "in the past"
