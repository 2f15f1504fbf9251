"""Heads: the one plain form passes and is read, and everything that two parsers could read in two ways is refused.

Proves ARCHITECTURE's rule 1 for what comes first of every message, from both sides.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.http import heads
from proxy.core.http.heads import (
    BAD_REQUEST_LINE,
    CHUNKED,
    MAX_HEAD_BYTES,
    UNTIL_CLOSE,
    HeadEnd,
    RequestHead,
    ResponseHead,
    can_become_a_head,
    names_in,
    read_request_head,
    read_response_head,
)
from proxy.core.reasons import Reason

GOOD = b"POST http://api.example/v1?q=1 HTTP/1.1\r\nHost: api.example\r\nContent-Length: 2\r\nX-Note: a b\t\xe9\r\n\r\n"


def refusal(head: bytes) -> str:
    """Return the detail of the refusal of a head."""
    with pytest.raises(Denied) as caught:
        read_request_head(head)
    assert caught.value.reason is Reason.BAD_REQUEST
    return caught.value.detail


def failure(head: bytes) -> str:
    """Return the detail of the refusal of a response's head."""
    with pytest.raises(Denied) as caught:
        read_response_head(head)
    assert caught.value.reason is Reason.UPSTREAM_FAILED
    return caught.value.detail


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            GOOD,
            RequestHead(
                b"POST",
                b"http://api.example/v1?q=1",
                True,
                ((b"Host", b"api.example"), (b"Content-Length", b"2"), (b"X-Note", b"a b\t\xe9")),
                2,
            ),
        ),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", RequestHead(b"GET", b"/", True, ((b"Host", b""),), 0)),
        (b"GET / HTTP/1.1\r\nHOST:a\r\n\r\n", RequestHead(b"GET", b"/", True, ((b"HOST", b"a"),), 0)),
        (b"GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n", RequestHead(b"GET", b"/", True, ((b"Host", b"a"),), 0)),
        (b"GET / HTTP/1.0\r\n\r\n", RequestHead(b"GET", b"/", False, (), 0)),
        (
            b"!#$%&'*+-.^_`|~aZ09 * HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~aZ09: \x80\xff\r\n\r\n",
            RequestHead(
                b"!#$%&'*+-.^_`|~aZ09", b"*", True, ((b"Host", b"a"), (b"!#$%&'*+-.^_`|~aZ09", b"\x80\xff")), 0
            ),
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nX: 2\r\nx: 1\r\nX: 2\r\n\r\n",
            RequestHead(b"GET", b"/", True, ((b"Host", b"a"), (b"X", b"2"), (b"x", b"1"), (b"X", b"2")), 0),
        ),
    ],
)
def test_a_plain_head_is_read_field_by_field(head: bytes, expected: RequestHead) -> None:
    assert read_request_head(head) == expected


FRAMINGS = [
    (b"Content-Length: 0\r\n", 0),
    (b"content-length:7\r\n", 7),
    (b"Content-Length: 999999999999999999 \r\n", 999_999_999_999_999_999),
    (b"Transfer-Encoding: chunked\r\n", CHUNKED),
    (b"TRANSFER-ENCODING:\tChunked \r\n", CHUNKED),
]


@pytest.mark.parametrize(("field", "body"), [(b"", 0), *FRAMINGS])
def test_the_framing_of_a_request_is_what_its_one_field_says(field: bytes, body: int) -> None:
    assert read_request_head(b"POST / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n").body == body


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


BAD_FIELDS = [
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
]


