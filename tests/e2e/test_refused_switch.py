"""A CONNECT or an Upgrade that is refused is the last request of its connection: nothing behind it is ever read.

A client that does not wait for the answer has sent bytes for the tunnel, which somebody else may have chosen: read as a
request, they would be one of the app's, with its rights (RFC 9931, sections 4.1 and 8; ARCHITECTURE.md, rules 1 and 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.listeners import closed_port
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream
from tests.e2e.wire import END_OF_HEAD

OPEN, REJECTED, INSPECTED = "127.0.0.1", "no.example", "seen.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = f"""
        listen: [forward://127.0.0.1:0, socks5://127.0.0.1:0]
        defaults: {{plain_http: allow}}
        limits: {{header_count: 20}}
        rules:
          - {{name: rejected, hosts: [{REJECTED}], plain_http: reject, https: reject}}
          - {{name: inspected, hosts: [{INSPECTED}], https: inspect}}
    """
    hosts = dict.fromkeys((REJECTED, INSPECTED), "127.0.0.1")
    folder = tmp_path_factory.mktemp("refused")
    with Sidecar(policy, folder, authority=authority, hosts=hosts) as running:
        yield running


@pytest.fixture
def bystander() -> Iterator[PlainUpstream]:
    """A server that a smuggled request would reach: plain http to it is allowed."""
    with PlainUpstream() as upstream:
        yield upstream


def smuggled(bystander: PlainUpstream) -> bytes:
    """Return what a client might have put into its tunnel too early."""
    name = f"127.0.0.1:{bystander.port}"
    return f"POST http://{name}/smuggled HTTP/1.1\r\nHost: {name}\r\nContent-Length: 0\r\n\r\n".encode()


def connect(target: str, host: str | None = None, more: str = "", version: str = "1.1") -> bytes:
    return f"CONNECT {target} HTTP/{version}\r\nHost: {host or target}\r\n{more}\r\n".encode()


REFUSED: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "rejected": (lambda: connect(f"{REJECTED}:443"), 403, "https_rejected"),
    "forbidden": (lambda: connect("10.0.0.1:443"), 403, "destination_forbidden"),
    "unreachable": (lambda: connect(f"127.0.0.1:{closed_port()}"), 502, "upstream_unreachable"),
    "kept alive": (lambda: connect(f"{REJECTED}:443", more="Connection: keep-alive\r\n"), 403, "https_rejected"),
    "HTTP/1.0": (lambda: connect(f"{REJECTED}:443", version="1.0"), 403, "https_rejected"),
    "malformed": (lambda: connect("no-port"), 400, "bad_request"),
    "of another host": (lambda: connect("127.0.0.1:443", "127.0.0.2:443"), 421, "host_mismatch"),
    "a length": (lambda: connect(f"{INSPECTED}:443", more="Content-Length: 5\r\n"), 400, "bad_request"),
    "chunks": (lambda: connect(f"{INSPECTED}:443", more="Transfer-Encoding: chunked\r\n"), 400, "bad_request"),
    "too many fields": (lambda: connect(f"{INSPECTED}:443", more="X: 1\r\n" * 20), 431, "headers_too_large"),
}


class TestConnect:
    @pytest.mark.parametrize("when", ["at once", "afterwards"])
    @pytest.mark.parametrize("case", REFUSED)
    def test_one_that_is_refused_is_the_last_word(
        self, sidecar: Sidecar, bystander: PlainUpstream, case: str, when: str
    ) -> None:
        make, status, reason = REFUSED[case]
        with RawClient(sidecar.address) as app:
            app.send(make() + (smuggled(bystander) if when == "at once" else b""))
            answer = app.read_response()
            if when == "afterwards":
                app.send(smuggled(bystander))
            assert (answer.status, answer.json()["reason"]) == (status, reason)
            assert answer.headers.tokens("connection") == {"close"}
            assert app.read_to_end() == b""
        bystander.assert_untouched()

    def test_the_same_bytes_behind_an_ordinary_request_are_one(
        self, sidecar: Sidecar, bystander: PlainUpstream
    ) -> None:
        with RawClient(sidecar.address) as app:
            app.send(f"GET http://{REJECTED}/ HTTP/1.1\r\nHost: {REJECTED}\r\n\r\n".encode() + smuggled(bystander))
            assert [app.read_response().status, app.read_response().status] == [403, 200]
        assert [request.target for request in bystander.requests] == ["/smuggled"]

    @pytest.mark.parametrize("more", ["", "Content-Length: 0\r\n"])
    def test_one_that_is_granted_takes_what_came_with_it_into_its_tunnel(
        self, sidecar: Sidecar, bystander: PlainUpstream, more: str
    ) -> None:
        name = f"127.0.0.1:{bystander.port}"
        with RawClient(sidecar.address) as app:
            app.send(connect(name, more=more) + f"GET /inside HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert app.read_until(END_OF_HEAD).startswith(b"HTTP/1.1 200 ")
            assert app.read_response().status == 200
        assert [request.target for request in bystander.requests] == ["/inside"]

    def test_so_it_is_inside_another_one(self, sidecar: Sidecar, bystander: PlainUpstream) -> None:
        with RawClient(sidecar.address) as app:
            app.send(connect(f"{INSPECTED}:443") + connect(f"127.0.0.1:{bystander.port}") + smuggled(bystander))
            assert app.read_until(END_OF_HEAD).startswith(b"HTTP/1.1 200 ")
            answer = app.read_response()
            assert (answer.status, answer.headers.tokens("connection")) == (400, {"close"})
            assert app.read_to_end() == b""
        bystander.assert_untouched()

    def test_so_it_is_if_the_networks_proxy_refuses(
        self, authority: Authority, bystander: PlainUpstream, tmp_path: Path
    ) -> None:
        policy = f"""
            defaults: {{plain_http: allow}}
            upstream_proxy: {{url: "http://127.0.0.1:{closed_port()}", direct: [127.0.0.1]}}
        """
        with (
            Sidecar(policy, tmp_path, authority=authority, hosts={REJECTED: "127.0.0.1"}) as behind,
            RawClient(behind.address) as app,
        ):
            app.send(connect(f"{REJECTED}:443") + smuggled(bystander))
            answer = app.read_response()
            assert (answer.status, answer.json()["reason"]) == (502, "upstream_proxy_failed")
            assert app.read_to_end() == b""
        bystander.assert_untouched()

    def test_so_it_is_in_socks(self, sidecar: Sidecar, bystander: PlainUpstream) -> None:
        name = REJECTED.encode()
        with RawClient(sidecar.addresses[1]) as app:
            app.send(b"\x05\x01\x00" + b"\x05\x01\x00\x03%c%s\x01\xbb" % (len(name), name) + smuggled(bystander))
            assert app.read_to_end() == b"\x05\x00" + b"\x05\x02\x00\x01" + bytes(6)
        bystander.assert_untouched()


class TestUpgrade:
    OFFER = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n"

    @pytest.fixture
    def far(self) -> Iterator[Upstream]:
        with scripted_upstream(OPEN, None) as upstream:
            yield upstream

    @pytest.mark.parametrize(
        "offer",
        [
            pytest.param(OFFER, id="WebSocket"),
            pytest.param("Connection: Upgrade\r\nUpgrade: connect-udp\r\n", id="what is not passed on"),
            pytest.param("Connection: Upgrade\r\nUpgrade: h2c, X-own\r\n", id="h2c and another"),
            pytest.param("Upgrade: websocket\r\n", id="without a Connection field"),
        ],
    )
    @pytest.mark.parametrize("status", [b"200 OK", b"401 Unauthorized"])
    def test_one_that_the_upstream_does_not_take_is_the_last_word(
        self, sidecar: Sidecar, bystander: PlainUpstream, far: Upstream, offer: str, status: bytes
    ) -> None:
        with RawClient(sidecar.address) as app:
            app.send(far.request(more=offer) + smuggled(bystander))
            server = far.accept()
            server.read_head()
            server.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
            assert app.read_to_end() == (
                b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
            )
        bystander.assert_untouched()

    def test_so_is_one_that_we_refuse(self, sidecar: Sidecar, bystander: PlainUpstream) -> None:
        with RawClient(sidecar.address) as app:
            asked = f"GET http://{REJECTED}/ HTTP/1.1\r\nHost: {REJECTED}\r\n{self.OFFER}\r\n"
            app.send(asked.encode() + smuggled(bystander))
            answer = app.read_response()
            assert (answer.status, answer.headers.tokens("connection")) == (403, {"close"})
            assert app.read_to_end() == b""
        bystander.assert_untouched()

    @pytest.mark.parametrize("offer", ["", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "Upgrade: H2C, \r\n"])
    def test_without_an_offer_or_with_a_harmless_one_the_connection_lives_on(
        self, sidecar: Sidecar, far: Upstream, offer: str
    ) -> None:
        """Java's client offers h2c with each first request; what follows a switch to it is no request to anybody."""
        with RawClient(sidecar.address) as app:
            app.send(far.request(more=offer))
            server = far.accept()
            server.read_head()
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            app.send(far.request("/next"))
            assert server.read_head() == far.expected("/next")
            server.send(OK)
            assert app.read_exactly(len(OK)) == OK
            app.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert app.read_response().status == 400
            assert app.read_to_end() == b""
