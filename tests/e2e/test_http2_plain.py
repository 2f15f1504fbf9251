"""HTTP/2 in plain text, with prior knowledge (RFC 9113, section 3.3): decided, upgraded, pinned and lined like HTTP/1.

Proves ARCHITECTURE's rules 2 to 4 and 7 for such apps, whichever way they come.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import Channel, Connection, PlainChannel, RecordedRequest
from tests.e2e.frames import PREFACE
from tests.e2e.http2 import HeaderList, Http2Client, Http2Upstream, Message
from tests.e2e.sidecar import ROOT, Decision, Sidecar
from tests.e2e.test_listeners import REDIRECTED
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOST, PINNED, REJECTED = "app.example", "pinned.example", "rejected.example"
NO_PIN = "sha256/" + "A" * 42 + "E="
POLICY = """
    listen: ["forward://127.0.0.1:0", "reverse://127.0.0.1:0?to=https://{host}:{port}",
             "reverse://127.0.0.1:0?to=https://{pinned}:{port}"]
    limits: {{request_seconds: 2}}
    rules:
      - {{name: app, hosts: [{host}], pins: {{any_of: ["{pin}"]}}}}
      - {{name: pinned, hosts: [{pinned}], pins: {{any_of: ["{no_pin}"]}}}}
      - {{name: rejected, hosts: [{rejected}], plain_http: reject}}
"""


class Way(Enum):
    """How an app gets to the sidecar."""

    FORWARD = "to the proxy itself"
    CONNECT = "inside CONNECT"
    REVERSE = "to a reverse listener"


class PlainHttp2Upstream(Http2Upstream):
    """The same without TLS."""

    def _channel(self, connection: Connection) -> Channel:
        connection.handshake_completed = True
        return PlainChannel()


@pytest.fixture(scope="module", params=["to-http1", "to-http2"])
def upstream(request: pytest.FixtureRequest, authority: Authority) -> Iterator[TlsUpstream]:
    """A server of either version."""
    names = (HOST, PINNED, REJECTED)
    is_http1 = request.param == "to-http1"
    with TlsUpstream(authority, *names) if is_http1 else Http2Upstream(authority, *names) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def sidecar(authority: Authority, upstream: TlsUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar before it."""
    policy = POLICY.format(
        host=HOST, pinned=PINNED, rejected=REJECTED, port=upstream.port, pin=upstream.pin, no_pin=NO_PIN
    )
    hosts = dict.fromkeys((HOST, PINNED, REJECTED), "127.0.0.1")
    with Sidecar(policy, tmp_path_factory.mktemp("plain"), authority=authority, hosts=hosts) as sidecar:
        yield sidecar
        assert '"level": "error"' not in sidecar.stderr


class App:
    """An app that speaks HTTP/2 in plain text to one host."""

    def __init__(self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, host: str = HOST) -> None:
        self.authority = f"{host}:{upstream.port}"
        match way:
            case Way.FORWARD:
                self.raw = RawClient(sidecar.address)
            case Way.CONNECT:
                self.raw = connect(sidecar, self.authority)
            case Way.REVERSE:
                at = 1 if host == HOST else 2
                self.raw = RawClient(sidecar.addresses[at])
                self.authority = sidecar.listen[at]
        self.http2 = Http2Client(self.raw)

    def begin(
        self, path: str, *, method: str = "GET", scheme: str = "http", more: HeaderList | None = None, last: bool = True
    ) -> int:
        """Send a request's fields."""
        fields = [(":method", method), (":scheme", scheme), (":authority", self.authority), (":path", path)]
        return self.http2.begin_raw(fields + (more or []), last=last)

    def ask(self, path: str, **more: str) -> Message:
        """Send a request, and return the response."""
        return self.http2.read(self.begin(path, **more))  # type: ignore[arg-type]  # passed on


@pytest.fixture(params=Way, ids=lambda way: way.name.lower())
def way(request: pytest.FixtureRequest) -> Way:
    """Each way."""
    found: Way = request.param
    return found


def line_of(sidecar: Sidecar, path: str) -> Decision:
    """Return the decision line of a path."""
    return sidecar.wait_for_decision(lambda each: each["path"] == path)


def path_of(request: pytest.FixtureRequest) -> str:
    """Return a path that no other test asks for."""
    return f"/{request.node.callspec.id}/{request.node.originalname}"


def received(upstream: TlsUpstream, path: str) -> tuple[str, str | None]:
    """Return the method and the host of the only request for a path."""
    if isinstance(upstream, Http2Upstream):
        (message,) = [each for each in upstream.messages if each.get(":path") == path]
        assert message.get(":scheme") == "https"
        assert message.get("host") is None
        return message.get(":method") or "", message.get(":authority")
    (found,) = [each for each in upstream.requests if each.target == path]
    return found.method, found.headers.get("host")


