"""Heads of HTTP/2: what is accepted is the head of one HTTP/1.1 message, and everything else is refused.

Proves ARCHITECTURE's rule 1 where a head comes field by field: nothing passes that HTTP/1.1 would read in another way.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.http.heads import CHUNKED, UNTIL_CLOSE, RequestHead, ResponseHead, read_request_head
from proxy.core.http.heads2 import read_http2_request, read_http2_response, read_http2_trailers
from proxy.core.reasons import Reason

type Block = list[tuple[bytes, bytes]]

METHOD, SCHEME = (b":method", b"POST"), (b":scheme", b"https")
AUTHORITY, PATH = (b":authority", b"api.example"), (b":path", b"/v1?q=1")
START = [METHOD, SCHEME, AUTHORITY, PATH]
HOST = (b"host", b"api.example")


def without(name: bytes) -> Block:
    """Return the pseudo-header fields without one."""
    return [field for field in START if field[0] != name]


def with_value(name: bytes, value: bytes) -> Block:
    """Return the pseudo-header fields, one of them with another value."""
    return [(key, value if key == name else old) for key, old in START]


def refusal(block: Block, *, is_whole: bool = False) -> str:
    """Return the detail of the refusal of a request's head."""
    with pytest.raises(Denied) as caught:
        read_http2_request(block, is_whole=is_whole)
    assert caught.value.reason is Reason.BAD_REQUEST
    return caught.value.detail


def failure(block: Block, *, is_whole: bool = False, may_have_body: bool = True) -> str:
    """Return the detail of the refusal of a response's head."""
    with pytest.raises(Denied) as caught:
        read_http2_response(block, is_whole=is_whole, may_have_body=may_have_body)
    assert caught.value.reason is Reason.UPSTREAM_FAILED
    return caught.value.detail


def read(*fields: tuple[bytes, bytes], start: Block = START, is_whole: bool = False) -> RequestHead:
    return read_http2_request([*start, *fields], is_whole=is_whole)


