"""All the ways in which requests and tunnels of a rule can end, as the metrics tell them apart. `addons.expected` shows
each as 0 before it first happens; `addons.telemetry` counts it.

Rules of this module:

- An end is made of our own enums, and of a status's class: no peer can make another one.
- Whatever is counted is among them, except where observe mode lets pass what enforcing would deny: of the statuses of
  that only the most usual one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proxy.core.decisions import Action
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.policy import Mode

NO_REASON = "-"
NO_STATUS = "-"
_STATUS_CLASSES = (NO_STATUS, "1xx", "2xx", "3xx", "4xx", "5xx")
_PASSING = (Action.UPGRADE, Action.ALLOW, Action.INSPECT)
_MIRRORING = (Action.MIRROR,)
_ANSWERED_NEVER = frozenset((Reason.UPSTREAM_CUT, Reason.APP_TLS_FAILED, Reason.NOT_HTTP))


class End(NamedTuple):
    """How a request or a tunnel ended, as labels."""

    action: str
    outcome: str
    reason: str
    status: str


def status_class(status: int | None) -> str:
    """Return the class of a status as a label. Beyond 599 is as 5xx (RFC 9110, section 15)."""
    return _STATUS_CLASSES[min((status or 0) // 100, 5)]


def ends(mode: Mode, *, is_mirrored: bool = False) -> Iterator[End]:
    """Return how requests can end, to show them as 0. Where observe mode lets pass what enforcing would deny, only the
    most usual status is among them.

    Args:
        mode: the mode in which they are handled.
        is_mirrored: whether they come to mirror listeners.
    """
    good = Outcome.OK if mode is Mode.ENFORCE else Outcome.OBSERVED
    passing, tunnels = (_MIRRORING, ()) if is_mirrored else (_PASSING, (Action.TUNNEL,))
    for action in passing:
        for status in _STATUS_CLASSES[1:]:
            yield End(action, good, NO_REASON, status)
        yield End(action, Outcome.APP_LEFT, NO_REASON, NO_STATUS)
    for action in tunnels:
        yield End(action, good, NO_REASON, NO_STATUS)
        yield End(action, Outcome.APP_LEFT, NO_REASON, NO_STATUS)
    for reason in Reason:
        outcome, told = reason.outcome, status_class(reason.status)
        if reason is Reason.APP_TLS_FAILED:
            # Of a mirror's peer that did not get so far, no rule is known.
            actions = [] if is_mirrored else [Action.INSPECT]
        else:
            actions = [Action.DENY] if outcome is Outcome.DENIED else [*passing, *tunnels]
        for action in actions:
            if reason not in _ANSWERED_NEVER:
                yield End(action, outcome, reason.code, told)
            if outcome is not Outcome.UPSTREAM_FAILED or action is Action.TUNNEL:
                yield End(action, outcome, reason.code, NO_STATUS)
        if mode is Mode.OBSERVE and outcome is Outcome.DENIED:
            yield End(Action.DENY, good, reason.code, "2xx")
            yield End(Action.DENY, good, reason.code, NO_STATUS)
