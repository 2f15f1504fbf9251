"""What is decided here instead of in h2, and how much of what carries nothing is let through.

Proves that the private names of h2 and hpack that are stood in for still are what h2 asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import h2.events
import h2.exceptions
import hpack
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from proxy.core.http.heads import Fields
from proxy.engine.http2 import EMPTY_AT_ONCE, PREFACE, Connection, Stream, _has_data, _opens_nothing
from proxy.engine.http2state import MAX_HUFFMAN, MAX_STREAMS, MAX_TABLE, NeverIndexed, State, _Encoder
from tests.e2e.frames import (
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PADDED,
    RST_STREAM,
    WINDOW_UPDATE,
    block,
    data,
    headers,
    integer,
    settings,
    window_update,
)
from tests.e2e.http2 import frame
from tests.growth import TOO_MUCH, growth

ASKED = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
REQUEST = block(*ASKED)
LONG = REQUEST + block(("content-length", "5"))
OK = block((":status", "200"))


def server() -> State:
    """Return the state of a server's connection that has begun."""
    state = State(is_client=False, header_bytes=1000)
    state.receive_data(PREFACE + settings())
    state.data_to_send()
    return state


def client() -> State:
    """Return the state of a client's connection on which two requests are under way."""
    state = State(is_client=True, header_bytes=1000)
    state.receive_data(settings())
    for stream in (1, 3):
        state.send_headers(stream, ASKED, end_stream=stream == 1)
    state.data_to_send()
    return state


def sent(state: State) -> list[tuple[int, int, bytes]]:
    """Return kind, stream and payload of each frame that is to be sent."""
    out, found = state.data_to_send(), []
    while out:
        size = int.from_bytes(out[:3])
        found.append((out[3], int.from_bytes(out[5:9]), out[9 : 9 + size]))
        out = out[9 + size :]
    return found


class TestState:
    @pytest.mark.parametrize(
        "frames",
        [
            data(1, b"12", last=True),
            data(1, b"1234567", last=True),
            data(1, b"12") + headers(1, block(("a", "b"))),
        ],
        ids=["less", "more", "less, and trailers"],
    )
    def test_the_length_of_a_body_is_not_looked_at(self, frames: bytes) -> None:
        found = server().receive_data(headers(1, LONG, END_HEADERS) + frames)
        assert isinstance(found[-1], h2.events.StreamEnded)

    def test_nor_is_it_in_a_response(self) -> None:
        length = block(("content-length", "5"))
        found = client().receive_data(headers(1, OK + length, END_HEADERS) + data(1, b"12", last=True))
        assert isinstance(found[-1], h2.events.StreamEnded)

    @pytest.mark.parametrize(
        "frames",
        [
            headers(1, OK, END_HEADERS) + headers(1, OK, END_HEADERS),
            headers(1, OK, END_HEADERS) + headers(1, block((":status", "103")), END_HEADERS),
            headers(1, block((":status", "103"))),
            data(1, b"x"),
        ],
        ids=["two heads", "an interim one behind", "an interim one that ends", "no head"],
    )
    def test_what_may_not_come_now_ends_the_stream_and_no_other(self, frames: bytes) -> None:
        state = client()
        found = state.receive_data(frames)[-1]
        assert isinstance(found, h2.events.StreamReset)
        assert (found.stream_id, found.error_code, found.remote_reset) == (1, ErrorCodes.PROTOCOL_ERROR, False)
        assert (RST_STREAM, 1, b"\0\0\0\1") in sent(state)
        (more,) = state.receive_data(headers(3, OK, END_HEADERS))
        assert isinstance(more, h2.events.ResponseReceived)

    def test_so_does_a_body_that_no_window_was_open_for(self) -> None:
        state = client()
        state.receive_data(headers(1, OK, END_HEADERS))
        found: list[h2.events.Event] = []
        while not found or isinstance(found[-1], h2.events.DataReceived):
            found = state.receive_data(data(1, bytes(16384)))
        assert isinstance(found[-1], h2.events.StreamReset)
        assert found[-1].error_code == ErrorCodes.FLOW_CONTROL_ERROR

    @pytest.mark.parametrize("fields", [b"\x80", b"\x40", b"\x3f\xe2\x1f", REQUEST + b"\x20", b"\xff" + b"\xff" * 20])
    def test_a_block_that_is_none_is_a_compression_error(self, fields: bytes) -> None:
        state = server()
        with pytest.raises(h2.exceptions.ProtocolError) as caught:
            state.receive_data(headers(1, fields))
        assert caught.value.error_code == ErrorCodes.COMPRESSION_ERROR
        assert sent(state)[-1][2][4:] == b"\0\0\0\x09"

    def test_one_that_is_too_long_is_too_much(self) -> None:
        with pytest.raises(h2.exceptions.DenialOfServiceError):
            server().receive_data(headers(1, REQUEST + block(("a", "b" * 1000))))

    def test_a_stream_too_many_is_let_through_to_who_refuses_it(self) -> None:
        state = server()
        for number in range(MAX_STREAMS + 5):
            assert state.receive_data(headers(2 * number + 1, REQUEST, END_HEADERS))


