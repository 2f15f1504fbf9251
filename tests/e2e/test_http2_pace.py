"""HTTP/2 takes no more than it can pass on, and what stalls one stream stalls no other.

Proves ARCHITECTURE's rule 1 (fail closed, within bounds) where windows take the place of a socket that is not read.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from proxy.engine.http2state import CONNECTION_WINDOW, STREAM_WINDOW
from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted
from tests.e2e.http2 import Http2Client, Http2Upstream, Message, speak
from tests.e2e.receiver import Receiver
from tests.e2e.scripted import Upstream
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

MIB = 1024 * 1024
BIG = 12 * MIB
HELD_SECONDS = 2
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux's"
)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("pace")
    key = Receiver("pay").write_public(folder)
    policy = f"""
        defaults: {{https: inspect}}
        limits: {{request_seconds: {HELD_SECONDS}}}
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}
        rules: [{{name: held, hosts: [held.example], request: [{{encrypt: ["$.card"], key: pay}}]}}]
    """
    hosts = dict.fromkeys(("far.example", "held.example"), "127.0.0.1")
    with Sidecar(policy, folder, authority=authority, hosts=hosts) as running:
        yield running


@pytest.fixture
def far(authority: Authority) -> Iterator[Upstream]:
    """An upstream that does what the test says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue("far.example").load_into(context)
    with ExitStack() as stack:
        made = Upstream("far.example", context)
        stack.callback(made.close)
        yield made