class TestRequests:
    @pytest.mark.parametrize("name", [b"content_length", b"transfer_encoding", b"content.length"])
    def test_no_name_may_be_taken_for_the_framings(self, name: bytes) -> None:
        assert "the sign in the place of the dash" in refusal([*START, (name, b"5")])
        assert read_http2_trailers([(name, b"5")], Reason.BAD_REQUEST) == ((name, b"5"),)  # `hops` sees to them
        assert read((b"content_lengths", b"5")).fields[1:] == ((b"content_lengths", b"5"),)

    def test_a_head_is_that_of_an_http_1_1_request(self) -> None:
        assert read((b"x-note", b"a b\t\xe9"), (b"te", b"trailers"), (b"empty", b"")) == RequestHead(
            b"POST",
            b"https://api.example/v1?q=1",
            True,
            ((b"host", b"api.example"), (b"x-note", b"a b\t\xe9"), (b"te", b"trailers"), (b"empty", b"")),
            CHUNKED,
            is_http2=True,
        )

    @pytest.mark.parametrize(
        ("fields", "is_whole", "body"),
        [
            ([], True, 0),
            ([], False, CHUNKED),
            ([(b"content-length", b"0")], True, 0),
            ([(b"content-length", b"0")], False, 0),
            ([(b"content-length", b"7")], False, 7),
        ],
    )
    def test_its_body_is_as_long_as_it_says(self, fields: Block, is_whole: bool, body: int) -> None:
        assert read(*fields, is_whole=is_whole).body == body

    @pytest.mark.parametrize(
        ("start", "fields"),
        [
            pytest.param(START, [], id="an authority"),
            pytest.param(without(b":authority"), [HOST], id="a Host field"),
            pytest.param(START, [HOST], id="both"),
            pytest.param(START, [(b"host", b"API.example")], id="both, in another case"),
        ],
    )
    def test_either_names_the_host_once(self, start: Block, fields: Block) -> None:
        head = read(*fields, start=start)
        assert head.target == b"https://api.example/v1?q=1"
        assert [field for field in head.fields if field[0] == b"host"] == [HOST]

    def test_a_port_and_an_address_are_part_of_the_authority(self) -> None:
        assert read(start=with_value(b":authority", b"[::1]:8443")).target == b"https://[::1]:8443/v1?q=1"

    def test_an_asterisk_is_no_path(self) -> None:
        start = [(b":method", b"OPTIONS"), SCHEME, AUTHORITY, (b":path", b"*")]
        assert read(start=start).target == b"https://api.example"

    @pytest.mark.parametrize(
        ("crumbs", "cookie"),
        [
            ([b"a=1"], b"a=1"),
            ([b"a=1", b"b=2", b"c=3"], b"a=1; b=2; c=3"),
            ([b"a=1", b""], b"a=1"),
            ([b"", b"a=1"], b"a=1"),
            ([b""], b""),
            ([b"", b""], b""),
        ],
    )
    def test_crumbs_are_one_cookie_behind_the_rest(self, crumbs: list[bytes], cookie: bytes) -> None:
        fields = [(b"cookie", crumb) for crumb in crumbs]
        assert read(*fields[:1], (b"a", b"1"), *fields[1:], HOST).fields == (HOST, (b"a", b"1"), (b"cookie", cookie))

    @pytest.mark.parametrize(
        ("block", "why"),
        [
            pytest.param(without(b":method"), ":method", id="no method"),
            pytest.param(with_value(b":method", b""), ":method", id="an empty method"),
            pytest.param(with_value(b":method", b"GE T"), ":method", id="a blank in the method"),
            pytest.param(with_value(b":method", b"G(T"), ":method", id="a method that is no token"),
            pytest.param(with_value(b":method", b"CONNECT"), "CONNECT", id="a CONNECT"),
            pytest.param(without(b":scheme"), ":scheme", id="no scheme"),
            pytest.param(with_value(b":scheme", b""), ":scheme", id="an empty scheme"),
            pytest.param(with_value(b":scheme", b"ht tp"), ":scheme", id="a blank in the scheme"),
            pytest.param(with_value(b":scheme", b"http://evil.example/?x="), ":scheme", id="more than a scheme"),
            pytest.param(with_value(b":scheme", b"http:"), ":scheme", id="a colon in the scheme"),
            pytest.param(with_value(b":scheme", b"a/b"), ":scheme", id="a slash in the scheme"),
            pytest.param(with_value(b":scheme", b"a?b"), ":scheme", id="a question mark in the scheme"),
            pytest.param(with_value(b":scheme", b"a#b"), ":scheme", id="a fragment in the scheme"),
            pytest.param(without(b":path"), ":path", id="no path"),
            pytest.param(with_value(b":path", b""), ":path", id="an empty path"),
            pytest.param(with_value(b":path", b"v1"), ":path", id="a path without a slash"),
            pytest.param(with_value(b":path", b"http://other.example/"), ":path", id="a whole target as the path"),
            pytest.param(with_value(b":path", b"*"), ":path", id="an asterisk, of no OPTIONS"),
            pytest.param(with_value(b":path", b"/a b"), ":path", id="a blank in the path"),
            pytest.param(with_value(b":path", b"/ HTTP/1.1\r\nX: y"), ":path", id="lines in the path"),
            pytest.param(with_value(b":path", b"/\x00"), ":path", id="a NUL in the path"),
            pytest.param(with_value(b":path", b"/\xe9"), ":path", id="a byte beyond ASCII in the path"),
            pytest.param(with_value(b":path", b"/#x"), ":path", id="a fragment in the path"),
            pytest.param(without(b":authority"), "neither", id="no host"),
            pytest.param(with_value(b":authority", b""), "neither", id="an empty authority"),
            pytest.param([*without(b":authority"), (b"host", b"")], "neither", id="an empty Host field"),
            pytest.param(with_value(b":authority", b"a b"), "neither", id="a blank in the authority"),
            pytest.param(with_value(b":authority", b"a\r\nX:y"), "neither", id="lines in the authority"),
            pytest.param(with_value(b":authority", b"a/b"), "neither", id="a slash in the authority"),
            pytest.param(with_value(b":authority", b"a?b"), "neither", id="a question mark in the authority"),
            pytest.param(with_value(b":authority", b"a#b"), "neither", id="a fragment in the authority"),
            pytest.param(with_value(b":authority", b"u@a"), "neither", id="a user in the authority"),
            pytest.param(with_value(b":authority", b"a\\b"), "neither", id="a backslash in the authority"),
            pytest.param(with_value(b":authority", b"a\xe9"), "neither", id="a byte beyond ASCII in the authority"),
            pytest.param([*with_value(b":authority", b""), HOST], "more than one host", id="only a Host field says it"),
            pytest.param([*START, (b"host", b"b.example")], "more than one host", id="two hosts"),
            pytest.param([*START, HOST, HOST], "more than one host", id="the host twice"),
            pytest.param([*without(b":authority"), HOST, HOST], "more than one host", id="two Host fields"),
            pytest.param([*START, METHOD], "doubled", id="a pseudo-header field twice"),
            pytest.param([*START, (b":status", b"200")], "pseudo-header", id="one of a response"),
            pytest.param([*START, (b":protocol", b"websocket")], "pseudo-header", id="an extended CONNECT's"),
            pytest.param([*START, (b":", b"x")], "pseudo-header", id="one without a name"),
            pytest.param([*without(b":path"), (b"a", b"1"), PATH], "out of its place", id="one behind a field"),
            pytest.param([*START, (b"", b"x")], "8.2.1", id="an empty name"),
            pytest.param([*START, (b"X-Note", b"x")], "8.2.1", id="an upper-case name"),
            pytest.param([*START, (b"x note", b"x")], "8.2.1", id="a blank in a name"),
            pytest.param([*START, (b"x:y", b"x")], "8.2.1", id="a colon in a name"),
            pytest.param([*START, (b"x\r\ny", b"x")], "8.2.1", id="lines in a name"),
            pytest.param([*START, (b"x\x7f", b"x")], "8.2.1", id="a control character in a name"),
            pytest.param([*START, (b"\xe9", b"x")], "8.2.1", id="a byte beyond ASCII in a name"),
            pytest.param([*START, (b"a", b"x\r\nb: y")], "8.2.1", id="lines in a value"),
            pytest.param([*START, (b"a", b"x\ry")], "8.2.1", id="a CR in a value"),
            pytest.param([*START, (b"a", b"x\ny")], "8.2.1", id="an LF in a value"),
            pytest.param([*START, (b"a", b"x\x00")], "8.2.1", id="a NUL in a value"),
            pytest.param([*START, (b"a", b"\x01")], "8.2.1", id="a control character alone"),
            pytest.param([*START, (b"a", b"x\x7fy")], "8.2.1", id="a DEL in a value"),
            pytest.param([*START, (b"a", b" x")], "8.2.1", id="a blank before a value"),
            pytest.param([*START, (b"a", b"x\t")], "8.2.1", id="a tab behind a value"),
            pytest.param([*START, (b"a", b" ")], "8.2.1", id="a blank for a value"),
            pytest.param([*START, (b"connection", b"close")], "8.2.2", id="Connection"),
            pytest.param([*START, (b"proxy-connection", b"close")], "8.2.2", id="Proxy-Connection"),
            pytest.param([*START, (b"keep-alive", b"timeout=1")], "8.2.2", id="Keep-Alive"),
            pytest.param([*START, (b"transfer-encoding", b"chunked")], "8.2.2", id="Transfer-Encoding"),
            pytest.param([*START, (b"upgrade", b"websocket")], "8.2.2", id="Upgrade"),
            pytest.param([*START, (b"te", b"gzip")], "8.2.2", id="another TE"),
            pytest.param([*START, (b"te", b"trailers, gzip")], "8.2.2", id="TE with more than trailers"),
            pytest.param([*START, (b"te", b"")], "8.2.2", id="an empty TE"),
            pytest.param([*START, *2 * [(b"content-length", b"1")]], "more than once", id="the length twice"),
            pytest.param([*START, (b"content-length", b"1, 1")], "decimal", id="a list of lengths"),
            pytest.param([*START, (b"content-length", b"-1")], "decimal", id="a negative length"),
            pytest.param([*START, (b"content-length", b"+1")], "decimal", id="a signed length"),
            pytest.param([*START, (b"content-length", b"01")], "decimal", id="a leading zero"),
            pytest.param([*START, (b"content-length", b"")], "decimal", id="an empty length"),
        ],
    )
    def test_what_is_malformed_is_refused(self, block: Block, why: str) -> None:
        detail = refusal(block)
        assert why in detail
        assert "evil" not in detail

    def test_a_body_that_is_said_to_follow_follows(self) -> None:
        assert "8.1.1" in refusal([*START, (b"content-length", b"1")], is_whole=True)


