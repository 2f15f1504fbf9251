"""The metrics: counters that addons and engine increase, and gauges that are read from the policy at each scrape.
`proxy.processes.admin` serves them as `/metrics`.

Rules of this module:

- Labels are limited by the policy and by our own enums, never chosen by a client.
- What depends on the policy is read from it at each scrape, so nothing of an earlier policy remains.
- Whatever can be counted is shown as 0 from the start, and from each reload on: rates and increases need an earlier
  sample. The alerts of `docs.alerts` rely on this.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from proxy.core.decisions import Action, Reason
from proxy.core.pins import PinVerdict
from proxy.core.rules.policy import Policy

NO_RULE = "-"
NO_REASON = "-"
RELOADS = ("taken", "unchanged", "refused")
CONNECTIONS = ("hit", "miss", "evicted")

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series; several workers have none


class Metrics:
    """The counters of this process, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "overcoat_requests",
            "Requests by rule, what the policy says of them, and the reason of a denial.",
            ["rule", "action", "reason"],
            registry=registry,
        )
        self.fields = Counter(
            "overcoat_fields", "Fields protected, by rule and direction.", ["rule", "direction"], registry=registry
        )
        self.pins = Counter(
            "overcoat_pin_checks", "Pin checks by rule and result.", ["rule", "result"], registry=registry
        )
        self.seconds = Histogram(
            "overcoat_request_seconds", "Time from a request's head to its end.", ["rule"], registry=registry
        )
        self.bytes = Counter(
            "overcoat_body_bytes",
            "Body and tunnel bytes by rule and direction.",
            ["rule", "direction"],
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
        for rule in (NO_RULE, *(rule.name for rule in policy.rules)):
            for action in Action:
                self.requests.labels(rule, action.value, NO_REASON)
            for reason in Reason:
                self.requests.labels(rule, Action.DENY.value, reason.code)
            self.seconds.labels(rule)
            for direction in ("sent", "received"):
                self.bytes.labels(rule, direction)
        for each in policy.rules:
            for direction, entries in (("encrypted", each.encrypt), ("decrypted", each.decrypt)):
                if entries:
                    self.fields.labels(each.name, direction)
            if each.pins is not None:
                for verdict in PinVerdict:
                    self.pins.labels(each.name, verdict.value)
        for result in RELOADS:
            self.reloads.labels(result)
        for result in CONNECTIONS:
            self.pool.labels(result)


class RequestCounts:
    """Counts the requests of one rule, action and reason.

    It adds to the values that prometheus-client keeps behind its counters. The counters' own methods check at each call
    that the counter has no labels left to fill in, which takes as long as all the adding.
    """

    def __init__(self, metrics: Metrics, rule: str, action: str, reason: str) -> None:
        """Find the values.

        Args:
            metrics: the metrics that they belong to.
            rule: the rule's name, or `NO_RULE`.
            action: what the policy says of the requests.
            reason: the code of why they are denied, or `NO_REASON`.
        """
        seconds = metrics.seconds.labels(rule)
        self._request = metrics.requests.labels(rule, action, reason)._value.inc
        self._seconds = seconds._sum.inc
        self._bounds = seconds._upper_bounds
        self._buckets = [bucket.inc for bucket in seconds._buckets]
        self._sent = metrics.bytes.labels(rule, "sent")._value.inc
        self._received = metrics.bytes.labels(rule, "received")._value.inc

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
