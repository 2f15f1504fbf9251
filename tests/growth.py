"""Measures whether the cost of reading something grows linearly with its length, or faster.
`tests/test_linear_readers.py` and `tests/test_linear_regexes.py` call it.

Rules of this module:

- The cost is the processor time of this thread, the lowest of several runs, so other work on the machine does not
  count. What follows each line, to measure coverage, is off for as long.
- If even the longest input costs next to nothing, its growth does not matter.
- Sixteen times the text takes sixteen times the time if reading is linear, and 256 times if it is quadratic. Where it
  is less than `PLAINLY` times, one reading of the longest text says enough. Anything else is measured closely.
- Twice the text takes twice the time if reading is linear, and four times if it is quadratic. The limit is between the
  two; a result above it is measured again before it counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

FLOOR = 0.004  # seconds: less than this does not matter
TOO_MUCH = 3.0  # times the cost, for twice the text
PLAINLY = 24.0  # times the cost, for sixteen times the text: a third of it at most may be quadratic
LOOKS = 4


@contextmanager
def untraced() -> Iterator[None]:
    """Take off what follows each line, such as a measuring of coverage, which costs more than what it follows."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


def seconds(step: Callable[[], object], repeats: int = 1) -> float:
    """Return the shortest time that a step takes, in seconds of processor time."""
    best = float("inf")
    with untraced():
        for _ in range(repeats):
            start = time.thread_time()
            step()
            best = min(best, time.thread_time() - start)
    return best


def growth[T](read: Callable[[T], object], make: Callable[[int], T], most: int) -> float:
    """Return the cost of a text of length 2 n as a multiple of that of length n (or what it is on average from a
    sixteenth of the length on, where that is plainly linear); 0 if it does not matter.

    Args:
        read: the reader. It may raise any error about the text, but must accept it.
        make: makes a text of about a given length.
        most: the greatest length.
    """
    read(make(most // 256))  # followed, so that coverage knows its lines
    for length in (most // 16, most):  # the short length first, where a quadratic reader does not take so long yet
        step = partial(read, make(length))
        cost = seconds(step)
        if cost < FLOOR:
            continue
        times = cost / seconds(partial(read, make(length // 16)), 3)
        if times < PLAINLY:
            return float(times**0.25)  # sixteen is doubling four times
        if seconds(step, 2) >= FLOOR:
            break
    else:
        return 0.0
    once, twice = make(length // 2), make(length)
    found = float("inf")
    for _ in range(LOOKS):
        found = min(found, seconds(lambda: read(twice), 2) / seconds(lambda: read(once), 3))
        if found < TOO_MUCH:
            break
    return found
