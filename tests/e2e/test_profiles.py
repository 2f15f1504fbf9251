"""Bodies of the profiles cross the border: Mastercard's own libraries open what the sidecar seals, and it opens what
they seal; and Visa's form is what Visa's samples show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from client_encryption.jwe_encryption import decrypt_payload, encrypt_payload
from client_encryption.jwe_encryption_config import JweEncryptionConfig
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwcrypto import jwe as jwcrypto_jwe
from jwcrypto import jwk as jwcrypto_jwk

from tests.e2e import wire
from tests.e2e.app import Way, ask, decision_of, fresh
from tests.e2e.certificates import Authority
from tests.e2e.nodejs import Node
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("mc.example", "parts.example", "visa.example", "two.example")
POLICY = """
    keys:
      theirs: {profile: mastercard, alg: RSA-OAEP-256, primary: {file: key.pem}, unsafe_key_permissions: true}
      visa: {profile: visa-mle, alg: RSA-OAEP-256, primary: {kid: v-1, file: key.pem}, unsafe_key_permissions: true}
      other: {profile: visa-mle, alg: RSA-OAEP-256, primary: {kid: other, file: key.pem}, unsafe_key_permissions: true}
    rules:
      - name: mc
        hosts: [mc.example]
        request: [{encrypt: ["$"], key: theirs}]
        response: [{decrypt: ["$"], key: theirs}]
      - name: parts
        hosts: [parts.example]
        request: [{encrypt: ["$.cards[*].data", "$.holder"], key: theirs}]
        response: [{decrypt: ["$.cards[*].data", "$.holder"], key: theirs}]
      - name: visa
        hosts: [visa.example]
        request: [{encrypt: ["$"], key: visa}]
        response: [{decrypt: ["$"], key: visa}]
      - name: two
        hosts: [two.example]
        request: [{encrypt: ["$.a"], key: visa}, {encrypt: ["$.b"], key: other}]
"""
PAYLOAD = {"card": {"number": "4111", "name": "ü€"}, "list": [1, 2.5, None]}

Make = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an RSA key and a certificate for it, as Mastercard gives out both."""
    folder = tmp_path_factory.mktemp("profiles")
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "encryption")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder


