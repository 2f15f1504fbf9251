"""Verifies a chain that no server shows yet, for `overcoat pins check --candidate`.

Rules of this module:

- It is verified against the same store, with the same flags, as chains in handshakes are (`proxy.engine.tls`): roots,
  dates, purposes, and the form that RFC 5280 prescribes where the policy is strict.
- Revocation lists count as they do there. OpenSSL stops here at the first certificate without a valid list, while a
  handshake may go on; so each certificate is looked at by itself.
- Names are not looked at here: only a handshake has one to compare with (`proxy.core.pinlife.candidates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto

from proxy.core.certificates.forms import form_defect
from proxy.core.rules.trust import Crls, CrlUse, Trust
from proxy.engine.roots import read_roots, upstream_context

_lib: Any = SSL._lib  # type: ignore[attr-defined]  # pyOpenSSL has no public call for a store's purpose
_SSL_SERVER = _lib.X509_PURPOSE_SSL_SERVER
_NO_CRL = 3  # <openssl/x509_vfy.h>


class NotTrusted(Exception):
    """The chain is not valid under the policy. The message says why."""


def verified_chain(trust: Trust, chain: Sequence[bytes]) -> list[bytes]:
    """Return the chain (DER, leaf to root) that verification makes of the certificates that a server would send.

    Args:
        trust: what is trusted.
        chain: the certificates in DER, the server's own first.

    Raises:
        NotTrusted: it is not valid.
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    anchors = read_roots(trust) if trust.anchors is None else trust.anchors
    without_lists = replace(trust, anchors=anchors, crls=None)
    context = upstream_context(without_lists)  # it owns the store, and must outlive it
    store = _store(context)
    _lib.X509_STORE_set_purpose(store._store, _SSL_SERVER)
    try:
        leaf, *others = map(_loaded, chain)
        found = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        raise NotTrusted(str(error)) from None
    del context
    verified = [crypto.dump_certificate(crypto.FILETYPE_ASN1, each) for each in found]
    if trust.strict and len(verified) > 1:
        for depth, each in enumerate(verified):
            if (defect := form_defect(each)) is not None:
                raise NotTrusted(f"{defect} (depth {depth})")
    if trust.crls is not None:
        if trust.crls.when is CrlUse.REQUIRE:
            _require_lists(without_lists, trust.crls, verified)
        _refuse_revoked(trust.crls, verified)
    return verified


def _require_lists(trust: Trust, crls: Crls, verified: Sequence[bytes]) -> None:
    """Refuse a chain in which a certificate lacks a valid list of its issuer's. An anchor needs none."""
    context = upstream_context(trust)
    store = _store(context)
    store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
    for crl in crls.lists:
        store.add_crl(x509.load_der_x509_crl(crl))
    loaded = [_loaded(each) for each in verified]
    for depth, each in enumerate(loaded):
        try:
            crypto.X509StoreContext(store, each, loaded).verify_certificate()
        except crypto.X509StoreContextError as error:
            if error.errors[0] != _NO_CRL or verified[depth] not in (trust.anchors or ()):
                raise NotTrusted(f"{error} (depth {depth})") from None
    del context


def _refuse_revoked(crls: Crls, verified: Sequence[bytes]) -> None:
    """Refuse a chain with a certificate that a list names: also one that has ended, or whose signature is not right."""
    lists = [x509.load_der_x509_crl(each) for each in crls.lists]
    for depth, der in enumerate(verified):
        try:
            certificate = x509.load_der_x509_certificate(der)
        except (ValueError, x509.InvalidVersion):
            raise NotTrusted(f"a certificate that cannot be read (depth {depth})") from None
        for each in lists:
            if each.issuer == certificate.issuer and each.get_revoked_certificate_by_serial_number(
                certificate.serial_number
            ):
                raise NotTrusted(f"certificate revoked (depth {depth})")


def _store(context: SSL.Context) -> crypto.X509Store:
    store = context.get_cert_store()
    assert store is not None  # every context has one
    return store


def _loaded(der: bytes) -> crypto.X509:
    return crypto.load_certificate(crypto.FILETYPE_ASN1, der)