class TestResponses:
    @pytest.mark.parametrize(
        ("fields", "is_whole", "body"),
        [([], False, UNTIL_CLOSE), ([(b"content-length", b"0")], True, 0), ([(b"content-length", b"7")], False, 7)],
    )
    def test_a_head_is_that_of_an_http_1_1_response(self, fields: Block, is_whole: bool, body: int) -> None:
        head = read_http2_response([(b":status", b"200"), *fields], is_whole=is_whole, may_have_body=True)
        assert head == ResponseHead(200, b"", True, tuple(fields), body, is_http2=True, is_all=is_whole)

    @pytest.mark.parametrize(
        ("status", "may_have_body"), [(b"200", False), (b"204", True), (b"304", True)], ids=["HEAD", "204", "304"]
    )
    def test_a_length_may_be_that_of_what_does_not_come(self, status: bytes, may_have_body: bool) -> None:
        block = [(b":status", status), (b"content-length", b"7")]
        assert read_http2_response(block, is_whole=True, may_have_body=may_have_body).body == 7

    @pytest.mark.parametrize(
        ("block", "why"),
        [
            pytest.param([], ":status", id="no status"),
            *(
                pytest.param([(b":status", text)], ":status", id=repr(text))
                for text in (b"", b"20", b"2000", b"099", b"2x0", b" 200", b"200 OK", b"101", b"+20")
            ),
            pytest.param([(b":status", b"200"), (b":status", b"200")], "doubled", id="the status twice"),
            pytest.param([(b":status", b"200"), (b":path", b"/")], "pseudo-header", id="a field of a request"),
            pytest.param([(b"a", b"1"), (b":status", b"200")], "out of its place", id="the status behind a field"),
            pytest.param([(b":status", b"200"), (b"A", b"1")], "8.2.1", id="an upper-case name"),
            pytest.param([(b":status", b"200"), (b"a", b"x\r\nSet-Cookie: y")], "8.2.1", id="lines in a value"),
            pytest.param([(b":status", b"200"), (b"transfer-encoding", b"chunked")], "8.2.2", id="Transfer-Encoding"),
            pytest.param([(b":status", b"200"), (b"content-length", b"x")], "decimal", id="no number"),
        ],
    )
    def test_what_is_malformed_is_refused(self, block: Block, why: str) -> None:
        assert why in failure(block)

    def test_a_body_that_is_said_to_follow_follows(self) -> None:
        assert "none does" in failure([(b":status", b"200"), (b"content-length", b"1")], is_whole=True)


