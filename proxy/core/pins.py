"""Certificate pins: reads them, computes them, and checks a server's verified chain against them. The policy file's
reader calls `parse_pin`; `addons.verification` calls `check_pins` in the TLS handshake; `overcoat pins` prints
pins, and calls `check_pins` for what it has fetched.

Rules of this module:

- A pin is SHA-256 over the DER SubjectPublicKeyInfo (RFC 7469, section 2.4) or, as `cert-sha256/`, over a whole
  certificate. No other hash is accepted, and a digest that is not exactly 32 bytes is refused, never padded or cut.
- The SubjectPublicKeyInfo is hashed as it stands in the certificate, not re-encoded: two encoders could disagree.
- Pins past their day vouch for nothing: the verdict is then EXPIRED, whatever the chain. Whether that refuses the
  server is another question, which `PinSet.refuses` answers.
- Which pins stand in the chain is told with their level, so that one that is no longer needed can be seen to be.
- Pins narrow what is trusted. They are checked on the chain that was verified, never on what the server merely sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Literal

from cryptography import x509

from proxy.core.certificates.der import to_be_signed

DIGEST_LENGTH = 32  # bytes of SHA-256
MOST_SHOWN = 20  # certificates of a chain, and pins of a set, that a denial tells
_SHORT = 8  # digits of a pin that tell it apart from the others of a policy: 48 bits, or 32
_BASE64_LENGTH = 44  # characters of its base64, the padding included

_EXPECTED = "a pin is sha256/ and the base64 of the 32-byte SHA-256 of a public key, or cert-sha256/ and hex"
_SPKI_PREFIX = re.compile(r"sha256[/:]")
_HPKP_DIRECTIVE = re.compile(r'pin-sha256="([^"]*)"')
_HEX = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){31}")
_OTHER_HASH = re.compile(r'(?:pin-|cert-)?(md5|sha-?1|sha-?224|sha-?384|sha-?512|sha3-?\d*)(?:[/:="]|$)', re.IGNORECASE)
_FILE = re.compile(r"\.(?:pem|crt|cer)$", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


class PinVerdict(StrEnum):
    """The result of checking a chain against a pin set."""

    MATCH = "match"
    MISMATCH = "mismatch"
    EXPIRED = "expired"


class AfterExpiry(StrEnum):
    """What happens to a server whose pins have ended."""

    ENFORCE = "enforce"  # it is denied
    WARN = "warn"  # any valid certificate is enough, and that is said


class Level(StrEnum):
    """Where in a verified chain a certificate stands."""

    LEAF = "leaf"  # the server's own, also where the chain is nothing else
    INTERMEDIATE = "intermediate"
    ROOT = "root"  # the trusted certificate at which the chain ends


_OF_NOTHING = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin.

    Attributes:
        kind: `spki` (a public key) or `certificate` (a whole certificate).
        digest: the 32 bytes of the SHA-256.
    """

    kind: Literal["spki", "certificate"]
    digest: bytes

    def __str__(self) -> str:
        if self.kind == "certificate":
            return f"cert-sha256/{self.digest.hex()}"
        return f"sha256/{base64.b64encode(self.digest).decode('ascii')}"

    @property
    def short(self) -> str:
        """Its beginning, by which it is found in the policy: eight digits, as a metric's label."""
        prefix, _, digits = str(self).partition("/")
        return f"{prefix}/{digits[:_SHORT]}"


@dataclass(frozen=True, slots=True)
class PinSet:
    """The pins of a rule, one of which must be in the verified chain.

    Attributes:
        any_of: the pins.
        expires: the last day (UTC) on which they count, or None for no end.
        after_expiry: what happens after that day.
        observes: whether they are only observed: what they would refuse is reported, and passes.
    """

    any_of: tuple[Pin, ...]
    expires: date | None = None
    after_expiry: AfterExpiry = AfterExpiry.ENFORCE
    observes: bool = False

    def have_ended(self, today: date) -> bool:
        """Tell whether their last day has passed."""
        return self.expires is not None and today > self.expires

    def have_run_out(self, today: date) -> bool:
        """Tell whether their last day has passed, and nothing may pass any more."""
        return self.have_ended(today) and self.refuses(PinVerdict.EXPIRED)

    def refuses(self, verdict: PinVerdict) -> bool:
        """Tell whether a server with this verdict gets nothing."""
        if verdict is PinVerdict.MATCH or self.observes:
            return False
        return verdict is PinVerdict.MISMATCH or self.after_expiry is AfterExpiry.ENFORCE


