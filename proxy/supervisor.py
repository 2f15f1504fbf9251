"""Several workers behind the same listeners, one admin endpoint, and a parent that keeps them running.

Theory of operation. The parent binds every listener once a worker (SO_REUSEPORT) and forks; it keeps the sockets open,
so that connections wait in a dead worker's queue for the one that takes its place. It has no thread and no event loop
of its own: a process that forks again and again should have neither. The admin endpoint is a child, too, and adds up
the metrics that all the others keep in files (prometheus-client's multiprocess mode).

Rules of this module:

- A worker that dies is replaced and counted; one that cannot even start ends the whole.
- SIGTERM and SIGINT drain all workers; a second one ends everything at once.
- SIGHUP reads the policy again: workers with the new one take the place of those with the old, which drain. If one of
  the new cannot start, the old ones stay.
- Children notice when their parent is gone, and drain.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import mmap
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from addons.telemetry import Metrics
from proxy.admin import Admin
from proxy.core.policy import Listener

logger = logging.getLogger("overcoat")

CANNOT_START = 3  # a worker's exit status; its one line of error is out already
PID = struct.Struct("=i")  # what a worker writes when it serves
QUICK_SECONDS = 1.0  # a worker that lives shorter than this is replaced only after a pause of the same length
RELOAD_SECONDS = 30.0  # for the workers with a new policy to serve
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

Work = Callable[["Seat"], None]


class SupervisorFailed(Exception):
    """The workers cannot be started. The message is one line."""


@dataclass(slots=True)
class Seat:
    """What one worker has, and its successor will have.

    Attributes:
        sockets: the bound sockets that it takes connections from.
        ready: a file descriptor to write its id to, as `PID` packs it, when it serves.
        parent: a file descriptor that reads as ended when the parent is gone.
        lock: a file to lock while writing to the standard output that all share.
        guarded: the admin endpoint's address, if there is one.
    """

    sockets: list[socket.socket]
    ready: int
    parent: int
    lock: Path
    guarded: tuple[str, int] | None = None
    pid: int = 0
    started: float = field(default=0.0)


class Supervisor:
    """The parent."""

    def __init__(
        self,
        shares: list[list[socket.socket]],
        admin: Listener | None,
        directory: Path,
        work: Work,
        reread: Callable[[], Work | None],
    ) -> None:
        """Prepare.

        Args:
            shares: for each worker its bound sockets.
            admin: where the admin endpoint listens.
            directory: what `proxy.metricsfiles.prepare_metrics` made.
            work: a worker's whole life; it returns when it has drained, and raises SystemExit if it cannot start.
            reread: reads the policy again, and returns a worker's life with it; None if it must not be taken over.
        """
        self._reread = reread
        self._retiring: set[int] = set()  # workers that are to end, and have no successor to be given
        self._directory = directory
        self._admin = admin
        self._work = work
        self._ready_read, ready_write = os.pipe()
        self._alive_read, self._alive_write = os.pipe()
        self._seats = [Seat(share, ready_write, self._alive_read, directory / "lines.lock") for share in shares]
        self._is_ready = mmap.mmap(-1, 1)
        self._admin_pid = 0
        self._is_draining = False

    def run(self, announce: Callable[[tuple[str, int] | None], None]) -> int:
        """Run until told to stop; return the exit status.

        Args:
            announce: called with the admin endpoint's address once every worker serves.

        Raises:
            SupervisorFailed: the admin endpoint or a worker cannot start.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.freeze()  # what is loaded stays shared with the children
        address = self._start_admin() if self._admin is not None else None
        # After the fork of the admin endpoint, which counts nothing itself.
        self._metrics = Metrics(CollectorRegistry())
        try:
            for seat in self._seats:
                seat.guarded = address
                self._start_worker(seat)
            self._await_workers()
            self._is_ready[0] = 1
            announce(address)
            return self._watch()
        finally:
            self._end()

    # -- children

    def _fork(self, life: Callable[[], None]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            self._live(life)
        return pid

    def _live(self, life: Callable[[], None]) -> NoReturn:
        """Live a child's life, and end without running anything of the parent's."""
        status = 1
        try:
            os.close(self._alive_write)
            for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the parent decides
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            life()
            status = 0
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 1
        except BaseException as e:
            logger.error("a worker failed: %s", type(e).__name__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _start_worker(self, seat: Seat) -> None:
        seat.started = time.monotonic()
        seat.pid = self._fork(lambda: self._worker(seat))

    def _worker(self, seat: Seat) -> None:
        for other in self._seats:
            if other is not seat:
                for bound in other.sockets:
                    bound.close()
        self._work(seat)

    def _start_admin(self) -> tuple[str, int]:
        told, tell = os.pipe()
        self._admin_pid = self._fork(lambda: self._serve_admin(tell))
        os.close(tell)
        with os.fdopen(told) as answer:
            line = json.loads(answer.readline() or '{"error": "it ended at once"}')
        if "error" in line:
            raise SupervisorFailed(line["error"])
        self._admin = Listener(line["host"], line["port"])  # its successor must be found at the same place
        return line["host"], line["port"]

    def _serve_admin(self, tell: int) -> None:
        assert self._admin is not None
        for seat in self._seats:
            for bound in seat.sockets:
                bound.close()
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
        with os.fdopen(tell, "w") as answer:
            try:
                admin = Admin(self._admin.host, self._admin.port, registry, lambda: bool(self._is_ready[0]))
            except OSError as e:
                where = f"{self._admin.host}:{self._admin.port}"
                why = (e.strerror or str(e)).lower()
                answer.write(json.dumps({"error": f"cannot listen on {where} (admin): {why}"}) + "\n")
                return
            answer.write(json.dumps({"host": admin.address[0], "port": admin.address[1]}) + "\n")
        os.read(self._alive_read, 1)  # until the parent is gone, or ends this child
        admin.close()

    # -- watching

    def _await_workers(self) -> None:
        """Wait until every worker serves."""
        waiting = {seat.pid for seat in self._seats}
        os.set_blocking(self._ready_read, False)
        while waiting:
            waiting -= self._took_their_seats()
            for pid, status in _reap():
                raise SupervisorFailed(self._why(pid, status))
            # Blocked signals wait for `_watch`; only an end before the start is an end at once.
            if waiting and signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), 0.01) is not None:
                raise SupervisorFailed("stopped before every worker was ready")

    def _took_their_seats(self) -> set[int]:
        """Return the ids of the workers that have begun to serve since it was last asked."""
        found: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._ready_read, PID.size):
                found.add(PID.unpack(data)[0])
        return found

    def _why(self, pid: int, status: int) -> str:
        if status == CANNOT_START:
            return "a worker could not start"
        who = "the admin endpoint" if pid == self._admin_pid else "a worker"
        return f"{who} ended with status {status} at the start"

    def _watch(self) -> int:
        while True:
            number = signal.sigwait(_SIGNALS)
            if number == signal.SIGCHLD:
                for pid, status in _reap():
                    self._ended(pid, status)
                if self._is_draining and not self._workers():
                    return 0
            elif number == signal.SIGHUP:
                if not self._is_draining:
                    self._reload()
            elif self._is_draining:
                _kill(self._workers(), signal.SIGKILL)
                return 1
            else:
                self._is_draining = True
                self._is_ready[0] = 0
                logger.info("draining: no new connections; a second signal ends it at once")
                for seat in self._seats:
                    for bound in seat.sockets:
                        bound.close()  # or the kernel would go on taking connections for it
                _kill(self._workers(), signal.SIGTERM)

    def _reload(self) -> None:
        work = self._reread()
        if work is not None and self._replace(work):
            self._metrics.reloads.labels("taken").inc()
            logger.info("the policy was read again, and is in force")
        else:
            self._metrics.reloads.labels("refused").inc()

    def _replace(self, work: Work) -> bool:
        """Give every seat a worker with another policy; tell whether they all serve. Signals wait meanwhile."""
        before, self._work = self._work, work
        old = [seat.pid for seat in self._seats]
        self._retiring.update(pid for pid in old if pid)
        waiting, new = self._start_all(), {seat.pid for seat in self._seats} - {0, *old}
        deadline = time.monotonic() + RELOAD_SECONDS
        while waiting and time.monotonic() < deadline and all(seat.pid for seat in self._seats):
            waiting -= self._took_their_seats()
            for pid, status in _reap():
                for seat in self._seats:
                    if seat.pid == pid:
                        seat.pid = 0
                        mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
                        break
                else:
                    self._ended(pid, status)
            time.sleep(0.01)
        if not waiting and all(seat.pid for seat in self._seats):
            _kill(self._retiring.intersection(old), signal.SIGTERM)
            return True
        logger.error("a worker with the new policy does not serve; the policy before stays in force")
        self._work = before
        _kill((seat.pid for seat in self._seats if seat.pid in new), signal.SIGKILL)
        self._retiring.update(seat.pid for seat in self._seats if seat.pid in new)
        for seat, pid in zip(self._seats, old, strict=True):
            seat.pid = pid if pid in self._retiring else 0
            self._retiring.discard(pid)
            if not seat.pid:  # it ended meanwhile
                self._start_worker(seat)
        return False

    def _start_all(self) -> set[int]:
        """Start a worker for every seat; return their ids, or one that never serves if the system gives no process."""
        try:
            for seat in self._seats:
                self._start_worker(seat)
        except OSError as e:
            logger.error("no process for a worker with the new policy: %s", os.strerror(e.errno or 0).lower())
            for seat in self._seats:
                if seat.pid in self._retiring:
                    seat.pid = 0  # ends the wait
            return {0}
        return {seat.pid for seat in self._seats}

    def _workers(self) -> list[int]:
        """Return the ids of all workers."""
        return [seat.pid for seat in self._seats if seat.pid] + list(self._retiring)

    def _ended(self, pid: int, status: int) -> None:
        if pid in self._retiring:
            self._retiring.discard(pid)
            mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
            return
        for seat in self._seats:
            if seat.pid == pid:
                seat.pid = 0
                mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
                if not self._is_draining:
                    logger.error("a worker ended with status %d, and is replaced", status)
                    self._metrics.worker_restarts.inc()
                    time.sleep(max(0.0, QUICK_SECONDS - (time.monotonic() - seat.started)))
                    self._start_worker(seat)
                return
        if pid == self._admin_pid and not self._is_draining:
            logger.error("the admin endpoint ended with status %d, and is replaced", status)
            self._metrics.worker_restarts.inc()
            time.sleep(QUICK_SECONDS)
            with contextlib.suppress(SupervisorFailed):  # tried again when this one ends
                self._start_admin()

    def _end(self) -> None:
        _kill(self._workers(), signal.SIGKILL)
        _kill([self._admin_pid], signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):  # until there is none left
            while True:
                os.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def _kill(pids: Iterable[int], number: signal.Signals) -> None:
    """Send children a signal; 0 stands for one that is not there."""
    for pid in pids:
        if pid:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(pid, number)


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
