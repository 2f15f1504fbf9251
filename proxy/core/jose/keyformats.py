"""Reads keys in the forms in which files and variables hold them: PEM, PKCS#12, JWK, one key of a JWK Set, and the
base64 of a symmetric key. `proxy.core.jose.keys` calls it and makes a `Key` of what it finds.

Rules of this module:

- The form is told by the first bytes, and none can be taken for another: `{` begins JSON, `-----BEGIN` is in PEM, a
  SEQUENCE with the INTEGER 3 in DER begins PKCS#12, and base64 has none but its own characters.
- A key can be read in one way only. Duplicate members, two keys in one file, two keys of one name in a set, and a
  password for what is not encrypted are refused, never guessed.
- No message has key material or a password in it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import pkcs12

from proxy.core.jose.encoding import parse_object
from proxy.core.jose.keymaterial import (
    SECRET_MEMBERS,
    SYMMETRIC_BYTES,
    BadKey,
    Material,
    SecretBytes,
    material_of_jwk,
)

MOST_IN_A_SET = 64  # keys; more than anybody rotates through
_SHOWN = 8  # names of keys in a message

_PEM_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PUBLIC_PEM = (b"PUBLIC KEY", b"RSA PUBLIC KEY", b"CERTIFICATE")
_PRIVATE_PEM = (b"PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY")
_ENCRYPTED_PEM = b"ENCRYPTED PRIVATE KEY"
_BASE64 = re.compile(rb"([A-Za-z0-9+/]++|[A-Za-z0-9_-]++)(={0,2})")
_SYMMETRIC_CHARACTERS = 43  # of base64, without padding
# A SEQUENCE whose first member is the version 3 (RFC 7292, section 4); no other DER of a key begins so.
_PKCS12 = re.compile(rb"\x30(?:[\x00-\x80]|\x81.|\x82..|\x83...|\x84....)\x02\x01\x03", re.DOTALL)

_NO_KEY = (
    "the key is neither PEM (-----BEGIN …), a JWK or JWK Set (a JSON object), PKCS#12, nor the base64 of 32 bytes for "
    "A256KW"
)


def looks_like_key(data: bytes) -> bool:
    """Tell whether the content of a file has one of the forms that keys have, whether or not it is one."""
    text = data.strip()
    if (found := _BASE64.fullmatch(text)) is not None:
        return len(found[1]) == _SYMMETRIC_CHARACTERS
    return b"-----BEGIN" in data or text[:1] == b"{" or _PKCS12.match(data) is not None


def is_public(data: bytes) -> bool:
    """Tell whether a key file certainly holds nothing secret; a file that cannot be read counts as secret.

    Args:
        data: the content of a key file.
    """
    if data.lstrip()[:1] == b"{":
        try:
            members = parse_object(data)
            each = list(members_of_set(members)) if "keys" in members else [members]
        except ValueError:
            return False
        return all(one.get("kty") in ("EC", "OKP", "RSA") and not SECRET_MEMBERS & one.keys() for one in each)
    labels: list[bytes] = _PEM_BEGIN.findall(data)
    return bool(labels) and all(label in _PUBLIC_PEM for label in labels) and b"PRIVATE" not in data


def read_material(
    data: bytes, *, kid: str | None = None, password: bytes | None = None
) -> tuple[Material, Mapping[str, object]]:
    """Read a key.

    Args:
        data: the content of a key file.
        kid: of a JWK Set, which key is meant.
        password: what decrypts it; None for a key that is not encrypted.

    Returns:
        The material, and the members of its JWK (none for the other forms).

    Raises:
        BadKey: the data has none of the forms, is malformed, does not open with the password, or is a kind of key that
            no algorithm here uses.
    """
    text = data.strip()
    if text[:1] == b"{":
        _refuse_password(password, "a JWK")
        try:
            whole = parse_object(data)
        except ValueError:
            raise BadKey("the JWK is not one JSON object in UTF-8 with unique member names") from None
        members = _member(whole, kid) if "keys" in whole else whole
        return material_of_jwk(members), members
    if b"-----BEGIN " in data:
        return _material_of_pem(data, password), {}
    if _PKCS12.match(data):
        return _material_of_pkcs12(data, password), {}
    if found := _BASE64.fullmatch(text):
        _refuse_password(password, "base64")
        return _symmetric(found[1]), {}
    raise BadKey(_NO_KEY)


def members_of_set(members: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield the keys of a JWK Set as their members (RFC 7517, section 5).

    Args:
        members: the members of the set itself; others than `keys` are ignored.

    Raises:
        BadKey: `keys` is no list of JSON objects, is empty, or has more than `MOST_IN_A_SET`.
    """
    listed = members.get("keys")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BadKey("the member keys of a JWK Set must be a list of JWKs, which are JSON objects")
    if not 1 <= len(listed) <= MOST_IN_A_SET:
        raise BadKey(f"the JWK Set has {len(listed)} keys; it must have 1 to {MOST_IN_A_SET}")
    yield from listed


