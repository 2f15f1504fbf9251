"""Several workers behind the same listeners, one admin endpoint, and a parent that keeps them running.

Theory of operation. The parent binds every listener once a worker (SO_REUSEPORT) and forks; it keeps the sockets open,
so that connections wait in a dead worker's queue for the one that takes its place. It has no thread and no event loop
of its own: a process that forks again and again should have neither. The admin endpoint is a child, too, and adds up
the metrics that all the others keep in files (prometheus-client's multiprocess mode). Each child has a wire to the
parent; the end of either is the end of the wire.

Rules of this module:

- A child that dies is replaced and counted; one that cannot even start ends the whole.
- SIGTERM and SIGINT drain all workers; a second one ends everything at once. Nothing that the parent does for longer
  than a moment keeps it from seeing them.
- SIGHUP reads the policy again. The parent checks it and hands it to every child, and to every one that it starts
  later; a child that does not say in time that it has taken it over is ended, and replaced by one that has.
- Children notice when their parent is gone, and drain.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import mark_process_dead

from addons.metrics import Metrics
from proxy.core.policy import Policy
from proxy.metricsfiles import take_place
from proxy.reload import log_taken
from proxy.wires import SERVES, TAKEN, new_wire, pack, receive, send

logger = logging.getLogger("overcoat")

CANNOT_START = 3  # a worker's exit status; its one line of error is out already
QUICK_SECONDS = 1.0  # a child that lives shorter than this is replaced only after a pause of the same length
TAKE_SECONDS = 10.0  # for all children to take a policy over
_STOP = frozenset((signal.SIGTERM, signal.SIGINT))
_SIGNALS = _STOP | {signal.SIGHUP, signal.SIGCHLD}


class SupervisorFailed(Exception):
    """The workers cannot be started. The message is one line."""


@dataclass(slots=True)
class Seat:
    """What a child has, and its successor will have, but for the wire.

    Attributes:
        name: what it is, in words.
        drains: whether it is asked to drain, and waited for; the others end last.
        place: where it keeps its metrics; see `proxy.metricsfiles`.
        sockets: the bound sockets that it takes connections from.
        work: its whole life; it returns when it has drained, and raises SystemExit if it cannot start.
        wire: the child's own end, to be used in the child alone; see `proxy.wires`.
    """

    name: str
    drains: bool
    place: str
    sockets: list[socket.socket]
    work: Callable[[Seat, Policy], None]
    wire: socket.socket = field(init=False)
    pid: int = 0
    due: float = 0.0  # when it may be started again
    started: float = 0.0
    parent_wire: socket.socket | None = None


class Shared:
    """A flag that all processes see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def __bool__(self) -> bool:
        return bool(self._memory[0])

    def set(self, value: bool) -> None:
        """Set it."""
        self._memory[0] = value


