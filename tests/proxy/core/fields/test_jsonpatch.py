"""JSON Patch: what will stand at a marked place of the document is sealed for that place."""

from __future__ import annotations

import json

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields.automaton import Marks
from proxy.core.fields.jsonpatch import MAX_OPERATIONS, MAX_STEPS, after, place_of, splice_patch
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.splice import Job, Spliced
from proxy.core.reasons import Reason

SEEN: list[tuple[bytes, str]] = []


def sealed(value: bytes, path: str) -> bytes:
    SEEN.append((value, path))
    return b'"T"'


def patch(text: bytes, *selectors: str, most: int = 100) -> Spliced:
    SEEN.clear()
    return splice_patch(text, [Job(Marks(tuple(map(parse_selector, selectors))), sealed)], most)


def reason_of(text: bytes, *selectors: str) -> Reason:
    with pytest.raises(Denied) as denied:
        patch(text, *(selectors or ("$.card.number",)))
    return denied.value.reason


@pytest.mark.parametrize(
    ("pointer", "value", "selector", "seen"),
    [
        pytest.param("/card/number", b'"4111"', "$.card.number", [(b'"4111"', "$.card.number")], id="to it"),
        pytest.param("/card", b'{"number": 1, "x":2}', "$.card.number", [(b"1", "$.card.number")], id="above it"),
        pytest.param("/card", b'{"x":2}', "$.card.number", [], id="above it, without it"),
        pytest.param("", b'{"card":{"number":1}}', "$.card.number", [(b"1", "$.card.number")], id="the document"),
        pytest.param("/card/number/x", b"[1]", "$.card.number", [(b"[1]", "$.card.number.x")], id="below it"),
        pytest.param("/a/card/number", b"1", "$.card.number", [], id="elsewhere"),
        pytest.param("/card/holder", b"1", "$.card.number", [], id="beside it"),
        pytest.param("/list/-", b'{"s":1}', "$.list[*].s", [(b"1", "$.list[*].s")], id="the end of an array"),
        pytest.param("/list/12/s", b"1", "$.list[*].s", [(b"1", "$.list[*].s")], id="an index"),
        pytest.param("/list/0", b"1", "$.list[0]", [(b"1", "$.list[*]")], id="its index"),
        pytest.param("/list/1", b"1", "$.list[0]", [], id="another index"),
        pytest.param("/list/00", b"1", "$.list[0]", [], id="no index"),
        pytest.param("/list/7", b"1", "$.list[-1]", [(b"1", "$.list[*]")], id="an index that may be the last"),
        pytest.param("/list/-", b"1", "$.list[3]", [(b"1", "$.list[*]")], id="an end that may be its index"),
        pytest.param("/list/x", b"1", "$.list[0]", [], id="a name"),
        pytest.param("/a/b", b'{"c":{"s":1},"s":2}', "$..s", [(b"1", "$.a.b.c.s"), (b"2", "$.a.b.s")], id=".."),
        pytest.param("/ssn", b'{"ssn":1}', "$..ssn", [(b'{"ssn":1}', "$.ssn")], id=".. to it"),
        pytest.param("/a", b'{"b":1,"x":{"a":{"b":2}}}', "$..a.b", [(b"1", "$.a.b"), (b"2", "$.a.x.a.b")], id="2"),
        pytest.param("/a~1b/~0c", b"1", "$['a/b']['~c']", [(b"1", "$['a/b']['~c']")], id="escapes"),
        pytest.param("/c\\u0061rd/number", b"1", "$.card.number", [(b"1", "$.card.number")], id="an escape of JSON"),
        pytest.param("/any", b"1", "$", [(b"1", "$.any")], id="all is marked"),
    ],
)  # fmt: skip
def test_what_will_stand_at_a_marked_place(
    pointer: str, value: bytes, selector: str, seen: list[tuple[bytes, str]]
) -> None:
    text = b' [{"op":"add","path":"%s" , "value" : %s},{"op":"remove","path":"/x"}] ' % (pointer.encode(), value)
    spliced = patch(text, selector)
    assert sorted(SEEN) == sorted(seen)
    assert spliced.counts == (len(seen),)
    expected = text
    for span in reversed(spliced.spans):
        assert text[span.start : span.end] in [each for each, _ in seen]
        expected = expected[: span.start] + b'"T"' + expected[span.end :]
    assert spliced.body == expected
    assert seen or spliced.body is text


@pytest.mark.parametrize("op", ["add", "replace", "test"])
def test_every_operation_with_a_value_counts(op: str) -> None:
    assert patch(json.dumps([{"value": 1, "op": op, "path": "/ssn"}]).encode(), "$.ssn").total == 1


