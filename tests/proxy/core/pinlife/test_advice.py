"""Advice on what to pin: each piece is given in one case, and not in its twin."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.core.pinlife.advice import ROTATING, SHORT_LIFE_DAYS, advice_on

BEGAN = datetime(2027, 1, 1)
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(organisation: str = "", days: int = 365) -> x509.Certificate:
    names = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    builder = x509.CertificateBuilder().subject_name(x509.Name(names)).issuer_name(x509.Name([]))
    builder = builder.public_key(KEY.public_key()).serial_number(1)
    return builder.not_valid_before(BEGAN).not_valid_after(BEGAN + timedelta(days=days)).sign(KEY, hashes.SHA256())


ROOT = certificate("Let's Encrypt")


@pytest.mark.parametrize(("days", "is_short"), [(SHORT_LIFE_DAYS - 1, True), (SHORT_LIFE_DAYS, False)])
def test_a_certificate_that_lives_for_weeks(days: int, is_short: bool) -> None:
    said = advice_on([certificate(days=days), certificate("Some CA"), ROOT])
    assert (said != []) is is_short
    if said:
        assert said[0].endswith(f"it lives for {days} days")


@pytest.mark.parametrize("rotating", ROTATING, ids=lambda each: str(each.organisation))
def test_an_intermediate_that_changes(rotating: object) -> None:
    organisation = getattr(rotating, "organisation", "")
    (said,) = advice_on([certificate(), certificate(organisation), certificate(organisation), ROOT])
    assert said.startswith(f"do not pin an intermediate CA of {organisation}: ")
    assert advice_on([certificate(), certificate(f"Not {organisation[1:]}"), ROOT]) == []


def test_a_root_or_a_server_of_such_a_ca_is_no_intermediate() -> None:
    assert advice_on([certificate("Amazon"), ROOT]) == []
    assert advice_on([certificate("Amazon")]) == []
