"""The demo's servers, on loopback: they record every byte that they receive, and answer `200`. `proxy.demo.cases`
starts them.

Rules of this module:

- The record is what came out of the TLS session (or off the plain socket); nothing is inferred.
- Certificates come from a CA that is made for one run; its key is never written to disk.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy import timelimits
from proxy.disk.issuing import ca_certificate, private_pem, server_certificate, valid_from

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


class DemoCa:
    """A CA for one run."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._lifetime = valid_from(now, now + timedelta(seconds=timelimits.DEMO_CERTIFICATE_SECONDS))
        self.certificate = ca_certificate("Overcoat demo CA", self._key, self._lifetime)

    @property
    def pem(self) -> bytes:
        """The CA's certificate, for the sidecar to trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write_server(self, directory: Path, name: str) -> Path:
        """Make a key and a certificate for `localhost`; return the file of the certificate. The key is beside it, in
        `.key`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = server_certificate("localhost", key.public_key(), self.certificate, self._key, self._lifetime)
        path = directory / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        path.with_suffix(".key").touch(mode=0o600)
        path.with_suffix(".key").write_bytes(private_pem(key))
        return path


@dataclass(slots=True)
class Upstream:
    """A recording server.

    Attributes:
        port: its port on 127.0.0.1.
        connections: the number of TCP connections.
        handshakes: the number of completed TLS handshakes.
        received: the application bytes, over all connections.
        answer: the JSON text with which it answers.
    """

    port: int
    connections: int = 0
    handshakes: int = 0
    received: bytearray = field(default_factory=bytearray)
    answer: bytes = b'{"ok": true}'

    @property
    def request(self) -> tuple[str, bytes]:
        """The head (text) and the body of the one request."""
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        return head.decode("latin-1"), body


def start(wanted_port: int, certificate: Path | None, answer: bytes = b'{"ok": true}') -> Upstream:
    """Start a recording server, with TLS if a certificate file is given.

    Args:
        wanted_port: the port to take; another one is taken if it is in use.
        certificate: the PEM file of the server's certificate, with its key beside it; None for plain TCP.
        answer: the JSON text with which it answers.
    """
    listener = _listen(wanted_port)
    upstream = Upstream(listener.getsockname()[1], answer=answer)
    context = None if certificate is None else _context(certificate)
    threading.Thread(target=_accept, args=(listener, context, upstream), daemon=True).start()
    return upstream


def _listen(wanted_port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", wanted_port))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


class Gateway:
    """Stands between two sidecars as a CDN or a gateway does: it ends TLS, reads everything, and passes it on.

    Attributes:
        port: its port on 127.0.0.1.
        read: what it could read, in both directions.
    """

    def __init__(self, wanted_port: int, certificate: Path, authority: DemoCa) -> None:
        """Start.

        Args:
            wanted_port: the port to take; another one is taken if it is in use.
            certificate: the PEM file of its certificate, with its key beside it.
            authority: has signed the certificate of the server behind.
        """
        self.read = bytearray()
        self._to: tuple[str, int] | None = None
        self._context = _context(certificate)
        self._trust = ssl.create_default_context(cadata=authority.pem.decode("ascii"))
        self._listener = _listen(wanted_port)
        self.port: int = self._listener.getsockname()[1]

    def lead_to(self, host: str, port: int) -> None:
        """Pass on to this address from now on."""
        self._to = host, port
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        assert self._to is not None
        with contextlib.suppress(OSError), connection, socket.create_connection(self._to) as raw:
            front = self._context.wrap_socket(connection, server_side=True)
            behind = self._trust.wrap_socket(raw, server_hostname="localhost")
            while True:  # in one thread: a TLS session must not be read in one and written to in another
                for source, to in ((front, behind), (behind, front)):
                    source.settimeout(0)
                    with contextlib.suppress(ssl.SSLWantReadError):
                        if not (data := source.recv(65536)):
                            return
                        self.read += data
                        to.settimeout(timelimits.DEMO_SOCKET_SECONDS)
                        to.sendall(data)
                if not front.pending() and not behind.pending():
                    select.select([front, behind], [], [], timelimits.DEMO_SOCKET_SECONDS)


def _accept(listener: socket.socket, context: ssl.SSLContext | None, upstream: Upstream) -> None:
    while True:
        connection, _ = listener.accept()
        upstream.connections += 1
        threading.Thread(target=_serve, args=(connection, context, upstream), daemon=True).start()


def _serve(connection: socket.socket, context: ssl.SSLContext | None, upstream: Upstream) -> None:
    connection.settimeout(timelimits.DEMO_SOCKET_SECONDS)
    # A peer may hang up, in the handshake or later: that is what the demo shows. The record says how far it came.
    with connection, contextlib.suppress(OSError):
        stream = connection
        if context is not None:
            stream = context.wrap_socket(connection, server_side=True)
            upstream.handshakes += 1
        while data := stream.recv(65536):
            upstream.received += data
            if _is_whole(bytes(upstream.received)):
                stream.sendall(_HEAD % (len(upstream.answer), upstream.answer))


def _is_whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(body) >= int(lengths[0] if lengths else 0)
