"""Reading keys: every accepted form, and every refusal with one cause each."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jose.encoding import base64url
from proxy.core.jose.keyformats import is_public
from proxy.core.jose.keymaterial import Alg, BadKey, PrivateMaterial, PublicMaterial
from proxy.core.jose.keys import SecretBytes, alg_for, load_key, new_key
from proxy.core.jose.keywriting import to_jwk

ECDH, RSA, AES = Alg.ECDH_ES_A256KW, Alg.RSA_OAEP_256, Alg.A256KW

P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
X25519 = x25519.X25519PrivateKey.generate()
RSA2048 = rsa.generate_private_key(65537, 2048)
MODULUS = RSA2048.public_key().public_numbers().n

JWKS = {
    "EC": to_jwk(
        load_key(P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), alg=ECDH), private=True
    ),
    "OKP": to_jwk(new_key(ECDH, curve="X25519"), private=True),
    "RSA": to_jwk(
        load_key(RSA2048.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), alg=RSA), private=True
    ),
    "oct": to_jwk(new_key(AES), private=True),
}


def _private_pem(key: PrivateMaterial, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _public_pem(key: PublicMaterial, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return key.public_bytes(Encoding.PEM, form)


def _certificate(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pay.example")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _rsa_public_pem(n: int, e: int) -> bytes:
    """A PKCS#1 public key of any two numbers, also of such as no library would write."""

    def der(tag: int, content: bytes) -> bytes:
        length = len(content)
        octets = length.to_bytes((length.bit_length() + 7) // 8)
        return bytes([tag]) + (bytes([0x80 + len(octets)]) if length > 127 else b"") + octets + content

    numbers = b"".join(der(2, value.to_bytes(value.bit_length() // 8 + 1)) for value in (n, e))
    body = base64.encodebytes(der(0x30, numbers))
    return b"-----BEGIN RSA PUBLIC KEY-----\n" + body + b"-----END RSA PUBLIC KEY-----\n"


def _jwk(kty: str, /, **changes: object) -> bytes:
    """A good JWK with some members changed; None takes a member away."""
    members = {**JWKS[kty], **changes}
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("data", "alg", "opens"),
    [
        pytest.param(_private_pem(P256), ECDH, True, id="PKCS#8, P-256"),
        pytest.param(_private_pem(P256, PrivateFormat.TraditionalOpenSSL), ECDH, True, id="SEC 1"),
        pytest.param(_private_pem(X25519), ECDH, True, id="PKCS#8, X25519"),
        pytest.param(_private_pem(RSA2048), RSA, True, id="PKCS#8, RSA"),
        pytest.param(_private_pem(RSA2048, PrivateFormat.TraditionalOpenSSL), RSA, True, id="PKCS#1 private"),
        pytest.param(_public_pem(P256.public_key()), ECDH, False, id="SPKI, P-256"),
        pytest.param(_public_pem(X25519.public_key()), ECDH, False, id="SPKI, X25519"),
        pytest.param(_public_pem(RSA2048.public_key()), RSA, False, id="SPKI, RSA"),
        pytest.param(_public_pem(RSA2048.public_key(), PublicFormat.PKCS1), RSA, False, id="PKCS#1 public"),
        pytest.param(_certificate(P256), ECDH, False, id="certificate, P-256"),
        pytest.param(_certificate(RSA2048), RSA, False, id="certificate, RSA"),
        pytest.param(b"subject=CN = x\r\n" + _certificate(P256), ECDH, False, id="text before the block"),
        pytest.param(
            b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
            + _private_pem(P256, PrivateFormat.TraditionalOpenSSL),
            ECDH,
            True,
            id="what openssl ecparam -genkey writes",
        ),
        pytest.param(_jwk("EC"), ECDH, True, id="JWK EC"),
        pytest.param(_jwk("EC", d=None), ECDH, False, id="JWK EC public"),
        pytest.param(_jwk("OKP"), ECDH, True, id="JWK OKP"),
        pytest.param(_jwk("OKP", d=None), ECDH, False, id="JWK OKP public"),
        pytest.param(_jwk("RSA"), RSA, True, id="JWK RSA"),
        pytest.param(_jwk("RSA", d=None, p=None, q=None, dp=None, dq=None, qi=None), RSA, False, id="JWK RSA public"),
        pytest.param(_jwk("oct"), AES, True, id="JWK oct"),
        pytest.param(b" \n" + _jwk("oct", alg=None, use=None, kid=None, exp=1), AES, True, id="JWK, bare"),
    ],
)
def test_every_form_of_a_key_is_read(data: bytes, alg: Alg, opens: bool) -> None:
    assert alg_for(data) is alg
    assert load_key(data, alg=alg).can_open is opens
    assert is_public(data) is not opens


SMALL_ORDER = base64url((1).to_bytes(32, "little"))


@pytest.mark.parametrize(
    ("data", "alg", "message"),
    [
        # files
        pytest.param(b"", ECDH, "neither PEM", id="empty"),
        pytest.param(P256.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), ECDH, "neither", id="DER"),
        pytest.param(b"\xef\xbb\xbf" + _jwk("oct"), AES, "neither PEM", id="a byte order mark"),
        pytest.param(_public_pem(P256.public_key()) * 2, ECDH, "begins 2 keys", id="two keys"),
        pytest.param(_certificate(P256) + _private_pem(P256), ECDH, "begins 2", id="certificate and key"),
        pytest.param(_private_pem(P256)[:-20], ECDH, "cut short", id="no END line"),
        pytest.param(
            _private_pem(P256).replace(b"BEGIN P", b"BEGIN RSA P"), ECDH, "cut short", id="END of another type"
        ),
        pytest.param(b"-----BEGIN ", ECDH, "begins 0 keys", id="half a BEGIN line"),
        pytest.param(
            P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
            ECDH,
            "passphrase",
            id="encrypted PKCS#8",
        ),
        pytest.param(
            P256.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"x")),
            ECDH,
            "passphrase",
            id="encrypted SEC 1",
        ),
        pytest.param(
            P256.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
            ECDH,
            "type OPENSSH PRIVATE KEY is not read",
            id="OpenSSH",
        ),
        pytest.param(
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", ECDH, "malformed", id="no DER inside"
        ),
        pytest.param(
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ECDH, "malformed", id="no certificate"
        ),
        pytest.param(
            ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ECDH,
            "cannot encrypt",
            id="Ed25519",
        ),
        # algorithms
        pytest.param(_private_pem(P384), ECDH, "curve secp384r1", id="P-384"),
        pytest.param(_private_pem(RSA2048), ECDH, "not an RSA key", id="RSA for ECDH-ES"),
        pytest.param(_jwk("oct", alg=None), ECDH, "not a symmetric key", id="oct for ECDH-ES"),
        pytest.param(_private_pem(P256), RSA, "takes an RSA key, not an EC key", id="EC for RSA"),
        pytest.param(_public_pem(X25519.public_key()), RSA, "not an X25519 key", id="X25519 for RSA"),
        pytest.param(_private_pem(X25519), AES, "takes a symmetric key", id="X25519 for A256KW"),
        # strength
        pytest.param(_rsa_public_pem(MODULUS >> 1024 | 1, 65537), RSA, "has 1024 bits", id="RSA of 1024 bits"),
        pytest.param(_rsa_public_pem(MODULUS >> 1 | 1, 65537), RSA, "has 2047 bits", id="RSA of 2047 bits"),
        pytest.param(_rsa_public_pem(MODULUS << 14337 | 1, 65537), RSA, "has 16385 bits", id="RSA of 16385 bits"),
        pytest.param(_rsa_public_pem(MODULUS, 1), RSA, "exponent must be at least", id="exponent 1"),
        pytest.param(_rsa_public_pem(MODULUS, 3), RSA, "exponent must be at least", id="exponent 3"),
        pytest.param(_rsa_public_pem(MODULUS, 65535), RSA, "exponent must be at least", id="exponent 65535"),
        pytest.param(_rsa_public_pem(MODULUS, 65538), RSA, "must be odd", id="even exponent"),
        pytest.param(_rsa_public_pem(MODULUS - 1, 65537), RSA, "must be odd", id="even modulus"),
        pytest.param(_rsa_public_pem(MODULUS, 2**64 + 1), RSA, "at most 64 bits", id="exponent of 65 bits"),
        pytest.param(_jwk("oct", k=base64url(bytes(31))), AES, "has 31 bytes", id="31 bytes"),
        pytest.param(_jwk("oct", k=base64url(bytes(33))), AES, "has 33 bytes", id="33 bytes"),
        pytest.param(_jwk("OKP", d=None, x=SMALL_ORDER), ECDH, "small order", id="X25519 point of small order"),
        # JWK
        pytest.param(b"{", AES, "the JWK is not one JSON object", id="no JSON"),
        pytest.param(_jwk("oct")[:-1] + b',"k":"AAAA"}', AES, "unique member names", id="a member twice"),
        pytest.param(b'{"keys": []}', AES, "it must have 1 to 64", id="an empty JWK Set"),
        pytest.param(_jwk("oct", kty=None), AES, "kty must be", id="no kty"),
        pytest.param(_jwk("oct", kty="OCT"), AES, "kty must be", id="unknown kty"),
        pytest.param(_jwk("oct", kty=["oct"]), AES, "kty must be", id="kty is no string"),
        pytest.param(_jwk("EC", crv="P-384"), ECDH, "crv of an EC key", id="EC on P-384"),
        pytest.param(_jwk("OKP", crv="Ed25519"), ECDH, "crv of an OKP key", id="Ed25519 JWK"),
        pytest.param(_jwk("EC", x=None), ECDH, "member x is missing", id="no x"),
        pytest.param(_jwk("EC", x=1), ECDH, "member x is missing or not a string", id="x is a number"),
        pytest.param(_jwk("EC", x=JWKS["EC"]["x"] + "="), ECDH, "member x must be canonical", id="padded x"),
        pytest.param(_jwk("EC", x=base64url(bytes(33))), ECDH, "has 33 octets", id="x too long"),
        pytest.param(_jwk("EC", y=JWKS["EC"]["x"]), ECDH, "off the curve", id="EC point off the curve"),
        pytest.param(_jwk("EC", d=base64url(bytes(31) + b"\5")), ECDH, "not matching", id="d of another EC key"),
        pytest.param(_jwk("EC", d=base64url(bytes(32))), ECDH, "not matching", id="d is zero"),
        pytest.param(_jwk("OKP", d=base64url(bytes(32))), ECDH, "not the public half", id="d of another X25519 key"),
        pytest.param(_jwk("OKP", x=base64url(bytes(31))), ECDH, "has 31 octets", id="X25519 x too short"),
        pytest.param(_jwk("RSA", n=""), RSA, "positive integer", id="empty modulus"),
        pytest.param(_jwk("RSA", e="AAEAAQ"), RSA, "leading zero", id="exponent with a leading zero"),
        pytest.param(_jwk("RSA", qi=None), RSA, "member qi is missing", id="no qi"),
        pytest.param(_jwk("RSA", p=JWKS["RSA"]["q"]), RSA, "not matching", id="primes that do not match"),
        pytest.param(_jwk("RSA", oth=[]), RSA, "more than two primes", id="multi-prime RSA"),
        # what a JWK says about itself
        pytest.param(_jwk("oct", alg="A128KW"), AES, "alg is another one", id="alg of another algorithm"),
        pytest.param(_jwk("oct", use="sig"), AES, "use must be enc", id="use sig"),
        pytest.param(_jwk("oct", kid=7), AES, "kid must be a string", id="kid is a number"),
        pytest.param(_jwk("oct", kid=""), AES, "1 to 256 printable", id="empty kid"),
        pytest.param(_jwk("oct", key_ops="wrapKey"), AES, "list of strings", id="key_ops is no list"),
        pytest.param(_jwk("oct", key_ops=["wrapKey", 1]), AES, "list of strings", id="key_ops holds a number"),
        pytest.param(
            _jwk("oct", key_ops=["wrapKey", "unwrapKey", "wrapKey"]), AES, "twice", id="key_ops with a duplicate"
        ),
        pytest.param(_jwk("oct", key_ops=["wrapKey"]), AES, "wrapKey and unwrapKey", id="key_ops without unwrapping"),
        pytest.param(_jwk("EC", key_ops=["sign"]), ECDH, "deriveKey or deriveBits", id="an EC key that signs"),
        pytest.param(_jwk("EC", d=None, key_ops=["verify"]), ECDH, "or nothing", id="an EC key that verifies"),
        pytest.param(_jwk("RSA", key_ops=["sign"]), RSA, "decrypt or unwrapKey", id="an RSA key that signs"),
        pytest.param(
            _jwk("RSA", d=None, p=None, q=None, dp=None, dq=None, qi=None, key_ops=["verify"]),
            RSA,
            "encrypt or wrapKey",
            id="an RSA key that verifies",
        ),
    ],
)
def test_a_bad_key_is_refused_with_the_reason(data: bytes, alg: Alg, message: str) -> None:
    with pytest.raises(BadKey, match=re.escape(message)):
        load_key(data, alg=alg)


