"""Forms: marked fields in every spelling, and every other byte as it came."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields import forms
from proxy.core.fields.automaton import Marks
from proxy.core.fields.forms import MAX_FIELDS, field_names, splice_form
from proxy.core.fields.splice import Job, Spliced
from proxy.core.reasons import Reason

SEEN: list[tuple[bytes, str]] = []


def sealed(value: bytes, path: str) -> bytes:
    SEEN.append((value, path))
    return b'"T"'


def splice(text: bytes, *names: str, ignoring_case: bool = False, jobs: Sequence[Job] | None = None) -> Spliced:
    SEEN.clear()
    known = field_names((names or ("ssn",),), (ignoring_case,))
    return splice_form(text, known, jobs or [Job(Marks(()), sealed)], 100)


def reason_of(text: bytes, *names: str) -> Reason:
    with pytest.raises(Denied) as denied:
        splice(text, *names)
    return denied.value.reason


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        (b"ssn=078", b"ssn=T", "078"),
        (b"a=1&ssn=078&b=%20+", b"a=1&ssn=T&b=%20+", "078"),
        (b"%73s%6E=0%37+8%2b", b"%73s%6E=T", "07 8+"),
        (b"&&ssn=&", b"&&ssn=T&", ""),
        (b"ssn=a=b;c", b"ssn=T", "a=b;c"),
        (b'ssn=%C3%A9%22%5C"', b"ssn=T", 'é"\\"'),
        (b"ssn=%00%0A", b"ssn=T", "\0\n"),
        (b"x=%zz&ssn=1", b"x=%zz&ssn=T", "1"),
    ],
)
def test_a_marked_value_is_sealed_as_a_json_string(text: bytes, expected: bytes, value: str) -> None:
    spliced = splice(text)
    assert (spliced.body, spliced.counts) == (expected, (1,))
    ((found, path),) = SEEN
    assert (json.loads(found), path) == (value, "$.ssn")
    (span,) = spliced.spans
    assert text[: span.start] + b"T" + text[span.end :] == expected


def test_every_field_of_the_name_counts_and_the_place_is_that_of_a_member() -> None:
    assert splice(b"card%5Bnumber%5D=1&card[number]=2", "card[number]").counts == (2,)
    assert [path for _, path in SEEN] == ["$['card[number]']"] * 2


@pytest.mark.parametrize("text", [b"", b"ssn", b"a=1&ssn&b", b"SSN=1", b"ssnx=1&xssn=2&s.sn=3", b"=ssn", b"ssn_=1"])
def test_where_nothing_is_marked_it_is_the_same_object(text: bytes) -> None:
    spliced = splice(text)
    assert spliced.body is text
    assert not spliced.total


def test_case_is_ignored_where_the_entry_says_so() -> None:
    assert splice("ＳＳＮ=1&SsN=2&ſsn=3".encode(), ignoring_case=True).counts == (3,)
    assert splice(b"SSN=1").counts == (0,)


def test_each_entry_has_its_own_fields_and_the_first_one_counts() -> None:
    jobs = [Job(Marks(()), lambda value, path: b'"A"'), Job(Marks(()), lambda value, path: b'"B"')]
    known = field_names((("a",), ("b", "a")), (False, False))
    spliced = splice_form(b"a=1&b=2&c=3", known, jobs, 100)
    assert (spliced.body, spliced.counts) == (b"a=A&b=B&c=3", (1, 1))


def test_a_value_that_stays_is_not_counted() -> None:
    text = b"ssn=1"
    assert splice(text, jobs=[Job(Marks(()), lambda value, path: None)]).body is text


@pytest.mark.parametrize(
    "name",
    [
        b"card.number",
        b"card+number",
        b"card%20number",
        b"%20card_number",
        b"card[number",
        b"card_number[]",
        b"card_number%5B0%5D",
        b"card_number[a][b]",
        b"card_number.type",
        b"card_number%20",
        b"card_number%00x",
        b"card[number]",
    ],
)
def test_a_name_that_servers_may_take_for_a_marked_one_is_denied(name: bytes) -> None:
    assert reason_of(name + b"=4111", "card_number") is Reason.BODY_UNREADABLE
    assert splice(name + b"=4111", "other_name").total == 0


@pytest.mark.parametrize("name", [b"card_number_type", b"card_numbers", b"card-number", b"my.card_number"])
def test_another_name_is_none_of_these(name: bytes) -> None:
    assert splice(name + b"=4111", "card_number").total == 0


def test_spellings_of_names_that_ignore_case_are_denied_in_any_case() -> None:
    with pytest.raises(Denied):
        splice(b"Card.Number=1", "card_number", ignoring_case=True)


@pytest.mark.parametrize("text", [b"a=1;ssn=078", b"a;ssn=078&b=1", b"a=1&b;%73sn=1"])
def test_a_marked_field_behind_a_semicolon_is_denied(text: bytes) -> None:
    assert reason_of(text) is Reason.BODY_UNREADABLE
    assert splice(text.replace(b";", b"%3B")).total == 0


@pytest.mark.parametrize("text", [b"s%zzn=1", b"a=1&%=2", b"ssn=%f", b"%FF=1", b"ssn=%C0%AF", b"\xe9=1", b"ssn=\xe9"])
def test_bad_escapes_and_other_charsets_are_denied(text: bytes) -> None:
    assert reason_of(text) is Reason.BODY_UNREADABLE


def test_a_form_that_says_it_is_in_another_charset_is_denied() -> None:
    assert reason_of(b"_charset_=latin-1&ssn=1") is Reason.BODY_UNREADABLE
    assert splice(b"_charset_=UTF-8&ssn=1").total == 1


def test_what_it_may_hold_is_limited() -> None:
    assert splice(b"a=1&" * (MAX_FIELDS - 1)).total == 0
    assert reason_of(b"a=1&" * MAX_FIELDS) is Reason.BODY_TOO_LARGE
    assert reason_of(b"ssn=1&" * 101) is Reason.BODY_TOO_LARGE


@given(st.text())
def test_what_is_put_in_its_place_is_read_as_it_was(text: str) -> None:
    opened = [Job(Marks(()), lambda value, path: json.dumps(text).encode())]
    spliced = splice(b"a=1&ssn=token&b=2", jobs=opened)
    assert parse_qsl(spliced.body.decode(), keep_blank_values=True, strict_parsing=True)[1] == ("ssn", text)
    again = splice(spliced.body)
    assert json.loads(SEEN[0][0]) == text
    assert again.body == b"a=1&ssn=T&b=2"


@pytest.mark.parametrize("value", [b"1", b'{"a":1}', b"null", b'"\\ud800"'])
def test_only_text_takes_the_place_of_a_field(value: bytes) -> None:
    with pytest.raises(Denied) as denied:
        splice(b"ssn=token", jobs=[Job(Marks(()), lambda _value, _path: value)])
    assert denied.value.reason is Reason.DECRYPTION_FAILED


@given(st.lists(st.tuples(st.text(min_size=1), st.text())))
def test_fields_are_those_of_the_standard(pairs: list[tuple[str, str]]) -> None:
    text = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs).encode()
    found = [
        (field.name, forms.decoded(text[field.start : field.end]).decode()) for field in forms.fields(text) if text
    ]
    assert found == pairs
