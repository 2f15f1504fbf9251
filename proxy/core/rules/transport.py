"""The transport rules: whether plain http is upgraded, rejected or allowed, and https tunnelled, inspected or rejected;
and which addresses may be dialled. The addons `addons.gate` and `addons.pinning`, the engine and `overcoat explain`
call it.

Rules of this module:

- A decision is made on the destination that was asked for, before anything is dialled.
- A failed upgrade stays failed: nothing here, and no caller, ever falls back to plain http.
- A decision that depends on policy and destination alone is made once and cached. What is known about hosts (RFC 6797)
  may change at any time, so it is asked each time. A denial is never cached, since it is raised as an exception.
"""

from __future__ import annotations

from dataclasses import replace

from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination, is_local_name
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.kept import Kept
from proxy.core.rules.policy import Egress, Https, PlainHttp, Policy, Rule, upgraded
from proxy.core.who.addresses import Address, AddressKind, kind_of, parse_ip

type _Decided = tuple[Rule | None, Decision]
_plain_http: Kept[Destination, _Decided] = Kept()
_https: Kept[Destination, _Decided] = Kept()


def decide_plain_http(
    policy: Policy, asked: Destination, known: KnownHosts | None = None
) -> tuple[Rule | None, Decision]:
    """Decide on a request that the app sent as plain http.

    Args:
        policy: the policy in force.
        asked: the destination in the request's own authority.
        known: the hosts that must be asked over https only, even if the policy lets plain http pass (RFC 6797).

    Returns:
        The rule that counts, if any, and UPGRADE or ALLOW with the target to dial, or DENY.
    """
    decided = _plain_http.get(policy, asked)
    if decided is None:
        decided = _decide_plain_http(policy, asked)
        if decided[1].denied is None:
            _plain_http.keep(policy, asked, decided)
    rule, decision = decided
    if decision.action is not Action.ALLOW or known is None:
        return decided
    if not known.knows(asked.host, uses_preload=policy.hsts_preload):
        return decided
    rule, decision = _upgrade(policy, rule, asked)
    return rule, replace(decision, is_by_hsts=True)


def _decide_plain_http(policy: Policy, asked: Destination) -> _Decided:
    """Decide by the policy alone."""
    rule = policy.rule_for_plain_http(asked)
    if asked.host in policy.mirrored:
        return rule, Decision(Action.DENY, denied=_mirrored(asked))
    if rule is None and policy.egress is Egress.LISTED:
        return None, Decision(Action.DENY, denied=_not_listed(asked))
    what = rule.plain_http if rule else policy.defaults.plain_http
    if what is PlainHttp.UPGRADE:
        return _upgrade(policy, rule, asked)
    if what is PlainHttp.ALLOW:
        return rule, Decision(Action.ALLOW, asked)
    where = f"rule {rule.name}" if rule else "the policy's default"
    return rule, Decision(
        Action.DENY,
        denied=Denied(
            Reason.PLAIN_HTTP_REJECTED,
            f"{where} rejects plain http to {asked}",
            hint_for_neighbour(asked.host, rule)
            or f"use https://{upgraded(asked, None).authority}/ in the app, or set plain_http: upgrade for this host",
        ),
    )


def _upgrade(policy: Policy, rule: Rule | None, asked: Destination) -> tuple[Rule | None, Decision]:
    """Decide on an upgrade. The rule for the target counts, too: nothing that either rule protects may get lost."""
    target = upgraded(asked, rule.https_port if rule else None)
    there = policy.rule_for(target)
    if there is not None and policy.observes(there) is not policy.observes(rule):
        return rule, Decision(Action.UPGRADE, target)  # the one that is carried out must not become one that is not
    if there is not None and there.https is Https.REJECT:
        return there, Decision(Action.DENY, denied=_https_rejected(there, target))
    if there is None or there is rule:
        return rule, Decision(Action.UPGRADE, target)
    if rule is None or not _would_be_missed(policy, rule, there):
        return there, Decision(Action.UPGRADE, target)
    if not _would_be_missed(policy, there, rule):
        return rule, Decision(Action.UPGRADE, target)
    return rule, Decision(
        Action.DENY,
        denied=Denied(
            Reason.PLAIN_HTTP_REJECTED,
            f"rule {rule.name} upgrades {asked} to {target}, which rule {there.name} protects in another way",
            "let one rule name both ports of the host",
        ),
    )


