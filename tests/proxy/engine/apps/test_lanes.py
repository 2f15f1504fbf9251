"""A lane keeps the order of what comes, whatever of it takes long, and reads no more while something waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from proxy import timelimits
from proxy.engine.apps.lanes import Lane, Result
from proxy.engine.turns import Turns


class World:
    """One lane, and what it does."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.turns = Turns(self.soon.append)
        self.log: list[str] = []
        self.lane = Lane(
            self.turns, self, self.take_step, lambda is_held: self.log.append("hold" if is_held else "go on")
        )

    def hold(self, is_held: bool) -> None:
        self.log.append("hold" if is_held else "go on")

    def take_step(self, step: Callable[[None], None], argument: None) -> None:
        step(argument)
        self.log.append("step")

    def do(self, name: str, pauses: int) -> None:
        def work() -> str:
            for _ in range(pauses):
                self.turns.pause()
            return name

        def then(result: Result[str]) -> None:
            self.log.append(result())

        self.lane.do(work, then)

    def turn(self) -> None:
        self.soon.popleft()()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(timelimits, "PIECE_SECONDS", -1.0)  # each pause ends a piece
    return World()


def test_what_does_not_take_long_is_done_at_once(world: World) -> None:
    world.do("a", 0)
    assert world.log == ["a"]
    assert not world.lane.is_busy
    assert not world.soon


def test_what_takes_long_is_done_later_and_holds_nothing_up_if_nothing_comes(world: World) -> None:
    world.do("a", 1)
    busy, log = world.lane.is_busy, [*world.log]
    world.turn()
    assert (busy, log) == (True, [])
    assert not world.lane.is_busy
    assert world.log == ["a", "step"]


def test_what_comes_behind_waits_and_nothing_more_is_read(world: World) -> None:
    world.do("a", 1)
    world.lane.behind(lambda: world.do("b", 0))
    world.lane.behind(lambda: world.do("c", 1))
    world.lane.behind(lambda: world.do("d", 0))
    assert world.log == ["hold"]
    world.turn()
    assert world.log == ["hold", "a", "b", "step"]
    assert world.lane.is_busy  # with c
    world.turn()
    assert world.log == ["hold", "a", "b", "step", "c", "d", "go on", "step"]
    assert not world.lane.is_busy


def test_nothing_of_it_happens_once_it_is_cancelled(world: World) -> None:
    world.do("a", 1)
    world.lane.behind(lambda: world.do("b", 0))
    world.lane.cancel()
    assert not world.lane.is_busy
    world.turn()
    assert world.log == ["hold"]
    assert not world.soon
    world.lane.cancel()  # there is nothing left
    world.do("c", 0)
    assert world.log == ["hold", "c"]


def test_it_may_be_cancelled_by_what_it_does(world: World) -> None:
    world.lane.do(world.turns.pause, lambda _: world.lane.cancel())
    world.lane.behind(lambda: world.do("b", 0))
    world.turn()
    assert world.log == ["hold", "step"]


def test_a_failure_is_told_to_whoever_asks_for_the_result(world: World) -> None:
    def fail() -> None:
        world.turns.pause()
        raise ValueError("x")

    def then(result: Result[None]) -> None:
        with pytest.raises(ValueError, match="x"):
            result()
        world.log.append("told")

    world.lane.do(fail, then)
    world.turn()
    assert world.log == ["told", "step"]
