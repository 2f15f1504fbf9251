"""Where requests may go, who may send them, and how much of everything there may be.

Proves what `destinations`, `clients` and `limits` promise, from outside: the upstream is never touched by what is
forbidden, every denial has its own reason, and everything else about a denied request is right.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.e2e import wire
from tests.e2e.app import Way, ask, client_hello, connect, open_way
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, Answer, RawClient, curl, send_until_blocked
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client
from tests.e2e.sidecar import Sidecar, SidecarFailed, clean_environment, overcoat_command, run_command
from tests.e2e.test_http1 import is_open
from tests.e2e.upstream import TlsUpstream, echo

NAMES = {
    "api.example": "127.0.0.1",
    "inner.example": "10.11.12.13",
    "metadata.example": "169.254.169.254",
    "linked.example": "169.254.10.10",
    "shared.example": "100.64.3.2",
    "doc.example": "192.0.2.7",
    "all.example": "224.0.0.251",
    "six.example": "fd12:3456::1",
    "mapped.example": "::ffff:127.0.0.1",
    "translated.example": "64:ff9b::7f00:1",
}


def reason_of(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["reason"]


@pytest.fixture(scope="module")
def strict(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar whose policy says nothing of destinations but that."""
    policy = "destinations: {egress: any}\nrules: [{name: in, hosts: ['**.inspected.example'], https: inspect}]"
    with Sidecar(policy, tmp_path_factory.mktemp("strict"), authority=authority, hosts=NAMES) as running:
        yield running


