"""Sealing and opening: round trips, and every way a token is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.jose import jwe, sealing
from proxy.core.jose.agreement import concat_kdf
from proxy.core.jose.encoding import base64url, unbase64url
from proxy.core.jose.jwe import JweError, Opening, is_json_serialized, is_token, open_token
from proxy.core.jose.keys import Alg, BadKey, Bind, Enc, Key, KeySet, SecretBytes, new_key
from proxy.core.jose.keywriting import to_jwk
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import Sealing, seal

TODAY = date(2026, 6, 1)
PLACE = Place("api.pay.example", "$.items[*].secret")
UNIFORM = "of this set does not open it, or it was changed on the way"
KEYS = {
    "P-256": new_key(Alg.ECDH_ES_A256KW, kid="p"),
    "X25519": new_key(Alg.ECDH_ES_A256KW, curve="X25519", kid="x"),
    "RSA": Key("r", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048)),
    "oct": new_key(Alg.A256KW, kid="a"),
}
SETS = {name: KeySet(name, key.alg, key) for name, key in KEYS.items()}
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
every_kind = pytest.mark.parametrize("kind", list(KEYS))


def _header(token: str) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(unbase64url(token.partition(".")[0]))
    return header


def _token(header: Mapping[str, object] | bytes, cek: bytes, wrapped: bytes, iv: bytes = bytes(12)) -> str:
    """Assemble a correctly encrypted token with a header of the test's choice."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    protected = base64url(raw)
    sealed = AESGCM(cek).encrypt(iv, b"1", protected.encode())
    return ".".join((protected, *map(base64url, (wrapped, iv, sealed[:-16], sealed[-16:]))))


def _symmetric(header: Mapping[str, object] | bytes) -> str:
    """A token for the symmetric key that is right in all but, perhaps, its header."""
    material = KEYS["oct"].material
    assert isinstance(material, SecretBytes)
    cek = bytes(range(32))
    return _token(header, cek, aes_key_wrap(material.reveal(), cek))


GOOD = {"alg": "A256KW", "enc": "A256GCM", "kid": "a", "cty": "json"}


def _agreed(**changes: object) -> str:
    """A token for the P-256 key, sealed in the test itself, with some header parameters changed."""
    ephemeral, material = ec.generate_private_key(ec.SECP256R1()), KEYS["P-256"].material
    assert isinstance(material, ec.EllipticCurvePrivateKey)
    epk = to_jwk(Key("e", Alg.ECDH_ES_A256KW, ephemeral), private=False)
    header = {
        "alg": "ECDH-ES+A256KW",
        "enc": "A256GCM",
        "kid": "p",
        "epk": {name: epk[name] for name in ("kty", "crv", "x", "y")},
    } | changes
    info = {name: unbase64url(text) if isinstance(text := header.get(name), str) else b"" for name in ("apu", "apv")}
    shared = ephemeral.exchange(ec.ECDH(), material.public_key())
    cek = bytes(range(32))
    return _token(header, cek, aes_key_wrap(concat_kdf(shared, "ECDH-ES+A256KW", 32, **info), cek))


# Round trips


@every_kind
@given(plaintext=st.binary(max_size=200), host=PRINTABLE, path=PRINTABLE, enc=st.sampled_from(Enc))
@settings(max_examples=25, deadline=None)
def test_what_is_sealed_for_a_place_opens_there(kind: str, plaintext: bytes, host: str, path: str, enc: Enc) -> None:
    keys = replace(SETS[kind], enc=enc)
    token = seal(plaintext, keys, Place(host, path))
    assert open_token(token, keys, Place(host, path), TODAY) == plaintext


@every_kind
@pytest.mark.parametrize(("sealed", "opened"), [(Enc.A128GCM, Enc.A256GCM), (Enc.A256GCM, Enc.A128GCM)])
def test_the_key_set_decides_enc_and_never_the_token(kind: str, sealed: Enc, opened: Enc) -> None:
    token = seal(b"1", replace(SETS[kind], enc=sealed), PLACE)
    with pytest.raises(JweError, match=f"enc: must be {opened}"):
        open_token(token, replace(SETS[kind], enc=opened), PLACE, TODAY)


