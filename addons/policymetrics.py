"""The metrics that are read from the policy in force, at each scrape: what ends when, and what runs. They stand beside
the counters of `addons.metrics` in one registry.

Rules of this module:

- Nothing of an earlier policy remains.
- Labels are limited by the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from addons.metrics import UPSTREAM_PROXY
from proxy.core.certificates.crls import ends_of
from proxy.core.certificates.words import shown_name
from proxy.core.rules.policy import Policy


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
        self._lists: tuple[Policy | None, dict[tuple[str, str], datetime]] = (None, {})

    def describe(self) -> tuple[GaugeMetricFamily, ...]:
        """Return the families without samples."""
        return (
            GaugeMetricFamily(
                "overcoat_key_expiry_timestamp_seconds",
                "When a key ends: a primary one seals no more then, an older one opens no more (its grace included).",
                labels=["key", "kid", "use"],
            ),
            GaugeMetricFamily(
                "overcoat_jwks_max_age_seconds",
                "For how long the keys of a key set that is fetched by URL are to be used.",
                labels=["key"],
            ),
            GaugeMetricFamily(
                "overcoat_pins_expire_timestamp_seconds",
                "When the pins of a rule expire, and what happens then.",
                labels=["rule", "after_expiry"],
            ),
            GaugeMetricFamily(
                "overcoat_mirror_certificate_expiry_timestamp_seconds",
                "When the certificate ends that a mirror listener shows, by a host for which it stands.",
                labels=["host"],
            ),
            GaugeMetricFamily(
                "overcoat_client_certificate_expiry_timestamp_seconds",
                "When the certificate ends that a rule's hosts are shown.",
                labels=["rule"],
            ),
            GaugeMetricFamily(
                "overcoat_crl_expiry_timestamp_seconds",
                "When a revocation list that the policy names ends, by its issuer and by what happens then.",
                labels=["issuer", "when"],
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
        families = keys, ages, expiry, certificates, own, lists, info, content, start = self.describe()
        sets = {entry.keys.name: entry.keys for rule in policy.rules for entry in rule.fields}
        for name, key_set in sets.items():
            if key_set.supply is not None:
                ages.add_metric([name], key_set.supply.max_age)
                continue  # each process has its keys, and whoever publishes them answers for their ends
            for key in key_set.keys:
                use = "primary" if key is key_set.primary else "older"
                last = key.not_after if use == "primary" else key_set.last_opening(key)
                if last is not None:
                    keys.add_metric([name, key.kid, use], _end_of(last))
        pinned = [(rule.name, rule.pins) for rule in policy.rules]
        if policy.upstream_proxy is not None:
            pinned.append((UPSTREAM_PROXY, policy.upstream_proxy.rule.pins))
        for rule_name, pins in pinned:
            if pins is not None and pins.expires is not None:
                expiry.add_metric([rule_name, pins.after_expiry], _end_of(pins.expires))
        shown = {name: each.ends for mirror, each in policy.certificates.items() for name in mirror.names}
        for name, end in shown.items():
            certificates.add_metric([name], int(end.timestamp()))
        for rule in policy.rules:
            if rule.client_certificate is not None:
                own.add_metric([rule.name], int(rule.client_certificate.ends.timestamp()))
        for (issuer, when), end in self._ends_of_lists(policy).items():
            lists.add_metric([issuer, when], int(end.timestamp()))
        info.add_metric([self._version, policy.mode.value], 1)
        content.add_metric([policy.short_hash], 1)
        start.add_metric([], self._started)
        yield from families

    def _ends_of_lists(self, policy: Policy) -> dict[tuple[str, str], datetime]:
        """Return the ends of revocation lists by issuer and use; of several scopes and rules, the first one.

        Lists may be long, so they are read once for a policy and not at each scrape.
        """
        if self._lists[0] is not policy:
            found: dict[tuple[str, str], datetime] = {}
            for trust in (policy.trust, *(rule.trust for rule in policy.rules)):
                if trust is None or trust.crls is None:
                    continue
                for issuer, end in ends_of(trust.crls.lists):
                    label = shown_name(issuer), trust.crls.when.value
                    found[label] = min(end, found.get(label, end))
            self._lists = policy, found
        return self._lists[1]


def _end_of(day: date) -> int:
    """Return the end of a last valid day, in UTC."""
    return int(datetime.combine(day, datetime.max.time(), UTC).timestamp())
