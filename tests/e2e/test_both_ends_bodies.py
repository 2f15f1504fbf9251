"""Both ends, each kind of body: app and server see what they see without any sidecar, and nothing is readable between.

Proves for each kind, coding and version of HTTP that a forward sidecar and a mirror undo what the other does, bit for
bit; that what a gateway between them reads has tokens in place of the marked values, which joserfc opens, and is
otherwise as it was sent; and that a request that passes two sidecars of apps, or is sent again as a gateway saw it, is
sealed once. Heads are in `test_both_ends`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from tests.e2e import bodies, wire
from tests.e2e.app import connect, request
from tests.e2e.bodies import REQUESTS, RESPONSES, TEXT_BY_TEXT, Body, assert_sealed
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.codings import coded_as, decoded_from
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import speak
from tests.e2e.mirrors import peer, write_identity
from tests.e2e.receiver import Receiver
from tests.e2e.relay import Relay
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream

TOLD = "told.example"
NAMES = (*bodies.HOSTS, TOLD)
CODINGS = ("identity", "gzip", "deflate", "br", "zstd", "gzip, br")
RULES = (
    bodies.RULES
    + """
      - name: told
        hosts: [told.example]
        request: [{encrypt: ["$.ssn"], key: pay, digests: recompute, signed: pass}]
        response: [{decrypt: ["$.token", "$..secret"], key: app}]
"""
)
KEYS = """
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      app: {{alg: A256KW, primary: {{kid: app, file: {app}}}}}
    rules:
