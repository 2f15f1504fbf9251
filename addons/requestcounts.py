"""Counts each request and each tunnel that is over. `addons.telemetry` calls it.

Rules of this module:

- A request counts once, under its rule, the mode in which it was handled, and the end that its decision line tells.
- What was counted while it was still under way (`addons.underway`) is left out here.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left

from prometheus_client.samples import Exemplar
from prometheus_client.values import MutexValue

from addons.exchange import Exchange
from addons.handshakecounts import HandshakeCounts
from addons.metrics import NO_RULE, OWN_BUCKETS, UPSTREAM_BUCKETS, Metrics
from addons.outcomes import action_of
from proxy.core.decisions import Action
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.ends import NO_REASON, status_class
from proxy.core.rules.policy import Mode


class EndCounts:
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
        self.rule, self.mode = rule, mode
        seconds, own, upstream = (each.labels(rule, mode) for each in (metrics.seconds, metrics.own, metrics.upstream))
        self._requests = metrics.requests.labels(rule, mode, *end)._value
        self._is_alone = isinstance(self._requests, MutexValue)
        self._seconds, self._buckets = seconds._sum, seconds._buckets
        self._bounds = seconds._upper_bounds
        self._own, self._own_buckets = own._sum, own._buckets
        self._upstream, self._upstream_buckets = upstream._sum, upstream._buckets
        self._sent = metrics.bytes.labels(rule, mode, "sent")._value
        self._received = metrics.bytes.labels(rule, mode, "received")._value

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
            self._sent._value += sent
            self._received._value += received
            return
        self._requests.inc(1)
        self._seconds.inc(seconds)
        bucket.inc(1)
        if sent:
            self._sent.inc(sent)
        if received:
            self._received.inc(received)

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


class RequestCounts:
    """Counts requests and tunnels, with their users, fields and pins."""

    def __init__(self, metrics: Metrics, handshakes: HandshakeCounts) -> None:
        self._metrics = metrics
        self._handshakes = handshakes
        # `labels` always returns the same object for the same labels, and is slow; so the objects are kept.
        self._counts_of = functools.lru_cache(1024)(self._find)

    def _find(  # noqa: PLR0917  # the key of a look-up
        self,
        rule: str | None,
        is_observing: bool,
        action: Action,
        outcome: Outcome,
        reason: Reason | None,
        status: int | None,
    ) -> EndCounts:
        mode = Mode.OBSERVE if is_observing else Mode.ENFORCE
        why = NO_REASON if reason is None else reason.code
        return EndCounts(self._metrics, rule or NO_RULE, mode, action, outcome, why, status_class(status))

    def count(self, exchange: Exchange, status: int | None, seconds: float) -> None:
        """Count an exchange that is over, whose outcome is known.

        Args:
            exchange: the exchange.
            status: the status that the app was told; None if it was told none.
            seconds: how long it took.
        """
        outcome, denied = exchange.outcome, exchange.denied
        assert outcome is not None
        reason = denied and denied.reason
        counts = self._counts_of(exchange.rule_name, exchange.observing, action_of(exchange), outcome, reason, status)
        sent, received = exchange.counted
        counts.add(seconds, exchange.bytes_sent - sent, exchange.bytes_received - received)
        if exchange.headed:
            own = exchange.ready - exchange.started_monotonic - exchange.waited
            if exchange.whole:
                own += exchange.started_monotonic + seconds - exchange.whole
            whole = exchange.sent if exchange.sent <= exchange.headed else 0.0
            counts.add_times(own, exchange.headed - max(exchange.ready, whole))
        if exchange.user is not None:
            self._metrics.users.labels(self._metrics.user_label(exchange.policy, exchange.user), outcome).inc()
        if outcome is not Outcome.OK and outcome is not Outcome.OBSERVED:
            counts.remember(exchange.id)
        if exchange.fields is not None:
            self._metrics.count_fields(exchange.fields.take(), counts.rule, counts.mode)
        if exchange.upstream is not None:
            self._handshakes.count_check(counts.rule, counts.mode, exchange.upstream)
