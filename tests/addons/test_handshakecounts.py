"""Handshakes with upstreams: which certificate's end is shown, and for how many hosts it is remembered."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from addons.exchange import Upstream
from addons.handshakecounts import MOST_HOSTS, HandshakeCounts
from addons.metrics import Metrics
from proxy.core.rules.policy import HostPattern, Https, PlainHttp, Policy, Rule

RULE = Rule("a", (HostPattern("any_depth", "a.example"),), PlainHttp.UPGRADE, Https.INSPECT)


def shown(ends: list[tuple[str, int]], *, rule: Rule | None = RULE, is_proxy: bool = False) -> float | None:
    """Return the end that is shown after handshakes with hosts whose certificates end in these years."""
    metrics = Metrics(CollectorRegistry())
    counts = HandshakeCounts(metrics)
    for host, year in ends:
        certificate = SimpleNamespace(get_notAfter=lambda year=year: b"%04d0101000000Z" % year)
        tls: Any = SimpleNamespace(get_group_name=lambda: "X25519", get_peer_certificate=lambda c=certificate: c)
        counts.established(Upstream(Policy(), rule, is_proxy=is_proxy), tls, host)
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
