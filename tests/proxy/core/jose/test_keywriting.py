"""Written keys: both forms, thumbprints, and what is not written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest

from proxy.core.jose.encoding import unbase64url
from proxy.core.jose.keys import BadKey, Key, load_key
from proxy.core.jose.keywriting import thumbprint, to_jwk, to_pem
from tests.proxy.core.jose.eachkind import ALL, KEYS, PAIRS, RSA


def _kind(key: Key) -> str:
    return key.kid


@pytest.mark.parametrize("key", PAIRS, ids=_kind)
def test_both_halves_have_the_same_thumbprint(key: Key) -> None:
    assert thumbprint(key) == thumbprint(key.public())


def test_the_thumbprint_of_the_example_in_rfc_7638_is_the_one_given_there() -> None:
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3"
        "oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdA"
        "ZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-"
        "kEgU8awapJzKnqDKgw"
    )
    key = load_key(json.dumps({"kty": "RSA", "n": modulus, "e": "AQAB"}).encode(), alg=RSA)
    assert thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        (KEYS["P-256"], '{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'),
        (KEYS["X25519"], '{{"crv":"X25519","kty":"OKP","x":"{x}"}}'),  # RFC 8037, appendix A.3
        (KEYS["oct"], '{{"k":"{k}","kty":"oct"}}'),
    ],
    ids=["P-256", "X25519", "oct"],
)
def test_a_thumbprint_is_the_digest_of_the_required_members_in_order(key: Key, canonical: str) -> None:
    text = canonical.format(**to_jwk(key, private=True))
    assert unbase64url(thumbprint(key)) == hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize("key", ALL, ids=_kind)
def test_a_private_key_comes_back_from_its_jwk(key: Key) -> None:
    members = to_jwk(key, private=True)
    again = load_key(json.dumps(members).encode(), alg=key.alg)
    assert again.can_open
    assert to_jwk(again, private=True) == members


@pytest.mark.parametrize("key", PAIRS, ids=_kind)
def test_a_private_key_comes_back_from_its_pem(key: Key) -> None:
    again = load_key(to_pem(key, private=True), alg=key.alg, kid=key.kid)
    assert to_jwk(again, private=True) == to_jwk(key, private=True)


@pytest.mark.parametrize("key", PAIRS, ids=_kind)
def test_a_public_key_comes_back_from_both_forms_without_secret_members(key: Key) -> None:
    members = to_jwk(key, private=False)
    assert not {"d", "p", "q", "dp", "dq", "qi"} & members.keys()
    assert load_key(json.dumps(members).encode(), alg=key.alg) == key.public()
    assert load_key(to_pem(key, private=False), alg=key.alg, kid=key.kid) == key.public()


@pytest.mark.parametrize("write", [to_jwk, to_pem])
def test_a_public_key_cannot_be_written_as_a_private_one(write: Callable[..., object]) -> None:
    with pytest.raises(BadKey, match="private half is not here"):
        write(KEYS["P-256"].public(), private=True)


@pytest.mark.parametrize("write", [to_jwk, to_pem])
def test_a_symmetric_key_cannot_be_written_as_a_public_one(write: Callable[..., object]) -> None:
    with pytest.raises(BadKey, match="no public half"):
        write(KEYS["oct"], private=False)


def test_a_symmetric_key_has_no_pem_form() -> None:
    with pytest.raises(BadKey, match="write it as a JWK"):
        to_pem(KEYS["oct"], private=True)