"""


class Way(Enum):
    """What the app and both sidecars speak; the server speaks HTTP/1.1."""

    HTTP1 = "http/1.1"
    HTTP2 = "h2"


@dataclass(frozen=True, slots=True)
class Seen:
    """What app, server and gateway saw of one exchange.

    Attributes:
        got: the request, as the server read it.
        status: the answer's status.
        fields: the answer's fields, names in lower case.
        body: the answer's body.
        asked: the body of the request between the sidecars.
        told: that of the response.
    """

    got: RecordedRequest
    status: int
    fields: dict[str, str]
    body: bytes
    asked: bytes = b""
    told: bytes = b""


def answering(got: RecordedRequest) -> bytes:
    """Answer with the kind of body that the path names, in the coding that it names."""
    _, _, kind, coding = unquote(got.target).split("/")
    if kind not in RESPONSES:
        return wire.response(200, b'{"done": true }')
    body = RESPONSES[kind]
    coding = coding.replace("+", ", ")
    fields = (("Content-Type", body.content_type), ("Content-Encoding", coding))
    return wire.response(200, coded_as(coding, body.plain), headers=fields[: 1 if coding == "identity" else 2])


class Between:
    """An app's sidecar, a server's, and gateways between them."""

    def __init__(
        self,
        authority: Authority,
        receiver: Receiver,
        sender: Receiver,
        make: pytest.TempPathFactory,
        stack: ExitStack,
    ) -> None:
        self.server = stack.enter_context(PlainUpstream(respond=answering))
        self._make, self._stack, self._authority = make, stack, authority
        self._receiver, self._sender = receiver, sender
        self.beside = self.mirror(f"http://127.0.0.1:{self.server.port}")
        self.relays = {
            way: stack.enter_context(Relay(authority, NAMES, self.beside.address, alpn=way.value)) for way in Way
        }
        self.front = self.forward()
        self._ones: dict[tuple[Sidecar, str], RawClient] = {}

    def mirror(self, to: str) -> Sidecar:
        """Start a sidecar before a server.

        Args:
            to: the server.
        """
        folder = self._make.mktemp("mirror")
        write_identity(folder, self._authority.issue(*NAMES, "127.0.0.1"))
        names = "&".join(f"for={name}" for name in NAMES)
        listen = f"mirror://127.0.0.1:0?to={to}&{names}&cert=server.pem&key=server.key"
        keys = KEYS.format(pay=self._receiver.write_private(folder), app=self._sender.write_private(folder))
        mirrored = RULES.replace("encrypt:", "?:").replace("decrypt:", "encrypt:").replace("?:", "decrypt:")
        for only_sealing in ("            graphql_arguments: [ssn]\n", ", digests: recompute, signed: pass"):
            mirrored = mirrored.replace(only_sealing, "")
        policy = f"    listen: ['{listen}']\n" + keys.lstrip("\n") + mirrored
        return self._stack.enter_context(Sidecar(policy, folder, authority=self._authority))

    def forward(self, through: Sidecar | None = None) -> Sidecar:
        """Start a sidecar of an app.

        Args:
            through: another one, by which everything leaves, and whose certificates it trusts.
        """
        folder = self._make.mktemp("app")
        more = ""
        if through is not None:
            (folder / "both.pem").write_bytes(self._authority.pem + through.ca_file.read_bytes())
            more = f"    trust: {{roots: both.pem}}\n    upstream_proxy: {{url: '{through.proxy_url}'}}\n"
        keys = KEYS.format(pay=self._receiver.write_public(folder), app=self._sender.write_private(folder))
        sidecar = Sidecar(
            keys + RULES + more, folder, authority=self._authority, hosts=dict.fromkeys(NAMES, "127.0.0.1")
        )
        return self._stack.enter_context(sidecar)

    def roots(self, folder: Path) -> Path:
        """Return the file of the authority's certificate."""
        return self._authority.write_pem(folder / "ca.pem")

    def alone(self, path: str, host: str, fields: list[tuple[str, str]], body: bytes) -> Seen:
        """Make an exchange without any sidecar, in HTTP/1.1."""
        with RawClient(("127.0.0.1", self.server.port)) as client:
            client.send(request(path, self._name(host, Way.HTTP1), headers=tuple(fields), body=body))
            answer = client.read_response()
        told = {name.lower(): value for name, value in answer.headers.fields}
        return Seen(self.server.requests[-1], answer.status, told, answer.body)

    def through(
        self,
        way: Way,
        path: str,
        host: str,
        fields: list[tuple[str, str]],
        body: bytes,
        *,
        front: Sidecar | None = None,
    ) -> Seen:
        """Make the same exchange through both.

        Args:
            way: what the app speaks.
            path: the target.
            host: the host.
            fields: further fields.
            body: the body.
            front: another sidecar of the app's.
        """
        front = front or self.front
        relay, name = self.relays[way], self._name(host, way)
        before = [len(each) for each in relay.asked], [len(each) for each in relay.told]
        if way is Way.HTTP1:
            client = self._ones.get((front, host))
            if client is None:
                client = self._ones[front, host] = connect(front, name)
                client.start_tls(host, front.ca_file)
            client.send(request(path, name, headers=tuple(fields), body=body))
            answer = client.read_response()
            told = {key.lower(): value for key, value in answer.headers.fields}
            seen = Seen(self.server.requests[-1], answer.status, told, answer.body)
            asked, answered = _new(relay.asked, before[0]), _new(relay.told, before[1])
            requested, responded = wire.read_request(asked), wire.read_response(answered)
            assert requested is not None
            assert responded is not None
            return Seen(seen.got, seen.status, seen.fields, seen.body, requested.body, responded.body)
        two = speak(front, name)
        message = two.read(two.send(name, path, headers=[(key.lower(), value) for key, value in fields], body=body))
        two.close()
        told = {key: value for key, value in message.headers if key != ":status"}
        between = [
            _last_data(_grown(record, marks)) for record, marks in ((relay.asked, before[0]), (relay.told, before[1]))
        ]
        return Seen(self.server.requests[-1], message.status, told, message.body, *between)

    def _name(self, host: str, way: Way) -> str:
        return f"{host}:{self.relays[way].port}"


def _grown(record: list[bytearray], marks: list[int]) -> bytes:
    """Return all of the one connection on which something new has come."""
    marks = [*marks, *[0] * (len(record) - len(marks))]
    (found,) = (bytes(each) for each, mark in zip(record, marks, strict=True) if len(each) > mark)
    return found


def _new(record: list[bytearray], marks: list[int]) -> bytes:
    """Return what has come on it."""
    marks = [*marks, *[0] * (len(record) - len(marks))]
    (found,) = (bytes(each[mark:]) for each, mark in zip(record, marks, strict=True) if len(each) > mark)
    return found


