"""The addon for certificate pinning, called by the engine round each handshake with an upstream: it gives the handshake
a callback that checks the verified chain against the rule's pins, and it names the reason if it fails.

Rules of this addon:

- The decision is made at depth 0 of OpenSSL's verification, before our Finished message. So a refused upstream gets an
  alert, and not one byte of the application.
- Only the chain that OpenSSL has verified counts, from leaf to root, not what the server merely sent.
- OpenSSL's own verdict is never overruled: a failed verification stays failed, whatever the pins say.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from mitmproxy import tls
from mitmproxy.connection import Server
from OpenSSL import SSL, crypto

from addons.exchange import Upstream
from addons.sessions import Sessions
from proxy.core.certificates.forms import form_defect
from proxy.core.decisions import Denied, Reason
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.pins import PinVerdict, check_pins, spki_pin
from proxy.core.rules.policy import Policy, Rule
from proxy.core.rules.transport import hint_for_neighbour

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
            upstream.denied = Denied(
                Reason.TLS_FAILED,
                f"{where.host} port {where.port} did not complete a TLS handshake: it speaks no TLS there, or none "
                "that the policy accepts",
                hint_for_neighbour(where.host, upstream.rule),
            )


def _destination(data: tls.TlsData) -> Destination:
    if not isinstance(data.conn, Server) or data.conn.address is None:
        raise RuntimeError("an upstream without an address")
    return Destination(*data.conn.address)


def expired_pins(rule: Rule | None, whose: str = "") -> Denied | None:
    """Return the denial of everything under a rule whose pins have ended; None if they hold.

    Args:
        rule: the rule.
        whose: whose pins they are, if not those of the rule.
    """
    if rule is None or rule.pins is None or not have_expired(rule):
        return None
    return Denied(Reason.PINS_EXPIRED, f"the pins of {whose or f'rule {rule.name}'} expired on {rule.pins.expires}")


def have_expired(rule: Rule | None) -> bool:
    """Tell whether a rule's pins have ended. Then even a connection that was opened before must not be used."""
    expires = rule.pins.expires if rule is not None and rule.pins is not None else None
    return expires is not None and datetime.now(UTC).date() > expires


def verifier(policy: Policy, upstream: Upstream, destination: Destination) -> VerifyCallback:
    """Return OpenSSL's verification callback for one handshake.

    It notes its verdict in `upstream`. OpenSSL calls it from the root (highest depth) to the leaf (depth 0), and with
    `ok=0` for each error that it finds.
    """
    chain: dict[int, bytes] = {}
    is_strict = policy.trust_for(upstream.rule).strict

    def verify(_conn: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        try:
            return judge(certificate, error, depth, ok)
        except Exception as e:  # the binding would swallow it, and the handshake would fail without a reason
            upstream.denied = Denied(Reason.INTERNAL_ERROR, f"checking the certificate raised {type(e).__name__}")
            return False

    def refuse(what: str, depth: int, is_for_its_form: bool) -> bool:
        upstream.denied = Denied(
            Reason.CERTIFICATE_INVALID,
            f"the certificate of {destination.host} is not valid: {what} (depth {depth})",
            _lenience(upstream) if is_for_its_form else "",
        )
        return False

    def judge(certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        if not ok:
            return refuse(verify_error(error), depth, is_about_form(error, certificate))
        chain[depth] = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        defect = form_defect(chain[depth]) if is_strict and len(chain) + depth > 1 else None
        if defect is not None:
            return refuse(defect, depth, True)
        if depth > 0:
            return True
        return _check(policy, upstream, [chain[d] for d in sorted(chain)], destination)

    return verify


def _check(policy: Policy, upstream: Upstream, verified_chain: list[bytes], destination: Destination) -> bool:
    rule = upstream.rule
    if rule is None or rule.pins is None:
        return True
    upstream.pin = check_pins(rule.pins, verified_chain, datetime.now(UTC).date())
    if upstream.pin is PinVerdict.MATCH:
        return True
    whose, where = f"rule {rule.name}", "the rule's pins.any_of"
    if upstream.is_proxy:
        whose, where = "upstream_proxy", "upstream_proxy.pins.any_of"
    denied = expired_pins(rule, whose)
    if denied is None:
        shown = destination.url_host if destination.port == HTTPS_PORT else destination.authority
        denied = Denied(
            Reason.PIN_MISMATCH,
            f"{whose} pins {destination.host}, and no key of its verified chain matches; "
            f"the server's key is {spki_pin(verified_chain[0])}",
            f"if the server's operator confirms that key, add it to {where}; "
            f"run overcoat pins fetch {shown} for all keys of the chain",
        )
    if policy.observes(rule) and not upstream.is_proxy:
        upstream.observed = denied
        return True
    upstream.denied = denied
    return False


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
