"""Wrapping many keys at once gives what wrapping each alone gives (RFC 3394)."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jose.keywrap import wrap, wrap_all


def test_the_rfcs_own_vector() -> None:
    # RFC 3394, section 4.6: 256 bits of key data with a 256-bit key.
    wrapping = bytes(range(32))
    key = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    assert wrap(wrapping, key) == bytes.fromhex(wrapped)
    assert wrap_all(wrapping, [key]) == [bytes.fromhex(wrapped)]


def octets(*lengths: int) -> st.SearchStrategy[bytes]:
    return st.sampled_from(lengths).flatmap(lambda length: st.binary(min_size=length, max_size=length))


@given(
    octets(16, 24, 32),
    st.sampled_from([16, 32]).flatmap(lambda length: st.lists(octets(length), min_size=1, max_size=40)),
)
def test_as_if_each_were_wrapped_alone(wrapping: bytes, keys: list[bytes]) -> None:
    wrapped = wrap_all(wrapping, keys)
    assert wrapped == [aes_key_wrap(wrapping, key) for key in keys]
    assert wrapped == [wrap(wrapping, key) for key in keys]
    assert [aes_key_unwrap(wrapping, each) for each in wrapped] == keys


@pytest.mark.parametrize("lengths", [(), (0,), (24,), (31,), (33,), (64,), (32, 16), (32, 33)])
def test_a_key_of_another_length_is_refused(lengths: tuple[int, ...]) -> None:
    keys = [bytes(length) for length in lengths]
    with pytest.raises(ValueError, match="16 or 32 bytes"):
        wrap_all(bytes(32), keys)
    if len(keys) == 1:
        with pytest.raises(ValueError, match="16 or 32 bytes"):
            wrap(bytes(32), keys[0])
