"""Long multipart forms, and bodies of other kinds that pass, stream; what is marked in them never leaves in clear.

Proves ARCHITECTURE's rule 3 where it has its one exception: of a form that is longer than what is held, the parts pass
in which nothing is marked, and a denial in the middle breaks the upstream's request off.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.app import Way, ask, assert_denied, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.http2 import Http2Upstream, speak
from tests.e2e.receiver import TOKEN, Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("form.example", "pass.example")
LIMIT = 64 * 1024
FILE = bytes(range(256)) * 4096  # a megabyte
TYPE = "multipart/form-data; boundary=xYz"

POLICY = """
    limits: {{held_body: 65536}}
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}}}
    rules:
      - {{name: form, hosts: [form.example], request: [{{encrypt: ["$.ssn"], form: [ssn], key: pay, required: true}}]}}
      - {{name: pass, hosts: [pass.example], request: [{{encrypt: ["$.ssn"], key: pay, other_bodies: pass}}]}}
"""


class SlowUpstream:
    """A TLS server that begins late to take a body in chunks, and keeps nothing of it."""

    def __init__(self, authority: Authority) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue(*HOSTS).load_into(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.received = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(5)
        self._listener.close()

    def _serve(self) -> None:
        accepted, _ = self._listener.accept()
        with self._context.wrap_socket(accepted, server_side=True) as connection:
            time.sleep(0.5)
            last = b""
            while not last.endswith(b"\r\n0\r\n\r\n"):
                data = connection.recv(1 << 20)
                if not data:
                    return
                self.received += len(data)
                last = (last + data)[-16:]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.recv(1)  # until the sidecar is done with it


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("uploads")
    policy = POLICY.format(pay=receiver.write_public(folder))
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream that goes by all names of the policy."""
    return fresh(lambda: tls_upstream(*HOSTS))


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--xYz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


UPLOAD = part("f", FILE, '; filename="x"') + part("ssn", b"078") + part("g", FILE) + b"--xYz--\r\n"


def check(body: bytes, receiver: Receiver) -> None:
    """Check that an upload has arrived with its one marked value sealed, and all other bytes as they were."""
    before, _, behind = UPLOAD.partition(b"078")
    found = re.fullmatch(re.escape(before) + b"(%s)" % TOKEN + re.escape(behind), body, re.DOTALL)
    assert found is not None
    assert json.loads(receiver.open(found[1], host="form.example", path="$.ssn")) == "078"


