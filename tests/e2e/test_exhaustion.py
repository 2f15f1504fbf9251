"""What one app or one upstream can make the process hold, wait for or forget: each within bounds, and at its own cost.

Proves ARCHITECTURE's rule 8 in time (pins that expire hold for connections opened before), rule 5 where bytes come in
an order of their own, and that an app which sends without reading, an upstream which takes nothing, and names which
nobody resolves take neither memory, nor sockets, nor another app's turn.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e import frames, wire
from tests.e2e.app import client_hello
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient, send_until_blocked
from tests.e2e.http2 import Http2Client, Http2Upstream, frame
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import ROOT, Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.waiting import wait_until, wait_while_changing

DEADLINE = 5.0
MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REJECTED = "a"  # short, so that many requests fit into what is read at once
REJECTED_LONG = ".".join(["long" * 15] * 4)  # named in its denials, which makes them long
HELD = "held.example"
has_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="open files and memory are read from /proc, which is Linux's"
)


class Far:
    """A listening upstream. What it accepts, the test serves; it is closed with it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self._stack = ExitStack()
        self._stack.enter_context(self._listener)
        self.port = self._listener.getsockname()[1]
        self.authority = f"127.0.0.1:{self.port}"

    def accept(self) -> Accepted:
        """Return the next connection."""
        return self._stack.enter_context(Accepted(self._listener.accept()[0]))

    def close(self) -> None:
        """Close all connections, and the listener."""
        self._stack.close()

    def request(self, path: str = "/", more: str = "", method: str = "GET") -> bytes:
        """Return the head of an app's request."""
        return f"{method} http://{self.authority}{path} HTTP/1.1\r\nHost: {self.authority}\r\n{more}\r\n".encode()

    def connect(self) -> bytes:
        """Return an app's CONNECT."""
        return f"CONNECT {self.authority} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode()


@pytest.fixture
def far() -> Iterator[Far]:
    opened = Far()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("exhaustion")
    key = Receiver("pay").write_private(folder)
    policy = f"""
        defaults: {{plain_http: allow}}
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{file: {key}}}}}}}
        rules:
          - {{name: rejected, hosts: [{REJECTED}, {REJECTED_LONG}], plain_http: reject}}
          - {{name: held, hosts: [{HELD}], plain_http: upgrade, request: [{{encrypt: ["$.card"], key: pay}}]}}
    """
    with Sidecar(policy, folder) as running:
        yield running


@pytest.fixture
def app(sidecar: Sidecar) -> Iterator[RawClient]:
    with connected(sidecar) as client:
        yield client


def connected(sidecar: Sidecar) -> RawClient:
    """Return an app whose waits are short."""
    return Accepted(socket.create_connection(sidecar.address, DEADLINE))