@pytest.mark.parametrize(("line", "wrong"), BAD_FIELDS)
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
    assert read_request_head(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").fields == ((b"Host", b"a"),)
    assert "more than one Host" in refusal(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n")


BAD_FRAMINGS = [
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
]


@pytest.mark.parametrize(("fields", "wrong"), BAD_FRAMINGS)
def test_the_length_of_the_body_is_told_once_and_plainly(fields: bytes, wrong: str) -> None:
    assert wrong in refusal(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")


@pytest.mark.parametrize("sign", "_.~!")
@pytest.mark.parametrize("name", ["Content-Length", "transfer-ENCODING"])
def test_no_name_in_a_request_may_be_taken_for_the_framings(name: str, sign: str) -> None:
    field = f"{name.replace('-', sign)}: 5\r\n".encode()
    assert "the sign in the place of the dash" in refusal(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n")
    assert read_response_head(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n").fields  # apps are no such servers


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


def find_end(data: bytes, *, of_request: bool, step: int, most: int = MAX_HEAD_BYTES) -> int | None:
    """Return what is found once these bytes have come in pieces."""
    end, found = HeadEnd(of_request=of_request), None
    for at in range(0, len(data), step):
        found = end.find(data[: at + step], most)
        if found is not None:
            break
    return found


@pytest.mark.parametrize("cut", [1, 3, 20, 24, 1000])
def test_a_finder_begins_anew_behind_an_end(cut: int) -> None:
    head, found = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadEnd(of_request=True)
    for _ in range(2):
        pieces = [head[:cut], head] if cut < len(head) else [head]
        assert [found.find(piece) for piece in pieces][-1] == len(head)
    with pytest.raises(Denied):  # its first line is looked at again
        found.find(b"no request\r\n")


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
class TestHeadEnd:
    @pytest.mark.parametrize("head", [GOOD, b"GET / HTTP/1.1\r\n\r\n"])
    def test_it_is_found_however_the_bytes_come(self, head: bytes, step: int) -> None:
        for of_request in (True, False):
            assert find_end(head + b"rest", of_request=of_request, step=step) == len(head)
            assert find_end(head[:-1], of_request=of_request, step=step) is None

    @pytest.mark.parametrize("data", [b"a\n", b"a: b\r\n\n", b"a\n\r\n", b"a: b\r\nb\n", b"a\r\r\n\n", b"\n"])
    def test_a_line_feed_that_ends_a_line_alone_is_known_before_the_end(self, data: bytes, step: int) -> None:
        with pytest.raises(Denied, match="the upstream's head holds a line that ends in a bare LF") as denied:
            find_end(data, of_request=False, step=step)
        assert denied.value.reason is Reason.UPSTREAM_FAILED
        with pytest.raises(Denied, match="the head holds a line that ends in a bare LF") as denied:
            find_end(b"GET / HTTP/1.1\r\n" + data, of_request=True, step=step)
        assert denied.value.reason is Reason.BAD_REQUEST
        twin = re.sub(rb"(?<!\r)\n", b"x\r\n", data)
        find_end(twin, of_request=False, step=step)

    def test_one_that_is_too_long_is_refused_whether_it_ends_or_not(self, step: int) -> None:
        for data in (GOOD, GOOD[:-1]):
            assert find_end(data, of_request=True, step=step, most=len(GOOD) - 4) == (
                len(GOOD) if data == GOOD else None
            )
            with pytest.raises(Denied) as denied:
                find_end(data, of_request=True, step=step, most=len(GOOD) - 5)
            assert denied.value.reason is Reason.HEADERS_TOO_LARGE
            with pytest.raises(Denied) as denied:
                find_end(data, of_request=False, step=step, most=len(GOOD) - 5)
            assert denied.value.reason is Reason.UPSTREAM_FAILED

    @pytest.mark.parametrize(
        "data", [b"\x15\x03", b" GET", b"GET / HTTP/1.1\n", b"SSH-2.0-OpenSSH_9.9\r\n", b"GET /\r\n"]
    )
    def test_a_request_that_is_none_is_known_by_its_first_line(self, data: bytes, step: int) -> None:
        with pytest.raises(Denied) as denied:
            find_end(data, of_request=True, step=step)
        assert (denied.value.reason, denied.value.detail) == (Reason.BAD_REQUEST, BAD_REQUEST_LINE)

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            (b"\x16\x03\x01\x02", "TLS came where http is spoken: write http:// for this address, in HTTPS_PROXY, too"),
            (b"\x05\x01\x00", "SOCKS came where http is spoken: give such apps the address of a socks5:// listener"),
            (b"\x04\x01\x00\x50", "SOCKS 4 came where http is spoken"),
        ],
    )
    def test_another_protocol_is_called_by_its_name(self, data: bytes, told: str, step: int) -> None:
        with pytest.raises(Denied) as denied:
            find_end(data, of_request=True, step=step)
        assert (denied.value.reason, denied.value.detail.startswith(told)) == (Reason.BAD_REQUEST, True)


RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            RESPONSE,
            ResponseHead(
                200,
                b"OK",
                True,
                ((b"Content-Type", b"text/plain"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")),
                UNTIL_CLOSE,
            ),
        ),
        (b"HTTP/1.0 404 Not \t Found\r\n\r\n", ResponseHead(404, b"Not \t Found", False, (), UNTIL_CLOSE)),
        (b"HTTP/1.1 200 \r\n\r\n", ResponseHead(200, b"", True, (), UNTIL_CLOSE)),
        (b"HTTP/1.1 200\r\n\r\n", ResponseHead(200, b"", True, (), UNTIL_CLOSE)),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ResponseHead(100, b"Continue", True, (), UNTIL_CLOSE)),
        (b"HTTP/1.1 999 \xe9\x80\r\n\r\n", ResponseHead(999, b"\xe9\x80", True, (), UNTIL_CLOSE)),
        # A response needs no Host, and may repeat one: the field means nothing there.
        (
            b"HTTP/1.1 200 OK\r\nHost: a\r\nHost: b\r\n\r\n",
            ResponseHead(200, b"OK", True, ((b"Host", b"a"), (b"Host", b"b")), UNTIL_CLOSE),
        ),
    ],
)
def test_a_plain_response_head_is_read_field_by_field(head: bytes, expected: ResponseHead) -> None:
    assert read_response_head(head) == expected


@pytest.mark.parametrize(("field", "body"), [(b"", UNTIL_CLOSE), *FRAMINGS])
def test_the_framing_of_a_response_is_what_its_one_field_says(field: bytes, body: int) -> None:
    assert read_response_head(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n").body == body


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b" HTTP/1.1 200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 099 Low",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 2\xb20 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 a\x00b",
        b"HTTP/1.1 200 a\x7fb",
        b"HTTP/1.1 200 a\rX: 1",
        b"HTTP/1.1 200 a\nX: 1",
        b"GET / HTTP/1.1",
    ],
)
def test_a_status_line_of_another_form_is_refused(line: bytes) -> None:
    assert "the upstream's status line is not" in failure(line + b"\r\n\r\n")


