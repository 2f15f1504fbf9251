"""Request heads: the one plain form passes, and everything that two parsers could read in two ways is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied, Reason
from proxy.core.heads import can_become_a_head, check_request_head

GOOD = b"POST http://api.example/v1?q=1 HTTP/1.1\r\nHost: api.example\r\nContent-Length: 2\r\nX-Note: a b\t\xe9\r\n\r\n"


def refusal(head: bytes) -> str:
    """Return the detail of the refusal of a head."""
    with pytest.raises(Denied) as caught:
        check_request_head(head)
    assert caught.value.reason is Reason.BAD_REQUEST
    return caught.value.detail


@pytest.mark.parametrize(
    "head",
    [
        GOOD,
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHOST:api.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \t api.example \t\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"!#$%&'*+-.^_`|~aZ09 * HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~aZ09: \x80\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999999999 \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING:\tChunked \r\n\r\n",
    ],
)
def test_a_plain_head_passes(head: bytes) -> None:
    check_request_head(head)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET / http/1.1",
        b"GET /",
        b"GET",
        b"G(T / HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET / a HTTP/1.1",
        b"GET /\rX: 1 HTTP/1.1",
        b"GET /\nX: 1 HTTP/1.1",
    ],
)
def test_a_request_line_of_another_form_is_refused(line: bytes) -> None:
    assert "the request line is not" in refusal(line + b"\r\nHost: a\r\n\r\n")


def test_a_fragment_is_refused() -> None:
    assert "fragment" in refusal(b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b" folded", "folded"),
        (b"\tfolded: x", "folded"),
        (b"X: 1\nY: 2", "a bare CR or LF"),
        (b"X: 1\rY: 2", "a bare CR or LF"),
        (b"X", "no colon"),
        (b"", "no colon"),
        (b"X : 1", "white space before the colon"),
        (b"X\t: 1", "white space before the colon"),
        (b": 1", "no token"),
        (b"X Y: 1", "no token"),
        (b"X(): 1", "no token"),
        (b"\xe9: 1", "no token"),
        (b"X: \x00", "a control character"),
        (b"X: \x1f", "a control character"),
        (b"X: \x7f", "a control character"),
        (b"X: \x0b", "a control character"),
    ],
)
def test_a_field_of_another_form_is_refused_with_its_line_and_never_quoted(line: bytes, wrong: str) -> None:
    detail = refusal(b"GET / HTTP/1.1\r\nHost: a\r\nSecret: canary\r\n" + line + b"\r\nCookie: canary\r\n\r\n")
    assert detail.startswith("line 4 of the head is no valid header field: ")
    assert wrong in detail
    assert "canary" not in detail


def test_a_secret_in_the_bad_line_itself_is_not_quoted() -> None:
    assert "canary" not in refusal(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization : canary\r\n\r\n")
    assert "canary" not in refusal(b"GET /?canary \x00 HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (b"Host: a\r\nHost: a\r\n", "more than one Host"),
        (b"Host: a\r\nhOST:\r\n", "more than one Host"),
        (b"", "no Host"),
        (b"Hostname: a\r\n", "no Host"),
    ],
)
def test_one_host_field_is_needed(fields: bytes, wrong: str) -> None:
    assert wrong in refusal(b"GET / HTTP/1.1\r\n" + fields + b"\r\n")


def test_http_1_0_may_have_one_host_but_not_two() -> None:
    check_request_head(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
    assert "more than one Host" in refusal(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "both Content-Length and Transfer-Encoding"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", "both Content-Length and Transfer-Encoding"),
        (b"Content-Length: 1\r\ncontent-length: 1\r\n", "more than once"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "more than once"),
        (b"Content-Length: 1, 1\r\n", "not a plain decimal number"),
        (b"Content-Length:\r\n", "not a plain decimal number"),
        (b"Content-Length: +1\r\n", "not a plain decimal number"),
        (b"Content-Length: -1\r\n", "not a plain decimal number"),
        (b"Content-Length: 0x1\r\n", "not a plain decimal number"),
        (b"Content-Length: 1_0\r\n", "not a plain decimal number"),
        (b"Content-Length: 1.0\r\n", "not a plain decimal number"),
        (b"Content-Length: 007\r\n", "not a plain decimal number"),
        (b"Content-Length: 00\r\n", "not a plain decimal number"),
        (b"Content-Length: \xb2\r\n", "not a plain decimal number"),
        (b"Content-Length: 1000000000000000000\r\n", "not a plain decimal number"),
        (b"Transfer-Encoding: gzip, chunked\r\n", "chunked"),
        (b"Transfer-Encoding: chunked, chunked\r\n", "chunked"),
        (b"Transfer-Encoding: identity\r\n", "chunked"),
        (b"Transfer-Encoding:\r\n", "chunked"),
        (b"Transfer-Encoding: chunked;q=1\r\n", "chunked"),
        (b'Transfer-Encoding: "chunked"\r\n', "chunked"),
        (b"Transfer-Encoding: \xe3\x82\xafhunked\r\n", "chunked"),
    ],
)
def test_the_length_of_the_body_is_told_once_and_plainly(fields: bytes, wrong: str) -> None:
    assert wrong in refusal(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")


def test_chunks_are_refused_in_http_1_0() -> None:
    assert "HTTP/1.1" in refusal(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("length", range(1, len(GOOD) + 1))
def test_every_start_of_a_good_head_can_become_one(length: int) -> None:
    assert can_become_a_head(GOOD[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01",
        b"\x05\x01\x00",
        b"\x00",
        b"\xff",
        b" GET",
        b"\n",
        b"GET / HTTP/1.1\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"GET /\r\n",
    ],
)
def test_what_can_never_become_a_head_is_known_early(data: bytes) -> None:
    assert not can_become_a_head(data)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_denial(data: bytes) -> None:
    with contextlib.suppress(Denied):
        check_request_head(data + b"\r\n\r\n")


@given(
    st.lists(st.sampled_from([b"Host: a", b"Content-Length: 1", b"X: y", b"Transfer-Encoding: chunked"]), max_size=4)
)
def test_what_passes_has_one_host_and_one_framing(fields: list[bytes]) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"
    framings = fields.count(b"Content-Length: 1") + fields.count(b"Transfer-Encoding: chunked")
    if fields.count(b"Host: a") == 1 and framings <= 1:
        check_request_head(head)
    else:
        refusal(head)
