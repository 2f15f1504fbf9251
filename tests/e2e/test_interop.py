"""Tokens cross the border: libraries of others open what the sidecar seals, and it opens what they seal.

Proves the wire format of an encrypted value (docs/keys.md): every library here is used as its own manual shows it,
with none of its checks switched off. joserfc refuses header members that it does not know; the others do not.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwe as joserfc_jwe
from joserfc.jwk import JWKRegistry
from jwcrypto import jwe as jwcrypto_jwe
from jwcrypto import jwk as jwcrypto_jwk

from proxy.core.jose.keys import Alg
from proxy.core.jose.keywriting import to_pem
from tests.e2e import wire
from tests.e2e.app import Way, ask, decision_of, fresh
from tests.e2e.certificates import Authority
from tests.e2e.nodejs import Node
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

with warnings.catch_warnings(action="ignore"):  # its authors point to joserfc, which is here, too
    from authlib.jose import JsonWebEncryption, JsonWebKey

AUTHLIB = JsonWebEncryption(["ECDH-ES+A256KW", "RSA-OAEP-256", "A256KW", "A256GCM"])
KINDS: dict[str, tuple[Alg, str]] = {
    "p256": (Alg.ECDH_ES_A256KW, "P-256"),
    "x25519": (Alg.ECDH_ES_A256KW, "X25519"),
    "rsa": (Alg.RSA_OAEP_256, "P-256"),
    "aes": (Alg.A256KW, "P-256"),
}
VALUE = b'{ "n" : [1.0, "\\u00e9"] }'
# A name that needs every layer of quoting: a path's, a quoted string's, and JSON's.
ODD = "\u00fc\"\\ '"
ODD_PATH = r"$['\u00fc" + '"' + r"\\ \'']"

Make = Callable[..., TlsUpstream]
type Open = Callable[[str, dict[str, Any]], tuple[dict[str, Any], bytes]]
type Seal = Callable[[bytes, dict[str, Any], dict[str, Any]], str]


def joserfc_open(token: str, jwk: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    opened = joserfc_jwe.decrypt_compact(token, _joserfc_key(jwk), algorithms=[jwk["alg"], "A256GCM"])
    assert opened.plaintext is not None
    return dict(opened.headers()), opened.plaintext


def joserfc_seal(value: bytes, header: dict[str, Any], jwk: dict[str, Any]) -> str:
    return joserfc_jwe.encrypt_compact(header, value, _joserfc_key(jwk), algorithms=[jwk["alg"], "A256GCM"])


def _joserfc_key(jwk: dict[str, Any]) -> Any:
    return JWKRegistry.import_key(jwk)


def jwcrypto_open(token: str, jwk: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    opened = jwcrypto_jwe.JWE(algs=[jwk["alg"], "A256GCM"])
    opened.deserialize(token, jwcrypto_jwk.JWK(**jwk))
    return opened.jose_header, opened.payload


def jwcrypto_seal(value: bytes, header: dict[str, Any], jwk: dict[str, Any]) -> str:
    sealed = jwcrypto_jwe.JWE(value, json.dumps(header))
    sealed.add_recipient(jwcrypto_jwk.JWK(**jwk))
    text: str = sealed.serialize(compact=True)
    return text


def authlib_open(token: str, jwk: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    opened = AUTHLIB.deserialize_compact(token.encode(), JsonWebKey.import_key(jwk))
    return opened["header"], opened["payload"]


def authlib_seal(value: bytes, header: dict[str, Any], jwk: dict[str, Any]) -> str:
    text: str = AUTHLIB.serialize_compact(header, value, JsonWebKey.import_key(jwk)).decode("ascii")
    return text


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node.with_packages(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def partners() -> dict[str, Receiver]:
    return {name: Receiver(name, alg, curve=curve) for name, (alg, curve) in KINDS.items()}


def jwk_of(partner: Receiver, folder: Path) -> dict[str, Any]:
    """Return a partner's private JWK, as it lies in its file."""
    jwk: dict[str, Any] = json.loads((folder / f"{partner.kid}.jwk").read_text())
    return jwk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interop")


