"""The quick walker against the plain one: on generated and mutated texts both find the same, and refuse the same."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.fields import plainwalk, quickwalk, spans
from proxy.core.fields.automaton import Marks, automaton_of
from proxy.core.fields.selectors import Segment, Selector, parse_selector
from proxy.core.fields.spans import Found, NotJson, TooMuchSelected


def marks(*selectors: str, ignore_case: bool = False, inside: Sequence[str] = ()) -> Marks:
    return Marks(tuple(map(parse_selector, selectors)), tuple(map(parse_selector, inside)), ignore_case)


JOBS: list[tuple[Marks, ...]] = [
    (marks("$.a.b", "$.a.c", "$.b", "$['é']"),),
    (marks("$.a.b"), marks("$.a"), marks("$.a.b.c", "$.b.c")),
    (marks("$..a"), marks("$.b[*].c", "$..b..c")),
    (marks("$..['a','']", "$.*.b", "$.c[1].a", "$.c[1:].b"),),
    (marks("$.a.*", "$.b[*]", "$..c[0]"),),
    (marks("$..a", "$.b.c", ignore_case=True), marks("$..c")),
    (marks("$..é", "$..strasse", ignore_case=True),),
    (marks("$..b", inside=["$.a"]), marks("$.c", inside=["$.a", "$..b"]), marks("$.b.c")),
    (marks("$.a[*].b", "$.*.c.a", "$..*.b"),),
]
NAMES = ["a", "b", "c", "", "é", "A", "Ａ", "B", "x", "STRASSE", "straße", "a\\", 'a"b', "\U0001f600", "K", "É"]
SCALARS = ["1", "-0.5e+3", "true", "null", '""', '"a"', '"b\\""', '"\\\\"', '"c\\"b\\":1"', '"[{"', '"}"', '"é\\u00e9"']


def texts(depth: int = 3) -> st.SearchStrategy[str]:
    blank = st.sampled_from(["", "", "", " ", "\n\t "])
    name = st.builds(spelled, st.sampled_from(NAMES), st.integers(0, 7))
    scalar = st.sampled_from(SCALARS)

    def containers(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        element = st.builds("{}{}{}".format, blank, value, blank)
        member = st.builds("{}{}{}:{}{}".format, blank, name, blank, blank, value)
        held = st.builds(json.dumps, value)  # a text within a string
        return st.one_of(
            st.builds("[{}]".format, st.lists(element, max_size=4).map(",".join)),
            st.builds("{{{}}}".format, st.lists(member, max_size=5).map(",".join)),
            held,
        )

    return st.recursive(scalar, containers, max_leaves=24)


def spelled(name: str, how: int) -> str:
    """Write a name as a JSON string, one time in three with its first character as an escape."""
    if how < 2 and name and name[0] < "\u0080":
        return f'"\\u{ord(name[0]):04x}{json.dumps(name[1:])[1:]}'
    return json.dumps(name, ensure_ascii=how < 4)


def found_by(text: bytes, jobs: tuple[Marks, ...], *, quick: bool) -> Any:
    """Return what one walker finds: the values, or that the text is refused; None if the quick one leaves it alone."""
    found = Found(text, automaton_of(jobs))
    try:
        if not quick:
            text.decode()
            plainwalk.walk(found)
        elif not quickwalk.is_json(text) or not quickwalk.walk(found):
            return None
    except (NotJson, UnicodeDecodeError):
        return "no JSON"
    except TooMuchSelected:
        return "too much"
    return found.spans, found.holders


def agree(text: bytes, jobs: tuple[Marks, ...]) -> bool:
    """Tell whether the quick walker has found something, which must be what the plain one finds."""
    quick = found_by(text, jobs, quick=True)
    if quick is None:
        return False
    assert quick == found_by(text, jobs, quick=False)
    return True


@settings(max_examples=400)
@given(texts(), st.sampled_from(JOBS))
@example('{"a":{"b":1,"b":2},"a":{"c":{}}}', JOBS[0])
@example('{"a":{"b":[[[[[[1]]]]]]}}', JOBS[0])
@example('{"":{"":""}}', JOBS[3])
@example(' {"x\\"b":{"b":{"a":1}}} ', JOBS[2])
@example('[[{"b":[{"c":{"c":1}}]}]]', JOBS[2])
@example('{"\\u0061":{"b":1}}', JOBS[5])
@example('{"x":"a" ,"a" : "b"}', JOBS[2])
def test_both_find_the_same(text: str, jobs: tuple[Marks, ...]) -> None:
    agree(text.encode(), jobs)


@settings(max_examples=400)
@given(texts(), st.sampled_from(JOBS), st.data())
def test_both_agree_about_a_text_with_bytes_changed(text: str, jobs: tuple[Marks, ...], data: st.DataObject) -> None:
    body = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        new = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"]", b",", b":", b"\0", b"\xff", b"\x1f", b"0", b"u"])
        )
        body[at : at + data.draw(st.integers(0, 2))] = new
    agree(bytes(body), jobs)


PIECES = [
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b'"', b"\\", b"'", b"/**/", b"\0", b"\x0b", b"0", b"-", b"1", b".5"),
    *(b"e+1", b"true", b"nul", b"NaN", b"-Infinity", b"[]", b"{}", b'{"a":1}', b'"a"', b'"a":', b"\xc3\xa9", b"\xc3"),
    *(b"\\n", b"\\u00e9", b"\\ud83d", b"\\ude00", b"\\u0000", b"\\\\u0000", b"\\u12", b"\\x", b"\xef\xbb\xbf"),
    *(b"01", b"1e999", b"9" * 400, b"\x7f", b"\xed\xa0\x80", b"+1", b"1.", b".1", b"tru", b"\x1f", b"\xc2\x85"),
]


def test_msgspec_is_never_laxer() -> None:
    """What it takes, the plain walker takes, too, but for NUL in names: on 30,000 texts, half of them broken."""
    chance = random.Random(17)
    decode = msgspec.json.Decoder(msgspec.Raw).decode
    taken = 0
    for number in range(30_000):
        text = b"".join(chance.choices(PIECES, k=chance.randint(1, 7)))
        if number % 2:
            text = b'{"a":[' + text + b'],"b":{"' + chance.choice(PIECES) + b'":"' + chance.choice(PIECES) + b'"}}'
        try:
            decode(text)
            text.decode()
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        taken += 1
        if found_by(text, (), quick=False) == "no JSON":
            assert b"\\u0000" in text, text
            assert found_by(text, (marks("$.no"),), quick=True) is None, text
    assert taken > 500


@pytest.mark.parametrize(
    ("text", "jobs"),
    [
        (b'{"a":{"b":1,"c":[2]},"b":null}', JOBS[0]),
        (b'{"a":{"b":1},"b":{"c":[2]}}', JOBS[1]),
        (b'{"b":1,"x":0,"a":{"c":2,"b":3}}', JOBS[0]),
        (b'{"x":{"a":1},"b":[{"c":1},2]}', JOBS[2]),
        (b'{"x":{"b":1},"c":[1,{"a":1,"b":2}]}', JOBS[3]),
        (b'{"A":1,"b":{"C":2,"c":3}}', JOBS[5]),
        (b'{"x":{"STRASSE":1}}', JOBS[6]),
        ('{"x":{"\uff21":1,"b":{}}}'.encode(), JOBS[5]),
        (rb'{"a":"{\"b\":1}"}', JOBS[7]),
        (b'{"a":{"b":1},"a":{"b":2}}', JOBS[0]),
        (rb'{"\u0061":{"b":1}}', JOBS[0]),
        (b'[{"a":1}]', JOBS[2]),
    ],
)
def test_the_quick_one_does_find_these(text: bytes, jobs: tuple[Marks, ...]) -> None:
    assert agree(text, jobs)
    found, holders = found_by(text, jobs, quick=True)
    assert found or holders


@pytest.mark.parametrize(
    "text", [b"", b" ", b'{"a":1}}', b'{"a":"\xff"}', rb'{"a\u0000":1}', rb'["\ud800"]', b"[" * 100_000, b"NaN"]
)
def test_the_quick_one_leaves_to_the_plain_one_what_is_no_json_or_read_differently(text: bytes) -> None:
    assert found_by(text, JOBS[0], quick=True) is None


@pytest.mark.parametrize("name", ["50%", "%s", "%%", "%\x1f", "{0}", "\\1", "(?:", "a|b", "[x]"])
def test_a_name_is_only_a_name_whatever_it_would_mean_to_python(name: str) -> None:
    text = json.dumps({"x": {"y": 1}, name: 2, "z": [3]}).encode()
    found = Found(text, automaton_of((Marks((Selector("$", (Segment(False, (name,)),)),)),)))
    assert quickwalk.walk(found)
    assert [text[span.start : span.end] for span in found.spans] == [b"2"]


@pytest.mark.parametrize("selector", ["$", "$.*", "$..*", "$[0]", "$[1:]", "$..[-1]", "$.a[-1].b", "$.a[::-1].b"])
def test_the_quick_one_leaves_to_the_plain_one_where_names_do_not_lead(selector: str) -> None:
    assert found_by(b'{"a":[1]}', (marks(selector),), quick=True) is None


@pytest.mark.parametrize("text", [b"1", b' "a"', b"null", b"[]", b" {} ", b"[1]"])
def test_in_what_has_no_members_nothing_is_found(text: bytes) -> None:
    assert found_by(text, JOBS[0], quick=True) == ([], [])


def test_the_limits_are_those_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'[{"a":1},{"a":2},{"a":3}]'
    monkeypatch.setattr(spans, "MAX_PATHS", len("$[*].a") * 3)
    assert len(found_by(text, JOBS[2], quick=True)[0]) == 3
    monkeypatch.setattr(spans, "MAX_PATHS", len("$[*].a") * 3 - 1)
    assert found_by(text, JOBS[2], quick=True) == "too much" == found_by(text, JOBS[2], quick=False)


def test_more_places_than_one_expression_has_are_found_one_by_one() -> None:
    names = [f"n{number}" for number in range(quickwalk._MOST_LEAVES + 1)]
    text = json.dumps(dict.fromkeys(names, 1)).encode()
    jobs = (marks(*(f"$.{name}" for name in names)),)
    assert agree(text, jobs)
    assert len(found_by(text, jobs, quick=True)[0]) == len(names)
    assert quickwalk._known_places(automaton_of(jobs)) is None


def test_should_the_parsers_disagree_the_plain_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickwalk, "is_json", lambda text: True)
    for text in (b'{"a":[1}', b'{"a"', b'{"a":1', b'[{"x":'):
        for jobs in (JOBS[0], JOBS[2]):
            assert found_by(text, jobs, quick=True) in (None, "no JSON")


LONG = b" " * quickwalk._LONG


@pytest.mark.parametrize(
    ("text", "jobs", "may"),
    [
        (b'{"a":{"x":1}}', JOBS[0], True),
        (b'{"x":{"x":1,"y":"z\xc3\xa9"}}', JOBS[0], False),
        (rb'{"x":"\n"}', JOBS[2], False),
        (rb'{"x":"\u0061"}', JOBS[2], True),
        (b'{"x":1}', (marks("$['a/b']", "$.c"),), False),
        (rb'{"x":"\/"}', (marks("$['a/b']", "$.c"),), True),
        (b'{"x":"a"}', JOBS[2], True),
        (b'{"x":1,"C":2}', (marks("$.c"),), False),
        (b'{"x":1,"C":2}', (marks("$.c", ignore_case=True),), True),
        (b'{"x":1,"D":2}', (marks("$.c", ignore_case=True),), False),
        (b'{"x":1,"\xc3\xa9":2}', (marks("$.c", ignore_case=True),), True),
        (b'{"x":1}', (marks("$.*"),), True),
    ],
)
def test_a_long_text_without_a_name_that_is_needed_is_not_walked_through(
    text: bytes, jobs: tuple[Marks, ...], may: bool
) -> None:
    assert quickwalk._may_have(text, automaton_of(jobs)) is may
    assert agree(text + LONG, jobs) or jobs[0].selectors[0].text == "$.*"


@settings(max_examples=300)
@given(texts(), st.sampled_from(JOBS))
def test_both_find_the_same_in_long_texts(text: str, jobs: tuple[Marks, ...]) -> None:
    agree(text.encode() + LONG, jobs)


def test_a_text_that_msgspec_nests_too_deeply_for_is_read_by_the_plain_one() -> None:
    deep = b"[" * 20_000 + b'{"a":1}' + b"]" * 20_000
    assert found_by(deep, JOBS[2], quick=True) is None
    assert len(found_by(deep, JOBS[2], quick=False)[0]) == 1
