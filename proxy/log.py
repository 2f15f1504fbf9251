"""The form of everything that `overcoat serve` writes to standard error: each message with its time.
`proxy.commands.serve` sets it up; all modules log through it.

Rules of this module:

- On a terminal each message is a line for people; anywhere else it is one JSON object a line, unless something else is
  asked for. So a program that collects the lines never meets two forms.
- Whatever else would be written there takes the same form: warnings of libraries, and uncaught errors in any thread. An
  exception is logged with its type and where it was raised, never with its message, which may quote secrets.
- A message that cannot be written stops nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("overcoat")


def say_all_in_one_form(stream: TextIO | None, wanted: str | None = None, file: Path | None = None) -> None:
    """Start logging, and replace what Python would print by itself.

    Args:
        stream: standard error; None if it was closed before this process began.
        wanted: `text` for people or `json` for programs; None for what fits the stream.
        file: a file to append messages to instead.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    logging.raiseExceptions = False
    handler: logging.Handler = logging.NullHandler()
    is_for_people = wanted == "text"
    if file is not None:
        handler = LogFile(file)
    elif stream is not None:
        handler = logging.StreamHandler(stream)
        is_for_people = is_for_people or (wanted is None and stream.isatty())
    handler.setFormatter(ForPeople() if is_for_people else ForPrograms())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class LogFile(logging.Handler):
    """Appends messages to a file that only its owner may read. If another one has its name, or none, since logrotate
    has renamed it, the next message goes to a new file of that name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._descriptor = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # never waits for a pipe's reader
        descriptor = os.open(self._path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", str(self._path))
        return descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message in one write; one that cannot be written is lost."""
        try:
            self._follow()
            os.write(self._descriptor, f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            self.handleError(record)

    def _follow(self) -> None:
        try:
            there = os.stat(self._path)
        except OSError:
            there = None
        here = os.fstat(self._descriptor)
        if there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            with contextlib.suppress(OSError):  # then it goes on to the old file
                opened = self._open()
                os.close(self._descriptor)
                self._descriptor = opened


def _uncaught(kind: type[BaseException], error: BaseException | None, _trace: TracebackType | None) -> None:
    logger.error("an error that nobody caught: %s", kind.__name__ if error is None else describe(error))


def describe(error: BaseException) -> str:
    """Return an exception's type and where it was raised, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(
        f"{frame.name} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})" for frame in reversed(frames)
    )
    return f"{type(error).__name__} in {where}"


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        message += f": {describe(record.exc_info[1])}"
    return message


class ForPrograms(logging.Formatter):
    """One JSON object for each message: `time` (UTC), `level`, `message`, and what the message is about."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its line feed."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": _message(record),
        }
        return json.dumps(line | getattr(record, "facts", {}))


class ForPeople(logging.Formatter):
    """One line for each message: the time (UTC), the level, the text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its line feed."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # A control character could move the cursor; a line feed would begin a line without a time.
        text = "".join(each if each.isprintable() else " " for each in _message(record))
        return f"{time} {record.levelname} {text}"
