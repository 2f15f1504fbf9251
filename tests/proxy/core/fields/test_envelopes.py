"""Envelopes: what is one, and what only has the look of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.fields.envelopes import Envelope
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.spans import MAX_DEPTH

ENCRYPTED = Envelope("encryptedData")
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)


@given(NAMES, st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_put_in_is_taken_out(name: str, text: str) -> None:
    content = json.dumps(text).encode()
    made = Envelope(name).around(content)
    assert json.loads(made) == {name: text}
    assert Envelope(name).content(made) == content
    assert Envelope(name).members(made) == [content]
    assert Envelope(name + "x").content(made) is None
    assert Envelope(name + "x").members(made) == []


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (b'{"encryptedData":"x"}', b'"x"'),
        (b'{ "encryptedData"\n:\t"x" \r}', b'"x"'),
        (b'{"encrypted\\u0044ata":"x"}', b'"x"'),
        (b'{"encryptedData":"\\"x\\\\"}', b'"\\"x\\\\"'),
        (b'{"encryptedData":"x","a":1}', None),
        (b'{"a":1,"encryptedData":"x"}', None),
        (b'{"encryptedData":"x","encryptedData":"x"}', None),
        (b'{"EncryptedData":"x"}', None),
        (b'{"encryptedData":1}', None),
        (b'{"encryptedData":["x"]}', None),
        (b'{"encryptedData":{"encryptedData":"x"}}', None),
        (b'["encryptedData"]', None),
        (b'"encryptedData"', None),
        (b"{}", None),
    ],
)
def test_an_envelope_has_one_member_of_that_name_and_it_is_a_string(value: bytes, content: bytes | None) -> None:
    assert ENCRYPTED.content(value) == content


@pytest.mark.parametrize(
    ("value", "members"),
    [
        (b'{"a":[1],"encryptedData":"x","encrypted\\u0044ata":{"b":2}}', [b'"x"', b'{"b":2}']),
        (b'{"a":{"encryptedData":"x"}}', []),
        (b'["encryptedData"]', []),
        (b'"encryptedData"', []),
        (b'{"a":' * MAX_DEPTH + b'{"encryptedData":"x"}' + b"}" * MAX_DEPTH, []),
    ],
)
def test_members_of_that_name_are_found_beside_others(value: bytes, members: list[bytes]) -> None:
    assert ENCRYPTED.members(value) == members


@pytest.mark.parametrize("name", ["a\0", "\ud800"])
def test_a_name_that_no_body_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no NUL"):
        Envelope(name)


@pytest.mark.parametrize(
    ("text", "yes"),
    [("$.a", True), ("$..a", True), ("$['a','b']", True), ("$[*].a", True)]
    + [(text, False) for text in ("$", "$.a[0]", "$.*", "$..*", "$['a',0]", "$.a[*]")],
)
def test_a_selector_ends_in_a_name(text: str, yes: bool) -> None:
    assert parse_selector(text).ends_in_name is yes