class TestTable:
    """By which field names and values are shortened."""

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            ([4096], []),
            ([65536], [MAX_TABLE]),
            ([100], [100]),
            ([0], [0]),
            ([0, 65536], [0, MAX_TABLE]),
            ([100, 200], [100, 200]),
            ([200, 100], [100]),
            ([100, MAX_TABLE], [100, MAX_TABLE]),
        ],
    )
    def test_it_is_small_and_its_size_is_told(self, said: list[int], told: list[int]) -> None:
        state = State(is_client=True, header_bytes=1000)
        for size in said:
            state.receive_data(settings((SettingCodes.HEADER_TABLE_SIZE, size)))
            state.bound_table()
        assert state.encoder.header_table_size <= MAX_TABLE
        state.data_to_send()
        state.send_headers(1, [*ASKED, (b"x-long", b"y" * 50)])
        ((_, _, fields),) = [each for each in sent(state) if each[0] == HEADERS]
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = max([MAX_TABLE, *said])
        assert dict(decoder.decode(fields, raw=True))[b"x-long"] == b"y" * 50
        assert decoder.header_table_size == (told[-1] if told else 4096)
        sizes = []
        while fields[0] & 0xE0 == 0x20:
            size, used = hpack.hpack.decode_integer(fields, 5)
            sizes.append(size)
            fields = fields[used:]
        assert sizes == told


class Way(Connection[Stream]):
    """A connection to an upstream whose frames a test reads, and which begins streams as a test says."""

    def __init__(self) -> None:
        super().__init__(asyncio.new_event_loop(), is_client=True, header_bytes=1000)
        self.ends: list[str] = []
        self.received(settings())
        self.taken()

    def begin(self) -> Waiting:
        stream = Waiting(self.state.get_next_available_stream_id())
        self.streams[stream.number] = stream
        self.send_head(stream, ASKED, is_all=False)
        return stream

    def taken(self) -> list[tuple[int, int, int]]:
        """Return kind, stream and size of each frame that is to be sent."""
        out, found = self.outgoing(), []
        while out:
            size = int.from_bytes(out[:3])
            if out[3] in (DATA, GOAWAY):
                found.append((out[3], int.from_bytes(out[5:9]), size))
            out = out[9 + size :]
        return found

    def event(self, event: h2.events.Event, stream: Stream | None) -> None:
        pass

    def broken(self, streams: list[Stream], why: str) -> None:
        self.ends.append(why)

    def goaway(self, last: int, code: int) -> None:
        pass

    def caught_up(self) -> None:
        pass

    def closed(self, stream: Stream) -> None:
        pass

    def pause(self, is_paused: bool) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        step(*arguments)


class Waiting(Stream):
    def congested(self, is_congested: bool) -> None:
        pass


@pytest.fixture
def way() -> Iterator[Way]:
    made = Way()
    yield made
    made.loop.close()


FIRST = 65535  # what a window has before it is opened (RFC 9113, section 6.9.2)
FRAME = 16384


