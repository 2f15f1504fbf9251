"""Keys for encrypted values: reads, checks, makes and names them. The policy file's reader makes the key sets of a
policy with it; the commands `overcoat keys` and `overcoat demo` make keys, and write them with
`proxy.core.jose.keywriting`.

Rules of this module:

- A `Key` always fits its algorithm: P-256 or X25519 for ECDH-ES, RSA of at least 2048 bits, exactly 256 symmetric bits.
  Whatever could fail later, at a request, is refused when the key is read.
- No message and no `repr` has key material in it.
- `proxy.core.jose.keyformats` reads the formats; this module adds a name, an algorithm, and the days between which a
  key is good. Days are whole days in UTC.
- A key that is not good yet or no more never seals. It opens from the start, since clocks differ and its tokens prove
  that it is in use; and after its last day for as long as its set's `grace`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from proxy.core.jose.keyformats import is_public, read_material
from proxy.core.jose.keymaterial import (
    MIN_RSA_BITS,
    MIN_RSA_EXPONENT,
    SYMMETRIC_BYTES,
    Alg,
    BadKey,
    Enc,
    Material,
    SecretBytes,
    check_fits,
    check_use,
    public_material,
    thumbprint_of,
)
from proxy.core.jose.profiles import Form, Profile, fingerprint, form_of

__all__ = [
    "Alg",
    "BadKey",
    "Bind",
    "Enc",
    "Key",
    "KeySet",
    "NoKey",
    "SecretBytes",
    "Supply",
    "alg_for",
    "is_public",
    "load_key",
    "new_key",
]

NEW_RSA_BITS = 3072
MAX_KID_LENGTH = 256
_LATEST = 253_370_764_800  # the year 9999, which is the last that a date can have


class Bind(StrEnum):
    """How strictly the place in the `cty` of a sealed value must agree with the one that it is opened at."""

    PLACE = "place"  # the same host and the same path
    HOST = "host"  # the same host
    NONE = "none"  # anywhere


class NoKey(Exception):
    """There is no key to seal with today. The message says why, the hint what to do; neither has key material.

    Attributes:
        hint: what to do about it.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """One key, with its name and its use. Private and symmetric material is compared by identity.

    Attributes:
        kid: the name that tokens carry, 1 to 256 printable characters.
        alg: the one algorithm that it is used with.
        material: a public or private key, or 32 secret bytes.
        not_after: the last day on which it seals, or None.
        not_before: the first day on which it seals, or None.
        made: when it was made, if it says so.
        source: where it comes from, for people.

    Raises:
        BadKey: the material does not fit the algorithm, or the kid is no usable name.
    """

    kid: str
    alg: Alg
    material: Material
    not_after: date | None = None
    not_before: date | None = None
    made: datetime | None = field(default=None, compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.kid or len(self.kid) > MAX_KID_LENGTH or not self.kid.isprintable():
            raise BadKey(f"the kid must have 1 to {MAX_KID_LENGTH} printable characters")
        if self.not_before is not None and self.not_after is not None and self.not_after < self.not_before:
            raise BadKey(f"the key's last day ({self.not_after}) is before its first ({self.not_before})")
        check_fits(self.alg, self.material)

    @property
    def can_open(self) -> bool:
        """Whether the key decrypts: private and symmetric keys do."""
        return not isinstance(self.material, ec.EllipticCurvePublicKey | X25519PublicKey | rsa.RSAPublicKey)

    @property
    def opening_cost(self) -> float:
        """The time to open a value, as a multiple of the time with an RSA key of 2048 bits; 1 for all other keys."""
        if isinstance(self.material, rsa.RSAPrivateKey):
            return math.pow(self.material.key_size / MIN_RSA_BITS, 2.5)  # measured: between the square and the cube
        return 1.0

    @property
    def is_secret(self) -> bool:
        """Whether the material must be kept secret; so it is for the keys that decrypt."""
        return self.can_open

    def begins_later(self, today: date) -> bool:
        """Tell whether the key's first day is still to come."""
        return self.not_before is not None and today < self.not_before

    def expired(self, today: date) -> bool:
        """Tell whether the key is past its last day; it still seals on that day."""
        return self.not_after is not None and today > self.not_after

    def public(self) -> Key:
        """Return the public half, with the same kid and days.

        Raises:
            BadKey: the key is symmetric.
        """
        return replace(self, material=public_material(self.material))

    def __repr__(self) -> str:
        kind = "secret" if self.is_secret else "public"
        return f"Key(kid={self.kid!r}, alg={self.alg.value!r}, {kind} <redacted>, not_after={self.not_after})"


@dataclass(slots=True, eq=False)
class Supply:
    """Whence the keys of a set come while the sidecar runs, if the policy's files do not hold them: a URL. It is the
    one thing in a policy that changes: the engine fetches the keys and puts each new set here, whole.

    Attributes:
        url: where they are: an https URL with a canonical host.
        host: its host.
        port: its port.
        path: its path, with the query.
        max_age: after how many seconds they are to be fetched again.
        kid: the name of the key that seals; None for the first that fits.
        current: the set that was fetched last; None before the first.
        missed: called when a key was asked for that the set does not have; None where nobody fetches.
    """

    url: str
    host: str
    port: int
    path: str
    max_age: float
    kid: str | None = None
    current: KeySet | None = None
    missed: Callable[[], None] | None = None

    @property
    def shown(self) -> str:
        """The URL for people: without its query, which may be a secret."""
        return self.url.partition("?")[0]


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys for one purpose: one that seals and opens, and others that only open: older ones, and those that are to
    follow.

    Attributes:
        name: its name in the policy.
        alg: the algorithm of all its keys.
        primary: the key that seals; None if the set gets its keys later (`supply`).
        older: keys that only open.
        bind: how strictly sealed values are bound to their place.
        grace: for how many days a key still opens after its last day.
        supply: whence its keys come, if not from the policy's files; what is asked of this set is then asked of the
            one that was fetched last.
        enc: how values are encrypted with the content key.
        profile: whose use of JWE it follows, or None. Then its values are bound to nothing.

    Raises:
        BadKey: a key has another algorithm, or two keys have the same kid.
    """

    name: str
    alg: Alg
    primary: Key | None
    older: tuple[Key, ...] = ()
    bind: Bind = Bind.PLACE
    grace: int = 0
    supply: Supply | None = None
    enc: Enc = Enc.A256GCM
    profile: Profile | None = None

    def __post_init__(self) -> None:
        keys = self._own
        if self.profile is not None and (self.alg is not Alg.RSA_OAEP_256 or self.bind is not Bind.NONE):
            raise BadKey(f"profile {self.profile} is for {Alg.RSA_OAEP_256}, and binds to nothing (bind: none)")
        if self.form.kid_field is not None and not all(key.kid.isascii() for key in keys):
            raise BadKey(f"with profile {self.profile} each kid is a header field's value, so in ASCII")
        for key in keys:
            if key.alg is not self.alg:
                raise BadKey(f"key {key.kid!r} is for {key.alg}; every key of set {self.name!r} must be for {self.alg}")
        if len({key.kid for key in keys}) != len(keys):
            raise BadKey(f"two keys of set {self.name!r} have the same kid; each needs its own")

    @property
    def form(self) -> Form:
        """What its tokens, and what is round them, look like."""
        return form_of(self.profile)

    @property
    def _own(self) -> tuple[Key, ...]:
        return self.older if self.primary is None else (self.primary, *self.older)

    @property
    def now(self) -> KeySet:
        """The set with the keys that it has now: itself, unless it gets them from elsewhere."""
        return self if self.supply is None or self.supply.current is None else self.supply.current

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys that it has now; the one that seals is the first."""
        return self.now._own

    @property
    def can_open(self) -> bool:
        """Whether one of its keys decrypts."""
        return any(key.can_open for key in self.keys)

    @property
    def opening_cost(self) -> float:
        """The opening cost of its slowest key; see `Key`."""
        return max((key.opening_cost for key in self.keys), default=1.0)

    def by_kid(self, kid: str) -> Key | None:
        """Return the key with that name; None if the set has none. Of one that is fetched it may have come since."""
        found = next((key for key in self.keys if key.kid == kid), None)
        if found is None and self.supply is not None and self.supply.missed is not None:
            self.supply.missed()
        return found

    def sealing_key(self, today: date) -> Key:
        """Return the key that seals.

        Raises:
            NoKey: there is none, or it is not good on that day.
        """
        key = self.primary if self.supply is None else self.now.primary
        if key is not None and key.not_after is None and key.not_before is None:
            return key
        if key is None:
            url = self.supply.shown if self.supply is not None else "nowhere"
            raise NoKey(
                f"key set {self.name} has no key yet: none could be fetched from {url}",
                "the log says why; overcoat check tries it once more",
            )
        if key.expired(today):
            raise NoKey(
                f"key {key.kid} of key set {self.name} is past its not_after date",
                f"give key set {self.name} a new primary key",
            )
        if key.begins_later(today):
            raise NoKey(
                f"key {key.kid} of key set {self.name} is not good before {key.not_before}, its not_before date",
                f"make another key the primary of key set {self.name} until then",
            )
        return key

    def last_opening(self, key: Key) -> date | None:
        """Return the last day on which a key of this set opens; None if it has no end."""
        return None if key.not_after is None else _day(key.not_after, self.grace)

    def opens_with(self, key: Key, today: date) -> bool:
        """Tell whether a key of this set may still open what was sealed with it."""
        last = self.last_opening(key)
        return last is None or today <= last


def load_key(
    data: bytes,
    *,
    alg: Alg,
    kid: str | None = None,
    not_after: date | None = None,
    not_before: date | None = None,
    password: bytes | None = None,
    source: str = "",
    profile: Profile | None = None,
) -> Key:
    """Read a key.

    Args:
        data: PEM (SPKI, PKCS#8, SEC 1, PKCS#1, or an X.509 certificate for its public key), PKCS#12, one JWK in JSON
            (RFC 7517, RFC 8037), a JWK Set of which `kid` names one, or the base64 of 32 bytes.
        alg: the algorithm that the key is for.
        kid: its name; it must equal the JWK's kid, if that has one. If neither is given, the RFC 7638 thumbprint is
            used.
        not_after: the last day on which it seals. A JWK may say an earlier one itself (`exp`).
        not_before: the first day on which it seals. A JWK may say a later one itself (`nbf`).
        password: what decrypts PKCS#12 or PEM.
        source: where it comes from, for people.
        profile: the profile of its key set, which may name it in another way.

    Raises:
        BadKey: the key is malformed, does not open with the password, is too weak, or not for this algorithm.
    """
    material, members = read_material(data, kid=kid, password=password)
    key = key_of(material, members, alg=alg, kid=kid, source=source, profile=profile)
    firsts = [day for day in (key.not_before, not_before) if day is not None]
    lasts = [day for day in (key.not_after, not_after) if day is not None]
    return replace(key, not_before=max(firsts, default=None), not_after=min(lasts, default=None))


def key_of(
    material: Material,
    members: Mapping[str, object],
    *,
    alg: Alg,
    kid: str | None = None,
    source: str = "",
    profile: Profile | None = None,
) -> Key:
    """Make a key of what was read.

    Args:
        material: its material.
        members: the members of its JWK: `kid`, `use`, `key_ops` and `alg` are checked; `nbf`, `exp` and `iat` (as in
            OpenID Federation 1.0, section 8.7.2) tell its first and last whole day, and when it was made.
        alg: the algorithm that it is for.
        kid: as for `load_key`.
        source: as for `load_key`.
        profile: as for `load_key`.

    Raises:
        BadKey: as for `load_key`.
    """
    own_kid = check_use(members, alg, material)
    if kid is not None and own_kid is not None and kid != own_kid:
        raise BadKey(f"the JWK's kid is {own_kid!r}, not {kid!r}; name it the same in both places")
    if kid is None:
        check_fits(alg, material)  # a key that does not fit has no thumbprint
        name = fingerprint if profile is Profile.MASTERCARD else thumbprint_of
        kid = own_kid if own_kid is not None else name(material)
    begins, ends, made = (_instant(members, name) for name in ("nbf", "exp", "iat"))
    return Key(
        kid,
        alg,
        material,
        not_after=_day(ends.date(), -1) if ends is not None else None,
        not_before=_day(begins.date(), begins.time() > time.min) if begins is not None else None,
        made=made,
        source=source,
    )


def _day(start: date, days: int) -> date:
    """Return the day so many days later, as far as there are days."""
    return date.fromordinal(min(start.toordinal() + days, date.max.toordinal()))


def _instant(members: Mapping[str, object], name: str) -> datetime | None:
    """Return the time that a member of a JWK says; parts of a second are left out."""
    if name not in members:
        return None
    value = members[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise BadKey(f"the JWK's member {name} must be a time in seconds since 1970 (NumericDate, RFC 7519)")
    return datetime.fromtimestamp(int(value), UTC)


def alg_for(data: bytes, *, kid: str | None = None, password: bytes | None = None) -> Alg:
    """Return the one algorithm that this kind of key is used with.

    Args:
        data: as for `load_key`.
        kid: as for `load_key`.
        password: as for `load_key`.

    Raises:
        BadKey: the key is malformed, or no algorithm here uses its kind.
    """
    material, _ = read_material(data, kid=kid, password=password)
    match material:
        case SecretBytes():
            return Alg.A256KW
        case rsa.RSAPublicKey() | rsa.RSAPrivateKey():
            return Alg.RSA_OAEP_256
        case _:
            return Alg.ECDH_ES_A256KW


def new_key(alg: Alg, *, curve: Literal["P-256", "X25519"] = "P-256", kid: str | None = None) -> Key:
    """Make a new private or symmetric key.

    Args:
        alg: the algorithm that it is for.
        curve: the curve of an ECDH-ES key; ignored for the other algorithms.
        kid: its name; None means its RFC 7638 thumbprint.

    Raises:
        BadKey: the kid is no usable name.
    """
    material: Material
    if alg is Alg.A256KW:
        material = SecretBytes(secrets.token_bytes(SYMMETRIC_BYTES))
    elif alg is Alg.RSA_OAEP_256:
        material = rsa.generate_private_key(public_exponent=MIN_RSA_EXPONENT, key_size=NEW_RSA_BITS)
    elif curve == "X25519":
        material = X25519PrivateKey.generate()
    else:
        material = ec.generate_private_key(ec.SECP256R1())
    return Key(kid if kid is not None else thumbprint_of(material), alg, material)
