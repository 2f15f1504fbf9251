"""The harness itself, without the product: a recorder that cannot see bytes would prove nothing."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority, Variant, pin_of
from tests.e2e.clients import RawClient
from tests.e2e.connection import Connection, RecordedRequest
from tests.e2e.listeners import listen
from tests.e2e.upstream import PlainUpstream, TlsUpstream

GET = b"GET /one?two=3 HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b'POST /v1/charges HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\n{"amount":1}'[:-1]

MakeTls = Callable[..., TlsUpstream]


def connect(upstream: TlsUpstream, roots: Path, name: str = "localhost", **options: Any) -> RawClient:
    """Make a TLS connection straight to an upstream."""
    client = RawClient((upstream.address, upstream.port))
    try:
        client.start_tls(name, roots, **options)
    except BaseException:
        client.close()
        raise
    return client


class TestTlsUpstream:
    def test_it_records_the_request_and_the_connection_and_answers_with_an_echo(
        self, tls_upstream: MakeTls, roots: Path
    ) -> None:
        upstream = tls_upstream()
        before = time.monotonic()
        with connect(upstream, roots) as client:
            client.send(POST)
            answer = client.read_response()
        assert answer.status == 200
        assert answer.json()["body"] == '{"amount":1'
        (request,) = upstream.wait_for_requests(1)
        assert (request.method, request.target, request.body) == ("POST", "/v1/charges", b'{"amount":1')
        assert request.raw == POST
        assert request.headers.get("host") == "localhost"
        (connection,) = upstream.wait_for_connections(1, closed=True)
        assert connection.received == POST
        assert connection.handshake_completed
        assert (connection.tls_version, connection.sni, connection.alpn) == ("TLSv1.3", "localhost", None)
        assert connection.first_byte_at is not None
        assert before < connection.accepted_at < connection.first_byte_at <= request.received_at

    def test_application_bytes_are_on_the_wire_only_as_ciphertext(self, tls_upstream: MakeTls, roots: Path) -> None:
        upstream = tls_upstream()
        with connect(upstream, roots) as client:
            client.send(POST)
            client.read_response()
        assert b'{"amount"' in upstream.received
        assert b'{"amount"' not in upstream.wire
        assert upstream.wire[0] == 0x16  # a TLS handshake record

    @pytest.mark.parametrize(
        ("variant", "reason"),
        [
            (Variant.EXPIRED, "certificate has expired"),
            (Variant.NOT_YET_VALID, "certificate is not yet valid"),
            (Variant.WRONG_HOST, "Hostname mismatch"),
            (Variant.SELF_SIGNED, "self-signed certificate"),
            (Variant.OTHER_AUTHORITY, "unable to get local issuer certificate"),
        ],
    )
    def test_each_wrong_certificate_is_refused_for_its_own_reason_only(
        self, tls_upstream: MakeTls, roots: Path, variant: Variant, reason: str
    ) -> None:
        upstream = tls_upstream("localhost", variant=variant)
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            connect(upstream, roots)
        (connection,) = upstream.wait_for_connections(1, closed=True)
        assert not connection.handshake_completed
        assert connection.handshake_error is not None
        assert "alert" in connection.handshake_error
        upstream.assert_no_application_bytes()

    @pytest.mark.parametrize("variant", [Variant.EXPIRED, Variant.SELF_SIGNED, Variant.WRONG_HOST])
    def test_a_careless_client_gets_through_to_a_wrong_certificate_and_is_seen(
        self, tls_upstream: MakeTls, variant: Variant
    ) -> None:
        careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        careless.check_hostname = False
        careless.verify_mode = ssl.CERT_NONE
        upstream = tls_upstream("localhost", variant=variant)
        with connect(upstream, Path(), context=careless) as client:
            client.send(GET)
            assert client.read_response().status == 200
        with pytest.raises(AssertionError, match="application bytes came"):
            upstream.assert_no_application_bytes()

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
    def test_an_old_server_is_refused_by_a_modern_client_and_can_be_spoken_to_by_an_old_one(
        self, tls_upstream: MakeTls, roots: Path, version: ssl.TLSVersion
    ) -> None:
        upstream = tls_upstream(max_tls=version)
        with pytest.raises(ssl.SSLError):
            connect(upstream, roots)
        upstream.assert_no_application_bytes()
        old = ssl.create_default_context(cafile=str(roots))
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="deprecated"):
            old.minimum_version = version
        with connect(upstream, roots, context=old) as client:
            client.send(GET)
            assert client.read_response().status == 200
        assert upstream.requests[0].connection.tls_version == {"TLSv1": "TLSv1", "TLSv1_1": "TLSv1.1"}[version.name]

    def test_a_tls_1_3_server_refuses_a_client_that_stops_at_1_2(self, tls_upstream: MakeTls, roots: Path) -> None:
        upstream = tls_upstream(min_tls=ssl.TLSVersion.TLSv1_3)
        limited = ssl.create_default_context(cafile=str(roots))
        limited.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            connect(upstream, roots, context=limited)
        upstream.assert_no_application_bytes()

    def test_the_agreed_protocol_is_recorded(self, tls_upstream: MakeTls, roots: Path) -> None:
        upstream = tls_upstream(alpn=("h2", "http/1.1"))
        context = ssl.create_default_context(cafile=str(roots))
        context.set_alpn_protocols(["http/1.1"])
        with connect(upstream, roots, context=context) as client:
            client.send(GET)
            client.read_response()
        assert upstream.connections[0].alpn == "http/1.1"

    def test_a_resumed_session_is_recorded_until_another_key_is_presented(
        self, tls_upstream: MakeTls, authority: Authority, roots: Path
    ) -> None:
        upstream = tls_upstream(max_tls=ssl.TLSVersion.TLSv1_2)
        context = ssl.create_default_context(cafile=str(roots))

        def visit(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            with (
                socket.create_connection((upstream.address, upstream.port)) as plain,
                context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
            ):
                secure.sendall(GET)
                secure.recv(65536)
                return secure.session

        session = visit(None)
        visit(session)
        upstream.present(authority.issue("localhost"))
        visit(session)
        assert [connection.session_reused for connection in upstream.wait_for_connections(3)] == [False, True, False]

    def test_its_pin_is_that_of_the_key_it_presents(
        self, tls_upstream: MakeTls, authority: Authority, roots: Path
    ) -> None:
        from cryptography import x509

        upstream = tls_upstream()
        first = upstream.pin
        for _ in range(2):
            with connect(upstream, roots) as client:
                assert pin_of(x509.load_der_x509_certificate(client.peer_certificate)) == upstream.pin
            upstream.present(authority.issue("localhost"))
        assert upstream.pin != first

    def test_an_intermediate_is_sent_along_and_a_stranger_may_be(
        self, tls_upstream: MakeTls, authority: Authority, roots: Path
    ) -> None:
        middle = authority.intermediate()
        identity = middle.issue("localhost").also_sending(Authority().pem)
        upstream = tls_upstream(identity=identity)
        assert len(identity.chain_pem) == 3
        with connect(upstream, roots) as client:
            client.send(GET)
            assert client.read_response().status == 200

    def test_plain_bytes_on_its_port_are_on_the_wire_but_never_application_bytes(self, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream()
        with RawClient((upstream.address, upstream.port)) as client:
            client.send(GET)
            client.read_to_end()
        upstream.assert_no_application_bytes()
        assert upstream.wire == GET
        assert upstream.connections[0].handshake_error is not None

    def test_it_listens_on_another_loopback_address(self, authority: Authority, roots: Path) -> None:
        with TlsUpstream(authority, address="127.0.0.2") as upstream, connect(upstream, roots, "127.0.0.2") as client:
            client.send(GET)
            assert client.read_response().status == 200

    @pytest.mark.parametrize("farewell", [True, False])
    def test_a_last_answer_ends_with_or_without_a_close_notify(
        self, tls_upstream: MakeTls, roots: Path, farewell: bool
    ) -> None:
        last = wire.response(200, b"{}", headers=(("Connection", "close"),))
        upstream = tls_upstream(respond=lambda _: last, farewell=farewell)
        context = ssl.create_default_context(cafile=str(roots))
        with (
            socket.create_connection((upstream.address, upstream.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as secure,
        ):
            secure.sendall(GET)
            got = b""
            while len(got) < len(last):
                got += secure.recv(65536)
            assert got == last
            if farewell:
                assert secure.recv(1) == b""
            else:
                with pytest.raises(ssl.SSLEOFError):
                    secure.recv(1)


class TestPlainUpstream:
    def test_untouched_it_says_so(self, plain_upstream: PlainUpstream) -> None:
        plain_upstream.assert_untouched()
        plain_upstream.assert_no_application_bytes()

    def test_a_connection_alone_is_a_touch_but_no_byte(self, plain_upstream: PlainUpstream) -> None:
        with RawClient((plain_upstream.address, plain_upstream.port)):
            plain_upstream.assert_no_application_bytes()
            with pytest.raises(AssertionError, match="1 connections were made"):
                plain_upstream.assert_untouched()

    @pytest.mark.parametrize("attempt", range(20))
    def test_a_single_byte_sent_before_the_question_is_always_seen(self, attempt: int) -> None:
        with PlainUpstream() as upstream, RawClient((upstream.address, upstream.port)) as client:
            client.send(b"x")
            with pytest.raises(AssertionError, match="application bytes came"):
                upstream.assert_no_application_bytes()
            assert upstream.received == upstream.wire == b"x"

    def test_what_was_sent_is_known_after_its_end_too(self) -> None:
        with PlainUpstream() as upstream, RawClient((upstream.address, upstream.port)) as client:
            client.send(b"secret")
        assert upstream.received == b"secret"
        with pytest.raises(AssertionError, match="application bytes came"):
            upstream.assert_no_application_bytes()

    def test_requests_are_read_whatever_way_they_are_cut(self, plain_upstream: PlainUpstream) -> None:
        chunked = (
            b"PUT /c HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;name=value\r\nabc\r\n2\r\nde\r\n0\r\nDigest: x\r\n\r\n"
        )
        with RawClient((plain_upstream.address, plain_upstream.port)) as client:
            for byte in GET + chunked:
                client.send(bytes([byte]))
            client.send(POST + GET)
            targets = [client.read_response().json()["target"] for _ in range(4)]
        assert targets == ["/one?two=3", "/c", "/v1/charges", "/one?two=3"]
        second = plain_upstream.wait_for_requests(4)[1]
        assert (second.body, second.trailers.get("digest"), second.raw) == (b"abcde", "x", chunked)
        assert plain_upstream.received == GET + chunked + POST + GET

    @pytest.mark.parametrize(
        "request_bytes",
        [
            pytest.param(
                b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", id="two lengths"
            ),
            pytest.param(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", id="two content lengths"),
            pytest.param(b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", id="a signed content length"),
            pytest.param(b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", id="an unknown coding"),
            pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n folded: c\r\n\r\n", id="a folded line"),
            pytest.param(b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", id="a bare line feed"),
            pytest.param(b"GET / HTTP/1.1\r\nA : b\r\n\r\n", id="a space before the colon"),
            pytest.param(b"GET /\r\n\r\n", id="no version"),
            pytest.param(b"\r\n\r\n", id="no request line"),
            pytest.param(b"\x16\x03\x01", id="the start of a ClientHello"),
        ],
    )
    def test_an_ambiguous_request_is_recorded_but_never_counted_as_one(
        self, plain_upstream: PlainUpstream, request_bytes: bytes
    ) -> None:
        with RawClient((plain_upstream.address, plain_upstream.port)) as client:
            client.send(request_bytes)
            assert client.read_response().status == 400
            assert client.read_to_end() == b""
        assert plain_upstream.requests == []
        assert plain_upstream.received == request_bytes
        assert plain_upstream.connections[0].malformed is not None

    def test_a_client_that_waits_for_100_continue_gets_one(self, plain_upstream: PlainUpstream) -> None:
        with RawClient((plain_upstream.address, plain_upstream.port)) as client:
            client.send(b"PUT / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert client.read_response().status == 100
            assert plain_upstream.requests == []
            client.send(b"{}")
            assert client.read_response().status == 200

    def test_after_a_101_all_is_recorded_and_nothing_answered(self) -> None:
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\n\r\n"
        with PlainUpstream(respond=lambda _: switch) as upstream:
            with RawClient((upstream.address, upstream.port)) as client:
                client.send(GET)
                assert client.read_response().status == 101
                client.send(GET)
                client.finish()
                assert client.read_to_end() == b""
            assert upstream.received == GET + GET
            assert len(upstream.requests) == 1

    def test_an_answer_may_come_in_pieces_and_stop_short(self) -> None:
        def half(_: RecordedRequest) -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
            yield b"half"

        with PlainUpstream(respond=half) as upstream, RawClient((upstream.address, upstream.port)) as client:
            client.send(GET)
            with pytest.raises(wire.Malformed, match="closed within the body, after 4 bytes"):
                client.read_response()

    def test_a_mistake_in_a_tests_answer_fails_the_test(self) -> None:
        def broken(_: RecordedRequest) -> bytes:
            raise LookupError("a mistake")

        upstream = PlainUpstream(respond=broken)
        with RawClient((upstream.address, upstream.port)) as client:
            client.send(GET)
            client.read_to_end()
        with pytest.raises(AssertionError, match="failed"):
            upstream.__exit__(None, None, None)

    def test_a_wait_for_what_never_comes_fails_and_tells_what_there_is(self, plain_upstream: PlainUpstream) -> None:
        with RawClient((plain_upstream.address, plain_upstream.port)) as client:
            client.send(b"GET ")
            with pytest.raises(AssertionError, match=r"no 1 requests within 0.2 s(.|\n)*b'GET '"):
                plain_upstream.wait_for_requests(1, deadline=0.2)


def test_a_connection_tells_nothing_before_it_knows() -> None:
    fresh = Connection(("127.0.0.1", 1), 0.0)
    assert (fresh.received, fresh.tls_version, fresh.sni, fresh.handshake_completed) == (b"", None, None, False)


def test_no_port_is_listened_on_twice() -> None:
    ports = []
    for _ in range(1000):
        with listen() as listener:
            ports.append(listener.getsockname()[1])
    assert len(set(ports)) == 1000
