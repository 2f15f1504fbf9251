"""Does the cost of reading something grow with its length, or faster?

Rules of this module:

- The cost is the processor time of this thread, the best of several: other work on the machine does not count.
- What costs next to nothing at the greatest size that comes does not matter, however it grows.
- Twice the text takes about twice the time where time is linear, and four times where it is quadratic. The line is
  drawn between the two, and whoever is over it is looked at again before it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FLOOR = 0.004  # seconds that do not matter
TOO_MUCH = 3.0  # times the cost, for twice the text
LOOKS = 4


def seconds(step: Callable[[], object], repeats: int = 1) -> float:
    """Return the least time that a step takes."""
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        step()
        best = min(best, time.thread_time() - start)
    return best


def growth[T](read: Callable[[T], object], make: Callable[[int], T], most: int) -> float:
    """Return how many times the cost of a text of length n a text of length 2 n costs; 0 where it does not matter.

    Args:
        read: what is looked at. It may raise what it likes at the text, but must take it.
        make: makes a text of about a given length.
        most: the greatest length that comes.
    """
    for length in (most // 16, most):  # so that what is quadratic is found where it does not take so long yet
        text = make(length)
        if seconds(lambda text=text: read(text)) >= FLOOR and seconds(lambda text=text: read(text), 2) >= FLOOR:
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
