"""Checks of hosts: what matched where, which pin is a backup, and what ends when, to the day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.core.pinlife.checks import HostCheck, Result, backups, check_host, days_until, failed_host, troubles
from proxy.core.pins import AfterExpiry, Level, Pin, PinMatch, PinSet, certificate_pin, spki_pin

NOW = datetime(2027, 3, 10, 12, 0, tzinfo=UTC)
OTHER = Pin("spki", bytes(range(32)))


def certificate(ends: datetime) -> bytes:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1)).not_valid_after(ends)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


LEAF, MIDDLE, ROOT = (certificate(NOW + timedelta(days=days)) for days in (60, 30, 3000))
CHAIN = (LEAF, MIDDLE, ROOT)


def check(*pins: Pin, expires: date | None = None, after: AfterExpiry = AfterExpiry.ENFORCE) -> HostCheck:
    return check_host("a.example:443", "rule a", PinSet(pins, expires, after), CHAIN, NOW)


def test_a_pin_of_the_chain_matches_and_what_is_outside_it_is_a_backup() -> None:
    found = check(spki_pin(MIDDLE), OTHER, certificate_pin(LEAF))
    assert (found.result, found.level, found.detail) == (Result.MATCH, Level.LEAF, "")
    assert found.matches == (
        PinMatch(certificate_pin(LEAF), Level.LEAF),
        PinMatch(spki_pin(MIDDLE), Level.INTERMEDIATE),
    )
    assert found.backups == (OTHER,)
    assert len(found.seen) == 6


@pytest.mark.parametrize(
    "pins",
    [(spki_pin(LEAF), spki_pin(ROOT)), (spki_pin(LEAF), certificate_pin(LEAF)), (spki_pin(MIDDLE),)],
    ids=["leaf and root", "a key and its certificate", "one"],
)
def test_what_stands_in_one_chain_is_no_backup_of_each_other(pins: tuple[Pin, ...]) -> None:
    found = check(*pins)
    assert found.backups == ()
    assert backups(PinSet(pins), found.seen) == ()
    assert backups(PinSet((*pins, OTHER)), found.seen) == (OTHER,)


def test_what_is_not_right_is_said() -> None:
    mismatch = check(OTHER)
    assert (mismatch.result, mismatch.level) == (Result.MISMATCH, None)
    assert mismatch.detail.endswith(f"the server's key is {spki_pin(LEAF)}")
    expired = check(spki_pin(LEAF), expires=date(2027, 3, 9))
    assert (expired.result, expired.level) == (Result.EXPIRED, Level.LEAF)
    assert troubles(expired, 14, NOW) == ["expired: the pins of rule a expired on 2027-03-09"]
    unpinned = check_host("a.example:443", "rule a", None, CHAIN, NOW)
    assert (unpinned.result, unpinned.ends_at, unpinned.backups) == (Result.UNPINNED, Level.INTERMEDIATE, ())
    failed = failed_host("a.example:443", "rule a", PinSet((OTHER,), date(2027, 3, 11)), "why")
    assert (failed.result, failed.ends, failed.expires) == (Result.FAILED, None, date(2027, 3, 11))
    assert failed_host("a.example:443", "rule a", None, "why").expires is None
    assert troubles(failed, 14, NOW) == ["failed: why", "the pins of rule a expire on 2027-03-11 (in 1 day)"]


@pytest.mark.parametrize(
    ("end", "days"),
    [
        (NOW + timedelta(days=1), 1),
        (NOW + timedelta(hours=23), 0),
        (NOW, 0),
        (NOW - timedelta(seconds=1), -1),
        (date(2027, 3, 10), 0),
        (date(2027, 3, 11), 1),
        (date(2027, 3, 9), -1),
    ],
)
def test_days_are_whole_ones(end: datetime | date, days: int) -> None:
    assert days_until(end, NOW) == days


@pytest.mark.parametrize(("days", "is_due"), [(30, False), (31, True)])
def test_the_first_end_of_the_chain_counts(days: int, is_due: bool) -> None:
    said = troubles(check(spki_pin(LEAF)), days, NOW)
    assert said == (["an intermediate CA of its chain ends on 2027-04-09 12:00 UTC (in 30 days)"] if is_due else [])


@pytest.mark.parametrize(("chain", "what"), [((MIDDLE,), "its certificate"), ((LEAF, MIDDLE), "the root of its chain")])
def test_whose_end_it_is_is_said(chain: tuple[bytes, ...], what: str) -> None:
    (said,) = troubles(check_host("a.example:443", "rule a", None, chain, NOW), 31, NOW)
    assert said.startswith(f"{what} ends on ")


@pytest.mark.parametrize(("days", "is_due"), [(5, False), (6, True)])
def test_the_last_day_of_pins_counts(days: int, is_due: bool) -> None:
    said = troubles(check(spki_pin(LEAF), expires=date(2027, 3, 15)), days, NOW)
    assert said == (["the pins of rule a expire on 2027-03-15 (in 5 days)"] if is_due else [])


def test_a_chain_that_has_ended_has() -> None:
    (said,) = troubles(check_host("a:443", "rule a", None, (certificate(NOW - timedelta(days=2)),), NOW), 0, NOW)
    assert said == "its certificate ends on 2027-03-08 12:00 UTC (in the past)"
