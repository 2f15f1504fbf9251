"""Several apps on one connection to an upstream: what is one's never comes to another, nor holds it up.

Proves ARCHITECTURE's rule 1 (fail closed) where requests of apps that know nothing of each other share what carries
them.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import hpack
import pytest
from h2.exceptions import ProtocolError

from proxy.timelimits import SILENT_SECONDS
from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.frames import (
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    Code,
    Frame,
    Peer,
    block,
    data,
    headers,
    reset,
    settings,
    window_update,
)
from tests.e2e.frameserver import FrameServer, Got, Serving, frame_server
from tests.e2e.http2 import Http2Client, agree_on_http2, frame, speak
from tests.e2e.listeners import listen
from tests.e2e.sidecar import Sidecar

HOST = "far.example"


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("shared")
    policy = "defaults: {https: inspect}"
    with Sidecar(policy, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running
        assert '"level": "error"' not in running.stderr, running.stderr


class Slow:
    """Accepts connections, and ends each after a while without a word."""

    def __init__(self, seconds: float) -> None:
        self.accepted: list[socket.socket] = []
        self._seconds = seconds
        self._listener = listen()
        self.authority = f"{HOST}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                accepted, _ = self._listener.accept()
                self.accepted.append(accepted)
                threading.Timer(self._seconds, accepted.close).start()
        except OSError:
            return  # it is closed

    def close(self) -> None:
        self._listener.close()


@contextmanager
def slow(seconds: float) -> Iterator[Slow]:
    """Make one for as long as it is needed."""
    made = Slow(seconds)
    try:
        yield made
    finally:
        made.close()


class TestDialling:
    """One connection is opened for all who wait."""

    def test_where_it_fails_all_who_wait_are_told_at_once(self, sidecar: Sidecar) -> None:
        with slow(1.0) as upstream:
            apps = [speak(sidecar, upstream.authority) for _ in range(3)]
            started = time.monotonic()
            streams = [app.send(upstream.authority, f"/{each}", method="GET") for app in apps for each in range(4)]
            messages = [app.read(stream) for app in apps for stream in streams[:4]]
            assert time.monotonic() - started < 6  # one after the other: 12
            assert {(each.status, json.loads(each.body)["reason"]) for each in messages} == {(502, "tls_failed")}
            assert len(upstream.accepted) == 1

            def failed() -> int:
                lines = [line for line in sidecar.decisions() if line["destination"] == upstream.authority]
                return sum(line["reason"] == "tls_failed" for line in lines)

            sidecar.wait_for_decision(lambda _: failed() == 12)

    def test_the_next_one_tries_again(self, sidecar: Sidecar) -> None:
        with slow(0.05) as upstream:
            app = speak(sidecar, upstream.authority)
            for _ in range(2):
                assert app.read(app.send(upstream.authority, method="GET")).status == 502
            assert len(upstream.accepted) == 2

    @pytest.mark.parametrize("leaves", ["the connection", "the stream"])
    def test_where_the_first_app_leaves_the_others_are_served(
        self, sidecar: Sidecar, authority: Authority, leaves: str
    ) -> None:
        with frame_server(authority, HOST, hesitates=0.6) as server:
            first, second = speak(sidecar, server.authority), speak(sidecar, server.authority)
            given_up = first.send(server.authority, "/first", method="GET")
            threading.Event().wait(0.1)
            stream = second.send(server.authority, "/second", method="GET")
            threading.Event().wait(0.1)
            if leaves == "the connection":
                first.close()
            else:
                first.give_up(given_up)
            assert second.read(stream).status == 200
            assert [got.path for got in server.requests] == ["/second"]

    def test_one_that_waits_may_leave(self, sidecar: Sidecar, authority: Authority) -> None:
        with frame_server(authority, HOST, hesitates=0.6) as server:
            first, second = speak(sidecar, server.authority), speak(sidecar, server.authority)
            stream = first.send(server.authority, "/first", method="GET")
            threading.Event().wait(0.1)
            second.give_up(second.send(server.authority, "/second", method="GET"))
            again = second.send(server.authority, "/again", method="GET")
            assert [first.read(stream).status, second.read(again).status] == [200, 200]
            assert sorted(got.path for got in server.requests) == ["/again", "/first"]
            assert len(server.connections) == 1


class TestSilence:
    """A connection whose other end is gone says nothing; only what is asked on it can show that."""

    def test_who_gives_up_on_a_silent_connection_has_the_next_one_ask_elsewhere(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        with frame_server(authority, HOST, lambda got: got.reply() if got.peer.number else None) as server:
            app = speak(sidecar, server.authority)
            lost, kept = (app.send(server.authority, f"/{each}", method="GET") for each in range(2))
            server.wait(lambda: len(server.requests) == 2)
            threading.Event().wait(SILENT_SECONDS + 0.3)
            app.give_up(lost)
            assert app.read(app.send(server.authority, "/next", method="GET")).status == 200
            assert server.requests[-1].peer.number == 1
            next(got for got in server.requests if got.path == "/1").reply(b"late")
            assert app.read(kept).body == b"late"

    @pytest.mark.parametrize("speaks", [True, False], ids=["it is not silent", "it has had no time"])
    def test_one_that_is_not_stays_in_use(self, sidecar: Sidecar, authority: Authority, speaks: bool) -> None:
        with frame_server(authority, HOST, lambda got: got.reply() if got.path == "/next" else None) as server:
            app = speak(sidecar, server.authority)
            lost = app.send(server.authority, "/lost", method="GET")
            server.wait(lambda: server.requests)
            threading.Event().wait(SILENT_SECONDS + 0.3 if speaks else 0.3)
            if speaks:
                server.requests[0].peer.send(frame(PING, 0, 0, b"12345678"))
                threading.Event().wait(0.3)
            app.give_up(lost)
            assert app.read(app.send(server.authority, "/next", method="GET")).status == 200
            assert server.requests[-1].peer.number == 0


class TestCrossing:
    def test_each_app_gets_its_own_whatever_the_order(self, sidecar: Sidecar, authority: Authority) -> None:
        waiting: list[Got] = []

        def answer(got: Got) -> None:
            waiting.append(got)
            if len(waiting) == 30:  # the last come first, and their bodies in turns
                for each in reversed(waiting):
                    each.peer.send(headers(each.stream, block((":status", "200"), ("x-of", each.path)), END_HEADERS))
                for part in (b"<", None, b">"):
                    for each in waiting:
                        each.peer.send(data(each.stream, part or each.path.encode() + each.body, last=part == b">"))
                waiting.clear()

        with frame_server(authority, HOST, answer) as server:
            apps = [speak(sidecar, server.authority) for _ in range(3)]
            before = sidecar.open_files()
            for turn in range(10):
                asked = []
                for number in range(10):
                    for which, app in enumerate(apps):
                        path = f"/{turn}/{number}/{which}"
                        stream = app.begin(server.authority, path)
                        app.go_on(stream, path.encode(), last=True)
                        asked.append((app, stream, path))
                for app, stream, path in asked:
                    message = app.read(stream)
                    assert (message.get("x-of"), message.body.decode()) == (path, f"<{path}{path}>")
            assert len({got.peer.number for got in server.requests}) == 1
            assert sidecar.open_files() <= before + 1

    def test_one_that_is_given_up_and_answered_at_once_comes_to_nobody(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            first, second = speak(sidecar, server.authority), speak(sidecar, server.authority)
            secret = first.send(server.authority, "/secret", method="GET")
            server.wait(lambda: server.requests)
            first.give_up(secret)
            stream = second.send(server.authority, "/other", method="GET")
            server.wait(lambda: len(server.requests) == 2)
            one, two = server.requests
            one.reply(b"secret")
            two.reply(b"other")
            assert second.read(stream).body == b"other"
            again = first.send(server.authority, "/again", method="GET")
            server.wait(lambda: len(server.requests) == 3)
            server.requests[-1].reply(b"again")
            assert first.read(again).body == b"again"


class TestWhatIsLeft:
    def test_thousands_of_requests_leave_nothing_behind(self, sidecar: Sidecar, authority: Authority) -> None:
        """Answered, reset and given up in turns."""

        def answer(got: Got) -> None:
            if got.path.endswith("1"):
                got.peer.send(reset(got.stream, Code.INTERNAL_ERROR))
            elif not got.path.endswith("2"):
                got.reply(b"x" * 2000)

        def go(app: Http2Client, server: FrameServer, count: int) -> None:
            for start in range(0, count, 50):
                streams = [app.send(server.authority, f"/{each}", method="GET") for each in range(start, start + 50)]
                for each, stream in enumerate(streams):
                    if each % 10 == 2:
                        app.give_up(stream)
                    else:
                        assert app.read(stream).status == (502 if each % 10 == 1 else 200)

        with frame_server(authority, HOST, answer) as server:
            go(speak(sidecar, server.authority), server, 500)
            memory, files = sidecar.resident_bytes(), sidecar.open_files()
            for _ in range(6):
                app = speak(sidecar, server.authority)
                go(app, server, 500)
                app.close()
            assert sidecar.resident_bytes() - memory < 6 * 1024 * 1024
            assert sidecar.open_files() <= files + 1
            assert len(server.connections) == 1


def test_an_app_that_asks_and_leaves_at_once_again_and_again_costs_no_connection(
    sidecar: Sidecar, authority: Authority
) -> None:
    with frame_server(authority, HOST, lambda got: got.reply() if got.path == "/ok" else None) as server:
        for _ in range(20):
            with RawClient(sidecar.address) as client:
                client.send(f"CONNECT {server.authority} HTTP/1.1\r\nHost: {server.authority}\r\n\r\n".encode())
                assert client.read_response(method="CONNECT").status == 200
                agree_on_http2(client, HOST, sidecar.ca_file)
                fields = (
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":authority", server.authority),
                    (":path", "/gone"),
                )
                Peer(client, PREFACE + settings()).send(*(headers(each, block(*fields)) for each in (1, 3, 5)))
                client.reset()
        app = speak(sidecar, server.authority)
        assert app.read(app.send(server.authority, "/ok", method="GET")).status == 200
        server.wait(lambda: all(got.reset == Code.CANCEL for got in server.requests if got.path == "/gone"))
        assert len(server.connections) <= 2


@pytest.mark.parametrize("order", [(0x00, 0x10, 0x10), (0x40, 0x10, 0x00), (0x10, 0x00, 0x10)])
def test_a_field_that_no_table_may_keep_says_so_whatever_came_before(
    sidecar: Sidecar, authority: Authority, order: tuple[int, ...]
) -> None:
    """RFC 7541, section 7.1.3; the same request with and without the mark."""
    marks, decoder = [], hpack.Decoder()

    class Server(FrameServer):
        def _take(self, peer: Serving, found: Frame) -> None:
            if found.kind == HEADERS:
                fields = decoder.decode(found.payload, raw=True)
                marks.append([not each.indexable for each in fields if each[0] == b"x-key"])
            super()._take(peer, found)

    server = Server(authority, HOST, lambda got: got.reply())
    try:
        client = connect(sidecar, server.authority)
        agree_on_http2(client, HOST, sidecar.ca_file)
        app = Peer(client, PREFACE + settings())
        head = ((":method", "GET"), (":scheme", "https"), (":authority", server.authority), (":path", "/"))
        for number, first in enumerate(order):
            key = bytes((first,)) + block(("x-key", "secret"))[1:]
            app.send(headers(2 * number + 1, block(*head, ("te", "trailers")) + key))
            assert app.head(2 * number + 1).get(":status") == "200"
        assert marks == [[first == 0x10] for first in order]
    finally:
        server.close()


def test_an_upload_leaves_the_others_their_part_of_the_connections_window(
    sidecar: Sidecar, authority: Authority
) -> None:
    """An upstream that opens its windows by 32 KiB, the stream's first, as many do."""
    taken: dict[int, int] = {}

    class Server(FrameServer):
        def _take(self, peer: Serving, found: Frame) -> None:
            if found.kind != DATA or not found.payload or found.is_end:
                super()._take(peer, found)
                return
            taken[found.stream] = taken.get(found.stream, 0) + len(found.payload)
            if sum(taken.values()) >= 32 * 1024:
                time.sleep(0.004)
                opened = [window_update(number, size) for number, size in taken.items()]
                peer.send(*opened, window_update(0, sum(taken.values())))
                taken.clear()

    server = Server(authority, HOST, lambda got: got.reply())
    try:
        first, second = speak(sidecar, server.authority), speak(sidecar, server.authority)
        upload = first.begin(server.authority, "/first", headers=[("te", "trailers")])

        def send() -> None:
            with suppress(OSError, AssertionError, ProtocolError):  # the upstream is gone by then
                first.upload(upload, bytes(32 * 1024 * 1024))

        threading.Thread(target=send, daemon=True).start()
        time.sleep(0.5)
        stream = second.send(server.authority, "/second", method="POST", headers=[("te", "trailers")], body=b"hello")
        started = time.monotonic()
        assert second.read(stream).status == 200
        assert not server.requests[0].is_whole, "the upload was over before"
        assert time.monotonic() - started < 1
        assert len(server.connections) == 1
    finally:
        server.close()
