"""An app that speaks HTTP/2 inside CONNECT is protected as any other, whatever the upstream speaks.

Proves ARCHITECTURE's rules 1 to 5 once more where streams take the place of connections.
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from proxy.engine.http2 import RESETS_AT_ONCE
from proxy.engine.upstreams.connection import MAX_INTERIM
from tests.e2e import wire
from tests.e2e.app import connect, fresh
from tests.e2e.certificates import Authority
from tests.e2e.clients import curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client, Http2Upstream, Message, Reply, never_indexed
from tests.e2e.receiver import Marked, Receiver, assert_only_marked_changed, plain
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("pay.example", "app.example", "pinned.example", "other.example")
NO_PIN = "sha256/" + "A" * 42 + "E="
PIECES = (b'{ "a":1.0,\n"ssn" : ', Marked(b'"078-05"', "$.ssn"), b', "\xc3\xa9":[] }')

POLICY = """
    limits: {{held_body: 40000}}
    defaults: {{https: inspect}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      app: {{alg: A256KW, primary: {{file: {app}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: app, hosts: [app.example], response: [{{decrypt: ["$.card"], key: app}}]}}
      - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["{pin}"]}}}}
"""

MakeTls = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def sidecar(
    authority: Authority, receiver: Receiver, sender: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("http2")
    policy = POLICY.format(pay=receiver.write_public(folder), app=sender.write_private(folder), pin=NO_PIN)
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def h2_upstream(authority: Authority) -> Iterator[Callable[..., Http2Upstream]]:
    """Makes upstreams that speak HTTP/2 only."""
    made: list[Http2Upstream] = []

    def make(**options: object) -> Http2Upstream:
        made.append(fresh(lambda: Http2Upstream(authority, *HOSTS, **options)))  # type: ignore[arg-type]  # passed on
        return made[-1]

    yield make
    for upstream in made:
        upstream.__exit__(None, None, None)


def speak(sidecar: Sidecar, upstream: TlsUpstream, host: str) -> Http2Client:
    """Open HTTP/2 to a host through the sidecar."""
    return Http2Client.open(connect(sidecar, f"{host}:{upstream.port}"), host, sidecar.ca_file)


def assert_denied(message: Message, status: int, reason: str) -> None:
    """Check a denial as HTTP/2 carries it."""
    assert message.status == status
    assert message.get("content-type") == "application/problem+json"
    assert json.loads(message.body)["reason"] == reason


class TestToHttp1:
    def test_curl_gets_its_fields_encrypted(
        self, sidecar: Sidecar, tls_upstream: MakeTls, receiver: Receiver, tmp_path: Path
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        body = tmp_path / "body.json"
        body.write_bytes(plain(PIECES))
        answer = curl(
            *("--http2", "-w", "%{http_version}", "--data-binary", f"@{body}"),
            upstream.url("/v1", scheme="https", host="pay.example"),
            proxy=sidecar.proxy_url,
            ca_file=sidecar.ca_file,
        )
        assert answer.status == 200, answer.error
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, PIECES, receiver, "pay.example")
        assert got.headers.get("host") == f"pay.example:{upstream.port}"
        assert got.headers.get("content-length") == str(len(got.body))

    def test_bytes_outside_the_marked_values_are_the_same(
        self, sidecar: Sidecar, tls_upstream: MakeTls, receiver: Receiver
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pay.example")
        stream = client.send(f"pay.example:{upstream.port}", "/v1?q=%20", body=gzip.compress(plain(PIECES)),
                             headers=[("content-encoding", "gzip"), ("x-one", "1")])  # fmt: skip
        assert client.read(stream).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(gzip.decompress(got.body), PIECES, receiver, "pay.example")
        assert (got.target, got.headers.get("x-one")) == ("/v1?q=%20", "1")

    def test_many_streams_at_once_are_each_encrypted_and_answered(
        self, sidecar: Sidecar, tls_upstream: MakeTls, receiver: Receiver
    ) -> None:
        def respond(request: RecordedRequest) -> bytes:
            return wire.response(200, request.target.encode())

        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=respond))
        client = speak(sidecar, upstream, "pay.example")
        authority = f"pay.example:{upstream.port}"
        streams = [client.begin(authority, f"/{number}") for number in range(8)]
        for number, stream in reversed(list(enumerate(streams))):  # their bodies are interleaved
            client.go_on(stream, b'{"ssn":', last=False)
            client.go_on(stream, b"%d}" % number, last=number % 2 == 0)
        for number, stream in enumerate(streams):
            if number % 2:
                client.go_on(stream, b" ", last=True)
        for number, stream in enumerate(streams):
            assert client.read(stream).body == f"/{number}".encode()
        for got in upstream.wait_for_requests(8):
            token = got.json()["ssn"].encode()
            assert receiver.open(token, host="pay.example", path="$.ssn") == got.target[1:].encode()

    def test_nothing_of_a_stream_leaves_before_it_is_whole(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pay.example")
        authority = f"pay.example:{upstream.port}"
        held = client.begin(authority, "/held")
        client.go_on(held, b'{"free":"' + b"x" * 20_000, last=False)
        other = client.send(authority, "/other", method="GET")
        assert client.read(other).status == 200  # so the held stream's first half has been read
        upstream.settle()
        assert [got.target for got in upstream.requests] == ["/other"]
        assert b"xxx" not in upstream.received
        client.go_on(held, b'","ssn":1}', last=True)
        assert client.read(held).status == 200

    def test_a_denied_stream_leaves_the_others_alone(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pay.example")
        authority = f"pay.example:{upstream.port}"
        bad = client.send(authority, "/bad", body=b'{"ssn":')
        good = client.send(authority, "/good", body=b'{"ssn":1}')
        big = client.begin(authority, "/big")
        client.go_on(big, b" " * 40_001, last=False)
        assert_denied(client.read(bad), 422, "body_not_json")
        assert_denied(client.read(big), 413, "body_too_large")
        assert client.read(good).status == 200
        assert client.read(client.send(authority, "/more", body=b"{}")).status == 200
        assert [got.target for got in upstream.wait_for_requests(2)] == ["/good", "/more"]

    @pytest.mark.parametrize("named", ["other.example:{port}", "pay.example", "pay.example:1", "127.0.0.1:{port}"])
    def test_another_authority_than_the_tunnels_is_denied(
        self, sidecar: Sidecar, tls_upstream: MakeTls, named: str
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pay.example")
        stream = client.send(named.format(port=upstream.port), body=b'{"ssn":1}')
        assert_denied(client.read(stream), 421, "host_mismatch")
        upstream.assert_no_application_bytes()
        assert client.read(client.send(f"pay.example:{upstream.port}", body=b"{}")).status == 200

    def test_a_host_field_that_contradicts_the_authority_is_denied(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pay.example")
        authority = f"pay.example:{upstream.port}"
        stream = client.send(authority, headers=[("host", "other.example")], body=b"{}")
        message = client.read(stream)
        assert message.reset is not None or message.status in (400, 421)
        upstream.assert_no_application_bytes()

    def test_connect_inside_the_tunnel_opens_nothing(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream, elsewhere = fresh(lambda: tls_upstream(*HOSTS)), fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pay.example")
        stream = client.begin_raw([(":method", "CONNECT"), (":authority", f"other.example:{elsewhere.port}")])
        message = client.read(stream)
        assert message.reset is not None or message.status >= 400
        elsewhere.assert_untouched()
        upstream.assert_no_application_bytes()

    def test_trailers_end_at_the_proxy_and_harm_nothing(
        self, sidecar: Sidecar, tls_upstream: MakeTls, receiver: Receiver
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        for host in ("pay.example", "other.example"):  # held, and streamed
            client = speak(sidecar, upstream, host)
            stream = client.begin(f"{host}:{upstream.port}")
            client.go_on(stream, b'{"ssn":1}', last=False)
            client.end_with(stream, [("x-checksum", "1")])
            assert client.read(stream).status == 200
        held, streamed = upstream.wait_for_requests(2)
        assert receiver.open(held.json()["ssn"].encode(), host="pay.example", path="$.ssn") == b"1"
        assert streamed.body == b'{"ssn":1}'

    def test_a_denial_of_head_has_a_length_and_no_body(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pinned.example")
        stream = client.send(f"pinned.example:{upstream.port}", method="HEAD")
        message = client.read(stream)
        assert (message.status, message.body, message.reset) == (502, b"", None)
        assert int(message.get("content-length") or 0) > 100
        stream = client.send(f"pinned.example:{upstream.port}", method="GET")
        assert_denied(client.read(stream), 502, "pin_mismatch")  # and the connection goes on

    def test_trailers_to_http_2_are_those_that_may_come_so_late(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]
    ) -> None:
        late = [
            ("x-sum", "1"),
            ("set-cookie", "a=b"),
            ("authorization", "x"),
            ("content-length", "9"),
            ("host", "evil"),
        ]

        def answer(_: Message) -> Reply:
            return Reply([(":status", "200")], b"{}", trailers=late)

        upstream = h2_upstream(answer=answer)
        for host in ("pay.example", "other.example"):  # held, and streamed
            client = speak(sidecar, upstream, host)
            stream = client.begin(f"{host}:{upstream.port}")
            client.go_on(stream, b'{"ssn":1}', last=False)
            client.end_with(stream, late)
            message = client.read(stream)
            assert [field for field in message.headers if not field[0].startswith(":")] == []
            assert message.trailers == [("x-sum", "1")]
        held, streamed = upstream.wait_for_messages(2)
        assert (held.trailers, streamed.trailers) == ([], [("x-sum", "1")])

    def test_an_upload_that_is_too_large_is_answered_while_it_goes_on(
        self, sidecar: Sidecar, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        big = tmp_path / "big.json"
        big.write_bytes(b" " * 3_000_000)
        url = upstream.url("/", scheme="https", host="pay.example")
        answer = curl("--http2", "-T", str(big), url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
        assert (answer.status, answer.json()["reason"]) == (413, "body_too_large")
        upstream.assert_no_application_bytes()

    @pytest.mark.parametrize("farewell", [True, False])
    def test_a_body_without_a_length_is_whole_only_if_the_upstream_says_so(
        self, sidecar: Sidecar, tls_upstream: MakeTls, farewell: bool
    ) -> None:
        def respond(_: object) -> bytes:
            return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nperhaps all"

        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=respond, farewell=farewell))
        url = upstream.url("/", scheme="https", host="other.example")
        answer = curl("--http2", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
        assert (answer.exit_status == 0, answer.body) == (farewell, b"perhaps all")

    def test_an_empty_piece_of_a_body_is_not_its_end(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "other.example")
        stream = client.begin(f"other.example:{upstream.port}")
        for piece in (b"abc", b"", b"def"):
            client.send_frame(stream, piece)
        client.send_frame(stream, b"", padding=10)
        client.go_on(stream, b"ghi", last=True)
        assert client.read(stream).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.body == b"abcdefghi"

    def test_a_pin_mismatch_is_told_in_the_stream(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "pinned.example")
        stream = client.send(f"pinned.example:{upstream.port}", body=b"{}")
        assert_denied(client.read(stream), 502, "pin_mismatch")
        upstream.assert_no_application_bytes()

    def test_what_is_about_the_upstreams_connection_only_ends_here(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        """RFC 9113, section 8.2.2: an app that is sent such a field resets the stream."""

        def respond(request: RecordedRequest) -> bytes:
            listed = (("Connection", "X-Hop, keep-alive"), ("Keep-Alive", "timeout=5"), ("Proxy-Connection", "close"),
                      ("Upgrade", "websocket" if request.target == "/socket" else "h2c"))  # fmt: skip
            return wire.response(426, b"", headers=(*listed, ("X-Hop", "1"), ("X-End-To-End", "2")))

        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=respond))
        client = speak(sidecar, upstream, "other.example")
        for path in ("/h2c", "/socket"):
            message = client.read(client.send(f"other.example:{upstream.port}", path, method="GET"))
            names = [name for name, _ in message.headers]
            assert names == [":status", "x-end-to-end", "content-type", "content-length"]

    def test_a_field_that_is_not_listed_by_connection_is_passed_on(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        def respond(_: RecordedRequest) -> bytes:
            return wire.response(200, headers=(("Connection", "X-Other"), ("X-Hop", "1")))

        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=respond))
        client = speak(sidecar, upstream, "other.example")
        message = client.read(client.send(f"other.example:{upstream.port}", method="GET"))
        assert message.get("x-hop") == "1"
        assert message.get("connection") is None

    def test_what_the_app_takes_of_us_is_not_what_we_take_of_the_upstream(
        self, sidecar: Sidecar, tls_upstream: MakeTls
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        for host in ("pay.example", "other.example"):  # held, and streamed
            client = speak(sidecar, upstream, host)
            fields = [("te", "trailers"), ("x-one", "1")]
            assert client.read(client.send(f"{host}:{upstream.port}", headers=fields, body=b"{}")).status == 200
        for got in upstream.wait_for_requests(2):
            assert "te" not in got.headers
            assert got.headers.get("x-one") == "1"

    def test_an_app_that_leaves_in_the_middle_of_the_handshake_is_all_that_ends(self, sidecar: Sidecar) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            client = Http2Client.open(connect(sidecar, f"other.example:{port}"), "other.example", sidecar.ca_file)
            client.send(f"other.example:{port}", "/left", method="GET")
            half_open, _ = listener.accept()
            with half_open:
                half_open.settimeout(10)
                assert half_open.recv(1) == b"\x16"  # the ClientHello
                client.close()
                while half_open.recv(4096):
                    pass
        line = sidecar.wait_for_decision(lambda line: line["path"] == "/left")
        assert (line["status"], line["reason"]) == (None, None)

    def test_a_sealed_response_is_opened(self, sidecar: Sidecar, tls_upstream: MakeTls, sender: Receiver) -> None:
        body = b'{"card": %s}' % sender.seal(b'"4111"', "app.example", "$.card")
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: wire.response(200, body)))
        client = speak(sidecar, upstream, "app.example")
        message = client.read(client.send(f"app.example:{upstream.port}", method="GET"))
        assert (message.status, message.body) == (200, b'{"card": "4111"}')


class TestDowngrade:
    """What is unambiguous in HTTP/2 must stay so in HTTP/1.1: a body's end is a frame there, a length here."""

    @pytest.mark.parametrize(
        ("host", "body"),
        [("other.example", b'{"a":1}'), ("pay.example", b'{"a":1}'), ("pay.example", b'{"ssn":1}')],
        ids=["streamed", "held and unchanged", "held and changed"],
    )
    def test_a_body_without_a_length_is_framed(
        self, sidecar: Sidecar, tls_upstream: MakeTls, host: str, body: bytes
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, host)
        assert client.read(client.send(f"{host}:{upstream.port}", body=body)).status == 200
        (got,) = upstream.wait_for_requests(1)  # and not a second one that begins with the body
        assert got.body == body or b"ssn" in body
        assert got.connection.malformed is None
        assert got.connection.received == got.raw

    def test_a_body_that_looks_like_a_request_is_none(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "other.example")
        authority = f"other.example:{upstream.port}"
        smuggled = f"GET /smuggled HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        for method in ("POST", "GET", "DELETE"):
            client.read(client.send(authority, "/outer", method=method, body=smuggled))
        assert [(got.target, got.body) for got in upstream.wait_for_requests(3)] == [("/outer", smuggled)] * 3

    BAD = {  # noqa: RUF012  # it is never changed
        "a space in the path": {":path": "/ HTTP/1.1"},
        "a line in the path": {":path": "/ HTTP/1.1\r\nX: y"},
        "a line feed in the path": {":path": "/a\nb"},
        "a NUL in the path": {":path": "/a\0b"},
        "a fragment in the path": {":path": "/a#b"},
        "no path": {":path": ""},
        "a path that is absolute": {":path": "http://other.example/"},
        "a space in the method": {":method": "GET / HTTP/1.1"},
        "a line in the method": {":method": "GET / HTTP/1.1\r\nX: y\r\n\r\nPOST"},
        "a line in the authority": {":authority": "{authority}\r\nX: y"},
        "userinfo in the authority": {":authority": "user@{authority}"},
        "a line in a value": {"x-one": "a\r\nsmuggled: b"},
        "a line feed in a value": {"x-one": "a\nsmuggled: b"},
        "a carriage return in a value": {"x-one": "a\rb"},
        "a NUL in a value": {"x-one": "a\0b"},
        "a space in a name": {"x one": "a"},
        "a colon in a name": {"x:one": "a"},
        "a line in a name": {"x-one: a\r\nsmuggled": "b"},
        "an upper-case name": {"X-One": "a"},
        "an empty name": {"": "a"},
        "chunked": {"transfer-encoding": "chunked"},
        "connection": {"connection": "close"},
        "two lengths": {"content-length": "7", "Content-Length": "8"},
        "a wrong length": {"content-length": "6"},
        "a length that is none": {"content-length": "+7"},
    }

    @pytest.mark.parametrize("host", ["other.example", "pay.example"], ids=["streamed", "held"])
    @pytest.mark.parametrize("name", BAD)
    def test_what_http_1_would_read_in_another_way_does_not_reach_it(
        self, sidecar: Sidecar, tls_upstream: MakeTls, name: str, host: str
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, host)
        authority = f"{host}:{upstream.port}"
        fields = {":method": "POST", ":scheme": "https", ":authority": authority, ":path": "/"}
        fields |= {key: value.format(authority=authority) for key, value in self.BAD[name].items()}
        stream = client.begin_raw(list(fields.items()))
        client.go_on(stream, b'{"a":1}', last=True)
        message = client.read(stream)
        assert message.reset is not None or message.status in (400, 421)
        upstream.settle()
        assert upstream.requests == []
        assert b"smuggled" not in upstream.received

    def test_the_twin_of_all_of_them_passes(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        client = speak(sidecar, upstream, "other.example")
        stream = client.send(f"other.example:{upstream.port}", headers=[("content-length", "7")], body=b'{"a":1}')
        assert client.read(stream).status == 200
        assert upstream.wait_for_requests(1)[0].body == b'{"a":1}'


class TestToHttp2:
    def test_fields_are_encrypted_and_other_bytes_the_same(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream], receiver: Receiver
    ) -> None:
        upstream = h2_upstream()
        client = speak(sidecar, upstream, "pay.example")
        authority = f"pay.example:{upstream.port}"
        body = plain(PIECES)
        streams = [
            client.send(authority, f"/{number}", headers=[("content-length", str(len(body)))], body=body)
            for number in range(4)
        ]
        assert {client.read(stream).body for stream in streams} == {b'{"from":"h2"}'}
        for got in upstream.wait_for_messages(4):
            assert_only_marked_changed(got.body, PIECES, receiver, "pay.example")
            assert got.get(":authority") == authority
            assert got.get("content-length") in (None, str(len(got.body)))
        assert len(upstream.connections) == 1  # one connection for all of them
        assert upstream.connections[0].alpn == "h2"

    def test_a_field_that_no_table_may_keep_is_kept_by_none_of_ours(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]
    ) -> None:
        """RFC 7541, section 7.1.3: whoever sends such a field on does so in the same representation."""
        answered = [(":status", "200"), ("location", "https://pay.example/"), never_indexed("x-token", "t-1")]
        upstream = h2_upstream(answer=lambda _: Reply(answered, b"ok"))
        client = speak(sidecar, upstream, "pay.example")
        asked = [("x-open", "o-1"), never_indexed("x-key", "k-1")]
        for _ in range(3):
            message = client.read(client.send(f"pay.example:{upstream.port}", method="GET", headers=asked))
            assert message.get("x-token") == "t-1"
            assert message.kept_out == ["x-token"]
        messages = upstream.wait_for_messages(3)
        assert [each.get("x-key") for each in messages] == ["k-1"] * 3
        assert [each.kept_out for each in messages] == [["x-key"]] * 3

    @pytest.mark.parametrize("status", ["200", "206"])
    @pytest.mark.parametrize("types", [[("content-type", "text/json")], []])
    def test_a_response_is_opened_or_refused_whatever_its_label(
        self,
        sidecar: Sidecar,
        h2_upstream: Callable[..., Http2Upstream],
        sender: Receiver,
        status: str,
        types: list[tuple[str, str]],
    ) -> None:
        body = b'{"card":%s}' % sender.seal(b"1", "app.example", "$.card")
        fields = [(":status", status), *types, ("etag", '"x"'), ("digest", "sha-256=AA==")]
        upstream = h2_upstream(answer=lambda _: Reply([*fields, ("content-length", str(len(body)))], body))
        client = speak(sidecar, upstream, "app.example")
        asked = [("range", "bytes=0-9"), ("if-range", '"x"'), ("if-match", 'W/"x"')]
        message = client.read(client.send(f"app.example:{upstream.port}", method="GET", headers=asked))
        (got,) = upstream.wait_for_messages(1)
        assert [got.get(name) for name, _ in asked] == [None, None, '"x"']
        if status == "206":
            assert_denied(message, 502, "decryption_failed")
            return
        assert (message.status, message.body, message.get("content-length")) == (200, b'{"card":1}', "10")
        assert (message.get("etag"), message.get("digest")) == ('W/"x"', None)

    def test_a_signed_body_sends_no_stream(self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]) -> None:
        upstream = h2_upstream()
        client = speak(sidecar, upstream, "pay.example")
        authority, signature = f"pay.example:{upstream.port}", [("x-hub-signature-256", "sha256=" + "0" * 64)]
        for path, headers in (("/", signature), ("/?X-Amz-Signature=1", [])):
            stream = client.send(authority, path, headers=headers, body=b'{"ssn":1}')
            assert_denied(client.read(stream), 422, "signed_body")
        upstream.assert_no_application_bytes()
        assert client.read(client.send(authority, headers=signature, body=b'{"x":1}')).status == 200

    def test_head_tells_no_length_of_a_sealed_body(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]
    ) -> None:
        fields = [(":status", "200"), ("content-type", "application/json"), ("content-length", "123")]
        upstream = h2_upstream(answer=lambda _: Reply([*fields, ("etag", '"x"')]))
        for host, length, etag in (("app.example", None, 'W/"x"'), ("other.example", "123", '"x"')):
            client = speak(sidecar, upstream, host)
            message = client.read(client.send(f"{host}:{upstream.port}", method="HEAD"))
            assert (message.status, message.get("content-length"), message.get("etag")) == (200, length, etag)

    def test_what_the_app_takes_is_told(self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]) -> None:
        upstream = h2_upstream()
        client = speak(sidecar, upstream, "other.example")
        client.read(client.send(f"other.example:{upstream.port}", method="GET", headers=[("te", "trailers")]))
        assert upstream.wait_for_messages(1)[0].get("te") == "trailers"

    @pytest.mark.parametrize(("count", "status"), [(MAX_INTERIM, 200), (MAX_INTERIM + 1, 502)])
    def test_interim_responses_have_an_end(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream], count: int, status: int
    ) -> None:
        upstream = h2_upstream(answer=lambda _: Reply([(":status", "200")], b"ok", interim=count))
        client = speak(sidecar, upstream, "other.example")
        message = client.read(client.send(f"other.example:{upstream.port}", method="GET"))
        if status == 200:
            assert (message.status, message.body) == (200, b"ok")
        else:
            assert_denied(message, 502, "upstream_failed")

    def test_a_denied_body_sends_no_stream(self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]) -> None:
        upstream = h2_upstream()
        client = speak(sidecar, upstream, "pay.example")
        stream = client.send(f"pay.example:{upstream.port}", body=b'{"ssn":NaN}')
        assert_denied(client.read(stream), 422, "body_not_json")
        upstream.assert_no_application_bytes()

    def test_a_pin_mismatch_sends_not_one_frame(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]
    ) -> None:
        upstream = h2_upstream()
        client = speak(sidecar, upstream, "pinned.example")
        stream = client.send(f"pinned.example:{upstream.port}", body=b'{"secret":1}')
        assert_denied(client.read(stream), 502, "pin_mismatch")
        (connection,) = upstream.wait_for_connections(1, closed=True)
        assert connection.handshake_error is not None or connection.broken is not None
        upstream.assert_no_application_bytes()

    def test_a_reset_by_the_upstream_is_an_answer_with_its_reason(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]
    ) -> None:
        upstream = h2_upstream(answer=lambda _: None)
        client = speak(sidecar, upstream, "pay.example")
        stream = client.send(f"pay.example:{upstream.port}", body=b'{"ssn":1}')
        assert_denied(client.read(stream), 502, "upstream_failed")

    def test_an_app_of_http_1_never_makes_the_upstream_speak_http_2(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream]
    ) -> None:
        upstream = h2_upstream()
        answer = curl("--http1.1", upstream.url("/", host="other.example"), proxy=sidecar.proxy_url)
        assert (answer.status, answer.json()["reason"]) == (502, "upstream_failed")

    def test_a_sealed_response_is_opened(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream], sender: Receiver
    ) -> None:
        upstream = h2_upstream(answer=lambda _: b'{"card": %s}' % sender.seal(b'"4111"', "app.example", "$.card"))
        client = speak(sidecar, upstream, "app.example")
        message = client.read(client.send(f"app.example:{upstream.port}", method="GET"))
        assert (message.status, message.body) == (200, b'{"card": "4111"}')