@pytest.fixture(scope="module")
def sidecar(authority: Authority, folder: Path) -> Iterator[Sidecar]:
    with Sidecar(POLICY, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node.with_packages(tmp_path_factory.mktemp("node"))


def config(folder: Path, encrypt: dict[str, str], decrypt: dict[str, str]) -> Any:
    """Return the configuration of Mastercard's library for Python, as its manual shows it."""
    return JweEncryptionConfig(
        {
            "paths": {"$": {"toEncrypt": encrypt, "toDecrypt": decrypt}},
            "encryptionCertificate": str(folder / "cert.pem"),
            "decryptionKey": str(folder / "key.pem"),
            "encryptedValueFieldName": "encryptedData",
        }
    )


NODE_CONFIG = """
    const { JweEncryption } = require("mastercard-client-encryption");
    const jwe = new JweEncryption({
      paths: [{ path: "/.*", toEncrypt: given.encrypt, toDecrypt: given.decrypt }], mode: "JWE",
      encryptionCertificate: given.folder + "/cert.pem", privateKey: given.folder + "/key.pem",
      encryptedValueFieldName: "encryptedData",
    });
"""
ROOT = {"element": "$", "obj": "$"}
ENCRYPTED_ROOT = {"element": "encryptedData", "obj": "$"}


def sealed_by_sidecar(sidecar: Sidecar, upstream: TlsUpstream, host: str, body: bytes, way: Way = Way.HTTP) -> Any:
    assert ask(sidecar, upstream, host, way=way, body=body).status == 200
    return upstream.wait_for_requests(1)[0].json()


class TestMastercard:
    @pytest.fixture
    def upstream(self, tls_upstream: Make) -> TlsUpstream:
        return fresh(lambda: tls_upstream(*HOSTS))

    @pytest.mark.parametrize("way", Way)
    def test_their_library_for_python_opens_a_whole_body(
        self, sidecar: Sidecar, upstream: TlsUpstream, folder: Path, way: Way
    ) -> None:
        arrived = sealed_by_sidecar(sidecar, upstream, "mc.example", json.dumps(PAYLOAD).encode(), way)
        assert arrived.keys() == {"encryptedData"}
        made = config(folder, {}, {"encryptedData": "$"})
        token = jwcrypto_jwe.JWE()
        token.deserialize(arrived["encryptedData"])
        assert token.jose_header == {
            "alg": "RSA-OAEP-256",
            "enc": "A256GCM",
            "kid": made.encryption_key_fingerprint,
            "cty": "application/json",
        }
        assert decrypt_payload(arrived, made) == PAYLOAD

    def test_their_library_for_node_opens_a_whole_body(
        self, sidecar: Sidecar, upstream: TlsUpstream, folder: Path, node: Node
    ) -> None:
        arrived = sealed_by_sidecar(sidecar, upstream, "mc.example", json.dumps(PAYLOAD).encode())
        got = node.run(
            NODE_CONFIG + "return jwe.decrypt({ request: { url: '/x' }, body: given.body });",
            folder=str(folder),
            encrypt=[],
            decrypt=[ENCRYPTED_ROOT],
            body=arrived,
        )
        assert got == PAYLOAD

    def test_elements_of_arrays_anywhere_are_sealed_and_each_opens_with_their_library(
        self, sidecar: Sidecar, upstream: TlsUpstream, folder: Path
    ) -> None:
        body = b'{"cards":[{"id":1, "data":{"pan":"4111"}},{"id":2, "data":[1]}], "holder":{"x":null}, "n":1.0}'
        arrived = sealed_by_sidecar(sidecar, upstream, "parts.example", body)
        made = config(folder, {}, {"encryptedData": "$"})
        opened = [decrypt_payload(dict(each["data"]), made) for each in arrived["cards"]]
        assert opened == [{"pan": "4111"}, [1]]
        assert decrypt_payload(arrived["holder"], made) == {"x": None}
        assert decision_of(sidecar, upstream)["encrypted"] == 3

    @pytest.mark.parametrize("payload", [PAYLOAD, [1, {"a": 2}]])
    def test_what_their_library_for_python_seals_comes_out_as_the_whole_body(
        self, sidecar: Sidecar, tls_upstream: Make, folder: Path, payload: Any
    ) -> None:
        made = config(folder, {"$": "$"}, {})
        body = json.dumps(encrypt_payload(payload, made)).encode()
        assert b'"4111"' not in body
        upstream = fresh(lambda: tls_upstream("mc.example", respond=lambda _: wire.response(200, body)))
        answer = ask(sidecar, upstream, "mc.example", body=b"{}")
        assert (answer.status, json.loads(answer.body)) == (200, payload)

    def test_what_their_library_for_node_seals_is_opened_with_its_slashes_and_long_ivs(
        self, sidecar: Sidecar, tls_upstream: Make, folder: Path, node: Node
    ) -> None:
        bodies = node.run(
            NODE_CONFIG
            + "return [...Array(6)].map(() => jwe.encrypt('/x', {}, JSON.parse(JSON.stringify(given.payload))).body);",
            folder=str(folder),
            encrypt=[ROOT],
            decrypt=[],
            payload=PAYLOAD,
        )
        assert any("/" in body["encryptedData"] for body in bodies)
        for body in bodies:
            sealed = json.dumps(body).encode()
            upstream = fresh(lambda sealed=sealed: answering(tls_upstream, "mc.example", sealed))  # type: ignore[misc]  # mypy infers no default of a lambda
            answer = ask(sidecar, upstream, "mc.example", body=b"{}")
            assert (answer.status, json.loads(answer.body)) == (200, PAYLOAD)

    def test_a_response_in_parts_comes_out_in_place(self, sidecar: Sidecar, tls_upstream: Make, folder: Path) -> None:
        made = config(folder, {"$": "$"}, {})
        parts = [json.dumps(encrypt_payload(each, made)).encode() for each in ({"pan": "4111"}, {"pan": "42"})]
        body = b'{"cards": [{"data": %s, "id":1.0},{"data":%s}], "holder": "plain"}' % tuple(parts)
        upstream = fresh(lambda: answering(tls_upstream, "parts.example", body))
        answer = ask(sidecar, upstream, "parts.example", body=b"{}")
        expected = b'{"cards": [{"data": {"pan": "4111"}, "id":1.0},{"data":{"pan": "42"}}], "holder": "plain"}'
        assert (answer.status, answer.body) == (200, expected)

    def test_what_was_tampered_with_is_refused_though_their_library_checks_no_tag(
        self, sidecar: Sidecar, tls_upstream: Make, folder: Path
    ) -> None:
        made = config(folder, {"$": "$"}, {"encryptedData": "$"})
        token = encrypt_payload(PAYLOAD, made)["encryptedData"]
        tampered = token[:-5] + ("AAAAA" if token[-5:] != "AAAAA" else "BBBBA")
        body = json.dumps({"encryptedData": tampered}).encode()
        upstream = fresh(lambda: answering(tls_upstream, "mc.example", body))
        answer = ask(sidecar, upstream, "mc.example", body=b"{}")
        assert (answer.status, answer.json()["reason"]) == (502, "decryption_failed")


def answering(make: Make, host: str, body: bytes) -> TlsUpstream:
    return make(host, respond=lambda _: wire.response(200, body))


class TestVisa:
    @pytest.mark.parametrize("own_field", [(), (("keyid", "of the app"),)], ids=["without", "with one of the app's"])
    def test_a_body_is_enc_data_and_the_head_says_the_key(
        self, sidecar: Sidecar, tls_upstream: Make, folder: Path, own_field: tuple[tuple[str, str], ...]
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        headers = (("Content-Type", "application/json"), *own_field)
        before = time.time()
        assert ask(sidecar, upstream, "visa.example", body=json.dumps(PAYLOAD).encode(), headers=headers).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.all("keyId") == ("v-1",)
        assert got.json().keys() == {"encData"}
        token = jwcrypto_jwe.JWE(algs=["RSA-OAEP-256", "A128GCM"])
        token.deserialize(got.json()["encData"], jwcrypto_jwk.JWK.from_pem((folder / "key.pem").read_bytes()))
        header = token.jose_header
        assert list(header) == ["alg", "enc", "kid", "iat"]
        assert (header["alg"], header["enc"], header["kid"]) == ("RSA-OAEP-256", "A128GCM", "v-1")
        assert before - 1 <= header["iat"] / 1000 <= time.time() + 1
        assert json.loads(token.payload) == PAYLOAD

    def test_a_response_is_opened_as_their_samples_seal_it(
        self, sidecar: Sidecar, tls_upstream: Make, folder: Path
    ) -> None:
        header = {"alg": "RSA-OAEP-256", "typ": "JOSE", "enc": "A128GCM", "iat": 1768825669976, "kid": "v-1"}
        token = jwcrypto_jwe.JWE(json.dumps(PAYLOAD).encode(), json.dumps(header), algs=["RSA-OAEP-256", "A128GCM"])
        token.add_recipient(jwcrypto_jwk.JWK.from_pem((folder / "key.pem").read_bytes()))
        body = json.dumps({"encData": token.serialize(compact=True)}).encode()
        upstream = fresh(lambda: answering(tls_upstream, "visa.example", body))
        answer = ask(sidecar, upstream, "visa.example", body=b"{}")
        assert (answer.status, json.loads(answer.body)) == (200, PAYLOAD)

    def test_a_body_without_anything_to_seal_has_no_such_field_and_two_keys_are_denied(
        self, sidecar: Sidecar, tls_upstream: Make
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert ask(sidecar, upstream, "two.example", body=b"{}").status == 200
        assert ask(sidecar, upstream, "two.example", body=b'{"b":1}').status == 200
        first, second = upstream.wait_for_requests(2)
        assert (first.headers.get("keyid"), second.headers.get("keyid")) == (None, "other")
        answer = ask(sidecar, upstream, "two.example", body=b'{"a":1,"b":1}')
        assert (answer.status, answer.json()["reason"]) == (503, "key_unavailable")
        assert len(upstream.requests) == 2
