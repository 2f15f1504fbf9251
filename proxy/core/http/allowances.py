"""How often a peer may do what costs it nothing. The engine asks for each frame of HTTP/2 that carries nothing, and for
each stream that is reset.

Rules of this module:

- The time is asked for only once an allowance is used up, since most peers never get so far.
"""

from __future__ import annotations

from collections.abc import Callable


class Allowance:
    """An allowance: so many at once, and so many a second after that."""

    __slots__ = ("_a_second", "_at_once", "_clock", "_left", "_since")

    def __init__(self, at_once: int, a_second: int, clock: Callable[[], float]) -> None:
        """Start with all that may be at once.

        Args:
            at_once: so many may be at once, and are never exceeded.
            a_second: so many come back in each second.
            clock: returns seconds, as `time.monotonic` does.
        """
        self._at_once = self._left = float(at_once)
        self._a_second = a_second
        self._clock = clock
        self._since = clock()

    def take(self) -> bool:
        """Take one; return whether there was one left."""
        if self._left < 1:
            now = self._clock()
            self._left = min(self._at_once, self._left + (now - self._since) * self._a_second)
            self._since = now
        self._left -= 1
        return self._left >= 0

    def earn(self, count: float) -> None:
        """Add so many to the allowance."""
        self._left = min(self._at_once, self._left + count)
