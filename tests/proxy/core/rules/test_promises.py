"""Whether what began under one policy has the same promise under another."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy.core.decisions import Action
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.pins import AfterExpiry, Pin, PinSet
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import (
    Defaults,
    Egress,
    HostPattern,
    Https,
    Mode,
    PlainHttp,
    Policy,
    Rule,
    RuleLimits,
    UpstreamProxy,
)
from proxy.core.rules.promises import has_outlived, pins_have_ended
from proxy.core.rules.trust import ClientCertificate, Trust

HOST = Destination("api.example", 443)
KNOWN = KnownHosts(lambda: 0.0, lambda _: False)
HOSTS = (HostPattern("exact", "api.example"),)
RULE = Rule("a", HOSTS, PlainHttp.UPGRADE, Https.INSPECT)
PINS = PinSet((Pin("spki", bytes(32)),), date(2026, 6, 30))
DAY_AFTER = date(2026, 7, 1)


def policy(rule: Rule | None = None, **more: Any) -> Policy:
    return Policy(rules=() if rule is None else (rule,), **more)


def key_set(kid: str = "k", *older: str) -> KeySet:
    first, *others = (new_key(Alg.A256KW, kid=each) for each in (kid, *older))
    return KeySet("set", Alg.A256KW, first, tuple(others))


def certificate(der: bytes = b"own") -> ClientCertificate:
    return ClientCertificate(Path("own.pem"), (der,), SecretBytes(b""), datetime.now(UTC))


ENTRY = FieldEntry((parse_selector("$.a"),), key_set())
PROXY = UpstreamProxy(Destination("proxy.example", 3128), False, Rule("p", (), PlainHttp.REJECT, Https.INSPECT))
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"rule": replace(RULE, name="another name")}),
    ({}, {"rule": replace(RULE, hosts=(*HOSTS, HostPattern("exact", "other.example")))}),
    ({}, {"rule": replace(RULE, limits=RuleLimits(5))}),
    ({"rule": replace(RULE, request=(ENTRY,))}, {"rule": replace(RULE, request=(replace(ENTRY, keys=key_set()),))}),
    (
        {"rule": replace(RULE, client_certificate=certificate())},
        {"rule": replace(RULE, client_certificate=certificate())},
    ),
    ({"upstream_proxy": PROXY}, {"upstream_proxy": replace(PROXY)}),
    ({}, {"upstream_proxy": replace(PROXY, direct=HOSTS)}),
    ({}, {"workers": 3}),
    ({}, {"egress": Egress.LISTED}),
]
OTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"rule": replace(RULE, pins=PINS)}),
    ({}, {"rule": replace(RULE, https=Https.REJECT)}),
    ({}, {"rule": replace(RULE, trust=Trust(strict=False))}),
    ({}, {"rule": None}),
    ({}, {"trust": Trust(min_tls="1.3")}),
    ({}, {"mode": Mode.OBSERVE}),
    ({"rule": None}, {"rule": None, "defaults": Defaults(https=Https.INSPECT)}),
    ({"rule": None}, {"rule": None, "egress": Egress.LISTED}),
    (
        {"rule": replace(RULE, request=(ENTRY,))},
        {"rule": replace(RULE, request=(replace(ENTRY, keys=key_set("another")),))},
    ),
    (
        {"rule": replace(RULE, client_certificate=certificate())},
        {"rule": replace(RULE, client_certificate=certificate(b"another"))},
    ),
    ({}, {"upstream_proxy": PROXY}),
    ({"upstream_proxy": PROXY}, {"upstream_proxy": replace(PROXY, is_https=True)}),
]


def outlived(before: dict[str, Any], after: dict[str, Any]) -> bool:
    begun, now = (policy(**{"rule": RULE, **each}) for each in (before, after))
    return has_outlived(begun, begun.rule_for(HOST), Action.TUNNEL, now, HOST, known=KNOWN)


@pytest.mark.parametrize(("before", "after"), SAME)
def test_what_promises_the_same_goes_on(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert not outlived(before, after)


@pytest.mark.parametrize(("before", "after"), OTHER)
def test_what_promises_something_else_does_not(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert outlived(before, after)


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [  # which ends: what seals, what opens
        (("a",), ("a", "b"), (False, False)),  # added
        (("a", "b"), ("b", "a"), (False, False)),  # brought to the front, which what opens has had before
        (("a",), ("b", "a"), (False, True)),  # … and has not
        (("b", "a"), ("b",), (False, True)),  # retired
        (("a", "b"), ("b",), (True, True)),  # … though it still seals
        (("a",), ("b",), (True, True)),
    ],
)
def test_a_rotation_ends_only_what_has_keys_that_count_no_more(
    before: tuple[str, ...], after: tuple[str, ...], ends: tuple[bool, bool]
) -> None:
    def rule(kids: tuple[str, ...], place: str, work: Work) -> Rule:
        entry = replace(ENTRY, keys=key_set(*kids), work=work)
        return replace(RULE, request=(entry,)) if place == "request" else replace(RULE, response=(entry,))

    for work, is_ended in zip(Work, ends, strict=True):
        for place in ("request", "response"):
            assert outlived({"rule": rule(before, place, work)}, {"rule": rule(after, place, work)}) is is_ended


def test_under_the_same_policy_everything_goes_on() -> None:
    same = policy(RULE)
    assert not has_outlived(same, None, None, same, HOST, known=KNOWN)


def test_plain_http_has_the_rule_that_counts_for_plain_http() -> None:
    asked, upgrade = Destination("api.example", 80), Action.UPGRADE
    begun, same = policy(RULE), policy(RULE)
    assert not has_outlived(begun, RULE, upgrade, same, asked, known=KNOWN)
    assert has_outlived(begun, RULE, upgrade, policy(replace(RULE, plain_http=PlainHttp.REJECT)), asked, known=KNOWN)
    observing = policy(replace(RULE, plain_http=PlainHttp.REJECT, mode=Mode.OBSERVE))
    (rule,) = observing.rules
    assert not has_outlived(observing, rule, upgrade, policy(replace(rule)), asked, known=KNOWN)


def test_what_came_to_a_mirror_has_the_rule_of_the_host_for_which_it_stands() -> None:
    rejecting = replace(RULE, https=Https.REJECT)  # what apps may ask for does not matter there
    begun, same, other = policy(rejecting), policy(rejecting), policy(replace(rejecting, trust=Trust(strict=False)))
    assert not has_outlived(begun, rejecting, Action.MIRROR, same, HOST, known=KNOWN)
    assert has_outlived(begun, rejecting, Action.MIRROR, other, HOST, known=KNOWN)


def test_the_upstream_proxy_counts_where_it_is_dialled() -> None:
    asked = Destination("api.example", 80)
    other = replace(PROXY, is_https=True)

    def ends(direct_port: int, rule: Rule = RULE, action: Action = Action.UPGRADE) -> bool:
        direct = (HostPattern("exact", "api.example", direct_port),)
        begun, now = (policy(rule, upstream_proxy=replace(each, direct=direct)) for each in (PROXY, other))
        return has_outlived(begun, rule, action, now, asked, known=KNOWN)

    assert (ends(443), ends(80)) == (False, True)
    observing = replace(RULE, mode=Mode.OBSERVE)  # where it is dialled as it was asked for
    assert (ends(443, observing), ends(80, observing)) == (True, False)
    assert not ends(443, action=Action.MIRROR)  # whose server no upstream proxy leads to
    assert not ends(80, action=Action.MIRROR)


def test_what_is_no_part_of_a_policy_is_not_compared() -> None:
    odd = replace(RULE, pins=[])  # type: ignore[arg-type]  # what must not be
    with pytest.raises(TypeError, match="list"):
        outlived({"rule": odd}, {})


@pytest.mark.parametrize(
    ("pins", "ended"),
    [
        (None, False),
        (PINS, True),
        (replace(PINS, expires=None), False),
        (replace(PINS, expires=DAY_AFTER), False),
        (replace(PINS, after_expiry=AfterExpiry.WARN), False),
        (replace(PINS, observes=True), False),
    ],
)
def test_pins_that_have_ended_and_still_count_end_what_is_open(pins: PinSet | None, ended: bool) -> None:
    assert pins_have_ended(replace(RULE, pins=pins), DAY_AFTER) is ended
    assert pins is None or pins.have_run_out(DAY_AFTER) is ended


def test_no_rule_has_no_pins() -> None:
    assert not pins_have_ended(None, DAY_AFTER)
