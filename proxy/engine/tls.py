"""Makes the TLS connections for both sides: for upstreams, for apps whose https is decrypted, and for peers of mirror
listeners. The engine calls `TlsConnections` as its first addon, and inside stock mitmproxy `proxy.stock` does.

Rules of this module:

- Upstreams are verified as a careful direct client would do it: trusted roots, validity, host name or address, the form
  that RFC 5280 prescribes, TLS 1.2 or newer with forward secrecy and AEAD ciphers only.
- The verified chain, which is checked against the pins, ends at the first anchor (`proxy.engine.roots`).
- Upstream sessions are never resumed: a resumed handshake calls no verification callback, and so checks no pins.
- The app gets a certificate for the host that it named in CONNECT, never for another name of its choice.
- Nothing is kept here of a session with an app: OpenSSL would keep 20,480 of TLS 1.2 for each host, 1 KiB each.
  Tickets, which apps keep themselves, resume them.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import connection
from OpenSSL import SSL, crypto

from addons.sessions import Sessions
from addons.upstream import Upstream
from proxy.core.certificates.serving import ServerCertificate
from proxy.core.rules.policy import Mirror, Policy
from proxy.core.rules.trust import ClientCertificate, Trust
from proxy.disk.ca import Leaf, LocalCa
from proxy.engine.hookdata import TlsData
from proxy.engine.roots import CIPHERS_TLS12, kind_of, kinds_of, upstream_context

_LEAF_CACHE = 1000
# The functions on which pyOpenSSL is built, for what it has no public calls for.
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # see above
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]  # see above


def select_alpn(_conn: SSL.Connection, offers: list[bytes]) -> Any:
    """Choose the protocol for an app (RFC 7301): HTTP/2 if it is offered, else HTTP/1.1, else none."""
    for protocol in (b"h2", b"http/1.1"):
        if protocol in offers:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS


def app_context(leaf: Leaf) -> SSL.Context:
    """Return the context for handshakes with apps that asked for one host."""
    context = _server_context()
    context.use_certificate(leaf.certificate)
    context.add_extra_chain_cert(leaf.issuer)
    context.use_privatekey(leaf.key)
    return context


def mirror_context(shown: ServerCertificate) -> SSL.Context:
    """Return the context for handshakes with the peers of a mirror listener."""
    context = _server_context()
    own, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, each) for each in shown.chain)
    context.use_certificate(own)
    for each in others:
        context.add_extra_chain_cert(each)
    context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_ASN1, shown.key))
    return context


def _server_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS_TLS12)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_alpn_select_callback(select_alpn)
    return context


class TlsConnections:
    """Makes the OpenSSL connection objects. It is the first addon; `Pinning` adds its callback afterwards."""

    def __init__(self, sessions: Sessions, ca: LocalCa) -> None:
        self._sessions = sessions
        self._ca = ca
        self._upstream: WeakKeyDictionary[Policy, dict[tuple[Trust, ClientCertificate | None], SSL.Context]] = (
            WeakKeyDictionary()
        )
        self._mirrors: WeakKeyDictionary[Policy, dict[Mirror, SSL.Context]] = WeakKeyDictionary()
        self._app_contexts: OrderedDict[str, tuple[Leaf, SSL.Context]] = OrderedDict()

    def prepare(self, policy: Policy) -> None:
        """Make the contexts for handshakes under a policy: with upstreams, and with peers of mirror listeners.

        Raises:
            NoRoots: the roots cannot be found or read.
        """
        self._upstream[policy] = {kind: upstream_context(*kind) for kind in kinds_of(policy)}
        self._mirrors[policy] = {mirror: mirror_context(each) for mirror, each in policy.certificates.items()}

    def tls_start_client(self, data: TlsData) -> None:
        """Prepare the handshake with an app whose https is decrypted."""
        session = self._sessions.of(data.context.client)
        connect = session.connect
        if session.mirror is not None:
            context = self._mirrors[session.policy][session.mirror]
        elif connect is None or connect.asked is None:
            raise RuntimeError("TLS from an app outside CONNECT")
        else:
            context = self._context_for(connect.asked.host)
        data.ssl_conn = SSL.Connection(context)
        data.ssl_conn.set_accept_state()

    def _context_for(self, host: str) -> SSL.Context:
        now = datetime.now(UTC)
        cached = self._app_contexts.get(host)
        if cached is not None and cached[0].issuer is self._ca.issuer and cached[0].is_fresh(now):
            self._app_contexts.move_to_end(host)
            return cached[1]
        leaf = self._ca.leaf(host, now)
        context = app_context(leaf)
        self._app_contexts[host] = (leaf, context)
        self._app_contexts.move_to_end(host)
        self._forget(now)
        return context

    def _forget(self, now: datetime) -> None:
        """Drop the leaf certificates that have ended, and the least recently used ones if there are too many."""
        while self._app_contexts:
            leaf, _ = next(iter(self._app_contexts.values()))
            if leaf.is_fresh(now) and len(self._app_contexts) <= _LEAF_CACHE:
                return
            self._app_contexts.popitem(last=False)

    def tls_start_server(self, data: TlsData) -> None:
        """Prepare the handshake with an upstream: set the name for SNI and for verification."""
        server = data.conn
        assert isinstance(server, connection.Server)
        if server.address is None:
            raise RuntimeError("an upstream without an address")
        host = server.address[0]
        server.sni = host
        record = self._sessions.of(data.context.client).upstreams[server.id]
        server.alpn_offers = list(record.alpn)
        data.ssl_conn = SSL.Connection(self._upstream[record.policy][kind_of(record.policy, record.rule)])
        expect_name(data.ssl_conn, host)
        note_certificate_request(data.ssl_conn, record)
        data.ssl_conn.set_alpn_protos(server.alpn_offers)
        data.ssl_conn.set_connect_state()


def note_certificate_request(conn: SSL.Connection, record: Upstream) -> None:
    """Note in the record of a handshake when the server asks for a client certificate, whether there is one or not."""
    handle = _ffi.new_handle(record)
    conn.set_app_data(handle)  # OpenSSL keeps only a pointer to it
    _lib.SSL_set_cert_cb(conn._ssl, _on_certificate_request, handle)


@_ffi.callback("int(SSL *, void *)")  # type: ignore[untyped-decorator]  # cffi has no types
def _on_certificate_request(_ssl: Any, handle: Any) -> int:
    """Called by OpenSSL when a server asks for a client certificate: go on with the one that there is, or without."""
    _ffi.from_handle(handle).wants_certificate = True
    return 1


def expect_name(conn: SSL.Connection, host: str) -> None:
    """Make OpenSSL check that a subjectAltName of the certificate has this host (RFC 9525), and set SNI."""
    parameters = _lib.SSL_get0_param(conn._ssl)
    _lib.X509_VERIFY_PARAM_set_hostflags(
        parameters, _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    )
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        name = host.encode("ascii")
        conn.set_tlsext_host_name(name)
        ok = _lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
    else:
        ok = _lib.X509_VERIFY_PARAM_set1_ip(parameters, packed, len(packed))  # RFC 6066: no SNI for addresses
    if ok != 1:
        raise RuntimeError("OpenSSL does not take the host to verify")