class TestForms:
    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_long_one_streams_with_its_marked_parts_sealed(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, way: Way, chunked: bool
    ) -> None:
        chunks = [UPLOAD[at : at + 50_000] for at in range(0, len(UPLOAD), 50_000)] if chunked else None
        headers = (("Content-Type", TYPE),)
        answer = ask(sidecar, upstream, "form.example", way=way, headers=headers, body=UPLOAD, chunks=chunks)
        assert answer.status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("transfer-encoding") == "chunked"
        assert "content-length" not in got.headers
        check(got.body, receiver)
        line = decision_of(sidecar, upstream)
        assert (line["encrypted"], line["bytes_sent"]) == (1, len(got.body))

    def test_so_it_does_in_http_2(self, sidecar: Sidecar, authority: Authority, receiver: Receiver) -> None:
        with fresh(lambda: Http2Upstream(authority, *HOSTS)) as upstream:
            client = speak(sidecar, f"form.example:{upstream.port}")
            fields = [("content-type", TYPE), ("content-length", str(len(UPLOAD)))]
            stream = client.begin(f"form.example:{upstream.port}", headers=fields)
            client.upload(stream, UPLOAD)
            assert client.read(stream).status == 200
            client.close()
            (got,) = upstream.wait_for_messages(1)
            assert got.get("content-length") is None
            check(got.body, receiver)

    def test_its_json_is_sealed_by_the_selectors(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        """As a browser sends what a script has made of an object: a file named "blob" that says it is JSON."""
        blob = part("data", b'{"a":1.0, "ssn" :"078"}', '; filename="blob"\r\nContent-Type: application/json')
        body = part("f", FILE, '; filename="x"') + blob + b"--xYz--\r\n"
        assert ask(sidecar, upstream, "form.example", headers=(("Content-Type", TYPE),), body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        before, _, behind = body.partition(b'"078"')
        assert got.body.startswith(before)
        assert got.body.endswith(behind)
        token = got.body[len(before) + 1 : len(got.body) - len(behind) - 1]
        assert receiver.open(token, host="form.example", path="$.ssn") == b'"078"'

    def test_a_short_one_is_held_and_keeps_a_length(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        body = part("f", b"x") + part("ssn", b"078") + b"--xYz--"
        assert ask(sidecar, upstream, "form.example", headers=(("Content-Type", TYPE),), body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("content-length") == str(len(got.body))

    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            (part("ssn", b"\xff") + b"--xYz--", "body_unreadable"),
            (part("ssn", b"078", '; filename="x"') + b"--xYz--", "body_unreadable"),
            (part("ssn", b"0" * LIMIT + b"0") + b"--xYz--", "body_too_large"),
            (part("ssn", b"078"), "body_unreadable"),
            (part("ssn", b"078") + b"--xYz--x", "body_unreadable"),
            (part("sn", b"078") + b"--xYz--", "fields_missing"),
        ],
    )
    def test_a_denial_in_the_middle_breaks_it_off(
        self, sidecar: Sidecar, upstream: TlsUpstream, end: bytes, reason: str
    ) -> None:
        headers = (("Content-Type", TYPE),)
        answer = ask(sidecar, upstream, "form.example", headers=headers, body=part("f", FILE) + end)
        assert answer.json()["reason"] == reason
        upstream.settle()
        assert b"\n078\r" not in upstream.received or reason == "fields_missing"
        assert b"--xYz--" not in upstream.received
        assert upstream.requests == []  # nothing that looks whole
        assert decision_of(sidecar, upstream)["reason"] == reason

    def test_one_that_is_coded_is_not_taken(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        headers = (("Content-Type", TYPE), ("Content-Encoding", "gzip"))
        answer = ask(sidecar, upstream, "form.example", headers=headers, body=UPLOAD)
        assert_denied(sidecar, upstream, answer, "body_too_large")

    @pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(),
        reason="the most memory ever used is told by /proc, which is Linux's",
    )
    def test_a_large_one_to_a_slow_server_takes_little_memory(self, sidecar: Sidecar, authority: Authority) -> None:
        count, end = 200, b"\r\n" + part("ssn", b"078") + b"--xYz--"
        with SlowUpstream(authority) as upstream:
            Path(f"/proc/{sidecar.pid}/clear_refs").write_text("5")
            before = sidecar.resident_bytes()
            host = f"form.example:{upstream.port}"
            with open_way(sidecar, "form.example", upstream.port) as client:
                begin = part("f", b"")[:-2]
                size = len(begin) + count * len(FILE) + len(end)
                head = request(f"http://{host}/", host, headers=(("Content-Type", TYPE),))
                client.send(head.replace(b"Content-Length: 0", b"Content-Length: %d" % size) + begin)
                for _ in range(count):
                    client.send(FILE)
                client.send(end)
                assert client.read_response().status == 200
            assert upstream.received > count * len(FILE)
        assert sidecar.resident_bytes(peak=True) - before < 16 * len(FILE)


class TestOtherBodies:
    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("text/plain", b"ssn=1"),
            ("application/x-www-form-urlencoded", b"ssn=1"),
            (TYPE, UPLOAD),
            ("application/octet-stream", FILE[60:]),
            ("image/png", b'{"ssn":1}'),
            ("text/plain", b""),
        ],
    )
    def test_they_pass_as_they_came(
        self, sidecar: Sidecar, upstream: TlsUpstream, content_type: str, body: bytes
    ) -> None:
        headers = (("Content-Type", content_type),)
        assert ask(sidecar, upstream, "pass.example", headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.body == body
        assert got.headers.get("content-length") == str(len(body))

    def test_json_is_sealed_whatever_its_label_says(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            headers = (("Content-Type", content_type),)
            answer = ask(sidecar, upstream, "pass.example", headers=headers, chunks=[b" ", b"\n", b'{"ssn":"078"}'])
            assert answer.status == 200
        assert all(b'"078"' not in got.body and got.json() for got in upstream.wait_for_requests(3))

    def test_json_that_is_broken_is_denied(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        answer = ask(sidecar, upstream, "pass.example", headers=(("Content-Type", "text/plain"),), body=b'{"ssn":078}')
        assert_denied(sidecar, upstream, answer, "body_not_json")

    def test_they_stream(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        authority = f"pass.example:{upstream.port}"
        with open_way(sidecar, "pass.example", upstream.port) as client:
            head = request(f"http://{authority}/", authority, headers=(("Content-Type", "text/plain"),))
            client.send(head.replace(b"Content-Length: 0", b"Content-Length: 12") + b" \nfirst")
            upstream._wait(lambda: b"first" in upstream.received, 5.0, "the first piece")
            client.send(b"other")
            assert client.read_response().status == 200
