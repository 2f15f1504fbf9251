"""Shakes hands with pinned servers in observe mode, beside what passes there, so that decision lines can say whether
the pins would have matched (`would_pin`). The conversations and CONNECTs of `apps` call it for each exchange that is
observed.

Rules of this module:

- It is the handshake that enforcing would make, with the same rule, roots and pins; what is forbidden is not reached.
  After it the connection is closed: no byte of an app is on it.
- Nothing waits for it. A line that is written before it is over says nothing of the pins.
- One handshake a destination and rule in `ASIDE_SECONDS`, few at a time, and few destinations are remembered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from mitmproxy.connection import Client, ConnectionState

from addons.exchange import Exchange
from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import Destination
from proxy.core.rules.policy import Mode, Policy
from proxy.engine.flows import new_context, new_server
from proxy.engine.upstreams.route import dial
from proxy.engine.upstreams.services import Services
from proxy.log import describe

logger = logging.getLogger("overcoat")

MOST_KEPT = 256
AT_ONCE = 4
_HERE = ("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class _Aside:
    record: Upstream
    began: float


class Asides:
    """The handshakes of one process, under the policy in force."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._policy: Policy | None = None
        self._kept: dict[tuple[str, Destination], _Aside] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, exchange: Exchange) -> None:
        """Give an exchange that is observed, and whose rule has pins, the handshake that tells of them; begin it if
        there is none.
        """
        rule, decision = exchange.rule, exchange.decision
        if rule is None or rule.pins is None or decision is None or decision.target is None:
            return
        if decision.action not in (Action.UPGRADE, Action.INSPECT):
            return
        if self._policy is not exchange.policy:
            self._policy, self._kept = exchange.policy, {}
        key, now = (rule.name, decision.target), self._services.loop.time()
        found = self._kept.get(key)
        is_fresh = found is not None and now - found.began < timelimits.ASIDE_SECONDS
        if not is_fresh and len(self._tasks) < AT_ONCE:
            found = _Aside(Upstream(exchange.policy, replace(rule, mode=Mode.ENFORCE)), now)
            self._kept.pop(key, None)
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = found
            task = self._services.loop.create_task(self._shake(found.record, decision.target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        exchange.aside = None if found is None else found.record

    async def _shake(self, record: Upstream, target: Destination) -> None:
        services = self._services
        client = Client(peername=_HERE, sockname=_HERE, timestamp_start=time.time(), state=ConnectionState.OPEN)
        session = services.sessions.open(client, record.policy)
        server = new_server((target.host, target.port), tls=True)
        session.upstreams[server.id] = record
        try:
            upstream = await dial(services, server, None, record, new_context(client))
            upstream.close()
        except Denied as denied:
            record.denied = denied
        except Exception as e:  # nobody awaits it, and what it is about has passed
            logger.error("a handshake beside what is observed failed: %s", describe(e))
        finally:
            services.sessions.close(client)

    def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
