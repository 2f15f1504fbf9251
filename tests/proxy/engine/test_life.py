"""The life of an open socket: when it reads, its timers, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import timelimits
from proxy.engine.life import Life
from proxy.engine.timers import GRAIN, Timers
from proxy.engine.transport import SocketTransport


class Transport:
    """Stands for a transport; what it was made to do is in `calls`."""

    def __init__(self, *, closing: bool = False) -> None:
        self.closing = closing
        self.calls: list[str] = []

    def is_closing(self) -> bool:
        return self.closing

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


NO_TIMERS = cast(Timers, SimpleNamespace(call_later=None))


def life(transport: Transport, timers: Timers = NO_TIMERS) -> Life:
    made = Life(timers)
    made.connection_made(cast(asyncio.Transport, transport))
    return made


class TestReading:
    def test_it_goes_on_only_once_every_reason_to_wait_has_ended(self) -> None:
        transport = Transport()
        made = life(transport)
        made.hold("dialling", True)
        made.hold("upstream", True)
        made.hold("dialling", True)
        assert transport.calls == ["pause_reading"]
        made.hold("dialling", False)
        assert transport.calls == ["pause_reading"]
        made.hold("upstream", False)
        made.hold("upstream", False)
        assert transport.calls == ["pause_reading", "resume_reading"]

    def test_a_socket_that_closes_is_left_alone(self) -> None:
        transport = Transport(closing=True)
        made = life(transport)
        made.hold("app", True)
        made.hold("app", False)
        assert transport.calls == []


class TestTimers:
    def test_a_step_replaces_an_earlier_one_of_its_name_alone(self) -> None:
        async def check() -> list[str]:
            made, found = life(Transport(), Timers(asyncio.get_running_loop())), list[str]()
            made._start_timer("one", 0.01, found.append, "early")
            made._start_timer("other", 0.01, found.append, "other")
            made._start_timer("one", 0.02, found.append, "late")
            await asyncio.sleep(0.02 + 2 * GRAIN)
            return found

        assert asyncio.run(check()) == ["other", "late"]

    def test_with_the_socket_all_of_them_end(self) -> None:
        async def check() -> list[str]:
            made, found = life(Transport(), Timers(asyncio.get_running_loop())), list[str]()
            made._start_timer("one", 0.01, found.append, "one")
            made._start_timer("other", 0.01, found.append, "other")
            made._stop_timer("one")
            made._stop_timer("none")
            made._stop_timers()
            await asyncio.sleep(0.01 + 2 * GRAIN)
            return found

        assert asyncio.run(check()) == []

    def test_the_time_limit_of_a_flush_is_not_made_longer_by_closing_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def check() -> list[str]:
            made, found = life(Transport(), Timers(asyncio.get_running_loop())), list[str]()
            made._limit_flush(lambda: found.append("first"))
            monkeypatch.setattr(timelimits, "FLUSH_SECONDS", 60.0)
            made._limit_flush(lambda: found.append("second"))
            await asyncio.sleep(0.01 + 2 * GRAIN)
            return found

        monkeypatch.setattr(timelimits, "FLUSH_SECONDS", 0.01)
        assert asyncio.run(check()) == ["first"]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[Life, socket.socket]]:
    """Make a connection over TCP: one that lives here, and the plain socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = asyncio.get_running_loop()
        ours = socket.create_connection(server.getsockname())
        ours.setblocking(False)
        theirs, _ = server.accept()
        with theirs:
            theirs.settimeout(5)
            made = Life(Timers(loop))
            SocketTransport(loop, ours, made)
            yield made, theirs
            made.transport.abort()
            await asyncio.sleep(0)


class TestEnds:
    def test_an_eof_is_sent_and_reading_goes_on(self) -> None:
        async def check() -> None:
            async with connected() as (made, theirs):
                assert made._end_writing()
                assert await asyncio.to_thread(theirs.recv, 1) == b""
                assert made.transport.is_reading()

        asyncio.run(check())

    def test_none_is_sent_where_the_peer_is_gone(self) -> None:
        async def check() -> None:
            async with connected() as (made, theirs):
                made._end_with_reset()
                made.transport.abort()
                with pytest.raises(ConnectionResetError):
                    await asyncio.to_thread(theirs.recv, 1)
                assert not made._end_writing()

        asyncio.run(check())

    def test_nor_where_the_system_refuses_it(self) -> None:
        class Gone(Transport):
            def write_eof(self) -> None:
                raise OSError

        assert not life(Gone())._end_writing()

    def test_without_being_asked_for_a_reset_an_abort_ends_in_order(self) -> None:
        async def check() -> None:
            async with connected() as (made, theirs):
                made.transport.abort()
                assert await asyncio.to_thread(theirs.recv, 1) == b""

        asyncio.run(check())


def test_it_is_of_no_use_to_end_with_a_reset_what_is_closed_already() -> None:
    transport: Any = Transport(closing=True)
    life(transport)._end_with_reset()
    assert transport.calls == []
