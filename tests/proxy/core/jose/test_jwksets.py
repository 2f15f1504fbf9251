"""JWK Sets: our own, whose order counts, and those of others, of which only what fits is taken."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jose.jwksets import fitting_keys, keys_of_set
from proxy.core.jose.keys import Alg, BadKey, new_key
from proxy.core.jose.keywriting import thumbprint, to_jwk

ECDH, RSA, AES = Alg.ECDH_ES_A256KW, Alg.RSA_OAEP_256, Alg.A256KW

TODAY = date(2027, 1, 15)

ONE, TWO = new_key(ECDH, kid="one"), new_key(ECDH, curve="X25519", kid="two")
RSA_KEY = new_key(RSA, kid="rsa")
A, B = new_key(AES, kid="a"), new_key(AES, kid="b")

type Members = dict[str, object]


def public(key: object = ONE, **changes: object) -> Members:
    """A public JWK with some members changed; None takes one away."""
    members = {**to_jwk(key, private=False), **changes}  # type: ignore[arg-type]  # a Key, or the test itself fails
    return {name: value for name, value in members.items() if value is not None}


def a_set(*keys: Members) -> bytes:
    """A JWK Set."""
    return json.dumps({"keys": list(keys), "note": "ignored"}).encode()


class TestOurOwn:
    def test_its_keys_are_read_in_their_order(self) -> None:
        keys = keys_of_set(a_set(dict(to_jwk(B, private=True)), dict(to_jwk(A, private=True))), alg=AES, source="here")
        assert [key.kid for key in keys] == ["b", "a"]
        assert {key.source for key in keys} == {"here"}

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(b"", "no JWK Set", id="empty"),
            pytest.param(json.dumps(public()).encode(), "no JWK Set", id="a single JWK"),
            pytest.param(b'{"keys": []}', "has 0 keys", id="no key"),
            pytest.param(a_set(public(), public(RSA_KEY)), "keys[1] of the JWK Set: the JWK's alg", id="another alg"),
            pytest.param(
                a_set(public(), public(TWO, kid="one")), "keys[1] of the JWK Set has the kid", id="a kid twice"
            ),
            pytest.param(a_set(public(use="sig")), "keys[0] of the JWK Set: the JWK's use", id="one that signs"),
        ],
    )
    def test_what_cannot_be_used_is_an_error(self, data: bytes, message: str) -> None:
        with pytest.raises(BadKey, match=re.escape(message)):
            keys_of_set(data, alg=ECDH)


class TestOfOthers:
    def test_the_keys_that_fit_are_taken_and_the_first_of_them_seals(self) -> None:
        data = a_set(
            public(RSA_KEY, alg=None),
            public(use="sig"),
            public(alg="ECDH-ES"),
            public(key_ops=["verify"]),
            public(crv="P-384"),
            {"kty": "unknown"},
            {},
            public(x="?"),
            public(TWO, alg=None, use=None),
            public(),
        )
        keys = fitting_keys(data, alg=ECDH, today=TODAY)
        assert [key.kid for key in keys] == ["two", "one"]
        assert not any(key.can_open for key in keys)
        assert [key.kid for key in fitting_keys(data, alg=RSA, today=TODAY)] == ["rsa"]

    def test_a_key_without_a_name_is_called_by_its_thumbprint(self) -> None:
        (key,) = fitting_keys(a_set(public(kid=None)), alg=ECDH, today=TODAY)
        assert key.kid == thumbprint(ONE)

    def test_the_one_that_is_named_seals(self) -> None:
        data = a_set(public(), public(TWO))
        assert [key.kid for key in fitting_keys(data, alg=ECDH, today=TODAY, kid="two")] == ["two", "one"]
        assert [key.kid for key in fitting_keys(data, alg=ECDH, today=TODAY, kid="one")] == ["one", "two"]

    def test_one_that_is_good_today_goes_before_those_that_are_not(self) -> None:
        first, later, ended = public(), public(TWO, nbf=2_000_000_000), public(TWO, kid="old", exp=1_000_000_000)
        assert [key.kid for key in fitting_keys(a_set(later, ended, first), alg=ECDH, today=TODAY)] == [
            *("one", "two", "old")
        ]
        assert fitting_keys(a_set(first, later), alg=ECDH, today=TODAY, kid="two")[0].kid == "two"

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(b"<html>", "no JWK Set", id="no JSON"),
            pytest.param(b'{"keys": [], "keys": []}', "no JWK Set", id="a member twice"),
            pytest.param(b"{}", "no JWK Set", id="no keys"),
            pytest.param(b'{"keys": [1]}', "a list of JWKs", id="no JWK"),
            pytest.param(a_set(*[{}] * 65), "has 65 keys", id="too many"),
            pytest.param(a_set(public(RSA_KEY)), "no key for ECDH-ES+A256KW", id="none that fits"),
            pytest.param(a_set(public(), dict(to_jwk(TWO, private=True))), "private or symmetric", id="a private key"),
            pytest.param(a_set(public(), {"kty": "oct", "k": "AAAA"}), "private or symmetric", id="a symmetric key"),
            pytest.param(a_set(public(), {"kty": "oct"}), "private or symmetric", id="a symmetric key without k"),
            pytest.param(a_set(public(), public(RSA_KEY, p="AA")), "private or symmetric", id="a prime"),
            pytest.param(a_set(public(), public(TWO, kid="one")), "the same kid", id="two of one name"),
        ],
    )
    def test_what_cannot_be_trusted_is_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(BadKey, match=re.escape(message)):
            fitting_keys(data, alg=ECDH, today=TODAY)

    def test_two_of_one_name_of_which_one_fits_are_no_matter(self) -> None:
        assert len(fitting_keys(a_set(public(), public(RSA_KEY, kid="one")), alg=ECDH, today=TODAY)) == 1

    def test_a_name_that_no_key_has_is_an_error(self) -> None:
        with pytest.raises(BadKey, match="no key for ECDH-ES\\+A256KW named 'three'"):
            fitting_keys(a_set(public()), alg=ECDH, today=TODAY, kid="three")

    @given(
        st.tuples(st.integers(0, 400), st.binary(max_size=4)).map(
            lambda change: (good := a_set(public(), public(TWO)))[: change[0]] + change[1] + good[change[0] + 1 :]
        )
    )
    def test_damage_is_read_or_refused_but_nothing_else(self, data: bytes) -> None:
        with suppress(BadKey):
            assert fitting_keys(data, alg=ECDH, today=TODAY)
