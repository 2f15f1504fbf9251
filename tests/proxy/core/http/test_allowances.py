"""How often a peer may do what costs it nothing: so many at once, and so many a second."""

from __future__ import annotations

from proxy.core.http.allowances import Allowance


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now


def taken(allowance: Allowance, count: int) -> list[bool]:
    return [allowance.take() for _ in range(count)]


def test_so_many_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    allowance = Allowance(3, 2, clock)
    assert taken(allowance, 4) == [True, True, True, False]
    clock.now += 2
    assert taken(allowance, 4) == [True, True, True, False]


def test_never_more_at_once_however_long_nothing_was_taken() -> None:
    clock = Clock()
    allowance = Allowance(3, 2, clock)
    assert taken(allowance, 3) == [True] * 3
    clock.now += 1000
    assert taken(allowance, 4) == [True, True, True, False]


def test_what_is_earned_may_be_taken_and_is_not_heaped_up() -> None:
    allowance = Allowance(3, 0, Clock())
    allowance.earn(100)
    assert taken(allowance, 3) == [True] * 3
    allowance.earn(2)
    assert taken(allowance, 3) == [True, True, False]


def test_the_time_is_asked_for_only_once_it_is_used_up() -> None:
    clock = Clock()
    allowance = Allowance(3, 1, clock)
    asked = clock.asked
    taken(allowance, 3)
    assert clock.asked == asked
    allowance.take()
    assert clock.asked == asked + 1
