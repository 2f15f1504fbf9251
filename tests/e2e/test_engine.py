"""The process: starting, draining, failing hooks, leaks, back-pressure, and its own ports.

Proves ARCHITECTURE's rules 1 (an exception in any hook denies the flow) and 6 (no secret is ever written, not even by
what fails), and what all rules rest on: that the process neither stops nor grows under what is thrown at it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl, send_until_blocked
from tests.e2e.http2 import Http2Client
from tests.e2e.scripted import answering_anything, scripted_upstream
from tests.e2e.sidecar import ROOT, SidecarFailed, clean_environment, overcoat_command
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.e2e.upstream import PlainUpstream, SlowUpstream, TlsUpstream
from tests.waiting import wait_until, wait_while_changing

MakeTls = Callable[..., TlsUpstream]

ALLOW = "defaults: {plain_http: allow}"
CANARY = "canary-4111111111111111"
has_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="open files and memory are read from /proc, which is Linux's"
)


class TestStart:
    @pytest.mark.parametrize("which", ["listen", "admin"])
    def test_a_port_in_use_is_one_line_and_status_1(self, which: str, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            policy = f"listen: [forward://127.0.0.1:{port}]" if which == "listen" else f"admin: 127.0.0.1:{port}"
            with pytest.raises(SidecarFailed) as failure:
                Sidecar(policy, tmp_path).start()
        assert failure.value.status == 1
        (line,) = [json.loads(line)["message"] for line in failure.value.stderr.splitlines()]
        assert line.startswith("cannot listen on ")
        assert f"127.0.0.1:{port}" in line
        assert "address already in use" in line
        assert failure.value.stdout == ""

    def test_the_same_policy_starts_once_the_port_is_free(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        with Sidecar(f"listen: [forward://127.0.0.1:{port}]", tmp_path) as sidecar:
            assert sidecar.listen == (f"127.0.0.1:{port}",)

    def test_an_unknown_command_is_status_2(self) -> None:
        done = subprocess.run(
            [*overcoat_command(), "frobnicate"], capture_output=True, text=True, env=clean_environment(), check=False
        )
        assert done.returncode == 2
        assert "frobnicate" in done.stderr

    def test_several_listeners_answer_alike(self, plain_upstream: PlainUpstream, tmp_path: Path) -> None:
        policy = f"{ALLOW}\nlisten: [forward://127.0.0.1:0, forward://127.0.0.1:0]"
        with Sidecar(policy, tmp_path) as sidecar:
            assert len(set(sidecar.listen)) == 2
            for address in sidecar.listen:
                assert curl(plain_upstream.url(), proxy=f"http://{address}").status == 200

    def test_without_an_admin_listener_there_is_none(self, plain_upstream: PlainUpstream, tmp_path: Path) -> None:
        with Sidecar(f"{ALLOW}\nadmin: null", tmp_path) as sidecar:
            assert curl(plain_upstream.url(), proxy=sidecar.proxy_url).status == 200
            assert sidecar.admin_url == "http://None"

    def test_roots_that_cannot_be_read_end_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "roots.pem").write_text("no certificates")
        with pytest.raises(SidecarFailed) as failure:
            Sidecar("trust: {roots: roots.pem}", tmp_path).start()
        assert failure.value.status in (1, 2)
        assert "roots.pem" in failure.value.stderr
        assert "Traceback" not in failure.value.stderr


def ask(client: RawClient, upstream: PlainUpstream | TlsUpstream, host: str | None = None, path: str = "/") -> None:
    url = upstream.url(path, host=host)
    authority = url.removeprefix("http://").partition("/")[0]
    client.send(f"GET {url} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())


def is_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was in the queue when the listener closed; the next one tells
        pass
    return False


class TestDraining:
    def test_a_running_request_ends_and_no_new_connection_is_taken(self, slow: SlowUpstream, tmp_path: Path) -> None:
        with Sidecar(ALLOW, tmp_path) as sidecar:
            assert sidecar.admin_get("/ready")[0] == 200
            with RawClient(sidecar.address) as client:
                ask(client, slow)
                slow.wait_for_requests(1)
                sidecar.signal(signal.SIGTERM)
                wait_until(lambda: is_refused(sidecar.address), "new connections are refused")
                assert sidecar.admin_get("/ready")[0] == 503
                assert sidecar.admin_get("/live")[0] == 200
                slow.release.set()
                answer = client.read_response()
                assert (answer.status, answer.body) == (200, b'"late"')
                assert client.read_to_end() == b""
            assert sidecar.wait() == 0
            assert sidecar.decisions()[-1]["status"] == 200

    def test_idle_connections_do_not_hold_it_up(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        policy = "rules: [{name: inspected, hosts: [inspected.example], https: inspect}]"
        hosts = dict.fromkeys(("open.example", "inspected.example"), "127.0.0.1")
        upstream = tls_upstream(*hosts)
        authority_form = f"inspected.example:{upstream.port}"
        with (
            Sidecar(policy, tmp_path, authority=authority, hosts=hosts) as sidecar,
            RawClient(sidecar.address),
            RawClient(sidecar.address) as used,
            RawClient(sidecar.address) as inspected,
        ):
            ask(used, upstream, "open.example")
            assert used.read_response().status == 200
            inspected.send(f"CONNECT {authority_form} HTTP/1.1\r\nHost: {authority_form}\r\n\r\n".encode())
            inspected.read_response(method="CONNECT")
            inspected.start_tls("inspected.example", sidecar.ca_file)
            inspected.send(f"GET / HTTP/1.1\r\nHost: {authority_form}\r\n\r\n".encode())
            assert inspected.read_response().status == 200
            started = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - started < 6.0  # it would wait for 8

    def test_a_second_signal_ends_it_at_once(self, slow: SlowUpstream, tmp_path: Path) -> None:
        with Sidecar(ALLOW, tmp_path) as sidecar, RawClient(sidecar.address) as client:
            ask(client, slow)
            slow.wait_for_requests(1)
            sidecar.signal(signal.SIGTERM)
            wait_until(lambda: "draining" in sidecar.stderr, "it drains")
            started = time.monotonic()
            sidecar.signal(signal.SIGTERM)
            assert sidecar.wait() == 1
            assert time.monotonic() - started < 1.0

    def test_an_interrupt_is_an_orderly_end_too(self, tmp_path: Path) -> None:
        with Sidecar(ALLOW, tmp_path) as sidecar:
            sidecar.signal(signal.SIGINT)
            assert sidecar.wait() == 0
            assert "Traceback" not in sidecar.stderr


# Starts the command with hooks that raise for the host names that carry their own name.
BROKEN_HOOKS = """
import importlib, json, sys
root, table, hooks, canary = sys.argv[1:5]
del sys.argv[1:5]
sys.path += [root, root + "/tests/e2e"]
import named_hosts
named_hosts.install(json.loads(table))

