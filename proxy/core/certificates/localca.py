"""What the local CA may sign: when, and for whom; when to warn of its end, and the text of the warning. The addon
`addons.localca` checks it before a handshake with an app; `proxy.policyfile.findings` and `proxy.processes.reminder`
report the warnings.

Rules of this module:

- Outside its lifetime and its constraints the CA signs nothing: an app would refuse the certificate, and could not say
  why.
- Whatever needs no certificate from the CA (upgrades, tunnels, reverse listeners) goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from proxy import timelimits
from proxy.core.certificates.constraints import Constraints
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason

_BEFORE_ITS_END = (
    "run `overcoat ca rotate` with Overcoat's data directory ($OVERCOAT_DATA), make the apps trust both CAs, which "
    "`overcoat ca` prints then, and after that run `overcoat ca rotate --finish`"
)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The time in which a CA's certificate is valid, in UTC.

    Attributes:
        begins: the first moment of validity.
        ends: the first moment after it.
    """

    begins: datetime
    ends: datetime

    def holds(self, now: datetime) -> bool:
        """Tell whether the CA is valid at a time."""
        return self.begins <= now < self.ends

    def check(self, now: datetime) -> None:
        """Check that a certificate can be made for an app now.

        Raises:
            Denied: LOCAL_CA_EXPIRED: the CA has ended or, by this machine's clock, has not begun.
        """
        if now < self.begins:
            raise Denied(
                Reason.LOCAL_CA_EXPIRED,
                f"the local CA begins on {self.begins:%Y-%m-%d}, and this machine's clock says {now:%Y-%m-%d}",
                "set the clock of the machine that Overcoat runs on",
            )
        if now >= self.ends:
            raise Denied(Reason.LOCAL_CA_EXPIRED, f"the local CA ended on {self.ends:%Y-%m-%d}")

    def warning(self, now: datetime) -> str | None:
        """Return the warning that is due at a time; None if none is."""
        try:
            self.check(now)
        except Denied as denied:
            return f"{denied.detail}: inspected hosts are denied ({denied.reason.code}); {denied.hint}"
        if now < self.ends - timedelta(seconds=timelimits.SOON_SECONDS):
            return None
        return (
            f"the local CA ends on {self.ends:%Y-%m-%d}, and from then on inspected hosts are denied; {_BEFORE_ITS_END}"
        )

    def until_change(self, now: datetime) -> timedelta | None:
        """Return the time until the warning changes; None if it never will."""
        changes = (self.begins, self.ends - timedelta(seconds=timelimits.SOON_SECONDS), self.ends)
        return min((change - now for change in changes if change > now), default=None)


@dataclass(frozen=True, slots=True)
class Mandate:
    """What a CA may sign.

    Attributes:
        lifetime: when.
        constraints: for which hosts; None for any.
    """

    lifetime: Lifetime
    constraints: Constraints | None = None

    def check(self, host: str, now: datetime) -> None:
        """Check that a certificate can be made for a host now.

        Raises:
            Denied: LOCAL_CA_EXPIRED, or LOCAL_CA_CONSTRAINED: the CA's constraints leave this host out.
        """
        self.lifetime.check(now)
        if self.constraints is not None and not self.constraints.permits(host):
            raise Denied(Reason.LOCAL_CA_CONSTRAINED, f"the local CA may not sign for {host}")
