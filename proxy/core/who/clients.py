"""Who may use the proxy: by address, by name and password (RFC 7617), or both. `addons.admission` asks it about
each app; the policy file's reader parses users with it.

Rules of this module:

- Only hashes of passwords are kept (scrypt, RFC 7914), in the PHC string format that other tools write, too.
- How credentials are checked is in `proxy.core.who.credentials`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.who.addresses import Address, AddressKind, AddressSet, parse_ip

_PHC = re.compile(r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")
_USER = re.compile(r"[^:\x00-\x1f\x7f]{1,64}")
_LN, _R, _P = 14, 8, 1  # 16 MiB and about 40 ms: slow enough to guess, fast enough to check
_MAX_MEMORY = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """A password's hash.

    Attributes:
        ln: the base-2 logarithm of scrypt's cost.
        r: its block size.
        p: its parallelisation.
        salt: at least 8 bytes.
        digest: 32 bytes.
    """

    ln: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        """Tell whether this is the hash of a password; takes equally long in both cases."""
        return hmac.compare_digest(_scrypt(password, self.salt, self.ln, self.r, self.p), self.digest)

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode("ascii").rstrip("=") for part in (self.salt, self.digest))
        return f"$scrypt$ln={self.ln},r={self.r},p={self.p}${salt}${digest}"

    def __repr__(self) -> str:
        return "PasswordHash(<redacted>)"


def _scrypt(password: bytes, salt: bytes, ln: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=1 << ln, r=r, p=p, maxmem=_MAX_MEMORY + 1024 * 1024, dklen=32)


def hash_password(password: str, salt: bytes) -> PasswordHash:
    """Return a password's hash.

    Args:
        password: the password.
        salt: 16 random bytes.
    """
    return PasswordHash(_LN, _R, _P, salt, _scrypt(password.encode("utf-8"), salt, _LN, _R, _P))


def parse_password_hash(text: str) -> PasswordHash:
    """Read a hash in the PHC string format.

    Raises:
        ValueError: the text is no such hash, or is too weak or too costly. The message does not quote it.
    """
    found = _PHC.fullmatch(text)
    if found is None:
        raise ValueError("this is no hash of a password: it looks like $scrypt$ln=14,r=8,p=1$…$…; never the password")
    ln, r, p = (int(number) for number in found.groups()[:3])
    try:
        salt, digest = (base64.b64decode(part + "=" * (-len(part) % 4)) for part in found.groups()[3:])
    except binascii.Error:
        raise ValueError("salt and hash are not base64") from None
    if len(salt) < 8 or len(digest) != 32:
        raise ValueError("the salt has at least 8 bytes, and the hash 32")
    if not 10 <= ln <= 14 or not r >= 1 or p != 1 or 128 * r * (1 << ln) > _MAX_MEMORY:
        raise ValueError("the cost is ln from 10 to 14, p=1, and 16 MiB (128·r·2^ln) at most: others wait meanwhile")
    return PasswordHash(ln, r, p, salt, digest)


@dataclass(frozen=True, slots=True)
class User:
    """A user with a password who may use the proxy."""

    name: str
    password: PasswordHash


def parse_user_name(text: str) -> str:
    """Read a user's name.

    Raises:
        ValueError: Basic credentials cannot carry it.
    """
    if not _USER.fullmatch(text):
        raise ValueError("a user's name has 1 to 64 characters, no colon and no control characters (RFC 7617)")
    return text


LOOPBACK = AddressSet(frozenset((AddressKind.LOOPBACK,)))


@dataclass(frozen=True, slots=True)
class ClientRules:
    """Who may use the proxy.

    Attributes:
        addresses: the addresses that an app may connect from; None for any.
        users: the users whose credentials are accepted; empty if none are needed.
    """

    addresses: AddressSet | None = LOOPBACK
    users: tuple[User, ...] = ()

    def admits(self, address: Address) -> bool:
        """Tell whether an app may connect from an address."""
        return self.addresses is None or self.addresses.holds(address)


def may_ask(scrapers: AddressSet, client: str) -> bool:
    """Tell whether a client may use the admin listener: clients on this machine may, others as the policy says.

    Args:
        scrapers: the clients on other machines that the policy allows.
        client: the client's address, as the system gives it.
    """
    address = parse_ip(client)
    return LOOPBACK.holds(address) or scrapers.holds(address)


def check_client(rules: ClientRules, client: str, *, is_at_mirror: bool = False) -> None:
    """Check that an app, or a peer of a mirror, may connect from its address.

    Args:
        rules: the client rules of the policy, or of the mirror listener.
        client: the address, as the system gives it.
        is_at_mirror: whether it came to a mirror listener.

    Raises:
        Denied: CLIENT_FORBIDDEN.
    """
    if rules.admits(parse_ip(client)):
        return
    if is_at_mirror:
        raise Denied(
            Reason.CLIENT_FORBIDDEN,
            f"the mirror listener lets nobody at {client} connect",
            "add the address or network of whoever calls the server to the listener's `from`",
        )
    raise Denied(
        Reason.CLIENT_FORBIDDEN,
        f"the policy lets no app at {client} use the proxy",
    )
