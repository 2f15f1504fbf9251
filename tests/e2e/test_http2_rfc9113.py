"""What a server does with each frame that RFC 9113 or RFC 7541 has a word on: bytes in, and what must come of them.

Proves ARCHITECTURE's rule 1 (fail closed) for HTTP/2: the cases are those that h2spec has for servers, and some more;
they are as strict as that is. What is about one stream ends no other: a request on the same connection follows, and is
served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from proxy.engine.http2state import MAX_STREAMS
from tests.e2e import wire
from tests.e2e.app import connect, fresh
from tests.e2e.certificates import Authority
from tests.e2e.connection import RecordedRequest
from tests.e2e.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Code,
    Field,
    Peer,
    block,
    data,
    goaway,
    headers,
    integer,
    reset,
    settings,
    text,
    window_update,
)
from tests.e2e.http2 import agree_on_http2, frame
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOST = "far.example"
NEXT = 201  # the stream that is served after all


def respond(request: RecordedRequest) -> bytes:
    path = request.target.partition("?")[0]
    if path == "/status":
        return b"HTTP/1.1 %s X\r\n\r\n" % request.target.partition("?")[2].encode()
    if path == "/large":
        return wire.response(200, b"x" * 300_000)
    return wire.response(200, request.body or b"ok")


@pytest.fixture(scope="module")
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with fresh(lambda: TlsUpstream(authority, HOST, respond=respond)) as made:
        yield made


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = "defaults: {https: inspect}"
    folder = tmp_path_factory.mktemp("rfc9113")
    with Sidecar(policy, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running


def speak(sidecar: Sidecar, upstream: TlsUpstream, first: bytes = PREFACE + settings()) -> Peer:
    client = connect(sidecar, f"{HOST}:{upstream.port}")
    agree_on_http2(client, HOST, sidecar.ca_file)
    return Peer(client, first)


# Stands for the authority, whose port nobody knows yet; as long as it, so that no length changes.
PLACE = b"A" * len(f"{HOST}:12345")


def of(*fields: Field, method: str = "GET", path: str = "/", scheme: str = "https") -> bytes:
    """Return the header block of a request with more fields."""
    first: list[Field] = [(":method", method), (":scheme", scheme), (":authority", PLACE), (":path", path)]
    return block(*first, *fields)


GET, POST = of(), of(method="POST")
OPEN = headers(1, POST, END_HEADERS)  # a request whose body is still to come
WHOLE = headers(1, GET)
LAST = headers(1, block(("a", "b")))


def raw(length: int, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame that says another length than it has."""
    return length.to_bytes(3) + frame(kind, flags, stream, payload)[3:]


def huffman(value: bytes) -> bytes:
    """Return a field whose value is said to be Huffman-coded."""
    return b"\x00" + text("x") + integer(len(value), 7, 0x80) + value


class Gone(int):
    """The connection ends with this code."""


class Reset(int):
    """Stream 1 ends with this code, and others go on."""


class Answer(int):
    """Stream 1 is answered with this status, and others go on."""


SERVED = Answer(200)
REFUSED = Answer(400)
PROTOCOL, SIZE, COMPRESSION = Gone(Code.PROTOCOL_ERROR), Gone(Code.FRAME_SIZE_ERROR), Gone(Code.COMPRESSION_ERROR)
PRIO = b"\x00\x00\x00\x00\x10"
ON_ITSELF = b"\x00\x00\x00\x01\x10"

