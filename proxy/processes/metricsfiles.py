"""The files in which several processes keep their metrics, one set of files for each process. `proxy.commands.serve`
calls `prepare_metrics` before any metric exists, so this module imports none; each child calls the rest when it starts.

The files are named after a process's seat (the worker's number), not its process id. So a successor goes on counting
from its predecessor's numbers, and there are never more files than seats.

The parent and all its children hold a lock in their directory. The kernel releases it however they end. So a later
start can tell which directories are not used any more, after a SIGKILL for instance, and removes them.
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

_seat = ["none"]


def prepare_metrics() -> Path:
    """Make the directory in which the processes keep their metrics. This must happen before any metric is made."""
    directory = _make_locked()
    _clear_away_the_dead(directory)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import values  # noqa: PLC0415  # it reads the environment when it is imported

    values.ValueClass = values.MultiProcessValue(lambda: _seat[0])  # type: ignore[no-untyped-call]  # untyped there
    return directory


def _make_locked() -> Path:
    """Make a directory that gets its final name only after it is locked, so that it is never taken for an
    unused one.
    """
    made = Path(tempfile.mkdtemp(prefix=_BEGUN))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # held until the last process that has it has ended
    return made.rename(made.with_name(_NAME + made.name.removeprefix(_BEGUN)))


def _clear_away_the_dead(own: Path) -> None:
    for directory in own.parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # it belongs to others, or others are removing it right now
            if directory != own and directory.lstat().st_uid == os.geteuid() and not directory.is_symlink():
                _clear_away(directory)


def _clear_away(directory: Path) -> None:
    """Remove a directory whose lock nobody holds.

    Raises:
        OSError: somebody holds it, or the directory cannot be removed.
    """
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        directory.rmdir()  # empty if an earlier removal was cut short: the lock goes last. Else it fails: not ours
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


def take_seat(name: str) -> None:
    """Count in the files of this seat from now on; no two running processes may have the same seat.

    Args:
        name: letters and digits.
    """
    _seat[0] = name