class TestDestinations:
    @pytest.mark.parametrize(
        ("host", "kind"),
        [
            ("api.example", "loopback"),
            ("localhost", "loopback"),
            ("127.0.0.1", "loopback"),
            ("127.8.8.8", "loopback"),
            ("[::1]", "loopback"),
            ("0.0.0.0", "loopback"),
            ("[::]", "loopback"),
            ("[::ffff:127.0.0.1]", "loopback"),
            ("mapped.example", "loopback"),
            ("10.11.12.13", "private"),
            ("inner.example", "private"),
            ("192.168.1.1", "private"),
            ("[fd12:3456::1]", "private"),
            ("six.example", "private"),
            ("shared.example", "cgnat"),
            ("169.254.10.10", "link_local"),
            ("linked.example", "link_local"),
            ("[fe80::1]", "link_local"),
            ("169.254.169.254", "metadata"),
            ("metadata.example", "metadata"),
            ("[::ffff:169.254.169.254]", "metadata"),
            ("all.example", "multicast"),
            ("[ff02::fb]", "multicast"),
            ("doc.example", "reserved"),
            ("255.255.255.255", "reserved"),
            ("translated.example", "reserved"),
            ("[64:ff9b::a9fe:a9fe]", "metadata"),
            ("[2002:7f00:1::1]", "reserved"),
            ("[2001:0:7f00:1::]", "reserved"),
        ],
    )
    @pytest.mark.parametrize("how", ["http", "CONNECT"])
    def test_what_is_not_public_is_forbidden(
        self, strict: Sidecar, upstream: TlsUpstream, host: str, kind: str, how: str
    ) -> None:
        authority = f"{host}:{upstream.port}"
        line = f"GET http://{authority}/ HTTP/1.1" if how == "http" else f"CONNECT {authority} HTTP/1.1"
        with RawClient(strict.address) as client:
            client.send(f"{line}\r\nHost: {authority}\r\n\r\n".encode())
            answer = client.read_response(method="GET" if how == "http" else "CONNECT")
        assert reason_of(answer) == (403, "destination_forbidden")
        problem = json.loads(answer.body)
        assert f"is at a {kind} address" in problem["detail"]
        where = "address" if kind == "metadata" else "network"
        assert f"a rule of its own with destinations: {{allow: [{kind}]}} (or just its {where})" in problem["hint"]
        assert answer.headers.all("proxy-status")[0] == (
            'overcoat; error=destination_ip_prohibited; details="destination_forbidden"'
        )
        upstream.assert_untouched()

    @pytest.fixture
    def upstream(self, authority: Authority) -> Iterator[TlsUpstream]:
        with TlsUpstream(authority, "api.example", "127.0.0.1") as server:
            yield server

    @pytest.mark.parametrize("allow", ["loopback", "127.0.0.1", "127.0.0.0/8", '"::/0", loopback'])
    @pytest.mark.parametrize("way", [Way.HTTP, Way.CONNECT])
    def test_what_the_policy_names_is_allowed(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path, allow: str, way: Way
    ) -> None:
        policy = f"destinations: {{allow: [{allow}]}}\ndefaults: {{https: inspect}}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            assert ask(sidecar, upstream, "api.example", way=way).status == 200

    def test_a_wider_network_does_not_include_metadata(self, authority: Authority, tmp_path: Path) -> None:
        policy = "destinations: {allow: [link_local, private, 169.254.0.0/16]}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            for host in ("metadata.example", "169.254.169.254"):
                with RawClient(sidecar.address) as client:
                    client.send(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                    assert reason_of(client.read_response()) == (403, "destination_forbidden")

    def test_in_http2_as_well(self, authority: Authority, upstream: TlsUpstream, tmp_path: Path) -> None:
        policy = "destinations: {egress: any}\ndefaults: {https: inspect}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            done = subprocess.run(
                [
                    *("curl", "-s", "--http2", "--cacert", sidecar.ca_file, "-x", sidecar.proxy_url),
                    *("-w", "%{http_version} %{http_code}", upstream.url(scheme="https", host="api.example")),
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            )
        body, _, said = done.stdout.rpartition("\n")
        assert said == "2 403"
        assert json.loads(body)["reason"] == "destination_forbidden"
        upstream.assert_untouched()

    def test_observing_reaches_it_and_says_so(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        policy = "mode: observe\ndestinations: {egress: any}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            with RawClient(sidecar.address) as client:
                name = f"api.example:{upstream.port}"
                client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                assert client.read_response(method="CONNECT").status == 200
                client.start_tls("api.example", authority.write_pem(tmp_path / "upstream.pem"))
                client.send(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                assert client.read_response().status == 200
            line = sidecar.wait_for_decisions(1)[0]
        assert (line["reason"], line["would_deny"], line["action"]) == ("destination_forbidden", True, "tunnel")

    @pytest.mark.parametrize(("host", "status"), [("api.example", 200), ("other.example", 403)])
    @pytest.mark.parametrize("way", [Way.HTTP, Way.CONNECT])
    def test_with_egress_listed_only_hosts_of_rules_are_reached(
        self, authority: Authority, tmp_path: Path, host: str, status: int, way: Way
    ) -> None:
        policy = (
            "destinations: {allow: [loopback], egress: listed}\ndefaults: {https: inspect}\n"
            "rules: [{name: api, hosts: [api.example]}]"
        )
        hosts = {"api.example": "127.0.0.1", "other.example": "127.0.0.1"}
        with (
            TlsUpstream(authority, *hosts) as upstream,
            Sidecar(policy, tmp_path, authority=authority, hosts=hosts) as sidecar,
        ):
            if status == 200:
                assert ask(sidecar, upstream, host, way=way).status == 200
                return
            name = f"{host}:{upstream.port}"
            line = f"GET http://{name}/" if way is Way.HTTP else f"CONNECT {name}"
            with RawClient(sidecar.address) as client:
                client.send(f"{line} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                assert reason_of(client.read_response()) == (403, "destination_forbidden")
            assert sidecar.wait_for_decisions(1)[0]["reason"] == "destination_forbidden"
            upstream.assert_untouched()


def hashed(password: str) -> str:
    """Return what `overcoat password` prints."""
    done = subprocess.run(
        [*overcoat_command(), "password"], input=f"{password}\n", capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode("ascii")


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority, "127.0.0.1") as server:
        yield server


def get(sidecar: Sidecar, upstream: TlsUpstream, *headers: str, source: str | None = None) -> Answer:
    """Ask for / with further header lines, from an address of this machine."""
    with socket.create_connection(sidecar.address, 10, (source, 0) if source else None) as connection:
        name = f"127.0.0.1:{upstream.port}"
        lines = [f"GET http://{name}/ HTTP/1.1", f"Host: {name}", "Connection: close", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        received = b""
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    pairs = tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
    return Answer(int(status.split()[1]), wire.Headers(pairs), body)


@pytest.fixture(scope="module")
def guarded(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "other.hash").write_text(hashed("zwei:zwei") + "\n")
    policy = f"""
        defaults: {{https: inspect}}
        clients:
          users:
            - {{name: app, password_hash: "{hashed("eins")}"}}
            - {{name: other, password_hash: {{file: other.hash}}}}
    """
    with Sidecar(policy, folder, authority=authority) as running:
        yield running


class TestClients:
    def test_only_the_addresses_that_the_policy_names(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        with Sidecar("clients: {allow: [127.0.0.2, 10.0.0.0/8]}", tmp_path, authority=authority) as sidecar:
            refused = get(sidecar, upstream)
            assert reason_of(refused) == (403, "client_forbidden")
            upstream.assert_untouched()
            assert get(sidecar, upstream, source="127.0.0.2").status == 200
            lines = sidecar.wait_for_decisions(2)
            assert [(line["client"], line["reason"]) for line in lines] == [
                ("127.0.0.1", "client_forbidden"),
                ("127.0.0.2", None),
            ]

    def test_observing_does_not_open_it_to_others(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        policy = "mode: observe\nclients: {allow: [10.0.0.0/8]}"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar:
            assert reason_of(get(sidecar, upstream)) == (403, "client_forbidden")
            line = sidecar.wait_for_decisions(1)[0]
        assert (line["action"], line["reason"], line["status"]) == ("deny", "client_forbidden", 403)

    @pytest.mark.parametrize(
        ("listen", "clients", "starts"),
        [
            ("0.0.0.0:0", "", False),
            ("[::]:0", "", False),
            ("0.0.0.0:0", "{allow: [private]}", True),
            ("0.0.0.0:0", "{unsafe_open_listener: true}", True),
            ("0.0.0.0:0", "{unsafe_open_listener: false}", True),
            ("127.0.0.1:0", "", True),
        ],
    )
    def test_a_listener_that_others_reach_says_who_may_use_it_or_does_not_start(
        self, authority: Authority, tmp_path: Path, listen: str, clients: str, starts: bool
    ) -> None:
        policy = f"listen: ['forward://{listen}']\n" + (f"clients: {clients}\n" if clients else "")
        if starts:
            with Sidecar(policy, tmp_path, authority=authority):
                return
        with pytest.raises(SidecarFailed) as failed, Sidecar(policy, tmp_path, authority=authority):
            pass
        assert failed.value.status == 2
        assert "others can reach" in failed.value.stderr
        assert "clients: {allow: [private]}" in failed.value.stderr

    def test_nor_does_one_that_a_variable_opens(self, authority: Authority, tmp_path: Path) -> None:
        env = {"OVERCOAT_LISTEN": "forward://0.0.0.0:0"}
        with pytest.raises(SidecarFailed) as failed, Sidecar("", tmp_path, authority=authority, env=env):
            pass
        assert "OVERCOAT_LISTEN: others can reach forward://0.0.0.0:0" in failed.value.stderr

    @pytest.mark.parametrize(
        "headers",
        [
            (),
            (f"Proxy-Authorization: {basic('app', 'zwei:zwei')}",),
            (f"Proxy-Authorization: {basic('app', '')}",),
            (f"Proxy-Authorization: {basic('nobody', 'eins')}",),
            (f"Authorization: {basic('app', 'eins')}",),
            ("Proxy-Authorization: Bearer eins",),
            (f"Proxy-Authorization: {basic('app', 'eins')}",) * 2,
        ],
        ids=["none", "another's", "empty", "nobody's", "for the server", "another scheme", "twice"],
    )
    def test_without_a_users_credentials_nothing_passes(
        self, guarded: Sidecar, upstream: TlsUpstream, headers: tuple[str, ...]
    ) -> None:
        for _ in range(6):
            answer = get(guarded, upstream, *headers)
            if answer.status != 429:  # as above
                break
            time.sleep(0.4)
        assert reason_of(answer) == (407, "proxy_authentication_required")
        assert answer.headers.all("proxy-authenticate")[0] == 'Basic realm="overcoat", charset="UTF-8"'
        with RawClient(guarded.address) as client:
            lines = "".join(f"{line}\r\n" for line in headers)
            client.send(f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode())
            assert client.read_response(method="CONNECT").status in (407, 429)
        upstream.assert_untouched()

    @pytest.mark.parametrize("how", ["GET http://{}/", "CONNECT {}"])
    def test_the_line_of_who_is_refused_says_where_it_wanted_to_go(
        self, guarded: Sidecar, upstream: TlsUpstream, how: str
    ) -> None:
        name = f"127.0.0.1:{upstream.port}"
        with RawClient(guarded.address) as client:
            client.send(f"{how.format(name)} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert client.read_response().status == 407
        line = guarded.wait_for_decision(lambda line: line["destination"] == name)  # others' lines may come late
        assert (line["action"], line["reason"]) == ("deny", "proxy_authentication_required")

    @pytest.mark.parametrize("line", ["GET http://{}/", "CONNECT {}", "GET https://{}/"])
    def test_a_refused_connect_lets_nothing_in_behind_it(
        self, guarded: Sidecar, upstream: TlsUpstream, line: str
    ) -> None:
        """Not even with the right password: what follows may be the tunnel's bytes (RFC 9931, section 8)."""
        name = f"127.0.0.1:{upstream.port}"
        shown = f"Proxy-Authorization: {basic('app', 'eins')}\r\n"
        with RawClient(guarded.address) as client:
            client.send(
                f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n"
                f"{line.format(name)} HTTP/1.1\r\nHost: {name}\r\n{shown}\r\n".encode()
            )
            answer = client.read_response()
            assert (answer.status, answer.headers.tokens("connection")) == (407, {"close"})
            assert client.read_to_end() == b""
        upstream.assert_untouched()

    @pytest.mark.parametrize("how", ["--proxy-basic", "--proxy-anyauth"])
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_curl_shows_its_password_at_once_or_when_it_is_asked_to(
        self, guarded: Sidecar, upstream: TlsUpstream, how: str, scheme: str
    ) -> None:
        url = f"{scheme}://127.0.0.1:{upstream.port}/"
        for _ in range(4):  # the guesses of other tests may have used up this second's
            answer = curl(how, "--proxy-user", "app:eins", url, proxy=guarded.proxy_url, ca_file=guarded.ca_file)
            if answer.status == 200:
                break
            time.sleep(0.5)
        assert (answer.exit_status, answer.status) == (0, 200), answer.error
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(("name", "password"), [("app", "eins"), ("other", "zwei:zwei")])
    def test_with_them_it_passes_and_they_go_no_further(
        self, guarded: Sidecar, upstream: TlsUpstream, name: str, password: str
    ) -> None:
        shown = basic(name, password)
        for _ in range(4):  # the guesses of other tests may have used up this second's
            if get(guarded, upstream, f"Proxy-Authorization: {shown}").status == 200:
                break
            time.sleep(0.5)
        with RawClient(guarded.address) as client:
            authority = f"127.0.0.1:{upstream.port}"
            client.send(
                f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: {shown}\r\n\r\n".encode()
            )
            assert client.read_response(method="CONNECT").status == 200
            client.start_tls("127.0.0.1", ca_file=guarded.ca_file)
            client.send(f"GET /inside HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert client.read_response().status == 200
        assert len(upstream.requests) == 2
        for connection in upstream.connections:
            assert b"roxy-" not in connection.received
            assert shown.split()[1].encode() not in connection.received
        assert shown.split()[1] not in guarded.stdout + guarded.stderr
        assert password not in guarded.stdout + guarded.stderr

    def test_who_guesses_learns_nothing_from_who_is_in_and_keeps_nobody_out(
        self, guarded: Sidecar, upstream: TlsUpstream
    ) -> None:
        def said(password: str, source: str) -> int:
            return get(guarded, upstream, f"Proxy-Authorization: {basic('app', password)}", source=source).status

        name = f"127.0.0.1:{upstream.port}"
        with RawClient(guarded.address) as known:

            def asks() -> int:
                shown = f"Proxy-Authorization: {basic('app', 'eins')}"
                known.send(f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n{shown}\r\n\r\n".encode())
                return known.read_response().status

            for _ in range(10):  # the guesses of other tests may have used up this second's
                if asks() == 200:
                    break
                time.sleep(0.3)
            for guesser in ("127.0.0.2", "127.0.0.1"):
                for second in range(3):  # one may end between the guesses and the right one
                    told = [said(f"{guesser} {second} {number}", guesser) for number in range(8)]
                    assert 429 in told
                    if said("eins", guesser) == 429:  # not told apart, though it is known
                        break
                else:
                    pytest.fail("the right password was told apart from guesses")
                assert asks() == 200
            assert said("eins", "127.0.0.9") == 200

    @pytest.mark.parametrize(
        ("users", "said"),
        [
            ("[{name: a, password_hash: hunter2}]", "never the password"),
            ("[{name: a, password_hash: {env: NOT_SET_HERE}}]", "is not set"),
            ("[{name: a, password_hash: {file: gone.hash}}]", "gone.hash cannot be read"),
            ("[{name: 'a:b', password_hash: {env: PATH}}]", "no colon"),
            ("[{name: a, password_hash: {env: PATH}}]", "no hash of a password"),
        ],
    )
    def test_what_is_no_user_is_refused(self, authority: Authority, tmp_path: Path, users: str, said: str) -> None:
        policy = f"clients: {{users: {users}}}"
        with pytest.raises(SidecarFailed) as failed, Sidecar(policy, tmp_path, authority=authority):
            pass
        assert failed.value.status == 2
        assert said in failed.value.stderr
        assert "hunter2" not in failed.value.stderr

    def test_an_empty_password_is_none(self) -> None:
        done = subprocess.run(
            [*overcoat_command(), "password"], input="\n", capture_output=True, text=True, check=False, timeout=20
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: the password is empty\n")


LIMITS = """
    limits: {header_bytes: 2048, header_count: 20, connections: 12, client_connections: 6, request_seconds: 1,
             idle_seconds: 3}
    clients: {allow: [loopback]}
    defaults: {https: inspect}
    keys: {k: {alg: A256KW, primary: {kid: k, file: k.jwk}}}
    rules: [{name: held, hosts: [127.0.0.1], request: [{encrypt: ["$.a"], key: k}]}]
"""


@pytest.fixture
def limited(authority: Authority, tmp_path: Path) -> Iterator[Sidecar]:
    """A sidecar with narrow limits."""
    made = [*overcoat_command(), "keys", "new", "--alg", "A256KW", "--format", "jwk", "--kid", "k", "--out"]
    run_command([*made, str(tmp_path / "k.jwk")], tmp_path, clean_environment()).check_returncode()
    with Sidecar(LIMITS, tmp_path, authority=authority) as running:
        yield running


class TestRawTcp:
    POLICY = """
        destinations: {allow: [loopback]}
        defaults: {https: inspect}
        rules: [{name: db, hosts: ["127.0.0.1:PORT"], raw_tcp: allow}]
    """

    @contextlib.contextmanager
    def _asked(
        self, authority: Authority, folder: Path, said: bytes = b""
    ) -> Iterator[tuple[Sidecar, RawClient, socket.socket]]:
        """A sidecar, an app that has sent its CONNECT for the destination with `said`, and what listens there."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with (
                Sidecar(self.POLICY.replace("PORT", str(port)), folder, authority=authority) as sidecar,
                RawClient(sidecar.address) as client,
            ):
                client.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode() + said)
                yield sidecar, client, listener

    @pytest.mark.parametrize("server_first", [True, False])
    def test_what_a_rule_names_with_its_port_passes_unlooked_at(
        self, authority: Authority, tmp_path: Path, server_first: bool
    ) -> None:
        with self._asked(authority, tmp_path) as (sidecar, client, listener):
            server, _ = listener.accept()
            with server:
                assert client.read_response(method="CONNECT").status == 200
                if server_first:
                    server.sendall(b"220 hello\r\n")
                    client.read_until(b"hello\r\n")
                client.send(b"GE")  # neither TLS nor a request line
                assert server.recv(100) == b"GE"
                client.finish()
                assert server.recv(100) == b""
                server.sendall(b"bye")
            assert client.read_to_end() == b"bye"
            line = sidecar.wait_for_decisions(1)[0]
        assert (line["action"], line["rule"], line["reason"]) == ("tunnel", "db", None)

    def test_there_nobody_owes_a_first_word(self, authority: Authority, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            name = f"127.0.0.1:{listener.getsockname()[1]}"
            policy = f"limits: {{request_seconds: 1}}{dedent(self.POLICY).replace('127.0.0.1:PORT', name)}"
            with Sidecar(policy, tmp_path, authority=authority) as sidecar, RawClient(sidecar.address) as client:
                client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                server, _ = listener.accept()
                with server:
                    assert client.read_response(method="CONNECT").status == 200
                    time.sleep(1.5)
                    server.sendall(b"220 hello\r\n")
                    assert client.read_exactly(11) == b"220 hello\r\n"

    def test_an_app_that_does_not_read_stops_a_server_that_speaks_first(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        most = 64 * 1024 * 1024
        with self._asked(authority, tmp_path) as (_, client, listener):
            server, _ = listener.accept()
            with Accepted(server) as far:
                assert client.read_response(method="CONNECT").status == 200
                assert send_until_blocked(far._socket, bytes(most)) < most
                client.send(b"GE")
                assert far.read_exactly(2) == b"GE"
                assert send_until_blocked(far._socket, bytes(most)) < most

    @pytest.mark.parametrize("said", [b"", b"GE"])
    def test_an_app_that_ends_its_side_while_that_is_dialled_is_passed_on(
        self, authority: Authority, tmp_path: Path, said: bytes
    ) -> None:
        with self._asked(authority, tmp_path, said) as (_, client, listener):
            client.finish()
            server, _ = listener.accept()
            with server:
                server.settimeout(5)
                got = b""
                while piece := server.recv(100):
                    got += piece
                assert got == said
                server.sendall(b"bye")
            assert client.read_response(method="CONNECT").status == 200
            assert client.read_to_end() == b"bye"

    def test_another_port_of_the_same_host_is_looked_at(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        with (
            Sidecar(self.POLICY.replace("PORT", "1"), tmp_path, authority=authority) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            client.send(f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            client.read_until(b"\r\n\r\n")
            client.send(b"SSH-2.0-x\r\n")
            assert b"SSH" not in client.read_to_end()
        upstream.assert_no_application_bytes()

    def test_elsewhere_nobody_speaks_before_the_app_has_said_what_it_speaks(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            name = f"127.0.0.1:{listener.getsockname()[1]}"
            with (
                Sidecar("destinations: {allow: [loopback]}", tmp_path, authority=authority) as sidecar,
                RawClient(sidecar.address) as client,
            ):
                client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                server, _ = listener.accept()
                with server:
                    server.sendall(b"220 hello\r\n")
                    assert client.read_response(method="CONNECT").status == 200
                    assert is_open(client)  # and nothing has come
                    hello = client_hello()
                    client.send(hello)
                    assert server.recv(len(hello)) == hello
                    assert client.read_exactly(11) == b"220 hello\r\n"

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            ("hosts: [a.example], raw_tcp: allow", "must name its port"),
            ("hosts: ['a.example:1'], raw_tcp: allow, https: inspect", "cannot have https: inspect"),
            (
                "hosts: ['a.example:1'], raw_tcp: allow, pins: {any_of: ['sha256/" + "A" * 42 + "E=']}",
                "cannot have pins",
            ),
            ("hosts: ['a.example:1'], raw_tcp: deny", "must be allow"),
        ],
    )
    def test_what_it_cannot_stand_beside_is_refused(
        self, authority: Authority, tmp_path: Path, rule: str, said: str
    ) -> None:
        policy = f"rules: [{{name: r, {rule}}}]"
        with pytest.raises(SidecarFailed) as failed, Sidecar(policy, tmp_path, authority=authority):
            pass
        assert said in failed.value.stderr


class TestVia:
    def test_it_is_added_both_ways_where_the_policy_says_so(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        with Sidecar("via: overcoat-1", tmp_path, authority=authority) as sidecar:
            answer = get(sidecar, upstream, "Via: 1.0 other")
            assert answer.headers.all("via") == ("1.1 overcoat-1",)
            assert upstream.requests[0].headers.all("via") == ("1.0 other", "1.1 overcoat-1")

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    def test_a_responses_names_the_version_that_the_upstream_spoke(
        self, authority: Authority, tmp_path: Path, version: str
    ) -> None:
        answer = f"HTTP/{version} 200 OK\r\nContent-Length: 0\r\n\r\n".encode()
        with (
            TlsUpstream(authority, "127.0.0.1", respond=lambda _: answer) as upstream,
            Sidecar("via: overcoat-1", tmp_path, authority=authority) as sidecar,
        ):
            assert get(sidecar, upstream).headers.all("via") == (f"{version} overcoat-1",)

    def test_otherwise_it_is_not(self, authority: Authority, upstream: TlsUpstream, tmp_path: Path) -> None:
        with Sidecar("", tmp_path, authority=authority) as sidecar:
            assert get(sidecar, upstream).headers.all("via") == ()
            assert upstream.requests[0].headers.all("via") == ()

    @pytest.mark.parametrize(
        "via", ["1.1 overcoat-1", "1.0 a, 1.1 overcoat-1 (x), 1.1 b", "HTTP/1.1 overcoat-1", "1.1 Overcoat-1:80"]
    )
    def test_a_circle_is_cut(self, authority: Authority, upstream: TlsUpstream, tmp_path: Path, via: str) -> None:
        with Sidecar("via: overcoat-1", tmp_path, authority=authority) as sidecar:
            assert reason_of(get(sidecar, upstream, f"Via: {via}")) == (508, "request_loop")
            assert get(sidecar, upstream, "Via: 1.1 overcoat-10").status == 200
        assert len(upstream.requests) == 1


class TestLimits:
    @pytest.mark.parametrize(
        ("lines", "status"),
        [
            (["X: " + "a" * 1700], 200),
            (["X: " + "a" * 2000], 431),
            ([f"X-{n}: 1" for n in range(17)], 200),
            ([f"X-{n}: 1" for n in range(20)], 431),
        ],
    )
    def test_of_a_head(self, limited: Sidecar, upstream: TlsUpstream, lines: list[str], status: int) -> None:
        answer = get(limited, upstream, *lines)
        assert answer.status == status
        if status != 200:
            assert reason_of(answer) == (431, "headers_too_large")
            upstream.assert_untouched()

    def test_who_is_forbidden_takes_nobodys_place(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        policy = "limits: {connections: 5}\nclients: {allow: [127.0.0.2]}"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar:
            strangers = [RawClient(sidecar.address) for _ in range(20)]
            time.sleep(0.2)
            assert get(sidecar, upstream, source="127.0.0.2").status == 200
            assert all(b"client_forbidden" in stranger.read_to_end() for stranger in strangers)

    def test_of_a_head_in_http2(self, authority: Authority, limited: Sidecar, upstream: TlsUpstream) -> None:
        for count, status in ((10, 200), (30, 431)):
            fields = [each for number in range(count) for each in ("-H", f"X-{number}: 1")]
            url = upstream.url(scheme="https", host="127.0.0.1")
            answer = curl("--http2", *fields, url, proxy=limited.proxy_url, ca_file=limited.ca_file)
            assert answer.status == status
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("name", [":method", ":path"])
    def test_of_what_is_no_field_in_http2(self, limited: Sidecar, authority: Authority, name: str) -> None:
        with TlsUpstream(authority, "localhost") as upstream:
            there, ca_file = f"localhost:{upstream.port}", limited.ca_file  # before the tunnel, which has its time
            client = Http2Client.open(connect(limited, there), "localhost", ca_file)
            head = {":method": "GET", ":scheme": "https", ":authority": there, ":path": "/"}
            head[name] += "x" * 2048
            stream = client.begin_raw(list(head.items()))
            client.go_on(stream, b"", last=True)
            assert client.read(stream).status == 431
            upstream.assert_no_application_bytes()

    def test_of_the_connections_of_one_address(self, limited: Sidecar, upstream: TlsUpstream) -> None:
        held = [RawClient(limited.address) for _ in range(6)]
        time.sleep(0.2)
        assert reason_of(get(limited, upstream)) == (503, "too_many_connections")
        assert get(limited, upstream, source="127.0.0.2").status == 200
        more = [socket.create_connection(limited.address, 5, ("127.0.0.3", 0)) for _ in range(6)]
        time.sleep(0.2)
        assert reason_of(get(limited, upstream, source="127.0.0.2")) == (503, "too_many_connections")
        open_ones: list[RawClient | socket.socket] = [*held, *more]
        for client in open_ones:
            client.close()
        time.sleep(0.2)
        assert get(limited, upstream).status == 200
        metrics = limited.metrics()
        assert metrics.value("overcoat_requests_total", reason="too_many_connections") == 2

    @pytest.mark.parametrize(
        "sent",
        [
            b"GET http://127.0.0.1/ HT",
            b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:1\r\nX: ",
            b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Type: application/json\r\n"
            b'Content-Length: 99\r\n\r\n{"a":',
        ],
        ids=["the line", "the fields", "a held body"],
    )
    def test_of_the_time_that_a_request_takes_to_arrive(self, limited: Sidecar, sent: bytes) -> None:
        with RawClient(limited.address) as client:
            client.send(sent)
            began = time.monotonic()
            for _ in range(6):  # a byte now and then does not prolong it
                time.sleep(0.1)
                client.send(b"1")
            answer = client.read_response()
            assert reason_of(answer) == (408, "request_timeout")
            assert client.read_to_end() == b""
        assert 0.8 < time.monotonic() - began < 4

    @pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02", b"GE"])
    def test_of_the_time_for_the_first_bytes_inside_connect(self, limited: Sidecar, sent: bytes) -> None:
        with RawClient(limited.address) as client:
            client.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
            assert client.read_response(method="CONNECT").status == 200
            client.send(sent)
            assert client.read_to_end() == b""
        assert limited.wait_for_decisions(1)[0]["reason"] == "not_http"

    def test_of_the_time_for_a_handshake(self, limited: Sidecar) -> None:
        for alpn in (b"", b"\x00\x10\x00\x0b\x00\x09\x08http/1.1", b"\x00\x10\x00\x05\x00\x03\x02h2"):
            with RawClient(limited.address) as client:
                client.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
                assert client.read_response(method="CONNECT").status == 200
                extensions = alpn + bytes.fromhex("002b0003020303000a00060004001d0017000d00080006040308040401")
                body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x2b" + b"\x01\x00"
                body += len(extensions).to_bytes(2) + extensions
                hello = b"\x01" + len(body).to_bytes(3) + body
                began = time.monotonic()
                client.send(b"\x16\x03\x01" + len(hello).to_bytes(2) + hello)
                with contextlib.suppress(ConnectionResetError):
                    client.read_to_end()
                assert 0.8 < time.monotonic() - began < 2.5
        assert [each["reason"] for each in limited.wait_for_decisions(3)] == ["app_tls_failed"] * 3

    @pytest.mark.parametrize("is_reset", [False, True], ids=["ends", "breaks off"])
    def test_of_a_handshake_that_the_app_ends_there_is_a_reason_too(self, limited: Sidecar, is_reset: bool) -> None:
        with connect(limited, "127.0.0.1:1") as client:
            client.send(client_hello("127.0.0.1"))
            assert client.read_exactly(1) == b"\x16"  # the sidecar's part of it
            if is_reset:
                client.reset()
        assert [each["reason"] for each in limited.wait_for_decisions(1)] == ["app_tls_failed"]

    def test_of_the_time_of_a_request_inside_tls(self, limited: Sidecar) -> None:
        with open_way(limited, "127.0.0.1", 1, Way.CONNECT) as client:
            client.send(b"GET / HT")
            assert reason_of(client.read_response()) == (408, "request_timeout")
        assert [each["reason"] for each in limited.wait_for_decisions(2)] == ["request_timeout", None]

    def test_of_idleness(self, limited: Sidecar) -> None:
        with RawClient(limited.address) as client:
            began = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                assert client.read_to_end() == b""
            assert 2.5 < time.monotonic() - began < 6

    def test_a_tunnel_in_which_nothing_moves_says_so_in_its_line(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        with (
            Sidecar("limits: {idle_seconds: 1}", tmp_path, authority=authority) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            name = f"127.0.0.1:{upstream.port}"
            client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            client.read_response(method="CONNECT")
            client.start_tls("127.0.0.1", authority.write_pem(tmp_path / "upstream.pem"))
            with contextlib.suppress(OSError):
                client.read_to_end()
            assert sidecar.wait_for_decisions(1)[0]["reason"] == "idle_timeout"

    def test_a_slow_body_that_streams_is_not_hurried(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        with (
            Sidecar("limits: {request_seconds: 1}", tmp_path, authority=authority) as sidecar,
            open_way(sidecar, "127.0.0.1", upstream.port) as client,
        ):
            name = f"127.0.0.1:{upstream.port}"
            client.send(f"POST http://{name}/ HTTP/1.1\r\nHost: {name}\r\nContent-Length: 8\r\n\r\n".encode())
            for _ in range(8):
                time.sleep(0.25)
                client.send(b"x")
            assert client.read_response().status == 200

    def test_one_that_came_in_time_may_wait_for_its_answer(self, authority: Authority, limited: Sidecar) -> None:
        def respond(request: RecordedRequest) -> bytes:
            time.sleep(1.5)  # longer than a request may take to arrive
            return echo(request)

        with TlsUpstream(authority, "127.0.0.1", respond=respond) as upstream, RawClient(limited.address) as client:
            name = f"127.0.0.1:{upstream.port}"
            for piece in (f"GET http://{name}/ HT", f"TP/1.1\r\nHost: {name}\r\n", "X: 1\r\n", "\r\n"):
                client.send(piece.encode())
                time.sleep(0.05)
            assert client.read_response().status == 200
