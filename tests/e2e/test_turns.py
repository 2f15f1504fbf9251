"""Work on an unfriendly body of the greatest size is done piece by piece: other apps are served meanwhile, what was
begun holds to its order, its policy and its keys, and ends with the app that wants it.

Each text takes half a second of the processor or more. What counts is how many requests of another app are answered
before that is over: with all of it done in one turn it was one, or two.
"""

from __future__ import annotations

import json
import signal
import textwrap
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.app import JSON, ask, connect, fresh
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.http2 import Http2Client
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.e2e.websockets import MASK, TEXT, frame

HOST, OPENED, OTHER = "pay.example", "answers.example", "other.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SERVED = 5  # requests of another app, at least, while the work on one text goes on
NUMBERS = b'{"ssn":"1","a":[' + b"1," * 520_000 + b"1]}"  # each is looked at, and all are counted before
LONG = b'{"ssn":"' + b"1" * 10_000_000 + b'"}'  # it is short when compressed, until its value is sealed
QUERIES = json.dumps([{"query": "{" + "a " * 1000 + "}"}] * 60).encode()


def policy_with(key: str, kid: str) -> str:
    return f"""
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: {kid}, file: {key}}}}}}}
        rules:
          - name: pay
            hosts: [{HOST}]
            request: [{{encrypt: ["$.ssn", "$.a[-1].x.*"], graphql_arguments: [ssn], form: [ssn], key: pay}}]
            response: [{{decrypt: ["$.ssn", "$.a[-1].x.*"], key: pay}}]
    """


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver("pay")


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("turns")
    hosts = dict.fromkeys((HOST, OTHER), "127.0.0.1")
    with Sidecar(
        policy_with(receiver.write_private(folder), "pay"), folder, authority=authority, hosts=hosts
    ) as running:
        yield running


