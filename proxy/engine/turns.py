"""Does long work on bodies and messages piece by piece, so that the event loop serves everybody else between two
pieces. `apps.lanes` starts it; the work itself calls `Turns.pause` (see `proxy.core.fields.pauses`).

How it works. Work runs in a thread of its own, but never beside the loop: whoever goes on hands the baton to the other
one and waits for it. So work is what it would be if the loop called it, plain calls that see and change what hooks see
and change, with no race to think of; only that others are served in its pauses. The work of small bodies has no need of
it, and is done in the loop's own thread, where a pause does nothing.

Rules of this module:

- In one turn of the loop one work goes on, up to the first pause after `PIECE_SECONDS`. They take turns.
- The first piece is done at once, unless others have begun: what takes no longer costs two changes of threads.
- At most `AT_ONCE` works have begun, and `EACH` of one owner, an app's connection; the others wait. Whose work begins
  next goes round the owners, and each one's begin in the order in which they came: much work of one keeps no other out.
- What was cancelled ends in its pause, before `cancel` returns. Nothing of it happens later.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from proxy import timelimits

AT_ONCE = 32  # each has a thread
EACH = 4


class Cancelled(BaseException):
    """Raised in a pause of work that was cancelled; no `Exception`, so that nobody takes it for a failure."""


class Work[T]:
    """Something that is done piece by piece.

    Attributes:
        is_over: whether it is done, has failed, or was cancelled.
    """

    def __init__(self, do: Callable[[], T], then: Callable[[Work[T]], object], owner: object) -> None:
        self._do = do
        self.then = then
        self.owner = owner
        self.hand: _Hand | None = None  # the thread that does it, once it has begun
        self.is_over = False
        self.is_cancelled = False
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it; called in its thread."""
        try:
            self._value = self._do()
        except BaseException as e:  # whoever asks for the result gets it
            self._error = e
        self.is_over = True

    def result(self) -> T:
        """Return what it gave, or raise what it raised."""
        if self._error is not None:
            raise self._error
        value: T = self._value  # type: ignore[assignment]  # it is over: the value is there, and it may be None
        return value


class _Hand:
    """A thread that does one work after the other, while it has the baton."""

    def __init__(self, back: threading.Lock) -> None:
        self._go = threading.Lock()
        self._go.acquire()
        self._back = back
        self._work: Work[Any] | None = None
        threading.Thread(target=self._run, name="bodies", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            work, self._work = self._work, None
            assert work is not None
            work.run()
            del work  # and with it a body
            self._back.release()

    def give(self, work: Work[Any] | None = None) -> None:
        """Let it go on, with this work if it has none, until it gives the baton back; called in the loop's thread."""
        if work is not None:
            self._work = work
        self._go.release()
        self._back.acquire()

    def wait(self) -> None:
        """Give the baton back, and wait for it; called in its own thread."""
        self._back.release()
        self._go.acquire()


class Turns:
    """All long work of one event loop."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Start.

        Args:
            call_soon: calls something in the loop's next turn.
        """
        self._call_soon = call_soon
        self._back = threading.Lock()
        self._back.acquire()
        self._idle: list[_Hand] = []
        self._current: Work[Any] | None = None  # the one that has the baton
        self._until = 0.0
        self._ring: deque[Work[Any]] = deque()  # those that take turns
        self._begun: Counter[object] = Counter()  # how many of these each owner has
        self._later: dict[object, deque[Work[Any]]] = {}  # those that have not begun; the owner who is next comes first
        self._is_called = False

    def pause(self) -> None:
        """Let others go on, if it is time; called by work, wherever it is done.

        Raises:
            Cancelled: the work is not wanted any more.
        """
        work = self._current
        if work is None:
            return
        if not work.is_cancelled:
            if time.perf_counter() < self._until:
                return
            assert work.hand is not None
            work.hand.wait()
        if work.is_cancelled:
            raise Cancelled

    def start[T](self, do: Callable[[], T], then: Callable[[Work[T]], object], owner: object) -> Work[T]:
        """Begin some work.

        Args:
            do: does it.
            then: called with it in a later turn, once it is over; not if it is over when this returns.
            owner: whose it is; compared by what it is.
        """
        work: Work[T] = Work(do, then, owner)
        if not self._ring:
            self._go_on(work)
        if not work.is_over:
            self._later.setdefault(owner, deque()).append(work)
            self._admit()
            self._call()
        return work

    def cancel[T](self, work: Work[T]) -> None:
        """End work that is not wanted any more; its `then` is never called."""
        if work.is_over:
            return
        work.is_cancelled = True
        waiting = self._later.get(work.owner)
        if waiting is not None and work in waiting:
            waiting.remove(work)
            if not waiting:
                del self._later[work.owner]
        else:
            self._ring.remove(work)
            if work.hand is not None:
                self._go_on(work)
            self._end(work)
        work.is_over = True

    def _go_on[T](self, work: Work[T]) -> None:
        """Give the baton to a work, until it gives it back."""
        is_new = work.hand is None
        hand = work.hand = work.hand or (self._idle.pop() if self._idle else _Hand(self._back))
        self._current, self._until = work, time.perf_counter() + timelimits.PIECE_SECONDS
        hand.give(work if is_new else None)
        self._current = None
        if work.is_over:
            work.hand = None
            self._idle.append(hand)

    def _call(self) -> None:
        if self._ring and not self._is_called:
            self._is_called = True
            self._call_soon(self._turn)

    def _end(self, work: Work[Any]) -> None:
        """Count one that had begun as over, which is not in the ring any more, and let another begin."""
        self._begun[work.owner] -= 1
        if not self._begun[work.owner]:
            del self._begun[work.owner]
        self._admit()

    def _admit(self) -> None:
        """Let work begin while there is room."""
        while len(self._ring) < AT_ONCE:
            owner = next((owner for owner in self._later if self._begun[owner] < EACH), None)
            if owner is None:
                return
            waiting = self._later.pop(owner)
            self._ring.append(waiting.popleft())
            self._begun[owner] += 1
            if waiting:
                self._later[owner] = waiting  # behind all others

    def _turn(self) -> None:
        self._is_called = False
        if not self._ring:
            return  # all were cancelled
        work = self._ring.popleft()
        self._go_on(work)
        if work.is_over:
            self._end(work)
        else:
            self._ring.append(work)
        self._call()
        if work.is_over:
            work.then(work)
