"""The right part of a wrong policy file: as much as there is, each part of it where it stands in the file."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.policyfile.model.whole import PolicyFile
from proxy.policyfile.usable import Usable, usable_part
from proxy.policyfile.yamltext import UNUSABLE, Steps

PINS = ["sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "sha256/ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A="]
WHEN = {"methods": ["POST", "PUT"], "paths": ["/v1/**", "/v2"]}
RIGHT: dict[str, Any] = {
    "version": 1,
    "listen": ["forward://127.0.0.1:1", "socks5://127.0.0.1:2", "reverse://127.0.0.1:3?to=https://a.example"],
    "admin": "127.0.0.1:4",
    "mode": "observe",
    "defaults": {"plain_http": "reject", "https": "inspect"},
    "trust": {"roots": "roots.pem", "min_tls": "1.3"},
    "limits": {"held_body": 2048, "idle_seconds": 5},
    "destinations": {"allow": ["private", "127.0.0.1"], "egress": "listed"},
    "clients": {
        "allow": ["loopback", "10.0.0.0/8"],
        "users": [{"name": name, "password_hash": {"env": name.upper()}} for name in "abc"],
    },
    "upstream_proxy": {
        "url": "https://proxy.example:1",
        "credentials": {"file": "c"},
        "pins": {"any_of": list(PINS)},
        "direct": ["a.example", "b.example"],
    },
    "keys": {
        "pay": {
            "alg": "A256KW",
            "primary": {"kid": "a", "file": "a", "not_after": date(2030, 1, 1)},
            "older": [{"kid": "b", "file": "b"}, {"key": {"env": "C"}}],
            "bind": "host",
        },
        "app": {"alg": "A256KW", "primary": {"key": {"file": "d"}}},
    },
    "rules": [
        {"name": "one", "hosts": ["a.example", "*.b.example"], "plain_http": "upgrade", "https_port": 8443},
        {
            "name": "two",
            "hosts": ["c.example", "d.example:1", "e.example"],
            "pins": {"any_of": list(PINS), "expires": date(2030, 1, 1)},
            "request": [
                {"encrypt": ["$.a", "$.b"], "key": "pay", "when": copy.deepcopy(WHEN)},
                {"encrypt": ["$..c"], "key": "app"},
                {"encrypt": ["$.d[0]"], "key": "app"},
            ],
            "response": [{"decrypt": ["$.e", "$.f"], "key": "pay", "when": copy.deepcopy(WHEN)}],
        },
        {"name": "three", "hosts": ["f.example:2"], "raw_tcp": "allow"},
        {"name": "four", "hosts": ["g.example"], "https": "reject"},
    ],
}
WHOLE = PolicyFile.model_validate(RIGHT)


def places(tree: Any, at: Steps = ()) -> dict[Steps, Any]:
    """Return all that stands in a tree, by its place."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = {(*at, step): value for step, value in items}
    for place, value in list(found.items()):
        found |= places(value, place)
    return found


PLACES = sorted(places(RIGHT), key=str)


def found_at(usable: Usable, place: Steps) -> object:
    """Return what the usable part has of a place in the file.

    Raises:
        LookupError: it has nothing of it.
        AttributeError: the same.
    """
    found: Any = usable.file
    at: Steps = ()
    for step in place:
        if isinstance(step, int):
            found = dict(usable.numbered(at, found))[step]
        else:
            found = found[step] if isinstance(found, dict) else getattr(found, step)
        at = (*at, step)
    return found


def is_part(inner: Steps, outer: Steps) -> bool:
    return inner[: len(outer)] == outer


def test_of_what_is_right_nothing_is_taken_out() -> None:
    usable = usable_part(RIGHT)
    assert usable == Usable(WHOLE)
    assert not any(usable.is_about_wrong(place) for place in PLACES)


@pytest.mark.parametrize("data", [None, "text", [RIGHT], 1, UNUSABLE])
def test_of_what_is_no_mapping_nothing_is_left(data: object) -> None:
    assert usable_part(data).file == PolicyFile(version=1)


_NEEDED = frozenset(("alg", "primary", "key", "file", "env", "password_hash"))  # what lacks one of these is nothing
_ANYTHING = st.sampled_from([UNUSABLE, 1.5, "\x00", {"nonsense": 1}, [1.5], None]).map(copy.copy)


