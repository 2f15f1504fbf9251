"""Responses of several JSON texts (lines, records, server-sent events) are opened text by text, while they come; what
cannot be opened ends them, or passes where the entry says so.

Proves ARCHITECTURE's rule 1 (fail closed), rule 5 (touch only what is marked), and that nothing waits for an end.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum

import brotli
import pytest
import zstandard

from proxy.core.jose.keys import Alg
from tests.e2e import frames, wire
from tests.e2e.app import ask, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.codings import coded_as
from tests.e2e.connection import RecordedRequest
from tests.e2e.frames import DATA, END_HEADERS, HEADERS, RST_STREAM, Peer, asked, block, by_hand
from tests.e2e.frameserver import Got, frame_server
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Decision, Sidecar
from tests.e2e.upstream import TlsUpstream

HOST = "app.example"
PASSING = "passing.example"
MIXED = "mixed.example"
HOSTS = (HOST, PASSING, MIXED)
DEADLINE = 10

POLICY = """
    limits: {{held_body: 4096}}
    keys:
      aes: {{alg: A256KW, primary: {{file: {aes}}}}}
    rules:
      - {{name: deny, hosts: [app.example], response: [{{decrypt: ["$.ssn"], key: aes}}]}}
      - {{name: pass, hosts: [passing.example], response: [{{decrypt: ["$.ssn"], key: aes, on_failure: pass}}]}}
      - name: mixed
        hosts: [mixed.example]
        response: [{{decrypt: ["$.ssn"], key: aes, on_failure: pass}}, {{decrypt: ["$.other"], key: aes}}]
