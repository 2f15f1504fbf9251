"""What is not one well-formed request, or names two hosts, is answered here and never reaches an upstream.

Proves ARCHITECTURE's rules 1 (fail closed), 4 (decide on the real destination: Host, SNI and target agree) and 7 (say
why: the reason in the response is the reason in the decision line).
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e import wire
from tests.e2e.app import careless
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.sidecar import Decision, Sidecar
from tests.e2e.upstream import TlsUpstream

MakeTls = Callable[..., TlsUpstream]

TUNNELLED, INSPECTED = "up.example", "inspected.example"
CLIENT_HELLO_START = b"\x16\x03\x01"


@dataclass(frozen=True)
class World:
    sidecar: Sidecar
    upstream: TlsUpstream

    def fill(self, text: str) -> bytes:
        """Put the upstream's port into a request; each character is a byte."""
        return text.replace("PORT", str(self.upstream.port)).encode("latin-1")


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    names = (TUNNELLED, INSPECTED, "other.example")
    policy = f"rules: [{{name: inspected, hosts: [{INSPECTED}], https: inspect}}]"
    with (
        TlsUpstream(authority, *names) as upstream,
        Sidecar(
            policy,
            tmp_path_factory.mktemp("bad"),
            authority=authority,
            hosts=dict.fromkeys(names, "127.0.0.1"),
        ) as sidecar,
    ):
        yield World(sidecar, upstream)


@dataclass
class Marks:
    """How much there was before a test: what comes on top is its own."""

    decisions: int
    requests: int
    received: int


@pytest.fixture
def marks(world: World) -> Marks:
    return Marks(len(world.sidecar.decisions()), len(world.upstream.requests), len(world.upstream.received))


def is_denial(decision: Decision) -> bool:
    return bool(decision["outcome"] in ("denied", "upstream_failed", "app_left"))


def new_decision(world: World, marks: Marks, meant: Callable[[Decision], bool] = is_denial) -> Decision:
    """Wait for the first decision line since the test began that is meant; late ones of an earlier test may precede."""
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        for decision in world.sidecar.decisions()[marks.decisions :]:
            if meant(decision):
                return decision
        time.sleep(0.005)
    raise AssertionError("no such decision line was written")


def assert_upstream_untouched(world: World, marks: Marks) -> None:
    world.upstream.settle()
    assert len(world.upstream.received) == marks.received, world.upstream.connections


def assert_sane(world: World) -> None:
    """Check that the process answers the next request as if nothing had been."""
    with RawClient(world.sidecar.address) as client:
        client.send(world.fill("GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n"))
        assert client.read_response().status == 200
    assert "failed" not in world.sidecar.stderr


