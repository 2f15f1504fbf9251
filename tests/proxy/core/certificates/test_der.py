"""DER: what is an element, and what is none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificates.der import Element, element, elements, encoded, to_be_signed


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65_536])
def test_an_element_is_as_long_as_it_says(size: int) -> None:
    der = b"??" + encoded(0x30, bytes(size)) + b"rest"
    found = element(der, 2, len(der))
    assert (found.tag, found.at, found.end - found.start, der[found.end :]) == (0x30, 2, size, b"rest")


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        b"\x30\x01",  # its contents are not there
        b"\x30\x80\x00\x00",  # a length that is not definite (BER)
        b"\x30\x80" + bytes(128),
        b"\x30\x85\x00\x00\x00\x00\x01\x00",  # one of five octets
        b"\x30\x82\x01",  # one that is not whole
        b"\x30\x81\x80" + bytes(127),
        b"\x1f\x01\x00",  # a tag of more than one octet
    ],
)
def test_what_is_no_element_is_refused(der: bytes) -> None:
    with pytest.raises(ValueError, match=r"DER|length"):
        element(der, 0, len(der))


def test_an_element_ends_within_the_one_that_it_is_in() -> None:
    inner = encoded(0x02, b"123")
    outer = encoded(0x30, inner + inner)
    assert [each.at for each in elements(outer, element(outer, 0, len(outer)))] == [2, 7]
    with pytest.raises(ValueError, match="within an element"):
        list(elements(outer, Element(0x30, 0, 2, 10)))


@pytest.mark.parametrize("version", [b"", encoded(0xA0, b"\x02\x01\x02")])
def test_the_fields_of_a_certificate_are_counted_without_its_version(version: bytes) -> None:
    fields = b"".join(encoded(0x30, bytes([number])) for number in range(6))
    der = encoded(0x30, encoded(0x30, version + fields) + b"signature")
    assert [der[each.start] for each in to_be_signed(der)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", [0, 5])
def test_what_has_too_few_fields_is_no_certificate(count: int) -> None:
    der = encoded(0x30, encoded(0x30, encoded(0x30, b"") * count))
    with pytest.raises(ValueError, match="not a DER certificate"):
        to_be_signed(der)


@given(st.binary(max_size=200))
def test_nothing_else_is_raised_whatever_the_bytes(der: bytes) -> None:
    with contextlib.suppress(ValueError):
        to_be_signed(der)
