"""Says in words why a TLS handshake with an upstream failed, where its certificate was not the reason. The addon
`addons.pinning` calls it for each failed handshake, and the engine when a server ends TLS after it.

Rules of this module:

- Each cause has words of its own: no TLS at all, no version in common, no cipher or group in common, a client
  certificate that is wanted, a name that the server does not know. An alert of the peer is named as RFC 8446 does.
- The words come from here and from OpenSSL's constants, never from the peer's bytes.
- What OpenSSL calls an error is looked up by its text: Python has no numbers for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason

HYBRID = "X25519MLKEM768"
OTHER_GROUP = "other"
# OpenSSL's names of groups in lower case, and those of the IANA registry "TLS Supported Groups".
_GROUPS = {
    HYBRID.lower(): HYBRID,
    "x25519": "x25519",
    "secp256r1": "secp256r1",
    "prime256v1": "secp256r1",
    "secp384r1": "secp384r1",
}
GROUPS = tuple(dict.fromkeys((*_GROUPS.values(), OTHER_GROUP)))

# OpenSSL's texts for alerts of the peer are `tlsv1 alert unknown ca`, and for five of them without the word.
_ALERT = re.compile(r"(?:tls|ssl)\S* alert (.+)")
_WITHOUT_THE_WORD = {
    "tlsv1 unsupported extension": "unsupported_extension",
    "tlsv1 unrecognized name": "unrecognized_name",
    "tlsv1 bad certificate status response": "bad_certificate_status_response",
}
_OTHER_NAMES = {"user_cancelled": "user_canceled", "no_certificate": "no_certificate_RESERVED"}
_NO_TLS = frozenset(
    (
        *("wrong version number", "packet length too long", "data length too long", "http request"),
        *("https proxy request", "bad record type", "unexpected message"),
    )
)
_VERSIONS = frozenset(("unsupported protocol", "wrong ssl version", "bad protocol version number"))
_ABOUT_OUR_CERTIFICATE = frozenset(
    (
        *("no_certificate_RESERVED", "bad_certificate", "unsupported_certificate", "certificate_revoked"),
        *("certificate_expired", "certificate_unknown", "unknown_ca", "access_denied", "certificate_required"),
    )
)
# What an app says that does not know our CA: OpenSSL and Go the first ones, Java and browsers the last.
_DISTRUST = frozenset(("unknown_ca", "bad_certificate", "certificate_unknown"))
_NOTHING_IN_COMMON = frozenset(("handshake_failure", "insufficient_security"))
# What a server may say that has no group which the policy takes.
_WITHOUT_GROUP = _NOTHING_IN_COMMON | {"protocol_version", "illegal_parameter"}


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is known of a handshake, or of a TLS connection that the server has ended.

    Attributes:
        where: the server, for people.
        errors: OpenSSL's reasons for the failure, the first cause first; none if the connection just ended.
        min_tls: the lowest version that the policy takes.
        is_hybrid: whether the policy takes the hybrid key exchange only (`trust.key_exchange: hybrid`).
        wants_certificate: whether the server has asked for a client certificate.
        has_certificate: whether the policy has one for it.
    """

    where: str
    errors: Sequence[str] = ()
    min_tls: str = "1.2"
    is_hybrid: bool = False
    wants_certificate: bool = False
    has_certificate: bool = False


def alert_of(errors: Sequence[str]) -> str | None:
    """Return the name of the alert with which the peer ended TLS (RFC 8446, section 6); None if it sent none.

    Args:
        errors: OpenSSL's reasons.
    """
    for error in errors:
        if found := _ALERT.fullmatch(error):
            name = found[1].replace(" ", "_")
            return _OTHER_NAMES.get(name, name)
        if error in _WITHOUT_THE_WORD:
            return _WITHOUT_THE_WORD[error]
    return None


def why_app_failed(errors: Sequence[str]) -> str:
    """Return why an app did not complete TLS with us, for the end of a sentence; "" if it just left.

    Args:
        errors: OpenSSL's reasons.
    """
    alert = alert_of(errors)
    if alert is None:
        causes = ", ".join(filter(None, errors))
        return f": {causes}" if causes else ""
    meaning = ", which says that it does not trust it" if alert in _DISTRUST else ""
    return f": it sent the alert {alert}{meaning}"


def group_of(openssl_name: str | None) -> str:
    """Return the name of a key exchange's group, one of `GROUPS`."""
    return _GROUPS.get((openssl_name or "").lower(), OTHER_GROUP)


