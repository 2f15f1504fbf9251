"""A message of HTTP/2 is as long as its head says, or it is none: its end is a frame, but what reads on reads lengths.

Proves ARCHITECTURE's rule 1 (fail closed) where the end of a stream and a Content-Length contradict each other
(RFC 9113, section 8.1.1), which is how requests are smuggled into HTTP/1 ("H2.CL").
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.http2 import HeaderList, Http2Client, Http2Upstream, Message, Reply, speak
from tests.e2e.receiver import Receiver
from tests.e2e.scripted import Upstream
from tests.e2e.sidecar import Sidecar

STREAMED, HELD = "far.example", "held.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
JSON = ("content-type", "application/json")
TRAILERS = [("x-trailer", "1")]


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("lengths")
    key = Receiver("pay").write_public(folder)
    policy = f"""
        defaults: {{https: inspect}}
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}
        rules: [{{name: held, hosts: [{HELD}], request: [{{encrypt: ["$.card"], key: pay}}]}}]
    """
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys((STREAMED, HELD), "127.0.0.1")) as running:
        yield running


@pytest.fixture(params=[STREAMED, HELD])
def far(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Upstream]:
    """An upstream of HTTP/1, whose requests are streamed or held."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue(request.param).load_into(context)
    with ExitStack() as stack:
        made = Upstream(request.param, context)
        stack.callback(made.close)
        yield made


def head(authority: str, *fields: tuple[str, str]) -> HeaderList:
    return [(":method", "POST"), (":scheme", "https"), (":authority", authority), (":path", "/"), JSON, *fields]


class TestRequests:
    def test_a_length_without_a_body_is_refused_before_anything_leaves(self, sidecar: Sidecar, far: Upstream) -> None:
        client = speak(sidecar, far.authority)
        message = client.read(client.begin_raw(head(far.authority, ("content-length", "5")), last=True))
        assert (message.status, json.loads(message.body)["reason"]) == (400, "bad_request")
        far.assert_nobody_came()

    @pytest.mark.parametrize("length", [[], [("content-length", "0")]], ids=["none", "0"])
    def test_no_length_or_that_of_nothing_passes(self, sidecar: Sidecar, far: Upstream, length: HeaderList) -> None:
        client = speak(sidecar, far.authority)
        stream = client.begin_raw(head(far.authority, *length), last=True)
        server = far.accept()
        assert server.read_head().startswith(b"POST / HTTP/1.1\r\n")
        server.assert_silent()
        server.send(OK)
        assert client.read(stream).body == b"ok"

    def test_one_that_is_too_long_for_its_body_is_refused_where_trailers_end_it(
        self, sidecar: Sidecar, far: Upstream
    ) -> None:
        client = speak(sidecar, far.authority)
        stream = client.begin_raw(head(far.authority, ("content-length", "9")))
        client.go_on(stream, b'{"a":1}', last=False)
        if far.host == STREAMED:
            server = far.accept()
            assert b"\r\ncontent-length: 9\r\n" in server.read_head()
            assert server.read_exactly(7) == b'{"a":1}'
        client.end_with(stream, TRAILERS)
        message = client.read(stream)
        assert (message.status, json.loads(message.body)["reason"]) == (400, "bad_request")
        if far.host == STREAMED:
            assert server.read_to_end() == b""  # two bytes short of a request
        else:
            far.assert_nobody_came()
        self.assert_alive(client, far)

    def test_one_that_is_right_passes_where_trailers_end_it(self, sidecar: Sidecar, far: Upstream) -> None:
        client = speak(sidecar, far.authority)
        stream = client.begin_raw(head(far.authority, ("content-length", "7")))
        client.go_on(stream, b'{"a":1}', last=False)
        client.end_with(stream, TRAILERS)
        server = far.accept()
        assert b"\r\ncontent-length: 7\r\n" in server.read_head()
        assert server.read_exactly(7) == b'{"a":1}'
        server.assert_silent()
        server.send(OK)
        assert client.read(stream).body == b"ok"

    @pytest.mark.parametrize("far", [STREAMED], indirect=True)  # a held one is not answered before it is whole
    def test_one_that_is_wrong_once_it_is_answered_harms_no_other_stream(self, sidecar: Sidecar, far: Upstream) -> None:
        client = speak(sidecar, far.authority)
        stream = client.begin_raw(head(far.authority, ("content-length", "9")))
        client.go_on(stream, b"abc", last=False)
        server = far.accept()
        server.read_head()
        server.send(OK)
        assert client.read(stream).body == b"ok"
        client.end_with(stream, TRAILERS)
        assert server.read_exactly(3) == b"abc"
        assert server.read_to_end() == b""
        self.assert_alive(client, far)

    def assert_alive(self, client: Http2Client, far: Upstream) -> None:
        """Check that another stream of the same connection is served."""
        stream = client.send(far.authority, "/next", method="GET")
        server = far.accept()
        assert server.read_head().startswith(b"GET /next HTTP/1.1\r\n")
        server.send(OK)
        assert client.read(stream).body == b"ok"


class TestResponses:
    """Of an upstream that speaks HTTP/2."""

    def ask(self, sidecar: Sidecar, authority: Authority, reply: Reply, method: str = "GET") -> Message:
        def answer(message: Message) -> Reply:
            return reply if message.get(":path") == "/" else Reply([(":status", "200")], b"ok")

        with Http2Upstream(authority, STREAMED, answer=answer) as upstream:
            name = f"{STREAMED}:{upstream.port}"
            client = speak(sidecar, name)
            message = client.read(client.send(name, method=method))
            again = client.read(client.send(name, "/next", method="GET"))  # the app's connection lives on
            assert (again.status, again.body) == (200, b"ok")
            return message

    def test_a_length_without_a_body_is_no_response(self, sidecar: Sidecar, authority: Authority) -> None:
        message = self.ask(sidecar, authority, Reply([(":status", "200"), ("content-length", "5")]))
        assert (message.status, json.loads(message.body)["reason"]) == (502, "upstream_failed")

    @pytest.mark.parametrize(
        ("method", "status", "length"),
        [("HEAD", "200", "5"), ("GET", "304", "5"), ("HEAD", "404", "5"), ("GET", "200", "0"), ("GET", "204", "0")],
    )
    def test_where_none_can_follow_or_the_length_is_that_of_nothing_it_is_one(
        self, sidecar: Sidecar, authority: Authority, method: str, status: str, length: str
    ) -> None:
        reply = Reply([(":status", status), ("content-length", length)])
        message = self.ask(sidecar, authority, reply, method)
        assert (message.status, message.body, message.reset) == (int(status), b"", None)
        assert message.get("content-length") == (length if status != "204" else None)  # RFC 9110, section 8.6

    @pytest.mark.parametrize(("length", "is_whole"), [("3", True), ("4", False)])
    def test_one_that_is_wrong_where_trailers_end_it_is_not_passed_on_as_whole(
        self, sidecar: Sidecar, authority: Authority, length: str, is_whole: bool
    ) -> None:
        reply = Reply([(":status", "200"), ("content-length", length)], b"abc", TRAILERS)
        message = self.ask(sidecar, authority, reply)
        assert (message.status, message.ended, message.reset is None) == (200, is_whole, is_whole)
