"""What is said of ends (of the local CA, pins, keys) while a sidecar runs for months: once a day, and when it changes.

Rules of this module:

- It asks the machine's clock each time, and at least once an hour: clocks are set, and machines sleep.
- What `serve` says at its start (`proxy.policyfile.findings`) is not said again at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from proxy.core.certificates.localca import Lifetime
from proxy.core.rules.policy import Policy
from proxy.policyfile.findings import Finding, endings, log_findings

logger = logging.getLogger("overcoat")

REPEAT = timedelta(days=1)
LOOK = timedelta(hours=1)


class Reminder:
    """Reminds of what ends."""

    def __init__(self, lifetime: Lifetime, policy: Policy, now: datetime) -> None:
        """Start.

        Args:
            lifetime: the CA's.
            policy: the policy in force.
            now: the time, in UTC, at which what there was to say has been said.
        """
        self._lifetime = lifetime
        self._said = {finding.text: now for finding in self._findings(policy, now)}

    def remind(self, policy: Policy, now: datetime) -> float:
        """Say what is to be said, if it is time.

        Args:
            policy: the policy in force.
            now: the time in UTC.

        Returns:
            After how many seconds to come back.
        """
        said: dict[str, datetime] = {}
        for finding in self._findings(policy, now):
            when = self._said.get(finding.text)
            if when is None or abs(now - when) >= REPEAT:
                log_findings([finding])
                when = now
            said[finding.text] = when
        self._said = said
        change = self._lifetime.until_change(now)
        return min(LOOK, change or LOOK).total_seconds()

    def _findings(self, policy: Policy, now: datetime) -> Iterator[Finding]:
        if (warning := self._lifetime.warning(now)) is not None:
            yield Finding(warning)
        yield from endings(policy, now)
