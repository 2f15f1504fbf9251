"""Sockets: how they are made and broken off, and reading from them without a buffer for each time.

Both sides read from their sockets in this way; `apps` and `upstreams` subclass `Reading`.

Rules of this module:

- One buffer serves all sockets of the process: what was read into it is copied out before anything else is read.
- A reader that overrides `taken` sees the buffer itself, and must be done with it when it returns.

asyncio asks for 256 KiB each time it reads, and gives back what is not needed. That is no small part of reading little,
and leaves holes in the heap that add up to tens of megabytes in a process that lives for long.
"""

from __future__ import annotations

import asyncio
import socket
import struct

RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all
_BUFFER = memoryview(bytearray(256 * 1024))


def tcp_socket(family: socket.AddressFamily) -> socket.socket:
    """Return a TCP socket that asyncio knows for one, and that it sends small pieces on without waiting for more.

    Without the protocol's number it does not know, and what follows a head in a write of its own may wait 40 ms.
    """
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)


class Reading(asyncio.BufferedProtocol):
    """A protocol that gets what is read as bytes of its own."""

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return where to read to."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.taken(_BUFFER[:nbytes])

    def taken(self, view: memoryview) -> None:
        """Take what was read, as it lies in the buffer."""
        self.data_received(bytes(view))

    def data_received(self, data: bytes) -> None:
        """Take bytes off the socket."""
        raise NotImplementedError
