"""Both ends: an app with a sidecar, a server with a mirror, and between them nothing readable.

Proves that neither side's code changes: what app and server see through both sidecars is, bit for bit, what they see
without any; and that what travels between is sealed, whoever looks. What differs is named here, field by field.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import JSON, Fields, Way, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import Answer, RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import speak
from tests.e2e.mirrors import NAME, mirror, peer, rule_of_app
from tests.e2e.receiver import Receiver
from tests.e2e.relay import Relay
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream

CARD = b'{ "card" : {"number": "4111\\u0031 1111", "cvv":123} ,"amount": 12.50, "deep":[{"secret":{"a":[1 ,2]}}] }\n'
TOLD = b'{"token":"tok_\\u20ac", "status" : "ok","items":[ {"secret":null} ,{"secret":1.0e0}]}'
READABLE = (b"4111", b"1111", b"[1 ,2]", b"tok_", b"1.0e0")


def answering(got: RecordedRequest) -> bytes:
    """Answer as the path says, byte for byte."""
    path = got.target.partition("?")[0]
    plain = (*JSON, ("X-Server", "one"), ("x-server", "two"), ("Set-Cookie", "a=1; Secure; HttpOnly"))
    if path == "/chunked":
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (TOLD[:7], TOLD[7:]))
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head.encode() + chunks + b"0\r\n\r\n"
    if path == "/gzip":
        return wire.response(200, gzip.compress(TOLD, mtime=0), headers=(*JSON, ("Content-Encoding", "gzip")))
    if path.startswith("/status/"):
        return wire.response(int(path.rpartition("/")[2]), TOLD, headers=plain)
    if path == "/empty":
        return b"HTTP/1.1 204 No Content\r\nX-Server: one\r\n\r\n"
    if path == "/moved":
        return wire.response(302, b"", headers=(("Location", f"https://{NAME}/next"),))
    if path == "/unmarked":
        return wire.response(200, b'{ "n" : 1.50 }', headers=(*plain, ("ETag", '"strong"')))
    if got.method == "HEAD":
        return wire.response(200, b"", headers=plain).replace(b"Content-Length: 0\r\n", b"")
    return wire.response(200, TOLD, headers=plain)


@pytest.fixture(scope="module")
def keys() -> tuple[Receiver, Receiver]:
    """The server's key, and the app's."""
    return Receiver("srv-1"), Receiver("app-1", Alg.A256KW)


@pytest.fixture(scope="module")
def server() -> Iterator[PlainUpstream]:
    """The server, which speaks plain http and knows nothing of sidecars."""
    with PlainUpstream(respond=answering) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def beside(
    tmp_path_factory: pytest.TempPathFactory,
    server: PlainUpstream,
    authority: Authority,
    keys: tuple[Receiver, Receiver],
) -> Iterator[Sidecar]:
    """The mirror."""
    with mirror(tmp_path_factory.mktemp("server"), server, authority, *keys) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def between(authority: Authority, beside: Sidecar) -> Iterator[Relay]:
    """A gateway between both, which ends TLS as a CDN does, and records what it reads."""
    with Relay(authority, NAME, beside.address) as relay:
        yield relay


@pytest.fixture(scope="module")
def front(
    tmp_path_factory: pytest.TempPathFactory, between: Relay, authority: Authority, keys: tuple[Receiver, Receiver]
) -> Iterator[Sidecar]:
    """The app's sidecar."""
    folder = tmp_path_factory.mktemp("app")
    with Sidecar(rule_of_app(folder, *keys), folder, authority=authority, hosts={NAME: "127.0.0.1"}) as sidecar:
        yield sidecar


def directly(server: PlainUpstream, sent: bytes, method: str) -> tuple[bytes, Answer]:
    """Send bytes to the server, and return what it read and what it answered."""
    before = len(server.requests)
    with RawClient(("127.0.0.1", server.port)) as client:
        client.send(sent)
        answer = client.read_response(method=method)
    return server.wait_for_requests(before + 1)[before].raw, answer


def through_both(
    front: Sidecar, between: Relay, server: PlainUpstream, sent: bytes, method: str, way: Way
) -> tuple[bytes, Answer]:
    """Send bytes through both sidecars, and return the same."""
    before = len(server.requests)
    if way is Way.HTTP:
        verb, target, rest = sent.split(b" ", 2)
        sent = b"%s http://%s:%d%s %s" % (verb, NAME.encode(), between.port, target, rest)
    with open_way(front, NAME, between.port, way) as client:
        client.send(sent)
        answer = client.read_response(method=method)
    return server.wait_for_requests(before + 1)[before].raw, answer


