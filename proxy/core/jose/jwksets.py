"""JWK Sets (RFC 7517, section 5): our own, in files and variables, and those that others publish. The policy file's
reader and the engine make the keys of a key set with it.

Rules of this module:

- Of our own set the order is the meaning: the first key is the primary one. RFC 7517 leaves that to the application.
- Our own set is strict: a key in it that cannot be used is an error. Others publish keys for many purposes: of theirs,
  those that fit are taken, and the rest is left alone.
- Who publishes something secret has lost it: such a set is refused as a whole, and so is one in which two keys that fit
  have the same name.
- No message has key material in it.
"""

from __future__ import annotations

from datetime import date

from proxy.core.jose.encoding import parse_object
from proxy.core.jose.keyformats import members_of_set
from proxy.core.jose.keymaterial import SECRET_MEMBERS, Alg, BadKey, material_of_jwk
from proxy.core.jose.keys import Key, key_of
from proxy.core.jose.profiles import Profile

_NO_SET = "this is no JWK Set: a JSON object in UTF-8 with unique member names, and in it a list, keys"


def keys_of_set(data: bytes, *, alg: Alg, source: str = "", profile: Profile | None = None) -> tuple[Key, ...]:
    """Read a JWK Set of our own.

    Args:
        data: JSON.
        alg: the algorithm that all its keys are for.
        source: where it comes from, for people.
        profile: the profile of the key set.

    Returns:
        The keys in their order; the first is the primary one.

    Raises:
        BadKey: it is no JWK Set, two keys have the same name, or one of them cannot be used.
    """
    keys: list[Key] = []
    for number, members in enumerate(members_of_set(_parsed(data))):
        try:
            key = key_of(material_of_jwk(members), members, alg=alg, source=source, profile=profile)
        except BadKey as error:
            raise BadKey(f"keys[{number}] of the JWK Set: {error}") from None
        if any(key.kid == other.kid for other in keys):
            raise BadKey(f"keys[{number}] of the JWK Set has the kid of an earlier one; each key needs its own")
        keys.append(key)
    return tuple(keys)


def fitting_keys(data: bytes, *, alg: Alg, today: date, kid: str | None = None, source: str = "") -> tuple[Key, ...]:
    """Read a JWK Set that somebody else publishes.

    Args:
        data: JSON.
        alg: the algorithm that the keys are to be for. Those of another kind, for another algorithm (`alg`), or for
            signatures (`use`, `key_ops`) are left alone.
        today: the current day in UTC, for the days of the keys.
        kid: the name of the key that is to seal; None for the first that fits and is good today.
        source: where it comes from, for people.

    Returns:
        The keys that fit, at least one; the one that seals is the first.

    Raises:
        BadKey: it is no JWK Set, holds something secret or two keys of one name, or has no key that fits.
    """
    keys: list[Key] = []
    for members in members_of_set(_parsed(data)):
        if members.get("kty") == "oct" or SECRET_MEMBERS & members.keys():
            raise BadKey("the JWK Set has private or symmetric keys in it, which are no secret any more: none is used")
        try:
            key = key_of(material_of_jwk(members), members, alg=alg, source=source)
        except BadKey:
            continue
        if any(key.kid == other.kid for other in keys):
            raise BadKey("two keys of the JWK Set that fit have the same kid")
        keys.append(key)
    if not keys:
        raise BadKey(f"the JWK Set has no key for {alg}")
    if kid is None:
        return tuple(sorted(keys, key=lambda key: key.expired(today) or key.begins_later(today)))
    if all(key.kid != kid for key in keys):
        raise BadKey(f"the JWK Set has no key for {alg} named {kid!r}")
    return tuple(sorted(keys, key=lambda key: key.kid != kid))


def _parsed(data: bytes) -> dict[str, object]:
    try:
        members = parse_object(data)
    except ValueError:
        raise BadKey(_NO_SET) from None
    if "keys" not in members:
        raise BadKey(_NO_SET)
    return members
