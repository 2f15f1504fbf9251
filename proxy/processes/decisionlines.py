"""Writes decision lines in the background, so that no request ever waits for their reader. The engine hands each line
to it; `proxy.commands.serve` and the workers make the writer.

Rules of this module:

- A separate thread writes the lines. If their reader is slow or gone, lines are lost, but no request is delayed.
- The waiting lines are limited. A line for which there is no room, or that cannot be written, is counted as lost.
- The log says when lines begin to be lost, and why; and how many were lost, once writing works again. The count alone
  would not tell a full disk from a reader that is gone.
- At the end there is a short time to write the lines that still wait; those left then are lost like any others.
- If only part of a line could be written, the next line never looks like the rest of it.
- On request the file is opened again, so that it can be renamed; if that fails, writing goes on to the old one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from proxy import timelimits
from proxy.disk.reading import NotRegularError
from proxy.processes.readable import Form
from proxy.processes.recent import Recent

logger = logging.getLogger("overcoat")

MAX_WAITING = 1024 * 1024  # bytes: about two thousand lines
PIECE = 4096  # bytes written at once: a pipe takes them whole or not at all, so it is known what was written
TOO_SLOW = "they are read too slowly"


def open_lines(path: Path) -> int:
    """Open a file to append decision lines to, and return its descriptor. Only its owner and group may read a new file.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # never waits for a pipe's reader
    descriptor = os.open(path, flags, 0o640)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(path)
    return descriptor


class LineWriter:
    """Writes decision lines to a stream or a file in the background, in order."""

    def __init__(
        self,
        stream: TextIO | Path | None,
        count_lost: Callable[[int], object],
        lock: Path | None = None,
        form: Form | None = None,
        recent: Recent | None = None,
    ) -> None:
        """Start.

        Args:
            stream: the target; None (Python's value for a closed standard output) loses every line.
            count_lost: called from another thread with the number of lines that could not be written.
            lock: a file to lock while writing, if several processes write to the same stream: a pipe mixes writes of
                more than 4 KiB.
            form: turns a line into one for people; None to write JSON.
            recent: where each line is kept for a while, to be shown; also one that is lost.

        Raises:
            OSError: the file cannot be opened.
        """
        self._path = stream if isinstance(stream, Path) else None
        if isinstance(stream, Path):
            self._descriptor: int | None = open_lines(stream)
        else:
            # The number is read once. A closed stream's number may belong to another file later.
            self._descriptor = None if stream is None else stream.fileno()
        self._form = form
        self._is_to_reopen = False
        self._count_lost = count_lost
        self._recent = recent
        self._lock = None if lock is None else os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._waiting: list[bytes] = []
        self._size = 0
        self._rest = memoryview(b"")  # the rest of what is being written
        self._is_torn = False
        self._gap = 0  # lines lost since the log said that lines are lost
        self._gap_began = 0.0
        self._is_closing = False
        self._guard = threading.Lock()
        self._changed = threading.Condition(self._guard)
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, with its line feed, to be written soon; never wait.

        Raises:
            OSError: the line is lost: there is no target, or too much waits already.
        """
        data = line.encode("utf-8")
        if self._recent is not None:
            self._recent.add(data)
        if self._descriptor is None:
            self._lose(1, "there is no standard output")
            raise OSError(errno.EBADF, "there is no standard output")
        with self._guard:  # the condition's own lock, without a call of Python at each end
            size = self._size + len(data)
            if size <= MAX_WAITING:
                if not self._waiting:
                    self._changed.notify()
                self._waiting.append(data)
                self._size = size
                return
        self._lose(1, TOO_SLOW)
        raise BlockingIOError(errno.EAGAIN, "the decision lines are read too slowly")

    def reopen(self) -> None:
        """Open the file again soon, because it was renamed. Standard output cannot be opened again."""
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
        """Write the lines that wait, for at most `LAST_LINES_SECONDS` seconds, and stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timelimits.LAST_LINES_SECONDS)
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
            # Under load many lines are written at once: a switch of threads costs as much as a line.
            time.sleep(timelimits.GATHER_SECONDS)
            with self._changed:
                waiting, self._waiting, self._size = self._waiting, [], 0
                self._rest = memoryview(b"\n" * self._is_torn + b"".join(self._formed(waiting)))
            try:
                self._write()
            except OSError as e:
                lost = self._unwritten()
                self._rest = memoryview(b"")
                self._count_lost(lost)
                self._lose(lost, (e.strerror or type(e).__name__).lower())
            else:
                self._end_gap()

    def _formed(self, lines: list[bytes]) -> Iterable[bytes]:
        return lines if self._form is None else map(self._form, lines)

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
        """Make the next line begin on a new line, after this many bytes of a line that could not be finished."""
        assert self._descriptor is not None
        if torn and self._path is not None:  # only our processes write to it, and they hold the lock
            os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_END) - torn)
        elif torn:
            self._is_torn = True

    def _lose(self, count: int, why: str) -> None:
        """Count lost lines; log that lines are lost, if that is new."""
        with self._changed:
            is_new = not self._gap
            self._gap += count
            if is_new:
                self._gap_began = time.monotonic()
        if is_new:
            where = f" to {self._path}" if self._path is not None else ""
            logger.error("decision lines cannot be written%s, and are lost: %s", where, why)

    def _end_gap(self) -> None:
        """Log that lines are written again, if they were not for a while."""
        with self._changed:
            lost = self._gap
            if not lost or time.monotonic() < self._gap_began + timelimits.LOST_LINES_LOG_SECONDS:
                return
            self._gap = 0
        logger.warning("decision lines are written again; lost in between: %d", lost)

    def _unwritten(self) -> int:
        """Return the number of lines that are not written, or not completely."""
        rest = bytes(self._rest)
        # In a stream the end of a torn line comes with the next line; in a file, the torn line is removed.
        return (rest if self._path is not None else rest.lstrip(b"\n")).count(b"\n")
