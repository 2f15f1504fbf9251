"""What a test's server knows of a connection: the bytes, the TLS handshake and the requests in them.

Rules of this module:

- No I/O happens here: bytes from the wire come in, application bytes and bytes for the wire come out.
- TLS runs on memory buffers, so that the bytes on the wire and the decrypted ones are recorded side by side.
- Requests are read by `wire`, which shares nothing with the product.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.e2e import wire


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as the upstream read it.

    Attributes:
        connection: the connection that it came on.
        method: the method.
        target: the request target as it was sent, with its query.
        headers: the header fields.
        body: the body with any chunked coding taken off.
        trailers: the fields after a chunked body.
        raw: every byte of the request as it was sent.
        received_at: `time.monotonic()` when its last byte was read.
    """

    connection: Connection = field(repr=False)
    method: str
    target: str
    headers: wire.Headers
    body: bytes
    trailers: wire.Headers
    raw: bytes = field(repr=False)
    received_at: float

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)


@dataclass(slots=True, eq=False)
class Connection:
    """What is known of one connection; it grows while the connection lives.

    Attributes:
        peer: the client's address and port.
        accepted_at: `time.monotonic()` of its start.
        wire: every byte that came over TCP.
        received: every application byte: those inside TLS, or for a plain server the same as `wire`.
        first_byte_at: `time.monotonic()` of the first application byte, or None.
        requests: the whole requests among `received`.
        malformed: why the application bytes are no HTTP/1.1, or None.
        handshake_completed: whether the TLS handshake came to its end on this side.
        handshake_error: how it failed, or None.
        tls_version: such as `TLSv1.3`, once the handshake is complete.
        cipher: the cipher suite's name, once the handshake is complete.
        sni: the server name that the client asked for, or None.
        alpn: the protocol that was agreed on, or None.
        session_reused: whether the client resumed an earlier session.
        close_notify: whether the client ended its TLS stream in order.
        closed: whether the connection is over.
        broken: how it ended where it did not end in order, or None.
    """

    peer: tuple[str, int]
    accepted_at: float
    wire: bytes = field(default=b"", repr=False)
    received: bytes = b""
    first_byte_at: float | None = None
    requests: list[RecordedRequest] = field(default_factory=list, repr=False)
    malformed: str | None = None
    handshake_completed: bool = False
    handshake_error: str | None = None
    tls_version: str | None = None
    cipher: str | None = None
    sni: str | None = None
    alpn: str | None = None
    session_reused: bool = False
    close_notify: bool = False
    closed: bool = False
    broken: str | None = None


class Channel(Protocol):
    """What lies between the wire and the application bytes. It does no I/O of its own."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the wire, b"" for its end; return the application bytes in them."""

    def seal(self, data: bytes) -> bytes:
        """Return the bytes for the wire that carry application bytes, after any that a handshake wants sent."""

    def farewell(self) -> bytes:
        """Return the bytes for the wire that end the stream in order."""


class PlainChannel:
    def feed(self, data: bytes) -> bytes:
        return data

    def seal(self, data: bytes) -> bytes:
        return data

    def farewell(self) -> bytes:
        return b""


class ServerObject(ssl.SSLObject):
    """An SSLObject that remembers which name the client asked for."""

    asked_for: str | None = None


class TlsChannel:
    def __init__(self, context: ssl.SSLContext, connection: Connection) -> None:
        self._connection = connection
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def feed(self, data: bytes) -> bytes:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if not self._connection.handshake_completed and not self._shake_hands():
            return b""
        return self._decrypt()

    def seal(self, data: bytes) -> bytes:
        if data:
            self._tls.write(data)
        return self._outgoing.read()

    def farewell(self) -> bytes:
        with contextlib.suppress(
            ssl.SSLError
        ):  # raised since the peer's own close_notify is not here yet, which is fine
            self._tls.unwrap()
        return self._outgoing.read()

    def _shake_hands(self) -> bool:
        connection = self._connection
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            connection.handshake_error = connection.handshake_error or str(error)
            return False
        finally:
            connection.sni = getattr(self._tls, "asked_for", None)
        cipher = self._tls.cipher()
        connection.cipher = cipher[0] if cipher else None
        connection.tls_version = self._tls.version()
        connection.alpn = self._tls.selected_alpn_protocol()
        connection.session_reused = bool(self._tls.session_reused)
        connection.handshake_completed = True
        return True

    def _decrypt(self) -> bytes:
        plain = bytearray()
        try:
            while data := self._tls.read(65536):
                plain += data
            self._connection.close_notify = True
        except ssl.SSLWantReadError:
            pass  # all that has come is read
        except ssl.SSLZeroReturnError:
            self._connection.close_notify = True
        except ssl.SSLError as error:
            self._connection.broken = str(error)
        return bytes(plain)


class RequestReader:
    """Finds the requests in a connection's bytes, and says what to answer: a request, or bytes that need no thought."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = b""
        self._continued = False
        self._stopped = False

    def stop(self) -> None:
        """Look for requests no longer: another protocol has begun, and is only recorded."""
        self._stopped = True

    def feed(self, data: bytes) -> list[RecordedRequest | bytes]:
        connection = self._connection
        answers: list[RecordedRequest | bytes] = []
        if connection.malformed is not None or self._stopped:
            return answers
        self._buffer += data
        try:
            while self._buffer and (message := wire.read_request(self._buffer)) is not None:
                self._buffer = self._buffer[len(message.raw) :]
                self._continued = False
                method, target, _ = message.start_line.split(" ")
                now = time.monotonic()
                request = RecordedRequest(
                    connection, method, target, message.headers, message.body, message.trailers, message.raw, now
                )
                connection.requests.append(request)
                answers.append(request)
            head = wire.read_head(self._buffer) if self._buffer else None
        except wire.Malformed as error:
            connection.malformed = str(error)
            return [*answers, wire.response(400, headers=(("Connection", "close"),))]
        if head is not None and not self._continued and "100-continue" in head.headers.tokens("Expect"):
            self._continued = True
            answers.append(b"HTTP/1.1 100 Continue\r\n\r\n")
        return answers
