"""Files, folders and addresses that are wrong in one way each: what `serve` refuses, `check` refuses in the same words.

Proves that `check` can be believed: where it passes, `serve` starts, and what it warns of, `serve` logs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.cli import main
from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_jwk, to_pem
from proxy.core.who.clients import hash_password
from tests.e2e.certificates import Authority, Variant
from tests.e2e.sidecar import clean_environment, overcoat_command

POLICY = """\
version: 1
listen: [forward://127.0.0.1:0]
admin: 127.0.0.1:0
trust: {roots: roots.pem}
clients: {allow: [loopback], admin: [private], users: [{name: a, password_hash: {file: user.hash}}]}
upstream_proxy: {url: "http://127.0.0.1:9", credentials: {file: proxy.secret}}
keys:
  pay: {alg: ECDH-ES+A256KW, primary: {kid: pay, file: pay.pem}}
  app: {alg: A256KW, primary: {kid: app, file: app.jwk}}
rules:
  - name: pay
    hosts: [api.pay.example]
    pins: {any_of: [{file: pinned.pem}, "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}
    request: [{encrypt: ["$.card"], key: pay, match: exact}]
    response: [{decrypt: ["$.card"], key: app}]
"""

AUTHORITY, OTHER = Authority(), Authority()
PAY, APP = new_key(Alg.ECDH_ES_A256KW, kid="pay"), new_key(Alg.A256KW, kid="app")
RSA = new_key(Alg.RSA_OAEP_256)
_ISSUER = ec.generate_private_key(ec.SECP256R1())
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Some CA")])
_NOW = datetime.now(UTC)
PRIVATE = _ISSUER.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
ENCRYPTED = _ISSUER.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
)
CRL = (
    x509.CertificateRevocationListBuilder()
    .issuer_name(_NAME)
    .last_update(_NOW)
    .next_update(_NOW + timedelta(days=1))
    .sign(_ISSUER, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
)


def root(ends_in: timedelta) -> bytes:
    """Return a root that ends then."""
    return (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(_ISSUER.public_key())
        .serial_number(1)
        .not_valid_before(_NOW - timedelta(days=400))
        .not_valid_after(_NOW + ends_in)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(_ISSUER, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def lines_of(pem: bytes) -> list[bytes]:
    return pem.splitlines(keepends=True)


@dataclass
class Case:
    """One thing that is wrong.

    Attributes:
        name: what it is.
        status: what `check` exits with.
        told: part of what both say.
        files: contents in place of the right ones; None for no file.
        prepare: what else is done, in the folder.
        replace: what of the policy is written differently.
        env: further variables.
        starts: whether `serve` starts nevertheless.
    """

    name: str
    status: int
    told: str
    files: dict[str, bytes | None] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None
    replace: tuple[str, str] = ("", "")
    env: dict[str, str] = field(default_factory=dict)
    starts: bool = False


def data_folder(write: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what makes a data directory with a CA, and then changes it."""

    def prepare(folder: Path) -> None:
        environment = clean_environment({"OVERCOAT_DATA": str(folder / "data")})
        subprocess.run([*overcoat_command(), "ca"], env=environment, check=True, capture_output=True, timeout=30)
        write(folder / "data")

    return prepare


def with_folder(name: str, mode: int) -> Callable[[Path], object]:
    """Return what makes a folder of this mode."""

    def prepare(folder: Path) -> None:
        (folder / name).mkdir()
        (folder / name).chmod(mode)

    return prepare


def with_link_to_folder(folder: Path) -> None:
    """Make `data` a link to a folder."""
    (folder / "real").mkdir(0o700)
    (folder / "data").symlink_to("real")


def with_folder_for_certificate(data: Path) -> None:
    """Put a folder where the CA's certificate was."""
    (data / "ca-cert.pem").unlink()
    (data / "ca-cert.pem").mkdir()


def with_mode(name: str, mode: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).chmod(mode)


DER = x509.load_pem_x509_certificate(AUTHORITY.pem).public_bytes(serialization.Encoding.DER)
ENDED = timedelta(days=-1)
CASES = [
    Case("nothing is wrong", 0, "", starts=True),
    # Roots
    Case(
        "the last certificate is cut off", 2, "line", {"roots.pem": AUTHORITY.pem + b"".join(lines_of(OTHER.pem)[:-3])}
    ),
    Case("the first is cut off", 2, "cut off", {"roots.pem": b"".join(lines_of(OTHER.pem)[:-1]) + AUTHORITY.pem}),
    Case(
        "a line is lost",
        2,
        "is damaged",
        {"roots.pem": AUTHORITY.pem + b"".join(lines_of(OTHER.pem)[:3] + lines_of(OTHER.pem)[4:])},
    ),
    Case("no base64", 2, "is no base64", {"roots.pem": AUTHORITY.pem + OTHER.pem.replace(b"MII", b"M!I", 1)}),
    Case("roots in DER", 2, "openssl x509 -inform DER", {"roots.pem": DER}),
    Case("empty roots", 2, "no certificate in PEM", {"roots.pem": b""}),
    Case("roots that are text", 2, "no certificate in PEM", {"roots.pem": b"my CA\n"}),
    Case("no roots", 2, "roots.pem cannot be read", {"roots.pem": None}),
    Case(
        "a folder for roots", 2, "no regular file", {"roots.pem": None}, lambda folder: (folder / "roots.pem").mkdir()
    ),
    Case("a CRL among the roots", 2, "name its file under trust.crls", {"roots.pem": AUTHORITY.pem + CRL}),
    Case(
        "another block among the roots",
        2,
        "PKCS7",
        {"roots.pem": AUTHORITY.pem + b"-----BEGIN PKCS7-----\nAA==\n-----END PKCS7-----\n"},
    ),
    Case(
        "a private key among the roots", 0, "holds a private key", {"roots.pem": AUTHORITY.pem + PRIVATE}, starts=True
    ),
    Case("only expired roots", 1, "all certificates have expired", {"roots.pem": root(ENDED)}, starts=True),
    Case("an expired root", 0, "'CN=Some CA' expired on", {"roots.pem": AUTHORITY.pem + root(ENDED)}, starts=True),
    Case("a root that ends", 0, "will expire on", {"roots.pem": AUTHORITY.pem + root(timedelta(days=9))}, starts=True),
    Case(
        "no system roots",
        1,
        "no-roots.pem cannot be read",
        replace=("trust: {roots: roots.pem}\n", ""),
        env={"SSL_CERT_FILE": "/nowhere/no-roots.pem"},
    ),
    # Keys
    Case(
        "a sender's private key",
        0,
        "is a private key",
        {"pay.pem": to_pem(PAY, private=True)},
        with_mode("pay.pem", 0o600),
        starts=True,
    ),
    Case(
        "one that others may read", 2, "chmod 600", {"pay.pem": to_pem(PAY, private=True)}, with_mode("pay.pem", 0o644)
    ),
    Case("a symmetric one that others may read", 2, "chmod 600", prepare=with_mode("app.jwk", 0o640)),
    Case("an encrypted key", 2, "passphrase", {"pay.pem": ENCRYPTED}, with_mode("pay.pem", 0o600)),
    Case("a key for another alg", 2, "takes a P-256 or X25519 key", {"pay.pem": to_pem(RSA, private=False)}),
    Case("a key that is cut off", 2, "cut short", {"pay.pem": to_pem(PAY, private=False)[:-30]}),
    Case("a damaged key", 2, "malformed", {"pay.pem": to_pem(PAY, private=False).replace(b"MFkw", b"MFkx")}),
    Case("two keys in a file", 2, "exactly one", {"pay.pem": to_pem(PAY, private=False) * 2}),
    Case("an empty key file", 2, "neither PEM", {"pay.pem": b""}),
    Case("no key file", 2, "pay.pem cannot be read", {"pay.pem": None}),
    Case("an empty JWK Set", 2, "JWK Set has 0 keys", {"app.jwk": b'{"keys": []}'}, with_mode("app.jwk", 0o600)),
    Case("a short key", 2, "has 5 bytes", {"app.jwk": b'{"kty": "oct", "k": "c2hvcnQ"}'}, with_mode("app.jwk", 0o600)),
    Case(
        "a JWK that is no UTF-8", 2, "UTF-8", {"app.jwk": b'{"kty": "oct", "k": "\xff"}'}, with_mode("app.jwk", 0o600)
    ),
    # Pins
    Case("two certificates to pin", 2, "2 PEM blocks", {"pinned.pem": AUTHORITY.pem + OTHER.pem}),
    Case("a pinned certificate in DER", 2, "no PEM block", {"pinned.pem": DER}),
    Case("a pinned CRL", 2, "cannot be pinned", {"pinned.pem": CRL}),
    Case("a pinned key that is encrypted", 2, "encrypted", {"pinned.pem": ENCRYPTED}),
    Case("a damaged pinned certificate", 2, "damaged", {"pinned.pem": AUTHORITY.pem.replace(b"MII", b"MIJ", 1)}),
    Case(
        "pins that have ended",
        1,
        "its pins expired on 2020-01-01",
        replace=("pins: {", "pins: {expires: 2020-01-01, "),
        starts=True,
    ),
    Case(
        "a key that has ended",
        1,
        "expired on 2020-01-01",
        replace=("kid: app,", "kid: app, not_after: 2020-01-01,"),
        starts=True,
    ),
    # Secrets of people
    Case("a password in place of its hash", 2, "password_hash", {"user.hash": b"hunter2"}),
    Case("an empty hash", 2, "password_hash", {"user.hash": b""}),
    Case("credentials without a colon", 2, "NAME:PASSWORD", {"proxy.secret": b"name"}),
    Case("credentials of two lines", 2, "NAME:PASSWORD", {"proxy.secret": b"name:a\nb"}),
    # The policy
    Case(
        "a policy that is no UTF-8",
        2,
        "not UTF-8",
        prepare=lambda folder: (folder / "policy.yaml").write_bytes(b"version: 1\n# \xff\n"),
    ),
    Case(
        "a policy in UTF-16",
        2,
        "not UTF-8",
        prepare=lambda folder: (folder / "policy.yaml").write_bytes("version: 1\n".encode("utf-16")),
    ),
    Case(
        "a policy that all may write",
        0,
        "may be changed by everyone",
        prepare=with_mode("policy.yaml", 0o666),
        starts=True,
    ),
    # The data directory
    Case("a file for a data directory", 1, "File exists", prepare=lambda folder: (folder / "data").touch()),
    Case(
        "a data directory in a file",
        1,
        "Not a directory",
        prepare=lambda folder: (folder / "f").touch(),
        env={"OVERCOAT_DATA": "f/data"},
    ),
    Case(
        "a link that leads nowhere",
        1,
        "File exists",
        prepare=lambda folder: (folder / "data").symlink_to("nowhere/at/all"),
    ),
    Case(
        "a link to a data directory",
        0,
        "",
        prepare=with_link_to_folder,
        starts=True,
    ),
    Case(
        "a data directory that all may write",
        0,
        "others may write",
        prepare=with_folder("data", 0o777),
        starts=True,
    ),
    Case(
        "one where all may put another",
        0,
        "others may write",
        prepare=with_folder("open", 0o777),
        env={"OVERCOAT_DATA": "open/data"},
        starts=True,
    ),
    Case(
        "a CA's key that others may read",
        1,
        "is readable by others",
        prepare=data_folder(with_mode("ca-key.pem", 0o640)),
    ),
    Case(
        "a CA's key that is damaged",
        1,
        "holds no CA key",
        prepare=data_folder(lambda data: (data / "ca-key.pem").write_bytes(b"x")),
    ),
    Case(
        "a CA's key without its certificate",
        1,
        "holds no CA key",
        prepare=data_folder(lambda data: (data / "ca-key.pem").write_bytes(PRIVATE)),
    ),
    Case(
        "a folder for the CA's certificate",
        1,
        "cannot be read or written",
        prepare=data_folder(with_folder_for_certificate),
    ),
    # Addresses
    Case(
        "an address of another machine",
        1,
        "cannot listen on forward://192.0.2.1:0",
        replace=("forward://127.0.0.1:0", "forward://192.0.2.1:0"),
    ),
    Case(
        "an admin address of another machine",
        1,
        "cannot listen on 192.0.2.1:0 (admin)",
        replace=("admin: 127.0.0.1:0", "admin: 192.0.2.1:0"),
    ),
    Case(
        "a probes address of another machine",
        1,
        "cannot listen on 192.0.2.1:0 (probes)",
        replace=("admin: 127.0.0.1:0", "admin: 127.0.0.1:0\nprobes: 192.0.2.1:0"),
    ),
]


def write(folder: Path, case: Case) -> None:
    """Write the right files, and then what is wrong."""
    right = {
        "roots.pem": AUTHORITY.pem,
        "pay.pem": to_pem(PAY, private=False),
        "app.jwk": json.dumps(to_jwk(APP, private=True)).encode(),
        "pinned.pem": AUTHORITY.issue("api.pay.example", variant=Variant.VALID).chain_pem[0],
        "user.hash": str(hash_password("x", bytes(16))).encode(),
        "proxy.secret": b"name:password",
        "policy.yaml": POLICY.replace(*case.replace).encode(),
    }
    for name, content in {**right, **case.files}.items():
        if content is not None:
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600 if name == "app.jwk" else 0o644)
    case.prepare(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_check_says_what_serve_does(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sidecar"
    folder.mkdir(mode=0o755)
    write(folder, case)
    environment = {"OVERCOAT_DATA": "data", **case.env}
    monkeypatch.chdir(folder)
    checked = CliRunner(env=environment).invoke(main, ["check", "-p", "policy.yaml"], catch_exceptions=False)
    lines = []
    with subprocess.Popen(
        [*overcoat_command(), "serve", "-p", "policy.yaml"],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as served:
        assert served.stderr is not None
        for line in served.stderr:
            lines.append(line.rstrip("\n"))
            if '"event": "ready"' in line:
                served.terminate()
                break
        served.stderr.read()
    started = served.returncode == 0
    assert (checked.exit_code, started) == (case.status, case.starts), checked.stderr + "\n".join(lines)
    assert case.told in checked.stderr
    said = checked.stderr.splitlines()
    if case.status == 2:
        assert said[:-1] == lines[:-1]
        assert served.returncode == 2
        return
    logged = [json.loads(line) for line in lines]
    found = [(line["level"], line["message"]) for line in logged if line["level"] != "info"]
    assert [tuple(line.split(": ", 1)) for line in said] == found
    assert case.starts or served.returncode == 1


def test_an_address_that_is_in_use_may_be_the_sidecars_own(tmp_path: Path) -> None:
    folder = tmp_path / "sidecar"
    folder.mkdir()
    write(folder, Case("", 0, ""))
    shutil.copy(folder / "policy.yaml", folder / "first.yaml")
    environment = clean_environment({"OVERCOAT_DATA": "data"})
    with subprocess.Popen(
        [*overcoat_command(), "serve", "-p", "first.yaml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as served:
        assert served.stderr is not None
        ready = next(json.loads(line) for line in served.stderr if '"event": "ready"' in line)
        (folder / "policy.yaml").write_text(
            POLICY.replace("forward://127.0.0.1:0", f"forward://{ready['listen'][0]}").replace(
                "admin: 127.0.0.1:0", f"admin: {ready['admin']}"
            )
        )
        checked = subprocess.run(
            [*overcoat_command(), "check", "-p", "policy.yaml"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        served.terminate()
        served.stderr.read()
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_directory_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_check_says_what_serve_does(
        Case("", 1, "Permission denied", prepare=lambda folder: (folder / "data").mkdir(0o500)), tmp_path, monkeypatch
    )
