"""What the child processes do: a worker serves requests; the admin process adds up the metrics of all. The parent
(`proxy.processes.supervisor`) runs these functions in the processes that it forks.

Rules of this module:

- A child tells the parent when it serves, and when it has taken a policy over; see `proxy.processes.wires`.
- A child ends when its parent is gone; a worker drains first.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from addons.expected import expect
from addons.inforce import InForce
from addons.metrics import Metrics
from addons.policymetrics import PolicyMetrics
from proxy.core.rules.policy import Policy
from proxy.disk.ca import CaError, LocalCa
from proxy.engine.roots import NoRoots
from proxy.engine.server import Bound, Engine
from proxy.engine.vitals import measure
from proxy.processes.admin import AdminSockets
from proxy.processes.decisionlines import LineWriter
from proxy.processes.readable import Form
from proxy.processes.recent import Recent
from proxy.processes.status import Sidecar
from proxy.processes.supervisor import CANNOT_START, Seat, Shared
from proxy.processes.wires import AUTHORITY, DRAIN, PART, REOPEN, SERVES, TAKEN, receive, send, unpack
from proxy.version import VERSION

logger = logging.getLogger("overcoat")


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker needs.

    Attributes:
        authority: the local CA, which all workers share.
        directory: the folder with their common lock for standard output.
        guarded: the addresses of the admin endpoint, which no app may reach.
        bound: the listening sockets.
        lines: the file for decision lines; None for standard output.
        recent: where its last lines can be seen.
        form: turns decision lines into lines for people; None for JSON.
    """

    authority: LocalCa
    directory: Path
    guarded: tuple[tuple[str, int], ...]
    bound: list[Bound]
    lines: Path | None
    recent: Recent
    form: Form | None = None


def work(equipment: Equipment, seat: Seat, policy: Policy) -> None:
    """Run a worker until it has drained.

    Args:
        equipment: what it needs.
        seat: has its wire.
        policy: the policy to begin with.

    Raises:
        SystemExit: it had to cut something off at the end, or cannot start.
    """
    if asyncio.run(_Worker(equipment, seat, Metrics(CollectorRegistry(), seat.metrics)).live(policy)):
        raise SystemExit(1)


class _Worker:
    def __init__(self, equipment: Equipment, seat: Seat, metrics: Metrics) -> None:
        self._equipment = equipment
        self._seat = seat
        self._metrics = metrics
        self._stop = asyncio.Event()

    async def live(self, policy: Policy) -> int:
        """Serve until told to end; return how much was cut off at the end."""
        equipment = self._equipment
        loop = asyncio.get_running_loop()
        try:
            lines = self._lines = LineWriter(
                equipment.lines or sys.stdout,
                self._metrics.lines_lost.inc,
                equipment.directory / "lines.lock",
                equipment.form,
                equipment.recent,
            )
            self._engine = Engine(policy, equipment.authority, self._metrics, lines.write)
        except (NoRoots, OSError) as e:
            logger.error("%s", e)
            raise SystemExit(CANNOT_START) from None
        for address in equipment.guarded:
            self._engine.guard(address)
        await self._engine.listen(equipment.bound)
        loop.add_reader(self._seat.wire, self._take_order)
        send(self._seat.wire, SERVES)
        await self._stop.wait()
        loop.remove_reader(self._seat.wire)
        cut = await self._engine.drain()
        lines.close()
        return cut

    def _take_order(self) -> None:
        """Take a policy over; drain if that fails, because serving with an old policy would be wrong."""
        try:
            message = receive(self._seat.wire)
            if message == REOPEN:
                self._lines.reopen()
                return
            if message == AUTHORITY:
                self._take_authority()
                return
            if message == PART:
                self._engine.part()
                return
            if message is not None and message != DRAIN:
                policy = unpack(message, Policy)
                self._engine.take_over(policy)
                send(self._seat.wire, TAKEN)
                return
        except (NoRoots, OSError) as e:
            logger.error("a worker cannot take the policy over: %s", e)
        asyncio.get_running_loop().remove_reader(self._seat.wire)
        self._stop.set()

    def _take_authority(self) -> None:
        """Go on with another local CA; if it cannot be read, with the one before, as the parent does."""
        try:
            self._equipment.authority.renew()
        except CaError as e:
            logger.error("a worker keeps the local CA that it has: %s", e)
        self._engine.take_over_ca()


@dataclass(frozen=True, slots=True)
class Desk:
    """What the admin process needs.

    Attributes:
        directory: the folder in which all processes keep their metrics.
        is_ready: the answer of `/ready`.
        started: when the sidecar started, in seconds since 1970.
        sockets: the listening sockets.
        recents: where the workers' last lines can be seen.
    """

    directory: Path
    is_ready: Shared
    started: float
    sockets: AdminSockets
    recents: Sequence[Recent]


class _Vitals(Collector):
    """Measures the admin process itself at each scrape, before its metrics are read."""

    def __init__(self, metrics: Callable[[], Metrics]) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """Return nothing: it has no families of its own."""
        return []

    def collect(self) -> list[Metric]:
        """Measure."""
        measure(self._metrics())
        return []


def administer(desk: Desk, seat: Seat, policy: Policy) -> None:
    """Run the admin process.

    Args:
        desk: what it needs.
        seat: has its wire.
        policy: the policy to begin with.
    """
    registry = CollectorRegistry()
    registry.register(_Vitals(lambda: metrics))
    counted = MultiProcessCollector(None, path=str(desk.directory))  # type: ignore[no-untyped-call]  # untyped there
    registry.register(PolicyMetrics(VERSION, lambda: policy, desk.started))
    metrics = Metrics(CollectorRegistry(), seat.metrics)  # its own counters stay 0: they define what the others count
    registry.register(InForce(counted, lambda: policy, metrics))
    expect(metrics, policy)
    taken = desk.started
    sidecar = Sidecar(
        VERSION,
        len(desk.recents),
        desk.started,
        registry,
        lambda: bool(desk.is_ready),
        lambda: policy,
        lambda: taken,
        desk.recents,
    )
    listeners = desk.sockets.start(sidecar)
    send(seat.wire, SERVES)
    seat.wire.settimeout(None)
    while (message := receive(seat.wire)) is not None:
        policy, taken = unpack(message, Policy), time.time()
        expect(metrics, policy)
        send(seat.wire, TAKEN)
    for listener in listeners:
        listener.close()
