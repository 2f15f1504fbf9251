"""The pipeline inside stock mitmproxy: `mitmdump -s config/mitmproxy_addon.py` keeps what the policy says.

Proves that `addons/` are true mitmproxy addons, and that inside mitmproxy, too, whatever raises denies.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory

from proxy.core.certificates.constraints import Constraints
from proxy.core.jose.keys import Alg
from proxy.core.reasons import Reason
from proxy.disk.ca import LocalCa
from tests.e2e import wire
from tests.e2e.app import Way, ask, assert_denied, client_hello, connect, decision_of, open_way, request
from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.clients import Answer, RawClient, curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client, Http2Upstream
from tests.e2e.mitmdump import Mitmdump
from tests.e2e.receiver import Marked, Receiver, assert_only_marked_changed, plain
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.e2e.websockets import DEADLINE, Server, client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without ado")

TUNNELLED = "127.0.0.1"
PINNED, MISPINNED, SEALED, OPENED, REJECTED, INSPECTED, PLAIN = (f"127.0.0.{last}" for last in range(2, 9))
BOTH = "127.0.0.9"
FORBIDDEN = "127.0.1.1"
MOVED = "moved.example"  # its name leads to another address each time but the first two: see FAULTS
NO_PIN = "sha256/" + "A" * 42 + "E="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3
PIECES = (b'{ "a":1.0,\n"ssn" : ', Marked(b'"078-05"', "$.ssn"), b', "\xc3\xa9":[] }')

POLICY = """
version: 1
trust: {{roots: roots.pem}}
destinations: {{allow: [127.0.0.0/24]}}
limits: {{held_body: 65536}}
keys:
  pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
  app: {{alg: A256KW, primary: {{file: {app}}}}}