def send_in_background(server: Accepted, data: bytes) -> Callable[[], None]:
    """Send, however long it takes; return what waits for that."""

    def send() -> None:
        with suppress(OSError):  # the test is over
            server._socket.settimeout(30)
            server.send(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return lambda: thread.join(30)


def test_a_response_that_the_app_does_not_read_waits_at_its_server_and_others_pass(
    sidecar: Sidecar, far: Upstream
) -> None:
    before = sidecar.resident_bytes()
    client = speak(sidecar, far.authority)
    stalled = client.send(far.authority, "/big", method="GET")
    server = far.accept()
    server.read_head()
    wait = send_in_background(server, HEAD % BIG + b"x" * BIG)
    other = client.send(far.authority, "/small", method="GET")
    second = far.accept()
    second.read_head()
    second.send(HEAD % 2 + b"ok")
    assert client.read(other, acknowledging={other}).body == b"ok"
    threading.Event().wait(1)
    assert sidecar.resident_bytes() - before < 6 * MIB
    client.acknowledge(stalled)
    assert len(client.read(stalled).body) == BIG
    wait()
    assert sidecar.resident_bytes() - before < 8 * MIB


def test_so_does_one_of_an_upstream_that_speaks_http2(sidecar: Sidecar, authority: Authority) -> None:
    before = sidecar.resident_bytes()

    def answer(message: Message) -> bytes:
        return b"x" * BIG if message.get(":path") == "/big" else b"ok"

    with Http2Upstream(authority, "far.example", answer=answer) as upstream:
        name = f"far.example:{upstream.port}"
        client = speak(sidecar, name)
        stalled = client.send(name, "/big", method="GET")
        other = client.send(name, "/small", method="GET")
        assert client.read(other, acknowledging={other}).body == b"ok"
        threading.Event().wait(1)
        assert sidecar.resident_bytes() - before < 6 * MIB
        client.acknowledge(stalled)
        assert len(client.read(stalled).body) == BIG


def test_an_upload_that_the_upstream_does_not_read_waits_at_the_app_and_others_pass(
    sidecar: Sidecar, far: Upstream
) -> None:
    client = speak(sidecar, far.authority)
    stalled = client.begin(far.authority, "/upload")
    server = far.accept()
    server.read_head()
    sent = client.send_while_there_is_room(stalled, BIG)
    # The window, and what went into the sockets' buffers and opened it again.
    assert STREAM_WINDOW <= sent < BIG
    other = client.send(far.authority, "/small", method="GET")
    second = far.accept()
    second.read_head()
    second.send(HEAD % 2 + b"ok")
    assert client.read(other).body == b"ok"
    received = 0
    server._socket.settimeout(10)
    while received < sent:
        received += len(server._socket.recv(1 << 20)) or pytest.fail("the upload broke off")
    assert client.send_while_there_is_room(stalled, MIB) == MIB


def test_all_streams_together_have_a_window_as_well(sidecar: Sidecar, far: Upstream) -> None:
    before = sidecar.resident_bytes()
    client = speak(sidecar, far.authority)
    sent = 0
    for number in range(40):
        stream = client.begin(far.authority, f"/{number}")
        sent += client.send_while_there_is_room(stream, 8 * MIB, patience=0.1)
    # Of each, what its connection to the upstream took went on; what stays is bounded by the window.
    assert sidecar.resident_bytes() - before < CONNECTION_WINDOW + 16 * MIB
    client.close()


def test_a_held_body_must_be_whole_in_time_though_nothing_more_comes(sidecar: Sidecar, authority: Authority) -> None:
    with TlsUpstream(authority, "held.example") as upstream:
        name = f"held.example:{upstream.port}"
        client = speak(sidecar, name)
        stream = client.begin(name, headers=[("content-type", "application/json")])
        client.go_on(stream, b'{"card":', last=False)
        message = client.read(stream)
        assert (message.status, b"request_timeout" in message.body) == (408, True)
        upstream.assert_no_application_bytes()


@pytest.mark.parametrize("end", ["a second response", "the end", "a reset"])
def test_an_answer_that_comes_before_the_request_is_whole_is_the_answer(
    sidecar: Sidecar, far: Upstream, end: str
) -> None:
    client = speak(sidecar, far.authority)
    stream = client.begin(far.authority)
    client.go_on(stream, b"abc", last=False)
    server = far.accept()
    server.read_head()
    server.send(HEAD % 2 + b"ok")
    threading.Event().wait(0.2)
    if end == "a second response":
        server.send(wire.response(400, b"stray"))
    elif end == "the end":
        server.close()
    else:
        server.reset()
    threading.Event().wait(0.2)
    client.go_on(stream, b"def", last=True)
    message = client.read(stream)
    assert (message.status, message.body, message.reset) == (200, b"ok", None)
    again = client.send(far.authority, method="GET")
    second = far.accept()
    second.read_head()
    second.send(HEAD % 0)
    assert client.read(again).status == 200
    assert '"level": "error"' not in sidecar.stderr


class TestEarlyAnswers:
    """An upstream may answer before the request is whole; what an app still sends then is of no use to anybody."""

    TOO_LARGE = wire.response(413, b"no more")

    def begin(self, sidecar: Sidecar, far: Upstream) -> tuple[Http2Client, int, Accepted]:
        """Have a request answered that has not ended; return its app, its stream and its upstream."""
        client = speak(sidecar, far.authority)
        stream = client.begin(far.authority, "/upload")
        client.go_on(stream, b"abc", last=False)
        server = far.accept()
        server.read_head()
        server.send(self.TOO_LARGE)
        return client, stream, server

    def assert_answered(self, message: Message) -> None:
        assert (message.status, message.body, message.ended, message.reset) == (413, b"no more", True, None)

    def test_the_app_has_its_answer_whole_before_it_has_ended_its_request(
        self, sidecar: Sidecar, far: Upstream
    ) -> None:
        client, stream, server = self.begin(sidecar, far)
        self.assert_answered(client.read(stream))
        client.go_on(stream, b"def", last=True)
        again = client.send(far.authority, "/next", method="GET")
        second = far.accept()
        second.read_head()
        second.send(HEAD % 2 + b"ok")
        assert client.read(again).body == b"ok"
        self.assert_answered(client.read(stream))  # nothing more has come of it
        assert not server.read_to_end().endswith(b"0\r\n\r\n")  # what came behind the answer is of no use to it

    def test_an_app_that_gives_it_up_then_leaves_no_connection_open(self, sidecar: Sidecar, far: Upstream) -> None:
        client, stream, server = self.begin(sidecar, far)
        self.assert_answered(client.read(stream))
        client.give_up(stream)
        assert not server.read_to_end().endswith(b"0\r\n\r\n")


def test_bodies_that_were_held_are_freed_once_they_are_answered(sidecar: Sidecar, authority: Authority) -> None:
    body = b'{"free":"' + b"x" * 900_000 + b'","card":1}'
    # Each on a connection of its own there: what an upstream keeps of one grows with each piece that comes.
    answer = wire.response(200, headers=(("Connection", "close"),))
    with TlsUpstream(authority, "held.example", respond=lambda _: answer) as upstream:
        name = f"held.example:{upstream.port}"
        client = speak(sidecar, name)

        def ask() -> None:
            stream = client.begin(name, headers=[("content-type", "application/json")])
            client.upload(stream, body)
            assert client.read(stream).status == 200

        ask()
        before = sidecar.resident_bytes()
        for _ in range(60):
            ask()
        assert sidecar.resident_bytes() - before < 40 * MIB
        assert all(len(got.body) > 900_000 for got in upstream.wait_for_requests(61))
