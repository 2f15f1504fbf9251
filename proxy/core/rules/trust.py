"""Which upstream certificates a policy trusts, and which certificate of its own it shows. A `Policy` holds these, for
all hosts and for those of a rule; `proxy.engine.tls` makes its contexts of them.

Rules of this module:

- Everything is complete once the policy has been read, but for the system's roots; see `proxy.engine.tls.with_roots`.
- No `repr` has a key in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from proxy.core.jose.keymaterial import SecretBytes


class KeyExchange(StrEnum):
    """Which key exchanges are accepted from upstreams."""

    ANY = "any"
    HYBRID = "hybrid"  # X25519MLKEM768 or nothing


class CrlUse(StrEnum):
    """What happens where a revocation list is missing, has ended or cannot be verified."""

    IF_PRESENT = "if_present"  # the certificate counts as not revoked
    REQUIRE = "require"  # it is refused


@dataclass(frozen=True, slots=True)
class Crls:
    """Certificate revocation lists (RFC 5280, section 5).

    Attributes:
        files: the files that they came from.
        when: what happens where one is missing.
        lists: the lists in DER.
    """

    files: tuple[Path, ...]
    when: CrlUse = CrlUse.IF_PRESENT
    lists: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """Which upstream certificates are trusted.

    Attributes:
        roots: a PEM bundle, or None for the system's store.
        min_tls: the lowest TLS version that upstreams may use.
        strict: whether certificates must have the form that RFC 5280 prescribes, as Python 3.13 and newer demand.
        anchors: the certificates of the bundle in DER, once it was read; see `proxy.engine.tls.with_roots`.
        key_exchange: which key exchanges are accepted.
        crls: revocation lists; None for none.
    """

    roots: Path | None = None
    min_tls: Literal["1.2", "1.3"] = "1.2"
    strict: bool = True
    anchors: tuple[bytes, ...] | None = field(default=None, repr=False)
    key_exchange: KeyExchange = KeyExchange.ANY
    crls: Crls | None = None

    def takes_only_what_is_taken_by(self, other: Trust) -> bool:
        """Tell whether no upstream passes here that would not pass under another `Trust`. Other roots, and other
        revocation lists, count as ones that let something else pass.
        """
        return (
            (self.roots, self.anchors) == (other.roots, other.anchors)
            and self.min_tls >= other.min_tls
            and self.strict >= other.strict
            and (other.key_exchange is KeyExchange.ANY or self.key_exchange is other.key_exchange)
            and (other.crls is None or self.crls == other.crls)
        )


@dataclass(frozen=True, slots=True, eq=False)
class ClientCertificate:
    """The certificate that is shown to an upstream which asks for one. Compared by identity.

    Attributes:
        file: where it came from.
        chain: the certificate and its issuers' in DER, its own first.
        key: its private key in DER (PKCS #8).
        ends: when the certificate ends, in UTC.
    """

    file: Path
    chain: tuple[bytes, ...]
    key: SecretBytes
    ends: datetime