@dataclass(frozen=True, slots=True)
class PinMatch:
    """A pin that stands in a verified chain.

    Attributes:
        pin: the pin.
        level: at which level.
    """

    pin: Pin
    level: Level


@dataclass(frozen=True, slots=True)
class PinCheck:
    """What came of checking a chain.

    Attributes:
        verdict: the verdict.
        matches: the pins that stand in the chain, from leaf to root; also where they have ended.
    """

    verdict: PinVerdict
    matches: tuple[PinMatch, ...] = ()


def parse_pin(text: str) -> Pin:
    """Read a pin in any of its common spellings.

    Args:
        text: `sha256/BASE64`, `sha256:BASE64`, `sha256//BASE64` (curl), `pin-sha256="BASE64"` (RFC 7469), or
            `cert-sha256/HEX` with or without colons.

    Raises:
        ValueError: the text is none of these. The message says what would be right; it may quote pins: they are public.
    """
    directive = _HPKP_DIRECTIVE.fullmatch(text)
    if directive:
        return Pin("spki", _digest_of_base64(directive[1]))
    if text.startswith("cert-sha256/"):
        return Pin("certificate", _digest_of_hex(text.removeprefix("cert-sha256/")))
    prefix = _SPKI_PREFIX.match(text)
    if prefix:
        digits = text[prefix.end() :]
        if prefix[0] == "sha256/" and len(digits) != _BASE64_LENGTH:  # '/' is base64, too: "sha256//AAA…=" may be a pin
            digits = digits.removeprefix("/")
        return Pin("spki", _digest_of_base64(digits))
    other = _OTHER_HASH.match(text)
    if other:
        raise ValueError(f"{other[1]} is not accepted: only SHA-256 is; {_EXPECTED}")
    if _HEX.fullmatch(text):
        _digest_of_hex(text)
        raise ValueError(f"the kind is missing: for the fingerprint of a whole certificate write cert-sha256/{text}")
    if len(text) == _BASE64_LENGTH and _BASE64.fullmatch(text):
        _digest_of_base64(text)
        raise ValueError(f"the kind is missing: for the hash of a public key write sha256/{text}")
    if _FILE.search(text):
        raise ValueError(f"{_EXPECTED}; for the key of a certificate in a file write {{file: {text}}}")
    raise ValueError(f"{_EXPECTED}; this is neither")


def _digest_of_base64(text: str) -> bytes:
    if _HEX.fullmatch(text):
        as_base64 = base64.b64encode(_digest_of_hex(text)).decode("ascii")
        raise ValueError(
            f"the digest is hex: for the fingerprint of a whole certificate write cert-sha256/{text.lower()}, "
            f"for the hash of a public key sha256/{as_base64}"
        )
    if not text:
        raise ValueError(f"the digest is missing; {_EXPECTED}")
    plain = text.replace("-", "+").replace("_", "/")
    if plain != text and _BASE64.fullmatch(plain):
        _digest_of_base64(plain)
        raise ValueError(f"the digest is base64url: write {plain} (RFC 4648, section 4)")
    if not _BASE64.fullmatch(text):
        raise ValueError(f"the digest is not base64; {_EXPECTED}")
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
        hint = f"; {_EXPECTED}"
        if len(padded) == _BASE64_LENGTH:
            _digest_of_base64(padded)
            hint = f": write {padded}"
        raise ValueError(f"the digest's base64 is cut short or not padded as it must be{hint}") from None
    if len(digest) != DIGEST_LENGTH:
        raise ValueError(f"the digest has {len(digest)} bytes, not {DIGEST_LENGTH}; {_EXPECTED}")
    _check_digest(digest)
    canonical = base64.b64encode(digest).decode("ascii")
    if canonical != text:
        raise ValueError(f"the digest's base64 has stray bits at its end (RFC 4648, section 3.5): write {canonical}")
    return digest


def _check_digest(digest: bytes) -> None:
    """Refuse a digest that belongs to no key or certificate; called before a message shows how else to write it."""
    if digest == _OF_NOTHING:
        raise ValueError("this is the digest of no bytes at all: the command that made it was given nothing to read")
    if len(set(digest)) == 1:
        raise ValueError(f"this digest is one byte {DIGEST_LENGTH} times over, which stands for a pin and is none")


