"""What an upstream says before it was asked is no answer: not to the request that comes next, nor to any other.

Proves ARCHITECTURE's rules 1 (fail closed) and 3: a response belongs to the request that it follows, or to none
(RFC 9110, sections 9.2.2 and 15.5.9).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.listeners import listen
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Sidecar

PLAIN, UPGRADED = "127.0.0.1", "up.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
LATE_1_0 = b"HTTP/1.0 408 Request Time-out\r\nCache-Control: no-cache\r\n\r\n"
KEPT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"
BODY = "Content-Length: 2\r\n"
AT_ONCE = 4.0  # seconds; less than any limit that would end it otherwise


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = f"""
        defaults: {{plain_http: allow}}
        rules: [{{name: up, hosts: [{UPGRADED}], plain_http: upgrade}}]
    """
    hosts = {UPGRADED: "127.0.0.1"}
    with Sidecar(policy, tmp_path_factory.mktemp("unasked"), authority=authority, hosts=hosts) as running:
        yield running


@pytest.fixture(params=[PLAIN, UPGRADED])
def far(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Upstream]:
    with scripted_upstream(request.param, authority if request.param == UPGRADED else None) as upstream:
        yield upstream


@pytest.fixture
def app(sidecar: Sidecar) -> Iterator[RawClient]:
    with RawClient(sidecar.address) as client:
        yield client


def used(app: RawClient, far: Upstream) -> Accepted:
    """Return an upstream connection that has served a request, and lies idle."""
    app.send(far.request("/first"))
    server = far.accept()
    server.read_head()
    server.send(OK)
    assert app.read_exactly(len(OK)) == OK
    return server


class TestIdle:
    @pytest.mark.parametrize("words", [LATE, KEPT, OK, HINTS, b"?", b"\r\n"])
    def test_words_on_an_idle_connection_end_it(self, app: RawClient, far: Upstream, words: bytes) -> None:
        server = used(app, far)
        server.send(words)
        assert server.read_to_end() == b""
        app.send(far.request("/next", BODY, "POST") + b"ab")
        again = far.accept()
        assert again.read_head() == far.expected("/next", BODY, "POST")
        assert again.read_exactly(2) == b"ab"
        again.send(OK)
        assert app.read_exactly(len(OK)) == OK


class TestTimeout:
    """A 408 that crosses a request on a connection that had been idle is about the time before it."""

    @pytest.mark.parametrize("words", [LATE, LATE_1_0])
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_what_may_be_sent_again_is(self, app: RawClient, far: Upstream, method: str, words: bytes) -> None:
        server = used(app, far)
        app.send(far.request("/next", method=method))
        server.read_head()
        server.send(words)
        assert server.read_to_end() == b""
        again = far.accept()
        assert again.read_head() == far.expected("/next", method=method)
        again.send(OK)
        assert app.read_exactly(len(OK)) == OK

    def test_the_second_time_it_goes_out_on_a_new_connection(
        self, sidecar: Sidecar, app: RawClient, far: Upstream
    ) -> None:
        """Another idle one may be as dead, and then it would go out a third time."""
        with RawClient(sidecar.address) as other:
            app.send(far.request("/first"))
            one = far.accept()
            one.read_head()
            second = used(other, far)  # while the first is in use
        one.send(OK)
        assert app.read_exactly(len(OK)) == OK
        app.send(far.request("/next"))
        assert one.read_head() == far.expected("/next")
        one.close()
        again = far.accept()
        assert again.read_head() == far.expected("/next")
        again.close()
        assert app.read_response().status == 502
        second.assert_silent()
        far.assert_nobody_came()

    @pytest.mark.parametrize("words", [b"H", OK[:-5], HINTS, HINTS + b"H", OK[:-1]])
    def test_but_not_if_part_of_an_answer_had_come(self, app: RawClient, far: Upstream, words: bytes) -> None:
        server = used(app, far)
        app.send(far.request("/next"))
        server.read_head()
        server.send(words)
        server.close()
        if words.endswith(b"o"):
            assert app.read_to_end() == OK[:-1]
        else:
            if words.startswith(HINTS):
                assert app.read_exactly(len(HINTS)) == HINTS
            answer = app.read_response()
            assert (answer.status, answer.json()["reason"]) == (502, "upstream_failed")
        far.assert_nobody_came()

    @pytest.mark.parametrize("body", [b"", b"ab"], ids=["no body", "a body"])
    def test_what_may_not_has_had_no_answer(self, sidecar: Sidecar, app: RawClient, far: Upstream, body: bytes) -> None:
        server = used(app, far)
        more = f"Content-Length: {len(body)}\r\n"
        app.send(far.request("/next", more, "POST") + body)
        server.read_head()
        server.read_exactly(len(body))
        server.send(LATE)
        answer = app.read_response()
        assert (answer.status, answer.json()["reason"]) == (502, "upstream_failed")
        assert "408" in answer.json()["detail"]
        far.assert_nobody_came()
        line = sidecar.wait_for_decision(lambda line: (line["destination"], line["path"]) == (far.authority, "/next"))
        assert (line["method"], line["reason"], line["status"]) == ("POST", "upstream_failed", 502)

    def test_it_is_an_answer_to_who_is_still_sending(self, app: RawClient, far: Upstream) -> None:
        server = used(app, far)
        app.send(far.request("/next", BODY, "PUT") + b"a")
        server.read_head()
        assert server.read_exactly(1) == b"a"
        server.send(LATE)
        assert app.read_response().status == 408

    @pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
    def test_no_other_status_is_about_the_time_before(self, app: RawClient, far: Upstream, status: str) -> None:
        """Even where the server ends the connection with it."""
        server = used(app, far)
        app.send(far.request("/next"))
        server.read_head()
        server.send(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        assert app.read_response().status == int(status[:3])
        far.assert_nobody_came()

    def test_so_it_is_on_a_new_connection(self, app: RawClient, far: Upstream) -> None:
        app.send(far.request("/first"))
        server = far.accept()
        server.read_head()
        server.send(LATE)
        assert app.read_response().status == 408

    @pytest.mark.parametrize("words", [KEPT, HINTS + LATE], ids=["which lives on", "behind an interim response"])
    def test_so_it_is_from_who_has_heard_the_request(self, app: RawClient, far: Upstream, words: bytes) -> None:
        server = used(app, far)
        app.send(far.request("/next"))
        server.read_head()
        server.send(words)
        statuses = [app.read_response().status]
        if statuses == [103]:
            statuses.append(app.read_response().status)
        assert statuses[-1] == 408


class TestStreamed:
    """What is not kept cannot be sent twice, nor may an empty request be sent in its place."""

    @pytest.mark.parametrize("framing", [BODY, "Transfer-Encoding: chunked\r\n"])
    @pytest.mark.parametrize("words", [b"", LATE], ids=["a connection that dies", "a 408"])
    def test_a_streamed_body_is_never_sent_again(
        self, app: RawClient, far: Upstream, framing: str, words: bytes
    ) -> None:
        body = b"ab" if framing == BODY else b"2\r\nab\r\n0\r\n\r\n"
        server = used(app, far)
        app.send(far.request("/next", framing, "PUT") + body)
        assert server.read_head() == far.expected("/next", framing, "PUT")
        assert server.read_exactly(len(body)) == body
        server.send(words)
        server.close()
        answer = app.read_response()
        assert (answer.status, answer.json()["reason"]) == (502, "upstream_failed")
        far.assert_nobody_came()


class TestNew:
    """A new connection on which the upstream is first to speak: here its words are there before the request can be."""

    @pytest.fixture
    def proxy(self) -> Iterator[Upstream]:
        with scripted_upstream(PLAIN, None) as upstream:
            yield upstream

    @pytest.fixture
    def behind(self, authority: Authority, tmp_path: Path, proxy: Upstream) -> Iterator[Sidecar]:
        policy = f"""
            defaults: {{plain_http: allow}}
            upstream_proxy: {{url: "http://{proxy.authority}"}}
        """
        with Sidecar(policy, tmp_path, authority=authority, hosts={"far.example": PLAIN}) as running:
            yield running

    @pytest.mark.parametrize("words", [LATE, OK, HINTS, b"220 mail"])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_its_words_are_no_answer(self, behind: Sidecar, proxy: Upstream, words: bytes, method: str) -> None:
        with RawClient(behind.address) as app:
            app.send(
                f"{method} http://far.example/ HTTP/1.1\r\nHost: far.example\r\nContent-Length: 0\r\n\r\n".encode()
            )
            way = proxy.accept()
            way.read_head()
            way.send(b"HTTP/1.1 200 OK\r\n\r\n" + words)
            answer = app.read_response()
            assert (answer.status, answer.json()["reason"]) == (502, "upstream_failed")
            assert "before it was asked" in answer.json()["detail"]
            assert way.read_to_end() == b""

    def test_after_the_request_they_are_one(self, behind: Sidecar, proxy: Upstream) -> None:
        with RawClient(behind.address) as app:
            app.send(b"GET http://far.example/ HTTP/1.1\r\nHost: far.example\r\n\r\n")
            way = proxy.accept()
            way.read_head()
            way.send(b"HTTP/1.1 200 OK\r\n\r\n")
            assert way.read_head().startswith(b"GET / ")
            way.send(OK)
            assert app.read_exactly(len(OK)) == OK

    @pytest.mark.parametrize("is_proxy", [True, False], ids=["the network's proxy", "the upstream"])
    def test_so_it_is_if_they_come_with_the_end_of_the_handshake(
        self, authority: Authority, tmp_path: Path, is_proxy: bool
    ) -> None:
        """The proxy's words are no answer to CONNECT either, and open no way."""
        with listen() as listener:
            port = listener.getsockname()[1]
            serving = threading.Thread(target=speak_first, args=(listener, authority, OK), daemon=True)
            serving.start()
            policy = f"upstream_proxy: {{url: 'https://{UPGRADED}:{port}'}}" if is_proxy else "mode: enforce"
            with (
                Sidecar(policy, tmp_path, authority=authority, hosts={UPGRADED: PLAIN}) as running,
                RawClient(running.address) as app,
            ):
                since = time.monotonic()
                app.send(f"GET http://{UPGRADED}:{port}/ HTTP/1.1\r\nHost: {UPGRADED}:{port}\r\n\r\n".encode())
                answer = app.read_response()
                reason = "upstream_proxy_failed" if is_proxy else "upstream_failed"
                assert (answer.status, answer.json()["reason"]) == (502, reason)
                assert "before it was asked" in answer.json()["detail"]
                assert time.monotonic() - since < AT_ONCE


def speak_first(listener: socket.socket, authority: Authority, words: bytes) -> None:
    """Serve one connection: send words in the same segment as the handshake's last message (TLS 1.2: the server's)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.issue(UPGRADED).load_into(context)
    accepted, _ = listener.accept()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    with accepted, contextlib.suppress(OSError):
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            accepted.sendall(outgoing.read())
            incoming.write(accepted.recv(65536))
        tls.write(words)
        accepted.sendall(outgoing.read())
        while accepted.recv(65536):
            pass
