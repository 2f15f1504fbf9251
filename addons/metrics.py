"""The metrics: counters that addons and engine increase, and gauges that are read from the policy at each scrape.
`proxy.processes.admin` serves them as `/metrics`.

It is longer than 500 lines, because each metric stands here with what is said of it.

Rules of this module:

- Labels are limited by the policy and by our own enums, never chosen by a client.
- What depends on the policy is read from it at each scrape, so nothing of an earlier policy remains.
- Whatever can be counted is shown as 0 from the start, and from each reload on: rates and increases need an earlier
  sample. The alerts of `docs.alerts` rely on this.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.samples import Exemplar
from prometheus_client.values import MutexValue

from addons.fieldcounts import Counts
from proxy.core.decisions import FIELD_REASONS, Action, Outcome, Reason
from proxy.core.fields.entries import Work
from proxy.core.handshakes import GROUPS
from proxy.core.jose.keys import Key, KeySet
from proxy.core.pins import Level, PinSet, PinVerdict
from proxy.core.rules.policy import Mode, Policy

NO_RULE = "-"
NO_REASON = "-"
NO_STATUS = "-"
NO_LEVEL = "-"
UPSTREAM_PROXY = "(upstream_proxy)"  # in the place of a rule, for its pins
REFRESHES = ("fetched", "failed")
RELOADS = ("taken", "unchanged", "refused")
MOST_KIDS = 1000  # of keys that are fetched, that have labels of their own
OTHER_KIDS = "(others)"
MOST_USERS = 100  # that have labels of their own
OTHER_USERS = "(others)"
OWN_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, float("inf"))
UPSTREAM_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, float("inf"))
KINDS = ("request", "tunnel", "websocket")
DIRECTIONS = {Work.ENCRYPT: "encrypted", Work.DECRYPT: "decrypted"}
CONNECTIONS = ("hit", "miss", "evicted")
_STATUS_CLASSES = (NO_STATUS, "1xx", "2xx", "3xx", "4xx", "5xx")
_PASSING = (Action.UPGRADE, Action.ALLOW, Action.INSPECT)
_MIRRORING = (Action.MIRROR,)
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


def pins_mode(pins: PinSet, mode: Mode) -> Mode:
    """Return the mode in which pins are checked: observe, if they or all else of their rule are only observed."""
    return Mode.OBSERVE if pins.observes else mode


def ends(mode: Mode, *, is_mirrored: bool = False) -> Iterator[End]:
    """Return how requests can end, to show them as 0. Where observe mode lets pass what enforcing would deny, only the
    most usual status is among them.

    Args:
        mode: the mode in which they are handled.
        is_mirrored: whether they come to mirror listeners.
    """
    good = Outcome.OK if mode is Mode.ENFORCE else Outcome.OBSERVED
    passing, tunnels = (_MIRRORING, ()) if is_mirrored else (_PASSING, (Action.TUNNEL,))
    for action in passing:
        for status in _STATUS_CLASSES[1:]:
            yield End(action, good, NO_REASON, status)
        yield End(action, Outcome.APP_LEFT, NO_REASON, NO_STATUS)
    for action in tunnels:
        yield End(action, good, NO_REASON, NO_STATUS)
        yield End(action, Outcome.APP_LEFT, NO_REASON, NO_STATUS)
    for reason in Reason:
        outcome, told = reason.outcome, status_class(reason.status)
        if reason is Reason.APP_TLS_FAILED:
            actions = (
                [] if is_mirrored else [Action.INSPECT]
            )  # of a mirror's peer that did not get so far, no rule is known
        else:
            actions = [Action.DENY] if outcome is Outcome.DENIED else [*passing, *tunnels]
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

    def __init__(self, registry: CollectorRegistry, process: str = "0") -> None:
        """Start.

        Args:
            registry: where they are registered.
            process: what this process is called in the metrics that are about it: a worker's number, or its task.
        """
        self.registry = registry
        self.process = process
        self._users: tuple[Policy | None, frozenset[str]] = (None, frozenset())
        self.requests = Counter(
            "overcoat_requests",
            "Requests and tunnels by rule, what the policy says of them, and how they ended.",
            ["rule", "mode", *End._fields],
            registry=registry,
        )
        self.fields = Counter(
            "overcoat_fields",
            "Fields protected, by rule, entry and direction.",
            ["rule", "mode", "entry", "direction"],
            registry=registry,
        )
        self.field_failures = Counter(
            "overcoat_field_failures",
            "Times that an entry's work on fields failed, by rule, entry and reason.",
            ["rule", "mode", "entry", "reason"],
            registry=registry,
        )
        self._fields, self._failures = functools.cache(self.fields.labels), functools.cache(self.field_failures.labels)
        self.pins = Counter(
            "overcoat_pin_checks",
            "Requests whose server's pins were checked, by rule and result, and the level at which one matched first.",
            ["rule", "mode", "result", "level"],
            registry=registry,
        )
        self.pin_matches = Counter(
            "overcoat_pin_matches",
            "Handshakes in which a pin stood in the verified chain, by its level there.",
            ["rule", "pin", "level"],
            registry=registry,
        )
        self.handshakes = Counter(
            "overcoat_upstream_handshakes",
            "Handshakes with upstreams, by rule and the group of the key exchange.",
            ["rule", "key_exchange"],
            registry=registry,
        )
        self.seconds = Histogram(
            "overcoat_request_seconds", "Time from a request's head to its end.", ["rule", "mode"], registry=registry
        )
        self.own = Histogram(
            "overcoat_own_seconds",
            "Time that Overcoat itself took for a request: before it was ready to be sent, and after its response.",
            ["rule", "mode"],
            registry=registry,
            buckets=OWN_BUCKETS,
        )
        self.upstream = Histogram(
            "overcoat_upstream_seconds",
            "Time from when a request was ready to be sent (connecting included) to the head of its response.",
            ["rule", "mode"],
            registry=registry,
            buckets=UPSTREAM_BUCKETS,
        )
        self.users = Counter(
            "overcoat_user_requests",
            "Requests and tunnels of a user of the policy, by how they ended.",
            ["user", "outcome"],
            registry=registry,
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
        self.certificate_expiry = Gauge(
            "overcoat_upstream_certificate_expiry_timestamp_seconds",
            "When the first of the certificates ends that a rule's upstreams have shown last; 0 before any has.",
            ["rule"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.memory = Gauge(
            "overcoat_process_resident_memory_bytes",
            "Memory of a process (Linux).",
            ["process"],
            registry=registry,
            multiprocess_mode="livesum",  # each has a label of its own
        )
        self.descriptors = Gauge(
            "overcoat_process_open_descriptors",
            "File descriptors that a process has open (Linux).",
            ["process"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.most_descriptors = Gauge(
            "overcoat_process_max_descriptors",
            "File descriptors that a process may have open.",
            ["process"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.processor = Counter(
            "overcoat_process_cpu_seconds", "Processor time of a process.", ["process"], registry=registry
        )
        self.lag = Gauge(
            "overcoat_process_lag_seconds",
            "How much too late the event loop of a process was at the last look: it is busy, or blocked.",
            ["process"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.policy_taken = Gauge(
            "overcoat_policy_taken_timestamp_seconds",
            "When the policy in force was taken over, or the sidecar started with it.",
            registry=registry,
            multiprocess_mode="max",
        )
        self.policy_read = Gauge(
            "overcoat_policy_read_timestamp_seconds",
            "When the policy was last read, whether it was taken or refused.",
            registry=registry,
            multiprocess_mode="max",
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
        self.key_uses = Counter(
            "overcoat_key_uses",
            "Values that a key has sealed or opened, by the key's name.",
            ["key", "kid", "direction"],
            registry=registry,
        )
        self._key_uses: dict[tuple[str, str, Work], Callable[[], None]] = {}
        self.jwks_fetched = Gauge(
            "overcoat_jwks_fetched_timestamp_seconds",
            "When the keys of a key set were last fetched from its URL, by the process for which that is longest ago; "
            "0: never.",
            ["key"],
            registry=registry,
            multiprocess_mode="livemin",  # each process fetches for itself
        )
        self.jwks_refreshes = Counter(
            "overcoat_jwks_refreshes",
            "Attempts to fetch the keys of a key set from its URL, by result.",
            ["key", "result"],
            registry=registry,
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
            for end in ends(mode, is_mirrored=policy.is_mirrored(each)):
                self.requests.labels(rule, mode, *end)
            if each is None and policy.mirrored:
                failed = Reason.APP_TLS_FAILED
                self.requests.labels(rule, mode, Action.DENY, failed.outcome, failed.code, NO_STATUS)
            for times in (self.seconds, self.own, self.upstream):
                times.labels(rule, mode)
            for direction in ("sent", "received"):
                self.bytes.labels(rule, mode, direction)
            for group in GROUPS:
                self.handshakes.labels(rule, group)
            for kind in KINDS:
                self.in_flight.labels(rule, mode, kind)
            if each is None:
                continue
            self.certificate_expiry.labels(rule)
            for entry in each.fields:
                if mode is Mode.ENFORCE:
                    self.fields.labels(rule, mode, entry.name, DIRECTIONS[entry.work])
                for reason in FIELD_REASONS:
                    self.field_failures.labels(rule, mode, entry.name, reason.code)
            if each.pins is not None:
                self._expect_pins(each.name, each.pins, mode)
        if policy.upstream_proxy is not None and policy.upstream_proxy.rule.pins is not None:
            self._expect_pins(UPSTREAM_PROXY, policy.upstream_proxy.rule.pins, Mode.ENFORCE)
        self._expect_keys(policy)
        for name, key_set in policy.keys.items():
            if key_set.supply is not None:
                for result in REFRESHES:
                    self.jwks_refreshes.labels(name, result)
        for user in policy.clients.users:
            for outcome in Outcome:
                self.users.labels(self.user_label(policy, user.name), outcome)
        for of_process in (self.memory, self.descriptors, self.most_descriptors, self.processor, self.lag):
            of_process.labels(self.process)
        for result in RELOADS:
            self.reloads.labels(result)
        for result in CONNECTIONS:
            self.pool.labels(result)

    def count_fields(self, counts: Counts, rule: str, mode: Mode) -> None:
        """Count what was done with fields, and what failed; in observe mode nothing was done."""
        for (entry, what), count in counts.items():
            if isinstance(what, Reason):
                self._failures(rule, mode, entry, what.code).inc(count)
            elif mode is Mode.ENFORCE:
                self._fields(rule, mode, entry, DIRECTIONS[what]).inc(count)

    def _expect_pins(self, rule: str, pins: PinSet, mode: Mode) -> None:
        mode = pins_mode(pins, mode)
        for verdict in PinVerdict:
            for level in Level if verdict is PinVerdict.MATCH else (NO_LEVEL,):
                self.pins.labels(rule, mode, verdict.value, level)
        for pin in pins.any_of:
            for level in Level:
                self.pin_matches.labels(rule, pin.short, level)

    def _expect_keys(self, policy: Policy) -> None:
        for entry in (entry for rule in policy.rules for entry in rule.fields):
            keys = entry.keys.keys[:1] if entry.work is Work.ENCRYPT else entry.keys.keys
            for key in keys:
                if entry.work is Work.ENCRYPT or key.can_open:
                    self.key_uses.labels(entry.keys.name, key.kid, DIRECTIONS[entry.work])

    def key_used(self, key_set: KeySet, key: Key, work: Work) -> None:
        """Count that a key has sealed or opened a value."""
        what = (key_set.name, key.kid, work)
        count = self._key_uses.get(what)
        if count is None:
            # Keys that are fetched have names that somebody else chooses, again and again.
            is_full = len(self._key_uses) >= MOST_KIDS
            kid = OTHER_KIDS if is_full and key_set.supply is not None else key.kid
            count = self.key_uses.labels(key_set.name, kid, DIRECTIONS[work]).inc
            if not is_full:
                self._key_uses[what] = count
        count()

    def keys_fetched(self, key_set: str, when: float) -> None:
        """Note when the keys of a set were fetched by URL, in seconds since 1970; 0 for never, NaN for a set that is
        gone: nothing compares with that.
        """
        self.jwks_fetched.labels(key_set).set(when)

    def keys_tried(self, key_set: str, *, succeeded: bool) -> None:
        """Count an attempt to fetch the keys of a set."""
        self.jwks_refreshes.labels(key_set, REFRESHES[not succeeded]).inc()

    def user_label(self, policy: Policy, name: str) -> str:
        """Return the label for a user: the name, unless the policy has very many."""
        if policy is not self._users[0]:
            self._users = policy, frozenset(user.name for user in policy.clients.users[:MOST_USERS])
        return name if name in self._users[1] else OTHER_USERS

    def note_reading(self, result: str | None) -> None:
        """Note that the policy was read.

        Args:
            result: one of `RELOADS`; None at the start.
        """
        now = time.time()
        self.policy_read.set(now)
        if result is not None:
            self.reloads.labels(result).inc()
            self.policy_refused.set(result == "refused")
        if result in (None, "taken"):
            self.policy_taken.set(now)


class RequestCounts:
    """Counts the requests of one rule, mode and end.

    It adds to the values that prometheus-client keeps behind its counters. The counters' own methods check at each call
    that the counter has no labels left to fill in, which takes as long as all the adding. Nor does it take the lock of
    a value that this process alone has: only the event loop's thread adds to these, and reading one is one step.
    """

    def __init__(self, metrics: Metrics, rule: str, mode: Mode, *end: str) -> None:
        """Find the values.

        Args:
            metrics: the metrics that they belong to.
            rule: the rule's name, or `NO_RULE`.
            mode: the mode in which they were handled.
            end: how they ended: the parts of an `End`.
        """
        seconds, own, upstream = (each.labels(rule, mode) for each in (metrics.seconds, metrics.own, metrics.upstream))
        self._requests = metrics.requests.labels(rule, mode, *end)._value
        self._is_alone = isinstance(self._requests, MutexValue)
        self._seconds, self._buckets = seconds._sum, seconds._buckets
        self._bounds = seconds._upper_bounds
        self._own, self._own_buckets = own._sum, own._buckets
        self._upstream, self._upstream_buckets = upstream._sum, upstream._buckets
        self._sent = metrics.bytes.labels(rule, mode, "sent")._value.inc
        self._received = metrics.bytes.labels(rule, mode, "received")._value.inc

    def add(self, seconds: float, sent: int, received: int) -> None:
        """Count a request that is over.

        Args:
            seconds: how long it took.
            sent: bytes of its body that went to the upstream.
            received: bytes of the response's body that came back.
        """
        bucket = self._buckets[bisect_left(self._bounds, seconds)]
        if self._is_alone:
            self._requests._value += 1
            self._seconds._value += seconds
            bucket._value += 1
        else:
            self._requests.inc(1)
            self._seconds.inc(seconds)
            bucket.inc(1)
        if sent:
            self._sent(sent)
        if received:
            self._received(received)

    def add_times(self, own: float, upstream: float) -> None:
        """Count the parts of a request's time in seconds: Overcoat's own, and the upstream's."""
        own_bucket = self._own_buckets[bisect_left(OWN_BUCKETS, own)]
        upstream_bucket = self._upstream_buckets[bisect_left(UPSTREAM_BUCKETS, upstream)]
        if self._is_alone:
            self._own._value += own
            self._upstream._value += upstream
            own_bucket._value += 1
            upstream_bucket._value += 1
        else:
            self._own.inc(own)
            self._upstream.inc(upstream)
            own_bucket.inc(1)
            upstream_bucket.inc(1)

    def remember(self, id: str) -> None:
        """Show a request's id as the exemplar of its series (OpenMetrics), until the next one."""
        self._requests.set_exemplar(Exemplar({"id": id}, 1.0, time.time()))
