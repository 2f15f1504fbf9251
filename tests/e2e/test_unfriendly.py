"""Unfriendly text of the greatest size costs its sender, not the other apps: they are served meanwhile as ever.

Each text took seconds of one turn, or would with a reader that looks at it again and again. What is measured is the
processor time of the sidecar, so that a busy machine does not matter; and another app, on a connection of its own, gets
its answer while the text is read.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.app import ask, connect, fresh
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.http2 import Http2Client
from tests.e2e.receiver import Receiver
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOST, OPENED, OTHER = "pay.example", "answers.example", "other.example"
HEAD = 60_000  # less than the limit of a head, and all of one field
MOST = 0.5  # seconds of the processor, for one message; what is linear takes some milliseconds
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processor time is read from /proc (Linux)"
)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("unfriendly")
    key = Receiver("pay").write_private(folder)
    policy = f"""
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{file: {key}}}}}}}
        rules:
          - {{name: pay, hosts: [{HOST}], request: [{{encrypt: ["$.ssn"], key: pay}}]}}
          - {{name: opened, hosts: [{OPENED}], response: [{{decrypt: ["$.ssn"], key: pay}}]}}
    """
    hosts = dict.fromkeys((HOST, OPENED, OTHER), "127.0.0.1")
    with Sidecar(policy, folder, authority=authority, hosts=hosts) as running:
        yield running


@pytest.fixture
def other(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream of the app that is served beside."""
    return fresh(lambda: tls_upstream(OTHER))