@every_kind
def test_a_content_key_of_the_other_length_is_the_same_failure(kind: str) -> None:
    """The header says A128GCM as the key set does, and the key that is wrapped has 256 bits."""
    parts = seal(b"1", SETS[kind], PLACE).split(".")
    header = base64url(json.dumps({**_header(".".join(parts)), "enc": "A128GCM"}).encode())
    with pytest.raises(JweError, match=UNIFORM):
        open_token(".".join((header, *parts[1:])), replace(SETS[kind], enc=Enc.A128GCM), PLACE, TODAY)


@pytest.mark.parametrize("kind", ["P-256", "X25519", "RSA"])
def test_the_public_half_seals(kind: str) -> None:
    public = KeySet("pub", KEYS[kind].alg, KEYS[kind].public())
    assert open_token(seal(b"1", public, PLACE), SETS[kind], PLACE, TODAY) == b"1"


@every_kind
def test_the_header_has_the_agreed_parameters_in_order(kind: str) -> None:
    header = _header(seal(b"1", SETS[kind], PLACE))
    agreement = ["epk"] if kind in ("P-256", "X25519") else []
    assert list(header) == ["alg", "enc", "kid", "cty", *agreement]
    assert header["cty"] == 'application/json;host="api.pay.example";path="$.items[*].secret"'
    assert (header["alg"], header["enc"]) == (KEYS[kind].alg.value, "A256GCM")
    assert "d" not in header.get("epk", {})


@every_kind
def test_nothing_of_one_sealing_is_used_in_the_next(kind: str) -> None:
    first, second = (seal(b"same", SETS[kind], PLACE).split(".") for _ in range(2))
    assert all(a != b for a, b in zip(first[1:], second[1:], strict=True))
    assert (first[0] != second[0]) is (kind in ("P-256", "X25519"))


def test_without_a_place_cty_says_json_and_no_more() -> None:
    assert _header(seal(b"1", SETS["oct"], None))["cty"] == "json"


def test_a_token_longer_than_the_limit_is_neither_made_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    token = seal(b"1", SETS["oct"], PLACE)
    monkeypatch.setattr(jwe, "MAX_TOKEN_CHARACTERS", len(token))
    monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", len(token))
    assert len(seal(b"1", SETS["oct"], PLACE)) == len(token)
    assert open_token(token, SETS["oct"], PLACE, TODAY) == b"1"
    with pytest.raises(JweError, match="would have more than"):
        seal(b"123", SETS["oct"], PLACE)
    with pytest.raises(JweError, match="has more than"):
        open_token(token + "A", SETS["oct"], PLACE, TODAY)


# One body


@every_kind
def test_the_tokens_of_one_body_take_one_operation_with_the_key(kind: str) -> None:
    asked: list[bool] = []
    opening = Opening(SETS[kind], TODAY, asked.append)
    one = Sealing.alone(SETS[kind], KEYS[kind])
    tokens = [one.seal(b"%d" % number, PLACE) for number in range(3)]
    other = seal(b"3", SETS[kind], PLACE)
    assert [opening.open(token, PLACE) for token in (*tokens, other)] == [b"0", b"1", b"2", b"3"]
    assert asked == [True, False, False, True]


@every_kind
def test_what_is_known_of_one_token_opens_no_other(kind: str) -> None:
    """The header, IV, ciphertext and tag of each token are its own, though the content key is known."""
    opening, one = Opening(SETS[kind], TODAY), Sealing.alone(SETS[kind], KEYS[kind])
    places = [PLACE, PLACE._replace(path="$.other")]
    first, second = (one.seal(b"1234", place).split(".") for place in places)
    assert opening.open(".".join(first), PLACE) == b"1234"
    for part in (0, 2, 3, 4):
        mixed = [*first[:part], second[part], *first[part + 1 :]]
        with pytest.raises(JweError):
            opening.open(".".join(mixed), PLACE)
    assert opening.open(".".join(first), PLACE) == b"1234"


@every_kind
def test_a_content_key_that_cannot_be_decrypted_is_not_tried_again_and_fails_alike(kind: str) -> None:
    asked: list[bool] = []
    opening = Opening(SETS[kind], TODAY, asked.append)
    parts = seal(b"1", SETS[kind], PLACE).split(".")
    wrapped = bytearray(unbase64url(parts[1]))
    wrapped[-1] ^= 1
    parts[1] = base64url(bytes(wrapped))
    for _ in range(2):
        with pytest.raises(JweError, match=UNIFORM):
            opening.open(".".join(parts), PLACE)
    assert asked == [True, False]


