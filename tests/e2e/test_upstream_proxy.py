"""Through a corporate proxy: CONNECT only, with its own credentials and pins, and nothing past it when it fails.

Proves ARCHITECTURE's rules 2, 3 and 6 where there is another proxy in the way: it sees names and ciphertext, never a
request.
"""

from __future__ import annotations

import base64
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
from cryptography import x509

from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_jwk
from proxy.engine.upstreams.connection import MAX_INTERIM
from tests.e2e import wire
from tests.e2e.app import Way, ask
from tests.e2e.certificates import Authority, pin_of
from tests.e2e.clients import Accepted, RawClient, curl, reset
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

HOSTS = {"api.example": "127.0.0.1", "straight.example": "127.0.0.1", "proxy.example": "127.0.0.1"}
INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
NO_PIN = "sha256/" + "A" * 42 + "E="


class Tls:
    """A server's side of TLS whose `farewell` reads nothing: `SSLSocket.unwrap` would, and fails where bytes come."""

    def __init__(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = accepted
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.settimeout, self.fileno, self.close = accepted.settimeout, accepted.fileno, accepted.close
        self._step(self._tls.do_handshake)

    def recv(self, size: int) -> bytes:
        try:
            return self._step(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def farewell(self) -> None:
        with suppress(ssl.SSLWantReadError):  # the other side's is still to come
            self._tls.unwrap()
        self._flush()

    def _step[T](self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                if data := self.socket.recv(65536):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            finally:
                self._flush()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self.socket.sendall(data)


class Corporate:
    """A proxy that serves CONNECT, and keeps the heads that it was sent and the first bytes that went through."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self.carried: list[bytes] = []
        self.refuse: bytes | None = None
        self.answer: tuple[bytes, ...] = (b"HTTP/1.1 200 OK\r\nX-Proxy: 1\r\n\r\n",)  # in these pieces
        self.says_farewell = True
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # it is closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with suppress(OSError):
            client = accepted if self._context is None else Tls(accepted, self._context)
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            self.heads.append(head)
            if self.refuse is not None:
                client.sendall(self.refuse)
                client.close()
                return
            port = int(head.split(b" ")[1].rpartition(b":")[2])
            server = socket.create_connection(("127.0.0.1", port))
            for piece in self.answer:
                client.sendall(piece)
                time.sleep(0.05)  # so that it is read on its own
            self._carry(client, server)

    def _carry(self, client: socket.socket | Tls, server: socket.socket) -> None:
        """Carry bytes, ends and resets. To the client, an end is a close_notify only if the proxy says farewell."""
        other: dict[socket.socket | Tls, socket.socket | Tls] = {client: server, server: client}
        reading = list(other)
        try:
            while reading:
                ready, _, _ = select.select(reading, [], [])
                for source in ready:
                    source.settimeout(0.05)  # what is there may be TLS's own
                    with suppress(TimeoutError):
                        while data := source.recv(65536):
                            if source is client:
                                self.carried.append(data)
                            other[source].settimeout(10)
                            other[source].sendall(data)
                        reading.remove(source)
                        self._end(other[source])
        except ConnectionResetError:
            reset(client.socket if isinstance(client, Tls) else client)
            reset(server)
        finally:
            client.close()
            server.close()

    def _end(self, target: socket.socket | Tls) -> None:
        if not isinstance(target, Tls):
            target.shutdown(socket.SHUT_WR)
        elif self.says_farewell:
            target.farewell()
        else:
            target.socket.shutdown(socket.SHUT_WR)


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority, *HOSTS) as server:
        yield server


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def corporate(authority: Authority, scheme: str, tmp_path: Path) -> Iterator[Corporate]:
    context = None
    if scheme == "https":
        identity = authority.issue("proxy.example")
        (tmp_path / "proxy.pem").write_bytes(identity.key_pem + b"".join(identity.chain_pem))
        (tmp_path / "proxy-certificate.pem").write_bytes(identity.chain_pem[0])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "proxy.pem")
    proxy = Corporate(context)
    yield proxy
    proxy.close()


MakeSidecar = Callable[..., Sidecar]


@pytest.fixture
def serve(authority: Authority, corporate: Corporate, scheme: str, tmp_path: Path) -> MakeSidecar:
    """Return what makes a sidecar behind the corporate proxy."""

    def make(more: str = "", rest: str = "", allow: str = "") -> Sidecar:
        policy = f"upstream_proxy: {{url: '{scheme}://proxy.example:{corporate.port}'{more}}}\n{rest}\n"
        return Sidecar(policy + allow, tmp_path, authority=authority, hosts=HOSTS)

    return make


@pytest.mark.parametrize("way", list(Way))
def test_everything_goes_through_it_and_it_sees_only_ciphertext(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, way: Way
) -> None:
    rest = "rules: [{name: api, hosts: [api.example], https: inspect}]\ndestinations: {egress: any}"
    with serve(rest=rest) as sidecar:
        assert ask(sidecar, upstream, "api.example", "/secret-path", way=way).status == 200
    assert corporate.heads == [
        f"CONNECT api.example:{upstream.port} HTTP/1.1\r\nHost: api.example:{upstream.port}\r\n\r\n".encode()
    ]
    assert corporate.carried[0][:1] == b"\x16"
    assert b"secret-path" not in b"".join(corporate.carried)
    assert upstream.requests[0].target == "/secret-path"
    assert upstream.connections[0].sni == "api.example"


def test_tunnels_and_http2_go_through_it_as_well(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, authority: Authority, tmp_path: Path
) -> None:
    with serve(rest="rules: [{name: in, hosts: [api.example], https: inspect}]") as sidecar:
        url = upstream.url("/2", scheme="https", host="api.example")
        assert curl("--http2", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
        roots = authority.write_pem(tmp_path / "upstream.pem")
        url = upstream.url("/t", scheme="https", host="straight.example")
        assert curl(url, proxy=sidecar.proxy_url, ca_file=roots).status == 200
    assert [head.split()[1].split(b":")[0] for head in corporate.heads] == [b"api.example", b"straight.example"]


def test_keys_by_url_are_fetched_through_it_and_never_past_it(
    serve: MakeSidecar, corporate: Corporate, authority: Authority
) -> None:
    """A key set with `jwks` goes the way of any request (docs/keys.md)."""
    published = json.dumps({"keys": [to_jwk(new_key(Alg.ECDH_ES_A256KW), private=False)]}).encode()
    with TlsUpstream(authority, "straight.example", respond=lambda _: wire.response(200, published)) as keys:
        rest = (
            f"keys: {{k: {{alg: ECDH-ES+A256KW, jwks: 'https://straight.example:{keys.port}/jwks'}}}}\n"
            "rules: [{name: api, hosts: [api.example], request: [{encrypt: [$.card], key: k}]}]"
        )
        with serve(rest=rest) as sidecar:
            assert sidecar.metrics().value("overcoat_jwks_refreshes_total", key="k", result="fetched") == 1
        assert corporate.heads[0].startswith(f"CONNECT straight.example:{keys.port} HTTP/1.1\r\n".encode())
        assert len(keys.requests) == 1
        corporate.refuse = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"
        with serve(rest=rest) as sidecar:
            assert sidecar.metrics().value("overcoat_jwks_refreshes_total", key="k", result="failed") >= 1
        assert len(keys.connections) == 1


def test_large_bodies_pass_whole_both_ways(serve: MakeSidecar, authority: Authority) -> None:
    big = bytes(range(256)) * 16384  # 4 MiB

    def respond(request: object) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big) + big

    with TlsUpstream(authority, "api.example", respond=respond) as upstream, serve() as sidecar:
        answer = ask(sidecar, upstream, "api.example", body=big)
        assert answer.body == big
        assert upstream.requests[0].body == big


def test_its_credentials_go_to_it_alone(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, tmp_path: Path
) -> None:
    (tmp_path / "corporate.txt").write_text("me:pass:word\n")
    with serve(", credentials: {file: corporate.txt}") as sidecar:
        assert ask(sidecar, upstream, "api.example").status == 200
        said = sidecar.stdout + sidecar.stderr
    shown = base64.b64encode(b"me:pass:word")
    assert f"Proxy-Authorization: Basic {shown.decode()}\r\n".encode() in corporate.heads[0]
    assert shown not in upstream.received
    assert "pass:word" not in said
    assert shown.decode() not in said


def test_what_is_excepted_goes_straight(serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream) -> None:
    with serve(", direct: ['*.example']", "destinations: {allow: [loopback]}") as sidecar:
        assert ask(sidecar, upstream, "straight.example").status == 200
    assert corporate.heads == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "answered CONNECT with 403"),
        (b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", "answered CONNECT with 407"),
        (b"SSH-2.0-x\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: ", "closed the connection without an answer"),
        (b"", "closed the connection without an answer"),
    ],
)
def test_if_it_refuses_nothing_goes_past_it(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, answer: bytes, said: str
) -> None:
    corporate.refuse = answer
    with serve(rest="destinations: {allow: [loopback]}") as sidecar:
        got = ask(sidecar, upstream, "api.example")
        assert (got.status, json.loads(got.body)["reason"]) == (502, "upstream_proxy_failed")
        assert said in json.loads(got.body)["detail"]
        assert ("upstream_proxy.credentials" in got.body.decode()) == ("407" in said)
    upstream.assert_untouched()


@pytest.mark.parametrize(
    "answer",
    [
        (b"HTTP/1.1 200 OK\r", b"\n\r", b"\n"),
        (b"HTTP/1.1 204 Yes\r\n\r\n",),  # any 2xx is one (RFC 9110, section 9.3.6)
        (INTERIM, b"HTTP/1.1 200 OK\r\n\r\n"),
        (INTERIM * MAX_INTERIM + b"HTTP/1.1 200 OK\r\n\r\n",),
    ],
    ids=["in pieces", "another 2xx", "after an interim one", "after as many as may come"],
)
def test_it_may_say_yes_in_many_ways(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, answer: tuple[bytes, ...]
) -> None:
    corporate.answer = answer
    with serve() as sidecar:
        assert ask(sidecar, upstream, "api.example").status == 200


def test_one_interim_response_more_is_one_too_many(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream
) -> None:
    corporate.answer = (INTERIM * (MAX_INTERIM + 1) + b"HTTP/1.1 200 OK\r\n\r\n",)
    with serve() as sidecar:
        got = ask(sidecar, upstream, "api.example")
        assert (got.status, json.loads(got.body)["reason"]) == (502, "upstream_proxy_failed")
        assert "interim" in json.loads(got.body)["detail"]
    upstream.assert_no_application_bytes()


@pytest.mark.parametrize(("mode", "would"), [("enforce", None), ("observe", "upgrade")])
def test_if_it_is_not_there_nothing_goes_past_it_and_enforcing_would_change_nothing(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, mode: str, would: str | None
) -> None:
    corporate.close()
    with serve(rest=f"mode: {mode}\ndestinations: {{allow: [loopback]}}") as sidecar:
        got = ask(sidecar, upstream, "api.example")
        assert (got.status, json.loads(got.body)["reason"]) == (502, "upstream_proxy_failed")
        assert "the upstream proxy" in json.loads(got.body)["detail"]
        (line,) = sidecar.wait_for_decisions(1)
    assert (line["outcome"], line.get("would"), line["would_deny"]) == ("upstream_failed", would, False)
    upstream.assert_untouched()


def test_if_it_never_answers_nothing_goes_past_it(
    authority: Authority, upstream: TlsUpstream, scheme: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, and nobody its bytes
        url = f"{scheme}://proxy.example:{silent.getsockname()[1]}"
        policy = (
            f"upstream_proxy: {{url: '{url}'}}\nlimits: {{connect_seconds: 1}}\ndestinations: {{allow: [loopback]}}"
        )
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            got = ask(sidecar, upstream, "api.example")
            assert (got.status, json.loads(got.body)["reason"]) == (502, "upstream_proxy_failed")
            assert "gave no answer in 1 s" in json.loads(got.body)["detail"]
    upstream.assert_untouched()


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_if_the_app_leaves_its_answer_is_not_waited_for(authority: Authority, tmp_path: Path, method: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(5)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        policy = f"upstream_proxy: {{url: '{url}'}}\nlimits: {{connect_seconds: 60}}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            target = {"GET": "http://api.example/", "CONNECT": "api.example:443"}[method]
            with RawClient(sidecar.address) as client:
                client.send(f"{method} {target} HTTP/1.1\r\nHost: api.example\r\n\r\n".encode())
                asked = Accepted(silent.accept()[0])
                assert asked.read_head().startswith(b"CONNECT api.example:443 ")
                client.reset()
            assert asked.read_to_end() == b""


@pytest.mark.parametrize("via", ["", "via: coat"])
def test_what_a_connect_has_come_through_is_passed_on_byte_for_byte(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, via: str
) -> None:
    said = b"Via: 1.1 caf\xe9 (\xff\xc3\xa9), 1.0 b\r\n"
    name = f"tunnel.example:{upstream.port}".encode()
    with serve(rest=via) as sidecar, RawClient(sidecar.address) as client:
        client.send(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (name, name, said))
        assert client.read_response(method="CONNECT").status == 200
    ours = b"Via: 1.1 coat\r\n" if via else b""
    assert corporate.heads == [b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n" % (name, name, said, ours)]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_an_address_is_judged_before_it_is_asked_for(serve: MakeSidecar, corporate: Corporate, host: str) -> None:
    with serve(rest="destinations: {egress: any}") as sidecar:
        got = curl(f"http://{host}/", proxy=sidecar.proxy_url)
        assert json.loads(got.body)["reason"] == "destination_forbidden"
    assert corporate.heads == []


@pytest.mark.parametrize("path", ["/live", "/metrics"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "a.localhost"])
def test_our_own_listeners_are_not_reached_by_this_detour(
    serve: MakeSidecar, corporate: Corporate, host: str, path: str
) -> None:
    with serve(rest="destinations: {allow: [loopback]}\ndefaults: {plain_http: allow}") as sidecar:
        port = sidecar.admin_url.rsplit(":", 1)[1]
        got = curl(f"http://{host}:{port}{path}", proxy=sidecar.proxy_url)
        assert json.loads(got.body)["reason"] == "destination_forbidden"
    assert corporate.heads == []


def test_nor_by_another_address_of_this_machine(serve: MakeSidecar, corporate: Corporate) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        try:
            unused.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback ones")
        address = unused.getsockname()[0]
    everywhere = """
        listen: ['forward://0.0.0.0:0']
        clients: {allow: [loopback]}
        destinations: {allow: [loopback, private, link_local, cgnat, reserved]}
        defaults: {plain_http: allow}
    """
    with serve(rest=dedent(everywhere)) as sidecar:
        for port in (sidecar.address[1], int(sidecar.admin_url.rsplit(":", 1)[1])):
            got = curl(f"http://{address}:{port}/live", proxy=sidecar.proxy_url)
            assert json.loads(got.body)["reason"] == "destination_forbidden"
    assert corporate.heads == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc (Linux)")
def test_nothing_stays_open_behind_apps_that_have_left(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream
) -> None:
    with serve(rest="limits: {idle_seconds: 3}\ndestinations: {allow: [loopback]}") as sidecar:
        before = sidecar.open_files()
        for number in range(20):
            with socket.create_connection(sidecar.address, 5) as app:
                name = f"tunnel.example:{upstream.port}" if number % 2 else f"api.example:{upstream.port}"
                app.sendall(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                app.recv(1000)
        corporate.refuse = b"HTTP/1.1 403 No\r\n\r\n"
        for _ in range(10):
            ask(sidecar, upstream, "api.example")
        wait_until(lambda: sidecar.open_files() <= before + 2)


def test_a_circle_of_proxies_is_cut(authority: Authority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [each.getsockname()[1] for each in (first, second)]
    folders = [tmp_path / str(each) for each in (0, 1)]
    policies = []
    for each, folder in enumerate(folders):
        folder.mkdir()
        policies.append(
            f"listen: ['forward://127.0.0.1:{ports[each]}']\nvia: number-{each}\n"
            f"upstream_proxy: {{url: 'http://proxy.example:{ports[1 - each]}'}}"
        )
    with (
        Sidecar(policies[0], folders[0], authority=authority, hosts=HOSTS) as one,
        Sidecar(policies[1], folders[1], authority=authority, hosts=HOSTS) as other,
    ):
        assert curl("http://there.example/", proxy=one.proxy_url).status == 502
        of_one, of_other = one.wait_for_decisions(2), other.wait_for_decisions(1)
    assert {line["method"]: line["reason"] for line in of_one} == {
        "CONNECT": "request_loop",
        "GET": "upstream_proxy_failed",
    }
    assert of_other[0]["reason"] == "upstream_proxy_failed"


class TestEndings:
    """What an end means must not get lost on the way through another proxy."""

    REST = "destinations: {allow: [loopback]}\ndefaults: {plain_http: allow}"
    HEAD = b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n"

    @pytest.fixture
    def origin(self) -> Iterator[socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(10)
            yield listener

    @pytest.fixture
    def sidecar(self, serve: MakeSidecar, origin: socket.socket) -> Iterator[Sidecar]:
        rule = f"rules: [{{name: raw, hosts: ['raw.example:{origin.getsockname()[1]}'], raw_tcp: allow}}]"
        with serve(rest=f"{self.REST}\n{rule}") as running:
            yield running

    @staticmethod
    def tunnel(sidecar: Sidecar, origin: socket.socket) -> tuple[RawClient, Accepted]:
        name = f"raw.example:{origin.getsockname()[1]}"
        app = RawClient(sidecar.address)
        app.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        assert app.read_response(method="CONNECT").status == 200
        app.send(b"hello")
        far = Accepted(origin.accept()[0])
        assert far.read_exactly(5) == b"hello"
        return app, far

    def request(self, sidecar: Sidecar, origin: socket.socket) -> tuple[RawClient, Accepted]:
        """Return both ends of a plain request whose response has no length."""
        name = f"plain.example:{origin.getsockname()[1]}"
        app = RawClient(sidecar.address)
        app.send(f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        far = Accepted(origin.accept()[0])
        far.read_head()
        far.send(self.HEAD + b"part")
        app.read_until(b"part")
        return app, far

    def test_one_direction_may_end_long_before_the_other(self, sidecar: Sidecar, origin: socket.socket) -> None:
        app, far = self.tunnel(sidecar, origin)
        with app, far:
            app.finish()
            assert far.read_to_end() == b""
            for _ in range(3):
                far.send(b"answer")
                assert app.read_exactly(6) == b"answer"
            far.finish()
            assert app._receive() is False

    def test_and_the_other_way_round(self, sidecar: Sidecar, origin: socket.socket) -> None:
        app, far = self.tunnel(sidecar, origin)
        with app, far:
            far.finish()
            assert app._receive() is False
            app.send(b"more")
            assert far.read_exactly(4) == b"more"
            app.finish()
            assert far.read_to_end() == b""

    def test_what_came_with_the_answer_is_the_upstreams(
        self, sidecar: Sidecar, corporate: Corporate, origin: socket.socket
    ) -> None:
        corporate.answer = (b"HTTP/1.1 200 OK\r\n\r\n220 hi\r\n",)
        app, far = self.tunnel(sidecar, origin)
        with app, far:
            assert app.read_exactly(8) == b"220 hi\r\n"

    def test_a_reset_stays_one(self, sidecar: Sidecar, origin: socket.socket) -> None:
        app, far = self.tunnel(sidecar, origin)
        with app:
            far.reset()
            with pytest.raises(ConnectionResetError):
                app._receive()
        app, far = self.tunnel(sidecar, origin)
        with far:
            app.reset()
            with pytest.raises(ConnectionResetError):
                far._receive()

    def test_a_body_without_a_length_is_whole_if_nothing_broke(self, sidecar: Sidecar, origin: socket.socket) -> None:
        app, far = self.request(sidecar, origin)
        with app:
            far.close()
            assert app._receive() is False  # and no reset

    def test_and_not_if_something_did(self, sidecar: Sidecar, origin: socket.socket) -> None:
        app, far = self.request(sidecar, origin)
        with app:
            far.reset()
            with pytest.raises(ConnectionResetError):
                app._receive()

    def test_nor_if_somebody_may_have_cut_it(
        self, sidecar: Sidecar, corporate: Corporate, scheme: str, origin: socket.socket
    ) -> None:
        corporate.says_farewell = False
        app, far = self.request(sidecar, origin)
        with app:
            far.close()
            if scheme == "https":
                with pytest.raises(ConnectionResetError):
                    app._receive()
            else:
                assert app._receive() is False


class TestPins:
    @pytest.fixture
    def scheme(self) -> str:
        return "https"

    @pytest.mark.parametrize("mode", ["enforce", "observe"])
    def test_the_proxys_own_pins_hold_in_any_mode(
        self, serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, tmp_path: Path, mode: str
    ) -> None:
        rest = f"mode: {mode}\ndestinations: {{allow: [loopback]}}\ndefaults: {{plain_http: upgrade}}"
        with serve(", pins: {any_of: [{file: proxy-certificate.pem}]}", rest) as sidecar:
            if mode == "enforce":
                assert ask(sidecar, upstream, "api.example").status == 200
                assert len(corporate.heads) == 1
        upstream_before, heads_before = len(upstream.requests), len(corporate.heads)
        with serve(f", pins: {{any_of: ['{NO_PIN}']}}", rest) as sidecar:
            got = ask(sidecar, upstream, "api.example")
            assert (got.status, json.loads(got.body)["reason"]) == (502, "pin_mismatch")
            assert "the upstream proxy" in json.loads(got.body)["detail"]
            assert "add it to upstream_proxy.pins.any_of" in json.loads(got.body)["hint"]
        assert (len(upstream.requests), len(corporate.heads)) == (upstream_before, heads_before)

    def test_its_certificate_is_verified(
        self, serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, authority: Authority
    ) -> None:
        with serve(rest="destinations: {allow: [loopback]}") as sidecar:
            reload(sidecar, sidecar.policy_file.read_text().replace("proxy.example", "straight.example"))
            got = ask(sidecar, upstream, "api.example")
            assert (got.status, json.loads(got.body)["reason"]) == (502, "certificate_invalid")
        assert corporate.heads == []


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{url: 'proxy.example:3128'}", "a proxy is http://HOST:PORT"),
        ("{url: 'http://me:secret@proxy.example:3128'}", "credentials do not stand in the URL"),
        ("{url: 'http://proxy.example'}", "has no port"),
        ("{url: 'http://proxy.example:1', credentials: {env: NOT_SET_AT_ALL}}", "is not set"),
        ("{url: 'http://proxy.example:1', credentials: {env: SHELLISH}}", "is not NAME:PASSWORD"),
        (f"{{url: 'http://proxy.example:1', pins: {{any_of: ['{NO_PIN}']}}}}", "only an https proxy"),
    ],
)
def test_what_is_no_proxy_is_refused(authority: Authority, tmp_path: Path, section: str, said: str) -> None:
    with (
        pytest.raises(SidecarFailed) as failed,
        Sidecar(f"upstream_proxy: {section}", tmp_path, authority=authority, env={"SHELLISH": "no colon"}),
    ):
        pass
    assert failed.value.status == 2
    assert said in failed.value.stderr
    assert "secret" not in failed.value.stderr


def test_pins_are_fetched_through_it_and_its_own_straight(
    serve: MakeSidecar, corporate: Corporate, upstream: TlsUpstream, scheme: str, tmp_path: Path
) -> None:
    sidecar = serve()
    shown = json.loads(sidecar.run("pins", "fetch", "-p", "policy.yaml", "--json", f"api.example:{upstream.port}"))
    assert shown["chain"][0]["pin"] == upstream.pin
    assert corporate.heads[0].startswith(f"CONNECT api.example:{upstream.port} ".encode())
    if scheme == "https":
        own = sidecar.run("pins", "fetch", "-p", "policy.yaml", "--json", f"proxy.example:{corporate.port}")
        certificate = x509.load_pem_x509_certificate((tmp_path / "proxy-certificate.pem").read_bytes())
        assert json.loads(own)["chain"][0]["pin"] == pin_of(certificate)
        assert len(corporate.heads) == 1
