"""What the status page shows, as plain values: how the sidecar runs, its policy, its rules and their traffic, what ends
soon, and the last decisions. `proxy.processes.statuspage` makes a page of them, or JSON.

Rules of this module:

- Numbers come from the same counters as `/metrics`, and decisions from the same lines as standard output. So nothing is
  here that is not there, and no secret.
- It is worked out at most once a second, however many ask. Nobody asking, it costs nothing; so a rate is that of the
  last minute only if somebody asked a minute ago, and until then that since the start.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from addons.metrics import NO_RULE
from proxy import timelimits
from proxy.core.fields.entries import Work
from proxy.core.rules.ends import NO_REASON
from proxy.core.rules.policy import Mode, Policy, Rule
from proxy.policyfile.findings import Ending, calendar
from proxy.processes.recent import KEPT, Recent

STALE_AFTER = 2  # times that for which keys are to be used, as OvercoatJwksStale has it
DAYS = 90  # what ends within so many days is shown
RULES = 200  # so many rules are shown, those with the most requests
HOSTS = 3  # so many hosts of a rule are shown
_FAILED = frozenset(("upstream_failed", "upstream_cut"))

type _Counts = dict[str, _Traffic]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The running sidecar, for the page about it.

    Attributes:
        version: Overcoat's version.
        workers: the number of processes that serve.
        started: when it started, in seconds since 1970.
        registry: the metrics of all processes.
        is_ready: the answer of `/ready`.
        policy: returns the policy in force.
        taken: returns when that was taken over, in seconds since 1970.
        recents: the last decision lines of each process that serves.
    """

    version: str
    workers: int
    started: float
    registry: CollectorRegistry
    is_ready: Callable[[], bool]
    policy: Callable[[], Policy]
    taken: Callable[[], float]
    recents: Sequence[Recent]


@dataclass(slots=True)
class _Traffic:
    """Requests and tunnels of one rule that are over."""

    requests: float = 0.0
    denied: float = 0.0
    would_deny: float = 0.0
    failed: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)


class Status:
    """Works out what the page shows."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._lock = threading.Lock()
        self._worked_out = -timelimits.STATUS_SECONDS
        self._view: dict[str, Any] = {}
        self._samples: deque[tuple[float, dict[str, float]]] = deque()  # when, and the requests of each rule until then

    def view(self) -> dict[str, Any]:
        """Return what is shown now: values that JSON has, and nothing else."""
        with self._lock:
            now = time.monotonic()
            if now >= self._worked_out + timelimits.STATUS_SECONDS:
                self._view = self._work_out(now)
                self._worked_out = now
            return self._view

    def _work_out(self, now: float) -> dict[str, Any]:
        sidecar, policy, at = self._sidecar, self._sidecar.policy(), time.time()
        families = {family.name: family for family in sidecar.registry.collect()}
        traffic = _traffic(families.get("overcoat_requests"))
        rates, seconds = self._rates(now, at, traffic)
        decisions = sorted((line for each in sidecar.recents for line in each.lines()), key=_end, reverse=True)[:KEPT]
        reasons = _last_reasons(line for each in sidecar.recents for line in each.lines_with_reason())
        names = {rule.name: rule for rule in policy.rules}
        shown = [*sorted(names, key=lambda name: -_of(traffic, name).requests), NO_RULE]
        ends = sorted((*calendar(policy), *_ends_of_certificates(families)), key=lambda each: each.day)
        days = [_ending(each, at) for each in ends]
        return {
            "version": sidecar.version,
            "now": _text(at),
            "started": _text(sidecar.started),
            "up_seconds": int(at - sidecar.started),
            "ready": sidecar.is_ready(),
            "workers": sidecar.workers,
            "mode": policy.mode.value,
            "policy": {
                "source": policy.source,
                "hash": policy.short_hash,
                "rules": len(policy.rules),
                "in_force_since": _text(sidecar.taken()),
                "age_seconds": max(0, int(at - sidecar.taken())),
                "refused": bool(_value(families.get("overcoat_policy_refused"))),
            },
            "traffic": {
                "rate_seconds": seconds,
                "per_second": round(sum(rates.values()), 3),
                **{
                    name: int(sum(getattr(each, name) for each in traffic.values()))
                    for name in ("requests", "denied", "would_deny", "failed")
                },
            },
            "in_flight": [
                {
                    "what": "client connections",
                    "now": int(_value(families.get("overcoat_client_connections"))),
                    "limit": policy.limits.connections * sidecar.workers,
                },
                *({"what": kind, "now": count, "limit": None} for kind, count in _kinds(families)),
            ],
            "ends": [each for each in days if each["days"] <= DAYS],
            "ends_later": [each for each in days if each["days"] > DAYS][:1],
            "fetched": list(_fetched(policy, families.get("overcoat_jwks_fetched_timestamp_seconds"), at)),
            "rules": [
                _rule(policy, name, names.get(name), _of(traffic, name), rates.get(name, 0.0), reasons)
                for name in (*shown[: RULES - 1], *shown[RULES - 1 :][-1:])
            ],
            "rules_left_out": max(0, len(shown) - RULES),
            "decisions": decisions,
        }

    def _rates(self, now: float, at: float, traffic: Mapping[str, _Traffic]) -> tuple[dict[str, float], int]:
        """Return how many requests a second each rule has, and over how many seconds."""
        samples = self._samples
        samples.append((now, {name: each.requests for name, each in traffic.items()}))
        while len(samples) > 2 and samples[1][0] <= now - timelimits.RATE_SECONDS:
            samples.popleft()
        began, before = samples[0]
        if now - began < timelimits.LEAST_RATE_SECONDS:
            began, before = now - max(at - self._sidecar.started, 1.0), {}
        seconds = now - began
        rates = {name: max(0.0, each.requests - before.get(name, 0.0)) / seconds for name, each in traffic.items()}
        return rates, round(seconds)


def _traffic(family: Metric | None) -> _Counts:
    found: _Counts = {}
    for sample in family.samples if family is not None else ():
        if not sample.name.endswith("_total") or not sample.value:
            continue
        labels, count = sample.labels, sample.value
        traffic = found.setdefault(labels["rule"], _Traffic())
        outcome, reason = labels["outcome"], labels["reason"]
        traffic.requests += count
        traffic.denied += count if outcome == "denied" else 0
        traffic.would_deny += count if outcome == "observed" and reason != NO_REASON else 0
        traffic.failed += count if outcome in _FAILED else 0
        if reason != NO_REASON:
            traffic.reasons[reason] += int(count)
    return found


def _of(traffic: Mapping[str, _Traffic], name: str) -> _Traffic:
    return traffic.get(name) or _Traffic()


def _rule(  # noqa: PLR0917  # the columns of a row
    policy: Policy, name: str, rule: Rule | None, traffic: _Traffic, rate: float, reasons: Mapping[str, Any]
) -> dict[str, Any]:
    last = reasons.get(name)
    if last is None and traffic.reasons:
        last = {"reason": traffic.reasons.most_common(1)[0][0], "time": None}
    return {
        "name": name,
        "hosts": [str(pattern) for pattern in rule.hosts[:HOSTS]] if rule else [],
        "hosts_left_out": max(0, len(rule.hosts) - HOSTS) if rule else 0,
        "does": _does(policy, rule),
        "mode": (Mode.OBSERVE if policy.observes(rule) else Mode.ENFORCE).value,
        "per_second": round(rate, 3),
        "requests": int(traffic.requests),
        "denied": int(traffic.denied),
        "would_deny": int(traffic.would_deny),
        "failed": int(traffic.failed),
        "last_reason": last,
    }


def _does(policy: Policy, rule: Rule | None) -> list[str]:
    """Return in few words what a rule, or none, does with requests."""
    said = policy.defaults if rule is None else rule
    words = [f"http: {said.plain_http.value}", f"https: {said.https.value}"]
    if policy.is_mirrored(rule):
        words = ["mirror"]
    if rule is not None and rule.pins is not None:
        words.append(f"{len(rule.pins.any_of)} pinned")
    for work in Work:
        if count := sum(len(entry.selectors) for entry in (rule.entries(work) if rule else ())):
            words.append(f"{work}s {count}")
    return words


def _last_reasons(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return for each rule the reason of the line that ended last."""
    found: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=_end):
        found[line["rule"] or NO_RULE] = {"reason": line["reason"], "time": line["time"]}
    return found


