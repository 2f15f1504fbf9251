"""Opens compact JWEs (RFC 7516) with the few algorithms that Overcoat allows, and tells what is meant as one.
`proxy.core.fields` calls it for the values of bodies, and `overcoat keys` by hand; `proxy.core.jose.sealing` seals.

Rules of this module:

- The key set decides `alg` and `enc`; the token never does. Nothing is decrypted on trial: `kid` names the key.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from proxy.core.jose import agreement
from proxy.core.jose.encoding import parse_object, unbase64url
from proxy.core.jose.keymaterial import Material, SecretBytes
from proxy.core.jose.keys import Alg, Bind, Key, KeySet
from proxy.core.jose.oaep import RSA_OAEP_256
from proxy.core.jose.place import JSON_TYPES, Place, read_media_type
from proxy.core.jose.profiles import Form

MAX_TOKEN_CHARACTERS = 16 * 1024 * 1024

_TAG_BYTES = 16
_WRAP_BYTES = 8  # RFC 3394 adds one 64-bit block
_BASE64URL_TEXT = re.compile(r"[A-Za-z0-9_-]*+")
_PARAMETERS_REFUSED = ("crit", "zip", "jwk", "jku", "x5u", "x5c")


class JweError(Exception):
    """A value cannot be sealed, or a token is refused. The message quotes neither."""


def open_token(token: str, keys: KeySet, place: Place | None, today: date) -> bytes:
    """Decrypt one token, as if it stood in a body of its own; see `Opening.open`."""
    return Opening(keys, today).open(token, place)


class Opening:
    """Opens the tokens of one body with one key set.

    Tokens that were sealed together share an encrypted content key, which is decrypted once.

    Attributes:
        last: the key of the token that was opened last.
    """

    def __init__(self, keys: KeySet, today: date, spend: Callable[[bool], None] = lambda is_new: None) -> None:
        """Start.

        Args:
            keys: the key set that may open the tokens. One without `kid` is tried with its primary key only.
            today: the current day, for the keys' `not_after`.
            spend: called before each token is decrypted: with True if the content key must be decrypted for it, which
                takes most of the time, and with False if it is known. It raises where that is too much.
        """
        self._keys = keys
        self._today = today
        self._spend = spend
        self._content_keys: dict[tuple[str, bytes, str], bytes | None] = {}
        self.last: Key | None = None

    def open(self, token: str, place: Place | None) -> bytes:
        """Decrypt a token.

        Args:
            token: a compact JWE.
            place: where the token stands; compared with its `cty` as the key set's `bind` says. None compares nothing.

        Returns:
            The plaintext.

        Raises:
            JweError: the token is malformed, uses anything that is not allowed, names no usable key, was sealed for
                another place, or does not decrypt.
        """
        parts = _split(token, self._keys.form)
        header, key = self._read(parts, place)
        if not key.can_open:
            raise JweError("the key of this token is a public one, which cannot open it")
        plaintext = self._decrypt(parts, header, key)
        self.last = key
        return plaintext

    def has_sealed(self, token: str, place: Place) -> bool:
        """Tell whether a text is a token that was sealed with this key set for this place: it opens here; or, where
        only the public half of its key is here, its header names key and place.
        """
        try:
            parts = _split(token, self._keys.form)
            header, key = self._read(parts, place)
            if "kid" not in header or len(parts.wrapped) != _wrapped_bytes(key, self._keys):
                return False
            if key.can_open:
                self._decrypt(parts, header, key)
            elif self._keys.alg is Alg.ECDH_ES_A256KW:
                return agreement.is_offer(key.material, header)
        except JweError:
            return False
        return True

    def _read(self, parts: _Parts, place: Place | None) -> tuple[Mapping[str, object], Key]:
        """Check all of a token that takes no key; return its header, and the key that it names."""
        header = _read_header(parts.protected, self._keys)
        lengths = self._keys.form.iv_bytes
        if len(parts.iv) not in lengths or len(parts.tag) != _TAG_BYTES:
            ivs = " or ".join(map(str, sorted(lengths)))
            raise JweError(f"{self._keys.enc} has an IV of {ivs} bytes and a tag of {_TAG_BYTES}")
        key = _choose_key(header, self._keys, self._today)
        _check_type(header, self._keys.bind, place)
        return header, key

    def _decrypt(self, parts: _Parts, header: Mapping[str, object], key: Key) -> bytes:
        content_key = self._content_key(parts.wrapped, header, key)
        # Made even if it is not needed, so that failure and success take the same steps.
        spare = secrets.token_bytes(self._keys.enc.key_bytes)
        if content_key is None or len(content_key) != len(spare):
            content_key = spare
        try:
            return AESGCM(content_key).decrypt(parts.iv, parts.ciphertext + parts.tag, parts.protected.encode("ascii"))
        except InvalidTag:
            # One answer for both: which step failed is nobody's business (RFC 7516, section 11.5).
            raise JweError(f"key {key.kid} of this set does not open it, or it was changed on the way") from None

    def _content_key(self, wrapped: bytes, header: Mapping[str, object], key: Key) -> bytes | None:
        """Return the content key, decrypted or remembered; None if it cannot be decrypted."""
        agreed = {name: header[name] for name in agreement.PARAMETERS if name in header}
        known = key.kid, wrapped, json.dumps(agreed, sort_keys=True)
        is_new = known not in self._content_keys
        self._spend(is_new)
        if is_new:
            self._content_keys[known] = _unwrap(wrapped, key.material, header, self._keys)
        return self._content_keys[known]


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


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a compact JWE, decoded but for the first."""

    protected: str
    wrapped: bytes
    iv: bytes
    ciphertext: bytes
    tag: bytes


