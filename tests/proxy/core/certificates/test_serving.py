"""A mirror's certificate: each way to be wrong is refused for itself, and what is right is served as it came."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.core.certificates.serving import BadServerCertificate, BadServerKey, read_server_certificate

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NAMES = ("api.pay.example",)
PEM = serialization.Encoding.PEM
KEY = ec.generate_private_key(ec.SECP256R1())


def named(*names: str) -> list[x509.GeneralName]:
    """Return names as a subjectAltName has them."""
    return [
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() or ":" in name else x509.DNSName(name)
        for name in names
    ]


def certificate(
    key: object = KEY,
    names: Sequence[str] | None = NAMES,
    *,
    begins: datetime = NOW - timedelta(days=1),
    ends: datetime = NOW + timedelta(days=1),
    subject: str = "leaf",
    issuer: str = "ca",
    uses: Sequence[x509.ObjectIdentifier] | None = None,
    extra: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:
    """Return a certificate, signed by its own key: nobody here follows the chain."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())  # type: ignore[attr-defined]  # any private key
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(named(*names)), critical=False)
    if uses is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    for each in extra:
        builder = builder.add_extension(each, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm)  # type: ignore[arg-type]  # any private key


def pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates in PEM."""
    return b"".join(each.public_bytes(PEM) for each in certificates)


def key_pem(key: object = KEY, password: bytes | None = None) -> bytes:
    """Return a private key in PEM."""
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)  # type: ignore[attr-defined,no-any-return]  # any private key


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "RSA", "Ed25519"],
)
def test_what_is_right_is_served_as_it_came(key: object) -> None:
    own, ca = certificate(key), certificate(subject="ca", issuer="root")
    found = read_server_certificate(pem(own, ca), key_pem(key), NAMES, NOW)
    assert found.chain == tuple(each.public_bytes(serialization.Encoding.DER) for each in (own, ca))
    assert serialization.load_der_private_key(found.key, None).public_key() == key.public_key()  # type: ignore[attr-defined]  # any private key
    assert found.ends == NOW + timedelta(days=1)
    assert "key" not in repr(found).partition("ServerCertificate(")[2]


@pytest.mark.parametrize(
    ("names", "host", "is_named"),
    [
        (("api.pay.example",), "api.pay.example", True),
        (("API.pay.example",), "api.pay.example", True),
        (("other.example", "api.pay.example"), "api.pay.example", True),
        (("*.pay.example",), "api.pay.example", True),
        (("*.pay.example",), "pay.example", False),
        (("*.pay.example",), "a.b.pay.example", False),
        (("*.0.0.1",), "10.0.0.1", False),
        (("10.0.0.1",), "10.0.0.1", True),
        (("2001:db8::1",), "2001:db8::1", True),
        (("pay.example",), "api.pay.example", False),
        (None, "leaf", False),
    ],
)
def test_it_names_the_host(names: Sequence[str] | None, host: str, is_named: bool) -> None:
    chain = pem(certificate(names=names))
    if is_named:
        read_server_certificate(chain, key_pem(), [host], NOW)
        return
    with pytest.raises(BadServerCertificate, match=f"does not name {host}"):
        read_server_certificate(chain, key_pem(), [host], NOW)


def test_each_host_must_be_named() -> None:
    with pytest.raises(BadServerCertificate, match=r"does not name b\.example: its subjectAltName has a\.example"):
        read_server_certificate(pem(certificate(names=["a.example"])), key_pem(), ["a.example", "b.example"], NOW)


def in_pem(der: bytes) -> bytes:
    """Return a certificate in PEM."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def damaged() -> bytes:
    """Return a certificate whose key is of no kind."""
    der, kind = certificate().public_bytes(serialization.Encoding.DER), bytes.fromhex("06072a8648ce3d0201")
    assert kind in der
    return in_pem(der.replace(kind, kind[:-1] + b"\x09"))


TWICE = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.37"), b"\x01\x01\x01")


@pytest.mark.parametrize(
    ("chain", "what"),
    [
        (b"", "no certificate in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "damaged"),
        (damaged(), "damaged"),
        (pem(certificate(begins=NOW + timedelta(hours=1))), "not valid before 2026-06-01 01:00"),
        (pem(certificate(ends=NOW - timedelta(seconds=1))), "ended on 2026-05-31"),
        (pem(certificate(), certificate(subject="other")), "certificate 1 was not issued by the next one"),
        (pem(certificate(uses=[ExtendedKeyUsageOID.CLIENT_AUTH])), "no serverAuth"),
        (pem(certificate(extra=[TWICE])), "an extension of the certificate is damaged"),
        (
            pem(
                certificate(names=None, extra=[x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x01")])
            ),
            "an extension of the certificate is damaged",
        ),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(chain: bytes, what: str) -> None:
    with pytest.raises(BadServerCertificate, match=what):
        read_server_certificate(chain, key_pem(), NAMES, NOW)


@pytest.mark.parametrize("uses", [[ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]])
def test_a_certificate_may_say_that_it_is_for_servers(uses: Sequence[x509.ObjectIdentifier]) -> None:
    read_server_certificate(pem(certificate(uses=uses)), key_pem(), NAMES, NOW)


def test_a_weak_signature_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    der = certificate(key).public_bytes(serialization.Encoding.DER)
    sha256, sha1 = (bytes.fromhex(f"06092a864886f70d0101{last}") for last in ("0b", "05"))
    assert der.count(sha256) == 2
    with pytest.raises(BadServerCertificate, match="signed with sha1"):
        read_server_certificate(in_pem(der.replace(sha256, sha1)), key_pem(key), NAMES, NOW)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (b"", "no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (key_pem(password=b"secret"), "encrypted"),
        (key_pem(ec.generate_private_key(ec.SECP256R1())), "not the certificate's"),
        (key_pem(dsa.generate_private_key(2048)), "for another use"),
        (key_pem(ec.generate_private_key(ec.SECP256K1())), "secp256k1, which TLS does not have"),
        (key_pem(rsa.generate_private_key(65537, 1024)), "1024 bits"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(key: bytes, what: str) -> None:
    with pytest.raises(BadServerKey, match=what):
        read_server_certificate(pem(certificate()), key, NAMES, NOW)
