"""Measures how long an upstream takes to begin its response, and strikes when its time is over. Each conversation with
an app has one clock; the speakers for HTTP/1 and HTTP/2 own it.

Rules of this module:

- The clock runs only while Overcoat waits for the upstream; callers start and stop it. Any sign of life of the upstream
  starts it anew.
- A slow upstream is not a dead one: while bytes of the request move, the clock does not strike.
- Nearly no request needs the clock to strike, so starting it sets no timer of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from proxy.engine.timers import Timer, Timers

LOOKS = 4.0  # how often it checks, within the time limit, what the upstream has taken


class Taker(Protocol):
    """The side that a request is sent to."""

    def unsent(self) -> int:
        """Return the number of bytes that have not reached the peer yet."""


class ResponseClock:
    """The clock for one request at a time."""

    def __init__(self, timers: Timers, guarded: Callable[..., None]) -> None:
        """Start without a running clock.

        Args:
            timers: start its checks.
            guarded: calls a step, and handles what it raises.
        """
        self._timers = timers
        self._guarded = guarded
        self._timer: Timer | None = None
        self._looks_at = math.inf
        self._strike: Callable[[], None] | None = None
        self._taker: Taker | None = None
        self._seconds = self._since = 0.0
        self._unsent = 0

    def start(self, taker: Taker, seconds: float, strike: Callable[[], None]) -> None:
        """Run from now on, and forget what ran before.

        Args:
            taker: the side that the request is sent to.
            seconds: the time limit.
            strike: called when the time is over.
        """
        self._taker, self._seconds, self._strike = taker, seconds, strike
        self._since = now = self._timers.time()
        self._unsent = 0
        if now + seconds / LOOKS < self._looks_at:  # else the next check comes earlier, and sees how much time is left
            self._look_in(seconds / LOOKS)

    def stop(self) -> None:
        """Stop running."""
        self._strike = self._taker = None

    def close(self) -> None:
        """Stop, for good."""
        self.stop()
        self._cancel()
        self._guarded = _nothing  # the owner's, which refers back to this; without that circle, both are freed at once

    def _cancel(self) -> None:
        self._looks_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self._cancel()
        self._timer = self._timers.call_later(seconds, self._guarded, self._look)
        self._looks_at = self._timer.when()

    def _look(self) -> None:
        self._cancel()
        if self._strike is None or self._taker is None:
            return
        now, unsent = self._timers.time(), self._taker.unsent()
        if unsent != self._unsent:
            self._unsent, self._since = unsent, now
        left = self._since + self._seconds - now
        if left > 0:
            self._look_in(min(left, self._seconds / LOOKS))
            return
        strike = self._strike
        self.stop()
        strike()


def _nothing(*_arguments: object) -> None:
    """Run no step: the connection is over."""
