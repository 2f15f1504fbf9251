"""Which gauges are shown: those of what the policy in force has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from addons.expected import expect
from addons.inforce import InForce
from addons.metrics import Metrics
from proxy.core.jose.keys import Alg, KeySet, Supply
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule

GONE = Rule("gone", (HostPattern("exact", "gone.example"),), PlainHttp.UPGRADE, Https.INSPECT)
HERE = Rule("here", (HostPattern("exact", "here.example"),), PlainHttp.UPGRADE, Https.INSPECT)
FETCHED = KeySet("fetched", Alg.ECDH_ES_A256KW, None, supply=Supply("https://a.example/k", "a.example", 443, "/k", 60))
BEFORE = Policy(rules=(GONE, HERE), keys={"fetched": FETCHED})


def shown(now: Policy, *, open_there: int = 0) -> str:
    """Return what a scrape shows under a policy, after another one was in force."""
    metrics, registry = Metrics(CollectorRegistry()), CollectorRegistry()
    registry.register(InForce(metrics.registry, lambda: now, metrics))
    expect(metrics, BEFORE)
    metrics.keys_fetched("fetched", 1.0)
    metrics.certificate_expiry.labels("gone").set(7)
    metrics.in_flight.labels("gone", Mode.ENFORCE, "tunnel").set(open_there)
    return generate_latest(registry).decode()


END = 'overcoat_upstream_certificate_expiry_timestamp_seconds{rule="RULE"}'
OPEN = 'overcoat_in_flight{kind="tunnel",mode="MODE",rule="RULE"}'


@pytest.mark.parametrize(
    ("now", "rule", "mode", "has"),
    [
        (BEFORE, "gone", "enforce", True),
        (Policy(rules=(HERE,)), "gone", "enforce", False),
        (Policy(rules=(HERE,)), "here", "enforce", True),
        (Policy(rules=(HERE,)), "-", "enforce", True),
        (Policy(rules=(GONE,), mode=Mode.OBSERVE), "-", "enforce", False),
        (Policy(rules=(replace(GONE, mode=Mode.OBSERVE),)), "gone", "enforce", False),
    ],
)
def test_a_gauge_goes_with_its_rule_and_with_its_rules_mode(now: Policy, rule: str, mode: str, has: bool) -> None:
    said = shown(now)
    assert (OPEN.replace("RULE", rule).replace("MODE", mode) in said) is has
    has_end = rule in {each.name for each in now.rules}
    assert (END.replace("RULE", rule) in said) is has_end


def test_what_is_still_open_under_a_rule_that_is_gone_is_shown() -> None:
    said = shown(Policy(rules=(HERE,)), open_there=2)
    assert OPEN.replace("RULE", "gone").replace("MODE", "enforce") + " 2.0" in said
    assert OPEN.replace("tunnel", "request").replace("RULE", "gone").replace("MODE", "enforce") not in said


def test_a_gauge_goes_with_its_key_set() -> None:
    name = 'overcoat_jwks_fetched_timestamp_seconds{key="fetched"}'
    assert name in shown(BEFORE)
    assert name not in shown(Policy(rules=(HERE,)))
    from_files = replace(FETCHED, supply=None)
    assert name not in shown(Policy(rules=(HERE,), keys={"fetched": from_files}))


def test_counters_stay() -> None:
    assert 'overcoat_requests_total{action="upgrade",mode="enforce",' in shown(Policy())
    assert 'rule="gone"' in shown(Policy())


def test_a_scrape_may_ask_for_families_by_their_names() -> None:
    metrics, registry = Metrics(CollectorRegistry()), CollectorRegistry()
    registry.register(InForce(metrics.registry, Policy, metrics))
    chosen = registry.restricted_registry(["overcoat_client_connections"])
    assert [family.name for family in chosen.collect()] == ["overcoat_client_connections"]
