"""The material of keys: its kinds, how a JWK describes it, and whether it fits its algorithm. `keyformats`, `keys` and
`jwe` beside it call it.

Rules of this module:

- A key can be read in one way only. Padded or non-canonical base64url, leading zero octets and contradictory members
  are refused, never guessed.
- Whatever could fail later, at a request, is refused when the key is read.
- No message and no `repr` has key material in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from proxy.core.jose.encoding import base64url, unbase64url

SYMMETRIC_BYTES = 32  # AES-256
MIN_RSA_BITS = 2048  # RFC 7518, section 4.3
MAX_RSA_BITS = 16384  # the longest with which OpenSSL encrypts
MIN_RSA_EXPONENT = 65537
MAX_RSA_EXPONENT_BITS = 64  # the same, for a modulus of more than 3072 bits
P256_BYTES = 32
X25519_BYTES = 32

SECRET_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class Alg(StrEnum):
    """The key management algorithms of RFC 7518, section 4.1, that Overcoat knows."""

    ECDH_ES_A256KW = "ECDH-ES+A256KW"
    RSA_OAEP_256 = "RSA-OAEP-256"
    A256KW = "A256KW"


class Enc(StrEnum):
    """The content encryption of RFC 7518, section 5.1: AES in Galois/Counter Mode."""

    A256GCM = "A256GCM"
    A128GCM = "A128GCM"

    @property
    def key_bytes(self) -> int:
        """The length of a content key."""
        return 32 if self is Enc.A256GCM else 16


class BadKey(ValueError):
    """The key cannot be used. The message says what is wrong and what would be right, without key material."""


class SecretBytes:
    """Bytes that are shown only on request (`reveal`), never by `repr`."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __repr__(self) -> str:
        return "SecretBytes(<redacted>)"


type PublicMaterial = ec.EllipticCurvePublicKey | X25519PublicKey | rsa.RSAPublicKey
type PrivateMaterial = ec.EllipticCurvePrivateKey | X25519PrivateKey | rsa.RSAPrivateKey
type Material = PublicMaterial | PrivateMaterial | SecretBytes


def public_material(material: Material) -> PublicMaterial:
    """Return the public half.

    Raises:
        BadKey: the key is symmetric.
    """
    match material:
        case SecretBytes():
            raise BadKey("a symmetric key has no public half; whoever encrypts needs the secret itself")
        case ec.EllipticCurvePrivateKey() | X25519PrivateKey() | rsa.RSAPrivateKey():
            return material.public_key()
        case _:
            return material


