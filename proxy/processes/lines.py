"""Writing decision lines without ever making a request wait for whoever reads them.

Rules of this module:

- Lines are handed to a thread of their own. A reader that is slow or gone costs lines, never requests.
- What waits is bounded; a line that finds no room, or cannot be written, is counted as lost.
- The log says that lines are lost, and why, when that begins, and how many they were once it is over: a count alone
  does not tell a full disk from a reader that is gone.
- At the end there is a short time for what still waits; what is left then is lost like any other line.
- Of a line that could be written in part nothing stays that the next one would be taken for a part of.
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

from proxy.disk.reading import NotRegularError

logger = logging.getLogger("overcoat")

MAX_WAITING = 1024 * 1024  # bytes; some two thousand lines
LAST_SECONDS = 2.0
GATHER_SECONDS = 0.005
PIECE = 4096  # bytes written at once: a pipe takes them whole or not at all, so that it is known what a full one has
QUIET_SECONDS = 60.0  # between two messages of the same kind: a slow reader loses lines and takes some, in turns
TOO_SLOW = "they are read too slowly"


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
        self._rest = memoryview(b"")  # of what is being written
        self._is_torn = False
        self._gap = 0  # lines lost since the log said that they are
        self._gap_began = 0.0
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
            self._lose(1, "there is no standard output")
            raise OSError(errno.EBADF, "there is no standard output")
        data = line.encode("utf-8")
        with self._changed:
            has_room = self._size + len(data) <= MAX_WAITING
            if has_room:
                if not self._waiting:
                    self._changed.notify()
                self._waiting.append(data)
                self._size += len(data)
        if not has_room:
            self._lose(1, TOO_SLOW)
            raise BlockingIOError(errno.EAGAIN, "the decision lines are read too slowly")

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
        with self._changed:
            left = len(self._waiting) + self._unwritten()
        if left:
            self._count_lost(left)
            self._lose(left, TOO_SLOW)
        if self._gap:
            logger.warning("decision lines that were lost by the end: %d", self._gap)

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
                self._rest = memoryview(b"\n" * self._is_torn + b"".join(self._waiting))
                self._waiting, self._size = [], 0
            try:
                self._write()
            except OSError as e:
                lost = self._unwritten()
                self._rest = memoryview(b"")
                self._count_lost(lost)
                self._lose(lost, (e.strerror or type(e).__name__).lower())
            else:
                self._end_gap()

    def _write(self) -> None:
        assert self._descriptor is not None
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        whole = self._rest
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest[:PIECE]) :]
            self._is_torn = False
        except OSError:
            written = bytes(whole[: len(whole) - len(self._rest)])
            self._mend(len(written) - written.rfind(b"\n") - 1)
            raise
        finally:
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _mend(self, torn: int) -> None:
        """See to it that what comes next begins a line, after this many bytes of one that has no end."""
        assert self._descriptor is not None
        if torn and self._path is not None:  # ours alone, and all that write to it hold the lock
            os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_END) - torn)
        elif torn:
            self._is_torn = True

    def _lose(self, count: int, why: str) -> None:
        """Remember that lines are lost; say so if that is new."""
        with self._changed:
            is_new = not self._gap
            self._gap += count
            if is_new:
                self._gap_began = time.monotonic()
        if is_new:
            logger.error("decision lines cannot be written, and are lost: %s", why)

    def _end_gap(self) -> None:
        """Say that lines are written again, if they were not for a while."""
        with self._changed:
            lost = self._gap
            if not lost or time.monotonic() < self._gap_began + QUIET_SECONDS:
                return
            self._gap = 0
        logger.warning("decision lines are written again; lost in between: %d", lost)

    def _unwritten(self) -> int:
        """Return how many lines are not written, or not whole."""
        rest = bytes(self._rest)
        # The end of a torn line alone comes with the next one; in a file nothing of that line is left.
        return (rest if self._path is not None else rest.lstrip(b"\n")).count(b"\n")
