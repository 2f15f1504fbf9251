"""What was worked out once under a policy, and need not be for each request.

Rules of this module:

- It is kept as long as its policy is in force for anything, and goes with it; another policy knows nothing of it.
- It is bounded: what was kept first gives way. So nobody can fill the memory by asking for ever new hosts.
- What is kept must not lead back to the policy, or that would never go.
"""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

from proxy.core.destinations import CACHED
from proxy.core.rules.policy import Policy


class Kept[K: Hashable, V]:
    """Values by keys, for each policy apart."""

    def __init__(self, most: int = CACHED) -> None:
        """Start with none.

        Args:
            most: how many are kept for one policy.
        """
        self._most = most
        self._of: WeakKeyDictionary[Policy, dict[K, V]] = WeakKeyDictionary()

    def get(self, policy: Policy, key: K) -> V | None:
        """Return what is kept for a key under a policy, if anything is."""
        kept = self._of.get(policy)
        return None if kept is None else kept.get(key)

    def keep(self, policy: Policy, key: K, value: V) -> V:
        """Keep a value, and return it."""
        kept = self._of.setdefault(policy, {})
        if len(kept) >= self._most:
            del kept[next(iter(kept))]
        kept[key] = value
        return value
