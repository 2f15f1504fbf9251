"""Our look-ups of header fields find what mitmproxy's find."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from addons.headers import has_field, values_of, with_length

NAMES = [b"Host", b"host", b"HOST", b"X-A", b"x-a", b"hos", b"hostt"]
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=5)))


@given(FIELDS)
def test_as_mitmproxy_finds_them(fields: list[tuple[bytes, bytes]]) -> None:
    headers = http.Headers(fields)
    assert values_of(headers, b"host") == headers.get_all("host")
    assert has_field(headers, b"host") is ("host" in headers)
    assert has_field(headers, b"host", b"x-a") is ("host" in headers or "x-a" in headers)


@given(FIELDS, st.sampled_from([b"Content-Length", b"content-length", None]), FIELDS, st.integers(0, 10**9))
def test_a_length_is_said_as_mitmproxy_would(
    before: list[tuple[bytes, bytes]], name: bytes | None, behind: list[tuple[bytes, bytes]], length: int
) -> None:
    fields = (*before, *([] if name is None else [(name, b"7")]), *behind)
    headers = http.Headers(fields)
    headers["content-length"] = str(length)
    assert with_length(fields, length) == headers.fields
