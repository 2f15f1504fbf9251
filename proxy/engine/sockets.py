"""Makes sockets, and reads from sockets without a new buffer for each read. The connections of both sides
(`apps.socket`, `upstreams.connection`) subclass `Reading`, most of them by way of `life`.

Rules of this module:

- One buffer serves all sockets of the process: the bytes are copied out of it before anything else is read.
- A reader that overrides `taken` sees the buffer itself, and must not keep it after it returns.

asyncio would allocate 256 KiB for each read, and give back what is not needed. That costs time in each small read, and
leaves holes in the heap that add up to tens of megabytes in a long-lived process.
"""

from __future__ import annotations

import asyncio
import socket

BUFFER = memoryview(bytearray(256 * 1024))


def tcp_socket(family: socket.AddressFamily) -> socket.socket:
    """Return a TCP socket on which small writes are sent at once: bytes written right after a head could wait 40 ms."""
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Reading(asyncio.BaseProtocol):
    """A protocol that gets the bytes that were read, copied out of the shared buffer."""

    def taken(self, view: memoryview) -> None:
        """Handle bytes that were read, as they lie in the buffer."""
        self.data_received(bytes(view))

    def data_received(self, data: bytes) -> None:
        """Handle bytes that were read. A subclass has this, or `taken`, which then leaves nothing for it."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """Called when the other end has ended its side; return whether ours stays open."""
        return False
