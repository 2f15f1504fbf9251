"""Upgrade, reject, allow, tunnel or inspect: the transport rules.

Rules of this module:

- A decision is made on the destination that was asked for, before anything is dialled.
- A failed upgrade stays failed: nothing here, and nothing that calls it, ever goes back to plain http.
"""

from __future__ import annotations

from dataclasses import replace

from proxy.core.addresses import AddressKind, parse_ip
from proxy.core.decisions import Action, Decision, Denied, Reason
from proxy.core.destinations import Destination
from proxy.core.hsts import KnownHosts
from proxy.core.policy import Egress, Https, PlainHttp, Policy, Rule, upgraded


def decide_plain_http(
    policy: Policy, asked: Destination, known: KnownHosts | None = None
) -> tuple[Rule | None, Decision]:
    """Decide on a request that the app sent as plain http.

    Args:
        policy: the policy in force.
        asked: the destination in the request's own authority.
        known: the hosts that are to be asked over https only, whatever the policy lets pass (RFC 6797).

    Returns:
        The rule that counts, if any, and UPGRADE or ALLOW with the target to dial, or DENY.
    """
    rule = policy.rule_for_plain_http(asked)
    if rule is None and policy.egress is Egress.LISTED:
        return None, Decision(Action.DENY, denied=_not_listed(asked))
    what = rule.plain_http if rule else policy.defaults.plain_http
    if what is PlainHttp.UPGRADE:
        return _upgrade(policy, rule, asked)
    if what is PlainHttp.ALLOW and known is not None and known.knows(asked.host, uses_preload=policy.hsts_preload):
        rule, decision = _upgrade(policy, rule, asked)
        return rule, replace(decision, is_by_hsts=True)
    if what is PlainHttp.ALLOW:
        return rule, Decision(Action.ALLOW, asked)
    where = f"rule {rule.name}" if rule else "the policy's default"
    return rule, Decision(
        Action.DENY,
        denied=Denied(
            Reason.PLAIN_HTTP_REJECTED,
            f"{where} rejects plain http to {asked}",
            f"use https://{upgraded(asked, None).authority}/ in the app, or set plain_http: upgrade for this host",
        ),
    )


def _upgrade(policy: Policy, rule: Rule | None, asked: Destination) -> tuple[Rule | None, Decision]:
    """Decide on an upgrade: what is dialled has a say, too, and nothing that either rule protects may get lost."""
    target = upgraded(asked, rule.https_port if rule else None)
    there = policy.rule_for(target)
    if there is not None and there.https is Https.REJECT:
        return there, Decision(Action.DENY, denied=_https_rejected(there, target))
    if there is None or there is rule:
        return rule, Decision(Action.UPGRADE, target)
    if rule is None or not rule.needs_plaintext:
        return there, Decision(Action.UPGRADE, target)
    if not there.needs_plaintext:
        return rule, Decision(Action.UPGRADE, target)
    return rule, Decision(
        Action.DENY,
        denied=Denied(
            Reason.PLAIN_HTTP_REJECTED,
            f"rule {rule.name} upgrades {asked} to {target}, which rule {there.name} protects in another way",
            "let one rule name both ports of the host",
        ),
    )


def decide_https(policy: Policy, asked: Destination) -> tuple[Rule | None, Decision]:
    """Decide on https to a destination, inside CONNECT or as an absolute-form request.

    Args:
        policy: the policy in force.
        asked: the CONNECT authority, or the authority of an `https://` request target.

    Returns:
        The rule that counts, if any, and TUNNEL or INSPECT with the target to dial, or DENY.
    """
    rule = policy.rule_for(asked)
    if rule is None and policy.egress is Egress.LISTED:
        return None, Decision(Action.DENY, denied=_not_listed(asked))
    what = rule.https if rule else policy.defaults.https
    if what is Https.TUNNEL:
        return rule, Decision(Action.TUNNEL, asked)
    if what is Https.INSPECT:
        return rule, Decision(Action.INSPECT, asked)
    return rule, Decision(Action.DENY, denied=_https_rejected(rule, asked))


def denied_by_address(policy: Policy, host: str) -> Denied | None:
    """Return why a host must not be reached that is an address, or always leads to one.

    Args:
        policy: the policy in force.
        host: the canonical host. What is known of any other name is what a look-up says: see `forbidden_address`.
    """
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        host = "127.0.0.1"
    try:
        kind = policy.destinations.forbids(parse_ip(host))
    except ValueError:
        return None
    return forbidden_address(host, kind) if kind is not None else None


def forbidden_address(host: str, kind: AddressKind) -> Denied:
    """Return why a host at an address of a kind that the policy does not allow is not reached."""
    where = "address" if kind is AddressKind.METADATA else "network"  # a network of many does not include it
    return Denied(
        Reason.DESTINATION_FORBIDDEN,
        f"{host} is at a {kind} address, where the policy lets nothing go",
        f"if the app is to reach it, add {kind}, or just its {where}, to destinations.allow",
    )


def own_listener(where: str) -> Denied:
    """Return why one of the sidecar's own listeners is not reached."""
    return Denied(
        Reason.DESTINATION_FORBIDDEN,
        f"{where} is one of Overcoat's own listeners",
        "nothing makes them reachable through it: the app must have meant another port",
    )


def _not_listed(asked: Destination) -> Denied:
    return Denied(
        Reason.DESTINATION_FORBIDDEN,
        f"no rule names {asked}, and the policy lets nothing else out",
        "name the host in a rule, or set destinations.egress: any",
    )


def _https_rejected(rule: Rule | None, target: Destination) -> Denied:
    where = f"rule {rule.name}" if rule else "the policy's default"
    return Denied(
        Reason.HTTPS_REJECTED,
        f"{where} rejects https to {target}",
    )
