"""What passes between the versions of HTTP, and what ends there: the table of ARCHITECTURE.md, cell by cell.

Both ends are the test's: it says each byte, or frame, and sees each. Each test is a row; it runs from HTTP/2 to HTTP/2,
from HTTP/2 to HTTP/1.1, and from HTTP/1.1 to HTTP/1.1.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e import wire
from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    RST_STREAM,
    Code,
    Frame,
    Peer,
    block,
    data,
    headers,
    reset,
    settings,
)
from tests.e2e.http2 import agree_on_http2, frame
from tests.e2e.receiver import Receiver
from tests.e2e.scripted import Upstream
from tests.e2e.sidecar import Sidecar

HOST = "app.example"
POLICY = """
    defaults: {{https: inspect}}
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}
    rules: [{{name: app, hosts: [{host}], request: [{{encrypt: [$.ssn], key: pay, when: {{paths: [/held]}}}}]}}]
"""
Fields = tuple[tuple[str, str], ...]
NONE: Fields = ()


class Http2End:
    """An app or an upstream that speaks HTTP/2; one stream of it."""

    def __init__(self, client: RawClient | Accepted, first: bytes) -> None:
        self.peer = Peer(client, first)
        self.stream = 1

    def _start(self, pseudo: Fields, fields: Fields, last: bool) -> None:
        flags = END_HEADERS | (END_STREAM if last else 0)
        self.peer.send(headers(self.stream, block(*pseudo, *fields), flags))

    def send(self, piece: bytes) -> None:
        """Send a piece of a body."""
        self.peer.send(data(self.stream, piece))

    def end(self, trailers: Fields = NONE) -> None:
        """End it."""
        if trailers:
            self.peer.send(headers(self.stream, block(*trailers)))
        else:
            self.peer.send(data(self.stream, b"", last=True))

    def head(self) -> dict[str, str]:
        """Return the next head of the message that comes."""
        self._last = self.peer.head(None if self.stream == 0 else self.stream)
        self.stream = self._last.stream
        return dict(self._last.fields)

    def rest(self) -> tuple[bytes, Fields]:
        """Return what follows it: a body, and the fields behind.

        Raises:
            AssertionError: it is broken off.
        """
        body, behind, found = b"", NONE, self._last
        while not found.is_end:
            found = self._next()
            assert found.kind != RST_STREAM, f"the stream was reset: {Code(found.code).name}"
            if found.kind == DATA:
                body += found.payload
            else:
                behind = found.fields
        return body, behind

    def broken_off(self) -> bool:
        """Tell whether it is broken off, once it is over."""
        found = self._last
        while not found.is_end and found.kind != RST_STREAM:
            found = self._next()
        return found.kind == RST_STREAM

    def _next(self) -> Frame:
        return self.peer.find(lambda each: each.stream == self.stream and each.kind in (DATA, HEADERS, RST_STREAM))


class Http1End:
    """An app or an upstream that speaks HTTP/1.1."""

    def __init__(self, client: RawClient | Accepted) -> None:
        self.client = client
        self._head: wire.Head

    def _start(self, first: str, fields: Fields, last: bool) -> None:
        lines = [first, *(f"{name}: {value}" for name, value in fields)]
        if not last:
            lines.append("Transfer-Encoding: chunked")
        self.client.send("\r\n".join([*lines, "", ""]).encode())

    def send(self, piece: bytes) -> None:
        """Send a piece of a body; an empty one would be its end."""
        if piece:
            self.client.send(b"%x\r\n%s\r\n" % (len(piece), piece))

    def end(self, trailers: Fields = NONE) -> None:
        """End it."""
        self.client.send(b"0\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in trailers) + b"\r\n")

    def head(self) -> dict[str, str]:
        """Return the next head of the message that comes, in HTTP/2's words."""
        found = wire.read_head(self.client.read_until(wire.END_OF_HEAD))
        assert found is not None
        self._head = found
        fields = {name.lower(): value for name, value in found.headers.fields}
        first = found.start_line.split()
        if first[0].startswith("HTTP/"):
            return {":status": first[1], **fields}
        return {":method": first[0], ":path": first[1], ":authority": fields.pop("host"), **fields}

    def rest(self) -> tuple[bytes, Fields]:
        """Return what follows it: a body, and the fields behind.

        Raises:
            AssertionError: it is broken off.
        """
        if (length := self._head.headers.get("content-length")) is not None:
            return self.client.read_exactly(int(length)), NONE
        assert self._head.headers.get("transfer-encoding") == "chunked"
        body = b""
        while size := int(self.client.read_until(b"\r\n"), 16):
            body += self.client.read_exactly(size + 2)[:-2]
        behind = []
        while (line := self.client.read_until(b"\r\n")) != b"\r\n":
            name, _, value = line.decode().partition(":")
            behind.append((name.lower(), value.strip()))
        return body, tuple(behind)

    def broken_off(self) -> bool:
        """Tell whether it is broken off, once the connection is over."""
        return not self.client.read_to_end().endswith(b"0\r\n\r\n")