def _end(line: Mapping[str, Any]) -> float:
    """Return when what a line is about was over, in seconds since 1970."""
    return datetime.fromisoformat(line["time"]).timestamp() + float(line["seconds"])


def _ends_of_certificates(families: Mapping[str, Metric]) -> Iterator[Ending]:
    """Yield when the local CA ends, and the certificates that upstreams have shown (both are known to the metrics)."""
    if own := _value(families.get("overcoat_local_ca_expiry_timestamp_seconds")):
        yield Ending("the local CA", _day(own), "inspected hosts are denied")
    shown = families.get("overcoat_upstream_certificate_expiry_timestamp_seconds")
    for sample in shown.samples if shown is not None else ():
        if sample.value:
            whose = f"rule {sample.labels['rule']}" if sample.labels["rule"] != NO_RULE else "a host without a rule"
            yield Ending(f"{whose}: a server's certificate", _day(sample.value), "its requests are denied")


def _fetched(policy: Policy, family: Metric | None, at: float) -> Iterator[dict[str, Any]]:
    """Yield of each key set that is fetched by URL how old its keys are in the process in which they are the oldest."""
    times = {sample.labels["key"]: sample.value for sample in family.samples} if family is not None else {}
    for name, key_set in policy.keys.items():
        if key_set.supply is not None:
            when, most = times.get(name, 0.0), key_set.supply.max_age
            age = max(0, int(at - when)) if when else None
            is_stale = age is None or age > STALE_AFTER * most
            yield {"key": name, "age_seconds": age, "max_age_seconds": int(most), "is_stale": is_stale}


def _day(seconds: float) -> date:
    return datetime.fromtimestamp(seconds, UTC).date()


def _ending(ending: Ending, at: float) -> dict[str, Any]:
    days = (ending.day - _day(at)).days
    return {"what": ending.what, "day": ending.day.isoformat(), "days": days, "then": ending.then}


def _value(family: Metric | None) -> float:
    return max((sample.value for sample in family.samples), default=0.0) if family is not None else 0.0


def _kinds(families: Mapping[str, Metric]) -> list[tuple[str, int]]:
    """Return what is under way, by its kind: requests, tunnels and so on."""
    found: Counter[str] = Counter()
    for sample in families["overcoat_in_flight"].samples if "overcoat_in_flight" in families else ():
        found[sample.labels["kind"]] += int(sample.value)
    return list(found.items())


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
