"""TLS over bytes in memory, against Python's own TLS on the other end."""

from __future__ import annotations

import contextlib
import itertools
import ssl
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from proxy.engine import tlsstream
from proxy.engine.tlsstream import TlsStream


class Peer:
    """The server's end, by the standard library."""

    def __init__(self, certificate: trustme.LeafCert, maximum: ssl.TLSVersion) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = maximum
        certificate.configure_cert(context)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.is_established = False

    def handshake(self, data: bytes) -> bytes:
        self.incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.is_established = True
        return self.outgoing.read()

    def read(self, data: bytes) -> bytes:
        self.incoming.write(data)
        got = b""
        while True:
            try:
                piece = self.tls.read(65536)
            except ssl.SSLWantReadError:
                return got
            if not piece:
                return got
            got += piece

    def write(self, data: bytes) -> bytes:
        if data:
            self.tls.write(data)
        return self.outgoing.read()

    def close(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):  # the other close_notify is not here yet
            self.tls.unwrap()
        return self.outgoing.read()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def client(authority: trustme.CA | None) -> TlsStream:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_PEER)
    if authority is not None:
        authority.configure_trust(context)
    conn = SSL.Connection(context)
    conn.set_connect_state()
    return TlsStream(conn)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(authority: trustme.CA, request: pytest.FixtureRequest) -> tuple[TlsStream, Peer]:
    """Both ends, after their handshake."""
    stream, peer = client(authority), Peer(authority.issue_cert("a.example"), request.param)
    data = b""
    while not stream.handshake(data):
        data = peer.handshake(stream.outgoing())
    stream.receive(peer.handshake(stream.outgoing()))
    return stream, peer


def test_it_begins_with_a_client_hello_and_is_not_established(authority: trustme.CA) -> None:
    stream = client(authority)
    assert stream.handshake(b"") is False
    assert stream.is_established is False
    assert stream.outgoing()[:3] == b"\x16\x03\x01"
    assert stream.outgoing() == b""  # taken is taken


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 3_000_000])
def test_what_is_sent_arrives_whole_both_ways(pair: tuple[TlsStream, Peer], size: int) -> None:
    stream, peer = pair
    assert stream.is_established
    data = bytes(range(256)) * (size // 256 + 1)
    stream.send(data[:size])
    sealed = stream.outgoing()
    assert data[:32] not in sealed
    assert peer.read(sealed) == data[:size]
    assert stream.receive(peer.write(data[:size])) == data[:size]
    assert stream.has_ended is False


def test_records_may_be_cut_anywhere(pair: tuple[TlsStream, Peer]) -> None:
    stream, peer = pair
    sealed = peer.write(b"one") + peer.write(b"two")
    assert b"".join(stream.receive(sealed[i : i + 1]) for i in range(len(sealed))) == b"onetwo"


def test_it_knows_whether_a_record_has_begun(pair: tuple[TlsStream, Peer]) -> None:
    stream, peer = pair
    records = [peer.write(b"one"), peer.write(b"x" * 300)]

    def is_between() -> bool:
        return stream.is_between_records

    assert is_between()
    for record in records:
        for at in range(len(record)):
            stream.receive(record[at : at + 1])
            assert is_between() is (at == len(record) - 1)
    several = peer.write(b"a") + peer.write(b"b" * 300) + peer.write(b"c")
    stream.receive(several[:-1])
    assert not is_between()
    stream.receive(several[-1:])
    assert is_between()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.lists(st.integers(1, 60), max_size=30))
def test_records_are_counted_however_they_come(lengths: list[int], sizes: list[int]) -> None:
    """OpenSSL is asked as often as there are whole ones, or more often: what it has is never left there. What is in
    them looks like headers of empty ones.
    """
    records = [b"\x17\x03\x03" + length.to_bytes(2) + bytes(length) for length in lengths]
    ends = list(itertools.accumulate(map(len, records)))
    stream, data, at = client(None), b"".join(records), 0
    for size in [*sizes, ends[-1]]:
        piece = data[at : at + size]
        at += len(piece)
        stream._count_records(piece, len(piece))
        assert stream.is_between_records is (at in (0, *ends))
        assert sum(end <= at for end in ends) <= stream._due <= 2 * len(records)


def test_plaintext_that_came_with_the_end_of_the_handshake_is_not_lost(authority: trustme.CA) -> None:
    stream, peer = client(authority), Peer(authority.issue_cert("a.example"), ssl.TLSVersion.TLSv1_2)
    data = b""
    while not stream.handshake(data):
        data = peer.handshake(stream.outgoing())
        if peer.is_established:  # in TLS 1.2 the server's Finished is the last message
            data += peer.write(b"at once")
    assert stream.receive(b"") == b"at once"


def test_a_close_notify_is_the_end_and_what_came_before_it_counts(pair: tuple[TlsStream, Peer]) -> None:
    stream, peer = pair
    assert stream.receive(peer.write(b"last") + peer.close()) == b"last"
    assert (stream.has_ended, stream.was_closed) == (True, True)