class TestAuthority:
    """A request names where it goes, or it goes nowhere."""

    def ask(self, sidecar: Sidecar, upstream: TlsUpstream, *names: tuple[str, str]) -> Message:
        client = speak(sidecar, upstream, "other.example")
        pseudo = [(":method", "GET"), (":scheme", "https"), (":path", "/")]
        fields = [(name, value.format(f"other.example:{upstream.port}")) for name, value in names]
        pseudo += [field for field in fields if field[0].startswith(":")]
        return client.read(client.begin_raw(pseudo + [field for field in fields if field not in pseudo], last=True))

    def test_an_empty_one_and_no_host_is_none(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert_denied(self.ask(sidecar, upstream, (":authority", "")), 400, "bad_request")
        upstream.assert_untouched()

    def test_an_empty_host_is_none_either(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert_denied(self.ask(sidecar, upstream, ("host", "")), 400, "bad_request")
        upstream.assert_untouched()

    def test_without_either_it_is_no_request(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert_denied(self.ask(sidecar, upstream), 400, "bad_request")
        upstream.assert_untouched()

    @pytest.mark.parametrize("name", ["host", ":authority"])
    def test_either_of_them_is_enough(self, sidecar: Sidecar, tls_upstream: MakeTls, name: str) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert self.ask(sidecar, upstream, (name, "{}")).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("host") == f"other.example:{upstream.port}"

    @pytest.mark.parametrize("name", ["host", ":authority"])
    def test_so_it_is_where_the_upstream_speaks_http_2(
        self, sidecar: Sidecar, h2_upstream: Callable[..., Http2Upstream], name: str
    ) -> None:
        upstream = h2_upstream()
        assert self.ask(sidecar, upstream, (name, "{}")).status == 200
        (got,) = upstream.wait_for_messages(1)
        assert (got.get("host") or got.get(":authority")) == f"other.example:{upstream.port}"


def test_no_hook_failed_in_all_of_this(sidecar: Sidecar) -> None:
    assert '"level": "error"' not in sidecar.stderr, sidecar.stderr  # first, since it says which hook
    assert sidecar.metrics().value("overcoat_hook_failures_total") == 0


class TestFloods:
    """What costs an app little must not cost others much."""

    def test_streams_that_are_given_up_at_once_are_bounded(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        name = f"other.example:{upstream.port}"
        client = speak(sidecar, upstream, "other.example")
        for _ in range(3 * RESETS_AT_ONCE):
            client.give_up(client.send(name, method="GET"))
        assert client.read(client.send(name, method="GET")).reset == ErrorCodes.ENHANCE_YOUR_CALM
        assert len(upstream.connections) < 1.5 * RESETS_AT_ONCE
        again = speak(sidecar, upstream, "other.example")
        assert again.read(again.send(name, method="GET")).status == 200

    def test_an_app_may_give_up_a_few(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        name = f"other.example:{upstream.port}"
        client = speak(sidecar, upstream, "other.example")
        for _ in range(50):
            client.give_up(client.send(name, method="GET"))
        assert client.read(client.send(name, method="GET")).status == 200

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux's")
    def test_answers_that_nobody_reads_do_not_pile_up(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        app = connect(sidecar, f"other.example:{upstream.port}")
        Http2Client.open(app, "other.example", sidecar.ca_file)
        pings = (bytes.fromhex("00000806 00 00000000") + b"12345678") * 4096
        before = sidecar.resident_bytes()
        app._socket.settimeout(1)
        sent = 0
        with suppress(OSError):  # the sidecar has stopped to read, or has closed
            while sent < 48 * 1024 * 1024:
                app.send(pings)
                sent += len(pings)
        assert sent < 48 * 1024 * 1024
        assert sidecar.resident_bytes() - before < 8 * 1024 * 1024
