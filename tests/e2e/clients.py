"""Clients that a test drives: curl, urllib in a process of its own, and a raw socket.

Rules of this module:

- They are ordinary clients that know a proxy and nothing else of the product, and no setting of this machine (its curl
  configuration, its proxy and certificate variables) reaches them.
- An HTTP error status is an answer, not an exception; what failed below HTTP is told by `exit_status` or raised.

    answer = curl("-d", '{"amount": 1}', upstream.url("/v1"), proxy=sidecar.proxy_url)
    assert answer.status == 200
    answer = urllib_request(upstream.url("/v1"), proxy=sidecar.proxy_url, body=b"{}")
    with RawClient(sidecar.address) as client:
        client.send(b"GET http://127.0.0.1:1/ HTTP/1.1\\r\\nHost: 127.0.0.1:1\\r\\n\\r\\n")
        assert client.read_response().status == 502
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.e2e import wire
from tests.e2e.sidecar import clean_environment

DEADLINE = 20.0  # seconds that one exchange may take
ACCEPTED_DEADLINE = 5.0  # seconds that one read of an accepted connection may take

_URLLIB = """\
import base64, json, sys, urllib.error, urllib.request
job = json.load(sys.stdin)
body = None if job["body"] is None else base64.b64decode(job["body"])
request = urllib.request.Request(job["url"], body, dict(job["headers"]), method=job["method"])
try:
    answer = urllib.request.urlopen(request, timeout=job["timeout"])
except urllib.error.HTTPError as error:
    answer = error
