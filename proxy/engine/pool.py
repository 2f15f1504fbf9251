"""Idle upstream connections, shared by all apps.

Rules of this module:

- A connection is adopted only for the very same destination, TLS, rule (so pins) and policy.
- One that has anything unread, is closing, or has idled too long is closed, not adopted.
- Per host and in all there are limits; what is over them is closed at once.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from proxy.engine.upstream import UpstreamConnection

IDLE_SECONDS = 60.0  # under the keep-alive time-outs of common servers
MAX_AGE_SECONDS = 600.0  # then its certificate and pins are looked at again
MAX_IDLE = 256
MAX_IDLE_PER_KEY = 64


class Pool:
    """The pool. Newest first: so that a pool larger than needed shrinks by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: Callable[[str], object]) -> None:
        """Start empty.

        Args:
            loop: for the time.
            count: called with `hit`, `miss`, `evicted`.
        """
        self._loop = loop
        self._count = count
        self._idle: dict[object, collections.deque[UpstreamConnection]] = {}
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, key: object) -> UpstreamConnection | None:
        """Adopt an idle connection, if there is one that fits."""
        idle = self._idle.get(key)
        while idle:
            upstream = idle.pop()
            self._size -= 1
            upstream.on_idle_end = None
            if not idle:
                del self._idle[key]
            now = self._loop.time()
            is_young = now - upstream.opened < MAX_AGE_SECONDS and now - upstream.idle_since < IDLE_SECONDS
            if upstream.is_usable and is_young:
                self._count("hit")
                return upstream
            upstream.close()
            self._count("evicted")
        self._count("miss")
        return None

    def give(self, upstream: UpstreamConnection) -> None:
        """Take a connection back after a complete response, or close it."""
        idle = self._idle.setdefault(upstream.key, collections.deque())
        if not upstream.can_reuse or self._size >= MAX_IDLE or len(idle) >= MAX_IDLE_PER_KEY:
            if not idle:
                del self._idle[upstream.key]
            upstream.close()
            return
        upstream.receiver = None
        upstream.idle_since = self._loop.time()
        upstream.on_idle_end = self._forget
        upstream.hold("app", False)
        idle.append(upstream)
        self._size += 1
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_SECONDS, self._expire)

    def _forget(self, upstream: UpstreamConnection) -> None:
        idle = self._idle.get(upstream.key)
        if idle is not None and upstream in idle:
            idle.remove(upstream)
            self._size -= 1
            self._count("evicted")
            if not idle:
                del self._idle[upstream.key]

    def _expire(self) -> None:
        self._timer = None
        deadline = self._loop.time() - IDLE_SECONDS
        for upstream in [u for idle in self._idle.values() for u in idle if u.idle_since <= deadline]:
            self._forget(upstream)
            upstream.on_idle_end = None
            upstream.close()
        if self._size:
            self._timer = self._loop.call_later(IDLE_SECONDS / 4, self._expire)

    def close(self) -> None:
        """Close all that are idle."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for idle in list(self._idle.values()):
            for upstream in idle:
                upstream.on_idle_end = None
                upstream.close()
        self._idle.clear()
        self._size = 0
