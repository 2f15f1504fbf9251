"""Seals and opens single values as compact JWEs (RFC 7516), with the few algorithms that Overcoat allows.
`proxy.core.fields` calls it for the fields of bodies, and `overcoat keys` by hand.

Rules of this module:

- `enc` is A256GCM. The key set decides `alg`; the token never does.
- Every value has its own content key and its own IV. With key agreement, one agreement (one ephemeral key) serves all
  values of `SEALER_SECONDS`: see `Sealers`.
- A token can be read in one way only: five parts, canonical base64url, a header without duplicate names.
- All cryptographic failures end in the same error, after the same steps: if a content key cannot be recovered, a random
  one is used, and the tag fails (RFC 7516, section 11.5).
- `cty` binds a value to its place: a value that was sealed for one host or field does not open at another.
- Unknown header members are ignored (RFC 7516, section 4). Refused are members that change how a token is read, that
  bring a key along, or that say where one is. The header is authenticated as the octets that came.
- No message quotes a token.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping
from datetime import date

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from proxy import timelimits
from proxy.core.jose.encoding import base64url, parse_object, unbase64url
from proxy.core.jose.keymaterial import Material, PublicMaterial, material_of_jwk, public_material, required_members
from proxy.core.jose.keys import Alg, BadKey, Bind, Key, KeySet, SecretBytes
from proxy.core.jose.keywrap import wrap_all
from proxy.core.jose.place import JSON_TYPES, Place, read_media_type

ENC = "A256GCM"
_REMEMBERED = 64
_STOCK = 64  # content keys that are made and wrapped in one go
MAX_TOKEN_CHARACTERS = 16 * 1024 * 1024

_CEK_BYTES = 32
_IV_BYTES = 12
_TAG_BYTES = 16
_WRAPPED_CEK_BYTES = _CEK_BYTES + 8  # RFC 3394 adds one 64-bit block
_BASE64URL_TEXT = re.compile(r"[A-Za-z0-9_-]*+")
_CANNOT_OPEN = "the token cannot be opened with this key"
_AGREEMENT_PARAMETERS = frozenset({"epk", "apu", "apv"})
_PARAMETERS_REFUSED = ("crit", "zip", "jwk", "jku", "x5u", "x5c")
# RFC 7518, section 4.6.1.1: only coordinates count; descriptive members may be ignored. No private members.
_EPK_MEMBERS = frozenset({"kty", "crv", "x", "y", "kid", "use", "alg", "key_ops"})


class JweError(Exception):
    """A value cannot be sealed, or a token is refused. The message quotes neither."""


class Sealer:
    """Encrypts values for the holder of one key.

    With key agreement, one ephemeral key serves all values: RFC 7518, section 4.6, asks for a new one at each
    agreement, and there is one agreement. Every value still has its own content key and IV.
    """

    def __init__(self, key: Key) -> None:
        """Start.

        Args:
            key: a public, private or symmetric key; the caller has checked that it has not expired.
        """
        self._header: dict[str, object] = {"alg": key.alg.value, "enc": ENC, "kid": key.kid}
        self._agreement: dict[str, object] = {}
        self._protected: dict[Place | None, str] = {}
        self._rsa: rsa.RSAPublicKey | None = None
        self._wrapping_key = b""
        self._stock: list[tuple[bytes, bytes, bytes]] = []
        material = key.material
        if isinstance(material, SecretBytes):
            self._wrapping_key = material.reveal()
        else:
            recipient = public_material(material)
            if isinstance(recipient, rsa.RSAPublicKey):
                self._rsa = recipient
            else:
                epk, self._wrapping_key = _agreement(recipient)
                self._agreement["epk"] = epk

    def seal(self, plaintext: bytes, place: Place | None) -> str:
        """Encrypt a value.

        Args:
            plaintext: the value's exact JSON bytes.
            place: the host and path that the token is bound to; with None, its `cty` is `json`, without a place.

        Returns:
            A compact JWE (RFC 7516, section 7.1).

        Raises:
            JweError: the token would be longer than `open_token` accepts.
        """
        protected = self._protected.get(place) or self._protect(place)
        cek, iv, wrapped = self._content_key()
        sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode("ascii"))
        parts = (wrapped, iv, sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:])
        token = ".".join((protected, *map(base64url, parts)))
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise JweError(f"the sealed value would have more than {MAX_TOKEN_CHARACTERS} characters")
        return token

    def _protect(self, place: Place | None) -> str:
        """Return the protected header for a place, from a cache: the same places come again and again."""
        header = self._header | {"cty": "json" if place is None else place.media_type} | self._agreement
        protected = base64url(json.dumps(header, separators=(",", ":")).encode("ascii"))
        if len(self._protected) < _REMEMBERED:
            self._protected[place] = protected
        return protected

    def _content_key(self) -> tuple[bytes, bytes, bytes]:
        """Return a content key and an IV that were never used, and the encrypted key for the token."""
        if self._rsa is not None:
            cek = secrets.token_bytes(_CEK_BYTES)
            return cek, secrets.token_bytes(_IV_BYTES), self._rsa.encrypt(cek, _oaep())
        if not self._stock:
            self._stock = self._new_stock()
        return self._stock.pop()

    def _new_stock(self) -> list[tuple[bytes, bytes, bytes]]:
        """Make several content keys and IVs in one go: each call for randomness and each call of AES costs time."""
        noise = secrets.token_bytes(_STOCK * (_CEK_BYTES + _IV_BYTES))
        ivs_at = _STOCK * _CEK_BYTES
        ceks = [noise[at : at + _CEK_BYTES] for at in range(0, ivs_at, _CEK_BYTES)]
        ivs = [noise[at : at + _IV_BYTES] for at in range(ivs_at, len(noise), _IV_BYTES)]
        return list(zip(ceks, ivs, wrap_all(self._wrapping_key, ceks), strict=True))


class Sealers:
    """The sealers in use, one for each key.

    Agreeing on a key takes several times as long as sealing a value. So each agreement serves all values that are
    sealed for the key within `SEALER_SECONDS`, as if they stood in one body. Whoever learns the ephemeral key can open
    these values; but for that they must read this process's memory, where the values are, too.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[Key, Sealer, float]] = {}

    def get(self, key: Key, now: float) -> Sealer:
        """Return the sealer for a key.

        Args:
            key: a key of the policy. It is compared by identity: an equal key in another object has its own sealer.
            now: monotonic seconds.
        """
        made = self._made.get(id(key))
        if made is not None and 0 <= now - made[2] < timelimits.SEALER_SECONDS:
            return made[1]
        # Forget the old sealers, and the secrets in them.
        fresh = [made for made in self._made.values() if 0 <= now - made[2] < timelimits.SEALER_SECONDS]
        self._made = {id(made[0]): made for made in fresh}
        sealer = Sealer(key)
        self._made[id(key)] = (key, sealer, now)
        return sealer


