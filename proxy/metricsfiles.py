"""Where several processes keep their metrics.

A module of its own, since it must run before prometheus-client is imported anywhere.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def prepare_metrics() -> Path:
    """Make the directory in which the processes keep their metrics. Must come before prometheus-client is imported."""
    directory = Path(tempfile.mkdtemp(prefix="overcoat-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    return directory
