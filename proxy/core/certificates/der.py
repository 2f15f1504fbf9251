"""Reads DER (X.690): finds elements and their positions, without copying them. The pins and the check of a
certificate's form call it.

Rules of this module:

- Lengths are definite, each element ends within the one around it, and tags have one octet. Anything else is no DER of
  a certificate or a key, and raises ValueError.
- Nothing is re-encoded: callers hash the octets that came, never those that an encoder would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE, BOOLEAN, BIT_STRING = 0x30, 0x01, 0x03
_LONGEST_LENGTH = 4  # octets: enough to count more than anything that is read here


class Element(NamedTuple):
    """One element: its tag, the position where it begins, and where its contents start and end."""

    tag: int
    at: int
    start: int
    end: int


def element(der: bytes, at: int, limit: int) -> Element:
    """Return the element that begins at a position.

    Args:
        der: the octets that hold it.
        at: its position.
        limit: the position by which it must end.

    Raises:
        ValueError: there is no element.
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
    """Yield the elements inside another one.

    Raises:
        ValueError: the contents are not a sequence of elements.
    """
    at = inside.start
    while at < inside.end:
        found = element(der, at, inside.end)
        yield found
        at = found.end


def encoded(tag: int, contents: bytes) -> bytes:
    """Return a new element as octets.

    Args:
        tag: its tag.
        contents: its contents.
    """
    length = len(contents)
    if length < 0x80:
        return bytes((tag, length)) + contents
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + contents


def to_be_signed(certificate_der: bytes) -> list[Element]:
    """Return the fields of a certificate's TBSCertificate (RFC 5280, section 4.1), without its version.

    In this order: serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, and then optional fields.

    Raises:
        ValueError: the octets are no certificate.
    """
    certificate = element(certificate_der, 0, len(certificate_der))
    fields = list(elements(certificate_der, element(certificate_der, certificate.start, certificate.end)))
    if fields and fields[0].tag == 0xA0:  # [0] version, absent in version 1
        del fields[0]
    if len(fields) < 6:
        raise ValueError("this is not a DER certificate (RFC 5280)")
    return fields
