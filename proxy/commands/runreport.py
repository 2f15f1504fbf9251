"""What `overcoat run` says at the end: what its sidecar has done for the program, and what went past it.

Rules of this module:

- It goes to standard error; standard output is the program's.
- What cannot be seen is said as well: nothing here may be read as "there was nothing else".
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from proxy.wearing.seen import Watch, name_of
from proxy.wearing.tally import Tally

_WORDS = {
    "upgrade": "upgraded to https",
    "inspect": "https inspected",
    "tunnel": "https tunnelled, not looked into",
    "allow": "plain http allowed by the policy",
    "deny": "denied",
}
_SHOWN = 10  # denials and places, each
UNSEEN = "looked for several times a second: shorter connections are not seen, nor name lookups, nor loopback"
NOT_LOOKED = "only Linux shows what goes past it: nobody has looked"


def say(text: str, colour: str | None = None) -> None:
    """Print a line to standard error, in one write, so that it stays whole beside the program's own."""
    line = "".join(each if each.isprintable() else " " for each in text)
    click.echo(f"{click.style('overcoat:', dim=True)} {click.style(line, fg=colour)}", err=True)


@dataclass(frozen=True, slots=True)
class Report:
    """What was done for a program.

    Attributes:
        name: what it was called.
        status: its exit status, negative for a signal.
        tally: what the decision lines say.
        watch: what was seen of its connections.
        left: the processes that it has left behind.
        has_lost_sidecar: whether the sidecar ended before it did.
    """

    name: str
    status: int
    tally: Tally
    watch: Watch
    left: Sequence[int]
    has_lost_sidecar: bool

    def print(self) -> None:
        """Print it for people."""
        tally = self.tally
        if not tally.total:
            say(
                f"no request of {self.name} came here: it made none, or only to hosts in NO_PROXY, as localhost is "
                "(to try one there: `overcoat run -- env NO_PROXY= no_proxy= PROGRAM`), or reads none of the "
                "variables (docs/apps.md)",
                "yellow",
            )
        else:
            done = [
                f"{number} {_WORDS.get(action, action)}{_of_these_failed(tally.failed[action], number)}"
                for action, number in tally.actions.most_common()
            ]
            say(f"{_many(tally.total, 'request')} of {self.name}: {', '.join(done)}")
        protected = [f"pin {verdict}: {number}" for verdict, number in tally.pins.most_common()]
        protected += [f"{_many(tally.encrypted, 'field')} encrypted"] if tally.encrypted else []
        protected += [f"{_many(tally.decrypted, 'field')} decrypted"] if tally.decrypted else []
        if protected:
            say(", ".join(protected), "green")
        if tally.would:
            would = ", ".join(f"{number} {_WORDS.get(action, action)}" for action, number in tally.would.most_common())
            say(
                f"observed only; enforcing: {would}; fields to encrypt: {tally.would_encrypt}",
                "yellow",
            )
        for what, counter, colour in (("denied", tally.denials, "red"), ("failed", tally.failures, "yellow")):
            for (reason, destination), number in counter.most_common(_SHOWN):
                say(f"{what}: {destination}: {reason}{f' ({number} times)' if number > 1 else ''}", colour)
            if len(counter) > _SHOWN:
                say(f"{what}: and {len(counter) - _SHOWN} more", colour)
        self._print_past()
        if self.left:
            names = ", ".join(f"{name_of(pid)} ({pid})" for pid in self.left[:_SHOWN])
            say(f"still running, without a way out through the sidecar, which has ended: {names}", "yellow")

    def _print_past(self) -> None:
        if sys.platform != "linux":
            say(f"past it: {NOT_LOOKED}")
            return
        if not self.watch.places:
            say(f"past it: nothing was seen ({UNSEEN})")
            return
        for place in list(self.watch.places)[:_SHOWN]:
            quic = ", perhaps QUIC" if place.protocol == "udp" else ""
            say(f"past it: {place.program} reached {place.address} ({place.protocol}{quic})", "yellow")
        more = len(self.watch.places) - _SHOWN
        say(f"past it:{f' {more} more;' if more > 0 else ''} {UNSEEN}")
        if self.watch.hidden:
            say(f"past it: could not be looked into: {', '.join(sorted(self.watch.hidden))}")

    def print_json(self) -> None:
        """Print it for programs: one object on one line."""
        tally = self.tally
        facts: dict[str, Any] = {
            "program": self.name,
            "status": self.status,
            "requests": tally.total,
            "actions": dict(tally.actions),
            "pins": dict(tally.pins),
            "encrypted": tally.encrypted,
            "decrypted": tally.decrypted,
            "would": dict(tally.would),
            "would_encrypt": tally.would_encrypt,
            "denials": _rows(tally.denials),
            "failures": _rows(tally.failures),
            "hosts": dict(Counter(tally.hosts).most_common()),
            "past": [
                {"address": place.address, "protocol": place.protocol, "program": place.program}
                for place in self.watch.places
            ],
            "past_unseen": UNSEEN if sys.platform == "linux" else NOT_LOOKED,
            "not_looked_into": sorted(self.watch.hidden),
            "left_behind": list(self.left),
            "sidecar_ended_early": self.has_lost_sidecar,
        }
        click.echo(json.dumps(facts), err=True)


def _rows(counter: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "destination": destination, "times": number}
        for (reason, destination), number in counter.most_common()
    ]


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _of_these_failed(failed: int, number: int) -> str:
    """Return how many of a number of requests failed, for behind it: what the policy says is not what came of it."""
    if not failed:
        return ""
    return ", but failed" if failed == number else f" ({failed} of them failed)"
