"""What costs its sender nothing is not taken without end, from apps and from upstreams; others are served meanwhile.

Proves ARCHITECTURE's rule 1 (within bounds) for all of HTTP/2 that carries nothing, and for streams that are reset,
whoever says so (CVE-2019-9512, -9515, -9518, CVE-2023-44487, CVE-2024-27316, CVE-2025-8671).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.engine.apps.conversation import MAX_DISCARDED
from proxy.engine.http2 import RESETS_AT_ONCE
from proxy.engine.http2state import MAX_STREAMS
from tests.e2e import wire
from tests.e2e.app import connect, fresh
from tests.e2e.certificates import Authority
from tests.e2e.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    Code,
    Frame,
    Peer,
    asked,
    block,
    by_hand,
    data,
    headers,
    reset,
    settings,
    window_update,
)
from tests.e2e.frameserver import FrameServer, Got, frame_server
from tests.e2e.http2 import Http2Client, frame
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOST = "far.example"
MIB = 1024 * 1024
AT_MOST = 16 * MIB  # what lies in the buffers of the kernel is in it, which is nearly all
SECONDS = 1.0  # of processor time for it

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="times are read from /proc")


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("floods")
    policy = "defaults: {https: inspect}"
    with Sidecar(policy, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running
        assert '"level": "error"' not in running.stderr, running.stderr


@pytest.fixture(scope="module")
def near(authority: Authority) -> Iterator[TlsUpstream]:
    """What the other apps ask."""
    with fresh(lambda: TlsUpstream(authority, HOST)) as made:
        yield made


def seconds_used(sidecar: Sidecar) -> float:
    """Return the processor time that the sidecar has had."""
    fields = Path(f"/proc/{sidecar.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Reader(threading.Thread):
    """Reads what a connection says, so that it never waits for us; keeps resets and the farewell."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(daemon=True)
        self.peer = peer
        self.lock = LOCKS.setdefault(id(peer.client), threading.Lock())
        self.farewell: Frame | None = None
        self.resets = 0
        self.heads: list[Frame] = []
        self.start()

    def _next(self) -> Frame | None:
        sock = self.peer.client._socket
        while not (sock.pending() or select.select([sock], [], [], 0.05)[0]):  # type: ignore[attr-defined]  # it is TLS
            pass
        with self.lock:
            return self.peer.read()

    def run(self) -> None:
        with suppress(OSError, ValueError):
            while (found := self._next()) is not None:
                if found.kind == GOAWAY:
                    self.farewell = found
                self.resets += found.kind == RST_STREAM
                if found.kind == HEADERS:
                    self.heads.append(found)


# Of a connection's TLS, which no two threads may use at once: OpenSSL would fail in one of them.
LOCKS: dict[int, threading.Lock] = {}


def flood(peer: Peer, frames: Callable[[int], bytes], *, most: int = 48 * MIB) -> int:
    """Send frames until the connection ends; return how many bytes went."""
    sent = number = 0
    with suppress(OSError):
        while sent < most:
            piece = b"".join(frames(number + each) for each in range(200))
            number += 200
            # A send that waits would keep the reader from the connection's TLS, and so from its last words.
            if not select.select([], [peer.client._socket], [], 5)[1]:
                break
            with LOCKS.setdefault(id(peer.client), threading.Lock()):
                peer.send(piece)
            sent += len(piece)
    return sent


OPEN = 1  # a stream whose request is under way
UNDER_WAY = {
    "PING": lambda _: frame(PING, 0, 0, b"12345678"),
    "answers to no PING": lambda _: frame(PING, ACK, 0, b"12345678"),
    "SETTINGS": lambda _: settings(),
    "SETTINGS with a window": lambda n: settings((4, 60_000 + n % 2)),
    "SETTINGS with a table": lambda n: settings((1, 4096 * (n % 2))),
    "an empty DATA": lambda _: data(OPEN, b""),
    "nothing but padding": lambda _: frame(DATA, PADDED, OPEN, b"\x01\x00"),
    "PRIORITY": lambda _: frame(PRIORITY, 0, OPEN, b"\x00\x00\x00\x00\x10"),
    "WINDOW_UPDATE of the connection": lambda _: window_update(0, 1),
    "WINDOW_UPDATE of a stream": lambda _: window_update(OPEN, 1),
    "frames that nobody knows": lambda _: frame(0x16, 0, OPEN, b""),
    "large frames that nobody knows": lambda _: frame(0x16, 0, 0, b"x" * 64),
}


