"""Reads the policy again when SIGHUP comes or a file that it was made of has changed, and decides whether it may be
taken over: as a whole, or not at all. `proxy.commands.serve` calls it with one worker, and the parent
(`proxy.processes.supervisor`) with several.

Rules of this module:

- It reads the file that was read at the start. If that file is gone, this is an error; the built-in policy never
  replaces it.
- If the file and all files that it names have the same content as before, nothing is taken over.
- A policy with errors changes nothing. Nor does one whose roots cannot be read, one that changes what is fixed while
  the process runs (the listeners and the number of workers), or one that inspects hosts for which the local CA may not
  sign. The log says what is wrong. The last of these is read again once there is another CA.
- The files that count are those that the last reading met, whatever came of it: a key that a refused policy names is
  waited for, too. That they were only touched is no news, and is neither logged nor counted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from proxy.core.rules.policy import Policy
from proxy.disk.reading import Version, noting_files
from proxy.engine.descriptors import warn_of_limit
from proxy.engine.roots import NoRoots, with_roots
from proxy.policyfile.findings import findings, log_findings
from proxy.policyfile.refusal import PolicyErrors
from proxy.processes.manager import tell_manager
from proxy.processes.watch import Watch

logger = logging.getLogger("overcoat")

FIXED = ("listen", "admin", "probes", "workers")
_NAMED = 3  # so many files are named in one message
KEPT = "the policy was not taken over; the one before stays in force"


class Reader:
    """Reads the policy again.

    Attributes:
        is_refused: whether what was read last must not be taken over.
        waits_for_ca: whether that is so for want of a local CA that may sign for its hosts.
        unfit: says why the local CA does not fit a policy; None if it does.
        watches: whether it looks for changes of files.
        taken: when the policy in force was taken over, in seconds since 1970; set by whoever does that.
    """

    def __init__(self, load: Callable[[], Policy], policy: Policy, versions: Mapping[Path, Version] | None) -> None:
        """Start.

        Args:
            load: reads the policy; raises PolicyErrors.
            policy: the policy that was read at the start.
            versions: the files that were read for it, and their versions; None if changes of files are not looked for.
        """
        self._load = load
        self._fixed = _fixed(policy)
        self._watch = Watch(versions or {})
        self.watches = versions is not None
        self.is_refused = self.waits_for_ca = False
        self.unfit: Callable[[Policy], str | None] = lambda _: None
        self.taken = time.time()

    def changed(self) -> list[Path]:
        """Return the files for which the policy should be read again now."""
        return self._watch.look(time.monotonic()) if self.watches else []

    def again(self, current: Policy) -> Policy | None:
        """Return the policy as it is now: `current` itself if nothing has changed, None if it must not be taken over.

        Args:
            current: the policy in force.
        """
        began = time.monotonic()
        versions: dict[Path, Version] = {}
        with noting_files(versions):
            policy = self._read(current)
        self._watch.was_read(versions, began, time.monotonic())
        self.is_refused = policy is None
        return policy

    def _read(self, current: Policy) -> Policy | None:
        self.waits_for_ca = False
        try:
            policy = with_roots(self._load())
            changed = [name for name, value in _fixed(policy).items() if value != self._fixed[name]]
            unfit = self.unfit(policy)
            if not changed and unfit is None:
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
        self.waits_for_ca = not changed
        logger.error("%s: %s", KEPT, f"a change of {' and '.join(changed)} takes a restart" if changed else unfit)
        return None


def _fixed(policy: Policy) -> dict[str, object]:
    return {name: getattr(policy, name) for name in FIXED}


def log_read(policy: Policy, before: Policy, changed: Sequence[Path] = ()) -> None:
    """Log the result of reading the policy again, and what needs attention about it.

    Args:
        policy: the policy in force now.
        before: the policy before; the same object if nothing has changed.
        changed: the files whose change led to it; none if a signal did.
    """
    if policy.says_the_same_as(before):
        change = "is unchanged"
    elif policy.content == before.content:
        change = "is in force, with other credentials for the upstream proxy"
    else:
        change = f"is in force, in place of {before.short_hash}"
    what = f"hash {policy.short_hash}, rules {len(policy.rules)}, mode {policy.mode.value}"
    logger.info("%sthe policy was read again, and %s: %s", _named(changed), change, what)
    log_findings(findings(policy, os.environ, datetime.now(UTC)))
    warn_of_limit(policy)


def _named(changed: Sequence[Path]) -> str:
    """Return which files have changed, as the beginning of a message."""
    if not changed:
        return ""
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return f"{', '.join(map(str, changed[:_NAMED]))}{more} changed: "


def log_leaving(policy: Policy) -> None:
    """Say that draining begins, and how long it may take, in the log and to a service manager."""
    waiting = f"in {policy.drain_wait} s no new connections are taken" if policy.drain_wait else "no new connections"
    logger.info(
        "draining: %s; up to %d s for what runs; a second signal ends it at once", waiting, policy.drain_timeout
    )
    tell_manager("STOPPING=1")