def damaged(damages: list[tuple[Steps, object]]) -> tuple[dict[str, Any], list[Steps]]:
    """Return the right policy with something else in some places, and these places: none is a part of another."""
    data = copy.deepcopy(RIGHT)
    done: list[Steps] = []
    for place, junk in damages:
        if any(is_part(place, other) or is_part(other, place) for other in done):
            continue
        container: Any = data
        for step in place[:-1]:
            container = container[step]
        container[place[-1]] = junk
        done.append(place)
    return data, done


def outermost(of: Iterable[Steps]) -> set[Steps]:
    every = set(of)
    return {each for each in every if not any(is_part(each, other) and each != other for other in every)}


def to_take_out(damages: list[Steps]) -> set[Steps]:
    """Return the least that has to go with what is damaged: what needs it, and lists of which nothing is left."""
    out = set(damages)
    while True:
        above = {place[:-1] for place in out if place[-1] in _NEEDED}
        for place in {place[:-1] for place in out if isinstance(place[-1], int)}:
            if all((*place, index) in out for index in range(len(places(RIGHT)[place]))):
                above.add(place)
        if above <= out:
            return outermost(out)
        out |= above


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from([UNUSABLE, 1.5])), min_size=1, max_size=6))
def test_of_what_is_damaged_as_little_as_can_be_is_taken_out(damages: list[tuple[Steps, object]]) -> None:
    data, done = damaged(damages)
    assert outermost(usable_part(data).wrong) == to_take_out(done)


@given(st.lists(st.tuples(st.sampled_from(PLACES), _ANYTHING), min_size=1, max_size=6))
def test_what_is_right_beside_the_damage_stays_as_it_is_and_where_it_is(damages: list[tuple[Steps, object]]) -> None:
    data, done = damaged(damages)
    before = copy.copy(places(data))
    usable = usable_part(data)
    assert places(data).keys() == before.keys()  # the file's own data is left alone
    for place in PLACES:
        if any(is_part(place, each) for each in (*usable.wrong, *done)):
            continue
        value = found_at(usable, place)
        if not isinstance(places(RIGHT)[place], dict | list):
            assert value == found_at(Usable(WHOLE), place)
    for index, rule in usable.numbered(("rules",), usable.file.rules or ()):  # what stands in has places, too
        for name, items in (("hosts", rule.hosts), ("request", rule.request or ()), ("response", rule.response or ())):
            assert len(list(usable.numbered(("rules", index, name), items))) == len(items)


_leaves = st.sampled_from([UNUSABLE, None, True, 1, 1.5, "", "allow", "a.example", "$.a", "A256KW", "x", PINS[0]])
_names = st.sampled_from(sorted({str(step) for place in PLACES for step in place if isinstance(step, str)}))
_trees = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=5), max_leaves=20
)


@given(st.dictionaries(_names, _trees))
def test_of_any_data_some_part_is_left_and_something_is_wrong_if_it_is_not_all(data: dict[str, object]) -> None:
    try:
        PolicyFile.model_validate(data)
    except ValidationError:
        assert usable_part(data).wrong
    else:
        assert not usable_part(data).wrong


@given(st.data())
def test_a_right_policy_with_anything_in_any_place_still_has_a_right_part(data: st.DataObject) -> None:
    tree = copy.deepcopy(RIGHT)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from([*sorted(places(tree), key=str), ("mode",)]))
        container: Any = tree
        for step in place[:-1]:
            container = container[step]
        if place[-1] in container and isinstance(container, dict) and data.draw(st.booleans()):
            del container[place[-1]]  # what is left out may be needed
        else:
            container[place[-1]] = data.draw(_trees)
    usable = usable_part(tree)
    in_file = places(tree)
    for at in {place[:-1] for place in in_file if isinstance(place[-1], int)}:
        if not any(is_part(at, wrong) for wrong in usable.wrong):
            left = [index for index in range(len(in_file[at])) if (*at, index) not in usable.wrong]
            items: Any = found_at(usable, at)
            assert [index for index, _ in usable.numbered(at, items)] == left


@pytest.mark.parametrize(
    ("wrong", "steps", "is_about"),
    [
        (("rules", 1), ("rules", 1), True),
        (("rules", 1), ("rules", 1, "name"), True),
        (("rules", 1, "name"), ("rules", 1), True),
        (("rules", 1), ("rules", 2), False),
        (("rules", 1, "name"), ("rules", 1, "hosts"), False),
    ],
)
def test_what_holds_something_wrong_or_is_part_of_it_is_about_that(wrong: Steps, steps: Steps, is_about: bool) -> None:
    assert Usable(WHOLE, {wrong}).is_about_wrong(steps) is is_about
