"""A response is read as strictly whichever version of HTTP its app speaks, and what is no plain one reaches no app.

Proves ARCHITECTURE's rules 1 (fail closed) and 7 (say why). An app of HTTP/2 must not be told by frames, as certain,
what was guessed from a head that two readers could read in two ways (RFC 9112, section 11.1).
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum

import pytest

from proxy.engine.upstreams.connection import MAX_INTERIM
from tests.e2e.app import Way, connect, open_way
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.http2 import Http2Client
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Sidecar

HOST = "far.example"
AT_ONCE = 2.0  # seconds; far less than any limit that would end it otherwise
LENGTH = b"Content-Length: 2\r\n\r\nok"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
GOOD = b"HTTP/1.1 200 OK\r\nX-One: 1\r\n" + LENGTH
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Version(Enum):
    """What an app speaks."""

    HTTP_1_0 = "1.0"
    HTTP_1_1 = "1.1"
    HTTP_2 = "2"


both = pytest.mark.parametrize("version", [Version.HTTP_1_1, Version.HTTP_2], ids=str)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = "defaults: {https: inspect}"
    with Sidecar(policy, tmp_path_factory.mktemp("strict"), authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running


@pytest.fixture
def far(authority: Authority) -> Iterator[Upstream]:
    with scripted_upstream(HOST, authority) as made:
        yield made


class App:
    """An app that asks through CONNECT: with HTTP/2 all on one connection, otherwise each on one of its own."""

    def __init__(self, sidecar: Sidecar, far: Upstream, version: Version) -> None:
        self._sidecar = sidecar
        self._far = far
        self._version = version
        self._http2: Http2Client | None = None
        if version is Version.HTTP_2:
            self._http2 = Http2Client.open(connect(sidecar, far.authority), HOST, sidecar.ca_file)

    def ask(self, path: str) -> Callable[[], tuple[list[int], bytes]]:
        """Send a request; return what waits for its response, with the statuses of all before it, and its body."""
        if self._http2 is None:
            client = open_way(self._sidecar, HOST, int(self._far.authority.partition(":")[2]), Way.CONNECT)
            client.send(f"GET {path} HTTP/{self._version.value}\r\nHost: {self._far.authority}\r\n\r\n".encode())
            return lambda: self._read(client)
        pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", self._far.authority), (":path", path)]
        http2, stream = self._http2, self._http2.begin_raw(pseudo, last=True)

        def read() -> tuple[list[int], bytes]:
            message = http2.read(stream)
            assert message.reset is None
            return [message.status], message.body

        return read

    def _read(self, client: RawClient) -> tuple[list[int], bytes]:
        statuses: list[int] = []
        while not statuses or statuses[-1] < 200:
            answer = client.read_response()
            statuses.append(answer.status)
        return statuses, answer.body


WRONG = {
    # name: (what of GOOD, what stands there instead)
    "bare LF in the whole head": (b"\r\n", b"\n"),
    "bare LF behind the status line": (b"OK\r\n", b"OK\n"),
    "bare LF behind a field": (b"1\r\n", b"1\n"),
    "bare LF behind the last field": (b"2\r\n\r\n", b"2\n\r\n"),
    "bare LF as the empty line": (b"2\r\n\r\n", b"2\r\n\n"),
    "a folded line": (b": 1\r\n", b": 1\r\n 2\r\n"),
    "a folded line without anything": (b": 1\r\n", b": 1\r\n \r\n"),
    "NUL in a value": (b": 1", b": \0"),
    "NUL in a name": (b"X-One", b"X-\0ne"),
    "NUL in the reason": (b"OK", b"O\0"),
    "bare CR in a value": (b": 1", b": 1\r2"),
    "bare CR in the reason": (b"OK", b"O\rK"),
    "VT in a value": (b": 1", b": 1\x0b"),
    "VT before a length": (b": 2", b":\x0b2"),
    "a space before a colon": (b"X-One:", b"X-One :"),
    "a space before a field": (b"OK\r\n", b"OK\r\n "),
    "no colon": (b"X-One: 1", b"X-One"),
    "no name": (b"X-One: 1", b": 1"),
    "another coding and chunks": (LENGTH, CHUNKED.replace(b"chunked", b"gzip, chunked")),
    "chunks in HTTP/1.0": (GOOD, b"HTTP/1.0 200 OK\r\n" + CHUNKED),
    "chunks and a length": (b"X-One: 1", b"Transfer-Encoding: chunked"),
    "a length twice": (b"X-One: 1", b"Content-Length: 2"),
    "two lengths": (b"X-One: 1", b"Content-Length: 3"),
    "two lengths in one field": (b": 2", b": 2, 2"),
    "a length with a sign": (b": 2", b": +2"),
    "a length with a leading zero": (b": 2", b": 02"),
    "a length in hexadecimal": (b": 2", b": 0x2"),
    "no length in its field": (b": 2", b": "),
    "HTTP/2.0": (b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/1.9": (b"HTTP/1.1", b"HTTP/1.9"),
    "HTTP/1.10": (b"HTTP/1.1", b"HTTP/1.10"),
    "HTTP in lower case": (b"HTTP/1.1", b"http/1.1"),
    "the status 099": (b"200", b"099"),
    "the status 1000": (b"200", b"1000"),
    "the status 20": (b"200", b"20"),
    "the status +200": (b"200", b"+200"),
    "two spaces before the status": (b" 200", b"  200"),
    "a tab before the status": (b" 200", b"\t200"),
    "an empty line before it": (b"HTTP", b"\r\nHTTP"),
    "a switch that was not asked for": (b"200 OK", b"101 OK"),
    "a malformed interim response before it": (b"HTTP", b"HTTP/1.1 100 Continue\r\nbad\r\n\r\nHTTP"),
    "an interim response of HTTP/2 before it": (b"HTTP", b"HTTP/2 100 Continue\r\n\r\nHTTP"),
}  # fmt: skip

RIGHT = {
    "as it is": (b"", b""),
    "HTTP/1.0": (b"HTTP/1.1", b"HTTP/1.0"),
    "no reason": (b" OK", b""),
    "an empty reason": (b"OK", b""),
    "a reason of several words": (b"OK", b"All is\twell, \xc3\xa4"),
    "a value that is not ASCII": (b": 1", b": \xc3\xa4"),
    "a tab in a value": (b": 1", b": 1\t2"),
    "an empty value": (b": 1", b":"),
    "white space around a length": (b": 2", b": \t2 \t"),
    "no space behind a colon": (b": 2", b":2"),
    "chunks": (LENGTH, CHUNKED),
    "chunks in another spelling": (LENGTH, CHUNKED.replace(b"chunked", b"Chunked")),
    "an interim response before it": (b"HTTP", CONTINUE + b"HTTP"),
    "another interim response before it": (b"HTTP", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP"),
}


def put(of: bytes, instead: bytes) -> bytes:
    """Return GOOD with one change."""
    assert of in GOOD
    return GOOD.replace(of, instead) if of else GOOD


@both
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_plain_response_is_502_at_once_and_others_live_on(
    sidecar: Sidecar, far: Upstream, name: str, version: Version
) -> None:
    app = App(sidecar, far, version)
    wait_for_other = app.ask("/other")
    other = far.accept()
    other.read_head()
    wait = app.ask("/wrong")
    server = far.accept()
    assert server.read_head().startswith(b"GET /wrong HTTP/1.1\r\n")
    since = time.monotonic()
    server.send(put(*WRONG[name]))
    statuses, body = wait()
    assert (statuses, json.loads(body)["reason"]) == ([502], "upstream_failed")
    assert time.monotonic() - since < AT_ONCE
    assert server.read_to_end() == b""
    line = sidecar.wait_for_decision(lambda line: (line["destination"], line["path"]) == (far.authority, "/wrong"))
    assert (line["outcome"], line["reason"], line["status"]) == ("upstream_failed", "upstream_failed", 502)
    other.send(GOOD)
    assert wait_for_other() == ([200], b"ok")


@both
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_one_passes(sidecar: Sidecar, far: Upstream, name: str, version: Version) -> None:
    wait = App(sidecar, far, version).ask("/right")
    server = far.accept()
    server.read_head()
    server.send(put(*RIGHT[name]))
    statuses, body = wait()
    assert (statuses[-1], body) == (200, b"ok")


@both
@pytest.mark.parametrize("name", ["bare LF behind the last field", None])
def test_it_makes_no_difference_where_a_head_is_cut(
    sidecar: Sidecar, far: Upstream, name: str | None, version: Version
) -> None:
    wait = App(sidecar, far, version).ask("/")
    server = far.accept()
    server.read_head()
    for byte in put(*WRONG[name]) if name else GOOD:
        with suppress(OSError):  # it is closed at once where it is wrong
            server.send(bytes([byte]))
    assert wait()[0] == [502 if name else 200]


@pytest.mark.parametrize("version", Version, ids=str)
class TestUntilClose:
    """A response of HTTP/1.0 ends with its connection, and is whole if TLS says so (RFC 9112, section 9.8)."""

    HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"

    @pytest.mark.parametrize("more", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
    @pytest.mark.parametrize("body", [b'{"a":1}', b"x" * 100_000, b""], ids=["short", "long", "none"])
    def test_with_a_close_notify_it_is_whole(
        self, sidecar: Sidecar, far: Upstream, version: Version, body: bytes, more: bytes
    ) -> None:
        wait = App(sidecar, far, version).ask("/whole")
        server = far.accept()
        server.read_head()
        server.send(self.HEAD + more + b"\r\n" + body)
        assert isinstance(server._socket, ssl.SSLSocket)
        server._socket.settimeout(0.2)
        with suppress(TimeoutError, OSError):  # the close_notify goes out, none comes back
            server._socket.unwrap()
        assert wait() == ([200], body)

    def test_without_one_it_may_have_been_cut(self, sidecar: Sidecar, far: Upstream, version: Version) -> None:
        wait = App(sidecar, far, version).ask("/cut")
        server = far.accept()
        server.read_head()
        server.send(self.HEAD + b"\r\n{}")
        server.close()
        with pytest.raises((AssertionError, ConnectionResetError)):
            wait()


@pytest.mark.parametrize("version", Version, ids=str)
class TestInterim:
    def ask(self, sidecar: Sidecar, far: Upstream, version: Version, count: int) -> tuple[list[int], bytes]:
        """Have a request answered by so many interim responses, and the final one."""
        wait = App(sidecar, far, version).ask("/interim")
        server = far.accept()
        server.read_head()
        server.send(CONTINUE * count + GOOD)
        return wait()

    def test_as_many_as_may_come_do(self, sidecar: Sidecar, far: Upstream, version: Version) -> None:
        passed_on = [100] * MAX_INTERIM if version is Version.HTTP_1_1 else []
        assert self.ask(sidecar, far, version, MAX_INTERIM) == ([*passed_on, 200], b"ok")

    def test_one_more_is_one_too_many(self, sidecar: Sidecar, far: Upstream, version: Version) -> None:
        passed_on = [100] * MAX_INTERIM if version is Version.HTTP_1_1 else []
        statuses, body = self.ask(sidecar, far, version, MAX_INTERIM + 1)
        assert (statuses, json.loads(body)["reason"]) == ([*passed_on, 502], "upstream_failed")
