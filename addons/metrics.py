"""The metrics: counters that addons and engine increase, and gauges that are read from the policy at each scrape.
`proxy.processes.admin` serves them as `/metrics`.

Rules of this module:

- Labels are limited by the policy and by our own enums, never chosen by a client.
- What depends on the policy is read from it at each scrape, so nothing of an earlier policy remains.
- Whatever can be counted is shown as 0 from the start, and from each reload on: rates and increases need an earlier
  sample. The alerts of `docs.alerts` rely on this.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from proxy.core.decisions import Action, Outcome, Reason
from proxy.core.pins import PinVerdict
from proxy.core.rules.policy import Mode, Policy

NO_RULE = "-"
NO_REASON = "-"
NO_STATUS = "-"
RELOADS = ("taken", "unchanged", "refused")
KINDS = ("request", "tunnel", "websocket")
CONNECTIONS = ("hit", "miss", "evicted")
_STATUS_CLASSES = (NO_STATUS, "1xx", "2xx", "3xx", "4xx", "5xx")
_PASSING = (Action.UPGRADE, Action.ALLOW, Action.INSPECT)
_ANSWERED_NEVER = frozenset((Reason.UPSTREAM_CUT, Reason.APP_TLS_FAILED, Reason.NOT_HTTP))

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series; several workers have none


class End(NamedTuple):
    """How a request or a tunnel ended, as labels."""

    action: str
    outcome: str
    reason: str
    status: str


def status_class(status: int | None) -> str:
    """Return the class of a status as a label. Beyond 599 is as 5xx (RFC 9110, section 15)."""
    return _STATUS_CLASSES[min((status or 0) // 100, 5)]


def ends(mode: Mode) -> Iterator[End]:
    """Return how requests can end, to show them as 0. Where observe mode lets pass what enforcing would deny, only the
    most usual status is among them.
    """
    good = Outcome.OK if mode is Mode.ENFORCE else Outcome.OBSERVED
    for action in _PASSING:
        for status in _STATUS_CLASSES[1:]:
            yield End(action, good, NO_REASON, status)
        yield End(action, Outcome.APP_LEFT, NO_REASON, NO_STATUS)
    yield End(Action.TUNNEL, good, NO_REASON, NO_STATUS)
    yield End(Action.TUNNEL, Outcome.APP_LEFT, NO_REASON, NO_STATUS)
    for reason in Reason:
        outcome, told = reason.outcome, status_class(reason.status)
        if reason is Reason.APP_TLS_FAILED:
            actions = [Action.INSPECT]
        else:
            actions = [Action.DENY] if outcome is Outcome.DENIED else [*_PASSING, Action.TUNNEL]
        for action in actions:
            if reason not in _ANSWERED_NEVER:
                yield End(action, outcome, reason.code, told)
            if outcome is not Outcome.UPSTREAM_FAILED or action is Action.TUNNEL:
                yield End(action, outcome, reason.code, NO_STATUS)
        if mode is Mode.OBSERVE and outcome is Outcome.DENIED:
            yield End(Action.DENY, good, reason.code, "2xx")
            yield End(Action.DENY, good, reason.code, NO_STATUS)


class Metrics:
    """The counters of this process, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "overcoat_requests",
            "Requests and tunnels by rule, what the policy says of them, and how they ended.",
            ["rule", "mode", *End._fields],
            registry=registry,
        )
        self.fields = Counter(
            "overcoat_fields",
            "Fields protected, by rule and direction.",
            ["rule", "mode", "direction"],
            registry=registry,
        )
        self.pins = Counter(
            "overcoat_pin_checks", "Pin checks by rule and result.", ["rule", "mode", "result"], registry=registry
        )
        self.seconds = Histogram(
            "overcoat_request_seconds", "Time from a request's head to its end.", ["rule", "mode"], registry=registry
        )
        self.bytes = Counter(
            "overcoat_body_bytes",
            "Body and tunnel bytes by rule and direction.",
            ["rule", "mode", "direction"],
            registry=registry,
        )
        self.pool = Counter(
            "overcoat_upstream_connections",
            "Requests for an upstream connection, by result.",
            ["result"],
            registry=registry,
        )
        self.clients = Gauge(
            "overcoat_client_connections",
            "Client connections open now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.in_flight = Gauge(
            "overcoat_in_flight",
            "What was under way at the last look, a few seconds ago at most.",
            ["rule", "mode", "kind"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.local_ca_expiry = Gauge(
            "overcoat_local_ca_expiry_timestamp_seconds",
            "When the local CA ends, which signs the certificates of inspected hosts.",
            registry=registry,
            multiprocess_mode="max",  # all workers have the same value; processes without one show 0
        )
        self.worker_restarts = Counter(
            "overcoat_worker_restarts",
            "Processes (workers, the admin endpoint) that ended by themselves and were replaced.",
            registry=registry,
        )
        self.reloads = Counter(
            "overcoat_policy_reloads", "Times the policy was read again, by result.", ["result"], registry=registry
        )
        self.policy_refused = Gauge(
            "overcoat_policy_refused",
            "1 while the policy, as it was last read, is refused and an earlier one in force; else 0.",
            registry=registry,
            multiprocess_mode="max",  # one process sets it for all
        )
        self.lines_lost = Counter(
            "overcoat_decision_lines_lost", "Decision lines that could not be written.", registry=registry
        )
        self.drain_cuts = Counter(
            "overcoat_drain_cuts", "Requests and tunnels that were cut off at the end of draining.", registry=registry
        )
        self.hook_failures = Counter(
            "overcoat_hook_failures", "Hooks that raised; the request was denied.", registry=registry
        )

    def expect(self, policy: Policy) -> None:
        """Show everything that can be counted under a policy from now on, as 0, before it first happens.

        With several workers, one process does this for all of them.
        """
        for each in (None, *policy.rules):
            rule, mode = each.name if each else NO_RULE, policy.mode_of(each)
            for end in ends(mode):
                self.requests.labels(rule, mode, *end)
            self.seconds.labels(rule, mode)
            for direction in ("sent", "received"):
                self.bytes.labels(rule, mode, direction)
            for kind in KINDS:
                self.in_flight.labels(rule, mode, kind)
            if each is None:
                continue
            for direction, entries in (("encrypted", each.encrypt), ("decrypted", each.decrypt)):
                if entries:
                    self.fields.labels(each.name, mode, direction)
            if each.pins is not None:
                for verdict in PinVerdict:
                    self.pins.labels(each.name, mode, verdict.value)
        for result in RELOADS:
            self.reloads.labels(result)
        for result in CONNECTIONS:
            self.pool.labels(result)


class RequestCounts:
    """Counts the requests of one rule, mode and end.

    It adds to the values that prometheus-client keeps behind its counters. The counters' own methods check at each call
    that the counter has no labels left to fill in, which takes as long as all the adding.
    """

    def __init__(self, metrics: Metrics, rule: str, mode: Mode, *end: str) -> None:
        """Find the values.

        Args:
            metrics: the metrics that they belong to.
            rule: the rule's name, or `NO_RULE`.
            mode: the mode in which they were handled.
            end: how they ended: the parts of an `End`.
        """
        seconds = metrics.seconds.labels(rule, mode)
        self._requests = metrics.requests.labels(rule, mode, *end)._value
        self._request = self._requests.inc
        self._seconds = seconds._sum.inc
        self._bounds = seconds._upper_bounds
        self._buckets = [bucket.inc for bucket in seconds._buckets]
        self._sent = metrics.bytes.labels(rule, mode, "sent")._value.inc
        self._received = metrics.bytes.labels(rule, mode, "received")._value.inc

    def add(self, seconds: float, sent: int, received: int) -> None:
        """Count a request that is over.

        Args:
            seconds: how long it took.
            sent: bytes of its body that went to the upstream.
            received: bytes of the response's body that came back.
        """
        self._request(1)
        self._seconds(seconds)
        self._buckets[bisect_left(self._bounds, seconds)](1)
        if sent:
            self._sent(sent)
        if received:
            self._received(received)

    def remember(self, id: str) -> None:
        """Show a request's id as the exemplar of its series (OpenMetrics), until the next one."""
        self._requests.set_exemplar(Exemplar({"id": id}, 1.0, time.time()))


class PolicyMetrics(Collector):
    """The metrics that depend on the policy in force only, computed at each scrape."""

    def __init__(self, version: str, policy: Callable[[], Policy], started: float) -> None:
        """Start.

        Args:
            version: Overcoat's version.
            policy: returns the policy in force.
            started: when the counters began at 0, in seconds since 1970.
        """
        self._version = version
        self._policy = policy
        self._started = started

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        """Return the families without samples."""
        return (
            GaugeMetricFamily(
                "overcoat_pins_expire_timestamp_seconds", "When the pins of a rule expire.", labels=["rule"]
            ),
            GaugeMetricFamily("overcoat_info", "Always 1; the version and mode that run.", labels=["version", "mode"]),
            GaugeMetricFamily(
                "overcoat_policy_info",
                "Always 1; the hash of the policy in force, as the log says it.",
                labels=["hash"],
            ),
            GaugeMetricFamily("overcoat_start_timestamp_seconds", "When the sidecar started, with all counters at 0."),
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the families."""
        policy = self._policy()
        expiry, info, content, start = self.describe()
        for rule in policy.rules:
            if rule.pins is not None and rule.pins.expires is not None:
                # The date is the last valid day, in UTC.
                end = datetime.combine(rule.pins.expires, datetime.max.time(), UTC)
                expiry.add_metric([rule.name], int(end.timestamp()))
        info.add_metric([self._version, policy.mode.value], 1)
        content.add_metric([policy.short_hash], 1)
        start.add_metric([], self._started)
        yield expiry
        yield info
        yield content
        yield start
