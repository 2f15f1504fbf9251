"""Android's configuration: inheritance, exceptions and last days as Android has them, and XML that does no harm."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pinimport.android import read_android
from proxy.core.pinimport.rules import Imported
from proxy.core.pinimport.xmltext import MOST_DEPTH, MOST_ELEMENTS

DIGEST = base64.b64encode(hashlib.sha256(b"a").digest()).decode()
PIN = f'<pin digest="SHA-256">{DIGEST}</pin>'
OVERRIDES = "<trust-anchors><certificates src='user' overridePins='true'/></trust-anchors>"


def read(inside: str) -> Imported:
    return read_android(f"<network-security-config>{inside}</network-security-config>".encode())


def config(domain: str, inside: str, subdomains: str = "false") -> str:
    return f'<domain-config><domain includeSubdomains="{subdomains}">{domain}</domain>{inside}</domain-config>'


def shape(imported: Imported) -> list[tuple[str, int]]:
    return [(" ".join(map(str, rule.hosts)), len(rule.pins)) for rule in imported.rules]


def test_the_most_specific_comes_first_whatever_the_order() -> None:
    pins = f"<pin-set>{PIN}</pin-set>"
    found = read(config("x.com", pins, "true") + config("a.x.com", "<pin-set/>", "true") + config("b.a.x.com", pins))
    assert shape(found) == [("b.a.x.com", 1), ("**.a.x.com", 0), ("**.x.com", 1)]


def test_what_is_nested_inherits_unless_it_has_its_own() -> None:
    nested = config("a.x.com", "") + config("b.x.com", "<pin-set/>")
    found = read(config("x.com", f'<pin-set expiration="2030-02-01">{PIN}</pin-set>{nested}', "true"))
    assert shape(found) == [("a.x.com", 1), ("b.x.com", 0), ("**.x.com", 1)]
    assert [rule.last_day for rule in found.rules] == [date(2030, 1, 31), None, date(2030, 1, 31)]


def test_hosts_of_one_part_share_a_rule_where_nothing_stands_between() -> None:
    inside = f"<domain>a.com</domain><domain>b.com</domain><pin-set>{PIN}</pin-set>"
    assert shape(read(f"<domain-config>{inside}</domain-config>")) == [("a.com b.com", 1)]


def test_an_exception_from_nothing_is_left_out() -> None:
    assert shape(read(config("a.com", "") + config("b.com", f"<pin-set>{PIN}</pin-set>"))) == [("b.com", 1)]


@pytest.mark.parametrize(
    ("inside", "note"),
    [
        (config("a.com", f"<pin-set>{PIN}</pin-set><pin-set/>"), "line 1: a second pin-set is not read"),
        (config("a.com", "<pin-set><pin digest='SHA-1'>AA</pin></pin-set>"), "these hosts are NOT pinned here"),
        (config("a.com", "<pin-set><pin digest='SHA-256'>AA</pin></pin-set>"), '"AA" is no SHA-256 in base64'),
        (config("a.com", f"<pin-set expiration='soon'>{PIN}</pin-set>"), '"soon" is no day (YYYY-MM-DD)'),
        (config("a b", f"<pin-set>{PIN}</pin-set>"), '"a b" is no host, and not carried over'),
        (config("a.com", f"<pin-set>{PIN}</pin-set><new/>"), 'line 1: "new" is not known, and not carried over'),
        (config("a.com", f"<pin-set>{PIN}</pin-set><certificateTransparency/>"), "certificateTransparency is not"),
        (f"<base-config>{OVERRIDES}</base-config>", 'what "user" has signed is held to the pins here, too'),
        ("<debug-overrides/>", "debug-overrides are not carried over"),
        ("<certificateTransparency/>", '"certificateTransparency" is not known'),
        (config("a.com", f"<pin-set>{PIN}</pin-set>") * 2, "a.com stands there more than once: the first counts"),
        (
            config("a.com", f"<pin-set>{PIN}</pin-set>").replace(
                "<domain-config", "<domain-config cleartextTrafficPermitted='true'", 1
            ),
            "cleartextTrafficPermitted is not carried over",
        ),
        (
            config(
                "a.com",
                f"<pin-set>{PIN}</pin-set>{OVERRIDES}",
            ),
            'what "user" has signed is held to the pins here, too',
        ),
    ],
)
def test_what_could_not_be_carried_over_is_said(inside: str, note: str) -> None:
    found = read(inside)
    assert any(note in each for each in (*found.notes, *(each for rule in found.rules for each in rule.notes)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no well-formed XML"),
        (b"<a/>", 'the root element is "a", not network-security-config'),
        (b"<!DOCTYPE a><a/>", "a document type"),
        (b'<!DOCTYPE a [<!ENTITY b "cc">]><a>&b;</a>', "a document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "a document type"),
        (b"<a>&b;</a>", "no well-formed XML"),
        (b"<a>" * (MOST_DEPTH + 1), "too deep"),
        (b"<a>" + b"<b/>" * MOST_ELEMENTS + b"</a>", "too many elements"),
    ],
)
def test_xml_that_could_do_harm_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_android(data)
    assert told in str(refused.value)


@given(st.text(alphabet="<>/domainpinset- ='\"&;", max_size=200))
def test_no_text_raises_anything_else(text: str) -> None:
    for whole in (text, f"<network-security-config>{text}</network-security-config>"):
        with suppress(ValueError):
            read_android(whole.encode())
