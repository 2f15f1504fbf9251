"""The steps of a rotation, and what each leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jose.keymaterial import BadKey
from proxy.core.jose.rotation import Jwk, Standing, Step, add, promote, retire, standing

type Made = dict[str, Any]


def key(kid: str, iat: int | None = None) -> Made:
    """A key that says when it was made, or does not."""
    return {"kid": kid, **({} if iat is None else {"iat": iat})}


def kids(keys: list[Jwk]) -> list[str]:
    return [each["kid"] for each in keys]


def test_a_rotation_goes_round() -> None:
    keys: list[Jwk] = [key("one")]
    assert standing(keys).next_step is Step.ADD
    keys = add(keys, key("two"), 1000)
    assert kids(keys) == ["one", "two"]
    assert keys[1]["iat"] == 1000
    assert standing(keys) == Standing(keys[0], (keys[1],), ())
    assert standing(keys).next_step is Step.PROMOTE
    keys = promote(keys)
    assert kids(keys) == ["two", "one"]
    assert standing(keys).next_step is Step.RETIRE
    keys = retire(keys)
    assert kids(keys) == ["two"]
    assert standing(keys).next_step is Step.ADD


def test_a_key_that_is_added_is_newer_than_all_even_within_a_second() -> None:
    keys = add([key("one", 1000), key("two", 2000)], key("three"), 1500)
    assert keys[2]["iat"] == 2001


def test_the_next_is_the_one_that_was_made_first_and_the_oldest_goes() -> None:
    keys: list[Jwk] = [key("p", 5), key("b", 7), key("a", 6), key("x", 3), key("y", 1), key("z")]
    assert kids(list(standing(keys).following)) == ["a", "b"]
    assert kids(list(standing(keys).old)) == ["x", "y", "z"]
    assert kids(promote(keys)) == ["a", "p", "b", "x", "y", "z"]
    assert kids(retire(keys)) == ["p", "b", "a", "x", "y"]


def test_there_is_nothing_to_follow_and_nothing_to_take_out() -> None:
    with pytest.raises(BadKey, match="add one first"):
        promote([key("one", 1), key("old")])
    with pytest.raises(BadKey, match="nothing to take out"):
        retire([key("one", 1), key("next", 2)])


@given(st.lists(st.sampled_from(Step), max_size=12))
def test_what_was_sealed_a_step_before_still_opens(steps: list[Step]) -> None:
    keys: list[Jwk] = [key("0")]
    for number, step in enumerate(steps):
        sealed = keys[0]["kid"]
        try:
            keys = (
                add(keys, key(str(number + 1)), 7)
                if step is Step.ADD
                else (promote(keys) if step is Step.PROMOTE else retire(keys))
            )
        except BadKey:
            continue
        assert sealed in kids(keys)
        assert len(set(kids(keys))) == len(keys) >= 1