class TestWindows:
    def test_of_the_connections_each_stream_has_its_part(self, way: Way) -> None:
        way.received(settings((SettingCodes.INITIAL_WINDOW_SIZE, 2**30)))
        first = way.begin()
        way.send(first, bytes(10 * FRAME))
        assert sum(size for _, _, size in way.taken()) == FIRST
        second, third = way.begin(), way.begin()
        for stream in (second, third):
            way.send(stream, bytes(3 * FRAME))
        served = []
        for _ in range(7):
            way.received(window_update(0, FRAME))
            served += way.taken()
        assert [number for _, number, _ in served] == [1, 3, 5, 1, 3, 5, 1]
        assert {size for _, _, size in served} == {FRAME}
        way.received(window_update(0, 4 * FRAME))
        assert [number for _, number, _ in way.taken()] == [3, 5, 1, 1]

    def test_one_that_is_opened_for_a_stream_and_then_for_all_is_not_that_streams_alone(self, way: Way) -> None:
        first, second = way.begin(), way.begin()
        way.send(first, bytes(10 * FRAME))
        way.taken()
        way.send(second, bytes(5))
        for _ in range(3):
            way.received(window_update(1, FRAME) + window_update(0, FRAME))
            if (DATA, 3, 5) in way.taken():
                return
        pytest.fail("the second stream was sent nothing")

    def test_a_small_one_holds_up_no_other_stream(self, way: Way) -> None:
        first, second = way.begin(), way.begin()
        way.received(window_update(0, 10 * FRAME))
        way.send(first, bytes(10 * FRAME))
        way.send(second, bytes(3 * FRAME))
        found = way.taken()
        assert sum(size for _, number, size in found if number == 1) == FIRST
        assert sum(size for _, number, size in found if number == 3) == 3 * FRAME
        way.received(window_update(1, 10))
        assert way.taken() == [(DATA, 1, 10)]

    def test_an_end_needs_none(self, way: Way) -> None:
        first, second = way.begin(), way.begin()
        way.send(first, bytes(10 * FRAME))
        way.taken()
        way.finish(second)
        assert way.taken() == [(DATA, 3, 0)]

    def test_one_that_settings_open_is_used(self, way: Way) -> None:
        way.received(settings((SettingCodes.INITIAL_WINDOW_SIZE, 0)))
        way.send(way.begin(), b"12345")
        assert way.taken() == []
        way.received(settings((SettingCodes.INITIAL_WINDOW_SIZE, 3)))
        assert way.taken() == [(DATA, 1, 3)]

    def test_many_small_openings_are_one_and_copy_nothing_of_what_waits(self, way: Way) -> None:
        stream = way.begin()
        way.send(stream, bytes(64 * 1024 * 1024))
        way.taken()
        before = time.thread_time()
        for _ in range(20):
            way.received((window_update(0, 1) + window_update(1, 1)) * 16)
            assert way.taken() == [(DATA, 1, 16)]
        assert time.thread_time() - before < 0.1
        assert way.unsent(stream) == 64 * 1024 * 1024 - FIRST - 20 * 16

    @pytest.mark.parametrize(("size", "is_taken"), [(1, False), (16, False), (2048, True)])
    def test_a_small_one_does_not_pay_for_itself(self, way: Way, size: int, is_taken: bool) -> None:
        way.send(way.begin(), bytes(16 * 1024 * 1024))
        way.taken()
        for _ in range(2 * EMPTY_AT_ONCE):
            if not way.is_over:
                way.received(window_update(0, size) + window_update(1, size))
                way.outgoing()
        assert way.is_over is not is_taken

    def test_one_that_small_pieces_need_does(self, way: Way) -> None:
        """Some peers open both for each frame."""
        stream = way.begin()
        way.taken()
        for _ in range(2 * EMPTY_AT_ONCE):
            way.send(stream, b"x")
            assert way.taken() == [(DATA, 1, 1)]
            way.received(window_update(0, 1) + window_update(1, 1))
        assert not way.is_over


class Asked(Way):
    """A connection of an app, whose heads a test counts."""

    def __init__(self) -> None:
        Connection.__init__(self, asyncio.new_event_loop(), is_client=False, header_bytes=2**17)
        self.ends = []
        self.heads: list[int] = []
        self.received(PREFACE + settings())

    def request(self, number: int, fields: Fields, *, is_whole: bool) -> None:
        self.heads.append(len(fields))