rules:
  - {{name: pinned, hosts: [127.0.0.2], pins: {{any_of: ["{pin}", "{other}"]}}}}
  - {{name: mispinned, hosts: [127.0.0.3], pins: {{any_of: ["{other}"]}}}}
  - {{name: sealed, hosts: [127.0.0.4], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
  - {{name: opened, hosts: [127.0.0.5], response: [{{decrypt: ["$.card"], key: app}}]}}
  - name: both
    hosts: [127.0.0.9]
    request: [{{encrypt: ["$..ssn"], key: pay}}]
    response: [{{decrypt: ["$.card"], key: app}}]
  - {{name: rejected, hosts: [127.0.0.6], plain_http: reject, https: reject}}
  - {{name: inspected, hosts: [127.0.0.7], https: inspect}}
  - {{name: plain, hosts: [127.0.0.8, moved.example], plain_http: allow}}
"""

# A second script, as any user may load one: it makes the hook raise that a file names.
FAULTS = """
import socket
from pathlib import Path
from addons.encryption import Encryption
from addons.gate import Gate
from addons.pinning import Pinning
from addons.stock.dials import Dials
from addons.stock.apps import Apps
from addons.transport import Transport
from proxy.engine.tls import TlsConnections

HERE = Path(__file__).with_name("fault")


def break_at(kind, name):
    original = getattr(kind, name)

    def hook(self, subject):
        if HERE.read_text() == f"{kind.__name__}.{name}":
            raise RuntimeError("what-it-choked-on")
        return original(self, subject)

    setattr(kind, name, hook)


for kind, name in (
    (Apps, "client_connected"), (Gate, "http_connect"), (Apps, "next_layer"), (Apps, "tls_clienthello"),
    (TlsConnections, "tls_start_client"), (Gate, "requestheaders"), (Encryption, "request"), (Dials, "server_connect"),
    (Dials, "server_connected"), (Pinning, "tls_start_server"), (Transport, "responseheaders"),
    (Encryption, "response"),
):
    break_at(kind, name)

look_up, seen = socket.getaddrinfo, []


def getaddrinfo(host, port, *more, **options):
    if host == "moved.example":
        seen.append(host)
        host = "127.0.0.8" if len(seen) <= 2 else "127.0.1.1"
    return look_up(host, port, *more, **options)


socket.getaddrinfo = getaddrinfo
"""


@dataclass(frozen=True)
class Stock:
    """A mitmdump, and what its policy was made of."""

    mitm: Mitmdump
    pay: Receiver
    app: Receiver
    pinned: Identity
    fault: Path


@pytest.fixture(scope="module")
def stock(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """One mitmdump for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("stock")
    pay, app, pinned = Receiver("pay"), Receiver("app", Alg.A256KW), authority.issue(PINNED)
    files = {"pay": pay.write_public(folder), "app": app.write_private(folder)}
    policy = POLICY.format(pin=pinned.pin, other=NO_PIN, **files)
    (folder / "fault").write_text("")
    (folder / "faults.py").write_text(FAULTS)
    options = ["-s", str(folder / "faults.py")]
    with Mitmdump(policy, folder, authority=authority, options=options) as mitm:
        yield Stock(mitm, pay, app, pinned, folder / "fault")


@pytest.fixture
def mitm(stock: Stock) -> Mitmdump:
    """The running mitmdump."""
    return stock.mitm


@pytest.fixture
def upstream_at(authority: Authority) -> Iterator[Callable[..., TlsUpstream]]:
    """Makes TLS upstreams at a loopback address, which their certificates name."""
    with contextlib.ExitStack() as stack:
        yield lambda address, **options: stack.enter_context(
            TlsUpstream(authority, address, address=address, **options)
        )


Make = Callable[..., TlsUpstream]


def assert_refused_by_mitmproxy(mitm: Mitmdump, upstream: TlsUpstream, answer: Answer, reason: str) -> None:
    """Check a denial that only the handshake could bring: mitmproxy's own 502, our decision line, not one byte sent."""
    assert answer.status == 502
    line = decision_of(mitm, upstream)
    assert (line["outcome"], line["reason"]) == (next(each for each in Reason if each.code == reason).outcome, reason)
    upstream.assert_no_application_bytes()


class TestTransport:
    def test_plain_http_leaves_as_https_and_nothing_in_clear(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        answer = ask(mitm, upstream, TUNNELLED, "/v1?q=1", body=b'{"card":"4111"}')
        assert answer.status == 200
        (got,) = upstream.wait_for_requests(1)
        assert (got.method, got.target, got.body) == ("POST", "/v1?q=1", b'{"card":"4111"}')
        assert got.connection.tls_version == "TLSv1.3"
        assert b"4111" not in upstream.wire
        assert b"HTTP/1" not in upstream.wire
        line = decision_of(mitm, upstream)
        assert (line["action"], line["reason"], line["status"], line["tls"]) == ("upgrade", None, 200, "TLSv1.3")
        assert line["path"] == "/v1"

    def test_one_connection_carries_several_requests(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        authority = f"{TUNNELLED}:{upstream.port}"
        with RawClient(mitm.address) as client:
            for number in range(3):
                client.send(request(f"http://{authority}/{number}", authority, body=b"{}"))
                assert client.read_response().status == 200
        assert [each.target for each in upstream.wait_for_requests(3)] == ["/0", "/1", "/2"]
        upstream.wait_for_connections(1)

    def test_a_connection_that_the_server_ends_carries_nothing_more(self, mitm: Mitmdump, upstream_at: Make) -> None:
        def closing(_: object) -> Iterator[bytes]:
            yield wire.response(200, b"{}", headers=(("Connection", "close"),))
            time.sleep(0.2)  # so long the connection is there, and not to be used any more
            yield b""

        upstream = upstream_at(TUNNELLED, respond=closing)
        authority = f"{TUNNELLED}:{upstream.port}"
        with RawClient(mitm.address) as client:
            for _ in range(3):
                client.send(request(f"http://{authority}/", authority, body=b"{}"))
                got = client.read_response()
                assert (got.status, "connection" in got.headers) == (200, False)
        upstream.wait_for_connections(3)

    def test_an_interim_response_is_not_taken_for_the_final_one(self, mitm: Mitmdump, upstream_at: Make) -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        upstream = upstream_at(TUNNELLED, respond=lambda request: hints + wire.response(200, request.target.encode()))
        authority = f"{TUNNELLED}:{upstream.port}"
        with RawClient(mitm.address) as client:
            for number in range(3):  # else the answer to one would be that to the next
                client.send(request(f"http://{authority}/{number}", authority, body=b"{}"))
                got = client.read_response()
                assert (got.status, got.json()["reason"]) == (502, "upstream_failed")
        upstream.wait_for_connections(3)

    def test_a_web_socket_is_carried_over_tls(self, mitm: Mitmdump, upstream_at: Make) -> None:
        accepted = (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT))
        head = wire.response(101, headers=accepted).replace(b"Content-Length: 0\r\n", b"")
        upstream = upstream_at(TUNNELLED, respond=lambda _: head)
        authority = f"{TUNNELLED}:{upstream.port}"
        asked = (*accepted[:2], ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="))
        with RawClient(mitm.address) as client:
            client.send(request(f"http://{authority}/ws", authority, method="GET", headers=asked))
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            client.send(b"\x81\x82\x00\x00\x00\x00hi")  # a masked text frame (RFC 6455, section 5)
            upstream.wait_for_bytes(b"\x81\x82")
        assert b"websocket" not in upstream.wire

    def test_an_offer_of_another_protocol_ends_here(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        offer = (("Connection", "Upgrade"), ("Upgrade", "h2c, foo"))
        assert ask(mitm, upstream, TUNNELLED, method="GET", headers=offer).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert "upgrade" not in got.headers

    def test_a_switch_to_anything_else_is_the_end(self, mitm: Mitmdump, upstream_at: Make) -> None:
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n"
        upstream = upstream_at(TUNNELLED, respond=lambda _: head)
        authority = f"{TUNNELLED}:{upstream.port}"
        asked = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
        with RawClient(mitm.address) as client:
            client.send(request(f"http://{authority}/ws", authority, method="GET", headers=asked))
            client.read_until(b"\r\n\r\n")
            with contextlib.suppress(OSError):
                client.send(b"anything")
            client.read_to_end()
        upstream.wait_for_connections(1, closed=True)
        assert b"anything" not in upstream.received

    def test_what_is_about_one_connection_ends_here_in_a_response(self, mitm: Mitmdump, upstream_at: Make) -> None:
        fields = (("Connection", "X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("X-End", "2"))
        upstream = upstream_at(TUNNELLED, respond=lambda _: wire.response(200, headers=fields))
        got = ask(mitm, upstream, TUNNELLED, body=b"{}")
        assert got.headers.get("x-end") == "2"
        for name in ("connection", "x-hop", "keep-alive"):
            assert name not in got.headers

    def test_what_is_about_one_connection_ends_here(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        fields = (("Proxy-Authorization", "Basic eDp5"), ("Connection", "X-Hop"), ("X-Hop", "1"), ("X-End", "2"))
        assert ask(mitm, upstream, TUNNELLED, method="GET", headers=fields).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("x-end") == "2"
        for name in ("proxy-authorization", "connection", "x-hop"):
            assert name not in got.headers

    def test_plain_http_is_rejected(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(REJECTED)
        assert_denied(mitm, upstream, ask(mitm, upstream, REJECTED, body=b"{}"), "plain_http_rejected")

    def test_a_head_is_denied_without_a_body(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        with RawClient(mitm.address) as client:
            client.send(request(f"http://{REJECTED}/", REJECTED, method="HEAD"))
            answer = client.read_response(method="HEAD")
            assert (answer.status, answer.body) == (403, b"")
            assert int(answer.headers.get("content-length") or 0) > 0
            authority = f"{TUNNELLED}:{upstream.port}"
            client.send(request(f"http://{authority}/", authority, body=b"{}"))
            assert client.read_response().status == 200  # and not what is left of the denial

    def test_plain_http_passes_where_the_policy_says_so(self, mitm: Mitmdump) -> None:
        with PlainUpstream(address=PLAIN) as upstream:
            assert ask(mitm, upstream, PLAIN, body=b"{}").status == 200
            assert decision_of(mitm, upstream)["action"] == "allow"

    def test_a_large_body_streams_and_is_whole(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED, respond=lambda request: wire.response(200, request.body))
        body = bytes(range(256)) * 8192
        assert ask(mitm, upstream, TUNNELLED, body=body).body == body
        assert decision_of(mitm, upstream)["bytes_sent"] == len(body)

    def test_two_readings_of_one_head_are_refused(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        twice = (("Host", f"{TUNNELLED}:{upstream.port}"),)
        assert_denied(mitm, upstream, ask(mitm, upstream, TUNNELLED, headers=twice, body=b"{}"), "bad_request")

    def test_host_and_target_must_agree(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        with RawClient(mitm.address) as client:
            client.send(request(f"http://{TUNNELLED}:{upstream.port}/", "elsewhere.example", body=b"{}"))
            assert_denied(mitm, upstream, client.read_response(), "host_mismatch")


class TestCertificates:
    @pytest.mark.parametrize("way", Way)
    def test_a_pinned_server_gets_the_request(self, stock: Stock, mitm: Mitmdump, upstream_at: Make, way: Way) -> None:
        upstream = upstream_at(PINNED, identity=stock.pinned)
        assert ask(mitm, upstream, PINNED, way=way, body=b"{}").status == 200
        line = decision_of(mitm, upstream)
        assert (line["pin"], line["rule"]) == ("match", "pinned")

    @pytest.mark.parametrize("way", Way)
    def test_another_key_gets_not_one_byte(self, mitm: Mitmdump, upstream_at: Make, way: Way) -> None:
        upstream = upstream_at(MISPINNED)
        answer = ask(mitm, upstream, MISPINNED, way=way, body=b'{"a":1}')
        assert_refused_by_mitmproxy(mitm, upstream, answer, "pin_mismatch")

    @pytest.mark.parametrize("variant", [Variant.OTHER_AUTHORITY, Variant.EXPIRED, Variant.WRONG_HOST])
    def test_a_certificate_that_is_not_valid_gets_not_one_byte(
        self, mitm: Mitmdump, upstream_at: Make, variant: Variant
    ) -> None:
        upstream = upstream_at(TUNNELLED, variant=variant)
        answer = ask(mitm, upstream, TUNNELLED, body=b'{"a":1}')
        assert_refused_by_mitmproxy(mitm, upstream, answer, "certificate_invalid")

    def test_what_speaks_no_tls_is_not_asked_in_plain(self, mitm: Mitmdump) -> None:
        with PlainUpstream() as upstream:
            answer = ask(mitm, upstream, TUNNELLED, body=b"secret")
            assert answer.status == 502
            assert b"secret" not in upstream.wire
            assert b"HTTP/1" not in upstream.wire
            assert decision_of(mitm, upstream)["reason"] == "tls_failed"


class TestFields:
    @pytest.mark.parametrize("way", Way)
    def test_a_field_is_encrypted_and_all_other_bytes_are_the_same(
        self, stock: Stock, mitm: Mitmdump, upstream_at: Make, way: Way
    ) -> None:
        upstream = upstream_at(SEALED)
        assert ask(mitm, upstream, SEALED, way=way, body=plain(PIECES)).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, PIECES, stock.pay, SEALED)
        line = decision_of(mitm, upstream)
        assert (line["encrypted"], line["rule"]) == (1, "sealed")

    def test_a_chunked_body_is_encrypted(self, stock: Stock, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(SEALED)
        body = plain(PIECES)
        assert ask(mitm, upstream, SEALED, chunks=[body[:7], body[7:]]).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, PIECES, stock.pay, SEALED)

    @pytest.mark.parametrize("chunks", [None, [b'{"ssn":', b'"078"']])
    def test_what_is_no_json_is_denied(self, mitm: Mitmdump, upstream_at: Make, chunks: list[bytes] | None) -> None:
        upstream = upstream_at(SEALED)
        answer = ask(mitm, upstream, SEALED, body=b'{"ssn":"078"', chunks=chunks)
        assert_denied(mitm, upstream, answer, "body_not_json")

    @pytest.mark.parametrize("chunks", [None, [b"x" * 60_000] * 2])
    def test_what_is_too_large_to_be_held_is_denied(
        self, mitm: Mitmdump, upstream_at: Make, chunks: list[bytes] | None
    ) -> None:
        upstream = upstream_at(SEALED)
        answer = ask(mitm, upstream, SEALED, body=b"x" * 70_000, chunks=chunks)
        assert_denied(mitm, upstream, answer, "body_too_large")

    @pytest.mark.parametrize("way", Way)
    def test_a_response_is_opened(self, stock: Stock, mitm: Mitmdump, upstream_at: Make, way: Way) -> None:
        token = stock.app.seal(b'"4111"', OPENED, "$.card")
        body = gzip.compress(b'{ "card":' + token + b"}")
        answer = wire.response(200, body, headers=(("Content-Type", "application/json"), ("Content-Encoding", "gzip")))
        upstream = upstream_at(OPENED, respond=lambda _: answer)
        got = ask(mitm, upstream, OPENED, way=way, body=b"{}")
        assert (got.status, gzip.decompress(got.body)) == (200, b'{ "card":"4111"}')
        assert decision_of(mitm, upstream)["decrypted"] == 1

    def test_messages_of_a_websocket_are_sealed_and_opened(
        self, stock: Stock, mitm: Mitmdump, authority: Authority
    ) -> None:
        token = stock.app.seal(b'"4111"', BOTH, "$.card").decode()
        extensions = [ClientPerMessageDeflateFactory()]
        answer, deflate = f'{{ "card":{token}}}', ServerPerMessageDeflateFactory()
        with Server(authority, BOTH, address=BOTH, answer=lambda _: answer, deflate=deflate) as server:
            offer = {"Sec-WebSocket-Extensions": "x-unknown"}
            with client(mitm, BOTH, server.port, additional_headers=offer, extensions=extensions) as app:
                seen = server.first()
                for _ in range(2):
                    app.send(plain(PIECES).decode())
                    assert app.recv(timeout=DEADLINE) == '{ "card":"4111"}'
                    got = seen.next()
                    assert isinstance(got, str)
                    assert_only_marked_changed(got.encode(), PIECES, stock.pay, BOTH)
        assert not any("x-unknown" in each for each in seen.offered)

    @pytest.mark.parametrize("message", ["no JSON", b"\x00", '{"a":"' + "x" * 70_000 + '"}'])
    def test_a_message_that_cannot_be_sealed_ends_its_websocket(
        self, mitm: Mitmdump, authority: Authority, message: str | bytes
    ) -> None:
        with Server(authority, SEALED, address=SEALED) as server:
            with client(mitm, SEALED, server.port) as app:
                app.send("[1]")
                seen = server.first()
                assert seen.next() == "[1]"
                app.send(message)
                with pytest.raises(ConnectionClosed):
                    app.recv(timeout=DEADLINE)
            assert seen.wait_for_end() is None
            assert seen.messages.empty()
        port = f":{server.port}"
        line = mitm.wait_for_decision(lambda line: bool(line["outcome"]) and (line["destination"] or "").endswith(port))
        assert line["reason"] == ("body_too_large" if len(message) > 100 else "body_not_json")

    def test_a_response_that_does_not_open_is_kept_back(self, stock: Stock, mitm: Mitmdump, upstream_at: Make) -> None:
        token = stock.app.seal(b'"4111"', OPENED, "$.elsewhere")
        body = wire.response(200, b'{"card":' + token + b"}", headers=(("Content-Type", "application/json"),))
        upstream = upstream_at(OPENED, respond=lambda _: body)
        got = ask(mitm, upstream, OPENED, body=b"{}")
        assert (got.status, got.json()["reason"]) == (502, "decryption_failed")
        assert token not in got.body

    @pytest.mark.parametrize("way", Way)
    def test_events_are_opened_while_they_come(self, stock: Stock, mitm: Mitmdump, upstream_at: Make, way: Way) -> None:
        token = stock.app.seal(b"1", OPENED, "$.card")
        seen = threading.Semaphore(0)

        def respond(_: RecordedRequest) -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            for end in (b"", b"0\r\n\r\n"):
                yield b'%x\r\ndata: {"card":%s}\n\n\r\n%s' % (len(token) + 17, token, end)
                assert seen.acquire(timeout=5), "the event did not reach the app"

        upstream = upstream_at(OPENED, respond=respond)
        with open_way(mitm, OPENED, upstream.port, way) as client:
            authority = f"{OPENED}:{upstream.port}"
            target = f"http://{authority}/" if way is Way.HTTP else "/"
            client.send(request(target, authority, method="GET", headers=()))
            for _ in range(2):
                client.read_until(b'data: {"card":1}\n\n')
                seen.release()
            assert client.read_until(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"

    def test_an_event_that_does_not_open_cuts_the_stream_off(
        self, stock: Stock, mitm: Mitmdump, upstream_at: Make
    ) -> None:
        token = stock.app.seal(b'"4111"', "127.0.0.6", "$.card")
        fields = (("Content-Type", "text/event-stream"),)
        body = wire.response(200, b'data: {"ok":1}\n\ndata: {"card":' + token + b"}\n\n", headers=fields)
        upstream = upstream_at(OPENED, respond=lambda _: body)
        with open_way(mitm, OPENED, upstream.port) as client:
            authority = f"{OPENED}:{upstream.port}"
            client.send(request(f"http://{authority}/", authority, method="GET", headers=()))
            got = client.read_to_end()
        assert token not in got
        assert b"\r\n0\r\n" not in got
        assert decision_of(mitm, upstream)["reason"] == "decryption_failed"

    def test_a_response_with_a_malformed_head_is_kept_back(self, mitm: Mitmdump, upstream_at: Make) -> None:
        raw = b"HTTP/1.1 200 OK\r\nX-Control: a\x01b\r\nContent-Length: 7\r\n\r\nits own"
        upstream = upstream_at(TUNNELLED, respond=lambda _: raw)
        got = ask(mitm, upstream, TUNNELLED, body=b"{}")
        assert (got.status, got.json()["reason"]) == (502, "upstream_failed")
        assert b"its own" not in got.body
        assert decision_of(mitm, upstream)["reason"] == "upstream_failed"


class TestConnect:
    def test_tunnelled_https_is_end_to_end(self, mitm: Mitmdump, upstream_at: Make, roots: Path) -> None:
        upstream = upstream_at(TUNNELLED)
        got = curl(upstream.url("/t", scheme="https"), proxy=mitm.proxy_url, ca_file=roots)
        assert got.status == 200  # of a client that trusts the upstream's own authority, and not ours
        assert upstream.wait_for_requests(1)[0].target == "/t"
        assert decision_of(mitm, upstream)["action"] == "tunnel"

    def test_inspected_https_is_opened(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(INSPECTED)
        got = curl(upstream.url("/i", scheme="https"), proxy=mitm.proxy_url, ca_file=mitm.ca_file)
        assert got.status == 200
        line = decision_of(mitm, upstream)
        assert (line["action"], line["path"], line["rule"]) == ("inspect", "/i", "inspected")

    def test_rejected_https_is_told_so_and_nothing_more_is_read(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(REJECTED)
        authority = f"{REJECTED}:{upstream.port}"
        with RawClient(mitm.address) as client:
            # A client that did not wait: what it sent for the tunnel must not become a request of its own.
            smuggled = b"GET http://127.0.0.1:1/smuggled HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n"
            client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode() + smuggled)
            answer = client.read_response()
            assert client.read_to_end() == b""
        assert (answer.status, answer.json()["reason"]) == (403, "https_rejected")
        assert not [line for line in mitm.decisions() if line["path"] == "/smuggled"]

    def test_another_server_name_than_the_connects_is_ended(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        with connect(mitm, f"{TUNNELLED}:{upstream.port}") as client:
            client.send(client_hello("elsewhere.example"))
            assert client.read_to_end() == b""
        upstream.assert_untouched()
        assert decision_of(mitm, upstream)["reason"] == "host_mismatch"

    @pytest.mark.parametrize("first", [b"EHLO me\r\n", b"\r\nGET / HTTP/1.1\r\n", b"\x00\x01\x02\x03"])
    def test_what_is_neither_tls_nor_http_is_ended(self, mitm: Mitmdump, upstream_at: Make, first: bytes) -> None:
        upstream = upstream_at(TUNNELLED)
        with connect(mitm, f"{TUNNELLED}:{upstream.port}") as client:
            client.send(first)
            assert client.read_to_end() == b""
        upstream.assert_untouched()
        assert decision_of(mitm, upstream)["reason"] == "not_http"

    def test_a_client_hello_in_pieces_is_waited_for(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        with connect(mitm, f"{TUNNELLED}:{upstream.port}") as client:
            hello = client_hello(TUNNELLED)
            client.send(hello[:2])
            threading.Event().wait(0.1)
            client.send(hello[2:])
            assert client.read_exactly(1) == b"\x16"  # the upstream's ServerHello

    def test_plain_http_inside_connect_is_upgraded(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(TUNNELLED)
        authority = f"{TUNNELLED}:{upstream.port}"
        with connect(mitm, authority) as client:
            client.send(request("/inside", authority, body=b"{}"))
            assert client.read_response().status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.connection.tls_version == "TLSv1.3"


class TestHttp2:
    def test_an_app_that_speaks_http2_is_protected(self, stock: Stock, mitm: Mitmdump, authority: Authority) -> None:
        with Http2UpstreamAt(authority) as upstream, connect(mitm, f"{SEALED}:{upstream.port}") as client:
            app = Http2Client.open(client, SEALED, mitm.ca_file)
            fields = [("content-type", "application/json")]
            first = app.send(f"{SEALED}:{upstream.port}", headers=fields, body=plain(PIECES))
            second = app.send(f"{SEALED}:{upstream.port}", headers=fields, body=b'{"ssn":')
            other = app.send("elsewhere.example", headers=fields, body=b'{"ssn":"1"}')
            assert app.read(first).status == 200
            assert json.loads(app.read(second).body)["reason"] == "body_not_json"
            assert json.loads(app.read(other).body)["reason"] == "host_mismatch"
            (message,) = upstream.wait_for_messages(1)
        assert_only_marked_changed(message.body, PIECES, stock.pay, SEALED)

    def test_an_app_that_speaks_http2_to_a_server_that_does_not(
        self, stock: Stock, mitm: Mitmdump, upstream_at: Make
    ) -> None:
        upstream = upstream_at(SEALED)
        with connect(mitm, f"{SEALED}:{upstream.port}") as client:
            app = Http2Client.open(client, SEALED, mitm.ca_file)
            stream = app.send(
                f"{SEALED}:{upstream.port}", headers=[("content-type", "application/json")], body=plain(PIECES)
            )
            assert app.read(stream).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, PIECES, stock.pay, SEALED)


class Http2UpstreamAt(Http2Upstream):
    """An HTTP/2 upstream at the address whose fields are sealed."""

    def __init__(self, authority: Authority) -> None:
        self.messages = []
        self._answer_to = lambda _: b"{}"
        TlsUpstream.__init__(self, authority, SEALED, address=SEALED, alpn=("h2",))


class TestDestinations:
    def test_a_forbidden_address_is_not_dialled(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(FORBIDDEN)
        assert_denied(mitm, upstream, ask(mitm, upstream, FORBIDDEN, body=b"{}"), "destination_forbidden")
        upstream.assert_untouched()

    def test_nor_through_a_tunnel(self, mitm: Mitmdump, upstream_at: Make) -> None:
        upstream = upstream_at(FORBIDDEN)
        authority = f"{FORBIDDEN}:{upstream.port}"
        with RawClient(mitm.address) as client:
            client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert client.read_response().json()["reason"] == "destination_forbidden"
        upstream.assert_untouched()

    def test_the_metadata_address_is_not_dialled(self, mitm: Mitmdump) -> None:
        with RawClient(mitm.address) as client:
            client.send(request("http://169.254.169.254/latest", "169.254.169.254", method="GET"))
            assert client.read_response().json()["reason"] == "destination_forbidden"

    def test_mitmproxy_itself_is_not_dialled(self, mitm: Mitmdump) -> None:
        authority = f"127.0.0.5:{mitm.address[1]}"
        with RawClient(mitm.address) as client:
            client.send(request(f"http://{authority}/", authority, method="GET"))
            assert client.read_response().json()["reason"] == "destination_forbidden"

    def test_a_name_that_leads_elsewhere_once_it_was_judged_gets_not_one_byte(self, mitm: Mitmdump) -> None:
        with PlainUpstream(address=FORBIDDEN) as upstream:
            authority = f"{MOVED}:{upstream.port}"
            with RawClient(mitm.address) as client:
                client.send(request(f"http://{authority}/", authority, body=b'{"a":1}'))
                assert client.read_response().status == 502
            upstream.wait_for_connections(1)  # mitmproxy looks the name up again: see docs/mitmproxy.md
            upstream.assert_no_application_bytes()
            assert decision_of(mitm, upstream)["reason"] == "destination_forbidden"


# Where a hook raises, and whether the request has reached the upstream by then.
BROKEN = {
    "Apps.client_connected": False,
    "Gate.http_connect": False,
    "Apps.next_layer": False,
    "Apps.tls_clienthello": False,
    "TlsConnections.tls_start_client": False,
    "Gate.requestheaders": False,
    "Encryption.request": False,
    "Dials.server_connect": False,
    "Dials.server_connected": False,
    "Pinning.tls_start_server": False,
    "Transport.responseheaders": True,
    "Encryption.response": True,
}


class TestClosedWhenInDoubt:
    @pytest.mark.parametrize("hook", [None, *BROKEN])
    def test_whatever_raises_denies(self, stock: Stock, mitm: Mitmdump, upstream_at: Make, hook: str | None) -> None:
        secret = stock.app.seal(b'"hunter"', BOTH, "$.card")
        body = wire.response(200, b'{"card":' + secret + b"}", headers=(("Content-Type", "application/json"),))
        upstream = upstream_at(BOTH, respond=lambda _: body)
        stock.fault.write_text(hook or "")
        try:
            answer = self._ask(mitm, upstream)
        finally:
            stock.fault.write_text("")
        if hook is None:  # the twin: all is well but for the fault
            assert answer is not None
            assert (answer.status, answer.body) == (200, b'{"card":"hunter"}')
            return
        assert answer is None or answer.status >= 500
        assert answer is None or (secret not in answer.body and b"hunter" not in answer.body)
        upstream.settle()
        if not BROKEN[hook]:
            upstream.assert_no_application_bytes()
        mitm.wait_for(f"the {hook.partition('.')[2]} hook failed")
        assert "what-it-choked-on" not in mitm.said

    def _ask(self, mitm: Mitmdump, upstream: TlsUpstream) -> Answer | None:
        try:
            return ask(mitm, upstream, BOTH, way=Way.CONNECT, body=plain(PIECES))
        except (AssertionError, OSError, ssl.SSLError, wire.Malformed):
            return None  # cut off on the way


POLICY_ALONE = "version: 1\ntrust: {roots: roots.pem}\n"


class TestStart:
    @pytest.mark.parametrize("asked", ["1", "0"])
    def test_the_local_ca_that_it_makes_is_constrained_if_that_is_asked_for(
        self, authority: Authority, tmp_path: Path, asked: str
    ) -> None:
        policy = "version: 1\ntrust: {roots: roots.pem}\nrules: [{name: a, hosts: [a.example], https: inspect}]\n"
        with Mitmdump(policy, tmp_path, authority=authority, env={"OVERCOAT_CONSTRAIN_CA": asked}):
            found = LocalCa.load(tmp_path / "data").constraints
        assert (found.texts() if found is not None else None) == (["a.example"] if asked == "1" else None)

    @pytest.mark.parametrize(
        ("policy", "options", "findings"),
        [
            (
                "version: 1\nrules: [{name: a, hosts: [x.example], colour: red}]\nmode: off\n",
                (),
                ("policy.yaml:2:39: rules[0].colour", "policy.yaml:3:7: mode"),
            ),
            (
                POLICY_ALONE,
                ("--set", "ssl_insecure=true", "--set", "stream_large_bodies=1m", "--mode", "socks5"),
                ("ssl_insecure must not be set", "stream_large_bodies must not be set", "mode must not be set"),
            ),
            (
                POLICY_ALONE
                + "upstream_proxy: {url: http://proxy.example:3128}\n"
                + "keys: {partner: {alg: RSA-OAEP-256, jwks: 'https://keys.example/'}}\n"
                + 'rules: [{name: raw, hosts: ["db.example:5432"], raw_tcp: allow}]\n',
                (),
                (
                    "upstream_proxy is not served",
                    "rule raw: raw_tcp is not served",
                    "keys.partner: jwks is not fetched inside mitmproxy",
                ),
            ),
        ],
    )
    def test_what_is_wrong_ends_the_start_with_its_findings(
        self, authority: Authority, tmp_path: Path, policy: str, options: tuple[str, ...], findings: tuple[str, ...]
    ) -> None:
        mitm = Mitmdump(policy, tmp_path, authority=authority, options=options)
        mitm.start(is_ready=False)
        assert mitm.wait() == 1
        for finding in findings:
            assert finding in mitm.said

    def test_without_a_policy_it_does_not_start(self, authority: Authority, tmp_path: Path) -> None:
        mitm = Mitmdump(POLICY_ALONE, tmp_path, authority=authority, names_policy=False)
        mitm.start(is_ready=False)
        assert mitm.wait() == 1
        assert "--set overcoat_policy=FILE" in mitm.said

    def test_a_ca_that_may_not_sign_for_its_hosts_ends_the_start(self, authority: Authority, tmp_path: Path) -> None:
        LocalCa.open(tmp_path / "data", datetime.now(UTC), constraints=Constraints.to(["a.example"]))
        policy = POLICY_ALONE + "rules: [{name: seen, hosts: [b.example], https: inspect}]\n"
        mitm = Mitmdump(policy, tmp_path, authority=authority)
        mitm.start(is_ready=False)
        assert mitm.wait() == 1
        assert "the policy inspects b.example (rule seen)" in mitm.said

    def test_taking_the_addon_away_ends_mitmproxy(self, authority: Authority, tmp_path: Path) -> None:
        script = tmp_path / "away.py"
        script.write_text(
            "import asyncio\nfrom mitmproxy import ctx\nasync def running():\n"
            "    await asyncio.sleep(0.5)\n    ctx.options.update(scripts=ctx.options.scripts[1:])\n"
        )
        with Mitmdump(POLICY_ALONE, tmp_path, authority=authority, options=("-s", str(script))) as mitm:
            assert mitm.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(mitm.address, 1)

    def test_an_option_that_would_undo_it_is_taken_back_while_it_runs(
        self, authority: Authority, tmp_path: Path, upstream_at: Make
    ) -> None:
        script = tmp_path / "undo.py"
        script.write_text(
            "import logging\nfrom mitmproxy import ctx, exceptions\n"
            "def running():\n"
            "    for name, value in (('ssl_insecure', True), ('connection_strategy', 'eager')):\n"
            "        try:\n            ctx.options.update(**{name: value})\n"
            "        except exceptions.OptionsError as e:\n            logging.warning('taken back: %s', e)\n"
        )
        policy = POLICY_ALONE + "destinations: {allow: [loopback]}\n"
        with Mitmdump(policy, tmp_path, authority=authority, options=("-s", str(script))) as mitm:
            mitm.wait_for("taken back: the option connection_strategy must be 'lazy'")
            assert "taken back: the option ssl_insecure must not be set" in mitm.said
            upstream = upstream_at(TUNNELLED, variant=Variant.SELF_SIGNED)
            answer = ask(mitm, upstream, TUNNELLED, body=b"{}")
            assert_refused_by_mitmproxy(mitm, upstream, answer, "certificate_invalid")


def test_in_observe_mode_nothing_changes_and_all_is_noted(authority: Authority, tmp_path: Path, roots: Path) -> None:
    policy = POLICY_ALONE + "mode: observe\n"  # where loopback addresses are forbidden
    options = ("--mode", "regular@127.0.0.1:0")  # another spelling of what it must be
    with Mitmdump(policy, tmp_path, authority=authority, options=options) as mitm:
        with PlainUpstream() as upstream:
            assert ask(mitm, upstream, TUNNELLED, body=b"{}").status == 200
            line = decision_of(mitm, upstream)
            assert (line["action"], line["would"], line["reason"]) == ("allow", "deny", "destination_forbidden")
            assert line["would_deny"] is True
        with PlainUpstream() as upstream, connect(mitm, f"{TUNNELLED}:{upstream.port}") as client:
            client.send(b"\r\n what is neither TLS nor HTTP")
            upstream.wait_for_bytes(b"neither")
        with TlsUpstream(authority) as secure:
            assert curl(secure.url(scheme="https"), proxy=mitm.proxy_url, ca_file=roots).status == 200
            assert decision_of(mitm, secure)["action"] == "tunnel"


class TestWhatAPersonSees:
    def test_flows_say_what_the_policy_did_and_are_not_replayed(
        self, authority: Authority, tmp_path: Path, upstream_at: Make
    ) -> None:
        pay, again = Receiver("pay"), tmp_path / "again"
        again.mkdir()
        pay.write_public(again)
        policy = (
            POLICY_ALONE + "destinations: {allow: [loopback]}\n"
            f"keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{file: {pay.write_public(tmp_path)}}}}}}}\n"
            f'rules:\n  - {{name: sealed, hosts: ["{SEALED}"], request: [{{encrypt: ["$..ssn"], key: pay}}]}}\n'
        )
        upstream = upstream_at(SEALED)
        with Mitmdump(policy, tmp_path, authority=authority) as mitm:
            assert ask(mitm, upstream, SEALED, body=plain(PIECES)).status == 200
            assert ask(mitm, upstream, SEALED, body=b"{").json()["reason"] == "body_not_json"
        sealed, denied = mitm.flows()
        assert sealed.metadata["overcoat"] == {"action": "upgrade", "rule": "sealed", "encrypted": 1}
        assert (sealed.comment, sealed.marked) == ("overcoat: action upgrade, rule sealed, encrypted 1", ":lock:")
        assert denied.metadata["overcoat"]["reason"] == "body_not_json"
        assert denied.marked == ":no_entry:"
        assert sealed.request.raw_content is not None
        assert b"078-05" not in sealed.request.raw_content
        with Mitmdump(policy, again, authority=authority, options=("-C", str(mitm.flows_file))) as second:
            second.wait_for("the requestheaders hook failed")  # no app has sent that
        assert len(upstream.wait_for_requests(1)) == 1
