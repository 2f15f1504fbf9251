"""What upstreams are verified with: the trusted roots, and the TLS contexts that hold them. Who reads a policy
completes it here (`with_roots`), and `proxy.engine.tls` makes the contexts for its handshakes.

Rules of this module:

- Every certificate among the roots is an anchor, even an intermediate CA's or a server's own, as in curl and Python.
- A bundle that was named is read, or nothing: to trust others would be a guess.
- It imports nothing of the engine and nothing of mitmproxy: a process that only reads a policy needs neither.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL, crypto

from proxy.core.certificates.bundles import BadBundle, read_bundle
from proxy.core.handshakes import HYBRID
from proxy.core.rules.policy import Policy, Rule
from proxy.core.rules.trust import ClientCertificate, KeyExchange, Trust
from proxy.disk.reading import MAX_ROOTS_BYTES, read_regular

# Forward secrecy and AEAD only (RFC 9325, section 4.2); all TLS 1.3 suites have both.
CIPHERS_TLS12 = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:@SECLEVEL=2"
_MIN_VERSION = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
# The functions on which pyOpenSSL is built, for what it has no public calls for.
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # see above
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, the BSDs
)


class NoRoots(Exception):
    """What the policy trusts cannot be used: mostly the roots cannot be found or read. The message says why."""


def find_roots(trust: Trust) -> Path:
    """Return the PEM bundle of trusted roots.

    Raises:
        NoRoots: there is none.
    """
    if trust.roots is not None:
        return trust.roots
    if named := os.environ.get("SSL_CERT_FILE"):
        return Path(named)  # these or none: to trust others would be a guess
    for candidate in (ssl.get_default_verify_paths().cafile, *_SYSTEM_BUNDLES):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise NoRoots(
        "no system bundle of trusted roots was found: install ca-certificates, or set trust.roots to a PEM file"
    )


def read_roots(trust: Trust) -> tuple[bytes, ...]:
    """Read the bundle of trusted roots; return its certificates in DER.

    Raises:
        NoRoots: the bundle cannot be found or read.
    """
    source = find_roots(trust)
    try:
        content, _ = read_regular(source, MAX_ROOTS_BYTES)
    except OSError as e:
        raise NoRoots(f"{source} cannot be read: {e.strerror}") from None
    if len(content) > MAX_ROOTS_BYTES:
        raise NoRoots(f"{source} has more than {MAX_ROOTS_BYTES} bytes")
    try:
        return read_bundle(content).certificates
    except BadBundle as e:
        raise NoRoots(f"{source} holds no readable PEM certificates to trust: {e}") from None


def with_roots(policy: Policy) -> Policy:
    """Return the policy with the certificates of its trusted roots in it, so that later changes of their files have no
    effect.

    Several processes use the policy, at different times, and all must trust the same roots.

    Raises:
        NoRoots: the roots cannot be found or read.
    """
    known: dict[Path | None, tuple[bytes, ...]] = {}
    content = hashlib.sha256(policy.content)

    def read(trust: Trust) -> Trust:
        if trust.roots not in known:
            anchors = known[trust.roots] = trust.anchors if trust.anchors is not None else read_roots(trust)
            for anchor in anchors:
                content.update(hashlib.sha256(anchor).digest())
        return replace(trust, anchors=known[trust.roots])

    complete = policy.with_trusts(read)
    for kind in kinds_of(complete):
        upstream_context(*kind)
    return replace(complete, content=content.digest())


def upstream_context(trust: Trust, certificate: ClientCertificate | None = None) -> SSL.Context:
    """Return the context for all upstream handshakes with the same `Trust` and client certificate.

    Raises:
        NoRoots: the roots cannot be found or read, or this OpenSSL has no hybrid key exchange, or does not take the
            client certificate.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    is_hybrid = trust.key_exchange is KeyExchange.HYBRID
    context.set_min_proto_version(SSL.TLS1_3_VERSION if is_hybrid else _MIN_VERSION[trust.min_tls])
    context.set_cipher_list(CIPHERS_TLS12)
    if is_hybrid and _lib.SSL_CTX_set1_curves_list(context._context, HYBRID.encode("ascii")) != 1:
        raise NoRoots(f"this build of OpenSSL has no {HYBRID}: install a newer one, or write key_exchange: any")
    if certificate is not None:
        _show(context, certificate)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER)
    store = context.get_cert_store()
    assert store is not None  # every context has one
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | (crypto.X509StoreFlags.X509_STRICT if trust.strict else 0))
    if trust.crls is not None:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
        for crl in trust.crls.lists:
            store.add_crl(x509.load_der_x509_crl(crl))
    for number, anchor in enumerate(read_roots(trust) if trust.anchors is None else trust.anchors, 1):
        try:
            store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, anchor))
        except crypto.Error:
            raise NoRoots(f"certificate {number} of {find_roots(trust)} is damaged, or no certificate") from None
    return context


def _show(context: SSL.Context, certificate: ClientCertificate) -> None:
    """Make a context show a certificate to servers that ask for one."""
    own, *issuers = [x509.load_der_x509_certificate(each) for each in certificate.chain]
    try:
        context.use_certificate(own)
        for issuer in issuers:
            context.add_extra_chain_cert(issuer)
        key: Any = load_der_private_key(certificate.key.reveal(), None)  # of a kind that the policy's reader takes
        context.use_privatekey(key)
        context.check_privatekey()
    except SSL.Error:
        raise NoRoots(f"OpenSSL does not take the client certificate {certificate.file}") from None


def kind_of(policy: Policy, rule: Rule | None) -> tuple[Trust, ClientCertificate | None]:
    """Return what the context for a rule's upstreams depends on."""
    return policy.trust_for(rule), None if rule is None else rule.client_certificate


def kinds_of(policy: Policy) -> set[tuple[Trust, ClientCertificate | None]]:
    """Return what the contexts for all upstreams of a policy depend on; most rules share one."""
    return {kind_of(policy, rule) for rule in (None, *policy.rules)}
