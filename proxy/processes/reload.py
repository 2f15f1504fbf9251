"""Has the policy read again when SIGHUP comes or a file that it was made of has changed, and decides whether it may be
taken over: as a whole, or not at all. `proxy.processes.alone` calls it with one worker, and the parent
(`proxy.processes.supervisor`) with several. Another process reads it (`proxy.processes.apart`).

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
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from proxy.core.rules.policy import Policy
from proxy.disk.reading import Version
from proxy.engine.descriptors import warn_of_limit
from proxy.policyfile.findings import findings, log_findings
from proxy.processes.apart import Answer, Reading
from proxy.processes.manager import tell_manager
from proxy.processes.watch import Watch

logger = logging.getLogger("overcoat")

FIXED = ("listen", "admin", "probes", "workers")
_NAMED = 3  # so many files are named in one message
KEPT = "the policy was not taken over; the one before stays in force"


@dataclass(frozen=True, slots=True)
class Read:
    """What came of reading the policy again.

    Attributes:
        result: in one word, as it is counted.
        policy: the policy as it is now: the one in force if nothing has changed, None if it must not be taken over.
        changed: the files whose change led to it; none if a signal did.
        is_news: whether it is to be logged and counted: not if files were only touched.
    """

    result: Literal["taken", "unchanged", "refused"]
    policy: Policy | None
    changed: Sequence[Path]
    is_news: bool = True


class Reader:
    """Has the policy read again.

    Attributes:
        reading: what is being read, until it is heard.
        is_refused: whether what was read last must not be taken over.
        waits_for_ca: whether that is so for want of a local CA that may sign for its hosts.
        unfit: says why the local CA does not fit a policy; None if it does.
        watches: whether it looks for changes of files.
        taken: when the policy in force was taken over, in seconds since 1970; set by whoever does that.
    """

    def __init__(self, begin: Callable[[], Reading], policy: Policy, versions: Mapping[Path, Version] | None) -> None:
        """Start.

        Args:
            begin: begins to read the policy.
            policy: the policy that was read at the start.
            versions: the files that were read for it, and their versions; None if changes of files are not looked for.
        """
        self._begin = begin
        self._fixed = _fixed(policy)
        self._watch = Watch(versions or {})
        self.watches = versions is not None
        self.is_refused = self.waits_for_ca = False
        self.unfit: Callable[[Policy], str | None] = lambda _: None
        self.taken = time.time()
        self.reading: Reading | None = None
        self._began = 0.0
        self._changed: Sequence[Path] = ()
        self._is_asked_again = False

    def changed(self) -> list[Path]:
        """Return the files for which the policy should be read again now."""
        return self._watch.look(time.monotonic()) if self.watches and self.reading is None else []

    def begin(self, changed: Sequence[Path] = ()) -> Reading | None:
        """Begin to read the policy again; while that is done already, it will be done once more afterwards.

        Args:
            changed: the files whose change is the reason; none if a signal is.

        Returns:
            What is to be waited for; None if it is waited for already.
        """
        if self.reading is not None:
            self._is_asked_again = True
            return None
        self._began, self._changed, self._is_asked_again = time.monotonic(), changed, False
        self.reading = self._begin()
        return self.reading

    def heard(self, current: Policy) -> Read | None:
        """Return what came of the reading, once it is over; None if there is more to wait for.

        Args:
            current: the policy in force.
        """
        answer = None if self.reading is None else self.reading.hear()
        if answer is None:
            return None
        self.reading = None
        was_refused = self.is_refused
        policy = self._judged(answer, current)
        self.is_refused = policy is None
        if policy is None:
            read = Read("refused", policy, self._changed)
        elif policy is not current:
            read = Read("taken", policy, self._changed)
        else:
            read = Read("unchanged", policy, self._changed, is_news=was_refused or not self._changed)
        if answer.versions is None:
            self._watch.was_not_read(self._began, time.monotonic())
        else:
            self._watch.was_read(answer.versions, self._began, time.monotonic(), in_vain=not read.is_news)
        return read

    @property
    def deadline(self) -> float:
        """The time at which what is being read is given up, and must be heard."""
        return math.inf if self.reading is None else self.reading.deadline

    @property
    def is_asked_again(self) -> bool:
        """Whether somebody has asked for another reading during the last one."""
        return self._is_asked_again

    def give_up(self) -> None:
        """Read no more."""
        self._is_asked_again = False
        if self.reading is not None:
            self.reading.give_up()
            self.reading = None

    def _judged(self, answer: Answer, current: Policy) -> Policy | None:
        self.waits_for_ca = False
        policy = answer.policy
        if policy is None:
            for error in answer.errors:
                logger.error("%s", error)
            logger.error("%s%s", KEPT, f": {answer.failure}" if answer.failure else "")
            return None
        changed = [name for name, value in _fixed(policy).items() if value != self._fixed[name]]
        unfit = self.unfit(policy)
        if not changed and unfit is None:
            return current if policy.says_the_same_as(current) else policy
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
