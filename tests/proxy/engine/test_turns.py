"""Long work is done piece by piece, in turns, never beside the loop, and ends when it is cancelled."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from proxy import timelimits
from proxy.engine import turns
from proxy.engine.turns import Turns, Work


class Loop:
    """Calls what is to be called soon, turn by turn."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.turns = Turns(self.soon.append)
        self.log: list[object] = []

    def turn(self) -> bool:
        """Take one turn; return whether there was something to do."""
        todo, self.soon = self.soon, deque()
        self.turns._call_soon = self.soon.append
        for call in todo:
            call()
        return bool(todo)

    def work(self, name: str, pauses: int) -> Callable[[], str]:
        """Return work that notes what it does."""

        def do() -> str:
            try:
                for number in range(pauses):
                    self.log.append((name, number))
                    self.turns.pause()
                self.log.append((name, "end"))
            except BaseException as e:
                self.log.append((name, type(e).__name__))
                raise
            return name

        return do

    def start(self, name: str, pauses: int, owner: str | None = None) -> Work[str]:
        """Start work whose owner is called as itself, if not by another name."""

        def then(work: Work[str]) -> None:
            self.log.append(("then", work.result()))

        return self.turns.start(self.work(name, pauses), then, owner or name)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(timelimits, "PIECE_SECONDS", -1.0)  # each pause gives the baton back
    return Loop()


def test_short_work_is_over_at_once(loop: Loop) -> None:
    work = loop.start("a", 0)
    assert work.is_over
    assert work.result() == "a"
    assert loop.log == [("a", "end")]  # `then` is for what ends later
    assert not loop.turn()


def test_so_is_what_pauses_within_its_time(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimits, "PIECE_SECONDS", 1000.0)
    assert loop.start("a", 100).is_over


def test_time_is_what_counts(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimits, "PIECE_SECONDS", 3.0)
    now = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    loop.start("a", 5)
    assert loop.log == [("a", 0), ("a", 1), ("a", 2)]  # one look at the clock at the start, one a pause


def test_long_work_goes_on_turn_by_turn(loop: Loop) -> None:
    work = loop.start("a", 2)
    assert loop.log == [("a", 0)]
    loop.turn()
    assert loop.log == [("a", 0), ("a", 1)]
    loop.turn()
    assert work.is_over
    assert loop.log[2:] == [("a", "end"), ("then", "a")]
    assert not loop.turn()


def test_works_take_turns_and_none_begins_before_another_has_had_its_own(loop: Loop) -> None:
    loop.start("a", 2)
    loop.start("b", 1)
    assert loop.log == [("a", 0)]
    while loop.turn():
        pass
    assert [each for each in loop.log if each[0] != "then"] == [  # type: ignore[index]  # all are pairs
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("a", "end"),
        ("b", "end"),
    ]


def test_only_some_begin(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 2)
    for name in "abc":
        loop.start(name, 2)
    for _ in range(2):
        loop.turn()
    assert ("b", 0) in loop.log
    assert ("c", 0) not in loop.log
    while loop.turn():
        pass
    assert [each for each in loop.log if each[0] == "then"] == [("then", name) for name in "abc"]  # type: ignore[index]  # pairs


def test_much_work_of_one_keeps_no_other_out(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 3)
    monkeypatch.setattr(turns, "EACH", 2)
    for number in range(6):
        loop.start(f"one {number}", 1, owner="one")
    for name in ("b", "c", "d"):
        loop.start(name, 1)
    loop.turns.cancel(loop.start("one more", 1, owner="one"))
    while loop.turn():
        pass
    begun = [each[0] for each in loop.log if each[1] == 0]  # type: ignore[index]  # all are pairs
    # Two of the first at once, and who is alone; then who waits, in turn with them.
    assert begun == ["one 0", "one 1", "b", "one 2", "c", "d", "one 3", "one 4", "one 5"]
    assert not loop.turns._later
    assert not loop.turns._begun


def test_it_is_never_done_beside_the_loop(loop: Loop) -> None:
    here = threading.get_ident()
    running = [here]

    def do() -> None:
        for _ in range(50):
            running[0] = threading.get_ident()
            time.sleep(0.0001)
            assert running[0] == threading.get_ident()
            running[0] = here
            loop.turns.pause()

    works = [loop.turns.start(do, lambda work: work.result(), 1) for _ in range(3)]
    while loop.turn():
        assert running[0] == here
    assert all(work.is_over for work in works)


def test_threads_are_used_again(loop: Loop) -> None:
    found = {loop.turns.start(threading.get_ident, print, 1).result() for _ in range(20)}
    assert len(found) == 1
    assert threading.get_ident() not in found


def test_a_pause_of_what_is_done_in_the_loop_itself_does_nothing(loop: Loop) -> None:
    loop.start("a", 1)
    assert loop.work("b", 1)() == "b"
    assert loop.log[-1] == ("b", "end")


def test_what_fails_tells_so(loop: Loop) -> None:
    def do() -> None:
        raise ValueError("x")

    failed = loop.turns.start(do, print, 1)
    with pytest.raises(ValueError, match="x"):
        failed.result()

    def late() -> None:
        loop.turns.pause()
        raise ValueError("late")

    loop.turns.start(late, lambda work: work.result(), 1)
    with pytest.raises(ValueError, match="late"):
        loop.turn()


class TestCancelled:
    def test_it_ends_in_its_pause_before_that_returns(self, loop: Loop) -> None:
        work = loop.start("a", 5)
        loop.turns.cancel(work)
        assert work.is_over
        assert loop.log == [("a", 0), ("a", "Cancelled")]
        loop.turn()
        assert len(loop.log) == 2

    def test_it_ends_even_if_its_time_is_not_over(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        work = loop.start("a", 5)
        monkeypatch.setattr(timelimits, "PIECE_SECONDS", 1000.0)
        loop.turns.cancel(work)
        assert loop.log == [("a", 0), ("a", "Cancelled")]

    def test_it_cannot_go_on_by_catching_that(self, loop: Loop) -> None:
        log: list[int] = []

        def stubborn() -> None:
            for number in range(3):
                try:
                    loop.turns.pause()
                except turns.Cancelled:
                    log.append(number)

        work = loop.turns.start(stubborn, print, 1)
        loop.turns.cancel(work)
        assert log == [0, 1, 2]

    def test_what_has_not_begun_never_begins(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns, "AT_ONCE", 2)
        works = {name: loop.start(name, 2) for name in "abcd"}
        loop.turns.cancel(works["b"])  # among those that take turns
        loop.turns.cancel(works["d"])  # behind them
        while loop.turn():
            pass
        names = {each[0] for each in loop.log}  # type: ignore[index]  # all are pairs
        assert names == {"a", "c", "then"}

    def test_its_place_is_for_another(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns, "AT_ONCE", 1)
        first = loop.start("a", 5)
        loop.start("b", 0)
        loop.turns.cancel(first)
        loop.turn()
        assert loop.log[2:] == [("b", "end"), ("then", "b")]

    def test_what_is_over_stays_so(self, loop: Loop) -> None:
        work = loop.start("a", 0)
        loop.turns.cancel(work)
        assert work.result() == "a"
