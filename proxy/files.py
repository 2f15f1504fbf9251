"""Reading files that somebody else may have put there.

Rules of this module:

- Kind, mode and content come from one open file descriptor, so nothing can be swapped between check and use.
- Only regular files are read: a pipe or a device may have no end, or keep a process that serves waiting for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class NotRegularError(OSError):
    """It is a pipe, a device, a socket or a directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is no regular file, and pipes, devices and directories are not read", path)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file for reading; a symbolic link is followed.

    Returns:
        The file, and what the system says of it.

    Raises:
        OSError: it cannot be opened, or is no regular file (`NotRegularError`).
    """
    # O_NONBLOCK: opening a pipe without a writer would wait for ever. It means nothing for a regular file.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotRegularError(path)
    with open(descriptor, "rb") as file:
        yield file, status


def read_up_to(path: Path, limit: int) -> bytes:
    """Return the content of a regular file, or of a larger one its first `limit` + 1 bytes.

    Raises:
        OSError: it cannot be opened or read, or is no regular file (`NotRegularError`).
    """
    with opened(path) as (file, _):
        return file.read(limit + 1)