class Http2App(Http2End):
    """An app."""

    def __init__(self, sidecar: Sidecar, authority: str) -> None:
        client = connect(sidecar, authority)
        agree_on_http2(client, HOST, sidecar.ca_file)
        super().__init__(client, PREFACE + settings())
        self.authority = authority

    def begin(self, path: str = "/", fields: Fields = NONE, *, method: str = "POST", last: bool = False) -> None:
        """Begin a request."""
        pseudo = ((":method", method), (":scheme", "https"), (":authority", self.authority), (":path", path))
        self._start(pseudo, fields, last)

    def give_up(self) -> None:
        """Want no response any more."""
        self.peer.send(reset(self.stream, Code.CANCEL))


class Http1App(Http1End):
    """An app."""

    VERSION = "1.1"

    def __init__(self, sidecar: Sidecar, authority: str) -> None:
        client = connect(sidecar, authority)
        client.start_tls(HOST, sidecar.ca_file)
        super().__init__(client)
        self.authority = authority

    def begin(self, path: str = "/", fields: Fields = NONE, *, method: str = "POST", last: bool = False) -> None:
        """Begin a request."""
        self._start(f"{method} {path} HTTP/{self.VERSION}", (("Host", self.authority), *fields), last)

    def give_up(self) -> None:
        """Want no response any more."""
        self.client.close()


class Http10App(Http1App):
    """One that has no interim responses."""

    VERSION = "1.0"


class Http2Far(Http2End):
    """An upstream."""

    ALPN = "h2"

    def __init__(self, client: Accepted) -> None:
        client.read_exactly(len(PREFACE))
        super().__init__(client, settings())
        self.stream = 0

    def begin(self, status: int, fields: Fields = NONE, *, last: bool = False) -> None:
        """Begin a response, or send an interim one."""
        self._start(((":status", str(status)),), fields, last)

    def reset(self) -> None:
        """Break it off."""
        self.peer.send(reset(self.stream, Code.INTERNAL_ERROR))

    def is_given_up(self) -> bool:
        """Tell whether the request is given up, once it is over: by a reset, and nothing else has ended."""
        found = self._next()
        while found.kind == DATA and not found.is_end:
            found = self._next()
        return found.kind == RST_STREAM and found.code == Code.CANCEL


class Http1Far(Http1End):
    """An upstream."""

    ALPN = "http/1.1"

    def begin(self, status: int, fields: Fields = NONE, *, last: bool = False) -> None:
        """Begin a response, or send an interim one."""
        if last and status >= 200:
            fields = (*fields, ("Content-Length", "0"))
        self._start(f"HTTP/1.1 {status} Far", fields, last)

    def reset(self) -> None:
        """Break it off."""
        self.client.close()

    def is_given_up(self) -> bool:
        """Tell whether the request is given up, once it is over: by the end of the connection."""
        return self.broken_off()


App = Http2App | Http1App
Far = Http2Far | Http1Far
PAIRS: dict[str, tuple[type[App], type[Far]]] = {
    "2 to 2": (Http2App, Http2Far),
    "2 to 1.1": (Http2App, Http1Far),
    "1.1 to 1.1": (Http1App, Http1Far),
}


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here."""
    folder = tmp_path_factory.mktemp("versions")
    policy = POLICY.format(host=HOST, key=Receiver("pay").write_public(folder))
    with Sidecar(policy, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar:
        yield sidecar
        assert '"level": "error"' not in sidecar.stderr


class Wire:
    """An app, and the upstream that it asks."""

    def __init__(self, sidecar: Sidecar, upstream: Upstream, app: type[App], far: type[Far]) -> None:
        self._upstream = upstream
        self._far = far
        self.app = app(sidecar, upstream.authority)

    def far(self) -> Far:
        """Return the upstream's end, once it has been asked."""
        return self._far(self._upstream.accept())


