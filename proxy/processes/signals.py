"""What each signal asks for, from the first moment of `overcoat serve` on. The command takes the signals over before
its slow imports; the serving process or the parent acts on them. Only SIGKILL ends the process without draining.

Rules of this module:

- SIGTERM, SIGINT and SIGQUIT ask to drain; a second SIGTERM or SIGINT, in any order, ends at once. SIGHUP and SIGUSR1
  have their own meanings, see below. All other signals that would end the process by default are ignored.
- A signal is kept until somebody acts on it, however early it came. The handler does nothing else, except that it ends
  the process at the second one.
- With several processes only the parent decides: terminals and systemd send a signal to all processes.
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
# Signals that stop or continue a process, or do nothing by default; and those that cannot be ignored.
_LEFT = {"SIGKILL", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCHLD", "SIGURG", "SIGWINCH", "SIGINFO"}
_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT"}  # a real fault ends the process even so


class Signals:
    """The signals that have come.

    Attributes:
        descriptor: readable if a signal has come; see `take`.
        at_second: called in the handler when a second SIGTERM or SIGINT comes.
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
        """Whether a signal that has not been taken yet asks to drain."""
        return any(number in DRAIN for number in tuple(self._come))  # another may come in between

    def take(self) -> list[int]:
        """Return the signals that have come since the last call, each once, in the order of the first of each.

        One that comes again before anybody acts on it asks for nothing more. Else signals that come faster than they
        are acted on, as the policy is read again, would leave no time for anything else.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        return list(dict.fromkeys(self._come.popleft() for _ in range(len(self._come))))

    def leave_to_parent(self) -> None:
        """Ignore all signals: for a child, whose parent tells it what to do."""
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self.descriptor)
        _ignore(_HANDLED)


@cache
def take_over_signals() -> Signals:
    """Return the signals of this process. The first call takes them over."""
    return Signals()


def _deadly() -> set[int]:
    """Return the signals that would end the process by default, without those that have a meaning here."""
    left = _LEFT | _FAULTS if faulthandler.is_enabled() else _LEFT
    names = {getattr(signal, name) for name in left if hasattr(signal, name)}
    return {int(number) for number in signal.valid_signals() if number not in names | _HANDLED}


def _ignore(numbers: Iterable[int]) -> None:
    for number in numbers:
        with contextlib.suppress(OSError):  # the kernel refuses signals that a C library reserves
            signal.signal(number, signal.SIG_IGN)


def reap() -> list[tuple[int, int]]:
    """Return the children that have ended, and their exit statuses (negative: a signal)."""
    ended = []
    with contextlib.suppress(ChildProcessError):  # there are no children
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def ending(status: int) -> str:
    """Return how a child ended, in words: its exit status, or the signal that killed it (9 if memory ran out)."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by signal {-status} ({signal.strsignal(-status)})"
