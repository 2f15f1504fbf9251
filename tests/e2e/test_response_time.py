"""An upstream that does not begin to answer is a 504 in time, and nobody is made to wait without a word.

Proves ARCHITECTURE's rule 7 (say why) for whoever waits: what the upstream owes is `upstream_timeout`, what the app
owes is a 408, and neither is a connection that is closed in silence.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from h2.connection import H2Connection

from tests.e2e.app import Way, connect, open_way
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.http2 import Http2Client, Http2Upstream, Message, Reply, frame
from tests.e2e.receiver import Receiver
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Decision, Sidecar
from tests.e2e.wire import END_OF_HEAD

PLAIN, UPGRADED, PATIENT, LONGER = "127.0.0.1", "up.example", "patient.example", "longer.example"
LIMIT = 2.0  # seconds: what the policy below says
LATEST = 6.0  # … and how late on a busy machine
SOON = 4.5  # … where it is looked at now and then: four times in that time, or every five seconds if that is less
LONGER_LIMIT = 5.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = "Content-Length: 2\r\n"
RST_STREAM = 3  # RFC 9113, section 6.4


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = f"""
        defaults: {{plain_http: allow, https: inspect}}
        limits: {{response_seconds: 2}}
        rules:
          - {{name: up, hosts: [{UPGRADED}], plain_http: upgrade}}
          - {{name: patient, hosts: [{PATIENT}], limits: {{response_seconds: null}}}}
          - {{name: longer, hosts: [{LONGER}], limits: {{response_seconds: 5}}}}
    """
    hosts = dict.fromkeys((UPGRADED, PATIENT, LONGER), "127.0.0.1")
    with Sidecar(policy, tmp_path_factory.mktemp("response"), authority=authority, hosts=hosts) as running:
        assert running.ca_file.exists()  # asked for now: the command takes as long as an app may be silent
        yield running


@pytest.fixture(scope="module")
def idle(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar that lets an upstream take as long as it takes, but nobody be silent for long."""
    policy = """
        defaults: {plain_http: allow, https: inspect}
        limits: {response_seconds: null, idle_seconds: 3}
    """
    hosts = {UPGRADED: "127.0.0.1"}
    with Sidecar(policy, tmp_path_factory.mktemp("idle"), authority=authority, hosts=hosts) as running:
        assert running.ca_file.exists()  # asked for now: the command takes as long as an app may be silent
        yield running


type MakeUpstream = Callable[[str], Upstream]


@pytest.fixture
def upstream(authority: Authority) -> Iterator[MakeUpstream]:
    plain = (PLAIN, PATIENT, LONGER)
    with ExitStack() as stack:
        yield lambda host: stack.enter_context(scripted_upstream(host, None if host in plain else authority))


@pytest.fixture
def app(sidecar: Sidecar) -> Iterator[RawClient]:
    with RawClient(sidecar.address) as client:
        yield client


def lines_about(sidecar: Sidecar, far: Upstream) -> list[Decision]:
    """Return all decision lines about an upstream, once the connections of its app are closed."""
    sidecar.wait_for_decision(lambda line: line["destination"] == far.authority)
    time.sleep(0.3)  # for one that should not come
    return [line for line in sidecar.decisions() if line["destination"] == far.authority]


def reasons(sidecar: Sidecar, reason: str) -> float:
    return sidecar.metrics().value("overcoat_requests_total", reason=reason)


