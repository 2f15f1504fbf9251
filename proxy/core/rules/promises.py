"""Says whether what is open under one policy would still be open under another. `proxy.engine.server` asks it after
each reload, about tunnels, WebSockets and long responses that go on.

Rules of this module:

- What counts is what the policy promises for a destination: which rule's protection it has, its pins, whom its server
  must be trusted by, where it may lead, and who may use it. A rule's name and its place in the list do not count.
- Keys count by their names: a policy that is read again has them in new objects, though nothing has changed. A key that
  is added, and one that comes to the front where values are sealed, ends nothing: a rotation loses no request. What
  ends is what seals or opens with a key that is there no more, and what has not the key that seals for it now.
- Pins that have ended end what is open, too: those of the rule, and those of the upstream proxy that it goes through.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from datetime import date

from proxy.core.decisions import Action
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.jose.keys import KeySet
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Policy, Rule, UpstreamProxy
from proxy.core.rules.transport import decide_https, decide_plain_http
from proxy.core.rules.trust import ClientCertificate

_LABELS = frozenset(("name", "hosts", "limits"))


def has_outlived(
    begun: Policy, rule: Rule | None, action: Action | None, now: Policy, asked: Destination, *, known: KnownHosts
) -> bool:
    """Tell whether something that began under a policy has another promise under the present one.

    Args:
        begun: the policy under which it began.
        rule: the rule that counted then.
        action: what was decided then; None if it came inside a CONNECT.
        now: the present policy.
        asked: the destination that the app asked for.
        known: the hosts that have asked for https only.
    """
    if begun is now:
        return False
    if action is Action.MIRROR:
        return _differs(begun, rule, now, now.rule_for(asked), None)
    is_plain = action in (Action.UPGRADE, Action.ALLOW)
    counts, decision = decide_plain_http(now, asked, known) if is_plain else decide_https(now, asked)
    is_observed = now.observes(counts)
    dialled = asked if is_observed or decision.target is None else decision.target
    is_denied = decision.action is Action.DENY and not is_observed
    return is_denied or _differs(begun, rule, now, counts, dialled)


def pins_have_ended(rule: Rule | None, today: date) -> bool:
    """Tell whether a rule's pins have ended, and nothing may pass any more."""
    return rule is not None and rule.pins is not None and rule.pins.have_run_out(today)


def _differs(begun: Policy, rule: Rule | None, now: Policy, counts: Rule | None, dialled: Destination | None) -> bool:
    """Tell whether two policies promise different things.

    Args:
        begun: the earlier policy.
        rule: the rule that counted in it.
        now: the present one.
        counts: the rule that counts in it.
        dialled: where it leads; None for a mirror's server, to which no upstream proxy does.
    """
    if _promise(begun, rule, dialled) != _promise(now, counts, dialled):
        return True
    entries = zip(() if rule is None else rule.fields, () if counts is None else counts.fields, strict=True)
    return any(_lacks_keys(was, each) for was, each in entries)


def _lacks_keys(was: FieldEntry, now: FieldEntry) -> bool:
    """Tell whether an entry of an earlier policy has keys that are withdrawn, or has not those that count now."""
    before, after = _kids(was.keys), _kids(now.keys)
    if was.work is Work.ENCRYPT:
        return not set(before[:1]) <= set(after)
    return not (set(before) <= set(after) and set(after[:1]) <= set(before))


def _kids(keys: KeySet) -> tuple[str, ...]:
    return tuple(key.kid for key in (keys.primary, *keys.older) if key is not None)


def _promise(policy: Policy, rule: Rule | None, dialled: Destination | None) -> Hashable:
    proxy = None if dialled is None else policy.proxy_to(dialled)
    return (
        policy.mode_of(rule),
        policy.trust_for(rule),
        policy.reachable(rule),
        policy.egress if rule is None else None,
        policy.defaults if rule is None else _content(rule),
        None if proxy is None else _content(proxy),
    )


def _content(value: object) -> Hashable:
    """Return what a part of the policy says, comparable with what another policy's says."""
    match value:
        case KeySet():
            return value.name, value.alg, value.bind  # for its keys see `_lacks_keys`
        case ClientCertificate():
            return value.chain
        case Rule():
            return tuple(_content(getattr(value, each.name)) for each in fields(value) if each.name not in _LABELS)
        case UpstreamProxy():
            return value.destination, value.is_https, _content(value.rule)
        case tuple():
            return tuple(_content(each) for each in value)
        case FieldEntry():
            return tuple(_content(getattr(value, each.name)) for each in fields(value) if each.compare)
        case Hashable():
            return value
    raise TypeError(f"a {type(value).__name__} in a policy, which cannot be compared")
