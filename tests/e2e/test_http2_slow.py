"""What an app begins on a connection of HTTP/2 it must end in time; what it has not begun may take as long as it likes.

Proves ARCHITECTURE's rules 1 (fail closed, within bounds) and 7 (say why): who holds a connection open with half of
something is closed, with a line that says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hpack import Encoder

from proxy.engine.http2 import MAX_BLOCK
from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.http2 import Http2Client, agree_on_http2, frame
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Decision, Sidecar

SECONDS = 1
AT_MOST = 2.5 * SECONDS  # it is looked at four times in that time; the rest is for a machine that is busy
HOST = "far.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DATA, HEADERS, SETTINGS, PING, CONTINUATION = 0, 1, 4, 6, 9  # RFC 9113, section 6
END_STREAM, END_HEADERS = 1, 4
START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = f"""
        defaults: {{https: inspect}}
        limits: {{request_seconds: {SECONDS}}}
    """
    with Sidecar(policy, tmp_path_factory.mktemp("slow"), authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        assert running.ca_file.exists()  # asked for now: the command takes longer than an app has here
        yield running


@pytest.fixture
def far(authority: Authority) -> Iterator[Upstream]:
    with scripted_upstream(HOST, authority) as made:
        yield made


@pytest.fixture
def app(sidecar: Sidecar, far: Upstream) -> Iterator[RawClient]:
    """An app that may begin to speak HTTP/2."""
    with connect(sidecar, far.authority) as client:
        agree_on_http2(client, HOST, sidecar.ca_file)
        yield client


def block(authority: str) -> bytes:
    """Return a request's header block."""
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", "/")]
    return bytes(Encoder().encode(fields))


def pieces(authority: str) -> list[bytes]:
    """Return what an app sends for one request, cut where it must not stop."""
    ping = frame(PING, 0, 0, b"12345678")
    fields = block(authority)
    headers = frame(HEADERS, END_STREAM, 1, fields[:5])
    rest = frame(CONTINUATION, END_HEADERS, 1, fields[5:])
    return [b"", START[:10], START[10:30], START[30:] + ping[:5], ping[5:9], ping[9:12], ping[12:] + headers[:9],
            headers[9:12], headers[12:], rest[:9], rest[9:-1], rest[-1:]]  # fmt: skip


BEGUN = {
    "nothing": 1,
    "half a preface": 2,
    "half the header of the first frame": 3,
    "half a frame's header": 4,
    "a frame's header": 5,
    "half a frame": 6,
    "the header of a header block": 7,
    "half a frame of a header block": 8,
    "half a header block": 9,
    "the header of its last frame": 10,
    "all but a byte": 11,
}


def lines_of_lateness(sidecar: Sidecar) -> list[Decision]:
    return [line for line in sidecar.decisions() if line["reason"] == "request_timeout"]


def assert_ended_in_time(sidecar: Sidecar, app: RawClient, *, since: float, before: list[Decision]) -> None:
    app.read_to_end()
    assert SECONDS * 0.9 <= time.monotonic() - since <= AT_MOST
    sidecar.wait_for_decision(lambda _: len(lines_of_lateness(sidecar)) > len(before))
    (line,) = [line for line in lines_of_lateness(sidecar) if line not in before]
    assert (line["action"], line["status"], line["client"]) == ("deny", None, "127.0.0.1")


@pytest.mark.parametrize("count", BEGUN.values(), ids=BEGUN)
def test_what_is_begun_and_not_ended_ends_the_connection(
    sidecar: Sidecar, far: Upstream, app: RawClient, count: int
) -> None:
    before, since = lines_of_lateness(sidecar), time.monotonic()
    app.send(b"".join(pieces(far.authority)[:count]))
    assert_ended_in_time(sidecar, app, since=since, before=before)
    far.assert_nobody_came()


@pytest.mark.parametrize("count", BEGUN.values(), ids=BEGUN)
def test_what_is_ended_in_time_passes(sidecar: Sidecar, far: Upstream, app: RawClient, count: int) -> None:
    app.send(b"".join(pieces(far.authority)[:count]))
    threading.Event().wait(SECONDS / 4)
    app.send(b"".join(pieces(far.authority)[count:]))
    with far.accept() as server:
        assert server.read_head().startswith(b"GET / HTTP/1.1\r\n")
        server.send(OK)
        app.read_until(b"ok")


@contextmanager
def slowly(app: RawClient, data: list[bytes]) -> Iterator[None]:
    """Send one piece after the other, in the background."""
    is_over = threading.Event()

    def send() -> None:
        for piece in data:
            if is_over.wait(SECONDS / 5):
                return
            try:
                app.send(piece)
            except OSError:  # closed, as it should be
                return

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    is_over.set()
    thread.join(5)


@pytest.mark.parametrize(
    "data",
    [
        [frame(CONTINUATION, 0, 1, b"")] * 50,
        [bytes([byte]) for byte in frame(CONTINUATION, 0, 1, b"\0" * 100)],
    ],
    ids=["frame by frame", "byte by byte"],
)
def test_a_header_block_has_one_time_however_it_comes(
    sidecar: Sidecar, far: Upstream, app: RawClient, data: list[bytes]
) -> None:
    before, since = lines_of_lateness(sidecar), time.monotonic()
    app.send(START + frame(HEADERS, END_STREAM, 1, block(far.authority)))
    with slowly(app, data):
        assert_ended_in_time(sidecar, app, since=since, before=before)
    far.assert_nobody_came()


def test_a_body_that_streams_may_come_as_slowly_as_it_likes(sidecar: Sidecar, far: Upstream) -> None:
    client = Http2Client.open(connect(sidecar, far.authority), HOST, sidecar.ca_file)
    stream = client.begin(far.authority)
    with far.accept() as server:
        server.read_head()
        body = bytes(range(12))
        whole = frame(DATA, END_STREAM, stream, body)
        for piece in (whole[:9], whole[9:15], whole[15:]):  # for longer than that, either time, it is not whole
            client.send_raw(piece)
            threading.Event().wait(SECONDS * 1.3)
        assert server.read_exactly(17 + 5) == b"c\r\n" + body + b"\r\n0\r\n\r\n"
        server.send(OK)
        assert client.read(stream).body == b"ok"


def test_a_connection_on_which_nothing_is_begun_may_wait(sidecar: Sidecar, far: Upstream) -> None:
    client = Http2Client.open(connect(sidecar, far.authority), HOST, sidecar.ca_file)
    for path in ("/first", "/second"):
        threading.Event().wait(SECONDS * 1.6)
        stream = client.send(far.authority, path, method="GET")
        with far.accept() as server:
            assert server.read_head().startswith(b"GET %s HTTP/1.1\r\n" % path.encode())
            server.send(OK)
            assert client.read(stream).body == b"ok"


@pytest.mark.parametrize(("size", "is_taken"), [(MAX_BLOCK - 10_000, True), (MAX_BLOCK + 1, False)])
def test_a_header_block_without_an_end_closes_the_connection_once_it_is_too_long(
    far: Upstream, app: RawClient, size: int, is_taken: bool
) -> None:
    since = time.monotonic()
    app.send(START + frame(HEADERS, END_STREAM, 1, b"\0" * 1000))
    for start in range(1000, size, 10_000):
        app.send(frame(CONTINUATION, 0, 1, b"\0" * min(10_000, size - start)))
    app.read_to_end()  # at the latest when it should have ended
    assert (time.monotonic() - since > SECONDS * 0.9) == is_taken
    far.assert_nobody_came()
