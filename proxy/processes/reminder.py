"""Warns of coming ends (of the local CA, pins and keys) while a sidecar runs for months: once a day, and when something
changes. `proxy.commands.serve` and the parent process call it now and then.

Rules of this module:

- It asks the machine's clock each time, and at least once an hour: clocks are set, and machines sleep.
- What `serve` says at its start (`proxy.policyfile.findings`) is not repeated right away.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime

from proxy import timelimits
from proxy.core.certificates.localca import Lifetime
from proxy.core.rules.policy import Policy
from proxy.policyfile.findings import Finding, endings, log_findings

logger = logging.getLogger("overcoat")


class Reminder:
    """Logs warnings of coming ends.

    Attributes:
        lifetime: the local CA's; another one once there is another CA.
    """

    def __init__(self, lifetime: Lifetime, policy: Policy, now: datetime) -> None:
        """Start.

        Args:
            lifetime: the local CA's lifetime.
            policy: the policy in force.
            now: the current time in UTC; all warnings due now have been logged.
        """
        self.lifetime = lifetime
        self._said = {finding.text: now for finding in self._findings(policy, now)}

    def remind(self, policy: Policy, now: datetime) -> float:
        """Log the warnings that are due.

        Args:
            policy: the policy in force.
            now: the current time in UTC.

        Returns:
            The number of seconds after which to call it again.
        """
        said: dict[str, datetime] = {}
        for finding in self._findings(policy, now):
            when = self._said.get(finding.text)
            if when is None or abs(now - when).total_seconds() >= timelimits.REMIND_SECONDS:
                log_findings([finding])
                when = now
            said[finding.text] = when
        self._said = said
        change = self.lifetime.until_change(now)
        soon = timelimits.REMIND_CHECK_SECONDS
        return min(soon, change.total_seconds()) if change else soon

    def _findings(self, policy: Policy, now: datetime) -> Iterator[Finding]:
        if (warning := self.lifetime.warning(now)) is not None:
            yield Finding(warning)
        yield from endings(policy, now)