@contextmanager
def wired(sidecar: Sidecar, authority: Authority, app: type[App], far: type[Far]) -> Iterator[Wire]:
    """Make both ends for as long as they are needed."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue(HOST).load_into(tls)
    tls.set_alpn_protocols([far.ALPN])
    upstream = Upstream(HOST, tls)
    try:
        yield Wire(sidecar, upstream, app, far)
    finally:
        upstream.close()


@pytest.fixture(params=PAIRS.values(), ids=list(PAIRS))
def ends(request: pytest.FixtureRequest, sidecar: Sidecar, authority: Authority) -> Iterator[Wire]:
    """Each pair of versions."""
    app, far = request.param
    with wired(sidecar, authority, app, far) as ends:
        yield ends


LINK = (("link", "</a>; rel=preload"),)
SUM = (("x-sum", "3"),)


class TestInterim:
    def test_they_pass(self, ends: Wire) -> None:
        ends.app.begin(method="GET", last=True)
        far = ends.far()
        far.head()
        for status in (102, 103, 103):
            far.begin(status, LINK, last=isinstance(far, Http1Far))
            assert ends.app.head() == {":status": str(status), **dict(LINK)}
        far.begin(200, last=True)
        assert ends.app.head()[":status"] == "200"
        assert ends.app.rest() == (b"", NONE)

    def test_what_the_app_waits_for_is_the_upstreams_to_say(self, ends: Wire) -> None:
        ends.app.begin(fields=(("expect", "100-continue"),))
        far = ends.far()
        assert far.head()["expect"] == "100-continue"
        far.begin(100, last=isinstance(far, Http1Far))
        assert ends.app.head() == {":status": "100"}
        ends.app.send(b"abc")
        ends.app.end()
        assert far.rest() == (b"abc", NONE)
        far.begin(200, last=True)
        assert ends.app.head()[":status"] == "200"

    def test_http_1_0_has_none(self, sidecar: Sidecar, authority: Authority) -> None:
        with wired(sidecar, authority, Http10App, Http1Far) as ends:
            ends.app.begin(method="GET", last=True)
            far = ends.far()
            far.head()
            far.begin(103, LINK, last=True)
            far.begin(200, last=True)
            assert ends.app.head()[":status"] == "200"


class TestTrailers:
    def test_of_a_response_pass(self, ends: Wire) -> None:
        ends.app.begin(method="GET", last=True, fields=(("te", "trailers"),))
        far = ends.far()
        far.head()
        far.begin(200)
        far.send(b"ab")
        far.send(b"c")
        far.end(SUM)
        assert ends.app.head()[":status"] == "200"
        assert ends.app.rest() == (b"abc", SUM)

    def test_of_a_request_pass(self, ends: Wire) -> None:
        ends.app.begin()
        far = ends.far()
        far.head()
        ends.app.send(b"abc")
        ends.app.end(SUM)
        assert far.rest() == (b"abc", SUM)

    def test_of_a_body_that_is_held_end_here(self, ends: Wire) -> None:
        """It is another body afterwards (RFC 9110, section 6.5.1)."""
        ends.app.begin("/held", (("content-type", "application/json"),))
        ends.app.send(b'{"a":')
        ends.app.send(b"1}")
        ends.app.end(SUM)
        far = ends.far()
        far.head()
        assert far.rest() == (b'{"a":1}', NONE)

    def test_te_is_told_where_it_means_something(self, ends: Wire) -> None:
        """In HTTP/1.1 it is about one connection (RFC 9110, section 10.1.4); there, trailers pass in any case."""
        ends.app.begin(method="GET", last=True, fields=(("te", "trailers"),))
        far = ends.far()
        assert far.head().get("te") == ("trailers" if isinstance(far, Http2Far) else None)


class TestBodies:
    def test_a_request_without_a_length(self, ends: Wire) -> None:
        ends.app.begin()
        far = ends.far()
        head = far.head()
        assert head.get("content-length") is None
        assert head.get("transfer-encoding") == ("chunked" if isinstance(far, Http1Far) else None)
        ends.app.send(b"ab")
        ends.app.send(b"")  # in HTTP/2 no end
        ends.app.send(b"c")
        ends.app.end()
        assert far.rest() == (b"abc", NONE)

    def test_a_request_with_a_length(self, ends: Wire) -> None:
        ends.app.begin(fields=(("content-length", "3"),), last=isinstance(ends.app, Http1App))
        if isinstance(ends.app, Http1App):
            ends.app.client.send(b"abc")
        else:
            ends.app.send(b"abc")
            ends.app.end()
        far = ends.far()
        head = far.head()
        assert (head.get("content-length"), head.get("transfer-encoding")) == ("3", None)
        assert far.rest() == (b"abc", NONE)

    def test_a_response_without_a_length(self, ends: Wire) -> None:
        ends.app.begin(method="GET", last=True)
        far = ends.far()
        far.head()
        far.begin(200)
        head = ends.app.head()
        assert head.get("content-length") is None
        assert head.get("transfer-encoding") == ("chunked" if isinstance(ends.app, Http1App) else None)
        far.send(b"ab")
        far.send(b"")  # in HTTP/2 no end
        far.send(b"c")
        far.end()
        assert ends.app.rest() == (b"abc", NONE)

    def test_a_get_has_neither_a_length_nor_chunks(self, ends: Wire) -> None:
        ends.app.begin("/x?y=%20", method="GET", last=True)
        far = ends.far()
        named = {":method": "GET", ":path": "/x?y=%20", ":authority": ends.app.authority}
        assert far.head() == (named | {":scheme": "https"} if isinstance(far, Http2Far) else named)


class TestEarly:
    def test_a_response_before_the_request_has_ended_passes_and_the_rest_of_that_goes_nowhere(self, ends: Wire) -> None:
        ends.app.begin()
        ends.app.send(b"abc")
        far = ends.far()
        far.head()
        far.begin(413, last=True)
        assert ends.app.head()[":status"] == "413"
        assert ends.app.rest() == (b"", NONE)
        ends.app.send(b"def")
        ends.app.end()
        assert far.is_given_up()


class TestResets:
    def test_by_the_app(self, ends: Wire) -> None:
        ends.app.begin()
        ends.app.send(b"abc")
        far = ends.far()
        far.head()
        ends.app.give_up()
        assert far.is_given_up()

    def test_by_the_upstream_before_it_answers(self, ends: Wire) -> None:
        ends.app.begin(method="POST", last=True, fields=(("content-length", "0"),))
        far = ends.far()
        far.head()
        far.reset()
        assert ends.app.head()[":status"] == "502"

    def test_by_the_upstream_while_it_answers(self, ends: Wire) -> None:
        ends.app.begin(method="GET", last=True)
        far = ends.far()
        far.head()
        far.begin(200)
        far.send(b"abc")
        assert ends.app.head()[":status"] == "200"
        far.reset()
        assert ends.app.broken_off()


class TestPriorities:
    def test_of_a_connection_end_here_and_those_of_a_message_pass(self, sidecar: Sidecar, authority: Authority) -> None:
        """The field of RFC 9218 is meant for the origin; what RFC 7540 had for it is of one connection."""
        with wired(sidecar, authority, Http2App, Http2Far) as ends:
            assert isinstance(ends.app, Http2App)
            depends = (1).to_bytes(4) + b"\x10"
            peer = ends.app.peer
            peer.send(frame(PRIORITY, 0, 3, depends))
            named = ((":method", "GET"), (":scheme", "https"), (":authority", ends.app.authority), (":path", "/"))
            fields = block(*named, ("priority", "u=1"))
            peer.send(frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 5, depends + fields))
            peer.send(frame(PRIORITY, 0, 5, depends))
            far = ends.far()
            assert isinstance(far, Http2Far)
            seen = []
            while (found := far.peer.read()) is not None and found.kind != HEADERS:
                seen.append(found.kind)
            assert found is not None
            assert PRIORITY not in seen
            assert (found.flags & PRIORITIZED, found.get("priority")) == (0, "u=1")
