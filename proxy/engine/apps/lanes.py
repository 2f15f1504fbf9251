"""One direction of a conversation, where it may take long to work on what has come: what comes behind waits until that
is done. `conversation` has two.

Rules of this module:

- What is done in a lane keeps its order, whatever takes long. The two lanes know nothing of each other.
- What is over in its first piece is done at once, as if there were no lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from proxy.engine.turns import Turns, Work

type Result[T] = Callable[[], T]  # returns what work gave, or raises what it raised


class Lane:
    """One direction."""

    __slots__ = ("_behind", "_hold", "_owner", "_take_step", "_turns", "_work")

    def __init__(
        self,
        turns: Turns,
        owner: object,
        take_step: Callable[[Callable[[None], None], None], object],
        hold: Callable[[bool], object],
    ) -> None:
        """Start.

        Args:
            turns: does what takes long.
            owner: whose work it is: the app's connection.
            take_step: runs a step in a later turn, and ends the conversation if it raises.
            hold: reads no more from this side, or goes on.
        """
        self._turns = turns
        self._owner = owner
        self._take_step = take_step
        self._hold = hold
        self._work: Work[Any] | None = None
        self._behind: deque[Callable[[], object]] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether what comes has to wait."""
        return self._work is not None

    def do[T](self, do: Callable[[], T], then: Callable[[Result[T]], object]) -> None:
        """Do something that may take long, piece by piece; nothing else must be under way.

        Args:
            do: does it.
            then: called when it is over; before anything that is put behind it.
        """
        work = self._turns.start(do, lambda work: self._take_step(partial(self._over, work, then), None), self._owner)
        if work.is_over:
            then(work.result)
        else:
            self._work = work

    def behind(self, step: Callable[[], object]) -> None:
        """Do something once all before it is done; only where it is busy."""
        if not self._behind:
            self._hold(True)
        self._behind.append(step)

    def cancel(self) -> None:
        """Do nothing more of all this."""
        work, self._work = self._work, None
        self._behind.clear()
        if work is not None:
            self._turns.cancel(work)

    def _over[T](self, work: Work[T], then: Callable[[Result[T]], object], _: None) -> None:
        self._work = None
        then(work.result)
        while self._behind and self._work is None:
            self._behind.popleft()()
            if not self._behind:
                self._hold(False)
