"""Names of members, folded: what some receiver takes for the same name is the same."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.fields.automaton import Marks
from proxy.core.fields.jsontext import find_spans
from proxy.core.fields.names import folded
from proxy.core.fields.selectors import parse_selector


def same(one: str, other: str) -> bool:
    return folded(one.encode()) == folded(other.encode())


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ssn", "SSN"),
        ("ssn", "sSn"),
        ("ssn", "ſsn"),  # LATIN SMALL LETTER LONG S: Go's encoding/json folds it
        ("kind", "\u212aind"),  # KELVIN SIGN: likewise
        ("card", "ＣＡＲＤ"),  # full-width letters: whoever normalizes to NFKC
        ("card", "ｃard"),
        ("pin", "PıN"),  # dotless i: its upper case is I, as equalsIgnoreCase compares
        ("pin", "Pİn"),  # I with a dot: its lower case is i, with a dot that some lose
        ("straße", "STRASSE"),
        ("straße", "STRAẞE"),
        ("é", "e\u0301"),
        ("É", "é"),
        ("ΣΑΣ", "σας"),
        ("ﬁeld", "FIELD"),
        ("card_number", "Card_Number"),
    ],
)
def test_these_are_the_same_where_case_does_not_count(name: str, variant: str) -> None:
    assert same(name, variant)
    text = f'{{"{variant}":1, "x":{{"{variant}":2}}}}'
    for selector in (f"$['{name}']", f"$..['{name}']"):
        marks = Marks((parse_selector(selector),), ignore_case=True)
        values = [span.value(text.encode()) for span in find_spans(text.encode(), [marks])]
        assert values == ([b"1", b"2"] if ".." in selector else [b"1"])


@pytest.mark.parametrize(("name", "other"), [("ssn", "ss"), ("ssn", "ss n"), ("card_number", "cardNumber"), ("a", "á")])
def test_these_are_not(name: str, other: str) -> None:
    assert not same(name, other)


def test_every_character_is_what_its_other_cases_and_forms_are() -> None:
    for code in (*range(0xD800), *range(0xE000, sys.maxunicode + 1)):
        one = chr(code)
        once = folded(one.encode())
        assert folded(once) == once, hex(code)
        others = {one.lower(), one.upper(), one.casefold(), unicodedata.normalize("NFKC", one)} - {one}
        for other in others:
            assert folded(other.encode()) == once, (hex(code), other)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
def test_folding_once_is_enough(name: str) -> None:
    once = folded(name.encode())
    assert folded(once) == once
    assert same(name.lower(), name)
    assert same(name.upper(), name)


def test_every_duplicate_is_found_whatever_its_case() -> None:
    text = b'{"ssn":1,"SSN":2,"\\u017fsn":3,"s\\u0053N":4,"ssn2":5}'
    marks = Marks((parse_selector("$.ssn"),), ignore_case=True)
    assert [span.value(text) for span in find_spans(text, [marks])] == [b"1", b"2", b"3", b"4"]
    assert [span.path for span in find_spans(text, [marks])] == ["$.ssn", "$.SSN", r"$['\u017fsn']", "$.sSN"]


def test_jobs_that_ignore_case_and_such_that_do_not_walk_together() -> None:
    text = b'{"A":1,"a":2,"B":3,"b":4}'
    exact, loose = Marks((parse_selector("$.a"),)), Marks((parse_selector("$['a','b']"),), ignore_case=True)
    assert [(span.value(text), span.job) for span in find_spans(text, [exact, loose])] == [
        (b"1", 1),
        (b"2", 0),
        (b"3", 1),
        (b"4", 1),
    ]
