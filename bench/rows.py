"""The rows of the benchmark by name, in the order of the report.

A row checks its contenders before it measures them (`bench.contest`), and says how it measures in words that are
printed with its figures.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import resources, speed, streams
from bench.lab import Lab
from bench.results import Row

ROWS: dict[str, Callable[[Lab], Row]] = {
    "upgrade": speed.upgrade,
    "new-connections": speed.new_connections,
    "pins": speed.pins,
    "fields": speed.fields,
    "inspected": speed.inspected,
    "http2": streams.http2,
    "grpc": streams.grpc,
    "round-trip": speed.round_trip,
    "latency": speed.latency,
    "workers": speed.workers,
    "large-body": resources.large_body,
    "tunnel": resources.tunnel,
    "start": resources.start,
    "memory": resources.memory,
    "worker-memory": resources.worker_memory,
}
