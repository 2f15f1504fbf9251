"""What an app's first bytes inside CONNECT are taken for, however they are cut."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.clienthello import ClientHello, read_client_hello
from proxy.engine.apps import sniffing
from proxy.engine.apps.sniffing import MAX_CLIENT_HELLO, MAX_RECORDS, Heard, Speech, listen


def client_hello(name: str | None, *alpn: str) -> bytes:
    """Return the ClientHello that OpenSSL sends, with this server name and these protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def hello_with(extensions: bytes) -> bytes:
    """Return a minimal ClientHello with these extensions."""
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += struct.pack("!H", len(extensions)) + extensions
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(handshake)) + handshake


def server_names(*names: bytes, kind: int = 0) -> bytes:
    """Return a server_name extension with these names (RFC 6066, section 3)."""
    entries = b"".join(bytes([kind]) + struct.pack("!H", len(name)) + name for name in names)
    body = struct.pack("!H", len(entries)) + entries
    return b"\x00\x00" + struct.pack("!H", len(body)) + body


HELLO = client_hello("api.example")


@pytest.mark.parametrize("name", ["api.example", "API.example", None])
def test_a_whole_client_hello_is_tls_and_tells_its_name(name: str | None) -> None:
    assert listen(client_hello(name)) == Heard(Speech.TLS, name)


@pytest.mark.parametrize("alpn", [("h2",), ("http/1.1",), ("h2", "http/1.1"), ("http/1.1", "h2"), ("spdy/3", "h2c")])
def test_a_client_hello_tells_the_protocols_it_offers_in_their_order(alpn: tuple[str, ...]) -> None:
    offers = tuple(name.encode() for name in alpn)
    assert listen(client_hello("api.example", *alpn)) == Heard(Speech.TLS, "api.example", offers)


@pytest.mark.parametrize(
    ("extension", "offers"),
    [
        pytest.param(b"\x00\x10\x00\x05\x00\x03\x02h2", (b"h2",), id="one"),
        pytest.param(b"\x00\x10\x00\x08\x00\x06\x02h2\x02h2", (b"h2", b"h2"), id="one twice"),
        pytest.param(b"\x00\x10\x00\x05\x00\x03\x02H2", (b"H2",), id="in other letters, so another one"),
        pytest.param(b"", (), id="none"),
    ],
)
def test_the_offers_are_those_of_the_extension(extension: bytes, offers: tuple[bytes, ...]) -> None:
    assert listen(hello_with(extension)) == Heard(Speech.TLS, None, offers)


@pytest.mark.parametrize("length", range(len(HELLO)))
def test_a_client_hello_that_is_not_whole_yet_is_undecided(length: int) -> None:
    assert listen(HELLO[:length]).speech is Speech.UNDECIDED


@pytest.mark.parametrize("more", [b"x" * (2 * MAX_CLIENT_HELLO), bytes(5)], ids=["anything", "an empty record"])
def test_what_follows_a_client_hello_does_not_matter(more: bytes) -> None:
    assert listen(HELLO + more) == Heard(Speech.TLS, "api.example")


def test_a_client_hello_may_come_in_several_records() -> None:
    body = HELLO[5:]
    pieces = [body[:1], body[1:50], body[50:]]
    records = b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)
    assert listen(records) == Heard(Speech.TLS, "api.example")
    assert listen(records[:-1]).speech is Speech.UNDECIDED


def in_records(handshake: bytes, sizes: list[int]) -> bytes:
    """Return a handshake message cut into records of these sizes, and one for what is left."""
    pieces, at = [], 0
    for size in [*sizes, len(handshake) - sum(sizes)]:
        pieces.append(b"\x16\x03\x01" + struct.pack("!H", size) + handshake[at : at + size])
        at += size
    return b"".join(pieces)


def test_a_client_hello_is_refused_with_the_first_record_that_is_too_many() -> None:
    handshake = HELLO[5:]
    at_most = in_records(handshake, [4] + [1] * (MAX_RECORDS - 2))
    assert listen(at_most) == Heard(Speech.TLS, "api.example")
    too_many = in_records(handshake, [4] + [1] * (MAX_RECORDS - 1))
    last = len(too_many) - (len(handshake) - 4 - (MAX_RECORDS - 1))  # where its last record's content starts
    assert listen(too_many[: last - 1]).speech is Speech.UNDECIDED
    assert listen(too_many[:last]).speech is Speech.OTHER


def test_an_empty_record_within_a_client_hello_is_refused_as_soon_as_it_begins() -> None:
    records = in_records(HELLO[5:], [50, 0, 50])
    assert listen(records[: 55 + 4]).speech is Speech.UNDECIDED
    assert listen(records[: 55 + 5]).speech is Speech.OTHER


