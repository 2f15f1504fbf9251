"""The upstream connections of a process, shared by all apps: idle ones of HTTP/1, and those of HTTP/2, busy or not. The
conversations take streams from it. `upstreams.opening` adds new connections of HTTP/2; one of HTTP/1 comes in after a
complete response.

Rules of this module:

- A connection is taken only for exactly the same destination, TLS, rule (hence pins) and policy.
- A connection that has unread bytes, is closing, or has been idle too long is closed, not taken.
- The number of connections is limited, for each key and in all; those beyond are closed at once.
- While a connection that may be shared is being opened, all requests that may share it wait for it, unless the server
  is known to speak only HTTP/1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from addons.upstream import Upstream
from proxy import timelimits
from proxy.engine.streams import UpstreamStream, Version

MAX_IDLE = 256
MAX_IDLE_PER_KEY = 64
MAX_SHARED_PER_KEY = 64  # connections; each carries many requests
MAX_KNOWN = 1024  # destinations that are remembered to speak only HTTP/1


class IdleConnection(UpstreamStream, Protocol):
    """A connection of HTTP/1, as the pool knows it; see `proxy.engine.upstreams.connection`."""

    key: object
    opened: float
    idle_since: float

    @property
    def is_usable(self) -> bool:
        """Whether it may take a request."""

    @property
    def can_reuse(self) -> bool:
        """Whether another request may be sent, after a response."""

    def rest(self, now: float) -> None:
        """Wait in the pool from now on."""

    def wake(self) -> None:
        """Leave the pool for a request."""


class Carrier(Protocol):
    """The connection below a shared one, as the pool knows it."""

    key: object
    opened: float


class SharedConnection(Protocol):
    """A connection of HTTP/2, as the pool knows it; see `proxy.engine.upstreams.http2`."""

    idle_since: float

    @property
    def carrier(self) -> Carrier:
        """The connection below it."""

    @property
    def has_room(self) -> bool:
        """Whether another stream may be begun."""

    @property
    def is_idle(self) -> bool:
        """Whether no stream is under way."""

    def leave(self) -> None:
        """Begin no new stream, and close once none is under way."""

    def open(self) -> UpstreamStream:
        """Return a stream that has not begun."""


class Pool:
    """The pool. The newest connection is taken first, so that a pool that is too large shrinks by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: Callable[[str], object]) -> None:
        """Start empty.

        Args:
            loop: the event loop, for the time.
            count: called with `hit`, `miss`, `evicted`.
        """
        self._loop = loop
        self._count = count
        self._idle: dict[object, list[IdleConnection]] = {}
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._shared: dict[object, list[SharedConnection]] = {}
        self._opening: dict[object, asyncio.Future[Upstream | None]] = {}
        self._only_http1: dict[object, float] = {}  # when it was learned, by key and whether HTTP/2 was offered first

    def take(self, key: object, version: Version = Version.HTTP1) -> UpstreamStream | None:
        """Take an idle connection, or a stream of a shared one; None if none fits.

        Args:
            key: the key for which it must have been opened.
            version: the versions of HTTP that will do.
        """
        if version is not Version.HTTP1 and not self.speaks_only_http1(key, version):
            for shared in self._shared.get(key, ()):
                if shared.has_room and self._loop.time() - shared.carrier.opened < timelimits.POOL_AGE_SECONDS:
                    self._count("hit")
                    return shared.open()
            if version.is_of_http2:
                return None
        return self._take_idle(key)

    def _take_idle(self, key: object) -> IdleConnection | None:
        idle = self._idle.get(key)
        now = self._loop.time()
        while idle:
            upstream = idle.pop()
            self._size -= 1
            if not idle:
                del self._idle[key]
            is_young = now - upstream.opened < timelimits.POOL_AGE_SECONDS
            if is_young and now - upstream.idle_since < timelimits.POOL_IDLE_SECONDS and upstream.is_usable:
                upstream.wake()
                self._count("hit")
                return upstream
            upstream.close()
            self._count("evicted")
        return None

    def opens(self) -> None:
        """Note that a new connection is being opened."""
        self._count("miss")

    # -- connections of HTTP/2

    def speaks_only_http1(self, key: object, version: Version = Version.HTTP2) -> bool:
        """Tell whether a destination is known to speak no HTTP/2 when it is offered as for this version."""
        since = self._only_http1.get((key, version.is_of_http2))
        return since is not None and self._loop.time() - since < timelimits.POOL_AGE_SECONDS

    def only_http1(self, key: object, version: Version = Version.HTTP2) -> None:
        """Note that a destination has chosen HTTP/1.

        Args:
            key: its key.
            version: what was offered. If HTTP/1.1 came first, it may still choose HTTP/2 when that is offered first.
        """
        for is_of_http2 in {False, version.is_of_http2}:
            while len(self._only_http1) >= 2 * MAX_KNOWN:  # two entries for each: HTTP/2 offered first, or not
                del self._only_http1[next(iter(self._only_http1))]
            self._only_http1[key, is_of_http2] = self._loop.time()

    def opening(self, key: object) -> asyncio.Future[Upstream | None] | None:
        """Return a future that ends when a connection that may be shared is open or has failed; None if none is being
        opened.

        Its result is the record of an upstream that was denied, or None.
        """
        return self._opening.get(key)

    def begin_to_open(self, key: object) -> Callable[[Upstream | None], None]:
        """Note that a connection that may be shared is being opened; return a function that ends this with its
        result.
        """
        opening = self._opening[key] = self._loop.create_future()

        def end(failed: Upstream | None) -> None:
            if self._opening.get(key) is opening:
                del self._opening[key]
            if not opening.done():
                opening.set_result(failed)

        return end

    def share(self, key: object, shared: SharedConnection) -> None:
        """Let a connection carry all requests with this key."""
        found = self._shared.setdefault(key, [])
        found.append(shared)
        if len(found) > MAX_SHARED_PER_KEY:
            oldest = found[0]
            self.forget_shared(oldest)
            oldest.leave()
        self._look_later()

    def forget_shared(self, shared: SharedConnection) -> None:
        """Begin no new stream on a connection."""
        found = self._shared.get(shared.carrier.key)
        if found is not None and shared in found:
            found.remove(shared)
            if shared.is_idle:
                self._count("evicted")
            if not found:
                del self._shared[shared.carrier.key]

    # -- idle ones of HTTP/1

    def give(self, upstream: IdleConnection) -> None:
        """Take a connection back after a complete response, or close it."""
        idle = self._idle.get(upstream.key)
        if not upstream.can_reuse or self._size >= MAX_IDLE or (idle and len(idle) >= MAX_IDLE_PER_KEY):
            upstream.close()
            return
        if idle is None:
            self._idle[upstream.key] = [upstream]
        else:
            idle.append(upstream)
        upstream.rest(self._loop.time())
        self._size += 1
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(timelimits.POOL_IDLE_SECONDS, self._expire)

    def forget(self, upstream: IdleConnection) -> None:
        """Called when an idle connection is over."""
        idle = self._idle.get(upstream.key)
        if idle is not None and upstream in idle:
            idle.remove(upstream)
            self._size -= 1
            self._count("evicted")
            if not idle:
                del self._idle[upstream.key]

    def _expire(self) -> None:
        self._timer = None
        deadline = self._loop.time() - timelimits.POOL_IDLE_SECONDS
        for upstream in [u for idle in self._idle.values() for u in idle if u.idle_since <= deadline]:
            self.forget(upstream)
            upstream.close()
        for shared in [each for found in self._shared.values() for each in found]:
            is_old = self._loop.time() - shared.carrier.opened >= timelimits.POOL_AGE_SECONDS
            if is_old or (shared.is_idle and shared.idle_since <= deadline):
                self.forget_shared(shared)
                shared.leave()
        if self._size or self._shared:
            self._timer = self._loop.call_later(timelimits.POOL_IDLE_SECONDS / 4, self._expire)

    def close(self) -> None:
        """Close all idle connections, and each of the others once it is idle."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for idle in list(self._idle.values()):
            for upstream in idle:
                upstream.close()
        self._idle.clear()
        self._size = 0
        for shared in [each for found in self._shared.values() for each in found]:
            self.forget_shared(shared)
            shared.leave()
        self._only_http1.clear()
