"""The words for handshakes that failed: one kind of words for each cause, and the peer's alert by its name."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from proxy.core.decisions import Denied
from proxy.core.handshakes import (
    HYBRID,
    Handshake,
    alert_of,
    ended_after,
    group_of,
    group_refused,
    handshake_failed,
    why_app_failed,
)
from proxy.core.reasons import Reason

WHERE = "api.example port 443"

# RFC 8446, section 6, and those of earlier versions that OpenSSL knows.
ALERTS = {
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    41: "no_certificate_RESERVED",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}


def openssl_says(received: bytes) -> tuple[str, ...]:
    """Return OpenSSL's reasons if a client receives these bytes instead of a ServerHello."""
    conn = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
    conn.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        conn.do_handshake()
    conn.bio_write(received)
    with pytest.raises(SSL.Error) as raised:
        conn.do_handshake()
    return tuple(entry[2] for entry in raised.value.args[0])


def failed(*errors: str, hint: str = "", **more: bool | str) -> Denied:
    return handshake_failed(Handshake(WHERE, errors, **more), hint)  # type: ignore[arg-type]  # as the caller says


@pytest.mark.parametrize(("number", "name"), ALERTS.items())
def test_each_alert_has_its_name_with_this_version_of_openssl(number: int, name: str) -> None:
    assert alert_of(openssl_says(bytes((21, 3, 3, 0, 2, 2, number)))) == name


def test_no_alert_is_none() -> None:
    assert alert_of(()) is None
    assert alert_of(("wrong version number",)) is None


def test_an_alert_that_openssl_does_not_know_is_told_as_such() -> None:
    denied = handshake_failed(Handshake(WHERE, openssl_says(bytes((21, 3, 3, 0, 2, 2, 255)))))
    assert denied.detail == f"the TLS handshake with {WHERE} failed: an alert without a name"


@pytest.mark.parametrize(
    "banner",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x4a\x00\x00\x00\x0a5.7.44",
        bytes(64),
        b"\xff" * 64,
        b"\x16\x03\x03\xff\xffabcd",
    ],
    ids=["http", "ssh", "smtp", "mysql", "zeros", "ones", "a record that is too long"],
)
def test_what_is_not_tls_is_told_as_such_with_the_hint(banner: bytes) -> None:
    denied = handshake_failed(Handshake(WHERE, openssl_says(banner)), "the neighbour's hint")
    assert (denied.reason, denied.hint) == (Reason.TLS_FAILED, "the neighbour's hint")
    assert denied.detail == f"{WHERE} speaks no TLS: what it sent is not TLS"


@pytest.mark.parametrize(
    "errors", [("unsupported protocol",), ("tlsv1 alert protocol version",)], ids=["ours", "the peer's"]
)
def test_another_version_is_told_with_the_policys(errors: tuple[str]) -> None:
    denied = failed(*errors, min_tls="1.3")
    assert "speaks no version of TLS that the policy accepts, which is 1.3 and newer" in denied.detail
    assert ("(alert protocol_version)" in denied.detail) is ("alert" in errors[0])


@pytest.mark.parametrize("name", ["handshake failure", "insufficient security"])
def test_nothing_in_common_is_about_ciphers_and_groups_unless_a_certificate_was_asked_for(name: str) -> None:
    denied = failed(f"tls alert {name}")
    assert denied.reason is Reason.TLS_FAILED
    assert "accepts none of the cipher suites and groups" in denied.detail
    wanted = failed(f"tls alert {name}", wants_certificate=True)
    assert wanted.reason is Reason.CLIENT_CERTIFICATE_REFUSED
    assert f"{WHERE} wants a client certificate (alert {name.replace(' ', '_')})" in wanted.detail


def test_a_server_that_asks_for_a_certificate_and_closes_wants_one() -> None:
    assert failed(wants_certificate=True).detail == (
        f"{WHERE} wants a client certificate, and closed the connection without one"
    )
    assert failed(wants_certificate=True, has_certificate=True).reason is Reason.TLS_FAILED


