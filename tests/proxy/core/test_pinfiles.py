"""Pins of PEM files: the octets that a server's certificate has, not those that a library would write.

What the files hold is put together here, so that it has the forms that libraries read and don't write.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from proxy.core.certificates.der import encoded
from proxy.core.pinfiles import pin_of_pem
from proxy.core.pins import Pin, spki_pin

KEY = ec.generate_private_key(ec.SECP256R1())
CERTIFICATE = (
    x509.CertificateBuilder()
    .subject_name(x509.Name([]))
    .issuer_name(x509.Name([]))
    .public_key(KEY.public_key())
    .serial_number(1)
    .not_valid_before(datetime.now(UTC))
    .not_valid_after(datetime.now(UTC) + timedelta(days=1))
    .sign(KEY, hashes.SHA256())
)
LEAF = CERTIFICATE.public_bytes(Encoding.DER)
PRIVATE_PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())

SEQUENCE, INTEGER, OCTETS, BITS, CURVE, POINT = 0x30, 0x02, 0x04, 0x03, 0xA0, 0xA1
EC_NAME, P256 = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06082a8648ce3d030107")
PSS_NAME = bytes.fromhex("06092a864886f70d01010a")
RSA_NAME, NULL = bytes.fromhex("06092a864886f70d010101"), bytes.fromhex("0500")
# RSASSA-PSS-params with SHA-256, MGF1 with SHA-256 and a salt of 32 octets (RFC 4055, section 3.1)
PSS_PARAMETERS = bytes.fromhex(
    "3030a00d300b0609608648016503040201a11a301806092a864886f70d010108300b0609608648016503040201a203020120"
)
# The curve P-256 written out (X9.62, ECParameters), as `openssl ec -param_enc explicit` does
P256_WRITTEN_OUT = bytes.fromhex(
    "3081f7020101302c06072a8648ce3d0101022100ffffffff00000001000000000000000000000000ffffffffffffffffffffffff"
    "305b0420ffffffff00000001000000000000000000000000fffffffffffffffffffffffc04205ac635d8aa3a93e7b3ebbd557698"
    "86bc651d06b0cc53b0f63bce3c3e27d2604b031500c49d360886e704936a6678e1139d26b7819f7e900441046b17d1f2e12c4247"
    "f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb64068"
    "37bf51f5022100ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551020101"
)
RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA_PUBLIC = RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
RSA_PRIVATE = RSA_KEY.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
COMPRESSED = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
UNCOMPRESSED = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def sequence(*parts: bytes) -> bytes:
    return encoded(SEQUENCE, b"".join(parts))


def info(algorithm: bytes, key: bytes) -> bytes:
    """Return a SubjectPublicKeyInfo."""
    return sequence(algorithm, encoded(BITS, b"\0" + key))


def elliptic(curve: bytes | None, point: bytes | None) -> bytes:
    """Return an ECPrivateKey (RFC 5915, section 3)."""
    number = KEY.private_numbers().private_value.to_bytes(32)
    parts = [encoded(INTEGER, b"\1"), encoded(OCTETS, number)]
    parts += [encoded(CURVE, curve)] if curve else []
    parts += [encoded(POINT, encoded(BITS, b"\0" + point))] if point else []
    return sequence(*parts)


def pkcs8(algorithm: bytes, key: bytes) -> bytes:
    return sequence(encoded(INTEGER, b"\0"), algorithm, encoded(OCTETS, key))


def pem(label: str, der: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n".encode()


def pin(spki: bytes) -> Pin:
    return Pin("spki", hashlib.sha256(spki).digest())


PSS, PSS_BARE = sequence(PSS_NAME, PSS_PARAMETERS), sequence(PSS_NAME)
NAMED, WRITTEN_OUT = sequence(EC_NAME, P256), sequence(EC_NAME, P256_WRITTEN_OUT)


@pytest.mark.parametrize(
    ("file", "spki"),
    [
        (pem("PUBLIC KEY", info(PSS, RSA_PUBLIC)), info(PSS, RSA_PUBLIC)),
        (pem("PUBLIC KEY", info(PSS_BARE, RSA_PUBLIC)), info(PSS_BARE, RSA_PUBLIC)),
        (pem("PRIVATE KEY", pkcs8(PSS, RSA_PRIVATE)), info(PSS, RSA_PUBLIC)),
        (pem("PRIVATE KEY", pkcs8(PSS_BARE, RSA_PRIVATE)), info(PSS_BARE, RSA_PUBLIC)),
        (pem("PRIVATE KEY", pkcs8(sequence(RSA_NAME), RSA_PRIVATE)), info(sequence(RSA_NAME, NULL), RSA_PUBLIC)),
        (pem("PUBLIC KEY", info(NAMED, COMPRESSED)), info(NAMED, COMPRESSED)),
        (pem("PUBLIC KEY", info(WRITTEN_OUT, UNCOMPRESSED)), info(WRITTEN_OUT, UNCOMPRESSED)),
        (pem("PRIVATE KEY", pkcs8(NAMED, elliptic(None, COMPRESSED))), info(NAMED, COMPRESSED)),
        (pem("PRIVATE KEY", pkcs8(NAMED, elliptic(None, UNCOMPRESSED))), info(NAMED, UNCOMPRESSED)),
        (pem("PRIVATE KEY", pkcs8(NAMED, elliptic(None, None))), info(NAMED, UNCOMPRESSED)),
        (pem("PRIVATE KEY", pkcs8(WRITTEN_OUT, elliptic(None, UNCOMPRESSED))), info(WRITTEN_OUT, UNCOMPRESSED)),
        (pem("EC PRIVATE KEY", elliptic(P256, COMPRESSED)), info(NAMED, COMPRESSED)),
        (pem("EC PRIVATE KEY", elliptic(P256, None)), info(NAMED, UNCOMPRESSED)),
        (pem("EC PRIVATE KEY", elliptic(P256_WRITTEN_OUT, COMPRESSED)), info(WRITTEN_OUT, COMPRESSED)),
    ],
    ids=[
        "public PSS",
        "public PSS without parameters",
        "private PSS",
        "private PSS without parameters",
        "private RSA without its NULL",
        "public, compressed",
        "public, curve written out",
        "private, compressed",
        "private, uncompressed",
        "private without a point",
        "private, curve written out",
        "SEC 1, compressed",
        "SEC 1 without a point",
        "SEC 1, curve written out",
    ],
)
def test_the_octets_are_those_of_the_certificate(file: bytes, spki: bytes) -> None:
    assert pin_of_pem(file) == pin(spki)


@pytest.mark.parametrize("key", [RSA_KEY, ed25519.Ed25519PrivateKey.generate()], ids=["RSA", "Ed25519"])
def test_keys_that_have_one_form_only(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> None:
    expected = pin(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    assert pin_of_pem(public) == pin_of_pem(private) == expected
    if isinstance(key, rsa.RSAPrivateKey):
        private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        assert pin_of_pem(pem("RSA PUBLIC KEY", RSA_PUBLIC)) == pin_of_pem(private) == expected


def test_an_elliptic_key_that_names_its_curve_elsewhere() -> None:
    """`load_pem_private_key` takes none without a curve; another library's file may still name it in other words."""
    without = elliptic(None, UNCOMPRESSED)
    with pytest.raises(ValueError, match="EC PRIVATE KEY cannot be read"):
        pin_of_pem(pem("EC PRIVATE KEY", without))