@pytest.mark.parametrize("name", ["apu", "epk"])
def test_agreements_that_differ_in_any_parameter_are_different_ones(name: str) -> None:
    """Else a token that does not open would open behind another with the same encrypted key."""
    token = _agreed(apu=base64url(b"Alice"))
    other = base64url(b"Bob") if name == "apu" else _header(_agreed())["epk"]
    wrapped = unbase64url(token.split(".")[1])
    moved = _token(_header(token) | {name: other}, bytes(range(32)), wrapped)
    for tokens in ([moved], [token, moved]):
        opening = Opening(SETS["P-256"], TODAY)
        for each in tokens[:-1]:
            assert opening.open(each, None) == b"1"
        with pytest.raises(JweError, match=UNIFORM):
            opening.open(tokens[-1], None)


# What was sealed here already


@every_kind
def test_a_token_for_this_place_is_known_by_opening_it_and_with_a_public_key_by_its_header(kind: str) -> None:
    token = seal(b"1", SETS[kind], PLACE)
    elsewhere = PLACE._replace(path="$.b")
    damaged = token[:-3] + ("AAA" if token[-3:] != "AAA" else "BBB")
    opening = Opening(SETS[kind], TODAY)
    assert opening.has_sealed(token, PLACE)
    assert not opening.has_sealed(token, elsewhere)
    assert not opening.has_sealed(damaged, PLACE)
    assert not opening.has_sealed("a.b.c.d.e", PLACE)
    if kind == "oct":
        return
    public = Opening(replace(SETS[kind], primary=KEYS[kind].public()), TODAY)
    assert public.has_sealed(token, PLACE)
    assert public.has_sealed(damaged, PLACE)  # nobody can tell without the private key
    assert not public.has_sealed(token, elsewhere)


@every_kind
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda header: header.pop("kid"), id="no kid"),
        pytest.param(lambda header: header.update(kid="other"), id="another kid"),
        pytest.param(lambda header: header.update(alg="dir"), id="another alg"),
        pytest.param(lambda header: header.update(enc="A128GCM"), id="another enc"),
        pytest.param(lambda header: header.pop("cty"), id="no place"),
        pytest.param(lambda header: header.update(zip="DEF"), id="zip"),
    ],
)
def test_whose_header_does_not_say_so_was_not_sealed_here(kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    public = SETS[kind] if kind == "oct" else replace(SETS[kind], primary=KEYS[kind].public())
    token = seal(b"1", SETS[kind], PLACE)
    header = _header(token)
    protected = base64url(json.dumps(header).encode())
    rest = token.partition(".")[2]
    assert kind == "oct" or Opening(public, TODAY).has_sealed(f"{protected}.{rest}", PLACE)
    change(header)
    protected = base64url(json.dumps(header).encode())
    assert not Opening(public, TODAY).has_sealed(f"{protected}.{rest}", PLACE)


@pytest.mark.parametrize("kind", ["P-256", "X25519", "RSA"])
def test_an_encrypted_key_of_another_length_was_not_sealed_here(kind: str) -> None:
    public = replace(SETS[kind], primary=KEYS[kind].public())
    parts = seal(b"1", SETS[kind], PLACE).split(".")
    wrapped = unbase64url(parts[1])[:-1]
    for last in (b"", b"\0"):
        parts[1] = base64url(wrapped + last)
        assert Opening(public, TODAY).has_sealed(".".join(parts), PLACE) is bool(last)


@pytest.mark.parametrize("kind", ["P-256", "X25519"])
def test_without_an_ephemeral_key_of_its_curve_it_was_not_sealed_here(kind: str) -> None:
    public = replace(SETS[kind], primary=KEYS[kind].public())
    token = seal(b"1", SETS[kind], PLACE)
    other = _header(seal(b"1", SETS["X25519" if kind == "P-256" else "P-256"], PLACE))["epk"]
    epk: object
    for epk in (_header(token)["epk"], other, {}, "x"):
        protected = base64url(json.dumps(_header(token) | {"epk": epk}).encode())
        text = f"{protected}.{token.partition('.')[2]}"
        assert Opening(public, TODAY).has_sealed(text, PLACE) is (epk == _header(token)["epk"])


def test_a_token_without_kid_was_not_sealed_here_though_it_opens() -> None:
    token = _symmetric({"alg": "A256KW", "enc": "A256GCM", "cty": PLACE.media_type})
    assert open_token(token, SETS["oct"], PLACE, TODAY) == b"1"
    assert not Opening(SETS["oct"], TODAY).has_sealed(token, PLACE)


# Tampering


@every_kind
def test_a_token_with_any_one_character_changed_is_refused(kind: str) -> None:
    token = seal(b'"4111 1111 1111 1111"', SETS[kind], PLACE)
    step = 3 if kind == "RSA" else 1  # a private RSA operation takes a millisecond
    for position in range(0, len(token), step):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(JweError):
            open_token(token[:position] + other + token[position + 1 :], SETS[kind], PLACE, TODAY)


@every_kind
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_token_with_characters_changed_added_or_removed_is_refused(kind: str, data: st.DataObject) -> None:
    token = seal(b"123", SETS[kind], PLACE)
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 3)))
    changed = token[:start] + data.draw(st.text(max_size=3)) + token[end:]
    if changed != token:
        with pytest.raises(JweError):
            open_token(changed, SETS[kind], PLACE, TODAY)


