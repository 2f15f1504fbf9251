"""What the upstreams' side needs of the process that it runs in: one value, which `server` builds and hands in.

Whoever opens a connection to an upstream passes it on: `apps`, for a request or a tunnel, and `probe`. So nothing here
knows the engine, and each module takes from it only what it uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from addons.sessions import Sessions
from proxy.engine.dispatch import Dispatcher
from proxy.engine.upstreams.pool import Pool


@dataclass(frozen=True, slots=True)
class Services:
    """What is there for every upstream connection.

    Attributes:
        loop: the event loop.
        resolvers: the threads in which names are looked up.
        sessions: who the clients are, on whose behalf connections are opened.
        dispatch: calls the hooks.
        is_own_address: tells whether a connection from one socket address to another leads to one of our own listeners.
        pool: the connections that are there already.
    """

    loop: asyncio.AbstractEventLoop
    resolvers: Executor
    sessions: Sessions
    dispatch: Dispatcher
    is_own_address: Callable[[tuple[str, int], tuple[str, int]], bool]
    pool: Pool