def required_members(material: Material) -> dict[str, str]:
    """Return the members that make up the thumbprint (RFC 7638, section 3.2)."""
    if isinstance(material, SecretBytes):
        return {"kty": "oct", "k": base64url(material.reveal())}
    public = public_material(material)
    match public:
        case ec.EllipticCurvePublicKey():
            point = public.public_numbers()
            x, y = (base64url(coordinate.to_bytes(P256_BYTES)) for coordinate in (point.x, point.y))
            return {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        case X25519PublicKey():
            return {"kty": "OKP", "crv": "X25519", "x": base64url(public.public_bytes_raw())}
        case _:
            numbers = public.public_numbers()
            return {"kty": "RSA", "n": encode_integer(numbers.n), "e": encode_integer(numbers.e)}


def encode_integer(value: int) -> str:
    """Encode a positive integer in as few octets as possible (Base64urlUInt, RFC 7518, section 2)."""
    return base64url(value.to_bytes((value.bit_length() + 7) // 8))


def check_fits(alg: Alg, material: Material) -> None:
    """Check that an algorithm can be used safely with this material (RFC 7518, sections 4.3, 4.4 and 4.6).

    Raises:
        BadKey: the material is of another kind, on another curve, too weak, or unusable.
    """
    if alg is Alg.A256KW:
        if not isinstance(material, SecretBytes):
            raise BadKey(f"{alg} takes a symmetric key (a JWK with kty oct), not {_kind(material)}")
        if len(material.reveal()) != SYMMETRIC_BYTES:
            raise BadKey(f"the key has {len(material.reveal())} bytes; {alg} takes exactly {SYMMETRIC_BYTES}")
    elif alg is Alg.RSA_OAEP_256:
        if isinstance(material, rsa.RSAPrivateKey):
            _check_rsa(material.public_key())
        elif isinstance(material, rsa.RSAPublicKey):
            _check_rsa(material)
        else:
            raise BadKey(f"{alg} takes an RSA key, not {_kind(material)}")
    elif isinstance(material, X25519PublicKey):
        _check_x25519(material)
    elif isinstance(material, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        if not isinstance(material.curve, ec.SECP256R1):
            raise BadKey(f"the key is on curve {material.curve.name}; {alg} takes P-256 or X25519")
    elif not isinstance(material, X25519PrivateKey):
        raise BadKey(f"{alg} takes a P-256 or X25519 key, not {_kind(material)}")


def _check_x25519(public: X25519PublicKey) -> None:
    # With a point of small order, every shared secret would be the same known value (RFC 7748, section 6.1).
    try:
        X25519PrivateKey.generate().exchange(public)
    except ValueError:
        raise BadKey("the X25519 public key is a point of small order; make a new key") from None


def _check_rsa(public: rsa.RSAPublicKey) -> None:
    numbers = public.public_numbers()
    if not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
        raise BadKey(f"the RSA key has {public.key_size} bits; it must have {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    if numbers.n % 2 == 0 or numbers.e % 2 == 0:
        raise BadKey("the RSA modulus and exponent must be odd; make a new key")
    if numbers.e < MIN_RSA_EXPONENT or numbers.e.bit_length() > MAX_RSA_EXPONENT_BITS:
        raise BadKey(
            f"the RSA public exponent must be at least {MIN_RSA_EXPONENT} with at most {MAX_RSA_EXPONENT_BITS} bits"
        )


def _kind(material: Material) -> str:
    match material:
        case SecretBytes():
            return "a symmetric key"
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            return "an RSA key"
        case X25519PublicKey() | X25519PrivateKey():
            return "an X25519 key"
        case _:
            return "an EC key"


def material_of_jwk(members: Mapping[str, object]) -> Material:
    """Return the key that the members of a JWK describe (RFC 7518, section 6; RFC 8037, section 2).

    Args:
        members: the JWK's members; unknown ones are ignored (RFC 7517, section 4).

    Raises:
        BadKey: the members are malformed, contradict each other, or describe a kind of key that no algorithm here uses.
    """
    kty = members.get("kty")
    try:
        match kty:
            case "oct":
                return SecretBytes(_octets(members, "k"))
            case "EC":
                return _ec_of_jwk(members)
            case "OKP":
                return _x25519_of_jwk(members)
            case "RSA":
                return _rsa_of_jwk(members)
            case _:
                raise BadKey("the JWK's kty must be EC, OKP, RSA or oct")
    except BadKey:
        raise
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey(f"the JWK's members do not make a valid {kty} key (off the curve, or not matching)") from None


def _ec_of_jwk(members: Mapping[str, object]) -> Material:
    if members.get("crv") != "P-256":
        raise BadKey("the crv of an EC key must be P-256")
    x, y = (int.from_bytes(_octets(members, name, P256_BYTES)) for name in ("x", "y"))
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1())
    if "d" not in members:
        return public.public_key()
    return ec.EllipticCurvePrivateNumbers(int.from_bytes(_octets(members, "d", P256_BYTES)), public).private_key()


def _x25519_of_jwk(members: Mapping[str, object]) -> Material:
    if members.get("crv") != "X25519":
        raise BadKey("the crv of an OKP key must be X25519")
    x = _octets(members, "x", X25519_BYTES)
    if "d" not in members:
        return X25519PublicKey.from_public_bytes(x)
    private = X25519PrivateKey.from_private_bytes(_octets(members, "d", X25519_BYTES))
    if private.public_key().public_bytes_raw() != x:
        raise BadKey("the JWK's x is not the public half of its d")
    return private


def _rsa_of_jwk(members: Mapping[str, object]) -> Material:
    if "oth" in members:
        raise BadKey("an RSA key of more than two primes (oth) is not read here")
    public = rsa.RSAPublicNumbers(_integer(members, "e"), _integer(members, "n"))
    if not SECRET_MEMBERS & members.keys():
        return public.public_key()
    d, p, q, dp, dq, qi = (_integer(members, name) for name in ("d", "p", "q", "dp", "dq", "qi"))
    return rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, public).private_key()


def _octets(members: Mapping[str, object], name: str, length: int | None = None) -> bytes:
    text = members.get(name)
    if not isinstance(text, str):
        raise BadKey(f"the JWK's member {name} is missing or not a string")
    try:
        value = unbase64url(text)
    except ValueError:
        raise BadKey(f"the JWK's member {name} must be canonical base64url without padding") from None
    if length is not None and len(value) != length:
        raise BadKey(f"the JWK's member {name} has {len(value)} octets; it must have {length}")
    return value


def _integer(members: Mapping[str, object], name: str) -> int:
    octets = _octets(members, name)
    if not octets or octets[0] == 0:
        raise BadKey(f"the JWK's member {name} must be a positive integer without leading zero octets (RFC 7518)")
    return int.from_bytes(octets)


def check_use(members: Mapping[str, object], alg: Alg, material: Material) -> str | None:
    """Check that a JWK allows the use that is made of it (RFC 7517, section 4).

    Args:
        members: the JWK's members; none for a key from PEM.
        alg: the algorithm the key is for.
        material: the key's material.

    Returns:
        The JWK's kid, or None.

    Raises:
        BadKey: its `alg`, `use` or `key_ops` forbid that use, or its kid is no string.
    """
    if "alg" in members and members["alg"] != alg.value:
        raise BadKey(f"the JWK's alg is another one; it must be {alg} or absent")
    if "use" in members and members["use"] != "enc":
        raise BadKey("the JWK's use must be enc or absent")
    if "key_ops" in members:
        _check_operations(members["key_ops"], material)
    kid = members.get("kid")
    if "kid" in members and not isinstance(kid, str):
        raise BadKey("the JWK's kid must be a string")
    return kid if isinstance(kid, str) else None


def _check_operations(operations: object, material: Material) -> None:
    if not isinstance(operations, list) or not all(isinstance(name, str) for name in operations):
        raise BadKey("the JWK's key_ops must be a list of strings")
    if len(set(operations)) != len(operations):
        raise BadKey("the JWK's key_ops must not name an operation twice")
    named = set(operations)
    match material:
        case SecretBytes():
            right, fits = "wrapKey and unwrapKey", named >= {"wrapKey", "unwrapKey"}
        case rsa.RSAPublicKey():
            right, fits = "encrypt or wrapKey", bool(named & {"encrypt", "wrapKey"})
        case rsa.RSAPrivateKey():
            right, fits = "decrypt or unwrapKey", bool(named & {"decrypt", "unwrapKey"})
        case ec.EllipticCurvePrivateKey() | X25519PrivateKey():
            right, fits = "deriveKey or deriveBits", bool(named & {"deriveKey", "deriveBits"})
        case _:  # Web Crypto gives the public half of an ECDH key no operation
            right, fits = "deriveKey, deriveBits or nothing", not named or bool(named & {"deriveKey", "deriveBits"})
    if not fits:
        raise BadKey(f"the JWK's key_ops do not allow what this key is for; they must have {right}")


def thumbprint_of(material: Material) -> str:
    """Return the SHA-256 JWK thumbprint in base64url (RFC 7638, RFC 8037); see `proxy.core.jose.keywriting`."""
    canonical = json.dumps(required_members(material), sort_keys=True, separators=(",", ":"))
    return base64url(hashlib.sha256(canonical.encode("ascii")).digest())
