"""The ways in besides forward: reverse, SOCKS5 and transparent.

Proves that whatever the way, the same holds: https only, pins, marked fields encrypted, one destination
(ARCHITECTURE.md, rules 2 to 4), and that what a way in does not understand is closed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import wire
from tests.e2e.app import client_hello
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl, send_until_blocked
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import ROOT, Sidecar, SidecarFailed
from tests.e2e.test_exhaustion import MIB
from tests.e2e.test_gate import hashed
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOSTS = {"api.example": "127.0.0.1", "other.example": "127.0.0.1", "tunnel.example": "127.0.0.1"}
NO_PIN = "sha256/" + "A" * 42 + "E="


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority, *HOSTS) as server:
        yield server


@contextmanager
def slow_way_out(authority: Authority, folder: Path, listener: str, **options: Any) -> Iterator[Sidecar]:
    """Run a sidecar whose every tunnel goes through a proxy that says neither yes nor no."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, and nobody its bytes
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        policy = (
            f"listen: ['{listener}://127.0.0.1:0']\nlimits: {{connect_seconds: 2}}\nupstream_proxy: {{url: '{url}'}}"
        )
        with Sidecar(policy, folder, authority=authority, **options) as running:
            yield running


class TestReverse:
    def serve(self, authority: Authority, folder: Path, upstream: TlsUpstream, more: str = "") -> Sidecar:
        listen = f"listen: ['reverse://127.0.0.1:0?to=https://api.example:{upstream.port}']\n"
        return Sidecar(listen + more, folder, authority=authority, hosts=HOSTS)

    def test_what_is_asked_of_it_is_asked_of_its_host_over_tls(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        with self.serve(authority, tmp_path, upstream) as sidecar, RawClient(sidecar.address) as client:
            me = f"127.0.0.1:{sidecar.address[1]}"
            client.send(f"GET /v1?q=1 HTTP/1.1\r\nHost: {me}\r\nX: 1\r\nOrigin: http://{me}\r\n\r\n".encode())
            assert client.read_response().status == 200
            line = sidecar.wait_for_decisions(1)[0]
        name = f"api.example:{upstream.port}"
        assert (
            upstream.received
            == f"GET /v1?q=1 HTTP/1.1\r\nHost: {name}\r\nX: 1\r\nOrigin: https://{name}\r\n\r\n".encode()
        )
        assert upstream.connections[0].sni == "api.example"
        assert (line["destination"], line["action"], line["status"]) == (name, "inspect", 200)

    def test_the_app_is_told_of_the_listener(self, authority: Authority, tmp_path: Path) -> None:
        def respond(request: RecordedRequest) -> bytes:
            there = f"https://{request.headers.get('host')}"
            return (
                f"HTTP/1.1 302 Found\r\nLocation: {there}/next\r\nContent-Length: 0\r\n"
                "Set-Cookie: __Host-id=1; Secure; Path=/\r\nSet-Cookie: b=2; Domain=api.example\r\n\r\n"
            ).encode()

        with (
            TlsUpstream(authority, "api.example", respond=respond) as upstream,
            self.serve(authority, tmp_path, upstream) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            me = f"localhost:{sidecar.address[1]}"
            client.send(f"GET / HTTP/1.1\r\nHost: {me}\r\n\r\n".encode())
            answer = client.read_response()
            assert answer.headers.get("location") == f"http://{me}/next"
            cookies = answer.headers.all("set-cookie")
            assert cookies[0].endswith("__Host-id=1; Path=/")
            assert cookies[1].endswith("_b=2")
            kept = f"{cookies[0].partition(';')[0]}; {cookies[1]}; mine=3"
            client.send(f"GET /next HTTP/1.1\r\nHost: {me}\r\nCookie: {kept}\r\n\r\n".encode())
            client.read_response()
            assert upstream.requests[1].headers.get("cookie") == "__Host-id=1; b=2; mine=3"

    def test_an_app_of_http_1_0_without_a_host_field_is_told_of_the_listener_as_well(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        def respond(request: RecordedRequest) -> bytes:
            fields = (
                ("Location", f"https://{request.headers.get('host')}/next"),
                ("Set-Cookie", "__Host-id=1; Secure; Path=/"),
                ("Set-Cookie", "b=2; Domain=api.example"),
            )
            return wire.response(302, headers=fields)

        with (
            TlsUpstream(authority, "api.example", respond=respond) as upstream,
            self.serve(authority, tmp_path, upstream) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            answer = client.read_response()
        assert upstream.received == f"GET / HTTP/1.1\r\nHost: api.example:{upstream.port}\r\n\r\n".encode()
        assert answer.headers.get("location") == f"http://127.0.0.1:{sidecar.address[1]}/next"
        one, other = answer.headers.all("set-cookie")
        assert one.endswith("__Host-id=1; Path=/")
        assert other.endswith("_b=2")

    def test_what_is_one_servers_goes_to_none_that_shares_the_listeners_address(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        cookies = (("Set-Cookie", "sid=SECRET; Path=/; Secure"), ("Set-Cookie", "lang=en"))
        hosts = ("api.example", "other.example")
        with (
            TlsUpstream(authority, *hosts, respond=lambda _: wire.response(200, headers=cookies)) as upstream,
            Sidecar(
                "listen: ["
                + ", ".join(f"'reverse://127.0.0.1:0?to=https://{host}:{upstream.port}'" for host in hosts)
                + "]",
                tmp_path,
                authority=authority,
                hosts=dict.fromkeys(hosts, "127.0.0.1"),
            ) as sidecar,
        ):
            jar = str(tmp_path / "jar")
            for host, port in (*sidecar.addresses, *sidecar.addresses):
                assert curl("-b", jar, "-c", jar, f"http://{host}:{port}/").status == 200
            got = [(each.headers.get("host"), each.headers.get("cookie")) for each in upstream.requests]
        names = [f"{host}:{upstream.port}" for host in hosts]
        both = got[2][1]
        assert sorted((both or "").split("; ")) == ["lang=en", "sid=SECRET"]
        assert got == [(names[0], None), (names[1], None), (names[0], both), (names[1], both)]

    def test_fields_are_encrypted_and_pins_hold(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        receiver = Receiver("k")
        policy = (
            f"keys: {{k: {{alg: ECDH-ES+A256KW, primary: {{kid: k, file: {receiver.write_public(tmp_path)}}}}}}}\n"
            "rules: [{name: api, hosts: [api.example], pins: {any_of: ['%s']}, request: [{encrypt: [$.card], key: k}]}]"
        )
        body = b'{"card":4111}'
        for pin, status in ((upstream.pin, 200), (NO_PIN, 502)):
            with (
                self.serve(authority, tmp_path, upstream, policy % pin) as sidecar,
                RawClient(sidecar.address) as client,
            ):
                client.send(
                    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                assert client.read_response().status == status
        (request,) = upstream.requests
        assert receiver.open(json.loads(request.body)["card"].encode(), host="api.example", path="$.card") == b"4111"

    @pytest.mark.parametrize(
        ("request_line", "host", "status", "reason"),
        [
            ("CONNECT other.example:443", "localhost", 400, "bad_request"),
            ("GET http://other.example/", "localhost", 421, "host_mismatch"),
            ("GET https://other.example/", "localhost", 421, "host_mismatch"),
            ("GET /", "a b", 400, "bad_request"),
            ("GET other.example/", "localhost", 400, "bad_request"),
        ],
    )
    def test_it_speaks_for_no_other(
        self,
        authority: Authority,
        upstream: TlsUpstream,
        tmp_path: Path,
        request_line: str,
        host: str,
        status: int,
        reason: str,
    ) -> None:
        with self.serve(authority, tmp_path, upstream) as sidecar, RawClient(sidecar.address) as client:
            client.send(f"{request_line} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = client.read_response()
            assert (answer.status, json.loads(answer.body)["reason"]) == (status, reason)
        upstream.assert_untouched()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_target_that_names_its_own_host_passes(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path, scheme: str
    ) -> None:
        with self.serve(authority, tmp_path, upstream) as sidecar, RawClient(sidecar.address) as client:
            url = upstream.url("/a", scheme=scheme, host="api.example")
            client.send(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.read_response().status == 200
        assert upstream.requests[0].target == "/a"

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("127.0.0.1", 200),
            ("[::1]:9001", 200),
            ("localhost", 200),
            ("overcoat:9001", 200),
            ("sidecar.ns.svc.cluster.local", 200),
            ("host.docker.internal", 200),
            ("attacker.example", 421),
            ("attacker.local", 421),
            ("rebound.attacker.example:9001", 421),
        ],
    )
    def test_a_name_that_others_can_register_is_none_of_the_listeners(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path, host: str, status: int
    ) -> None:
        with self.serve(authority, tmp_path, upstream) as sidecar, RawClient(sidecar.address) as client:
            client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\r\n".encode())
            assert client.read_response().status == status
        assert len(upstream.requests) == (status == 200)

    @pytest.mark.parametrize(
        ("listen", "said"),
        [
            ("reverse://127.0.0.1:0", "says which https host"),
            ("reverse://127.0.0.1:0?to=http://api.example", "says which https host"),
            ("reverse://127.0.0.1:0?to=https://api.example/v1", "not"),
            ("socks5://127.0.0.1:0?to=https://api.example", "only reverse:// and mirror:// have"),
            ("ftp://127.0.0.1:0", "forward://, reverse://, socks5://, transparent:// or mirror://"),
        ],
    )
    def test_what_is_no_listener_is_refused(self, authority: Authority, tmp_path: Path, listen: str, said: str) -> None:
        with pytest.raises(SidecarFailed) as failed, Sidecar(f"listen: ['{listen}']", tmp_path, authority=authority):
            pass
        assert failed.value.status == 2
        assert said in failed.value.stderr

    def test_several_listeners_serve_side_by_side(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        policy = (
            "workers: 2\nlisten: ['forward://127.0.0.1:0', 'socks5://127.0.0.1:0', "
            f"'reverse://127.0.0.1:0?to=https://api.example:{upstream.port}']\n"
        )
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            forward, socks, reverse = sidecar.listen
            assert curl(upstream.url("/1", host="api.example"), proxy=f"http://{forward}").status == 200
            assert curl(f"http://{reverse}/2").status == 200
            assert curl(upstream.url("/3", host="api.example"), proxy=f"socks5h://{socks}").status == 200
        assert sorted(request.target for request in upstream.requests) == ["/1", "/2", "/3"]


class TestSocks5:
    @pytest.fixture
    def sidecar(self, authority: Authority, tmp_path: Path) -> Iterator[Sidecar]:
        policy = "listen: ['socks5://127.0.0.1:0']\nrules: [{name: in, hosts: [api.example], https: inspect}]"
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as running:
            yield running

    @pytest.mark.parametrize("scheme", ["socks5h", "socks5"])
    def test_plain_http_is_upgraded(self, sidecar: Sidecar, authority: Authority, scheme: str) -> None:
        host = "api.example" if scheme == "socks5h" else "127.0.0.1"
        with TlsUpstream(authority, "api.example", "127.0.0.1") as upstream:
            answer = curl(upstream.url("/v1", host=host), proxy=f"{scheme}://{sidecar.listen[0]}")
            assert answer.status == 200
            assert upstream.requests[0].target == "/v1"
        line = sidecar.wait_for_decisions(1)[0]
        assert (line["action"], line["destination"]) == ("upgrade", f"{host}:{upstream.port}")

    def test_https_is_inspected_or_tunnelled(
        self, sidecar: Sidecar, upstream: TlsUpstream, authority: Authority, tmp_path: Path
    ) -> None:
        proxy = f"socks5h://{sidecar.listen[0]}"
        inspected = upstream.url("/in", scheme="https", host="api.example")
        assert curl(inspected, proxy=proxy, ca_file=sidecar.ca_file).status == 200
        roots = authority.write_pem(tmp_path / "upstream.pem")
        tunnelled = upstream.url("/through", scheme="https", host="tunnel.example")
        assert curl(tunnelled, proxy=proxy, ca_file=roots).status == 200
        assert [line["action"] for line in sidecar.wait_for_decisions(2)] == ["inspect", "tunnel"]

    @pytest.mark.parametrize(
        ("sent", "answer"),
        [
            (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b""),  # SOCKS4
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
            (b"\x05\x01\x01", b"\x05\xff"),  # GSSAPI only
            (b"\x05\x01\x02", b"\x05\xff"),  # a password, where there are no users
            (b"\x05\x01\x00\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x01"),  # of SOCKS4, behind
            (b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),  # BIND
            (b"\x05\x01\x00\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),  # UDP ASSOCIATE
            (b"\x05\x01\x00\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x08"),
            (b"\x05\x01\x00\x05\x01\x01\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x01"),
            (b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", b"\x05\x00\x05\x01"),  # port 0
            (b"\x05\x01\x00\x05\x01\x00\x03\x03a b\x00\x50", b"\x05\x00\x05\x01"),
            (b"\x05\x01\x00\x05\x01\x00\x03\x060x7f.1\x00\x50", b"\x05\x00\x05\x01"),
            (b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x01\xbb", b"\x05\x00\x05\x02"),  # a private address
        ],
    )
    @pytest.mark.parametrize("at_once", [True, False])
    def test_what_it_does_not_serve_is_answered_as_socks_wants_and_closed(
        self, sidecar: Sidecar, sent: bytes, answer: bytes, at_once: bool
    ) -> None:
        with RawClient(sidecar.address) as client:
            for piece in [sent] if at_once else [bytes((byte,)) for byte in sent]:
                try:
                    client.send(piece)
                except OSError:  # it has closed already
                    break
            received = client.read_to_end()
        assert received.startswith(answer)
        assert len(received) in (len(answer), len(answer) + 8 if len(answer) == 4 else 0)
        (line,) = sidecar.wait_for_decisions(1)
        assert (line["action"], line["status"]) == ("deny", None)  # what SOCKS says is no status

    def test_users_show_their_password(self, authority: Authority, upstream: TlsUpstream, tmp_path: Path) -> None:
        policy = (
            f"listen: ['socks5://127.0.0.1:0']\nclients: {{users: [{{name: app, password_hash: '{hashed('eins')}'}}]}}"
        )
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            where = sidecar.listen[0]
            assert curl(upstream.url(host="api.example"), proxy=f"socks5h://app:eins@{where}").status == 200
            for credentials in ("app:zwei@", "nobody:eins@", ""):
                refused = curl(upstream.url(host="api.example"), proxy=f"socks5h://{credentials}{where}")
                assert refused.status == 0
                assert refused.exit_status == 97  # CURLE_PROXY
            reasons = [line["reason"] for line in sidecar.wait_for_decisions(4)]
            assert reasons == [None, *["proxy_authentication_required"] * 3]
        assert len(upstream.requests) == 1

    def test_a_colon_belongs_to_the_password_alone(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        """Where both are joined by one, a name that has it would be another's, with the rest of the password."""
        user = f"{{name: app, password_hash: '{hashed('eins:zwei')}'}}"
        with Sidecar(f"listen: ['socks5://127.0.0.1:0']\nclients: {{users: [{user}]}}", tmp_path) as sidecar:
            for name, password, verdict in ((b"app", b"eins:zwei", 0), (b"app:eins", b"zwei", 1)):
                with RawClient(sidecar.address) as client:
                    client.send(b"\x05\x01\x02\x01%c%s%c%s" % (len(name), name, len(password), password))
                    assert client.read_exactly(4) == b"\x05\x02\x01%c" % verdict

    @pytest.mark.parametrize(
        ("address", "host"),
        [
            (b"\x01\x0a\x00\x00\x01", "10.0.0.1"),
            (b"\x03\x0810.0.0.1", "10.0.0.1"),
            (b"\x04\xfc" + bytes(14) + b"\x01", "[fc00::1]"),
        ],
        ids=["IPv4", "a name", "IPv6"],
    )
    def test_it_makes_no_difference_where_the_bytes_are_cut(
        self, authority: Authority, tmp_path: Path, address: bytes, host: str
    ) -> None:
        user = f"{{name: app, password_hash: '{hashed('eins')}'}}"
        sent = b"\x05\x02\x00\x02" + b"\x01\x03app\x04eins" + b"\x05\x01\x00" + address + b"\x01\xbb"
        policy = f"listen: ['socks5://127.0.0.1:0']\nclients: {{users: [{user}]}}"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar, RawClient(sidecar.address) as client:
            for byte in sent:
                client.send(bytes((byte,)))
                time.sleep(0.01)  # so that it is read on its own
            assert client.read_exactly(6) == b"\x05\x02\x01\x00\x05\x02"  # an address that is not public
            (line,) = sidecar.wait_for_decisions(1)
            assert (line["destination"], line["reason"]) == (f"{host}:443", "destination_forbidden")

    def test_what_comes_before_it_is_answered_waits_outside(self, authority: Authority, tmp_path: Path) -> None:
        with slow_way_out(authority, tmp_path, "socks5") as sidecar, RawClient(sidecar.address) as client:
            client.send(b"\x05\x01\x00\x05\x01\x00\x03\x0etunnel.example\x01\xbb")
            assert client.read_exactly(2) == b"\x05\x00"
            assert send_until_blocked(client._socket, bytes(64 * MIB)) < 32 * MIB

    def test_a_greeting_that_does_not_end_is_cut_off(self, authority: Authority, tmp_path: Path) -> None:
        policy = "listen: ['socks5://127.0.0.1:0']\nlimits: {request_seconds: 1}"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar, RawClient(sidecar.address) as client:
            client.send(b"\x05\x02\x00")
            assert client.read_to_end() == b""
            assert sidecar.wait_for_decisions(1)[0]["reason"] == "request_timeout"


SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

def run(*command):
    subprocess.run(command, check=True, capture_output=True)

folder, loopback, elsewhere, redirect = Path(sys.argv[1]), *sys.argv[2:]
run("sh", "-c", redirect)
listener, named = (f"[{each}]" if ":" in each else each for each in (loopback, elsewhere))
authority = Authority()
hosts = {"api.example": "127.0.0.1", "tunnel.example": "127.0.0.1"}
policy = f'''
listen: ["transparent://{listener}:9"]
defaults: {{https: inspect}}
rules: [{{name: t, hosts: [tunnel.example], https: tunnel}}]
'''
found = {}
with TlsUpstream(authority, *hosts) as upstream, Sidecar(policy, folder, authority=authority, hosts=hosts) as sidecar:
    roots = authority.write_pem(folder / "upstream.pem")
    port, dialled = upstream.port, (elsewhere, upstream.port)
    with RawClient(dialled) as client:
        client.send(f"GET /plain HTTP/1.1\\r\\nHost: api.example:{port}\\r\\n\\r\\n".encode())
        found["plain"] = client.read_response().status
    for name, ca in (("api.example", sidecar.ca_file), ("tunnel.example", roots)):
        with RawClient(dialled) as client:
            client.start_tls(name, ca_file=ca)
            client.send(f"GET /{name} HTTP/1.1\\r\\nHost: {name}:{port}\\r\\n\\r\\n".encode())
            found[name] = client.read_response().status
    for what, sent in (("ssh", b"SSH-2.0-x\\r\\n"), ("cut", b"GE" + b"T\\r\\n")):
        with RawClient(dialled) as client:
            client.send(sent)
            found[what] = client.read_to_end().decode()
    with RawClient(dialled) as client:
        client.send(f"GET / HTTP/1.1\\r\\nHost: {named}:{port}\\r\\n\\r\\n".encode())
        found["by address"] = json.loads(client.read_response().body)["reason"]
    with RawClient(sidecar.address) as client:
        client.send(b"GET / HTTP/1.1\\r\\nHost: api.example\\r\\n\\r\\n")
        found["not redirected"] = client.read_to_end().decode()
    found["lines"] = [[line["action"], line["reason"], line["destination"]] for line in sidecar.wait_for_decisions(7)]
    found["targets"] = [request.target for request in upstream.requests]
    found["port"] = port
print(json.dumps(found))
"""
REDIRECTS = {
    "IPv4": (
        "127.0.0.1",
        "198.51.100.7",
        "ip link set lo up && ip route add default dev lo src 127.0.0.1"
        " && iptables -t nat -A OUTPUT -p tcp -d 198.51.100.7 -j REDIRECT --to-ports 9",
    ),
    "IPv6": (
        "::1",
        "2001:db8::7",
        "ip link set lo up && ip -6 route add default dev lo src ::1"
        " && ip6tables -t nat -A OUTPUT -p tcp -d 2001:db8::7 -j REDIRECT --to-ports 9",
    ),
}


def _cannot(redirect: str) -> str:
    """Return why no network namespace with this redirection can be made here, or nothing."""
    for tool in ("unshare", "ip", "iptables", "ip6tables"):
        if shutil.which(tool) is None:
            return f"there is no {tool} here"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", redirect], capture_output=True, text=True, check=False, timeout=20
    )
    return "" if done.returncode == 0 else f"no network namespace with iptables can be made here: {done.stderr.strip()}"


@pytest.mark.parametrize(("loopback", "elsewhere", "redirect"), REDIRECTS.values(), ids=REDIRECTS)
def test_transparent_connections_are_served_by_the_name_that_they_give(
    tmp_path: Path, loopback: str, elsewhere: str, redirect: str
) -> None:
    if why := _cannot(redirect):
        pytest.skip(why)
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", SCRIPT, str(tmp_path), loopback, elsewhere, redirect],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    port = found.pop("port")
    named = f"[{elsewhere}]" if ":" in elsewhere else elsewhere
    assert (found["plain"], found["api.example"], found["tunnel.example"]) == (200, 200, 200)
    assert (found["ssh"], found["cut"], found["not redirected"]) == ("", "", "")
    assert found["by address"] == "destination_forbidden"  # networks for documentation
    assert found["targets"] == ["/plain", "/api.example", "/tunnel.example"]
    assert sorted(found["lines"], key=str) == sorted(
        [
            ["upgrade", None, f"api.example:{port}"],
            ["inspect", None, f"api.example:{port}"],
            ["tunnel", None, f"tunnel.example:{port}"],
            ["deny", "not_http", None],
            ["deny", "not_http", None],
            ["deny", "destination_forbidden", f"{named}:{port}"],
            ["deny", "destination_forbidden", None],
        ],
        key=str,
    )


# Says of every connection that it was redirected, as the kernel does where it was: no rule of a firewall is needed.
REDIRECTED = """
import socket, struct, sys
sys.path.append(sys.argv.pop(1))
answer = struct.pack("!2xH4s8x", int(sys.argv.pop(1)), socket.inet_aton("127.0.0.1"))
original = socket.socket.getsockopt
def getsockopt(self, level, option, *size):
    return answer if (level, option) == (socket.IPPROTO_IP, 80) else original(self, level, option, *size)
socket.socket.getsockopt = getsockopt
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""


class TestRedirected:
    def command(self, folder: Path, port: int) -> list[str]:
        """Return what starts a sidecar to which each app has dialled this port of 127.0.0.1."""
        (folder / "redirected.py").write_text(REDIRECTED)
        return [sys.executable, "-P", str(folder / "redirected.py"), str(ROOT), str(port)]

    def serve(self, authority: Authority, folder: Path, port: int, more: str = "") -> Sidecar:
        """Return one."""
        policy = f"listen: ['transparent://127.0.0.1:0']\n{more}"
        return Sidecar(policy, folder, authority=authority, command=self.command(folder, port))

    def test_what_comes_before_it_is_answered_waits_outside(self, authority: Authority, tmp_path: Path) -> None:
        command = self.command(tmp_path, 443)
        with (
            slow_way_out(authority, tmp_path, "transparent", command=command) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            client.send(client_hello())
            assert send_until_blocked(client._socket, bytes(64 * MIB)) < 32 * MIB

    @pytest.mark.parametrize("method", ["GET", "M-SEARCH", "VERSION-CONTROL", "BASELINE-CONTROL"])
    def test_any_method_is_http(self, authority: Authority, tmp_path: Path, method: str) -> None:
        with (
            TlsUpstream(authority, "127.0.0.1") as upstream,
            self.serve(authority, tmp_path, upstream.port) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            rest = f" /a HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n"
            client.send(f"{method}{rest}".encode())
            assert client.read_response().status == 200
            assert upstream.received == f"{method}{rest}".encode()

    @pytest.mark.parametrize(
        ("sent", "more", "reason"),
        [
            (b"SSH-2.0-x\r\n", "", "not_http"),
            (b"hello", "defaults: {https: reject}", "https_rejected"),
            (b"hello", "destinations: {egress: listed}", "destination_forbidden"),
        ],
    )
    def test_who_is_refused_without_an_answer_has_a_line_without_a_status(
        self, authority: Authority, tmp_path: Path, sent: bytes, more: str, reason: str
    ) -> None:
        with (
            TlsUpstream(authority, "127.0.0.1") as upstream,
            self.serve(authority, tmp_path, upstream.port, more) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            client.send(client_hello() if sent == b"hello" else sent)
            assert client.read_to_end() == b""
            line = sidecar.wait_for_decisions(1)[0]
            upstream.assert_untouched()
        assert (line["action"], line["reason"], line["status"]) == ("deny", reason, None)


@pytest.mark.parametrize("port", [80, 443])  # the upstream is dialled after the first bytes, or before the 200
def test_what_comes_through_connect_before_its_upstream_is_there_waits_outside(
    authority: Authority, tmp_path: Path, port: int
) -> None:
    with slow_way_out(authority, tmp_path, "forward") as sidecar, RawClient(sidecar.address) as client:
        client.send(f"CONNECT tunnel.example:{port} HTTP/1.1\r\nHost: tunnel.example:{port}\r\n\r\n".encode())
        client.send(client_hello())
        assert send_until_blocked(client._socket, bytes(64 * MIB)) < 32 * MIB


def test_a_plain_upstream_is_never_dialled_by_any_way_in(authority: Authority, tmp_path: Path) -> None:
    with PlainUpstream() as plain:
        policy = f"listen: ['reverse://127.0.0.1:0?to=https://127.0.0.1:{plain.port}', 'socks5://127.0.0.1:0']"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar:
            reverse, socks = sidecar.listen
            assert curl(f"http://{reverse}/").status == 502
            assert curl(plain.url(), proxy=f"socks5h://{socks}").status == 502
        assert all(not c.received or c.received[:1] == b"\x16" for c in plain.connections)


def test_the_kernels_word_is_asked_for(tmp_path: Path) -> None:
    """A connection that was not redirected has no destination: the listener's own address is none."""
    from proxy.core.decisions import Denied
    from proxy.engine.apps.listeners import original_destination

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted, pytest.raises(Denied, match="was not redirected"):
            original_destination(accepted)
