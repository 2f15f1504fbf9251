"""One reason for what did not come to its end: the app's, the line's and the metric's, in any mode and by any way in.

Proves ARCHITECTURE's rule 7 (say why) where two reasons meet: in observe mode, what would have been denied, and what
then really failed; and that a response which the upstream cut is no success.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.app import Way, ask, connect, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority, Variant
from tests.e2e.clients import RawClient, curl, reset
from tests.e2e.connection import RecordedRequest
from tests.e2e.listeners import closed_port
from tests.e2e.sidecar import Decision, Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOSTS = dict.fromkeys(("api.example", "never.example", "pinned.example", "tunnel.example"), "127.0.0.1")
NO_PIN = "sha256/" + "A" * 42 + "E="
RULES = f"""
rules:
  - {{name: never, hosts: [never.example], plain_http: reject, https: reject}}
  - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["{NO_PIN}"]}}}}
"""

MakeTls = Callable[..., TlsUpstream]


def counted(sidecar: Sidecar, reason: str) -> float:
    return sidecar.metrics().value("overcoat_requests_total", reason=reason)


def told(sidecar: Sidecar, port: int, said: bytes) -> tuple[dict[str, object], Decision]:
    """Return the problem details that an app is told, and the line; the metrics must agree."""
    problem = json.loads(said)
    line = sidecar.wait_for_decision(lambda line: (line["destination"] or "").endswith(f":{port}"))
    assert (line["reason"], line["status"]) == (problem["reason"], problem["status"])
    assert line["detail"].startswith(problem["detail"])
    assert counted(sidecar, str(problem["reason"])) == 1
    return problem, line


class TestObserve:
    """What enforcing would deny passes, and then fails by itself."""

    @pytest.mark.parametrize("form", ["http", "https target", "CONNECT"])
    def test_an_upstream_that_is_not_there(self, authority: Authority, tmp_path: Path, form: str) -> None:
        port = closed_port()
        name = f"never.example:{port}"
        line = {"http": f"GET http://{name}/", "https target": f"GET https://{name}/", "CONNECT": f"CONNECT {name}"}[
            form
        ]
        with (
            Sidecar("mode: observe" + RULES, tmp_path, authority=authority, hosts=HOSTS) as sidecar,
            RawClient(sidecar.address) as client,
        ):
            client.send(f"{line} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            answer = client.read_response()
            problem, found = told(sidecar, port, answer.body)
        assert problem["reason"] == "upstream_unreachable"
        assert (found["outcome"], found["would"], found["would_deny"]) == ("upstream_failed", "deny", True)
        rejected = "plain_http_rejected" if form == "http" else "https_rejected"
        assert found["detail"].endswith(f"; enforcing would have denied it: {rejected}")

    def test_from_socks5_as_well(self, authority: Authority, tmp_path: Path) -> None:
        port = closed_port()
        policy = "mode: observe\nlisten: ['socks5://127.0.0.1:0']" + RULES
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            answer = curl(f"http://never.example:{port}/", proxy=f"socks5h://{sidecar.listen[0]}")
            assert answer.exit_status == 97
            line = sidecar.wait_for_decisions(1)[0]
            assert counted(sidecar, "upstream_unreachable") == 1
        assert (line["reason"], line["outcome"], line["would_deny"]) == (
            "upstream_unreachable",
            "upstream_failed",
            True,
        )

    def test_a_response_that_is_none(self, authority: Authority, tmp_path: Path) -> None:
        with (
            PlainUpstream(respond=lambda _: b"220 smtp\r\n\r\n") as upstream,
            Sidecar("mode: observe" + RULES, tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            answer = ask(sidecar, upstream, "never.example")
            problem, line = told(sidecar, upstream.port, answer.body)
        assert (problem["reason"], line["would_deny"], line["would"]) == ("upstream_failed", True, "deny")

    def test_a_forbidden_address_whose_tls_fails(self, authority: Authority, tmp_path: Path) -> None:
        """What the app is told is what happened, not what would have."""
        policy = "mode: observe\ndestinations: {egress: any}"
        with (
            PlainUpstream() as upstream,
            Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            name = f"api.example:{upstream.port}"
            with RawClient(sidecar.address) as client:
                client.send(f"GET https://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                problem, line = told(sidecar, upstream.port, client.read_response().body)
        assert (problem["reason"], line["would_deny"], line["would"]) == ("tls_failed", True, "deny")
        assert line["detail"].endswith("; enforcing would have denied it: destination_forbidden")

    def test_a_certificate_that_is_wrong_behind_a_reverse_listener(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream(identity=authority.issue("never.example", variant=Variant.EXPIRED))
        listen = f"mode: observe\nlisten: ['reverse://127.0.0.1:0?to=https://never.example:{upstream.port}']"
        with Sidecar(listen + RULES, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            answer = curl(f"http://127.0.0.1:{sidecar.address[1]}/")
            problem, line = told(sidecar, upstream.port, answer.body)
        assert (problem["reason"], line["would_deny"]) == ("certificate_invalid", True)

    def test_pins_that_do_not_match_and_a_response_that_is_none(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream("pinned.example", respond=lambda _: b"220 smtp\r\n\r\n")
        listen = f"mode: observe\nlisten: ['reverse://127.0.0.1:0?to=https://pinned.example:{upstream.port}']"
        with Sidecar(listen + RULES, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            answer = curl(f"http://127.0.0.1:{sidecar.address[1]}/")
            problem, line = told(sidecar, upstream.port, answer.body)
        assert (problem["reason"], line["pin"], line["would_deny"]) == ("upstream_failed", "mismatch", True)
        assert line["detail"].endswith("; enforcing would have denied it: pin_mismatch")

    def test_the_twin_whose_upstream_is_well_keeps_the_reason_of_what_would_have_been(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream("pinned.example")
        listen = f"mode: observe\nlisten: ['reverse://127.0.0.1:0?to=https://pinned.example:{upstream.port}']"
        with Sidecar(listen + RULES, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            assert curl(f"http://127.0.0.1:{sidecar.address[1]}/").status == 200
            line = decision_of(sidecar, upstream)
        assert (line["reason"], line["action"], line["would_deny"]) == ("pin_mismatch", "inspect", True)
        assert "; enforcing" not in line["detail"]

    def test_a_response_is_shown_alike_whatever_would_have_been(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        def respond(asked: RecordedRequest) -> bytes:
            there = f"https://{asked.headers.get('host')}"
            return f"HTTP/1.1 302 Found\r\nLocation: {there}{asked.target}\r\nContent-Length: 0\r\n\r\n".encode()

        shown, noted = [], set()
        for host in ("api.example", "never.example"):
            upstream = tls_upstream(*HOSTS, respond=respond)
            listen = f"mode: observe\nlisten: ['reverse://127.0.0.1:0?to=https://{host}:{upstream.port}']"
            folder = tmp_path / host
            folder.mkdir()
            with (
                Sidecar(listen + RULES, folder, authority=authority, hosts=HOSTS) as sidecar,
                RawClient(sidecar.address) as client,
            ):
                for _ in range(30):  # enforcing, this is a loop
                    client.send(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = client.read_response()
                    shown.append((answer.status, answer.headers.get("location")))
                lines = sidecar.wait_for_decisions(30)
            noted |= {(line["reason"], line["action"], line["status"]) for line in lines}
        assert noted == {("redirect_loop", "inspect", 302), ("https_rejected", "allow", 302)}
        assert set(shown) == {(302, "http://localhost/a")}


def half(_: RecordedRequest) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    raise ConnectionResetError


def badly_chunked(_: RecordedRequest) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    time.sleep(0.2)  # the reset that follows would take what the app has not read yet
    yield b"no size\r\n"


def without_farewell(_: RecordedRequest) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf"
    raise ConnectionResetError


class TestCut:
    @pytest.mark.parametrize("respond", [half, badly_chunked, without_farewell])
    @pytest.mark.parametrize("way", [Way.HTTP, Way.CONNECT])
    def test_a_response_that_breaks_off_is_no_success(
        self, authority: Authority, tmp_path: Path, respond: Callable[..., bytes], way: Way
    ) -> None:
        policy = "defaults: {https: inspect}"
        with (
            fresh(lambda: TlsUpstream(authority, *HOSTS, respond=respond)) as upstream,
            Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            name = f"api.example:{upstream.port}"
            with open_way(sidecar, "api.example", upstream.port, way) as client:
                client.send(request(f"http://{name}/" if way is Way.HTTP else "/", name, method="GET", headers=()))
                assert b"200 OK" in client.read_until(b"half")
                with suppress(ConnectionResetError, ssl.SSLError):
                    assert not client.read_to_end().endswith(b"0\r\n\r\n")
            line = decision_of(sidecar, upstream)
            assert counted(sidecar, "upstream_cut") == 1
        assert (line["outcome"], line["reason"], line["bytes_received"]) == ("upstream_cut", "upstream_cut", 4)
        assert line["bytes_sent"] == 0

    def test_in_http2(self, authority: Authority, tmp_path: Path) -> None:
        policy = "defaults: {https: inspect}"
        with (
            fresh(lambda: TlsUpstream(authority, *HOSTS, respond=half)) as upstream,
            Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            url = upstream.url(scheme="https", host="api.example")
            answer = curl("--http2", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
            assert answer.exit_status in (18, 56, 92)  # curl's words for what is not whole
            line = decision_of(sidecar, upstream)
            assert counted(sidecar, "upstream_cut") == 1
        assert (line["outcome"], line["reason"], line["bytes_received"]) == ("upstream_cut", "upstream_cut", 4)

    def test_in_observe_mode_it_says_nothing_of_enforcing(self, authority: Authority, tmp_path: Path) -> None:
        with (
            fresh(lambda: PlainUpstream(respond=half)) as upstream,
            Sidecar("mode: observe", tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            with open_way(sidecar, "api.example", upstream.port) as client:
                name = f"api.example:{upstream.port}"
                client.send(request(f"http://{name}/", name, method="GET", headers=()))
                client.read_until(b"half")
            line = decision_of(sidecar, upstream)
        assert (line["reason"], line["outcome"], line["would_deny"], line["would"]) == (
            *("upstream_cut", "upstream_cut", False, "upgrade"),
        )

    def test_a_whole_response_is_the_twin(self, authority: Authority, tmp_path: Path) -> None:
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhalf"
        with (
            fresh(lambda: TlsUpstream(authority, *HOSTS, respond=lambda _: whole)) as upstream,
            Sidecar("", tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            assert ask(sidecar, upstream, "api.example").status == 200
            line = decision_of(sidecar, upstream)
        assert (line["action"], line["reason"]) == ("upgrade", None)

    @pytest.mark.parametrize("how", ["reset", "in order", "reset after the app has ended", "reset after its own end"])
    def test_a_tunnel(self, authority: Authority, tmp_path: Path, how: str) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            Sidecar("mode: observe", tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            port = listener.getsockname()[1]
            with connect(sidecar, f"tunnel.example:{port}") as client:
                accepted, _ = listener.accept()
                accepted.settimeout(5)
                client.send(b"SSH-2.0-app\r\n")
                assert accepted.recv(100) == b"SSH-2.0-app\r\n"
                accepted.sendall(b"SSH-2.0-server\r\n")
                assert client.read_until(b"\r\n") == b"SSH-2.0-server\r\n"
                if how == "reset after the app has ended":
                    client.finish()
                    assert accepted.recv(100) == b""
                if how == "reset after its own end":
                    accepted.shutdown(socket.SHUT_WR)
                    assert client.read_to_end() == b""
                if how == "in order":
                    accepted.close()
                    assert client.read_to_end() == b""
                else:
                    reset(accepted)
                    with suppress(ConnectionResetError, BrokenPipeError):
                        for _ in range(3 if how == "reset after its own end" else 0):
                            client.send(b"more")  # what is written to it tells that it is gone
                            time.sleep(0.1)
                        client.read_to_end()
            line = sidecar.wait_for_decisions(1)[0]
        assert line["reason"] == ("upstream_cut" if how == "reset" else "not_http")
