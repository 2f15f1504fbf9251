"""Reads the policy again when SIGHUP comes, and decides whether it may be taken over: as a whole, or not at all.
`proxy.commands.serve` calls it with one worker, and the parent (`proxy.processes.supervisor`) with several.

Rules of this module:

- It reads the file that was read at the start. If that file is gone, this is an error; the built-in policy never
  replaces it.
- If the file and all files that it names have the same content as before, nothing is taken over.
- A policy with errors changes nothing. Nor does one whose roots cannot be read, or one that changes what is fixed while
  the process runs: the listeners and the number of workers. The log says what is wrong.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime

from proxy.core.rules.policy import Policy
from proxy.engine.descriptors import warn_of_limit
from proxy.engine.tls import NoRoots, with_roots
from proxy.policyfile.findings import findings, log_findings
from proxy.policyfile.load import PolicyErrors

logger = logging.getLogger("overcoat")

FIXED = ("listen", "admin", "probes", "workers")
KEPT = "the policy was not taken over; the one before stays in force"


class Reader:
    """Reads the policy again."""

    def __init__(self, load: Callable[[], Policy], policy: Policy) -> None:
        """Start.

        Args:
            load: reads the policy; raises PolicyErrors.
            policy: the policy that was read at the start.
        """
        self._load = load
        self._fixed = _fixed(policy)

    def again(self, current: Policy) -> Policy | None:
        """Return the policy as it is now: `current` itself if nothing has changed, None if it must not be taken over.

        Args:
            current: the policy in force.
        """
        try:
            policy = with_roots(self._load())
            changed = [name for name, value in _fixed(policy).items() if value != self._fixed[name]]
            if not changed:
                return current if policy.says_the_same_as(current) else policy
        except PolicyErrors as e:
            for error in e.errors:
                logger.error("%s", error)
            logger.error("%s", KEPT)
            return None
        except NoRoots as e:
            logger.error("%s: %s", KEPT, e)
            return None
        except Exception as e:  # whatever it is: the sidecar must go on serving
            logger.error("%s: reading it failed with %s", KEPT, type(e).__name__)
            return None
        logger.error("%s: a change of %s takes a restart", KEPT, " and ".join(changed))
        return None


def _fixed(policy: Policy) -> dict[str, object]:
    return {name: getattr(policy, name) for name in FIXED}


def log_read(policy: Policy, before: Policy) -> None:
    """Log the result of reading the policy again, and what needs attention about it.

    Args:
        policy: the policy in force now.
        before: the policy before; the same object if nothing has changed.
    """
    if policy.says_the_same_as(before):
        change = "is unchanged"
    elif policy.content == before.content:
        change = "is in force, with other credentials for the upstream proxy"
    else:
        change = f"is in force, in place of {before.short_hash}"
    what = f"hash {policy.short_hash}, rules {len(policy.rules)}, mode {policy.mode.value}"
    logger.info("the policy was read again, and %s: %s", change, what)
    log_findings(findings(policy, os.environ, datetime.now(UTC)))
    warn_of_limit(policy)


def log_leaving(policy: Policy) -> None:
    """Log that draining begins, and how long it may take."""
    waiting = f"in {policy.drain_wait} s no new connections are taken" if policy.drain_wait else "no new connections"
    logger.info(
        "draining: %s; up to %d s for what runs; a second signal ends it at once", waiting, policy.drain_timeout
    )
