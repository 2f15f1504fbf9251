"""Places: their one spelling as parameters of a media type, and how media types are read."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jose.place import Place, ascii_text, read_media_type


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Place("api.pay.example", "$.a"), 'application/json;host="api.pay.example";path="$.a"'),
        (Place("::1", "$"), 'application/json;host="::1";path="$"'),
        (Place("a.b", "$['it\\'s']"), 'application/json;host="a.b";path="$[\'it\\\\\'s\']"'),
        (Place("a.b", "$['say \"x\"']"), 'application/json;host="a.b";path="$[\'say \\"x\\"\']"'),
        (Place("a.b", "$['\u00e9']"), 'application/json;host="a.b";path="$[\'\\\\u00e9\']"'),
    ],
)
def test_a_place_is_two_quoted_parameters(place: Place, expected: str) -> None:
    assert place.media_type == expected
    assert read_media_type(expected) == ("application/json", {"host": place.host, "path": ascii_text(place.path)})


@given(st.text(max_size=30), st.text(max_size=30))
def test_every_place_is_read_as_it_was_written_and_is_printable_ascii(host: str, path: str) -> None:
    text = Place(host, path).media_type
    assert text.isascii()
    assert text.isprintable()
    assert read_media_type(text)[1] == {"host": ascii_text(host), "path": ascii_text(path)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$.a ~", "$.a ~"),
        ("\x00\x1f\x7f", "\\u0000\\u001f\\u007f"),
        ("\u00e9\u20ac", "\\u00e9\\u20ac"),
        ("\U0001f600", "\\ud83d\\ude00"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_not_printable_ascii_is_escaped_as_json_would_read_it(text: str, expected: str) -> None:
    assert ascii_text(text) == expected
    assert json.loads(f'"{expected}"') == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("json", ("json", {})),
        ("Text/HTML", ("text/html", {})),
        ("a/b;", ("a/b", {})),
        ('a/b ; C=D\t;; e="f;\\"g\\\\ " ', ("a/b", {"c": "D", "e": 'f;"g\\ '})),
        ('a/b;c=""', ("a/b", {"c": ""})),
    ],
)
def test_a_media_type_is_read_as_rfc_9110_writes_it(text: str, expected: tuple[str, dict[str, str]]) -> None:
    assert read_media_type(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " a/b",
        "/b",
        "a/",
        "a/b/c",
        "a b",
        "a/b c=d",
        "a/b;c",
        "a/b;c=",
        "a/b;=d",
        "a/b;c =d",
        "a/b;c= d",
        'a/b;c="d',
        'a/b;c="d\\"',
        'a/b;c="d"e',
        'a/b;c="\u00e9"',
        'a/b;c="\x7f"',
        "a/b;c=d;C=e",
        "a/b\n",
        "a/b,a/b",
    ],
)
def test_what_could_be_read_in_two_ways_is_no_media_type(text: str) -> None:
    with pytest.raises(ValueError, match="media type"):
        read_media_type(text)


@pytest.mark.parametrize(
    "text", ['a/b;c="' + "\\" * 200_001, "a/b" + " ;" * 100_000 + "x", "a/b;" + "c" * 200_000, "a" * 200_000 + "/"]
)
def test_an_unfriendly_text_takes_linear_time(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="media type"):
        read_media_type(text)
    assert time.process_time() - began < 5
