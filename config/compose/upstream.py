"""A server on the other side of the sidecar, for docker-compose.yml: `upstream.py HOST FOLDER`.

Rules of this module:

- It speaks TLS only on port 8443. Port 8081 is for the person who tries the example: GET /received tells every request
  as it arrived, byte for byte.
- Its private keys never leave it: the authority's is forgotten at once, the server's is read by OpenSSL from a file
  that is gone before the first connection. FOLDER gets the public parts only: `authority.pem`, `server.pem` and
  `receiver.pub.pem`.
- The folder is complete before port 8081 answers, so whoever waits for that finds all files.
"""

import json
import ssl
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

received: list[dict[str, Any]] = []


class Api(BaseHTTPRequestHandler):
    """Takes charges over TLS, and remembers all that it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Record the request and answer with the amount."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        connection = self.connection
        received.append(
            {
                "method": self.command,
                "path": self.path,
                "tls": connection.version() if isinstance(connection, ssl.SSLSocket) else None,
                "headers": self.headers.items(),
                "body": body.decode(),
            }
        )
        _answer(self, {"charged": json.loads(body)["amount"]})


class Desk(BaseHTTPRequestHandler):
    """Tells what the API has received."""

    def do_GET(self) -> None:
        """Answer /received."""
        _answer(self, received)

    def log_message(self, format: str, *args: object) -> None:
        """Leave the health checks out of the log."""


def _answer(handler: BaseHTTPRequestHandler, value: object) -> None:
    body = json.dumps(value, indent=1).encode() + b"\n"
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def make_certificates(host: str) -> tuple[bytes, bytes, bytes]:
    """Return a new authority's certificate, a certificate that it issued for `host`, and that one's private key."""
    now = datetime.now(UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Throw-away authority of the example")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
        )

    authority = (
        certificate(authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(authority_id, critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        certificate(server_name, server_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    return authority.public_bytes(pem), server.public_bytes(pem), private


def main(host: str, folder: Path) -> None:
    """Make the keys, publish their public parts, and serve."""
    authority, server, private = make_certificates(host)
    receiver = ec.generate_private_key(ec.SECP256R1()).public_key()
    receiver_pem = receiver.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, content in (
        ("authority.pem", authority),
        ("server.pem", server),
        ("receiver.pub.pem", receiver_pem),
    ):
        (folder / name).write_bytes(content)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as both:
        both.write(private + server)
        both.flush()
        context.load_cert_chain(both.name)
    api = ThreadingHTTPServer(("", 8443), Api)
    # The handshake is left to each connection's own thread: one that stalls must not stop the others.
    api.socket = context.wrap_socket(api.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("", 8081), Desk).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