def hosts_of(subject):
    if hasattr(subject, "request"):
        return subject.request.host, str(subject.request.data.authority)
    address = getattr(subject, "conn", subject.context.server)
    return [(getattr(address, "address", None) or subject.context.server.address)[0], subject.context.server.address[0]]

def break_hook(module, owner, hook):
    kind = getattr(importlib.import_module(module), owner)
    original = getattr(kind, hook)
    name = f"{hook}-{owner}.broken.example".replace("_", "-").lower()
    def broken(self, subject):
        if any(name in host for host in hosts_of(subject)):
            raise RuntimeError(canary)
        return original(self, subject)
    setattr(kind, hook, broken)

for entry in json.loads(hooks):
    break_hook(*entry)
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""
HOOKS = [
    # module, class, hook, way, what the app gets: a status, or None for a closed connection
    ("addons.gate", "Gate", "requestheaders", "http", 500),
    ("addons.transport", "Transport", "requestheaders", "http", 500),
    ("addons.encryption", "Encryption", "requestheaders", "http", 500),
    ("addons.encryption", "Encryption", "request", "http", 500),
    ("proxy.engine.tls", "TlsConnections", "tls_start_server", "http", 500),
    ("addons.pinning", "Pinning", "tls_start_server", "http", 500),
    ("addons.encryption", "Encryption", "responseheaders", "http", None),
    ("addons.encryption", "Encryption", "response", "http", 500),
    ("addons.telemetry", "Telemetry", "response", "http", 500),
    ("addons.gate", "Gate", "http_connect", "connect", 500),
    ("addons.transport", "Transport", "http_connect", "connect", 500),
    ("addons.gate", "Gate", "requestheaders", "http/2", 500),
    ("addons.telemetry", "Telemetry", "response", "http/2", 500),
    ("proxy.engine.tls", "TlsConnections", "tls_start_client", "https", None),
]
AFTER_THE_REQUEST = ("responseheaders", "response")


