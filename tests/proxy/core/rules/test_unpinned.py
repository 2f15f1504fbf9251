"""What is said of a server that the pins do not vouch for."""

from __future__ import annotations

from datetime import date

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.core.destinations import Destination
from proxy.core.pins import AfterExpiry, Level, Pin, PinCheck, PinMatch, PinSet, PinVerdict, spki_pin
from proxy.core.reasons import Reason
from proxy.core.rules.unpinned import ended, unpinned

SERVER = Destination("api.example", 443)
CHAIN = [x509.load_pem_x509_certificate(trustme.CA().cert_pem.bytes()).public_bytes(Encoding.DER)]
PIN = Pin("spki", bytes(32))
MATCH = PinMatch(PIN, Level.LEAF)


@pytest.mark.parametrize(("rule", "whose"), [("api", "rule api"), (None, "upstream_proxy")])
def test_whose_pins_have_ended_and_when(rule: str | None, whose: str) -> None:
    denied = ended(PinSet((PIN,), date(2026, 1, 2)), rule)
    assert (denied.reason, denied.detail) == (
        Reason.PINS_EXPIRED,
        f"the pins of {whose} expired on 2026-01-02",
    )


@pytest.mark.parametrize(
    ("rule", "whose", "where"),
    [("api", "rule api", "the rule's pins.any_of"), (None, "upstream_proxy", "upstream_proxy.pins.any_of")],
)
def test_a_mismatch_tells_the_servers_key_and_where_a_confirmed_one_belongs(
    rule: str | None, whose: str, where: str
) -> None:
    denied = unpinned(PinSet((PIN,)), PinCheck(PinVerdict.MISMATCH), CHAIN, SERVER, rule)
    assert denied.reason is Reason.PIN_MISMATCH
    assert denied.detail.startswith(f"{whose} pins api.example, and no key of its verified chain matches; ")
    assert denied.detail.endswith(f"the server's key is {spki_pin(CHAIN[0])}")
    assert f"if the server's operator confirms that key, add it to {where};" in denied.hint
    assert denied.facts


@pytest.mark.parametrize(
    ("host", "port", "shown"),
    [("api.example", 443, "api.example"), ("api.example", 8443, "api.example:8443"), ("::1", 443, "[::1]")],
)
def test_the_hint_names_the_port_where_it_matters(host: str, port: int, shown: str) -> None:
    denied = unpinned(PinSet((PIN,)), PinCheck(PinVerdict.MISMATCH), CHAIN, Destination(host, port), "api")
    assert f"overcoat pins fetch {shown} for" in denied.hint


@pytest.mark.parametrize(
    ("after", "matches", "is_told"),
    [
        (AfterExpiry.ENFORCE, (), False),  # that they have ended is enough
        (AfterExpiry.ENFORCE, (MATCH,), False),
        (AfterExpiry.WARN, (), True),
        (AfterExpiry.WARN, (MATCH,), False),
    ],
)
def test_of_pins_that_only_warn_it_is_told_if_they_would_not_match_either(
    after: AfterExpiry, matches: tuple[PinMatch, ...], is_told: bool
) -> None:
    pins = PinSet((PIN,), date(2026, 1, 2), after)
    denied = unpinned(pins, PinCheck(PinVerdict.EXPIRED, matches), CHAIN, SERVER, "api")
    assert denied.reason is Reason.PINS_EXPIRED
    assert ("no key of the verified chain of api.example matches them" in denied.detail) is is_told
