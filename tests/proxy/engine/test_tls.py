"""Trust: which of the roots that this system trusts are good for anything, as Python 3.13 has it; and leaves for apps.

The clock is set by replacing `datetime` in the module.
"""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from mitmproxy import connection
from OpenSSL import SSL, crypto

from addons.sessions import Sessions
from addons.verification import is_about_form
from proxy.core.rules.policy import HostPattern, Https, PlainHttp, Policy, Rule
from proxy.core.rules.trust import ClientCertificate, Crls, CrlUse, Trust
from proxy.disk.ca import LocalCa
from proxy.engine import roots, tls
from proxy.engine.roots import NoRoots, find_roots, upstream_context, with_roots
from proxy.engine.tls import TlsConnections, expect_name
from tests.e2e.farm import Party


@dataclass
class Clock:
    """Stands for `datetime`."""

    time: datetime

    def now(self, _zone: tzinfo) -> datetime:
        return self.time


WRONG_SIGNATURE = 7  # X509_V_ERR_CERT_SIGNATURE_FAILURE: what comes once all about form is right
EC_KEY, RSA_KEY = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)


def _claimed(root: x509.Certificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    """Return a certificate that says of itself that a root has signed it, which is not so, and the signing key."""
    key = RSA_KEY if isinstance(root.public_key(), rsa.RSAPublicKey) else EC_KEY
    try:
        own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        key_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    except x509.ExtensionNotFound:
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("api.example")]), critical=False)
        .add_extension(key_id, critical=False)
    )
    return builder.sign(key, hashes.SHA256()), key


def _ours(store: crypto.X509Store, leaf: x509.Certificate) -> int:
    with pytest.raises(crypto.X509StoreContextError) as refused:
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf)).verify_certificate()
    return int(refused.value.errors[0])


