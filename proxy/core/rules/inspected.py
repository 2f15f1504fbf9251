"""Which hosts a policy inspects, held against those for which the local CA may sign. Whoever makes a CA asks for
`constraints_for`; the commands and the reload, before a policy is taken, for `outside`.

Rules of this module:

- Constraints are for a fixed list of hosts only: a policy that inspects hosts which no rule names has none.
- They are made for what is inspected once everything is enforced, so that the end of observe mode needs no other CA. A
  policy is held against them by what it inspects now.
- A pattern counts as the name below which all its hosts are, a port not at all: a certificate has none.
"""

from __future__ import annotations

from proxy.core.certificates.constraints import Constraints, TooMany
from proxy.core.rules.policy import HostPattern, Mode, Policy

_SHOWN = 3  # hosts of one message


class NotFixed(Exception):
    """A policy for which no CA can be constrained. The message says why, and goes on after "the policy: "."""


def constraints_for(policy: Policy) -> Constraints:
    """Return the constraints of a CA for a policy.

    Raises:
        NotFixed: it inspects no fixed list of hosts, or too long a one, or none.
    """
    if policy.inspects_unnamed:
        raise NotFixed("its default inspects hosts that no rule names")
    hosts = {pattern.host for _, pattern in policy.inspected}
    if not hosts:
        raise NotFixed("it inspects no host")
    try:
        return Constraints.to(hosts)
    except TooMany as e:
        raise NotFixed(str(e)) from None


def outside(policy: Policy, constraints: Constraints | None) -> str | None:
    """Return what a policy inspects for which a CA may not sign; None if there is nothing.

    Args:
        policy: the policy.
        constraints: those of the CA; None for none.
    """
    if constraints is None:
        return None
    if policy.inspects_unnamed and policy.mode is Mode.ENFORCE:
        return "hosts that no rule names (defaults.https: inspect)"
    found = [
        f"{pattern} (rule {rule.name})"
        for rule, pattern in policy.inspected
        if not policy.observes(rule) and not _permits(constraints, pattern)
    ]
    if not found:
        return None
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _permits(constraints: Constraints, pattern: HostPattern) -> bool:
    return constraints.permits(pattern.host, with_all_below=pattern.kind != "exact")
