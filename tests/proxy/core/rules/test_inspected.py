"""Which hosts a policy inspects, and whether a CA's constraints leave one out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificates.constraints import Constraints
from proxy.core.destinations import Destination
from proxy.core.rules.inspected import NotFixed, constraints_for, outside
from proxy.core.rules.policy import (
    Defaults,
    Egress,
    HostPattern,
    Https,
    Listener,
    ListenerKind,
    Mirror,
    Mode,
    PlainHttp,
    Policy,
    Rule,
)

EXACT, ONE, ANY = (
    HostPattern("exact", "a.example"),
    HostPattern("one_label", "b.example"),
    HostPattern("any_depth", "c"),
)
LABELS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
PATTERNS = st.builds(HostPattern, st.sampled_from(["exact", "one_label", "any_depth"]), NAMES)


def rule(*hosts: HostPattern, https: Https = Https.INSPECT, mode: Mode | None = None) -> Rule:
    return Rule("pay", hosts, PlainHttp.UPGRADE, https, mode=mode)


def policy(*rules: Rule, default: Https = Https.TUNNEL) -> Policy:
    return Policy(rules=rules, defaults=Defaults(https=default))


MIRROR = Listener(
    "127.0.0.1",
    8443,
    ListenerKind.MIRROR,
    mirror=Mirror(Destination("127.0.0.1", 80), is_plain=True, names=("a.example",)),
)


class TestTheConstraintsOfACaForAPolicy:
    def test_they_are_the_names_of_all_patterns_whatever_the_port(self) -> None:
        address = HostPattern("exact", "192.0.2.7", 8443)
        found = constraints_for(policy(rule(EXACT, ONE), rule(ANY, address)))
        assert found.texts() == ["a.example", "b.example", "c", "192.0.2.7"]

    def test_what_is_tunnelled_rejected_or_a_mirrors_is_not_among_them(self) -> None:
        tunnelled, rejected = rule(ONE, https=Https.TUNNEL), rule(HostPattern("exact", "x"), https=Https.REJECT)
        mirrored = replace(policy(rule(EXACT), rule(ANY), tunnelled, rejected), listen=(MIRROR,))
        assert constraints_for(mirrored).texts() == ["c"]
        assert not replace(mirrored, rules=(rule(EXACT),)).inspects
        below = replace(mirrored, rules=(rule(HostPattern("any_depth", "a.example")),))
        assert constraints_for(below).texts() == ["a.example"]  # the names below are no mirror's

    def test_what_is_only_observed_counts_since_some_day_it_will_not_be(self) -> None:
        observed = replace(policy(rule(EXACT), rule(ONE, mode=Mode.OBSERVE)), mode=Mode.OBSERVE)
        assert constraints_for(observed).texts() == ["a.example", "b.example"]

    @pytest.mark.parametrize("mode", Mode)
    def test_there_are_none_where_the_default_inspects(self, mode: Mode) -> None:
        unnamed = replace(policy(rule(EXACT), default=Https.INSPECT), mode=mode)
        with pytest.raises(NotFixed, match="its default inspects hosts that no rule names"):
            constraints_for(unnamed)
        assert constraints_for(replace(unnamed, egress=Egress.LISTED)).texts() == ["a.example"]

    def test_there_are_none_for_no_host_and_for_too_many(self) -> None:
        with pytest.raises(NotFixed, match="it inspects no host"):
            constraints_for(policy(rule(EXACT, https=Https.TUNNEL)))
        many = [HostPattern("exact", f"host{number}.example") for number in range(1000)]
        with pytest.raises(NotFixed, match="it inspects 1000 hosts"):
            constraints_for(policy(rule(*many)))

    @given(hosts=st.lists(PATTERNS, min_size=1, max_size=4), asked=NAMES)
    def test_they_leave_no_host_out_that_the_policy_inspects(self, hosts: list[HostPattern], asked: str) -> None:
        inspecting = policy(rule(*hosts))
        constraints = constraints_for(inspecting)
        assert outside(inspecting, constraints) is None
        if inspecting.rule_for(Destination(asked, 443)) is not None:
            assert constraints.permits(asked)


class TestWhatIsLeftOut:
    def test_nothing_is_by_a_ca_without_constraints(self) -> None:
        assert outside(policy(default=Https.INSPECT), None) is None

    def test_the_host_and_its_rule_are_named(self) -> None:
        constraints = Constraints.to(["a.example"])
        assert outside(policy(rule(EXACT)), constraints) is None
        assert outside(policy(rule(EXACT, ONE)), constraints) == "*.b.example (rule pay)"
        many = [HostPattern("exact", each) for each in ("w", "x", "y", "z", "v")]
        assert outside(policy(rule(*many)), constraints) == "w (rule pay), x (rule pay), y (rule pay) and 2 more"

    def test_a_wildcard_needs_all_below_it(self) -> None:
        wild = policy(rule(HostPattern("any_depth", "example")))
        assert outside(wild, Constraints.to(["a.example"])) == "**.example (rule pay)"
        assert outside(wild, Constraints(frozenset(["example"]), None, frozenset(["a.example"]))) is not None
        assert (
            outside(policy(rule(HostPattern("exact", "example"))), Constraints(None, None, frozenset(["a.example"])))
            is None
        )

    def test_what_the_default_inspects_is_always(self) -> None:
        unnamed = policy(default=Https.INSPECT)
        assert outside(unnamed, Constraints.to(["a.example"])) == "hosts that no rule names (defaults.https: inspect)"
        assert outside(replace(unnamed, egress=Egress.LISTED), Constraints.to(["a.example"])) is None
        assert not replace(unnamed, egress=Egress.LISTED).inspects

    def test_what_is_only_observed_is_not(self) -> None:
        constraints = Constraints.to(["x"])
        assert outside(policy(rule(EXACT, mode=Mode.OBSERVE)), constraints) is None
        assert outside(replace(policy(rule(EXACT), default=Https.INSPECT), mode=Mode.OBSERVE), constraints) is None
        enforced = replace(policy(rule(EXACT, mode=Mode.ENFORCE)), mode=Mode.OBSERVE)
        assert outside(enforced, constraints) == "a.example (rule pay)"
