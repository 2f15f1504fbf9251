"""The verification callback: what it notes and what it lets pass (ARCHITECTURE.md, rule 8).

OpenSSL calls it from the root to the leaf; here a test does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from addons import verification
from addons.upstream import Upstream
from addons.verification import is_about_form, verifier, verify_error
from proxy.core.destinations import Destination
from proxy.core.pins import AfterExpiry, Level, Pin, PinSet, PinVerdict, certificate_pin, spki_pin
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.rules.trust import Trust

OK, EXPIRED_CERTIFICATE, UNKNOWN_ISSUER = 0, 10, 20  # X509_V_* of OpenSSL
ROOT_CA = trustme.CA()
MIDDLE_CA = ROOT_CA.create_child_ca()
LEAF_PEM, MIDDLE_PEM = (blob.bytes() for blob in MIDDLE_CA.issue_cert("api.example").cert_chain_pems)
CHAIN = [x509.load_pem_x509_certificate(pem) for pem in (LEAF_PEM, MIDDLE_PEM, ROOT_CA.cert_pem.bytes())]
LEAF, MIDDLE, ROOT = CHAIN
STRANGER = x509.load_pem_x509_certificate(trustme.CA().cert_pem.bytes())
FREE = Rule("api", (HostPattern("exact", "api.example"),), PlainHttp.UPGRADE, Https.INSPECT)
CONNECTION = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def rule(
    *pins: Pin, expires: date | None = None, after: AfterExpiry = AfterExpiry.ENFORCE, observes: bool = False
) -> Rule:
    return replace(FREE, pins=PinSet(pins, expires, after, observes))


def verify(
    upstream: Upstream,
    chain: Sequence[x509.Certificate] = CHAIN,
    *,
    mode: Mode = Mode.ENFORCE,
    fails_at: int | None = None,
    error: int = UNKNOWN_ISSUER,
) -> bool:
    """Call the callback as OpenSSL does; it stops at the first no."""
    callback = verifier(replace(Policy(), mode=mode), upstream, Destination("api.example", 443))
    for depth in reversed(range(len(chain))):
        certificate = crypto.X509.from_cryptography(chain[depth])
        ok = depth != fails_at
        if not callback(CONNECTION, certificate, OK if ok else error, depth, int(ok)):
            return False
    return True


def reason_of(upstream: Upstream) -> str | None:
    return upstream.denied.reason.code if upstream.denied else None


@pytest.mark.parametrize("certificate", CHAIN, ids=["leaf", "intermediate", "root"])
@pytest.mark.parametrize("pin_of", [spki_pin, certificate_pin])
def test_a_pin_of_any_certificate_of_the_chain_matches(
    certificate: x509.Certificate, pin_of: Callable[[bytes], Pin]
) -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER)), pin_of(der(certificate))))
    assert verify(upstream)
    assert upstream.pin is PinVerdict.MATCH
    assert upstream.denied is None


def test_no_pin_in_the_chain_is_a_mismatch_that_names_the_servers_key() -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER))))
    assert not verify(upstream)
    assert upstream.pin is PinVerdict.MISMATCH
    assert upstream.denied is not None
    assert upstream.denied.reason.code == "pin_mismatch"
    assert str(spki_pin(der(LEAF))) in upstream.denied.detail
    assert upstream.denied.detail.startswith("rule api pins api.example")
    assert "add it to the rule's pins.any_of" in upstream.denied.hint
    assert upstream.denied.hint.endswith("run overcoat pins fetch api.example for all keys of the chain")


def test_a_mismatch_tells_programs_what_was_seen_and_wanted() -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER))))
    assert not verify(upstream)
    assert upstream.denied is not None
    levels = ("leaf", "intermediate", "root")
    assert upstream.denied.facts == {
        "pins_seen": [
            {"level": level, "pin": str(spki_pin(der(each)))} for level, each in zip(levels, CHAIN, strict=True)
        ],
        "pins_wanted": [str(spki_pin(der(STRANGER)))],
    }
    assert upstream.denied.again("other words").facts == upstream.denied.facts


def test_which_pin_matched_at_which_level_is_noted() -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(ROOT)), spki_pin(der(STRANGER)), certificate_pin(der(MIDDLE))))
    assert verify(upstream)
    assert [(match.pin, match.level) for match in upstream.matches] == [
        (certificate_pin(der(MIDDLE)), Level.INTERMEDIATE),
        (spki_pin(der(ROOT)), Level.ROOT),
    ]


@pytest.mark.parametrize("expires", [None, date(2020, 1, 1)])
def test_pins_that_are_only_observed_refuse_nothing_and_say_what_they_would_have(expires: date | None) -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER)), expires=expires, observes=True))
    assert verify(upstream)
    assert (upstream.denied, upstream.observed, upstream.would_refuse) == (None, None, True)
    assert upstream.noted is not None
    assert upstream.noted.reason.code == ("pins_expired" if expires else "pin_mismatch")
    right = Upstream(Policy(), rule(spki_pin(der(LEAF)), observes=True))
    assert verify(right)
    assert (right.noted, right.would_refuse, right.pin) == (None, False, PinVerdict.MATCH)


@pytest.mark.parametrize("error", [EXPIRED_CERTIFICATE, UNKNOWN_ISSUER, 62])
def test_observed_pins_let_pass_for_no_other_cause(error: int) -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER)), observes=True))
    assert not verify(upstream, fails_at=0, error=error)
    assert (reason_of(upstream), upstream.noted) == ("certificate_invalid", None)


def test_pins_past_their_day_that_only_warn_let_any_valid_certificate_pass() -> None:
    today = datetime.now(UTC).date()
    for pinned, told in ((LEAF, False), (STRANGER, True)):
        of_yesterday = rule(spki_pin(der(pinned)), expires=today - timedelta(days=1), after=AfterExpiry.WARN)
        upstream = Upstream(Policy(), of_yesterday)
        assert verify(upstream)
        assert (upstream.pin, upstream.denied, upstream.would_refuse) == (PinVerdict.EXPIRED, None, False)
        assert upstream.noted is not None
        assert upstream.noted.reason.code == "pins_expired"
        assert ("no key of the verified chain of api.example matches them" in upstream.noted.detail) is told
        assert not verify(Upstream(Policy(), of_yesterday), fails_at=0)
    until_today = Upstream(
        Policy(), rule(spki_pin(der(STRANGER)), expires=today + timedelta(days=1), after=AfterExpiry.WARN)
    )
    assert not verify(until_today)
    assert reason_of(until_today) == "pin_mismatch"


@pytest.mark.parametrize("after", AfterExpiry)
@pytest.mark.parametrize(("moment", "has_ended"), [("23:59:59", False), ("00:00:00", True)])
def test_the_last_day_ends_with_its_last_second_in_utc(
    monkeypatch: pytest.MonkeyPatch, after: AfterExpiry, moment: str, has_ended: bool
) -> None:
    day = "2027-07-01" if has_ended else "2027-06-30"

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            return cls.fromisoformat(f"{day}T{moment}+00:00")

    monkeypatch.setattr(verification, "datetime", Clock)
    pinned = rule(spki_pin(der(LEAF)), expires=date(2027, 6, 30), after=after)
    upstream = Upstream(Policy(), pinned)
    assert verify(upstream) is (not has_ended or after is AfterExpiry.WARN)
    assert upstream.pin is (PinVerdict.EXPIRED if has_ended else PinVerdict.MATCH)
    wrong = Upstream(Policy(), rule(spki_pin(der(STRANGER)), expires=date(2027, 6, 30), after=after))
    assert verify(wrong) is (has_ended and after is AfterExpiry.WARN)


def test_what_the_certificate_has_to_do_with_it_is_said() -> None:
    for error, told in (
        (EXPIRED_CERTIFICATE, ": it is valid from 20"),
        (62, ": it names api.example"),
        (UNKNOWN_ISSUER, ", which is not trusted"),
    ):
        upstream = Upstream(Policy(), FREE)
        assert not verify(upstream, fails_at=0, error=error)
        assert upstream.denied is not None
        assert told in upstream.denied.detail
    other = Upstream(Policy(), FREE)
    assert not verify(other, fails_at=0, error=26)
    assert other.denied is not None
    assert other.denied.detail.endswith("(depth 0)")


def test_only_what_was_verified_counts() -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(MIDDLE))))
    assert not verify(upstream, [LEAF, ROOT])
    assert verify(Upstream(Policy(), rule(spki_pin(der(MIDDLE)))), [LEAF, MIDDLE, ROOT])


def test_no_decision_falls_before_the_leaf() -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER))))
    callback = verifier(Policy(), upstream, Destination("api.example", 443))
    assert callback(CONNECTION, crypto.X509.from_cryptography(ROOT), OK, 2, 1)
    assert callback(CONNECTION, crypto.X509.from_cryptography(MIDDLE), OK, 1, 1)
    assert upstream.pin is None


def test_two_handshakes_do_not_share_a_chain() -> None:
    pinned = rule(spki_pin(der(MIDDLE)))
    assert verify(Upstream(Policy(), pinned))
    assert not verify(Upstream(Policy(), pinned), [LEAF, ROOT])


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("mode", list(Mode))
def test_openssls_no_is_never_overruled(depth: int, mode: Mode) -> None:
    upstream = Upstream(Policy(), rule(*(spki_pin(der(certificate)) for certificate in CHAIN)))
    assert not verify(upstream, mode=mode, fails_at=depth, error=EXPIRED_CERTIFICATE)
    assert upstream.denied is not None
    assert upstream.denied.reason.code == "certificate_invalid"
    assert "certificate has expired" in upstream.denied.detail
    assert upstream.pin is None


@pytest.mark.parametrize("error", [78, 80, 85, 86, 89, 92, 94])
def test_a_form_that_is_not_right_is_named_and_what_lets_it_pass(error: int) -> None:
    upstream = Upstream(Policy(), FREE)
    assert not verify(upstream, fails_at=0, error=error)
    assert upstream.denied is not None
    assert verify_error(error) in upstream.denied.detail
    assert upstream.denied.hint.endswith("write trust: {strict: false} in rule api")
    proxy, nobody = Upstream(Policy(), FREE, is_proxy=True), Upstream(Policy(), None)
    assert not verify(proxy, fails_at=0, error=error)
    assert not verify(nobody, fails_at=0, error=error)
    assert proxy.denied is not None
    assert nobody.denied is not None
    assert proxy.denied.hint.endswith("at the policy's top level")
    assert nobody.denied.hint.endswith("in a rule for this host")


@pytest.mark.parametrize("error", [EXPIRED_CERTIFICATE, UNKNOWN_ISSUER, 62, 77, 79, 95])
def test_what_strict_does_not_look_at_is_not_blamed_on_it(error: int) -> None:
    upstream = Upstream(Policy(), FREE)
    assert not verify(upstream, fails_at=0, error=error)
    assert upstream.denied is not None
    assert "strict" not in upstream.denied.hint


def test_without_pins_a_valid_chain_is_enough_and_a_wrong_one_is_not() -> None:
    for unpinned in (None, FREE):
        upstream = Upstream(Policy(), unpinned)
        assert verify(upstream)
        assert upstream.pin is None
        assert not verify(upstream, fails_at=1)
        assert reason_of(upstream) == "certificate_invalid"


def test_expired_pins_vouch_for_nothing() -> None:
    today = datetime.now(UTC).date()
    expired = Upstream(Policy(), rule(spki_pin(der(LEAF)), expires=today - timedelta(days=1)))
    assert not verify(expired)
    assert (expired.pin, reason_of(expired)) == (PinVerdict.EXPIRED, "pins_expired")
    assert verify(Upstream(Policy(), rule(spki_pin(der(LEAF)), expires=today + timedelta(days=1))))


@pytest.mark.parametrize("mode", Mode)
def test_the_upstream_proxys_pins_hold_in_any_mode_and_are_named_as_its_own(mode: Mode) -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER))), is_proxy=True)
    assert not verify(upstream, mode=mode)
    assert reason_of(upstream) == "pin_mismatch"
    assert upstream.denied is not None
    assert upstream.denied.detail.startswith("upstream_proxy pins api.example")
    assert "add it to upstream_proxy.pins.any_of" in upstream.denied.hint
    assert upstream.observed is None


@pytest.mark.parametrize(("port", "shown"), [(443, "api.example"), (8443, "api.example:8443")])
def test_the_hint_names_the_port_where_it_matters(port: int, shown: str) -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER))))
    callback = verifier(Policy(), upstream, Destination("api.example", port))
    assert not callback(CONNECTION, crypto.X509.from_cryptography(LEAF), OK, 0, 1)
    assert upstream.denied is not None
    assert f"overcoat pins fetch {shown} for" in upstream.denied.hint


def lax_ca() -> x509.Certificate:
    """Return a CA's certificate whose basic constraints are not critical, which OpenSSL alone does not look at."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2040, 1, 1))
    return builder.add_extension(x509.BasicConstraints(True, None), critical=False).sign(key, hashes.SHA256())


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("is_strict", [True, False])
def test_a_form_that_openssl_does_not_look_at_is_looked_at_where_the_policy_is_strict(at: int, is_strict: bool) -> None:
    chain = [*CHAIN[:at], lax_ca(), *CHAIN[at + 1 :]]
    upstream = Upstream(Policy(), FREE)
    callback = verifier(Policy(trust=Trust(strict=is_strict)), upstream, Destination("api.example", 443))
    passed = [
        callback(CONNECTION, crypto.X509.from_cryptography(chain[depth]), OK, depth, 1)
        for depth in reversed(range(at, len(chain)))
    ]
    assert passed[-1] is not is_strict
    assert reason_of(upstream) == ("certificate_invalid" if is_strict else None)
    if upstream.denied is not None:
        assert f"not marked critical (depth {at})" in upstream.denied.detail
        assert "strict: false" in upstream.denied.hint


