"""Each request and each tunnel ends in exactly one outcome, the same in its line and in the metrics.

Proves ARCHITECTURE's rule 7 (say why): each way to end is caused once, with everything else about the request right.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.app import client_hello, connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.frames import END_HEADERS, END_STREAM, Code, block, data, headers, reset
from tests.e2e.frameserver import FrameServer, Got, frame_server
from tests.e2e.http2 import Http2Client, speak
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Decision, Sidecar, labels_of, series_of
from tests.waiting import wait_until

PLAIN, TUNNELLED, INSPECTED, REJECTED = "plain.example", "tunnelled.example", "inspected.example", "rejected.example"
HOSTS = dict.fromkeys((PLAIN, TUNNELLED, INSPECTED, REJECTED), "127.0.0.1")
POLICY = f"""
    rules:
      - {{name: plain, hosts: [{PLAIN}], plain_http: allow}}
      - {{name: tunnelled, hosts: [{TUNNELLED}], https: tunnel}}
      - {{name: inspected, hosts: [{INSPECTED}], https: inspect}}
      - {{name: rejected, hosts: [{REJECTED}], plain_http: reject, https: reject}}
"""
SWITCH = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n"
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: B\r\n\r\n"
)
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


class Far:
    """Connections of one app and one upstream, in one of several ways."""

    def __init__(self, sidecar: Sidecar, upstream: Upstream) -> None:
        self.sidecar = sidecar
        self.upstream = upstream
        self.app = RawClient(sidecar.address)
        self.sent = 0

    def ask(self, more: str = "") -> Accepted:
        """Send a request, and return the upstream's connection once it is there."""
        self.app.send(self.upstream.request("/", more))
        server = self.upstream.accept()
        server.read_head()
        return server

    def switch(self) -> Accepted:
        """Open a WebSocket, and send five bytes each way."""
        server = self.ask(SWITCH)
        server.send(SWITCHED + b"first")
        self.app.read_until(b"first")
        self.pass_on(server, b"hello")
        return server

    def pass_on(self, server: Accepted, data: bytes) -> None:
        self.app.send(data)
        assert server.read_exactly(len(data)) == data
        self.sent = len(data)

    def tunnel(self) -> Accepted:
        """Open a tunnel, and send something each way."""
        self.app.close()
        self.app = connect(self.sidecar, self.upstream.authority)
        server = self.upstream.accept()
        self.pass_on(server, client_hello(self.upstream.host))
        server.send(b"first")
        assert self.app.read_exactly(5) == b"first"
        return server