@pytest.fixture(scope="module")
def sidecar(authority: Authority, partners: dict[str, Receiver], folder: Path) -> Iterator[Sidecar]:
    fields = json.dumps(["$.a[*].b", f"$['{ODD_PATH[3:-2]}']"])
    policy = "keys:\n"
    rules = "rules:\n"
    for name, partner in partners.items():
        file = partner.write_private(folder)
        policy += f"  {name}: {{alg: {partner.key.alg}, primary: {{file: {file}}}}}\n"
        rules += (
            f"  - {{name: {name}, hosts: [{name}.example], request: [{{encrypt: {fields}, key: {name}}}],\n"
            f"     response: [{{decrypt: {fields}, key: {name}}}]}}\n"
        )
    hosts = dict.fromkeys((f"{name}.example" for name in KINDS), "127.0.0.1")
    with Sidecar(policy + rules, folder, authority=authority, hosts=hosts) as sidecar:
        yield sidecar


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("library", [joserfc_open, jwcrypto_open, authlib_open])
def test_a_library_opens_what_the_sidecar_seals(
    sidecar: Sidecar, tls_upstream: Make, partners: dict[str, Receiver], folder: Path, kind: str, library: Open
) -> None:
    upstream = fresh(lambda: tls_upstream(f"{kind}.example"))
    body = b'{"a":[{"b":%s}],%s:%s}' % (VALUE, json.dumps(ODD).encode(), VALUE)
    assert ask(sidecar, upstream, f"{kind}.example", body=body).status == 200
    (got,) = upstream.wait_for_requests(1)
    arrived = got.json()
    jwk = jwk_of(partners[kind], folder)
    header, value = library(arrived["a"][0]["b"], jwk)
    assert value == VALUE
    assert header["cty"] == f'application/json;host="{kind}.example";path="$.a[*].b"'
    assert header.keys() - {"epk"} == {"alg", "enc", "kid", "cty"}
    header, value = library(arrived[ODD], jwk)
    assert value == VALUE
    quoted = ODD_PATH.replace("\\", "\\\\").replace('"', '\\"')
    assert header["cty"] == f'application/json;host="{kind}.example";path="{quoted}"'


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("library", [joserfc_seal, jwcrypto_seal, authlib_seal])
@pytest.mark.parametrize("way", Way)
def test_the_sidecar_opens_what_a_library_seals(
    sidecar: Sidecar,
    tls_upstream: Make,
    partners: dict[str, Receiver],
    folder: Path,
    kind: str,
    library: Seal,
    way: Way,
) -> None:
    jwk = jwk_of(partners[kind], folder)
    header = {
        "alg": jwk["alg"],
        "enc": "A256GCM",
        "kid": kind,
        "cty": f'application/json;host="{kind}.example";path="$.a[*].b"',
    }
    body = b'{"a":[{"b":"%s"}]}' % library(VALUE, header, jwk).encode()
    upstream = fresh(lambda: tls_upstream(f"{kind}.example", respond=lambda _: wire.response(200, body)))
    answer = ask(sidecar, upstream, f"{kind}.example", way=way, method="GET", headers=())
    assert (answer.status, answer.body) == (200, b'{"a":[{"b":%s}]}' % VALUE)


@pytest.mark.parametrize("kind", list(KINDS))
def test_nodes_jose_opens_what_the_sidecar_seals(
    sidecar: Sidecar, tls_upstream: Make, partners: dict[str, Receiver], folder: Path, kind: str, node: Node
) -> None:
    upstream = fresh(lambda: tls_upstream(f"{kind}.example"))
    body = b'{"a":[{"b":%s}],%s:%s}' % (VALUE, json.dumps(ODD).encode(), VALUE)
    assert ask(sidecar, upstream, f"{kind}.example", body=body).status == 200
    arrived = upstream.wait_for_requests(1)[0].json()
    jwk = jwk_of(partners[kind], folder)
    got = node.run(
        """const jose = require("jose"), key = await jose.importJWK(given.jwk, given.jwk.alg);
        return Promise.all(given.tokens.map(async (token) => {
          const { plaintext, protectedHeader } = await jose.compactDecrypt(token, key,
            { keyManagementAlgorithms: [given.jwk.alg], contentEncryptionAlgorithms: ["A256GCM"] });
          return [new TextDecoder().decode(plaintext), protectedHeader.cty]; }));""",
        jwk=jwk,
        tokens=[arrived["a"][0]["b"], arrived[ODD]],
    )
    assert [value.encode() for value, _ in got] == [VALUE, VALUE]
    assert got[0][1] == f'application/json;host="{kind}.example";path="$.a[*].b"'


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_sidecar_opens_what_nodes_jose_seals(
    sidecar: Sidecar, tls_upstream: Make, partners: dict[str, Receiver], folder: Path, kind: str, node: Node
) -> None:
    jwk = jwk_of(partners[kind], folder)
    cty = f'application/json;host="{kind}.example";path="$.a[*].b"'
    public = jwk if kind == "aes" else {name: jwk[name] for name in jwk if name in ("kty", "crv", "x", "y", "n", "e")}
    token = node.run(
        """const jose = require("jose"), key = await jose.importJWK(given.jwk, given.header.alg);
        return new jose.CompactEncrypt(new TextEncoder().encode(given.value))
          .setProtectedHeader(given.header).encrypt(key);""",
        jwk=public,
        header={"alg": jwk["alg"], "enc": "A256GCM", "kid": kind, "cty": cty},
        value=VALUE.decode(),
    )
    body = b'{"a":[{"b":"%s"}]}' % token.encode()
    upstream = fresh(lambda: tls_upstream(f"{kind}.example", respond=lambda _: wire.response(200, body)))
    answer = ask(sidecar, upstream, f"{kind}.example", method="GET", headers=())
    assert (answer.status, answer.body) == (200, b'{"a":[{"b":%s}]}' % VALUE)


