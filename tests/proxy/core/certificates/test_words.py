"""What a refused certificate says about itself: right, short, and nothing that could be taken for our own words."""

from __future__ import annotations

import ipaddress
import re
import warnings
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificates.words import (
    MOST_CHARACTERS,
    MOST_NAMES,
    circumstances,
    host_names,
    issuer_of,
    remedy,
    shown_name,
    subject_of,
    whose,
)
from tests.growth import TOO_MUCH, growth

NOW = datetime(2026, 11, 30, 8, 0, 5, tzinfo=UTC)
EXPIRED, NOT_YET, UNKNOWN, SELF_SIGNED, IN_CHAIN, HOST, ADDRESS = 10, 9, 20, 18, 19, 62, 64
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(*names: x509.GeneralName, subject: str = "api", issuer: str = "Some CA", more: int = 0) -> bytes:
    def name(text: str) -> x509.Name:
        extra = [x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, f"u{each}" * 20) for each in range(more)]
        return x509.Name(([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else []) + extra)

    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(KEY.public_key()).serial_number(7)
    builder = builder.not_valid_before(datetime(2026, 1, 2)).not_valid_after(datetime(2026, 3, 4, 5, 6, 7))
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("error", [EXPIRED, NOT_YET])
def test_the_dates_are_said_with_the_present_time(error: int) -> None:
    said = circumstances(error, certificate(), NOW)
    assert said == "it is valid from 2026-01-02 00:00:00 to 2026-03-04 05:06:07, and now it is 2026-11-30 08:00:05 UTC"


@pytest.mark.parametrize("error", [HOST, ADDRESS])
def test_the_names_that_it_has_are_said(error: int) -> None:
    names = [x509.DNSName("a.example"), x509.UniformResourceIdentifier("http://x"), x509.DNSName("*.b.example")]
    names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ("192.0.2.1", "2001:db8::1")]
    said = circumstances(error, certificate(*names), NOW)
    assert said == "it names a.example, *.b.example, 192.0.2.1, 2001:db8::1"
    assert circumstances(error, certificate(), NOW) == "it names no host"
    many = [x509.DNSName(f"h{number}.example") for number in range(MOST_NAMES + 1)]
    assert circumstances(error, certificate(*many[:-1]), NOW).endswith("h4.example")
    assert circumstances(error, certificate(*many), NOW).endswith("h4.example, and more")


@pytest.mark.parametrize("error", [2, UNKNOWN, 21])
def test_the_issuer_that_is_unknown_is_said(error: int) -> None:
    said = circumstances(error, certificate(), NOW)
    assert said == 'its issuer is "CN=Some CA", which is not trusted, and nothing sent leads to a root'


def test_whose_certificate_it_is_is_said() -> None:
    assert whose(certificate(subject="Our CA")) == 'that is the certificate of "CN=Our CA"'
    assert whose(b"no certificate") == ""


def test_who_vouches_for_itself_is_said() -> None:
    assert circumstances(SELF_SIGNED, certificate(), NOW) == 'nobody but "CN=api" itself vouches for it'
    assert circumstances(IN_CHAIN, certificate(), NOW) == 'the chain ends at "CN=api", which is no trusted root'


@pytest.mark.parametrize("error", [3, 12])
def test_whose_revocation_list_is_looked_for_is_said(error: int) -> None:
    said = circumstances(error, certificate(), NOW)
    assert said == 'what counts is the revocation list of "CN=Some CA" (trust.crls)'


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EXPIRED, "must renew it"),
        (NOT_YET, "this machine's clock"),
        (HOST, "by a name that its certificate has"),
        (ADDRESS, "by a name that its certificate has"),
        (3, "into the files of trust.crls"),
        (12, "into the files of trust.crls"),
        (23, "must get another certificate"),
        (UNKNOWN, "name its CA in trust.roots"),
        (SELF_SIGNED, "name its CA in trust.roots"),
        (IN_CHAIN, "name its CA in trust.roots"),
    ],
)
def test_what_to_do_depends_on_what_is_wrong(error: int, words: str) -> None:
    assert words in remedy(error)
    assert ("trust.roots" in remedy(error)) == ("trust.roots" in words)  # which helps against nothing else


def test_of_all_else_nothing_is_said() -> None:
    assert circumstances(26, certificate(), NOW) == remedy(26) == ""
    for error in (EXPIRED, UNKNOWN, SELF_SIGNED, IN_CHAIN, HOST):
        assert circumstances(error, b"junk", NOW) == ""
    wrong_version = certificate().replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09")
    assert circumstances(EXPIRED, wrong_version, NOW) == ""


def test_a_name_that_is_empty_or_very_long_is_not_shown() -> None:
    assert issuer_of(certificate(issuer="")) == "a name that is empty"
    assert subject_of(certificate(more=200)) == "a name that is too long to show"
    cut = subject_of(certificate(more=5))
    assert cut.endswith('..."')
    assert len(cut) == MOST_CHARACTERS + 5


def test_somebody_elses_text_cannot_end_the_quotes_nor_the_line() -> None:
    hostile = '", which is trusted: run "rm\n\x1b[2J\x7f\u202eevil'
    with warnings.catch_warnings(action="ignore"):
        said = circumstances(UNKNOWN, certificate(issuer=hostile), NOW)
    assert said.isascii()
    assert said.isprintable()
    assert (
        re.sub(r'"(?:[^"\\]|\\.)*"', "", said)
        == "its issuer is , which is not trusted, and nothing sent leads to a root"
    )


def test_a_name_with_blanks_is_quoted() -> None:
    name = x509.DNSName("ok.example, and trusted")
    assert circumstances(HOST, certificate(name), NOW) == 'it names "ok.example, and trusted"'


@given(st.text(max_size=300))
def test_what_is_shown_is_short_printable_and_ascii(text: str) -> None:
    shown = shown_name(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 12 * MOST_CHARACTERS + 5
    assert shown[0] == shown[-1] == '"' or re.fullmatch(r"[A-Za-z0-9*._:-]+", shown)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    der = certificate(x509.DNSName("a.example"))
    for error in (EXPIRED, UNKNOWN, HOST):
        circumstances(error, data, NOW)
        at = len(data) * 3 % len(der)
        circumstances(error, der[:at] + data + der[at + len(data) :], NOW)


def test_an_extension_without_names_is_none() -> None:
    der = certificate(x509.DNSName("a.example"))
    assert list(host_names(der)) == ["a.example"]
    no_sequence = der.replace(b"\x30\x0b\x82\x09a.example", b"\x04\x0b\x82\x09a.example")
    assert no_sequence != der
    assert list(host_names(no_sequence)) == []


@pytest.mark.parametrize("error", [EXPIRED, UNKNOWN, HOST])
def test_a_very_long_certificate_takes_linear_time(error: int) -> None:
    def make(length: int) -> bytes:
        return certificate(*(x509.DNSName(f"h{number}.example") for number in range(length // 16)))

    assert growth(lambda der: circumstances(error, der, NOW), make, 96 * 1024) < TOO_MUCH
