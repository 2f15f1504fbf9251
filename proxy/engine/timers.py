"""Time limits of many connections, nearly all of which are stopped before they end. The engine has one `Timers`; `life`
and `clock` use it.

Rules of this module:

- A step is never called early, and at most `GRAIN` seconds late.
- Timers that end in the same sixteenth of a second share one timer of the event loop. So to start and to stop one is a
  change of a dictionary. The loop would keep each in its heap, where timers that were stopped stay for a while; for a
  connection with a single request, that took a tenth of the processor time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_PER_SECOND = 16
GRAIN = 1 / _PER_SECOND


class Timer:
    """A step that is to be called later."""

    __slots__ = ("_arguments", "_at", "_others", "_step")

    def __init__(
        self, at: int, others: dict[Timer, None], step: Callable[..., object], arguments: tuple[object, ...]
    ) -> None:
        self._at = at
        self._others = others
        self._step: Callable[..., object] | None = step
        self._arguments = arguments

    def when(self) -> float:
        """Return the time of the event loop at which the step is called."""
        return self._at / _PER_SECOND

    def cancel(self) -> None:
        """Forget the step, unless it was called already."""
        self._others.pop(self, None)
        self._step = None

    def run(self) -> None:
        """Call the step, unless it was forgotten in this very turn."""
        if self._step is not None:
            self._step(*self._arguments)


class Timers:
    """All timers of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._together: dict[int, dict[Timer, None]] = {}  # by the time, in units of `GRAIN`, at which they end
        self.time = loop.time

    def call_later(self, seconds: float, step: Callable[..., object], *arguments: object) -> Timer:
        """Call a step after some time.

        Args:
            seconds: the time until then.
            step: what to call, in a turn of its own.
            arguments: the step's arguments.
        """
        at = int((self.time() + seconds) * _PER_SECOND) + 1
        others = self._together.get(at)
        if others is None:
            others = self._together[at] = {}
            self._loop.call_at(at / _PER_SECOND, self._end, at)
        timer = Timer(at, others, step, arguments)
        others[timer] = None
        return timer

    def _end(self, at: int) -> None:
        for timer in self._together.pop(at):
            self._loop.call_soon(timer.run)
