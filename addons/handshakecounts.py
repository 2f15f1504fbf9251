"""Counts the handshakes with upstreams: the groups of their key exchanges, the pins that matched, and when the
certificates end. `addons.telemetry` calls it.

Rules of this module:

- The check of a rule's pins is counted with each request, and that of the upstream proxy's, which no request tells of,
  with each handshake.
- Of the certificates of a rule's hosts the first end is shown; the hosts that are remembered for it are limited.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from OpenSSL import SSL

from addons.metrics import NO_LEVEL, NO_RULE, UPSTREAM_PROXY, Metrics, pins_mode
from addons.upstream import Upstream
from proxy.core.handshakes import group_of
from proxy.core.pins import PinVerdict
from proxy.core.rules.policy import HostPattern, Mode, Policy

MOST_HOSTS = 100  # of a rule, of whose certificates the first end is shown


class HandshakeCounts:
    """Counts handshakes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ends: dict[str, dict[str, float]] = {}  # of certificates: by rule, and by host
        self._pins = functools.cache(metrics.pins.labels)  # which is slow, and always returns the same for the same

    def established(self, record: Upstream | None, tls: SSL.Connection | None, host: str) -> None:
        """Count a handshake that is complete, and note when the certificate of a rule's upstream ends.

        Args:
            record: what is known of the upstream connection, if anything is.
            tls: the connection.
            host: the name that it was asked for.
        """
        if record is not None and tls is not None:
            record.group = group_of(tls.get_group_name())
        self.count(record)
        certificate = tls.get_peer_certificate() if tls is not None else None
        if record is None or record.rule is None or record.is_proxy or certificate is None:
            return
        ends = certificate.get_notAfter()
        if ends is not None:
            when = datetime.strptime(ends.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
            self._note_end(record.rule.name, host, when)

    def take_over(self, before: Policy, now: Policy) -> None:
        """Forget the certificates of a rule that is gone, or that may have other hosts under another policy: each is
        noted again with the next handshake, for which a reload makes room.
        """
        hosts = _hosts_of(now)
        for rule, had in _hosts_of(before).items():
            if hosts.get(rule) != had and self._ends.pop(rule, None) is not None:
                self._metrics.certificate_expiry.labels(rule).set(0)

    def _note_end(self, rule: str, host: str, when: float) -> None:
        known = self._ends.setdefault(rule, {})
        known.pop(host, None)
        known[host] = when
        if len(known) > MOST_HOSTS:
            del known[next(iter(known))]
        self._metrics.certificate_expiry.labels(rule).set(min(known.values()))

    def count(self, record: Upstream | None) -> None:
        """Count a handshake, complete or not: its group, and the pins that matched."""
        if record is not None and record.group is not None and not record.is_proxy:
            self._metrics.handshakes.labels(record.rule.name if record.rule else NO_RULE, record.group).inc()
        if record is None or record.rule is None or record.rule.pins is None or record.pin is None:
            return
        name = UPSTREAM_PROXY if record.is_proxy else record.rule.name
        for match in record.matches:
            self._metrics.pin_matches.labels(name, match.pin.short, match.level).inc()
        if record.is_proxy:
            self.count_check(name, Mode.ENFORCE, record)

    def count_check(self, rule: str, mode: Mode, record: Upstream) -> None:
        """Count what the check of pins has found.

        Args:
            rule: the label of the rule.
            mode: the mode in which the request is handled.
            record: what is known of the upstream connection.
        """
        if record.pin is not None and record.rule is not None and record.rule.pins is not None:
            is_match = record.pin is PinVerdict.MATCH
            level = record.matches[0].level.value if is_match and record.matches else NO_LEVEL
            self._pins(rule, pins_mode(record.rule.pins, mode), record.pin.value, level).inc()


def _hosts_of(policy: Policy) -> dict[str, tuple[tuple[HostPattern, ...], int]]:
    """Return what says which hosts a rule has, by its name: its own, and those of the rules before it, as a hash."""
    before, found = 0, {}
    for rule in policy.rules:
        found[rule.name] = rule.hosts, before
        before = hash((before, rule.hosts))
    return found
