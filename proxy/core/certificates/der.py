"""Finding one's way in DER (X.690), without taking a copy of anything.

Rules of this module:

- Lengths are definite, and every element ends within the one that it is in; tags have one octet. Anything else is no
  DER of a certificate or a key, and a ValueError.
- What is read stays as it stands: what is hashed are the octets that came, never those that an encoder would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE, BOOLEAN, BIT_STRING = 0x30, 0x01, 0x03
_LONGEST_LENGTH = 4  # octets: what they count is longer than anything that is read here


class Element(NamedTuple):
    """One element: its tag's octet, where it begins, and where its contents start and end."""

    tag: int
    at: int
    start: int
    end: int


def element(der: bytes, at: int, limit: int) -> Element:
    """Return the element that begins at a place.

    Args:
        der: what holds it.
        at: where.
        limit: where it must end at the latest.

    Raises:
        ValueError: there is none.
    """
    start = at + 2
    if start > limit:
        raise ValueError("the DER ends within an element")
    length = der[at + 1]
    if length >= 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= _LONGEST_LENGTH:
            raise ValueError("an element's length is not one of DER")
        length = int.from_bytes(der[start : start + octets])
        start += octets
    if der[at] & 0x1F == 0x1F or start + length > limit:
        raise ValueError("the DER ends within an element, or a tag has more than one octet")
    return Element(der[at], at, start, start + length)


def elements(der: bytes, inside: Element) -> Iterator[Element]:
    """Yield the elements inside one.

    Raises:
        ValueError: one of them is none.
    """
    at = inside.start
    while at < inside.end:
        found = element(der, at, inside.end)
        yield found
        at = found.end


def encoded(tag: int, contents: bytes) -> bytes:
    """Return an element.

    Args:
        tag: its tag's octet.
        contents: its contents.
    """
    length = len(contents)
    if length < 0x80:
        return bytes((tag, length)) + contents
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + contents


def to_be_signed(certificate_der: bytes) -> list[Element]:
    """Return the fields of a certificate's TBSCertificate (RFC 5280, section 4.1), without its version.

    In turn: serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, and what is optional behind them.

    Raises:
        ValueError: it is no certificate.
    """
    certificate = element(certificate_der, 0, len(certificate_der))
    fields = list(elements(certificate_der, element(certificate_der, certificate.start, certificate.end)))
    if fields and fields[0].tag == 0xA0:  # [0] version, absent in version 1
        del fields[0]
    if len(fields) < 6:
        raise ValueError("this is not a DER certificate (RFC 5280)")
    return fields