def seal(plaintext: bytes, key: Key, place: Place | None) -> str:
    """Encrypt one value, with its own key agreement; see `Sealer`."""
    return Sealer(key).seal(plaintext, place)


def open_token(token: str, keys: KeySet, place: Place | None, today: date) -> bytes:
    """Decrypt a token.

    Args:
        token: a compact JWE.
        keys: the key set that may open it. A token without `kid` is tried with the primary key only.
        place: where the token stands; compared with its `cty` as `keys.bind` says. None compares nothing.
        today: the current day, for the keys' `not_after`.

    Returns:
        The plaintext.

    Raises:
        JweError: the token is malformed, uses anything that is not allowed, names no usable key, was sealed for another
            place, or does not decrypt.
    """
    protected, wrapped, iv, ciphertext, tag = _split(token)
    header = _read_header(protected, keys.alg)
    if len(iv) != _IV_BYTES or len(tag) != _TAG_BYTES:
        raise JweError(f"{ENC} has an IV of {_IV_BYTES} bytes and a tag of {_TAG_BYTES}")
    key = _choose_key(header, keys, today)
    _check_type(header, keys.bind, place)
    # Made even if it is not needed, so that failure and success take the same steps.
    spare = secrets.token_bytes(_CEK_BYTES)
    cek = _unwrap(wrapped, key.material, header)
    if cek is None or len(cek) != _CEK_BYTES:
        cek = spare
    try:
        return AESGCM(cek).decrypt(iv, ciphertext + tag, protected.encode("ascii"))
    except InvalidTag:
        raise JweError(_CANNOT_OPEN) from None


