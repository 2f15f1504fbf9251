"""Apps' connections are accepted: many in one turn, none without a descriptor, and a failure concerns one alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from proxy import timelimits
from proxy.engine.accepting import MOST_AT_ONCE, Door
from proxy.engine.sockets import Reading


class Listening(socket.socket):
    """A listening socket that can be made to fail."""

    number = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.number:
            raise OSError(self.number, "no")
        return super().accept()


class Protocol(Reading):
    def __init__(self, made: list[asyncio.BaseTransport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(transport)


@contextlib.asynccontextmanager
async def opened(
    make: Callable[[list[asyncio.BaseTransport]], Reading] = Protocol,
) -> AsyncIterator[tuple[Door, Listening, list[asyncio.BaseTransport], list[object]]]:
    """Open a door: it, its socket, what it accepts, and what it reports."""
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    made: list[asyncio.BaseTransport] = []
    with Listening(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        door = Door(loop, listening, lambda: make(made))
        door.open()
        yield door, listening, made, reported
        door.close()
        for each in made:
            each.abort()  # type: ignore[attr-defined]  # it is a SocketTransport
        await asyncio.sleep(0.01)


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.001)


def connect(listening: socket.socket, stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(listening.getsockname()))


def test_all_that_wait_are_accepted_with_their_addresses() -> None:
    async def check() -> None:
        async with opened() as (_, listening, made, reported):
            with contextlib.ExitStack() as stack:
                apps = [connect(listening, stack) for _ in range(MOST_AT_ONCE + 8)]
                await until(lambda: len(made) == len(apps))
                names = {app.getsockname() for app in apps}
                assert {each.get_extra_info("peername") for each in made} == names
        assert reported == []

    asyncio.run(check())


def test_one_turn_takes_no_more_than_the_most() -> None:
    async def check() -> None:
        async with opened() as (door, listening, made, _):
            with contextlib.ExitStack() as stack:
                for _ in range(MOST_AT_ONCE + 8):
                    connect(listening, stack)
                door._accept()
                assert len(made) == MOST_AT_ONCE

    asyncio.run(check())


def test_nobody_who_waits_is_no_failure() -> None:
    async def check() -> None:
        async with opened() as (door, _, made, reported):
            door._accept()
            assert (made, reported) == ([], [])

    asyncio.run(check())


def test_a_shortage_is_reported_and_it_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimits, "ACCEPT_AGAIN_SECONDS", 0.1)

    async def check() -> None:
        async with opened() as (_, listening, made, reported):
            listening.number = errno.EMFILE
            with contextlib.ExitStack() as stack:
                connect(listening, stack)
                await until(lambda: bool(reported))
                await asyncio.sleep(0.05)
                assert len(reported) == 1  # not again and again
                listening.number = 0
                await until(lambda: bool(made))

    asyncio.run(check())


def test_it_can_be_closed_during_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimits, "ACCEPT_AGAIN_SECONDS", 0.05)

    async def check() -> None:
        async with opened() as (door, listening, made, reported):
            listening.number = errno.EMFILE
            with contextlib.ExitStack() as stack:
                connect(listening, stack)
                await until(lambda: bool(reported))
                door.close()
                await asyncio.sleep(0.1)
                assert (len(reported), made) == (1, [])

    asyncio.run(check())


def test_another_failure_is_reported_and_the_next_is_accepted() -> None:
    async def check() -> None:
        async with opened() as (_, listening, made, reported):
            listening.number = errno.EPROTO
            with contextlib.ExitStack() as stack:
                connect(listening, stack)
                await until(lambda: bool(reported))
                listening.number = 0
                await until(lambda: bool(made))

    asyncio.run(check())


def test_a_connection_that_cannot_be_begun_is_closed_and_the_next_is_accepted() -> None:
    class Failing(Protocol):
        count = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            Failing.count += 1
            if Failing.count == 1:
                raise RuntimeError
            super().connection_made(transport)

    async def check() -> None:
        async with opened(Failing) as (_, listening, made, reported):
            with contextlib.ExitStack() as stack:
                first = connect(listening, stack)
                await until(lambda: bool(reported))
                assert await asyncio.to_thread(first.recv, 1) == b""
                connect(listening, stack)
                await until(lambda: len(made) == 1)
        assert [type(each) for each in reported] == [RuntimeError]

    asyncio.run(check())


def test_nobody_is_accepted_once_it_is_closed() -> None:
    async def check() -> None:
        async with opened() as (door, listening, made, _):
            address = listening.getsockname()
            door.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            assert made == []

    asyncio.run(check())
