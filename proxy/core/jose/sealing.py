"""Seals values as compact JWEs (RFC 7516), body by body. `proxy.core.fields` calls it for the values of bodies, and
`overcoat keys` for one by hand.

Rules of this module:

- The values of one body that are sealed with one key set share one content key, one encrypted content key and, with
  key agreement, one ephemeral key. No two bodies share a content key.
- Each body has an ephemeral key of its own, up to `_AGREEMENTS` bodies a second. Agreeing takes several times as long
  as all else; where more bodies come, those of the next few milliseconds share the last agreement.
- Each value has a random IV of 96 bits of its own. Below one content key there are at most as many values as one body
  may have, some thousand; NIST SP 800-38D, section 8.3, allows 2^32.
- `alg`, `enc` and the form of the header are those of the key set.
- No message quotes a value.
"""

from __future__ import annotations

import json
import secrets
from binascii import b2a_base64
from struct import Struct

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy import timelimits
from proxy.core.jose.agreement import offer
from proxy.core.jose.encoding import LEFT_OUT, TO_URL
from proxy.core.jose.jwe import MAX_TOKEN_CHARACTERS, JweError
from proxy.core.jose.keymaterial import SecretBytes, public_material
from proxy.core.jose.keys import Key, KeySet
from proxy.core.jose.keywrap import wrap, wrap_all
from proxy.core.jose.oaep import RSA_OAEP_256
from proxy.core.jose.place import Place

_TAG_BYTES = 16
_AGREEMENTS = 100  # a second, and at once: two hundredths of a processor's time, with the wraps behind them
_REMEMBERED = 64  # places; the same come again and again
_STOCK = 64  # content keys at most that are made and wrapped in one go, which takes as long as for four; and IVs
_IVS = Struct("12s" * _STOCK)
_MANY = 32  # the first time that there are several: it takes a third less, and most may never be used


class Sealing:
    """Seals the values of one body with one key set. It is made by `Sealers.sealing`, and forgotten with the body."""

    __slots__ = ("__weakref__", "_encrypt", "_kept", "_protected", "_tail", "_wrapped")

    def __init__(self, kept: _Kept, now: float) -> None:
        self._kept = kept
        content_key, wrapped, self._tail = kept.content_key(now)
        self._wrapped = (b".%b." % b2a_base64(wrapped)).translate(TO_URL, LEFT_OUT)
        self._encrypt = AESGCM(content_key).encrypt
        self._protected = kept.protected if self._tail == kept.tail else {}

    @classmethod
    def alone(cls, keys: KeySet, key: Key, now: float = 0.0) -> Sealing:
        """Return what seals the values of a body that is the only one; see `Sealers.sealing`."""
        return cls(_Kept(keys, key, now), now)

    def seal(self, plaintext: bytes, place: Place | None) -> str:
        """Encrypt a value; see `token`."""
        return self.token(plaintext, place).decode("ascii")

    def token(self, plaintext: bytes, place: Place | None) -> bytes:
        """Encrypt a value.

        Args:
            plaintext: the value's JSON bytes.
            place: the host and path that the token is bound to; with None, its `cty` is `json`, without a place. A
                key set with a profile binds to none.

        Returns:
            A compact JWE (RFC 7516, section 7.1), in ASCII.

        Raises:
            JweError: the token would be longer than `open_token` accepts.
        """
        protected = self._protected.get(place) or self._protect(place)
        ivs = self._kept.ivs
        iv = ivs.pop() if ivs else self._kept.more_ivs()
        sealed = self._encrypt(iv, plaintext, protected)
        parts = b"%b.%b.%b" % (b2a_base64(iv), b2a_base64(sealed[:-_TAG_BYTES]), b2a_base64(sealed[-_TAG_BYTES:]))
        token = protected + self._wrapped + parts.translate(TO_URL, LEFT_OUT)
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise JweError(f"the sealed value would have more than {MAX_TOKEN_CHARACTERS} characters")
        return token

    def _protect(self, place: Place | None) -> bytes:
        """Return the protected header for a place as it stands in the token, which is what is authenticated."""
        protected = b2a_base64(self._kept.head(place) + self._tail).translate(TO_URL, LEFT_OUT)
        if len(self._protected) < _REMEMBERED:
            self._protected[place] = protected
        return protected


