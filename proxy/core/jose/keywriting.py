"""Writes keys, as JWK and as PEM, and says what they are called by their content. The commands that make keys call it.

Rules of this module:

- Secret members are written only where the caller says so.
- No message has key material in it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from proxy.core.jose.encoding import base64url
from proxy.core.jose.keymaterial import (
    P256_BYTES,
    BadKey,
    SecretBytes,
    encode_integer,
    public_material,
    required_members,
    thumbprint_of,
)
from proxy.core.jose.keys import Key


def thumbprint(key: Key) -> str:
    """Return the SHA-256 JWK thumbprint in base64url (RFC 7638, RFC 8037); both halves of a key pair have the same.

    The thumbprint of a symmetric key is a digest of a secret; it is harmless because the secret is random (RFC 7638,
    section 7).
    """
    return thumbprint_of(key.material)


def to_jwk(key: Key, *, private: bool) -> dict[str, str]:
    """Return the key as the members of a JWK (RFC 7517, RFC 7518 section 6, RFC 8037).

    Args:
        key: the key.
        private: whether to include the secret members.

    Raises:
        BadKey: `private` is true and the key has no secret members, or it is false and the key has no others.
    """
    if private and not key.is_secret:
        raise BadKey("this is a public key; its private half is not here")
    material = key.material if private else public_material(key.material)
    members = required_members(material)
    match material:
        case ec.EllipticCurvePrivateKey():
            members["d"] = base64url(material.private_numbers().private_value.to_bytes(P256_BYTES))
        case X25519PrivateKey():
            members["d"] = base64url(material.private_bytes_raw())
        case rsa.RSAPrivateKey():
            n = material.private_numbers()
            parts = {"d": n.d, "p": n.p, "q": n.q, "dp": n.dmp1, "dq": n.dmq1, "qi": n.iqmp}
            members |= {name: encode_integer(value) for name, value in parts.items()}
        case _:
            pass  # a public key has no more members; a symmetric key has only its required one
    return members | {"use": "enc", "alg": key.alg.value, "kid": key.kid}


def to_pem(key: Key, *, private: bool) -> bytes:
    """Return the key as PEM: unencrypted PKCS#8 for the private half, SPKI for the public one.

    Args:
        key: the key.
        private: which half to return.

    Raises:
        BadKey: the key is symmetric, or is public and has no private half.
    """
    if not private:
        return public_material(key.material).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    match key.material:
        case ec.EllipticCurvePrivateKey() | X25519PrivateKey() | rsa.RSAPrivateKey():
            return key.material.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        case SecretBytes():
            raise BadKey("PEM has no form for a symmetric key; write it as a JWK")
        case _:
            raise BadKey("this is a public key; its private half is not here")
