"""Verifies a chain that no server shows yet, for `overcoat pins check --candidate`.

Rules of this module:

- It is verified against the same store, with the same flags, as chains in handshakes are (`proxy.engine.tls`): roots,
  dates, purposes, and the form that RFC 5280 prescribes where the policy is strict.
- Names are not looked at here: only a handshake has one to compare with (`proxy.core.pinlife.candidates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL, crypto

from proxy.core.certificates.forms import form_defect
from proxy.core.rules.trust import Trust
from proxy.engine.tls import upstream_context

_lib: Any = SSL._lib  # type: ignore[attr-defined]  # pyOpenSSL has no public call for a store's purpose
_SSL_SERVER = _lib.X509_PURPOSE_SSL_SERVER


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
    context = upstream_context(trust)  # it owns the store, and must outlive it
    store = context.get_cert_store()
    assert store is not None  # every context has one
    _lib.X509_STORE_set_purpose(store._store, _SSL_SERVER)
    try:
        leaf, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, each) for each in chain)
        found = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        raise NotTrusted(str(error)) from None
    del context
    verified = [crypto.dump_certificate(crypto.FILETYPE_ASN1, each) for each in found]
    if trust.strict and len(verified) > 1:
        for depth, each in enumerate(verified):
            if (defect := form_defect(each)) is not None:
                raise NotTrusted(f"{defect} (depth {depth})")
    return verified
