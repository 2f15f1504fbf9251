"""Bodies with several JSON texts: where each starts and ends, whole or piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields.lines import Lines, Sequence, texts
from proxy.core.reasons import Reason

JSON = st.sampled_from([b"{}", b'{"a":[1]}', b'"}{\\""', b'"\\\\"', b"1", b"[[]]", b'{"a":"\\\\\\""}', b"null "])


def upper(text: bytes) -> bytes:
    return text.upper() + b"!"


def refuse(denied: Denied) -> None:
    raise denied


def fed(feed: Callable[[bytes], bytes], end: Callable[[], bytes], body: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    return [*(feed(body[a:b]) for a, b in itertools.pairwise(at)), end()]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", []),
        (b"1", [b"1"]),
        (b"1\n", [b"1"]),
        (b'{"a":1}\r\n\n \t\r\n[2]', [b'{"a":1}\r', b"[2]"]),
        (b"\n\n1\n\n", [b"1"]),
        (b"1\r2\x0b3\xe2\x80\xa84\n", [b"1\r2\x0b3\xe2\x80\xa84"]),
        (b"\x1e1\n", [b"\x1e1"]),
    ],
)
def test_a_line_ends_with_a_line_feed_and_blank_ones_are_no_texts(body: bytes, found: list[bytes]) -> None:
    assert [body[start:end] for start, end in texts(body)] == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"\x1e1\n\x1e{\n}\n", [b"1\n", b"{\n}\n"]),
        (b"0\x1e\x1e \n\x1e1", [b"0", b"1"]),
        (b'\x1e"a', [b'"a']),
    ],
)
def test_a_record_goes_from_one_separator_to_the_next(body: bytes, found: list[bytes]) -> None:
    assert [body[start:end] for start, end in texts(body, records=True)] == found


@given(st.lists(JSON), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), st.lists(st.integers(0, 10_000)), st.booleans())
def test_pieces_of_any_length_give_the_same_lines(
    items: list[bytes], end: bytes, cuts: list[int], has_end: bool
) -> None:
    body = end.join([*items, b""] if has_end else items)
    seen: list[bytes] = []
    lines = Lines(lambda text: seen.append(text) or upper(text), 1000, refuse)  # type: ignore[func-returns-value]  # a log
    out = b"".join(fed(lines.feed, lines.end, body, cuts))
    assert [text.strip(b"\r\n") for text in seen] == items
    spans = list(texts(body))
    assert [body[a:b] for a, b in spans] == [text.removesuffix(b"\n") for text in seen]
    assert out.replace(b"!", b"") == body.upper()


@given(st.lists(JSON), st.sampled_from([b"", b"\n", b"\r\n\n"]), st.lists(st.integers(0, 10_000)))
def test_pieces_of_any_length_give_the_same_records(items: list[bytes], end: bytes, cuts: list[int]) -> None:
    body = b"".join(b"\x1e" + item + end for item in items)
    seen: list[bytes] = []
    records = Sequence(lambda text: seen.append(text) or upper(text), 1000, refuse)  # type: ignore[func-returns-value]
    out = b"".join(fed(records.feed, records.end, body, cuts))
    assert [text.rstrip(b"\r\n") for text in seen] == items
    assert out.replace(b"!", b"") == body.upper()


def test_a_line_goes_on_as_soon_as_it_is_there() -> None:
    lines = Lines(upper, 100, refuse)
    assert lines.feed(b'{"a":1}\n{"b"') == b'{"A":1}\n!'
    assert lines.feed(b":2}") == b""
    assert lines.feed(b"\n") == b'{"B":2}\n!'
    assert lines.feed(b"\n\r\n") == b"\n\r\n"
    assert lines.feed(b"3") == b""
    assert lines.end() == b"3!"


def test_a_record_goes_on_with_the_line_feed_behind_its_closed_text() -> None:
    records = Sequence(upper, 100, refuse)
    assert records.feed(b'\x1e{"a}":\n[1,\n"\\') == b""
    assert records.feed(b'"\\\\"]}\n') == b'\x1e{"A}":\n[1,\n"\\"\\\\"]}\n!'
    assert records.feed(b"\x1e\n2\n") == b"\x1e\n2\n!"
    assert records.feed(b'\x1e{"cut":"') == b""
    assert records.feed(b"\x1e3\n") == b'\x1e{"CUT":"!\x1e3\n!'
    assert records.feed(b"\x1e}\n") == b"\x1e}\n!"  # what is not JSON ends, too
    assert records.feed(b"\x1e{") == b""
    assert records.end() == b"\x1e{!"


@pytest.mark.parametrize(("kind", "lead"), [(Lines, b""), (Sequence, b"\x1e")])
def test_a_text_is_held_up_to_the_limit(kind: type[Lines] | type[Sequence], lead: bytes) -> None:
    text = lead + b'"' + b"a" * (20 - len(lead) - 3) + b'"\n'
    exact = kind(upper, len(text), refuse)
    assert (exact.feed(text * 2) + exact.end()).count(b"!") == 2
    with pytest.raises(Denied) as denied:
        kind(upper, len(text) - 1, refuse).feed(text[:-1] + b" \n")
    assert denied.value.reason is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize(("kind", "lead"), [(Lines, b""), (Sequence, b"\x1e")])
def test_a_longer_text_goes_on_as_it_comes_where_it_may(kind: type[Lines] | type[Sequence], lead: bytes) -> None:
    skipped: list[Denied] = []
    body = kind(upper, 6, skipped.append)
    assert body.feed(lead + b"[1,2,3") == (b"" if not lead else lead + b"[1,2,3")
    assert body.feed(b",4") == (b"[1,2,3,4" if not lead else b",4")
    assert body.feed(b"]") == b"]"
    assert len(skipped) == 1
    assert body.feed(b"\n" + lead + b"5\n") == b"\n" + lead + b"5\n!"
    assert len(skipped) == 1
