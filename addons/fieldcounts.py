"""What has become of the marked fields of one request and its response, by entry: how many values were sealed or
opened, and what failed. `addons.exchange` keeps it; decision lines and metrics say it.

Rules of this module:

- An entry is called by its name (`FieldEntry.name`), which the policy gives: nothing in here is chosen by a peer.
- Each value and each failure gets into the metrics once, while a WebSocket is still open, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proxy.core.decisions import Reason
from proxy.core.fields.entries import FieldEntry, Work

type Counts = Counter[tuple[str, Work | Reason]]


class FieldCounts:
    """The counts of one exchange."""

    def __init__(self) -> None:
        self._found: Counts = Counter()
        self._taken: Counts = Counter()

    def add(self, entries: Sequence[FieldEntry], counts: Sequence[int]) -> None:
        """Count values that were sealed or opened, for each entry."""
        for entry, count in zip(entries, counts, strict=True):
            if count:
                self._found[entry.name, entry.work] += count

    def fail(self, name: str, reason: Reason) -> None:
        """Count that the work of an entry failed.

        Args:
            name: the entry's name.
            reason: why.
        """
        self._found[name, reason] += 1

    def forget(self) -> None:
        """Note that nothing of what was sealed or opened has left."""
        for what in [what for what in self._found if isinstance(what[1], Work)]:
            del self._found[what]

    def total(self, work: Work) -> int:
        """Return how many values were sealed, or opened."""
        return sum(count for (_, done), count in self._found.items() if done is work)

    def by_entry(self) -> dict[str, int]:
        """Return how many values were sealed or opened, for each entry that has any."""
        return {name: count for (name, done), count in self._found.items() if isinstance(done, Work)}

    def failures(self) -> dict[str, dict[str, int]]:
        """Return how often each entry's work failed, for each reason's code."""
        found: dict[str, dict[str, int]] = {}
        for (name, why), count in self._found.items():
            if isinstance(why, Reason):
                found.setdefault(name, {})[why.code] = count
        return found

    def take(self) -> Counts:
        """Return what has been counted since the last call."""
        new, self._taken = self._found - self._taken, self._found.copy()
        return new