class TestTrailers:
    def test_they_are_fields(self) -> None:
        assert read_http2_trailers([(b"grpc-status", b"0")], Reason.BAD_REQUEST) == ((b"grpc-status", b"0"),)

    @pytest.mark.parametrize(
        ("field", "why"),
        [
            ((b":status", b"200"), "pseudo-header"),
            ((b":path", b"/"), "pseudo-header"),
            ((b"A", b"1"), "8.2.1"),
            ((b"connection", b"close"), "8.2.2"),
        ],
    )
    @pytest.mark.parametrize(
        ("reason", "whose"), [(Reason.BAD_REQUEST, "the request"), (Reason.UPSTREAM_FAILED, "the upstream's response")]
    )
    def test_what_is_malformed_is_refused(
        self, field: tuple[bytes, bytes], why: str, reason: Reason, whose: str
    ) -> None:
        with pytest.raises(Denied) as caught:
            read_http2_trailers([(b"a", b"1"), field], reason)
        assert caught.value.reason is reason
        assert why in caught.value.detail
        assert whose in caught.value.detail


BYTES = st.text(alphabet="/?#@:*;,= \t\r\n\x00\x7f\xe9aZ0[]", max_size=8).map(lambda text: text.encode("latin-1"))
NAMES = st.sampled_from([b"a", b"x-note", b"host", b"cookie", b"content-length", b"te", b"expect", b"x_y", b""]) | BYTES
VALUES = BYTES | st.sampled_from([b"api.example", b"trailers", b"7", b"0", b"a=1"])


@given(
    method=st.sampled_from([b"GET", b"POST", b"OPTIONS", b"connect"]) | BYTES,
    scheme=st.sampled_from([b"http", b"https", b"wss"]) | BYTES,
    authority=st.none() | st.sampled_from([b"api.example", b"[::1]:80"]) | BYTES,
    path=st.sampled_from([b"/", b"*", b"/?a"]) | BYTES.map(lambda end: b"/" + end),
    fields=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    is_whole=st.booleans(),
)
@example(b"GET", b"https", b"a#b", b"/", [], True)
@example(b"GET", b"https", b"a", b"/", [(b"cookie", b"a=1"), (b"cookie", b"")], True)
@example(b"OPTIONS", b"https", b"a", b"*", [(b"cookie", b"a=1")], False)
def test_what_is_accepted_reads_the_same_in_http_1_1(
    method: bytes, scheme: bytes, authority: bytes | None, path: bytes, fields: Block, is_whole: bool
) -> None:
    block = [(b":method", method), (b":scheme", scheme), (b":path", path), *fields]
    if authority is not None:
        block.insert(0, (b":authority", authority))
    try:
        head = read_http2_request(block, is_whole=is_whole)
    except Denied:
        return
    framing = ((b"transfer-encoding", b"chunked"),) if head.body == CHUNKED else ()
    lines = [head.method + b" " + head.target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in head.fields + framing]
    again = read_request_head(b"\r\n".join([*lines, b"", b""]))
    assert again == RequestHead(head.method, head.target, True, head.fields + framing, head.body)
    _, _, rest = head.target.partition(b"://")
    assert rest.partition(b"/")[0] == again.fields[0][1]  # so nobody reads another host out of it than Host says
