"""Certificates whose form is not right, what lets them pass and is said of it, and anchors that are no roots.

Proves ARCHITECTURE's rule 8 (never weaker than without it) against its yardstick: what `ssl.create_default_context()`
of Python 3.13 refuses is refused, and what it takes is taken. Each defect stands alone: the same certificates without
it, and the same with `strict: false`, are fine.
"""

from __future__ import annotations

import re
import secrets
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.certificates import Authority, Identity, pin_of, private_pem
from tests.e2e.clients import DEADLINE, Answer, curl
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream

MakeTls = Callable[..., TlsUpstream]
PEM = serialization.Encoding.PEM
STRICT, LENIENT = "api.strict.example", "api.lenient.example"
# BasicConstraints with a path length but no CA (RFC 5280, section 4.2.1.9), which the library refuses to write
PATH_LENGTH_ALONE = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), bytes.fromhex("3003020100"))


@dataclass(frozen=True)
class Form:
    """What is in the certificates of a server, of an intermediate CA and of a root."""

    leaf_key_id: bool = True
    leaf_signs: bool = False
    leaf_path_length: bool = False
    leaf_subject: bool = True
    middle_key_id: bool = True
    middle_own_id: bool = True
    middle_critical: bool = True
    middle_usage: bool = True
    root_own_id: bool = True
    root_critical: bool = True
    root_usage: bool = True


DEFECTS = {
    "no authority key identifier on a leaf": (Form(leaf_key_id=False), "Missing Authority Key Identifier"),
    "keyCertSign on a leaf": (Form(leaf_signs=True), "keyCertSign invalid for non-CA"),
    "a path length on a leaf": (Form(leaf_path_length=True), "Path length invalid for non-CA"),
    "no subject, and its other name not critical": (
        Form(leaf_subject=False),
        "Subject empty and Subject Alt Name extension not critical",
    ),
    "no authority key identifier on a CA": (Form(middle_key_id=False), "Missing Authority Key Identifier"),
    "no subject key identifier on a CA": (Form(middle_own_id=False), "Missing Subject Key Identifier"),
    "basic constraints not critical": (Form(middle_critical=False), "Basic Constraints of CA cert not marked critical"),
    "no key usage on a CA": (Form(middle_usage=False), "CA cert does not include key usage extension"),
    "no subject key identifier on a root": (Form(root_own_id=False), "Missing Subject Key Identifier"),
    "basic constraints of a root not critical": (
        Form(root_critical=False),
        "Basic Constraints of CA cert not marked critical",
    ),
    "no key usage on a root": (Form(root_usage=False), "CA cert does not include key usage extension"),
}


@dataclass(frozen=True)
class Chain:
    """A server's key and certificates, and the root that they lead to."""

    identity: Identity
    root_pem: bytes

    @classmethod
    def make(cls, form: Form, *names: str | x509.GeneralName, common_name: str = "server") -> Chain:
        """Return one for names of hosts, unless they say what else they are."""
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
        leaf_key, middle_key, root_key = keys
        number = secrets.token_hex(4)  # a sidecar that trusts several roots must not take one for another
        root_name, middle_name = f"root {number}", f"middle {number}"
        root = _builder(
            root_name, root_name, root_key, is_ca=True, is_critical=form.root_critical, has_usage=form.root_usage
        )
        middle = _builder(
            middle_name,
            root_name,
            middle_key,
            is_ca=True,
            is_critical=form.middle_critical,
            has_usage=form.middle_usage,
        )
        leaf = _builder(common_name if form.leaf_subject else None, middle_name, leaf_key, is_ca=form.leaf_signs)
        if names:
            general = [x509.DNSName(name) if isinstance(name, str) else name for name in names]
            leaf = leaf.add_extension(x509.SubjectAlternativeName(general), False)
        constraints = PATH_LENGTH_ALONE if form.leaf_path_length else x509.BasicConstraints(ca=False, path_length=None)
        leaf = leaf.add_extension(constraints, critical=True)
        if form.root_own_id:
            root = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), False)
        if form.middle_own_id:
            middle = middle.add_extension(x509.SubjectKeyIdentifier.from_public_key(middle_key.public_key()), False)
        if form.middle_key_id:
            middle = middle.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False
            )
        if form.leaf_key_id:
            leaf = leaf.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(middle_key.public_key()), False
            )
        signed = [(leaf, middle_key), (middle, root_key), (root, root_key)]
        pems = [builder.sign(key, hashes.SHA256()).public_bytes(PEM) for builder, key in signed]
        return cls(Identity(private_pem(leaf_key), (pems[0], pems[1])), pems[2])


