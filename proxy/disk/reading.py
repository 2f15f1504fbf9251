"""Reads files that somebody else may have put there: only regular ones, and only up to a limit. The policy file's
reader, the engine (trusted roots) and the other modules of this folder call it.

Rules of this module:

- Kind, mode and content come from one open file descriptor, so nothing can be swapped between check and use.
- Only regular files are read: a pipe or a device may have no end, or block a serving process for ever.
- Whoever wants to see a file change later has the files noted that are read (`noting_files`). This is done here, where
  every file is read, and not by each reader: so none can be forgotten.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

MAX_ROOTS_BYTES = 16 * 1024 * 1024

# What tells two versions of a file apart; None if nothing can be found out about it, as where there is none.
type Version = tuple[int, ...] | None

_noted: ContextVar[dict[Path, Version] | None] = ContextVar("_noted", default=None)


@contextlib.contextmanager
def noting_files(noted: dict[Path, Version]) -> Iterator[None]:
    """Note each file that is read meanwhile, also one that cannot be read, with the version that was met.

    Args:
        noted: where they are noted.
    """
    token = _noted.set(noted)
    try:
        yield
    finally:
        _noted.reset(token)


def version_of(path: Path) -> Version:
    """Return the present version of what a name leads to; symbolic links are followed."""
    try:
        return _version(os.stat(path))
    except OSError:
        return None


def _version(status: os.stat_result) -> Version:
    # The inode changes if another file takes the name, the time of the last change even if its content's was set back.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _note(path: Path, version: Version) -> None:
    if (noted := _noted.get()) is not None:
        noted[path] = version


def list_folder(path: Path) -> list[str]:
    """Return the names in a folder; that it was looked at is noted like a file, since files may come and go.

    Raises:
        OSError: it cannot be read.
    """
    _note(path, version_of(path))
    return os.listdir(path)


class NotRegularError(OSError):
    """The file is a pipe, a device, a socket, a directory, or anything else that may block."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is no regular file; pipes, devices and directories are not taken", path)


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
    _note(path, version_of(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        _note(path, _version(status))
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(path)
        with open(descriptor, "rb", closefd=False) as file:
            content: bytes | None = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if content is None:  # some files of the kernel call themselves regular, and block all the same
        raise NotRegularError(path)
    return content, status