def is_token(text: str) -> bool:
    """Tell whether a text is meant as a compact JWE, complete or not: such a text is opened or refused, never passed
    on.

    Five parts may also come by chance (the name of a host, a version). So such a text must also have a JWE header, or
    an IV and a tag of the right length. A token that was cut off is recognised by its header.
    """
    protected, dot, rest = text.partition(".")
    if not dot or not _BASE64URL_TEXT.fullmatch(protected):
        return False
    parts = rest.split(".", 4)
    whole = protected[:-1] if len(protected) % 4 == 1 else protected  # a single last character is less than a byte
    header = base64.urlsafe_b64decode(whole + "=" * (-len(whole) % 4))
    if len(parts) == 4 and (header.lstrip()[:1] == b"{" or (len(parts[1]), len(parts[3])) == (16, 22)):
        return True
    try:
        return "enc" in parse_object(unbase64url(protected))
    except ValueError:
        return False


def is_json_serialized(value: bytes) -> bool:
    """Tell whether a JSON value is a JWE in JSON serialization (RFC 7516, section 7.2), which is never opened here."""
    if not value.startswith(b"{"):
        return False
    try:
        members = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return "ciphertext" in members and not members.keys().isdisjoint(("protected", "recipients", "encrypted_key"))


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


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


def _agreement(recipient: ec.EllipticCurvePublicKey | X25519PublicKey) -> tuple[dict[str, str], bytes]:
    """Agree on a wrapping key with a fresh ephemeral key; return its public members and the wrapping key."""
    ephemeral: ec.EllipticCurvePrivateKey | X25519PrivateKey
    if isinstance(recipient, X25519PublicKey):
        ephemeral = X25519PrivateKey.generate()
        shared = ephemeral.exchange(recipient)
    else:
        ephemeral = ec.generate_private_key(recipient.curve)
        shared = ephemeral.exchange(ec.ECDH(), recipient)
    return required_members(ephemeral), concat_kdf(shared, Alg.ECDH_ES_A256KW.value, _CEK_BYTES)


def _unwrap(wrapped: bytes, material: Material, header: Mapping[str, object]) -> bytes | None:
    """Decrypt the content key; None if that fails."""
    if isinstance(material, rsa.RSAPrivateKey):
        try:
            return material.decrypt(wrapped, _oaep())
        except ValueError:
            return None
    if isinstance(material, SecretBytes):
        wrapping_key: bytes | None = material.reveal()
    else:
        wrapping_key = _agree(material, header)
    # The length is checked first: unwrapping takes time in proportion to it.
    if wrapping_key is None or len(wrapped) != _WRAPPED_CEK_BYTES:
        return None
    try:
        return aes_key_unwrap(wrapping_key, wrapped)
    except InvalidUnwrap:
        return None


def _agree(material: Material, header: Mapping[str, object]) -> bytes | None:
    """Derive the wrapping key from our private key and the token's ephemeral key; None if they share no secret."""
    ephemeral = _ephemeral_key(header)
    apu, apv = (_party_info(header, name) for name in ("apu", "apv"))
    if isinstance(material, X25519PrivateKey) and isinstance(ephemeral, X25519PublicKey):
        try:
            shared = material.exchange(ephemeral)
        except ValueError:  # all zero, from a point of small order (RFC 7748, section 6.1; RFC 8037, section 3.2.1)
            return None
    elif isinstance(material, ec.EllipticCurvePrivateKey) and isinstance(ephemeral, ec.EllipticCurvePublicKey):
        shared = material.exchange(ec.ECDH(), ephemeral)
    else:
        raise JweError("header parameter epk: not on the curve of the key")
    return concat_kdf(shared, Alg.ECDH_ES_A256KW.value, _CEK_BYTES, apu, apv)