def _member(members: Mapping[str, object], kid: str | None) -> Mapping[str, object]:
    listed = list(members_of_set(members))
    if kid is None:
        raise BadKey("this is a JWK Set: name one of its keys with kid, or the whole set with `set` in the key set")
    found = [each for each in listed if each.get("kid") == kid]
    if len(found) != 1:
        names = [repr(each["kid"]) for each in listed if isinstance(each.get("kid"), str)]
        more = ", …" if len(names) > _SHOWN else ""
        known = ", ".join(names[:_SHOWN]) + more or "no names"
        raise BadKey(f"the JWK Set has {len(found) or 'no'} key{'s' * (len(found) > 1)} named {kid!r}; it has: {known}")
    return found[0]


def _refuse_password(password: bytes | None, what: str) -> None:
    if password is not None:
        raise BadKey(f"{what} is not encrypted with a password: leave password out")


def _symmetric(text: bytes) -> Material:
    padded = text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4)
    try:
        value = base64.b64decode(padded, validate=True)
    except binascii.Error:
        value = b""
    if base64.b64encode(value) != padded:
        raise BadKey(f"{_NO_KEY}; it might be base64 that was cut short or changed")
    if len(value) != SYMMETRIC_BYTES:
        raise BadKey(
            f"the text is the base64 of {len(value)} bytes; a key for A256KW has exactly {SYMMETRIC_BYTES} "
            f"(openssl rand -base64 {SYMMETRIC_BYTES})"
        )
    return SecretBytes(value)


def _material_of_pem(data: bytes, password: bytes | None) -> Material:
    # `openssl ecparam -genkey` writes the curve's name twice: in a block of its own, and in the key after it.
    begun = [found for found in _PEM_BEGIN.finditer(data) if found[1] != b"EC PARAMETERS"]
    if len(begun) != 1:
        raise BadKey(f"the PEM file begins {len(begun)} keys or certificates; it must have exactly one")
    label: bytes = begun[0][1]
    last_line = b"-----END %s-----" % label
    end = data.find(last_line, begun[0].end())
    if end < 0:
        raise BadKey("the PEM block is cut short: it has no END line of the same type")
    block = data[begun[0].start() : end + len(last_line)]
    is_encrypted = label == _ENCRYPTED_PEM or b"Proc-Type: 4,ENCRYPTED" in block
    if is_encrypted and password is None:
        raise BadKey(
            "the private key is encrypted with a passphrase: say where that comes from with password, or decrypt it "
            "first (openssl pkey -in FILE)"
        )
    if label not in (*_PUBLIC_PEM, *_PRIVATE_PEM, _ENCRYPTED_PEM):
        allowed = ", ".join(name.decode() for name in _PUBLIC_PEM + _PRIVATE_PEM)
        raise BadKey(f"a PEM block of type {label.decode()} is not read here; right would be one of: {allowed}")
    if not is_encrypted:
        _refuse_password(password, "this PEM block")
    try:
        found: object
        if label == b"CERTIFICATE":
            found = x509.load_pem_x509_certificate(block).public_key()
        elif label in _PUBLIC_PEM:
            found = serialization.load_pem_public_key(block)
        else:
            found = serialization.load_pem_private_key(block, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if is_encrypted:
            raise BadKey("the private key does not open with this password, or is damaged") from None
        raise BadKey(f"the PEM block {label.decode()} is malformed or holds a key that is not valid") from None
    return _usable(found, "the PEM key")


def _material_of_pkcs12(data: bytes, password: bytes | None) -> Material:
    try:
        found = pkcs12.load_pkcs12(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = "it needs one: say where it comes from with password" if password is None else "the password is wrong"
        raise BadKey(f"the PKCS#12 file does not open: {why}, or the file is damaged or no PKCS#12") from None
    if found.key is not None:
        return _usable(found.key, "the key in the PKCS#12 file")
    certificates = [each for each in (found.cert, *found.additional_certs) if each is not None]
    if len(certificates) != 1:
        raise BadKey(f"the PKCS#12 file has no private key and {len(certificates)} certificates; it must have either")
    try:
        public: object = certificates[0].certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("the certificate in the PKCS#12 file holds a key that is not valid") from None
    return _usable(public, "the key of the certificate in the PKCS#12 file")


def _usable(found: object, what: str) -> Material:
    match found:
        case ec.EllipticCurvePublicKey() | X25519PublicKey() | rsa.RSAPublicKey():
            return found
        case ec.EllipticCurvePrivateKey() | X25519PrivateKey() | rsa.RSAPrivateKey():
            return found
        case _:
            raise BadKey(f"{what} is of a kind that cannot encrypt here; right would be P-256, X25519 or RSA")
