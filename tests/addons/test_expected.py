"""Series before their first event: each is there, and there are no more than the policy makes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from prometheus_client import CollectorRegistry

from addons.expected import expect, rule_by_rule
from addons.metrics import Metrics
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.selectors import parse_selector
from proxy.core.handshakes import GROUPS
from proxy.core.jose.keys import Alg, KeySet, Supply, new_key
from proxy.core.pins import Pin, PinSet
from proxy.core.rules.ends import ends
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.who.clients import User, hash_password

HOSTS = (HostPattern("exact", "a.example"),)
ENTRY = FieldEntry((parse_selector("$.ssn"),), KeySet("app", Alg.A256KW, new_key(Alg.A256KW, kid="one")))


def test_the_series_are_as_many_as_the_policy_makes_them() -> None:
    def series(count: int) -> int:
        metrics = Metrics(CollectorRegistry())
        names = [f"rule{number}" for number in range(count)]
        expect(metrics, Policy(rules=tuple(Rule(n, HOSTS, PlainHttp.UPGRADE, Https.TUNNEL) for n in names)))
        return sum(len(family.samples) for family in metrics.registry.collect())

    of_one = series(1) - series(0)
    assert series(10) - series(0) == 10 * of_one
    others = 17 + 14 + 16 + 2 + 3 + 1 + len(GROUPS)  # three histograms, bytes, kinds in flight, a certificate
    assert of_one == len(list(ends(Mode.ENFORCE))) + others
    assert of_one < 220


def test_they_come_rule_by_rule_and_not_all_at_once() -> None:
    rules = tuple(Rule(f"rule{number}", HOSTS, PlainHttp.UPGRADE, Https.TUNNEL) for number in range(5))
    metrics, counts = Metrics(CollectorRegistry()), []
    for _ in rule_by_rule(metrics, Policy(rules=rules)):
        counts.append(sum(len(family.samples) for family in metrics.registry.collect()))
    assert len({after - before for before, after in pairwise(counts[1:])}) == 1
    assert len(counts) == 6


def test_no_metric_is_without_a_series_before_anything_happens() -> None:
    """A new one has to be in `expect`, too, if it has labels."""
    metrics = Metrics(CollectorRegistry())
    pins = PinSet((Pin("spki", bytes(32)),), None)
    rule = Rule("a", HOSTS, PlainHttp.UPGRADE, Https.INSPECT, pins=pins, request=(ENTRY,))
    users = (User("ann", hash_password("secret", bytes(16))),)
    supply = Supply("https://keys.example/", "keys.example", 443, "/", 3600)
    keys = {"partner": KeySet("partner", Alg.ECDH_ES_A256KW, None, supply=supply)}
    expect(metrics, Policy(rules=(rule,), clients=replace(Policy().clients, users=users), keys=keys))
    metrics.keys_fetched("partner", 0)  # each engine does, for itself: the admin process has nothing to say about it
    assert [family.name for family in metrics.registry.collect() if not family.samples] == []
