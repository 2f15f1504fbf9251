"""Accepts apps' connections. `server` makes one `Door` for each listening socket.

Rules of this module:

- While only the last descriptors are free, new connections wait in the kernel (`descriptors`), and each second it is
  tried again.
- Of many that wait, only some are accepted in one turn: open connections are served in between.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable

from proxy import timelimits
from proxy.engine.descriptors import SHORTAGES
from proxy.engine.sockets import Reading
from proxy.engine.transport import SocketTransport

MOST_AT_ONCE = 32  # connections


class Door:
    """Accepts connections on one listening socket, which it owns."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listening: socket.socket, protocol: Callable[[], Reading]
    ) -> None:
        """Start without accepting.

        Args:
            loop: the event loop.
            listening: a bound socket that listens.
            protocol: makes the protocol of a new connection.
        """
        self._loop = loop
        self._listening = listening
        self._protocol = protocol
        self._pause: asyncio.TimerHandle | None = None
        # Whether another one waits is asked so: to fail in accepting takes several times as long.
        self._waiting = select.poll()
        self._waiting.register(listening.fileno(), select.POLLIN)
        listening.setblocking(False)

    def open(self) -> None:
        """Accept connections from now on."""
        self._pause = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more."""
        if self._listening.fileno() >= 0:
            self._stop()
            self._listening.close()

    def _stop(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                connection, peername = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process, or nobody, has it now
            except OSError as e:
                self._report(e)
                if e.errno in SHORTAGES:
                    self._stop()
                    self._pause = self._loop.call_later(timelimits.ACCEPT_AGAIN_SECONDS, self.open)
                return
            try:
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small writes are sent at once
                SocketTransport(self._loop, connection, self._protocol(), peername)
            except Exception as e:  # it concerns this connection alone
                connection.close()
                self._report(e)
            if not self._waiting.poll(0):
                return

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {"message": "no connection was accepted", "exception": error, "socket": self._listening}
        )
