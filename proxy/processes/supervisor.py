"""The parent process, if there are several workers: it binds the listeners, forks the workers and the admin process,
and replaces those that end. `proxy.commands.serve` runs it.

Theory of operation. The parent binds each listener once for each worker (SO_REUSEPORT), and forks. It keeps the sockets
open, so that the connections in a dead worker's queue wait for its successor. A process that forks again and again
should have no threads and no asyncio, so the parent has neither. It waits in one call for signals and for messages of
its children, and acts on them one after the other. The admin process adds up the metrics that all others keep in files
(prometheus-client's multiprocess mode). A wire connects each child with the parent; if one of the two ends, so does the
wire.

Rules of this module:

- A child that dies is counted and replaced. If a child cannot start at the beginning, everything ends.
- The sidecar is ready while every child serves.
- Only the parent acts on signals (`proxy.processes.signals`). Asked to drain, it serves for `drain_wait` without being
  ready, and then tells all workers. A second signal ends everything at once, and so does a worker that is late. Nothing
  that the parent waits for keeps it from seeing a signal. The exit status is 1 if something was cut off.
- SIGHUP has the policy read again, and so does a change of its files (`proxy.processes.reload`). The parent sends it to
  every child, and to those that it starts later. A child that does not confirm in time is ended, and replaced by one
  that has the policy. Until all have confirmed, no change of files is looked for.
- Children notice if their parent is gone, and drain.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import mark_process_dead

from addons.metrics import Metrics
from proxy import timelimits
from proxy.core.rules.policy import Policy
from proxy.processes import wires
from proxy.processes.apart import Reading
from proxy.processes.metricsfiles import take_seat
from proxy.processes.reload import Reader, log_leaving, log_read
from proxy.processes.secrecy import name_process
from proxy.processes.signals import DRAIN, RELOAD, REOPEN, ending, reap, take_over_signals
from proxy.processes.wires import SERVES, TAKEN, framed, new_wire, pack, unframed

logger = logging.getLogger("overcoat")

CANNOT_START = 3  # a worker's exit status; its error is logged already


class SupervisorFailed(Exception):
    """The workers cannot be started. The message is one line."""


@dataclass(slots=True)
class Seat:
    """What a child has and hands down to its successor (except for the wire).

    Attributes:
        name: its name, for the log.
        drains: whether it is asked to drain and waited for; the others are ended last.
        metrics: the name of its metrics files; see `proxy.processes.metricsfiles`.
        sockets: the bound sockets from which it accepts connections.
        work: everything that it does; returns when it has drained, and raises SystemExit if it cannot start.
        wire: the child's end of the wire, used in the child only; see `proxy.processes.wires`.
    """

    name: str
    drains: bool
    metrics: str
    sockets: list[socket.socket]
    work: Callable[[Seat, Policy], None]
    wire: socket.socket = field(init=False)
    child: Child | None = None
    due: float = 0.0  # the time at which it may be started again


@dataclass(slots=True)
class Child:
    """A running child.

    Attributes:
        wire: the parent's end of the wire.
        serves: whether it has reported that it serves.
        owes: the number of policies that were sent to it and that it has not confirmed; it must do so by `deadline`.
        unsent: bytes that the wire has not taken yet.
    """

    pid: int
    wire: socket.socket
    started: float
    serves: bool = False
    owes: int = 0
    deadline: float = math.inf
    unsent: bytes = b""
    heard: bytearray = field(default_factory=bytearray)


class Shared:
    """A flag that all processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def __bool__(self) -> bool:
        return bool(self._memory[0])

    def set(self, value: bool) -> None:
        """Set it."""
        self._memory[0] = value