class TestDecided:
    def test_it_leaves_over_pinned_tls(
        self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, request: pytest.FixtureRequest
    ) -> None:
        path = path_of(request)
        assert App(sidecar, upstream, way).ask(path).status == 200
        assert received(upstream, path) == ("GET", f"{HOST}:{upstream.port}")
        line = line_of(sidecar, path)
        action = "inspect" if way is Way.REVERSE else "upgrade"
        assert (line["action"], line["rule"], line["tls"], line["pin"]) == (action, "app", "TLSv1.3", "match")
        assert (line["method"], line["status"]) == ("GET", 200)

    def test_a_wrong_pin_lets_nothing_out(
        self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, request: pytest.FixtureRequest
    ) -> None:
        path = path_of(request)
        upstream.settle()
        before = len(upstream.received)
        message = App(sidecar, upstream, way, PINNED).ask(path)
        assert (message.status, json.loads(message.body)["reason"]) == (502, "pin_mismatch")
        assert line_of(sidecar, path)["reason"] == "pin_mismatch"
        upstream.settle()
        assert len(upstream.received) == before

    @pytest.mark.parametrize("way", [Way.FORWARD, Way.CONNECT], ids=lambda way: way.name.lower())
    def test_plain_http_may_be_rejected(
        self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, request: pytest.FixtureRequest
    ) -> None:
        path = path_of(request)
        message = App(sidecar, upstream, way, REJECTED).ask(path)
        assert json.loads(message.body)["reason"] == "plain_http_rejected"
        assert (line_of(sidecar, path)["reason"], message.status) == ("plain_http_rejected", 403)

    def test_each_stream_of_a_proxys_connection_may_be_for_another_host(
        self, sidecar: Sidecar, upstream: TlsUpstream, request: pytest.FixtureRequest
    ) -> None:
        path = path_of(request)
        app = App(sidecar, upstream, Way.FORWARD)
        first = app.begin(path)
        app.authority = f"{PINNED}:{upstream.port}"
        second = app.begin(path + "/2")
        app.authority = f"{HOST}:{upstream.port}"
        third = app.begin(path + "/3")
        assert [app.http2.read(stream).status for stream in (first, second, third)] == [200, 502, 200]

    @pytest.mark.parametrize("way", [Way.CONNECT, Way.REVERSE], ids=lambda way: way.name.lower())
    def test_another_host_is_none_where_one_is_known(self, sidecar: Sidecar, upstream: TlsUpstream, way: Way) -> None:
        app = App(sidecar, upstream, way)
        right = app.authority
        open_one = app.begin("/open", method="POST", last=False)
        app.authority = "other.example"
        message = app.ask("/")
        assert (message.status, json.loads(message.body)["reason"]) == (421, "host_mismatch")
        app.authority = right
        assert app.ask("/").status == 200
        app.http2.go_on(open_one, b"", last=True)
        assert app.http2.read(open_one).status == 200

    def test_https_is_not_what_plain_text_inside_connect_is(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        app = App(sidecar, upstream, Way.CONNECT)
        assert app.ask("/", scheme="https").status == 400
        assert app.ask("/").status == 200


class TestNotServed:
    """What HTTP/2 could ask for and is not served ends its stream alone."""

    CASES = (
        pytest.param([(":method", "CONNECT"), (":authority", "AUTHORITY")], id="CONNECT"),
        pytest.param(
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/chat"),
                (":authority", "AUTHORITY"),
                ("sec-websocket-version", "13"),
            ],
            id="WebSocket (RFC 8441)",
        ),
    )

    @pytest.mark.parametrize("fields", CASES)
    def test_it_is_refused_and_other_streams_go_on(
        self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, fields: HeaderList
    ) -> None:
        app = App(sidecar, upstream, way)
        open_one = app.begin("/open", method="POST", last=False)
        upstream.settle()
        before = len(upstream.connections)
        named = [(name, value.replace("AUTHORITY", app.authority)) for name, value in fields]
        message = app.http2.read(app.http2.begin_raw(named))
        assert (message.status, json.loads(message.body)["reason"]) == (400, "bad_request")
        upstream.settle()
        assert len(upstream.connections) == before
        app.http2.go_on(open_one, b"", last=True)
        assert app.http2.read(open_one).status == 200