def _ephemeral_key(header: Mapping[str, object]) -> PublicMaterial:
    epk = header.get("epk")
    if not isinstance(epk, dict) or not epk.keys() <= _EPK_MEMBERS:
        raise JweError("header parameter epk: must be a public EC or X25519 key (RFC 7518, section 4.6.1.1)")
    try:
        return public_material(material_of_jwk(epk))
    except BadKey:
        raise JweError("header parameter epk: not a valid public key") from None


def _party_info(header: Mapping[str, object], name: str) -> bytes:
    text = header.get(name, "")
    if not isinstance(text, str):
        raise JweError(f"header parameter {name}: must be a string")
    try:
        return unbase64url(text)
    except ValueError:
        raise JweError(f"header parameter {name}: must be canonical base64url without padding") from None


def _split(token: str) -> tuple[str, bytes, bytes, bytes, bytes]:
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise JweError(f"the token has more than {MAX_TOKEN_CHARACTERS} characters")
    parts = token.split(".", 5)
    if len(parts) != 5:
        raise JweError("a compact JWE has five parts, with a dot between each")
    try:
        wrapped, iv, ciphertext, tag = map(unbase64url, parts[1:])
    except ValueError:
        raise JweError("the parts of a compact JWE are canonical base64url without padding") from None
    return parts[0], wrapped, iv, ciphertext, tag


def _read_header(protected: str, alg: Alg) -> Mapping[str, object]:
    try:
        header = parse_object(unbase64url(protected))
    except ValueError:
        raise JweError("the protected header is not a JSON object with unique names in canonical base64url") from None
    for name in _PARAMETERS_REFUSED:
        if name in header:
            raise JweError(f"header parameter {name}: not allowed here")
    if header.get("alg") != alg.value:
        raise JweError(f"header parameter alg: must be {alg} for this key set")
    if header.get("enc") != ENC:
        raise JweError(f"header parameter enc: must be {ENC}")
    if alg is not Alg.ECDH_ES_A256KW and _AGREEMENT_PARAMETERS & header.keys():
        raise JweError(f"header parameters epk, apu and apv: have no meaning with {alg}")
    for name in ("kid", "cty", "typ"):
        if not isinstance(header.get(name, ""), str):
            raise JweError(f"header parameter {name}: must be a string")
    return header


def _choose_key(header: Mapping[str, object], keys: KeySet, today: date) -> Key:
    kid = header.get("kid")
    key = keys.by_kid(kid) if isinstance(kid, str) else keys.now.primary
    if key is None:
        raise JweError("header parameter kid: names no key of this set")
    if not keys.opens_with(key, today):
        raise JweError("the key of this token is past its not_after date")
    if not key.can_open:
        raise JweError("the key of this token is a public one, which cannot open it")
    return key


def _check_type(header: Mapping[str, object], bind: Bind, place: Place | None) -> None:
    """Check that a token holds JSON, and was sealed for this place; None stands for any place."""
    try:
        media_type, parameters = read_media_type(str(header.get("cty", "json")))
    except ValueError:
        raise JweError("header parameter cty: not a media type with unique parameters") from None
    if media_type not in JSON_TYPES:
        raise JweError("header parameter cty: must be application/json or absent")
    if place is None or bind is Bind.NONE:
        return
    if "host" not in parameters or ("path" not in parameters and bind is Bind.PLACE):
        raise JweError('header parameter cty: must bind the token to its place: application/json;host="…";path="…"')
    if parameters["host"] != place.host or (bind is Bind.PLACE and parameters["path"] != place.path):
        raise JweError("header parameter cty: the token was sealed for another place")
