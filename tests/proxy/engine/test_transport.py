"""A connected socket in the event loop: reading, writing, back-pressure, and each way in which it can end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from proxy.engine.sockets import Reading
from proxy.engine.transport import SocketTransport

LARGE = 8 * 1024 * 1024  # more than both kernel buffers hold


class Protocol(Reading):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.got = b""
        self.stays_open = False
        self.fails_in = ""
        self.error: Exception | None = None
        self.transport: SocketTransport | None = None
        self.first: Callable[[SocketTransport], None] | None = None

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fails_in == call:
            raise RuntimeError(call)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SocketTransport)
        if self.first is not None:
            self.first(transport)

    def taken(self, view: memoryview) -> None:
        self.got += bytes(view)
        self._note("taken")

    def eof_received(self) -> bool:
        self._note("eof")
        return self.stays_open

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")


@contextlib.asynccontextmanager
async def connected(
    protocol: Protocol | None = None,
) -> AsyncIterator[tuple[SocketTransport, Protocol, socket.socket]]:
    """Make a connection over TCP: one that lives here, and the plain socket at its other end."""
    loop = asyncio.get_running_loop()
    protocol = protocol or Protocol()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs:
        transport = SocketTransport(loop, ours, protocol)
        yield transport, protocol, theirs
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ours.fileno() == -1
        assert protocol.calls.count("lost") == 1
        assert protocol.calls[-1] == "lost"


type Check = Callable[[SocketTransport, Protocol, socket.socket], Awaitable[None]]


def run(check: Check, protocol: Protocol | None = None) -> Protocol:
    """Do something with a connection; return its protocol."""

    async def main() -> Protocol:
        async with connected(protocol) as (transport, made, theirs):
            await check(transport, made, theirs)
        return made

    return asyncio.run(main())


async def until(is_true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.001)


async def read(theirs: socket.socket, count: int) -> bytes:
    """Read so many bytes, or fewer before the end."""
    loop, data = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(10):
        while len(data) < count and (piece := await loop.sock_recv(theirs, 1 << 20)):
            data += piece
    return bytes(data)


def reset(theirs: socket.socket) -> None:
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()


class TestReading:
    def test_what_comes_is_given_to_the_protocol(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            theirs.send(b"one")
            await until(lambda: protocol.got == b"one")
            theirs.send(b"two")
            await until(lambda: protocol.got == b"onetwo")

        run(check)

    def test_nothing_is_read_during_a_pause(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            theirs.send(b"later")
            await asyncio.sleep(0.05)
            assert protocol.got == b""
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            await until(lambda: protocol.got == b"later")

        run(check)

    def test_a_pause_may_begin_before_anything_is_read(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            theirs.send(b"later")
            await asyncio.sleep(0.05)
            assert protocol.got == b""
            transport.resume_reading()
            await until(lambda: protocol.got == b"later")

        protocol = Protocol()
        protocol.first = SocketTransport.pause_reading
        run(check, protocol)

    def test_it_may_end_before_anything_is_read(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            assert await read(theirs, 1) == b""
            assert not transport.is_reading()
            transport.pause_reading()
            transport.resume_reading()

        protocol = Protocol()
        protocol.first = SocketTransport.close
        assert run(check, protocol).calls == ["lost"]

    def test_another_protocol_may_go_on_with_it(self) -> None:
        other = Protocol()

        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            theirs.send(b"one")
            await until(lambda: protocol.got == b"one")
            transport.set_protocol(other)
            assert transport.get_protocol() is other
            theirs.send(b"two")
            await until(lambda: other.got == b"two")
            assert protocol.got == b"one"
            transport.set_protocol(protocol)

        run(check)

    def test_at_the_end_it_closes_unless_the_protocol_goes_on(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            theirs.shutdown(socket.SHUT_WR)
            await until(lambda: "lost" in protocol.calls)
            assert await read(theirs, 1) == b""

        assert run(check).calls == ["eof", "lost"]

    def test_a_protocol_that_goes_on_can_still_write(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            protocol.stays_open = True
            theirs.shutdown(socket.SHUT_WR)
            await until(lambda: "eof" in protocol.calls)
            await asyncio.sleep(0.02)
            assert protocol.calls == ["eof"]  # it is told once
            transport.write(b"still")
            assert await read(theirs, 5) == b"still"

        run(check)

    def test_a_reset_is_told_with_its_error(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            reset(theirs)
            await until(lambda: "lost" in protocol.calls)

        assert isinstance(run(check).error, ConnectionResetError)

    def test_nothing_to_read_is_no_end(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport._read()
            assert not transport.is_closing()

        run(check)

    @pytest.mark.parametrize("step", ["taken", "eof"])
    def test_a_protocol_that_raises_ends_its_connection(self, step: str) -> None:
        reported: list[object] = []

        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
            protocol.fails_in = step
            theirs.send(b"x") if step == "taken" else theirs.shutdown(socket.SHUT_WR)
            await until(lambda: "lost" in protocol.calls)

        protocol = run(check)
        assert reported == [protocol.error]
        assert str(protocol.error) == step


class TestWriting:
    def test_small_pieces_are_sent_at_once(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.write(b"")
            transport.write(b"small")
            assert transport.get_write_buffer_size() == 0
            assert await read(theirs, 5) == b"small"

        assert run(check).calls == ["lost"]

    def test_a_large_one_waits_and_everything_arrives_in_order(self) -> None:
        data = bytes(range(256)) * (LARGE // 256)

        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.write(data)
            assert protocol.calls == ["pause"]
            waiting = transport.get_write_buffer_size()
            assert 0 < waiting <= LARGE
            for _ in range(2000):  # more pieces than one call of the system takes
                transport.write(b"more")
            assert transport.get_write_buffer_size() == waiting + 8000
            assert await read(theirs, LARGE + 8000) == data + b"more" * 2000
            await until(lambda: transport.get_write_buffer_size() == 0)
            assert protocol.calls == ["pause", "resume"]  # each once

        run(check)

    def test_how_much_may_wait_can_be_set(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.set_write_buffer_limits(high=LARGE, low=0)
            transport.write(bytes(LARGE))
            assert protocol.calls == []
            transport.set_write_buffer_limits()
            transport.write(b"x")
            assert protocol.calls == ["pause"]

        run(check)

    def test_the_end_follows_everything_and_reading_goes_on(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            assert transport.can_write_eof()
            transport.write(bytes(LARGE))
            transport.write_eof()
            transport.write_eof()
            assert len(await read(theirs, LARGE + 1)) == LARGE
            theirs.send(b"x")
            await until(lambda: protocol.got == b"x")
            with pytest.raises(RuntimeError):
                transport.write(b"more")

        run(check)

    def test_a_close_waits_for_what_is_to_be_sent(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.write(bytes(LARGE))
            transport.close()
            transport.close()
            transport.write_eof()
            assert transport.is_closing()
            assert "lost" not in protocol.calls
            assert len(await read(theirs, LARGE + 1)) == LARGE
            await until(lambda: "lost" in protocol.calls)
            transport.write(b"too late")

        assert run(check).error is None

    def test_an_abort_does_not(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.write(bytes(LARGE))
            transport.close()
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            assert len(await read(theirs, LARGE + 1)) < LARGE

        assert run(check).error is None

    @pytest.mark.parametrize("is_waiting", [False, True])
    def test_a_reset_is_told_with_its_error(self, is_waiting: bool) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.pause_reading()  # else reading would tell it
            if is_waiting:
                transport.write(bytes(LARGE))
            reset(theirs)
            if not is_waiting:
                transport.write(b"x")
            await until(lambda: "lost" in protocol.calls)

        assert isinstance(run(check).error, ConnectionError)

    @pytest.mark.parametrize("step", ["pause", "resume"])
    def test_a_protocol_that_raises_ends_its_connection(self, step: str) -> None:
        reported: list[object] = []

        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
            protocol.fails_in = step
            transport.write(bytes(LARGE))
            await read(theirs, LARGE)
            await until(lambda: "lost" in protocol.calls)

        protocol = run(check)
        assert reported == [protocol.error]
        assert str(protocol.error) == step

    def test_a_socket_that_takes_nothing_now_is_no_end(self) -> None:
        async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
            transport.write(bytes(LARGE))
            waiting = transport.get_write_buffer_size()
            transport._write_on()
            assert transport.get_write_buffer_size() == waiting
            transport.write(b"x")
            assert transport.get_write_buffer_size() == waiting + 1

        run(check)


def test_it_knows_both_ends() -> None:
    async def check(transport: SocketTransport, protocol: Protocol, theirs: socket.socket) -> None:
        assert transport.get_extra_info("peername") == theirs.getsockname()
        assert transport.get_extra_info("sockname") == theirs.getpeername()
        assert transport.get_extra_info("socket").fileno() > 0
        assert transport.get_extra_info("cipher", "none") == "none"
        transport.abort()
        await asyncio.sleep(0.01)
        assert transport.get_extra_info("peername") is None
        assert transport.get_extra_info("sockname", "gone") == "gone"

    run(check)
