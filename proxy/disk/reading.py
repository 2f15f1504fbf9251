"""Reading files that somebody else may have put there.

Rules of this module:

- Kind, mode and content come from one open file descriptor, so nothing can be swapped between check and use.
- Only regular files are read: a pipe or a device may have no end, or keep a process that serves waiting for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_ROOTS_BYTES = 16 * 1024 * 1024


class NotRegularError(OSError):
    """It is a pipe, a device, a socket or a directory, or something else that must be waited for."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is no regular file, and pipes, devices and directories are not read", path)


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Read a regular file; a symbolic link is followed.

    Args:
        path: the file.
        limit: how many bytes it may have.

    Returns:
        Its content, or of a larger one the first `limit` + 1 bytes; and what the system says of it.

    Raises:
        OSError: it cannot be opened or read, or is no regular file (`NotRegularError`).
    """
    # O_NONBLOCK: opening a pipe without a writer would wait for ever. It means nothing for a regular file.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(path)
        with open(descriptor, "rb", closefd=False) as file:
            content: bytes | None = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if content is None:  # the kernel has files that say they are regular, and must be waited for all the same
        raise NotRegularError(path)
    return content, status
