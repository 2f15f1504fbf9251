"""Reading the policy again, at SIGHUP: it is taken over whole, or not at all.

Rules of this module:

- It is the file that was read at the start; one that has gone is an error, and never means the built-in policy.
- A policy with errors changes nothing. Nor does one whose roots cannot be read, or one that changes what is fixed while
  the process runs: where it listens, and how many workers there are. The log says what is wrong.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from proxy.config import PolicyErrors
from proxy.core.policy import Policy
from proxy.engine.tls import NoRoots, find_roots, upstream_context
from proxy.files import read_regular
from proxy.findings import findings, log_findings
from proxy.policybuild import MAX_ROOTS_BYTES

logger = logging.getLogger("overcoat")

FIXED = ("listen", "admin", "probes", "workers")
KEPT = "the policy was not taken over; the one before stays in force"


class Reader:
    """Reads the policy again."""

    def __init__(
        self, load: Callable[[], Policy], policy: Policy, finish: Callable[[Policy], Policy] = lambda policy: policy
    ) -> None:
        """Start.

        Args:
            load: reads it; raises PolicyErrors.
            policy: what it gave at the start.
            finish: what is to be done to one before it is taken over; raises NoRoots.
        """
        self._load = load
        self._finish = finish
        self._fixed = _fixed(policy)

    def again(self) -> Policy | None:
        """Return the policy as it is now, or None if it must not be taken over."""
        try:
            policy = self._load()
            upstream_context(policy.trust)
            changed = [name for name, value in _fixed(policy).items() if value != self._fixed[name]]
            if not changed:
                return self._finish(policy)
        except PolicyErrors as e:
            for error in e.errors:
                logger.error("%s", error)
            logger.error("%s", KEPT)
            return None
        except NoRoots as e:
            logger.error("%s: %s", KEPT, e)
            return None
        except Exception as e:  # whatever it is: what serves must go on serving
            logger.error("%s: reading it failed with %s", KEPT, type(e).__name__)
            return None
        logger.error("%s: a change of %s takes a restart", KEPT, " and ".join(changed))
        return None


def with_own_roots(policy: Policy, folder: Path) -> Policy:
    """Return the policy with a copy of its trusted roots, which no later change of their file can touch.

    Several processes read them, at different times; all must trust the same.

    Args:
        policy: the policy.
        folder: where the copy is written, named after what it holds.

    Raises:
        NoRoots: they cannot be found or read.
    """
    source = find_roots(policy.trust)
    try:
        content, _ = read_regular(source, MAX_ROOTS_BYTES)
    except OSError as e:
        raise NoRoots(f"{source} cannot be read: {e.strerror}") from None
    copy = folder / f"roots-{hashlib.sha256(content).hexdigest()[:32]}.pem"
    part = copy.with_suffix(".part")
    try:
        part.write_bytes(content)
        upstream_context(replace(policy.trust, roots=part))
        part.replace(copy)  # whole at any moment: a worker may be reading it
    except NoRoots:
        raise NoRoots(f"{source} holds no readable PEM certificates to trust") from None
    finally:
        part.unlink(missing_ok=True)
    return replace(policy, trust=replace(policy.trust, roots=copy))


def forget_other_roots(policy: Policy, folder: Path) -> None:
    """Remove the copies that `with_own_roots` made for other policies than this one, once nobody will read them."""
    for copy in folder.glob("roots-*.pem"):
        if copy != policy.trust.roots:
            copy.unlink(missing_ok=True)


def _fixed(policy: Policy) -> dict[str, object]:
    return {name: getattr(policy, name) for name in FIXED}


def log_taken(policy: Policy) -> None:
    """Say that a policy that was read again is in force, and what of it needs attention."""
    logger.info("the policy was read again, and is in force: %d rules, mode %s", len(policy.rules), policy.mode.value)
    log_findings(findings(policy, os.environ, datetime.now(UTC)))


def log_leaving(policy: Policy) -> None:
    """Say that draining begins, and how long it may take."""
    waiting = f"in {policy.drain_wait} s no new connections are taken" if policy.drain_wait else "no new connections"
    logger.info(
        "draining: %s; up to %d s for what runs; a second signal ends it at once", waiting, policy.drain_timeout
    )
