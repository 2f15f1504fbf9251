"""Runs the program that `overcoat run` was given, so that a shell or supervisor sees no difference: its terminal, its
signals, its exit status.

Rules of this module:

- The program stays in this process's group, as it would behind `env` or `nice`: Ctrl-C and Ctrl-Z reach it from the
  terminal, it may read from there, and a pipeline stays one job.
- A signal that the terminal sends to the whole group is not sent to the program a second time. Any other is passed on.
- If the program stops itself, so does this process, and the shell gets its prompt; both go on together.
- The descriptors that this process was given (a redirection such as 3<file) are the program's, too.
- What the program leaves behind becomes this process's child (Linux), so that it is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from proxy import timelimits
from proxy.wearing import privateroots
from proxy.wearing.seen import children_of

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as env, nice and every shell say it
_SET_CHILD_SUBREAPER = 36  # prctl(2)
_BY_KERNEL = 0  # si_code is greater where the kernel itself sent a signal, as for a key of the terminal: sigaction(2)
# Those that this process must die or stop of, or that are about itself.
_OWN = {
    *("SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGCHLD", "SIGURG", "SIGPIPE", "SIGXFSZ"),
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGXCPU", "SIGPROF", "SIGVTALRM"),
}
_RESET_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # which Python ignores, and a program would inherit


class CannotRun(Exception):
    """The program cannot be started. The message says why.

    Attributes:
        status: the exit status that says so.
    """

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


def find(name: str) -> str:
    """Return the path of a program, as a shell looks for it.

    Raises:
        CannotRun: there is none, or it is no program.
    """
    found = shutil.which(name)
    if found is not None:
        return found
    if "/" in name and Path(name).exists():
        raise CannotRun(f"{name} is no program that may be run", NOT_EXECUTABLE)
    raise CannotRun(f"there is no program {name}{'' if '/' in name else ' in $PATH'}", NOT_FOUND)


class Signals:
    """The signals of this process, kept for the program from now on. Its creation comes before any thread's."""

    def __init__(self) -> None:
        own = {getattr(signal, name) for name in _OWN if hasattr(signal, name)}
        self.watched = (signal.valid_signals() - own) | {signal.SIGCHLD}
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.watched)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # one who ignored it would never be told of an end

    def asks_to_end(self) -> int | None:
        """Return the signal that has come and asks to end, while there is no program yet; else None."""
        pending = signal.sigpending() & {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
        return min(pending, default=None)

    def next(self) -> tuple[int, bool]:
        """Wait for a signal; return it, and whether the program has got it already from the terminal."""
        if sys.platform == "darwin":
            number = signal.sigwait(self.watched)
            return number, number in (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH) and Terminal().is_ours
        info = signal.sigwaitinfo(self.watched)
        return info.si_signo, info.si_code > _BY_KERNEL


class Terminal:
    """The terminal that controls this process, if there is one: it belongs to one group of processes at a time."""

    def __init__(self) -> None:
        try:
            self._descriptor: int | None = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = None
        self._was_ours = self.is_ours

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._descriptor is not None

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this process's group now."""
        with contextlib.suppress(OSError):
            return self._descriptor is not None and os.tcgetpgrp(self._descriptor) == os.getpgrp()
        return False

    def take_back(self) -> None:
        """Take it back if it was ours, and the program has died with it, as an interactive shell may."""
        if self._descriptor is None or not self._was_ours or self.is_ours:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._descriptor, os.getpgrp())
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Program:
    """The running program.

    Attributes:
        pid: its process id.
    """

    def __init__(
        self,
        path: str,
        command: Sequence[str],
        env: Mapping[str, str],
        signals: Signals,
        private_roots: str | None = None,
    ) -> None:
        """Start it.

        Args:
            path: the file to run.
            command: its name and arguments.
            env: its variables.
            signals: this process's signals.
            private_roots: the bundle that is to stand in the place of the system's roots, if one is.

        Raises:
            CannotRun: the system refuses it.
        """
        self._signals = signals
        self._terminal = Terminal()
        _adopt_what_is_left()
        if private_roots is None:
            self.pid = self._spawn(path, command, env)
            return
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        wrapped = [sys.executable, "-I", "-S", privateroots.__file__, private_roots, str(writing), path, *command]
        self.pid = self._spawn(sys.executable, wrapped, env)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()  # which ends when it has become the program, or has given up
        if said:
            os.waitpid(self.pid, 0)
            raise CannotRun(said.decode(), 1)

    def _spawn(self, path: str, command: Sequence[str], env: Mapping[str, str]) -> int:
        mask = self._signals.before
        try:
            return os.posix_spawn(path, list(command), env, setsigmask=mask, setsigdef=_RESET_BY_PYTHON)
        except OSError as e:
            raise CannotRun(f"{path} cannot be run: {(e.strerror or str(e)).lower()}", NOT_EXECUTABLE) from None

    def wait(self, companion: int, look_after: Callable[[], object], *, for_all: bool = False) -> int:
        """Wait until it has ended, passing signals on; return its exit status, negative for a signal.

        Args:
            companion: a child of this process that has nothing to do with the program.
            look_after: called when a child has ended, which may be the companion.
            for_all: whether to wait for all that the program has started, too (Linux).
        """
        status: int | None = None
        while True:
            number, has_it = self._signals.next()
            if number == signal.SIGCHLD:
                look_after()
                status = self._reap() if status is None else status
                left = left_behind({companion, self.pid} if status is None else {companion})
                if status is not None and not (left and for_all):
                    self._terminal.take_back()
                    return status
            elif not has_it and status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            elif status is not None and number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
                return status  # what it has left behind is not waited for any longer

    def _reap(self) -> int | None:
        """Return its status if it has ended. If it has stopped, stop with it."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        if found.si_code == os.CLD_STOPPED:
            self._stop_with_it()
            return None
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _stop_with_it(self) -> None:
        time.sleep(timelimits.STOPPED_SECONDS)  # Ctrl-Z stops both, and after both go on, this may be an old message
        if os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG) is None or not self._terminal.exists:
            return
        os.kill(os.getpid(), signal.SIGTSTP)  # which does nothing where no shell could let us go on
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


def _adopt_what_is_left() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0)))


def left_behind(others: Collection[int]) -> list[int]:
    """Return the children of this process that still run, the adopted ones included; reap those that have ended.

    Args:
        others: children that are left out.
    """
    return [pid for pid in children_of(os.getpid()) if pid not in others and not _has_ended(pid)]


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def end_like(status: int) -> NoReturn:
    """End this process as the program has ended.

    Of Ctrl-C a shell must see that this process died of it, too, or it goes on with its loop or script. Of every other
    signal the exit status is 128 and its number, which is what a shell makes of it.
    """
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status if status >= 0 else 128 - status)  # as the first process of a container it does not die of a signal
