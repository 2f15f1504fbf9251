"""A ClientHello is read to the last byte, as OpenSSL writes it and as somebody else's parser reads it."""

from __future__ import annotations

import contextlib
import ssl
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.tls import ClientHello as Theirs

from proxy.core.clienthello import BadClientHello, ClientHello, read_client_hello

START = b"\x03\x03" + bytes(32)
OFFERS = b"\x00\x02\x13\x01" + b"\x01\x00"  # a cipher suite, and no compression


def vector(data: bytes, size: int = 2) -> bytes:
    """Return bytes behind their number."""
    return len(data).to_bytes(size) + data


def extension(kind: int, body: bytes) -> bytes:
    """Return an extension."""
    return struct.pack("!H", kind) + vector(body)


def hello(*extensions: bytes) -> bytes:
    """Return a small ClientHello with these extensions."""
    return START + b"\x00" + OFFERS + vector(b"".join(extensions))


def sent(name: str | None, *alpn: str) -> bytes:
    """Return what OpenSSL sends."""
    context = ssl.create_default_context()
    if alpn:
        context.set_alpn_protocols(list(alpn))
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()[9:]


def names(*entries: bytes, kind: int = 0) -> bytes:
    """Return an extension with a list of names."""
    return extension(0, vector(b"".join(bytes([kind]) + vector(entry) for entry in entries)))


def alpn(*offers: bytes) -> bytes:
    """Return an extension with protocols."""
    return extension(16, vector(b"".join(vector(each, 1) for each in offers)))


@pytest.mark.parametrize("name", ["api.test", None])
@pytest.mark.parametrize("offers", [(), ("h2", "http/1.1"), ("http/1.1",)])
def test_what_openssl_sends_is_read(name: str | None, offers: tuple[str, ...]) -> None:
    expected = ClientHello(None if name is None else ((0, name.encode()),), tuple(each.encode() for each in offers))
    assert read_client_hello(sent(name, *offers)) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (START + b"\x00" + OFFERS, ClientHello()),
        (hello(), ClientHello()),
        (START + vector(bytes(32), 1) + OFFERS, ClientHello()),
        (hello(extension(99, b"any"), names(b"a")), ClientHello(((0, b"a"),))),
        (hello(names()), ClientHello(())),
        (hello(names(b"a", b"b")), ClientHello(((0, b"a"), (0, b"b")))),
        (hello(names(b"a"), names(b"b", kind=1)), ClientHello(((0, b"a"), (1, b"b")))),
        (hello(alpn(b"h2", b"")), ClientHello(None, (b"h2", b""))),
    ],
)
def test_all_that_it_says_is_told(message: bytes, expected: ClientHello) -> None:
    assert read_client_hello(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(START + vector(bytes(33), 1) + OFFERS, id="a long session identifier"),
        pytest.param(START + b"\x00" + b"\x00\x03\x13\x01\x13" + b"\x01\x00", id="half a cipher suite"),
        pytest.param(hello(names(b"a")) + b"x", id="more behind the extensions"),
        pytest.param(hello(names(b"a"))[:-1], id="an end too early"),
        pytest.param(hello(b"\x00\x00"), id="an extension without a length"),
        pytest.param(hello(extension(0, b"")), id="no list of names"),
        pytest.param(hello(extension(0, vector(b"\x00" + vector(b"a")) + b"x")), id="more behind the names"),
        pytest.param(hello(extension(0, b"\x00\x03\x00" + vector(b"ab"))), id="a list shorter than its name"),
        pytest.param(hello(extension(16, b"\x00\x09\x02h2")), id="a list of protocols longer than its extension"),
        pytest.param(hello(extension(16, vector(b"\x02h2") + b"x")), id="more behind the protocols"),
    ],
)
def test_where_a_length_does_not_fit_it_is_none(message: bytes) -> None:
    with pytest.raises(BadClientHello):
        read_client_hello(message)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda count: hello(*[extension(99, b"")] * count), id="extensions"),
        pytest.param(lambda count: hello(names(*[b""] * count)), id="names"),
        pytest.param(lambda count: hello(alpn(*[b""] * count)), id="protocols"),
        pytest.param(lambda count: hello(*[names(b"", b"")] * (count // 4)), id="names in many extensions"),
    ],
)
def test_one_of_very_many_parts_is_none(make: Callable[[int], bytes]) -> None:
    """64 KiB of them took 25 ms, for each connection that somebody opened."""
    read_client_hello(make(250))
    with pytest.raises(BadClientHello, match="too many"):
        read_client_hello(make(260))


@given(st.data())
def test_what_is_read_is_what_mitmproxy_reads(data: st.DataObject) -> None:
    message = bytearray(sent("api.test", "h2", "http/1.1"))
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadClientHello):
        ours, theirs = read_client_hello(bytes(message)), Theirs(bytes(message))
        kinds = [kind for kind, _ in theirs.extensions]
        assert (ours.server_names is None) is (0 not in kinds)
        if kinds.count(16) < 2:
            assert list(ours.alpn) == theirs.alpn_protocols
        if theirs.sni is not None and kinds.count(0) == 1:
            assert ours.server_names == ((0, theirs.sni.encode()),)
