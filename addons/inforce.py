"""Shows the counters and gauges of the processes, but no gauge of what the policy in force does not have: an alert
about a rule that a reload took away would last until the next start.

Rules of this module:

- A counter stays: what was counted has happened, and rates need it.
- A gauge of what is under way stays while there is any: a reload may leave open what a rule had that is gone.
- The gauges are left out where they are shown. Several processes keep theirs in files, of which nothing can be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.registry import Collector

from addons.metrics import IN_FLIGHT, NO_RULE, Metrics
from proxy.core.rules.policy import Mode, Policy


class InForce(Collector):
    """What another collector shows, as far as the policy in force has it."""

    def __init__(self, source: Collector, policy: Callable[[], Policy], own: Metrics) -> None:
        """Start.

        Args:
            source: the counters and gauges.
            policy: returns the policy in force.
            own: this process's own, which have the same families. Files of others may be just begun.
        """
        self._source = source
        self._policy = policy
        self._own = own

    def describe(self) -> list[Metric]:
        """Return the families, whose names a scrape may choose from."""
        return list(self._own.registry.collect())

    def collect(self) -> Iterator[Metric]:
        """Return the families."""
        policy = self._policy()
        modes = {rule.name: policy.mode_of(rule) for rule in policy.rules}
        modes[NO_RULE] = policy.mode
        keys = {name for name, key_set in policy.keys.items() if key_set.supply is not None}
        for family in self._source.collect():
            if family.type == "gauge":
                is_open = family.name == IN_FLIGHT
                family.samples = [
                    each for each in family.samples if (is_open and each.value) or _has(each.labels, modes, keys)
                ]
            yield family


def _has(labels: Mapping[str, str], modes: Mapping[str, Mode], keys: Collection[str]) -> bool:
    """Tell whether the policy has what the labels of a gauge speak of: a rule, in a mode, and a key set."""
    rule, key = labels.get("rule", NO_RULE), labels.get("key")
    return rule in modes and labels.get("mode", modes[rule]) == modes[rule] and (key is None or key in keys)
