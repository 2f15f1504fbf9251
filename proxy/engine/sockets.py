"""Reading from sockets without a buffer for each time.

Rules of this module:

- One buffer serves all sockets of the process: what was read into it is copied out before anything else is read.
- A reader that overrides `taken` sees the buffer itself, and must be done with it when it returns.

asyncio asks for 256 KiB each time it reads, and gives back what is not needed. That is no small part of reading little,
and leaves holes in the heap that add up to tens of megabytes in a process that lives for long.
"""

from __future__ import annotations

import asyncio

_BUFFER = memoryview(bytearray(256 * 1024))


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
