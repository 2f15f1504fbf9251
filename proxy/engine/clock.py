"""How long may an upstream take to begin its answer? One clock for each app's connection, for one request at a time.

Rules of this module:

- It runs only while the upstream is waited for; that is for who starts and stops it to say. What shows that the
  upstream lives starts it anew.
- An upstream that takes a request slowly is not one that hangs: while bytes of it move, the clock does not strike.
- Nearly no request ever hears it, so starting it costs no timer of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

LOOKS = 4.0  # at what has been taken, in the time that there is


class Taker(Protocol):
    """What a request is sent to."""

    def unsent(self) -> int:
        """Return how many bytes have not reached the peer yet."""


class ResponseClock:
    """The clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, guarded: Callable[..., None]) -> None:
        """Start with none running.

        Args:
            loop: the event loop.
            guarded: calls a step, and sees to what it raises.
        """
        self._loop = loop
        self._guarded = guarded
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
        self._strike: Callable[[], None] | None = None
        self._taker: Taker | None = None
        self._seconds = self._since = 0.0
        self._unsent = 0

    def start(self, taker: Taker, seconds: float, strike: Callable[[], None]) -> None:
        """Run from now on, whatever ran before.

        Args:
            taker: where the request goes.
            seconds: how long there is.
            strike: called when that is over.
        """
        self._taker, self._seconds, self._strike = taker, seconds, strike
        self._since = now = self._loop.time()
        self._unsent = 0
        if now + seconds / LOOKS < self._looks_at:  # else it looks before, and sees how much is left
            self._look_in(seconds / LOOKS)

    def stop(self) -> None:
        """Run no more."""
        self._strike = self._taker = None

    def close(self) -> None:
        """Never run again."""
        self.stop()
        self._cancel()

    def _cancel(self) -> None:
        self._looks_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self._cancel()
        self._timer = self._loop.call_later(seconds, self._guarded, self._look)
        self._looks_at = self._timer.when()

    def _look(self) -> None:
        self._cancel()
        if self._strike is None or self._taker is None:
            return
        now, unsent = self._loop.time(), self._taker.unsent()
        if unsent != self._unsent:
            self._unsent, self._since = unsent, now
        left = self._since + self._seconds - now
        if left > 0:
            self._look_in(min(left, self._seconds / LOOKS))
            return
        strike = self._strike
        self.stop()
        strike()
