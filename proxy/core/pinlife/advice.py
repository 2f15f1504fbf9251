"""Says what of a chain had better not be pinned: a server's key that lives for weeks only, and the key of an
intermediate CA that its owner changes at will. `overcoat pins fetch` prints it.

Rules of this module:

- It is advice: nothing depends on it, and nothing is refused for it.
- A CA is named only with what it has said itself, and when. The table is short and dated: who pins looks again.
- It looks at the issuer's organisation in a verified chain, never at what a server merely sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from cryptography import x509

SHORT_LIFE_DAYS = 100


@dataclass(frozen=True, slots=True)
class Rotating:
    """A CA that issues from intermediates which change.

    Attributes:
        organisation: the organisation in its intermediates' subjects.
        since: since when.
        reason: what it has said.
    """

    organisation: str
    since: date
    reason: str


ROTATING = (
    Rotating(
        "Let's Encrypt",
        date(2024, 6, 6),
        "it issues from several intermediates in turn, so that nobody pins one, and replaces them without notice",
    ),
    Rotating(
        "Amazon",
        date(2022, 10, 11),
        "it issues from one of many intermediates, another at each renewal, and asks for all of its roots to be pinned",
    ),
    Rotating(
        "Google Trust Services",
        date(2024, 1, 1),
        "it says that chains are not static, and that intermediates must never be hardcoded",
    ),
)


def advice_on(chain: Sequence[x509.Certificate]) -> list[str]:
    """Return advice on pinning the keys of a verified chain, one sentence each.

    Args:
        chain: the certificates, leaf to root.
    """
    said: list[str] = []
    leaf = chain[0]
    life = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days
    if life < SHORT_LIFE_DAYS:
        said.append(
            f"do not pin the server's certificate, and its key only if its operator keeps it at each renewal: it lives "
            f"for {life} days"
        )
    for certificate in chain[1:-1]:
        names = {
            str(attribute.value)
            for attribute in certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        }
        found = next((each for each in ROTATING if any(each.organisation in name for name in names)), None)
        if found is not None:
            said.append(
                f"do not pin an intermediate CA of {found.organisation}: {found.reason} (since {found.since:%Y-%m}); "
                "pin the server's key, if it is kept, or the roots"
            )
            break
    return said
