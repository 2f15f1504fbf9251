"""What the status page shows, worked out of counters, lines and a policy."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from proxy import timelimits
from proxy.core.jose.keys import Alg, KeySet, Supply, new_key
from proxy.core.pins import Pin, PinSet
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.processes.recent import KEPT, Recent
from proxy.processes.status import RULES, Sidecar, Status

TODAY = datetime.now(UTC).date()


class Running:
    """A sidecar whose counters are the test's own."""

    def __init__(self, policy: Policy, workers: int = 1, up: float = 100.0) -> None:
        self.registry = CollectorRegistry()
        labels = ["rule", "mode", "action", "outcome", "reason", "status"]
        self.requests = Counter("overcoat_requests", "x", labels, registry=self.registry)
        self.connections = Gauge("overcoat_client_connections", "x", registry=self.registry)
        self.refused = Gauge("overcoat_policy_refused", "x", registry=self.registry)
        self.ca = Gauge("overcoat_local_ca_expiry_timestamp_seconds", "x", registry=self.registry)
        self.recents = [Recent() for _ in range(workers)]
        self.policy = policy
        now = time.time()
        self.status = Status(
            Sidecar(
                "1.2.3",
                workers,
                now - up,
                self.registry,
                lambda: True,
                lambda: self.policy,
                lambda: now - 50,
                self.recents,
            )
        )

    def count(self, rule: str, count: int, outcome: str = "ok", reason: str = "-") -> None:
        self.requests.labels(rule, "enforce", "upgrade", outcome, reason, "2xx").inc(count)

    def line(self, worker: int = 0, second: float = 0, **values: Any) -> None:
        at = datetime.fromtimestamp(1_700_000_000 + second, UTC).isoformat(timespec="milliseconds")
        made = {"time": at, "rule": None, "reason": None, "outcome": "ok", "seconds": 0.5, **values}
        self.recents[worker].add(json.dumps(made).encode() + b"\n")

    def view(self) -> dict[str, Any]:
        self.status._worked_out = -timelimits.STATUS_SECONDS
        return self.status.view()


def rule(name: str, pins: PinSet | None = None) -> Rule:
    return Rule(name, (HostPattern("exact", f"{name}.example"),), PlainHttp.UPGRADE, Https.INSPECT, pins=pins)


def pinned(last_day: date) -> PinSet:
    return PinSet((Pin("spki", bytes(32)),), last_day)


def test_each_rule_has_what_was_counted_for_it() -> None:
    running = Running(Policy(rules=(rule("a"), rule("b"), rule("c"))))
    running.count("b", 900)
    running.count("b", 3, "denied", "pin_mismatch")
    running.count("b", 2, "denied", "body_not_json")
    running.count("b", 4, "upstream_failed", "upstream_unreachable")
    running.count("b", 5, "observed", "pin_mismatch")
    running.count("b", 6, "observed")
    running.count("-", 2000)
    view = running.view()
    assert [each["name"] for each in view["rules"]] == ["b", "a", "c", "-"]
    first = view["rules"][0]
    assert {name: first[name] for name in ("requests", "denied", "would_deny", "failed")} == {
        "requests": 920,
        "denied": 5,
        "would_deny": 5,
        "failed": 4,
    }
    assert first["last_reason"] == {"reason": "pin_mismatch", "time": None}  # the most frequent: no line is left
    assert view["traffic"]["requests"] == 2920
    assert view["rules"][1]["last_reason"] is None


def test_a_rate_is_that_since_the_start_until_there_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(Policy(rules=(rule("a"),)), up=100)
    running.count("a", 500)
    assert running.view()["rules"][0]["per_second"] == pytest.approx(5, abs=0.1)
    began = time.monotonic()

    def rate_after(seconds: float, more: int) -> tuple[float, int]:
        running.count("a", more)
        monkeypatch.setattr(time, "monotonic", lambda: began + seconds)
        view = running.view()
        return round(view["rules"][0]["per_second"], 1), view["traffic"]["rate_seconds"]

    assert rate_after(10, 20) == (2.0, 10)
    assert rate_after(timelimits.RATE_SECONDS, 40) == (1.0, 60)
    assert rate_after(10 + timelimits.RATE_SECONDS, 30) == (1.2, 60)  # from the sample at 10 s on
    assert rate_after(600, 0)[0] == 0.0


def test_it_is_worked_out_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(Policy())
    first = running.status.view()
    assert running.status.view() is first
    later = time.monotonic() + timelimits.STATUS_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert running.status.view() is not first


def test_the_last_decisions_are_those_that_ended_last_in_all_workers() -> None:
    running = Running(Policy(), workers=2)
    for second in range(2 * KEPT):
        running.line(second % 2, second, number=second)
    running.line(0, -500, seconds=1000.0, number="a long tunnel")
    view = running.view()
    assert [each["number"] for each in view["decisions"]] == [
        "a long tunnel",
        *range(2 * KEPT - 1, KEPT, -1),
    ]