def _last_data(sent: bytes) -> bytes:
    """Return what the newest stream of an HTTP/2 connection has in its DATA frames (RFC 9113, section 4.1)."""
    at = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") if sent.startswith(b"PRI ") else 0
    data: dict[int, bytes] = {}
    while at < len(sent):
        size, kind, stream = int.from_bytes(sent[at : at + 3]), sent[at + 3], int.from_bytes(sent[at + 5 : at + 9])
        if kind == 0:
            assert not sent[at + 4] & 8, "padded"
            data[stream] = data.get(stream, b"") + sent[at + 9 : at + 9 + size]
        at += 9 + size
    return data[max(data)]


@pytest.fixture(scope="module")
def both(
    authority: Authority, receiver: Receiver, sender: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Between]:
    """All of it, once."""
    with ExitStack() as stack:
        yield Between(authority, receiver, sender, tmp_path_factory, stack)


def labels(body: Body, coding: str) -> list[tuple[str, str]]:
    """Return the fields of a request with this body."""
    said = [("Content-Type", body.content_type), *([("Content-Encoding", coding)] if coding != "identity" else [])]
    return [("X-First", "1"), *said, ("Accept", "*/*")]


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_server_gets_the_request_that_it_gets_without_any(
    both: Between, receiver: Receiver, kind: str, coding: str, way: Way
) -> None:
    body = REQUESTS[kind]
    sent = coded_as(coding, body.plain)
    alone = both.alone("/v1/none/identity", body.host, labels(body, coding), sent)
    seen = both.through(way, "/v1/none/identity", body.host, labels(body, coding), sent)
    assert decoded_from(coding, alone.got.body) == body.plain
    assert decoded_from(coding, seen.got.body) == body.usual
    if way is Way.HTTP1 and coding == "identity" and body.usual == body.plain:
        assert seen.got.raw == alone.got.raw
    if way is Way.HTTP1:  # what is coded anew, or spelled as forms usually are, may be longer or shorter
        assert _without_length(seen.got) == _without_length(alone.got)
    assert seen.got.headers.get("content-encoding") == alone.got.headers.get("content-encoding")
    assert seen.got.headers.get("content-type") == body.content_type
    assert (seen.status, seen.body) == (alone.status, alone.body)
    assert_sealed(decoded_from(coding, seen.asked), body, receiver, body.host)


def _without_length(got: RecordedRequest) -> list[tuple[str, str]]:
    return [field for field in got.headers.fields if field[0].lower() != "content-length"]


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", RESPONSES)
def test_an_app_gets_the_response_that_it_gets_without_any(
    both: Between, sender: Receiver, kind: str, coding: str, way: Way
) -> None:
    body = RESPONSES[kind]
    path = f"/v1/{quote(kind)}/{coding.replace(', ', '+')}"
    alone = both.alone(path, TOLD, [("Accept", "*/*")], b"{}")
    seen = both.through(way, path, TOLD, [("Accept", "*/*")], b"{}")
    assert (seen.status, seen.fields["content-type"]) == (alone.status, body.content_type)
    assert decoded_from(seen.fields.get("content-encoding", "identity"), seen.body) == body.plain
    if kind not in TEXT_BY_TEXT:
        assert seen.fields.get("content-encoding") == alone.fields.get("content-encoding")
        if coding == "identity":
            assert (seen.body, seen.fields) == (alone.body, alone.fields)
        between = decoded_from(coding, seen.told)
    else:  # goes on text by text: without a coding or a length
        framing = {"content-length", "transfer-encoding", "content-encoding"}
        assert seen.body == body.plain
        assert {*seen.fields.items()} - {*alone.fields.items()} <= {("transfer-encoding", "chunked")}
        assert alone.fields.keys() - seen.fields.keys() <= framing
        between = seen.told
    assert_sealed(between, body, sender, TOLD)


SIGNED = b'{"ssn": "078"}'
DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(SIGNED).digest()).decode()}:"


