"""Makes certificates: that of a CA, and those of servers that it signs. The local CA and the demo's CA call it.

Rules of this module:

- A certificate says all that strict clients ask for (RFC 5280; Python's `VERIFY_X509_STRICT`): critical basic
  constraints and key usage, and the key identifiers.
- A CA signs servers' certificates only, never another CA. The one exception is a root whose key is forgotten at once,
  and its one intermediate CA.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy import timelimits
from proxy.core.certificates.constraints import Constraints
from proxy.core.certificates.localca import Lifetime


def valid_from(now: datetime, ends: datetime) -> Lifetime:
    """Return the lifetime of a certificate that is used from now on: it begins earlier, for clocks that are slow."""
    return Lifetime(now - timedelta(seconds=timelimits.CLOCK_SLACK_SECONDS), ends)


def ca_certificate(name: str, key: ec.EllipticCurvePrivateKey, lifetime: Lifetime) -> x509.Certificate:
    """Return the certificate of a CA, signed by its own key.

    Args:
        name: its common name.
        key: its key.
        lifetime: when it is valid.
    """
    subject = _named(name)
    return _ca(subject, subject, key.public_key(), lifetime, 0).sign(key, hashes.SHA256())


def constrained_chain(
    name: str, key: ec.EllipticCurvePrivateKey, lifetime: Lifetime, constraints: Constraints
) -> tuple[x509.Certificate, x509.Certificate]:
    """Return the certificate of an intermediate CA that may sign for some hosts only, and that of its root.

    Both have the constraints: many clients hold a root to its own, but RFC 5280 (section 6.2) does not ask for that,
    and Java does not do it. The root's key signs the intermediate CA, and exists no longer than this call.

    Args:
        name: the root's common name.
        key: the intermediate CA's key.
        lifetime: when both are valid.
        constraints: the hosts.
    """
    root_key = ec.generate_private_key(ec.SECP256R1())
    root, extension = _named(name), constraints.extension()
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    return (
        _ca(_named(f"{name}, signer"), root, key.public_key(), lifetime, 0)
        .add_extension(extension, critical=True)
        .add_extension(identifier, critical=False)
        .sign(root_key, hashes.SHA256()),
        _ca(root, root, root_key.public_key(), lifetime, 1)
        .add_extension(extension, critical=True)
        .sign(root_key, hashes.SHA256()),
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _ca(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: Lifetime, below: int
) -> x509.CertificateBuilder:
    """Begin a CA's certificate; so many CAs may follow below it."""
    return (
        _begin(subject, issuer, key, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def server_certificate(
    host: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    lifetime: Lifetime,
) -> x509.Certificate:
    """Return the certificate of a server, signed by a CA.

    Args:
        host: the server's canonical host name or IP address.
        public_key: the server's key.
        issuer: the CA's certificate.
        issuer_key: the CA's key.
        lifetime: when it is valid.
    """
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    return (
        # the name is in a critical subjectAltName: CN allows 64 bytes only
        _begin(x509.Name([]), issuer.subject, public_key, lifetime)
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _begin(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, lifetime: Lifetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(lifetime.begins)
        .not_valid_after(lifetime.ends)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