BAD: dict[str, tuple[str, int, str]] = {
    # name: (request, status, reason); each differs from GOOD in one thing
    "no Host field": ("GET http://up.example:PORT/ HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "an empty host in the target": ("GET http:///x HTTP/1.1\r\nHost: \r\n\r\n", 400, "bad_request"),
    "an empty host with a port": ("GET http://:PORT/ HTTP/1.1\r\nHost: :PORT\r\n\r\n", 400, "bad_request"),
    "connect in lower case": (
        "connect http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "an empty Host field": ("GET http://up.example:PORT/ HTTP/1.1\r\nHost: \r\n\r\n", 400, "bad_request"),
    "port 0": ("GET http://up.example:0/ HTTP/1.1\r\nHost: up.example\r\n\r\n", 400, "bad_request"),
    "port 0 in HTTP/1.0": ("GET http://up.example:0/ HTTP/1.0\r\n\r\n", 400, "bad_request"),
    "port 65536": ("GET http://up.example:65536/ HTTP/1.1\r\nHost: up.example:65536\r\n\r\n", 400, "bad_request"),
    "port 99999": ("GET http://up.example:99999/ HTTP/1.1\r\nHost: up.example:99999\r\n\r\n", 400, "bad_request"),
    "port abc": ("GET http://up.example:abc/ HTTP/1.1\r\nHost: up.example:abc\r\n\r\n", 400, "bad_request"),
    "a negative port": ("GET http://up.example:-1/ HTTP/1.1\r\nHost: up.example:-1\r\n\r\n", 400, "bad_request"),
    "userinfo": ("GET http://me:pw@up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "userinfo without a password": (
        "GET http://me@up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "userinfo in Host": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: me@up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a fragment": ("GET http://up.example:PORT/#x HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "an escaped host": ("GET http://up%2Eexample:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "an octal address": ("GET http://0177.0.0.1:PORT/ HTTP/1.1\r\nHost: 0177.0.0.1:PORT\r\n\r\n", 400, "bad_request"),
    "a short address": ("GET http://127.1:PORT/ HTTP/1.1\r\nHost: 127.1:PORT\r\n\r\n", 400, "bad_request"),
    "a number as address": (
        "GET http://2130706433:PORT/ HTTP/1.1\r\nHost: 2130706433:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a zone id": ("GET http://[fe80::1%25lo]:PORT/ HTTP/1.1\r\nHost: [fe80::1%25lo]:PORT\r\n\r\n", 400, "bad_request"),
    "a label that is too long": (
        f"GET http://{'a' * 64}.example:PORT/ HTTP/1.1\r\nHost: {'a' * 64}.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "two Host fields": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nhost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a Host of another name": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: other.example:PORT\r\n\r\n",
        421,
        "host_mismatch",
    ),
    "a Host of another port": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:1\r\n\r\n",
        421,
        "host_mismatch",
    ),
    "a Host without the port": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example\r\n\r\n",
        421,
        "host_mismatch",
    ),
    "bare line feeds": ("GET http://up.example:PORT/ HTTP/1.1\nHost: up.example:PORT\n\n", 400, "bad_request"),
    "one bare line feed": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX: 1\nY: 2\r\n\r\n",
        400,
        "bad_request",
    ),
    "a bare line feed as the last": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\n",
        400,
        "bad_request",
    ),
    "a bare line feed before the last": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\n\r\n",
        400,
        "bad_request",
    ),
    "a bare carriage return": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX: 1\rY: 2\r\n\r\n",
        400,
        "bad_request",
    ),
    "a folded field": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX: 1\r\n 2\r\n\r\n",
        400,
        "bad_request",
    ),
    "a folded first field": (
        "GET http://up.example:PORT/ HTTP/1.1\r\n X: 1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a space before the colon": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX : 1\r\n\r\n",
        400,
        "bad_request",
    ),
    "a space before the colon of Host": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost : up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a field without a colon": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX\r\n\r\n",
        400,
        "bad_request",
    ),
    "a field without a name": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n: 1\r\n\r\n",
        400,
        "bad_request",
    ),
    "NUL in a value": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX: 1\0\r\n\r\n",
        400,
        "bad_request",
    ),
    "NUL in the target": (
        "GET http://up.example:PORT/\0 HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a byte above ASCII in the target": (
        "GET http://up.example:PORT/\xe9 HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "a tab in the request line": (
        "GET\thttp://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "two spaces in the request line": (
        "GET  http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "no version": ("GET http://up.example:PORT/\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "an unknown version": ("GET http://up.example:PORT/ HTTP/1.2\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "both lengths": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 5\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "a transfer coding with an underscore": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 5\r\n"
        "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "a length with an underscore": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\ncontent_LENGTH: 0\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "a length with a point": (
        "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent.Length: 5\r\n\r\n",
        400,
        "bad_request",
    ),
    "two lengths that agree": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 1\r\n"
        "Content-Length: 1\r\n\r\nx",
        400,
        "bad_request",
    ),
    "two lengths that differ": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 1\r\n"
        "Content-Length: 2\r\n\r\nxy",
        400,
        "bad_request",
    ),
    "a list of lengths": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 1, 1\r\n\r\nx",
        400,
        "bad_request",
    ),
    "a signed length": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: +1\r\n\r\nx",
        400,
        "bad_request",
    ),
    "a negative length": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: -1\r\n\r\n",
        400,
        "bad_request",
    ),
    "a hexadecimal length": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 0x1\r\n\r\nx",
        400,
        "bad_request",
    ),
    "a length with a leading zero": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 01\r\n\r\nx",
        400,
        "bad_request",
    ),
    "an empty length": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: \r\n\r\n",
        400,
        "bad_request",
    ),
    "an endless length": (
        f"POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: {'9' * 5000}\r\n\r\n",
        400,
        "bad_request",
    ),
    "an unknown transfer coding": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
        "0\r\n\r\n",
        400,
        "bad_request",
    ),
    "a transfer coding in disguise": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nTransfer-Encoding: \x0bchunked\r\n\r\n"
        "0\r\n\r\n",
        400,
        "bad_request",
    ),
    "the transfer coding identity": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nTransfer-Encoding: identity\r\n\r\n",
        400,
        "bad_request",
    ),
    "two transfer codings": (
        "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nTransfer-Encoding: chunked\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "chunks in HTTP/1.0": (
        "POST http://up.example:PORT/ HTTP/1.0\r\nHost: up.example:PORT\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "an endless head": (
        f"GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX: {'x' * 70_000}\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "an endless target": (
        f"GET http://up.example:PORT/{'x' * 70_000} HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "a head that never ends": (f"GET http://up.example:PORT/ HTTP/1.1\r\nX: {'x' * 70_000}", 431, "headers_too_large"),
    "the origin form": ("GET / HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "the asterisk form": ("OPTIONS * HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", 400, "bad_request"),
    "an unknown scheme": ("GET ftp://up.example/ HTTP/1.1\r\nHost: up.example\r\n\r\n", 400, "bad_request"),
    "an unknown scheme with a port": (
        "GET ftp://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "half the preface of HTTP/2": ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400, "bad_request"),
    "a ClientHello in the clear": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
    "the banner of SSH": ("SSH-2.0-OpenSSH_9.9\r\n", 400, "bad_request"),
    "the greeting of SOCKS 5": ("\x05\x01\x00", 400, "bad_request"),
    "CONNECT without a port": ("CONNECT up.example HTTP/1.1\r\nHost: up.example\r\n\r\n", 400, "bad_request"),
    "CONNECT to port 0": ("CONNECT up.example:0 HTTP/1.1\r\nHost: up.example:0\r\n\r\n", 400, "bad_request"),
    "CONNECT to a URL": ("CONNECT http://up.example:PORT/ HTTP/1.1\r\nHost: up.example\r\n\r\n", 400, "bad_request"),
    "CONNECT with userinfo": (
        "CONNECT me@up.example:PORT HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
        400,
        "bad_request",
    ),
    "CONNECT with another Host": (
        "CONNECT up.example:PORT HTTP/1.1\r\nHost: other.example:PORT\r\n\r\n",
        421,
        "host_mismatch",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_with_its_reason_and_nothing_is_sent(world: World, marks: Marks, name: str) -> None:
    request, status, reason = BAD[name]
    with RawClient(world.sidecar.address) as client:
        client.send(world.fill(request))
        answer = client.read_response()
    assert (answer.status, answer.json()["reason"]) == (status, reason), answer
    assert answer.headers.get("content-type") == "application/problem+json"
    decision = new_decision(world, marks)
    assert (decision["action"], decision["reason"], decision["status"]) == ("deny", reason, status)
    assert_upstream_untouched(world, marks)
    assert "failed" not in world.sidecar.stderr


@pytest.mark.parametrize(
    "request_text",
    [
        pytest.param("GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", id="plain"),
        pytest.param("GET http://UP.example.:PORT/ HTTP/1.1\r\nHost: up.EXAMPLE:PORT\r\n\r\n", id="other spellings"),
        pytest.param("GET http://up.example:PORT/ HTTP/1.0\r\n\r\n", id="HTTP/1.0 without Host"),
        pytest.param("GET HTTP://up.example:PORT/ HTTP/1.1\r\nHost:up.example:PORT \r\n\r\n", id="loose spaces"),
        pytest.param("\r\n\r\nGET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n", id="empty lines"),
        pytest.param(
            "\r\n" * 40_000 + "GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n",
            id="very many empty lines",
        ),
        pytest.param(
            "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent-Length: 0\r\n\r\n", id="length 0"
        ),
        pytest.param(
            "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nTransfer-Encoding: Chunked\r\n\r\n"
            "0\r\n\r\n",
            id="chunked",
        ),
        pytest.param(
            "POST http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nContent_Type: a\r\nX_Length: 9\r\n"
            "Content_Lengths: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="other names with underscores",
        ),
        pytest.param(
            f"GET http://up.example:PORT/ HTTP/1.1\r\nHost: up.example:PORT\r\nX: {'x' * 60_000}\r\n\r\n",
            id="a long head",
        ),
    ],
)
def test_what_is_right_in_all_of_that_passes(world: World, request_text: str) -> None:
    with RawClient(world.sidecar.address) as client:
        client.send(world.fill(request_text))
        assert client.read_response().status == 200


def test_the_connection_of_a_malformed_request_is_closed(world: World, marks: Marks) -> None:
    """Where one message ends is no longer known, so nothing after it may be read as a request."""
    smuggled = "GET http://up.example:PORT/smuggled HTTP/1.1\r\nHost: up.example:PORT\r\n\r\n"
    with RawClient(world.sidecar.address) as client:
        client.send(world.fill(BAD["both lengths"][0] + smuggled))
        assert client.read_response().status == 400
        assert client.read_to_end() == b""
    new_decision(world, marks)
    assert_upstream_untouched(world, marks)
    assert_sane(world)


def test_a_denial_quotes_no_header_value(world: World, marks: Marks) -> None:
    with RawClient(world.sidecar.address) as client:
        client.send(
            world.fill(
                "GET http://up.example:PORT/?canary-1 HTTP/1.1\r\nHost: up.example:PORT\r\n"
                "Authorization : Bearer canary-2\r\nX: canary-3\0\r\n\r\n"
            )
        )
        answer = client.read_to_end()
    assert b"400" in answer
    assert b"canary" not in answer
    new_decision(world, marks)
    assert "canary" not in world.sidecar.stdout + world.sidecar.stderr


def open_tunnel(world: World, host: str) -> RawClient:
    client = RawClient(world.sidecar.address)
    client.send(world.fill(f"CONNECT {host}:PORT HTTP/1.1\r\nHost: {host}:PORT\r\n\r\n"))
    assert client.read_response(method="CONNECT").status == 200
    return client


GARBAGE: list[Any] = [
    pytest.param([b"SSH-2.0-OpenSSH_9.9\r\n"], id="the banner of SSH"),
    pytest.param([CLIENT_HELLO_START[:1], b"garbage"], id="a ClientHello cut after 1 byte"),
    pytest.param([CLIENT_HELLO_START[:2], b"garbage"], id="a ClientHello cut after 2 bytes"),
    pytest.param([CLIENT_HELLO_START, b"garbage"], id="a ClientHello cut after 3 bytes"),
    pytest.param([CLIENT_HELLO_START + b"\x00\x05\x02abcd"], id="a TLS handshake that is no ClientHello"),
    pytest.param([CLIENT_HELLO_START + b"\x00\x08\x01\x00\x00\x04abcd"], id="a ClientHello of nonsense"),
    pytest.param([b"\x17\x03\x03\x00\x04abcd"], id="TLS application data"),
    pytest.param([b"GE", b"\x00"], id="a method cut short"),
    pytest.param([b"get / HTTP/1.1\r\n\r\n"], id="a method in lower case"),
    pytest.param([b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"], id="leading empty lines"),
    pytest.param([b"*1\r\n$4\r\nPING\r\n"], id="Redis"),
    pytest.param([b"\x00" * 64], id="zero bytes"),
    pytest.param([b"A" * 64], id="a word without an end"),
]


def test_an_app_that_speaks_tls_to_its_proxy_is_known_by_the_line(world: World, marks: Marks) -> None:
    """It cannot read an answer, so the line says what to change."""
    app = ssl.create_default_context()
    with (
        socket.create_connection(world.sidecar.address, timeout=10) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)wrong.version"),
    ):
        app.wrap_socket(plain, server_hostname="proxy.example")
    decision = new_decision(world, marks)
    assert (decision["reason"], decision["status"]) == ("bad_request", 400)
    expected = "TLS came where http is spoken: write http:// for this address, in HTTPS_PROXY, too"
    assert decision["detail"] == expected
    assert_upstream_untouched(world, marks)
    assert_sane(world)


class TestInsideConnect:
    @pytest.mark.parametrize("host", [TUNNELLED, INSPECTED])
    @pytest.mark.parametrize("pieces", GARBAGE)
    def test_what_is_neither_tls_nor_http_is_closed(
        self, world: World, marks: Marks, pieces: list[bytes], host: str
    ) -> None:
        with open_tunnel(world, host) as client:
            for piece in pieces:
                client.send(piece)
            assert client.read_to_end() == b""
        decision = new_decision(world, marks, lambda d: d["reason"] == "not_http")
        assert (decision["action"], decision["method"]) == ("deny", "CONNECT")
        assert_upstream_untouched(world, marks)
        assert "failed" not in world.sidecar.stderr

    @pytest.mark.parametrize("pieces", [[b"G"], [b"GE"], [CLIENT_HELLO_START[:1]], [CLIENT_HELLO_START]])
    def test_what_ends_before_it_is_anything_is_closed(self, world: World, marks: Marks, pieces: list[bytes]) -> None:
        with open_tunnel(world, TUNNELLED) as client:
            for piece in pieces:
                client.send(piece)
            client.finish()
            assert client.read_to_end() == b""
        decision = new_decision(world, marks, lambda d: d["reason"] == "not_http")
        assert (decision["action"], decision["method"]) == ("deny", "CONNECT")
        assert_upstream_untouched(world, marks)
        assert_sane(world)

    def test_what_says_nothing_at_all_was_only_a_tunnel_that_nobody_used(self, world: World, marks: Marks) -> None:
        with open_tunnel(world, TUNNELLED) as client:
            client.finish()
            assert client.read_to_end() == b""
        decision = new_decision(world, marks, lambda d: d["action"] == "tunnel")
        assert (decision["reason"], decision["bytes_sent"], decision["status"]) == (None, 0, None)

    def test_a_request_that_starts_with_two_bytes_is_http(self, world: World) -> None:
        with open_tunnel(world, INSPECTED) as client:
            client.send(b"GE")
            client.send(world.fill(f"T /in-pieces HTTP/1.1\r\nHost: {INSPECTED}:PORT\r\n\r\n"))
            answer = client.read_response()
        assert (answer.status, answer.json()["target"]) == (200, "/in-pieces")
        assert world.upstream.requests[-1].connection.tls_version == "TLSv1.3"

    @pytest.mark.parametrize("host", [TUNNELLED, INSPECTED])
    def test_a_server_name_that_is_not_the_host_of_connect_is_refused(
        self, world: World, marks: Marks, host: str
    ) -> None:
        with open_tunnel(world, host) as client, pytest.raises((ssl.SSLError, ConnectionError)):
            client.start_tls("other.example", context=careless())
        decision = new_decision(world, marks, lambda d: d["reason"] == "host_mismatch")
        assert (decision["action"], decision["method"]) == ("deny", "CONNECT")
        assert_upstream_untouched(world, marks)

    @pytest.mark.parametrize("host", [TUNNELLED, INSPECTED])
    @pytest.mark.parametrize("with_name", [True, False])
    def test_the_right_server_name_or_none_passes(self, world: World, host: str, with_name: bool) -> None:
        with open_tunnel(world, host) as client:
            client.start_tls(host if with_name else None, context=careless())
            client.send(world.fill(f"GET /named HTTP/1.1\r\nHost: {host}:PORT\r\n\r\n"))
            assert client.read_response().status == 200

    @pytest.mark.parametrize(
        ("head", "status", "reason"),
        [
            ("GET / HTTP/1.1\r\nHost: other.example:PORT\r\n\r\n", 421, "host_mismatch"),
            ("GET / HTTP/1.1\r\nHost: inspected.example:1\r\n\r\n", 421, "host_mismatch"),
            ("GET SCHEME://other.example:PORT/ HTTP/1.1\r\nHost: inspected.example:PORT\r\n\r\n", 421, "host_mismatch"),
            ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
            ("CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n", 400, "bad_request"),
        ],
    )
    @pytest.mark.parametrize("tls", [True, False])
    def test_a_request_for_another_host_is_refused(
        self, world: World, marks: Marks, head: str, status: int, reason: str, tls: bool
    ) -> None:
        with open_tunnel(world, INSPECTED) as client:
            if tls:
                client.start_tls(INSPECTED, world.sidecar.ca_file)
            client.send(world.fill(head.replace("SCHEME", "https" if tls else "http")))
            answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (status, reason)
        assert new_decision(world, marks, lambda d: d["reason"] == reason)["status"] == status
        assert_upstream_untouched(world, marks)

    def test_the_absolute_form_of_the_right_host_passes_and_becomes_the_origin_form(self, world: World) -> None:
        with open_tunnel(world, INSPECTED) as client:
            client.start_tls(INSPECTED, world.sidecar.ca_file)
            client.send(world.fill(f"GET https://{INSPECTED}:PORT/a HTTP/1.1\r\nHost: {INSPECTED}:PORT\r\n\r\n"))
            answer = client.read_response()
        assert (answer.status, answer.json()["target"]) == (200, "/a")


class TestBodiesCutShort:
    HEAD = "POST http://up.example:PORT/cut HTTP/1.1\r\nHost: up.example:PORT\r\n"

    @pytest.mark.parametrize(
        "rest",
        ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
        ids=["length", "chunks"],
    )
    def test_the_upstream_never_sees_a_complete_request(self, world: World, marks: Marks, rest: str) -> None:
        with RawClient(world.sidecar.address) as client:
            client.send(world.fill(self.HEAD + rest))
        new_decision(world, marks, lambda d: d["path"] == "/cut")
        world.upstream.settle()
        assert len(world.upstream.requests) == marks.requests
        assert_sane(world)

    @pytest.mark.parametrize(
        "chunk",
        [
            pytest.param("zz\r\n", id="no number"),
            pytest.param("-1\r\nx\r\n", id="a negative length"),
            pytest.param("5\r\nhello!\r\n", id="longer than it says"),
            pytest.param("5;\0\r\nhello\r\n0\r\n\r\n", id="NUL in an extension"),
            pytest.param(f"5;{'x' * 5000}\r\nhello\r\n0\r\n\r\n", id="a huge extension"),
            pytest.param("5;" + "x" * 5000, id="an extension without an end"),
            pytest.param("5\nhello\r\n0\r\n\r\n", id="a bare LF behind the length"),
            pytest.param("5\r\nhello\n0\r\n\r\n", id="a bare LF behind the chunk"),
            pytest.param("5\r\nhello\r\n0\r\nX: 1\n\n", id="a bare LF in the trailers"),
            pytest.param("5\r\nhello\r\n0\r\nX : 1\r\n\r\n", id="a space before a trailer's colon"),
        ],
    )
    def test_a_malformed_chunk_ends_the_request(self, world: World, marks: Marks, chunk: str) -> None:
        with RawClient(world.sidecar.address) as client:
            client.send(world.fill(self.HEAD + "Transfer-Encoding: chunked\r\n\r\n" + chunk))
            answer = client.read_response()
            assert (answer.status, answer.json()["reason"]) == (400, "bad_request")
            assert client.read_to_end() == b""
        new_decision(world, marks, lambda d: d["path"] == "/cut")
        world.upstream.settle()
        assert len(world.upstream.requests) == marks.requests
        assert_sane(world)


BAD_RESPONSES: list[Any] = [
    pytest.param(b"garbage\r\n\r\n", id="garbage"),
    pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n\r\n", id="another protocol"),
    pytest.param(b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n", id="a status that is no number"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", id="two lengths"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="both"),
    pytest.param(b"HTTP/1.1 200 OK\r\nBad Name: 1\r\nContent-Length: 0\r\n\r\n", id="a name that is no token"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="a negative length"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, id="a head that never ends"),
    pytest.param(b"HTTP/1.1 200 OK\r\nConte", id="a head cut short"),
    pytest.param(b"", id="nothing"),
]


class TestBadResponses:
    @pytest.mark.parametrize("answer", BAD_RESPONSES)
    def test_what_is_no_response_is_502(self, world: World, tls_upstream: MakeTls, answer: bytes) -> None:
        with _hanging_up(tls_upstream, answer) as upstream, RawClient(world.sidecar.address) as client:
            url = upstream.url("/bad", host=TUNNELLED)
            client.send(f"GET {url} HTTP/1.1\r\nHost: {TUNNELLED}:{upstream.port}\r\n\r\n".encode())
            got = client.read_response()
        assert (got.status, got.json()["reason"]) == (502, "upstream_failed")
        decision = world.sidecar.wait_for_decision(lambda d: d["destination"] == f"{TUNNELLED}:{upstream.port}")
        assert (decision["outcome"], decision["reason"], decision["status"]) == (
            "upstream_failed",
            "upstream_failed",
            502,
        )
        assert_sane(world)

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", id="length"),
            pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", id="chunks"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;%s\r\nhalf\r\n0\r\n\r\n" % (b"x" * 5000),
                id="a huge extension",
            ),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\n0\r\n\r\n",
                id="a bare LF behind a chunk",
            ),
        ],
    )
    def test_a_body_cut_short_is_never_passed_on_as_a_whole_one(
        self, world: World, tls_upstream: MakeTls, answer: bytes
    ) -> None:
        with _hanging_up(tls_upstream, answer) as upstream, RawClient(world.sidecar.address) as client:
            url = upstream.url("/cut", host=TUNNELLED)
            client.send(f"GET {url} HTTP/1.1\r\nHost: {TUNNELLED}:{upstream.port}\r\n\r\n".encode())
            got = client.read_to_end()
            with pytest.raises(wire.Malformed, match="closed within the body"):
                wire.read_response(got, closed=True)
        assert_sane(world)


def _hanging_up(tls_upstream: MakeTls, answer: bytes) -> TlsUpstream:
    """Return an upstream that sends these bytes and then ends the connection, as a server does that crashes."""

    def respond(_: RecordedRequest) -> Iterator[bytes]:
        yield answer
        raise ConnectionAbortedError("the server hangs up")

    upstream: TlsUpstream = tls_upstream(TUNNELLED, respond=respond)
    return upstream


def test_every_line_on_standard_output_is_a_decision(world: World) -> None:
    for line in world.sidecar.stdout.splitlines():
        assert {"time", "action", "reason", "status"} <= json.loads(line).keys()
