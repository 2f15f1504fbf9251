"""Sealing per body: what the values of one body share, and that no two bodies share anything."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.core.jose import sealing
from proxy.core.jose.encoding import unbase64url
from proxy.core.jose.jwe import JweError, open_token
from proxy.core.jose.keys import Alg, Enc, Key, KeySet, new_key
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import Sealers, Sealing, seal

TODAY = date(2026, 6, 1)
PLACE = Place("api.pay.example", "$.items[*].secret")
KEYS = {
    "P-256": new_key(Alg.ECDH_ES_A256KW, kid="p"),
    "X25519": new_key(Alg.ECDH_ES_A256KW, curve="X25519", kid="x"),
    "RSA": Key("r", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048)),
    "oct": new_key(Alg.A256KW, kid="a"),
}
SETS = {name: KeySet(name, key.alg, key) for name, key in KEYS.items()}
VALUE = b'"as long as no two of it come out the same"'
every_kind = pytest.mark.parametrize("kind", list(SETS))
every_enc = pytest.mark.parametrize("enc", list(Enc))


def header_of(token: str) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(unbase64url(token.partition(".")[0]))
    return header


@every_kind
@every_enc
def test_the_values_of_one_body_share_the_encrypted_key_and_each_has_its_own_iv(kind: str, enc: Enc) -> None:
    keys = replace(SETS[kind], enc=enc)
    one = Sealers().sealing(keys, KEYS[kind], 1.0)
    tokens = [one.seal(VALUE, PLACE) for _ in range(50)]
    assert {open_token(token, keys, PLACE, TODAY) for token in tokens} == {VALUE}
    header, wrapped, *own = zip(*(token.split(".") for token in tokens), strict=True)
    assert (len(set(header)), len(set(wrapped))) == (1, 1)  # the header holds the ephemeral key, if there is one
    assert [len(set(part)) for part in own] == [50, 50, 50]  # IV, ciphertext, tag


@every_kind
def test_no_two_bodies_share_anything(kind: str) -> None:
    sealers, count = Sealers(), sealing._AGREEMENTS
    tokens = [sealers.sealing(SETS[kind], KEYS[kind], 1.0).seal(VALUE, PLACE) for _ in range(count)]
    assert {open_token(token, SETS[kind], PLACE, TODAY) for token in tokens[::17]} == {VALUE}
    header, *rest = zip(*(token.split(".") for token in tokens), strict=True)
    assert [len(set(part)) for part in rest] == [count] * 4
    assert len(set(header)) == (count if kind in ("P-256", "X25519") else 1)


@pytest.mark.parametrize("kind", ["P-256", "X25519"])
def test_a_flood_of_bodies_shares_agreements_and_still_no_content_key(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_AGREEMENTS", 4)
    sealers, count = Sealers(), 2 * sealing._STOCK

    def ephemeral_keys(bodies: int, now: float) -> list[str]:
        tokens = [sealers.sealing(SETS[kind], KEYS[kind], now).seal(VALUE, PLACE) for _ in range(bodies)]
        assert {open_token(token, SETS[kind], PLACE, TODAY) for token in tokens} == {VALUE}
        header, *rest = zip(*(token.split(".") for token in tokens), strict=True)
        assert [len(set(part)) for part in rest] == [bodies] * 4
        return list(header)

    first = ephemeral_keys(count, 1.0)
    assert len(set(first)) == 4  # as many as may be made at once
    assert set(first[4:]) == {first[3]}  # and then the last of them
    assert set(ephemeral_keys(2, 1.2)) == {first[3]}
    later = ephemeral_keys(2, 1.26)  # a quarter of a second: one more
    assert len(set(later)) == 1
    assert set(later).isdisjoint(first)
    assert len(set(ephemeral_keys(9, 2.255))) == 4  # after a second without one there are no more than at first


@every_enc
def test_the_content_key_has_the_length_of_its_enc(enc: Enc) -> None:
    token = seal(VALUE, replace(SETS["oct"], enc=enc), PLACE)
    assert header_of(token)["enc"] == enc.value
    assert len(unbase64url(token.split(".")[1])) == enc.key_bytes + 8  # RFC 3394
    assert enc.key_bytes * 8 == int(enc.value[1:4])


def test_each_place_of_a_body_has_a_header_of_its_own() -> None:
    one = Sealing.alone(SETS["P-256"], KEYS["P-256"])
    places = [Place("a.example", f"$.x{number}") for number in range(sealing._REMEMBERED + 3)] * 2
    for place in places:
        assert open_token(one.seal(VALUE, place), SETS["P-256"], place, TODAY) == VALUE


def test_only_so_many_places_are_remembered_between_bodies() -> None:
    sealers = Sealers()
    for number in range(2 * sealing._REMEMBERED):
        sealers.sealing(SETS["oct"], KEYS["oct"], 1.0).seal(VALUE, Place("a.example", f"$.x{number}"))
    (kept,) = sealers._kept.values()
    assert len(kept._heads) == len(kept.protected) == sealing._REMEMBERED


@pytest.mark.parametrize("later", [6.5, 7.0, 5.4])
def test_past_the_time_what_was_kept_is_forgotten(later: float) -> None:
    sealers, keys = Sealers(), replace(SETS["oct"])
    sealers.sealing(keys, keys.keys[0], 5.0)
    (first,) = sealers._kept.values()
    sealers.sealing(keys, keys.keys[0], 5.5)
    assert list(sealers._kept.values()) == [first]
    sealers.sealing(SETS["P-256"], KEYS["P-256"], later)
    assert [kept.keys for kept in sealers._kept.values()] == [SETS["P-256"]]
    sealers.sealing(keys, keys.keys[0], later)
    assert first not in sealers._kept.values()


def test_each_key_set_has_what_is_its_own() -> None:
    sealers = Sealers()
    for keys in (SETS["P-256"], SETS["oct"], replace(SETS["P-256"])):
        sealers.sealing(keys, keys.keys[0], 5.0)
    assert len(sealers._kept) == 3


def test_what_a_body_was_sealed_with_goes_with_it() -> None:
    one = Sealing.alone(SETS["oct"], KEYS["oct"])
    alive = weakref.ref(one)
    del one
    assert alive() is None


def test_a_token_that_would_be_too_long_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", len(seal(VALUE, SETS["oct"], PLACE)))
    seal(VALUE, SETS["oct"], PLACE)
    with pytest.raises(JweError, match="would have more than"):
        seal(VALUE + b" ", SETS["oct"], PLACE)