def assert_calmed(sidecar: Sidecar, near: TlsUpstream, peer: Peer, frames: Callable[[int], bytes]) -> Reader:
    """Flood, and see that it ends in time while another app is served."""
    other = Http2Client.open(connect(sidecar, f"{HOST}:{near.port}"), HOST, sidecar.ca_file)
    reader, before = Reader(peer), seconds_used(sidecar)
    sent = flood(peer, frames)
    assert other.read(other.send(f"{HOST}:{near.port}", method="GET")).status == 200
    reader.join(10)
    assert sent < AT_MOST, f"{sent} bytes were taken"
    assert seconds_used(sidecar) - before < SECONDS
    assert reader.farewell is not None, "no GOAWAY came"
    assert Code(reader.farewell.code).name == "ENHANCE_YOUR_CALM"
    return reader


def in_pieces(stream: int, fields: bytes) -> bytes:
    """Return a header block that ends its stream, in as many frames as it takes."""
    pieces = [fields[at : at + 16_000] for at in range(0, len(fields), 16_000)]
    more = [frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:]]
    if not more:
        return headers(stream, fields)
    more[-1] = frame(CONTINUATION, END_HEADERS, stream, pieces[-1])
    return frame(HEADERS, END_STREAM, stream, pieces[0]) + b"".join(more)