def _digest_of_hex(text: str) -> bytes:
    if _HEX.fullmatch(text):
        digest = bytes.fromhex(text.replace(":", ""))
        _check_digest(digest)
        return digest
    raise ValueError("cert-sha256/ is followed by 64 hex digits, or by 32 pairs of them with colons between")


def spki_pin(certificate_der: bytes) -> Pin:
    """Return the pin of a certificate's public key (RFC 7469, section 2.4).

    Raises:
        ValueError: the bytes are not one DER certificate (RFC 5280).
    """
    _require_certificate(certificate_der)
    return pin_of_public_key_info(_subject_public_key_info(certificate_der))


def pin_of_public_key_info(der: bytes) -> Pin:
    """Return the pin of a SubjectPublicKeyInfo (RFC 5280, section 4.1) without parsing it."""
    return Pin("spki", hashlib.sha256(der).digest())


def certificate_pin(certificate_der: bytes) -> Pin:
    """Return the pin of a whole certificate, the same that `openssl x509 -fingerprint -sha256` prints.

    Raises:
        ValueError: the bytes are not one DER certificate (RFC 5280).
    """
    _require_certificate(certificate_der)
    return Pin("certificate", hashlib.sha256(certificate_der).digest())


def _require_certificate(certificate_der: bytes) -> None:
    try:
        x509.load_der_x509_certificate(certificate_der)
    except (ValueError, x509.InvalidVersion):
        raise ValueError("this is not a DER certificate (RFC 5280)") from None


def _subject_public_key_info(certificate_der: bytes) -> bytes:
    """Cut the SubjectPublicKeyInfo out of a certificate.

    Raises:
        ValueError: it is no certificate.
    """
    found = to_be_signed(certificate_der)[5]
    return certificate_der[found.at : found.end]


def matching_pins(pins: PinSet, certificate_der: bytes) -> tuple[Pin, ...]:
    """Return those pins of a set that a certificate matches: by its key, by itself, or by both.

    Bytes that are no certificate match none.
    """
    try:
        found = {spki_pin(certificate_der), certificate_pin(certificate_der)}
    except ValueError:
        return ()
    return tuple(pin for pin in pins.any_of if pin in found)


def level_of(depth: int, length: int) -> Level:
    """Return the level of a certificate.

    Args:
        depth: how many certificates stand before it; 0 is the server's own.
        length: how many certificates the chain has.
    """
    return Level.LEAF if depth == 0 else Level.ROOT if depth == length - 1 else Level.INTERMEDIATE


def check_pins(pins: PinSet, verified_chain: Sequence[bytes], today: date) -> PinCheck:
    """Check a verified chain against pins.

    Args:
        pins: the rule's pins.
        verified_chain: the DER certificates that verification accepted, from leaf to root.
        today: the current day in UTC; pins still count on the day `expires` itself.

    Returns:
        The verdict and the pins that were found. The verdict is EXPIRED after the pins' last day, whatever the chain;
        MATCH if any certificate has one of the pins; otherwise MISMATCH, also for an empty chain and for certificates
        that cannot be read.
    """
    length = len(verified_chain)
    matches = tuple(
        PinMatch(pin, level_of(depth, length))
        for depth, certificate_der in enumerate(verified_chain)
        for pin in matching_pins(pins, certificate_der)
    )
    if pins.have_ended(today):
        return PinCheck(PinVerdict.EXPIRED, matches)
    return PinCheck(PinVerdict.MATCH if matches else PinVerdict.MISMATCH, matches)


def mismatch_facts(pins: PinSet, verified_chain: Sequence[bytes]) -> dict[str, object]:
    """Return the pins that a chain has at each level, and those that are wanted, as plain values for programs.

    At most `MOST_SHOWN` certificates and pins are among them. Whole certificates are told only where the set has pins
    of that kind.
    """
    kinds = {pin.kind for pin in pins.any_of}
    length = len(verified_chain)
    seen: list[dict[str, str]] = []
    for depth, der in enumerate(verified_chain[:MOST_SHOWN]):
        try:
            found = {"level": level_of(depth, length).value, "pin": str(spki_pin(der))}
            if "certificate" in kinds:
                found["certificate_pin"] = str(certificate_pin(der))
        except ValueError:
            continue
        seen.append(found)
    return {"pins_seen": seen, "pins_wanted": [str(pin) for pin in pins.any_of[:MOST_SHOWN]]}
