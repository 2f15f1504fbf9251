"""A request's head, as an upstream of HTTP/2 is sent it; where there is room for another; a connection's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import hpack
import pytest
from mitmproxy import http

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.engine.flows import new_request
from proxy.engine.http2 import FRAMES_A_TURN
from proxy.engine.http2state import MAX_STREAMS
from proxy.engine.messages import headers_of
from proxy.engine.transitions import IllegalTransition
from proxy.engine.upstreams.http2 import UpstreamHttp2, _fields
from proxy.engine.upstreams.state import SHARED_AFTER, Sharing, SharingEvent


def request(*fields: tuple[bytes, bytes]) -> http.Request:
    return new_request(
        "a.example",
        443,
        b"GET",
        scheme=b"https",
        authority=b"",
        path=b"/p?q",
        version=b"HTTP/2.0",
        headers=headers_of(((b"Host", b"a.example"), *fields)),
    )


def test_the_host_is_the_authority_and_names_are_lower_case() -> None:
    assert _fields(request((b"X-Note", b"A"), (b"x-note", b"b")), te=False) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"a.example"),
        (b":path", b"/p?q"),
        (b"x-note", b"A"),
        (b"x-note", b"b"),
    ]


@pytest.mark.parametrize(
    "name", [b"Transfer-Encoding", b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Upgrade", b"TE"]
)
def test_what_is_about_one_connection_stays_here(name: bytes) -> None:
    assert _fields(request((name, b"trailers"), (b"a", b"1")), te=False)[4:] == [(b"a", b"1")]


def test_that_trailers_are_taken_is_said_where_the_app_has() -> None:
    assert _fields(request(), te=True)[4:] == [(b"te", b"trailers")]


@pytest.mark.parametrize("name", [b"Authorization", b"cookie"])
def test_what_is_secret_is_kept_in_no_table(name: bytes) -> None:
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    fields = _fields(request((name, b"secret"), (b"a", b"1")), te=False)
    found = {each[0]: each.indexable for each in decoder.decode(encoder.encode(fields), raw=True)}
    assert (found[name.lower()], found[b"a"]) == (False, True)


class Carrier:
    """What carries a connection, without a socket; it may have ended while something waits for its turn."""

    is_congested = is_closed = False
    key = server = record = None

    def __init__(self) -> None:
        self.end_waits = False
        self.was_paused = False

    def take_early(self) -> bytes:
        return b""

    def carry(self, receiver: object) -> None:
        pass

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        step(*arguments)

    def hold(self, why: str, is_held: bool) -> None:
        self.was_paused = self.was_paused or is_held

    def send(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.mark.parametrize("is_in_order", [True, False])
def test_the_end_is_told_once_all_is_read(is_in_order: bool) -> None:
    async def run() -> None:
        carrier: Any = Carrier()
        engine: Any = SimpleNamespace(
            loop=asyncio.get_running_loop(), pool=SimpleNamespace(forget_shared=lambda _: None)
        )
        connection = UpstreamHttp2(engine, carrier)
        connection.switched(SETTINGS * (2 * FRAMES_A_TURN + 1))
        assert carrier.was_paused
        if is_in_order:
            connection.switched_end()
        else:
            carrier.end_waits = True  # which the carrier notes by itself where its socket breaks
        assert not carrier.is_closed
        assert connection.has_room is not is_in_order
        for _ in range(4):
            await asyncio.sleep(0)
        assert carrier.is_closed
        assert not connection.has_room

    asyncio.run(run())


class TestRoom:
    """Whether another stream may be begun on a connection."""

    @staticmethod
    def connection(*, streams: int = 0, allowed: int = 2**31, **other: bool) -> UpstreamHttp2:
        made = UpstreamHttp2.__new__(UpstreamHttp2)
        made.is_over = other.get("is_over", False)
        made.sharing = Sharing.LEAVING if other.get("is_leaving") else Sharing.OPEN
        made.carrier = cast(Any, SimpleNamespace(is_closed=other.get("is_closed", False)))
        made.state = cast(Any, SimpleNamespace(remote_settings=SimpleNamespace(max_concurrent_streams=allowed)))
        made.streams = cast(Any, dict.fromkeys(range(streams)))
        return made

    def test_there_is_up_to_our_limit_and_the_upstreams(self) -> None:
        assert self.connection(streams=MAX_STREAMS - 1).has_room
        assert not self.connection(streams=MAX_STREAMS).has_room
        assert self.connection(streams=4, allowed=5).has_room
        assert not self.connection(streams=5, allowed=5).has_room

    @pytest.mark.parametrize("why", ["is_over", "is_leaving", "is_closed"])
    def test_there_is_none_where_it_ends(self, why: str) -> None:
        assert not self.connection(**{why: True}).has_room


@pytest.mark.parametrize("is_given_up", [False, True])
def test_where_there_is_no_room_who_still_waits_is_told_a_turn_later(is_given_up: bool) -> None:
    told: list[tuple[Reason, bool, bool]] = []

    class Receiver:
        def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
            told.append((denied.reason, began, is_untouched))

        def flush(self) -> None:
            pass

    async def run() -> None:
        engine: Any = SimpleNamespace(
            loop=asyncio.get_running_loop(), pool=SimpleNamespace(forget_shared=lambda _: None)
        )
        connection = UpstreamHttp2(engine, cast(Any, Carrier()))
        connection.streams.update(dict.fromkeys(range(MAX_STREAMS), cast(Any, None)))
        stream = connection.open()
        stream.ask(cast(Any, Receiver()), request(), b"", is_whole=True, trailers=(), te=False)
        assert told == []
        if is_given_up:
            stream.close()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert told == ([] if is_given_up else [(Reason.UPSTREAM_FAILED, False, True)])


class TestSharing:
    """Which streams a connection carries, state by state."""

    @pytest.mark.parametrize("before", Sharing)
    def test_each_step_leads_on_as_it_is_written_here_and_any_other_raises(self, before: Sharing) -> None:
        assert SHARED_AFTER[SharingEvent.LEAVE][before] is (Sharing.LEAVING if before is Sharing.OPEN else before)
        assert SHARED_AFTER[SharingEvent.END][before] is Sharing.ENDED
        if before is Sharing.OPEN:
            assert SHARED_AFTER[SharingEvent.BEGIN][before] is Sharing.OPEN
        else:
            with pytest.raises(IllegalTransition, match=f"^BEGIN in {before.name}$"):
                SHARED_AFTER[SharingEvent.BEGIN][before]

    def test_a_stream_that_may_not_be_begun_is_not_sent(self) -> None:
        """As if it were asked for without a look whether there is room."""
        made = TestRoom.connection(is_leaving=True)
        with pytest.raises(IllegalTransition):
            made.begin(cast(Any, SimpleNamespace(number=0)))
        assert made.streams == {}