class TestHung:
    @pytest.mark.parametrize("host", [PLAIN, UPGRADED])
    def test_it_is_a_504_and_the_app_goes_on(
        self, sidecar: Sidecar, app: RawClient, upstream: MakeUpstream, host: str
    ) -> None:
        far = upstream(host)
        before, since = reasons(sidecar, "upstream_timeout"), time.monotonic()
        app.send(far.request("/hung", BODY, "POST") + b"ab")
        server = far.accept()
        server.read_head()
        answer = app.read_response()
        assert LIMIT <= time.monotonic() - since < LATEST
        assert (answer.status, answer.json()["reason"]) == (504, "upstream_timeout")
        assert answer.json()["detail"] == (
            "the request was sent, and the upstream had not begun to answer after 2 s (limits.response_seconds)"
        )
        assert answer.headers.get("proxy-status") == (
            'overcoat; error=http_response_timeout; details="upstream_timeout"'
        )
        assert server.read_exactly(2) == b"ab"
        assert server.read_to_end() == b""
        app.send(far.request("/next"))
        again = far.accept()
        again.read_head()
        again.send(OK)
        assert app.read_exactly(len(OK)) == OK
        first, second = lines_about(sidecar, far)
        assert (first["outcome"], first["reason"], first["status"]) == ("upstream_failed", "upstream_timeout", 504)
        assert (first["bytes_sent"], first["path"], second["reason"]) == (2, "/hung", None)
        assert reasons(sidecar, "upstream_timeout") == before + 1

    def test_inside_connect_it_counts_once(self, sidecar: Sidecar, upstream: MakeUpstream) -> None:
        far = upstream(UPGRADED)
        before = reasons(sidecar, "upstream_timeout")
        with open_way(sidecar, UPGRADED, int(far.authority.rpartition(":")[2]), Way.CONNECT) as app:
            app.send(f"GET /hung HTTP/1.1\r\nHost: {far.authority}\r\n\r\n".encode())
            far.accept().read_head()
            answer = app.read_response()
            assert (answer.status, answer.json()["reason"]) == (504, "upstream_timeout")
        assert [(line["method"], line["reason"]) for line in lines_about(sidecar, far)] == [("GET", "upstream_timeout")]
        assert reasons(sidecar, "upstream_timeout") == before + 1

    def test_part_of_a_head_is_no_beginning(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        stop = threading.Event()

        def drip() -> None:
            server.send(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.1):
                with suppress(OSError):
                    server.send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert app.read_response().status == 504
        finally:
            stop.set()
            dripping.join()

    def test_a_websocket_that_is_not_answered_is_one_too(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request("/", "Upgrade: websocket\r\nConnection: Upgrade\r\n"))
        far.accept().read_head()
        assert app.read_response().status == 504

    def test_who_waits_to_be_told_to_go_on_is_not_left_waiting(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request("/", BODY + "Expect: 100-continue\r\n", "POST"))
        far.accept().read_head()
        assert app.read_response().status == 504
        assert app.read_to_end() == b""

    def test_nor_is_one_that_is_told_something_else(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request("/", BODY + "Expect: 100-continue\r\n", "POST"))
        server = far.accept()
        server.read_head()
        server.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        assert app.read_response().status == 103
        assert app.read_response().status == 504

    def test_an_app_of_http_2_is_told_so_and_its_other_streams_live_on(
        self, sidecar: Sidecar, upstream: MakeUpstream
    ) -> None:
        far = upstream(UPGRADED)
        before = reasons(sidecar, "upstream_timeout")
        app = Http2Client.open(connect(sidecar, far.authority), UPGRADED, sidecar.ca_file)

        def ask(path: str) -> int:
            pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", far.authority), (":path", path)]
            return app.begin_raw(pseudo, last=True)

        hung = ask("/hung")
        server = far.accept()
        server.read_head()
        since = time.monotonic()
        message = app.read(hung)
        assert time.monotonic() - since < SOON
        assert (message.status, b'"upstream_timeout"' in message.body) == (504, True)
        assert server.read_to_end() == b""
        asked = ask("/next")
        again = far.accept()
        again.read_head()
        again.send(OK)
        assert app.read(asked).status == 200
        found = [(line["path"], line["reason"]) for line in lines_about(sidecar, far)]
        assert found == [("/hung", "upstream_timeout"), ("/next", None)]
        assert reasons(sidecar, "upstream_timeout") == before + 1

    def test_an_upstream_of_http_2_loses_that_stream_alone(self, authority: Authority, sidecar: Sidecar) -> None:
        with Hanging(authority, UPGRADED) as far:
            name = f"{UPGRADED}:{far.port}"
            app = Http2Client.open(connect(sidecar, name), UPGRADED, sidecar.ca_file)

            def ask(path: str) -> int:
                pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", name), (":path", path)]
                return app.begin_raw(pseudo, last=True)

            hung, other = ask("/hung"), ask("/other")
            assert app.read(other).status == 200
            message = app.read(hung)
            assert (message.status, b'"upstream_timeout"' in message.body) == (504, True)
            assert app.read(ask("/next")).status == 200
            (connection,) = far.connections
            assert frame(RST_STREAM, 0, 1, b"")[3:] in connection.received
            assert not connection.closed


class Hanging(Http2Upstream):
    """An upstream that says nothing to one path."""

    def _begin_reply(self, protocol: H2Connection, stream: int, message: Message) -> Reply | None:
        return None if message.get(":path") == "/hung" else super()._begin_reply(protocol, stream, message)


class TestNotHung:
    def test_a_response_that_has_begun_may_take_its_time(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        for piece in (OK[:-2], OK[-2:]):
            server.send(piece)
            assert app.read_exactly(len(piece)) == piece
            time.sleep(LIMIT * 1.5)

    def test_so_may_one_that_its_app_was_slow_to_read(self, app: RawClient, upstream: MakeUpstream) -> None:
        """Whatever else starts the time anew, a response that has begun ends it."""
        far = upstream(PLAIN)
        size = 16 * 1024 * 1024
        app.send(far.request())
        server = far.accept()
        server.read_head()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + 1))
        sending = threading.Thread(target=server.send, args=(bytes(size),), daemon=True)
        sending.start()
        app.read_until(END_OF_HEAD)
        time.sleep(0.5)  # so that it is congested, and then no more
        assert sending.is_alive()
        app.read_exactly(size)
        sending.join(5)
        time.sleep(LIMIT * 1.5)
        server.send(b"x")
        assert app.read_exactly(1) == b"x"

    def test_so_may_a_websocket(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request("/", "Upgrade: websocket\r\nConnection: Upgrade\r\n"))
        server = far.accept()
        server.read_head()
        server.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        app.read_until(END_OF_HEAD)
        time.sleep(LIMIT * 1.5)
        for one, other in ((app, server), (server, app)):
            one.send(b"\x81\x00")
            assert other.read_exactly(2) == b"\x81\x00"

    def test_who_says_that_it_works_on_it_has_the_time_again(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        for _ in range(3):
            time.sleep(LIMIT * 0.6)
            server.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            assert app.read_response().status == 102
        server.send(OK)
        assert app.read_exactly(len(OK)) == OK

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("", 0),
            ("", 103),
            ("Expect: 100-continue\r\n", 100),
            ("Expect: 100-continue\r\n", 0),  # it need not wait for that (RFC 9110, section 10.1.1)
        ],
    )
    def test_an_app_may_take_its_time_to_send_and_the_time_begins_when_it_is_done(
        self, app: RawClient, upstream: MakeUpstream, more: str, said: int
    ) -> None:
        far = upstream(PLAIN)
        app.send(far.request("/", f"Content-Length: 4\r\n{more}", "POST"))
        server = far.accept()
        server.read_head()
        if said:
            server.send(b"HTTP/1.1 %d Go on\r\n\r\n" % said)
            assert app.read_response().status == said
        for piece in (b"ab", b"cd"):
            if said or not more or piece == b"cd":  # who is not told to go on has not as much time to begin
                time.sleep(LIMIT * 1.3)
            since = time.monotonic()
            app.send(piece)
            assert server.read_exactly(2) == piece
        assert app.read_response().status == 504
        assert LIMIT <= time.monotonic() - since < LATEST

    @pytest.mark.parametrize("host", [PATIENT, LONGER])
    def test_a_rule_may_say_otherwise(self, app: RawClient, upstream: MakeUpstream, host: str) -> None:
        far = upstream(host)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        time.sleep(LIMIT * 1.5)
        server.send(OK)
        assert app.read_exactly(len(OK)) == OK
        since = time.monotonic()
        app.send(far.request("/again"))
        server.read_head()
        if host == LONGER:  # and what it says holds
            assert app.read_response().status == 504
            assert time.monotonic() - since >= LONGER_LIMIT


