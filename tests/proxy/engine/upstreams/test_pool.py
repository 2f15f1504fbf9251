"""Idle upstream connections: what is adopted, what is closed, and where the limits are.

Proves that a connection serves only what it was opened for (ARCHITECTURE.md, rule 3), and that the pool stays within
its bounds.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from mitmproxy import http
from mitmproxy.connection import Server

from addons.upstream import Upstream
from proxy.core.rules.policy import Policy
from proxy.engine.streams import Version
from proxy.engine.timers import Timers
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.pool import MAX_IDLE, MAX_IDLE_PER_KEY, MAX_KNOWN, Pool
from proxy.timelimits import POOL_AGE_SECONDS, POOL_IDLE_SECONDS


class Clock:
    """Stands for the event loop: its time moves when a test says so, and its timers are called then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, call)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            timer.call()


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.call = lambda: None
        self.is_cancelled = True


class Socket:
    """Stands for a transport."""

    def __init__(self) -> None:
        self.closing = False
        self.paused = False
        self.ours, self.theirs = socket.socketpair()

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.ours

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Receiver:
    """Takes a response, and makes nothing of it."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


REQUEST = http.Request.make("GET", "https://api.example/")
ONE_OF_MANY = b"HTTP/1.1 204 No Content\r\n\r\n"
THE_LAST = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


def serve(one: UpstreamConnection, response: bytes = ONE_OF_MANY) -> UpstreamConnection:
    """Have a connection serve a request to its end."""
    one.ask(cast(Any, Receiver()), REQUEST, b"", is_whole=True, trailers=(), te=False)
    one.taken(memoryview(response))
    return one


def is_open(upstream: UpstreamConnection) -> bool:
    return not cast(Any, upstream.transport).closing and not upstream.is_closed


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.counts: list[str] = []
        self.sockets: list[Socket] = []
        self.pool = Pool(cast(asyncio.AbstractEventLoop, self.clock), self.counts.append)

    def connection(self, key: object = "key", response: bytes = ONE_OF_MANY) -> UpstreamConnection:
        """Return a connection that has just served a request to its end."""
        transport = Socket()
        self.sockets.append(transport)
        record, timers = Upstream(Policy(), None), cast(Timers, self.clock)
        made = UpstreamConnection(Server(address=("api.example", 443)), record, transport.ours, timers)
        made.key, made.home = key, self.pool
        made.connection_made(cast(asyncio.BaseTransport, transport))
        made.opened = 1000.0
        return serve(made, response)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for each in world.sockets:  # there are hundreds in some tests, and tests of another module may use select()
        each.close()


class TestAdopting:
    def test_an_empty_pool_has_none(self, world: World) -> None:
        assert world.pool.take("key") is None
        assert world.counts == []
        world.pool.opens()
        assert world.counts == ["miss"]

    def test_what_was_given_is_taken_once(self, world: World) -> None:
        one = world.connection()
        world.pool.give(one)
        assert world.pool.take("key") is one
        assert world.pool.take("key") is None
        assert world.counts == ["hit"]
        assert is_open(one)

    @pytest.mark.parametrize(
        "other",
        [
            ("b.example", 443, b"https", "rule", 1),
            ("a.example", 444, b"https", "rule", 1),
            ("a.example", 443, b"http", "rule", 1),
            ("a.example", 443, b"https", "other rule", 1),
            ("a.example", 443, b"https", None, 1),
            ("a.example", 443, b"https", "rule", 2),
        ],
    )
    def test_every_part_of_the_key_must_fit(self, world: World, other: object) -> None:
        own = ("a.example", 443, b"https", "rule", 1)
        one = world.connection(own)
        world.pool.give(one)
        assert world.pool.take(other) is None
        assert world.pool.take(own) is one

    def test_the_newest_is_taken_first(self, world: World) -> None:
        old, new = world.connection(), world.connection()
        world.pool.give(old)
        world.clock.advance(1)
        world.pool.give(new)
        assert [world.pool.take("key"), world.pool.take("key")] == [new, old]

    def test_an_idle_connection_reads_so_that_its_end_is_noticed(self, world: World) -> None:
        one = world.connection()
        one.hold("app", True)
        assert cast(Any, one.transport).paused
        world.pool.give(one)
        assert cast(Any, one.transport).paused is False
        assert one.receiver is None


class TestWhatIsNotKept:
    def test_one_that_cannot_be_reused_is_closed(self, world: World) -> None:
        one = world.connection(response=THE_LAST)
        world.pool.give(one)
        assert not is_open(one)
        assert world.pool.take("key") is None

    def test_one_that_still_has_a_request_in_its_buffer_is_closed(self, world: World) -> None:
        """Its upstream has answered early, and may never read on: the next request would wait behind that one."""
        one, other = world.connection(), world.connection()
        for each in (one, other):
            each.pause_writing()
        other.resume_writing()
        world.pool.give(one)
        world.pool.give(other)
        assert not is_open(one)
        assert world.pool.take("key") is other

    def test_one_that_died_meanwhile_is_not_adopted_but_the_one_below_it_is(self, world: World) -> None:
        alive, dead = world.connection(), world.connection()
        world.pool.give(alive)
        world.pool.give(dead)
        cast(Any, dead.transport).closing = True
        assert world.pool.take("key") is alive
        assert world.counts == ["evicted", "hit"]

    def test_one_with_something_unread_in_its_socket_is_not_adopted(self, world: World) -> None:
        spoken_to, quiet = world.connection(), world.connection()
        world.pool.give(quiet)
        world.pool.give(spoken_to)
        cast(Any, spoken_to.transport).theirs.send(b"H")
        assert world.pool.take("key") is quiet
        assert not is_open(spoken_to)

    def test_one_that_speaks_while_idle_is_closed_and_forgotten(self, world: World) -> None:
        one = world.connection()
        world.pool.give(one)
        one.taken(memoryview(b"HTTP/1.1 408 Request Timeout\r\n\r\n"))
        assert not is_open(one)
        assert world.counts == ["evicted"]
        assert world.pool.take("key") is None
        assert world.counts == ["evicted"]

    @pytest.mark.parametrize("is_alone", [True, False])
    def test_its_end_is_told_twice_and_counts_once(self, world: World, is_alone: bool) -> None:
        """By what it said, and by its socket, which was closed for that."""
        one, other = world.connection(), world.connection()
        world.pool.give(one)
        if not is_alone:
            world.pool.give(other)
        one.taken(memoryview(b"?"))
        one.connection_lost(None)
        assert world.counts == ["evicted"]
        assert world.pool.take("key") is (None if is_alone else other)

    @pytest.mark.parametrize("end", ["eof_received", "connection_lost"])
    def test_one_that_ends_while_idle_is_forgotten(self, world: World, end: str) -> None:
        one, other = world.connection(), world.connection()
        world.pool.give(one)
        world.pool.give(other)
        one.eof_received() if end == "eof_received" else one.connection_lost(None)
        assert world.pool.take("key") is other
        assert world.pool.take("key") is None

    def test_one_that_was_adopted_no_longer_tells_the_pool_of_its_end(self, world: World) -> None:
        one, other = world.connection(), world.connection()
        world.pool.give(one)
        assert world.pool.take("key") is one
        world.pool.give(other)
        one.connection_lost(None)
        assert world.pool.take("key") is other


class TestTime:
    def test_one_that_idled_too_long_is_not_adopted(self, world: World) -> None:
        one = world.connection()
        world.pool.give(one)
        world.clock.now += POOL_IDLE_SECONDS  # before any timer could do it
        assert world.pool.take("key") is None
        assert not is_open(one)
        assert world.counts == ["evicted"]

    def test_one_moment_before_it_is(self, world: World) -> None:
        one = world.connection()
        world.pool.give(one)
        world.clock.now += POOL_IDLE_SECONDS - 0.001
        assert world.pool.take("key") is one

    def test_one_that_is_in_use_all_the_time_is_still_parted_with_so_that_its_pins_are_looked_at_again(
        self, world: World
    ) -> None:
        one = world.connection()
        for _ in range(int(POOL_AGE_SECONDS / 30) - 1):
            world.pool.give(one)
            world.clock.now += 30
            assert world.pool.take("key") is one
            serve(one)
        world.pool.give(one)
        world.clock.now += 30
        assert world.pool.take("key") is None
        assert not is_open(one)

    def test_nothing_that_nobody_takes_stays(self, world: World) -> None:
        first, second = world.connection("a"), world.connection("b")
        world.pool.give(first)
        world.clock.advance(POOL_IDLE_SECONDS / 2)
        world.pool.give(second)
        world.clock.advance(POOL_IDLE_SECONDS / 2)
        assert not is_open(first)
        assert is_open(second)
        for _ in range(8):
            world.clock.advance(POOL_IDLE_SECONDS / 4)
        assert not is_open(second)
        assert world.clock.timers == []  # an empty pool wakes nobody
        assert world.counts == ["evicted", "evicted"]

    def test_a_pool_that_was_empty_watches_again(self, world: World) -> None:
        world.pool.give(world.connection())
        world.clock.advance(POOL_IDLE_SECONDS)
        one = world.connection()
        world.pool.give(one)
        world.clock.advance(POOL_IDLE_SECONDS)
        assert not is_open(one)


class TestLimits:
    def test_each_key_has_its_limit(self, world: World) -> None:
        kept = [world.connection() for _ in range(MAX_IDLE_PER_KEY)]
        for one in kept:
            world.pool.give(one)
        more, elsewhere = world.connection(), world.connection("another")
        world.pool.give(more)
        world.pool.give(elsewhere)
        assert all(is_open(one) for one in kept)
        assert not is_open(more)
        assert is_open(elsewhere)

    def test_all_keys_together_have_theirs(self, world: World) -> None:
        kept = [world.connection(number) for number in range(MAX_IDLE)]
        for one in kept:
            world.pool.give(one)
        more = world.connection("more")
        world.pool.give(more)
        assert not is_open(more)
        assert world.pool.take(0) is kept[0]
        once_again = world.connection("more")
        world.pool.give(once_again)
        assert is_open(once_again)

    @pytest.mark.parametrize("leave", ["taken", "ended", "expired", "not kept", "closed"])
    def test_a_key_without_connections_is_forgotten(self, world: World, leave: str) -> None:
        """It holds a policy: what one had opened must not keep it alive."""
        one = world.connection(response=THE_LAST if leave == "not kept" else ONE_OF_MANY)
        world.pool.give(one)
        if leave == "taken":
            world.pool.take("key")
        elif leave == "ended":
            one.connection_lost(None)
        elif leave == "expired":
            world.clock.advance(POOL_IDLE_SECONDS)
        elif leave == "closed":
            world.pool.close()
        assert world.pool._idle == {}

    def test_one_that_is_not_kept_changes_nothing_for_others(self, world: World) -> None:
        kept, other = world.connection(), world.connection(response=THE_LAST)
        world.pool.give(kept)
        world.pool.give(other)
        assert world.pool.take("key") is kept

    @pytest.mark.parametrize("leave", ["taken", "ended", "expired"])
    def test_whatever_leaves_makes_room(self, world: World, leave: str) -> None:
        kept = [world.connection(number) for number in range(MAX_IDLE)]
        for one in kept:
            world.pool.give(one)
        if leave == "taken":
            world.pool.take(0)
        elif leave == "ended":
            kept[0].connection_lost(None)
        else:
            world.clock.advance(POOL_IDLE_SECONDS)
        one = world.connection("more")
        world.pool.give(one)
        assert is_open(one)


def test_closing_it_closes_all_and_stops_its_timer(world: World) -> None:
    kept = [world.connection(), world.connection(), world.connection("another")]
    for one in kept:
        world.pool.give(one)
    (timer,) = world.clock.timers  # one for all
    world.pool.close()
    assert timer.is_cancelled
    assert not any(is_open(one) for one in kept)
    assert world.pool.take("key") is None
    world.clock.advance(POOL_IDLE_SECONDS)
    assert world.counts == []


def test_an_empty_pool_can_be_closed(world: World) -> None:
    world.pool.close()
    assert world.pool.take("key") is None


class Shared:
    """Stands for a connection of HTTP/2."""

    def __init__(self, clock: Clock, key: object = "key") -> None:
        self.carrier = Carrier(key, clock.time())
        self.has_room = True
        self.is_idle = False
        self.idle_since = clock.time()
        self.has_left = False

    def open(self) -> Shared:
        return self

    def leave(self) -> None:
        self.has_left = True


class Carrier:
    def __init__(self, key: object, opened: float) -> None:
        self.key = key
        self.opened = opened


class TestShared:
    """Connections of HTTP/2."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def pool(self, clock: Clock) -> Pool:
        return Pool(cast(Any, clock), lambda _: None)

    def share(self, pool: Pool, clock: Clock, key: object = "key") -> Any:
        """Put a `Shared` into the pool, where the pool's types want a real connection."""
        shared: Any = Shared(clock, key)
        pool.share(key, shared)
        return shared

    @pytest.mark.parametrize("version", [Version.EITHER, Version.HTTP2])
    def test_one_is_for_all_who_want_the_very_same(self, pool: Pool, clock: Clock, version: Version) -> None:
        shared = self.share(pool, clock)
        assert pool.take("key", version) is shared
        assert pool.take("key", version) is shared
        assert pool.take("other", version) is None

    def test_who_wants_http_1_is_not_given_it(self, pool: Pool, clock: Clock) -> None:
        self.share(pool, clock)
        assert pool.take("key", Version.HTTP1) is None

    def test_one_without_room_is_passed_over(self, pool: Pool, clock: Clock) -> None:
        full, other = self.share(pool, clock), self.share(pool, clock)
        full.has_room = False
        assert pool.take("key", Version.EITHER) is other

    def test_one_that_is_old_is_given_to_nobody(self, pool: Pool, clock: Clock) -> None:
        shared = self.share(pool, clock)
        clock.now += POOL_AGE_SECONDS - 1
        assert pool.take("key", Version.EITHER) is shared
        clock.now += 1
        assert pool.take("key", Version.EITHER) is None

    def test_one_that_is_old_is_left_though_it_is_busy(self, pool: Pool, clock: Clock) -> None:
        shared = self.share(pool, clock)
        while clock.now < shared.carrier.opened + POOL_AGE_SECONDS - 20:
            clock.advance(15)
        assert not shared.has_left
        for _ in range(3):
            clock.advance(15)
        assert shared.has_left

    def test_one_that_idles_is_left(self, pool: Pool, clock: Clock) -> None:
        shared = self.share(pool, clock)
        clock.advance(POOL_IDLE_SECONDS)
        assert not shared.has_left  # it is busy
        shared.is_idle, shared.idle_since = True, clock.now
        clock.advance(POOL_IDLE_SECONDS / 4)
        assert not shared.has_left
        for _ in range(4):
            clock.advance(POOL_IDLE_SECONDS / 4)
        assert shared.has_left
        assert pool.take("key", Version.EITHER) is None

    def test_with_the_policy_all_are_left_and_none_is_given_again(self, pool: Pool, clock: Clock) -> None:
        shared = [self.share(pool, clock, key) for key in ("one", "two", "two")]
        pool.close()
        assert all(each.has_left for each in shared)
        assert pool.take("two", Version.EITHER) is None

    def test_who_speaks_only_http_1_is_remembered_for_a_while(self, pool: Pool, clock: Clock) -> None:
        pool.only_http1("key")
        shared = self.share(pool, clock)
        assert pool.take("key", Version.HTTP2) is None
        clock.now += POOL_AGE_SECONDS
        shared.carrier.opened = clock.now
        assert pool.take("key", Version.HTTP2) is shared

    def test_who_likes_http_1_better_may_speak_http_2_to_who_asks_for_it_first(self, pool: Pool) -> None:
        pool.only_http1("key", Version.EITHER)
        assert pool.speaks_only_http1("key", Version.EITHER)
        assert not pool.speaks_only_http1("key", Version.ONLY_HTTP2)

    def test_only_so_many_are_remembered(self, pool: Pool) -> None:
        for number in range(MAX_KNOWN + 1):
            pool.only_http1(number)
        assert not pool.speaks_only_http1(0)
        assert pool.speaks_only_http1(1)
        assert pool.speaks_only_http1(MAX_KNOWN)
