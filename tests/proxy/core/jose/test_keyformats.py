"""The forms in which files hold keys beside PEM and single JWKs: PKCS#12, one key of a JWK Set, base64, and encrypted
PEM; and that none is taken for another.
"""

from __future__ import annotations

import base64
import json
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)

from proxy.core.jose.keyformats import MOST_IN_A_SET, is_public, looks_like_key
from proxy.core.jose.keys import Alg, BadKey, alg_for, load_key, new_key
from proxy.core.jose.keywriting import thumbprint, to_jwk, to_pem
from tests.proxy.core.jose.test_keymaterial import _certificate

ECDH, RSA, AES = Alg.ECDH_ES_A256KW, Alg.RSA_OAEP_256, Alg.A256KW
PASSWORD = b"correct horse"

P256 = ec.generate_private_key(ec.SECP256R1())
RSA2048 = rsa.generate_private_key(65537, 2048)
ONE, TWO = new_key(ECDH, kid="one"), new_key(ECDH, kid="two")


def _pkcs12(
    key: pkcs12.PKCS12PrivateKeyTypes | None,
    certificates: list[bytes],
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    loaded = [x509.load_pem_x509_certificate(each) for each in certificates]
    own = loaded.pop(0) if loaded and key is not None else None
    return pkcs12.serialize_key_and_certificates(
        b"pay", key, own, loaded, encryption or BestAvailableEncryption(PASSWORD)
    )


def _pem(encryption: KeySerializationEncryption, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return P256.private_bytes(Encoding.PEM, form, encryption)


def _set(*keys: dict[str, object] | dict[str, str]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


class TestPkcs12:
    @pytest.mark.parametrize(("key", "alg"), [(P256, ECDH), (RSA2048, RSA)])
    def test_its_key_is_read_with_the_password(
        self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, alg: Alg
    ) -> None:
        data = _pkcs12(key, [_certificate(key)])
        assert alg_for(data, password=PASSWORD) is alg
        read = load_key(data, alg=alg, password=PASSWORD)
        assert read.can_open
        assert thumbprint(read) == thumbprint(
            load_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), alg=alg)
        )
        assert looks_like_key(data)
        assert not is_public(data)

    def test_one_that_is_not_encrypted_needs_no_password(self) -> None:
        data = pkcs12.serialize_key_and_certificates(b"pay", P256, None, None, NoEncryption())
        assert load_key(data, alg=ECDH).can_open

    def test_a_certificate_alone_gives_a_public_key(self) -> None:
        key = load_key(_pkcs12(None, [_certificate(P256)]), alg=ECDH, password=PASSWORD)
        assert not key.can_open

    @pytest.mark.parametrize(
        ("data", "password", "message"),
        [
            pytest.param(_pkcs12(P256, []), None, "it needs one: say where it comes from with password", id="none"),
            pytest.param(_pkcs12(P256, []), b"wrong", "the password is wrong", id="a wrong one"),
            pytest.param(_pkcs12(P256, [])[:-40], PASSWORD, "the file is damaged", id="cut short"),
            pytest.param(
                _pkcs12(ed25519.Ed25519PrivateKey.generate(), []), PASSWORD, "cannot encrypt here", id="Ed25519"
            ),
            pytest.param(
                _pkcs12(None, [_certificate(P256), _certificate(RSA2048)]),
                PASSWORD,
                "no private key and 2 certificates",
                id="two certificates",
            ),
        ],
    )
    def test_what_does_not_open_is_refused_with_the_reason(
        self, data: bytes, password: bytes | None, message: str
    ) -> None:
        with pytest.raises(BadKey, match=re.escape(message)):
            load_key(data, alg=ECDH, password=password)

    def test_a_certificate_whose_key_is_not_valid_is_refused(self) -> None:
        point = P256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        certificate = x509.load_pem_x509_certificate(_certificate(P256)).public_bytes(Encoding.DER)
        damaged = certificate.replace(point, b"\x04" + b"\xff" * 64)
        data = pkcs12.serialize_key_and_certificates(
            b"x", None, None, [x509.load_der_x509_certificate(damaged)], BestAvailableEncryption(PASSWORD)
        )
        with pytest.raises(BadKey, match="holds a key that is not valid"):
            load_key(data, alg=ECDH, password=PASSWORD)


class TestPasswords:
    @pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
    def test_an_encrypted_pem_is_read_with_its_password(self, form: PrivateFormat) -> None:
        data = _pem(BestAvailableEncryption(PASSWORD), form)
        assert load_key(data, alg=ECDH, password=PASSWORD).can_open
        with pytest.raises(BadKey, match="does not open with this password"):
            load_key(data, alg=ECDH, password=b"wrong")
        with pytest.raises(BadKey, match="say where that comes from with password"):
            load_key(data, alg=ECDH)

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(_pem(NoEncryption()), id="PEM"),
            pytest.param(to_pem(ONE, private=False), id="public PEM"),
            pytest.param(json.dumps(to_jwk(ONE, private=True)).encode(), id="JWK"),
            pytest.param(base64.b64encode(bytes(32)), id="base64"),
        ],
    )
    def test_a_password_for_what_is_not_encrypted_is_refused(self, data: bytes) -> None:
        assert load_key(data, alg=alg_for(data))
        with pytest.raises(BadKey, match="leave password out"):
            load_key(data, alg=alg_for(data), password=PASSWORD)

    def test_no_message_tells_the_password(self) -> None:
        for data in (_pem(NoEncryption()), _pem(BestAvailableEncryption(b"x")), _pkcs12(P256, [])):
            with pytest.raises(BadKey) as caught:
                load_key(data, alg=ECDH, password=b"hunter2")
            assert "hunter2" not in str(caught.value)


