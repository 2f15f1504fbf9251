"""Adds up decision lines: what a sidecar has done for one program. `overcoat run` shows it at the end.

Rules of this module:

- It reads what the lines say, and knows nothing of the network.
- It holds a limited number of hosts and denials apart, however long the program runs; the rest is only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_WELL = ("ok", "observed", "idle")  # outcomes that nobody needs to hear of
MOST = 1000  # kinds of denials, and hosts, that are held apart


class Tally:
    """What has been done so far.

    Attributes:
        actions: the number of requests and tunnels by action.
        failed: the number of those that ended otherwise than well and were not denied, by action.
        denials: the number of denials by reason and destination.
        failures: the number of those that ended otherwise than well, by reason (or outcome) and destination.
        hosts: the number of requests and tunnels by destination.
        pins: the number of checked pins by result.
        encrypted: fields of requests that were encrypted.
        decrypted: fields of responses that were decrypted.
        would: in observe mode, what enforcing would have done, by action.
        would_encrypt: in observe mode, fields that enforcing would have encrypted.
    """

    def __init__(self) -> None:
        self.actions: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.denials: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.hosts: Counter[str] = Counter()
        self.pins: Counter[str] = Counter()
        self.would: Counter[str] = Counter()
        self.encrypted = self.decrypted = self.would_encrypt = 0

    def take(self, line: Mapping[str, Any]) -> None:
        """Add a decision line; one of a tunnel that is still open says nothing new."""
        if "event" in line:
            return
        action, destination = line["action"], line["destination"] or "?"
        self.actions[action] += 1
        _count(self.hosts, destination, "others")
        if (outcome := line["outcome"]) not in _WELL:
            counter = self.denials
            if outcome != "denied":
                counter = self.failures
                self.failed[action] += 1
            _count(counter, (line["reason"] or outcome, destination), ("others", "others"))
        if line["pin"] is not None:
            self.pins[line["pin"]] += 1
        self.encrypted += line["encrypted"]
        self.decrypted += line["decrypted"]
        if "would" in line:
            self.would["deny" if line["would_deny"] else line["would"]] += 1
            self.would_encrypt += line["would_encrypt"]

    @property
    def total(self) -> int:
        """The number of requests and tunnels."""
        return self.actions.total()


def _count[T](counter: Counter[T], key: T, others: T) -> None:
    counter[key if key in counter or len(counter) < MOST else others] += 1