# Starts the command with what takes days, minutes or a broken name server under the test's control.
CONTROLLED = """
import json, pathlib, socket, sys, time
from datetime import datetime, timedelta
root, table, folder = sys.argv[1:4]
del sys.argv[1:4]
sys.path += [root, root + "/tests/e2e"]
import named_hosts
named_hosts.install(json.loads(table))
days, released = pathlib.Path(folder, "days"), pathlib.Path(folder, "released")
at_once = socket.getaddrinfo

def getaddrinfo(host, *args, **kwargs):
    end = time.monotonic() + 8
    while str(host).startswith("slow") and not released.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return at_once(host, *args, **kwargs)

class Moved(datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime.now(zone) + timedelta(days=int(days.read_text()))

from addons import pinning, verification
from proxy import timelimits
from proxy.engine.upstreams import connection as upstream
socket.getaddrinfo = getaddrinfo
pinning.datetime = verification.datetime = Moved
timelimits.FLUSH_SECONDS = 0.5
timelimits.HALF_CLOSED_SECONDS = 1.0
timelimits.HELD_CHECK_SECONDS = 0.2
connection_made = upstream.UpstreamConnection.connection_made

def never_congested(self, transport):  # so that the app is still read from, and its end is seen
    connection_made(self, transport)
    if pathlib.Path(folder, "never_congested").exists():
        transport.set_write_buffer_limits(high=1 << 30)

upstream.UpstreamConnection.connection_made = never_congested
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""
SLOW = tuple(f"slow-{number}.example" for number in range(12))
PINNED, PINNED_LONGER = "pinned.example", "longer.example"


class Controlled(Sidecar):
    """A sidecar that is started by `CONTROLLED`, and its pinned upstream."""

    def __init__(self, authority: Authority, folder: Path, upstream: TlsUpstream) -> None:
        self.upstream = upstream
        self._folder = folder
        self.move_clock(0)
        (folder / "controlled.py").write_text(CONTROLLED)
        today = datetime.now(UTC).date()
        pins = f'any_of: ["{upstream.pin}"]'
        policy = f"""
            defaults: {{plain_http: allow}}
            rules:
              - {{name: one, hosts: [{PINNED}], plain_http: upgrade,
                  pins: {{{pins}, expires: {today + timedelta(days=1)}}}}}
              - {{name: two, hosts: [{PINNED_LONGER}], plain_http: upgrade,
                  pins: {{{pins}, expires: {today + timedelta(days=30)}}}}}
        """
        table = json.dumps(dict.fromkeys((*SLOW, PINNED, PINNED_LONGER, "fine.example"), "127.0.0.1"))
        command = [sys.executable, "-P", str(folder / "controlled.py"), str(ROOT), table, str(folder)]
        super().__init__(policy, folder, authority=authority, command=command)

    def move_clock(self, days: int) -> None:
        """Let it be so many days later where pins are judged."""
        (self._folder / "days").write_text(str(days))

    def read_on(self) -> None:
        """Let apps be read from although their upstream takes nothing."""
        (self._folder / "never_congested").touch()

    def release(self) -> None:
        """Let the name server answer."""
        (self._folder / "released").touch()


@pytest.fixture
def controlled(authority: Authority, tmp_path: Path) -> Iterator[Controlled]:
    with (
        TlsUpstream(authority, PINNED, PINNED_LONGER) as upstream,
        Controlled(authority, tmp_path, upstream) as running,
    ):
        yield running


class TestExpiredPins:
    def test_they_hold_for_a_connection_that_was_opened_while_they_were_valid(self, controlled: Controlled) -> None:
        upstream = controlled.upstream

        def ask(host: str) -> tuple[int, bytes]:
            with connected(controlled) as client:
                authority = f"{host}:{upstream.port}"
                client.send(f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
                answer = client.read_response()
                return answer.status, answer.body

        assert [ask(PINNED)[0], ask(PINNED)[0], ask(PINNED_LONGER)[0]] == [200, 200, 200]
        assert len(upstream.wait_for_connections(2)[0].requests) == 2  # it is shared
        controlled.move_clock(2)
        status, body = ask(PINNED)
        assert (status, json.loads(body).get("reason")) == (502, "pins_expired")
        assert ask(PINNED_LONGER)[0] == 200  # the twin: its pins go on, and so does its connection
        assert [len(each.requests) for each in upstream.wait_for_connections(3)] == [2, 2, 0]

    def test_they_hold_inside_a_connection_of_http_2(self, authority: Authority, tmp_path: Path) -> None:
        with (
            Http2Upstream(authority, PINNED) as upstream,
            Controlled(authority, tmp_path, upstream) as controlled,
            connected(controlled) as client,
        ):
            named = f"{PINNED}:{upstream.port}"
            client.send(f"CONNECT {named} HTTP/1.1\r\nHost: {named}\r\n\r\n".encode())
            assert client.read_response(method="CONNECT").status == 200
            app = Http2Client.open(client, PINNED, controlled.ca_file)
            answers = [app.read(app.send(named, method="GET")) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 200]
            upstream.wait_for_connections(1)  # it is shared
            controlled.move_clock(2)
            answer = app.read(app.send(named, method="GET"))
            assert (answer.status, json.loads(answer.body).get("reason")) == (502, "pins_expired")
            upstream.wait_for_messages(2)
            assert upstream.wait_for_connections(2)[1].received == b""


class TestAppsThatDoNotRead:
    COUNT = 800
    SIZE = 64 * 1024

    def body(self, path: str) -> bytes:
        return path.encode().ljust(self.SIZE, b".")

    @has_proc
    def test_pipelined_responses_wait_at_their_upstream_and_come_in_their_order(self, sidecar: Sidecar) -> None:
        with (
            PlainUpstream(respond=lambda request: wire.response(200, self.body(request.target))) as upstream,
            self.app(sidecar) as client,
        ):
            authority = f"127.0.0.1:{upstream.port}"
            before = sidecar.resident_bytes()
            one = f"GET http://{authority}/{{}} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
            client.send("".join(one.format(number) for number in range(self.COUNT)).encode())
            asked = wait_while_changing(lambda: len(upstream.requests))
            assert 0 < asked < self.COUNT // 2
            assert sidecar.resident_bytes() - before < 16 * MIB
            for number in range(self.COUNT):
                assert client.read_response().body == self.body(f"/{number}")
            assert len(upstream.connections) == 1

    def test_nor_is_the_next_request_looked_at_whose_answer_would_have_to_wait(self, sidecar: Sidecar) -> None:
        """Denials have no upstream that could wait."""
        count = 7000
        one = f"GET http://{REJECTED_LONG}/ HTTP/1.1\r\nHost:{REJECTED_LONG}\r\n\r\n".encode()
        before = sidecar.metrics().value("overcoat_requests_total")
        with self.app(sidecar) as client:
            client._socket.setblocking(True)
            sending = threading.Thread(target=self.send, args=(client, one * count), daemon=True)
            sending.start()
            denied = wait_while_changing(lambda: int(sidecar.metrics().value("overcoat_requests_total") - before))
            client._socket.shutdown(socket.SHUT_RDWR)
        sending.join(DEADLINE)
        assert 0 < denied < count - 1000

    def app(self, sidecar: Sidecar) -> Accepted:
        """Return an app of whose answers the kernel keeps little."""
        asking = socket.socket()
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.SIZE)
        asking.connect(sidecar.address)
        return Accepted(asking)

    def send(self, client: Accepted, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the test ends it before all is taken
            client.send(data)


class TestTurns:
    COUNT = 7000

    def test_many_pipelined_denials_leave_other_apps_their_turns(self, sidecar: Sidecar, far: Far) -> None:
        flood = f"GET http://{REJECTED}/ HTTP/1.1\r\nHost:{REJECTED}\r\n\r\n".encode() * self.COUNT
        got = bytearray()
        with connected(sidecar) as flooding, connected(sidecar) as client:
            client.send(far.request("/warm"))  # so that nothing of what is measured is a first time
            server = far.accept()
            serve(server, client)

            def read() -> None:
                while got.count(b"HTTP/1.1 403 ") < self.COUNT:
                    got.extend(flooding._socket.recv(MIB))

            reading = threading.Thread(target=read, daemon=True)
            reading.start()
            flooding.send(flood)
            slowest = 0.0
            for _ in range(5):
                started = time.monotonic()
                client.send(far.request())
                serve(server, client)
                slowest = max(slowest, time.monotonic() - started)
            had = got.count(b"HTTP/1.1 403 ")
            reading.join(20)
        assert got.count(b"HTTP/1.1 403 ") == self.COUNT
        assert had < self.COUNT  # or nothing was measured
        assert slowest < 0.4

    @has_proc
    def test_what_is_denied_at_once_is_not_read_ahead(self, sidecar: Sidecar) -> None:
        """All of it was, and was moved with each request: 16 MB took 400 MB, and other apps waited for a second."""
        one, count = b"GET http://a/ HTTP/1.1\r\nHost: b\r\nX: %s\r\n\r\n" % (b"x" * 80), 16_000
        flood, status = one * count, b"HTTP/1.1 421 "
        answered = 0
        with connected(sidecar) as client:

            def read() -> None:
                nonlocal answered
                rest = b""
                while answered < count:
                    data = rest + client._socket.recv(MIB)
                    answered += data.count(status)
                    rest = data[1 - len(status) :]

            reading = threading.Thread(target=read, daemon=True)
            reading.start()
            inside = []
            for at in range(0, len(flood), 16_384):
                client.send(flood[at : at + 16_384])
                taken = min(at + 16_384, len(flood)) - in_sockets(client)
                inside.append(taken - answered * len(one))
            reading.join(60)
        assert answered == count
        assert max(inside) < 800_000

    @pytest.mark.parametrize("length", [1000, 70_000, 300_000])
    @pytest.mark.parametrize("between", [b"", b"\r\n" * 50_000], ids=["directly", "after empty lines"])
    def test_what_is_behind_it_comes_to_its_end(self, sidecar: Sidecar, far: Far, length: int, between: bytes) -> None:
        """Nobody waits for bytes that are not read because others wait."""
        denied, body = b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", b"x" * length
        with connected(sidecar) as client:
            head = far.request("/behind", f"Content-Length: {length}\r\n", "POST")
            client.send(denied * 1900 + between + head + body + denied)
            for _ in range(1900):
                assert client.read_response().status == 421
            server = far.accept()
            server.read_head()
            assert server.read_exactly(length) == body
            server.send(OK)
            assert client.read_response().status == 200
            assert client.read_response().status == 421


def in_sockets(client: RawClient) -> int:
    """Return how many bytes of an app's are in the sockets of both ends, and not read by the sidecar (Linux)."""
    ports = [f":{address[1]:04X}" for address in (client._socket.getsockname(), client._socket.getpeername())]
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        unsent, unread = (int(each, 16) for each in queues.split(":"))
        if (local[8:], remote[8:]) == tuple(ports):
            total += unsent
        elif (remote[8:], local[8:]) == tuple(ports):
            total += unread
    return total


