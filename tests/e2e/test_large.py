"""A body as large as a disk image costs no more memory than a small one, either way."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.sidecar import Sidecar

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the most memory ever used is told by /proc, which is Linux's"
)
GIB = 1024 * 1024 * 1024
PIECE = bytes(range(256)) * 4096
BOUND = 16 * 1024 * 1024


class LargeUpstream:
    """A TLS server that takes and gives bodies of a gibibyte, and keeps nothing of them."""

    def __init__(self, authority: Authority) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue("127.0.0.1").load_into(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.received = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
                with self._context.wrap_socket(accepted, server_side=True) as connection:
                    self._converse(connection)
            except OSError:  # the end of the test, or of a connection
                if self._listener.fileno() < 0:
                    return

    def _converse(self, connection: ssl.SSLSocket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        self.received = len(head.partition(b"\r\n\r\n")[2])
        expected = GIB if head.startswith(b"POST") else 0
        buffer = bytearray(1 << 20)
        while self.received < expected:
            if not (count := connection.recv_into(buffer)):
                return
            self.received += count
        size = 0 if expected else GIB
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(PIECE)):
            connection.sendall(PIECE)
        connection.recv(1)  # until the sidecar is done with it


@pytest.fixture
def upstream(authority: Authority) -> Iterator[LargeUpstream]:
    server = LargeUpstream(authority)
    yield server
    server.close()


@pytest.fixture
def sidecar(authority: Authority, tmp_path: Path) -> Iterator[Sidecar]:
    with Sidecar("", tmp_path, authority=authority) as running:
        yield running


def ask(client: RawClient, port: int, method: str, size: int) -> None:
    head = f"{method} http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size}\r\n\r\n"
    client.send(head.encode())


def test_a_gibibyte_down(sidecar: Sidecar, upstream: LargeUpstream) -> None:
    Path(f"/proc/{sidecar.pid}/clear_refs").write_text("5")  # so that the peak is counted from now
    before = sidecar.resident_bytes()
    with RawClient(sidecar.address) as client:
        ask(client, upstream.port, "GET", 0)
        _, _, rest = client.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        received = len(rest) + len(client._buffer)
        buffer = bytearray(1 << 20)
        while received < GIB:
            count = client._socket.recv_into(buffer)
            assert count, f"it ended after {received} bytes"
            received += count
    assert received == GIB
    assert sidecar.resident_bytes(peak=True) - before < BOUND


def test_a_gibibyte_up(sidecar: Sidecar, upstream: LargeUpstream) -> None:
    Path(f"/proc/{sidecar.pid}/clear_refs").write_text("5")
    before = sidecar.resident_bytes()
    with RawClient(sidecar.address) as client:
        ask(client, upstream.port, "POST", GIB)
        for _ in range(GIB // len(PIECE)):
            client.send(PIECE)
        assert client.read_response().status == 200
    assert upstream.received == GIB
    assert sidecar.resident_bytes(peak=True) - before < BOUND