class TestUploads:
    SIZE = 24 * 1024 * 1024

    def send(self, app: RawClient, far: Upstream) -> threading.Thread:
        """Send a large body in a thread; it ends when the sidecar takes no more."""
        app.send(far.request("/", f"Content-Length: {self.SIZE}\r\n", "POST"))

        def go_on() -> None:
            with suppress(OSError):
                app.send(b"x" * self.SIZE)

        sending = threading.Thread(target=go_on, daemon=True)
        sending.start()
        return sending

    def test_an_upstream_that_does_not_take_it_is_late(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        since = time.monotonic()
        self.send(app, far)
        server = far.accept()
        answer = app.read_response()
        assert answer.status == 504
        assert answer.json()["detail"].startswith(
            "the upstream took no more of the request, and had not begun to answer"
        )
        assert LIMIT <= time.monotonic() - since < LATEST + LIMIT
        server.close()

    def test_one_that_takes_it_slowly_is_not(self, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        sending = self.send(app, far)
        server = far.accept()
        server.read_head()
        left = self.SIZE
        end = time.monotonic() + LIMIT * 2.5
        while time.monotonic() < end:
            server.read_exactly(65536)
            left -= 65536
            time.sleep(0.1)
        while left:
            step = min(left, 1 << 20)
            server.read_exactly(step)
            left -= step
        server.send(OK)
        assert app.read_exactly(len(OK)) == OK
        sending.join(5)


class TestSilence:
    """What `limits.idle_seconds` ends is told to whoever can still be told."""

    @pytest.fixture
    def app(self, idle: Sidecar) -> Iterator[RawClient]:
        with RawClient(idle.address) as client:
            yield client

    def test_an_app_that_waits_for_its_upstream_is_told(
        self, idle: Sidecar, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        far.accept().read_head()
        answer = app.read_response()
        assert (answer.status, answer.json()["reason"]) == (504, "upstream_timeout")
        assert "limits.idle_seconds" in answer.json()["detail"]
        assert answer.headers.tokens("connection") == {"close"}
        assert app.read_to_end() == b""
        (line,) = lines_about(idle, far)
        assert (line["reason"], line["status"]) == ("upstream_timeout", 504)

    def test_so_is_one_whose_tunnel_is_not_open_yet(self, authority: Authority, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, and nobody its bytes
            policy = f"""
                limits: {{idle_seconds: 2, connect_seconds: 30}}
                upstream_proxy: {{url: "http://127.0.0.1:{silent.getsockname()[1]}"}}
            """
            with Sidecar(policy, tmp_path, authority=authority) as sidecar, RawClient(sidecar.address) as app:
                app.send(b"CONNECT tunnel.example:443 HTTP/1.1\r\nHost: tunnel.example:443\r\n\r\n")
                answer = app.read_response()
                assert (answer.status, answer.json()["reason"]) == (504, "upstream_timeout")
                assert "limits.idle_seconds" in answer.json()["detail"]
                assert app.read_to_end() == b""
                (line,) = sidecar.wait_for_decisions(1)
                assert (line["method"], line["reason"], line["status"]) == ("CONNECT", "upstream_timeout", 504)

    def test_an_app_that_is_waited_for_is_told_so(self, idle: Sidecar, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request("/", BODY, "POST") + b"a")
        server = far.accept()
        server.read_head()
        answer = app.read_response()
        assert (answer.status, answer.json()["reason"]) == (408, "idle_timeout")
        assert app.read_to_end() == b""
        assert server.read_exactly(1) == b"a"
        (line,) = lines_about(idle, far)
        assert (line["reason"], line["status"], line["bytes_sent"]) == ("idle_timeout", 408, 1)

    def test_so_is_one_whose_body_is_held(self, authority: Authority, tmp_path: Path) -> None:
        key = Receiver("pay").write_private(tmp_path)
        policy = f"""
            limits: {{idle_seconds: 1, request_seconds: 30}}
            keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{file: {key}}}}}}}
            rules: [{{name: held, hosts: [held.example], request: [{{encrypt: ["$.card"], key: pay}}]}}]
        """
        with Sidecar(policy, tmp_path, authority=authority) as sidecar, RawClient(sidecar.address) as app:
            head = "POST http://held.example/ HTTP/1.1\r\nHost: held.example\r\nContent-Type: application/json\r\n"
            app.send(f"{head}{BODY}\r\n{{".encode())
            answer = app.read_response()
            assert (answer.status, answer.json()["reason"]) == (408, "idle_timeout")
            assert app.read_to_end() == b""

    def test_a_response_that_stops_is_broken_off(self, idle: Sidecar, app: RawClient, upstream: MakeUpstream) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        server.send(OK[:-1])
        assert app.read_exactly(len(OK) - 1) == OK[:-1]
        with pytest.raises(ConnectionResetError):
            app._receive()
        (line,) = lines_about(idle, far)
        assert (line["reason"], line["status"]) == ("idle_timeout", None)

    @pytest.mark.parametrize("has_begun", [False, True])
    def test_inside_connect_it_counts_once(self, idle: Sidecar, upstream: MakeUpstream, has_begun: bool) -> None:
        far = upstream(UPGRADED)
        reason = "idle_timeout" if has_begun else "upstream_timeout"
        before = reasons(idle, reason)
        with open_way(idle, UPGRADED, int(far.authority.rpartition(":")[2]), Way.CONNECT) as app:
            app.send(f"GET /hung HTTP/1.1\r\nHost: {far.authority}\r\n\r\n".encode())
            server = far.accept()
            server.read_head()
            if has_begun:
                server.send(OK[:-1])
                app.read_exactly(len(OK) - 1)
                assert app.read_to_end() == b""
            else:
                assert app.read_response().status == 504
        assert [(line["method"], line["reason"]) for line in lines_about(idle, far)] == [("GET", reason)]
        assert reasons(idle, reason) == before + 1

    def test_an_app_of_http_2_is_told_as_well(self, idle: Sidecar, upstream: MakeUpstream) -> None:
        far = upstream(UPGRADED)
        app = Http2Client.open(connect(idle, far.authority), UPGRADED, idle.ca_file)
        pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", far.authority), (":path", "/hung")]
        stream = app.begin_raw(pseudo, last=True)
        far.accept().read_head()
        message = app.read(stream)
        assert (message.status, b'"upstream_timeout"' in message.body) == (504, True)

    def test_a_connection_that_nobody_waits_on_is_closed_without_a_line(
        self, idle: Sidecar, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        server = far.accept()
        server.read_head()
        server.send(OK)
        assert app.read_exactly(len(OK)) == OK
        assert app.read_to_end() == b""
        (line,) = lines_about(idle, far)
        assert line["reason"] is None

    def test_an_app_that_ended_its_side_has_no_longer_than_one_that_did_not(
        self, app: RawClient, upstream: MakeUpstream
    ) -> None:
        far = upstream(PLAIN)
        app.send(far.request())
        app.finish()
        server = far.accept()
        server.read_head()
        start = time.monotonic()
        assert app.read_to_end() == b""
        assert time.monotonic() - start < LATEST
