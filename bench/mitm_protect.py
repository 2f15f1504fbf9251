"""For stock mitmdump: upgrade, pin the server's key, and encrypt four JSON fields with joserfc.

Written as a user of mitmproxy and joserfc would: `json` reads and writes the body, one JWE a field.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwe
from joserfc.jwk import ECKey
from mitmproxy import ctx, http, tls
from OpenSSL import SSL
from OpenSSL.crypto import X509

HTTPS_PORT = int(os.environ["BENCH_HTTPS_PORT"])
PIN = os.environ["BENCH_PIN"]
KEY = ECKey.import_key(Path(os.environ["BENCH_KEY"]).read_text("ascii"))
HEADER = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "bench", "cty": "json"}
ALGORITHMS = ["ECDH-ES+A256KW", "A256GCM"]
FIELDS = (("card", "number"), ("card", "cvv"), ("customer", "ssn"), ("account", "iban"))


def requestheaders(flow: http.HTTPFlow) -> None:
    """Upgrade a request before anything of it is sent."""
    if flow.request.scheme == "http":
        flow.request.scheme = "https"
        flow.request.port = HTTPS_PORT if flow.request.port == 80 else flow.request.port


def _matches(_connection: SSL.Connection, certificate: X509, _error: int, depth: int, ok: int) -> bool:
    if depth or not ok:
        return bool(ok)
    key = certificate.to_cryptography().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii") == PIN


def tls_start_server(data: tls.TlsData) -> None:
    """Check the pin in the handshake."""
    ctx.master.addons.get("tlsconfig").tls_start_server(data)  # scripts come before it, and need what it makes
    assert data.ssl_conn is not None
    data.ssl_conn.set_verify(SSL.VERIFY_PEER, _matches)


def request(flow: http.HTTPFlow) -> None:
    """Encrypt the fields of a JSON body."""
    if not flow.request.content or flow.request.headers.get("content-type") != "application/json":
        return
    body = json.loads(flow.request.content)
    for outer, inner in FIELDS:
        plaintext = json.dumps(body[outer][inner]).encode()
        body[outer][inner] = jwe.encrypt_compact(HEADER, plaintext, KEY, algorithms=ALGORITHMS)
    flow.request.content = json.dumps(body).encode()