FIELDS: Fields = (
    *JSON,
    ("X-First", "1"),
    ("Accept-Encoding", "gzip"),
    ("x-first", "2"),
    ("User-Agent", "app/1.0"),
    ("Authorization", "Bearer abc"),
    ("Accept", "*/*"),
)


def kind(media_type: str) -> Fields:
    """Return the fields for a body of another kind."""
    return tuple((name, media_type if name == "Content-Type" else value) for name, value in FIELDS)


CASES: dict[str, tuple[str, str, Fields, bytes]] = {
    "JSON": ("POST", "/v1/charges?x=%20&y", FIELDS, CARD),
    "PUT": ("PUT", "/v1/charges/1", FIELDS, CARD),
    "nothing marked": ("POST", "/v1", FIELDS, b'{"a": 1}'),
    "no body": ("GET", "/v1", FIELDS, b""),
    "HEAD": ("HEAD", "/v1", FIELDS, b""),
    "a list": ("POST", "/v1", FIELDS, b'[{"secret": "s\\n"}, {"secret":[]}]'),
    "lines": (
        "POST",
        "/v1",
        kind("application/x-ndjson"),
        b'{"secret":"4111"}\n\r\n{"a": 1}\n {"card":{"number" : 1111}}',
    ),
    "a sequence": ("POST", "/v1", kind("application/json-seq"), b'\x1e{"secret":"4111"}\n\x1e{"a":1}\n'),
    "a batch": ("POST", "/v1", FIELDS, b'[{"jsonrpc":"2.0","method":"m","params":{"secret":"4111"}},{"method":"n"}]'),
    "a patch": (
        "PATCH",
        "/v1",
        kind("application/json-patch+json"),
        b'[{"op":"add","path":"/card/number","value":"4111"}, {"op":"test","path":"/a","value":1}]',
    ),
    "a form": ("POST", "/v1", kind("application/x-www-form-urlencoded"), b"a=%31&card=4111+1111&b=&c"),
    "a multipart form": (
        "POST",
        "/v1",
        kind("multipart/form-data; boundary=xx"),
        b'--xx\r\nContent-Disposition: form-data; name="card"\r\n\r\n4111\r\n--xx\r\n'
        b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n\x00\xff\r\n--xx--\r\n',
    ),
    "gzip": ("POST", "/v1", (*FIELDS, ("Content-Encoding", "gzip")), gzip.compress(CARD, mtime=0)),
    "an answer in gzip": ("GET", "/gzip", FIELDS, b""),
    "an answer in chunks": ("GET", "/chunked", FIELDS, b""),
    "an answer that is a redirect": ("GET", "/moved", FIELDS, b""),
    "an answer without a body": ("DELETE", "/empty", FIELDS, b""),
    "an answer with nothing marked": ("GET", "/unmarked", FIELDS, b""),
    "a client's error": ("POST", "/status/404", FIELDS, CARD),
    "a server's error": ("POST", "/status/503", FIELDS, CARD),
    "another status": ("POST", "/status/299", FIELDS, CARD),
}


def same(body: bytes, fields: wire.Headers) -> bytes:
    """Return a body without its coding: what was changed is compressed anew, and may look otherwise."""
    coding = fields.get("content-encoding")
    return zlib.decompress(body, 47) if coding == "gzip" else body


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", Way)
def test_app_and_server_see_what_they_see_without_any(
    front: Sidecar, between: Relay, server: PlainUpstream, case: str, way: Way
) -> None:
    method, target, fields, body = CASES[case]
    name = f"{NAME}:{between.port}"
    sent = request(target, name, method=method, headers=fields, body=body)
    alone, answered = directly(server, sent, method)
    mark = between.mark()
    got, answer = through_both(front, between, server, sent, method, way)
    seen = between.seen(mark)

    alone_head, _, alone_body = alone.partition(b"\r\n\r\n")
    got_head, _, got_body = got.partition(b"\r\n\r\n")
    if case == "gzip":  # compressed anew: the same text, perhaps of another length
        assert zlib.decompress(got_body, 47) == zlib.decompress(alone_body, 47)
        assert without(got_head, b"content-length") == without(alone_head, b"content-length")
    else:
        assert got == alone

    assert answer.status == answered.status
    assert same(answer.body, answer.headers) == same(answered.body, answered.headers)
    if case != "an answer in gzip" and way is Way.CONNECT:
        assert answer.headers.fields == answered.headers.fields
    for readable in READABLE:
        assert readable not in seen
    if body == CARD:
        assert b"eyJ" in seen


def without(head: bytes, name: bytes) -> list[bytes]:
    """Return the lines of a head without a field."""
    return [line for line in head.split(b"\r\n") if not line.lower().startswith(name + b":")]


