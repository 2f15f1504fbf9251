"""What the parent's children do: a worker serves, and the admin endpoint adds up what all have counted.

Rules of this module:

- Each says when it serves, and when it has taken a policy over; see `proxy.processes.wires`.
- Each ends when its parent is gone; a worker drains first.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from addons.metrics import Metrics, PolicyMetrics
from proxy.core.rules.policy import Policy
from proxy.disk.ca import LocalCa
from proxy.engine.server import Bound, Engine
from proxy.engine.tls import NoRoots
from proxy.processes.admin import AdminSockets
from proxy.processes.lines import LineWriter
from proxy.processes.supervisor import CANNOT_START, Seat, Shared
from proxy.processes.wires import DRAIN, REOPEN, SERVES, TAKEN, receive, send, unpack

logger = logging.getLogger("overcoat")


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker works with.

    Attributes:
        authority: the local CA, which all share.
        directory: where they share a lock for the standard output.
        guarded: the addresses of the admin endpoint.
        places: what it takes connections from.
        lines: the file that decision lines go to, if not to standard output.
    """

    authority: LocalCa
    directory: Path
    guarded: tuple[tuple[str, int], ...]
    places: list[Bound]
    lines: Path | None


def work(equipment: Equipment, seat: Seat, policy: Policy) -> None:
    """Live a worker's life.

    Args:
        equipment: what it works with.
        seat: for its wire.
        policy: the policy to begin with.

    Raises:
        SystemExit: something had to be cut off at the end, or it cannot start.
    """
    if asyncio.run(_Worker(equipment, seat, Metrics(CollectorRegistry())).live(policy)):
        raise SystemExit(1)


class _Worker:
    def __init__(self, equipment: Equipment, seat: Seat, metrics: Metrics) -> None:
        self._equipment = equipment
        self._seat = seat
        self._metrics = metrics
        self._stop = asyncio.Event()

    async def live(self, policy: Policy) -> int:
        """Live, and return how much was cut off at the end."""
        equipment = self._equipment
        loop = asyncio.get_running_loop()
        try:
            lines = self._lines = LineWriter(
                equipment.lines or sys.stdout, self._metrics.lines_lost.inc, equipment.directory / "lines.lock"
            )
            self._engine = Engine(policy, equipment.authority, self._metrics, lines.write)
        except (NoRoots, OSError) as e:
            logger.error("%s", e)
            raise SystemExit(CANNOT_START) from None
        for address in equipment.guarded:
            self._engine.guard(address)
        await self._engine.listen(equipment.places)
        loop.add_reader(self._seat.wire, self._take_order)
        send(self._seat.wire, SERVES)
        await self._stop.wait()
        loop.remove_reader(self._seat.wire)
        cut = await self._engine.drain()
        lines.close()
        return cut

    def _take_order(self) -> None:
        """Take a policy over; drain where that cannot be, since to go on with another would be wrong."""
        try:
            message = receive(self._seat.wire)
            if message == REOPEN:
                self._lines.reopen()
                return
            if message is not None and message != DRAIN:
                policy = unpack(message)
                self._engine.take_over(policy)
                send(self._seat.wire, TAKEN)
                return
        except (NoRoots, OSError) as e:
            logger.error("a worker cannot take the policy over: %s", e)
        asyncio.get_running_loop().remove_reader(self._seat.wire)
        self._stop.set()


@dataclass(frozen=True, slots=True)
class Desk:
    """What the admin endpoint works with.

    Attributes:
        directory: where all processes keep their metrics.
        is_ready: what `/ready` says.
        started: when the whole started, in seconds since 1970.
        sockets: where it answers.
    """

    directory: Path
    is_ready: Shared
    started: float
    sockets: AdminSockets


def administer(desk: Desk, seat: Seat, policy: Policy) -> None:
    """Be the admin endpoint.

    Args:
        desk: what it works with.
        seat: for its wire.
        policy: the policy to begin with.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(desk.directory))  # type: ignore[no-untyped-call]  # untyped there
    registry.register(PolicyMetrics(version("overcoat"), lambda: policy, desk.started))
    metrics = Metrics(CollectorRegistry())  # it counts nothing, but is there for what all count
    metrics.expect(policy)
    listeners = desk.sockets.start(registry, lambda: bool(desk.is_ready), lambda: policy)
    send(seat.wire, SERVES)
    seat.wire.settimeout(None)
    while (message := receive(seat.wire)) is not None:
        policy = unpack(message)
        metrics.expect(policy)
        send(seat.wire, TAKEN)
    for listener in listeners:
        listener.close()
