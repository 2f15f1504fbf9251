"""The local CA's life: when it may sign, when its end is spoken of, and what is said.

Rules of this module:

- Outside its life nothing is signed: an app that saw the certificate would refuse it, and could not say why.
- What needs no certificate of the CA's (upgrades, tunnels, reverse listeners) goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from proxy.core.decisions import Denied, Reason

SOON = timedelta(days=30)
"""How long before its end it is warned of."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """From when until when a CA's certificate is valid, in UTC.

    Attributes:
        begins: the first moment.
        ends: the moment from which on it is not valid any more.
    """

    begins: datetime
    ends: datetime

    def holds(self, now: datetime) -> bool:
        """Tell whether it is valid at a time."""
        return self.begins <= now < self.ends

    def check(self, now: datetime) -> None:
        """Check that a certificate can be made for an app now.

        Raises:
            Denied: LOCAL_CA_EXPIRED: it has ended, or has not begun by this machine's clock.
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
        """Return what is to be said of it at a time; None while there is nothing."""
        try:
            self.check(now)
        except Denied as denied:
            return f"{denied.detail}: inspected hosts are denied ({denied.reason.code}); {denied.hint}"
        if now < self.ends - SOON:
            return None
        return (
            f"the local CA ends on {self.ends:%Y-%m-%d}, and from then on inspected hosts are denied; "
            f"{Reason.LOCAL_CA_EXPIRED.hint}"
        )

    def until_change(self, now: datetime) -> timedelta | None:
        """Return how long it takes until something else is to be said of it; None if nothing ever will be."""
        changes = (self.begins, self.ends - SOON, self.ends)
        return min((change - now for change in changes if change > now), default=None)