def _builder(
    subject: str | None,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
    is_critical: bool | None = None,
    has_usage: bool = True,
) -> x509.CertificateBuilder:
    """Return what all three have in common.

    Args:
        subject: its name; None for none.
        issuer: whose name it is issued under.
        key: its key.
        is_ca: whether its key usage is a CA's.
        is_critical: whether its basic constraints, a CA's, are critical; None for none.
        has_usage: whether it has a key usage at all.
    """
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in (subject,) if each]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
    )
    if is_critical is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=is_critical)
    if has_usage:
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=is_ca,
            crl_sign=is_ca,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    return builder


def pythons_verdict(upstream: TlsUpstream, host: str, roots: bytes) -> str | None:
    """Return why `ssl.create_default_context()` of Python 3.13 refuses a server; None if it does not."""
    context = ssl.create_default_context(cadata=roots.decode("ascii"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # the default from 3.13 on
    try:
        with (
            socket.create_connection((upstream.address, upstream.port), DEADLINE) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return error.verify_message


@dataclass(frozen=True)
class World:
    """A strict sidecar with a lenient rule, which trusts all the roots of this module."""

    sidecar: Sidecar
    chains: dict[str, Chain]
    right: Chain

    def ask(self, upstream: TlsUpstream, host: str) -> Answer:
        return curl("-d", "secret", upstream.url(host=host), proxy=self.sidecar.proxy_url)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("certificates")
    chains = {name: Chain.make(form, STRICT, LENIENT) for name, (form, _) in DEFECTS.items()}
    right = Chain.make(Form(), STRICT, LENIENT)
    (folder / "all.pem").write_bytes(b"".join(chain.root_pem for chain in (right, *chains.values())))
    policy = f"""
        trust: {{roots: all.pem}}
        rules:
          - {{name: lenient, hosts: [{LENIENT}], trust: {{strict: false}}}}
    """
    with Sidecar(policy, folder, hosts=dict.fromkeys((STRICT, LENIENT), "127.0.0.1")) as sidecar:
        yield World(sidecar, chains, right)


class TestForm:
    @pytest.mark.parametrize("defect", DEFECTS)
    def test_what_python_refuses_is_refused_and_strict_false_lets_it_pass(
        self, world: World, tls_upstream: MakeTls, defect: str
    ) -> None:
        chain, words = world.chains[defect], DEFECTS[defect][1]
        upstream = tls_upstream(identity=chain.identity)
        assert pythons_verdict(upstream, STRICT, chain.root_pem) is not None
        refused = world.ask(upstream, STRICT)
        problem = refused.json()
        assert (refused.status, problem["reason"]) == (502, "certificate_invalid")
        assert re.search(rf"{re.escape(words)}.* \(depth \d\): that is the certificate of ", problem["detail"])
        assert "trust: {strict: false} in a rule for this host" in problem["hint"]
        upstream.assert_no_application_bytes()
        assert world.ask(upstream, LENIENT).status == 200

    def test_without_a_defect_both_take_it(self, world: World, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(identity=world.right.identity)
        assert pythons_verdict(upstream, STRICT, world.right.root_pem) is None
        assert world.ask(upstream, STRICT).status == 200

    def test_a_root_of_version_1_has_no_form_at_all(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        """As `openssl x509 -req -signkey` still makes them."""
        program = shutil.which("openssl")
        if program is None:
            pytest.skip("openssl is not installed")
        key = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / "key.pem").write_bytes(private_pem(key))
        for command in (
            "req -new -key key.pem -subj /CN=old -out old.csr",
            "x509 -req -in old.csr -signkey key.pem -out old.pem",
        ):
            subprocess.run([program, *command.split()], cwd=tmp_path, check=True, capture_output=True, timeout=30)
        root = (tmp_path / "old.pem").read_bytes()
        if x509.load_pem_x509_certificate(root).version is not x509.Version.v1:
            pytest.skip("this openssl makes version 3")
        server = ec.generate_private_key(ec.SECP256R1())
        leaf = (
            _builder("server", "old", server, is_ca=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(STRICT), x509.DNSName(LENIENT)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        upstream = tls_upstream(identity=Identity(private_pem(server), (leaf.public_bytes(PEM),)))
        assert pythons_verdict(upstream, STRICT, root) == "invalid CA certificate"
        policy = f"trust: {{roots: old.pem}}\nrules: [{{name: l, hosts: [{LENIENT}], trust: {{strict: false}}}}]"
        with Sidecar(policy, tmp_path, hosts=dict.fromkeys((STRICT, LENIENT), "127.0.0.1")) as sidecar:
            refused = curl(upstream.url(host=STRICT), proxy=sidecar.proxy_url).json()
            assert refused["reason"] == "certificate_invalid"
            assert "trust: {strict: false}" in refused["hint"]
            assert curl(upstream.url(host=LENIENT), proxy=sidecar.proxy_url).status == 200

    def test_lenient_is_about_form_alone(self, authority: Authority, world: World, tls_upstream: MakeTls) -> None:
        for identity in (authority.issue(LENIENT), world.right.identity):
            upstream = tls_upstream(identity=identity)
            host = LENIENT if identity is not world.right.identity else "127.0.0.1"
            refused = world.ask(upstream, host)  # from another CA; for another host
            assert (refused.status, refused.json()["reason"]) == (502, "certificate_invalid")
            assert "strict" not in refused.json()["hint"]

    def test_a_rule_may_be_strict_where_the_policy_is_not(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        chain = Chain.make(Form(leaf_key_id=False), STRICT, LENIENT)
        (tmp_path / "root.pem").write_bytes(chain.root_pem)
        policy = f"""
            trust: {{roots: root.pem, strict: false}}
            rules:
              - {{name: strict, hosts: [{STRICT}], trust: {{strict: true}}}}
        """
        upstream = tls_upstream(identity=chain.identity)
        with Sidecar(policy, tmp_path, hosts=dict.fromkeys((STRICT, LENIENT), "127.0.0.1")) as sidecar:
            assert curl(upstream.url(host=LENIENT), proxy=sidecar.proxy_url).status == 200
            refused = curl(upstream.url(host=STRICT), proxy=sidecar.proxy_url).json()
            assert (refused["reason"], refused["rule"]) == ("certificate_invalid", "strict")
            assert refused["hint"].endswith("trust: {strict: false} in rule strict")
            # One connection of the lenient way lies idle: it must not carry what the strict rule says.
            assert curl(upstream.url(host=LENIENT), proxy=sidecar.proxy_url).status == 200
            assert curl(upstream.url(host=STRICT), proxy=sidecar.proxy_url).status == 502

    def test_an_https_proxy_is_held_to_it_too(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        chain = Chain.make(Form(leaf_key_id=False), "proxy.example")
        (tmp_path / "root.pem").write_bytes(chain.root_pem)
        proxy = tls_upstream(identity=chain.identity)
        policy = f"""
            trust: {{roots: root.pem}}
            upstream_proxy: {{url: "https://proxy.example:{proxy.port}"}}
        """
        with Sidecar(policy, tmp_path, hosts={"proxy.example": "127.0.0.1"}) as sidecar:
            refused = curl("http://api.example/", proxy=sidecar.proxy_url).json()
        assert refused["reason"] == "certificate_invalid"
        assert "Missing Authority Key Identifier" in refused["detail"]
        assert refused["hint"].endswith("trust: {strict: false} at the policy's top level")
        proxy.assert_no_application_bytes()

    def test_pins_fetch_sees_what_the_sidecar_would(self, world: World, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(identity=world.chains["no authority key identifier on a leaf"].identity)
        command = ("pins", "fetch", "-p", "policy.yaml")
        with pytest.raises(SidecarFailed, match="Missing Authority Key Identifier"):
            world.sidecar.run(*command, f"{STRICT}:{upstream.port}")
        assert upstream.pin in world.sidecar.run(*command, f"{LENIENT}:{upstream.port}")

    def test_check_and_explain_say_where_it_is_off(self, world: World) -> None:
        said = world.sidecar.run("check", "-p", "policy.yaml")
        assert re.search(r"^trust     .*TLS 1\.2 or newer, strict$", said, re.MULTILINE)
        assert re.search(r"^ +rule lenient: .*TLS 1\.2 or newer, not strict \(RFC 5280\)$", said, re.MULTILINE)
        assert "not strict" in world.sidecar.run("explain", "-p", "policy.yaml", f"http://{LENIENT}")
        assert "not strict" not in world.sidecar.run("explain", "-p", "policy.yaml", f"http://{STRICT}")


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Starts a sidecar that trusts these certificates alone, with pins for the host if there are any."""
    with ExitStack() as stack:

        def start(anchors: bytes, pin: str | None = None) -> Sidecar:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folder.mkdir()
            (folder / "anchor.pem").write_bytes(anchors)
            pins = f', pins: {{any_of: ["{pin}"]}}' if pin else ""
            policy = f"trust: {{roots: anchor.pem}}\nrules: [{{name: api, hosts: [{STRICT}]{pins}}}]"
            return stack.enter_context(Sidecar(policy, folder, hosts={STRICT: "127.0.0.1"}))

        yield start


class TestAnchors:
    def test_an_intermediate_ca_alone_is_an_anchor_as_for_curl_and_python(
        self, tls_upstream: MakeTls, trusting: Callable[..., Sidecar], tmp_path: Path
    ) -> None:
        chain = Chain.make(Form(), STRICT)
        middle = chain.identity.chain_pem[1]
        upstream = tls_upstream(identity=chain.identity.also_sending(chain.root_pem))
        assert pythons_verdict(upstream, STRICT, middle) is None
        (tmp_path / "middle.pem").write_bytes(middle)
        way = f"{STRICT}:{upstream.port}:127.0.0.1"
        direct = curl("--resolve", way, upstream.url(scheme="https", host=STRICT), ca_file=tmp_path / "middle.pem")
        assert direct.status == 200
        assert curl(upstream.url(host=STRICT), proxy=trusting(middle).proxy_url).status == 200

    def test_the_verified_chain_ends_at_the_anchor(
        self, tls_upstream: MakeTls, trusting: Callable[..., Sidecar]
    ) -> None:
        chain = Chain.make(Form(), STRICT)
        middle = chain.identity.chain_pem[1]
        upstream = tls_upstream(identity=chain.identity.also_sending(chain.root_pem))
        pins = {name: pin_of(x509.load_pem_x509_certificate(pem)) for name, pem in _named(chain).items()}
        for anchors in (middle, middle + chain.root_pem):
            for name, status in (("leaf", 200), ("middle", 200), ("root", 502)):
                answer = curl(upstream.url(host=STRICT), proxy=trusting(anchors, pins[name]).proxy_url)
                assert answer.status == status, name
        assert answer.json()["reason"] == "pin_mismatch"
        assert curl(upstream.url(host=STRICT), proxy=trusting(chain.root_pem, pins["root"]).proxy_url).status == 200

    @pytest.mark.parametrize("issuer", ["a CA", "itself"])
    def test_a_servers_own_certificate_is_an_anchor_for_itself_alone(
        self, tls_upstream: MakeTls, trusting: Callable[..., Sidecar], issuer: str
    ) -> None:
        authority = Authority()
        own, other = authority.issue(STRICT), authority.issue(STRICT)
        if issuer == "itself":
            own, other = _self_signed(STRICT), _self_signed(STRICT)
        upstream, stranger = tls_upstream(identity=own), tls_upstream(identity=other)
        assert pythons_verdict(upstream, STRICT, own.chain_pem[0]) is None
        assert pythons_verdict(stranger, STRICT, own.chain_pem[0]) is not None
        sidecar = trusting(own.chain_pem[0], own.pin)
        assert curl(upstream.url(host=STRICT), proxy=sidecar.proxy_url).status == 200
        refused = curl(stranger.url(host=STRICT), proxy=sidecar.proxy_url)
        assert (refused.status, refused.json()["reason"]) == (502, "certificate_invalid")
        stranger.assert_no_application_bytes()

    def test_an_anchor_is_none_for_another_name(self, tls_upstream: MakeTls, trusting: Callable[..., Sidecar]) -> None:
        own = Authority().issue("other.example")
        upstream = tls_upstream(identity=own)
        refused = curl(upstream.url(host=STRICT), proxy=trusting(own.chain_pem[0]).proxy_url)
        assert (refused.status, refused.json()["reason"]) == (502, "certificate_invalid")
        assert "hostname mismatch" in refused.json()["detail"]


def _named(chain: Chain) -> dict[str, bytes]:
    return dict(zip(("leaf", "middle", "root"), (*chain.identity.chain_pem, chain.root_pem), strict=True))


def _self_signed(host: str) -> Identity:
    """Return one whose form is that of many: what RFC 5280 says of chains does not apply to it."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("server", "server", key, is_ca=False, is_critical=False)
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return Identity(private_pem(key), (certificate.public_bytes(PEM),))
