"""What is to come: chains and requests are read, and anything else is refused."""

from __future__ import annotations

import base64

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pinlife.candidates import Candidate, read_candidate
from proxy.core.pins import pin_of_public_key_info

KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN = [blob.bytes() for blob in trustme.CA().create_child_ca().issue_cert("a.example", "*.b.example").cert_chain_pems]


def request(*names: x509.GeneralName, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_chain_is_read_with_its_names() -> None:
    found = read_candidate(b"".join(CHAIN))
    assert (len(found.chain), found.key, found.names) == (2, None, ("a.example", "*.b.example"))


@pytest.mark.parametrize("key", [KEY, rsa.generate_private_key(65537, 2048)])
def test_a_request_is_read_with_the_pin_of_its_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = read_candidate(request(x509.DNSName("a.example"), key=key))
    assert found == Candidate((), pin_of_public_key_info(info), ("a.example",))
    assert read_candidate(request(key=key)).names == ()
    old = request(key=key).replace(b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")
    assert read_candidate(old).key == found.key


@pytest.mark.parametrize(
    ("name", "host", "is_for"),
    [
        ("a.example", "a.example", True),
        ("A.example", "a.example", True),
        ("a.example", "b.example", False),
        ("*.example", "a.example", True),
        ("*.example", "a.b.example", False),
        ("*.example", "example", False),
        ("192.0.2.1", "192.0.2.1", True),
    ],
)
def test_names_are_compared_as_in_a_handshake(name: str, host: str, is_for: bool) -> None:
    assert Candidate((), None, (name,)).is_for(host) is is_for


def _tampered() -> bytes:
    der = bytearray(base64.b64decode(b"".join(request().splitlines()[1:-1])))
    der[-1] ^= 1
    return b"-----BEGIN CERTIFICATE REQUEST-----\n%s\n-----END CERTIFICATE REQUEST-----\n" % base64.b64encode(der)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no certificate in PEM"),
        (request() + request(), "holds 2 requests"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 of the file is damaged"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "damaged"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n", "damaged"),
        (_tampered(), "request for a certificate is"),
    ],
)
def test_what_is_neither_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_candidate(data)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for content in (data, b"-----BEGIN CERTIFICATE REQUEST-----" + data + b"-----END CERTIFICATE REQUEST-----"):
        with pytest.raises(ValueError, match=r"\w"):
            read_candidate(content)