@pytest.mark.parametrize("case", ["JSON", "no body", "HEAD", "an answer in chunks", "a server's error", "a list"])
def test_so_it_is_over_http2(front: Sidecar, beside: Sidecar, server: PlainUpstream, case: str) -> None:
    method, target, fields, body = CASES[case]
    name = f"{NAME}:{beside.address[1]}"
    lower = tuple(dict.fromkeys((key.lower(), value) for key, value in fields))
    _, answered = directly(server, request(target, name, method=method, headers=lower, body=body), method)
    before = len(server.requests)
    client = speak(front, name)
    length = [("content-length", str(len(body)))] if body else []
    stream = client.begin(name, target, method=method, headers=[*lower, *length])
    client.go_on(stream, body, last=True)
    answer = client.read(stream)
    got = server.wait_for_requests(before + 1)[before]
    assert got.body == body
    assert (got.method, got.target) == (method, target)
    expected = [("host", name), *lower, *length]
    assert sorted((key.lower(), value) for key, value in got.headers.fields) == sorted(expected)
    assert (answer.status, answer.body) == (answered.status, answered.body)
    framing = ("content-length", "transfer-encoding")
    told = [(key.lower(), value) for key, value in answered.headers.fields if key.lower() not in framing]
    assert [field for field in answer.headers if field[0] not in (":status", *framing)] == told


def test_one_connection_carries_many_requests(front: Sidecar, between: Relay, server: PlainUpstream) -> None:
    before = len(server.requests)
    name = f"{NAME}:{between.port}"
    with open_way(front, NAME, between.port, Way.CONNECT) as client:
        for number in range(20):
            body = CARD.replace(b"12.50", b"%d" % number)
            client.send(request(f"/many/{number}", name, headers=FIELDS, body=body))
            assert client.read_response().body == TOLD
    got = server.wait_for_requests(before + 20)[before:]
    assert [each.target for each in got] == [f"/many/{number}" for number in range(20)]
    assert [each.json()["amount"] for each in got] == list(range(20))
    assert all(each.json()["card"]["number"] == "41111 1111" for each in got)


def test_a_body_in_chunks_arrives_as_it_was(front: Sidecar, between: Relay, server: PlainUpstream) -> None:
    before = len(server.requests)
    chunks = [CARD[start : start + 5] for start in range(0, len(CARD), 5)]
    with open_way(front, NAME, between.port, Way.CONNECT) as client:
        client.send(request("/v1", f"{NAME}:{between.port}", headers=FIELDS, chunks=chunks))
        assert client.read_response().status == 200
    assert server.wait_for_requests(before + 1)[before].body == CARD


def test_what_was_changed_between_never_gets_to_the_server(
    beside: Sidecar, between: Relay, front: Sidecar, server: PlainUpstream, authority: Authority, tmp_path: Path
) -> None:
    """Tokens that somebody between moves: to another field, or from a request of another host."""
    mark = between.mark()
    with open_way(front, NAME, between.port, Way.CONNECT) as client:
        client.send(request("/v1", f"{NAME}:{between.port}", headers=FIELDS, body=CARD))
        client.read_response()
    sealed = json.loads(body_of(between.seen(mark)))
    number, deep = sealed["card"]["number"], sealed["deep"][0]["secret"]
    roots = authority.write_pem(tmp_path / "ca.pem")
    before = len(server.requests)
    for body in (
        {"card": {"number": deep}},
        {"x": {"secret": number}},
        {"card": {"number": number[:-2] + ("AA" if number[-2:] != "AA" else "BB")}},
    ):
        with peer(beside, roots) as client:
            client.send(request("/v1", NAME, body=json.dumps(body).encode()))
            answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (422, "request_not_opened")
    assert len(server.requests) == before
    with peer(beside, roots) as client:
        client.send(request("/again", NAME, body=json.dumps({"card": {"number": number}}).encode()))
        assert client.read_response().status == 200
    assert server.wait_for_requests(before + 1)[before].body == b'{"card": {"number": "4111\\u0031 1111"}}'


def body_of(seen: bytes) -> bytes:
    """Return the body of the first request among what passed."""
    message = wire.read_request(seen)
    assert message is not None
    return message.body


def test_a_response_that_is_for_another_app_is_not_opened(
    front: Sidecar, beside: Sidecar, between: Relay, keys: tuple[Receiver, Receiver]
) -> None:
    """A gateway that gives the app another's answer, sealed for the same key at another place."""
    _, app = keys
    between.instead = wire.response(200, b'{"token":' + app.seal(b'"x"', NAME, "$.other") + b"}", headers=JSON)
    try:
        with open_way(front, NAME, between.port, Way.CONNECT) as client:
            client.send(request("/v1", f"{NAME}:{between.port}", headers=FIELDS, body=CARD))
            answer = client.read_response()
    finally:
        between.instead = None
    assert (answer.status, answer.json()["reason"]) == (502, "decryption_failed")