def memory_of(sidecar: Sidecar) -> float:
    """Return how many MiB the sidecar has in memory."""
    lines = Path(f"/proc/{sidecar.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


TOO_LONG = block(("x-t", "v" * 14_000)) * 5


class TestFieldsWithoutEnd:
    """What is behind a body is bounded like what is before it."""

    @pytest.mark.parametrize("fields", [block(("x-t", "v")) * 201, TOO_LONG], ids=["many", "long"])
    def test_an_apps_trailers(self, sidecar: Sidecar, near: TlsUpstream, fields: bytes) -> None:
        name = f"{HOST}:{near.port}"
        peer = by_hand(sidecar, name)
        head = asked(name, ("te", "trailers"), method="POST")
        peer.send(headers(1, head, END_HEADERS), data(1, b"x"), in_pieces(1, fields))
        assert peer.head(1).get(":status") == "431"
        peer.send(headers(3, head, END_HEADERS), data(3, b"x"), in_pieces(3, block(("x-t", "v")) * 200))
        assert peer.head(3).get(":status") == "200"

    @pytest.mark.parametrize("what", ["a head", "an interim head", "long trailers", "many trailers"])
    def test_an_upstreams(self, sidecar: Sidecar, authority: Authority, what: str) -> None:
        def answer(got: Got) -> None:
            ok, began = block((":status", "200")), headers(got.stream, block((":status", "200")), END_HEADERS)
            if got.path == "/ok":
                got.peer.send(began, in_pieces(got.stream, block(("x-t", "v")) * 100))
            elif what == "a head":
                got.peer.send(in_pieces(got.stream, ok + TOO_LONG))
            elif what == "an interim head":
                interim = bytearray(in_pieces(got.stream, block((":status", "103")) + TOO_LONG))
                interim[4] &= ~END_STREAM
                got.peer.send(bytes(interim), headers(got.stream, ok))
            else:
                got.peer.send(began, in_pieces(got.stream, TOO_LONG if "long" in what else block(("x-t", "v")) * 101))

        with frame_server(authority, HOST, answer) as server:
            peer = by_hand(sidecar, server.authority)
            peer.send(headers(1, asked(server.authority, ("te", "trailers"))))
            found = peer.find(lambda each: each.stream == 1 and (each.is_end or each.get(":status") == "502"
                                                                 or each.kind == RST_STREAM))  # fmt: skip
            assert found.kind == RST_STREAM if "trailers" in what else found.get(":status") == "502"
            peer.send(headers(3, asked(server.authority, ("te", "trailers"), path="/ok")))
            assert len(peer.end(3).fields) == 100
            assert len(server.connections) == 1

    def test_heads_that_are_refused_are_not_kept(self, sidecar: Sidecar) -> None:
        """A few bytes name cookies that the table has, and that are much once they are one."""
        before, kept = memory_of(sidecar), []
        for letter in b"abcdefghij":
            peer = by_hand(sidecar, f"{HOST}:1")
            named = b"\x40" + block(("cookie", bytes((letter,)) * 4000))[1:]
            peer.send(headers(1, asked(f"{HOST}:1") + named))
            peer.send(b"".join(headers(2 * each + 1, asked(f"{HOST}:1", path=f"/{each}") + b"\xbe" * 33)
                               for each in range(1, 50)))  # fmt: skip
            assert [peer.head(2 * each + 1).get(":status") for each in range(1, 50)] == ["431"] * 49
            kept.append(peer)
        assert memory_of(sidecar) - before < 25
        for peer in kept:
            peer.client.close()


class TestFromApps:
    @pytest.mark.parametrize("frames", UNDER_WAY.values(), ids=UNDER_WAY)
    def test_what_carries_nothing_has_an_end(
        self, sidecar: Sidecar, near: TlsUpstream, frames: Callable[[int], bytes]
    ) -> None:
        name = f"{HOST}:{near.port}"
        peer = by_hand(sidecar, name)
        peer.send(headers(OPEN, asked(name, method="POST"), END_HEADERS))
        assert_calmed(sidecar, near, peer, frames)

    def test_nor_has_a_header_block_of_nothing(self, sidecar: Sidecar, near: TlsUpstream) -> None:
        peer = by_hand(sidecar, f"{HOST}:{near.port}")
        peer.send(frame(HEADERS, 0, 1, b""))
        reader, before = Reader(peer), seconds_used(sidecar)
        assert flood(peer, lambda _: frame(CONTINUATION, 0, 1, b"")) < AT_MOST
        reader.join(10)
        assert seconds_used(sidecar) - before < SECONDS
        assert reader.farewell is not None
        assert reader.farewell.code in (Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR)

    @pytest.mark.parametrize(
        "frames",
        [
            lambda n, head: headers(2 * n + 3, head) + reset(2 * n + 3, Code.CANCEL),
            lambda n, head: headers(2 * n + 3, head, END_HEADERS) + reset(2 * n + 3, Code.CANCEL),
        ],
        ids=["whole requests", "half requests"],
    )
    def test_streams_that_the_app_gives_up_do(
        self, sidecar: Sidecar, near: TlsUpstream, frames: Callable[[int, bytes], bytes]
    ) -> None:
        head = asked(f"{HOST}:{near.port}")
        before = len(near.connections)
        assert_calmed(sidecar, near, by_hand(sidecar, f"{HOST}:{near.port}"), lambda n: frames(n, head))
        assert len(near.connections) - before < 1.5 * RESETS_AT_ONCE

    @pytest.mark.parametrize(
        "provoke",
        [
            lambda n: window_update(n, 0),
            lambda n: window_update(n, 2**31 - 1),
            lambda n: headers(n, block(("x", "y")), END_HEADERS),
            lambda n: data(n, b"more than was said"),
            lambda n: headers(n, block((":path", "/"))),
            lambda n: data(n, b"", last=True) + data(n, b"x"),
        ],
        ids=["a window that opens nothing", "one that overflows", "a second head", "a long body", "bad trailers",
             "DATA behind the end"],
    )  # fmt: skip
    def test_so_do_those_that_we_are_made_to_give_up(
        self, sidecar: Sidecar, near: TlsUpstream, provoke: Callable[[int], bytes]
    ) -> None:
        """MadeYouReset (CVE-2025-8671)."""
        name = f"{HOST}:{near.port}"
        head = asked(name, ("content-length", "3"), method="POST")
        before = len(near.connections)
        frames = lambda n: headers(2 * n + 3, head, END_HEADERS) + provoke(2 * n + 3)  # noqa: E731  # it is one
        assert_calmed(sidecar, near, by_hand(sidecar, name), frames)
        assert len(near.connections) - before < 1.5 * RESETS_AT_ONCE

    @pytest.mark.parametrize(
        "frames",
        [lambda n, head: headers(1, head), lambda n, _: data(1, b""), lambda n, _: reset(1, Code.CANCEL),
         lambda n, _: window_update(1, 1)],
        ids=["HEADERS", "DATA", "RST_STREAM", "WINDOW_UPDATE"],
    )  # fmt: skip
    def test_so_do_frames_for_a_stream_that_is_closed(
        self, sidecar: Sidecar, near: TlsUpstream, frames: Callable[[int, bytes], bytes]
    ) -> None:
        name = f"{HOST}:{near.port}"
        peer = by_hand(sidecar, name)
        peer.send(headers(1, asked(name), END_HEADERS), reset(1, Code.CANCEL))
        assert_calmed(sidecar, near, peer, lambda n: frames(n, asked(name)))

    def test_so_do_streams_beyond_the_limit(self, sidecar: Sidecar, authority: Authority, near: TlsUpstream) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            head = asked(server.authority)
            peer = by_hand(sidecar, server.authority)
            peer.send(*(headers(2 * each + 1, head) for each in range(MAX_STREAMS)))
            server.wait(lambda: len(server.requests) == MAX_STREAMS)
            reader = assert_calmed(sidecar, near, peer, lambda n: headers(2 * (n + MAX_STREAMS) + 1, head))
            assert RESETS_AT_ONCE <= reader.resets < 1.5 * RESETS_AT_ONCE
            assert len(server.requests) == MAX_STREAMS

    def test_a_body_that_nobody_wants_is_taken_for_a_while(self, sidecar: Sidecar, near: TlsUpstream) -> None:
        name = f"{HOST}:{near.port}"
        peer = by_hand(sidecar, name)
        peer.send(headers(1, asked(name, ("x", "a\nb")), END_HEADERS))
        assert peer.head(1).get(":status") == "400"
        for _ in range(MAX_DISCARDED // 16384 + 1):
            peer.send(data(1, bytes(16384)))
        found = peer.find(lambda each: each.kind == RST_STREAM)
        assert (found.stream, found.code) == (1, Code.NO_ERROR)
        peer.send(headers(3, asked(name)))
        assert peer.head(3).get(":status") == "200"

    def test_a_client_that_takes_a_large_response_in_small_steps_is_served(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        """It opens two windows and measures the way for each frame, as some do."""
        size = 12 * MIB
        body = wire.response(200, bytes(size))
        with fresh(lambda: TlsUpstream(authority, HOST, respond=lambda _: body)) as upstream:
            name = f"{HOST}:{upstream.port}"
            peer = by_hand(sidecar, name)
            peer.send(headers(1, asked(name)))
            got = 0
            while got < size:
                each = peer.find(lambda found: found.kind == DATA)
                got += len(each.payload)
                peer.send(window_update(0, len(each.payload)), window_update(1, len(each.payload)),
                          frame(PING, 0, 0, b"12345678"))  # fmt: skip
            assert got == size


class TestFromUpstreams:
    @pytest.mark.parametrize("frames", UNDER_WAY.values(), ids=UNDER_WAY)
    def test_what_carries_nothing_has_an_end(
        self, sidecar: Sidecar, near: TlsUpstream, authority: Authority, frames: Callable[[int], bytes]
    ) -> None:
        def answer(got: Got) -> None:
            got.peer.send(headers(got.stream, block((":status", "200")), END_HEADERS))
            sent.append(flood(got.peer, frames))

        sent: list[int] = []
        with frame_server(authority, HOST, answer) as server:
            self.assert_calmed(sidecar, near, server, sent)

    @pytest.mark.parametrize(
        "frames",
        [lambda n: headers(n, block((":status", "200"))), lambda n: data(n, b""), lambda n: reset(n, Code.CANCEL),
         lambda n: window_update(n, 1), lambda n: data(n, b"x")],
        ids=["HEADERS", "an empty DATA", "RST_STREAM", "WINDOW_UPDATE", "DATA of one byte"],
    )  # fmt: skip
    def test_so_do_frames_for_a_stream_that_is_closed(
        self, sidecar: Sidecar, near: TlsUpstream, authority: Authority, frames: Callable[[int], bytes]
    ) -> None:
        def answer(got: Got) -> None:
            got.peer.send(headers(got.stream, block((":status", "x")), END_HEADERS))  # it is given up
            sent.append(flood(got.peer, lambda _: frames(got.stream)))

        sent: list[int] = []
        with frame_server(authority, HOST, answer) as server:
            self.assert_calmed(sidecar, near, server, sent)

    def assert_calmed(self, sidecar: Sidecar, near: TlsUpstream, server: FrameServer, sent: list[int]) -> None:
        other = Http2Client.open(connect(sidecar, f"{HOST}:{near.port}"), HOST, sidecar.ca_file)
        client = Http2Client.open(connect(sidecar, server.authority), HOST, sidecar.ca_file)
        before = seconds_used(sidecar)
        message = client.read(client.send(server.authority, method="GET"))
        assert other.read(other.send(f"{HOST}:{near.port}", method="GET")).status == 200
        assert message.reset == Code.INTERNAL_ERROR or message.status == 502
        server.wait(lambda: server.connections[0].is_over, "the end")
        assert seconds_used(sidecar) - before < SECONDS
        assert sent[0] < AT_MOST
        assert server.connections[0].goaway in (Code.ENHANCE_YOUR_CALM, None)  # None where a reset overtook it

    def test_one_that_resets_many_streams_ends_no_other(self, sidecar: Sidecar, authority: Authority) -> None:
        """Which streams there are is for us to say, and what makes an upstream reset them may be an app's doing."""

        def answer(got: Got) -> None:
            if got.path == "/bad":
                got.peer.send(reset(got.stream, Code.INTERNAL_ERROR))

        with frame_server(authority, HOST, answer) as server:
            stays = by_hand(sidecar, server.authority)
            stays.send(headers(1, asked(server.authority, path="/stays")))
            server.wait(lambda: server.requests)
            first = server.requests[0]
            client = Http2Client.open(connect(sidecar, server.authority), HOST, sidecar.ca_file)
            for _ in range(2 * RESETS_AT_ONCE):
                assert client.read(client.send(server.authority, "/bad")).status == 502
            first.reply()
            assert stays.head(1).get(":status") == "200"
            assert len(server.connections) == 1