CASES: list[tuple[str, bytes, Gone | Reset | Answer]] = [
    ("4.1: a frame of an unknown type", frame(0x16, 0, 0, b"x" * 8) + frame(0x16, 0xFF, 1, b"") + WHOLE, SERVED),
    (
        "4.1: undefined flags",
        frame(PING, 0x16, 0, b"12345678") + headers(1, GET, END_HEADERS | END_STREAM | 0x42),
        SERVED,
    ),
    ("4.1: the reserved bit", frame(PING, 0, 2**31, b"12345678") + headers(2**31 + 1, GET), SERVED),
    ("4.2: the largest frame", OPEN + data(1, b"x" * 16384, last=True), SERVED),
    ("4.2: a DATA frame too large", OPEN + data(1, b"x" * 16385), SIZE),
    ("4.2: a HEADERS frame too large", raw(16385, HEADERS, END_HEADERS, 1, b"x" * 20), SIZE),
    ("4.2: an unknown frame too large", raw(16385, 0x16, 0, 0, b"x" * 20), SIZE),
    ("4.2: a SETTINGS frame too large", raw(16386, SETTINGS, 0, 0, b"x" * 20), SIZE),
    ("4.3: a block that is none", headers(1, b"\x40"), COMPRESSION),
    ("4.3: PRIORITY inside a block", headers(1, GET, 1) + frame(PRIORITY, 0, 1, PRIO), PROTOCOL),
    ("4.3: HEADERS inside a block", headers(1, GET, 1) + headers(3, GET), PROTOCOL),
    ("4.3: GOAWAY inside a block", headers(1, GET, 1) + goaway(0), PROTOCOL),
    ("4.3: PING inside a block", headers(1, GET, 1) + frame(PING, 0, 0, b"12345678"), PROTOCOL),
    ("5.1: DATA on an idle stream", data(1, b"x"), PROTOCOL),
    ("5.1: RST_STREAM on an idle stream", reset(1, Code.CANCEL), PROTOCOL),
    ("5.1: RST_STREAM on one that only we would begin", reset(2, Code.CANCEL), PROTOCOL),
    ("5.1: WINDOW_UPDATE on an idle stream", window_update(1, 100), PROTOCOL),
    ("5.1: CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, GET), PROTOCOL),
    ("5.1: DATA on a half-closed stream", headers(1, of(path="/slow")) + data(1, b"x"), Reset(Code.STREAM_CLOSED)),
    ("5.1: HEADERS on a half-closed stream", headers(1, of(path="/slow")) + headers(1, GET), Reset(Code.STREAM_CLOSED)),
    ("5.1: CONTINUATION on a half-closed stream", WHOLE + frame(CONTINUATION, END_HEADERS, 1, GET), PROTOCOL),
    ("5.1: DATA behind a reset", OPEN + reset(1, Code.CANCEL) + data(1, b"x"), Reset(Code.STREAM_CLOSED)),
    ("5.1: HEADERS behind a reset", OPEN + reset(1, Code.CANCEL) + headers(1, GET), Reset(Code.STREAM_CLOSED)),
    ("5.1: CONTINUATION behind a reset", OPEN + reset(1, 8) + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    ("5.1.1: an even number", headers(2, GET), PROTOCOL),
    ("5.1.1: a lower number", headers(5, GET) + headers(3, GET), PROTOCOL),
    ("5.1.1: numbers that are left out", headers(1, GET) + headers(55, GET), SERVED),
    ("5.3.1: HEADERS that depends on itself", headers(1, ON_ITSELF + GET, 0x25), PROTOCOL),
    ("5.3.1: PRIORITY that depends on itself", frame(PRIORITY, 0, 1, ON_ITSELF), PROTOCOL),
    ("5.3.2: HEADERS with a priority", headers(1, PRIO + GET, 0x25), SERVED),
    ("5.3.2: PRIORITY on an idle stream", frame(PRIORITY, 0, 5, PRIO) + WHOLE, SERVED),
    ("5.5: an unknown frame inside a block", headers(1, GET, 1) + frame(0x16, 0, 1, b""), PROTOCOL),
    ("6.1: DATA on the connection", frame(DATA, 0, 0, b"x"), PROTOCOL),
    ("6.1: padding", OPEN + frame(DATA, PADDED | END_STREAM, 1, b"\x03ok\x00\x00\x00"), SERVED),
    ("6.1: nothing but padding", OPEN + frame(DATA, PADDED | END_STREAM, 1, b"\x03\x00\x00\x00"), SERVED),
    ("6.1: padding as long as the frame", OPEN + frame(DATA, PADDED, 1, b"\x04ok\x00"), PROTOCOL),
    ("6.1: no room for the padding's length", OPEN + frame(DATA, PADDED, 1, b""), SIZE),
    ("6.2: HEADERS on the connection", headers(0, GET), PROTOCOL),
    ("6.2: padding", headers(1, b"\x02" + GET + b"\x00\x00", 0xD), SERVED),
    ("6.2: padding and a priority", headers(1, b"\x02" + PRIO + GET + b"\x00\x00", 0x2D), SERVED),
    ("6.2: padding longer than the frame", headers(1, b"\xff" + GET, 0xD), PROTOCOL),
    ("6.3: PRIORITY on the connection", frame(PRIORITY, 0, 0, PRIO), PROTOCOL),
    ("6.3: a PRIORITY of four bytes", WHOLE + frame(PRIORITY, 0, 1, PRIO[:4]), SIZE),
    ("6.4: RST_STREAM on the connection", reset(0, Code.CANCEL), PROTOCOL),
    ("6.4: a RST_STREAM of three bytes", OPEN + frame(RST_STREAM, 0, 1, b"\x00\x00\x00"), SIZE),
    ("6.5: an acknowledgement that says something", settings((3, 1), flags=ACK), SIZE),
    ("6.5: SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL),
    ("6.5: SETTINGS of five bytes", frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00"), SIZE),
    ("6.5.2: ENABLE_PUSH of 2", settings((2, 2)), PROTOCOL),
    ("6.5.2: ENABLE_PUSH of 1", settings((2, 1)) + WHOLE, SERVED),
    ("6.5.2: a window too large", settings((4, 2**31)), Gone(Code.FLOW_CONTROL_ERROR)),
    ("6.5.2: a frame size too small", settings((5, 16383)), PROTOCOL),
    ("6.5.2: a frame size too large", settings((5, 2**24)), PROTOCOL),
    ("6.5.2: the largest ones", settings((4, 2**31 - 1), (5, 2**24 - 1)) + WHOLE, SERVED),
    ("6.5.2: ENABLE_CONNECT_PROTOCOL of 2", settings((8, 2)), PROTOCOL),
    ("6.5.2: one that nobody knows", settings((0xFFFF, 7), (0, 1)) + WHOLE, SERVED),
    ("6.5.3: the last value counts", settings((4, 0), (4, 100)) + WHOLE, SERVED),
    ("6.6: PUSH_PROMISE", OPEN + frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02" + GET), PROTOCOL),
    ("6.7: PING on a stream", frame(PING, 0, 1, b"12345678"), PROTOCOL),
    ("6.7: a PING of seven bytes", frame(PING, 0, 0, b"1234567"), SIZE),
    ("6.7: the answer to no PING", frame(PING, ACK, 0, b"12345678") + WHOLE, SERVED),
    ("6.8: GOAWAY on a stream", goaway(0, stream=1), PROTOCOL),
    ("6.8: a GOAWAY of seven bytes", frame(GOAWAY, 0, 0, b"1234567"), SIZE),
    ("6.9: no increment, on the connection", window_update(0, 0), PROTOCOL),
    ("6.9: no increment, on a stream", OPEN + window_update(1, 0), Reset(Code.PROTOCOL_ERROR)),
    ("6.9: no increment but the reserved bit", OPEN + window_update(1, 2**31), Reset(Code.PROTOCOL_ERROR)),
    ("6.9: a WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x01"), SIZE),
    ("6.9: one behind a reset", OPEN + reset(1, Code.CANCEL) + window_update(1, 1) + headers(3, GET), Answer(0)),
    ("6.9.1: the connection's window overflows", window_update(0, 2**31 - 1), Gone(Code.FLOW_CONTROL_ERROR)),
    ("6.9.1: a stream's window overflows", OPEN + window_update(1, 2**31 - 1), Reset(Code.FLOW_CONTROL_ERROR)),
    (
        "6.9.2: it overflows by SETTINGS",
        OPEN + window_update(1, 2**30) + settings((4, 2**31 - 1)),
        Gone(Code.FLOW_CONTROL_ERROR),
    ),
    (
        "6.10: many CONTINUATIONs",
        headers(1, GET[:3], 1)
        + frame(CONTINUATION, 0, 1, GET[3:9])
        + frame(CONTINUATION, 0, 1, b"")
        + frame(CONTINUATION, END_HEADERS, 1, GET[9:]),
        SERVED,
    ),
    ("6.10: one on another stream", headers(1, GET[:3], 1) + frame(CONTINUATION, END_HEADERS, 3, GET[3:]), PROTOCOL),
    ("6.10: one on the connection", headers(1, GET[:3], 1) + frame(CONTINUATION, END_HEADERS, 0, GET[3:]), PROTOCOL),
    ("6.10: one behind a block's end", OPEN + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    ("6.10: one behind DATA", OPEN + data(1, b"x") + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    ("7: an unknown code in RST_STREAM", OPEN + reset(1, 0xFF) + headers(3, GET), Answer(0)),
    (
        "8.1: a second head that does not end it",
        OPEN + headers(1, block(("a", "b")), END_HEADERS),
        Reset(Code.PROTOCOL_ERROR),
    ),
    ("8.1: DATA behind trailers", OPEN + headers(1, block(("a", "b"))) + data(1, b"x"), Reset(Code.STREAM_CLOSED)),
    ("8.1: trailers", OPEN + data(1, b"ok") + headers(1, block(("a", "b"))), SERVED),
    ("8.1: trailers without a body", OPEN + headers(1, block(("a", "b"))), SERVED),
    ("8.1: trailers with a pseudo-header field", OPEN + headers(1, block((":path", "/"))), REFUSED),
    ("8.1: malformed trailers", OPEN + headers(1, block(("A", "b"))), REFUSED),
    ("8.1.1: a length, and no body", headers(1, of(("content-length", "1"))), REFUSED),
    ("8.1.1: a length, and less", headers(1, of(("content-length", "3")), 4) + data(1, b"ok", last=True), REFUSED),
    ("8.1.1: a length, and more", headers(1, of(("content-length", "1")), 4) + data(1, b"ok", last=True), REFUSED),
    (
        "8.1.1: a length, and less in several frames",
        headers(1, of(("content-length", "3")), 4) + data(1, b"o") + data(1, b"k", last=True),
        REFUSED,
    ),
    (
        "8.1.1: a length, and more in several frames",
        headers(1, of(("content-length", "1")), 4) + data(1, b"o") + data(1, b"k", last=True),
        REFUSED,
    ),
    ("8.1.1: a length of 0, and more", headers(1, of(("content-length", "0")), 4) + data(1, b"o", last=True), REFUSED),
    (
        "8.1.1: a length that fits",
        headers(1, of(("content-length", "2")), 4) + data(1, b"o") + data(1, b"k", last=True),
        SERVED,
    ),
    (
        "8.1.1: padding counts for none",
        headers(1, of(("content-length", "2")), 4) + frame(DATA, PADDED | END_STREAM, 1, b"\x03ok\x00\x00\x00"),
        SERVED,
    ),
    ("8.2: an upper-case name", headers(1, of(("X-Upper", "1"))), REFUSED),
    ("8.2.1: a CR in a value", headers(1, of(("x", "a\rb"))), REFUSED),
    ("8.2.1: a line in a value", headers(1, of(("x", "a\r\nx-smuggled: 1"))), REFUSED),
    ("8.2.2: Connection", headers(1, of(("connection", "close"))), REFUSED),
    ("8.2.2: Transfer-Encoding", headers(1, of(("transfer-encoding", "chunked"))), REFUSED),
    ("8.2.2: another TE", headers(1, of(("te", "trailers, deflate"))), REFUSED),
    ("8.2.2: TE", headers(1, of(("te", "trailers"))), SERVED),
    ("8.3: an unknown pseudo-header field", headers(1, of((":test", "1"))), REFUSED),
    ("8.3: one of a response", headers(1, of((":status", "200"))), REFUSED),
    ("8.3: one behind a field", headers(1, block((":method", "GET"), ("a", "b"), (":path", "/"))), REFUSED),
    ("8.3: a method twice", headers(1, of((":method", "GET"))), REFUSED),
    ("8.3.1: a method is missing", headers(1, GET[len(block((":method", "GET"))) :]), REFUSED),
    ("8.3.1: an empty path", headers(1, of(path="")), REFUSED),
    ("8.3.1: lines in the path", headers(1, of(path="/ HTTP/1.1\r\nx: y\r\n\r\nGET /smuggled")), REFUSED),
    ("8.3.1: another scheme", headers(1, of(scheme="http")), REFUSED),
    ("8.3.1: no scheme at all", headers(1, of(scheme="")), REFUSED),
    ("8.5: CONNECT", headers(1, block((":method", "CONNECT"), (":authority", PLACE))), REFUSED),
    ("8.5: one in lower case", headers(1, of(method="connect")), REFUSED),
    ("an empty block", headers(1, b""), REFUSED),
    ("RFC 7541, 2.3.3: an index that nothing has", headers(1, GET + integer(70, 7, 0x80)), COMPRESSION),
    (
        "RFC 7541, 2.3.3: a name's index that nothing has",
        headers(1, GET + integer(70, 6, 0x40) + text("x")),
        COMPRESSION,
    ),
    ("RFC 7541, 4.2: another table size behind a field", headers(1, GET + b"\x20"), COMPRESSION),
    ("RFC 7541, 4.2: before the fields", headers(1, b"\x20" + integer(4096, 5, 0x20) + GET), SERVED),
    ("RFC 7541, 5.1: an integer without an end", headers(1, GET + b"\x7f" + b"\xff" * 40), COMPRESSION),
    ("RFC 7541, 5.1: an integer that is cut off", headers(1, GET + b"\x7f\x80"), COMPRESSION),
    ("RFC 7541, 5.2: a text that is cut off", headers(1, GET + b"\x00\x05ab"), COMPRESSION),
    ("RFC 7541, 5.2: padding of more than 7 bits", headers(1, GET + huffman(b"\x1f\xff\xff")), COMPRESSION),
    ("RFC 7541, 5.2: padding of zeros", headers(1, GET + huffman(b"\x18")), COMPRESSION),
    ("RFC 7541, 5.2: an EOS", headers(1, GET + huffman(b"\xff\xff\xff\xff")), COMPRESSION),
    ("RFC 7541, 5.2: Huffman's code", headers(1, GET + huffman(b"\x1f")), SERVED),
    ("RFC 7541, 6.1: the index 0", headers(1, GET + b"\x80"), COMPRESSION),
    ("RFC 7541, 6.3: a table too large", headers(1, integer(4097, 5, 0x20) + GET), COMPRESSION),
]


@pytest.mark.parametrize(("frames", "expected"), [pytest.param(*each[1:], id=each[0]) for each in CASES])
def test_each_case_ends_as_it_must(
    sidecar: Sidecar, upstream: TlsUpstream, frames: bytes, expected: Gone | Reset | Answer
) -> None:
    authority = f"{HOST}:{upstream.port}".encode()
    assert len(authority) == len(PLACE)
    peer = speak(sidecar, upstream)
    peer.send(frames.replace(PLACE, authority))
    if isinstance(expected, Gone):
        assert Code(peer.farewell().code).name == Code(expected).name
        return
    if isinstance(expected, Reset):
        found = peer.find(lambda each: each.stream == 1 and each.kind == RST_STREAM)
        assert Code(found.code).name == Code(expected).name
    elif expected:
        assert peer.head(1).get(":status") == str(int(expected))
    peer.send(headers(NEXT, GET).replace(PLACE, authority))
    assert peer.head(NEXT).get(":status") == "200"


def test_what_is_malformed_never_leaves(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    assert b"smuggled" not in upstream.received


@pytest.mark.parametrize(
    "first",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX" + settings(),
        PREFACE + frame(PING, 0, 0, b"12345678"),
        PREFACE + headers(1, GET),
    ],
    ids=["another preface", "PING first", "HEADERS first"],
)
def test_a_connection_begins_with_the_preface_and_settings(
    sidecar: Sidecar, upstream: TlsUpstream, first: bytes
) -> None:
    peer = speak(sidecar, upstream, first)
    assert peer.farewell().code == Code.PROTOCOL_ERROR


def ask(sidecar: Sidecar, upstream: TlsUpstream, *frames: bytes) -> Peer:
    """Send frames, the authority put where it stands."""
    peer = speak(sidecar, upstream)
    say(peer, upstream, *frames)
    return peer


def say(peer: Peer, upstream: TlsUpstream, *frames: bytes) -> None:
    peer.send(b"".join(frames).replace(PLACE, f"{HOST}:{upstream.port}".encode()))


class TestConnections:
    def test_settings_are_acknowledged_each_time(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, settings((4, 70_000)), frame(PING, 0, 0, b"12345678"))
        seen = []
        while (each := peer.read()) is not None and each.kind != PING:
            seen.append((each.kind, each.flags))
        assert seen.count((SETTINGS, ACK)) == 2
        assert each is not None
        assert (each.flags, each.payload) == (ACK, b"12345678")

    def test_it_says_what_it_takes(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = speak(sidecar, upstream)
        said = peer.find(lambda each: each.kind == SETTINGS)
        values = {said.payload[at + 1]: int.from_bytes(said.payload[at + 2 : at + 6]) for at in range(0, 36, 6)}
        assert (values[3], values.get(8, 0)) == (MAX_STREAMS, 0)

    def test_a_window_of_one_byte_is_respected(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, settings((4, 1)), WHOLE)
        assert peer.find(lambda each: each.kind == DATA).payload == b"o"
        say(peer, upstream, settings((4, 0)), window_update(1, 1))  # in all there is no room for another byte
        peer.send(frame(PING, 0, 0, b"12345678"))
        assert peer.find(lambda each: each.kind in (DATA, PING)).kind == PING
        say(peer, upstream, window_update(1, 1))
        assert peer.body(1) == b"k"

    def test_so_many_streams_and_none_more(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, *(headers(1 + 2 * each, POST, END_HEADERS) for each in range(MAX_STREAMS + 1)))
        refused = peer.find(lambda each: each.kind in (RST_STREAM, HEADERS))
        assert (refused.kind, refused.stream, refused.code) == (RST_STREAM, 2 * MAX_STREAMS + 1, Code.REFUSED_STREAM)
        for each in range(MAX_STREAMS):
            peer.send(data(1 + 2 * each, b"%d" % each, last=True))
            assert peer.head(1 + 2 * each).get(":status") == "200"
        say(peer, upstream, headers(2 * MAX_STREAMS + 3, GET))
        assert peer.head(2 * MAX_STREAMS + 3).get(":status") == "200"


class TestMessages:
    def test_a_body_goes_both_ways(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, OPEN, data(1, b"one "), data(1, b""), data(1, b"two"), data(1, b"", last=True))
        assert peer.head(1).get(":status") == "200"
        assert peer.body(1) == b"one two"

    def test_a_large_one_waits_for_the_windows(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, headers(1, of(path="/large")))
        got = 0
        while got < 65_535:
            got += len(peer.find(lambda each: each.kind == DATA).payload)
        assert got == 65_535
        peer.send(window_update(0, 2**20), window_update(1, 2**20))
        assert len(peer.body(1)) == 300_000 - 65_535

    def test_a_head_alone_answers_head(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, headers(1, of(method="HEAD", path="/large")))
        found = peer.head(1)
        assert (found.get(":status"), found.get("content-length"), found.is_end) == ("200", "300000", True)

    @pytest.mark.parametrize("status", ["204", "304"])
    def test_a_status_without_a_body_has_none(self, sidecar: Sidecar, upstream: TlsUpstream, status: str) -> None:
        found = ask(sidecar, upstream, headers(1, of(path=f"/status?{status}"))).head(1)
        assert (found.get(":status"), found.is_end) == (status, True)

    def test_what_is_expected_is_said_before_the_body_comes(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        peer = ask(sidecar, upstream, headers(1, of(("expect", "100-continue"), method="POST"), END_HEADERS))
        found = peer.head(1)
        assert (found.get(":status"), found.is_end) == ("100", False)
        peer.send(data(1, b"body", last=True))
        assert peer.head(1).get(":status") == "200"
        assert peer.body(1) == b"body"

    def test_crumbs_are_one_cookie_and_the_host_is_named_once(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        before = len(upstream.requests)
        peer = ask(sidecar, upstream, headers(1, of(("cookie", "a=1"), ("host", PLACE), ("cookie", "b=2"))))
        assert peer.head(1).get(":status") == "200"
        got = upstream.requests[before]
        assert (got.headers.all("cookie"), got.headers.all("host")) == (("a=1; b=2",), (f"{HOST}:{upstream.port}",))

    def test_a_denial_is_an_early_answer_and_ends_the_stream_alone(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        peer = ask(sidecar, upstream, headers(1, of(("x", "a\rb")), END_HEADERS), headers(3, POST, END_HEADERS))
        assert peer.head(1).get(":status") == "400"
        assert json.loads(peer.body(1))["reason"] == "bad_request"
        peer.send(data(1, b"of no use"), data(3, b"ok", last=True))
        assert peer.head(3).get(":status") == "200"


def test_no_hook_failed_in_all_of_this(sidecar: Sidecar) -> None:
    assert '"level": "error"' not in sidecar.stderr, sidecar.stderr
    assert sidecar.metrics().value("overcoat_hook_failures_total") == 0
