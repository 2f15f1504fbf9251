"""The steps by which the keys of a JWK Set are replaced: a key is added, it becomes the primary one, and the one before
is taken out. The command `overcoat keys rotate` makes one step at a time.

Rules of this module:

- The first key of a set is the primary one. A key that was made after it (`iat`) is to follow, any other is an old one;
  a key that does not say when it was made is older than all that do.
- Each step leaves a set with which a policy is right, and with which everything opens that was sealed a step before.
- A new key is made as the primary one is: for the same algorithm, and on the same curve.
- Members that nobody knows, of the set and of its keys, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from proxy.core.jose.keymaterial import BadKey

type Jwk = Mapping[str, Any]


class Step(StrEnum):
    """One step of a rotation."""

    ADD = "add"
    PROMOTE = "promote"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rotation stands.

    Attributes:
        primary: the key that seals.
        following: those that are to follow, the next one first.
        old: those that only open any more, the oldest last.
    """

    primary: Jwk
    following: tuple[Jwk, ...]
    old: tuple[Jwk, ...]

    @property
    def next_step(self) -> Step:
        """The step that comes next."""
        if self.following:
            return Step.PROMOTE
        return Step.RETIRE if self.old else Step.ADD


def standing(keys: Sequence[Jwk]) -> Standing:
    """Return where the rotation of a set stands.

    Args:
        keys: the keys of the set in their order, at least one.
    """
    primary, *others = keys
    following = [key for key in others if _made(key) > _made(primary)]
    old = [key for key in others if _made(key) <= _made(primary)]
    return Standing(primary, tuple(sorted(following, key=_made)), tuple(sorted(old, key=_made, reverse=True)))


def add(keys: Sequence[Jwk], new: Jwk, now: int) -> list[Jwk]:
    """Return the keys with one more, which is to follow.

    Args:
        keys: the keys of the set.
        new: the new key.
        now: seconds since 1970, at which it was made.
    """
    latest = max(map(_made, keys))
    return [*keys, {**new, "iat": max(now, int(latest) + 1)}]


def promote(keys: Sequence[Jwk]) -> list[Jwk]:
    """Return the keys with the next one as the primary one.

    Raises:
        BadKey: there is none that is to follow.
    """
    found = standing(keys)
    if not found.following:
        raise BadKey("no key of the set was made after its primary one: add one first")
    first = found.following[0]
    return [first, *(key for key in keys if key is not first)]


def retire(keys: Sequence[Jwk]) -> list[Jwk]:
    """Return the keys without the oldest one.

    Raises:
        BadKey: there is none that is older than the primary one.
    """
    found = standing(keys)
    if not found.old:
        raise BadKey("no key of the set is older than its primary one: there is nothing to take out")
    return [key for key in keys if key is not found.old[-1]]


def _made(key: Jwk) -> float:
    made = key.get("iat")
    return made if isinstance(made, int | float) else -1
