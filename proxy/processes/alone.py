"""The process that serves alone, with one worker: it has the admin listener in a thread, and acts on signals and on
changed files itself. `proxy.commands.serve` runs it.

Rules of this module:

- Whatever it waits for, apps are served meanwhile: another process reads a changed policy (`proxy.processes.apart`),
  and this one takes it over in one turn, or not at all. That it did is said once all series of its rules are shown.
- With `until_eof`, only the end of standard input ends it. A supervisor sends its signals to all processes, but the
  program that this sidecar is for may need it to the end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry

from addons.expected import expect, rule_by_rule
from addons.inforce import InForce
from addons.metrics import Metrics
from addons.policymetrics import PolicyMetrics
from proxy import timelimits
from proxy.core.rules.policy import Policy
from proxy.disk.ca import LocalCa
from proxy.engine.server import Bound, Engine
from proxy.processes.admin import AdminSockets
from proxy.processes.decisionlines import LineWriter
from proxy.processes.readable import Form
from proxy.processes.recent import Recent
from proxy.processes.reload import Read, Reader, log_leaving, log_read
from proxy.processes.reminder import Reminder
from proxy.processes.signals import DRAIN, RELOAD, REOPEN, take_over_signals
from proxy.processes.status import Sidecar
from proxy.version import VERSION


class Alone:
    """The one process."""

    def __init__(
        self,
        policy: Policy,
        reader: Reader,
        authority: LocalCa,
        renew: Callable[[Reminder, Policy], bool],
        *,
        lines: Path | None,
        form: Form | None,
        until_eof: bool,
    ) -> None:
        """Prepare; an event loop runs.

        Args:
            policy: the policy to begin with.
            reader: has it read again.
            authority: the local CA.
            renew: reads the local CA again if its files have changed, given what warns of its end and the policy in
                force; returns whether there is another.
            lines: the file for decision lines; None for standard output.
            form: turns decision lines into lines for people; None for JSON.
            until_eof: see above.

        Raises:
            NoRoots: the roots that the policy trusts cannot be used.
        """
        self._reader = reader
        self._renew = renew
        self._until_eof = until_eof
        self._started = reader.taken = time.time()
        self._metrics = Metrics(CollectorRegistry())
        self._recent = Recent()
        self._lines = LineWriter(lines or sys.stdout, self._metrics.lines_lost.inc, form=form, recent=self._recent)
        expect(self._metrics, policy)
        self._metrics.note_reading(None)
        self._engine = Engine(policy, authority, self._metrics, self._lines.write)
        self._reminder = Reminder(authority.lifetime, policy, datetime.now(UTC))
        self._is_ready = False
        self._saying: asyncio.Task[None] | None = None  # kept, since the loop alone would not
        self._stop = asyncio.Event()
        self._signals = take_over_signals()

    async def serve(self, bound: list[Bound], admin: AdminSockets, announce: Callable[[], None]) -> int:
        """Serve until asked to end; return how much was cut off at the end.

        Args:
            bound: the listening sockets.
            admin: those of the admin address.
            announce: called once it serves.
        """
        engine, loop = self._engine, asyncio.get_running_loop()
        listeners = admin.start(self._sidecar())
        for listener in listeners:
            engine.guard(listener.address)
        await engine.listen(bound)
        self._is_ready = True
        announce()
        self._remind()
        if self._reader.watches:
            self._look()
        loop.add_reader(self._signals.descriptor, self._act)
        if self._until_eof:
            self._signals.at_second = lambda: None
            loop.add_reader(0, lambda: None if os.read(0, 1) else self._stop.set())
        await self._stop.wait()
        if self._until_eof:
            loop.remove_reader(0)
        self._is_ready = False
        if self._reader.reading is not None:
            loop.remove_reader(self._reader.reading.descriptor)
            self._reader.give_up()
        engine.part()
        log_leaving(engine.policy)
        await asyncio.sleep(engine.policy.drain_wait)
        cut = await engine.drain()
        for listener in listeners:
            listener.close()
        self._lines.close()
        return cut

    def _sidecar(self) -> Sidecar:
        """Return what the admin address tells about."""
        engine, registry = self._engine, CollectorRegistry()
        registry.register(InForce(self._metrics.registry, lambda: engine.policy, self._metrics))
        registry.register(PolicyMetrics(VERSION, lambda: engine.policy, self._started))
        return Sidecar(
            VERSION,
            1,
            self._started,
            registry,
            lambda: self._is_ready,
            lambda: engine.policy,
            lambda: self._reader.taken,
            [self._recent],
        )

    def _remind(self) -> None:
        pause = self._reminder.remind(self._engine.policy, datetime.now(UTC))
        self._engine.loop.call_later(pause, self._remind)

    def _act(self) -> None:
        """Act on the signals that have come."""
        for number in self._signals.take():
            if number in DRAIN and not self._until_eof:
                self._stop.set()
            elif number == REOPEN:
                self._lines.reopen()
            elif number == RELOAD and not self._stop.is_set():
                self._renew_authority()
                self._reload()

    def _look(self) -> None:
        """Look for files that have changed, now and then."""
        if not self._stop.is_set():
            self._renew_authority()
            if changed := self._reader.changed():
                self._reload(changed)
            self._engine.loop.call_later(timelimits.LOOK_SECONDS, self._look)

    def _renew_authority(self) -> None:
        if self._renew(self._reminder, self._engine.policy):
            self._engine.take_over_ca()
            if self._reader.waits_for_ca:
                self._reload()

    def _reload(self, changed: Sequence[Path] = ()) -> None:
        """Have the policy read again, because files have changed, or for a signal."""
        reading = self._reader.begin(changed)
        if reading is not None:
            loop = self._engine.loop
            loop.add_reader(reading.descriptor, self._hear)
            loop.call_at(loop.time() + timelimits.READ_POLICY_SECONDS, self._hear)

    def _hear(self) -> None:
        """Take the policy over once it is read."""
        reading, before = self._reader.reading, self._engine.policy
        if reading is None:
            return  # its time is over, but it was heard before
        read = self._reader.heard(before)
        if read is None:
            return
        self._engine.loop.remove_reader(reading.descriptor)
        if read.policy is not None and read.policy is not before:
            self._engine.take_over(read.policy)
            self._reader.taken = time.time()
        self._saying = self._engine.loop.create_task(self._say(read, before))
        if self._reader.is_asked_again:
            self._reload()

    async def _say(self, read: Read, before: Policy) -> None:
        """Show, count and log what came of a reading."""
        if read.policy is not None and read.policy is not before:
            for _ in rule_by_rule(self._metrics, read.policy):
                await asyncio.sleep(0)
        if read.is_news:
            self._metrics.note_reading(read.result)
            if read.policy is not None:
                log_read(read.policy, before, read.changed)
