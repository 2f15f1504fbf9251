"""For which hosts the local CA may sign, or would: what `overcoat check` says of it.

Rules of this module:

- What is public is read, and no key: `check` may run as another user than the sidecar.
- Where no host is inspected and no CA is constrained, there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.core.certificates.constraints import Constraints
from proxy.core.rules.inspected import NotFixed, constraints_for, outside
from proxy.core.rules.policy import Policy
from proxy.disk.ca import CaError, data_directory, published_mandates


@dataclass(frozen=True, slots=True)
class OwnCa:
    """The local CA beside a policy.

    Attributes:
        is_made: whether there is one.
        constraints: the hosts for which it may sign, or will once `serve` has made it here; None for any.
        wanted: the hosts to which it could be constrained; None if the policy inspects no fixed list.
        why: why that is so; else empty.
        left_out: what the policy inspects for which it may not sign; None for nothing.
        is_needed: whether a host is inspected.
    """

    is_made: bool
    constraints: Constraints | None
    wanted: Constraints | None
    why: str
    left_out: str | None
    is_needed: bool

    def summary(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "is_made": self.is_made,
            "constrained_to": None if self.constraints is None else self.constraints.texts(),
            "could_be_constrained_to": None if self.wanted is None else self.wanted.texts(),
            "why_not": self.why or None,
            "left_out": self.left_out,
        }

    def __str__(self) -> str:
        if not self.is_needed and self.constraints is None:
            return ""
        verb = "may sign" if self.is_made else "not made yet; will sign"
        if self.constraints is not None:
            return f"{verb} only for {self.constraints}, and for names below"
        if self.wanted is None:
            return f"{verb} for any host: it cannot be constrained, since {self.why}"
        how = "overcoat ca rotate --constrain" if self.is_made else "serve --constrain-ca"
        return f"{verb} for any host; with `{how}` only for {self.wanted}, and for names below"


def local_ca_of(policy: Policy, env: Mapping[str, str]) -> OwnCa:
    """Return the local CA beside a policy.

    Args:
        policy: the policy.
        env: the environment, which says where Overcoat keeps its data, and whether a CA that is made is constrained.
    """
    from proxy.processes.starting import asks_to_constrain

    try:
        mandates = published_mandates(data_directory(env))
    except CaError:  # there is no home directory; `serve` reports that itself
        mandates = []
    try:
        wanted, why = constraints_for(policy), ""
    except NotFixed as e:
        wanted, why = None, str(e)
    constraints = mandates[0].constraints if mandates else wanted if asks_to_constrain(env) else None
    needed = policy.inspects_unnamed or any(True for _ in policy.inspected)
    return OwnCa(bool(mandates), constraints, wanted, why, outside(policy, constraints), needed)