@pytest.fixture(scope="module")
def roomy(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One that holds `LONG`."""
    folder = tmp_path_factory.mktemp("roomy")
    policy = textwrap.dedent(policy_with(receiver.write_private(folder), "pay")) + "limits: {held_body: 20000000}\n"
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys((HOST, OTHER), "127.0.0.1")) as running:
        yield running


@pytest.fixture
def other(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    return fresh(lambda: tls_upstream(OTHER))


def authority_of(upstream: TlsUpstream) -> str:
    return f"{HOST}:{upstream.port}"


def served_during(sidecar: Sidecar, other: TlsUpstream, work: Callable[[], object]) -> int:
    """Return how many requests of another app are answered while some work goes on."""
    assert ask(sidecar, other, OTHER, method="GET").status == 200
    is_over = threading.Event()
    failed: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as e:  # told in the test's own thread
            failed.append(e)
        is_over.set()

    thread = threading.Thread(target=do)
    thread.start()
    count = 0
    while not is_over.is_set():
        assert ask(sidecar, other, OTHER, method="GET").status == 200
        count += 1
    thread.join()
    if failed:
        raise failed[0]
    return count


def switched(client: RawClient, upstream: Upstream, more: str = "") -> Accepted:
    """Open a WebSocket, and return the server's end of it.

    Args:
        client: the app's end.
        upstream: the server.
        more: fields of the request, which the response has, too.
    """
    fields = "Upgrade: websocket\r\nConnection: Upgrade\r\n" + more
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    client.send(upstream.request(more=fields + key))
    accepted = upstream.accept()
    accepted.read_head()
    accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    accepted.send(f"HTTP/1.1 101 Switching Protocols\r\n{fields}{accept}\r\n".encode())
    client.read_until(b"\r\n\r\n")
    return accepted


class TestOthersAreServed:
    @pytest.mark.parametrize("text", [NUMBERS, QUERIES], ids=["numbers", "queries"])
    def test_while_a_request_is_sealed(
        self, sidecar: Sidecar, other: TlsUpstream, tls_upstream: Callable[..., TlsUpstream], text: bytes
    ) -> None:
        upstream = fresh(lambda: tls_upstream(HOST, respond=lambda _: OK))

        def work() -> None:
            assert ask(sidecar, upstream, HOST, headers=JSON, body=text).status == 200

        assert served_during(sidecar, other, work) >= SERVED
        (got,) = upstream.requests
        assert len(got.body) == len(text) or text is NUMBERS

    def test_while_a_response_is_opened(self, authority: Authority, sidecar: Sidecar, other: TlsUpstream) -> None:
        with scripted_upstream(HOST, authority) as upstream, RawClient(sidecar.address) as client:
            client.send(upstream.request())
            accepted = upstream.accept()
            accepted.read_head()

            def work() -> None:
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(NUMBERS)}\r\n\r\n"
                accepted.send(head.encode() + NUMBERS)
                assert client.read_response().body == NUMBERS

            assert served_during(sidecar, other, work) >= SERVED

    def test_while_a_line_of_a_response_is_opened(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream
    ) -> None:
        text = NUMBERS[:-1] + b',"t":"eyJ.AAAAAAAAAAAAAAAA."}\n'  # which may hold a token
        with scripted_upstream(HOST, authority) as upstream, RawClient(sidecar.address) as client:
            client.send(upstream.request())
            accepted = upstream.accept()
            accepted.read_head()

            def work() -> None:
                length = len(text) * 2 + 4
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: {length}\r\n\r\n"
                accepted.send(head.encode() + text + b"[1]\n" + text)
                assert client.read_response().body == text + b"[1]\n" + text

            assert served_during(sidecar, other, work) >= SERVED

    def test_while_messages_are_sealed_and_what_is_behind_them_stays_there(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream
    ) -> None:
        small = b'{"a":1}'
        with scripted_upstream(HOST, authority) as upstream, RawClient(sidecar.address) as client:
            accepted = switched(client, upstream)
            frames = frame(TEXT, NUMBERS, mask=b"\0\0\0\0") + frame(TEXT, small, mask=MASK)

            def work() -> None:
                client.send(frames)
                first = accepted.read_exactly(2)
                assert first[0] == TEXT
                length = int.from_bytes(accepted.read_exactly(8), "big")
                mask = accepted.read_exactly(4)
                got = accepted.read_exactly(length)
                head = bytes(byte ^ mask[at % 4] for at, byte in enumerate(got[:12]))
                assert head == b'{"ssn":"eyJh'
                assert len(accepted.read_exactly(2 + 4 + len(small))) == 6 + len(small)

            assert served_during(sidecar, other, work) >= SERVED

    def test_while_a_message_is_compressed_again(
        self, authority: Authority, roomy: Sidecar, other: TlsUpstream
    ) -> None:
        context = zlib.compressobj(wbits=-15)
        packed = context.compress(LONG) + context.flush(zlib.Z_SYNC_FLUSH)
        with scripted_upstream(HOST, authority) as upstream, RawClient(roomy.address) as client:
            accepted = switched(client, upstream, "Sec-WebSocket-Extensions: permessage-deflate\r\n")
            message = frame(0xC1, packed.removesuffix(b"\x00\x00\xff\xff"), mask=MASK)

            def work() -> None:
                client.send(message)
                assert accepted.read_exactly(1) == b"\xc1"

            assert served_during(roomy, other, work) >= SERVED

    def test_while_a_part_of_a_long_form_is_read(
        self, sidecar: Sidecar, other: TlsUpstream, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        upstream = fresh(lambda: tls_upstream(HOST, respond=lambda _: OK))
        start = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
        body = start % b"file" + b"1" * 1_100_000 + b"\r\n" + start % b"operations" + QUERIES + b"\r\n--b--\r\n"
        kind = (("Content-Type", "multipart/form-data; boundary=b"),)

        def work() -> None:
            assert ask(sidecar, upstream, HOST, headers=kind, body=body).status == 200

        assert served_during(sidecar, other, work) >= SERVED
        assert upstream.requests[0].body == body


class TestOrder:
    def test_requests_behind_it_on_one_connection_wait(
        self, authority: Authority, sidecar: Sidecar, other: TlsUpstream
    ) -> None:
        with scripted_upstream(HOST, authority) as upstream, RawClient(sidecar.address) as client:
            more = f"Content-Type: application/json\r\nContent-Length: {len(QUERIES)}\r\n"
            client.send(upstream.request("/1", method="POST", more=more) + QUERIES + upstream.request("/2"))
            accepted = upstream.accept()
            assert accepted.read_head().startswith(b"POST /1 ")
            assert accepted.read_exactly(len(QUERIES)) == QUERIES
            accepted.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
            assert accepted.read_head().startswith(b"GET /2 ")
            accepted.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2")
            assert [client.read_response().body for _ in range(2)] == [b"1", b"2"]

    def test_other_streams_of_its_connection_go_on(
        self, authority: Authority, sidecar: Sidecar, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        upstream = fresh(lambda: tls_upstream(HOST, respond=lambda _: OK))
        client = Http2Client.open(connect(sidecar, authority_of(upstream)), HOST, sidecar.ca_file)
        long = client.begin(authority_of(upstream), "/long", headers=[("content-type", "application/json")])
        client.upload(long, QUERIES)
        short = client.begin(authority_of(upstream), "/short", headers=[("content-type", "application/json")])
        client.go_on(short, b'{"ssn":"1"}', last=True)
        assert client.read(short).status == 200
        assert client.read(long).status == 200
        client.close()
        assert [request.target for request in upstream.requests] == ["/short", "/long"]


class TestItsEnd:
    def test_the_app_leaves(
        self, sidecar: Sidecar, other: TlsUpstream, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        upstream = fresh(lambda: tls_upstream(HOST, respond=lambda _: OK))
        with RawClient(sidecar.address) as client:
            head = f"POST http://{authority_of(upstream)}/left HTTP/1.1\r\nHost: {authority_of(upstream)}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(QUERIES)}\r\n\r\n"
            client.send(head.encode() + QUERIES)
            assert ask(sidecar, other, OTHER, method="GET").status == 200  # it has begun
            client.reset()
        decision = sidecar.wait_for_decision(lambda each: each["path"] == "/left")
        assert decision["outcome"] == "app_left"
        assert decision["bytes_sent"] == 0
        assert ask(sidecar, other, OTHER, method="GET").status == 200
        upstream.settle()
        upstream.assert_untouched()

    @pytest.mark.parametrize("how", ["another policy", "its own end"])
    def test_what_was_complete_is_sealed_as_it_began(
        self,
        authority: Authority,
        tls_upstream: Callable[..., TlsUpstream],
        tmp_path: Path,
        how: str,
    ) -> None:
        upstream, old, new = fresh(lambda: tls_upstream(HOST, respond=lambda _: OK)), Receiver("old"), Receiver("new")
        before, after = (policy_with(each.write_public(tmp_path), each.kid) for each in (old, new))
        before, after = (each.replace("response:", "# response:") for each in (before, after))
        hosts = {HOST: "127.0.0.1", OTHER: "127.0.0.1"}
        other = fresh(lambda: tls_upstream(OTHER))
        with Sidecar(before, tmp_path, authority=authority, hosts=hosts) as sidecar:
            with RawClient(sidecar.address) as client:
                head = f"POST http://{authority_of(upstream)}/ HTTP/1.1\r\nHost: {authority_of(upstream)}\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(NUMBERS)}\r\n\r\n"
                client.send(head.encode() + NUMBERS)
                assert ask(sidecar, other, OTHER, method="GET").status == 200  # it has begun
                if how == "another policy":
                    reload(sidecar, after)
                else:
                    sidecar.signal(signal.SIGTERM)
                assert client.read_response().status == 200
                if how == "its own end":
                    assert sidecar.wait() == 0
            body = json.loads(upstream.requests[0].body)
            assert old.open(body["ssn"].encode(), host=HOST, path="$.ssn") == b'"1"'
