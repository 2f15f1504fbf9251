"""base64url and strict JSON: one accepted spelling each."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jose.encoding import base64url, parse_object, unbase64url

ALPHABET = string.ascii_letters + string.digits + "-_"


@given(st.binary(max_size=100))
def test_base64url_gives_back_what_was_encoded(data: bytes) -> None:
    assert unbase64url(base64url(data)) == data


@given(st.text(alphabet=ALPHABET, max_size=12))
def test_whatever_base64url_decodes_is_the_only_spelling_of_its_bytes(text: str) -> None:
    try:
        data = unbase64url(text)
    except ValueError:
        return
    assert base64url(data) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("QQ==", id="padding"),
        pytest.param("A", id="impossible length"),
        pytest.param("QR", id="bits left over"),
        pytest.param("+/+/", id="the other alphabet"),
        pytest.param("QU FB", id="a space"),
        pytest.param("QUFB\n", id="a line feed at the end"),
        pytest.param("QUÄB", id="not ASCII"),
    ],
)
def test_other_spellings_of_base64url_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="canonical base64url"):
        unbase64url(text)


def test_an_object_is_parsed() -> None:
    assert parse_object('{"a": {"b": [1, "ä"]}}'.encode()) == {"a": {"b": [1, "ä"]}}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"a": 1, "a": 1}', id="a name twice"),
        pytest.param(b'{"a": {"b": 1, "\\u0062": 1}}', id="a name twice, nested and escaped"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{", id="cut short"),
        pytest.param(b"{} {}", id="two objects"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": -Infinity}', id="-Infinity"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', id="byte order mark"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"a": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"a":' * 100_000, id="nested 100,000 deep"),
        pytest.param(b'{"a": ' + b"1" * 5000 + b"}", id="a number of 5,000 digits"),
    ],
)
def test_anything_but_one_strict_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="unique member names"):
        parse_object(data)


def test_a_refused_object_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="JSON object") as caught:
        parse_object(b'{"k": "SECRET", "k": 1}')
    assert "SECRET" not in str(caught.value)
    assert json.dumps("k") not in str(caught.value)