def _would_be_missed(policy: Policy, rule: Rule, other: Rule) -> bool:
    """Tell whether a rule protects what goes out under another one instead: its pins or fields, or a `trust` of its own
    that takes less.
    """
    if rule.needs_plaintext:
        return True
    return rule.trust is not None and not policy.trust_for(other).takes_only_what_is_taken_by(rule.trust)


def decide_https(policy: Policy, asked: Destination) -> tuple[Rule | None, Decision]:
    """Decide on https to a destination, inside CONNECT or as an absolute-form request.

    Args:
        policy: the policy in force.
        asked: the CONNECT authority, or the authority of an `https://` request target.

    Returns:
        The rule that counts, if any, and TUNNEL or INSPECT with the target to dial, or DENY.
    """
    decided = _https.get(policy, asked)
    if decided is None:
        decided = _decide_https(policy, asked)
        if decided[1].denied is None:
            _https.keep(policy, asked, decided)
    return decided


def _decide_https(policy: Policy, asked: Destination) -> _Decided:
    rule = policy.rule_for(asked)
    if asked.host in policy.mirrored:
        return rule, Decision(Action.DENY, denied=_mirrored(asked))
    if rule is None and policy.egress is Egress.LISTED:
        return None, Decision(Action.DENY, denied=_not_listed(asked))
    what = rule.https if rule else policy.defaults.https
    if what is Https.TUNNEL:
        return rule, Decision(Action.TUNNEL, asked)
    if what is Https.INSPECT:
        return rule, Decision(Action.INSPECT, asked)
    return rule, Decision(Action.DENY, denied=_https_rejected(rule, asked))


def decide_mirror(policy: Policy, asked: Destination, to: Destination) -> tuple[Rule | None, Decision]:
    """Decide on a request that came to a mirror listener.

    Args:
        policy: the policy in force.
        asked: the destination for which the listener stands, under which rules name it.
        to: where the server behind it is.

    Returns:
        The rule that counts, and MIRROR with the target to dial.
    """
    return policy.rule_for(asked), Decision(Action.MIRROR, to)


def forbidden_behind_mirror(
    policy: Policy, rule: Rule | None, host: str, address: Address, *, is_plain: bool
) -> Denied | None:
    """Return the denial of a mirror's server at an address where it must not be; None if it may be there.

    Plain http goes to loopback, and to addresses that are not public and that the policy names; nowhere else, and in no
    mode. Over https, a public address will do, too.

    Args:
        policy: the policy in force.
        rule: the rule of the host for which the mirror stands.
        host: the server's canonical host, for the message.
        address: its address.
        is_plain: whether it is spoken to in plain http.
    """
    kind = kind_of(address)
    if kind is AddressKind.LOOPBACK:
        return None
    if kind is None and is_plain:
        return Denied(
            Reason.DESTINATION_FORBIDDEN,
            f"{host} is at a public address, where no plain http goes",
            "let the mirror run beside its server, or write https:// in its `to`",
        )
    if kind is not None and policy.reachable(rule).forbids(address) is not None:
        return forbidden_address(host, kind, rule)
    return None


def denied_by_address(policy: Policy, rule: Rule | None, host: str) -> Denied | None:
    """Return the denial of a host that is a forbidden address, or a name that always leads to one; None for other
    hosts.

    Args:
        policy: the policy in force.
        rule: the rule that counts.
        host: the canonical host. Other names must be resolved first: see `forbidden_address`.
    """
    address = _known_address(host)
    kind = policy.reachable(rule).forbids(address) if address is not None else None
    return forbidden_address(host, kind, rule) if kind is not None else None


def forbidden_address(host: str, kind: AddressKind, rule: Rule | None) -> Denied:
    """Return the denial of a host at a kind of address that the policy does not allow.

    Args:
        host: the canonical host.
        kind: the kind of its address.
        rule: the rule that counts.
    """
    detail = f"{host} is at a {kind} address, where the policy lets nothing go"
    where = "address" if kind is AddressKind.METADATA else "network"  # no wider network includes it
    allow = f"destinations: {{allow: [{kind}]}} (or just its {where})"
    remedy = f"give it a rule of its own with {allow}" if rule is None else f"write {allow} in rule {rule.name}"
    if kind not in _NEARBY and (kind is AddressKind.METADATA or not is_local_name(host)):
        return Denied(Reason.DESTINATION_FORBIDDEN, detail, f"if the app is to reach it, {remedy}")
    if rule is None or not (rule.plain_http is PlainHttp.ALLOW or rule.needs_plaintext):
        remedy += ", and plain_http: allow if it speaks no TLS"
    own = f"{_REACH_OWN}; if what is beside Overcoat is meant, {remedy}"
    other = f"{_reach_directly(host)}; or, if Overcoat is to carry it, {remedy}"
    return Denied(Reason.DESTINATION_FORBIDDEN, detail, own if kind is AddressKind.LOOPBACK else other)


