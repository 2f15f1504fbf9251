"""Transport: what leaves is https, or does not leave.

Proves ARCHITECTURE's rules 2 (never a fallback to plain text), 3 (nothing leaves early), 5 (touch only what is marked)
and 8 (never weaker than without it), for the transport decision and for the certificate checks that need no pins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.e2e.app import client_hello
from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.clients import Answer, RawClient, curl, urllib_request
from tests.e2e.connection import RecordedRequest
from tests.e2e.listeners import listen
from tests.e2e.scripted import answering_anything
from tests.e2e.sidecar import ROOT, Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream

MakeTls = Callable[..., TlsUpstream]

NAMES = (
    "open.example",  # no rule
    "rejected.example",
    "allowed.example",
    "inspected.example",
    "nohttps.example",
    "onlyplain.example",
    "never.example",
    "both.example",
    "moved.example",
    "broken.example",
    "xn--bcher-kva.example",
)
HOSTS = dict.fromkeys(NAMES, "127.0.0.1")
POLICY = """
    rules:
      - {{name: rejected, hosts: [rejected.example], plain_http: reject}}
      - {{name: allowed, hosts: [allowed.example], plain_http: allow}}
      - {{name: inspected, hosts: [inspected.example, 127.0.0.3], https: inspect}}
      - {{name: no-https, hosts: [nohttps.example], https: reject}}
      - {{name: only-plain, hosts: [onlyplain.example], plain_http: allow, https: reject}}
      - {{name: never, hosts: [never.example], plain_http: reject, https: reject}}
      - {{name: both, hosts: [both.example], plain_http: allow, https: inspect}}
      - {{name: moved, hosts: [moved.example], https_port: {moved}}}
      - {{name: broken, hosts: [broken.example], https_port: {broken}}}
"""
# Lets host and port pairs lead to other ports, so that 80 and 443 can be asked for without being bound.
PORTS = """
import json, socket, sys
sys.path.append(sys.argv.pop(1))
table = {(host, port): to for host, port, to in json.loads(sys.argv.pop(1))}
original = socket.getaddrinfo
def getaddrinfo(host, port, *args, **kwargs):
    if (host, port) in table:
        return original("127.0.0.1", table[host, port], *args, **kwargs)
    raise socket.gaierror(socket.EAI_NONAME, f"{host}:{port} is not in the table")
socket.getaddrinfo = getaddrinfo
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""


@dataclass(frozen=True)
class World:
    """What the tests of this module share.

    Attributes:
        moved: the upstream that the rule `moved` sends upgraded requests to.
        broken: the same of the rule `broken`; its certificate has expired.
    """

    sidecar: Sidecar
    moved: TlsUpstream
    broken: TlsUpstream


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        TlsUpstream(authority, *NAMES) as moved,
        TlsUpstream(authority, *NAMES, variant=Variant.EXPIRED) as broken,
        Sidecar(
            POLICY.format(moved=moved.port, broken=broken.port),
            tmp_path_factory.mktemp("transport"),
            authority=authority,
            hosts=HOSTS,
        ) as sidecar,
    ):
        yield World(sidecar, moved, broken)


@pytest.fixture
def sidecar(world: World) -> Sidecar:
    return world.sidecar


@pytest.fixture(scope="module")
def std(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sidecar, Any, Any]]:
    folder = tmp_path_factory.mktemp("ports")
    (folder / "ports.py").write_text(PORTS)
    with TlsUpstream(authority, "std.example") as secure, PlainUpstream() as plain:
        table = [
            ["std.example", 443, secure.port],
            ["std.example", 80, plain.port],
            ["std.example", 8080, secure.port],
        ]
        command = [sys.executable, "-P", str(folder / "ports.py"), str(ROOT), json.dumps(table)]
        with Sidecar("mode: enforce", folder, authority=authority, command=command) as sidecar:
            yield sidecar, secure, plain


def assert_denied(answer: Answer, status: int, reason: str, rule: str | None = None) -> dict[str, Any]:
    """Check that an answer is a denial in all its parts, and return the problem details."""
    problem: dict[str, Any] = answer.json()
    assert (answer.status, problem["status"], problem["reason"]) == (status, status, reason), problem
    assert answer.headers.get("content-type") == "application/problem+json"
    proxy_status = answer.headers.get("proxy-status")
    assert proxy_status is not None
    assert proxy_status.startswith("overcoat; error=")
    assert proxy_status.endswith(f'details="{reason}"')
    assert problem.get("rule") == rule
    assert {"type", "title", "detail"} <= problem.keys()
    return problem


