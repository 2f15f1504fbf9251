"""What a process takes of its machine, for its metrics: memory, descriptors, processor time. The engine measures now
and then, and the admin process at each scrape.

Where the system does not tell (there is no /proc), memory and descriptors stay at 0.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

from addons.metrics import Metrics

_DESCRIPTORS = "/proc/self/fd"


def measure(metrics: Metrics) -> None:
    """Set the gauges of this process."""
    process = metrics.process
    metrics.measured.labels(process).set(time.time())
    used = resource.getrusage(resource.RUSAGE_SELF)
    metrics.processor.labels(process)._value.set(used.ru_utime + used.ru_stime)
    metrics.most_descriptors.labels(process).set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        metrics.memory.labels(process).set(pages * resource.getpagesize())
        # The size of that folder is how much is in it from Linux 6.2 on, and 0 before.
        metrics.descriptors.labels(process).set(os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS)))
