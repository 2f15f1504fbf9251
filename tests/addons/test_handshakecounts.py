"""Handshakes with upstreams: which certificate's end is shown, and for how many hosts it is remembered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from addons.handshakecounts import MOST_HOSTS, HandshakeCounts
from addons.metrics import Metrics
from addons.upstream import Upstream
from proxy.core.rules.policy import HostPattern, Https, PlainHttp, Policy, Rule

RULE = Rule("a", (HostPattern("any_depth", "a.example"),), PlainHttp.UPGRADE, Https.INSPECT)


def shown(
    ends: list[tuple[str, int]],
    *,
    rule: Rule | None = RULE,
    is_proxy: bool = False,
    reload: tuple[Policy, Policy] | None = None,
) -> float | None:
    """Return the end that is shown after handshakes with hosts whose certificates end in these years, and a reload."""
    metrics = Metrics(CollectorRegistry())
    counts = HandshakeCounts(metrics)
    for host, year in ends:
        certificate = SimpleNamespace(get_notAfter=lambda year=year: b"%04d0101000000Z" % year)
        tls: Any = SimpleNamespace(get_group_name=lambda: "X25519", get_peer_certificate=lambda c=certificate: c)
        counts.established(Upstream(Policy(), rule, is_proxy=is_proxy), tls, host)
    if reload is not None:
        counts.take_over(*reload)
    return metrics.registry.get_sample_value(
        "overcoat_upstream_certificate_expiry_timestamp_seconds", {"rule": RULE.name}
    )


def start_of(year: int) -> float:
    return datetime(year, 1, 1, tzinfo=UTC).timestamp()


def test_of_the_hosts_of_a_rule_the_first_end_is_shown() -> None:
    assert shown([("one", 2030), ("two", 2028), ("three", 2031)]) == start_of(2028)


def test_a_certificate_takes_the_place_of_the_one_before() -> None:
    assert shown([("one", 2028), ("two", 2030), ("one", 2032)]) == start_of(2030)


def test_the_hosts_that_are_remembered_are_limited() -> None:
    others = [(f"h{number}", 2030) for number in range(MOST_HOSTS - 1)]
    assert shown([("first", 2028), *others]) == start_of(2028)
    assert shown([("first", 2028), *others, ("last", 2031)]) == start_of(2030)


def test_no_end_is_shown_of_hosts_without_a_rule_and_of_the_upstream_proxy() -> None:
    assert shown([("one", 2028)], rule=None) is None
    assert shown([("one", 2028)], is_proxy=True) is None


OTHER = replace(RULE, name="b", hosts=(HostPattern("exact", "b.example"),))


@pytest.mark.parametrize(
    ("before", "now", "is_kept"),
    [
        ((RULE,), (replace(RULE, https=Https.TUNNEL),), True),
        ((RULE, OTHER), (RULE,), True),  # what comes after it changes nothing
        ((OTHER,), (OTHER,), True),
        ((RULE,), (), False),
        ((RULE,), (replace(RULE, hosts=OTHER.hosts),), False),
        ((RULE,), (OTHER, RULE), False),  # the one before it may have taken a host
    ],
)
def test_a_reload_that_may_take_a_host_away_forgets_its_certificate(
    before: tuple[Rule, ...], now: tuple[Rule, ...], is_kept: bool
) -> None:
    found = shown([("one", 2028)], reload=(Policy(rules=before), Policy(rules=now)))
    assert found == (start_of(2028) if is_kept else 0)