def handshake_failed(handshake: Handshake, hint: str = "") -> Denied:
    """Return the denial for a handshake that failed, other than for the server's certificate or the pins.

    Args:
        handshake: what is known of it.
        hint: what to do if the server speaks no TLS; the reason's own hint if empty.
    """
    where, alert = handshake.where, alert_of(handshake.errors)
    said = f" (alert {alert})" if alert else ""
    if about_ours := _about_our_certificate(handshake, alert):
        return about_ours
    if handshake.is_hybrid and (alert in _WITHOUT_GROUP or _VERSIONS.intersection(handshake.errors)):
        return group_refused(where, None, said)
    if alert == "protocol_version" or _VERSIONS.intersection(handshake.errors):
        return Denied(
            Reason.TLS_FAILED,
            f"{where} speaks no version of TLS that the policy accepts, which is {handshake.min_tls} and newer{said}",
            f"make the server speak TLS {handshake.min_tls} or newer; older versions than 1.2 are never accepted",
        )
    if alert in _NOTHING_IN_COMMON:
        return Denied(
            Reason.TLS_FAILED,
            f"{where} accepts none of the cipher suites and groups that are offered{said}",
            "make the server accept TLS 1.3, or ECDHE with AES-GCM or ChaCha20-Poly1305 in TLS 1.2",
        )
    if alert == "unrecognized_name":
        return Denied(
            Reason.TLS_FAILED,
            f"{where} knows no host of that name{said}",
            "see that the name leads to the server that is meant, and that the server has it configured",
        )
    if alert is not None:
        return Denied(Reason.TLS_FAILED, f"{where} ended the TLS handshake with the alert {alert}")
    if not handshake.errors:
        return Denied(
            Reason.TLS_FAILED,
            f"{where} closed the connection in the TLS handshake, without an alert: it may speak no TLS there",
            hint,
        )
    if _NO_TLS.intersection(handshake.errors):
        return Denied(Reason.TLS_FAILED, f"{where} speaks no TLS: what it sent is not TLS", hint)
    causes = ", ".join(filter(None, handshake.errors)) or "an alert without a name"
    return Denied(Reason.TLS_FAILED, f"the TLS handshake with {where} failed: {causes}")


def ended_after(handshake: Handshake) -> Denied | None:
    """Return the denial for a server that ended a TLS connection after the handshake and before its first answer; None
    if nothing tells that TLS was the reason.

    With TLS 1.3 a client's handshake is complete before the server has seen the client's certificate. Its alert may get
    lost, if it closes the connection before it has read the request.
    """
    alert = alert_of(handshake.errors)
    if about_ours := _about_our_certificate(handshake, alert):
        return about_ours
    if alert is None:
        return None
    return Denied(Reason.UPSTREAM_FAILED, f"the upstream ended the connection with the TLS alert {alert}")


def group_refused(where: str, group: str | None, said: str = "") -> Denied:
    """Return the denial of a server that does not agree on a hybrid key exchange.

    Args:
        where: the server, for people.
        group: the group that it chose instead; None if it refused.
        said: its alert, for the end of a sentence.
    """
    instead = f"it chose {group}" if group else "it refused"
    return Denied(
        Reason.KEY_EXCHANGE_REFUSED,
        f"{where} does not exchange keys with {HYBRID}, which the policy demands: {instead}{said}",
    )


def _about_our_certificate(handshake: Handshake, alert: str | None) -> Denied | None:
    """Return the denial of a server that wants a client certificate, or another one."""
    is_about = alert in _ABOUT_OUR_CERTIFICATE or (alert in _NOTHING_IN_COMMON and handshake.wants_certificate)
    if not is_about and not (handshake.wants_certificate and not handshake.has_certificate and not handshake.errors):
        return None
    said = f" (alert {alert})" if alert else ", and closed the connection without one"
    if handshake.has_certificate:
        return Denied(
            Reason.CLIENT_CERTIFICATE_REFUSED,
            f"{handshake.where} did not accept the rule's client certificate{said}",
            "see that the server trusts its issuer, that it has not ended or been revoked, and that it is meant for "
            "clients (extended key usage)",
        )
    if not handshake.wants_certificate:
        return None
    return Denied(
        Reason.CLIENT_CERTIFICATE_REFUSED,
        f"{handshake.where} wants a client certificate{said}",
        "give its rule a client_certificate: {cert: FILE, key: {file: FILE}}",
    )
