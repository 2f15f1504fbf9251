"""Splicing: only the marked values change, and everything can be put back."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields.automaton import Marks
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.splice import Job, Spliced, splice, token_of
from proxy.core.reasons import Reason

VECTORS = Path(__file__).resolve().parents[4].parent / "shared" / "vectors"


def marks(*selectors: str) -> Marks:
    return Marks(tuple(map(parse_selector, selectors)))


def job(replacement: bytes, *selectors: str) -> Job:
    return Job(marks(*selectors), lambda _value, _path: replacement)


def test_only_the_marked_values_change_and_every_other_byte_stays() -> None:
    body = b'\t{ "card" : {"number":"4111" ,"cvv": 1.0e0},\r\n"note":"\\u0041\xc3\xa9" , "ssn" : null }\n'
    spliced = splice(body, [job(b'"N"', "$.card.number", "$.card.cvv"), job(b'"S"', "$..ssn")])
    assert spliced.body == (b'\t{ "card" : {"number":"N" ,"cvv": "N"},\r\n"note":"\\u0041\xc3\xa9" , "ssn" : "S" }\n')
    assert spliced.counts == (2, 1)
    assert spliced.total == 3


def test_a_transform_gets_the_exact_bytes_and_the_path() -> None:
    seen: list[tuple[bytes, str]] = []

    def note(value: bytes, path: str) -> bytes:
        seen.append((value, path))
        return b"0"

    splice(b'{"items":[{"secret": {"a" : 1.50} },{"\\u0073ecret":"\\u0041"}]}', [Job(marks("$..secret"), note)])
    assert seen == [(b'{"a" : 1.50}', "$.items[*].secret"), (b'"\\u0041"', "$.items[*].secret")]


def test_it_says_where_the_values_stood_that_it_replaced() -> None:
    body = b'{"a":1, "b":[2,3], "c":4}'
    kept = Job(marks("$.a"), lambda _value, _path: None)
    spliced = splice(body, [kept, job(b'"N"', "$.b[0]", "$.c")])
    assert [(body[span.start : span.end], span.path, span.job) for span in spliced.spans] == [
        (b"2", "$.b[*]", 1),
        (b"4", "$.c", 1),
    ]


@pytest.mark.parametrize(
    "jobs", [[], [job(b"0", "$.ssn")], [job(b"0", "$.ssn"), Job(marks(), lambda value, path: b"0")]]
)
def test_a_body_in_which_nothing_is_selected_is_the_same_object(jobs: list[Job]) -> None:
    body = b' {"a": [1, 2]} '
    spliced = splice(body, jobs)
    assert spliced.body is body
    assert spliced == Spliced(body, (0,) * len(jobs))


def test_every_text_of_the_json_suite_passes_unchanged_where_nothing_is_selected() -> None:
    if not VECTORS.is_dir():
        pytest.skip("no ../shared/vectors beside this checkout")
    paths = sorted((VECTORS / "json_parsing").glob("y_*.json"))
    assert len(paths) > 90
    for path in paths:
        body = path.read_bytes()
        if path.stem == "y_object_escaped_null_in_key":  # JSON, but parsers differ in what the name is
            with pytest.raises(Denied, match="NUL"):
                splice(body, [job(b"0", "$..no.such.name")])
            continue
        assert splice(body, [job(b"0", "$..no.such.name")]).body is body, path.name


def test_the_first_job_counts_and_of_nested_values_the_outermost() -> None:
    spliced = splice(b'{"a":{"b":1},"b":2}', [job(b'"first"', "$..b"), job(b'"second"', "$.a", "$.b")])
    assert spliced.body == b'{"a":"second","b":"first"}'
    assert spliced.counts == (1, 1)


def test_the_whole_body_can_be_replaced() -> None:
    assert splice(b' {"a":1} ', [job(b'"x"', "$")]).body == b' "x" '


def renaming(name: bytes, *selectors: str) -> Job:
    return Job(marks(*selectors), lambda value, _: None if value == b"0" else b"9", name)


def test_a_member_gets_another_name_where_its_value_was_replaced() -> None:
    body = rb' { "\u0061" : {"b":1}, "c":{"d":[2], "a":0} ,"e":"a"}'
    assert splice(body, [renaming(b'"A"', "$..a"), renaming(b'""', "$.c.d"), job(b"8", "$.e")]).body == (
        b' { "A" : 9, "c":{"":9, "a":0} ,"e":8}'
    )


def test_an_element_and_the_whole_body_have_no_name_to_change() -> None:
    assert splice(b'{"a":[1,{"b":2}]}', [renaming(b'"A"', "$.a[0]")]).body == b'{"a":[9,{"b":2}]}'
    assert splice(b' {"a":1}', [renaming(b'"A"', "$")]).body == b" 9"


@pytest.mark.parametrize("name", [b"", b"a", b'"a"b"', b'"a":', b'"\x00"', rb'"\u0000"', rb'"\ud800"', b'"a" '])
def test_a_new_name_is_one_json_string_that_all_parsers_read_alike(name: bytes) -> None:
    with pytest.raises(ValueError, match="one JSON string"):
        renaming(name, "$.a")


@pytest.mark.parametrize(
    "body", [b"", b"ssn=1", b'{"ssn":NaN}', b'\xef\xbb\xbf{"ssn":1}', b'{"ssn":1}}', b"[" * 100_000]
)
def test_a_body_that_is_not_json_is_denied_before_any_transform_runs(body: bytes) -> None:
    def never(value: bytes, path: str) -> bytes:
        raise AssertionError("a transform ran")

    with pytest.raises(Denied) as denied:
        splice(body, [Job(marks("$..ssn"), never)])
    assert denied.value.reason is Reason.BODY_NOT_JSON
    assert "at byte" in denied.value.detail


def test_a_denial_quotes_nothing_of_the_body() -> None:
    with pytest.raises(Denied) as denied:
        splice(b'{"card":"4111111111111111', [job(b"0", "$.card")])
    assert "4111" not in f"{denied.value} {denied.value.hint} {denied.value.__context__!r}"


def test_a_body_with_too_many_fields_is_denied_as_too_large_before_any_transform_runs() -> None:
    def never(value: bytes, path: str) -> bytes:
        raise AssertionError("a transform ran")

    assert splice(b"[1,2,3]", [job(b"0", "$[*]")], 3).total == 3
    with pytest.raises(Denied, match="more than 2 values") as denied:
        splice(b"[1,2,3]", [Job(marks("$[*]"), never)], 2)
    assert denied.value.reason is Reason.BODY_TOO_LARGE


def test_an_exception_of_a_transform_propagates() -> None:
    refusal = Denied(Reason.KEY_UNAVAILABLE, "no key")

    def refuse(value: bytes, path: str) -> bytes:
        raise refusal

    with pytest.raises(Denied) as denied:
        splice(b'{"a":1}', [Job(marks("$.a"), refuse)])
    assert denied.value is refusal


@pytest.mark.parametrize("replacement", [b"", b'1,"admin":true', b"secret", b'"a"b"', b"\xff", b"NaN"])
def test_a_transform_cannot_put_in_what_is_not_one_json_value(replacement: bytes) -> None:
    with pytest.raises(ValueError, match="the transform of job 1 returned something that is not one JSON value"):
        splice(b'{"a":1}', [job(b"0", "$.b"), job(replacement, "$.a")])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "ssn", "é"]), inner, max_size=4)
    ),
    max_leaves=15,
)
SELECTORS = st.lists(
    st.sampled_from(
        ["$", "$.a", "$..a", "$..ssn", "$[*]", "$..[0]", "$..[-1]", "$.*.b", "$..['é', 1]", "$..a..b", "$.zzz"]
    ),
    min_size=1,
    max_size=3,
    unique=True,
)


def loosely_written(value: Any, seed: int) -> bytes:
    """Write JSON with random blanks at each structural character, and with or without escapes."""
    chance = random.Random(seed)

    def blank() -> str:
        return "".join(chance.choices(" \t\n\r", k=chance.choice([0, 0, 1, 2])))

    separators = (blank() + "," + blank(), blank() + ":" + blank())
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5, separators=separators, indent=chance.choice([None, 1]))
    return (blank() + text + blank()).encode("utf-8", "strict")


def seal(value: bytes, path: str) -> bytes:
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (value, path.encode()))
    return b'"%b"' % b".".join(parts)


def unseal(value: bytes, path: str) -> bytes:
    token = token_of(value)
    assert token is not None
    plain, place = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split("."))
    assert place.decode() == path
    return plain


@given(JSON_VALUES, SELECTORS, st.integers(0, 2**32))
def test_what_was_put_in_can_be_taken_out_again_and_gives_the_same_bytes(
    value: Any, selectors: list[str], seed: int
) -> None:
    body = loosely_written(value, seed)
    parsed = marks(*selectors)
    sealed = splice(body, [Job(parsed, seal)])
    json.loads(sealed.body)
    opened = splice(sealed.body, [Job(parsed, unseal)])
    assert opened.body == body
    assert opened.counts == sealed.counts
    assert (sealed.body is body) == (sealed.total == 0)


def test_a_token_is_read_from_a_string_with_escapes_and_from_nothing_but_a_string() -> None:
    assert token_of(rb'"a\u002eb"') == "a.b"
    assert token_of(b'{"a":"b"}') is None
    assert token_of(b"17") is None
