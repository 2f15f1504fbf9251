"""Throw-away certificate authorities, and server certificates that are right or wrong in exactly one way.

Rules of this module:

- Nothing here outlives the test that made it: a private key is written only to a temporary file that OpenSSL reads.
- Each wrong variant differs from `Variant.VALID` in one property only, so that a refusal has one cause.

    authority = Authority()
    good = authority.issue("api.pay.example", "127.0.0.1")
    late = authority.issue("api.pay.example", variant=Variant.EXPIRED)
    policy = f"pins: {{any_of: [{good.pin}]}}"
"""

from __future__ import annotations

import base64
import hashlib
import ssl
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

WRONG_HOST = "elsewhere.example"


class Variant(Enum):
    """What is wrong with a server certificate."""

    VALID = auto()
    EXPIRED = auto()  # ended yesterday
    NOT_YET_VALID = auto()  # begins tomorrow
    WRONG_HOST = auto()  # names only `elsewhere.example`
    SELF_SIGNED = auto()  # right names and dates, issued by itself
    OTHER_AUTHORITY = auto()  # right names and dates, issued by an authority that nobody trusts


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's private key and the certificates that it sends.

    Attributes:
        key_pem: the private key.
        chain_pem: the certificates in the order they are sent, the server's own first.
    """

    key_pem: bytes
    chain_pem: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Identity({self.certificate.subject.rfc4514_string()!r}, pin={self.pin!r})"

    @property
    def certificate(self) -> x509.Certificate:
        """The server's own certificate."""
        return x509.load_pem_x509_certificate(self.chain_pem[0])

    @property
    def pin(self) -> str:
        """The pin of the server's own key, `sha256/…`."""
        return pin_of(self.certificate)

    def also_sending(self, *certificates: bytes) -> Identity:
        """Return the same identity that sends further PEM certificates, which prove nothing about it."""
        return replace(self, chain_pem=self.chain_pem + certificates)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let a server context present this identity."""
        # ssl reads keys only from files (https://github.com/python/cpython/issues/60691)
        with trustme.Blob(self.key_pem + b"".join(self.chain_pem)).tempfile() as path:
            context.load_cert_chain(path)


class Authority:
    """A certificate authority of its own.

    Args:
        issuer: the authority that signs this one, which makes it an intermediate; None for a root.
    """

    def __init__(self, issuer: Authority | None = None) -> None:
        self._authority: trustme.CA = trustme.CA() if issuer is None else issuer._authority.create_child_ca()

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self._authority.cert_pem.bytes()

    @property
    def key_pem(self) -> bytes:
        """The authority's private key."""
        return self._authority.private_key_pem.bytes()

    @property
    def pin(self) -> str:
        """The pin of the authority's key, `sha256/…`."""
        return pin_of(x509.load_pem_x509_certificate(self.pem))

    def intermediate(self) -> Authority:
        """Return an authority that this one has signed; what it issues is sent with its certificate."""
        return Authority(issuer=self)

    def write_pem(self, path: Path) -> Path:
        """Write the authority's certificate, and return where it stands."""
        path.write_bytes(self.pem)
        return path

    def crl(self, *revoked: x509.Certificate, days: int = 7, signer: Authority | None = None) -> bytes:
        """Return a revocation list in PEM.

        Args:
            revoked: the certificates on it.
            days: when it ends, from now.
            signer: who signs it, if not this authority.
        """
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(
            x509.load_pem_x509_certificate(self.pem).subject, now - timedelta(days=30), now + timedelta(days=days)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, now - timedelta(days=1)).build()
            builder = builder.add_revoked_certificate(entry)
        key = serialization.load_pem_private_key((signer or self).key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str, variant: Variant = Variant.VALID) -> Identity:
        """Return a new key and a certificate for it; every call makes another key.

        Args:
            names: DNS names and IP addresses.
            variant: what shall be wrong with it.
        """
        now = datetime.now(UTC)
        match variant:
            case Variant.VALID:
                return self._issue(names)
            case Variant.EXPIRED:
                return self._issue(names, now - timedelta(days=30), now - timedelta(days=1))
            case Variant.NOT_YET_VALID:
                return self._issue(names, now + timedelta(days=1), now + timedelta(days=30))
            case Variant.WRONG_HOST:
                return self._issue((WRONG_HOST,))
            case Variant.SELF_SIGNED:
                return _self_signed(names, now - timedelta(days=1), now + timedelta(days=30))
            case Variant.OTHER_AUTHORITY:
                return Authority()._issue(names)

    def _issue(
        self, names: tuple[str, ...], not_before: datetime | None = None, not_after: datetime | None = None
    ) -> Identity:
        leaf = self._authority.issue_cert(*names, not_before=not_before, not_after=not_after)
        return Identity(leaf.private_key_pem.bytes(), tuple(blob.bytes() for blob in leaf.cert_chain_pems))


def pin_of(certificate: x509.Certificate) -> str:
    """Return the pin of a certificate's key: SHA-256 over its SubjectPublicKeyInfo (RFC 7469, section 2.4)."""
    public_key_info = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256/" + base64.b64encode(hashlib.sha256(public_key_info).digest()).decode("ascii")


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _self_signed(names: tuple[str, ...], not_before: datetime, not_after: datetime) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    # read names and addresses as trustme does, so that this variant differs only in its issuer
    template = x509.load_pem_x509_certificate(trustme.CA().issue_cert(*names).cert_chain_pems[0].bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    for extension in template.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(key, hashes.SHA256())
    return Identity(
        private_pem(key),
        (certificate.public_bytes(serialization.Encoding.PEM),),
    )
