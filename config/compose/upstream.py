"""A server on the other side of the sidecar, for docker-compose.yml: `upstream.py HOST FOLDER [NEXT]`.

Rules of this module:

- It speaks TLS only on port 8443. With NEXT, an http URL, it is a gateway: it sends what it was sent there, and answers
  with the answer. Port 8081 is for the person who tries the example: GET /received tells every request
  as it arrived, byte for byte.
- Its private keys never leave it: the authority's is forgotten at once, the server's is read by OpenSSL from a file
  that is gone before the first connection. FOLDER gets the public parts only: `authority.pem`, `server.pem` and
  `receiver.pub.pem`.
- The folder is complete before port 8081 answers, so whoever waits for that finds all files.
"""

import http.client
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
    next_hop: str | None = None

    def do_POST(self) -> None:
        """Record the request and answer with the amount, or with what the next hop answers."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        connection = self.connection
        seen = {
            "method": self.command,
            "path": self.path,
            "tls": connection.version() if isinstance(connection, ssl.SSLSocket) else None,
            "headers": self.headers.items(),
            "body": body.decode(),
        }
        received.append(seen)
        if self.next_hop is None:
            _answer(self, {"charged": json.loads(body)["amount"]})
            return
        status, kind, answer = self._pass_on(body)
        seen["answer"] = answer.decode()
        print(f"the gateway saw: {seen['body']}\n        and back: {seen['answer']}", flush=True)
        _send(self, status, kind, answer)

    def _pass_on(self, body: bytes) -> tuple[int, str, bytes]:
        assert self.next_hop is not None
        connection = http.client.HTTPConnection(self.next_hop.removeprefix("http://"), timeout=10)
        try:
            connection.request("POST", self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            return response.status, response.headers.get_content_type(), response.read()
        finally:
            connection.close()


class Desk(BaseHTTPRequestHandler):
    """Tells what the API has received."""

    def do_GET(self) -> None:
        """Answer /received."""
        _answer(self, received)

    def log_message(self, format: str, *args: object) -> None:
        """Leave the health checks out of the log."""


def _answer(handler: BaseHTTPRequestHandler, value: object) -> None:
    _send(handler, 200, "application/json", json.dumps(value, indent=1).encode() + b"\n")


def _send(handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
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


def main(host: str, folder: Path, next_hop: str | None = None) -> None:
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
    Api.next_hop = next_hop
    api = ThreadingHTTPServer(("", 8443), Api)
    # The handshake is left to each connection's own thread: one that stalls must not stop the others.
    api.socket = context.wrap_socket(api.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("", 8081), Desk).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
