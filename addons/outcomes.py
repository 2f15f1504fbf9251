"""What became of an exchange: whether it is really denied, what enforcing would have done, how it ended, and what was
done with it. The engine asks before it goes on; decision lines and metrics say it.

Rules of this module:

- What the policy says (`action_of`), what was done (`done`) and how it ended (`outcome_of`) are three things: in
  observe mode the first is not carried out, and a server can fail what the policy allows.
- A failure of the upstream is no word of the policy's: it never counts as what enforcing would have denied.
"""

from __future__ import annotations

from addons.exchange import Exchange
from proxy.core.decisions import Action
from proxy.core.reasons import UPSTREAM_FAILURES, Outcome


def is_denied(exchange: Exchange) -> bool:
    """Tell whether the exchange is really denied (not only in observe mode)."""
    return exchange.denied is not None and (exchange.is_carried_out or not exchange.observing)


def would_deny(exchange: Exchange) -> bool:
    """Tell whether enforcing the policy would have denied what observe mode let pass."""
    found = (exchange.denied, exchange.observed)
    return exchange.observing and any(denied is not None and denied.reason not in UPSTREAM_FAILURES for denied in found)


def never_left(exchange: Exchange) -> bool:
    """Tell whether the request was denied before any of it had reached the upstream."""
    return is_denied(exchange) and not exchange.has_left


def outcome_of(exchange: Exchange) -> Outcome:
    """Return how an exchange that is over has ended."""
    if exchange.denied is not None and is_denied(exchange):
        return exchange.denied.reason.outcome
    if exchange.app_left:
        return Outcome.APP_LEFT
    return Outcome.OBSERVED if exchange.observing else Outcome.OK


def action_of(exchange: Exchange) -> Action:
    """Return what the policy says of an exchange, whatever became of it then; in observe mode, too."""
    decision, denied = exchange.decision, exchange.denied
    if decision is None:
        return Action.DENY
    if denied is None:
        return decision.action
    says_no = would_deny(exchange) if exchange.observing else denied.reason.outcome is Outcome.DENIED
    return Action.DENY if says_no else decision.action


def done(exchange: Exchange) -> Action:
    """Return what was really done; in observe mode, a request is only passed on."""
    if not exchange.observing:
        return action_of(exchange)
    if exchange.is_carried_out and exchange.denied is not None and exchange.denied.reason.outcome is Outcome.DENIED:
        return Action.DENY
    if exchange.method == "CONNECT":
        return Action.TUNNEL
    if exchange.decision is None or exchange.decision.action in (Action.TUNNEL, Action.INSPECT):
        return Action.INSPECT
    if exchange.decision.action is Action.MIRROR:
        return Action.MIRROR
    return Action.ALLOW
