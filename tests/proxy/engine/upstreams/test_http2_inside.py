"""An upstream's connection of HTTP/2 on which something goes wrong inside, or a frame comes too late.

The far end is the `h2` package; between the two there is no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset, WindowUpdated

from proxy.core.http.heads import ResponseHead
from proxy.engine.flows import new_request
from proxy.engine.http2state import MAX_STREAMS, SHARED_STREAM_WINDOW
from proxy.engine.messages import headers_of
from proxy.engine.upstreams.http2 import MAX_STREAM_ID, UpstreamHttp2, UpstreamHttp2Stream

FRAME = 16384  # bytes of a frame, as h2 has it unless it is told otherwise
OK = [(":status", "200"), ("content-length", "2")]


class Receiver:
    """Stands for a conversation; what it was told is in `told`."""

    def __init__(self, *, fails_at: str = "") -> None:
        self.told: list[object] = []
        self._fails_at = fails_at

    def _tell(self, what: str, *more: object) -> None:
        self.told.append((what, *more) if more else what)
        if what == self._fails_at:
            raise ValueError(what)

    def response_head(self, head: ResponseHead) -> None:
        self._tell("head", head.status)

    def response_data(self, data: bytes) -> None:
        self._tell("data", data)

    def response_end(self, _trailers: object = ()) -> None:
        self._tell("end")

    def response_failed(self, _denied: object, _began: bool, *, is_untouched: bool = False) -> None:
        self._tell("failed", is_untouched)

    def upstream_congested(self, is_congested: bool) -> None:
        self._tell("congested", is_congested)

    def crashed(self, error: Exception) -> None:
        self.told.append(("crashed", str(error)))

    def flush(self) -> None:
        pass


class Carrier:
    """Stands for the socket: what is sent on it goes to the far end."""

    key = server = record = None
    end_waits = is_closed = False

    def __init__(self, far: H2Connection, *, is_congested: bool = False) -> None:
        self.is_congested = is_congested
        self.has_finished = False
        self.events: list[Event] = []
        self._far = far

    def take_early(self) -> bytes:
        return b""

    def end_of_tls(self) -> None:
        """Return what alert has ended TLS: none."""

    def carry(self, receiver: object) -> None:
        pass

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        step(*arguments)

    def hold(self, why: str, is_held: bool) -> None:
        pass

    def unsent(self) -> int:
        return 0

    def send(self, data: bytes) -> None:
        self.events += self._far.receive_data(data)

    def finish(self) -> None:
        self.has_finished = True

    def close(self) -> None:
        self.is_closed = True


class World:
    """A connection, its far end, and what the pool was told."""

    def __init__(self, *, is_congested: bool = False) -> None:
        self.far = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.far.initiate_connection()
        self.forgotten: list[object] = []
        self.carrier = Carrier(self.far, is_congested=is_congested)
        pool = SimpleNamespace(forget_shared=self.forgotten.append)
        services: Any = SimpleNamespace(loop=asyncio.get_running_loop(), pool=pool)
        carrier: Any = self.carrier
        self.near = UpstreamHttp2(services, carrier)

    def ask(self, receiver: Receiver, *, is_whole: bool = True) -> UpstreamHttp2Stream:
        stream = self.near.open()
        head = (b"Host", b"a.example")
        request = new_request(
            "a.example",
            443,
            b"GET" if is_whole else b"POST",
            scheme=b"https",
            authority=b"",
            path=b"/",
            version=b"HTTP/2.0",
            headers=headers_of((head,)),
        )
        told: Any = receiver
        stream.ask(told, request, b"", is_whole=is_whole, trailers=(), te=False)
        self.near.flush_now()
        return stream

    async def say(self) -> None:
        """Let the near end read what the far end has to say, and answer."""
        self.near.switched(self.far.data_to_send())
        self.near.flush()
        await asyncio.sleep(0)


def run(check: Callable[[World], Awaitable[None]], *, is_congested: bool = False) -> World:
    """Run a check on a connection."""

    async def inside() -> World:
        world = World(is_congested=is_congested)
        await check(world)
        return world

    return asyncio.run(inside())


def test_what_fails_for_one_app_ends_its_stream_and_the_others_go_on() -> None:
    failing, other = Receiver(fails_at="head"), Receiver()

    async def check(world: World) -> None:
        first, second = world.ask(failing), world.ask(other)
        await world.say()
        for stream in (first, second):
            world.far.send_headers(stream.number, OK)
        world.far.send_data(second.number, b"ok", end_stream=True)
        await world.say()
        reset = [each.stream_id for each in world.carrier.events if isinstance(each, StreamReset)]
        assert reset == [first.number]

    world = run(check)
    assert failing.told == [("head", 200), ("crashed", "head")]
    assert other.told == [("head", 200), ("data", b"ok"), "end"]
    assert world.forgotten == []


def test_one_that_cannot_be_told_that_it_failed_leaves_the_others_their_turn() -> None:
    failing, other = Receiver(fails_at="failed"), Receiver()

    async def check(world: World) -> None:
        world.ask(failing)
        world.ask(other)
        world.near.switched_end()

    world = run(check)
    assert failing.told == [("failed", False), ("crashed", "failed")]
    assert other.told == [("failed", False)]
    assert world.carrier.is_closed


def test_what_fails_for_the_connection_ends_all_that_is_under_way_and_nobody_is_given_it_again() -> None:
    receiver, gone = Receiver(), Receiver()

    async def check(world: World) -> None:
        world.ask(receiver)
        world.ask(gone).receiver = None
        world.near.crashed(ValueError("a fault"))
        world.near.switched(b"what comes now is not read")

    world = run(check)
    assert receiver.told == [("crashed", "a fault")]
    assert gone.told == []
    assert world.forgotten == [world.near]
    assert not world.near.has_room


def test_data_on_streams_that_were_given_up_opens_the_connections_window_again() -> None:
    """What comes before the upstream knows of a reset is read, and counts as read: other streams need the window."""
    receiver = Receiver()

    opened: list[int | None] = []

    async def check(world: World) -> None:
        await world.say()
        for _ in range(MAX_STREAMS // 2 + 1):  # h2 says so once half of the window is used
            stream = world.ask(receiver)
            await world.say()
            world.far.send_headers(stream.number, OK[:1])
            for _ in range(SHARED_STREAM_WINDOW // FRAME):
                world.far.send_data(stream.number, bytes(FRAME))
            late = world.far.data_to_send()
            stream.close()
            world.near.flush_now()
            world.carrier.events.clear()
            world.near.switched(late)
            world.near.flush_now()
            opened.extend(each.stream_id for each in world.carrier.events if isinstance(each, WindowUpdated))

    run(check)
    assert opened == [0]
    assert receiver.told == []


def test_an_upstream_that_answers_before_the_end_of_an_upload_may_end_it() -> None:
    """RFC 9113, section 8.1: RST_STREAM with NO_ERROR, once the response is complete. The app has it already."""
    receiver = Receiver()

    async def check(world: World) -> None:
        stream = world.ask(receiver, is_whole=False)
        await world.say()
        world.far.send_headers(stream.number, OK)
        world.far.send_data(stream.number, b"ok", end_stream=True)
        await world.say()
        stream.congested(True)  # which nobody wants to know any more
        world.far.reset_stream(stream.number, ErrorCodes.NO_ERROR)
        await world.say()
        stream.failed(None)  # type: ignore[arg-type]  # it is told to nobody

    run(check)
    assert receiver.told == [("head", 200), ("data", b"ok"), "end"]


def test_what_waits_for_the_socket_from_the_start_holds_an_upload_back() -> None:
    receiver = Receiver()

    async def check(world: World) -> None:
        stream = world.ask(receiver, is_whole=False)
        assert stream.is_congested
        world.near.upstream_congested(False)

    run(check, is_congested=True)
    assert receiver.told == [("congested", False)]


def test_the_last_number_of_a_stream_ends_the_use_of_a_connection() -> None:
    async def check(world: World) -> None:
        world.near.state.highest_outbound_stream_id = MAX_STREAM_ID
        assert world.near.has_room
        world.near.begin(world.near.open())
        assert not world.near.has_room

    world = run(check)
    assert len(world.near.streams) < MAX_STREAMS
