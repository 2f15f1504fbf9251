"""An upstream for tests that sends and receives exactly the bytes that a test says."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted
from tests.e2e.listeners import listen

DEADLINE = 5.0


class Upstream:
    """A listening socket; the test serves the connections that it accepts."""

    def __init__(self, host: str, tls: ssl.SSLContext | None) -> None:
        self.host = host
        self._tls = tls
        self._listener = listen()
        self._listener.settimeout(DEADLINE)
        self._accepted: list[Accepted] = []
        self.authority = f"{host}:{self._listener.getsockname()[1]}"

    def accept(self) -> Accepted:
        """Return the next connection, once its handshake is complete."""
        accepted, _ = self._listener.accept()
        accepted.settimeout(DEADLINE)
        if self._tls is not None:
            accepted = self._tls.wrap_socket(accepted, server_side=True)
        self._accepted.append(Accepted(accepted))
        return self._accepted[-1]

    def assert_nobody_came(self) -> None:
        """Fail if a connection was made that was not accepted."""
        self._listener.settimeout(0.15)
        with pytest.raises(TimeoutError):
            self._listener.accept()
        self._listener.settimeout(DEADLINE)

    def close(self) -> None:
        for accepted in self._accepted:
            accepted.close()
        self._listener.close()

    def request(self, path: str = "/", more: str = "", method: str = "GET", version: str = "1.1") -> bytes:
        """Return the head of a request of an app."""
        head = f"{method} http://{self.authority}{path} HTTP/{version}\r\nHost: {self.authority}\r\n{more}\r\n"
        return head.encode("ascii")

    def expected(self, path: str = "/", more: str = "", method: str = "GET") -> bytes:
        """Return the same head as it must arrive at this upstream."""
        return f"{method} {path} HTTP/1.1\r\nHost: {self.authority}\r\n{more}\r\n".encode("ascii")


@contextmanager
def scripted_upstream(host: str, authority: Authority | None) -> Iterator[Upstream]:
    """Make an upstream for as long as it is needed: one that speaks TLS, if an authority issues its certificate."""
    tls = None
    if authority is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue(host).load_into(tls)
    upstream = Upstream(host, tls)
    try:
        yield upstream
    finally:
        upstream.close()


@contextmanager
def answering_anything(response: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers the first bytes of each connection alike, whatever they are, and then closes it.

    Yields its port, and the list of those first bytes.
    """
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:  # closed at the end of the test
                return
            with accepted:
                heard.append(accepted.recv(65536))
                accepted.sendall(response)

    with listen() as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
