"""JSON texts inside JSON strings: what is found in them, and that all escapes outside the change stay as they were."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields.automaton import Marks
from proxy.core.fields.escapes import escaped, inner_text, outer_offsets
from proxy.core.fields.jsontext import NotJson, TooMuchSelected, find_spans
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.splice import Job, splice
from proxy.core.reasons import Reason


def marks(selector: str, *inside: str, is_strict: bool = True) -> Marks:
    return Marks((parse_selector(selector),), tuple(map(parse_selector, inside)), is_strict=is_strict)


def found(text: bytes, *jobs: Marks) -> list[tuple[bytes, str, int]]:
    return [(span.value(text), span.path, span.job) for span in find_spans(text, jobs)]


BODY = (
    rb'{"id":1, "Message" : "\u007b\"card\": {\"n\\u0061me\":\"\\\"A\u00e9\", \"number\"\t:[4,'
    rb'\n1]}, \"x\":\"\/\"}","b":2}'
)


def test_what_a_selector_finds_in_a_string_is_found_with_both_paths() -> None:
    job = marks("$.card.number", "$.Message")
    assert found(BODY, job) == [(b"[4,\n1]", "$.Message$.card.number", 0)]
    (span,) = find_spans(BODY, [job])
    assert BODY[span.start : span.end] == rb"[4,\n1]"
    assert span.name is not None
    assert BODY[span.name[0] : span.name[1]] == rb"\"number\""
    assert span.depth == 1


def test_only_what_is_marked_changes_and_is_escaped_as_the_string_needs_it() -> None:
    job = Job(marks("$.card.number", "$.Message"), lambda value, _: b'"N\\u0041"', b'"no"')
    assert splice(BODY, [job]).body == BODY.replace(rb"\"number\"", rb"\"no\"").replace(rb"[4,\n1]", rb"\"N\\u0041\"")
    whole = Job(marks("$", "$.Message"), lambda value, _: b'{\n"e" :\t"T"\r}')
    spliced = splice(BODY, [whole]).body
    assert spliced == rb'{"id":1, "Message" : "{\n\"e\" :\t\"T\"\r}","b":2}'
    assert json.loads(json.loads(spliced)["Message"]) == {"e": "T"}


def test_an_element_and_a_whole_text_inside_have_no_name() -> None:
    assert [span.name for span in find_spans(rb'{"m":"[1,{\"a\":2}]"}', [marks("$[0]", "$.m")])] == [None]
    assert [span.name for span in find_spans(rb'{"m":"[1]"}', [marks("$", "$.m")])] == [None]


def nested(text: str, depth: int) -> str:
    for _ in range(depth):
        text = json.dumps({"m": text})
    return text


@pytest.mark.parametrize("depth", range(1, 9))
def test_texts_are_found_in_one_another_and_their_values_replaced(depth: int) -> None:
    body = nested('{"a":"b\\"\\u00e9","c":0}', depth).encode()
    job = Job(marks("$.a", *["$.m"] * depth), lambda value, path: json.dumps([path, value.decode()]).encode())
    read = splice(body, [job]).body.decode()
    for _ in range(depth):
        read = json.loads(read)["m"]
    inner = json.dumps(["$.m" * depth + "$.a", '"b\\"\\u00e9"'])
    assert read == f'{{"a":{inner},"c":0}}'


def test_all_jobs_look_into_the_same_string_at_once() -> None:
    body = rb'{"m":"{\"a\":1,\"b\":2,\"c\":{\"b\":3}}","n":"{\"b\":4}","b":5}'
    jobs = (marks("$.a", "$.m"), marks("$..b", "$.*"), marks("$.b"))
    assert found(body, marks("$.a", "$.m"), marks("$..b", "$['m','n']"), marks("$.b")) == [
        (b"1", "$.m$.a", 0),
        (b"2", "$.m$.b", 1),
        (b"3", "$.m$.c.b", 1),
        (b"4", "$.n$.b", 1),
        (b"5", "$.b", 2),
    ]
    assert found(body, *jobs)[:2] == [(b"1", "$.m$.a", 0), (b"2", "$.m$.b", 1)]


def test_a_string_that_is_marked_as_a_whole_is_not_looked_into() -> None:
    body = rb'{"m":"{\"a\":1}","x":{"m":"{\"a\":2}"}}'
    assert found(body, marks("$.a", "$.m"), marks("$.m")) == [(rb'"{\"a\":1}"', "$.m", 1)]
    assert found(body, marks("$.a", "$..m"), marks("$.x")) == [(b"1", "$.m$.a", 0), (b'{"m":"{\\"a\\":2}"}', "$.x", 1)]


@pytest.mark.parametrize(
    "value", [b'""', b'"a"', b"1", b"{}", b'["{}"]', b"true", rb'"{\"a\":\"\\ud800"', rb'"\ud800"', b'"{}{}"']
)
def test_what_holds_no_json_is_refused_or_left_alone(value: bytes) -> None:
    body = b'{"x":"secret","m":%s}' % value
    with pytest.raises(NotJson) as refused:
        find_spans(body, [marks("$.a", "$.m")])
    assert refused.value.offset == 18
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert find_spans(body, [marks("$.a", "$.m", is_strict=False)]) == []
    with pytest.raises(Denied) as denied:
        splice(body, [Job(marks("$.a", "$.m"), lambda value, _: value)])
    assert denied.value.reason is Reason.BODY_NOT_JSON


@pytest.mark.parametrize("body", [b'{"m":null}', b"{}", rb'{"m":"null"}', rb'{"m":"{\"A\":1}"}', rb'{"m":"[]"}', b"[]"])
def test_where_there_is_nothing_to_find_nothing_is_wrong(body: bytes) -> None:
    assert find_spans(body, [marks("$.a", "$.m")]) == []


def test_a_body_may_be_a_string_itself() -> None:
    assert found(rb' "{\"a\":1}"', marks("$.a", "$")) == [(b"1", "$$.a", 0)]


def test_the_limit_of_values_is_that_of_all_texts_together() -> None:
    body = b'{"x":[%s],"b":1}' % b",".join([rb'"{\"a\":1}"'] * 3)
    jobs = [marks("$.a", "$.x[*]"), marks("$.b")]
    assert len(find_spans(body, jobs, 4)) == 4
    for most in range(4):
        with pytest.raises(TooMuchSelected, match=f"more than {most} values|more than"):
            find_spans(body, jobs, most)


PIECES = st.sampled_from(
    [
        r"\"",
        r"\\",
        r"\/",
        r"\n",
        r"\u0041",
        r"\u00e9",
        r"\u20AC",
        r"\ud83d\ude00",
        "a",
        "é",
        "€",
        "\U0001f600",
        "{",
        ",",
    ]
)


@given(st.lists(PIECES, max_size=20))
def test_each_character_of_an_inner_text_is_known_in_the_string(pieces: Sequence[str]) -> None:
    string = b'"%s"' % "".join(pieces).encode()
    inner = inner_text(string)
    assert inner is not None
    assert inner.decode() == json.loads(string)
    starts, ends = [0], [1]
    for piece in pieces:
        starts.append(starts[-1] + len(json.loads(f'"{piece}"').encode()))
        ends.append(ends[-1] + len(piece.encode()))
    assert outer_offsets(string, starts) == ends
    assert outer_offsets(string, starts[::2]) == ends[::2]
    assert outer_offsets(string, [each for each in starts for _ in range(2)]) == [
        each for each in ends for _ in range(2)
    ]


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_is_put_into_strings_comes_out_of_them(value: object) -> None:
    for text in (json.dumps(value, ensure_ascii=False, indent=1), json.dumps(value)):
        try:
            once, twice = escaped(text.encode(), 1), escaped(text.encode(), 2)
        except UnicodeEncodeError:
            continue
        assert json.loads(b'"%s"' % once) == text
        assert json.loads(f'"{json.loads(b'"%s"' % twice)}"') == text
        assert escaped(text.encode(), 0) == text.encode()


def test_a_job_looks_only_into_the_strings_that_it_selects() -> None:
    body = rb'{"m":"{\"a\":1,\"b\":2}","n":"{\"a\":3,\"b\":4}"}'
    assert found(body, marks("$.a", "$.m"), marks("$.b", "$.n")) == [(b"1", "$.m$.a", 0), (b"4", "$.n$.b", 1)]