@pytest.mark.parametrize(
    "fields",
    [
        [("Content-Digest", DIGEST)],
        [("repr-digest", DIGEST), ("Content-MD5", base64.b64encode(hashlib.md5(SIGNED).digest()).decode())],
        [("X-Hub-Signature-256", "sha256=" + "a1" * 32)],
        [("Content-Digest", f"{DIGEST}, crc32c=:AAAA:"), ("X-Hub-Signature-256", "sha256=" + "a1" * 32)],
        [
            ("Content-Digest", DIGEST),
            ("Signature-Input", 'sig=("content-digest");keyid="a"'),
            ("Signature", "sig=:" + "A" * 44 + ":"),
        ],
    ],
)
def test_what_signs_a_body_or_is_its_digest_fits_it_again(both: Between, fields: list[tuple[str, str]]) -> None:
    fields = [("Content-Type", "application/json"), ("Accept-Encoding", "gzip"), *fields]
    alone = both.alone("/v1/none/identity", TOLD, fields, SIGNED)
    seen = both.through(Way.HTTP1, "/v1/none/identity", TOLD, fields, SIGNED)
    assert b'"078"' not in seen.asked
    assert seen.got.raw == alone.got.raw


@pytest.fixture(scope="module")
def twice(both: Between) -> Sidecar:
    """A sidecar of an app that leaves by another one, which seals the same fields."""
    return both.forward(through=both.front)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("kind", REQUESTS)
def test_through_two_sidecars_of_apps_a_value_is_sealed_once(
    both: Between, twice: Sidecar, receiver: Receiver, kind: str, coding: str
) -> None:
    body = REQUESTS[kind]
    sent = coded_as(coding, body.plain)
    path = f"/{kind.replace(' ', '-')}/none/{coding}"
    seen = both.through(Way.HTTP1, path, body.host, labels(body, coding), sent, front=twice)
    assert_sealed(decoded_from(coding, seen.asked), body, receiver, body.host)
    assert decoded_from(coding, seen.got.body) == body.usual
    for sidecar, count in ((twice, len(body.values)), (both.front, 0)):
        assert sidecar.wait_for_decision(lambda line: line["path"] == path)["encrypted"] == count


@pytest.fixture(scope="module")
def before(both: Between, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sidecar, Path]:
    """A mirror before the mirror, and the file of the authority that its peers trust."""
    host, port = both.beside.address
    return both.mirror(f"https://{host}:{port}"), both.roots(tmp_path_factory.mktemp("roots"))


@pytest.mark.parametrize("kind", RESPONSES)
def test_through_two_mirrors_a_value_is_sealed_once(
    both: Between, before: tuple[Sidecar, Path], sender: Receiver, kind: str
) -> None:
    sidecar, roots = before
    body, path = RESPONSES[kind], f"/twice/{quote(kind)}/identity"
    with peer(sidecar, roots, TOLD) as client:
        client.send(request(path, TOLD, method="GET", headers=()))
        answer = client.read_response()
    assert_sealed(answer.body, body, sender, TOLD)
    for mirror, count in ((both.beside, len(body.values)), (sidecar, 0)):
        assert mirror.wait_for_decision(lambda line: line["path"] == path)["encrypted"] == count


@pytest.mark.parametrize("kind", REQUESTS)
def test_and_opened_once(both: Between, before: tuple[Sidecar, Path], receiver: Receiver, kind: str) -> None:
    sidecar, roots = before
    body = REQUESTS[kind]
    with peer(sidecar, roots, body.host) as client:
        sealed = bodies.sealed(body, receiver, body.host)
        client.send(request("/v1/none/identity", body.host, headers=tuple(labels(body, "identity")), body=sealed))
        assert client.read_response().status == 200
    assert both.server.requests[-1].body == body.usual


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_that_is_sent_again_as_it_was_sealed_is_opened_again_and_not_sealed_again(
    both: Between, receiver: Receiver, kind: str
) -> None:
    body = REQUESTS[kind]
    first = both.through(Way.HTTP1, "/v1/none/identity", body.host, labels(body, "identity"), body.plain)
    again = both.through(Way.HTTP1, "/v1/none/identity", body.host, labels(body, "identity"), first.asked)
    assert again.asked == first.asked
    assert_sealed(again.asked, body, receiver, body.host)
    assert again.got.raw == first.got.raw