@pytest.mark.parametrize(("line", "wrong"), BAD_FIELDS)
def test_a_field_of_a_response_of_another_form_is_refused_and_never_quoted(line: bytes, wrong: str) -> None:
    detail = failure(b"HTTP/1.1 200 OK\r\nSet-Cookie: canary\r\n" + line + b"\r\nSecret: canary\r\n\r\n")
    assert detail.startswith("line 3 of the head is no valid header field: ")
    assert wrong in detail
    assert "canary" not in detail


def test_a_secret_in_the_bad_line_of_a_response_is_not_quoted() -> None:
    assert "canary" not in failure(b"HTTP/1.1 200 OK\r\nSet-Cookie : canary\r\n\r\n")
    assert "canary" not in failure(b"HTTP/1.1 canary\r\n\r\n")
    assert "canary" not in failure(b"HTTP/1.1 200 OK\r\nContent-Length: canary\r\n\r\n")


@pytest.mark.parametrize(("fields", "wrong"), BAD_FRAMINGS)
def test_the_length_of_a_responses_body_is_told_once_and_plainly(fields: bytes, wrong: str) -> None:
    assert wrong in failure(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")


def test_chunks_are_refused_in_http_1_0_responses() -> None:
    assert "HTTP/1.1" in failure(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


SPACES = (b" ", b"\t", b" \t ", b"")


def normal(head: bytes) -> bytes:
    """Return a head with `: ` after each name and no other white space round the values (RFC 9112, section 5)."""
    first, *lines = head[:-4].split(b"\r\n")
    fields = (line.partition(b":") for line in lines)
    return b"\r\n".join([first, *(name + b": " + value.strip(b" \t") for name, _, value in fields), b"", b""])


def again(start: bytes, head: RequestHead | ResponseHead) -> bytes:
    """Return a head put together again."""
    return b"\r\n".join([start, *(name + b": " + value for name, value in head.fields), b"", b""])


TOKENS = st.sampled_from([b"Host", b"x-a", b"Content-Length", b"TRANSFER-ENCODING", b"X!", b"a b", b""])
VALUES = st.one_of(st.sampled_from([b"a", b"1", b"chunked", b"x y", b"\xe9", b"\x00", b"a\nb"]), st.binary(max_size=6))
LINES = st.one_of(
    st.binary(max_size=12),
    st.tuples(TOKENS, st.just(b":"), st.sampled_from(SPACES), VALUES, st.sampled_from(SPACES)).map(b"".join),
)
HEADS = st.one_of(
    st.binary(max_size=200).map(lambda data: data + b"\r\n\r\n"),
    st.builds(
        lambda start, lines: b"\r\n".join([start, *lines, b"", b""]),
        st.sampled_from([b"GET / HTTP/1.1", b"POST http://a/ HTTP/1.0", b"HTTP/1.1 200 OK", b"HTTP/1.0 204 "]),
        st.lists(LINES, max_size=4),
    ),
)


@given(HEADS)
@example(GOOD)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nX:\t b\t \r\n\r\n")
def test_any_bytes_are_denied_or_a_request_that_says_the_same_again(head: bytes) -> None:
    try:
        read = read_request_head(head)
    except Denied:
        return
    version = b"HTTP/1.1" if read.is_http11 else b"HTTP/1.0"
    assert again(b" ".join([read.method, read.target, version]), read) == normal(head)
    assert read.body == CHUNKED or read.body >= 0


@given(HEADS)
@example(RESPONSE)
@example(b"HTTP/1.1 200\r\nX:\t b\t \r\n\r\n")
def test_any_bytes_are_denied_or_a_response_that_says_the_same_again(head: bytes) -> None:
    try:
        read = read_response_head(head)
    except Denied:
        return
    start = b"HTTP/1.%d %d" % (read.is_http11, read.status)
    reason = b" " + read.reason if head.startswith(start + b" ") else b""
    assert again(start + reason, read) == normal(head)
    assert 100 <= read.status <= 999


@given(
    st.lists(st.sampled_from([b"Host: a", b"Content-Length: 1", b"X: y", b"Transfer-Encoding: chunked"]), max_size=4)
)
def test_what_passes_has_one_host_and_one_framing(fields: list[bytes]) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"
    framings = fields.count(b"Content-Length: 1") + fields.count(b"Transfer-Encoding: chunked")
    if fields.count(b"Host: a") == 1 and framings <= 1:
        assert len(read_request_head(head).fields) == len(fields)
    else:
        refusal(head)


@pytest.mark.parametrize("framing", ["Content-Length: 1", "Transfer-Encoding: chunked"])
def test_a_connect_announces_no_body(framing: str) -> None:
    """RFC 9110, section 9.3.6: it has none, and the tunnel's first bytes could be taken for it."""
    start = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n"
    assert "body" in refusal(f"{start}{framing}\r\n\r\n".encode())
    for without in (start, f"{start}Content-Length: 0\r\n"):
        assert read_request_head(f"{without}\r\n".encode()).body == 0


class TestWhatIsKept:
    """A header section that comes again is not read again; what it means is judged with its own first line."""

    def test_the_same_section_behind_another_first_line_is_judged_anew(self) -> None:
        section = b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        for _ in range(2):
            assert read_request_head(b"POST /1 HTTP/1.1\r\n" + section).body == CHUNKED
            with pytest.raises(Denied):
                read_request_head(b"POST /2 HTTP/1.0\r\n" + section)
            with pytest.raises(Denied):
                read_request_head(b"CONNECT a:1 HTTP/1.1\r\n" + section)
            assert read_response_head(b"HTTP/1.1 200 OK\r\n" + section).body == CHUNKED
            with pytest.raises(Denied):
                read_response_head(b"HTTP/1.0 200 OK\r\n" + section)

    @pytest.mark.parametrize("section", [b"Host: a\r\nHost: b", b"Host : a", b"Host: a\r\nContent-Length: 01", b""])
    def test_a_section_that_is_refused_is_refused_each_time(self, section: bytes) -> None:
        said = []
        for _ in range(3):
            with pytest.raises(Denied) as denied:
                read_request_head(b"GET / HTTP/1.1\r\n" + section + b"\r\n\r\n")
            said.append(denied.value)
        assert len({str(each) for each in said}) == 1
        assert said[0] is not said[1]  # it is raised

    @pytest.mark.parametrize("length", [900, 5000])
    def test_one_that_is_too_long_to_be_kept_is_read_alike(self, length: int) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * length + b" \r\nY:z\r\n\r\n"
        for _ in range(2):
            assert read_request_head(head).fields == ((b"Host", b"a"), (b"X", b"x" * length), (b"Y", b"z"))

    def test_no_more_is_kept_than_is_said(self) -> None:
        all_kept = (heads._kept_section, heads._kept_request, heads._kept_response)
        for kept in all_kept:
            kept.cache_clear()
        for number in range(3 * heads.KEPT):
            read_request_head(b"GET / HTTP/1.1\r\nHost: a\r\nX: %d\r\n\r\n" % number)
            read_response_head(b"HTTP/1.1 200 OK\r\nX: %d\r\n\r\n" % number)
        assert [kept.cache_info().currsize for kept in all_kept] == [heads.KEPT] * 3
        for kept in all_kept:
            kept.cache_clear()
        read_request_head(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * heads._KEPT_BYTES + b"\r\n\r\n")
        read_response_head(b"HTTP/1.1 200 OK\r\nX: " + b"x" * heads._KEPT_BYTES + b"\r\n\r\n")
        assert [kept.cache_info().currsize for kept in all_kept] == [0] * 3

    def test_what_is_given_out_twice_cannot_be_changed(self) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        first = read_request_head(head)
        assert read_request_head(bytes(bytearray(head))) is first
        with pytest.raises(AttributeError):
            first.body = 1  # type: ignore[misc]  # that it is frozen is the point
        assert isinstance(first.fields, tuple)


@given(HEADS)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX: b\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\nb: c\r\n\r\n")
def test_all_lines_at_once_are_read_as_each_by_itself(head: bytes) -> None:
    section = head.partition(b"\r\n")[2][:-2]
    lines = [heads.FIELD_LINE.fullmatch(line) for line in section.split(b"\r\n")[:-1]]
    found = heads._read_section(section)
    if not all(lines) or (section and not section.endswith(b"\r\n")):
        assert found is None
    else:
        assert found is not None
        assert found[0] == tuple((line[1], line[2].rstrip(b" \t")) for line in lines if line)


def test_the_names_of_fields_are_told_in_lower_case() -> None:
    assert names_in(((b"Host", b"a"), (b"x-A", b"1"), (b"X-a", b"2"))) == {b"host", b"x-a"}
    assert names_in(()) == frozenset()
