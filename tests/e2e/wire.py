"""A small HTTP/1.1 reader for test servers and test clients.

Rules of this module:

- It shares no code with the product and none with the libraries the product stands on: what it reads is evidence.
- It is strict. What two parsers could read in two ways (both Content-Length and Transfer-Encoding, lengths that
  disagree, a folded header line, a bare LF) is `Malformed`, so that a test fails instead of guessing.
- It never loses a byte: each message keeps its `raw` form.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

END_OF_HEAD = b"\r\n\r\n"


class Malformed(ValueError):
    """The bytes are not one unambiguous HTTP/1.1 message."""


@dataclass(frozen=True, slots=True)
class Headers:
    """Header fields in the order they came, with names as they were spelled.

    Attributes:
        fields: (name, value) pairs; values without the surrounding white space, decoded as Latin-1.
    """

    fields: tuple[tuple[str, str], ...] = ()

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a field, whatever the case of its name."""
        return tuple(value for key, value in self.fields if key.lower() == name.lower())

    def get(self, name: str) -> str | None:
        """Return the only value of a field, or None.

        Raises:
            AssertionError: the field came more than once; a test that means that must say `all`.
        """
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values!r}"
        return values[0] if values else None

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def tokens(self, name: str) -> Set[str]:
        """Return the comma-separated tokens of a field in lower case, such as those of `Connection`."""
        return frozenset(
            token.strip().lower() for value in self.all(name) for token in value.split(",") if token.strip()
        )


@dataclass(frozen=True, slots=True)
class Head:
    """The part of a message before its body.

    Attributes:
        start_line: the request or status line.
        headers: the header fields.
        size: bytes up to and with the empty line.
    """

    start_line: str
    headers: Headers
    size: int


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message.

    Attributes:
        start_line: the request or status line.
        headers: the header fields.
        body: the body with any chunked coding taken off.
        trailers: the fields after a chunked body.
        raw: every byte of the message as it came.
    """

    start_line: str
    headers: Headers
    body: bytes
    trailers: Headers
    raw: bytes


def read_head(data: bytes) -> Head | None:
    """Return the head that `data` starts with, or None while it is incomplete.

    Raises:
        Malformed: a line is no header field.
    """
    end = data.find(END_OF_HEAD)
    if end < 0:
        return None
    start_line, *lines = data[:end].decode("latin-1").split("\r\n")
    if not start_line:
        raise Malformed("an empty line before the start line")
    return Head(start_line, _fields(lines), end + len(END_OF_HEAD))


def read_request(data: bytes) -> Message | None:
    """Return the request that `data` starts with, or None while it is incomplete.

    Raises:
        Malformed: it is not one unambiguous request (RFC 9112, section 6.3).
    """
    if data[:1].strip(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"):
        raise Malformed(f"no method starts with {data[:1]!r}")  # a ClientHello, say: a real server answers it, too
    head = read_head(data)
    if head is None:
        return None
    if head.start_line.count(" ") != 2 or not head.start_line.endswith(("HTTP/1.1", "HTTP/1.0")):
        raise Malformed(f"not a request line: {head.start_line!r}")
    return _with_body(data, head, until_close=False, closed=False)


def read_response(data: bytes, *, method: str = "GET", closed: bool = False) -> Message | None:
    """Return the response that `data` starts with, or None while it is incomplete.

    Args:
        data: what has come so far.
        method: the request's method; a response to HEAD, and a 2xx one to CONNECT, has no body.
        closed: whether the peer has closed, which ends a body that has no length of its own.

    Raises:
        Malformed: it is not one unambiguous response, or the peer closed before its end.
    """
    head = read_head(data)
    if head is None:
        if closed:
            raise Malformed(f"closed within the head, after {len(data)} bytes")
        return None
    status = status_of(head.start_line)
    if 100 <= status < 200 or status in (204, 304) or method == "HEAD" or (method == "CONNECT" and 200 <= status < 300):
        return Message(head.start_line, head.headers, b"", Headers(), data[: head.size])
    return _with_body(data, head, until_close=True, closed=closed)


def status_of(start_line: str) -> int:
    """Return the status of a status line.

    Raises:
        Malformed: it is none.
    """
    version, _, rest = start_line.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(code) != 3 or not (code.isascii() and code.isdigit()):
        raise Malformed(f"not a status line: {start_line!r}")
    return int(code)


def response(status: int, body: bytes = b"", *, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return the bytes of a response with a Content-Length.

    Args:
        status: the status code.
        body: the body.
        headers: further fields; `Content-Type` is `application/json` unless one is given.
    """
    fields = list(headers)
    if "content-type" not in {name.lower() for name, _ in fields}:
        fields.append(("Content-Type", "application/json"))
    fields.append(("Content-Length", str(len(body))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode("latin-1") + body


def _fields(lines: list[str]) -> Headers:
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or "\n" in line or "\r" in line:
            raise Malformed(f"not a header line: {line!r}")
        fields.append((name, value.strip(" \t")))
    return Headers(tuple(fields))


def _with_body(data: bytes, head: Head, *, until_close: bool, closed: bool) -> Message | None:
    codings = head.headers.all("Transfer-Encoding")
    lengths = head.headers.all("Content-Length")
    if codings:
        if lengths:
            raise Malformed("both Transfer-Encoding and Content-Length (RFC 9112, section 6.1)")
        if len(codings) != 1 or codings[0].lower() != "chunked":
            raise Malformed(f"unknown transfer codings {codings!r}")
        chunked = _chunks(data, head.size)
        if chunked is not None:
            body, trailers, end = chunked
            return Message(head.start_line, head.headers, body, trailers, data[:end])
    elif lengths:
        if len(set(lengths)) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise Malformed(f"no single Content-Length: {lengths!r}")
        end = head.size + int(lengths[0])
        if len(data) >= end:
            return Message(head.start_line, head.headers, data[head.size : end], Headers(), data[:end])
    elif not until_close:
        return Message(head.start_line, head.headers, b"", Headers(), data[: head.size])
    elif closed:
        return Message(head.start_line, head.headers, data[head.size :], Headers(), data)
    if closed:
        raise Malformed(f"closed within the body, after {len(data) - head.size} bytes of it")
    return None


def _chunks(data: bytes, start: int) -> tuple[bytes, Headers, int] | None:
    body = bytearray()
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return None
        digits = data[start:line_end].split(b";", 1)[0].strip(b" \t")
        if not digits or digits.strip(b"0123456789abcdefABCDEF"):
            raise Malformed(f"not a chunk size: {data[start:line_end]!r}")
        size = int(digits, 16)
        start = line_end + 2
        if size == 0:
            return _trailers(data, start, bytes(body))
        if len(data) < start + size + 2:
            return None
        if data[start + size : start + size + 2] != b"\r\n":
            raise Malformed("a chunk is longer than its size")
        body += data[start : start + size]
        start += size + 2


def _trailers(data: bytes, start: int, body: bytes) -> tuple[bytes, Headers, int] | None:
    if data[start : start + 2] == b"\r\n":
        return body, Headers(), start + 2
    end = data.find(END_OF_HEAD, start)
    if end < 0:
        return None
    return body, _fields(data[start:end].decode("latin-1").split("\r\n")), end + len(END_OF_HEAD)
