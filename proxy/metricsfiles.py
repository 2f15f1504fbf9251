"""Where several processes keep their metrics, one set of files each.

A module of its own, since it must run before any metric is made. Files are named after a process's place, not after its
id: a successor goes on counting where the one before it ended, and there are never more files than places.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_place = ["none"]


def prepare_metrics() -> Path:
    """Make the directory in which the processes keep their metrics. Must come before any metric is made."""
    directory = Path(tempfile.mkdtemp(prefix="overcoat-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import values  # noqa: PLC0415  # it looks at the environment when it is imported

    values.ValueClass = values.MultiProcessValue(lambda: _place[0])  # type: ignore[no-untyped-call]  # untyped there
    return directory


def take_place(place: str) -> None:
    """Count in the files of a place from now on; no two running processes may have the same.

    Args:
        place: letters and digits.
    """
    _place[0] = place