@given(st.text(max_size=60) | st.lists(st.binary(max_size=20), max_size=6).map(lambda p: ".".join(map(base64url, p))))
def test_any_text_is_refused_with_the_one_exception(text: str) -> None:
    for keys in SETS.values():
        with pytest.raises(JweError):
            open_token(text, keys, None, TODAY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda p: p[:4], "five parts", id="four parts"),
        pytest.param(lambda p: [*p, ""], "five parts", id="six parts"),
        pytest.param(lambda p: [p[0], p[1] + "=", *p[2:]], "canonical base64url", id="padding"),
        pytest.param(lambda p: [*p[:4], p[4] + "\n"], "canonical base64url", id="a line feed at the end"),
        pytest.param(lambda p: [*p[:4], p[4][:-1] + "_"], "canonical base64url", id="unused bits set"),
        pytest.param(lambda p: [*p[:2], base64url(bytes(11)), *p[3:]], "IV of 12", id="IV of 11 bytes"),
        pytest.param(lambda p: [*p[:2], base64url(bytes(16)), *p[3:]], "IV of 12", id="IV of 16 bytes"),
        pytest.param(lambda p: [*p[:4], base64url(unbase64url(p[4])[:15])], "tag of 16", id="tag of 15 bytes"),
        pytest.param(lambda p: [*p[:4], base64url(unbase64url(p[4]) + b"0")], "tag of 16", id="tag of 17 bytes"),
        pytest.param(lambda p: [p[0] + "=", *p[1:]], "protected header", id="padding in the header"),
        pytest.param(lambda p: ["", *p[1:]], "protected header", id="no header"),
    ],
)
def test_a_malformed_token_is_refused(change: Callable[[list[str]], list[str]], message: str) -> None:
    parts = _symmetric(GOOD).split(".")
    assert open_token(".".join(parts), SETS["oct"], None, TODAY) == b"1"
    with pytest.raises(JweError, match=message):
        open_token(".".join(change(parts)), SETS["oct"], None, TODAY)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        pytest.param(b"[]", "protected header", id="no object"),
        pytest.param(b'{"alg":"A256KW","enc":"A256GCM","enc":"A256GCM"}', "unique names", id="a name twice"),
        pytest.param(b"{" * 100_000, "protected header", id="nested deep"),
        *[
            pytest.param(GOOD | {name: value}, f"header parameter {name}: not allowed", id=name)
            for name, value in {
                "crit": ["exp"],
                "zip": "DEF",
                "jku": "https://keys.example",
                "jwk": {},
                "x5u": "https://keys.example",
                "x5c": [],
            }.items()
        ],
        pytest.param({"enc": "A256GCM"}, "alg: must be A256KW", id="no alg"),
        pytest.param(GOOD | {"alg": "dir"}, "alg: must be A256KW", id="alg dir"),
        pytest.param(GOOD | {"alg": "a256kw"}, "alg: must be A256KW", id="alg in lower case"),
        pytest.param(GOOD | {"alg": "ECDH-ES+A256KW"}, "alg: must be A256KW", id="alg of another key set"),
        pytest.param(GOOD | {"alg": ["A256KW"]}, "alg: must be A256KW", id="alg is no string"),
        pytest.param({"alg": "A256KW"}, "enc: must be A256GCM", id="no enc"),
        pytest.param(GOOD | {"enc": "A256CBC-HS512"}, "enc: must be A256GCM", id="enc with CBC"),
        pytest.param(GOOD | {"epk": {}}, "no meaning with A256KW", id="epk without key agreement"),
        pytest.param(GOOD | {"apu": "AAAA"}, "no meaning with A256KW", id="apu without key agreement"),
        pytest.param(GOOD | {"apv": "AAAA"}, "no meaning with A256KW", id="apv without key agreement"),
        pytest.param(GOOD | {"kid": 1}, "kid: must be a string", id="kid is a number"),
        pytest.param(GOOD | {"kid": None}, "kid: must be a string", id="kid is null"),
        pytest.param(GOOD | {"kid": "b"}, "kid: names none of the keys", id="kid of no key"),
        pytest.param(GOOD | {"typ": 1}, "typ: must be a string", id="typ is a number"),
        pytest.param(GOOD | {"cty": 1}, "cty: must be a string", id="cty is a number"),
        pytest.param(GOOD | {"cty": "JWT"}, "cty: must be application/json", id="cty of a nested token"),
        pytest.param(GOOD | {"cty": "text/json"}, "cty: must be application/json", id="cty of another type"),
        pytest.param(GOOD | {"cty": "json;a=1;a=1"}, "cty: not a media type", id="a parameter of cty twice"),
        pytest.param(GOOD | {"cty": ""}, "cty: not a media type", id="cty is empty"),
    ],
)
def test_a_header_that_is_not_allowed_is_refused_although_the_token_decrypts(
    header: Mapping[str, object] | bytes, message: str
) -> None:
    with pytest.raises(JweError, match=message):
        open_token(_symmetric(header), SETS["oct"], None, TODAY)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"alg": "A256KW", "enc": "A256GCM"}, id="nothing but alg and enc"),
        pytest.param(GOOD | {"cty": "application/JSON", "typ": "JOSE"}, id="cty in full"),
        pytest.param(GOOD | {"cty": 'json;host="anywhere";path="$"'}, id="cty of any place, not compared"),
        pytest.param(GOOD | {"cty": "application/json; charset=utf-8"}, id="cty with another parameter"),
        pytest.param(GOOD | {"ctx": {"host": "x"}, "b64": True, "Alg": "dir", "": None}, id="members nobody knows"),
        pytest.param(GOOD | {"x5t": "AAAA", "x5t#S256": 1, "p2c": 1000, "iv": "A", "tag": 1}, id="of other algorithms"),
        pytest.param(b' { "enc" :"A256GCM",\t"alg":"A256\\u004bW" } ', id="written in another way"),
    ],
)
def test_other_headers_that_mean_the_same_are_accepted(header: Mapping[str, object]) -> None:
    assert open_token(_symmetric(header), SETS["oct"], None, TODAY) == b"1"