class Spent:
    """Measures the processor time of a sidecar and its workers."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._pid = sidecar.pid
        self._before = self._now()

    def _now(self) -> float:
        ticks = 0
        for each in Path("/proc").iterdir():
            if not each.name.isdigit():
                continue
            try:
                stat = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if each.name == str(self._pid) or int(stat[1]) == self._pid:
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def assert_little(self) -> None:
        assert self._now() - self._before < MOST


def serve(upstream: Upstream, client: RawClient, request: bytes, response: bytes) -> None:
    client.send(request)
    accepted = upstream.accept()
    accepted.read_head()
    accepted.send(response)


def assert_served(sidecar: Sidecar, other: TlsUpstream) -> None:
    assert ask(sidecar, other, OTHER, method="GET").status == 200


LINKS = ['"' + '\\"' * (HEAD // 2), "<" * HEAD, '"\\' * (HEAD // 2), ", " * (HEAD // 2)]


class TestResponses:
    @pytest.mark.parametrize("text", LINKS, ids=range(len(LINKS)))
    @pytest.mark.parametrize("name", ["Link", "Refresh", "Location"])
    def test_a_field_of_an_upgraded_host(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream, name: str, text: str
    ) -> None:
        with scripted_upstream(OTHER, authority) as upstream, RawClient(sidecar.address) as client:
            spent = Spent(sidecar)
            head = f"HTTP/1.1 200 OK\r\n{name}: {text}\r\nContent-Length: 2\r\n\r\nok"
            serve(upstream, client, upstream.request(), head.encode())
            assert_served(sidecar, other)
            answer = client.read_response()
            assert (answer.status, answer.headers.get(name), answer.body) == (200, text.strip(), b"ok")
            spent.assert_little()

    def test_a_line_of_blanks_that_is_no_field(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream
    ) -> None:
        with scripted_upstream(OTHER, authority) as upstream, RawClient(sidecar.address) as client:
            spent = Spent(sidecar)
            serve(upstream, client, upstream.request(), b"HTTP/1.1 200 OK\r\nX:" + b" " * HEAD + b"\x01\r\n\r\n")
            assert_served(sidecar, other)
            assert client.read_response().json()["reason"] == "upstream_failed"
            spent.assert_little()

    def test_a_content_type_where_fields_are_decrypted(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream
    ) -> None:
        with scripted_upstream(OPENED, authority) as upstream, RawClient(sidecar.address) as client:
            spent = Spent(sidecar)
            kind = "application/json;" + "charset" * (HEAD // 7)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 9\r\n\r\n"
            serve(upstream, client, upstream.request(), head.encode() + b'{"x":"y"}')
            assert_served(sidecar, other)
            assert client.read_response().json() == {"x": "y"}
            spent.assert_little()


class TestRequests:
    def test_a_content_type_where_fields_are_encrypted(
        self, sidecar: Sidecar, other: TlsUpstream, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        upstream = fresh(lambda: tls_upstream(HOST))
        spent = Spent(sidecar)
        for _ in range(5):
            kind = "application/json;" + "charset" * (HEAD // 7)
            answer = ask(sidecar, upstream, HOST, headers=(("Content-Type", kind),), body=b'{"x":1}')
            assert answer.status == 200
            assert_served(sidecar, other)
        spent.assert_little()

    def test_a_line_of_blanks_that_is_no_field(self, sidecar: Sidecar, other: TlsUpstream) -> None:
        spent = Spent(sidecar)
        with RawClient(sidecar.address) as client:
            client.send(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nX:" + b" " * HEAD + b"\x01\r\n\r\n")
            assert_served(sidecar, other)
            assert client.read_response().json()["reason"] == "bad_request"
        spent.assert_little()


MANY = b"1\r\nx\r\n" * 50_000


def finish(accepted: RawClient, end: str) -> None:
    """End a connection in one of the ways that there are, without waiting for the other side."""
    if end.startswith("closed in TLS"):  # which comes together with the last bytes
        accepted._socket.settimeout(0)
        with pytest.raises(ssl.SSLWantReadError):
            accepted._socket.unwrap()  # type: ignore[attr-defined]  # a TLS socket
    if end.startswith("closed") and not end.endswith("alone"):
        accepted.finish()


class TestManySmallChunks:
    """They have several turns, and what they are made of is whole all the same."""

    def test_of_a_request(self, authority: Authority, sidecar: Sidecar, other: TlsUpstream) -> None:
        with scripted_upstream(OTHER, authority) as upstream, RawClient(sidecar.address) as client:
            head = upstream.request(method="POST", more="Transfer-Encoding: chunked\r\n")
            client.send(head + MANY + b"0\r\nX-Trailer: 1\r\n\r\n" + upstream.request("/next"))
            accepted = upstream.accept()
            accepted.read_head()
            got = b""
            while not got.endswith(b"0\r\nX-Trailer: 1\r\n\r\n"):
                got += accepted.read_until(b"\r\n")
            assert_served(sidecar, other)
            assert sum(map(len, got.split(b"\r\n")[1:-3:2])) == 50_000
            accepted.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert client.read_response().body == b"ok"
            assert accepted.read_head() == upstream.expected("/next")

    @pytest.mark.parametrize("end", ["kept open", "closed", "closed in TLS"])
    def test_of_a_response(self, authority: Authority, sidecar: Sidecar, other: TlsUpstream, end: str) -> None:
        with scripted_upstream(OTHER, authority) as upstream, RawClient(sidecar.address) as client:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            serve(upstream, client, upstream.request(), head + MANY + b"0\r\n\r\n")
            finish(upstream._accepted[-1], end)
            assert_served(sidecar, other)
            assert client.read_response().body == b"x" * 50_000
            if end == "kept open":  # and the connection serves on
                client.send(upstream.request("/next"))
                assert upstream._accepted[-1].read_head() == upstream.expected("/next")

    @pytest.mark.parametrize("end", ["kept open", "closed", "closed in TLS"])
    def test_of_a_response_to_an_app_of_http_2(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream, end: str
    ) -> None:
        with scripted_upstream(HOST, authority) as upstream:
            client = Http2Client.open(connect(sidecar, upstream.authority), HOST, sidecar.ca_file)
            stream = client.send(upstream.authority, method="GET")
            accepted = upstream.accept()
            accepted.read_head()
            accepted.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + MANY + b"0\r\n\r\n")
            finish(accepted, end)
            assert_served(sidecar, other)
            answer = client.read(stream)
            assert (answer.status, answer.body) == (200, b"x" * 50_000)
            client.close()

    def test_a_connection_that_ended_with_them_takes_no_other_request(
        self, authority: Authority, sidecar: Sidecar
    ) -> None:
        with scripted_upstream(OTHER, authority) as upstream, RawClient(sidecar.address) as client:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            serve(upstream, client, upstream.request(), head + MANY + b"0\r\n\r\n")
            finish(upstream._accepted[-1], "closed in TLS alone")
            assert client.read_response().body == b"x" * 50_000
            serve(upstream, client, upstream.request("/next"), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert client.read_response().body == b"ok"

    def test_of_a_response_that_is_cut_off(self, authority: Authority, sidecar: Sidecar, other: TlsUpstream) -> None:
        with scripted_upstream(OTHER, authority) as upstream, RawClient(sidecar.address) as client:
            serve(upstream, client, upstream.request(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + MANY)
            upstream._accepted[-1].finish()
            got = client.read_to_end()
            assert not got.endswith(b"0\r\n\r\n")
            assert_served(sidecar, other)