def test_an_operation_without_a_value_passes() -> None:
    assert patch(b'[{"op":"remove","path":"/ssn"}]', "$.ssn").total == 0


def test_a_member_that_is_renamed_is_not_named_by_a_path() -> None:
    renaming = Job(Marks((parse_selector("$.card.number"),)), sealed, b'"sealed"')
    whole = b'[{"op":"add","path":"/card","value":{"number":1}}]'
    assert splice_patch(whole, [renaming], 9).body == whole.replace(b'"number":1', b'"sealed":"T"')
    with pytest.raises(Denied, match="a member that the rule renames") as denied:
        splice_patch(b'[{"op":"add","path":"/card/number","value":1}]', [renaming], 9)
    assert denied.value.reason is Reason.BODY_UNREADABLE


def test_nothing_is_moved_to_a_marked_place_from_another() -> None:
    for op in ("move", "copy"):
        for source, target in (("/a", "/card/number"), ("/a", "/card"), ("/card/holder", "/card/number")):
            text = json.dumps([{"op": op, "from": source, "path": target}]).encode()
            assert reason_of(text) is Reason.BODY_UNREADABLE
    assert patch(b'[{"op":"move","from":"/a","path":"/b"}]', "$.card.number").total == 0
    assert patch(b'[{"op":"move","from":"/list/1","path":"/list/0"}]', "$.list[*]").total == 0
    assert reason_of(b'[{"op":"move","from":1,"path":"/card"}]') is Reason.BODY_UNREADABLE


@pytest.mark.parametrize(
    "operation",
    [
        b'{"op":"add","value":1}',
        b'{"op":"add","path":1,"value":1}',
        b'{"op":"add","path":"card","value":1}',
        b'{"op":"add","path":"/~card","value":1}',
        b'{"op":"add","path":"/\\ud800","value":1}',
        b'{"op":"add","path":"/x","path":"/card/number","value":1}',
        b'{"op":"add","path":"/card/number","value":1,"value":2}',
        b'{"op":"add","op":"test","path":"/x","value":1}',
        b'"path"',
    ],
)
def test_an_operation_that_cannot_be_read_in_one_way_is_denied(operation: bytes) -> None:
    assert reason_of(b"[%s]" % operation) is Reason.BODY_UNREADABLE


def test_its_length_is_limited() -> None:
    operation = b'{"op":"remove","path":"/x"}'
    assert patch(b"[%s]" % b",".join([operation] * MAX_OPERATIONS), "$.a").total == 0
    for text in (
        b"[%s]" % b",".join([operation] * (MAX_OPERATIONS + 1)),
        b'[{"op":"remove","path":"%s"}]' % (b"/x" * (MAX_STEPS + 1)),
    ):
        assert reason_of(text) is Reason.BODY_TOO_LARGE
    with pytest.raises(Denied) as denied:
        patch(b'[{"op":"add","path":"/a","value":1},{"op":"add","path":"/a","value":1}]', "$.a", most=1)
    assert denied.value.reason is Reason.BODY_TOO_LARGE


def test_what_is_left_of_a_selector() -> None:
    assert [each.segments for each in after(parse_selector("$.a.b"), ["a"])] == [parse_selector("$.b").segments]
    assert after(parse_selector("$.a"), ["b", "c"]) == []
    assert [each.segments for each in after(parse_selector("$.a"), ["a", "c"])] == [()]
    assert place_of(["a", "0", "-", "01", "x y"]) == "$.a[*][*]['01']['x y']"


@pytest.mark.parametrize("pointer", [b"/Message", b"", b"/message"])
def test_what_stands_in_a_string_is_found_there(pointer: bytes) -> None:
    marks = Marks((parse_selector("$.ssn"),), (parse_selector("$.Message"),), ignore_case=True)
    value = b'"{\\"SSN\\":1}"'
    whole = {b"": b'{"Message":%s}' % value}.get(pointer, value)
    SEEN.clear()
    text = b'[{"op":"add","path":"%s","value":%s}]' % (pointer, whole)
    assert splice_patch(text, [Job(marks, sealed)], 9).body == text.replace(b":1", b':\\"T\\"')
    assert [(value, path.lower()) for value, path in SEEN] == [(b"1", "$.message$.ssn")]


def test_slices_and_case_count_as_they_may() -> None:
    assert patch(b'[{"op":"add","path":"/list/7","value":1}]', "$.list[2:4]").total == 1
    marks = Marks((parse_selector("$.ssn"),), ignore_case=True)
    assert splice_patch(b'[{"op":"add","PATH":"/SSN","value":1}]', [Job(marks, sealed)], 9).total == 1
    assert reason_of(b'[{"op":"add","path":"/x","Path":"/card/number","value":1}]') is Reason.BODY_UNREADABLE
