"""The addon for certificate pinning, called by the engine round each handshake with an upstream: it gives the handshake
a callback that checks the verified chain against the rule's pins, and it names the reason if it fails.

Rules of this addon:

- The decision is made at depth 0 of OpenSSL's verification, before our Finished message. So a refused upstream gets an
  alert, and not one byte of the application.
- Only the chain that OpenSSL has verified counts, from leaf to root, not what the server merely sent.
- OpenSSL's own verdict is never overruled: a failed verification stays failed, whatever the pins say.
- Pins that are only observed, or that have ended and only warn, refuse nothing; what they would have done is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mitmproxy.connection import Server
from OpenSSL import SSL, crypto

from addons.sessions import Sessions
from addons.upstream import Upstream
from proxy.core.certificates.forms import form_defect
from proxy.core.certificates.words import OF_CRLS, circumstances, remedy
from proxy.core.decisions import Denied, Reason
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.handshakes import handshake_failed
from proxy.core.pins import PinVerdict, check_pins, mismatch_facts, spki_pin
from proxy.core.rules.policy import Policy, Rule
from proxy.core.rules.promises import pins_have_ended
from proxy.core.rules.transport import hint_for_neighbour
from proxy.core.rules.trust import CrlUse, Trust

if TYPE_CHECKING:  # two MiB, with all that it imports; see proxy.engine.hookdata
    from mitmproxy import tls

VerifyCallback = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]


class Pinning:
    """Sets the callback for each handshake with an upstream, and names the reason if one fails."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def tls_start_server(self, data: tls.TlsData) -> None:
        """Set the callback for a handshake that is about to start."""
        upstream = self.sessions.of(data.context.client).upstreams[data.conn.id]
        if data.ssl_conn is None:
            raise RuntimeError("the engine made no TLS connection object")
        # On the connection, not its context: handshakes with other pins share that.
        data.ssl_conn.set_verify(SSL.VERIFY_PEER, verifier(upstream.policy, upstream, _destination(data)))

    def tls_failed_server(self, data: tls.TlsData) -> None:
        """Name the reason of a failed handshake, unless the callback has done so."""
        upstream = self.sessions.of(data.context.client).upstreams[data.conn.id]
        if upstream.denied is None:
            where = _destination(data)
            upstream.denied = handshake_failed(upstream.handshake(where), hint_for_neighbour(where.host, upstream.rule))


def _destination(data: tls.TlsData) -> Destination:
    if not isinstance(data.conn, Server) or data.conn.address is None:
        raise RuntimeError("an upstream without an address")
    return Destination(*data.conn.address)


def expired_pins(rule: Rule | None, whose: str = "") -> Denied | None:
    """Return the denial of everything under a rule whose pins have ended; None if they hold, or refuse nothing then.

    Args:
        rule: the rule.
        whose: whose pins they are, if not those of the rule.
    """
    if rule is None or not have_expired(rule):
        return None
    return _ended(rule, whose or f"rule {rule.name}")


def _ended(rule: Rule, whose: str) -> Denied:
    assert rule.pins is not None
    return Denied(Reason.PINS_EXPIRED, f"the pins of {whose} expired on {rule.pins.expires}")


def have_expired(rule: Rule | None) -> bool:
    """Tell whether the pins of a rule, or of an upstream proxy, have ended, and refuse everything. Then even a
    connection that was opened before must not be used.
    """
    return rule is not None and rule.pins is not None and pins_have_ended(rule, datetime.now(UTC).date())