def serve(server: Accepted, client: RawClient) -> None:
    server.read_head()
    server.send(OK)
    assert client.read_exactly(len(OK)) == OK


class TestNames:
    def test_slow_names_of_one_app_do_not_delay_another(self, controlled: Controlled) -> None:
        with PlainUpstream() as upstream, ExitStack() as stack:

            def ask(host: str) -> RawClient:
                authority = f"{host}:{upstream.port}"
                client = stack.enter_context(connected(controlled))
                client.send(f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
                return client

            waiting = [ask(host) for host in SLOW]
            started = time.monotonic()
            assert ask("fine.example").read_response().status == 200
            assert time.monotonic() - started < 1.0
            assert len(upstream.requests) == 1  # the slow ones are still looked up
            controlled.release()
            assert {client.read_response().status for client in waiting} == {200}


class TestUpstreamsThatDoNotRead:
    SIZE = 60 * MIB
    LARGE = b"HTTP/1.1 413 Too Large\r\n"

    # what the upstream says, whether it closes then, and the status that an app gets
    ENDINGS = pytest.mark.parametrize(
        ("answer", "closes", "status"),
        [
            pytest.param(LARGE + b"Content-Length: 2\r\n\r\nno", False, 413, id="an answer"),
            pytest.param(LARGE + b"Connection: close\r\n\r\nno", True, 413, id="an answer that ends with it"),
            pytest.param(b"", True, 502, id="no answer"),
        ],
    )

    def end(self, server: Accepted, answer: bytes, *, closes: bool) -> None:
        server.send(answer)
        if closes:
            server.finish()  # not close, which would be a reset, since much was not read

    @ENDINGS
    def test_an_app_in_the_middle_of_its_upload_is_answered_and_can_go_on_sending(
        self, app: RawClient, far: Far, answer: bytes, closes: bool, status: int
    ) -> None:
        app.send(far.request("/", f"Content-Length: {self.SIZE}\r\n", "POST"))
        server = far.accept()
        server.read_head()
        sent = send_until_blocked(app._socket, bytes(self.SIZE))
        assert sent < self.SIZE
        started = time.monotonic()
        self.end(server, answer, closes=closes)
        assert app.read_response().status == status
        try:
            app.send(bytes(self.SIZE - sent))
            app.read_to_end()
        except ConnectionError:
            pass  # closed as well, while it was sending
        assert time.monotonic() - started < 3.0

    @ENDINGS
    def test_a_client_that_reads_only_when_it_has_sent_all_is_answered_or_closed(
        self, sidecar: Sidecar, far: Far, answer: bytes, closes: bool, status: int
    ) -> None:
        def serve_late() -> None:
            server = far.accept()
            server.read_head()
            time.sleep(0.5)  # until nothing moves any more
            self.end(server, answer, closes=closes)

        threading.Thread(target=serve_late, daemon=True).start()
        client = http.client.HTTPConnection(*sidecar.address, timeout=3.0)
        started = time.monotonic()
        try:
            client.request("POST", f"http://{far.authority}/", bytes(self.SIZE), {"Host": far.authority})
            assert client.getresponse().status == status
        except ConnectionError:
            pass  # closed while it was sending; a time-out would be something else
        finally:
            client.close()
        assert time.monotonic() - started < 3.0

    @has_proc
    @pytest.mark.parametrize("end", ["the app breaks off", "both have ended"])
    def test_a_tunnel_whose_end_is_never_taken_is_closed_all_the_same(
        self, controlled: Controlled, far: Far, end: str
    ) -> None:
        before = controlled.open_files()
        if end == "both have ended":
            controlled.read_on()
        for _ in range(3):
            with connected(controlled) as client:
                client.send(far.connect())
                assert client.read_response(method="CONNECT").status == 200
                server = far.accept()
                client.send(client_hello())
                assert server.read_exactly(1) == b"\x16"  # and nothing more is read, ever
                if end == "both have ended":
                    client.send(bytes(12 * MIB))
                    server.finish()
                    assert client.read_to_end() == b""
                    client.finish()
                else:
                    assert send_until_blocked(client._socket, bytes(64 * MIB)) < 64 * MIB
                    client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset
        wait_until(lambda: controlled.open_files() <= before, "all sockets of the tunnels are closed")

    @has_proc
    def test_an_app_that_left_is_not_waited_for_by_an_upstream_that_stalls(
        self, controlled: Controlled, far: Far
    ) -> None:
        before = controlled.open_files()
        for _ in range(3):
            with connected(controlled) as client:
                client.send(far.request("/left"))
                server = far.accept()
                server.read_head()
            assert server.read_to_end() == b""
        wait_until(lambda: controlled.open_files() <= before, "all sockets are closed")
        line = controlled.wait_for_decision(lambda line: line["path"] == "/left")
        assert (line["status"], line["reason"]) == (None, None)  # nobody was too slow for it
        assert line["detail"] == "the app ended it before the response was complete"

    def test_but_one_that_only_ended_its_side_gets_an_answer_that_comes_soon(
        self, controlled: Controlled, far: Far
    ) -> None:
        with connected(controlled) as client:
            client.send(far.request("/stays"))
            client.finish()
            server = far.accept()
            server.read_head()
            time.sleep(0.5)  # half of what it has
            server.send(OK)
            assert client.read_to_end().endswith(b"\r\n\r\nok")


class TestTunnels:
    def test_what_follows_connect_at_once_arrives_whole_however_much_it_is(self, app: RawClient, far: Far) -> None:
        data = client_hello() + bytes(range(256)) * (MIB // 256)
        sending = threading.Thread(target=app.send, args=(far.connect() + data,), daemon=True)
        sending.start()
        assert far.accept().read_exactly(len(data)) == data
        sending.join(DEADLINE)
        assert app.read_response(method="CONNECT").status == 200


class TestEarlyAnswers:
    def test_a_denied_upload_that_waits_for_a_100_is_closed_with_its_answer(self, app: RawClient) -> None:
        """Whether its body follows is for the app to choose, so what comes next could be either (RFC 9110, 10.1.1)."""
        head = f"POST http://{REJECTED}/ HTTP/1.1\r\nHost: {REJECTED}\r\nContent-Length: 2\r\n"
        app.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = app.read_response()
        assert (answer.status, answer.headers.get("Connection")) == (403, "close")
        assert app.read_to_end() == b""

    def test_but_one_whose_body_is_on_its_way_is_not(self, app: RawClient) -> None:
        one = f"POST http://{REJECTED}/ HTTP/1.1\r\nHost: {REJECTED}\r\nContent-Length: 2\r\n\r\n".encode()
        app.send(one)
        for rest in (b"ab" + one, b"ab"):
            answer = app.read_response()
            assert (answer.status, answer.headers.get("Connection")) == (403, None)
            app.send(rest)

    @pytest.mark.parametrize("size", [MIB, MIB + 1])
    def test_so_much_of_it_is_thrown_away_and_no_more(self, app: RawClient, size: int) -> None:
        head = f"POST http://{REJECTED}/ HTTP/1.1\r\nHost: {REJECTED}\r\nContent-Length: "
        app.send(f"{head}{size}\r\n\r\n".encode())
        assert app.read_response().status == 403
        with contextlib.suppress(ConnectionError):  # it may end while the next request is on its way
            app.send(bytes(size) + f"{head}0\r\n\r\n".encode())
        if size == MIB:
            assert app.read_response().status == 403
        else:
            assert app.read_to_end() == b""

    def test_nor_is_one_that_was_told_to_go_on(self, app: RawClient) -> None:
        head = f"POST http://{HELD}/ HTTP/1.1\r\nHost: {HELD}\r\nContent-Type: application/json\r\n"
        app.send(f"{head}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n".encode())
        assert app.read_until(wire.END_OF_HEAD) == b"HTTP/1.1 100 Continue\r\n\r\n"
        app.send(b"%x\r\n" % (MIB + 1) + bytes(MIB + 1))  # more than is held
        answer = app.read_response()
        assert (answer.status, answer.headers.get("Connection")) == (413, None)
        app.send(f"\r\n0\r\n\r\nGET http://{REJECTED}/ HTTP/1.1\r\nHost: {REJECTED}\r\n\r\n".encode())
        assert app.read_response().status == 403

    def test_of_an_app_that_breaks_http_2_so_much_is_thrown_away_and_no_more(self, app: RawClient) -> None:
        """It gets to read why; what it still sends is taken for a moment, in which it could send a lot."""
        app.send(frames.PREFACE + frame(frames.SETTINGS, 0, 0, b"") + frame(frames.DATA, 0, 0, b"on no stream"))
        assert frame(frames.GOAWAY, 0, 0, b"")[3:] in app.read_to_end()
        sent, piece = 0, bytes(64 * 1024)
        with contextlib.suppress(ConnectionError):
            while sent < 64 * MIB:
                app.send(piece)
                sent += len(piece)
        assert sent < 32 * MIB  # in buffers, most of it

    def test_an_answer_that_ends_with_its_connection_ends_for_an_app_that_still_sends(
        self, app: RawClient, far: Far
    ) -> None:
        app.send(far.request("/", "Content-Length: 100\r\n", "POST") + b"a")
        server = far.accept()
        server.read_head()
        assert server.read_exactly(1) == b"a"
        server.send(b"HTTP/1.1 413 Too Large\r\n\r\nno")
        server.finish()
        assert app.read_to_end() == b"HTTP/1.1 413 Too Large\r\nConnection: close\r\n\r\nno"


class TestOrderAndFraming:
    OFFER = "Upgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\nConnection: Upgrade\r\n"
    SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

    def test_what_an_app_sends_before_the_switch_to_websocket_comes_first(self, app: RawClient, far: Far) -> None:
        app.send(far.request("/chat", self.OFFER) + b"early ")
        server = far.accept()
        server.read_head()
        server.send(self.SWITCH)
        assert app.read_exactly(len(self.SWITCH)) == self.SWITCH
        app.send(b"late")
        assert server.read_exactly(10) == b"early late"

    def test_and_however_much_it_is_it_arrives_whole(self, app: RawClient, far: Far) -> None:
        early = bytes(range(256)) * (MIB // 256)
        sending = threading.Thread(target=app.send, args=(far.request("/chat", self.OFFER) + early,), daemon=True)
        sending.start()
        server = far.accept()
        server.read_head()
        server.send(self.SWITCH)
        assert server.read_exactly(len(early)) == early
        sending.join(DEADLINE)
        assert app.read_exactly(len(self.SWITCH)) == self.SWITCH

    @pytest.mark.parametrize("field", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
    @pytest.mark.parametrize("status", [b"103 Early Hints", b"204 No Content"])
    def test_a_response_without_a_body_announces_none(
        self, app: RawClient, far: Far, status: bytes, field: bytes
    ) -> None:
        """RFC 9112, sections 6.1 and 6.2: an app that believed it would wait, or take the next answer for a body."""
        app.send(far.request())
        server = far.accept()
        server.read_head()
        final = OK if status.startswith(b"103") else b""
        server.send(b"HTTP/1.1 " + status + b"\r\n" + field + b"X: 1\r\n\r\n" + final)
        expected = b"HTTP/1.1 " + status + b"\r\nX: 1\r\n\r\n" + final
        assert app.read_exactly(len(expected)) == expected

    @pytest.mark.parametrize("pieces", [(b"\r\n\r", b"\n"), (b"\r", b"\n\r\n"), (b"\r\n", b"\r", b"\n")])
    def test_empty_lines_before_a_request_are_passed_over_however_they_are_cut(
        self, app: RawClient, far: Far, pieces: tuple[bytes, ...]
    ) -> None:
        for piece in pieces[:-1]:
            app.send(piece)
            time.sleep(0.05)  # so that it is read on its own
        app.send(pieces[-1] + far.request("/after"))
        server = far.accept()
        assert server.read_head().startswith(b"GET /after HTTP/1.1\r\n")
        server.send(OK)
        assert app.read_exactly(len(OK)) == OK