class Supervisor:
    """The parent process."""

    def __init__(
        self,
        seats: list[Seat],
        is_ready: Shared,
        directory: Path,
        policy: Policy,
        reader: Reader,
        *,
        remind: Callable[[Policy, datetime], float],
        renew: Callable[[Policy], bool] = lambda _: False,
    ) -> None:
        """Prepare.

        Args:
            seats: one for each child.
            is_ready: set while every child serves and nothing drains.
            directory: the result of `proxy.processes.metricsfiles.prepare_metrics`.
            policy: the policy to begin with.
            reader: has the policy read and checked again.
            remind: logs the warnings that are due, given the policy in force and the time; returns the number of
                seconds after which to call it again.
            renew: reads the local CA again if its files have changed, given the policy in force; returns whether there
                is another.
        """
        self._renew = renew
        self._seats = seats
        self._is_ready = is_ready
        self._directory = directory
        self._policy = policy
        self._said = policy  # the policy that all children are known to have
        self._reader = reader
        self._looking_time = time.monotonic() if reader.watches else math.inf
        self._changed: Sequence[Path] = ()  # the files whose change led to the policy that is handed over
        self._remind = remind
        self._reminding_time = time.monotonic()
        self._has_started = False
        self._is_leaving = False  # asked to drain; `drain_wait` may still be running
        self._is_draining = False
        self._is_reloading = False
        self._draining_time = math.inf
        self._to_tell: list[Seat] = []  # seats that get the policy once all others have confirmed it
        self._killing_time = math.inf
        self._status = 0
        self._selector = selectors.DefaultSelector()
        self._signals = take_over_signals()

    def run(self, announce: Callable[[], None]) -> int:
        """Run until asked to end; return the exit status.

        Args:
            announce: called once every child serves.

        Raises:
            SupervisorFailed: a child cannot start.
        """
        self._signals.at_second = lambda: None  # `_turn` ends the children
        signal.signal(signal.SIGCHLD, lambda *_: None)  # its arrival alone wakes the wait
        self._selector.register(self._signals.descriptor, selectors.EVENT_READ)
        gc.freeze()  # loaded objects stay in memory that the children share
        take_seat("parent")
        self._metrics = Metrics(CollectorRegistry())
        self._metrics.note_reading(None)
        try:
            for seat in self._seats:
                self._start_first(seat)
            while (status := self._turn()) is None:
                if not self._has_started and not self._is_leaving and self._all_serve():
                    self._has_started = True
                    self._is_ready.set(True)
                    announce()
            return status
        finally:
            self._end()

    # -- the loop

    def _turn(self) -> int | None:
        """Wait for something to do, and do it; return the exit status once everything has ended."""
        for key, events in self._selector.select(self._patience()):
            if isinstance(key.data, Seat) and events & selectors.EVENT_WRITE:
                self._flush(key.data)
            if isinstance(key.data, Seat) and events & selectors.EVENT_READ:
                self._hear(key.data)
            if isinstance(key.data, Reading):
                self._hear_reading()
        for number in self._signals.take():
            if number == RELOAD:
                self._renew_authority()
                self._reload()
            elif number == REOPEN:
                self._tell_workers(wires.REOPEN)
            elif number in DRAIN and not self._is_leaving:
                self._leave()
        if self._signals.has_second:
            return 1
        for pid, status in reap():
            self._ended(pid, status)
        self._keep_time()
        if self._is_reloading and not any(child.owes for child in self._children()):
            self._handed_over()
        self._is_ready.set(self._has_started and not self._is_leaving and self._all_serve())
        if self._is_draining and not any(seat.child for seat in self._seats if seat.drains):
            return self._status
        return None

    def _children(self) -> list[Child]:
        return [seat.child for seat in self._seats if seat.child is not None]

    def _all_serve(self) -> bool:
        return all(seat.child is not None and seat.child.serves for seat in self._seats)

    def _patience(self) -> float | None:
        """Return the longest time to wait, in seconds."""
        times = [child.deadline for child in self._children()]
        times += [self._draining_time, self._killing_time, self._reminding_time, self._looking_time]
        times.append(self._reader.deadline)
        if not self._is_draining:
            times += [seat.due for seat in self._seats if seat.child is None]
        first = min(times)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def _keep_time(self) -> None:
        """Start the children that are due, and end those that are late."""
        now = time.monotonic()
        if now >= self._draining_time:
            self._draining_time = math.inf
            self._drain()
        for seat in self._seats:
            if seat.child is None and not self._is_draining and now >= seat.due:
                try:
                    self._start(seat)
                except OSError as e:
                    logger.error("no process for %s: %s", seat.name, os.strerror(e.errno or 0).lower())
                    seat.due = now + timelimits.QUICK_END_SECONDS
            elif seat.child is not None and now >= seat.child.deadline:
                logger.error("%s does not take the policy over, and is ended", seat.name)
                self._kill(seat, signal.SIGKILL)
        if now >= self._reminding_time:
            self._reminding_time = now + self._remind(self._policy, datetime.now(UTC))
        if now >= self._looking_time:
            self._looking_time = math.inf if self._is_leaving else now + timelimits.LOOK_SECONDS
            self._renew_authority()
            if not self._is_reloading and (changed := self._reader.changed()):
                self._reload(changed)
        if now >= self._reader.deadline:
            self._hear_reading()
        if now >= self._killing_time:
            self._killing_time = math.inf
            logger.error("a worker is not over in time, and is ended")
            for seat in self._seats:
                if seat.drains:
                    self._kill(seat, signal.SIGKILL)

    # -- children

    def _start_first(self, seat: Seat) -> None:
        try:
            self._start(seat)
        except OSError as e:
            raise SupervisorFailed(f"no process for {seat.name}: {os.strerror(e.errno or 0).lower()}") from None

    def _start(self, seat: Seat) -> None:
        """Start a child.

        Raises:
            OSError: the system allows no further process.
        """
        _flush_output()
        ours, theirs = new_wire()
        with theirs:
            # Else the child might act on a signal that is meant for the parent.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                if not pid:
                    ours.close()
                    seat.wire = theirs
                    self._live(seat, before)
            except OSError:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        ours.setblocking(False)
        seat.child = Child(pid, ours, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, seat)

    def _live(self, seat: Seat, mask: Iterable[int]) -> NoReturn:
        """Run in the child: do its work, and end without running anything of the parent's."""
        status = 1
        try:
            self._selector.close()
            self._signals.leave_to_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            name_process(f"overcoat-{'worker' if seat.drains else 'admin'}")
            for child in self._children():
                child.wire.close()  # else nobody would notice the parent's end
            if self._reader.reading is not None:
                self._reader.reading.leave_to_parent()
            for other in self._seats:
                if other is not seat:
                    for bound in other.sockets:
                        bound.close()
            take_seat(seat.metrics)
            seat.work(seat, self._policy)
            status = 0
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 1
        except BaseException as e:
            logger.error("%s failed: %s", seat.name, type(e).__name__)
        finally:
            _flush_output()
            os._exit(status)

    def _hear(self, seat: Seat) -> None:
        """Read what a child sends. A signal tells when a child has ended; then there is nothing left to read."""
        child = seat.child
        if child is None:
            return
        try:
            data = child.wire.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(child.wire)
            return
        child.heard += data
        for message in unframed(child.heard):
            child.serves = child.serves or message == SERVES
            child.owes -= message == TAKEN
            if not child.owes:
                child.deadline = math.inf

    def _flush(self, seat: Seat) -> None:
        """Send a child the bytes that wait for it, as many as the wire takes."""
        child = seat.child
        if child is None:
            return
        try:
            child.unsent = child.unsent[child.wire.send(child.unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # it has ended, and a signal will tell
            child.unsent = b""
        if child.wire in self._selector.get_map():
            writing = selectors.EVENT_WRITE if child.unsent else 0
            self._selector.modify(child.wire, selectors.EVENT_READ | writing, seat)

    def _kill(self, seat: Seat, number: signal.Signals) -> None:
        if seat.child is not None:
            seat.child.deadline = math.inf
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(seat.child.pid, number)

    def _ended(self, pid: int, status: int) -> None:
        if self._reader.reading is not None and self._reader.reading.pid == pid:
            self._reader.reading.status = status  # its wire says the rest
            return
        seat = next((seat for seat in self._seats if seat.child is not None and seat.child.pid == pid), None)
        if seat is None or seat.child is None:
            return  # not our child: one that we inherited
        child, seat.child = seat.child, None
        if child.wire in self._selector.get_map():
            self._selector.unregister(child.wire)
        child.wire.close()
        seat.due = child.started + timelimits.QUICK_END_SECONDS
        mark_process_dead(seat.metrics, str(self._directory))  # type: ignore[no-untyped-call]  # untyped there
        if self._is_draining:
            self._status = self._status or int(seat.drains and status != 0)
        elif not self._has_started:
            why = "could not start" if status == CANNOT_START else f"{ending(status)} at the start"
            raise SupervisorFailed(f"{seat.name} {why}")
        else:
            logger.error("%s %s, and is replaced", seat.name, ending(status))
            self._metrics.worker_restarts.inc()

    # -- acting on signals

    def _leave(self) -> None:
        self._is_leaving = True
        if self._reader.reading is not None:
            self._selector.unregister(self._reader.reading.descriptor)
            self._reader.give_up()
        self._draining_time = time.monotonic() + self._policy.drain_wait
        self._tell_workers(wires.PART)
        log_leaving(self._policy)

    def _drain(self) -> None:
        self._is_draining = True
        self._killing_time = time.monotonic() + self._policy.drain_timeout + timelimits.DRAIN_SPARE_SECONDS
        for seat in self._seats:
            if seat.drains:
                for bound in seat.sockets:
                    bound.close()  # else the kernel would accept more connections for it
        self._tell_workers(wires.DRAIN)

    def _renew_authority(self) -> None:
        if not self._is_leaving and self._renew(self._policy):
            self._tell_workers(wires.AUTHORITY)
            if self._reader.waits_for_ca:
                self._reload()

    def _tell_workers(self, order: bytes) -> None:
        for seat in self._seats:
            if seat.drains and seat.child is not None:
                seat.child.unsent += framed(order)
                self._flush(seat)

    def _reload(self, changed: Sequence[Path] = ()) -> None:
        """Have the policy read again, for a signal or because files have changed."""
        if not self._is_leaving and (reading := self._reader.begin(changed)) is not None:
            self._selector.register(reading.descriptor, selectors.EVENT_READ, reading)

    def _hear_reading(self) -> None:
        """Hand the policy over once it is read, if it is another."""
        reading = self._reader.reading
        read = self._reader.heard(self._policy)
        if reading is None or read is None:
            return
        self._selector.unregister(reading.descriptor)
        if read.policy is None:
            self._metrics.note_reading(read.result)
        elif read.policy is not self._policy:
            self._policy, self._changed = read.policy, read.changed
            self._is_reloading = True
            self._hand_over([seat for seat in self._seats if seat.drains])
            self._to_tell = [seat for seat in self._seats if not seat.drains]
        elif read.is_news and not self._is_reloading:  # else it is logged once it is in force
            self._metrics.note_reading(read.result)
            log_read(read.policy, read.policy, read.changed)
        if self._reader.is_asked_again:
            self._reload()

    def _handed_over(self) -> None:
        """Go on once all children have confirmed the policy. The admin process, which shows it, gets it last."""
        if self._to_tell:
            seats, self._to_tell = self._to_tell, []
            self._hand_over(seats)
            return
        self._is_reloading = False
        self._metrics.note_reading("taken")
        log_read(self._policy, self._said, self._changed)
        self._said = self._policy

    def _hand_over(self, seats: list[Seat]) -> None:
        message = framed(pack(self._policy))
        for seat in seats:
            if seat.child is not None:
                seat.child.owes += 1
                seat.child.deadline = min(seat.child.deadline, time.monotonic() + timelimits.TAKE_POLICY_SECONDS)
                seat.child.unsent += message
                self._flush(seat)

    def _end(self) -> None:
        self._reader.give_up()
        for seat in self._seats:
            self._kill(seat, signal.SIGKILL)
            if seat.child is not None:
                with contextlib.suppress(ChildProcessError):  # it has been reaped just now
                    os.waitpid(seat.child.pid, 0)
        signal.set_wakeup_fd(-1)


def _flush_output() -> None:
    """Flush buffers that two processes would have after a fork. A stream that was closed before the start is None."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