class TestPreface:
    @pytest.mark.parametrize("inside", [False, True], ids=["to the proxy", "inside CONNECT"])
    def test_it_may_come_in_two_pieces(self, sidecar: Sidecar, upstream: TlsUpstream, inside: bool) -> None:
        for cut in range(1, len(PREFACE)):
            authority = f"{HOST}:{upstream.port}"
            raw = connect(sidecar, authority) if inside else RawClient(sidecar.address)
            app = Http2Client(Cut(raw, cut))  # type: ignore[arg-type]  # it sends, and reads, as one
            fields = [(":method", "GET"), (":scheme", "http"), (":authority", authority), (":path", "/cut")]
            assert app.read(app.begin_raw(fields, last=True)).status == 200
            raw.close()

    @pytest.mark.parametrize("at", [4, 6, 13, 14, 18, 20, 23])
    def test_what_only_begins_like_it_is_a_bad_request(self, sidecar: Sidecar, upstream: TlsUpstream, at: int) -> None:
        with RawClient(sidecar.address) as client:
            client.send(PREFACE[:at] + b"X" + PREFACE[at + 1 :])
            assert client.read_response().status == 400

    def test_it_comes_first_or_not_at_all(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        authority = f"{HOST}:{upstream.port}"
        get = f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        with RawClient(sidecar.address) as client:
            client.send(get)
            client.read_response()
            client.send(PREFACE)
            assert client.read_response().status == 400

    def test_half_of_it_is_a_request_that_did_not_come_in_time(self, sidecar: Sidecar) -> None:
        with RawClient(sidecar.address) as client:
            client.send(PREFACE[:20])
            assert client.read_response().status == 408


class Cut:
    """Sends its first bytes in two pieces."""

    def __init__(self, client: RawClient, at: int) -> None:
        self._client = client
        self._at = at

    def send(self, data: bytes) -> None:
        """Send bytes."""
        if self._at and len(data) > self._at:
            self._client.send(data[: self._at])
            time.sleep(0.01)
            data, self._at = data[self._at :], 0
        self._client.send(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


class TestObserved:
    """Where nothing may be changed it passes as it came."""

    def serve(self, folder: Path) -> Sidecar:
        """Return a sidecar that observes."""
        rules = f"rules: [{{name: r, hosts: [{HOST}], plain_http: reject}}]"
        return Sidecar(f"mode: observe\n{rules}", folder, hosts={HOST: "127.0.0.1"})

    def test_inside_connect_it_stays_http_2(self, authority: Authority, tmp_path: Path) -> None:
        with PlainHttp2Upstream(authority, HOST) as upstream, self.serve(tmp_path) as sidecar:
            app = App(sidecar, upstream, Way.CONNECT)
            for path in ("/1", "/2"):
                assert app.ask(path).body == b'{"from":"h2"}'
            first, second = upstream.wait_for_messages(2)
            assert first.headers == [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", app.authority),
                (":path", "/1"),
            ]
            assert second.get(":path") == "/2"
            line = line_of(sidecar, "/2")
            assert (line["action"], line["would_deny"], line["tls"]) == ("allow", True, None)
            assert line["reason"] == "plain_http_rejected"

    def test_an_upstream_without_it_is_a_502(self, authority: Authority, tmp_path: Path) -> None:
        """Nothing else is tried: the app has said what it knows."""

        def respond(request: RecordedRequest) -> bytes:
            raise AssertionError(f"{request} is HTTP/1")

        with PlainUpstream(respond=respond) as upstream, self.serve(tmp_path) as sidecar:
            authority_ = f"{HOST}:{upstream.port}"
            app = Http2Client(connect(sidecar, authority_))
            fields = [(":method", "GET"), (":scheme", "http"), (":authority", authority_), (":path", "/")]
            message = app.read(app.begin_raw(fields, last=True))
            assert (message.status, message.reset) in ((502, None), (502, ErrorCodes.NO_ERROR))


def test_a_transparent_listener_upgrades_it(authority: Authority, tmp_path: Path) -> None:
    """The sidecar is told that each connection was meant for the upstream's port."""
    (tmp_path / "redirected.py").write_text(REDIRECTED)
    with Http2Upstream(authority, "localhost") as upstream:
        command = [sys.executable, "-P", str(tmp_path / "redirected.py"), str(ROOT), str(upstream.port)]
        policy = f"""
            listen: ["transparent://127.0.0.1:0"]
            rules: [{{name: r, hosts: [localhost], pins: {{any_of: ["{upstream.pin}"]}}}}]
        """
        with Sidecar(policy, tmp_path, authority=authority, command=command) as sidecar:
            app = Http2Client(RawClient(sidecar.address))
            named = f"localhost:{upstream.port}"
            fields = [(":method", "GET"), (":scheme", "http"), (":authority", named), (":path", "/t")]
            assert app.read(app.begin_raw(fields, last=True)).status == 200
            line = line_of(sidecar, "/t")
        (message,) = upstream.wait_for_messages(1)
    assert message.headers == [(":method", "GET"), (":scheme", "https"), (":authority", named), (":path", "/t")]
    assert (line["action"], line["pin"], line["destination"]) == ("upgrade", "match", named)