class TestTurns:
    """How much of what has come is looked at before the others have their turn."""

    @pytest.fixture
    def asked(self) -> Iterator[Asked]:
        made = Asked()
        yield made
        made.loop.close()

    def counts(self, asked: Asked) -> list[int]:
        """Return how many heads were taken in each turn."""
        found = [len(asked.heads)]
        while asked.is_behind:
            asked.loop.call_soon(asked.loop.stop)
            asked.loop.run_forever()
            found.append(len(asked.heads) - sum(found))
        return found

    def test_small_heads_are_counted(self, asked: Asked) -> None:
        asked.received(b"".join(headers(2 * number + 1, REQUEST) for number in range(70)))
        assert self.counts(asked) == [32, 32, 6]

    @pytest.mark.parametrize(
        "fields",
        [REQUEST + block(("x", "y" * 16_200)), REQUEST + block(("x", "y")) * 485],
        ids=["long", "many fields"],
    )
    def test_large_ones_are_weighed(self, asked: Asked, fields: bytes) -> None:
        asked.received(b"".join(headers(2 * number + 1, fields) for number in range(7)))
        assert self.counts(asked) == [2, 2, 2, 1]

    @pytest.mark.parametrize("fields", [b"\xbe" * 32, REQUEST], ids=["by the table", "as before"])
    def test_so_is_what_a_few_bytes_stand_for(self, asked: Asked, fields: bytes) -> None:
        named = b"\x40" + block(("x", "y" * 1000))[1:]
        asked.received(headers(1, REQUEST + named))
        more = (REQUEST + fields) if fields is not REQUEST else REQUEST + b"\xbe"
        asked.received(b"".join(headers(2 * number + 1, more) for number in range(1, 41)))
        assert max(self.counts(asked)) <= 31
        assert len(asked.heads) == 41


KINDS = {"plain": hpack.HeaderTuple, "never indexed": hpack.NeverIndexedHeaderTuple}
GREATEST = 128 * 1024