class TestBase64:
    @pytest.mark.parametrize(
        "data",
        [
            base64.b64encode(b"\xfb" * 32),
            base64.b64encode(b"\xfb" * 32).rstrip(b"="),
            base64.urlsafe_b64encode(b"\xfb" * 32),
            b"  " + base64.urlsafe_b64encode(b"\xfb" * 32).rstrip(b"=") + b"\r\n",
        ],
    )
    def test_both_alphabets_are_read_with_and_without_padding(self, data: bytes) -> None:
        key = load_key(data, alg=AES)
        assert to_jwk(key, private=True)["k"] == base64.urlsafe_b64encode(b"\xfb" * 32).rstrip(b"=").decode()
        assert key.kid == thumbprint(key)
        assert alg_for(data) is AES
        assert looks_like_key(data)
        assert not is_public(data)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(base64.b64encode(bytes(31)), "base64 of 31 bytes", id="31 bytes"),
            pytest.param(base64.b64encode(bytes(33)), "base64 of 33 bytes", id="33 bytes"),
            pytest.param(b"0" * 64, "base64 of 48 bytes; a key for A256KW has exactly 32", id="hex"),
            pytest.param(b"+/" * 10 + b"-_" * 11 + b"A", "neither", id="both alphabets in one"),
            pytest.param(b"A" * 42 + b"B", "cut short or changed", id="stray bits"),
            pytest.param(b"A" * 41, "cut short or changed", id="an impossible length"),
            pytest.param(bytes(32), "neither", id="the bytes themselves"),
            pytest.param(base64.b64encode(bytes(32)) * 2, "neither", id="two of them"),
        ],
    )
    def test_anything_else_is_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(BadKey, match=re.escape(message)):
            load_key(data, alg=AES)

    def test_it_is_for_no_other_algorithm(self) -> None:
        with pytest.raises(BadKey, match="not a symmetric key"):
            load_key(base64.b64encode(bytes(32)), alg=ECDH)


class TestOneKeyOfASet:
    def test_the_name_says_which(self) -> None:
        data = _set(to_jwk(ONE, private=True), {"kty": "none", "kid": "other"}, to_jwk(TWO, private=False))
        assert load_key(data, alg=ECDH, kid="one").can_open
        two = load_key(data, alg=ECDH, kid="two")
        assert (two.kid, two.can_open) == ("two", False)
        assert alg_for(data, kid="two") is ECDH

    @pytest.mark.parametrize(
        ("data", "kid", "message"),
        [
            pytest.param(_set(to_jwk(ONE, private=True)), None, "name one of its keys with kid", id="no name"),
            pytest.param(
                _set(to_jwk(ONE, private=True)), "two", "has no key named 'two'; it has: 'one'", id="another name"
            ),
            pytest.param(_set({"kty": "oct"}), "two", "it has: no names", id="no names in it"),
            pytest.param(
                _set(to_jwk(ONE, private=True), to_jwk(ONE, private=False)), "one", "2 keys named 'one'", id="twice"
            ),
            pytest.param(_set(*({"kid": str(n)} for n in range(9))), "x", "'7', …", id="many names"),
            pytest.param(b'{"keys": {}}', "one", "a list of JWKs", id="no list"),
            pytest.param(b'{"keys": ["one"]}', "one", "a list of JWKs", id="no objects"),
            pytest.param(b'{"keys": []}', "one", "0 keys; it must have 1 to 64", id="empty"),
            pytest.param(_set(*([{}] * (MOST_IN_A_SET + 1))), "one", "has 65 keys", id="too many"),
        ],
    )
    def test_anything_else_is_refused(self, data: bytes, kid: str | None, message: str) -> None:
        with pytest.raises(BadKey, match=re.escape(message)):
            load_key(data, alg=ECDH, kid=kid)

    def test_a_set_is_public_if_all_its_keys_are(self) -> None:
        assert is_public(_set(to_jwk(ONE, private=False), to_jwk(TWO, private=False)))
        assert not is_public(_set(to_jwk(ONE, private=False), to_jwk(TWO, private=True)))
        assert not is_public(_set(to_jwk(ONE, private=False), {"kty": "oct"}))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not a key", id="a sentence"),
        pytest.param(b"word", id="a word"),
        pytest.param(P256.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), id="PKCS#8 in DER"),
    ],
)
def test_what_is_no_key_does_not_look_like_one(data: bytes) -> None:
    assert not looks_like_key(data)
    with pytest.raises(BadKey):
        load_key(data, alg=ECDH)
