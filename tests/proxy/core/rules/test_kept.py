"""What is kept under a policy is found under that policy alone, is bounded, and goes with it."""

from __future__ import annotations

import gc
import weakref

from proxy.core.rules.kept import Kept
from proxy.core.rules.policy import Policy


def test_what_is_kept_is_found_under_its_policy_alone() -> None:
    kept: Kept[str, int] = Kept()
    one, other = Policy(), Policy()  # the same to the letter
    assert kept.get(one, "a") is None
    assert kept.keep(one, "a", 1) == 1
    assert kept.get(one, "a") == 1
    assert kept.get(one, "b") is None
    assert kept.get(other, "a") is None
    kept.keep(other, "a", 2)
    assert (kept.get(one, "a"), kept.get(other, "a")) == (1, 2)


def test_what_was_kept_first_gives_way() -> None:
    kept: Kept[int, int] = Kept(3)
    policy = Policy()
    for number in range(5):
        kept.keep(policy, number, number)
    assert [kept.get(policy, number) for number in range(5)] == [None, None, 2, 3, 4]


def test_it_goes_with_its_policy() -> None:
    class Value:
        """Something that can be watched."""

    kept: Kept[str, Value] = Kept()
    policy, value = Policy(), Value()
    gone = weakref.ref(policy), weakref.ref(value)
    kept.keep(policy, "a", value)
    del policy, value
    gc.collect()
    assert [each() for each in gone] == [None, None]