@pytest.mark.parametrize("what", ["after it", "inside it"])
def test_a_public_key_is_all_that_its_block_holds(what: str) -> None:
    der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="PUBLIC KEY cannot be read"):
        pin_of_pem(pem("PUBLIC KEY", der + b"\0" if what == "after it" else der[:-1]))


@pytest.mark.parametrize(
    "pem",
    [
        CERTIFICATE.public_bytes(Encoding.PEM),
        KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        PRIVATE_PEM,
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + PRIVATE_PEM,
        b"subject=CN = leaf\n" + CERTIFICATE.public_bytes(Encoding.PEM),
    ],
    ids=["certificate", "public key", "private key", "private key after its parameters", "text before the block"],
)
def test_a_pem_file_gives_the_pin_of_its_public_key(pem: bytes) -> None:
    assert pin_of_pem(pem) == spki_pin(LEAF)


@pytest.mark.parametrize(
    ("pem", "expected"),
    [
        (b"", "no PEM block"),
        (LEAF, "no PEM block"),
        (CERTIFICATE.public_bytes(Encoding.PEM) * 2, "2 PEM blocks"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "cannot be pinned"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "CERTIFICATE cannot be read"),
        (b"-----BEGIN PUBLIC KEY-----\n", "PUBLIC KEY cannot be read"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PRIVATE KEY cannot be read"),
        (
            KEY.private_bytes(
                Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
            ),
            "the private key is encrypted",
        ),
    ],
)
def test_a_pem_file_that_gives_no_pin_says_why(pem: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        pin_of_pem(pem)
    assert "AAAA" not in str(caught.value)