class Supervisor:
    """The parent."""

    def __init__(
        self, seats: list[Seat], is_ready: Shared, directory: Path, policy: Policy, reread: Callable[[], Policy | None]
    ) -> None:
        """Prepare.

        Args:
            seats: the children to have.
            is_ready: set while every child serves, and nothing is drained.
            directory: what `proxy.metricsfiles.prepare_metrics` made.
            policy: the policy to begin with.
            reread: reads the policy again, and checks it; None if it must not be taken over.
        """
        self._seats = seats
        self._workers = [seat for seat in seats if seat.drains]
        self._is_ready = is_ready
        self._directory = directory
        self._policy = policy
        self._reread = reread
        self._is_draining = False

    def run(self, announce: Callable[[], None]) -> int:
        """Run until told to stop; return the exit status.

        Args:
            announce: called once every child serves.

        Raises:
            SupervisorFailed: a child cannot start.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.freeze()  # what is loaded stays shared with the children
        take_place("parent")
        self._metrics = Metrics(CollectorRegistry())
        try:
            for seat in self._seats:
                self._start_first(seat)
            for seat in self._hear(self._seats, SERVES, None):
                raise SupervisorFailed(_why(seat))
            self._is_ready.set(True)
            announce()
            return self._watch()
        finally:
            self._end()

    # -- children

    def _start_first(self, seat: Seat) -> None:
        try:
            self._start(seat)
        except OSError as e:
            raise SupervisorFailed(_no_process(seat, e)) from None

    def _start(self, seat: Seat) -> None:
        """Start a child.

        Raises:
            OSError: the system gives no process.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        ours, theirs = new_wire()
        seat.started = time.monotonic()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if not pid:
                ours.close()
                seat.wire = theirs
                self._live(seat)
        seat.pid, seat.parent_wire = pid, ours

    def _live(self, seat: Seat) -> NoReturn:
        """Live a child's life, and end without running anything of the parent's."""
        status = 1
        try:
            for other in self._seats:
                if other.parent_wire is not None:
                    other.parent_wire.close()  # or nobody would notice the parent's end
                if other is not seat:
                    for bound in other.sockets:
                        bound.close()
            take_place(seat.place)
            for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the parent decides
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            seat.work(seat, self._policy)
            status = 0
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 1
        except BaseException as e:
            logger.error("%s failed: %s", seat.name, type(e).__name__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _hear(self, seats: Iterable[Seat], message: bytes, seconds: float | None) -> list[Seat]:
        """Wait for a message from each of some children; return those that ended, or were too slow, instead.

        A signal to stop ends the wait, and is still there afterwards.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        silent = []
        with selectors.DefaultSelector() as waiting:
            for seat in seats:
                if seat.parent_wire is not None:
                    waiting.register(seat.parent_wire, selectors.EVENT_READ, seat)
            while waiting.get_map() and not signal.sigpending() & _STOP:
                for key, _ in waiting.select(0.05):
                    try:
                        heard = receive(key.data.parent_wire)
                    except TimeoutError:
                        heard = None
                    if heard is None:
                        silent.append(key.data)
                    if heard is None or heard == message:
                        waiting.unregister(key.fileobj)
                if deadline is not None and time.monotonic() > deadline:
                    return silent + [key.data for key in waiting.get_map().values()]
        return silent

    # -- watching

    def _watch(self) -> int:
        while True:
            number = self._next_signal()
            if number in (signal.SIGCHLD, None):
                for pid, status in _reap():
                    self._ended(pid, status)
                self._fill()
                if self._is_draining and not any(seat.pid for seat in self._workers):
                    return 0
            elif number == signal.SIGHUP:
                if not self._is_draining:
                    self._reload()
            elif self._is_draining:
                return 1
            else:
                self._drain()

    def _next_signal(self) -> signal.Signals | None:
        """Return the next signal, or None if there is none in a while and a child waits to be started."""
        if self._is_draining or all(seat.pid for seat in self._seats):
            return signal.Signals(signal.sigwait(_SIGNALS))
        found = signal.sigtimedwait(_SIGNALS, 0.05)
        return None if found is None else signal.Signals(found.si_signo)

    def _drain(self) -> None:
        self._is_draining = True
        self._is_ready.set(False)
        logger.info("draining: no new connections; a second signal ends it at once")
        for seat in self._workers:
            for bound in seat.sockets:
                bound.close()  # or the kernel would go on taking connections for it
        _kill(self._workers, signal.SIGTERM)

    def _reload(self) -> None:
        policy = self._reread()
        if policy is None:
            self._metrics.reloads.labels("refused").inc()
            return
        self._policy = policy
        message = pack(policy)
        told, failed = [], []
        for seat in self._seats:
            try:
                if seat.parent_wire is not None:
                    send(seat.parent_wire, message)
                    told.append(seat)
            except OSError:
                failed.append(seat)
        failed += self._hear(told, TAKEN, TAKE_SECONDS)
        _kill(failed, signal.SIGKILL)  # one that has ended already does not mind
        self._metrics.reloads.labels("taken").inc()
        log_taken(policy)

    def _ended(self, pid: int, status: int) -> None:
        for seat in self._seats:
            if seat.pid == pid:
                seat.pid = 0
                seat.due = seat.started + QUICK_SECONDS
                if seat.parent_wire is not None:
                    seat.parent_wire.close()
                    seat.parent_wire = None
                mark_process_dead(seat.place, str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
                if not self._is_draining:
                    logger.error("%s ended with status %d, and is replaced", seat.name, status)
                    self._metrics.worker_restarts.inc()

    def _fill(self) -> None:
        """Start every child that is missing, and due."""
        for seat in self._seats:
            if not self._is_draining and not seat.pid and time.monotonic() >= seat.due:
                try:
                    self._start(seat)
                except OSError as e:
                    logger.error("%s", _no_process(seat, e))
                    seat.due = time.monotonic() + QUICK_SECONDS

    def _end(self) -> None:
        _kill(self._seats, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # until there is none left
            while True:
                os.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def _no_process(seat: Seat, error: OSError) -> str:
    return f"no process for {seat.name}: {os.strerror(error.errno or 0).lower()}"


def _why(seat: Seat) -> str:
    """Say why a child ended at the start."""
    _, raw = os.waitpid(seat.pid, 0)
    seat.pid, status = 0, os.waitstatus_to_exitcode(raw)
    return f"{seat.name} could not start" if status == CANNOT_START else f"{seat.name} ended with status {status}"


def _kill(seats: Iterable[Seat], number: signal.Signals) -> None:
    """Send children a signal."""
    for seat in seats:
        if seat.pid:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(seat.pid, number)


def _reap() -> list[tuple[int, int]]:
    """Return the children that have ended, and their exit statuses (negative: a signal)."""
    ended = []
    with contextlib.suppress(ChildProcessError):  # there is no child at all
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended
