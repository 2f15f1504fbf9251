"""Either end of HTTP/2 by hand: frames are written and read as they are, and nothing is kept that a test did not say.

Rules of this module:

- Header blocks are written without any table (RFC 7541, section 6.2.2), so that each frame stands for itself.
- Nothing is answered by itself: no SETTINGS, no PING, no window is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from hpack import Decoder

from tests.e2e.app import connect
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.http2 import agree_on_http2, frame
from tests.e2e.sidecar import Sidecar

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 0x20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

type Field = tuple[str | bytes, str | bytes]


class Code(IntEnum):
    """Error codes (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11
    HTTP_1_1_REQUIRED = 13


def block(*fields: Field) -> bytes:
    """Return a header block."""
    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields)


def text(value: str | bytes) -> bytes:
    """Return a string literal (RFC 7541, section 5.2)."""
    data = value.encode("latin-1") if isinstance(value, str) else value
    return integer(len(data), 7) + data


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """Return an integer with a prefix of so many bits (RFC 7541, section 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def headers(stream: int, fields: bytes, flags: int = END_HEADERS | END_STREAM) -> bytes:
    """Return a HEADERS frame."""
    return frame(HEADERS, flags, stream, fields)


def data(stream: int, payload: bytes, *, last: bool = False) -> bytes:
    """Return a DATA frame."""
    return frame(DATA, END_STREAM if last else 0, stream, payload)


def reset(stream: int, code: int) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def goaway(last: int, code: int = Code.NO_ERROR, stream: int = 0) -> bytes:
    """Return a GOAWAY frame."""
    return frame(GOAWAY, 0, stream, last.to_bytes(4) + code.to_bytes(4))


def window_update(stream: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4))


def settings(*values: tuple[int, int], flags: int = 0) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, flags, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in values))


@dataclass(frozen=True)
class Frame:
    """A frame that came.

    Attributes:
        fields: those of a header block.
    """

    kind: int
    flags: int
    stream: int
    payload: bytes
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> int:
        """The error code of a RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4])

    @property
    def last(self) -> int:
        """The last stream that a GOAWAY names."""
        return int.from_bytes(self.payload[:4])

    @property
    def is_end(self) -> bool:
        """Whether it ends its stream."""
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    def get(self, name: str) -> str | None:
        """Return the only value of a field, or None."""
        values = [value for key, value in self.fields if key == name]
        assert len(values) <= 1
        return values[0] if values else None


class Peer:
    """A connection whose frames a test writes and reads.

    Args:
        client: it, TLS and all.
        first: what is said first.
    """

    def __init__(self, client: RawClient | Accepted, first: bytes) -> None:
        self.client = client
        self._decoder = Decoder()
        self.send(first)

    def send(self, *frames: bytes) -> None:
        """Send frames."""
        self.client.send(b"".join(frames))

    def read(self) -> Frame | None:
        """Return the next frame, or None at the end.

        Raises:
            TimeoutError: it did not come in time.
        """
        try:
            head = self.client.read_exactly(9)
            payload = self.client.read_exactly(int.from_bytes(head[:3]))
        except (AssertionError, ConnectionError):
            return None
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9])
        if kind != HEADERS:
            return Frame(kind, flags, stream, payload)
        assert flags & (END_HEADERS | PADDED | PRIORITIZED) == END_HEADERS, "a head is one plain frame in these tests"
        fields = tuple((str(name), str(value)) for name, value in self._decoder.decode(payload))
        return Frame(kind, flags, stream, payload, fields)

    def find(self, is_it: Callable[[Frame], bool]) -> Frame:
        """Return the next frame that is meant; those before it are passed over.

        Raises:
            AssertionError: the connection ended before, or a GOAWAY that is not meant came.
            TimeoutError: it did not come in time.
        """
        seen = []
        while (found := self.read()) is not None:
            if is_it(found):
                return found
            seen.append(found)
            assert found.kind != GOAWAY, f"the connection ended: {Code(found.code).name}, after {seen}"
        raise AssertionError(f"the connection ended after {seen}")

    def head(self, stream: int | None = None) -> Frame:
        """Return the next head in a stream, or in any."""
        return self.find(lambda each: each.kind == HEADERS and stream in (None, each.stream))

    def end(self, stream: int) -> Frame:
        """Return what ends a stream: the last frame of its message, or a reset."""
        return self.find(lambda each: each.stream == stream and (each.is_end or each.kind == RST_STREAM))

    def body(self, stream: int) -> bytes:
        """Return the data of a stream to its end.

        Raises:
            AssertionError: it was reset.
        """
        found = b""
        while True:
            each = self.find(lambda each: each.stream == stream and each.kind in (DATA, HEADERS, RST_STREAM))
            assert each.kind != RST_STREAM, f"the stream was reset: {Code(each.code).name}"
            if each.kind == DATA:
                found += each.payload
            if each.is_end:
                return found

    def farewell(self) -> Frame:
        """Return the GOAWAY that ends the connection, which then is closed."""
        found = self.find(lambda each: each.kind == GOAWAY)
        while (more := self.read()) is not None:
            assert more.kind != HEADERS, f"served after GOAWAY: {more}"
        return found


def by_hand(sidecar: Sidecar, authority: str) -> Peer:
    """Begin HTTP/2 frame by frame through a sidecar to a destination, inspected inside CONNECT.

    Args:
        sidecar: the sidecar.
        authority: the destination, `host:port`.

    Raises:
        AssertionError: the sidecar does not speak HTTP/2.
    """
    ca_file = sidecar.ca_file  # asked for first: it may run a command, and a handshake has a limit
    client = connect(sidecar, authority)
    agree_on_http2(client, authority.partition(":")[0], ca_file)
    return Peer(client, PREFACE + settings())


def asked(authority: str, *more: Field, path: str = "/", method: str = "GET") -> bytes:
    """Return the header block of a request for https.

    Args:
        authority: its destination, `host:port`.
        more: fields behind the pseudo-header fields.
        path: with the query.
        method: the method.
    """
    return block((":method", method), (":scheme", "https"), (":authority", authority), (":path", path), *more)
