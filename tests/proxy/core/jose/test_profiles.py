"""Profiles: what their tokens look like, what of theirs is opened, and where they may be used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.core.jose.encoding import base64url, unbase64url
from proxy.core.jose.jwe import JweError, Opening, open_token
from proxy.core.jose.jwksets import keys_of_set
from proxy.core.jose.keys import Alg, BadKey, Bind, Enc, Key, KeySet, load_key, new_key
from proxy.core.jose.keywriting import to_jwk, to_pem
from proxy.core.jose.oaep import RSA_OAEP_256
from proxy.core.jose.place import Place
from proxy.core.jose.profiles import OWN, Profile, fingerprint, form_of
from proxy.core.jose.sealing import Sealers, seal

TODAY = date(2026, 6, 1)
PLACE = Place("api.pay.example", "$.card")
MATERIAL = rsa.generate_private_key(65537, 2048)
KEY = Key("k", Alg.RSA_OAEP_256, MATERIAL)
PLAIN = KeySet("plain", KEY.alg, KEY, bind=Bind.NONE)
MASTERCARD = replace(PLAIN, profile=Profile.MASTERCARD)
VISA = replace(PLAIN, profile=Profile.VISA_MLE, enc=Enc.A128GCM)


def header_of(token: str) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(unbase64url(token.partition(".")[0]))
    return header


def made(iv: bytes = bytes(12), **header: object) -> list[str]:
    """Return the parts of a token, as another library may make it."""
    cek = bytes(range(32))
    protected = base64url(json.dumps({"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": "k"} | header).encode())
    sealed = AESGCM(cek).encrypt(iv, b'"4111"', protected.encode())
    wrapped = MATERIAL.public_key().encrypt(cek, RSA_OAEP_256)
    return [protected, *map(base64url, (wrapped, iv, sealed[:-16], sealed[-16:]))]


def test_mastercards_header_says_no_place() -> None:
    header = header_of(seal(b"1", MASTERCARD, PLACE))
    assert list(header.items()) == [
        ("alg", "RSA-OAEP-256"),
        ("enc", "A256GCM"),
        ("kid", "k"),
        ("cty", "application/json"),
    ]


def test_visas_header_says_when_in_milliseconds_of_each_body() -> None:
    sealers = Sealers()
    tokens = [sealers.sealing(VISA, KEY, now).seal(b"1", PLACE) for now in (1767225600.5, 1767225600.75)]
    assert [list(header_of(token).items()) for token in tokens] == [
        [("alg", "RSA-OAEP-256"), ("enc", "A128GCM"), ("kid", "k"), ("iat", time)]
        for time in (1767225600500, 1767225600750)
    ]


@pytest.mark.parametrize("keys", [MASTERCARD, VISA], ids=str)
def test_what_is_sealed_opens_anywhere_since_it_says_no_place(keys: KeySet) -> None:
    token = seal(b"1", keys, PLACE)
    assert open_token(token, keys, PLACE, TODAY) == b"1"
    assert open_token(token, keys, Place("other.example", "$"), TODAY) == b"1"
    assert Opening(keys, TODAY).has_sealed(token, PLACE)


@pytest.mark.parametrize(("keys", "opens"), [(PLAIN, False), (MASTERCARD, True)])
def test_an_iv_of_16_bytes_is_opened_for_mastercard_only(keys: KeySet, opens: bool) -> None:
    token = ".".join(made(bytes(16)))
    if opens:
        assert open_token(token, keys, None, TODAY) == b'"4111"'
    else:
        with pytest.raises(JweError, match="IV of 12 bytes"):
            open_token(token, keys, None, TODAY)
    with pytest.raises(JweError, match="IV of 12"):
        open_token(".".join(made(bytes(15))), keys, None, TODAY)


def test_slashes_stand_for_underscores_behind_the_header_for_mastercard_only() -> None:
    parts = made(iv=b"\xff" * 12)
    assert "_" in parts[2]
    slashed = [parts[0], *(part.replace("_", "/") for part in parts[1:])]
    assert open_token(".".join(slashed), MASTERCARD, None, TODAY) == b'"4111"'
    with pytest.raises(JweError, match="canonical base64url"):
        open_token(".".join(slashed), PLAIN, None, TODAY)
    in_header = made(typ="???")
    assert "_" in in_header[0]
    assert open_token(".".join(in_header), MASTERCARD, None, TODAY) == b'"4111"'
    with pytest.raises(JweError, match="protected header"):
        open_token(".".join([in_header[0].replace("_", "/"), *in_header[1:]]), MASTERCARD, None, TODAY)


def test_a_token_of_mastercard_with_any_one_character_changed_is_refused() -> None:
    parts = made(iv=bytes(16))
    token = ".".join(parts)
    for position in range(0, len(token), 7):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(JweError):
            open_token(token[:position] + other + token[position + 1 :], MASTERCARD, None, TODAY)


def test_mastercard_names_a_key_by_the_digest_of_its_public_half() -> None:
    der = MATERIAL.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    named = hashlib.sha256(der).hexdigest()
    assert fingerprint(MATERIAL) == fingerprint(MATERIAL.public_key()) == named
    public, private = to_pem(KEY, private=False), to_pem(KEY, private=True)
    for pem in (public, private):
        assert load_key(pem, alg=KEY.alg, profile=Profile.MASTERCARD).kid == named
        assert load_key(pem, alg=KEY.alg, profile=Profile.MASTERCARD, kid="theirs").kid == "theirs"
        assert load_key(pem, alg=KEY.alg, profile=Profile.VISA_MLE).kid == load_key(pem, alg=KEY.alg).kid != named
    jwk = {name: value for name, value in to_jwk(KEY, private=True).items() if name != "kid"}
    (key,) = keys_of_set(json.dumps({"keys": [jwk]}).encode(), alg=KEY.alg, profile=Profile.MASTERCARD)
    assert key.kid == named


@pytest.mark.parametrize("profile", Profile)
def test_a_profile_is_for_rsa_and_binds_to_nothing(profile: Profile) -> None:
    assert replace(PLAIN, profile=profile).form is profile.form
    assert form_of(profile).envelope
    with pytest.raises(BadKey, match=r"is for RSA-OAEP-256, and binds to nothing"):
        replace(PLAIN, profile=profile, bind=Bind.HOST)
    other = new_key(Alg.A256KW, kid="a")
    with pytest.raises(BadKey, match="is for RSA-OAEP-256"):
        KeySet("a", other.alg, other, bind=Bind.NONE, profile=profile)


def test_where_the_kid_is_a_header_fields_value_it_is_ascii() -> None:
    keys = replace(PLAIN, primary=replace(KEY, kid="schlüssel"))
    assert replace(keys, profile=Profile.MASTERCARD)
    with pytest.raises(BadKey, match="in ASCII"):
        replace(keys, profile=Profile.VISA_MLE)


def test_without_a_profile_all_is_as_rfc_7516_says() -> None:
    assert PLAIN.form is form_of(None) is OWN
    assert (OWN.iv_bytes, OWN.envelope, OWN.has_slashes, OWN.kid_field) == (frozenset({12}), None, False, None)
