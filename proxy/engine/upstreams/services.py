"""What the upstreams' side needs from its process, as one value. `server` builds it; `apps` and `probe` pass it on when
they open a connection. So nothing here knows the engine, and each module uses only the parts that it needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from addons.sessions import Sessions
from proxy.engine.dispatch import Dispatcher
from proxy.engine.timers import Timers
from proxy.engine.upstreams.pool import Pool


@dataclass(frozen=True, slots=True)
class Services:
    """What all upstream connections share.

    Attributes:
        loop: the event loop.
        timers: its timers.
        resolvers: the threads in which names are resolved.
        sessions: the clients for which connections are opened.
        dispatch: calls the hooks.
        is_own_address: tells whether a connection from one socket address to another leads to one of our own listeners.
        pool: the connections that exist.
    """

    loop: asyncio.AbstractEventLoop
    timers: Timers
    resolvers: Executor
    sessions: Sessions
    dispatch: Dispatcher
    is_own_address: Callable[[tuple[str, int], tuple[str, int]], bool]
    pool: Pool
