"""Finds rules, and hosts of rules, that are never reached, since an earlier rule takes them. `proxy.policyfile.build`
calls it for each rule, in their order.

Rules of this module:

- The first rule that names a host is the one that counts. A host that an earlier rule takes protects nothing: an error.
- Thousands of hosts take no longer than each of them by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.core.rules.policy import HostPattern
from proxy.policyfile.keysets import Report
from proxy.policyfile.model.rules import RuleSection
from proxy.policyfile.usable import Usable
from proxy.policyfile.yamltext import Steps


@dataclass(slots=True)
class HostIndex:
    """The host patterns of the rules so far, indexed by the suffixes of a host."""

    patterns: dict[str, list[tuple[HostPattern, str]]] = field(default_factory=dict)

    def add(self, pattern: HostPattern, rule: str) -> None:
        """Add a pattern, and what the rule is called that has it."""
        self.patterns.setdefault(pattern.host, []).append((pattern, rule))

    def covering(self, pattern: HostPattern) -> str | None:
        """Return the first rule that matches all hosts of a pattern, so that later rules never see them; None if there
        is none.
        """
        suffix = pattern.host
        while suffix:
            for earlier, rule in self.patterns.get(suffix, ()):
                if earlier.covers(pattern):
                    return rule
            suffix = suffix.partition(".")[2]
        return None


def check_hosts(steps: Steps, section: RuleSection, earlier: HostIndex, usable: Usable, report: Report) -> None:
    """Check the hosts of a rule, and add them to those that are taken.

    Args:
        steps: where the rule stands.
        section: the rule.
        earlier: the hosts of the rules before.
        usable: knows what the model has refused.
        report: takes errors.
    """
    is_named = not usable.is_about_wrong((*steps, "name"))
    label = f"rule {section.name}" if is_named else f"rules[{steps[-1]}]"
    covered: list[tuple[int, HostPattern, str]] = []
    first: dict[HostPattern, int] = {}
    for index, pattern in usable.numbered((*steps, "hosts"), section.hosts):
        if first.setdefault(pattern, index) != index:
            report((*steps, "hosts", index), f"hosts[{first[pattern]}] says {pattern} already")
        rule = earlier.covering(pattern)
        if rule is not None:
            covered.append((index, pattern, rule))
    if len(covered) == len(section.hosts) and not usable.is_about_wrong((*steps, "hosts")):
        names = ", ".join(dict.fromkeys(rule for _, _, rule in covered))
        report(
            (*steps, "hosts"),
            f"this rule is never reached: its hosts are all taken by {names} above, and the first rule that names "
            "a host counts; move this rule up, or take it out",
        )
    else:
        for index, pattern, rule in covered:
            report(
                (*steps, "hosts", index),
                f"{pattern} is never reached here: {rule} above takes it, and the first rule that "
                "names a host counts; move this rule up, or take the host out",
            )
    for pattern in section.hosts:
        earlier.add(pattern, label)
