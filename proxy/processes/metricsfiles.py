"""Where several processes keep their metrics, one set of files each.

A module of its own, since it must run before any metric is made. Files are named after a process's place, not after its
id: a successor goes on counting where the one before it ended, and there are never more files than places.

Whoever uses such a directory holds a lock in it: the parent, and all that it forks. The kernel takes it off however
they end, so that who starts later can tell which directories nobody needs any more, after a SIGKILL say, and removes
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

_NAME = "overcoat-metrics-"
_BEGUN = "overcoat-begun-"
_LOCK = "in-use"

_place = ["none"]


def prepare_metrics() -> Path:
    """Make the directory in which the processes keep their metrics. Must come before any metric is made."""
    directory = _make_locked()
    _clear_away_the_dead(directory)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import values  # noqa: PLC0415  # it looks at the environment when it is imported

    values.ValueClass = values.MultiProcessValue(lambda: _place[0])  # type: ignore[no-untyped-call]  # untyped there
    return directory


def _make_locked() -> Path:
    """Make a directory that bears its name only once its lock is held: it is never taken for one of the dead."""
    made = Path(tempfile.mkdtemp(prefix=_BEGUN))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # and never let go: until the last process that has it has ended
    return made.rename(made.with_name(_NAME + made.name.removeprefix(_BEGUN)))


def _clear_away_the_dead(own: Path) -> None:
    for directory in own.parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # somebody else's, or somebody else clears it away just now
            if directory != own and directory.lstat().st_uid == os.geteuid() and not directory.is_symlink():
                _clear_away(directory)


def _clear_away(directory: Path) -> None:
    """Remove a directory that nobody holds the lock of.

    Raises:
        OSError: somebody does, or it cannot be removed.
    """
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        directory.rmdir()  # its removal was cut short: the lock is the last to go. Else it is not ours, nor empty
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in directory.iterdir():
            if file.name != _LOCK:
                file.unlink()
        (directory / _LOCK).unlink()
        directory.rmdir()
    finally:
        os.close(lock)


def take_place(place: str) -> None:
    """Count in the files of a place from now on; no two running processes may have the same.

    Args:
        place: letters and digits.
    """
    _place[0] = place
