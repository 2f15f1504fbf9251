"""The demo's servers, on loopback: they record every byte that they receive, and answer `200`. `proxy.demo.cases`
starts them.

Rules of this module:

- The record is what came out of the TLS session (or off the plain socket); nothing is inferred.
- Certificates come from a CA that is made for one run; its key is never written to disk.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy import timelimits

_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"ok": true}'


class DemoCa:
    """A CA for one run."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Overcoat demo CA")])
        self.certificate = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0), [])

    @property
    def pem(self) -> bytes:
        """The CA's certificate, for the sidecar to trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        constraints: x509.BasicConstraints,
        names: list[x509.GeneralName],
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=timelimits.CLOCK_SLACK_SECONDS))
            .not_valid_after(now + timedelta(seconds=timelimits.DEMO_CERTIFICATE_SECONDS))
            .add_extension(constraints, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not constraints.ca,
                    key_cert_sign=constraints.ca,
                    crl_sign=constraints.ca,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def write_server(self, directory: Path, name: str) -> Path:
        """Make a key and a certificate for `localhost`; return the file of the certificate. The key is beside it, in
        `.key`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(
            subject, key, x509.BasicConstraints(ca=False, path_length=None), [x509.DNSName("localhost")]
        )
        path = directory / f"{name}.pem"
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        path.with_suffix(".key").touch(mode=0o600)
        path.with_suffix(".key").write_bytes(pem)
        return path


@dataclass(slots=True)
class Upstream:
    """A recording server.

    Attributes:
        port: its port on 127.0.0.1.
        connections: the number of TCP connections.
        handshakes: the number of completed TLS handshakes.
        received: the application bytes, over all connections.
    """

    port: int
    connections: int = 0
    handshakes: int = 0
    received: bytearray = field(default_factory=bytearray)

    @property
    def request(self) -> tuple[str, bytes]:
        """The head (text) and the body of the one request."""
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        return head.decode("latin-1"), body


def start(wanted_port: int, certificate: Path | None) -> Upstream:
    """Start a recording server, with TLS if a certificate file is given.

    Args:
        wanted_port: the port to take; another one is taken if it is in use.
        certificate: the PEM file of the server's certificate, with its key beside it; None for plain TCP.
    """
    try:
        listener = socket.create_server(("127.0.0.1", wanted_port))
    except OSError:
        listener = socket.create_server(("127.0.0.1", 0))
    upstream = Upstream(listener.getsockname()[1])
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    threading.Thread(target=_accept, args=(listener, context, upstream), daemon=True).start()
    return upstream


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
                stream.sendall(_ANSWER)


def _is_whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(body) >= int(lengths[0] if lengths else 0)