def verifier(policy: Policy, upstream: Upstream, destination: Destination) -> VerifyCallback:
    """Return OpenSSL's verification callback for one handshake.

    It notes its verdict in `upstream`. OpenSSL calls it from the root (highest depth) to the leaf (depth 0), and with
    `ok=0` for each error that it finds.
    """
    chain: dict[int, bytes] = {}
    trust = policy.trust_for(upstream.rule)
    is_strict = trust.strict

    def verify(_conn: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        try:
            return judge(certificate, error, depth, ok)
        except Exception as e:  # the binding would swallow it, and the handshake would fail without a reason
            upstream.denied = Denied(Reason.INTERNAL_ERROR, f"checking the certificate raised {type(e).__name__}")
            return False

    def refuse(what: str, depth: int, hint: str, more: str = "") -> bool:
        upstream.denied = Denied(
            Reason.CERTIFICATE_INVALID,
            f"the certificate of {destination.host} is not valid: {what} (depth {depth}){more and f': {more}'}",
            hint,
        )
        return False

    def judge(certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        if not ok and _is_tolerable(trust, error, certificate):
            return True
        if not ok:
            more = circumstances(error, crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate), datetime.now(UTC))
            hint = _lenience(upstream) if is_about_form(error, certificate) else remedy(error)
            return refuse(verify_error(error), depth, hint, more)
        chain[depth] = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        defect = form_defect(chain[depth]) if is_strict and len(chain) + depth > 1 else None
        if defect is not None:
            return refuse(defect, depth, _lenience(upstream))
        if depth > 0:
            return True
        return _check(policy, upstream, [chain[d] for d in sorted(chain)], destination)

    return verify


def _is_tolerable(trust: Trust, error: int, certificate: crypto.X509) -> bool:
    """Tell whether what OpenSSL found is only that there is no revocation list which the policy could demand.

    An anchor is trusted for itself: nobody issued it whose list could name it.
    """
    if trust.crls is None or error not in OF_CRLS:
        return False
    if trust.crls.when is CrlUse.IF_PRESENT:
        return True
    der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    return error == _NO_CRL and der in (trust.anchors or ())


def _check(policy: Policy, upstream: Upstream, verified_chain: list[bytes], destination: Destination) -> bool:
    rule = upstream.rule
    if rule is None or rule.pins is None:
        return True
    found = check_pins(rule.pins, verified_chain, datetime.now(UTC).date())
    upstream.pin, upstream.matches = found.verdict, found.matches
    if found.verdict is PinVerdict.MATCH:
        return True
    denied = _unpinned(upstream, rule, verified_chain, destination)
    if not rule.pins.refuses(found.verdict):
        upstream.noted, upstream.would_refuse = denied, rule.pins.observes
        return True
    if policy.observes(rule) and not upstream.is_proxy:
        upstream.observed = denied
        return True
    upstream.denied = denied
    return False


def _unpinned(upstream: Upstream, rule: Rule, verified_chain: list[bytes], destination: Destination) -> Denied:
    """Return the denial of a server that the pins do not vouch for."""
    assert rule.pins is not None
    whose, where = f"rule {rule.name}", "the rule's pins.any_of"
    if upstream.is_proxy:
        whose, where = "upstream_proxy", "upstream_proxy.pins.any_of"
    if upstream.pin is PinVerdict.EXPIRED:
        denied = _ended(rule, whose)
        if upstream.matches or rule.pins.refuses(PinVerdict.EXPIRED):
            return denied
        return denied.again(f"{denied.detail}, and no key of the verified chain of {destination.host} matches them")
    shown = destination.url_host if destination.port == HTTPS_PORT else destination.authority
    return Denied(
        Reason.PIN_MISMATCH,
        f"{whose} pins {destination.host}, and no key of its verified chain matches; "
        f"the server's key is {spki_pin(verified_chain[0])}",
        f"if the server's operator confirms that key, add it to {where}; "
        f"run overcoat pins fetch {shown} for all keys of the chain",
        facts=mismatch_facts(rule.pins, verified_chain),
    )


_NO_CRL = 3  # <openssl/x509_vfy.h>
# <openssl/x509_vfy.h>: errors that only X509_V_FLAG_X509_STRICT finds.
_OF_STRICT = frozenset((78, *range(80, 95)))
_INVALID_CA = 79


def is_about_form(error: int, certificate: crypto.X509) -> bool:
    """Tell whether a certificate is refused only for its form, which `strict: false` accepts.

    Args:
        error: OpenSSL's X.509 verification error code.
        certificate: the certificate that it is about.
    """
    is_old_root = certificate.get_version() == 0 and certificate.get_issuer() == certificate.get_subject()  # X.509 v1
    return error in _OF_STRICT or (error == _INVALID_CA and is_old_root)


def _lenience(upstream: Upstream) -> str:
    """Return what to do about a certificate with a wrong form."""
    where = f"in rule {upstream.rule.name}" if upstream.rule is not None else "in a rule for this host"
    if upstream.is_proxy:
        where = "at the policy's top level"
    return (
        "have that certificate issued anew without the defect; if its CA is your own and cannot do so, write "
        f"trust: {{strict: false}} {where}"
    )


def verify_error(code: int) -> str:
    """Return OpenSSL's words for an X.509 verification error code."""
    text = SSL._lib.X509_verify_cert_error_string(code)  # type: ignore[attr-defined]  # pyOpenSSL has no public call
    return SSL._ffi.string(text).decode("ascii", "replace")  # type: ignore[attr-defined,no-any-return]  # the same
