"""What is said of the local CA while a sidecar runs for months: once a day, and whenever it becomes something else.

Rules of this module:

- It asks the machine's clock each time, and at least once an hour: clocks are set, and machines sleep.
- What `serve` says at its start (`proxy.findings`) is not said again at once.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from proxy.core.localca import Lifetime

logger = logging.getLogger("overcoat")

REPEAT = timedelta(days=1)
LOOK = timedelta(hours=1)


class Reminder:
    """Reminds of one CA's end."""

    def __init__(self, lifetime: Lifetime, now: datetime) -> None:
        """Start.

        Args:
            lifetime: the CA's.
            now: the time, in UTC, at which what there was to say of it has been said.
        """
        self._lifetime = lifetime
        self._said = lifetime.warning(now)
        self._when = now

    def remind(self, now: datetime) -> float:
        """Say what is to be said, if it is time.

        Args:
            now: the time in UTC.

        Returns:
            After how many seconds to come back.
        """
        warning = self._lifetime.warning(now)
        if warning is not None and (warning != self._said or abs(now - self._when) >= REPEAT):
            logger.warning("%s", warning)
            self._when = now
        self._said = warning
        change = self._lifetime.until_change(now)
        return min(LOOK, change or LOOK).total_seconds()
