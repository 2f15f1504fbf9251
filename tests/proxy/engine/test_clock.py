"""The time that an upstream has to begin its answer: what it counts, what starts it anew, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.engine.clock import LOOKS, ResponseClock
from proxy.engine.timers import Timers


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self._when = when
        self.call = call
        self.is_cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """A loop whose time is what a test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, guarded: Callable[..., None], step: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, lambda: guarded(step))
        self.timers.append(timer)
        return timer

    @property
    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]

    def go_to(self, now: float) -> None:
        """Let the time pass, and call whatever is due by then."""
        while due := [timer for timer in self.waiting if timer.when() <= now]:
            first = min(due, key=Timer.when)
            self.timers.remove(first)
            self.now = first.when()
            first.call()
        self.now = now


class Upstream:
    def __init__(self) -> None:
        self.left = 0

    def unsent(self) -> int:
        return self.left


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def struck() -> list[str]:
    return []


@pytest.fixture
def clock(loop: Loop) -> ResponseClock:
    def guarded(step: Callable[..., Any]) -> None:
        step()

    return ResponseClock(cast(Timers, loop), guarded)


def test_it_strikes_once_when_the_time_is_over(
    loop: Loop, clock: ResponseClock, upstream: Upstream, struck: list[str]
) -> None:
    clock.start(upstream, 60, lambda: struck.append("late"))
    loop.go_to(159.9)
    assert struck == []
    loop.go_to(160)
    assert struck == ["late"]
    loop.go_to(1000)
    assert struck == ["late"]
    assert loop.waiting == []


def test_one_that_is_stopped_does_not(loop: Loop, clock: ResponseClock, upstream: Upstream, struck: list[str]) -> None:
    clock.start(upstream, 60, lambda: struck.append("late"))
    clock.stop()
    loop.go_to(1000)
    assert struck == []
    assert loop.waiting == []


def test_one_that_is_closed_leaves_nothing_behind(loop: Loop, clock: ResponseClock, upstream: Upstream) -> None:
    clock.close()
    clock.start(upstream, 60, lambda: None)
    clock.close()
    assert loop.waiting == []


def test_a_start_begins_anew_and_costs_no_timer_of_its_own(
    loop: Loop, clock: ResponseClock, upstream: Upstream, struck: list[str]
) -> None:
    for number in range(100):
        clock.start(upstream, 60, lambda: struck.append("early"))
        clock.stop()
        loop.go_to(100 + number / 10)
    assert len(loop.timers) == 1
    clock.start(upstream, 60, lambda: struck.append("late"))
    loop.go_to(169.8)
    assert struck == []
    loop.go_to(169.9)
    assert struck == ["late"]


def test_a_shorter_time_after_a_longer_one_is_as_short_as_it_is(
    loop: Loop, clock: ResponseClock, upstream: Upstream, struck: list[str]
) -> None:
    clock.start(upstream, 600, lambda: struck.append("long"))
    clock.stop()
    clock.start(upstream, 1, lambda: struck.append("short"))
    assert len(loop.waiting) == 1
    loop.go_to(101)
    assert struck == ["short"]


def test_an_upstream_that_takes_what_is_sent_is_not_late(
    loop: Loop, clock: ResponseClock, upstream: Upstream, struck: list[str]
) -> None:
    upstream.left = 100
    clock.start(upstream, 60, lambda: struck.append("late"))
    for left in range(99, 0, -1):
        upstream.left = left
        loop.go_to(loop.now + 50)
    assert struck == []
    upstream.left = 0  # now the request is sent, and the time begins
    sent = loop.now
    loop.go_to(sent + 59)
    assert struck == []
    loop.go_to(sent + 60 + 60 / LOOKS)
    assert struck == ["late"]


def test_one_that_takes_nothing_is(loop: Loop, clock: ResponseClock, upstream: Upstream, struck: list[str]) -> None:
    upstream.left = 100
    clock.start(upstream, 60, lambda: struck.append("late"))
    loop.go_to(159)
    assert struck == []
    loop.go_to(160 + 60 / LOOKS)
    assert struck == ["late"]
