"""Who is on call reads off lines and metrics what went wrong in HTTP/2, and who did it.

Proves ARCHITECTURE's rule 7 (say why) where a connection carries many requests and either end may break it.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.e2e import wire
from tests.e2e.app import fresh, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.frames import (
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    PING,
    Code,
    Peer,
    asked,
    by_hand,
    data,
    goaway,
    headers,
    reset,
)
from tests.e2e.frameserver import Got, frame_server
from tests.e2e.http2 import HeaderList, Http2Upstream, Message, frame, speak
from tests.e2e.sidecar import Decision, Sidecar
from tests.e2e.upstream import TlsUpstream

HOST = "far.example"
GRPC: HeaderList = [("te", "trailers"), ("content-type", "application/grpc")]


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("words")
    with Sidecar("defaults: {https: inspect}", folder, authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running


def line_of(sidecar: Sidecar, path: str) -> Decision:
    return sidecar.wait_for_decision(lambda line: line["path"] == path)


def opened(sidecar: Sidecar) -> float:
    return sidecar.metrics().value("overcoat_upstream_connections_total", result="miss") or 0


class TestGrpcNeedsHttp2:
    """A call that leaves in HTTP/1.1 would come back as what no client understands, and count as a success."""

    def assert_told(self, sidecar: Sidecar, message: Message, path: str) -> None:
        assert (message.get(":status"), message.get("grpc-status")) == ("200", "14")
        line = line_of(sidecar, path)
        assert (line["outcome"], line["reason"]) == ("upstream_failed", "upstream_failed")
        assert "needs HTTP/2" in line["detail"] or "HTTP_1_1_REQUIRED" in line["detail"]

    def test_a_server_of_http_1_is_not_sent_a_call(self, sidecar: Sidecar, authority: Authority) -> None:
        with fresh(lambda: TlsUpstream(authority, HOST)) as upstream:
            name = f"{HOST}:{upstream.port}"
            client = speak(sidecar, name)
            for path in ("/one", "/again"):  # the second time that is known
                self.assert_told(sidecar, client.read(client.send(name, path, headers=GRPC, body=b"\0" * 5)), path)
            upstream.assert_no_application_bytes()
            twin = [("te", "trailers"), ("content-type", "application/json")]
            assert client.read(client.send(name, headers=twin, body=b"{}")).status == 200

    def test_what_is_required_of_another_request_is_not_required_of_it(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        def http1(accepted: Accepted) -> None:
            accepted.read_head()
            accepted.send(wire.response(200, b'"old"'))

        def answer(got: Got) -> None:
            if got.path in ("/legacy", "/call-that-may-not"):
                got.peer.send(reset(got.stream, Code.HTTP_1_1_REQUIRED))
            else:
                got.reply(b"new")

        with frame_server(authority, HOST, answer, alpn=("h2", "http/1.1"), http1=http1) as server:
            client = speak(sidecar, server.authority)
            assert client.read(client.send(server.authority, "/legacy", method="GET")).body == b'"old"'
            message = client.read(client.send(server.authority, "/call", headers=GRPC, body=b"\0" * 5))
            assert (message.status, message.body) == (200, b"new")
            message = client.read(client.send(server.authority, "/call-that-may-not", headers=GRPC, body=b"\0" * 5))
            self.assert_told(sidecar, message, "/call-that-may-not")


class TestUpstreams:
    def test_a_stream_that_is_reset_is_asked_for_once_and_opens_no_connection(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        def answer(got: Got) -> None:
            if got.path == "/first":
                got.reply(b"ok")
            else:
                got.peer.send(reset(got.stream, Code.INTERNAL_ERROR))

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            assert client.read(client.send(server.authority, "/first", method="GET")).body == b"ok"
            before = opened(sidecar)
            for number in range(10):
                head = [(":method", "GET"), (":scheme", "https"), (":authority", server.authority)]
                message = client.read(client.begin_raw([*head, (":path", f"/{number}")], last=True))
                assert "reset the stream (INTERNAL_ERROR)" in json.loads(message.body)["detail"]
            server.wait_for(11)
            assert (len(server.connections), opened(sidecar)) == (1, before)

    def test_a_connection_that_is_opened_is_counted_once_however_many_wait(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        with frame_server(authority, HOST, lambda got: got.reply(b"ok")) as server:
            before = opened(sidecar)
            client = speak(sidecar, server.authority)
            streams = [client.send(server.authority, f"/{number}", method="GET") for number in range(8)]
            assert [client.read(stream).body for stream in streams] == [b"ok"] * 8
            assert opened(sidecar) == before + len(server.connections) == before + 1

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            (lambda n: data(n, b"x"), "broke the rules of HTTP/2 in its stream (PROTOCOL_ERROR)"),
            (lambda n: reset(n, Code.PROTOCOL_ERROR), "reset the stream (PROTOCOL_ERROR)"),
            (lambda _: goaway(2**31 - 1, Code.INTERNAL_ERROR), "(GOAWAY, INTERNAL_ERROR)"),
            (lambda _: goaway(0, Code.ENHANCE_YOUR_CALM), "(GOAWAY, ENHANCE_YOUR_CALM); so it was 4 times"),
            (lambda n: frame(9, 0, n, b""), "breaks HTTP/2 on its connection: a frame that may not be, or not now"),
            (lambda _: frame(PING, 0, 0, b"12345678") * 2000, "too many frames that carry nothing, such as PING"),
        ],
        ids=["its fault", "its word", "GOAWAY", "GOAWAY for all", "a frame out of place", "a flood"],
    )
    def test_who_ended_it_and_how_is_told(
        self, sidecar: Sidecar, authority: Authority, what: Callable[[int], bytes], words: str
    ) -> None:
        def answer(got: Got) -> None:
            with suppress(OSError):  # it may be closed by now
                got.peer.send(what(got.stream))
                if "GOAWAY, INTERNAL" in words:
                    got.peer.client.close()

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            message = client.read(client.send(server.authority, "/", method="POST", body=b"{}"))
            assert words in json.loads(message.body)["detail"]

    def test_one_that_speaks_only_http_2_is_told_of_to_an_app_of_http_1(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        def ask(name: str, path: str) -> Decision:
            with RawClient(sidecar.address) as app:
                app.send(request(f"http://{name}{path}", name))
                app.read_response()
            return line_of(sidecar, path)

        with Http2Upstream(authority, HOST) as server:  # it agrees on nothing, and speaks
            line = ask(f"{HOST}:{server.port}", "/speaks")
            assert "seems to speak only HTTP/2" in line["detail"]
            assert line["tls"] is not None


class TestApps:
    """What Overcoat cuts off is not called the app's own end."""

    def end_by_pings(self, peer: Peer) -> None:
        with suppress(OSError, ssl.SSLError):
            for _ in range(20):
                peer.send(frame(PING, 0, 0, b"12345678") * 200)
        with suppress(OSError, ValueError):
            while (found := peer.read()) is not None:
                if found.kind == GOAWAY:
                    break

    def test_a_flood_is_the_reason_of_what_was_under_way(self, sidecar: Sidecar, authority: Authority) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            peer = by_hand(sidecar, server.authority)
            peer.send(headers(1, asked(server.authority, path="/slow"), END_HEADERS | END_STREAM))
            server.wait_for(1)
            self.end_by_pings(peer)
            line = line_of(sidecar, "/slow")
            assert (line["action"], line["reason"], line["status"]) == ("deny", "bad_request", None)
            assert "too many frames that carry nothing, such as PING (ENHANCE_YOUR_CALM)" in line["detail"]

    def test_where_nothing_is_it_has_a_line_of_its_own(self, sidecar: Sidecar, authority: Authority) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            before = len(sidecar.decisions())
            self.end_by_pings(by_hand(sidecar, server.authority))
            sidecar.wait_for_decision(
                lambda _: any(line["reason"] == "bad_request" for line in sidecar.decisions()[before:])
            )
            (line,) = [each for each in sidecar.decisions()[before:] if each["reason"] == "bad_request"]
            assert (line["action"], line["client"]) == ("deny", "127.0.0.1")
