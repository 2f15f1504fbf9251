"""Requests that are over: counted faster than the library does, and in no other way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from addons.metrics import Metrics
from addons.requestcounts import EndCounts
from proxy.core.rules.ends import End
from proxy.core.rules.policy import Mode


@given(st.lists(st.floats(0, 20, allow_nan=False) | st.sampled_from((0.005, 0.01, 7.5, 10.0)), max_size=20))
def test_requests_are_counted_as_the_library_itself_counts_them(times: list[float]) -> None:
    ours, theirs = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    end = End("upgrade", "ok", "-", "2xx")
    counts, _ = (EndCounts(metrics, "pay", Mode.ENFORCE, *end) for metrics in (ours, theirs))
    for number, seconds in enumerate(times):
        sent, received = number % 3, number % 2
        counts.add(seconds, sent, received)
        counts.add_times(seconds / 1000, seconds * 10)
        theirs.own.labels("pay", "enforce").observe(seconds / 1000)
        theirs.upstream.labels("pay", "enforce").observe(seconds * 10)
        theirs.requests.labels("pay", "enforce", *end).inc()
        theirs.seconds.labels("pay", "enforce").observe(seconds)
        theirs.bytes.labels("pay", "enforce", "sent").inc(sent)
        theirs.bytes.labels("pay", "enforce", "received").inc(received)
    assert generate_latest(ours.registry) == generate_latest(theirs.registry)