@pytest.mark.parametrize(
    ("kty", "changes"),
    [
        ("oct", {"key_ops": ["unwrapKey", "wrapKey"]}),
        ("EC", {"key_ops": ["deriveBits"]}),
        ("EC", {"key_ops": [], "d": None}),
        ("OKP", {"key_ops": ["deriveKey"], "d": None}),
        ("RSA", {"key_ops": ["unwrapKey"]}),
        ("RSA", {"key_ops": ["encrypt"], **dict.fromkeys(("d", "p", "q", "dp", "dq", "qi"))}),
    ],
)
def test_key_ops_that_allow_the_use_are_accepted(kty: str, changes: dict[str, object]) -> None:
    data = _jwk(kty, **changes)
    assert load_key(data, alg=alg_for(data)).kid == JWKS[kty]["kid"]


def test_a_signing_key_of_another_kind_in_a_public_pem_is_refused() -> None:
    pem = dsa.generate_private_key(1024).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(BadKey, match="cannot encrypt here"):
        alg_for(pem)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"0123456789abcdef", id="anything"),
        pytest.param(b'{"kty":"EC","kty":"EC"}', id="a JWK that cannot be read"),
        pytest.param(b'{"kty":"oct"}', id="a symmetric JWK"),
        pytest.param(_jwk("OKP"), id="a private JWK"),
        pytest.param(b'{"keys":[]}', id="a JWK set"),
        pytest.param(_private_pem(P256)[:60], id="a private PEM cut short"),
        pytest.param(_public_pem(P256.public_key()) + b"----BEGIN PRIVATE KEY----", id="a damaged private block"),
        pytest.param(_certificate(P256) + _private_pem(P256), id="certificate and private key"),
    ],
)
def test_what_is_not_certainly_public_counts_as_secret(data: bytes) -> None:
    assert is_public(data) is False


@given(
    st.binary(max_size=200)
    | st.sampled_from([_private_pem(P256), _jwk("EC")]).flatmap(
        lambda good: st.tuples(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=3)).map(
            lambda change: good[: change[0]] + change[1] + good[change[0] + 1 :]
        )
    )
)
def test_damaged_key_files_are_read_or_refused_but_nothing_else(data: bytes) -> None:
    with suppress(BadKey):
        load_key(data, alg=ECDH)


def test_refusing_a_key_quotes_none_of_it() -> None:
    secret = base64url(b"0123456789abcdef" * 2)
    for changes in ({"k": secret + "="}, {"k": secret * 2}, {"alg": secret}, {"use": secret}, {"key_ops": [secret]}):
        with pytest.raises(BadKey) as caught:
            load_key(_jwk("oct", **changes), alg=AES)
        assert secret[:8] not in str(caught.value)


def test_secret_bytes_show_themselves_only_when_asked() -> None:
    secret = SecretBytes(b"hunter2")
    assert secret.reveal() == b"hunter2"
    assert "hunter2" not in f"{secret!r} {secret} {[secret]}"