@pytest.mark.parametrize(
    ("members", "opens"),
    [
        pytest.param({"iat": 1767225600, "com.example.trace": {"id": ["x"]}}, True, id="members that nobody knows"),
        pytest.param({"x5t": "AAAA"}, True, id="a thumbprint that decides nothing here"),
        pytest.param({"cty": "application/json"}, False, id="cty without a place"),
        pytest.param({"cty": 'application/json;host="aes.example";path="$.b"'}, False, id="cty of another place"),
        pytest.param({"crit": ["exp"], "exp": 1}, False, id="crit"),
        pytest.param({"jku": "https://keys.example/jwks.json"}, False, id="jku"),
        pytest.param({"x5u": "https://keys.example/cert.pem"}, False, id="x5u"),
        pytest.param({"x5c": ["MIIB"]}, False, id="x5c"),
        pytest.param({"jwk": {"kty": "oct", "k": "AAAA"}}, False, id="jwk"),
        pytest.param({"zip": "DEF"}, False, id="zip"),
    ],
)
def test_header_members_that_decide_nothing_are_ignored_and_those_that_would_are_refused(
    sidecar: Sidecar,
    tls_upstream: Make,
    partners: dict[str, Receiver],
    folder: Path,
    members: dict[str, Any],
    opens: bool,
) -> None:
    jwk = jwk_of(partners["aes"], folder)
    header = {
        "alg": "A256KW",
        "enc": "A256GCM",
        "kid": "aes",
        "cty": 'application/json;host="aes.example";path="$.a[*].b"',
    }
    sealed = _sealed_by_hand(VALUE, header | members, jwk)
    body = b'{"a":[{"b":"%s"}]}' % sealed.encode()
    upstream = fresh(lambda: tls_upstream("aes.example", respond=lambda _: wire.response(200, body)))
    answer = ask(sidecar, upstream, "aes.example", method="GET", headers=())
    if opens:
        assert (answer.status, answer.body) == (200, b'{"a":[{"b":%s}]}' % VALUE)
    else:
        assert (answer.status, answer.json()["reason"]) == (502, "decryption_failed")
        assert decision_of(sidecar, upstream)["decrypted"] == 0


def _sealed_by_hand(value: bytes, header: dict[str, Any], jwk: dict[str, Any]) -> str:
    """Seal with any header: libraries refuse to write most of these."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    from proxy.core.jose.encoding import base64url, unbase64url

    key, iv = bytes(range(32)), bytes(12)
    protected = base64url(json.dumps(header).encode())
    sealed = AESGCM(key).encrypt(iv, value, protected.encode())
    wrapped = aes_key_wrap(unbase64url(jwk["k"]), key)
    return ".".join((protected, *map(base64url, (wrapped, iv, sealed[:-16], sealed[-16:]))))


def test_the_receiver_in_the_docs_opens_a_value_at_its_place_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver("pay-2026")
    (tmp_path / "pay-2026.pem").write_bytes(to_pem(receiver.key, private=True))
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).resolve().parents[2] / "docs" / "keys.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)

    def run(path: str) -> object:
        token = receiver.seal(b'"4111"', "api.pay.example", path)
        names: dict[str, Any] = {"body": {"card": {"number": json.loads(token)}}}
        exec(snippet, names)  # what the docs tell a receiver to write
        return names["number"]

    assert run("$.card.number") == "4111"
    with pytest.raises(ValueError, match="another place"):
        run("$.card.cvv")
