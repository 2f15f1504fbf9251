"""The other end of field encryption: keys of every kind, and a receiver that opens values without the product.

Rules of this module:

- `Receiver.open` stands on `cryptography` and the standard library alone and shares no line with the product, so that
  what it opens is proof of the wire format (RFC 7516), and not of an agreement of the product with itself.
- It knows only the one form of tokens that Overcoat promises (docs/keys.md); a different token fails the test.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from proxy.core.jose.jwe import open_token
from proxy.core.jose.keys import Alg, Key, KeySet, SecretBytes, new_key
from proxy.core.jose.keywriting import to_jwk, to_pem
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import seal

TOKEN = rb"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){4}"


@dataclass(frozen=True, slots=True)
class Marked:
    """A value of a test body that the policy marks.

    Attributes:
        value: its exact JSON bytes.
        path: where it stands, as `cty` must say.
    """

    value: bytes
    path: str


Pieces = Sequence[bytes | Marked]


def plain(pieces: Pieces) -> bytes:
    """Return the body as the app sends it."""
    return b"".join(piece.value if isinstance(piece, Marked) else piece for piece in pieces)


class Receiver:
    """Holds a private or symmetric key, and opens what was encrypted for it.

    Args:
        kid: the key's name.
        alg: what it is for.
        curve: of an ECDH-ES key.
    """

    def __init__(self, kid: str, alg: Alg = Alg.ECDH_ES_A256KW, curve: Any = "P-256") -> None:
        self.key: Key = new_key(alg, curve=curve, kid=kid)
        self.keys = KeySet(kid, alg, self.key)

    @property
    def kid(self) -> str:
        """The key's name."""
        return self.key.kid

    def write_public(self, folder: Path) -> str:
        """Write what a sender needs, and return the file's name: PEM, or for a symmetric key the key itself."""
        if self.key.alg is Alg.A256KW:
            return self.write_private(folder)
        (folder / f"{self.kid}.pub.pem").write_bytes(to_pem(self.key, private=False))
        return f"{self.kid}.pub.pem"

    def write_private(self, folder: Path) -> str:
        """Write the private key as a JWK that only its owner may read, and return the file's name."""
        path = folder / f"{self.kid}.jwk"
        path.touch(mode=0o600)
        path.write_text(json.dumps(to_jwk(self.key, private=True)))
        return path.name

    def seal(self, value: bytes, host: str, path: str) -> bytes:
        """Return a JSON string that holds a value encrypted for this receiver."""
        return b'"' + seal(value, self.keys, Place(host, path)).encode("ascii") + b'"'

    def open(self, token: bytes, *, host: str, path: str) -> bytes:
        """Open a token twice, by the product's core and by this module alone, and check its header.

        Raises:
            AssertionError: the header is not exactly what Overcoat promises, or the two disagree.
        """
        header, value = self.open_alone(token)
        epk = {"epk"} if self.key.alg is Alg.ECDH_ES_A256KW else set()
        assert header.keys() == {"alg", "enc", "kid", "cty"} | epk
        assert (header["alg"], header["enc"], header["kid"]) == (self.key.alg.value, "A256GCM", self.kid)
        quoted = path.replace("\\", "\\\\").replace('"', '\\"')  # RFC 9110, section 5.6.4
        assert header["cty"] == f'application/json;host="{host}";path="{quoted}"'
        assert open_token(token.decode("ascii"), self.keys, Place(host, path), datetime.now(UTC).date()) == value
        return value

    def open_alone(self, token: bytes) -> tuple[dict[str, Any], bytes]:
        """Return a token's protected header and its plaintext, by RFC 7516, section 5.2, step by step."""
        protected, wrapped, iv, ciphertext, tag = token.split(b".")
        header: dict[str, Any] = json.loads(_unbase64(protected))
        content_key = self._content_key(header, _unbase64(wrapped))
        assert (len(_unbase64(iv)), len(_unbase64(tag)), len(content_key)) == (12, 16, 32)
        sealed = _unbase64(ciphertext) + _unbase64(tag)
        return header, AESGCM(content_key).decrypt(_unbase64(iv), sealed, protected)

    def _content_key(self, header: dict[str, Any], wrapped: bytes) -> bytes:
        material = self.key.material
        if isinstance(material, SecretBytes):
            return aes_key_unwrap(material.reveal(), wrapped)
        if isinstance(material, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
            return material.decrypt(wrapped, oaep)
        epk = header["epk"]
        if isinstance(material, x25519.X25519PrivateKey):
            assert (epk["kty"], epk["crv"]) == ("OKP", "X25519")
            shared = material.exchange(x25519.X25519PublicKey.from_public_bytes(_unbase64(epk["x"].encode())))
        else:
            assert isinstance(material, ec.EllipticCurvePrivateKey)
            assert (epk["kty"], epk["crv"]) == ("EC", "P-256")
            x, y = (int.from_bytes(_unbase64(epk[name].encode())) for name in ("x", "y"))
            public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            shared = material.exchange(ec.ECDH(), public)
        # RFC 7518, section 4.6.2: one round of SHA-256 over counter, secret, AlgorithmID, empty parties, key length
        name = header["alg"].encode()
        info = len(name).to_bytes(4) + name + bytes(4) + bytes(4) + (256).to_bytes(4)
        digest = hashes.Hash(hashes.SHA256())
        digest.update((1).to_bytes(4) + shared + info)
        return aes_key_unwrap(digest.finalize(), wrapped)


def assert_only_marked_changed(body: bytes, pieces: Pieces, receiver: Receiver, host: str) -> list[bytes]:
    """Check a body byte by byte: tokens that hold the marked values, and between them exactly what was sent.

    Args:
        body: what arrived.
        pieces: what was sent.
        receiver: whose key opens the tokens.
        host: the host that `cty` must name.

    Returns:
        The tokens in their order.
    """
    pattern = b"".join(b'"(%s)"' % TOKEN if isinstance(piece, Marked) else re.escape(piece) for piece in pieces)
    found = re.fullmatch(pattern, body, re.DOTALL)
    assert found is not None, f"bytes outside the marked values changed: {body!r}"
    tokens: list[bytes] = list(found.groups())
    marked = [piece for piece in pieces if isinstance(piece, Marked)]
    for token, piece in zip(tokens, marked, strict=True):
        assert receiver.open(token, host=host, path=piece.path) == piece.value
    return tokens


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