def _pythons(
    client: ssl.SSLContext, leaf: x509.Certificate, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> int:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(private + leaf.public_bytes(pem))
        file.flush()
        server.load_cert_chain(file.name)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    app = client.wrap_bio(to_client, to_server, server_hostname="api.example")
    peer = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (app, peer, app):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return int(error.verify_code)
    raise AssertionError("a certificate that nobody has signed was taken")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_the_systems_roots_are_as_usable_as_in_python_3_13() -> None:
    try:
        bundle = find_roots(Trust())
        roots = x509.load_pem_x509_certificates(bundle.read_bytes())
    except (NoRoots, OSError):
        pytest.skip("this system has no bundle of trusted roots")
    contexts = upstream_context(Trust()), upstream_context(Trust(strict=False))  # which own what is looked at here
    strict, lenient = (context.get_cert_store() for context in contexts)
    assert strict is not None
    assert lenient is not None
    client = ssl.create_default_context(cafile=str(bundle))
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # the default from 3.13 on
    usable = 0
    for root in {each.subject: each for each in roots if each.not_valid_after_utc > datetime.now(UTC)}.values():
        leaf, key = _claimed(root)
        ours, pythons = _ours(strict, leaf), _pythons(client, leaf, key)
        assert (ours == WRONG_SIGNATURE) == (pythons == WRONG_SIGNATURE), root.subject
        assert ours == WRONG_SIGNATURE or is_about_form(ours, crypto.X509.from_cryptography(root)), root.subject
        assert _ours(lenient, leaf) == WRONG_SIGNATURE, root.subject
        usable += ours == WRONG_SIGNATURE
    assert usable > 0


@pytest.mark.parametrize(("what", "error"), [("leaf", 10), ("middle", 10), ("root", 10), ("list", 12)])
def test_all_that_ends_is_good_until_that_second(what: str, error: int) -> None:
    """The codes are X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CRL_HAS_EXPIRED."""
    ends = {each: 10.0 if each == what else 20.0 for each in ("leaf", "middle", "root", "list")}
    root = Party.root("root", ends=ends["root"])
    middle = root.authority("middle", ends=ends["middle"])
    leaf = middle.issues("api.example", ends=ends["leaf"])
    lists = [x509.load_pem_x509_crl(each.crl(ends=ends["list"])) for each in (root, middle)]
    loaded = {
        "list": lists[0].next_update_utc,
        **{
            name: x509.load_der_x509_certificate(party.der).not_valid_after_utc
            for name, party in (("leaf", leaf), ("middle", middle), ("root", root))
        },
    }
    end = loaded[what]
    assert end is not None
    crls = Crls((), CrlUse.REQUIRE, tuple(each.public_bytes(serialization.Encoding.DER) for each in lists))
    own, issuer = (crypto.load_certificate(crypto.FILETYPE_ASN1, each.der) for each in (leaf, middle))

    def verify(when: datetime) -> None:
        context = upstream_context(Trust(anchors=(root.der,), crls=crls))  # a store takes a time but once
        store = context.get_cert_store()
        assert store is not None
        store.set_time(when)
        crypto.X509StoreContext(store, own, [issuer]).verify_certificate()

    verify(end - timedelta(seconds=1))
    with pytest.raises(crypto.X509StoreContextError) as refused:
        verify(end + timedelta(seconds=1))
    assert refused.value.errors[0] == error


def test_roots_that_are_known_already_are_not_read_again(tmp_path: Path) -> None:
    anchor = trustme.CA().cert_pem.bytes()
    known = Policy(trust=Trust(roots=tmp_path / "gone.pem", anchors=(ssl.PEM_cert_to_DER_cert(anchor.decode()),)))
    assert with_roots(known).trust == known.trust


@pytest.mark.parametrize(
    ("host", "call"),
    [("api.example", "X509_VERIFY_PARAM_set1_host"), ("192.0.2.7", "X509_VERIFY_PARAM_set1_ip")],
)
@pytest.mark.parametrize("result", [0, -1])
def test_no_handshake_begins_with_a_host_that_would_not_be_verified(
    host: str, call: str, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
    expect_name(conn, host)
    monkeypatch.setattr(tls, "_lib", _Refusing(tls._lib, call, result))
    with pytest.raises(RuntimeError, match="does not take the host"):
        expect_name(conn, host)


class _Refusing:
    """OpenSSL, of which one call fails: no host that may be asked for makes it do so."""

    def __init__(self, lib: Any, call: str, result: int) -> None:
        self._lib, self._call, self._result = lib, call, result

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: self._result) if name == self._call else getattr(self._lib, name)


class TestLeaves:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock(datetime(2027, 1, 15, tzinfo=UTC))
        monkeypatch.setattr("proxy.engine.tls.datetime", clock)
        return clock

    @pytest.fixture
    def connections(self, tmp_path: Path, clock: Clock) -> TlsConnections:
        return TlsConnections(Sessions(), LocalCa.open(tmp_path, clock.time))

    def test_one_is_shown_as_long_as_it_is_fresh(self, connections: TlsConnections, clock: Clock) -> None:
        first = connections._context_for("api.example")
        clock.time += timedelta(days=5)
        assert connections._context_for("api.example") is first
        clock.time += timedelta(days=1)
        second = connections._context_for("api.example")
        assert second is not first
        clock.time -= timedelta(days=60)  # set back: the second is not valid yet
        assert connections._context_for("api.example") not in (first, second)

    def test_months_later_none_is_kept_that_has_ended(self, connections: TlsConnections, clock: Clock) -> None:
        for number in range(50):
            connections._context_for(f"{number}.example")
        clock.time += timedelta(days=90)
        connections._context_for("0.example")
        assert list(connections._app_contexts) == ["0.example"]

    def test_of_those_in_use_no_more_than_so_many_are_kept(
        self, connections: TlsConnections, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("proxy.engine.tls._LEAF_CACHE", 3)
        for name in ("a", "b", "c", "a", "d"):
            connections._context_for(name)
        assert list(connections._app_contexts) == ["c", "a", "d"]

    def test_each_host_has_a_key_of_its_own_and_a_flood_of_names_makes_no_more_than_so_many(
        self, connections: TlsConnections, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[ec.EllipticCurvePrivateKey] = []

        def generate(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
            made.append(new(curve))
            return made[-1]

        new = ec.generate_private_key
        monkeypatch.setattr(ec, "generate_private_key", generate)
        monkeypatch.setattr("proxy.engine.tls._LEAF_CACHE", 50)
        for number in range(500):
            connections._context_for(f"{number}.example")
            connections._context_for("often.example")  # one that is used stays, and keeps its key
        assert len(made) == 501  # one a name: no work grows with what is kept
        kept = [leaf.key for leaf, _ in connections._app_contexts.values()]
        assert len(kept) == 50
        assert made[1] in kept
        assert len({key.private_numbers().private_value for key in made}) == 501


class TestWhatCannotBe:
    """What no code path leads to raises, so that a mistake fails closed."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> tuple[TlsConnections, Any]:
        sessions = Sessions()
        client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
        sessions.open(client, Policy())
        server = connection.Server(address=None)
        return TlsConnections(sessions, LocalCa.open(tmp_path, datetime.now(UTC))), SimpleNamespace(
            context=SimpleNamespace(client=client), conn=server, ssl_conn=None
        )

    def test_tls_with_an_app_that_has_opened_nothing(self, data: tuple[TlsConnections, Any]) -> None:
        connections, start = data
        with pytest.raises(RuntimeError, match="outside CONNECT"):
            connections.tls_start_client(start)
        assert start.ssl_conn is None

    def test_tls_with_an_upstream_that_has_no_address(self, data: tuple[TlsConnections, Any]) -> None:
        connections, start = data
        with pytest.raises(RuntimeError, match="without an address"):
            connections.tls_start_server(start)
        assert start.ssl_conn is None


def test_without_roots_nobody_is_trusted() -> None:
    context = upstream_context(Trust(anchors=()))
    store = context.get_cert_store()  # it is the context's own, and lives as long as that
    assert store is not None
    root = x509.load_pem_x509_certificate(trustme.CA().cert_pem.bytes())
    with pytest.raises(crypto.X509StoreContextError):
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(root)).verify_certificate()


def test_rules_that_trust_alike_cost_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = (HostPattern("exact", "api.example"),)
    rules = tuple(Rule(f"r{number}", hosts, PlainHttp.UPGRADE, Https.INSPECT) for number in range(100))
    made: list[Trust] = []

    def counted(trust: Trust, certificate: ClientCertificate | None = None) -> SSL.Context:
        made.append(trust)
        return upstream_context(trust, certificate)

    monkeypatch.setattr(roots, "upstream_context", counted)
    anchor = ssl.PEM_cert_to_DER_cert(trustme.CA().cert_pem.bytes().decode())
    with_roots(Policy(trust=Trust(anchors=(anchor,)), rules=rules))
    assert len(made) == 1
