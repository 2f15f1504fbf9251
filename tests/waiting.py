"""Waits for something that happens in another thread or process. Unit tests and end-to-end tests call it."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], object], what: str = "it", *, seconds: float = 10.0) -> None:
    """Wait until something is so.

    Args:
        reached: says whether it is so; it is asked again and again.
        what: what it is, for the message.
        seconds: for how long to wait.

    Raises:
        AssertionError: it is still not so.
    """
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def wait_while_changing(value: Callable[[], int]) -> int:
    """Wait until a value stays the same for half a second, and return it."""
    last = -1
    while value() != last:
        last = value()
        time.sleep(0.5)
    return last
