"""Pins: every spelling, every way to get one wrong, and the check of a verified chain."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, date, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.pins import (
    MOST_SHOWN,
    AfterExpiry,
    Level,
    Pin,
    PinMatch,
    PinSet,
    PinVerdict,
    certificate_pin,
    check_pins,
    level_of,
    mismatch_facts,
    parse_pin,
    spki_pin,
)

TODAY = date(2027, 6, 30)
DIGEST = bytes(range(32))
BASE64 = base64.b64encode(DIGEST).decode()
HEX = DIGEST.hex()
COLONS = ":".join(HEX[i : i + 2] for i in range(0, 64, 2)).upper()


def _certificate(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, name: str = "leaf") -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


KEY = ec.generate_private_key(ec.SECP256R1())
CERTIFICATE = _certificate(KEY)
LEAF = CERTIFICATE.public_bytes(Encoding.DER)
ROOT = _certificate(ec.generate_private_key(ec.SECP256R1()), "root").public_bytes(Encoding.DER)
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "text", [f"sha256/{BASE64}", f"sha256:{BASE64}", f"sha256//{BASE64}", f'pin-sha256="{BASE64}"']
)
def test_every_spelling_of_a_public_key_pin_is_read(text: str) -> None:
    assert parse_pin(text) == Pin("spki", DIGEST)


@pytest.mark.parametrize("text", [f"cert-sha256/{HEX}", f"cert-sha256/{HEX.upper()}", f"cert-sha256/{COLONS}"])
def test_every_spelling_of_a_certificate_pin_is_read(text: str) -> None:
    assert parse_pin(text) == Pin("certificate", DIGEST)


def test_a_digest_whose_base64_starts_with_a_slash_is_not_taken_for_the_curl_spelling() -> None:
    pin = Pin("spki", b"\xfc" + bytes(31))
    assert str(pin).startswith("sha256//")
    assert parse_pin(str(pin)) == parse_pin("sha256/" + str(pin).removeprefix("sha256")) == pin


@given(st.sampled_from(["spki", "certificate"]), st.binary(min_size=32, max_size=32))
def test_a_pin_reads_back_from_its_own_text(kind: str, digest: bytes) -> None:
    assume(len(set(digest)) > 1)
    pin = Pin("spki" if kind == "spki" else "certificate", digest)
    assert parse_pin(str(pin)) == pin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"sha1/{BASE64}", "sha1 is not accepted: only SHA-256"),
        (f"sha-512:{BASE64}", "sha-512 is not accepted"),
        (f'pin-sha1="{BASE64}"', "sha1 is not accepted"),
        (f"md5/{BASE64}", "md5 is not accepted"),
        (HEX, f"write cert-sha256/{HEX}"),
        (BASE64, f"write sha256/{BASE64}"),
        ("", "a pin is sha256/"),
        ("certs/server.PEM", "hex; for the key of a certificate in a file write {file: certs/server.PEM}"),
        ("server.pem.", "this is neither"),
        ("AAAA", "a pin is sha256/"),
        (f"SHA256/{BASE64}", "a pin is sha256/"),
        (f" sha256/{BASE64}", "a pin is sha256/"),
        (f"sha256/{BASE64}\n", "is not base64"),
        ("sha256/", "the digest is missing"),
        (f"sha256/{BASE64[:-1]}", f"write {BASE64}"),
        (f"sha256/{BASE64}=", f"write {BASE64}"),
        ("sha256/AAA", "cut short"),
        ("sha256/" + base64.b64encode(bytes(31)).decode(), "31 bytes, not 32"),
        ("sha256/" + base64.b64encode(bytes(33)).decode(), "33 bytes, not 32"),
        ("sha256/" + "EA" * 21 + "B=", "stray bits at its end"),
        ("sha256/" + "-A" * 21 + "A=", "base64url: write " + "+A" * 21 + "A="),
        ("sha256/" + "_A" * 21 + "A=", "base64url: write " + "/A" * 21 + "A="),
        ("sha256/" + "!" * 43 + "=", "not base64"),
        (f"sha256/{HEX}", f"cert-sha256/{HEX}"),
        (f"sha256/{HEX}", f"sha256/{BASE64}"),
        (f"cert-sha256/{HEX[:-1]}", "64 hex digits"),
        (f"cert-sha256/{HEX}0", "64 hex digits"),
        (f"cert-sha256/{BASE64}", "64 hex digits"),
        (f"cert-sha256/{COLONS.replace(':', '', 1)}", "64 hex digits"),
    ],
)
def test_a_wrong_pin_is_refused_with_what_would_be_right(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_pin(text)


@given(st.text(max_size=80))
def test_any_text_is_a_pin_or_a_value_error(text: str) -> None:
    try:
        pin = parse_pin(text)
    except ValueError:
        return
    assert len(pin.digest) == 32


def test_the_public_key_pin_is_the_hash_of_the_subject_public_key_info() -> None:
    assert spki_pin(LEAF) == Pin("spki", hashlib.sha256(SPKI).digest())


def test_the_public_key_is_hashed_as_it_stands_even_if_its_algorithm_is_unknown() -> None:
    der = _certificate(ed25519.Ed25519PrivateKey.generate()).public_bytes(Encoding.DER)
    ed25519_oid, unknown_oid = bytes.fromhex("06032b6570"), bytes.fromhex("06032b657f")
    unknown = der.replace(ed25519_oid, unknown_oid)
    start = unknown.index(bytes.fromhex("302a3005") + unknown_oid)
    assert spki_pin(unknown) == Pin("spki", hashlib.sha256(unknown[start : start + 44]).digest())


def test_a_version_1_certificate_without_a_version_field_has_a_pin() -> None:
    # The shortest certificate there is: an empty name, an Ed25519 key and a signature that nobody checks here.
    algorithm = bytes.fromhex("300506032b6570")
    spki = bytes.fromhex("302a300506032b6570032100") + bytes(32)
    validity = b"\x30\x1e" + b"\x17\x0d260101000000Z" + b"\x17\x0d270101000000Z"
    contents = b"\x02\x01\x01" + algorithm + b"\x30\x00" + validity + b"\x30\x00" + spki
    to_be_signed = b"\x30" + bytes([len(contents)]) + contents
    body = to_be_signed + algorithm + b"\x03\x41\x00" + bytes(64)
    assert spki_pin(b"\x30\x81" + bytes([len(body)]) + body) == Pin("spki", hashlib.sha256(spki).digest())


def test_the_certificate_pin_is_the_hash_of_the_whole_certificate() -> None:
    assert certificate_pin(LEAF) == Pin("certificate", CERTIFICATE.fingerprint(hashes.SHA256()))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x30", LEAF[:-1], LEAF + b"\0", SPKI, LEAF.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09")],
)
def test_what_is_no_certificate_has_no_pin(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a DER certificate"):
        spki_pin(data)
    with pytest.raises(ValueError, match="not a DER certificate"):
        certificate_pin(data)


@pytest.mark.parametrize("pin", [spki_pin(LEAF), certificate_pin(LEAF), spki_pin(ROOT), certificate_pin(ROOT)])
def test_a_pin_of_any_certificate_in_the_chain_matches(pin: Pin) -> None:
    assert check_pins(PinSet((Pin("spki", DIGEST), pin)), [LEAF, ROOT], TODAY).verdict is PinVerdict.MATCH


def test_pins_that_are_not_in_the_chain_do_not_match() -> None:
    assert check_pins(PinSet((spki_pin(ROOT), certificate_pin(ROOT))), [LEAF], TODAY).verdict is PinVerdict.MISMATCH


def test_the_two_kinds_of_pin_are_not_interchangeable() -> None:
    crossed = (Pin("certificate", spki_pin(LEAF).digest), Pin("spki", certificate_pin(LEAF).digest))
    assert check_pins(PinSet(crossed), [LEAF], TODAY).verdict is PinVerdict.MISMATCH


def test_an_empty_chain_does_not_match() -> None:
    assert check_pins(PinSet((spki_pin(LEAF),)), [], TODAY).verdict is PinVerdict.MISMATCH


def test_an_empty_pin_set_matches_nothing() -> None:
    assert check_pins(PinSet(()), [LEAF], TODAY).verdict is PinVerdict.MISMATCH


def test_a_certificate_that_cannot_be_read_does_not_match_even_by_its_own_hash() -> None:
    pins = PinSet((Pin("certificate", hashlib.sha256(b"junk").digest()), Pin("spki", hashlib.sha256(b"junk").digest())))
    assert check_pins(pins, [b"junk"], TODAY).verdict is PinVerdict.MISMATCH


def test_the_last_day_of_a_pin_set_is_still_good() -> None:
    assert check_pins(PinSet((spki_pin(LEAF),), TODAY), [LEAF], TODAY).verdict is PinVerdict.MATCH


def test_expired_pins_fail_before_anything_matches() -> None:
    assert check_pins(PinSet((spki_pin(LEAF),), TODAY - timedelta(days=1)), [LEAF], TODAY).verdict is PinVerdict.EXPIRED


def test_pins_without_an_end_never_expire() -> None:
    assert check_pins(PinSet((spki_pin(LEAF),)), [LEAF], date.max).verdict is PinVerdict.MATCH


def test_each_pin_is_found_at_its_level_also_when_the_pins_have_ended() -> None:
    pins = PinSet((certificate_pin(ROOT), spki_pin(LEAF), Pin("spki", DIGEST), spki_pin(ROOT)))
    found = (
        PinMatch(spki_pin(LEAF), Level.LEAF),
        PinMatch(certificate_pin(ROOT), Level.ROOT),
        PinMatch(spki_pin(ROOT), Level.ROOT),
    )
    assert check_pins(pins, [LEAF, ROOT], TODAY).matches == found
    ended = PinSet(pins.any_of, TODAY - timedelta(days=1))
    assert check_pins(ended, [LEAF, ROOT], TODAY).matches == found


def test_levels() -> None:
    assert [level_of(depth, 4) for depth in range(4)] == [Level.LEAF, *[Level.INTERMEDIATE] * 2, Level.ROOT]
    assert level_of(0, 1) is Level.LEAF


@pytest.mark.parametrize(
    ("after_expiry", "observes", "refused"),
    [
        (AfterExpiry.ENFORCE, False, {PinVerdict.MISMATCH, PinVerdict.EXPIRED}),
        (AfterExpiry.WARN, False, {PinVerdict.MISMATCH}),
        (AfterExpiry.ENFORCE, True, set()),
        (AfterExpiry.WARN, True, set()),
    ],
)
def test_what_pins_refuse(after_expiry: AfterExpiry, observes: bool, refused: set[PinVerdict]) -> None:
    pins = PinSet((spki_pin(LEAF),), TODAY, after_expiry, observes)
    assert {verdict for verdict in PinVerdict if pins.refuses(verdict)} == refused
    assert [pins.have_ended(TODAY + timedelta(days=days)) for days in (-1, 0, 1)] == [False, False, True]


def test_the_short_form_of_a_pin_is_its_beginning() -> None:
    for pin, short in (
        (Pin("spki", DIGEST), f"sha256/{BASE64[:8]}"),
        (Pin("certificate", DIGEST), "cert-sha256/00010203"),
    ):
        assert pin.short == short
        assert str(pin).startswith(short)


def test_a_mismatch_tells_the_pins_of_each_level_and_those_wanted() -> None:
    wanted = Pin("spki", DIGEST)
    assert mismatch_facts(PinSet((wanted,)), [LEAF, b"junk", ROOT]) == {
        "pins_seen": [{"level": "leaf", "pin": str(spki_pin(LEAF))}, {"level": "root", "pin": str(spki_pin(ROOT))}],
        "pins_wanted": [str(wanted)],
    }
    whole = Pin("certificate", DIGEST)
    assert mismatch_facts(PinSet((wanted, whole)), [LEAF])["pins_seen"] == [
        {"level": "leaf", "pin": str(spki_pin(LEAF)), "certificate_pin": str(certificate_pin(LEAF))}
    ]
    many = PinSet(tuple(Pin("spki", bytes([number, *range(31)])) for number in range(MOST_SHOWN + 5)))
    facts = mismatch_facts(many, [LEAF] * (MOST_SHOWN + 5))
    assert [len(list(facts[name])) for name in ("pins_seen", "pins_wanted")] == [MOST_SHOWN] * 2  # type: ignore[call-overload]  # they are lists


@given(st.lists(st.binary(max_size=60)))
def test_no_chain_makes_the_check_raise(chain: list[bytes]) -> None:
    assert check_pins(PinSet((spki_pin(LEAF),)), chain, TODAY).verdict is PinVerdict.MISMATCH


def _spellings(digest: bytes) -> list[str]:
    """Return what a digest may look like, the spellings among them that are refused with another way to write it."""
    as_base64, as_hex = base64.b64encode(digest).decode(), digest.hex()
    bare = [as_base64, as_base64.rstrip("="), as_base64.replace("+", "-").replace("/", "_"), as_hex, digest.hex(":")]
    marked = [prefix + text for prefix in ("sha256/", "sha256:", "sha256//") for text in bare]
    marked.remove(f"sha256//{bare[1]}")  # its slash is a digit: these are 33 bytes
    whole = [f"cert-sha256/{text}" for text in (as_hex, as_hex.upper(), digest.hex(":"))]
    return [*marked, *whole, f'pin-sha256="{as_base64}"', as_base64, as_hex, digest.hex(":")]


@pytest.mark.parametrize(
    ("digest", "told"),
    [
        pytest.param(hashlib.sha256(b"").digest(), "was given nothing to read", id="of nothing"),
        pytest.param(bytes(32), "stands for a pin and is none", id="all zero"),
        pytest.param(b"\xaa" * 32, "stands for a pin and is none", id="one byte over and over"),
    ],
)
def test_a_digest_that_no_key_has_is_refused_in_every_spelling(digest: bytes, told: str) -> None:
    for text in _spellings(digest):
        with pytest.raises(ValueError, match=told):
            parse_pin(text)


def test_what_is_said_to_be_right_is_right() -> None:
    for text in _spellings(DIGEST):
        try:
            parse_pin(text)
        except ValueError as error:
            hints = re.findall(r"((?:cert-)?sha256/[^ ,;]+|write [A-Za-z0-9+/]{43}=)", str(error))
            written = [hint.replace("write ", "sha256/") for hint in hints if "and" not in hint]
            assert written, text
            assert all(parse_pin(hint).digest == DIGEST for hint in written)