class Sealers:
    """What sealing keeps between bodies, for each key: the beginnings of headers, and content keys wrapped in
    advance. What was not used for `SEALER_SECONDS` is forgotten, so that nothing stays of a policy that is gone.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], _Kept] = {}

    def sealing(self, keys: KeySet, key: Key, now: float) -> Sealing:
        """Return what seals the values of one body.

        Args:
            keys: a key set of the policy.
            key: its key that seals today (`KeySet.sealing_key`). Both are compared by identity.
            now: seconds since 1970.
        """
        name = id(keys), id(key)
        kept = self._kept.get(name)
        if kept is None or not 0 <= now - kept.used < timelimits.SEALER_SECONDS:
            # Forget what is old, and the secrets in it.
            fresh = (each for each in self._kept.values() if 0 <= now - each.used < timelimits.SEALER_SECONDS)
            self._kept = {(id(each.keys), id(each.key)): each for each in fresh}
            kept = self._kept[name] = _Kept(keys, key, now)
        return Sealing(kept, now)


def seal(plaintext: bytes, keys: KeySet, place: Place | None, key: Key | None = None, now: float = 0.0) -> str:
    """Encrypt one value, as if it stood in a body of its own; see `Sealing.seal`.

    Args:
        plaintext: as for `Sealing.seal`.
        keys: the key set.
        place: as for `Sealing.seal`.
        key: its key that seals; None for the first of them.
        now: seconds since 1970.
    """
    return Sealing.alone(keys, key or keys.keys[0], now).seal(plaintext, place)


class _Kept:
    """What is kept for one key.

    Attributes:
        keys: the key set.
        key: its key that seals.
        used: when it was used for the last time.
        tail: the end of each protected header.
        protected: protected headers with that end, by place.
        ivs: random IVs that were never used.
    """

    __slots__ = (
        "_allowed",
        "_form",
        "_heads",
        "_next_stock",
        "_parameters",
        "_peer",
        "_rsa",
        "_stock",
        "_wrapping_key",
        "ivs",
        "key",
        "keys",
        "protected",
        "tail",
        "used",
    )

    def __init__(self, keys: KeySet, key: Key, now: float) -> None:
        self.keys = keys
        self.key = key
        self.used = now
        self._form = keys.form
        self._parameters = {"alg": keys.alg.value, "enc": keys.enc.value, "kid": key.kid}
        self._heads: dict[Place | None, bytes] = {}
        self._rsa: rsa.RSAPublicKey | None = None
        self._peer: ec.EllipticCurvePublicKey | X25519PublicKey | None = None  # of key agreements
        self._allowed = float(_AGREEMENTS)  # agreements that may be made now
        self._wrapping_key, self.tail = b"", b"}"
        self._stock: list[tuple[bytes, bytes]] = []  # content keys that were wrapped in advance
        self._next_stock = 1
        self.protected: dict[Place | None, bytes] = {}
        self.ivs: list[bytes] = []
        if isinstance(key.material, SecretBytes):
            self._wrapping_key = key.material.reveal()
        elif isinstance(recipient := public_material(key.material), rsa.RSAPublicKey):
            self._rsa = recipient
        else:
            self._peer = recipient

    def head(self, place: Place | None) -> bytes:
        """Return a protected header for a place, without its end: `content_key` returns that."""
        head = self._heads.get(place)
        if head is None:
            members = self._parameters
            if not self._form.has_time:
                members = members | {"cty": self._form.cty or ("json" if place is None else place.media_type)}
            head = json.dumps(members, separators=(",", ":")).encode("ascii").removesuffix(b"}")
            if len(self._heads) < _REMEMBERED:
                self._heads[place] = head
        return head

    def more_ivs(self) -> bytes:
        """Make several IVs in one go, and return one of them."""
        self.ivs = list(_IVS.unpack(secrets.token_bytes(_IVS.size)))
        return self.ivs.pop()

    def content_key(self, now: float) -> tuple[bytes, bytes, bytes]:
        """Return a content key that was never used, the encrypted key for tokens, and the end of their header."""
        before, self.used = self.used, now
        if self._rsa is not None:
            key = secrets.token_bytes(self.keys.enc.key_bytes)
            tail = b',"iat":%d}' % (now * 1000) if self._form.has_time else self.tail
            return key, self._rsa.encrypt(key, RSA_OAEP_256), tail
        if self._peer is not None:
            self._allowed = min(_AGREEMENTS, self._allowed + (now - before) * _AGREEMENTS)
            if self._allowed >= 1:
                self._agree(self._peer)
        if not self._stock:
            self._stock = self._new_stock()
        return *self._stock.pop(), self.tail

    def _agree(self, peer: ec.EllipticCurvePublicKey | X25519PublicKey) -> None:
        """Agree on a new wrapping key."""
        self._allowed -= 1
        epk, self._wrapping_key = offer(peer)
        self.tail, self.protected = b',"epk":%s}' % epk, {}
        # One key, if the next body may have an agreement of its own.
        self._stock, self._next_stock = [], 1 if self._allowed >= 1 else _MANY

    def _new_stock(self) -> list[tuple[bytes, bytes]]:
        """Make several content keys in one go, since each call of AES costs time: more each time."""
        size = self.keys.enc.key_bytes
        noise = secrets.token_bytes(self._next_stock * size)
        self._next_stock = min(_MANY * self._next_stock, _STOCK)
        keys = [noise[at : at + size] for at in range(0, len(noise), size)]
        wrapped = wrap_all(self._wrapping_key, keys) if len(keys) > 1 else [wrap(self._wrapping_key, keys[0])]
        return list(zip(keys, wrapped, strict=True))
