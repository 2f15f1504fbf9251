"""Reads files that somebody else may have put there: only regular ones, and only up to a limit. The policy file's
reader, the engine (trusted roots) and the other modules of this folder call it.

Rules of this module:

- Kind, mode and content come from one open file descriptor, so nothing can be swapped between check and use.
- Only regular files are read: a pipe or a device may have no end, or block a serving process for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_ROOTS_BYTES = 16 * 1024 * 1024


class NotRegularError(OSError):
    """The file is a pipe, a device, a socket, a directory, or anything else that may block."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is no regular file, and pipes, devices and directories are not read", path)


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Read a regular file; a symbolic link is followed.

    Args:
        path: the file.
        limit: the greatest length in bytes.

    Returns:
        Its content, or the first `limit` + 1 bytes of a longer file; and its status from the system.

    Raises:
        OSError: it cannot be opened or read, or is no regular file (`NotRegularError`).
    """
    # O_NONBLOCK: opening a pipe without a writer would block for ever. For a regular file it has no effect.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(path)
        with open(descriptor, "rb", closefd=False) as file:
            content: bytes | None = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if content is None:  # some files of the kernel call themselves regular, and block all the same
        raise NotRegularError(path)
    return content, status
