"""Entries are complete once they are made, in another process, too: no request waits for what they need."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from proxy.core.fields.entries import FieldEntry, Match
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, new_key

PLAIN = FieldEntry(
    (parse_selector("$.card"),),
    KeySet("app", Alg.A256KW, new_key(Alg.A256KW, kid="one")),
    name="request[0]",
    inside=(parse_selector("$.text"),),
    match=Match.IGNORE_CASE,
    required=True,
)
GRAPHQL = replace(PLAIN, inside=(), graphql_arguments=frozenset(("ssn",)))


@pytest.mark.parametrize("entry", [PLAIN, GRAPHQL])
def test_another_process_has_the_same(entry: FieldEntry) -> None:
    there = pickle.loads(pickle.dumps(entry))
    assert replace(there, keys=entry.keys) == entry  # a key equals itself only
    assert there.keys.primary.kid == "one"
    marks = (there.marks.selectors, there.marks.inside, there.marks.ignore_case, there.marks.is_strict)
    assert marks == (entry.selectors, entry.inside, entry.match is Match.IGNORE_CASE, True)


@pytest.mark.parametrize(
    ("entry", "needed"),
    [(PLAIN, ["msgspec"]), (GRAPHQL, ["msgspec", "graphql", "proxy.core.fields.graphql"])],
)
def test_what_it_needs_is_loaded_with_it(entry: FieldEntry, needed: list[str]) -> None:
    code = """
import pickle, sys
import proxy.core.fields.bodies, proxy.core.fields.entries
before = set(sys.modules)
pickle.load(sys.stdin.buffer)
print(*(name for name in ("msgspec", "graphql", "proxy.core.fields.graphql") if name in before))
print(*(name for name in ("msgspec", "graphql", "proxy.core.fields.graphql") if name in sys.modules))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(entry), capture_output=True, check=True, timeout=60
    )
    before, after = ended.stdout.decode().split("\n")[:2]
    assert before == ""
    assert after.split() == needed