_NEARBY = frozenset((AddressKind.LOOPBACK, AddressKind.PRIVATE, AddressKind.CGNAT, AddressKind.LINK_LOCAL))
_REACH_OWN = (
    "that is where Overcoat runs; what the app has on a localhost of its own, it reaches directly with "
    "NO_PROXY=localhost,127.0.0.1,::1 (and no_proxy) in its environment"
)


def _reach_directly(host: str) -> str:
    return f"if {host} is a neighbour of the app's, name it in the app's NO_PROXY and no_proxy"


def _known_address(host: str) -> Address | None:
    """Return the address that a host is, or that its name always leads to; None for other names."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        host = "127.0.0.1"
    try:
        return parse_ip(host)
    except ValueError:
        return None


def hint_for_neighbour(host: str, rule: Rule | None) -> str:
    """Return the hint for a host nearby, which mostly speaks no TLS and needs no proxy; "" for any other host.

    Args:
        host: the canonical host.
        rule: the rule that counts. One that protects its hosts was not written for such a neighbour.
    """
    address = _known_address(host)
    kind = AddressKind.PRIVATE if address is None else kind_of(address)
    if kind not in _NEARBY or (address is None and not is_local_name(host)):
        return ""
    if rule is None:
        return forbidden_address(host, kind, None).hint
    if rule.needs_plaintext:
        return ""
    return f"{_reach_directly(host)}; or, if it speaks no TLS, write plain_http: allow in rule {rule.name}"


def unresolved(host: str, *, is_unknown: bool) -> Denied:
    """Return the denial of a host whose name cannot be resolved.

    Args:
        host: the canonical host.
        is_unknown: whether there is no such name, by what was asked; otherwise that gave no answer.
    """
    if is_unknown:
        why, hint = "there is no such name, or it has no address", f"see that {host} is spelt as it should be"
    else:
        why, hint = (
            "the DNS gave no answer",
            "see whether the DNS server is up that Overcoat's machine or container asks",
        )
    if is_local_name(host):
        hint = f"{_reach_directly(host)}; or let Overcoat share a network with it"
    return Denied(Reason.UPSTREAM_UNREACHABLE, f"the name {host} cannot be resolved: {why}", hint)


def untaken(host: str, port: int, *, is_behind_mirror: bool = False) -> Denied:
    """Return the denial of a host at whose address and port nobody listens."""
    if is_behind_mirror:
        hint = "see that the server behind the mirror listener runs, and listens where `to` says"
        return Denied(Reason.UPSTREAM_UNREACHABLE, f"{host} port {port} takes no connection", hint)
    address = _known_address(host)
    is_own = address is not None and kind_of(address) is AddressKind.LOOPBACK
    return Denied(Reason.UPSTREAM_UNREACHABLE, f"{host} port {port} takes no connection", _REACH_OWN if is_own else "")


def own_listener(where: str) -> Denied:
    """Return the denial of a destination that is one of the sidecar's own listeners."""
    return Denied(
        Reason.DESTINATION_FORBIDDEN,
        f"{where} is one of Overcoat's own listeners",
        "nothing makes them reachable through it: the app must have meant another port",
    )


def _mirrored(asked: Destination) -> Denied:
    return Denied(
        Reason.DESTINATION_FORBIDDEN,
        f"a mirror listener here stands for {asked.host}, and its rule is about what comes to that host, not what "
        "leaves for it",
        "let the app reach its own server directly (NO_PROXY), or give it a sidecar with a policy of its own",
    )


def _not_listed(asked: Destination) -> Denied:
    return Denied(
        Reason.DESTINATION_FORBIDDEN,
        f"no rule names {asked}, and the policy lets nothing else out",
        hint_for_neighbour(asked.host, None) or "name the host in a rule, or set destinations.egress: any",
    )


def _https_rejected(rule: Rule | None, target: Destination) -> Denied:
    where = f"rule {rule.name}" if rule else "the policy's default"
    return Denied(
        Reason.HTTPS_REJECTED,
        f"{where} rejects https to {target}",
    )
