"""Time limits that share the event loop's timers: none is early or lost, and one that is stopped is not called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from proxy.engine.timers import GRAIN, Timer, Timers


def run(check: Callable[[Timers, list[object]], None], *, wait: float) -> list[object]:
    """Start timers, wait, and return what they have noted."""

    async def main() -> list[object]:
        found: list[object] = []
        check(Timers(asyncio.get_running_loop()), found)
        await asyncio.sleep(wait)
        return found

    return asyncio.run(main())


def test_none_is_early_and_none_is_late_by_more_than_the_grain() -> None:
    asked = [0.0, 0.001, GRAIN, 1.5 * GRAIN, 2 * GRAIN]
    due: dict[float, float] = {}
    called: dict[float, float] = {}

    def note(seconds: float, time: Callable[[], float]) -> None:
        called[seconds] = time()

    def check(timers: Timers, _: list[object]) -> None:
        for seconds in asked:
            due[seconds] = timers.time() + seconds
            timer = timers.call_later(seconds, note, seconds, timers.time)
            assert due[seconds] <= timer.when() <= timers.time() + seconds + GRAIN

    run(check, wait=5 * GRAIN)
    assert list(called) == asked
    assert all(due[seconds] <= called[seconds] for seconds in asked)


def test_one_that_is_stopped_is_not_called_and_the_others_are() -> None:
    def check(timers: Timers, found: list[object]) -> None:
        made = [timers.call_later(0.01, found.append, number) for number in range(3)]
        made[1].cancel()
        made[1].cancel()

    assert run(check, wait=3 * GRAIN) == [0, 2]


def cancel_all(timers: list[Timer]) -> None:
    for timer in timers:
        timer.cancel()


def test_one_that_is_stopped_by_another_of_the_same_time_is_not_called_either() -> None:
    def check(timers: Timers, found: list[object]) -> None:
        timers.call_later(0.01, cancel_all, made)
        made.append(timers.call_later(0.01, found.append, "last"))

    made: list[Timer] = []

    assert run(check, wait=3 * GRAIN) == []


def test_one_that_was_called_may_be_stopped_and_is_not_called_again() -> None:
    def check(timers: Timers, found: list[object]) -> None:
        first = timers.call_later(0.0, found.append, "first")
        timers.call_later(GRAIN, first.cancel)

    assert run(check, wait=4 * GRAIN) == ["first"]


def test_one_that_raises_keeps_no_other_from_being_called(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError

    def check(timers: Timers, found: list[object]) -> None:
        timers.call_later(0.01, fail)
        timers.call_later(0.01, found.append, "other")

    with caplog.at_level(logging.CRITICAL, "asyncio"):
        assert run(check, wait=3 * GRAIN) == ["other"]


def test_many_of_one_time_cost_the_loop_one_timer() -> None:
    async def check() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        asked: list[float] = []
        call_at = loop.call_at
        loop.call_at = lambda when, *rest: asked.append(when) or call_at(when, *rest)  # type: ignore[method-assign, func-returns-value]  # to see what is asked of it
        timers = Timers(loop)
        for _ in range(1000):
            timers.call_later(60, lambda: None).cancel()
        return len(asked), len(timers._together)

    timers, kept = asyncio.run(check())
    assert timers == kept
    assert timers <= 3  # as many as the units of time that pass meanwhile