content = base64.b64encode(answer.read()).decode()
json.dump({"status": answer.status, "headers": answer.headers.items(), "body": content}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got.

    Attributes:
        status: the HTTP status; 0 if there was no response.
        headers: the header fields of the last response.
        body: the body, with any chunked coding taken off.
        exit_status: the client program's exit status; 0 for a raw client.
        error: what the client program wrote to standard error.
        trailers: the fields behind a chunked body, as far as a raw client read them.
    """

    status: int
    headers: wire.Headers
    body: bytes
    exit_status: int = 0
    error: str = ""
    trailers: wire.Headers = field(default_factory=wire.Headers)

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)


def curl(*arguments: str, proxy: str | None = None, ca_file: Path | None = None) -> Answer:
    """Run curl; the test is skipped if it is not installed.

    Args:
        arguments: curl's arguments, the URL among them.
        proxy: what HTTP_PROXY and HTTPS_PROXY would say, such as `Sidecar.proxy_url`.
        ca_file: the only authorities that curl trusts, such as `Sidecar.ca_file`.
    """
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    with tempfile.TemporaryDirectory() as folder:
        head, body = Path(folder, "head"), Path(folder, "body")
        # With variables, not --proxy: so apps are told of a proxy.
        environment = {} if proxy is None else {"http_proxy": proxy, "https_proxy": proxy}
        trust = [] if ca_file is None else ["--cacert", str(ca_file)]
        options = [
            "-q",
            "-sS",
            "--max-time",
            str(DEADLINE),
            "--suppress-connect-headers",
            "-D",
            str(head),
            "-o",
            str(body),
        ]
        done = subprocess.run(
            [program, *options, *trust, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=clean_environment(environment),
            timeout=DEADLINE + 5,
            check=False,
        )
        blocks = head.read_bytes() if head.exists() else b""
        content = body.read_bytes() if body.exists() else b""
    status, headers = 0, wire.Headers()
    while (found := wire.read_head(blocks)) is not None:  # a 100 and a redirect are blocks before the last one
        status, headers = wire.status_of(_http1(found.start_line)), found.headers
        blocks = blocks[found.size :]
    return Answer(status, headers, content, done.returncode, done.stderr.decode("utf-8", "backslashreplace"))


def urllib_request(
    url: str,
    *,
    proxy: str | None = None,
    method: str | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
) -> Answer:
    """Send a request with Python's urllib from a process that knows its proxy from HTTP_PROXY and HTTPS_PROXY only.

    Args:
        url: what to ask for.
        proxy: what the variables say.
        method: GET, or POST where there is a body, by default.
        body: the body.
        headers: further header fields.
        ca_file: the only authorities that it trusts (SSL_CERT_FILE).
    """
    environment = {} if proxy is None else {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    if ca_file is not None:
        environment |= {"SSL_CERT_FILE": str(ca_file), "SSL_CERT_DIR": str(ca_file.parent / "no-such-folder")}
    job = {
        "url": url,
        "method": method,
        "body": None if body is None else base64.b64encode(body).decode("ascii"),
        "headers": list((headers or {}).items()),
        "timeout": DEADLINE,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", _URLLIB],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=clean_environment(environment),
        timeout=DEADLINE + 5,
        check=False,
    )
    if done.returncode != 0:
        return Answer(0, wire.Headers(), b"", done.returncode, done.stderr)
    got = json.loads(done.stdout)
    found = wire.Headers(tuple((name, value) for name, value in got["headers"]))
    return Answer(got["status"], found, base64.b64decode(got["body"]), 0, done.stderr)


def reset(connection: socket.socket) -> None:
    """Close a socket with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class RawClient:
    """A socket that sends exactly what a test says.

    Args:
        address: host and port, such as `Sidecar.address`.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, DEADLINE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._closed_by_peer = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tls_version(self) -> str | None:
        """The TLS version, once `start_tls` is done."""
        return self._socket.version() if isinstance(self._socket, ssl.SSLSocket) else None

    @property
    def peer_certificate(self) -> bytes:
        """The DER certificate that the peer showed in `start_tls`."""
        assert isinstance(self._socket, ssl.SSLSocket), "no TLS was started"
        certificate = self._socket.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate

    def send(self, data: bytes) -> None:
        """Send bytes as they are.

        Raises:
            OSError: the peer has closed the connection.
        """
        self._socket.sendall(data)

    def finish(self) -> None:
        """Close the sending side, but go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def read_until(self, marker: bytes) -> bytes:
        """Return all that came up to and with the marker.

        Raises:
            AssertionError: the peer closed before it.
            TimeoutError: it did not come in time.
        """
        while marker not in self._buffer:
            assert self._receive(), f"closed before {marker!r}, after {self._buffer!r}"
        end = self._buffer.index(marker) + len(marker)
        found, self._buffer = self._buffer[:end], self._buffer[end:]
        return found

    def read_ahead(self, size: int) -> bytes:
        """Return the next `size` bytes without consuming them; errors as for `read_exactly`."""
        while len(self._buffer) < size:
            assert self._receive(), f"closed before {size} bytes, after {self._buffer!r}"
        return self._buffer[:size]

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            AssertionError: the peer closed before them.
            TimeoutError: they did not come in time.
        """
        found = self.read_ahead(size)
        self._buffer = self._buffer[size:]
        return found

    def read_response(self, *, method: str = "GET") -> Answer:
        """Return the next response, interim ones (1xx) included; what follows it stays to be read.

        Args:
            method: the request's method, which says whether a body can follow.

        Raises:
            Malformed: what came is no response, or it ended within one.
            TimeoutError: it did not come in time.
        """
        while (message := wire.read_response(self._buffer, method=method, closed=self._closed_by_peer)) is None:
            self._receive()
        self._buffer = self._buffer[len(message.raw) :]
        status = wire.status_of(message.start_line)
        return Answer(status, message.headers, message.body, trailers=message.trailers)

    def read_to_end(self) -> bytes:
        """Return all bytes until the peer closes; a reset counts as the end, too.

        Raises:
            TimeoutError: it did not close in time.
        """
        try:
            while self._receive():
                pass
        except ConnectionResetError:
            self._closed_by_peer = True
        found, self._buffer = self._buffer, b""
        return found

    def start_tls(
        self,
        server_name: str | None,
        ca_file: Path | None = None,
        *,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Begin TLS on this connection, for example after CONNECT was answered.

        Args:
            server_name: whom the certificate must name, and what SNI says.
            ca_file: the only authorities that are trusted.
            context: a context to use instead, which settles trust by itself.

        Raises:
            ssl.SSLError: the handshake failed.
        """
        assert not self._buffer, f"bytes before the handshake: {self._buffer!r}"
        if context is None:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        self._socket = context.wrap_socket(self._socket, server_hostname=server_name)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def reset(self) -> None:
        """Close with a reset, as the kernel does for a process that is killed with unread input."""
        reset(self._socket)

    def _receive(self) -> bool:
        data = self._socket.recv(65536)
        self._buffer += data
        self._closed_by_peer = not data
        return bool(data)


def _http1(status_line: str) -> str:
    """Return curl's `HTTP/2 200` as the status line that HTTP/1.1 would have."""
    return status_line.replace("HTTP/2 ", "HTTP/1.1 ", 1)


class Accepted(RawClient):
    """A connection whose socket the test already has: for example one that an upstream accepted."""

    def __init__(self, accepted: socket.socket) -> None:
        accepted.settimeout(ACCEPTED_DEADLINE)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = accepted
        self._buffer = b""
        self._closed_by_peer = False

    def read_head(self) -> bytes:
        """Return a head, including its empty line."""
        return self.read_until(wire.END_OF_HEAD)

    def assert_silent(self, seconds: float = 0.15) -> None:
        """Fail if anything comes within this time, even the end of the connection."""
        self._socket.settimeout(seconds)
        with pytest.raises(TimeoutError):
            self._receive()
        self._socket.settimeout(ACCEPTED_DEADLINE)
        assert self._buffer == b""


def send_until_blocked(sock: socket.socket, data: bytes) -> int:
    """Send as much as the other end takes; return how many bytes that was until it took nothing for a while."""
    before = sock.gettimeout()
    sock.settimeout(0.5)
    sent = 0
    try:
        while sent < len(data):
            sent += sock.send(memoryview(data)[sent : sent + 65536])
    except TimeoutError:
        pass  # this is what the caller wants to know
    finally:
        sock.settimeout(before)
    return sent
