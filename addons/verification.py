"""OpenSSL's verification callback for a handshake with an upstream: is the certificate valid, and does a pin match?
`addons.pinning` sets it, and the engine's handshake calls it.

Rules of this module:

- The decision is made at depth 0 of OpenSSL's verification, before our Finished message. So a refused upstream gets an
  alert, and not one byte of the application.
- Only the chain that OpenSSL has verified counts, from leaf to root, not what the server merely sent.
- OpenSSL's own verdict is never overruled: a failed verification stays failed, whatever the pins say.
- Pins that are only observed, or that have ended and only warn, refuse nothing; what they would have done is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from OpenSSL import SSL, crypto

from addons.upstream import Upstream
from proxy.core.certificates.forms import form_defect
from proxy.core.certificates.words import OF_CRLS, circumstances, remedy, whose
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.pins import PinVerdict, check_pins
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy
from proxy.core.rules.trust import CrlUse, Trust
from proxy.core.rules.unpinned import unpinned

VerifyCallback = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]

_NO_CRL = 3  # <openssl/x509_vfy.h>
# <openssl/x509_vfy.h>: errors that only X509_V_FLAG_X509_STRICT finds.
_OF_STRICT = frozenset((78, *range(80, 95)))
_INVALID_CA = 79


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
            der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
            if is_about_form(error, certificate):
                return refuse(verify_error(error), depth, _lenience(upstream), whose(der))
            return refuse(verify_error(error), depth, remedy(error), circumstances(error, der, datetime.now(UTC)))
        chain[depth] = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        defect = form_defect(chain[depth]) if is_strict and len(chain) + depth > 1 else None
        if defect is not None:
            return refuse(defect, depth, _lenience(upstream), whose(chain[depth]))
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
    denied = unpinned(rule.pins, found, verified_chain, destination, None if upstream.is_proxy else rule.name)
    if not rule.pins.refuses(found.verdict):
        upstream.noted, upstream.would_refuse = denied, rule.pins.observes
        return True
    if policy.observes(rule) and not upstream.is_proxy:
        upstream.observed = denied
        return True
    upstream.denied = denied
    return False


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
