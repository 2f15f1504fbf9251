"""Selectors: what parses, to what, and what is refused where and with which advice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.fields.selectors import MAX_INDEX, BadSelector, Choice, Every, Segment, Selector, Slice, parse_selector

EVERY = Every.EVERY


def child(*choices: Choice) -> Segment:
    return Segment(False, choices)


def descendant(*choices: Choice) -> Segment:
    return Segment(True, choices)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("$", ()),
        ("$.card.number", (child("card"), child("number"))),
        ("$..ssn", (descendant("ssn"),)),
        ("$.items[*].secret", (child("items"), child(EVERY), child("secret"))),
        ("$.*", (child(EVERY),)),
        ("$..*", (descendant(EVERY),)),
        ("$..[*]", (descendant(EVERY),)),
        ("$..[-1]", (descendant(-1),)),
        ("$..['a', \"b\", 0 ,*]", (descendant("a", "b", 0, EVERY),)),
        ("$[0][-1]", (child(0), child(-1))),
        ("$[1:3]", (child(Slice(1, 3, None)),)),
        ("$[:]", (child(Slice(None, None, None)),)),
        ("$[ 5 : -1 :\t-2 , 0]", (child(Slice(5, -1, -2), 0),)),
        ("$..[::0, :3, -2:]", (descendant(Slice(None, None, 0), Slice(None, 3, None), Slice(-2, None, None)),)),
        (f"$[{MAX_INDEX}][-{MAX_INDEX}]", (child(MAX_INDEX), child(-MAX_INDEX))),
        ("$['']", (child(""),)),
        ("$ .a\t[\n'b'\r]", (child("a"), child("b"))),
        ("$.straße.名前.\U0001f600", (child("straße"), child("名前"), child("\U0001f600"))),
        ("$.a\xa0b", (child("a\xa0b"),)),
        (r"""$['it\'s "so"']["it's \"so\""]""", (child('it\'s "so"'), child('it\'s "so"'))),
        (r"$['\b\f\n\r\t\/\\']", (child("\b\f\n\r\t/\\"),)),
        (r"$['\u0073\u263A\ud83d\uDE00\uD7FF\ue000']", (child("s\u263a\U0001f600\ud7ff\ue000"),)),
    ],
)
def test_a_selector_of_the_subset_is_parsed_to_its_segments(text: str, segments: tuple[Segment, ...]) -> None:
    selector = parse_selector(text)
    assert selector.segments == segments
    assert selector.text == str(selector) == text


@pytest.mark.parametrize(
    ("text", "position", "advice"),
    [
        ("", 0, "starts with '$'"),
        ("card.number", 0, "starts with '$', the root of the JSON text: write $.card.number (character 1"),
        ("/card/number", 0, "the root of the JSON text: write $.card.number ("),
        ("card", 0, "the root of the JSON text: write $.card ("),
        ("card number", 0, "the root of the JSON text (character 1"),
        ("/items/0/a", 0, "the root of the JSON text (character 1"),
        ("$.a[].b", 4, "write [*] for every element"),
        ("$.a[x]", 4, "quoted name, '*', an index or a slice"),
        (" $", 0, "starts with '$'"),
        ("$ ", 1, "blank"),
        ("$.a \n", 3, "blank"),
        ("$a", 1, "expected '.', '..' or '['"),
        ("$.", 2, "name or '*' must follow '.'"),
        ("$..", 3, "name or '*' must follow '..'"),
        ("$...a", 3, "name or '*' must follow '..'"),
        ("$. a", 2, "name or '*' must follow '.'"),
        ("$.1st", 2, "['card-number']"),
        ("$.card-number", 6, "['card-number']"),
        ("$.'a'", 2, "['card-number']"),
        ("$.a\ud800", 3, "expected '.', '..' or '['"),
        ("$.length()", 8, "functions are not supported"),
        ("$[?@.a]", 2, "filters are not supported"),
        ("$[0, ?@.a]", 5, "filters are not supported"),
        ("$[1:a]", 4, "',' or ']'"),
        ("$[1:2:3:4]", 7, "',' or ']'"),
        ("$[:-0]", 3, "',' or ']'"),
        ("$[1:02]", 4, "no leading zero"),
        (f"$[::{MAX_INDEX + 1}]", 4, "an index lies between"),
        ("$['a':]", 5, "',' or ']'"),
        ("$[1 x:2]", 4, "',' or ']'"),
        ("$[]", 2, "nothing between '[' and ']'"),
        ("$[a]", 2, "quoted name, '*', an index or a slice"),
        ("$[0,]", 4, "quoted name, '*', an index or a slice"),
        ("$[01]", 2, "no leading zero"),
        ("$[+1]", 2, "no '+'"),
        ("$[-0]", 2, "never -0"),
        ("$[1.0]", 3, "',' or ']'"),
        ("$[0 1]", 4, "',' or ']'"),
        ("$['a'", 5, "',' or ']'"),
        (f"$[{MAX_INDEX + 1}]", 2, "an index lies between"),
        (f"$[-{MAX_INDEX + 1}]", 2, "an index lies between"),
        ("$[" + "9" * 5000 + "]", 2, "an index lies between"),
        ("$['a", 4, "closing '"),
        ('$["a', 4, 'closing "'),
        ("$['a\nb']", 4, "control character"),
        ("$['\ud800']", 3, "half a surrogate pair"),
        (r"""$['\"']""", 4, "an escape is one of"),
        (r"""$["\'"]""", 4, "an escape is one of"),
        (r"$['\x41']", 4, "an escape is one of"),
        ("$['\\", 4, "an escape is one of"),
        (r"$['\u12']", 5, "four hexadecimal digits"),
        (r"$['\ud800']", 5, "half a surrogate pair"),
        (r"$['a\u0000']", 6, "a name with NUL"),
        (r"$['\ud800\u0041']", 5, "half a surrogate pair"),
        (r"$['\ude00\ude00']", 5, "half a surrogate pair"),
        (r"$['\udc00\udc00']", 5, "half a surrogate pair"),
    ],
)
def test_what_is_not_of_the_subset_is_refused_at_its_character_with_advice(
    text: str, position: int, advice: str
) -> None:
    with pytest.raises(BadSelector) as refused:
        parse_selector(text)
    assert refused.value.position == position
    assert advice in str(refused.value)
    assert f"(character {position + 1} of " in str(refused.value)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.sampled_from(["'", '"']))
def test_any_name_can_be_written_in_quotes(name: str, quote: str) -> None:
    written = "".join(
        f"\\u{ord(character):04x}" if character < " " else "\\" * (character in ("\\", quote)) + character
        for character in name
    )
    assert parse_selector(f"$[{quote}{written}{quote}]").segments == (child(name),)


@given(st.text(alphabet="$.*[]'\"\\ab01-:?,() \n", max_size=12))
def test_any_text_is_parsed_or_refused_with_a_position_inside_it(text: str) -> None:
    parsed = parsed_or_refused("$" + text)
    if isinstance(parsed, BadSelector):
        assert 0 <= parsed.position <= len(text) + 1
    else:
        assert len(parsed.segments) <= len(text)


def parsed_or_refused(text: str) -> Selector | BadSelector:
    try:
        return parse_selector(text)
    except BadSelector as refused:
        return refused
