"""What the kernel says of processes (Linux). Tests call it that look at a sidecar's workers."""

from __future__ import annotations

from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, the oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Return whether a process still runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def name_of(pid: int) -> str:
    """Return the name of a process; "" once it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def workers(pid: int) -> list[int]:
    """Return the worker processes of a sidecar, by their name."""
    return [child for child in children(pid) if name_of(child) == "overcoat-worker"]