def test_no_refusal_quotes_the_token() -> None:
    for header in (
        GOOD | {"SECRET": 1},
        GOOD | {"kid": "SECRET"},
        GOOD | {"cty": "SECRET"},
        GOOD | {"cty": "json;SECRET"},
    ):
        with pytest.raises(JweError) as caught:
            open_token(_symmetric(header), SETS["oct"], PLACE, TODAY)
        assert "SECRET" not in str(caught.value)


# Cryptographic failures are one


@every_kind
@pytest.mark.parametrize("part", [1, 2, 3, 4], ids=["encrypted key", "IV", "ciphertext", "tag"])
def test_every_cryptographic_failure_looks_the_same(kind: str, part: int) -> None:
    parts = seal(b"1234", SETS[kind], PLACE).split(".")
    raw = bytearray(unbase64url(parts[part]))
    raw[-1] ^= 1
    parts[part] = base64url(bytes(raw))
    with pytest.raises(JweError) as caught:
        open_token(".".join(parts), SETS[kind], PLACE, TODAY)
    assert str(caught.value) == f"key {KEYS[kind].kid} {UNIFORM}"
    assert caught.value.__suppress_context__


@every_kind
@pytest.mark.parametrize("length", [0, 1, 39, 41, 48, 256, 1024 * 1024])
def test_an_encrypted_key_of_another_length_is_the_same_failure(kind: str, length: int) -> None:
    parts = seal(b"1234", SETS[kind], PLACE).split(".")
    parts[1] = base64url(bytes(length))
    with pytest.raises(JweError, match=UNIFORM):
        open_token(".".join(parts), SETS[kind], PLACE, TODAY)


