"""A connected socket in the event loop, as one of asyncio's transports. `accepting`, `upstreams.handshake` and
`upstreams.route` make one for each connection.

It does what asyncio's own transport does for TCP, with these differences:

- It begins at once. asyncio's needs a task, a future and four turns of the loop for each connection that is accepted: a
  tenth of the processor time of a connection with a single request.
- What is read goes to the protocol directly from the buffer that all sockets share (`sockets`).

Rules of this module:

- `connection_lost` is called once, is the last call, and never within another one: at the end of the turn if what was
  read has ended the connection, else in the next turn. So an app that leaves has left before another one is accepted.
- A protocol that raises ends its connection, and no other one.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from typing import Any

from proxy.engine.sockets import BUFFER, Reading

_PAUSES_ABOVE, _RESUMES_AT = 64 * 1024, 16 * 1024  # bytes that wait to be sent
_PIECES_AT_ONCE = 1024  # Linux takes no more of them in one call
_NOT_NOW = (BlockingIOError, InterruptedError)
_NOBODY = Reading()


class SocketTransport(asyncio.Transport):
    """A connected socket, which it owns. Without slots of its own, the interpreter would look up each attribute in a
    dictionary: those of a class whose base has slots are not found faster when they are read again and again.
    """

    __slots__ = (
        "_error",
        "_is_closing",
        "_is_congested",
        "_is_handling",
        "_is_over",
        "_is_paused",
        "_loop",
        "_number",
        "_pauses_above",
        "_peername",
        "_protocol",
        "_resumes_at",
        "_says_eof",
        "_socket",
        "_unsent",
        "_unsent_bytes",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        protocol: Reading,
        peername: object = None,
    ) -> None:
        """Start: `connection_made` is called before this returns.

        Args:
            loop: the event loop.
            connection: the socket, which does not block.
            protocol: gets what is read.
            peername: the address of the other end, if it is known; a connection that has ended already has none.
        """
        self._loop = loop
        self._socket = connection
        self._number = connection.fileno()
        self._protocol = protocol
        self._peername = peername
        self._unsent: deque[bytes | bytearray | memoryview] = deque()
        self._unsent_bytes = 0
        self._pauses_above, self._resumes_at = _PAUSES_ABOVE, _RESUMES_AT
        self._is_congested = False
        self._is_paused = False
        self._says_eof = False
        self._is_closing = False
        self._is_over = False  # `connection_lost` was called, or will be
        self._is_handling = False  # whether the protocol handles what was read
        self._error: Exception | None = None
        protocol.connection_made(self)
        if self.is_reading():
            loop.add_reader(self._number, self._read)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket, or the address of one of its ends: `socket`, `peername`, `sockname`."""
        if name == "socket":
            return self._socket
        try:
            if name == "sockname":
                return self._socket.getsockname()
            if name == "peername":
                return self._peername or self._socket.getpeername()
        except OSError:  # it has ended
            pass
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what is read from now on to another protocol."""
        assert isinstance(protocol, Reading)
        self._protocol = protocol

    def get_protocol(self) -> Reading:
        """Return the protocol that gets what is read."""
        return self._protocol

    # -- reading

    def is_reading(self) -> bool:
        """Whether anything is read now."""
        return not self._is_closing and not self._is_paused

    def pause_reading(self) -> None:
        """Read nothing, until `resume_reading`."""
        if self.is_reading():
            self._is_paused = True
            self._loop.remove_reader(self._number)

    def resume_reading(self) -> None:
        """Read on."""
        if self._is_paused and not self._is_closing:
            self._is_paused = False
            self._loop.add_reader(self._number, self._read)

    def _read(self) -> None:
        try:
            size = self._socket.recv_into(BUFFER)
        except _NOT_NOW:
            return
        except OSError as e:
            self._break(e)
            return
        self._is_handling = True
        try:
            if size:
                self._protocol.taken(BUFFER[:size])
            elif self._protocol.eof_received():
                self._loop.remove_reader(self._number)  # it would be told again and again
            else:
                self.close()
        except Exception as e:
            self._crash(e)
        self._is_handling = False
        if self._is_over:
            self._end()

    # -- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, or let them wait until the socket takes them."""
        if self._says_eof:
            raise RuntimeError("bytes after the end")
        if self._is_over or not data:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except _NOT_NOW:
                sent = 0
            except OSError as e:
                self._break(e)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._number, self._write_on)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > self._pauses_above and not self._is_congested:
            self._is_congested = True
            self._tell(self._protocol.pause_writing)

    def _write_on(self) -> None:
        try:
            sent = self._socket.sendmsg(itertools.islice(self._unsent, _PIECES_AT_ONCE))
            self._forget(sent)
            if not self._unsent:
                self._loop.remove_writer(self._number)
                if self._says_eof and not self._is_closing:
                    self._socket.shutdown(socket.SHUT_WR)
        except _NOT_NOW:
            return
        except OSError as e:
            self._break(e)
            return
        if self._is_congested and self._unsent_bytes <= self._resumes_at:
            self._is_congested = False
            self._tell(self._protocol.resume_writing)
        if self._is_closing and not self._unsent and not self._is_over:
            self._finish(None)

    def _forget(self, sent: int) -> None:
        self._unsent_bytes -= sent
        while sent:
            piece = self._unsent[0]
            if len(piece) > sent:
                self._unsent[0] = memoryview(piece)[sent:]
                return
            sent -= len(piece)
            self._unsent.popleft()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many bytes may wait before `pause_writing` is called, and how few before `resume_writing`."""
        self._pauses_above = _PAUSES_ABOVE if high is None else high
        self._resumes_at = self._pauses_above // 4 if low is None else low

    def can_write_eof(self) -> bool:
        """Return True: one side can be ended."""
        return True

    def write_eof(self) -> None:
        """End our side after what waits to be sent, and go on reading.

        Raises:
            OSError: the connection has ended.
        """
        if self._is_closing or self._says_eof:
            return
        self._says_eof = True
        if not self._unsent:
            self._socket.shutdown(socket.SHUT_WR)

    # -- the ends

    def is_closing(self) -> bool:
        """Whether it is closed, or will be once everything is sent."""
        return self._is_closing

    def close(self) -> None:
        """Close once everything is sent."""
        if not self._is_closing:
            self._is_closing = True
            self._loop.remove_reader(self._number)
            if not self._unsent:
                self._finish(None)

    def abort(self) -> None:
        """Close at once."""
        self._break(None)

    def _break(self, error: Exception | None) -> None:
        if self._is_over:
            return
        if self._unsent:
            self._unsent.clear()
            self._unsent_bytes = 0
            self._loop.remove_writer(self._number)
        if not self._is_closing:
            self._is_closing = True
            self._loop.remove_reader(self._number)
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        self._is_over, self._error = True, error
        if not self._is_handling:
            self._loop.call_soon(self._end)

    def _tell(self, step: Any) -> None:
        try:
            step()
        except Exception as e:
            self._crash(e)

    def _crash(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a protocol failed", "exception": error})
        self._break(error)

    def _end(self) -> None:
        try:
            self._protocol.connection_lost(self._error)
        finally:
            self._socket.close()
            self._protocol = _NOBODY  # it refers back to this; without that circle, both are freed at once
