"""Signals: what each asks for, from the first moment on. None but SIGKILL ends the process without draining.

Rules of this module:

- SIGTERM, SIGINT and SIGQUIT drain; a second SIGTERM or SIGINT, in any order, ends at once. SIGHUP and SIGUSR1 ask for
  something, see below. Every other signal whose default is an end is ignored.
- A signal is kept until somebody acts on it, however early it came. Nothing is done within a handler but this, and the
  end that a second one asks for.
- With several processes the parent alone decides: a terminal, and systemd, send to all of them what is meant for it.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import signal
from collections.abc import Callable, Iterable
from functools import cache

END = frozenset((signal.SIGTERM, signal.SIGINT))
DRAIN = END | {signal.SIGQUIT}
RELOAD = signal.SIGHUP  # read the policy again
REOPEN = signal.SIGUSR1  # open the file of decision lines again, after it was renamed
_HANDLED = DRAIN | {RELOAD, REOPEN}
# Those that stop, go on, or by default do nothing; and those that nobody can ignore.
_LEFT = {"SIGKILL", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCHLD", "SIGURG", "SIGWINCH", "SIGINFO"}
_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT"}  # the kernel ends a process that really has one, even so


class Signals:
    """The signals that have come.

    Attributes:
        descriptor: readable when there are any; see `take`.
        at_second: called, in the handler, when a second SIGTERM or SIGINT comes.
    """

    def __init__(self) -> None:
        """Take over all signals of this process."""
        self._come: collections.deque[int] = collections.deque()
        self._ends = 0
        self.at_second: Callable[[], object] = lambda: os._exit(1)
        self.descriptor, self._wake = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, lambda number, _: self._note(number))
        _ignore(_deadly())

    def _note(self, number: int) -> None:
        self._come.append(number)
        self._ends += number in END
        if self.has_second:
            self.at_second()

    @property
    def has_second(self) -> bool:
        """Whether a second SIGTERM or SIGINT has come."""
        return self._ends > 1

    @property
    def asks_to_drain(self) -> bool:
        """Whether one that nobody has taken yet asks for the end."""
        return any(number in DRAIN for number in self._come)

    def take(self) -> list[int]:
        """Return the signals that have come since the last time, in their order."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        return [self._come.popleft() for _ in range(len(self._come))]

    def leave_to_parent(self) -> None:
        """Ignore them all: for a child, which is told by its parent what to do."""
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self.descriptor)
        _ignore(_HANDLED)


@cache
def take_over_signals() -> Signals:
    """Return the signals of this process, which are taken over at the first call."""
    return Signals()


def _deadly() -> set[int]:
    """Return the signals whose default is an end, without those that ask for something here."""
    left = _LEFT | _FAULTS if faulthandler.is_enabled() else _LEFT
    names = {getattr(signal, name) for name in left if hasattr(signal, name)}
    return {int(number) for number in signal.valid_signals() if number not in names | _HANDLED}


def _ignore(numbers: Iterable[int]) -> None:
    for number in numbers:
        with contextlib.suppress(OSError):  # some libraries keep one for themselves, and the kernel says so
            signal.signal(number, signal.SIG_IGN)
