"""Shows each series of a policy before the first event of it, as 0. The processes call it at the start, and at each
reload.

Rules of this module:

- Whatever can be counted is shown: rates and increases need an earlier sample. The alerts of `docs.alerts` rely on it.
- There are as many series as the policy and our own enums make, however much is asked of the sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator

from addons.metrics import (
    CONNECTIONS,
    DIRECTIONS,
    KINDS,
    NO_LEVEL,
    NO_RULE,
    REFRESHES,
    RELOADS,
    UPSTREAM_PROXY,
    Metrics,
    pins_mode,
)
from proxy.core.decisions import Action
from proxy.core.fields.entries import Work
from proxy.core.handshakes import GROUPS
from proxy.core.pins import Level, PinSet, PinVerdict
from proxy.core.reasons import FIELD_REASONS, Outcome, Reason
from proxy.core.rules.ends import NO_STATUS, ends
from proxy.core.rules.policy import Mode, Policy


def expect(metrics: Metrics, policy: Policy) -> None:
    """Show everything that can be counted under a policy from now on, as 0, before it first happens.

    With several workers, one process does this for all of them.
    """
    for _ in rule_by_rule(metrics, policy):
        pass


def rule_by_rule(metrics: Metrics, policy: Policy) -> Iterator[None]:
    """Do what `expect` does, in pieces of a millisecond or two, between which others are served."""
    for each in (None, *policy.rules):
        yield
        rule, mode = each.name if each else NO_RULE, policy.mode_of(each)
        for end in ends(mode, is_mirrored=policy.is_mirrored(each)):
            metrics.requests.labels(rule, mode, *end)
        if each is None and policy.mirrored:
            failed = Reason.APP_TLS_FAILED
            metrics.requests.labels(rule, mode, Action.DENY, failed.outcome, failed.code, NO_STATUS)
        for times in (metrics.seconds, metrics.own, metrics.upstream):
            times.labels(rule, mode)
        for direction in ("sent", "received"):
            metrics.bytes.labels(rule, mode, direction)
        for group in GROUPS:
            metrics.handshakes.labels(rule, group)
        for kind in KINDS:
            metrics.in_flight.labels(rule, mode, kind)
        if each is None:
            continue
        metrics.certificate_expiry.labels(rule)
        for entry in each.fields:
            if mode is Mode.ENFORCE:
                metrics.fields.labels(rule, mode, entry.name, DIRECTIONS[entry.work])
            for reason in FIELD_REASONS:
                metrics.field_failures.labels(rule, mode, entry.name, reason.code)
        if each.pins is not None:
            _expect_pins(metrics, each.name, each.pins, mode)
    if policy.upstream_proxy is not None and policy.upstream_proxy.rule.pins is not None:
        _expect_pins(metrics, UPSTREAM_PROXY, policy.upstream_proxy.rule.pins, Mode.ENFORCE)
    _expect_keys(metrics, policy)
    for name, key_set in policy.keys.items():
        if key_set.supply is not None:
            for result in REFRESHES:
                metrics.jwks_refreshes.labels(name, result)
    for user in policy.clients.users:
        for outcome in Outcome:
            metrics.users.labels(metrics.user_label(policy, user.name), outcome)
    own = (
        metrics.memory,
        metrics.descriptors,
        metrics.most_descriptors,
        metrics.processor,
        metrics.lag,
        metrics.measured,
    )
    for of_process in own:
        of_process.labels(metrics.process)
    for result in RELOADS:
        metrics.reloads.labels(result)
    for result in CONNECTIONS:
        metrics.pool.labels(result)


def _expect_pins(metrics: Metrics, rule: str, pins: PinSet, mode: Mode) -> None:
    mode = pins_mode(pins, mode)
    for verdict in PinVerdict:
        for level in Level if verdict is PinVerdict.MATCH else (NO_LEVEL,):
            metrics.pins.labels(rule, mode, verdict.value, level)
    for pin in pins.any_of:
        for level in Level:
            metrics.pin_matches.labels(rule, pin.short, level)


def _expect_keys(metrics: Metrics, policy: Policy) -> None:
    for entry in (entry for rule in policy.rules for entry in rule.fields):
        keys = entry.keys.keys[:1] if entry.work is Work.ENCRYPT else entry.keys.keys
        for key in keys:
            if entry.work is Work.ENCRYPT or key.can_open:
                metrics.key_uses.labels(entry.keys.name, key.kid, DIRECTIONS[entry.work])
