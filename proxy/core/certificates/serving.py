"""A server's own certificate and key: those that a mirror listener shows. The policy file's reader checks them with
this module, and the engine serves with what it returns.

Rules of this module:

- They belong together, are valid now, and name each host that the listener stands for: what a careful client would
  refuse is refused here, before any client meets it.
- Only subjectAltName names a host (RFC 9525, section 6.3); a star stands for one whole label.
- No message quotes key material.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy.core.certificates.bundles import BadBundle, read_bundle
from proxy.core.destinations import is_address

_SERVES = frozenset((ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))
_MIN_RSA_BITS = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # TLS has no other ones (RFC 8446, section 4.2.3)
_BROKEN = ("md5", "sha1")

type _PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class BadServerCertificate(ValueError):
    """The certificate is refused. The message says why."""


class BadServerKey(ValueError):
    """The key is refused. The message says why."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate that a listener shows, and its key.

    Attributes:
        chain: the certificates in DER, the server's own first.
        key: the private key in DER (PKCS #8).
        ends: the last moment at which it is valid, in UTC.
    """

    chain: tuple[bytes, ...]
    key: bytes = field(repr=False)
    ends: datetime


def read_server_certificate(chain: bytes, key: bytes, names: Iterable[str], now: datetime) -> ServerCertificate:
    """Read and check a server's certificate and its key.

    Args:
        chain: PEM: the server's own certificate, then those that lead to a root (RFC 8446, section 4.4.2).
        key: PEM: its private key.
        names: the canonical hosts that it must name.
        now: the present time, in UTC.

    Raises:
        BadServerCertificate: the certificate is damaged, not valid now, or for another server.
        BadServerKey: the key is damaged, encrypted, too weak, or another certificate's.
    """
    certificates, ders = _read_chain(chain)
    own = certificates[0]
    private = _read_key(key)
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if own.public_key().public_bytes(encoding, form) != private.public_key().public_bytes(encoding, form):
        raise BadServerKey("this key is not the certificate's: its public half is another one")
    if now < own.not_valid_before_utc:
        raise BadServerCertificate(f"the certificate is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    if now > own.not_valid_after_utc:
        raise BadServerCertificate(f"the certificate ended on {own.not_valid_after_utc:%Y-%m-%d}: have it renewed")
    named = _check_form(own)
    for name in names:
        if not any(_covers(each, name) for each in named):
            shown = ", ".join(named) or "nothing"
            raise BadServerCertificate(f"the certificate does not name {name}: its subjectAltName has {shown}")
    der = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return ServerCertificate(ders, der, own.not_valid_after_utc)


def _read_chain(data: bytes) -> tuple[list[x509.Certificate], tuple[bytes, ...]]:
    try:
        bundle = read_bundle(data)
        with warnings.catch_warnings(action="ignore"):  # about oddities: the clients decide on them
            found = [x509.load_der_x509_certificate(each) for each in bundle.certificates]
            found[0].public_key()
    except BadBundle as error:
        raise BadServerCertificate(str(error)) from None
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise BadServerCertificate("a certificate in it is damaged, or none (RFC 5280)") from None
    for number, (each, issuer) in enumerate(itertools.pairwise(found), 1):
        if each.issuer != issuer.subject:
            raise BadServerCertificate(
                f"certificate {number} was not issued by the next one: the server's own comes first, then the one that "
                "signed it, and so on (RFC 8446, section 4.4.2)"
            )
    return found, bundle.certificates


def _read_key(data: bytes) -> _PrivateKey:
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:  # cryptography's sign that a password is needed
        raise BadServerKey("the key is encrypted: store it decrypted, readable by this user only") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadServerKey("there is no private key in PEM in it") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise BadServerKey("the key is for another use: a server's is RSA, EC or Ed25519")
    if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, _CURVES):
        raise BadServerKey(f"the key is on the curve {key.curve.name}, which TLS does not have: take P-256")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _MIN_RSA_BITS:
        raise BadServerKey(f"the key has {key.key_size} bits; no client takes an RSA key of less than {_MIN_RSA_BITS}")
    return key


def _check_form(certificate: x509.Certificate) -> list[str]:
    """Check what it is for, and return the names and addresses in its subjectAltName, in lower case."""
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in _BROKEN:
        raise BadServerCertificate(f"the certificate is signed with {algorithm.name}, which no client takes")
    try:
        extensions = certificate.extensions
    except ValueError:
        raise BadServerCertificate("an extension of the certificate is damaged, or stands in it twice") from None
    names: list[str] = []
    for extension in extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage) and _SERVES.isdisjoint(extension.value):
            raise BadServerCertificate("the certificate is not for servers: its extendedKeyUsage has no serverAuth")
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names += [each.lower() for each in extension.value.get_values_for_type(x509.DNSName)]
            names += [str(each) for each in extension.value.get_values_for_type(x509.IPAddress)]
    return names


def _covers(named: str, host: str) -> bool:
    if named.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == named[2:] and not is_address(host)
    return named == host
