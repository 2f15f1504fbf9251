"""A cache for results that depend on a policy and a key alone. `proxy.core.rules.transport` keeps its decisions in one.

Rules of this module:

- A value lives as long as its policy is in use anywhere, and is never seen under another policy.
- The cache is limited: the oldest value is dropped first. So nobody can fill the memory by asking for new hosts.
- A value must not refer to its policy, or neither would ever be freed.
"""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

from proxy.core.destinations import CACHED
from proxy.core.rules.policy import Policy


class Kept[K: Hashable, V]:
    """Values by keys, separate for each policy."""

    def __init__(self, most: int = CACHED) -> None:
        """Start empty.

        Args:
            most: the greatest number of values for one policy.
        """
        self._most = most
        self._of: WeakKeyDictionary[Policy, dict[K, V]] = WeakKeyDictionary()

    def get(self, policy: Policy, key: K) -> V | None:
        """Return the value that is kept for a key under a policy; None if there is none."""
        kept = self._of.get(policy)
        return None if kept is None else kept.get(key)

    def keep(self, policy: Policy, key: K, value: V) -> V:
        """Keep a value, and return it."""
        kept = self._of.setdefault(policy, {})
        if len(kept) >= self._most:
            del kept[next(iter(kept))]
        kept[key] = value
        return value
