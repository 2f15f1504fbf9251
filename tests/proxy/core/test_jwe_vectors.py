"""Sealing and opening, held against what others have published: RFC 7518, RFC 7520 and Wycheproof."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from proxy.core.jose.agreement import concat_kdf
from proxy.core.jose.encoding import base64url, unbase64url
from proxy.core.jose.jwe import JweError, open_token
from proxy.core.jose.keys import Alg, Enc, KeySet, load_key, new_key

VECTORS = Path(__file__).resolve().parents[3].parent / "shared" / "vectors"
needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="the shared test vectors are not beside the checkout")

TODAY = date(2026, 6, 1)
SETS = [KeySet("set", alg, new_key(alg), enc=enc) for alg in Alg for enc in Enc]


def test_the_key_derivation_gives_the_key_of_rfc_7518_appendix_c() -> None:
    shared = bytes.fromhex("9e56d91d817135d372834283bf84269cfb316ea3da806a48f6daa7798cfe90c4")
    assert base64url(concat_kdf(shared, "A128GCM", 16, b"Alice", b"Bob")) == "VqqN6vgjbSBcIijNcacQGg"


def _groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = json.loads((VECTORS / "wycheproof_jwe.json").read_text())["testGroups"]
    return groups


@needs_vectors
def test_every_wycheproof_case_is_opened_if_it_is_valid_and_ours_and_refused_otherwise() -> None:
    outcomes: Counter[str] = Counter()
    opened = {}
    for group in _groups():
        for case in group["tests"]:
            try:
                private = group["private"]
                key = load_key(json.dumps(private).encode(), alg=Alg(private["alg"]))
            except ValueError:  # the key is for an algorithm that is not ours: no set of ours may open its tokens
                sets = SETS
            else:
                sets = [*(KeySet("own", key.alg, key, enc=enc) for enc in Enc), *SETS]
            for keys in sets:
                try:
                    plaintext = open_token(case["jwe"], keys, None, TODAY)
                except JweError:
                    continue
                assert plaintext == bytes.fromhex(case["pt"])
                assert case["enc"] == keys.enc.value
                outcomes[f"{case['result']} opened"] += 1
                opened[case["tcId"]] = keys.enc.value
                break
            else:
                outcomes[f"{case['result']} refused"] += 1
    assert outcomes == {"invalid refused": 74, "valid refused": 58, "valid opened": 7}
    # A256KW, ECDH-ES+A256KW and RSA-OAEP-256 each with both, and of RSA-OAEP-256 one more
    assert Counter(opened.values()) == {"A256GCM": 3, "A128GCM": 4}
    assert {29, 66, 90} <= opened.keys()


@needs_vectors
def test_every_valid_wycheproof_case_of_our_algorithms_is_refused_only_for_its_enc() -> None:
    seen: Counter[str] = Counter()
    for group in _groups():
        if group["private"]["alg"] not in set(Alg):
            continue
        key = load_key(json.dumps(group["private"]).encode(), alg=Alg(group["private"]["alg"]))
        for case in group["tests"]:
            for enc in Enc:
                if (
                    case["result"] == "valid"
                    and case["enc"] in ("A128GCM", "A192GCM", "A256GCM")
                    and case["enc"] != enc
                ):
                    with pytest.raises(JweError, match=f"enc: must be {enc}"):
                        open_token(case["jwe"], KeySet("own", key.alg, key, enc=enc), None, TODAY)
                    seen[case["enc"]] += 1
    assert seen == {"A128GCM": 4, "A192GCM": 4, "A256GCM": 3}


@needs_vectors
def test_no_set_of_ours_opens_a_token_of_rfc_7520() -> None:
    cases = json.loads((VECTORS / "rfc7520_jwe.json").read_text())["tests"]
    tokens = [case["compact"] for case in cases if "compact" in case]
    assert len(tokens) == 5
    for token in tokens:
        for keys in SETS:
            with pytest.raises(JweError, match="header parameter alg"):
                open_token(token, keys, None, TODAY)


@needs_vectors
def test_the_key_agreement_of_rfc_7520_section_5_4_comes_out_with_our_key_derivation() -> None:
    [group] = [group for group in _groups() if group["tests"][0]["comment"] == "Figure117"]
    case, private = group["tests"][0], group["private"]
    protected, wrapped, iv, ciphertext, tag = case["jwe"].split(".")
    epk = json.loads(unbase64url(protected))["epk"]

    def number(jwk: Mapping[str, str], name: str) -> int:
        return int.from_bytes(unbase64url(jwk[name]))

    ours = ec.derive_private_key(number(private, "d"), ec.SECP384R1())
    theirs = ec.EllipticCurvePublicNumbers(number(epk, "x"), number(epk, "y"), ec.SECP384R1()).public_key()
    wrapping_key = concat_kdf(ours.exchange(ec.ECDH(), theirs), "ECDH-ES+A128KW", 16)
    cek = aes_key_unwrap(wrapping_key, unbase64url(wrapped))
    sealed = unbase64url(ciphertext) + unbase64url(tag)
    assert AESGCM(cek).decrypt(unbase64url(iv), sealed, protected.encode()).hex() == case["pt"]