def _unwrap(wrapped: bytes, material: Material, header: Mapping[str, object], keys: KeySet) -> bytes | None:
    """Decrypt the content key; None if that fails."""
    if isinstance(material, rsa.RSAPrivateKey):
        try:
            return material.decrypt(wrapped, RSA_OAEP_256)
        except ValueError:
            return None
    if isinstance(material, SecretBytes):
        wrapping_key: bytes | None = material.reveal()
    else:
        try:
            wrapping_key = agreement.accept(material, header)
        except agreement.BadAgreement as problem:
            raise JweError(str(problem)) from None
    # The length is checked first: unwrapping takes time in proportion to it.
    if wrapping_key is None or len(wrapped) != keys.enc.key_bytes + _WRAP_BYTES:
        return None
    try:
        return aes_key_unwrap(wrapping_key, wrapped)
    except InvalidUnwrap:
        return None


def _wrapped_bytes(key: Key, keys: KeySet) -> int:
    """Return how long a content key is that was encrypted for a key."""
    if isinstance(key.material, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return (key.material.key_size + 7) // 8
    return keys.enc.key_bytes + _WRAP_BYTES


def _split(token: str, form: Form) -> _Parts:
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise JweError(f"the token has more than {MAX_TOKEN_CHARACTERS} characters")
    parts = token.split(".", 5)
    if len(parts) != 5:
        raise JweError("a compact JWE has five parts, with a dot between each")
    if form.has_slashes:
        parts[1:] = (part.replace("/", "_") for part in parts[1:])
    try:
        return _Parts(parts[0], *map(unbase64url, parts[1:]))
    except ValueError:
        raise JweError("the parts of a compact JWE are canonical base64url without padding") from None


def _read_header(protected: str, keys: KeySet) -> Mapping[str, object]:
    try:
        header = parse_object(unbase64url(protected))
    except ValueError:
        raise JweError("the protected header is not a JSON object with unique names in canonical base64url") from None
    for name in _PARAMETERS_REFUSED:
        if name in header:
            raise JweError(f"header parameter {name}: not allowed here")
    for name, expected in (("alg", keys.alg.value), ("enc", keys.enc.value)):
        if header.get(name) != expected:
            raise JweError(f"header parameter {name}: must be {expected} for this key set")
    if keys.alg is not Alg.ECDH_ES_A256KW and agreement.PARAMETERS & header.keys():
        raise JweError(f"header parameters epk, apu and apv: have no meaning with {keys.alg}")
    for name in ("kid", "cty", "typ"):
        if not isinstance(header.get(name, ""), str):
            raise JweError(f"header parameter {name}: must be a string")
    return header


def _choose_key(header: Mapping[str, object], keys: KeySet, today: date) -> Key:
    kid = header.get("kid")
    key = keys.by_kid(kid) if isinstance(kid, str) else keys.now.primary
    if key is None:
        raise JweError("header parameter kid: names none of the keys of this set")
    if not keys.opens_with(key, today):
        raise JweError("the key of this token is past its not_after date")
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
        # One answer, whatever was moved: `overcoat keys open` tells the owner of the key which.
        raise JweError("header parameter cty: it was sealed for another place, a field or host that is not this one")