"""


@pytest.fixture(scope="module")
def sender() -> Receiver:
    return Receiver("app", Alg.A256KW)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, sender: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("streams")
    policy = POLICY.format(aes=sender.write_private(folder))
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


class Kind(Enum):
    """A media type, and what stands round a text."""

    LINES = ("application/x-ndjson", b"%s\n")
    CRLF_LINES = ("application/jsonl; charset=utf-8", b"%s\r\n")
    RECORDS = ("application/json-seq", b"\x1e%s\n")
    EVENTS = ("text/event-stream", b"id: 1\nevent: a\ndata: %s\n: b\n\n")
    CRLF_EVENTS = ("Text/Event-Stream;charset=utf-8", b"data:%s\r\nretry: 5\r\n\r\n")
    CR_EVENTS = ("text/event-stream", b"data: %s\r\r")

    def round(self, text: bytes) -> bytes:
        return self.value[1].replace(b"%s", text)


class Way(Enum):
    """What the app, and the upstream, speaks."""

    HTTP1 = (1, 1)
    HTTP2_AND_1 = (2, 1)
    HTTP2 = (2, 2)


class Coder:
    """Codes a stream, and flushes each piece."""

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self._deflate = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
        self._brotli = brotli.Compressor()
        self._zstd = zstandard.ZstdCompressor().compressobj()

    def piece(self, data: bytes) -> bytes:
        match self.coding:
            case "":
                return data
            case "br":
                return bytes(self._brotli.process(data) + self._brotli.flush())
            case "zstd":
                return self._zstd.compress(data) + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            case _:
                return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        match self.coding:
            case "":
                return b""
            case "br":
                return bytes(self._brotli.finish())
            case "zstd":
                return self._zstd.flush()
            case _:
                return self._deflate.flush()


class App:
    """An app that reads a response while it comes."""

    def __init__(self, sidecar: Sidecar, way: Way, host: str, port: int) -> None:
        self._peer: Peer | None = None
        self._body = b""
        self._is_over = False
        authority = f"{host}:{port}"
        if way is Way.HTTP1:
            self._client = open_way(sidecar, host, port)
            self._client.send(request(f"http://{authority}/", authority, method="GET", headers=()))
            head = self._client.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
            self.status = int(head[0].split()[1])
            lines = [line.split(": ", 1) for line in head[1:] if line]
            self.fields = {name.lower(): value for name, value in lines}
        else:
            self._peer = by_hand(sidecar, authority)
            self._client = self._peer.client
            self._peer.send(frames.headers(1, asked(authority)))
            found = self._peer.head(1)
            self.fields = dict(found.fields)
            self.status = int(self.fields[":status"])

    def read(self, size: int) -> bytes:
        """Return the next bytes of the body, fewer only at its end, which must be in order."""
        while len(self._body) < size and not self._is_over:
            self._receive()
        found, self._body = self._body[:size], self._body[size:]
        return found

    def rest(self) -> bytes:
        """Return all to the end, which must be in order."""
        while not self._is_over:
            self._receive()
        return self._body

    def rest_of_what_is_cut_off(self) -> bytes:
        """Return all that came; it must not look complete."""
        with pytest.raises((AssertionError, ConnectionError)) as cut:
            self.rest()
        assert "DEADLINE" not in str(cut.value)
        return self._body

    def _receive(self) -> None:
        if self._peer is None:
            size = int(self._client.read_until(b"\r\n"), 16)
            piece = self._client.read_exactly(size + 2)
            assert piece.endswith(b"\r\n")
            self._body += piece[:-2]
            self._is_over = size == 0
        else:
            found = self._peer.find(lambda each: each.stream == 1 and each.kind in (DATA, HEADERS, RST_STREAM))
            assert found.kind == DATA, f"the stream was reset: {found}"
            self._body += found.payload
            self._is_over = found.is_end

    def close(self) -> None:
        self._client.close()


@dataclass
class Stream:
    """A response that comes in pieces, each only once the app has what came before."""

    app: App
    port: int
    _goes_on: threading.Semaphore

    def go_on(self) -> None:
        self._goes_on.release()


MakeUpstream = Callable[..., TlsUpstream]


@contextmanager
def streaming(
    sidecar: Sidecar,
    authority: Authority,
    tls_upstream: MakeUpstream,
    pieces: list[bytes],
    *fields: tuple[str, str],
    way: Way = Way.HTTP1,
    host: str = HOST,
    is_whole: bool = True,
) -> Iterator[Stream]:
    """Have an app ask for a response in pieces; the head, and each piece, waits for `go_on`, but for the first."""
    goes_on, is_over = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        assert goes_on.acquire(timeout=DEADLINE), "the app did not get what came before"
        if is_over.is_set():  # the test wants no more of it, which is a server's OSError
            raise ConnectionAbortedError

    def respond(_: RecordedRequest) -> Iterator[bytes]:
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        yield f"HTTP/1.1 200 OK\r\n{lines}Transfer-Encoding: chunked\r\n\r\n".encode()
        for piece in pieces:
            wait()
            yield b"%x\r\n%s\r\n" % (len(piece), piece)
        if not is_whole:
            raise ConnectionResetError
        yield b"0\r\n\r\n"

    def answer(got: Got) -> None:
        head = [(":status", "200"), *((name.lower(), value) for name, value in fields)]
        got.peer.send(frames.headers(got.stream, block(*head), END_HEADERS))
        for piece in pieces:
            wait()
            got.peer.send(frames.data(got.stream, piece))
        got.peer.send(frames.data(got.stream, b"", last=True) if is_whole else frames.reset(got.stream, 2))

    with ExitStack() as closing:
        if way is Way.HTTP2:
            port = closing.enter_context(frame_server(authority, host, answer)).port
        else:
            port = fresh(lambda: tls_upstream(*HOSTS, respond=respond)).port
        app = App(sidecar, way, host, port)
        closing.callback(app.close)
        closing.callback(goes_on.release)
        closing.callback(is_over.set)
        yield Stream(app, port, goes_on)


def line_of(sidecar: Sidecar, port: int) -> Decision:
    """Return the decision line of the only request to a port."""
    return sidecar.wait_for_decision(
        lambda line: line["destination"].endswith(f":{port}") and line["method"] == "GET" and "event" not in line
    )


class TestOpened:
    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("coding", ["", "gzip", "deflate", "br", "zstd"])
    @pytest.mark.parametrize("kind", Kind)
    def test_each_text_reaches_the_app_before_the_next_is_sent(
        self,
        sidecar: Sidecar,
        authority: Authority,
        tls_upstream: MakeUpstream,
        sender: Receiver,
        kind: Kind,
        coding: str,
        way: Way,
    ) -> None:
        coder = Coder(coding)
        values = [b'"078-05-1120"', b'{"a":\n[1 , 2]}' if b"\n\n" not in kind.value[1] else b'{"a": 1.0}', b"null"]
        if kind in (Kind.CRLF_EVENTS, Kind.CR_EVENTS):
            values[1] = b"[1 , 2.0]"
        sealed = [b'{"n":1.50, "ssn" : %s}' % sender.seal(value, HOST, "$.ssn") for value in values]
        pieces = [coder.piece(kind.round(text)) for text in sealed]
        pieces[-1] += coder.end()
        fields = [
            ("Content-Type", kind.value[0]),
            ("ETag", '"x"'),
            ("Digest", "SHA-256=AA=="),
            ("X-Other", "kept"),
        ]
        fields += [("Content-Encoding", coding)] if coding else []
        with streaming(sidecar, authority, tls_upstream, pieces, *fields, way=way) as stream:
            for value in values:
                stream.go_on()
                opened = kind.round(b'{"n":1.50, "ssn" : %s}' % value)
                assert stream.app.read(len(opened)) == opened
            assert stream.app.rest() == b""
            got = stream.app.fields
            assert got["content-type"] == kind.value[0]
            assert got["x-other"] == "kept"
            assert got["etag"].startswith("W/")
            assert got.keys().isdisjoint(("content-encoding", "digest", "content-length"))
            line = line_of(sidecar, stream.port)
        assert (line["decrypted"], line["fields"], line["outcome"]) == (3, {"response[0]": 3}, "ok")
        assert line["bytes_received"] == sum(map(len, pieces))

    @pytest.mark.parametrize("way", Way)
    def test_texts_that_come_byte_by_byte_are_the_same(
        self, sidecar: Sidecar, authority: Authority, tls_upstream: MakeUpstream, sender: Receiver, way: Way
    ) -> None:
        token = sender.seal(b'"078"', HOST, "$.ssn")
        body = (
            b'\xef\xbb\xbf: hi\r\n\r\nevent: a\rdata: {"a":\r\ndata:"b",\ndata: "ssn":%s}\r\r\ndata: [DONE]\n\n' % token
        )
        opened = body.replace(token, b'"078"')
        pieces = [body[at : at + 1] for at in range(len(body))]
        with streaming(
            sidecar, authority, tls_upstream, pieces, ("Content-Type", "text/event-stream"), way=way
        ) as stream:
            for _ in pieces:
                stream.go_on()
            assert stream.app.rest() == opened

    @pytest.mark.parametrize("coding", ["", "br", "gzip, zstd"])
    def test_a_whole_one_with_a_length_loses_it_and_the_next_response_begins_where_it_ends(
        self, sidecar: Sidecar, tls_upstream: MakeUpstream, sender: Receiver, coding: str
    ) -> None:
        body = b'{"ssn":%s}\n{"ssn":null}\n\n{"other":1}' % sender.seal(b"1", HOST, "$.ssn")
        fields = [("Content-Type", "application/x-ndjson"), *([("Content-Encoding", coding)] if coding else [])]
        answer = wire.response(200, coded_as(coding, body) if coding else body, headers=tuple(fields))
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: answer))
        authority = f"{HOST}:{upstream.port}"
        with open_way(sidecar, HOST, upstream.port) as client:
            for _ in range(2):
                client.send(request(f"http://{authority}/", authority, method="GET", headers=()))
                got = client.read_response()
                assert got.body == b'{"ssn":1}\n{"ssn":null}\n\n{"other":1}'
                assert got.headers.get("content-length") is None
                assert got.headers.get("transfer-encoding") == "chunked"
                assert got.headers.get("content-encoding") is None

    def test_an_app_of_http_1_0_gets_it_to_the_end_of_the_connection(
        self, sidecar: Sidecar, tls_upstream: MakeUpstream, sender: Receiver
    ) -> None:
        body = b'{"ssn":%s}\n' % sender.seal(b"1", HOST, "$.ssn")
        answer = wire.response(200, body, headers=(("Content-Type", "application/x-ndjson"),))
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: answer))
        with open_way(sidecar, HOST, upstream.port) as client:
            client.send(f"GET http://{HOST}:{upstream.port}/ HTTP/1.0\r\nHost: {HOST}:{upstream.port}\r\n\r\n".encode())
            head, _, got = client.read_to_end().partition(b"\r\n\r\n")
        assert got == b'{"ssn":1}\n'
        assert b"transfer-encoding" not in head.lower()

    def test_one_that_ends_with_the_connection_comes_in_chunks(
        self, sidecar: Sidecar, tls_upstream: MakeUpstream, sender: Receiver
    ) -> None:
        body = b'{"ssn":%s}\n' % sender.seal(b"1", HOST, "$.ssn")
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n" + body
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: answer))
        got = ask(sidecar, upstream, HOST, method="GET", headers=())
        assert got.body == b'{"ssn":1}\n'
        assert got.headers.get("transfer-encoding") == "chunked"

    def test_trailers_do_not_go_on_with_another_body(
        self, sidecar: Sidecar, tls_upstream: MakeUpstream, sender: Receiver
    ) -> None:
        body = b'{"ssn":%s}\n' % sender.seal(b"1", HOST, "$.ssn")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = head + b"%x\r\n%s\r\n0\r\nContent-Digest: sha-256=:AA==:\r\n\r\n" % (len(body), body)
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: answer))
        got = ask(sidecar, upstream, HOST, method="GET", headers=())
        assert got.body == b'{"ssn":1}\n'
        assert got.trailers is None or not got.trailers.fields


BAD = {
    "another place": b'{"ssn":%s}',
    "no JSON": b"{'canary': %s}",
    "too long": b'{"canary":"' + b"x" * 4096 + b'","ssn":%s}',
}


class TestFailures:
    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("kind", [Kind.LINES, Kind.RECORDS, Kind.EVENTS])
    @pytest.mark.parametrize("fault", BAD)
    @pytest.mark.parametrize("host", [HOST, MIXED])
    def test_what_is_not_opened_cuts_the_stream_off(
        self,
        sidecar: Sidecar,
        authority: Authority,
        tls_upstream: MakeUpstream,
        sender: Receiver,
        kind: Kind,
        fault: str,
        way: Way,
        host: str,
    ) -> None:
        good = sender.seal(b'"078"', host, "$.ssn")
        name = b"ssn" if host == HOST else b"other"
        bad = BAD[fault].replace(b"ssn", name) % sender.seal(b'"canary-079"', "evil.example", "$.ssn")
        pieces = [kind.round(b'{"ssn":%s}' % good), kind.round(bad), kind.round(b"{}")]
        with streaming(
            sidecar, authority, tls_upstream, pieces, ("Content-Type", kind.value[0]), way=way, host=host
        ) as stream:
            stream.go_on()
            opened = kind.round(b'{"ssn":"078"}')
            assert stream.app.read(len(opened)) == opened
            stream.go_on()
            stream.go_on()
            rest = stream.app.rest_of_what_is_cut_off()
            assert b"eyJ" not in rest
            assert b"canary" not in rest
            line = line_of(sidecar, stream.port)
        assert (line["reason"], line["outcome"]) == ("decryption_failed", "denied")
        assert line["decrypted"] == 1
        assert "canary" not in str(line)

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("kind", [Kind.LINES, Kind.RECORDS, Kind.EVENTS])
    @pytest.mark.parametrize("fault", BAD)
    def test_or_it_passes_as_it_came_and_the_line_says_so(
        self,
        sidecar: Sidecar,
        authority: Authority,
        tls_upstream: MakeUpstream,
        sender: Receiver,
        kind: Kind,
        fault: str,
        way: Way,
    ) -> None:
        good = sender.seal(b'"078"', PASSING, "$.ssn")
        bad = kind.round(BAD[fault] % sender.seal(b'"canary-079"', "evil.example", "$.ssn"))
        pieces = [kind.round(b'{"ssn":%s}' % good), bad, kind.round(b'{"ssn":%s}' % good)]
        opened = kind.round(b'{"ssn":"078"}')
        with streaming(
            sidecar, authority, tls_upstream, pieces, ("Content-Type", kind.value[0]), way=way, host=PASSING
        ) as stream:
            for expected in (opened, bad, opened):
                stream.go_on()
                assert stream.app.read(len(expected)) == expected
            assert stream.app.rest() == b""
            line = line_of(sidecar, stream.port)
        reason = {"another place": "decryption_failed", "no JSON": "body_not_json", "too long": "body_too_large"}[fault]
        assert (line["reason"], line["outcome"], line["decrypted"]) == (None, "ok", 2)
        assert line["field_failures"] == {"response[0]": {reason: 1}}

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("host", [HOST, PASSING])
    @pytest.mark.parametrize("fault", ["cut off", "damaged", "a bomb", "behind its end"])
    def test_what_cannot_be_decoded_cuts_it_off(
        self,
        sidecar: Sidecar,
        authority: Authority,
        tls_upstream: MakeUpstream,
        sender: Receiver,
        host: str,
        fault: str,
        way: Way,
    ) -> None:
        coder = Coder("gzip")
        first = coder.piece(b'{"ssn":%s}\n' % sender.seal(b'"078"', host, "$.ssn"))
        last = {
            "cut off": lambda: coder.piece(b"{}\n"),
            "damaged": lambda: b"\xff" * 9,
            "a bomb": lambda: coder.piece(b" " * 1_200_000 + b"\n") + coder.end(),
            "behind its end": lambda: coder.end() + b"canary",
        }[fault]()
        fields = (("Content-Type", "application/x-ndjson"), ("Content-Encoding", "gzip"))
        with streaming(sidecar, authority, tls_upstream, [first, last], *fields, way=way, host=host) as stream:
            stream.go_on()
            assert stream.app.read(14) == b'{"ssn":"078"}\n'
            stream.go_on()
            assert b"canary" not in stream.app.rest_of_what_is_cut_off()
            line = line_of(sidecar, stream.port)
        assert (line["reason"], line["outcome"]) == ("decryption_failed", "denied")

    @pytest.mark.parametrize("way", Way)
    def test_one_that_the_upstream_breaks_off_never_looks_complete(
        self, sidecar: Sidecar, authority: Authority, tls_upstream: MakeUpstream, sender: Receiver, way: Way
    ) -> None:
        token = sender.seal(b'"078"', HOST, "$.ssn")
        pieces = [b'{"ssn":%s}\n{"ssn":%s}' % (token, token)]
        fields = (("Content-Type", "application/x-ndjson"),)
        with streaming(sidecar, authority, tls_upstream, pieces, *fields, way=way, is_whole=False) as stream:
            stream.go_on()
            assert stream.app.rest_of_what_is_cut_off() in (b"", b'{"ssn":"078"}\n')
            assert line_of(sidecar, stream.port)["outcome"] == "upstream_cut"

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize(
        "field", [("Content-Encoding", "dcb"), ("Content-Type", "text/event-stream;charset=utf-16")]
    )
    def test_a_head_that_cannot_be_read_is_denied_before_the_body(
        self, sidecar: Sidecar, authority: Authority, tls_upstream: MakeUpstream, field: tuple[str, str], way: Way
    ) -> None:
        fields = {"Content-Type": "application/x-ndjson"} | dict([field])
        with streaming(sidecar, authority, tls_upstream, [b"x"], *fields.items(), way=way) as stream:
            assert (stream.app.status, stream.app.fields["content-type"]) == (502, "application/problem+json")
            assert line_of(sidecar, stream.port)["reason"] == "decryption_failed"

    @pytest.mark.parametrize("way", Way)
    def test_or_passes_as_it_comes(
        self, sidecar: Sidecar, authority: Authority, tls_upstream: MakeUpstream, way: Way
    ) -> None:
        fields = (("Content-Type", "application/x-ndjson"), ("Content-Encoding", "dcb"), ("ETag", '"x"'))
        with streaming(sidecar, authority, tls_upstream, [b"canary", b"-"], *fields, way=way, host=PASSING) as stream:
            stream.go_on()
            assert stream.app.read(6) == b"canary"
            stream.go_on()
            assert stream.app.rest() == b"-"
            assert (stream.app.fields["content-encoding"], stream.app.fields["etag"]) == ("dcb", '"x"')
            line = line_of(sidecar, stream.port)
        assert line["field_failures"] == {"response[0]": {"encoding_unsupported": 1}}


GZIP = (("Content-Encoding", "gzip"),)
CHUNKED = (("Transfer-Encoding", "chunked"),)


class TestHeldThatPass:
    """Responses with one JSON text, where the entry says `on_failure: pass`."""

    @pytest.mark.parametrize(
        ("body", "headers", "reason"),
        [
            pytest.param(b"{canary", (), "body_not_json", id="no JSON"),
            pytest.param(b"canary", (("Content-Encoding", "compress"),), "encoding_unsupported", id="another coding"),
            pytest.param(gzip.compress(b"{}")[:-1], GZIP, "encoding_unsupported", id="cut off"),
            pytest.param(gzip.compress(b" " * 5000), GZIP, "body_too_large", id="a bomb"),
            pytest.param(b"{}" + b" " * 5000, (), "body_too_large", id="too long"),
            pytest.param(b"{}" + b" " * 5000, CHUNKED, "body_too_large", id="too long, in chunks"),
        ],
    )
    def test_a_body_that_cannot_be_read_passes_as_it_came(
        self,
        sidecar: Sidecar,
        tls_upstream: MakeUpstream,
        body: bytes,
        headers: tuple[tuple[str, str], ...],
        reason: str,
    ) -> None:
        fields = (("Content-Type", "application/json"), ("ETag", '"x"'), *headers)
        if headers == CHUNKED:
            head = "".join(f"{name}: {value}\r\n" for name, value in fields)
            chunks = b"".join(
                b"%x\r\n%s\r\n" % (len(body[at : at + 999]), body[at : at + 999]) for at in range(0, len(body), 999)
            )
            raw = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + chunks + b"0\r\n\r\n"
        else:
            raw = wire.response(200, body, headers=fields)
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: raw))
        answer = ask(sidecar, upstream, PASSING, method="GET", headers=())
        assert (answer.status, answer.body, answer.headers.get("etag")) == (200, body, '"x"')
        line = decision_of(sidecar, upstream)
        assert (line["reason"], line["field_failures"]) == (None, {"response[0]": {reason: 1}})
        assert line["bytes_received"] == len(body)
        assert ask(sidecar, upstream, MIXED, method="GET", headers=()).status == 502

    def test_a_value_that_is_not_opened_stays_and_others_are_opened(
        self, sidecar: Sidecar, tls_upstream: MakeUpstream, sender: Receiver
    ) -> None:
        bad, good = sender.seal(b"1", "evil.example", "$.ssn"), sender.seal(b"2", MIXED, "$.other")
        raw = wire.response(
            200, b'{"ssn":%s,"other":%s}' % (bad, good), headers=(("Content-Type", "application/json"),)
        )
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: raw))
        answer = ask(sidecar, upstream, MIXED, method="GET", headers=())
        assert answer.body == b'{"ssn":%s,"other":2}' % bad
        line = decision_of(sidecar, upstream)
        assert (line["fields"], line["field_failures"]) == (
            {"response[1]": 1},
            {"response[0]": {"decryption_failed": 1}},
        )

    def test_a_part_passes(self, sidecar: Sidecar, tls_upstream: MakeUpstream) -> None:
        raw = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-5/9\r\nContent-Length: 6\r\n\r\ncanary"
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: raw))
        answer = ask(sidecar, upstream, PASSING, method="GET", headers=())
        assert (answer.status, answer.body) == (206, b"canary")
        assert decision_of(sidecar, upstream)["field_failures"] == {"response[0]": {"decryption_failed": 1}}
