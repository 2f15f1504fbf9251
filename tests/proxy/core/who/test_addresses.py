"""Which addresses are public, and which kind each other one is of."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.who.addresses import (
    AddressKind,
    AddressSet,
    address_set,
    kind_of,
    network_of,
    parse_addresses,
    parse_ip,
)

KINDS = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "0.1.2.3", "::", "::ffff:127.0.0.1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd12::1", "fec0::1", "::ffff:10.0.0.1"],
    "cgnat": ["100.64.0.1", "100.127.255.255"],
    "link_local": ["169.254.0.1", "fe80::1", "::ffff:169.254.1.1"],
    "metadata": [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "169.254.170.2",
        "fd00:ec2::254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd20:ce::254",
        "64:ff9b::a9fe:a9fe",
    ],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1"],
    "reserved": [
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2001::1",
        "64:ff9b::7f00:1",
        "::ffff:0:7f00:1",
        "::ffff:0:a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "::7f00:2",
        "2002:808:808::1",
        "100::1",
    ],
}
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "169.253.255.255"]
PUBLIC += ["2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "223.255.255.255", "11.0.0.0", "192.167.0.1"]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in KINDS.items() for text in texts])
def test_what_is_not_public_has_a_kind(kind: str, text: str) -> None:
    assert kind_of(ipaddress.ip_address(text)) == kind
    assert AddressSet().forbids(parse_ip(text)) == kind
    assert AddressSet(frozenset({AddressKind(kind)})).forbids(parse_ip(text)) is None
    assert AddressSet(frozenset(AddressKind) - {AddressKind(kind)}).forbids(parse_ip(text)) == kind


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public_has_none(text: str) -> None:
    assert kind_of(ipaddress.ip_address(text)) is None
    assert AddressSet().forbids(parse_ip(text)) is None
    assert not AddressSet(frozenset(AddressKind)).holds(parse_ip(text))


@given(st.ip_addresses())
def test_nothing_is_public_here_that_the_standard_library_calls_otherwise(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if kind_of(address) is None and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert address.is_global


@pytest.mark.parametrize(
    ("entries", "text", "is_held"),
    [
        (["10.1.0.0/16"], "10.1.2.3", True),
        (["10.1.0.0/16"], "10.2.2.3", False),
        (["10.1.2.3"], "::ffff:10.1.2.3", True),
        (["fd00::/8"], "fd12::1", True),
        (["169.254.0.0/16"], "169.254.1.1", True),
        (["169.254.0.0/16"], "169.254.169.254", False),
        (["link_local"], "169.254.169.254", False),
        (["169.254.169.254"], "169.254.169.254", True),
        (["metadata"], "169.254.169.254", True),
        (["private", "loopback"], "127.0.0.1", True),
        (["0.0.0.0/0"], "10.0.0.1", True),
        (["0.0.0.0/0"], "fd12::1", False),
        (["8.8.8.0/24"], "8.8.8.8", True),
    ],
)
def test_a_set_holds_kinds_and_networks(entries: list[str], text: str, is_held: bool) -> None:
    found = address_set([parse_addresses(entry) for entry in entries])
    assert found.holds(parse_ip(text)) is is_held


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("Localhost", "'Localhost' is none of the kinds (loopback, private"),
        ("localhost", "nor an address; this machine is loopback"),
        ("local", "nor an address$"),
        ("10.0.0.1:443", "nor an address; no port stands here: write 10.0.0.1$"),
        ("[::1]:443", "nor an address; no port stands here: write ::1$"),
        ("local:443", "nor an address$"),
        ("10.0.0.1:https", "nor an address$"),
        ("10.0.0", "nor a network such as"),
        ("", "'' is none of the kinds"),
    ],
)
def test_what_is_no_address_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        parse_addresses(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_client_has_its_ipv4_address_or_its_ipv6_network(text: str, network: str) -> None:
    assert network_of(text) == network


def test_a_zone_is_no_part_of_the_address() -> None:
    assert parse_ip("fe80::1%eth0") == ipaddress.ip_address("fe80::1")
