"""Labels of responses, what a body without one may be, and header fields on both ways."""

from __future__ import annotations

import time

import pytest

from proxy.core.fields.responses import Label, asked, comes_in_texts, label_of, may_be_json, told


@pytest.mark.parametrize(
    ("types", "label"),
    [
        (["application/json"], Label.JSON),
        (["Text/JSON ;charset=utf-8"], Label.JSON),
        (["text/html", "application/ld+json"], Label.JSON),
        (["text/html,application/json"], Label.JSON),
        (["text/event-stream"], Label.EVENTS),
        (["Text/Event-Stream;charset=utf-8"], Label.EVENTS),
        (["text/event-stream", "text/plain"], Label.EVENTS),
        (["application/x-ndjson"], Label.LINES),
        (["application/ndjson; charset=utf-8", "nonsense"], Label.LINES),
        (["application/jsonl"], Label.LINES),
        (["application/x-jsonlines"], Label.LINES),
        (["application/stream+json"], Label.LINES),
        (["application/vnd.example+ndjson"], Label.LINES),
        (["application/json-seq"], Label.RECORDS),
        (["application/geo+json-seq"], Label.RECORDS),
        (["application/json-seq, application/x-ndjson"], Label.JSON),
        (["text/event-stream", "application/json"], Label.JSON),
        (["application/event-stream"], Label.OTHER),
        (["nonsense", "application/json"], Label.JSON),
        ([], Label.NOTHING),
        ([""], Label.NOTHING),
        (["json"], Label.NOTHING),
        (["text/html", ""], Label.NOTHING),
        (["text/html json"], Label.NOTHING),
        (["text/html;json"], Label.OTHER),
        (["text/html"], Label.OTHER),
        (["text/html", "image/png;a=b"], Label.OTHER),
        (["multipart/byteranges; boundary=x"], Label.OTHER),
    ],
)
def test_what_a_label_says(types: list[str], label: Label) -> None:
    assert label_of(types) is label
    assert comes_in_texts(label) == (label in (Label.LINES, Label.RECORDS, Label.EVENTS))


@pytest.mark.parametrize("size", [200_000])
@pytest.mark.parametrize("text", ["a/", "a", " ", ",", "a/b,"])
def test_a_long_label_takes_linear_time(text: str, size: int) -> None:
    began = time.process_time()
    label_of([text * size])
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        (b"{", True),
        (b' \r\n\t["a"]', True),
        (b'"eyJ', True),
        (b"\xef\xbb\xbf {", True),
        ("{}".encode("utf-16"), True),
        ("{}".encode("utf-16-be"), True),
        ("[]".encode("utf-32"), True),
        (b"", False),
        (b"null", False),
        (b"<html>{", False),
        (b"\xef\xbb {", False),
    ],
)
def test_what_a_body_without_a_label_may_be(text: bytes, yes: bool) -> None:
    assert may_be_json(text) is yes


def test_what_is_asked() -> None:
    fields = (
        (b"Range", b"bytes=0-"),
        (b"if-range", b'"x"'),
        (b"If-Match", b'W/"a","W/",W/b'),
        (b"If-None-Match", b'W/"a","b", *'),
        (b"X-Other", b'W/"a"'),
    )
    found = asked(fields)
    assert found == ((b"If-Match", b'"a","W/",W/b'), (b"If-None-Match", b'W/"a", "a","b", *'), fields[-1])
    assert any(found[2] is field for field in fields)  # its type may say that no table may keep it


def test_what_is_told() -> None:
    fields = (
        (b"etag", b'"a"'),
        (b"Digest", b"x"),
        (b"Accept-Ranges", b"bytes"),
        (b"Content-Length", b"1"),
        (b"X", b"y"),
    )
    assert told(fields, with_length=True) == ((b"etag", b'W/"a"'), (b"Content-Length", b"1"), (b"X", b"y"))
    assert told(fields, with_length=False) == ((b"etag", b'W/"a"'), (b"X", b"y"))
    assert told(((b"ETag", b'W/"a"'), (b"ETag", b"a")), with_length=True) == ((b"ETag", b'W/"a"'),)
