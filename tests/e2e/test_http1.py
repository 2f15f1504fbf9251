"""HTTP/1 between an app and an upstream, byte for byte: both ends are raw sockets that the test holds in its own hands.

Proves ARCHITECTURE's rules 3 (nothing leaves early), 5 (what is not marked goes through as it came) and 1 (what breaks
off is never made to look whole), and RFC 9110 and 9112 where a proxy has a part of its own.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient, send_until_blocked
from tests.e2e.receiver import Receiver
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Sidecar
from tests.e2e.wire import END_OF_HEAD
from tests.waiting import wait_until

DEADLINE = 5.0
PLAIN, UPGRADED, HELD, REJECTED = "127.0.0.1", "up.example", "held.example", "no.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
has_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux's"
)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("http1")
    key = Receiver("pay").write_private(folder)
    policy = f"""
        defaults: {{plain_http: allow}}
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{file: {key}}}}}}}
        rules:
          - {{name: up, hosts: [{UPGRADED}], plain_http: upgrade}}
          - {{name: rejected, hosts: [{REJECTED}], plain_http: reject}}
          - {{name: held, hosts: [{HELD}], plain_http: upgrade, request: [{{encrypt: ["$.card"], key: pay}}]}}
    """
    hosts = dict.fromkeys((UPGRADED, HELD, REJECTED), "127.0.0.1")
    with Sidecar(policy, folder, authority=authority, hosts=hosts) as running:
        yield running


type MakeUpstream = Callable[..., Upstream]


@pytest.fixture
def upstream(authority: Authority) -> Iterator[MakeUpstream]:
    """Makes upstreams: plain ones, or TLS ones under a name."""
    with ExitStack() as stack:
        yield lambda host=PLAIN: stack.enter_context(
            scripted_upstream(host, None if host in (PLAIN, REJECTED) else authority)
        )


@pytest.fixture
def app(sidecar: Sidecar) -> Iterator[RawClient]:
    with RawClient(sidecar.address) as client:
        yield client


def is_open(client: RawClient) -> bool:
    """Tell whether a connection neither ended nor says anything."""
    client._socket.settimeout(0.1)
    try:
        return not client._receive() and False
    except TimeoutError:
        return True
    finally:
        client._socket.settimeout(DEADLINE)


class TestPersistence:
    def test_an_apps_connection_lives_on_and_so_does_the_upstreams(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request("/1"))
        with far.accept() as server:
            for number in (1, 2, 3):
                assert server.read_head() == far.expected(f"/{number}")
                server.send(OK)
                assert app.read_exactly(len(OK)) == OK
                if number < 3:
                    app.send(far.request(f"/{number + 1}"))
            assert is_open(app)
            far.assert_nobody_came()

    @pytest.mark.parametrize("more", ["Connection: close\r\n", "Connection: X-Own, Close\r\nX-Own: 1\r\n"])
    def test_an_app_that_says_close_is_closed_and_its_upstream_is_kept(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, more: str
    ) -> None:
        far = upstream()
        app.send(far.request(more=more))
        with far.accept() as server:
            assert server.read_head() == far.expected()
            server.send(OK)
            assert app.read_to_end() == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            with RawClient(sidecar.address) as next_app:
                next_app.send(far.request("/next"))
                assert server.read_head() == far.expected("/next")

    @pytest.mark.parametrize(
        "more", ["", "Connection: close\r\n", "Connection: keep-alive\r\nKeep-Alive: timeout=9\r\n"]
    )
    def test_an_http_1_0_app_is_always_closed(self, app: RawClient, upstream: MakeUpstream, more: str) -> None:
        """RFC 9112, section 9.3: a proxy keeps no connection with an HTTP/1.0 client, whatever that asks for."""
        far = upstream()
        app.send(far.request(more=more, version="1.0"))
        with far.accept() as server:
            assert server.read_head() == far.expected()
            server.send(OK)
            assert app.read_to_end() == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    def test_an_http_1_0_app_without_a_host_field_gets_one(self, app: RawClient, upstream: MakeUpstream) -> None:
        """What goes on is HTTP/1.1, where the field is needed (RFC 9112, section 3.2)."""
        far = upstream()
        app.send(f"GET http://{far.authority}/a HTTP/1.0\r\nX: 1\r\n\r\n".encode())
        with far.accept() as server:
            head = server.read_head()
            assert head == f"GET /a HTTP/1.1\r\nHost: {far.authority}\r\nX: 1\r\n\r\n".encode()
            server.send(OK)
            assert app.read_to_end().endswith(b"\r\n\r\nok")

    def test_an_http_1_0_app_gets_no_chunks(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request(version="1.0"))
        with far.accept() as server:
            server.read_head()
            server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: 1\r\n\r\n2\r\nab\r\n")
            assert app.read_until(b"ab") == b"HTTP/1.1 200 OK\r\nX: 1\r\nConnection: close\r\n\r\nab"
            server.send(b"1\r\nc\r\n0\r\nX-Trailer: 1\r\n\r\n")
            assert app.read_to_end() == b"c"

    def test_an_upstream_that_says_close_closes_nothing_here(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        for path in ("/1", "/2"):
            app.send(far.request(path))
            with far.accept() as server:
                assert server.read_head() == far.expected(path)
                server.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nKeep-Alive: timeout=5\r\n\r\n"))
                assert app.read_exactly(len(OK)) == OK
                assert server.read_to_end() == b""  # it is not kept
        assert is_open(app)

    @pytest.mark.parametrize(
        ("request_field", "response_field"),
        [
            ("Authorization: Negotiate YII=\r\n", b""),
            ("authorization: ntlm TlRM\r\n", b""),
            ("", b"WWW-Authenticate: NTLM\r\n"),
            ("", b"WWW-Authenticate: Basic realm=a\r\nwww-authenticate: Negotiate oYG=\r\n"),
        ],
    )
    def test_a_connection_that_may_be_authenticated_serves_nobody_else(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, request_field: str, response_field: bytes
    ) -> None:
        """NTLM and, with many servers, Negotiate hold for a connection, whoever's the next request on it is."""
        far = upstream()
        app.send(far.request("/1", request_field))
        answer = OK.replace(b"\r\n\r\n", b"\r\n" + response_field + b"\r\n")
        with far.accept() as server:
            assert server.read_head() == far.expected("/1", request_field)
            server.send(answer)
            assert app.read_exactly(len(answer)) == answer
            assert server.read_to_end() == b""
        with RawClient(sidecar.address) as other:
            other.send(far.request("/2", "Authorization: Basic YTpi\r\n"))
            with far.accept() as server:
                assert server.read_head() == far.expected("/2", "Authorization: Basic YTpi\r\n")
                server.send(OK)
                assert other.read_exactly(len(OK)) == OK
                app.send(far.request("/3"))  # the twin: any other scheme is about its request only
                assert server.read_head() == far.expected("/3")

    def test_an_app_that_ends_its_side_gets_its_answer_and_then_the_end(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request("/1") + far.request("/2"))
        app.finish()
        with far.accept() as server:
            for path in ("/1", "/2"):
                assert server.read_head() == far.expected(path)
                server.send(OK)
            assert app.read_to_end() == OK + OK

    def test_pipelined_requests_are_answered_in_their_order_one_after_the_other(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        one, other = upstream(), upstream()
        body = "Content-Length: 3\r\n"
        app.send(one.request("/1") + other.request("/2", body, "POST") + b"two" + one.request("/3"))
        with one.accept() as first:
            assert first.read_head() == one.expected("/1")
            first.assert_silent()
            other.assert_nobody_came()
            first.send(OK)
            with other.accept() as second:
                assert second.read_head() + second.read_exactly(3) == other.expected("/2", body, "POST") + b"two"
                second.send(OK.replace(b"ok", b"no"))
            assert first.read_head() == one.expected("/3")
            first.send(OK)
            assert app.read_exactly(3 * len(OK)) == OK + OK.replace(b"ok", b"no") + OK

    @pytest.mark.parametrize(
        ("method", "answer"),
        [
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
            ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ],
    )
    def test_after_a_response_without_a_body_both_connections_go_on(
        self, app: RawClient, upstream: MakeUpstream, method: str, answer: bytes
    ) -> None:
        far = upstream()
        app.send(far.request("/1", method=method))
        with far.accept() as server:
            assert server.read_head() == far.expected("/1", method=method)
            server.send(answer)
            assert app.read_exactly(len(answer)) == answer
            app.send(far.request("/2"))
            assert server.read_head() == far.expected("/2")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK


class TestTargets:
    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    @pytest.mark.parametrize(("path", "target"), [("", "*"), ("/", "/"), ("?a", "/?a")])
    def test_the_options_of_a_whole_server_are_asked_for_by_an_asterisk(
        self, app: RawClient, upstream: MakeUpstream, host: str, path: str, target: str
    ) -> None:
        far = upstream(host)
        app.send(far.request(path, method="OPTIONS"))  # RFC 9112, section 3.2.4
        with far.accept() as server:
            assert server.read_head() == far.expected(target, method="OPTIONS")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK


class TestStreaming:
    CHUNKED = "Transfer-Encoding: chunked\r\n"

    def test_a_request_in_chunks_passes_piece_by_piece(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request("/1", self.CHUNKED, "POST"))
        with far.accept() as server:
            assert server.read_head() == far.expected("/1", self.CHUNKED, "POST")
            for piece in (b"a", b"bcd", b"\r\n\x00"):
                app.send(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece))
                assert server.read_exactly(len(piece) + 5) == b"%x\r\n%s\r\n" % (len(piece), piece)
            server.assert_silent()
            app.send(b"0\r\nX-Trailer:  1 \r\nContent-Length: 5\r\nHOST: a\r\ndigest: 2\r\n\r\n" + far.request("/2"))
            assert server.read_until(b"\r\n\r\n") == b"0\r\nX-Trailer: 1\r\ndigest: 2\r\n\r\n"
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            assert server.read_head() == far.expected("/2")

    def test_a_request_with_a_length_passes_piece_by_piece(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        length = "Content-Length: 4\r\n"
        app.send(far.request("/", length, "PUT") + b"a")
        with far.accept() as server:
            assert server.read_head() + server.read_exactly(1) == far.expected("/", length, "PUT") + b"a"
            app.send(b"bc")
            assert server.read_exactly(2) == b"bc"
            app.send(b"d" + far.request("/next"))
            assert server.read_exactly(1) == b"d"
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            assert server.read_head() == far.expected("/next")

    def test_a_response_in_chunks_passes_piece_by_piece(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request("/1"))
        head = b"HTTP/1.1 200 OK\r\nX: 1\r\ntransfer-encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n"
        with far.accept() as server:
            server.read_head()
            server.send(head)
            assert app.read_exactly(len(head)) == head
            for piece in (b"a", b"bcd", b"\r\n\x00"):
                server.send(b"00%x\r\n%s\r\n" % (len(piece), piece))
                assert app.read_exactly(len(piece) + 5) == b"%x\r\n%s\r\n" % (len(piece), piece)
            server.send(b"0\r\nX-Trailer: 1\r\nSet-Cookie: a=b\r\n\r\n")
            assert app.read_until(b"\r\n\r\n") == b"0\r\nX-Trailer: 1\r\n\r\n"
            app.send(far.request("/2"))
            assert server.read_head() == far.expected("/2")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK

    def test_an_upgraded_response_passes_piece_by_piece(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(UPGRADED)
        app.send(far.request())
        with far.accept() as server:
            assert server.read_head() == far.expected()
            for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"a", b"b", b"c"):
                server.send(piece)
                assert app.read_exactly(len(piece)) == piece


class TestInterim:
    EXPECT = "Content-Length: 2\r\nExpect: 100-continue\r\n"
    CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

    def test_of_a_streamed_request_the_upstream_says_whether_to_go_on(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request("/", self.EXPECT, "POST"))
        with far.accept() as server:
            assert server.read_head() == far.expected("/", self.EXPECT, "POST")
            assert is_open(app)  # and nobody has told it to go on
            server.send(self.CONTINUE)
            assert app.read_exactly(len(self.CONTINUE)) == self.CONTINUE
            app.send(b"ab")
            assert server.read_exactly(2) == b"ab"
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK

    def test_an_upstream_may_say_no_before_the_body(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request("/", self.EXPECT, "POST"))
        answer = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
        with far.accept() as server:
            server.read_head()
            server.send(answer)
            # Whether its body follows is for the app to choose, so what came next could be taken for it.
            assert app.read_to_end() == answer[:-2] + b"Connection: close\r\n\r\n"
            assert server.read_to_end() == b""

    def test_one_that_says_so_after_the_body_has_begun_leaves_the_connection_open(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request("/", self.EXPECT, "POST") + b"h")
        with far.accept() as server:
            server.read_head()
            assert server.read_exactly(1) == b"h"
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            app.send(b"i" + far.request("/next", method="GET"))
            with far.accept() as again:
                again.read_head()
                again.send(OK)
                assert app.read_exactly(len(OK)) == OK

    @pytest.mark.parametrize("is_answered", [True, False])
    @pytest.mark.parametrize(
        ("framing", "body"), [("Content-Length: 2", b"hi"), ("Transfer-Encoding: chunked", b"0\r\n\r\n")]
    )
    def test_so_does_whatever_is_said_after_its_end(
        self, app: RawClient, upstream: MakeUpstream, framing: str, body: bytes, is_answered: bool
    ) -> None:
        far = upstream()
        app.send(far.request("/", f"{framing}\r\nExpect: 100-continue\r\n", "POST") + body)
        with far.accept() as server:
            server.read_head()
            assert server.read_exactly(len(body)) == body
            if is_answered:
                server.send(OK)
        assert app.read_response().status == (200 if is_answered else 502)
        app.send(far.request("/next"))
        with far.accept() as again:
            assert again.read_head() == far.expected("/next")
            again.send(OK)
            assert app.read_exactly(len(OK)) == OK

    def test_so_it_is_for_who_will_send_its_body_in_any_case(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request("/", "Content-Length: 2\r\n", "POST"))
        with far.accept() as server:
            server.read_head()
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            app.send(b"hi" + far.request("/next"))
            with far.accept() as again:
                assert again.read_head() == far.expected("/next")
                again.send(OK)
                assert app.read_exactly(len(OK)) == OK

    def test_of_a_held_request_overcoat_says_so_itself(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(HELD)
        more = self.EXPECT.replace("2", "12") + "Content-Type: application/json\r\n"
        app.send(far.request("/", more, "POST"))
        assert app.read_exactly(len(self.CONTINUE)) == self.CONTINUE
        far.assert_nobody_came()
        app.send(b'{"card":"4"}')
        with far.accept() as server:
            head = server.read_head()
            assert b"expect" not in head.lower()
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK

    @pytest.mark.parametrize("host", [PLAIN, HELD])
    def test_without_a_body_there_is_nothing_to_go_on_with(
        self, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        """RFC 9110, section 10.1.1: a 100 may be left out there; it is for the server to answer."""
        far = upstream(host)
        app.send(far.request("/", "Expect: 100-continue\r\n"))
        with far.accept() as server:
            assert server.read_head() == far.expected("/", "Expect: 100-continue\r\n")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            app.send(far.request("/next"))
            assert server.read_head() == far.expected("/next")

    @pytest.mark.parametrize("host", [REJECTED, HELD])
    def test_a_denied_request_gets_its_final_answer_only(
        self, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        far = upstream(host)
        app.send(far.request("/", self.EXPECT + "Content-Encoding: unknown\r\n", "POST"))
        answer = app.read_response()
        assert answer.status == (403 if host == REJECTED else 415)
        assert answer.headers.tokens("connection") == {"close"}  # its body may follow, or the next request
        assert app.read_to_end() == b""
        far.assert_nobody_came()

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("more", ["", "Expect: 100-continue\r\n"])
    def test_a_denied_request_without_a_body_leaves_the_connection_open(
        self, app: RawClient, upstream: MakeUpstream, method: str, more: str
    ) -> None:
        far, next_one = upstream(REJECTED), upstream()
        app.send(far.request("/", more, method))
        assert app.read_response(method=method).status == 403
        app.send(next_one.request())
        with next_one.accept() as server:
            assert server.read_head() == next_one.expected()
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
        far.assert_nobody_came()

    def test_early_hints_are_passed_on_as_they_come(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request("/1"))
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        with far.accept() as server:
            server.read_head()
            for interim in (hints, hints, b"HTTP/1.1 102 Processing\r\n\r\n"):
                server.send(interim)
                assert app.read_exactly(len(interim)) == interim
            server.send(hints + OK)
            assert app.read_exactly(len(hints + OK)) == hints + OK
            app.send(far.request("/2"))
            assert server.read_head() == far.expected("/2")

    @pytest.mark.parametrize(
        ("host", "scheme", "rest"),
        [
            (UPGRADED, "http", b""),
            (PLAIN, "https", b"Set-Cookie: a=b; Secure\r\nStrict-Transport-Security: max-age=9\r\n"),
        ],
        ids=["upgraded", "as they came"],
    )
    def test_hints_of_an_upgraded_host_fit_what_its_app_knows(
        self, app: RawClient, upstream: MakeUpstream, host: str, scheme: str, rest: bytes
    ) -> None:
        far = upstream(host)
        app.send(far.request())
        start = b"HTTP/1.1 103 Early Hints\r\nX: 1\r\nLink: <%s://%s/a.css>; rel=preload\r\n%s\r\n"
        said = b"Set-Cookie: a=b; Secure\r\nStrict-Transport-Security: max-age=9\r\n"
        with far.accept() as server:
            server.read_head()
            server.send(start % (b"https", far.authority.encode(), said) + OK)
            expected = start % (scheme.encode(), far.authority.encode(), rest) + OK
            assert app.read_exactly(len(expected)) == expected

    def test_what_is_about_one_connection_ends_here_in_interim_responses_as_well(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request())
        with far.accept() as server:
            server.read_head()
            server.send(b"HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nLink: a\r\n\r\n" + OK)
            expected = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK
            assert app.read_exactly(len(expected)) == expected

    def test_an_http_1_0_app_gets_no_interim_response(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream()
        app.send(far.request(version="1.0"))
        with far.accept() as server:
            server.read_head()
            server.send(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK)
            assert app.read_to_end() == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    @pytest.mark.parametrize("host", [PLAIN, HELD])
    def test_an_http_1_0_app_expects_nothing(self, app: RawClient, upstream: MakeUpstream, host: str) -> None:
        """RFC 9110, section 10.1.1: its expectation is ignored, and in HTTP/1.1 it would be one."""
        far = upstream(host)
        more = "Content-Type: application/json\r\n" + self.EXPECT.replace("2", "12")
        app.send(far.request("/", more, "POST", version="1.0") + b'{"card":"4"}')
        with far.accept() as server:
            head = server.read_head()
            assert b"\r\nContent-Type: application/json\r\n" in head
            assert b"expect" not in head.lower()
            server.send(OK)
            assert app.read_to_end() == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    @pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "304 Not Modified")])
    def test_an_http_1_0_app_hears_of_no_chunks_even_where_none_follow(
        self, app: RawClient, upstream: MakeUpstream, method: str, status: str
    ) -> None:
        """RFC 9112, section 6.1: no Transfer-Encoding to who has not said that it is of HTTP/1.1."""
        far = upstream()
        app.send(far.request(method=method, version="1.0"))
        with far.accept() as server:
            server.read_head()
            server.send(f"HTTP/1.1 {status}\r\nETag: 1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            assert app.read_to_end() == f"HTTP/1.1 {status}\r\nETag: 1\r\nConnection: close\r\n\r\n".encode()

    def test_an_answer_that_comes_before_the_request_is_whole_is_passed_on_and_the_rest_thrown_away(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request("/1", "Content-Length: 100000\r\n", "POST") + b"a")
        answer = OK.replace(b"200 OK", b"413 Too Large")
        with far.accept() as server:
            server.read_head()
            assert server.read_exactly(1) == b"a"
            server.send(answer)
            assert app.read_exactly(len(answer)) == answer
            assert server.read_to_end() == b""  # its request is not whole, so nothing more can be sent there
        app.send(b"b" * 99_999 + far.request("/2"))
        with far.accept() as server:
            assert server.read_head() == far.expected("/2")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK


class TestWebSocket:
    OFFER = "Upgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n"
    CONNECTION = "Connection: Upgrade\r\n"
    SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: BBBB\r\n"

    def switch(self, app: RawClient, far: Upstream) -> Accepted:
        """Open a WebSocket; the server's first frame comes with its answer."""
        app.send(far.request("/chat", self.OFFER + self.CONNECTION))
        server = far.accept()
        assert server.read_head() == far.expected("/chat", self.OFFER + self.CONNECTION)
        server.send(self.SWITCH + b"Connection: Upgrade\r\n\r\n\x81\x02hi")
        expected = self.SWITCH + b"Connection: Upgrade\r\n\r\n\x81\x02hi"
        assert app.read_exactly(len(expected)) == expected
        return server

    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    def test_bytes_pass_both_ways_until_the_app_ends_it(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        far = upstream(host)
        server = self.switch(app, far)
        for frame in (b"\x81\x85\x00\x00\x00\x00hello", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000):
            app.send(frame)
            assert server.read_exactly(len(frame)) == frame
            server.send(frame)
            assert app.read_exactly(len(frame)) == frame
        app.close()
        assert server.read_to_end() == b""
        line = sidecar.wait_for_decision(lambda decision: decision["destination"] == far.authority)
        assert (line["status"], line["reason"]) == (101, None)

    @pytest.mark.parametrize("scheme", ["ws", "WS", "wss"])
    def test_an_app_may_ask_for_it_by_its_own_scheme(self, app: RawClient, upstream: MakeUpstream, scheme: str) -> None:
        far = upstream(UPGRADED)
        asked = far.request("/chat", self.OFFER + self.CONNECTION)
        app.send(asked.replace(b"GET http:", f"GET {scheme}:".encode()))
        with far.accept() as server:  # the handshake of TLS is in there
            assert server.read_head() == far.expected("/chat", self.OFFER + self.CONNECTION)
            server.send(self.SWITCH + b"Connection: Upgrade\r\n\r\n")
            assert app.read_until(END_OF_HEAD).startswith(b"HTTP/1.1 101 ")
            for frame in (b"\x81\x82\x00\x00\x00\x00hi", b"\xff" * 100_000):
                app.send(frame)
                assert server.read_exactly(len(frame)) == frame
                server.send(frame)
                assert app.read_exactly(len(frame)) == frame

    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    def test_it_ends_for_the_app_when_the_upstream_ends_it(
        self, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        server = self.switch(app, upstream(host))
        server.send(b"\x88\x00")
        server.close()
        assert app.read_to_end() == b"\x88\x00"

    def test_an_upstream_that_breaks_it_off_puts_nothing_into_it(self, app: RawClient, upstream: MakeUpstream) -> None:
        self.switch(app, upstream()).reset()
        with pytest.raises(ConnectionResetError):
            app._receive()

    @pytest.mark.parametrize(
        ("asked", "answered"),
        [
            pytest.param("", SWITCH, id="not asked for"),
            pytest.param("Upgrade: websocket\r\n" + CONNECTION, SWITCH.replace(b"websocket", b"h2c"), id="another"),
            pytest.param("Upgrade: websocket\r\n" + CONNECTION, b"HTTP/1.1 101 Switch\r\n", id="not named"),
            pytest.param("Upgrade: h2c\r\n" + CONNECTION, SWITCH.replace(b"websocket", b"h2c"), id="not passed on"),
        ],
    )
    def test_a_switch_that_was_not_asked_for_is_refused(
        self, app: RawClient, upstream: MakeUpstream, asked: str, answered: bytes
    ) -> None:
        far = upstream()
        app.send(far.request("/", asked))
        with far.accept() as server:
            server.read_head()
            server.send(answered + b"Connection: Upgrade\r\n\r\nsecret")
            answer = app.read_response()
            assert (answer.status, answer.json()["reason"]) == (502, "upstream_failed")
            assert b"secret" not in answer.body
            assert server.read_to_end() == b""
        assert answer.headers.tokens("connection") == {"close"}
        assert app.read_to_end() == b""

    @pytest.mark.parametrize(("body", "is_refused"), [(b"a", True), (b"ab", False)])
    def test_nor_is_one_taken_before_the_request_is_whole(
        self, app: RawClient, upstream: MakeUpstream, body: bytes, is_refused: bool
    ) -> None:
        """What of its body still came would be read as words of the other protocol."""
        far = upstream()
        app.send(far.request("/chat", self.OFFER + self.CONNECTION + "Content-Length: 2\r\n") + body)
        with far.accept() as server:
            server.read_head()
            assert server.read_exactly(len(body)) == body
            server.send(self.SWITCH + b"Connection: Upgrade\r\n\r\n")
            head = app.read_until(END_OF_HEAD)
            assert head.startswith(b"HTTP/1.1 502 " if is_refused else b"HTTP/1.1 101 ")

    @pytest.mark.parametrize("framing", ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
    def test_a_switch_has_no_body_whatever_it_says(self, app: RawClient, upstream: MakeUpstream, framing: str) -> None:
        """RFC 9112, section 6.1, and RFC 9110, section 8.6: to the app it could be the start of one."""
        far = upstream()
        app.send(far.request("/chat", self.OFFER + self.CONNECTION))
        with far.accept() as server:
            server.read_head()
            server.send(self.SWITCH + framing.encode() + b"Connection: Upgrade\r\n\r\n\x81\x02hi")
            expected = self.SWITCH + b"Connection: Upgrade\r\n\r\n\x81\x02hi"
            assert app.read_exactly(len(expected)) == expected
            app.send(b"0\r\n\r\n")
            assert server.read_exactly(5) == b"0\r\n\r\n"


class TestEndings:
    HEAD = b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n"
    CLOSING = b"HTTP/1.1 200 OK\r\nX: 1\r\nConnection: close\r\n\r\n"

    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    def test_a_response_without_a_length_ends_with_its_connection(
        self, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        far = upstream(host)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        server.send(self.HEAD + b"a")
        assert app.read_exactly(len(self.CLOSING) + 1) == self.CLOSING + b"a"
        server.send(b"bc")
        if isinstance(server._socket, ssl.SSLSocket):
            server._socket.settimeout(0.2)
            with pytest.raises((TimeoutError, ssl.SSLError, OSError)):  # the close_notify goes out, none comes back
                server._socket.unwrap()
        server.close()
        received = b""
        while data := app._socket.recv(65536):  # not read_to_end, which takes a reset for an end
            received += data
        assert received == b"bc"

    @pytest.mark.parametrize(("host", "end"), [(PLAIN, "reset"), (UPGRADED, "reset"), (UPGRADED, "no close_notify")])
    def test_but_a_connection_that_breaks_ends_nothing_in_order(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, host: str, end: str
    ) -> None:
        """Only a reset tells the app that this is not all: a truncated response must not look whole."""
        far = upstream(host)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        server.send(self.HEAD + b"a")
        app.read_exactly(len(self.CLOSING) + 1)
        if end == "reset":
            server.reset()
        else:
            server.close()
        with pytest.raises(ConnectionResetError):
            app._receive()
        line = sidecar.wait_for_decision(lambda decision: decision["destination"] == far.authority)
        assert line["status"] is None

    @pytest.mark.parametrize(
        ("head", "body"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"abc"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"),
        ],
        ids=["length", "chunks"],
    )
    def test_a_response_that_is_cut_short_is_cut_short_for_the_app(
        self, app: RawClient, upstream: MakeUpstream, head: bytes, body: bytes
    ) -> None:
        far = upstream()
        app.send(far.request())
        with far.accept() as server:
            server.read_head()
            server.send(head + body)
            assert app.read_exactly(len(head + body)) == head + body
        assert app.read_to_end() == b""

    def test_what_follows_a_response_reaches_nobody(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        app.send(far.request("/1"))
        with far.accept() as server:
            server.read_head()
            server.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")
            assert app.read_exactly(len(OK)) == OK
            assert server.read_to_end() == b""
        app.send(far.request("/2"))
        with far.accept() as server:
            assert server.read_head() == far.expected("/2")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
        assert is_open(app)

    @pytest.mark.parametrize("when", ["before the response", "within the response", "within the request"])
    # A connection that is merely ended may still want its answer; one that is reset does not.
    def test_an_app_that_goes_away_leaves_nothing_open(
        self, sidecar: Sidecar, upstream: MakeUpstream, when: str
    ) -> None:
        far = upstream()
        with RawClient(sidecar.address) as app:
            within = when == "within the request"
            app.send(far.request("/", "Content-Length: 9\r\n" if within else "", "POST" if within else "GET"))
            server = far.accept()
            server.read_head()
            if when == "within the response":
                server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
                app.read_until(b"abc")
            if not within:
                app._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        assert server.read_to_end() == b""
        line = sidecar.wait_for_decision(lambda decision: decision["destination"] == far.authority)
        assert (line["status"], line["reason"]) == (None, None)
        wait_until(lambda: sidecar.metrics().value("overcoat_client_connections") == 0)


class TestSlowness:
    SIZE = 24 * 1024 * 1024
    BOUND = 16 * 1024 * 1024  # kernel buffers of loopback sockets are most of it

    @has_proc
    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    def test_a_slow_app_slows_its_upstream_and_loses_nothing(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        far = upstream(host)
        app.send(far.request("/1"))
        body = bytes(range(251)) * (self.SIZE // 251)
        with far.accept() as server:
            server.read_head()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            app.read_until(END_OF_HEAD)
            before = sidecar.resident_bytes()
            sent = send_until_blocked(server._socket, body)
            assert sent < self.BOUND
            assert sidecar.resident_bytes() - before < self.BOUND
            rest = threading.Thread(target=server.send, args=(body[sent:],))
            rest.start()
            assert app.read_exactly(len(body)) == body
            rest.join()
            app.send(far.request("/2"))
            assert server.read_head() == far.expected("/2")

    @has_proc
    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    def test_a_slow_upstream_slows_its_app_and_loses_nothing(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        far = upstream(host)
        body = bytes(range(251)) * (self.SIZE // 251)
        app.send(far.request("/", f"Content-Length: {len(body)}\r\n", "PUT"))
        with far.accept() as server:
            server.read_head()
            before = sidecar.resident_bytes()
            sent = send_until_blocked(app._socket, body)
            assert sent < self.BOUND
            assert sidecar.resident_bytes() - before < self.BOUND
            rest = threading.Thread(target=app.send, args=(body[sent:],))
            rest.start()
            assert server.read_exactly(len(body)) == body
            rest.join()
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK

    @has_proc
    def test_pipelined_input_waits_outside_while_a_response_is_pending(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream()
        one = far.request("/again", "X-Filler: " + "f" * 4000 + "\r\n")
        app.send(far.request("/first"))
        with far.accept() as server:
            assert server.read_head() == far.expected("/first")
            before = sidecar.resident_bytes()
            sent = send_until_blocked(app._socket, one * (self.SIZE // len(one)))
            assert sent < self.BOUND
            assert sidecar.resident_bytes() - before < 2 * 1024 * 1024
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            for _ in range(40):  # more than what waited inside
                assert server.read_head().startswith(b"GET /again HTTP/1.1\r\n")
                server.send(OK)
                assert app.read_exactly(len(OK)) == OK
