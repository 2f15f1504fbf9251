"""Agrees on the key that wraps a content key: ECDH-ES with Concat KDF (RFC 7518, section 4.6), for both sides.
`proxy.core.jose.sealing` makes the sender's half for each body; `proxy.core.jose.jwe` has the receiver's.

Rules of this module:

- A sender's ephemeral key is new at each call, and gone afterwards.
- A receiver takes from the header only what RFC 7518 says, and checks that the point is on the curve of its key.
"""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.core.jose.encoding import base64url, unbase64url
from proxy.core.jose.keymaterial import (
    P256_BYTES,
    Alg,
    BadKey,
    Material,
    PublicMaterial,
    material_of_jwk,
    public_material,
)

PARAMETERS = frozenset({"epk", "apu", "apv"})

_WRAPPING_KEY_BYTES = 32  # A256KW
# RFC 7518, section 4.6.1.1: only coordinates count; descriptive members may be ignored. No private members.
_EPK_MEMBERS = frozenset({"kty", "crv", "x", "y", "kid", "use", "alg", "key_ops"})
_P256 = ec.SECP256R1()
_ECDH = ec.ECDH()


class BadAgreement(ValueError):
    """A header parameter of the key agreement cannot be used. The message quotes nothing of it."""


def concat_kdf(shared: bytes, algorithm: str, length: int, apu: bytes = b"", apv: bytes = b"") -> bytes:
    """Derive a key from an ECDH shared secret: the Concat KDF with SHA-256, as RFC 7518, section 4.6.2, uses it.

    Args:
        shared: the shared secret Z.
        algorithm: the AlgorithmID; with key wrapping, the value of `alg`.
        length: the length of the key in bytes.
        apu: PartyUInfo, decoded.
        apv: PartyVInfo, decoded.
    """
    parties = b"".join(len(part).to_bytes(4) + part for part in (algorithm.encode("ascii"), apu, apv))
    return ConcatKDFHash(SHA256(), length, parties + (length * 8).to_bytes(4)).derive(shared)


def offer(recipient: ec.EllipticCurvePublicKey | X25519PublicKey) -> tuple[bytes, bytes]:
    """Agree with a recipient by a new ephemeral key.

    Args:
        recipient: the recipient's public key, on P-256 or X25519.

    Returns:
        The ephemeral public key, as the JSON text of `epk`, and the wrapping key.
    """
    if isinstance(recipient, X25519PublicKey):
        own = X25519PrivateKey.generate()
        shared = own.exchange(recipient)
        x = base64url(own.public_key().public_bytes_raw())
        epk = f'{{"kty":"OKP","crv":"X25519","x":"{x}"}}'
    else:
        ephemeral = ec.generate_private_key(_P256)
        shared = ephemeral.exchange(_ECDH, recipient)
        # SEC 1, section 2.3.3: one byte for the form, then both coordinates.
        point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        x, y = base64url(point[1 : 1 + P256_BYTES]), base64url(point[1 + P256_BYTES :])
        epk = f'{{"kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}'
    return epk.encode("ascii"), concat_kdf(shared, Alg.ECDH_ES_A256KW.value, _WRAPPING_KEY_BYTES)


def accept(material: Material, header: Mapping[str, object]) -> bytes | None:
    """Derive the wrapping key from our private key and a token's ephemeral key; None if they share no secret.

    Args:
        material: our private key.
        header: the token's protected header.

    Raises:
        BadAgreement: `epk`, `apu` or `apv` is malformed, or on another curve.
    """
    ephemeral = _ephemeral_key(header)
    apu, apv = (_party_info(header, name) for name in ("apu", "apv"))
    if isinstance(material, X25519PrivateKey) and isinstance(ephemeral, X25519PublicKey):
        try:
            shared = material.exchange(ephemeral)
        except ValueError:  # all zero, from a point of small order (RFC 7748, section 6.1; RFC 8037, section 3.2.1)
            return None
    elif isinstance(material, ec.EllipticCurvePrivateKey) and isinstance(ephemeral, ec.EllipticCurvePublicKey):
        shared = material.exchange(_ECDH, ephemeral)
    else:
        raise BadAgreement("header parameter epk: not on the curve of the key")
    return concat_kdf(shared, Alg.ECDH_ES_A256KW.value, _WRAPPING_KEY_BYTES, apu, apv)


def is_offer(recipient: Material, header: Mapping[str, object]) -> bool:
    """Tell whether a header offers an ephemeral key to a recipient: one on the same curve.

    Args:
        recipient: a public key, on P-256 or X25519.
        header: the protected header.
    """
    try:
        ephemeral = _ephemeral_key(header)
    except BadAgreement:
        return False
    return isinstance(recipient, X25519PublicKey) is isinstance(ephemeral, X25519PublicKey)


def _ephemeral_key(header: Mapping[str, object]) -> PublicMaterial:
    epk = header.get("epk")
    if not isinstance(epk, dict) or not epk.keys() <= _EPK_MEMBERS:
        raise BadAgreement("header parameter epk: must be a public EC or X25519 key (RFC 7518, section 4.6.1.1)")
    try:
        return public_material(material_of_jwk(epk))
    except BadKey:
        raise BadAgreement("header parameter epk: not a valid public key") from None


def _party_info(header: Mapping[str, object], name: str) -> bytes:
    text = header.get(name, "")
    if not isinstance(text, str):
        raise BadAgreement(f"header parameter {name}: must be a string")
    try:
        return unbase64url(text)
    except ValueError:
        raise BadAgreement(f"header parameter {name}: must be canonical base64url without padding") from None
