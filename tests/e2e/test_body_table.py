"""Each kind of body, in each coding, in each version of HTTP: what arrives has the marked values sealed, or opened, and
every other byte as it was sent.

Proves ARCHITECTURE.md, rule 5, in one table: bodies of requests, opened with joserfc alone, and bodies of responses,
sealed with joserfc alone. A kind or a coding that is added to `bodies` or `CODINGS` is in it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import pytest

from tests.e2e import wire
from tests.e2e.app import connect, request
from tests.e2e.bodies import HOSTS, REQUESTS, RESPONSES, RULES, TEXT_BY_TEXT, Body, assert_sealed, sealed
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.codings import coded_as, decoded_from
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client, Http2Upstream, Message, Reply, speak
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

TOLD = "told.example"
CODINGS = ("identity", "gzip", "deflate", "br", "zstd", "gzip, br", "zstd, identity, deflate")
POLICY = """
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      app: {{alg: A256KW, primary: {{kid: app, file: {app}}}}}
    rules:
{rules}
      - name: told
        hosts: [told.example]
        response: [{{decrypt: ["$.token", "$..secret"], key: app}}]
"""


class Way(Enum):
    """What the app speaks, and the upstream."""

    HTTP1 = "HTTP/1.1"
    CHUNKED = "HTTP/1.1, in chunks of a few bytes"
    HTTP2 = "HTTP/2"
    HTTP2_TO_1 = "HTTP/2, and the upstream HTTP/1.1"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message without what is only its version's.

    Attributes:
        fields: the header fields, names in lower case.
        body: the body.
    """

    fields: dict[str, str]
    body: bytes


def pieces_of(body: bytes) -> list[bytes]:
    """Return a body in pieces of a few bytes, not more than some fifty of them; an empty one in none."""
    size = max(7, len(body) // 50)
    return [piece for start in range(1 - size, len(body), size) if (piece := body[max(0, start) : start + size])]


@pytest.fixture(scope="module")
def sidecar(
    authority: Authority, receiver: Receiver, sender: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """One sidecar for the whole table."""
    folder = tmp_path_factory.mktemp("table")
    policy = POLICY.format(pay=receiver.write_public(folder), app=sender.write_private(folder), rules=RULES)
    hosts = dict.fromkeys((*HOSTS, TOLD), "127.0.0.1")
    with Sidecar(policy, folder, authority=authority, hosts=hosts) as sidecar:
        yield sidecar


class Server:
    """Two upstreams, one for each version, which answer alike."""

    def __init__(self, authority: Authority) -> None:
        self.answer: tuple[str, str, bytes] = ("application/json", "identity", b"{}")
        self.one = TlsUpstream(authority, *HOSTS, TOLD, respond=self._respond)
        self.two = Http2Upstream(authority, *HOSTS, TOLD, answer=self._reply)

    def _fields(self) -> list[tuple[str, str]]:
        kind, coding, _ = self.answer
        return [("Content-Type", kind), *([("Content-Encoding", coding)] if coding != "identity" else [])]

    def _respond(self, got: RecordedRequest) -> list[bytes]:
        body = self.answer[2]
        if got.headers.get("x-chunked") is None:
            return [wire.response(200, body, headers=tuple(self._fields()))]
        head = "".join(f"{name}: {value}\r\n" for name, value in self._fields())
        chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces_of(body)]
        return [f"HTTP/1.1 200 OK\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *chunks, b"0\r\n\r\n"]

    def _reply(self, _: Message) -> Reply:
        return Reply([(":status", "200"), *((name.lower(), value) for name, value in self._fields())], self.answer[2])

    def port(self, way: Way) -> int:
        """Return the port of the upstream for a way."""
        return self.two.port if way is Way.HTTP2 else self.one.port

    def newest(self, way: Way) -> Arrived:
        """Return the request that came last."""
        if way is Way.HTTP2:
            message = self.two.messages[-1]
            return Arrived(dict(message.headers), message.body)
        got = self.one.requests[-1]
        return Arrived({name.lower(): value for name, value in got.headers.fields}, got.body)


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    """What all requests go to."""
    server = Server(authority)
    with server.one, server.two:
        yield server


class App:
    """Keeps one connection open for each host and way."""

    def __init__(self, sidecar: Sidecar, server: Server) -> None:
        self._sidecar, self._server = sidecar, server
        self._ones: dict[str, RawClient] = {}
        self._twos: dict[tuple[str, Way], Http2Client] = {}

    def send(self, way: Way, host: str, fields: list[tuple[str, str]], body: bytes) -> Arrived:
        """Send a request and return its answer, which must be 200."""
        name = f"{host}:{self._server.port(way)}"
        if way in (Way.HTTP2, Way.HTTP2_TO_1):
            two = self._twos.get((host, way)) or self._twos.setdefault((host, way), speak(self._sidecar, name))
            stream = two.begin(name, "/", headers=[(key.lower(), value) for key, value in fields])
            for piece in pieces_of(body):
                two.go_on(stream, piece, last=False)
            two.go_on(stream, b"", last=True)
            message = two.read(stream)
            assert message.status == 200, message
            return Arrived(dict(message.headers), message.body)
        client = self._ones.get(host)
        if client is None:
            client = self._ones[host] = connect(self._sidecar, name)
            client.start_tls(host, self._sidecar.ca_file)
        if way is Way.CHUNKED:
            fields = [*fields, ("X-Chunked", "yes")]
        client.send(
            request("/", name, headers=tuple(fields), body=body, chunks=pieces_of(body) if way is Way.CHUNKED else None)
        )
        answer = client.read_response()
        assert answer.status == 200, answer
        return Arrived({key.lower(): value for key, value in answer.headers.fields}, answer.body)

    def close(self) -> None:
        """Leave."""
        for one in self._ones.values():
            one.close()
        for two in self._twos.values():
            two.close()


@pytest.fixture(scope="module")
def app(sidecar: Sidecar, server: Server) -> Iterator[App]:
    """What sends all requests."""
    app = App(sidecar, server)
    yield app
    app.close()


def labels(body: Body, coding: str) -> list[tuple[str, str]]:
    """Return the fields that say what a body is."""
    return [("Content-Type", body.content_type), *([("Content-Encoding", coding)] if coding != "identity" else [])]


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_arrives_sealed_and_otherwise_as_it_was_sent(
    app: App, server: Server, receiver: Receiver, kind: str, coding: str, way: Way
) -> None:
    server.answer = ("application/json", "identity", b"{}")
    body = REQUESTS[kind]
    app.send(way, body.host, labels(body, coding), coded_as(coding, body.plain))
    got = server.newest(way)
    assert got.fields["content-type"] == body.content_type
    assert got.fields.get("content-encoding", "identity") == coding
    if "content-length" in got.fields:
        assert got.fields["content-length"] == str(len(got.body))
    assert_sealed(decoded_from(coding, got.body), body, receiver, body.host)


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", RESPONSES)
def test_a_response_reaches_the_app_opened_and_otherwise_as_it_was_sent(
    app: App, server: Server, sender: Receiver, kind: str, coding: str, way: Way
) -> None:
    body = RESPONSES[kind]
    server.answer = (body.content_type, coding, coded_as(coding, sealed(body, sender, TOLD)))
    got = app.send(way, TOLD, [("Accept", "*/*")], b"")
    assert got.fields["content-type"] == body.content_type
    # Texts that are opened one by one go on without a coding (docs/policy.md).
    assert got.fields.get("content-encoding", "identity") == ("identity" if kind in TEXT_BY_TEXT else coding)
    assert decoded_from(got.fields.get("content-encoding", "identity"), got.body) == body.plain