def whole(far: Far) -> None:
    far.ask().send(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno")
    assert far.app.read_response().status == 503


def upstream_silent(far: Far) -> None:
    far.ask().close()
    answer = far.app.read_response()
    assert answer.status == 502
    assert answer.json()["detail"] == "the upstream closed the connection without an answer"


def upstream_gone(far: Far) -> None:
    far.upstream.close()
    far.app.send(far.upstream.request())
    assert far.app.read_response().status == 502


def upstream_cut(far: Far) -> None:
    server = far.ask()
    server.send(HALF)
    far.app.read_until(b"half")
    server.close()
    far.app.read_to_end()


def left_before(far: Far) -> None:
    far.ask()
    far.app.reset()


def left_within(far: Far) -> None:
    server = far.ask()
    server.send(HALF)
    far.app.read_until(b"half")
    far.app.reset()


def socket_closed_by_app(far: Far) -> None:
    server = far.switch()
    far.app.finish()
    assert server.read_to_end() == b""


def socket_closed_by_upstream(far: Far) -> None:
    far.switch().close()
    assert far.app.read_to_end() == b""


def socket_cut(far: Far) -> None:
    far.switch().reset()
    far.app.read_to_end()


def socket_left(far: Far) -> None:
    far.switch()
    far.app.reset()


def tunnel_closed_by_app(far: Far) -> None:
    server = far.tunnel()
    far.app.finish()
    assert server.read_to_end() == b""
    server.close()


def tunnel_closed_by_upstream(far: Far) -> None:
    far.tunnel().close()
    assert far.app.read_to_end() == b""
    far.app.close()


def tunnel_cut(far: Far) -> None:
    far.tunnel().reset()
    far.app.read_to_end()


def tunnel_left(far: Far) -> None:
    far.tunnel()
    far.app.reset()


def tunnel_reset_after_its_end(far: Far) -> None:
    server = far.tunnel()
    server.finish()
    assert far.app.read_to_end() == b""
    far.app.reset()


def tunnel_to_nobody(far: Far) -> None:
    far.upstream.close()
    far.app.send(f"CONNECT {far.upstream.authority} HTTP/1.1\r\nHost: {far.upstream.authority}\r\n\r\n".encode())
    assert far.app.read_response(method="CONNECT").status == 502


def rejected(far: Far) -> None:
    far.app.send(far.upstream.request())
    assert far.app.read_response().status == 403


# How it ends; the host; action, outcome, reason, status.
ENDS: list[tuple[Callable[[Far], None], str, tuple[str, str, str | None, int | None]]] = [
    (whole, PLAIN, ("allow", "ok", None, 503)),
    (upstream_silent, PLAIN, ("allow", "upstream_failed", "upstream_failed", 502)),
    (upstream_gone, PLAIN, ("allow", "upstream_failed", "upstream_unreachable", 502)),
    (upstream_cut, PLAIN, ("allow", "upstream_cut", "upstream_cut", None)),
    (left_before, PLAIN, ("allow", "app_left", None, None)),
    (left_within, PLAIN, ("allow", "app_left", None, None)),
    (socket_closed_by_app, PLAIN, ("allow", "ok", None, 101)),
    (socket_closed_by_upstream, PLAIN, ("allow", "ok", None, 101)),
    (socket_cut, PLAIN, ("allow", "upstream_cut", "upstream_cut", 101)),
    (socket_left, PLAIN, ("allow", "app_left", None, 101)),
    (tunnel_closed_by_app, TUNNELLED, ("tunnel", "ok", None, None)),
    (tunnel_closed_by_upstream, TUNNELLED, ("tunnel", "ok", None, None)),
    (tunnel_cut, TUNNELLED, ("tunnel", "upstream_cut", "upstream_cut", None)),
    (tunnel_left, TUNNELLED, ("tunnel", "app_left", None, None)),
    (tunnel_reset_after_its_end, TUNNELLED, ("tunnel", "ok", None, None)),
    (tunnel_to_nobody, TUNNELLED, ("tunnel", "upstream_failed", "upstream_unreachable", 502)),
    (rejected, REJECTED, ("deny", "denied", "plain_http_rejected", 403)),
]


def facts(line: Decision) -> tuple[str, str, str | None, int | None]:
    return (line["action"], line["outcome"], line["reason"], line["status"])


@pytest.fixture(scope="class")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with Sidecar(POLICY, tmp_path_factory.mktemp("outcomes"), authority=authority, hosts=HOSTS) as running:
        yield running


class TestHttp1AndTunnels:
    @pytest.mark.parametrize(("end", "host", "expected"), ENDS, ids=[each[0].__name__ for each in ENDS])
    def test_each_way_to_end_has_its_outcome(
        self,
        sidecar: Sidecar,
        end: Callable[[Far], None],
        host: str,
        expected: tuple[str, str, str | None, int | None],
    ) -> None:
        with scripted_upstream(host, None) as upstream:
            far = Far(sidecar, upstream)
            end(far)
            line = sidecar.wait_for_decision(lambda line: line["destination"] == upstream.authority)
            far.app.close()
        assert facts(line) == expected
        if far.sent:
            assert (line["bytes_sent"], line["bytes_received"]) == (far.sent, 5)

    def test_the_metric_counts_what_the_lines_say(self, sidecar: Sidecar) -> None:
        lines = sidecar.decisions()
        assert len(lines) == len(ENDS)
        assert series_of(sidecar.metrics()) == Counter(labels_of(line) for line in lines)


def reply(got: Got) -> None:
    """Answer as the request's path says."""
    head = headers(got.stream, block((":status", "200"), ("content-type", "application/grpc")), END_HEADERS)
    match got.path:
        case "/whole":
            got.reply()
        case "/grpc/ok" | "/grpc/failed":
            status = "0" if got.path == "/grpc/ok" else "14"
            trailers = headers(got.stream, block(("grpc-status", status)), END_HEADERS | END_STREAM)
            got.peer.send(head + data(got.stream, b"\0\0\0\0\0") + trailers)
        case "/cut" | "/grpc/cut":
            got.peer.send(head + data(got.stream, b"half") + reset(got.stream, Code.INTERNAL_ERROR))
        case "/failed":
            got.peer.send(reset(got.stream, Code.INTERNAL_ERROR))
        case "/left" | "/grpc/left":
            got.peer.send(head + data(got.stream, b"half"))


HTTP2 = {
    "/whole": ("ok", None, 200),
    "/cut": ("upstream_cut", "upstream_cut", None),
    "/failed": ("upstream_failed", "upstream_failed", 502),
    "/left": ("app_left", None, None),
    "/grpc/ok": ("ok", None, 200),
    "/grpc/failed": ("ok", None, 200),  # its status is between the app and the server: HTTP's was 200
    "/grpc/cut": ("upstream_cut", "upstream_cut", None),
    "/grpc/left": ("app_left", None, None),
}


@pytest.fixture(scope="class")
def server(authority: Authority) -> Iterator[FrameServer]:
    with frame_server(authority, INSPECTED, reply) as server:
        yield server


@pytest.fixture(scope="class")
def client(sidecar: Sidecar, server: FrameServer) -> Iterator[Http2Client]:
    client = speak(sidecar, server.authority)
    yield client
    client.close()


class TestHttp2:
    @pytest.mark.parametrize("path", HTTP2)
    def test_each_stream_has_its_own(
        self, sidecar: Sidecar, server: FrameServer, client: Http2Client, path: str
    ) -> None:
        kind = "application/grpc" if path.startswith("/grpc") else "text/plain"
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", server.authority), (":path", path)]
        stream = client.begin_raw([*fields, ("content-type", kind), ("te", "trailers")], last=True)
        if path.endswith("/left"):
            server.wait(lambda: any(got.path == path for got in server.requests))
            client.give_up(stream)
        else:
            client.read(stream)
        line = sidecar.wait_for_decision(lambda line: line["path"] == path)
        assert facts(line) == ("inspect", *HTTP2[path])

    def test_the_metric_counts_what_the_lines_say(self, sidecar: Sidecar) -> None:
        lines = sidecar.decisions()
        assert {line["path"] for line in lines} == set(HTTP2)
        assert series_of(sidecar.metrics()) == Counter(labels_of(line) for line in lines)


def begin(sidecar: Sidecar, stack: ExitStack) -> dict[str, Far]:
    """Begin one of each that can last."""
    ways = {}
    for name, host in (("waiting", PLAIN), ("answered", PLAIN), ("socket", PLAIN), ("tunnel", TUNNELLED)):
        ways[name] = far = Far(sidecar, stack.enter_context(scripted_upstream(host, None)))
        match name:
            case "waiting":
                far.ask()
            case "answered":
                far.ask().send(HALF)
                far.app.read_until(b"half")
            case "socket":
                far.switch()
            case "tunnel":
                far.tunnel()
    return ways


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_is_cut_off_at_the_end_was_drained(authority: Authority, tmp_path: Path, workers: int) -> None:
    policy = f"{POLICY}\n    drain_timeout: 1\n    workers: {workers}"
    with ExitStack() as stack, Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        ways = begin(sidecar, stack)
        sidecar.signal(signal.SIGTERM)
        assert json.loads(ways["waiting"].app.read_response().body)["reason"] == "drain_timeout"
        assert sidecar.wait() == 1
        lines = {line["destination"]: facts(line) for line in sidecar.decisions()}
        assert lines == {
            ways["waiting"].upstream.authority: ("allow", "drained", "drain_timeout", 503),
            ways["answered"].upstream.authority: ("allow", "drained", "drain_timeout", None),
            ways["socket"].upstream.authority: ("allow", "drained", "drain_timeout", 101),
            ways["tunnel"].upstream.authority: ("tunnel", "drained", "drain_timeout", None),
        }
        assert "requests and tunnels 4" in sidecar.stderr or workers > 1


def test_what_is_silent_for_too_long_was_idle(authority: Authority, tmp_path: Path) -> None:
    policy = f"{POLICY}\n    limits: {{idle_seconds: 1}}"
    with ExitStack() as stack, Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        ways = begin(sidecar, stack)
        wait_until(lambda: len(sidecar.decisions()) == len(ways), seconds=20)
        lines = {line["destination"]: facts(line) for line in sidecar.decisions()}
        assert lines == {
            # The upstream is the one that is silent here.
            ways["waiting"].upstream.authority: ("allow", "upstream_failed", "upstream_timeout", 504),
            ways["answered"].upstream.authority: ("allow", "idle", "idle_timeout", None),
            ways["socket"].upstream.authority: ("allow", "idle", "idle_timeout", 101),
            ways["tunnel"].upstream.authority: ("tunnel", "idle", "idle_timeout", None),
        }
        assert series_of(sidecar.metrics()) == Counter(labels_of(line) for line in sidecar.decisions())


class TestObserve:
    """In observe mode what passes is neither ok nor denied: nothing was enforced. What really ended it is told."""

    def test_its_series_are_its_own(self, authority: Authority, tmp_path: Path) -> None:
        policy = f"{POLICY}\n    mode: observe"
        ends = [
            (whole, PLAIN, ("allow", "observed", None, 503)),
            (whole, REJECTED, ("allow", "observed", "plain_http_rejected", 503)),
            (upstream_cut, PLAIN, ("allow", "upstream_cut", "upstream_cut", None)),
            (left_before, PLAIN, ("allow", "app_left", None, None)),
            (tunnel_closed_by_app, TUNNELLED, ("tunnel", "observed", None, None)),
            (tunnel_to_nobody, TUNNELLED, ("tunnel", "upstream_failed", "upstream_unreachable", 502)),
        ]
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            for end, host, expected in ends:
                with scripted_upstream(host, None) as upstream:
                    far = Far(sidecar, upstream)
                    end(far)
                    line = sidecar.wait_for_decision(lambda line, to=upstream.authority: line["destination"] == to)  # type: ignore[misc]
                    far.app.close()
                assert facts(line) == expected
            assert series_of(sidecar.metrics()) == Counter(labels_of(line) for line in sidecar.decisions())
            samples = sidecar.metrics().samples
            assert {labels["mode"] for _, labels, _ in samples if "rule" in labels and "mode" in labels} == {"observe"}
