"""What became of a request, by what is known of it."""

from __future__ import annotations

import pytest

from addons.exchange import Exchange
from addons.outcomes import action_of, done, is_denied, never_left, would_deny
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.policy import Mode, Policy

FIRST = Denied(Reason.PLAIN_HTTP_REJECTED, "first", "a hint")


def exchange(
    mode: Mode = Mode.ENFORCE,
    action: Action | None = Action.UPGRADE,
    denied: Denied | None = None,
    method: str = "POST",
) -> Exchange:
    """Return an exchange that was decided."""
    decision = None if action is None else Decision(action)
    return Exchange(Policy(mode=mode), "127.0.0.1", method, "/", decision=decision, denied=denied)


@pytest.mark.parametrize(
    ("decision", "denied", "action"),
    [
        (None, None, Action.DENY),  # nothing was decided: closed
        (Decision(Action.UPGRADE, Destination("api.example", 443)), None, Action.UPGRADE),
        (Decision(Action.UPGRADE, Destination("api.example", 443)), FIRST, Action.DENY),
        (Decision(Action.TUNNEL, Destination("api.example", 443)), None, Action.TUNNEL),
    ],
)
def test_what_the_policy_says_of_an_exchange(decision: Decision | None, denied: Denied | None, action: Action) -> None:
    it = Exchange(Policy(), "127.0.0.1", decision=decision, denied=denied)
    assert action_of(it) is action
    assert is_denied(it) is (denied is not None)


@pytest.mark.parametrize(
    ("mode", "reason", "would", "is_kept"),
    [
        (Mode.ENFORCE, Reason.PIN_MISMATCH, False, True),
        (Mode.ENFORCE, Reason.UPSTREAM_TIMEOUT, False, True),
        (Mode.OBSERVE, Reason.PIN_MISMATCH, True, False),
        (Mode.OBSERVE, Reason.UPSTREAM_FAILED, False, False),
        (Mode.OBSERVE, Reason.UPSTREAM_UNREACHABLE, False, False),
        (Mode.OBSERVE, Reason.UPSTREAM_CUT, False, False),
    ],
)
def test_what_would_be_denied_and_what_has_left(mode: Mode, reason: Reason, would: bool, is_kept: bool) -> None:
    it = exchange(mode)
    assert not would_deny(it)
    assert not never_left(it)
    it.note_reason(Denied(reason, "x"))
    assert would_deny(it) is would
    assert never_left(it) is is_kept
    it.has_left = True
    assert not never_left(it)
    is_denied_here = mode is Mode.ENFORCE and reason.outcome is Outcome.DENIED
    assert (action_of(it) is Action.DENY) is (is_denied_here or would)


@pytest.mark.parametrize(
    ("it", "action"),
    [
        (exchange(action=Action.UPGRADE), Action.UPGRADE),
        (exchange(action=Action.TUNNEL), Action.TUNNEL),
        (exchange(action=Action.UPGRADE, denied=FIRST), Action.DENY),
        (exchange(action=None), Action.DENY),
        (exchange(action=Action.TUNNEL, denied=Denied(Reason.IDLE_TIMEOUT, "why")), Action.TUNNEL),
        (exchange(action=None, denied=Denied(Reason.DRAIN_TIMEOUT, "why")), Action.DENY),
        (exchange(Mode.OBSERVE, Action.UPGRADE), Action.ALLOW),
        (exchange(Mode.OBSERVE, Action.ALLOW), Action.ALLOW),
        (exchange(Mode.OBSERVE, Action.DENY, denied=FIRST), Action.ALLOW),
        (exchange(Mode.OBSERVE, Action.INSPECT), Action.INSPECT),
        (exchange(Mode.OBSERVE, Action.INSPECT, method="CONNECT"), Action.TUNNEL),
        (exchange(Mode.OBSERVE, Action.DENY, method="CONNECT", denied=FIRST), Action.TUNNEL),
    ],
)
def test_action_says_what_was_done_and_in_observe_mode_that_is_passing_on(it: Exchange, action: Action) -> None:
    assert done(it) is action
