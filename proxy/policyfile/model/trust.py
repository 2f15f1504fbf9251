"""Which servers are believed, and what they are shown: `trust` of policy and rules, `pins`, `client_certificate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from proxy.core.pins import AfterExpiry
from proxy.core.rules.policy import Mode
from proxy.core.rules.trust import CrlUse, KeyExchange
from proxy.policyfile.model.section import BUILT_IN, Section, choice
from proxy.policyfile.model.values import Day, FileName, KeySourceEntry, PinEntry

SYSTEM_ROOTS = "system"


class CrlsSection(Section):
    """Certificate revocation lists."""

    files: Annotated[list[FileName], Field(min_length=1)] = Field(
        description="Files with lists, PEM or DER; in the last part of a path `*` stands for any characters. One that "
        "is not there, or cannot be read, is an error. They are read again when they change."
    )
    when: CrlUse = choice(
        CrlUse.IF_PRESENT,
        "`require`: a certificate of the chain whose CA has no list that is valid now is refused; `if_present`: it "
        "counts as not revoked.",
    )


class TrustSection(Section):
    """Whom upstream certificates must come from."""

    roots: FileName = Field(
        default=SYSTEM_ROOTS,
        description="The trusted roots: `system` for the system's store, or a PEM file, which then counts alone.",
    )
    min_tls: Literal["1.2", "1.3"] = Field(
        default=BUILT_IN.trust.min_tls, description="The lowest TLS version accepted from upstreams, in quotes."
    )
    strict: bool = Field(
        default=BUILT_IN.trust.strict,
        description="Whether certificates must have the form that RFC 5280 prescribes (OpenSSL's X509_STRICT), as in "
        "Python 3.13 and newer. Private CAs often fail it.",
    )
    key_exchange: KeyExchange = choice(
        BUILT_IN.trust.key_exchange,
        "`hybrid` accepts X25519MLKEM768 only, which also holds against quantum computers of the future, and with it "
        "TLS 1.3 only; `any` prefers it, and takes what the upstream can.",
    )
    crls: CrlsSection | None = Field(
        default=None, description="Certificate revocation lists (RFC 5280). Left out: none are looked at."
    )


class RuleTrustSection(Section):
    """What holds for a rule's hosts in place of the same key of the policy's `trust`."""

    roots: FileName | None = Field(
        default=None, description="As `trust.roots`, for this rule's hosts: a private CA for these only, say."
    )
    min_tls: Literal["1.2", "1.3"] | None = Field(default=None, description="As `trust.min_tls`.")
    strict: bool | None = Field(default=None, description="As `trust.strict`.")
    key_exchange: KeyExchange | None = choice(None, "As `trust.key_exchange`.")
    crls: CrlsSection | None = Field(default=None, description="As `trust.crls`.")


class ClientCertificateSection(Section):
    """What is shown to upstreams that ask for a client certificate."""

    cert: FileName = Field(
        description="A PEM file with the certificate, and behind it those of its issuers up to the root, without that."
    )
    key: KeySourceEntry = Field(
        description="Where its private key comes from, PEM without a password: `{file: PATH}` or `{env: NAME}`."
    )
    unsafe_key_permissions: bool = Field(
        default=False, description="Whether others may read the key's file, as mounted container secrets often are."
    )


class PinsSection(Section):
    """Which keys the upstream's verified certificate chain must contain one of."""

    any_of: Annotated[list[PinEntry], Field(min_length=1)] = Field(
        description="The pins: `sha256/…` of a public key (RFC 7469), `cert-sha256/…` of a certificate, or "
        "`{file: NAME.pem}`. One of them must be in the verified chain; have a second one as a backup."
    )
    expires: Day | None = Field(
        default=None,
        description="The last day (UTC) on which the pins count; `after_expiry` says what comes then. Left out: no "
        "end.",
    )
    after_expiry: AfterExpiry = choice(
        AfterExpiry.ENFORCE,
        "After the last day: `enforce` denies the host; `warn` lets any valid certificate pass, and says so.",
    )
    mode: Mode = choice(
        Mode.ENFORCE,
        "`observe` refuses nothing for these pins: what they would have refused is told by decision line and metric. "
        "All else of a certificate is checked as ever.",
    )
