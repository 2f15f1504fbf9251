"""Writing decision lines without ever making a request wait for whoever reads them.

Rules of this module:

- Lines are handed to a thread of their own. A reader that is slow or gone costs lines, never requests.
- What waits is bounded; a line that finds no room, or cannot be written, is counted as lost.
- At the end there is a short time for what still waits.
- A file is opened again when that is asked for, so that it can be renamed; if that fails, the old one is written on.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from proxy.files import NotRegularError

logger = logging.getLogger("overcoat")

MAX_WAITING = 1024 * 1024  # bytes; some two thousand lines
LAST_SECONDS = 2.0
GATHER_SECONDS = 0.005


def open_lines(path: Path) -> int:
    """Open a file to append decision lines to, which others than its owner's group cannot read; return its descriptor.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe's reader is not waited for
    descriptor = os.open(path, flags, 0o640)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(path)
    return descriptor


class LineWriter:
    """Writes lines to a stream or a file in the background, in their order."""

    def __init__(
        self, stream: TextIO | Path | None, count_lost: Callable[[int], object], lock: Path | None = None
    ) -> None:
        """Start.

        Args:
            stream: where to; None, as Python has it for a standard output that was closed, loses every line.
            count_lost: called, from another thread, with how many lines could not be written after all.
            lock: a file to lock while writing, where several processes write to the same stream: a pipe mixes
                what is longer than 4 KiB.

        Raises:
            OSError: the file cannot be opened.
        """
        self._path = stream if isinstance(stream, Path) else None
        if isinstance(stream, Path):
            self._descriptor: int | None = open_lines(stream)
        else:
            # Kept as a number, and never taken from a closed stream: that number may be another file's by then.
            self._descriptor = None if stream is None else stream.fileno()
        self._is_to_reopen = False
        self._count_lost = count_lost
        self._lock = None if lock is None else os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._waiting: list[bytes] = []
        self._size = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, with its line feed, to be written soon; never wait.

        Raises:
            OSError: it is lost: there is nowhere to write, or too much waits already.
        """
        if self._descriptor is None:
            raise OSError(errno.EBADF, "there is no standard output")
        data = line.encode("utf-8")
        with self._changed:
            if self._size + len(data) > MAX_WAITING:
                raise BlockingIOError(errno.EAGAIN, "the decision lines are read too slowly")
            if not self._waiting:
                self._changed.notify()
            self._waiting.append(data)
            self._size += len(data)

    def reopen(self) -> None:
        """Open the file again, soon: it was renamed. A standard output cannot be."""
        with self._changed:
            self._is_to_reopen = True
            self._changed.notify()

    def _reopen(self) -> None:
        if self._path is None:
            logger.info("decision lines go to standard output: there is no file to open again")
            return
        try:
            opened = open_lines(self._path)
        except OSError as e:
            logger.error("%s cannot be opened again, and is written on as it was: %s", self._path, e.strerror)
            return
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = opened
        logger.info("%s was opened again", self._path)

    def close(self) -> None:
        """Write what still waits, for `LAST_SECONDS` at most, and stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(LAST_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing or self._is_to_reopen)
                is_to_reopen, self._is_to_reopen = self._is_to_reopen, False
                has_lines, is_closing = bool(self._waiting), self._is_closing
            if is_to_reopen:
                self._reopen()
            if not has_lines:
                if is_closing:
                    return
                continue
            # Under load many lines are written at once: each change of threads costs as much as the line.
            time.sleep(GATHER_SECONDS)
            with self._changed:
                lines, self._waiting, self._size = self._waiting, [], 0
            try:
                self._write(b"".join(lines))
            except OSError:
                self._count_lost(len(lines))

    def _write(self, data: bytes) -> None:
        assert self._descriptor is not None
        rest = memoryview(data)
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        finally:
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