@pytest.mark.parametrize("kind", ["P-256", "oct"])
def test_an_encrypted_key_of_another_length_is_not_even_unwrapped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []  # unwrapping takes time in proportion to the length

    def unwrap(_key: bytes, wrapped: bytes) -> bytes:
        asked.append(len(wrapped))
        return bytes(32)

    monkeypatch.setattr(jwe, "aes_key_unwrap", unwrap)
    protected, wrapped, *rest = seal(b"1", SETS[kind], PLACE).split(".")
    for longer in (b"", bytes(8)):
        key = base64url(unbase64url(wrapped) + longer)
        with pytest.raises(JweError, match=UNIFORM):
            open_token(".".join((protected, key, *rest)), SETS[kind], PLACE, TODAY)
    assert asked == [40]


def test_rsa_with_another_padding_hash_or_key_length_is_the_same_failure() -> None:
    material = KEYS["RSA"].material
    assert isinstance(material, rsa.RSAPrivateKey)
    header = {"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": "r"}
    oaep_256, oaep_1 = (OAEP(mgf=MGF1(h()), algorithm=h(), label=None) for h in (SHA256, SHA1))
    public, cek = material.public_key(), bytes(range(32))
    assert open_token(_token(header, cek, public.encrypt(cek, oaep_256)), SETS["RSA"], None, TODAY) == b"1"
    for wrong in (
        _token(header, cek, public.encrypt(cek, oaep_1)),
        _token(header, cek[:16], public.encrypt(cek[:16], oaep_256)),
    ):
        with pytest.raises(JweError, match=UNIFORM):
            open_token(wrong, SETS["RSA"], None, TODAY)


@every_kind
def test_another_key_of_the_same_name_does_not_open(kind: str) -> None:
    other = (
        Key("r", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048))
        if kind == "RSA"
        else new_key(KEYS[kind].alg, curve="X25519" if kind == "X25519" else "P-256", kid=KEYS[kind].kid)
    )
    with pytest.raises(JweError, match=UNIFORM):
        open_token(seal(b"1", SETS[kind], PLACE), KeySet("other", other.alg, other), PLACE, TODAY)


# What is meant as a token


def _protected(header: object) -> str:
    return base64url(json.dumps(header).encode())


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        pytest.param(seal(b"1", SETS["P-256"], PLACE), True, id="a token"),
        pytest.param(seal(b"1", SETS["oct"], PLACE)[:-30], True, id="one that lost its end, but no part"),
        pytest.param(".".join(seal(b"1", SETS["oct"], PLACE).split(".")[:3]), True, id="one that lost two parts"),
        pytest.param("A" + seal(b"1", SETS["oct"], PLACE)[1:], True, id="one whose header is damaged"),
        pytest.param(_protected({"x": 1}) + ".a.b.c.d", True, id="five parts and an object in front"),
        pytest.param("IHs.a.b.c.d", True, id="behind a blank"),
        pytest.param("eyJ4I.a.b.c.d", True, id="whose length is none of base64"),
        pytest.param(".".join(("a", "", "A" * 16, "", "A" * 22)), True, id="an IV and a tag"),
        pytest.param(".".join(("a", "", "A" * 16, "", "A" * 21)), False, id="an IV and no tag"),
        pytest.param(_protected({"alg": "ES256"}) + ".e30.AAAA", False, id="a JWS"),
        pytest.param(_protected(["enc"]) + ".AA", False, id="no object"),
        pytest.param("1.2.3.4.5", False, id="a version"),
        pytest.param("www.shop.pay.example.org", False, id="a name"),
        pytest.param("4111 1111", False, id="text"),
        pytest.param("", False, id="nothing"),
        pytest.param("eyJlbmMiOjF9", False, id="no dot"),
        pytest.param("a b.c.d.e.f", False, id="another alphabet"),
    ],
)
def test_what_is_meant_as_a_token(text: str, yes: bool) -> None:
    assert is_token(text) is yes


@pytest.mark.parametrize(
    ("value", "yes"),
    [
        (b'{"protected":"e30","ciphertext":"AA"}', True),
        (b'{"recipients":[],"ciphertext":"AA"}', True),
        (b'{"encrypted_key":"","ciphertext":"AA"}', True),
        (b'{"ciphertext":"AA"}', False),
        (b'{"protected":"e30"}', False),
        (b'"ciphertext"', False),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, False),
    ],
)
def test_what_is_a_token_in_json_serialization(value: bytes, yes: bool) -> None:
    assert is_json_serialized(value) is yes


# Key agreement


