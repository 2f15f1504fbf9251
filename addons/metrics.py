"""The metrics: counters that addons and engine increase, and gauges that are read from the policy at each scrape.
`proxy.processes.admin` serves them as `/metrics`. All metrics stand in one list, with their words; the addons and the
engine count where something happens.

Rules of this module:

- Labels are limited by the policy and by our own enums, never chosen by a client.
- Of an earlier policy no gauge remains: what depends on the policy alone is read from it at each scrape
  (`addons.policymetrics`); what else is about a rule or a key set is shown while there is one (`addons.inforce`).
- Whatever can be counted is shown as 0 from the start, and from each reload on (`addons.expected`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from addons.fieldcounts import Counts
from proxy.core.fields.entries import Work
from proxy.core.jose.keys import Key, KeySet
from proxy.core.pins import PinSet
from proxy.core.reasons import Reason
from proxy.core.rules.ends import End
from proxy.core.rules.policy import Mode, Policy

NO_RULE = "-"
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
IN_FLIGHT = "overcoat_in_flight"
KINDS = ("request", "tunnel", "websocket")
DIRECTIONS = {Work.ENCRYPT: "encrypted", Work.DECRYPT: "decrypted"}
CONNECTIONS = ("hit", "miss", "evicted")

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series; several workers have none


def pins_mode(pins: PinSet, mode: Mode) -> Mode:
    """Return the mode in which pins are checked: observe, if they or all else of their rule are only observed."""
    return Mode.OBSERVE if pins.observes else mode


def _adder(counter: Counter, *labels: str) -> Callable[[float], None]:
    """Return what adds to a counter's value; not by the counter's own method: see `addons.requestcounts`."""
    add: Callable[[float], None] = counter.labels(*labels)._value.inc
    return add


def _adding(counter: Counter) -> Callable[..., Callable[[float], None]]:
    """Return what returns the adder for labels, which is kept."""
    return functools.cache(functools.partial(_adder, counter))


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
        self._fields, self._failures = _adding(self.fields), _adding(self.field_failures)
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
        self._connection = functools.cache(self.pool.labels)
        self.clients = Gauge(
            "overcoat_client_connections",
            "Client connections open now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.in_flight = Gauge(
            IN_FLIGHT,
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
        self.measured = Gauge(
            "overcoat_process_measured_timestamp_seconds",
            "When a process last measured itself, as it does every few seconds unless it hangs.",
            ["process"],
            registry=registry,
            multiprocess_mode="livemax",
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

    def count_fields(self, counts: Counts, rule: str, mode: Mode) -> None:
        """Count what was done with fields, and what failed; in observe mode nothing was done."""
        for (entry, what), count in counts.items():
            if isinstance(what, Reason):
                self._failures(rule, mode, entry, what.code)(count)
            elif mode is Mode.ENFORCE:
                self._fields(rule, mode, entry, DIRECTIONS[what])(count)

    def key_used(self, key_set: KeySet, key: Key, work: Work) -> Callable[[], None]:
        """Return what counts a value that a key seals or opens."""
        what = (key_set.name, key.kid, work)
        count = self._key_uses.get(what)
        if count is None:
            # Keys that are fetched have names that somebody else chooses, again and again.
            is_full = len(self._key_uses) >= MOST_KIDS
            kid = OTHER_KIDS if is_full and key_set.supply is not None else key.kid
            count = functools.partial(_adder(self.key_uses, key_set.name, kid, DIRECTIONS[work]), 1)
            if not is_full:
                self._key_uses[what] = count
        return count

    def keys_fetched(self, key_set: str, when: float) -> None:
        """Note when the keys of a set were fetched by URL, in seconds since 1970; 0 for never."""
        self.jwks_fetched.labels(key_set).set(when)

    def keys_tried(self, key_set: str, *, succeeded: bool) -> None:
        """Count an attempt to fetch the keys of a set."""
        self.jwks_refreshes.labels(key_set, REFRESHES[not succeeded]).inc()

    def count_connection(self, result: str) -> None:
        """Count a connection to an upstream that was taken from the pool, opened or closed: one of `CONNECTIONS`."""
        self._connection(result)._value.inc(1)  # not by the counter's own method: see `addons.requestcounts`

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