def broken_host(owner: str, hook: str) -> str:
    return f"{hook}-{owner}.broken.example".replace("_", "-").lower()


HOOK_NAMES = ("fine.example", *(broken_host(owner, hook) for _, owner, hook, _, _ in HOOKS))


@pytest.fixture(scope="module")
def broken(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("hooks")
    key = folder / "app.jwk"
    key.write_text(json.dumps({"kty": "oct", "k": base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")}))
    key.chmod(0o600)
    # A decrypting rule holds its responses, so that a hook can still keep them back.
    policy = """
        keys: {app: {alg: A256KW, primary: {kid: app-1, file: app.jwk}}}
        rules:
          - name: broken
            hosts: ["**.broken.example"]
            response: [{decrypt: ["$.secret"], key: app}]
    """
    script = folder / "broken.py"
    script.write_text(BROKEN_HOOKS)
    table = json.dumps(dict.fromkeys(HOOK_NAMES, "127.0.0.1"))
    hooks = json.dumps([entry[:3] for entry in HOOKS])
    command = [sys.executable, "-P", str(script), str(ROOT), table, hooks, CANARY]
    with Sidecar(policy, folder, authority=authority, command=command) as sidecar:
        yield sidecar


class TestHooksThatRaise:
    """One sidecar in which every hook is broken for one host name, and in order for all others."""

    @pytest.mark.parametrize(("module", "owner", "hook", "way", "status"), HOOKS)
    def test_the_flow_is_denied_and_the_process_lives(
        self,
        broken: Sidecar,
        tls_upstream: MakeTls,
        module: str,
        owner: str,
        hook: str,
        way: str,
        status: int | None,
    ) -> None:
        upstream = tls_upstream(*HOOK_NAMES)
        host = broken_host(owner, hook)
        failures = broken.metrics().value("overcoat_hook_failures_total")
        before = len(broken.decisions())
        authority = f"{host}:{upstream.port}"
        with RawClient(broken.address) as client:
            if way == "http":
                ask(client, upstream, host)
            else:
                client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            if way == "http/2":
                assert client.read_response(method="CONNECT").status == 200
                http2 = Http2Client.open(client, host, broken.ca_file)
                message = http2.read(http2.send(authority, body=b"{}"))
                got = f"HTTP/1.1 {message.status} ".encode() + message.body
            elif way == "https":
                assert client.read_response(method="CONNECT").status == 200
                context = ssl.create_default_context(cafile=str(broken.ca_file))
                with pytest.raises((ConnectionError, ssl.SSLError)):  # closed in the handshake
                    client.start_tls(host, context=context)
                got = b""
            else:
                got = _read(client, status)
        if status is None:
            assert got == b""
        else:
            assert f"HTTP/1.1 {status} ".encode() in got
            assert b"internal_error" in got
        if hook not in AFTER_THE_REQUEST:
            upstream.assert_no_application_bytes()
        wait_until(lambda: len(broken.decisions()) > before, "its decision line is written")
        decision = broken.decisions()[before]  # the twins before it have waited for theirs
        assert (decision["action"], decision["reason"]) == ("deny", "internal_error")
        wait_until(lambda: f"the {hook} hook failed" in broken.stderr, "the failure is logged")
        assert broken.metrics().value("overcoat_hook_failures_total") > failures
        assert CANARY not in broken.stderr + broken.stdout + broken.metrics().text
        assert CANARY.encode() not in got
        # The twin: the same request to a host for which nothing is broken.
        with RawClient(broken.address) as client:
            ask(client, upstream, "fine.example")
            assert client.read_response().status == 200
        wait_until(lambda: len(broken.decisions()) == before + 2, "the twin's decision line is written")

    def test_a_streamed_request_does_not_come_to_its_end(self, authority: Authority, broken: Sidecar) -> None:
        """Its first part has left; without the last chunk, no server takes it for the whole."""
        with (
            scripted_upstream(broken_host("Encryption", "request"), authority) as far,
            RawClient(broken.address) as app,
        ):
            app.send(far.request("/", "Transfer-Encoding: chunked\r\n", "POST") + b"2\r\nab\r\n")
            server = far.accept()
            server.read_head()
            assert server.read_exactly(7) == b"2\r\nab\r\n"
            app.send(b"0\r\n\r\n")
            assert _read(app, None) == b""
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert server.read_to_end() == b""
            line = broken.wait_for_decision(lambda line: line["destination"] == far.authority)
        assert (line["action"], line["reason"], line["status"]) == ("deny", "internal_error", None)

    @pytest.mark.parametrize("host", [broken_host("Encryption", "response"), "fine.example"])
    def test_a_streamed_response_does_not_come_to_its_end(
        self, authority: Authority, broken: Sidecar, host: str
    ) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        with scripted_upstream(host, authority) as far, RawClient(broken.address) as app:
            app.send(far.request("/"))
            server = far.accept()
            server.read_head()
            server.send(head + b"2\r\nab\r\n")
            assert app.read_until(b"2\r\nab\r\n").endswith(b"ab\r\n")
            server.send(b"0\r\n\r\n")
            if host == "fine.example":  # the twin
                assert app.read_exactly(5) == b"0\r\n\r\n"
            else:
                assert _read(app, None) == b""
            line = broken.wait_for_decision(lambda line: line["destination"] == far.authority)
        assert line["reason"] == (None if host == "fine.example" else "internal_error")

    def test_no_other_protocol_is_switched_to(self, authority: Authority, broken: Sidecar) -> None:
        host = broken_host("Encryption", "responseheaders")
        with scripted_upstream(host, authority) as far, RawClient(broken.address) as app:
            app.send(far.request("/", "Upgrade: websocket\r\nConnection: Upgrade\r\n"))
            server = far.accept()
            server.read_head()
            server.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
            assert _read(app, None) == b""
            line = broken.wait_for_decision(lambda line: line["destination"] == far.authority)
        assert (line["action"], line["reason"], line["status"]) == ("deny", "internal_error", None)


def _read(client: RawClient, status: int | None) -> bytes:
    if status is None:
        try:
            return client.read_to_end()
        except (ConnectionError, ssl.SSLError):  # closed, if not in order; a timeout would be something else
            return b""
    answer = client.read_response()
    return f"HTTP/1.1 {answer.status} \r\n".encode() + answer.body


class TestGrowth:
    @has_proc
    def test_requests_tunnels_and_aborts_leave_nothing_behind(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        hosts = dict.fromkeys(("open.example", "inspected.example"), "127.0.0.1")
        policy = "rules: [{name: inspected, hosts: [inspected.example], https: inspect}]"
        upstream = tls_upstream(*hosts)
        with Sidecar(policy, tmp_path, authority=authority, hosts=hosts) as sidecar:
            ca_file = sidecar.ca_file
            before = sidecar.open_files()

            def a_round() -> None:
                for _ in range(40):
                    with RawClient(sidecar.address) as client:
                        ask(client, upstream, "open.example")
                        client.read_response()
                with RawClient(sidecar.address) as client:
                    for _ in range(50):
                        ask(client, upstream, "open.example")
                        client.read_response()
                for host, roots in (
                    ("open.example", sidecar.policy_file.parent / "roots.pem"),
                    ("inspected.example", ca_file),
                ):
                    for _ in range(15):
                        with RawClient(sidecar.address) as client:
                            authority_form = f"{host}:{upstream.port}"
                            client.send(f"CONNECT {authority_form} HTTP/1.1\r\nHost: {authority_form}\r\n\r\n".encode())
                            client.read_response(method="CONNECT")
                            client.start_tls(host, roots)
                            client.send(f"GET / HTTP/1.1\r\nHost: {authority_form}\r\n\r\n".encode())
                            client.read_response()
                for number in range(30):
                    client = RawClient(sidecar.address)
                    ask(client, upstream, "open.example")
                    if number % 3 == 0:
                        client.send(b"POST http://open.example:1/ HTTP/1.1\r\nContent-Len")
                    client.reset()
                upstream.hang_up()  # else the pool keeps as many as there were at once, and how many that is varies

            a_round()
            wait_until(lambda: sidecar.open_files() <= before, "all sockets of the first round are closed")
            after_one = sidecar.resident_bytes()
            a_round()
            wait_until(lambda: sidecar.open_files() <= before, "all sockets of the second round are closed")
            assert sidecar.resident_bytes() - after_one < 8 * 1024 * 1024
            wait_until(lambda: sidecar.metrics().value("overcoat_client_connections") == 0, "no client is counted")

    @has_proc
    def test_one_long_app_connection_to_an_upstream_that_closes_each_time_does_not_grow(self, tmp_path: Path) -> None:
        """The upstream says nothing of closing, so the app's connection stays."""
        response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        with Sidecar(ALLOW, tmp_path) as sidecar, answering_anything(response) as (port, _):
            before = sidecar.open_files()
            request = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
            with RawClient(sidecar.address) as client:
                statuses = []
                for _ in range(200):
                    client.send(request)
                    statuses.append(client.read_response().status)
                assert set(statuses) <= {200, 502}  # 502 where the end crossed the next request
                assert statuses.count(200) > 150
                wait_until(lambda: sidecar.open_files() <= before + 3, "the upstream's sockets are closed")


class TestBackPressure:
    SIZE = 64 * 1024 * 1024
    BOUND = 24 * 1024 * 1024

    @has_proc
    def test_an_app_that_does_not_read_stops_the_upstream(self, tmp_path: Path) -> None:
        sent = [0]

        def serve(listener: socket.socket) -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(65536)
                accepted.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {self.SIZE}\r\n\r\n".encode())
                while sent[0] < self.SIZE:
                    sent[0] += accepted.send(b"x" * 65536)

        with Sidecar(ALLOW, tmp_path) as sidecar, socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            port = listener.getsockname()[1]
            before = sidecar.resident_bytes()
            with socket.create_connection(sidecar.address, 10) as client:
                client.sendall(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                assert client.recv(12) == b"HTTP/1.1 200"
                wait_while_changing(lambda: sent[0])
                assert sent[0] < self.BOUND
                assert sidecar.resident_bytes() - before < self.BOUND
                # The twin: once the app reads, it gets all of it.
                got = 0
                while got < self.SIZE:
                    got += len(client.recv(1024 * 1024)) or self.SIZE * 2  # an early end fails the next line
                assert got < self.SIZE + 1024

    @has_proc
    def test_an_upstream_that_does_not_read_stops_the_app(self, tmp_path: Path) -> None:
        with Sidecar(ALLOW, tmp_path) as sidecar, socket.create_server(("127.0.0.1", 0)) as deaf:
            port = deaf.getsockname()[1]
            before = sidecar.resident_bytes()
            with socket.create_connection(sidecar.address) as client:
                client.sendall(
                    f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                    f"Content-Length: {self.SIZE}\r\n\r\n".encode()
                )
                sent = send_until_blocked(client, bytes(self.SIZE))
                assert sent < self.BOUND
                assert sidecar.resident_bytes() - before < self.BOUND


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with Sidecar(ALLOW, tmp_path_factory.mktemp("own"), hosts={"self.example": "127.0.0.1"}) as sidecar:
        yield sidecar


class TestOwnPorts:
    @pytest.mark.parametrize("which", ["listener", "admin"])
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "LOCALHOST.", "self.example", "0.0.0.0", "[::ffff:127.0.0.1]"]
    )
    @pytest.mark.parametrize("way", ["http", "connect"])
    def test_they_cannot_be_reached_through_the_proxy(self, own: Sidecar, which: str, host: str, way: str) -> None:
        address = own.listen[0] if which == "listener" else own.admin_url.removeprefix("http://")
        authority = f"{host}:{address.rpartition(':')[2]}"
        target, method = (f"http://{authority}/metrics", "GET") if way == "http" else (authority, "CONNECT")
        with RawClient(own.address) as client:
            client.send(f"{method} {target} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (403, "destination_forbidden")
        assert b"overcoat_requests" not in answer.body

    @pytest.mark.parametrize("host", ["127.0.0.2", "[::1]"])
    def test_addresses_where_it_does_not_listen_lead_nowhere(self, own: Sidecar, host: str) -> None:
        authority = f"{host}:{own.address[1]}"
        with RawClient(own.address) as client:
            client.send(f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert client.read_response().status in (403, 502)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "self.example"])
    def test_another_port_of_the_same_machine_can(self, own: Sidecar, plain_upstream: PlainUpstream, host: str) -> None:
        assert curl(plain_upstream.url(host=host), proxy=own.proxy_url).status == 200
