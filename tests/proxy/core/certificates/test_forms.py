"""The form of certificates: what RFC 5280 wants critical."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificates.der import element, elements, encoded, to_be_signed
from proxy.core.certificates.forms import form_defect

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime(2027, 1, 15, tzinfo=UTC)
CONSTRAINTS = "Basic Constraints of CA cert not marked critical"
OTHER_NAME = "Subject empty and Subject Alt Name extension not critical"
NAMES = x509.SubjectAlternativeName([x509.DNSName("api.example")])


def made(*extensions: tuple[x509.ExtensionType, bool], subject: str = "x") -> bytes:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def constraints(der: str) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), bytes.fromhex(der))


@pytest.mark.parametrize(
    ("certificate", "defect"),
    [
        (made(), None),
        (made((x509.BasicConstraints(ca=True, path_length=None), True)), None),
        (made((x509.BasicConstraints(ca=True, path_length=None), False)), CONSTRAINTS),
        (made((NAMES, False), (x509.BasicConstraints(ca=True, path_length=3), False)), CONSTRAINTS),
        (made((x509.BasicConstraints(ca=False, path_length=None), False)), None),
        (made((constraints("3003010100"), False)), None),  # cA written out, though false
        (made((constraints("3003020100"), False)), None),  # a path length alone
        (made((constraints("0500"), False)), None),
        (made((constraints("30"), False)), "not in DER"),
        (made((NAMES, False)), None),
        (made((NAMES, True), subject=""), None),
        (made((NAMES, False), subject=""), OTHER_NAME),
        (b"", "not in DER"),
    ],
)
def test_what_must_be_critical(certificate: bytes, defect: str | None) -> None:
    assert form_defect(certificate) == defect


def test_what_stands_before_the_extensions_is_passed_over() -> None:
    """An issuerUniqueID ([1], RFC 5280, section 4.1.2.8), which no library writes."""
    der = made((x509.BasicConstraints(ca=True, path_length=None), False))
    certificate = element(der, 0, len(der))
    fields, algorithm, signature = elements(der, certificate)
    at = to_be_signed(der)[-1].at
    longer = encoded(0x30, der[fields.start : at] + bytes.fromhex("8102000a") + der[at : fields.end])
    assert form_defect(encoded(0x30, longer + der[algorithm.at : signature.end])) == CONSTRAINTS


@given(st.binary(max_size=300))
def test_whatever_the_bytes_it_says_something_or_nothing(der: bytes) -> None:
    assert form_defect(der) is not None  # no bytes that anybody throws are a certificate


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_broken_certificate_raises_nothing(place: int, octet: int) -> None:
    der = bytearray(made((NAMES, False), (x509.BasicConstraints(ca=True, path_length=None), False)))
    der[place % len(der)] = octet
    form_defect(bytes(der))