def test_a_token_of_another_sender_opens() -> None:
    assert open_token(_agreed(), SETS["P-256"], None, TODAY) == b"1"


def test_party_information_goes_into_the_key() -> None:
    token = _agreed(apu=base64url(b"Alice"), apv=base64url(b"Bob"))
    assert open_token(token, SETS["P-256"], None, TODAY) == b"1"


def test_the_ephemeral_key_may_carry_a_name() -> None:
    epk = _header(_agreed())["epk"]
    with pytest.raises(JweError, match=UNIFORM):  # it is read; of another exchange, it only does not fit
        open_token(_agreed(epk=epk | {"kid": "1"}), SETS["P-256"], None, TODAY)


OFF_CURVE = {"kty": "EC", "crv": "P-256", "x": base64url(bytes(31) + b"\1"), "y": base64url(bytes(31) + b"\1")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"epk": None}, "epk: must be a public", id="null"),
        pytest.param({"epk": "AAAA"}, "epk: must be a public", id="a string"),
        pytest.param({"epk": to_jwk(KEYS["P-256"], private=True)}, "epk: must be a public", id="a private key"),
        pytest.param({"epk": to_jwk(KEYS["oct"], private=True)}, "epk: must be a public", id="a symmetric key"),
        pytest.param({"epk": {}}, "epk: not a valid", id="empty"),
        pytest.param({"epk": OFF_CURVE}, "epk: not a valid", id="a point off the curve"),
        pytest.param({"epk": {**OFF_CURVE, "crv": "P-384"}}, "epk: not a valid", id="another curve of EC"),
        pytest.param({"epk": {"kty": "EC", "crv": "P-256"}}, "epk: not a valid", id="no coordinates"),
        pytest.param({"epk": to_jwk(KEYS["X25519"], private=False)}, "not on the curve", id="X25519 for P-256"),
        pytest.param({"apu": 1}, "apu: must be a string", id="apu is a number"),
        pytest.param({"apv": None}, "apv: must be a string", id="apv is null"),
    ],
)
def test_a_bad_agreement_parameter_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(JweError, match=message):
        open_token(_agreed(**changes), SETS["P-256"], None, TODAY)


@pytest.mark.parametrize("name", ["apu", "apv"])
def test_party_information_that_is_not_base64url_is_refused(name: str) -> None:
    token = _token(_header(_agreed()) | {name: "AA=="}, bytes(32), bytes(40))
    with pytest.raises(JweError, match=f"{name}: must be canonical"):
        open_token(token, SETS["P-256"], None, TODAY)


