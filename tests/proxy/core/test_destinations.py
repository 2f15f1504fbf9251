"""Destinations: one spelling for each host, and no guessing."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.destinations import BadDestination, Destination, canonical_host, is_address, is_local, parse_authority


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("api.example", "api.example"),
        ("API.Example", "api.example"),
        ("api.example.", "api.example"),
        ("localhost", "localhost"),
        ("_dmarc.a-b.example", "_dmarc.a-b.example"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        ("1a.example", "1a.example"),
        ("a." * 126 + "b", "a." * 126 + "b"),  # 253 characters
        ("1.example", "1.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("[2001:DB8:0:0:0:0:0:1]", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:c000:201]", "192.0.2.1"),
    ],
)
def test_each_host_has_one_spelling(text: str, expected: str) -> None:
    assert canonical_host(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (".", "empty"),
        ("[::1", "no closing"),
        ("[api.example]", "brackets round"),
        ("fe80::1%eth0", "zone id"),
        ("1:2", "no IPv6"),
        ("::1.2.3", "no IPv6"),
        ("münchen.example", "not ASCII"),
        ("127.1", "dotted-quad"),
        ("2130706433", "dotted-quad"),
        ("0x7f.1", "dotted-quad"),
        ("0x7f000001", "dotted-quad"),
        ("127.0.0.01", "dotted-quad"),
        ("0177.0.0.1", "dotted-quad"),
        ("api.1", "dotted-quad"),
        ("1.2.3.4.5", "dotted-quad"),
        ("api..example", "label ''"),
        ("api.example..", "label ''"),
        ("-api.example", "label '-api'"),
        ("api-.example", "label 'api-'"),
        ("a" * 64 + ".example", "label"),
        (".".join(["a" * 63] * 4), "255 characters"),
        ("api.example\n", "no valid host name"),
        ("api example", "no valid host name"),
        ("api%2eexample", "no valid host name"),
        ("api_example/", "no valid host name"),
        ("user@api.example", "no valid host name"),
    ],
)
def test_a_malformed_or_ambiguous_host_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadDestination, match=message):
        canonical_host(text)


@given(st.ip_addresses())
def test_an_address_is_canonical_in_every_spelling(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    once = canonical_host(str(address))
    assert canonical_host(address.exploded) == canonical_host(once) == once


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_refused_and_canonical_the_second_time(text: str) -> None:
    try:
        host = canonical_host(text)
    except BadDestination:
        return
    assert canonical_host(host) == host


@pytest.mark.parametrize(
    ("text", "default_port", "expected"),
    [
        ("api.example:8443", None, Destination("api.example", 8443)),
        ("API.example.:443", 80, Destination("api.example", 443)),
        ("api.example", 80, Destination("api.example", 80)),
        ("api.example:", 80, Destination("api.example", 80)),
        ("[::1]:65535", None, Destination("::1", 65535)),
        ("[::1]", 443, Destination("::1", 443)),
        ("[::1]:", 443, Destination("::1", 443)),
        ("192.0.2.1:1", None, Destination("192.0.2.1", 1)),
        ("api.example:00080", None, Destination("api.example", 80)),
    ],
)
def test_an_authority_is_a_host_and_a_port(text: str, default_port: int | None, expected: Destination) -> None:
    assert parse_authority(text, default_port) == expected


@pytest.mark.parametrize(
    ("text", "default_port", "message"),
    [
        ("user@api.example:80", None, "userinfo"),
        ("user:pass@api.example:80", None, "userinfo"),
        ("::1:80", 80, "needs brackets"),
        ("[::1]x:80", 80, "closing bracket"),
        ("[::1:80", 80, "no closing"),
        ("api.example", None, "has no port"),
        ("api.example:", None, "the port is not a number"),
        ("[::1]", None, "has no port"),
        ("api.example:0", 80, "the port is not a number"),
        ("api.example:65536", 80, "the port is not a number"),
        ("api.example:+80", 80, "port"),
        ("api.example:8O", 80, "port"),
        ("api.example:٨٠", 80, "port"),
        ("api.example:000443", 80, "port"),
        (":80", 80, "host is empty"),
        ("api.example/:80", 80, "no valid host name"),
    ],
)
def test_a_malformed_authority_is_refused(text: str, default_port: int | None, message: str) -> None:
    with pytest.raises(BadDestination, match=message):
        parse_authority(text, default_port)


@pytest.mark.parametrize(
    ("destination", "authority", "url_host"),
    [
        (Destination("api.example", 443), "api.example:443", "api.example"),
        (Destination("::1", 443), "[::1]:443", "[::1]"),
    ],
)
def test_an_ipv6_address_is_written_in_brackets(destination: Destination, authority: str, url_host: str) -> None:
    assert destination.authority == str(destination) == authority
    assert destination.url_host == url_host


@given(st.text(max_size=40), st.none() | st.just(443))
def test_any_text_is_an_authority_or_refused_and_reads_back(text: str, default_port: int | None) -> None:
    try:
        destination = parse_authority(text, default_port)
    except BadDestination:
        return
    assert parse_authority(str(destination)) == destination


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("intranet", True),
        ("192.0.2.1", True),
        ("1.1.1.1", True),  # public, but no name
        ("::1", True),
        ("2606:4700::1", True),
        ("api.localhost", True),
        ("printer.local", True),
        ("nas.home.arpa", True),
        ("db.internal", True),
        ("a.b.lan", True),
        ("api.example", False),
        ("local.example", False),
        ("notlocal", True),
        ("my.notlocal", False),
        ("arpa.example", False),
        ("1.example", False),
    ],
)
def test_a_local_host_is_an_address_or_means_something_in_one_network_only(host: str, expected: bool) -> None:
    assert is_local(canonical_host(host)) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", True),
        ("2001:DB8::1", True),
        ("[::ffff:192.0.2.1]", True),
        ("api.example", False),
        ("1.example", False),
        ("localhost", False),
    ],
)
def test_a_host_is_an_address_or_a_name(host: str, expected: bool) -> None:
    assert is_address(canonical_host(host)) is expected
