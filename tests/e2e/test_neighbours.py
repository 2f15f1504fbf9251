"""A stack beside the sidecar: what its rules let the app reach near by, and what the rest is told.

Proves what a rule's own `destinations` promise (ARCHITECTURE.md, rule 4): for its hosts alone, judged on the address
that is really dialled, whatever the way in and the way out; and that who is denied is told what is right there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.app import Way, ask, connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl
from tests.e2e.sidecar import ROOT, Sidecar, SidecarFailed, clean_environment, overcoat_command
from tests.e2e.test_upstream_proxy import Corporate
from tests.e2e.upstream import PlainUpstream, TlsUpstream

# Two names of the same address, of which one rule names one.
NAMES = {"search": "127.0.0.2", "other": "127.0.0.2", "tunnel.example": "127.0.0.2"}
NOBODY = "destinations: {egress: any}\n"  # so that the harness lets nothing be reached by itself
NO_PIN = "sha256/Y4KzzIgUErd7/K7tAmABwA2eMCXmbCD25+kvB5hRRio="  # of no key
OWN = "destinations: {allow: [127.0.0.2]}"

MakeTls = Callable[..., TlsUpstream]


@pytest.fixture
def tls(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority, *NAMES, address="127.0.0.2") as server:
        yield server


@pytest.fixture
def plain() -> Iterator[PlainUpstream]:
    with PlainUpstream(address="127.0.0.2") as server:
        yield server


def rule(more: str, host: str = "search") -> str:
    return f"rules: [{{name: own, hosts: [{host}], {more}}}]\n"


def is_forbidden(status: int, body: bytes) -> bool:
    return status == 403 and json.loads(body)["reason"] == "destination_forbidden"


class TestOwnDestinations:
    @pytest.mark.parametrize("way", [Way.HTTP, Way.CONNECT])
    def test_they_are_for_the_rules_hosts_alone(
        self, authority: Authority, tls: TlsUpstream, tmp_path: Path, way: Way
    ) -> None:
        policy = NOBODY + rule(f"https: inspect, {OWN}")
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            assert ask(sidecar, tls, "search", way=way).status == 200
            answer = curl(tls.url(host="other"), proxy=sidecar.proxy_url)
            assert is_forbidden(answer.status, answer.body)
        assert {request.headers.get("host") for request in tls.requests} == {f"search:{tls.port}"}

    def test_a_neighbour_that_speaks_no_tls_is_reached_in_the_clear(
        self, authority: Authority, plain: PlainUpstream, tmp_path: Path
    ) -> None:
        policy = NOBODY + rule(f"plain_http: allow, {OWN}")
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            assert ask(sidecar, plain, "search", "/index").status == 200
            answer = curl(plain.url(host="other"), proxy=sidecar.proxy_url)
            assert is_forbidden(answer.status, answer.body)
        (request,) = plain.requests
        assert (request.target, request.headers.get("host")) == ("/index", f"search:{plain.port}")

    def test_in_a_tunnel(self, authority: Authority, tls: TlsUpstream, tmp_path: Path) -> None:
        policy = NOBODY + rule(OWN, "tunnel.example")
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            with connect(sidecar, f"tunnel.example:{tls.port}") as client:
                client.start_tls("tunnel.example", authority.write_pem(tmp_path / "upstream-ca.pem"))
                client.send(f"GET /in HTTP/1.1\r\nHost: tunnel.example:{tls.port}\r\n\r\n".encode())
                assert client.read_response().status == 200
            with RawClient(sidecar.address) as client:
                client.send(f"CONNECT other:{tls.port} HTTP/1.1\r\nHost: other:{tls.port}\r\n\r\n".encode())
                answer = client.read_response(method="CONNECT")
            assert is_forbidden(answer.status, answer.body)
        assert [request.target for request in tls.requests] == ["/in"]

    def test_in_http2(self, authority: Authority, tls: TlsUpstream, tmp_path: Path) -> None:
        policy = NOBODY + "defaults: {https: inspect}\n" + rule(OWN)
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            for host, status in (("search", 200), ("other", 403)):
                url = tls.url("/in", scheme="https", host=host)
                command = ["curl", "-s", "--http2", "-x", sidecar.proxy_url, "--cacert", str(sidecar.ca_file), url]
                done = subprocess.run(
                    [*command, "-o", "/dev/null", "-w", "%{http_version} %{http_code}"],
                    capture_output=True,
                    env=clean_environment(),
                    text=True,
                    timeout=20,
                    check=True,
                )
                assert done.stdout == f"2 {status}"
        assert [request.headers.get("host") for request in tls.requests] == [f"search:{tls.port}"]

    @pytest.mark.parametrize("host", ["search", "other"])
    def test_behind_a_reverse_listener(self, authority: Authority, tls: TlsUpstream, tmp_path: Path, host: str) -> None:
        policy = f"listen: ['reverse://127.0.0.1:0?to=https://{host}:{tls.port}']\n" + NOBODY + rule(OWN)
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            answer = curl(f"http://127.0.0.1:{sidecar.address[1]}/in")
        assert (answer.status == 200) is (host == "search")
        assert len(tls.requests) == (1 if host == "search" else 0)

    @pytest.mark.parametrize(("host", "status"), [("search", 200), ("other", 0)])
    def test_from_socks5(self, authority: Authority, tls: TlsUpstream, tmp_path: Path, host: str, status: int) -> None:
        policy = "listen: ['socks5://127.0.0.1:0']\n" + NOBODY + rule(OWN)
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            answer = curl(tls.url(host=host), proxy=f"socks5h://{sidecar.listen[0]}")
            line = sidecar.wait_for_decisions(1)[0]
        assert (answer.status, line["reason"]) == (status, None if status else "destination_forbidden")
        assert len(tls.requests) == (1 if status else 0)

    @pytest.mark.parametrize(("host", "reached"), [("127.0.0.2", True), ("127.0.0.3", False)])
    def test_through_an_upstream_proxy_an_address_is_judged_by_them(
        self, authority: Authority, tmp_path: Path, host: str, reached: bool
    ) -> None:
        corporate = Corporate()
        try:
            policy = (
                f"upstream_proxy: {{url: 'http://127.0.0.1:{corporate.port}'}}\n"
                + NOBODY
                + rule("destinations: {allow: [127.0.0.2]}", "127.0.0.2, 127.0.0.3")
            )
            with (
                TlsUpstream(authority, "127.0.0.2") as upstream,
                Sidecar(policy, tmp_path, authority=authority) as sidecar,
            ):
                answer = curl(f"http://{host}:{upstream.port}/", proxy=sidecar.proxy_url)
                assert (answer.status == 200) is reached
                assert is_forbidden(answer.status, answer.body) is not reached
            assert len(corporate.heads) == (1 if reached else 0)
        finally:
            corporate.close()

    def test_they_stand_in_place_of_the_policys(self, authority: Authority, tls: TlsUpstream, tmp_path: Path) -> None:
        policy = "destinations: {allow: [loopback]}\n" + rule("destinations: {allow: [private]}")
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            assert ask(sidecar, tls, "other").status == 200
            answer = ask(sidecar, tls, "search")
            assert is_forbidden(answer.status, answer.body)
        assert [request.headers.get("host") for request in tls.requests] == [f"other:{tls.port}"]

    def test_what_is_judged_is_what_is_dialled(self, authority: Authority, tls: TlsUpstream, tmp_path: Path) -> None:
        """The name leads to what the rule allows once, and then elsewhere, where something listens as well."""
        script = tmp_path / "rebinding.py"
        script.write_text(
            "import socket, sys\n"
            "answers = ['127.0.0.2', '127.0.0.3']\n"
            "original = socket.getaddrinfo\n"
            "def getaddrinfo(host, *args, **kwargs):\n"
            "    if host == 'search':\n"
            "        host = answers.pop(0) if len(answers) > 1 else answers[0]\n"
            "    return original(host, *args, **kwargs)\n"
            "socket.getaddrinfo = getaddrinfo\n"
            "sys.path.append(sys.argv.pop(1))\n"
            "sys.argv[0] = 'overcoat'\n"
            "from overcoat.__main__ import main\n"
            "main()\n"
        )
        elsewhere = TlsUpstream(authority, "search", address="127.0.0.3")
        with (
            elsewhere,
            Sidecar(
                NOBODY + rule(OWN),
                tmp_path,
                authority=authority,
                command=[sys.executable, "-P", str(script), str(ROOT)],
            ) as sidecar,
        ):
            assert ask(sidecar, tls, "search").status == 200
            answer = curl(elsewhere.url(host="search"), proxy=sidecar.proxy_url)
            assert is_forbidden(answer.status, answer.body)
            elsewhere.assert_untouched()

    def test_observe_mode_notes_what_they_do_not_name(
        self, authority: Authority, plain: PlainUpstream, tmp_path: Path
    ) -> None:
        policy = "mode: observe\n" + NOBODY + rule(f"plain_http: allow, {OWN}")
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            for host in ("search", "other"):
                assert ask(sidecar, plain, host).status == 200
            lines = sidecar.wait_for_decisions(2)
        assert [(line["rule"], line["reason"]) for line in lines] == [("own", None), (None, "destination_forbidden")]

    def test_pins_fetch_goes_where_they_let_it(self, authority: Authority, tls: TlsUpstream, tmp_path: Path) -> None:
        pinned = f"pins: {{any_of: ['{NO_PIN}']}}, {OWN}"
        sidecar = Sidecar(NOBODY + rule(pinned), tmp_path, authority=authority, hosts=NAMES)
        with pytest.raises(SidecarFailed, match="destination_forbidden"):
            sidecar.run("pins", "fetch", "-p", "policy.yaml", f"other:{tls.port}")
        tls.settle()
        assert not tls.connections
        with_pins = subprocess.run(
            [*overcoat_command(NAMES), "pins", "fetch", "-p", "policy.yaml", f"search:{tls.port}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert tls.pin in with_pins.stdout + with_pins.stderr


class TestHints:
    @pytest.mark.parametrize("policy", [NOBODY, "destinations: {egress: listed}\n"])
    def test_the_apps_own_localhost_is_not_the_sidecars(self, tmp_path: Path, policy: str) -> None:
        with Sidecar(policy, tmp_path) as sidecar:
            for host in ("localhost", "127.0.0.1", "[::1]"):
                problem = json.loads(curl(f"http://{host}:3000/health", proxy=sidecar.proxy_url).body)
                assert problem["reason"] == "destination_forbidden"
                assert "NO_PROXY=localhost,127.0.0.1,::1 (and no_proxy)" in problem["hint"]

    def test_what_a_neighbour_without_tls_is_told_is_right(
        self, authority: Authority, plain: PlainUpstream, tmp_path: Path
    ) -> None:
        """The hints lead from the first denial to a policy that works, and never to one that makes it worse."""
        with Sidecar(NOBODY, tmp_path, authority=authority, hosts={"search": "10.11.12.13"}) as sidecar:
            problem = json.loads(ask(sidecar, plain, "search").body)
            assert problem["reason"] == "destination_forbidden"
            assert "name it in the app's NO_PROXY and no_proxy" in problem["hint"]
            assert "destinations: {allow: [private]}" in problem["hint"]
            assert "plain_http: allow if it speaks no TLS" in problem["hint"]
        with Sidecar("destinations: {allow: [loopback]}", tmp_path, authority=authority, hosts=NAMES) as sidecar:
            problem = json.loads(ask(sidecar, plain, "search").body)
            assert problem["reason"] == "tls_failed"
            assert "name it in the app's NO_PROXY and no_proxy" in problem["hint"]
            assert "plain_http: allow if it speaks no TLS" in problem["hint"]
        assert all(connection.received[:1] == b"\x16" for connection in plain.connections)
        policy = NOBODY + rule("plain_http: allow, destinations: {allow: [loopback]}")
        with Sidecar(policy, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            assert ask(sidecar, plain, "search").status == 200

    def test_a_neighbour_whose_name_is_unknown_here(self, authority: Authority, tmp_path: Path) -> None:
        with Sidecar(NOBODY, tmp_path, authority=authority, hosts=NAMES) as sidecar:
            problem = json.loads(curl("http://database:9200/", proxy=sidecar.proxy_url).body)
        assert problem["reason"] == "upstream_unreachable"
        assert "name it in the app's NO_PROXY and no_proxy" in problem["hint"]