def test_a_damaged_record_is_the_end_and_what_came_before_it_counts(pair: tuple[TlsStream, Peer]) -> None:
    stream, peer = pair
    good, bad = peer.write(b"good"), bytearray(peer.write(b"bad"))
    bad[-1] ^= 1
    stream.outgoing()
    assert stream.receive(good + bytes(bad)) == b"good"
    assert (stream.has_ended, stream.was_closed) == (True, False)  # the peer has not said that this is all
    assert stream.outgoing() != b""  # the alert


class Counting:
    """OpenSSL, counting how often it is asked for plaintext, and for what is to be sent."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.reads = self.writes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._lib, name)

    def SSL_read(self, *arguments: object) -> Any:
        self.reads += 1
        return self._lib.SSL_read(*arguments)

    def BIO_read(self, *arguments: object) -> Any:
        self.writes += 1
        return self._lib.BIO_read(*arguments)


class TestHowOftenOpensslIsAsked:
    @pytest.fixture
    def counted(self, pair: tuple[TlsStream, Peer], monkeypatch: pytest.MonkeyPatch) -> Counting:
        stream, _ = pair
        stream.outgoing()
        counting = Counting(tlsstream._lib)
        monkeypatch.setattr(tlsstream, "_lib", counting)
        return counting

    def test_once_for_a_record_that_came_whole(self, pair: tuple[TlsStream, Peer], counted: Counting) -> None:
        stream, peer = pair
        assert stream.receive(peer.write(b"one")) == b"one"
        assert stream.outgoing() == b""
        assert (counted.reads, counted.writes) == (1, 0)
        assert stream.receive(peer.write(b"two") + peer.write(b"three")) == b"twothree"
        assert (counted.reads, counted.writes) == (3, 0)

    def test_only_by_its_header_and_at_its_end_for_one_that_came_in_pieces(
        self, pair: tuple[TlsStream, Peer], counted: Counting
    ) -> None:
        stream, peer = pair
        record = peer.write(b"x" * 5000)
        assert b"".join(stream.receive(record[at : at + 1]) for at in range(len(record))) == b"x" * 5000
        assert counted.reads == 2

    def test_a_damaged_header_is_known_at_once(self, pair: tuple[TlsStream, Peer], counted: Counting) -> None:
        stream, peer = pair
        assert stream.receive(peer.write(b"one") + b"GET / HTTP/1.1") == b"one"
        assert (stream.has_ended, stream.was_closed) == (True, False)
        assert stream.outgoing() != b""  # the alert

    def test_what_is_no_data_may_have_an_answer(self, pair: tuple[TlsStream, Peer], counted: Counting) -> None:
        stream, peer = pair
        record = peer.write(b"one")
        assert stream.receive(record[:6]) == b""  # to OpenSSL, as if it had been a key update
        assert stream.outgoing() == b""
        assert counted.writes == 1
        assert stream.receive(record[6:]) == b"one"
        assert stream.outgoing() == b""
        assert counted.writes == 1

    def test_what_was_sent_is_there_once(self, pair: tuple[TlsStream, Peer], counted: Counting) -> None:
        stream, peer = pair
        stream.send(b"")
        assert (stream.outgoing(), counted.writes) == (b"", 0)
        stream.send(b"one")
        stream.send(b"two")
        assert peer.read(stream.outgoing()) == b"onetwo"
        assert (stream.outgoing(), counted.writes) == (b"", 1)


def test_closing_it_tells_the_peer_so(pair: tuple[TlsStream, Peer]) -> None:
    stream, peer = pair
    stream.send(b"last")
    stream.close()
    peer.incoming.write(stream.outgoing())
    assert peer.tls.read(65536) == b"last"
    assert peer.tls.read(65536) == b""  # the standard library's word for a close_notify


def test_closing_what_is_broken_or_not_established_is_no_error(
    pair: tuple[TlsStream, Peer], authority: trustme.CA
) -> None:
    stream, _ = pair
    stream.receive(b"no TLS at all")
    stream.close()
    early = client(authority)
    early.close()
    assert early.outgoing() == b""


def test_after_an_error_nothing_can_be_sent(pair: tuple[TlsStream, Peer]) -> None:
    stream, _ = pair
    stream.receive(b"no TLS at all")
    assert stream.has_ended is True
    with pytest.raises(SSL.Error):
        stream.send(b"x")


def test_a_peer_that_is_not_trusted_ends_the_handshake_with_an_alert(authority: trustme.CA) -> None:
    stream, peer = client(None), Peer(authority.issue_cert("a.example"), ssl.TLSVersion.TLSv1_3)
    stream.handshake(b"")
    answer = peer.handshake(stream.outgoing())
    with pytest.raises(SSL.Error):
        stream.handshake(answer)
    assert stream.is_established is False
    assert stream.outgoing() != b""


def test_garbage_ends_the_handshake(authority: trustme.CA) -> None:
    stream = client(authority)
    stream.handshake(b"")
    with pytest.raises(SSL.Error):
        stream.handshake(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert stream.is_established is False
