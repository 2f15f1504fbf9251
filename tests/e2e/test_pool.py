"""Idle upstream connections are shared by all apps, and a connection never serves what it was not checked for.

Proves that sharing costs none of ARCHITECTURE's rules: pins hold for every request (rule 3), a failed connection is
never papered over where a request could be done twice (rule 1), and a reused one is known to be whole.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream, echo

HOST = "pool.example"
UNUSED_PIN = "sha256/" + "A" * 42 + "E="


class Script:
    """What the upstream answers; a test may change it."""

    def __init__(self) -> None:
        self.answer: Callable[[RecordedRequest], bytes] = echo

    def __call__(self, request: RecordedRequest) -> bytes:
        return self.answer(request)


def hang_up(_request: RecordedRequest) -> bytes:
    raise ConnectionResetError  # the harness then closes the connection without a byte


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def upstream(authority: Authority, script: Script) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority, HOST, respond=script) as server:
        yield server


def sidecar_for(authority: Authority, folder: Path, rules: str) -> Sidecar:
    return Sidecar(f"rules:\n{rules}", folder, authority=authority, hosts={HOST: "127.0.0.1"})


def rule(name: str, port: int, upstream: TlsUpstream, more: str = "") -> str:
    return f'  - {{name: {name}, hosts: ["{HOST}:{port}"], https_port: {upstream.port}{more}}}\n'


def ask(sidecar: Sidecar, port: int = 8001, method: str = "GET", path: str = "/", body: bytes = b"") -> int:
    """Ask as an app of its own, on a connection of its own; return the status."""
    with RawClient(sidecar.address) as client:
        head = f"{method} http://{HOST}:{port}{path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
        head += f"Content-Length: {len(body)}\r\n" if body else ""
        client.send(f"{head}\r\n".encode() + body)
        return client.read_response(method=method).status


def test_the_connection_of_one_app_serves_the_next(authority: Authority, tmp_path: Path, upstream: TlsUpstream) -> None:
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        assert [ask(sidecar, path=f"/{n}") for n in range(5)] == [200] * 5
        assert len(upstream.connections) == 1
        assert [request.target for request in upstream.requests] == [f"/{n}" for n in range(5)]
        metrics = sidecar.metrics()
        assert metrics.value("overcoat_upstream_connections_total", result="miss") == 1
        assert metrics.value("overcoat_upstream_connections_total", result="hit") == 4


@pytest.mark.parametrize("more", ["", f', pins: {{any_of: ["{UNUSED_PIN}"]}}'], ids=["unpinned", "pinned"])
def test_a_connection_serves_only_the_rule_it_was_opened_under(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, more: str
) -> None:
    rules = rule("one", 8001, upstream) + rule("two", 8002, upstream, more)
    with sidecar_for(authority, tmp_path, rules) as sidecar:
        assert ask(sidecar, 8001) == 200
        assert ask(sidecar, 8002) == (502 if more else 200)
        assert len(upstream.connections) == 2
        assert ask(sidecar, 8001) == 200
        assert len(upstream.connections) == 2


def test_no_tls_session_is_resumed_so_every_new_connection_is_checked(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, script: Script
) -> None:
    pinned = rule("one", 8001, upstream, f', pins: {{any_of: ["{upstream.pin}"]}}')
    script.answer = lambda request: echo(request).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with sidecar_for(authority, tmp_path, pinned) as sidecar:
        assert [ask(sidecar), ask(sidecar)] == [200, 200]
        upstream.wait_for_connections(2)
        assert not any(connection.session_reused for connection in upstream.connections)
        upstream.present(authority.issue(HOST))  # another key: a resumed session would not notice
        assert ask(sidecar) == 502
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("ending", ["Connection: close", "no length"])
def test_what_the_upstream_ends_is_not_used_again(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, script: Script, ending: str
) -> None:
    length = b"Content-Length: 2\r\n" if ending == "Connection: close" else b""
    script.answer = lambda _: b"HTTP/1.1 200 OK\r\n" + length + b"Connection: close\r\n\r\nok"
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        assert [ask(sidecar), ask(sidecar)] == [200, 200]
        assert len(upstream.connections) == 2


def test_a_connection_with_bytes_nobody_asked_for_is_not_used_again(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, script: Script
) -> None:
    stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
    script.answer = lambda request: echo(request) + (stray if request.target == "/first" else b"")
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        assert ask(sidecar, path="/first") == 200
        with RawClient(sidecar.address) as client:
            client.send(f"GET http://{HOST}:8001/second HTTP/1.1\r\nHost: {HOST}:8001\r\n\r\n".encode())
            assert b"stray" not in client.read_response().body
        assert len(upstream.connections) == 2


def test_a_half_sent_request_leaves_no_connection_behind(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream
) -> None:
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        with RawClient(sidecar.address) as client:
            head = f"POST http://{HOST}:8001/cut HTTP/1.1\r\nHost: {HOST}:8001\r\nContent-Length: 10\r\n\r\n"
            client.send(head.encode() + b"half")
            upstream.wait_for_connections(1)
        upstream.wait_for_connections(1, closed=True)
        assert ask(sidecar, path="/next") == 200
        assert [request.target for request in upstream.requests] == ["/next"]


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("DELETE", 2), ("POST", 1), ("PATCH", 1)])
def test_only_an_idempotent_request_is_sent_again_when_a_reused_connection_dies(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, script: Script, method: str, times: int
) -> None:
    def answer(request: RecordedRequest) -> bytes:
        is_second = len(request.connection.requests) > 1
        return hang_up(request) if is_second else echo(request)

    script.answer = answer
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        assert ask(sidecar, path="/first") == 200
        assert ask(sidecar, path="/again", method=method) == (200 if times == 2 else 502)
        assert [request.method for request in upstream.requests if request.target == "/again"] == [method] * times


def test_a_new_connection_that_dies_is_not_tried_again(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, script: Script
) -> None:
    script.answer = hang_up
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        assert ask(sidecar) == 502
        assert len(upstream.requests) == 1


def test_many_apps_at_once_get_connections_of_their_own(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, script: Script
) -> None:
    barrier = threading.Barrier(4)

    def respond(request: RecordedRequest) -> bytes:
        barrier.wait(20)
        return echo(request)

    script.answer = respond
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(sidecar))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers == [200] * 4
        assert len(upstream.connections) == 4


def test_an_upstream_that_goes_away_while_idle_is_noticed(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream
) -> None:
    with sidecar_for(authority, tmp_path, rule("one", 8001, upstream)) as sidecar:
        assert ask(sidecar) == 200
        upstream.close()
        assert ask(sidecar) == 502
        assert sidecar.wait_for_decisions(2)[-1]["reason"] == "upstream_unreachable"


class TestBytesThatNobodyAskedFor:
    """A faulty upstream answers HEAD with a body: no other app may take that for the answer to its own request."""

    STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nSTRAY"

    def stray(self, listener: socket.socket, context: ssl.SSLContext, cut: int, go_on: threading.Event) -> None:
        """Serve one connection; send the stray response's record in two halves, the second one when told to."""
        accepted, _ = listener.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def read() -> bytes:
            while True:
                try:
                    return tls.read(65536)
                except ssl.SSLWantReadError:
                    accepted.sendall(outgoing.read())
                    incoming.write(accepted.recv(65536))

        with accepted, contextlib.suppress(OSError):
            read()
            tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.STRAY))
            answer = outgoing.read()
            tls.write(self.STRAY)
            record = outgoing.read()
            accepted.sendall(answer + record[:cut])
            go_on.wait(10)
            accepted.sendall(record[cut:])

    @pytest.mark.parametrize("cut", [3, 20])
    def test_part_of_a_record_is_enough_to_part_with_a_connection(
        self, authority: Authority, tmp_path: Path, cut: int
    ) -> None:
        identity = authority.issue(HOST)
        (tmp_path / "server.pem").write_bytes(identity.key_pem + b"".join(identity.chain_pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        go_on = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            serving = [
                threading.Thread(target=self.stray, args=(listener, context, cut, go_on), daemon=True) for _ in range(2)
            ]
            for each in serving:
                each.start()
            rules = f'  - {{name: one, hosts: ["{HOST}:8001"], https_port: {port}}}\n'
            with sidecar_for(authority, tmp_path, rules) as sidecar:
                assert ask(sidecar, method="HEAD") == 200
                with RawClient(sidecar.address) as client:
                    client.send(f"GET http://{HOST}:8001/ HTTP/1.1\r\nHost: {HOST}:8001\r\n\r\n".encode())
                    go_on.set()
                    assert client.read_response().body != b"STRAY"
                assert sidecar.metrics().value("overcoat_upstream_connections_total", result="hit") == 0