def test_a_p_256_key_is_refused_where_x25519_is_needed() -> None:
    epk = to_jwk(KEYS["P-256"], private=False)
    token = _token({"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "x", "epk": epk}, bytes(32), bytes(40))
    with pytest.raises(JweError, match="not on the curve of the key"):
        open_token(token, SETS["X25519"], None, TODAY)


@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18], ids=str)
def test_an_x25519_point_that_gives_the_all_zero_secret_opens_nothing(point: int) -> None:
    # Whoever sends a point of small order knows the shared secret without any key: 32 zero bytes.
    epk = {"kty": "OKP", "crv": "X25519", "x": base64url(point.to_bytes(32, "little"))}
    cek = bytes(range(32))
    wrapped = aes_key_wrap(concat_kdf(bytes(32), "ECDH-ES+A256KW", 32), cek)
    token = _token({"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "x", "epk": epk}, cek, wrapped)
    with pytest.raises(JweError, match=UNIFORM):
        open_token(token, SETS["X25519"], None, TODAY)


# Which key


OLD = new_key(Alg.A256KW, kid="old")


def test_an_older_key_opens_what_names_it() -> None:
    assert (
        open_token(
            seal(b"1", KeySet("old", Alg.A256KW, OLD), PLACE),
            KeySet("app", Alg.A256KW, KEYS["oct"], (OLD,)),
            PLACE,
            TODAY,
        )
        == b"1"
    )


def test_a_token_without_kid_is_tried_with_the_primary_key_only() -> None:
    token = _symmetric({"alg": "A256KW", "enc": "A256GCM"})
    assert open_token(token, KeySet("app", Alg.A256KW, KEYS["oct"], (OLD,)), None, TODAY) == b"1"
    with pytest.raises(JweError, match=UNIFORM):
        open_token(token, KeySet("app", Alg.A256KW, OLD, (KEYS["oct"],)), None, TODAY)


@pytest.mark.parametrize("header", [GOOD, {"alg": "A256KW", "enc": "A256GCM"}], ids=["named", "unnamed"])
def test_an_expired_key_opens_nothing(header: Mapping[str, object]) -> None:
    keys = KeySet("app", Alg.A256KW, replace(KEYS["oct"], not_after=TODAY))
    assert open_token(_symmetric(header), keys, None, TODAY) == b"1"
    with pytest.raises(JweError, match="past its not_after"):
        open_token(_symmetric(header), keys, None, date(2026, 6, 2))


def test_a_public_key_opens_nothing() -> None:
    key = KEYS["P-256"].public()
    keys = KeySet("pay", key.alg, key)
    with pytest.raises(JweError, match="a public one"):
        open_token(seal(b"1", keys, PLACE), keys, PLACE, TODAY)


# Which place

HERE = 'application/json;host="api.pay.example";path="$.items[*].secret"'


@pytest.mark.parametrize(
    ("bind", "cty", "opens"),
    [
        (Bind.PLACE, HERE, True),
        (Bind.PLACE, HERE.removeprefix("application/"), True),
        (Bind.PLACE, 'Application/JSON ; Path="$.items[\\*].secret";v=1; HOST=api.pay.example', True),
        (Bind.PLACE, HERE.replace(".secret", ".other"), False),
        (Bind.PLACE, HERE.replace("api.", "evil."), False),
        (Bind.PLACE, HERE.replace("[*]", "[0]"), False),
        (Bind.PLACE, 'application/json;host="api.pay.example"', False),
        (Bind.PLACE, 'application/json;path="$.items[*].secret"', False),
        (Bind.PLACE, "application/json", False),
        (Bind.PLACE, None, False),
        (Bind.HOST, HERE, True),
        (Bind.HOST, HERE.replace(".secret", ".other"), True),
        (Bind.HOST, 'application/json;host="api.pay.example"', True),
        (Bind.HOST, HERE.replace("api.", "evil."), False),
        (Bind.HOST, 'application/json;path="$.items[*].secret"', False),
        (Bind.HOST, None, False),
        (Bind.NONE, HERE.replace("api.", "evil."), True),
        (Bind.NONE, None, True),
    ],
)
def test_a_token_opens_only_where_its_binding_allows(bind: Bind, cty: str | None, opens: bool) -> None:
    header = {name: value for name, value in GOOD.items() if name != "cty"} if cty is None else GOOD | {"cty": cty}
    token = _symmetric(header)
    keys = replace(SETS["oct"], bind=bind)
    assert open_token(token, keys, None, TODAY) == b"1"
    if opens:
        assert open_token(token, keys, PLACE, TODAY) == b"1"
    else:
        with pytest.raises(JweError, match="header parameter cty"):
            open_token(token, keys, PLACE, TODAY)


def test_a_binding_of_the_old_kind_binds_to_nothing() -> None:
    token = _symmetric(GOOD | {"ctx": {"host": PLACE.host, "path": PLACE.path}})
    with pytest.raises(JweError, match="must bind the token to its place"):
        open_token(token, SETS["oct"], PLACE, TODAY)


@given(
    host=st.sampled_from(["a.example", "b.example"]),
    path=st.sampled_from(["$.a", "$.b"]),
    other_host=st.sampled_from(["a.example", "b.example"]),
    other_path=st.sampled_from(["$.a", "$.b"]),
    bind=st.sampled_from(list(Bind)),
)
def test_binding_agrees_with_its_definition(host: str, path: str, other_host: str, other_path: str, bind: Bind) -> None:
    token = seal(b"1", SETS["oct"], Place(host, path))
    allowed = {
        Bind.PLACE: (host, path) == (other_host, other_path),
        Bind.HOST: host == other_host,
        Bind.NONE: True,
    }[bind]
    try:
        opened = open_token(token, replace(SETS["oct"], bind=bind), Place(other_host, other_path), TODAY) == b"1"
    except JweError:
        opened = False
    assert opened is allowed


def test_no_exception_of_a_key_reaches_the_caller() -> None:
    assert not issubclass(BadKey, JweError)
    token = _token({"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "epk": {"kty": "EC"}}, bytes(32), bytes(40))
    with pytest.raises(JweError) as caught:
        open_token(token, SETS["P-256"], None, TODAY)
    assert caught.value.__suppress_context__