def test_that_of_a_server_that_is_trusted_itself_is_not() -> None:
    """As OpenSSL does not either, where the chain is nothing but its anchor."""
    assert verify(Upstream(Policy(), FREE), [lax_ca()])


@pytest.mark.parametrize(
    ("error", "version", "issuer", "is_one"),
    [
        (79, 0, "a", True),  # X509_V_ERR_INVALID_CA
        (79, 0, "b", False),
        (79, 2, "a", False),
        (EXPIRED_CERTIFICATE, 0, "a", False),
        (78, 2, "b", True),
    ],
)
def test_an_old_root_is_refused_for_its_form(error: int, version: int, issuer: str, is_one: bool) -> None:
    certificate = SimpleNamespace(get_version=lambda: version, get_issuer=lambda: issuer, get_subject=lambda: "a")
    assert is_about_form(error, cast(Any, certificate)) is is_one


@pytest.mark.parametrize("expires", [None, date(2020, 1, 1)])
def test_observed_the_handshake_goes_on_and_the_reason_is_noted(expires: date | None) -> None:
    upstream = Upstream(Policy(), rule(spki_pin(der(STRANGER)), expires=expires))
    assert verify(upstream, mode=Mode.OBSERVE)
    assert upstream.observed is not None
    assert upstream.observed.reason.code == ("pins_expired" if expires else "pin_mismatch")
    assert upstream.denied is None  # it is used, and what fails then is another reason


def test_the_words_of_openssl_are_read() -> None:
    assert verify_error(EXPIRED_CERTIFICATE) == "certificate has expired"
    assert verify_error(62) == "hostname mismatch"