class TestBlocks:
    """hpack's own coders are stood in for: what they write and read stays the same."""

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("name", [b"x-own", b"cookie", b"x" * (MAX_HUFFMAN + 1)])
    @pytest.mark.parametrize("size", [0, 1, MAX_HUFFMAN, MAX_HUFFMAN + 1, 5000])
    def test_others_read_what_is_written_here(self, kind: type[hpack.HeaderTuple], name: bytes, size: int) -> None:
        decoder, encoder = hpack.Decoder(), State(is_client=True, header_bytes=1000).encoder
        for byte in (b"a", b"\xff", b"a"):
            field = kind(name, byte * size)
            ((*found,),) = [decoder.decode(encoder.encode([field]), raw=True)]
            assert found == [field]
            assert type(found[0]).indexable or kind is KINDS["never indexed"]
            assert not type(found[0]).indexable or kind is KINDS["plain"] or not size

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("name", [b"x-own", b"cookie", b"x" * 300])
    @pytest.mark.parametrize("size", [0, 1, 300, 5000])
    @pytest.mark.parametrize("huffman", [True, False])
    def test_what_others_write_is_read_here(
        self, kind: type[hpack.HeaderTuple], name: bytes, size: int, huffman: bool
    ) -> None:
        encoder, decoder = hpack.Encoder(), State(is_client=True, header_bytes=20_000).decoder
        for byte in (b"a", b"\xff", b"a"):
            field = kind(name, byte * size)
            assert list(decoder.decode(encoder.encode([field, field], huffman), raw=True)) == [field, field]

    @pytest.mark.parametrize(("size", "is_kept"), [(100, True), (1500, False)])
    def test_only_small_lists_are_remembered_however_few_bytes_stand_for_them(self, size: int, is_kept: bool) -> None:
        decoder, encoder = State(is_client=False, header_bytes=10_000).decoder, _Encoder()
        decoder.decode(b"\x40" + block(("x", "y" * size))[1:], raw=True)
        encoder.encode([(b"x", b"y" * size)])
        fields = [(b"x", b"y" * size)] * 2
        assert encoder.encode(fields) == b"\xbe\xbe"
        assert (encoder.encode(fields) is encoder.encode(fields)) is is_kept
        assert list(decoder.decode(b"\xbe\xbe", raw=True)) == fields
        assert (decoder.decode(b"\xbe\xbe", raw=True) is decoder.decode(b"\xbe\xbe", raw=True)) is is_kept

    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_field_that_no_table_may_keep_is_another_one_than_the_same_without_that_mark(
        self, is_first: bool
    ) -> None:
        state = State(is_client=True, header_bytes=1000)
        (never,) = state.decoder.decode(b"\x10" + block(("x-key", "secret"))[1:], raw=True)
        (plain,) = state.decoder.decode(block(("x-key", "secret")), raw=True)
        for other in (plain, tuple(plain)):
            assert never != other and other != never and not never == other and not other == never  # noqa: PT018,SIM201  # each of them is asked
            assert len({(never,): 1, (other,): 2}) == 2
        assert never == NeverIndexed(b"x-key", b"secret") and not never != NeverIndexed(b"x-key", b"secret")  # noqa: PT018,SIM202  # as above
        assert hash(never) == hash(NeverIndexed(b"x-key", b"secret"))
        decoder = hpack.Decoder()
        for field in (never, plain, never, plain) if is_first else (plain, never, plain, never):
            for _ in range(2):
                (found,) = decoder.decode(state.encoder.encode([field]), raw=True)
                assert (found.indexable, tuple(found)) == (field is plain, (b"x-key", b"secret"))

    @pytest.mark.parametrize("cut", [b"\x00", b"\x00\x01", b"\x00\x01a", b"\x00\x01a\x02b", b"\x0f", b"\x40\x01a\x7f"])
    def test_one_that_is_cut_off_is_none(self, cut: bytes) -> None:
        with pytest.raises(h2.exceptions.ProtocolError):
            State(is_client=False, header_bytes=1000).decoder.decode(cut, raw=True)

    @pytest.mark.parametrize("byte", [b"\xff", b"a"])
    @pytest.mark.parametrize("size", [MAX_HUFFMAN, GREATEST])
    def test_writing_takes_linear_time(self, byte: bytes, size: int) -> None:
        def fields(length: int) -> list[tuple[bytes, bytes]]:
            return [(b"x-%d" % number, byte * min(size, length)) for number in range(max(1, length // size))]

        def write(made: list[tuple[bytes, bytes]]) -> None:
            State(is_client=True, header_bytes=1000).encoder.encode(made)

        assert growth(write, fields, GREATEST) < TOO_MUCH

    @pytest.mark.parametrize("first", [b"\x00", b"\x40", b"\x10"])
    @pytest.mark.parametrize("value", [b"", b"a" * 100, b"\xff" * 16_000])
    def test_reading_takes_linear_time(self, first: bytes, value: bytes) -> None:
        field = first + b"\x01a" + block(("", value))[2:]

        def read(fields: bytes) -> None:
            State(is_client=False, header_bytes=2**24).decoder.decode(fields, raw=True)

        assert growth(read, lambda length: field * (length // len(field) + 1), GREATEST) < TOO_MUCH

    @pytest.mark.parametrize("byte", [b"\xff", b"a"])
    def test_so_does_reading_a_long_string_in_huffman_code(self, byte: bytes) -> None:
        coded = hpack.Encoder().huffman_coder.encode(byte * 120)  # that ends where a byte does

        def made(length: int) -> bytes:
            size = length // len(coded) * len(coded)
            return b"\x00\x01a" + integer(size, 7, 0x80) + coded * (length // len(coded))

        def read(fields: bytes) -> None:
            State(is_client=False, header_bytes=2**24).decoder.decode(fields, raw=True)

        read(made(4096))
        assert growth(read, made, GREATEST) < TOO_MUCH


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        (0, b"", False),
        (0, b"x", True),
        (PADDED, b"", False),
        (PADDED, b"\x00", False),
        (PADDED, b"\x00x", True),
        (PADDED, b"\x01\x00", False),
        (PADDED, b"\x01x\x00", True),
        (PADDED, b"\x05\x00", False),
    ],
)
def test_padding_is_no_data(flags: int, payload: bytes, expected: bool) -> None:
    assert _has_data(flags, frame(DATA, flags, 1, payload)) is expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [(bytes(4), True), (b"\x80\0\0\0", True), (b"\0\0\0\1", False), (bytes(3), False), (bytes(5), False)],
)
def test_a_window_is_opened_by_something(payload: bytes, expected: bool) -> None:
    assert _opens_nothing(frame(WINDOW_UPDATE, 0, 1, payload)) is expected