def test_a_certificate_that_is_not_accepted_is_told_with_the_alert() -> None:
    denied = failed("tlsv1 alert unknown ca", wants_certificate=True, has_certificate=True)
    assert denied.reason is Reason.CLIENT_CERTIFICATE_REFUSED
    assert denied.detail == f"{WHERE} did not accept the rule's client certificate (alert unknown_ca)"


def test_an_alert_about_a_certificate_that_nobody_asked_for_is_only_named() -> None:
    denied = failed("tlsv1 alert unknown ca")
    assert denied.reason is Reason.TLS_FAILED
    assert denied.detail == f"{WHERE} ended the TLS handshake with the alert unknown_ca"


def test_a_name_that_the_server_does_not_know_is_told() -> None:
    assert failed("tlsv1 unrecognized name").detail == f"{WHERE} knows no host of that name (alert unrecognized_name)"


def test_a_connection_that_just_ends_is_told_with_the_hint() -> None:
    denied = failed(hint="the neighbour's hint")
    assert "closed the connection in the TLS handshake, without an alert" in denied.detail
    assert denied.hint == "the neighbour's hint"


def test_anything_else_is_told_in_openssls_words() -> None:
    assert failed("bad signature", "").detail == f"the TLS handshake with {WHERE} failed: bad signature"


@pytest.mark.parametrize(
    "error", ["tls alert handshake failure", "tlsv1 alert protocol version", "unsupported protocol"]
)
def test_with_a_hybrid_key_exchange_demanded_its_lack_is_the_reason(error: str) -> None:
    denied = failed(error, is_hybrid=True)
    assert denied.reason is Reason.KEY_EXCHANGE_REFUSED
    assert "X25519MLKEM768" in denied.detail
    assert "it refused" in denied.detail
    assert failed("wrong version number", is_hybrid=True).reason is Reason.TLS_FAILED


def test_a_group_that_was_chosen_instead_is_named() -> None:
    assert group_refused(WHERE, "x25519").detail.endswith("it chose x25519")


def test_an_alert_after_the_handshake_is_named_and_no_alert_is_nothing() -> None:
    assert ended_after(Handshake(WHERE)) is None
    alert = ended_after(Handshake(WHERE, ("tlsv1 alert internal error",)))
    assert alert is not None
    assert (alert.reason, alert.detail) == (
        Reason.UPSTREAM_FAILED,
        "the upstream ended the connection with the TLS alert internal_error",
    )
    wanted = ended_after(Handshake(WHERE, ("tlsv13 alert certificate required",), wants_certificate=True))
    assert wanted is not None
    assert wanted.reason is Reason.CLIENT_CERTIFICATE_REFUSED


def test_a_server_that_asked_for_a_certificate_and_ends_at_once_wanted_one_though_its_alert_is_lost() -> None:
    wanted = ended_after(Handshake(WHERE, wants_certificate=True))
    assert wanted is not None
    assert wanted.reason is Reason.CLIENT_CERTIFICATE_REFUSED
    assert ended_after(Handshake(WHERE, wants_certificate=True, has_certificate=True)) is None


@pytest.mark.parametrize(
    ("openssl", "name"),
    [
        ("X25519MLKEM768", HYBRID),
        ("x25519", "x25519"),
        ("prime256v1", "secp256r1"),
        ("ffdhe2048", "other"),
        (None, "other"),
    ],
)
def test_a_group_has_the_name_of_the_registry_or_none_of_its_own(openssl: str, name: str) -> None:
    assert group_of(openssl) == name
    assert group_of(None) == "other"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (48, ": it sent the alert unknown_ca, which says that it does not trust it"),
        (42, ": it sent the alert bad_certificate, which says that it does not trust it"),
        (46, ": it sent the alert certificate_unknown, which says that it does not trust it"),
        (70, ": it sent the alert protocol_version"),
    ],
)
def test_an_app_says_why_it_leaves(number: int, said: str) -> None:
    assert why_app_failed(openssl_says(bytes((21, 3, 3, 0, 2, 2, number)))) == said


@pytest.mark.parametrize(
    ("errors", "said"), [((), ""), (("",), ""), (("no shared cipher", "", "x"), ": no shared cipher, x")]
)
def test_what_went_wrong_with_an_app_is_said_where_it_says_nothing(errors: tuple[str, ...], said: str) -> None:
    assert why_app_failed(errors) == said
