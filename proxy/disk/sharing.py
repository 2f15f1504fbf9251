"""Tells that another sidecar already uses a data directory, so that two do not share a local CA in silence. `overcoat
serve` holds the directory as long as it lives.

Theory of operation. Every sidecar keeps a shared lock (flock) on one file of the directory; the kernel releases it
however the sidecar ends. One that does not mean to share must first get the lock alone, for a moment.

Rules of this module:

- Only `serve` asks. Commands, which read the CA and end, do not.
- The lock is the parent's: workers let go of it (`Hold.forget`), so it ends with the parent.
- Where nothing can be locked (a read-only directory, which is how a CA is handed to several; a file system without
  locks), the sidecar starts, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from proxy import timelimits

LOCK_FILE = "in-use.lock"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class InUse(Exception):
    """Another sidecar uses the directory. The message is one line, which says what would be right."""


class Hold:
    """That this process uses a data directory, until it ends.

    Attributes:
        is_shared_by_design: whether the directory is read-only, which is how one CA is handed to several.
        problem: why there is no lock; None if there is one.
    """

    def __init__(self, directory: Path, *, shares: bool) -> None:
        """Hold a directory; make it if there is none.

        Args:
            directory: the data directory.
            shares: whether other sidecars may use it, too.

        Raises:
            InUse: another sidecar does, and this one does not share.
        """
        self._descriptor = -1
        self.is_shared_by_design = False
        self.problem: str | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return  # `LocalCa.open` says what is wrong
        try:
            self._descriptor = os.open(directory / LOCK_FILE, flags, 0o600)
            self._lock(directory, shares=shares)
        except OSError as e:
            self.forget()
            self.is_shared_by_design = e.errno in _READ_ONLY
            self.problem = os.strerror(e.errno or 0).lower()

    def _lock(self, directory: Path, *, shares: bool) -> None:
        if not shares:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Not in one step: of two that start in the same moment, one may lose the lock to the other here.
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = _said(directory, _holders(self._descriptor))
                self.forget()
                raise InUse(said) from None
            return
        end = time.monotonic() + timelimits.SHARE_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # one that starts has it alone for a moment
                if time.monotonic() >= end:
                    raise
                time.sleep(timelimits.SHARE_LOOK_SECONDS)
            else:
                return

    def forget(self) -> None:
        """Close this process's descriptor. In a child, the parent's lock stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holders(descriptor: int) -> list[int]:
    """Return the process ids of those that have an open file locked, as far as the system tells; smallest first."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found: set[int] = set()
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as locks:  # Linux has it
        for line in locks:
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5] == place and words[4].isdigit():
                found.add(int(words[4]))
    return sorted(found - {0, os.getpid()})  # 0: of another container


def _said(directory: Path, pids: list[int]) -> str:
    who = f" (process {' and '.join(map(str, pids))})" if pids else ""
    return (
        f"another sidecar{who} uses the data directory {directory}, and its local CA: give this one an OVERCOAT_DATA "
        "of its own, or say --share-ca (OVERCOAT_SHARE_CA=1) if both are meant to sign with one CA"
    )