def decision_about(sidecar: Sidecar, destination: str, method: str = "GET") -> dict[str, Any]:
    return sidecar.wait_for_decision(lambda d: d["destination"] == destination and d["method"] == method)


def open_tunnel(sidecar: Sidecar, authority: str) -> RawClient:
    client = RawClient(sidecar.address)
    client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    assert client.read_response(method="CONNECT").status == 200
    return client


def assert_only_tls_came(upstream: TlsUpstream | PlainUpstream) -> None:
    """Check that every connection began as TLS and that nothing plain is among what came."""
    upstream.settle()
    assert upstream.connections, "nobody connected, so this would prove nothing"
    for connection in upstream.connections:
        assert connection.wire[:2] == b"\x16\x03", connection
        assert b"HTTP/1" not in connection.wire


class TestUpgrade:
    def test_curl_and_urllib_get_their_answer_over_https(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("open.example")
        url = upstream.url("/v1?a=b", host="open.example")
        for answer in (curl(url, proxy=sidecar.proxy_url), urllib_request(url, proxy=sidecar.proxy_url)):
            assert answer.status == 200, answer
            assert answer.json()["target"] == "/v1?a=b"
        assert {request.connection.sni for request in upstream.wait_for_requests(2)} == {"open.example"}
        assert_only_tls_came(upstream)
        decision = decision_about(sidecar, f"open.example:{upstream.port}")
        assert (decision["action"], decision["reason"], decision["tls"]) == ("upgrade", None, "TLSv1.3")
        assert (decision["path"], decision["status"], decision["rule"]) == ("/v1", 200, None)

    def test_every_byte_but_the_target_form_goes_through_as_it_came(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream("open.example")
        authority = f"open.example:{upstream.port}"
        path = "/a%20b/%2F..//./c;x=1?q=%C3%A9&&=&+~'()*[]|"
        body = b'{"a": 1.0,\r\n  "a" :\t2e0, "\\u0041": "\xc3\xa9"}\x00\xff'
        rest = (
            f"hOsT: {authority}\r\nX-Z: 1\r\nx-a: one\r\nX-A: two,  three\r\nAccept: */*; q=0.5 ,a\r\nEmpty: \r\n"
            f"X-Latin: \xe9\r\ncontent-LENGTH: {len(body)}\r\nCookie: a=b; c=d\r\nAuthorization: Basic eDp5\r\n\r\n"
        ).encode("latin-1")
        with RawClient(sidecar.address) as client:
            client.send(f"M-GET http://{authority}{path} HTTP/1.1\r\n".encode() + rest + body)
            assert client.read_response().status == 200
        (request,) = upstream.wait_for_requests(1)
        assert request.raw == f"M-GET {path} HTTP/1.1\r\n".encode() + rest + body

    def test_the_answer_goes_back_as_it_came(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        answer = (
            b"HTTP/1.1 299 Odd  reason\r\nX-b: 2\r\nx-A: 1\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"
            b"CONTENT-length: 4\r\n\r\n\x00\r\n\xff"
        )
        upstream = tls_upstream("open.example", respond=lambda _: answer)
        with RawClient(sidecar.address) as client:
            client.send(
                f"GET {upstream.url(host='open.example')} HTTP/1.1\r\n"
                f"Host: open.example:{upstream.port}\r\n\r\n".encode()
            )
            assert client.read_exactly(len(answer)) == answer

    def test_a_chunked_body_arrives_chunked_and_whole(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            head = f"PUT {upstream.url('/c', host='open.example')} HTTP/1.1\r\nHost: open.example:{upstream.port}\r\n"
            client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n")
            client.send(b"2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n")
            assert client.read_response().status == 200
        (request,) = upstream.wait_for_requests(1)
        assert request.body == b"abcde"
        assert request.headers.get("transfer-encoding") == "chunked"
        assert request.trailers.get("x-trailer") == "1"

    @pytest.mark.parametrize("method", ["OPTIONS", "TRACE"])
    def test_each_proxy_takes_one_of_max_forwards_and_the_last_one_answers(
        self, sidecar: Sidecar, tls_upstream: MakeTls, method: str
    ) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            for left in (2, 0):
                url = upstream.url("/f", host="open.example")
                host = f"open.example:{upstream.port}"
                client.send(f"{method} {url} HTTP/1.1\r\nHost: {host}\r\nMax-Forwards: {left}\r\n\r\n".encode())
                answer = client.read_response()
                assert (answer.status, answer.headers.get("proxy-status") is None) == (
                    (508, False) if not left else (200, True)
                )
        assert answer.json()["reason"] == "no_forwards_left"
        (request,) = upstream.wait_for_requests(1)
        assert request.headers.get("max-forwards") == "1"

    def test_the_rules_port_is_dialled_and_host_follows(self, world: World, plain_upstream: PlainUpstream) -> None:
        answer = curl(plain_upstream.url("/m", host="moved.example"), proxy=world.sidecar.proxy_url)
        assert answer.status == 200, answer
        request = next(r for r in world.moved.requests if r.target == "/m")
        assert request.headers.get("host") == f"moved.example:{world.moved.port}"
        plain_upstream.assert_untouched()

    def test_a_name_in_a_labels_is_a_name(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("xn--bcher-kva.example")
        answer = curl(upstream.url(host="xn--bcher-kva.example"), proxy=sidecar.proxy_url)
        assert answer.status == 200, answer
        assert upstream.connections[0].sni == "xn--bcher-kva.example"

    def test_an_address_is_verified_as_one_and_has_no_sni(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("127.0.0.1")
        assert curl(upstream.url(), proxy=sidecar.proxy_url).status == 200
        assert upstream.connections[0].sni is None

    def test_fields_for_the_proxy_end_here(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            head = f"GET {upstream.url(host='open.example')} HTTP/1.1\r\nHost: open.example:{upstream.port}\r\n"
            extra = (
                "Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\n"
                "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX-Own: 1\r\n"
            )
            client.send(f"{head}{extra}\r\n".encode())
            assert client.read_response().status == 200
        (request,) = upstream.wait_for_requests(1)
        assert request.headers.fields == (("Host", f"open.example:{upstream.port}"), ("X-Own", "1"))

    @pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "PATCH"])
    def test_any_method_is_upgraded(self, sidecar: Sidecar, tls_upstream: MakeTls, method: str) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            url = upstream.url(host="open.example")
            client.send(f"{method} {url} HTTP/1.1\r\nHost: open.example:{upstream.port}\r\n\r\n".encode())
            assert client.read_response(method=method).status == 200
        (request,) = upstream.wait_for_requests(1)
        assert request.method == method

    def test_an_interim_response_is_not_taken_for_the_final_one(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        def hint_first(_: RecordedRequest) -> bytes:
            return b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

        upstream = tls_upstream("open.example", respond=hint_first)
        answer = curl(upstream.url(host="open.example"), proxy=sidecar.proxy_url)
        assert (answer.status, answer.body) == (200, b"{}")

    def test_requests_of_one_app_connection_share_one_upstream_connection(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            for number in range(5):
                url = upstream.url(f"/{number}", host="open.example")
                client.send(f"GET {url} HTTP/1.1\r\nHost: open.example:{upstream.port}\r\n\r\n".encode())
                assert client.read_response().status == 200
        assert [len(connection.requests) for connection in upstream.connections] == [5]

    def test_after_a_failure_the_same_app_connection_works_once_the_upstream_does(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        request = f"GET http://open.example:{port}/ HTTP/1.1\r\nHost: open.example:{port}\r\n\r\n".encode()
        with RawClient(sidecar.address) as client:
            client.send(request)
            assert_denied(client.read_response(), 502, "upstream_unreachable")
            with _tls_upstream_on(port, authority.issue("open.example")):
                client.send(request)
                assert client.read_response().status == 200


class TestDefaultPorts:
    """RFC 6797, section 8.3: port 80 becomes 443, and any other explicit port stays."""

    @pytest.mark.parametrize(
        ("asked", "host"),
        [
            ("std.example", "std.example"),
            ("std.example:80", "std.example"),
            ("std.example:8080", "std.example:8080"),
            ("STD.example.", "STD.example."),
        ],
    )
    def test_the_port_is_mapped_and_host_changes_only_with_it(
        self, std: tuple[Sidecar, TlsUpstream, PlainUpstream], asked: str, host: str
    ) -> None:
        sidecar, secure, plain = std
        with RawClient(sidecar.address) as client:
            client.send(f"GET http://{asked}/x HTTP/1.1\r\nHost: {asked}\r\n\r\n".encode())
            answer = client.read_response()
        assert answer.status == 200, answer
        assert ["Host", host] in answer.json()["headers"]
        plain.assert_untouched()
        assert_only_tls_came(secure)

    def test_plain_http_inside_connect_to_port_80_dials_nothing_plain(
        self, std: tuple[Sidecar, TlsUpstream, PlainUpstream]
    ) -> None:
        sidecar, secure, plain = std
        before = len(secure.requests)
        answer = curl("-p", "http://std.example/inside", proxy=sidecar.proxy_url)
        assert answer.status == 200, answer
        assert len(secure.requests) == before + 1
        assert ["Host", "std.example"] in answer.json()["headers"]
        plain.assert_untouched()

    def test_https_to_port_443_is_tunnelled(
        self, std: tuple[Sidecar, TlsUpstream, PlainUpstream], authority: Authority, tmp_path: Path
    ) -> None:
        sidecar, secure, _ = std
        roots = authority.write_pem(tmp_path / "roots.pem")
        answer = curl("https://std.example/tunnelled", proxy=sidecar.proxy_url, ca_file=roots)
        assert answer.status == 200, answer
        assert secure.requests[-1].target == "/tunnelled"


class TestPlainHttpInsideConnect:
    def test_it_is_upgraded(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("inspected.example")
        answer = curl("-p", "-d", "x", upstream.url("/in?q", host="inspected.example"), proxy=sidecar.proxy_url)
        assert answer.status == 200, answer
        (request,) = upstream.wait_for_requests(1)
        assert (request.target, request.body) == ("/in?q", b"x")
        assert_only_tls_came(upstream)
        assert decision_about(sidecar, f"inspected.example:{upstream.port}", "POST")["action"] == "upgrade"

    def test_it_is_upgraded_where_https_would_be_tunnelled(self, world: World, plain_upstream: PlainUpstream) -> None:
        answer = curl("-p", plain_upstream.url("/tunnelled-http", host="moved.example"), proxy=world.sidecar.proxy_url)
        assert answer.status == 200, answer
        assert any(request.target == "/tunnelled-http" for request in world.moved.requests)
        plain_upstream.assert_no_application_bytes()

    def test_it_is_rejected(self, sidecar: Sidecar, plain_upstream: PlainUpstream) -> None:
        answer = curl("-p", plain_upstream.url(host="rejected.example"), proxy=sidecar.proxy_url)
        assert_denied(answer, 403, "plain_http_rejected", "rejected")
        plain_upstream.assert_no_application_bytes()

    def test_it_passes_where_plain_http_is_allowed(self, sidecar: Sidecar, plain_upstream: PlainUpstream) -> None:
        answer = curl("-p", plain_upstream.url("/p", host="allowed.example"), proxy=sidecar.proxy_url)
        assert answer.status == 200, answer
        (request,) = plain_upstream.wait_for_requests(1)
        assert request.raw == plain_upstream.received
        assert request.target == "/p"

    @pytest.mark.parametrize("method", ["M-SEARCH", "VERSION-CONTROL", "BASELINE-CONTROL"])
    def test_a_method_may_have_a_hyphen(self, sidecar: Sidecar, tls_upstream: MakeTls, method: str) -> None:
        upstream = tls_upstream("inspected.example")
        authority = f"inspected.example:{upstream.port}"
        head = f"{method} /a HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        with open_tunnel(sidecar, authority) as client:
            client.send(head)
            assert client.read_response().status == 200
        assert upstream.received == head

    @pytest.mark.parametrize("spoken", ["http", "https"])
    @pytest.mark.parametrize("named", ["http", "https"])
    def test_a_target_names_the_scheme_that_is_spoken(
        self, sidecar: Sidecar, tls_upstream: MakeTls, plain_upstream: PlainUpstream, spoken: str, named: str
    ) -> None:
        """What is sent in plain text must not be taken for https, or the other way round: both are let through."""
        upstream = plain_upstream if spoken == "http" else tls_upstream("both.example")
        authority = f"both.example:{upstream.port}"
        with open_tunnel(sidecar, authority) as client:
            if spoken == "https":
                client.start_tls("both.example", sidecar.ca_file)
            url = upstream.url("/a", scheme=named, host="both.example")
            client.send(f"GET {url} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            answer = client.read_response()
        if named == spoken:
            assert (answer.status, answer.json()["target"]) == (200, "/a")
        else:
            assert "another scheme" in assert_denied(answer, 400, "bad_request")["detail"]
            upstream.assert_untouched()

    def test_it_may_start_with_a_byte_at_a_time(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("inspected.example")
        authority = f"inspected.example:{upstream.port}"
        with open_tunnel(sidecar, authority) as client:
            for byte in f"GET /slow HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode():
                client.send(bytes([byte]))
            assert client.read_response().status == 200
        assert upstream.requests[0].target == "/slow"


class TestRejectAndAllow:
    def test_rejected_is_403_and_nobody_is_dialled(self, sidecar: Sidecar, plain_upstream: PlainUpstream) -> None:
        answer = curl("-d", "secret", plain_upstream.url(host="rejected.example"), proxy=sidecar.proxy_url)
        assert_denied(answer, 403, "plain_http_rejected", "rejected")
        plain_upstream.assert_untouched()
        decision = decision_about(sidecar, f"rejected.example:{plain_upstream.port}", "POST")
        assert (decision["action"], decision["reason"]) == ("deny", "plain_http_rejected")
        assert (decision["status"], decision["rule"]) == (403, "rejected")

    def test_the_app_connection_goes_on_after_a_denial(
        self, sidecar: Sidecar, plain_upstream: PlainUpstream, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            for server, host, status in ((plain_upstream, "rejected.example", 403), (upstream, "open.example", 200)):
                head = (
                    f"POST {server.url(host=host)} HTTP/1.1\r\nHost: {host}:{server.port}\r\nContent-Length: 2\r\n\r\n"
                )
                client.send(head.encode() + b"{}")
                assert client.read_response().status == status
        assert len(upstream.requests) == 1

    def test_allowed_arrives_as_the_plain_bytes_that_were_sent(
        self, sidecar: Sidecar, plain_upstream: PlainUpstream
    ) -> None:
        authority = f"allowed.example:{plain_upstream.port}"
        rest = f"hOST: {authority}\r\nX: 1\r\nContent-Length: 3\r\n\r\nabc".encode()
        with RawClient(sidecar.address) as client:
            client.send(f"PUT http://{authority}/p?q HTTP/1.1\r\n".encode() + rest)
            assert client.read_response().status == 200
        plain_upstream.wait_for_requests(1)
        assert plain_upstream.received == b"PUT /p?q HTTP/1.1\r\n" + rest
        decision = decision_about(sidecar, f"allowed.example:{plain_upstream.port}", "PUT")
        assert (decision["action"], decision["tls"]) == ("allow", None)

    @pytest.mark.parametrize(("what", "status"), [("reject", 403), ("allow", 200)])
    def test_the_policys_default_counts_where_no_rule_does(
        self, what: str, status: int, authority: Authority, plain_upstream: PlainUpstream, tmp_path: Path
    ) -> None:
        policy = f"defaults: {{plain_http: {what}}}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            answer = curl(plain_upstream.url(host="open.example"), proxy=sidecar.proxy_url)
        assert answer.status == status
        if what == "reject":
            assert_denied(answer, 403, "plain_http_rejected")
            plain_upstream.assert_untouched()
        else:
            assert plain_upstream.received.startswith(b"GET / HTTP/1.1\r\n")


class TestHttps:
    def test_uninspected_it_is_end_to_end(self, sidecar: Sidecar, tls_upstream: MakeTls, roots: Path) -> None:
        upstream = tls_upstream("open.example")
        with open_tunnel(sidecar, f"open.example:{upstream.port}") as client:
            client.start_tls("open.example", roots)
            own = upstream.identity.certificate.public_bytes(serialization.Encoding.DER)
            assert hashlib.sha256(client.peer_certificate).digest() == hashlib.sha256(own).digest()
            client.send(b"GET /end HTTP/1.1\r\nHost: whatever\r\nProxy-Authorization: kept\r\n\r\n")
            assert client.read_response().status == 200
        (request,) = upstream.wait_for_requests(1)
        assert request.raw == b"GET /end HTTP/1.1\r\nHost: whatever\r\nProxy-Authorization: kept\r\n\r\n"
        decision = decision_about(sidecar, f"open.example:{upstream.port}", "CONNECT")
        assert (decision["action"], decision["reason"], decision["path"]) == ("tunnel", None, "")
        assert decision["bytes_sent"] == len(upstream.wire)

    def test_a_tunnel_changes_no_byte_either_way_and_keeps_half_closes(self, sidecar: Sidecar) -> None:
        hello = client_hello("open.example")
        with _recorder() as (port, conversation), open_tunnel(sidecar, f"open.example:{port}") as client:
            client.send(hello)
            client.send(bytes(range(256)) * 1000)
            client.finish()
            conversation.got_all.wait(10)
            assert conversation.received == hello + bytes(range(256)) * 1000
            answer = bytes(reversed(range(256))) * 1000
            conversation.answer(answer)  # only after the app's half was closed
            assert client.read_to_end() == answer

    @pytest.mark.parametrize("who", ["app", "server"])
    def test_a_reset_stays_a_reset(self, sidecar: Sidecar, who: str) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            open_tunnel(sidecar, f"open.example:{listener.getsockname()[1]}") as client,
        ):
            client.send(client_hello("open.example"))
            server, _ = listener.accept()
            with server:
                server.settimeout(5)
                assert server.recv(65536)
                server.sendall(b"part of what was to come")
                client.read_until(b"to come")
                from_one, to_other = (client._socket, server) if who == "app" else (server, client._socket)
                from_one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                from_one.close()
                with pytest.raises(ConnectionResetError):
                    to_other.recv(65536)

    def test_a_servers_half_close_leaves_the_apps_half_open(self, sidecar: Sidecar) -> None:
        hello = client_hello("open.example")
        with _recorder() as (port, conversation), open_tunnel(sidecar, f"open.example:{port}") as client:
            client.send(hello)
            conversation.answer(b"the end")
            assert client.read_to_end() == b"the end"
            client.send(b"still talking")
            client.finish()
            conversation.got_all.wait(10)
            assert conversation.received == hello + b"still talking"

    @pytest.mark.parametrize("said", [b"", b"neither\r\n", b"GET / HTTP/1.1\r\nHost: open.example\r\n\r\n"])
    def test_a_tunnel_that_nothing_goes_into_ends_at_its_other_end_too(self, sidecar: Sidecar, said: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = open_tunnel(sidecar, f"open.example:{listener.getsockname()[1]}")
            server, _ = listener.accept()
            server.settimeout(5)
            with client, server:
                if said:
                    client.send(said)
                else:
                    client.close()
                with contextlib.suppress(ConnectionResetError):
                    assert server.recv(1) == b""

    def test_inspected_it_shows_a_certificate_of_the_local_ca(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("inspected.example")
        with open_tunnel(sidecar, f"inspected.example:{upstream.port}") as client:
            client.start_tls("inspected.example", sidecar.ca_file)
            shown = x509.load_der_x509_certificate(client.peer_certificate)
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["inspected.example"]
            local_ca = x509.load_pem_x509_certificate(sidecar.ca_file.read_bytes())
            shown.verify_directly_issued_by(local_ca)
            assert shown.public_key() != local_ca.public_key()
            rest = (
                f"hOst: inspected.example:{upstream.port}\r\nX-B: 1\r\nx-a: 2\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            client.send(b"POST /a//b?c=%20 HTTP/1.1\r\n" + rest)
            assert client.read_response().status == 200
        (request,) = upstream.wait_for_requests(1)
        assert request.raw == b"POST /a//b?c=%20 HTTP/1.1\r\n" + rest
        decision = decision_about(sidecar, f"inspected.example:{upstream.port}", "POST")
        assert (decision["action"], decision["rule"], decision["path"]) == ("inspect", "inspected", "/a//b")

    def test_inspected_it_works_with_unmodified_clients(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("inspected.example")
        url = upstream.url("/c", scheme="https", host="inspected.example")
        assert curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
        assert urllib_request(url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
        assert len(upstream.wait_for_requests(2)) == 2

    def test_inspected_the_end_of_tls_is_the_apps_end(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("inspected.example")
        with open_tunnel(sidecar, f"inspected.example:{upstream.port}") as client:
            client.start_tls("inspected.example", sidecar.ca_file)
            client.send(f"GET / HTTP/1.1\r\nHost: inspected.example:{upstream.port}\r\n\r\n".encode())
            assert client.read_response().status == 200
            tls = client._socket
            assert isinstance(tls, ssl.SSLSocket)
            assert tls.unwrap().recv(1) == b""  # it waits for the other side's

    def test_an_inspected_address_gets_a_certificate_for_the_address(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        with TlsUpstream(authority, address="127.0.0.3") as upstream:
            answer = curl(upstream.url(scheme="https"), proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
        assert answer.status == 200, answer

    def test_a_client_that_does_not_trust_the_local_ca_sends_nothing(
        self, sidecar: Sidecar, tls_upstream: MakeTls, roots: Path
    ) -> None:
        upstream = tls_upstream("inspected.example")
        url = upstream.url(scheme="https", host="inspected.example")
        answer = curl(url, proxy=sidecar.proxy_url, ca_file=roots)
        assert (answer.status, answer.exit_status) == (0, 60)
        upstream.assert_untouched()
        decision = decision_about(sidecar, f"inspected.example:{upstream.port}", "CONNECT")
        assert (decision["action"], decision["outcome"], decision["reason"]) == (
            "inspect",
            "app_left",
            "app_tls_failed",
        )
        assert decision["detail"] == (
            "the app did not complete TLS with the local CA: it sent the alert unknown_ca, which says that it does not "
            "trust it"
        )

    def test_https_without_connect_is_sent_as_https(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("open.example")
        with RawClient(sidecar.address) as client:
            url = upstream.url(scheme="https", host="open.example")
            client.send(f"GET {url} HTTP/1.1\r\nHost: open.example:{upstream.port}\r\n\r\n".encode())
            assert client.read_response().status == 200
        assert_only_tls_came(upstream)

    def test_rejected_is_403_on_connect_and_nobody_is_dialled(self, sidecar: Sidecar) -> None:
        with RawClient(sidecar.address) as client:
            client.send(b"CONNECT nohttps.example:443 HTTP/1.1\r\nHost: nohttps.example:443\r\n\r\n")
            assert_denied(client.read_response(), 403, "https_rejected", "no-https")
        decision = decision_about(sidecar, "nohttps.example:443", "CONNECT")
        assert (decision["action"], decision["status"]) == ("deny", 403)

    def test_rejected_on_another_port_it_ends_at_the_client_hello(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream("onlyplain.example")
        with open_tunnel(sidecar, f"onlyplain.example:{upstream.port}") as client:
            client.send(client_hello("onlyplain.example"))
            assert client.read_to_end() == b""
        upstream.assert_untouched()
        decision = decision_about(sidecar, f"onlyplain.example:{upstream.port}", "CONNECT")
        assert (decision["action"], decision["reason"]) == ("deny", "https_rejected")

    @pytest.mark.parametrize(
        ("host", "rule"),
        [
            ("nohttps.example", "no-https"),  # where upgraded requests would have to go, nothing may
            ("never.example", "never"),
        ],
    )
    def test_where_plain_http_would_be_denied_as_well_connect_is_on_any_port(
        self, sidecar: Sidecar, tls_upstream: MakeTls, host: str, rule: str
    ) -> None:
        upstream = tls_upstream(host)
        name = f"{host}:{upstream.port}"
        with RawClient(sidecar.address) as client:
            client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert_denied(client.read_response(method="CONNECT"), 403, "https_rejected", rule)
        upstream.assert_untouched()

    def test_rejected_as_an_absolute_target_it_is_403(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream("nohttps.example")
        with RawClient(sidecar.address) as client:
            url = upstream.url(scheme="https", host="nohttps.example")
            client.send(f"GET {url} HTTP/1.1\r\nHost: nohttps.example:{upstream.port}\r\n\r\n".encode())
            assert_denied(client.read_response(), 403, "https_rejected", "no-https")
        upstream.assert_untouched()

    @pytest.mark.parametrize("what", ["inspect", "reject"])
    def test_the_policys_default_counts_where_no_rule_does(
        self, what: str, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream("open.example")
        url = upstream.url(scheme="https", host="open.example")
        with Sidecar(f"defaults: {{https: {what}}}", tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            answer = curl(url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
        if what == "inspect":
            assert answer.status == 200, answer
        else:
            assert answer.status == 0
            upstream.assert_untouched()

    def test_a_tunnel_to_where_nobody_listens_is_502(self, sidecar: Sidecar) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        with RawClient(sidecar.address) as client:
            client.send(f"CONNECT open.example:{port} HTTP/1.1\r\nHost: open.example:{port}\r\n\r\n".encode())
            assert_denied(client.read_response(), 502, "upstream_unreachable")


class TestUpstreamsThatACarefulClientWouldRefuse:
    @pytest.mark.parametrize("said", [b"", b"\x16\x03\x03\x00\x7a\x02"], ids=["nothing", "part of a record"])
    def test_one_that_ends_in_the_handshake_is_502_at_once(self, sidecar: Sidecar, said: bytes) -> None:
        with listen() as listener, RawClient(sidecar.address) as app:
            listener.settimeout(5)
            authority = f"open.example:{listener.getsockname()[1]}"
            app.send(f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(3) == b"\x16\x03\x01"
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)  # in order: no reset tells that it is over
                assert_denied(app.read_response(), 502, "tls_failed")  # far sooner than the handshake's time limit
        assert decision_about(sidecar, authority, "GET")["reason"] == "tls_failed"

    def test_an_upstream_without_tls_is_502_and_hears_no_http(self, sidecar: Sidecar) -> None:
        bad_request = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"  # as servers without TLS say to TLS
        with answering_anything(bad_request) as (port, heard):
            answer = curl("-d", "secret", f"http://open.example:{port}/", proxy=sidecar.proxy_url)
            assert_denied(answer, 502, "tls_failed")
        assert len(heard) == 1
        assert heard[0][:2] == b"\x16\x03"
        assert b"secret" not in heard[0]
        assert b"HTTP/1" not in heard[0]

    def test_after_a_failed_upgrade_the_port_that_was_asked_for_is_never_tried(
        self, world: World, plain_upstream: PlainUpstream
    ) -> None:
        answer = curl(plain_upstream.url(host="broken.example"), proxy=world.sidecar.proxy_url)
        assert_denied(answer, 502, "certificate_invalid", "broken")
        plain_upstream.assert_untouched()
        world.broken.assert_no_application_bytes()
        # The twin: the same request under a rule whose upstream is in order.
        assert curl(plain_upstream.url(host="moved.example"), proxy=world.sidecar.proxy_url).status == 200
        plain_upstream.assert_untouched()

    def test_nobody_listening_is_502(self, sidecar: Sidecar) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        answer = curl(f"http://open.example:{port}/", proxy=sidecar.proxy_url)
        assert_denied(answer, 502, "upstream_unreachable")

    def test_an_unknown_name_is_502(self, sidecar: Sidecar) -> None:
        answer = curl("http://unknown.example/", proxy=sidecar.proxy_url)
        assert "cannot be resolved" in assert_denied(answer, 502, "upstream_unreachable")["detail"]

    @pytest.mark.parametrize(("max_tls", "status"), [(ssl.TLSVersion.TLSv1_2, 502), (ssl.TLSVersion.TLSv1_3, 200)])
    def test_with_min_tls_1_3_an_upstream_that_stops_at_1_2_is_refused(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path, max_tls: ssl.TLSVersion, status: int
    ) -> None:
        upstream = tls_upstream("open.example", max_tls=max_tls)
        authority.write_pem(tmp_path / "roots.pem")
        policy = 'trust: {roots: roots.pem, min_tls: "1.3"}'
        with Sidecar(policy, tmp_path, hosts=HOSTS) as sidecar:
            answer = curl(upstream.url(host="open.example"), proxy=sidecar.proxy_url)
        assert answer.status == status
        if status == 502:
            assert_denied(answer, 502, "tls_failed")
            upstream.assert_no_application_bytes()

    def test_the_roots_of_the_policy_count_alone(
        self, sidecar: Sidecar, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream("open.example")
        other = Authority()
        with Sidecar("mode: enforce", tmp_path, authority=other, hosts=HOSTS) as stranger:
            answer = curl(upstream.url(host="open.example"), proxy=stranger.proxy_url)
        assert_denied(answer, 502, "certificate_invalid")
        upstream.assert_no_application_bytes()
        assert curl(upstream.url(host="open.example"), proxy=sidecar.proxy_url).status == 200


class _Conversation:
    """A server side that a test drives by hand."""

    def __init__(self, listener: socket.socket) -> None:
        self.received = b""
        self.got_all = threading.Event()
        self._accepted = threading.Event()
        self._socket: socket.socket
        threading.Thread(target=self._read, args=(listener,), daemon=True).start()

    def _read(self, listener: socket.socket) -> None:
        self._socket, _ = listener.accept()
        self._accepted.set()
        while data := self._socket.recv(65536):
            self.received += data
        self.got_all.set()

    def answer(self, data: bytes) -> None:
        assert self._accepted.wait(10)
        self._socket.sendall(data)
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._accepted.is_set():
            self._socket.close()


@contextmanager
def _recorder() -> Iterator[tuple[int, _Conversation]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conversation = _Conversation(listener)
        try:
            yield listener.getsockname()[1], conversation
        finally:
            conversation.close()


@contextmanager
def _tls_upstream_on(port: int, identity: Identity) -> Iterator[None]:
    """A TLS server on a port that is known before: it answers one request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_into(context)

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with context.wrap_socket(accepted, server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            secure.recv(1)

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield
