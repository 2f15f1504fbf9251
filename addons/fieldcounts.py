"""What has become of the marked fields of one request and its response, by entry: how many values were sealed or
opened, and what failed. `addons.exchange` keeps it; decision lines and metrics say it.

Rules of this module:

- An entry is called by its name (`FieldEntry.name`), which the policy gives: nothing in here is chosen by a peer.
- Each value and each failure gets into the metrics once, while a WebSocket is still open, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.reasons import Reason

type Counts = dict[tuple[str, Work | Reason], int]


class FieldCounts:
    """The counts of one exchange."""

    __slots__ = ("_found", "_taken")

    def __init__(self, found: Iterable[tuple[tuple[str, Work | Reason], int]] = ()) -> None:
        """Start with what `all` has returned."""
        self._found: Counts = dict(found)
        self._taken: Counts = {}

    def all(self) -> tuple[tuple[tuple[str, Work | Reason], int], ...]:
        """Return all counts: an entry's name, with what was done or why it failed, and how often."""
        return tuple(self._found.items())

    def add(self, entries: Sequence[FieldEntry], counts: Sequence[int]) -> None:
        """Count values that were sealed or opened, for each entry."""
        for entry, count in zip(entries, counts, strict=True):
            if count:
                self._count((entry.name, entry.work), count)

    def fail(self, name: str, reason: Reason) -> None:
        """Count that the work of an entry failed.

        Args:
            name: the entry's name.
            reason: why.
        """
        self._count((name, reason), 1)

    def _count(self, what: tuple[str, Work | Reason], count: int) -> None:
        self._found[what] = self._found.get(what, 0) + count

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
        taken, self._taken = self._taken, self._found.copy()
        if not taken:  # of all but a WebSocket, it is asked once
            return self._taken
        return {what: new for what, count in self._found.items() if (new := count - taken.get(what, 0)) > 0}