def test_the_last_reason_is_the_one_that_came_last() -> None:
    running = Running(Policy(rules=(rule("a"),)), workers=2)
    running.line(0, 9, rule="a", reason="pin_mismatch", outcome="denied")
    running.line(1, 5, rule="a", reason="body_not_json", outcome="denied")
    for second in range(10, 100):
        running.line(1, second, rule="a")
    running.line(0, 7, reason="not_http", outcome="denied")
    first, other = running.view()["rules"]
    assert (first["last_reason"]["reason"], other["last_reason"]["reason"]) == ("pin_mismatch", "not_http")


@pytest.mark.parametrize(("days", "is_soon"), [(-3, True), (0, True), (90, True), (91, False)])
def test_what_ends_within_ninety_days_is_told_apart(days: int, is_soon: bool) -> None:
    last = TODAY + timedelta(days=days)
    running = Running(Policy(rules=(rule("a", pinned(last)),)))
    view = running.view()
    (found,) = view["ends" if is_soon else "ends_later"]
    assert (found["what"], found["days"]) == ("rule a: pins", days)
    assert view["ends_later" if is_soon else "ends"] == []


def test_the_local_ca_ends_too() -> None:
    running = Running(Policy())
    running.ca.set((datetime.now(UTC) + timedelta(days=30)).timestamp())
    assert [(each["what"], each["days"]) for each in running.view()["ends"]] == [("the local CA", 30)]


def test_so_do_certificates_that_servers_have_shown() -> None:
    running = Running(Policy(rules=(rule("a", pinned(TODAY + timedelta(days=60))),)))
    name = "overcoat_upstream_certificate_expiry_timestamp_seconds"
    shown = Gauge(name, "x", ["rule"], registry=running.registry)
    for whose, days in (("a", 20), ("-", 70)):
        shown.labels(whose).set((datetime.now(UTC) + timedelta(days=days)).timestamp())
    shown.labels("b").set(0)  # none has been shown
    assert [(each["what"], each["days"]) for each in running.view()["ends"]] == [
        ("rule a: a server's certificate", 20),
        ("rule a: pins", 60),
        ("a host without a rule: a server's certificate", 70),
    ]


@pytest.mark.parametrize(
    ("ago", "age", "is_stale"),
    [(None, None, True), (0, None, True), (30, 30, False), (119, 119, False), (130, 130, True)],
)
def test_how_old_fetched_keys_are_is_said(ago: float | None, age: int | None, is_stale: bool) -> None:
    supply = Supply("https://k.example/k", "k.example", 443, "/k", 60)
    keys = KeySet("partner", Alg.ECDH_ES_A256KW, None, supply=supply)
    of_file = KeySet("own", Alg.A256KW, new_key(Alg.A256KW))
    running = Running(Policy(keys={"partner": keys, "own": of_file}))
    if ago is not None:
        gauge = Gauge("overcoat_jwks_fetched_timestamp_seconds", "x", ["key"], registry=running.registry)
        gauge.labels("partner").set(time.time() - ago if ago else 0)
    expected = {"key": "partner", "age_seconds": age, "max_age_seconds": 60, "is_stale": is_stale}
    assert running.view()["fetched"] == [expected]


def test_how_it_runs_is_said() -> None:
    running = Running(Policy(mode=Mode.OBSERVE), workers=3)
    running.connections.set(7)
    view = running.view()
    assert view["in_flight"] == [{"what": "client connections", "now": 7, "limit": 3 * 8192}]
    assert (view["mode"], view["ready"], view["workers"], view["policy"]["refused"]) == ("observe", True, 3, False)
    assert (view["up_seconds"], view["policy"]["age_seconds"]) == (100, 50)
    under_way = Gauge("overcoat_in_flight", "x", ["rule", "kind"], registry=running.registry)
    for name, kind, count in (("-", "tunnel", 2), ("a", "tunnel", 3), ("a", "request", 1)):
        under_way.labels(name, kind).set(count)
    assert [(each["what"], each["now"]) for each in running.view()["in_flight"][1:]] == [("tunnel", 5), ("request", 1)]
    running.refused.set(1)
    running.policy = replace(running.policy, mode=Mode.ENFORCE)
    view = running.view()
    assert (view["mode"], view["policy"]["refused"]) == ("enforce", True)


def test_of_very_many_rules_those_with_the_most_requests_are_shown() -> None:
    running = Running(Policy(rules=tuple(rule(f"r{number}") for number in range(RULES + 50))))
    running.count(f"r{RULES + 49}", 1)
    view = running.view()
    assert len(view["rules"]) == RULES
    assert view["rules_left_out"] == 51
    assert (view["rules"][0]["name"], view["rules"][-1]["name"]) == (f"r{RULES + 49}", "-")