def test_a_client_hello_is_parsed_only_once_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each byte that comes would cost a look at all that came before it."""
    parsed: list[bytes] = []

    def parse(message: bytes) -> ClientHello:
        parsed.append(message)
        return read_client_hello(message)

    monkeypatch.setattr(sniffing, "read_client_hello", parse)
    records = in_records(HELLO[5:], [1, 2, 100, 100])
    for length in range(len(records) + 1):
        listen(records[:length])
    assert parsed == [HELLO[9:]]  # without what follows, and without the message's own header


def test_nothing_of_what_follows_the_client_hello_in_its_last_record_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def parse(message: bytes) -> ClientHello:
        parsed.append(message)
        return read_client_hello(message)

    monkeypatch.setattr(sniffing, "read_client_hello", parse)
    assert listen(in_records(HELLO[5:] + b"more", [10])) == Heard(Speech.TLS, "api.example")
    assert parsed == [HELLO[9:]]


@pytest.mark.parametrize("kind", [b"\x15\x03\x01", b"\x17\x03\x03", b"\x16\x02\x00", b"GET"])
def test_a_record_of_another_kind_within_a_client_hello_makes_it_none(kind: bytes) -> None:
    first, rest = HELLO[5:55], HELLO[55:]
    records = b"\x16\x03\x01" + struct.pack("!H", len(first)) + first
    assert listen(records + b"\x16\x03\x01" + struct.pack("!H", len(rest)) + rest).speech is Speech.TLS
    assert listen(records + kind + struct.pack("!H", len(rest)) + rest).speech is Speech.OTHER


def test_a_client_hello_that_never_ends_is_not_waited_for() -> None:
    start = b"\x16\x03\x01\xff\xff\x01\xff\xff\xff"
    assert listen(start + bytes(MAX_CLIENT_HELLO - len(start))).speech is Speech.UNDECIDED
    assert listen(start + bytes(MAX_CLIENT_HELLO)).speech is Speech.OTHER
    records = in_records(b"\x01\xff\xff\xff" + b"\x01" * (2 * MAX_CLIENT_HELLO), [0x4000] * 8)
    assert listen(records[:MAX_CLIENT_HELLO]).speech is Speech.UNDECIDED
    assert listen(records[: MAX_CLIENT_HELLO + 1]).speech is Speech.OTHER


@pytest.mark.parametrize("length", [0, 10, 40])
def test_one_that_ends_before_its_fields_do_is_none(length: int) -> None:
    body = HELLO[9 : 9 + length]
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    assert listen(in_records(handshake, [])).speech is Speech.OTHER


@pytest.mark.parametrize(
    ("extensions", "sni"),
    [
        pytest.param(server_names(b"api.example"), "api.example", id="one name"),
        pytest.param(b"", None, id="no extension"),
        pytest.param(server_names(b"api.example", b"other.example"), "", id="two names"),
        pytest.param(server_names(b"api.example") + server_names(b"other.example"), "", id="two extensions"),
        pytest.param(server_names(b"other example"), "", id="an invalid name"),
        pytest.param(server_names(b"api.example\0.other"), "", id="a name with NUL"),
        pytest.param(server_names(b""), "", id="an empty name"),
        pytest.param(server_names(), "", id="no name in the list"),
        pytest.param(server_names(b"api.example", kind=1), "", id="a name of another kind"),
    ],
)
def test_only_one_valid_name_is_a_name_and_any_other_is_not_taken_for_none(extensions: bytes, sni: str | None) -> None:
    assert listen(hello_with(extensions)) == Heard(Speech.TLS, sni)


@pytest.mark.parametrize(
    "data",
    [
        b"GET ",
        b"GET / HTTP/1.1\r\n",
        b"OPTIONS *",
        b"PROPPATCH /",
        b"CONNECT a:1",
        b"M-SEARCH *",
        b"VERSION-CONTROL /",
        b"PRI * HTTP/2.0\r\n",
    ],
)
def test_a_method_and_a_space_is_http(data: bytes) -> None:
    assert listen(data) == Heard(Speech.HTTP)


@pytest.mark.parametrize("data", [b"", b"G", b"GE", b"GET", b"M-", b"M-SEARCH", b"SSH-", b"A" * 20])
def test_the_start_of_a_method_is_undecided(data: bytes) -> None:
    assert listen(data).speech is Speech.UNDECIDED


@pytest.mark.parametrize(
    "data",
    [
        b"A" * 21,
        b"GE /",
        b"-GET /",
        b"M_SEARCH *",
        b"get / HTTP/1.1",
        b"GeT / HTTP/1.1",
        b"\r\nGET / HTTP/1.1",
        b" GET /",
        b"GET\t/",
        b"SSH-2.0-OpenSSH",
        b"\x16\x02",
        b"\x16G",
        b"\x16\x03\x04",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x16\x03\x01\x00\x00\x01",
        b"\x15\x03\x01",
        b"\x80\x2e\x01\x03\x01",
        b"\x00",
        b"\xff",
    ],
)
def test_anything_else_is_neither(data: bytes) -> None:
    assert listen(data) == Heard(Speech.OTHER)


@given(st.binary(max_size=600))
@example(b"\x16\x03\x01\x00\x08\x01\x00\x00\x04abcd")
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert listen(data).speech in Speech


@given(st.data())
def test_no_damaged_client_hello_makes_it_raise(data: st.DataObject) -> None:
    damaged = bytearray(HELLO)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(HELLO) - 1))] = data.draw(st.integers(0, 255))
    assert listen(bytes(damaged)).speech in Speech


@given(st.binary(min_size=1, max_size=40), st.integers(0, 40))
def test_a_verdict_is_never_taken_back_when_more_comes(data: bytes, cut: int) -> None:
    early = listen(data[:cut]).speech
    if early is not Speech.UNDECIDED:
        assert listen(data).speech is early


def test_a_client_hello_whose_header_is_spread_over_records_is_bounded_as_well() -> None:
    handshake = HELLO[5:]
    assert listen(in_records(handshake, [1, 1, 1, 1])) == Heard(Speech.TLS, "api.example")
    assert listen(in_records(handshake, [1] * MAX_RECORDS)).speech is Speech.OTHER
    assert listen(b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x01\x00" * 10_000).speech is Speech.OTHER
