"""Frames and messages: read strictly, wherever the bytes are cut, and written so that others read the same."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameDecoder, MessageDecoder, ParseFailed

from proxy.core.http.permessage import Inflater, TooLarge, deflater
from proxy.core.http.websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    BadFrame,
    Control,
    Frames,
    Message,
    Messages,
    Part,
    Passing,
    Writer,
    close_payload,
)
from tests.e2e.websockets import MASK, frame

LIMIT = 100_000
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10


def reader(*, is_masked: bool = True, deflates: bool = False, limit: int = LIMIT) -> tuple[Frames, Messages]:
    frames = Frames(is_masked=is_masked, may_compress=deflates)
    return frames, Messages(frames, limit, Inflater(None, forgets=False) if deflates else None)


def items(source: Messages | Passing) -> Iterator[Any]:
    while (item := source.read()) is not None:
        yield item


def read(data: bytes, *, step: int = 0, **more: Any) -> list[Message | Control]:
    """Read bytes, in pieces of so many, and return the messages and the control frames."""
    frames, source = reader(**more)
    found: list[Message | Control] = []
    for at in range(0, len(data), step or max(len(data), 1)):
        frames.feed(data[at : at + (step or len(data))])
        found += [item for item in items(source) if not isinstance(item, Part)]
    return found


def packed(payload: bytes, *, level: int = 6) -> bytes:
    """Return a message's payload as permessage-deflate has it."""
    context = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (context.compress(payload) + context.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


class TestReading:
    @pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "not"])
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
    @pytest.mark.parametrize("step", [0, 1, 7])
    def test_a_message_of_any_length_however_it_is_cut(self, mask: bytes | None, size: int, step: int) -> None:
        if step == 1 and size > 65535:
            step = 3
        payload = bytes(at % 251 for at in range(size))
        (message,) = read(frame(FIN | BINARY, payload, mask=mask), step=step, is_masked=mask is not None)
        assert message == Message(BINARY, payload, was_compressed=False)

    def test_fragments_are_one_message_and_control_frames_between_them_come_at_once(self) -> None:
        data = (
            frame(TEXT, b"\xe2")  # in the middle of a character
            + frame(FIN | PING, b"a")
            + frame(0, b"")
            + frame(0, b"\x82")
            + frame(FIN | PONG, b"b")
            + frame(FIN, b"\xac!")
        )
        for step in (0, 1, 2, 5):
            assert read(data, step=step) == [
                Control(PING, b"a"),
                Control(PONG, b"b"),
                Message(TEXT, "€!".encode(), was_compressed=False),
            ]

    @given(st.data())
    def test_any_messages_in_any_fragments_cut_anywhere(self, data: st.DataObject) -> None:
        said: list[Message | Control] = []
        out = b""
        deflates = data.draw(st.booleans())
        context = zlib.compressobj(wbits=-15)
        for _ in range(data.draw(st.integers(0, 4))):
            payload = data.draw(st.binary(max_size=300))
            compresses = deflates and data.draw(st.booleans())
            sent = payload
            if compresses:
                flushed = context.compress(payload) + context.flush(zlib.Z_SYNC_FLUSH)
                sent = flushed.removesuffix(b"\x00\x00\xff\xff") or b"\x00"
            cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
            parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
            for at, part in enumerate(parts):
                first = (RSV1 if compresses and not at else 0) | (BINARY if not at else 0)
                out += frame(
                    first | (FIN if at == len(parts) - 1 else 0),
                    part,
                    mask=data.draw(st.binary(min_size=4, max_size=4)),
                )
                if at < len(parts) - 1 and data.draw(st.booleans()):
                    said.append(Control(PING, part[:100]))
                    out += frame(FIN | PING, part[:100])
            said.append(Message(BINARY, payload, was_compressed=compresses))
        assert read(out, step=data.draw(st.integers(1, 400)), deflates=deflates) == said

    def test_compressed_messages_share_a_context(self) -> None:
        context = zlib.compressobj(wbits=-15)
        data, payload = b"", b"the same words again and again"
        for _ in range(3):
            part = (context.compress(payload) + context.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
            data += frame(FIN | RSV1 | TEXT, part)
        data += frame(FIN | TEXT, b"plain")
        *found, last = read(data, deflates=True)
        assert found == [Message(TEXT, payload, was_compressed=True)] * 3
        assert last == Message(TEXT, b"plain", was_compressed=False)

    def test_nothing_behind_a_close_frame_is_looked_at(self) -> None:
        data = frame(FIN | CLOSE, b"\x03\xe8") + b"\xff" * 100
        frames, source = reader()
        frames.feed(data)
        assert list(items(source)) == [Control(CLOSE, b"\x03\xe8")]
        frames.feed(b"\xff" * 100)
        assert source.read() is None
        assert frames.has_closed

    def test_empty_fragments_without_an_end_take_no_memory(self) -> None:
        frames, source = reader()
        frames.feed(frame(TEXT))
        for _ in range(1000):
            frames.feed(frame(0))
            assert [item for item in items(source) if not isinstance(item, Part)] == []
        assert len(source._held) == 0

    @pytest.mark.parametrize("cut", [1, 2, 3, 5, 6, 9, 13])
    def test_what_is_not_whole_is_waited_for(self, cut: int) -> None:
        data = frame(FIN | BINARY, b"x" * 65536)
        frames, source = reader()
        frames.feed(data[:cut])
        assert source.read() is None
        frames.feed(data[cut:])
        assert source.read() == Message(BINARY, b"x" * 65536, was_compressed=False)


class TestLimits:
    @pytest.mark.parametrize("first", [FIN | TEXT, TEXT])
    def test_a_frame_that_says_it_is_too_long_is_refused_before_it_comes(self, first: int) -> None:
        assert read(frame(FIN | TEXT, b"x" * 100), limit=100)
        with pytest.raises(TooLarge):
            read(frame(first, b"x" * 101)[:12], limit=100)

    def test_fragments_count_together(self) -> None:
        parts = frame(TEXT, b"x" * 60) + frame(0, b"x" * 40)
        assert read(parts + frame(FIN, b""), limit=100)
        with pytest.raises(TooLarge):
            read(parts + frame(FIN, b"x"), limit=100)

    def test_what_is_inflated_counts(self) -> None:
        assert read(frame(FIN | RSV1 | TEXT, packed(b"x" * 100)), limit=100, deflates=True)
        with pytest.raises(TooLarge):
            read(frame(FIN | RSV1 | TEXT, packed(b"x" * 101)), limit=100, deflates=True)

    def test_the_end_of_a_compressed_message_counts(self) -> None:
        stored = zlib.compressobj(0, zlib.DEFLATED, -15)
        data = stored.compress(b"x" * 100) + stored.flush(zlib.Z_SYNC_FLUSH)
        assert read(frame(FIN | RSV1 | TEXT, data.removesuffix(b"\x00\x00\xff\xff")), limit=100, deflates=True)


WRONG: dict[str, tuple[bytes, int]] = {
    **{f"opcode {code:#x}": (frame(FIN | code), 1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "reserved bit 1": (frame(FIN | RSV1 | TEXT), 1002),
    "reserved bit 2": (frame(FIN | RSV2 | TEXT), 1002),
    "reserved bit 3": (frame(FIN | RSV3 | TEXT), 1002),
    "reserved bit of a ping": (frame(FIN | RSV1 | PING), 1002),
    "not masked": (frame(FIN | TEXT, mask=None), 1002),
    "a length of 16 bits that fits into 7": (frame(FIN | TEXT, b"a" * 125, length=b"\xfe\x00\x7d"), 1002),
    "a length of 64 bits that fits into 16": (frame(FIN | TEXT, length=b"\xff" + struct.pack(">Q", 65535)), 1002),
    "a length of 64 bits with the highest set": (frame(FIN | TEXT, length=b"\xff" + struct.pack(">Q", 1 << 63)), 1002),
    "a ping of 126 bytes": (frame(FIN | PING, b"a" * 126), 1002),
    "a ping of 16 bits": (frame(FIN | PING, b"a", length=b"\xfe\x00\x01"), 1002),
    "a fragment of a ping": (frame(PING), 1002),
    "a fragment of a close": (frame(CLOSE), 1002),
    "a fragment of nothing": (frame(FIN, b"a"), 1002),
    "a fragment of nothing, after a message": (frame(FIN | TEXT, b"a") + frame(0, b"b"), 1002),
    "a message within a message": (frame(TEXT, b"a") + frame(FIN | TEXT, b"b"), 1002),
    "a close of one byte": (frame(FIN | CLOSE, b"\x03"), 1002),
    **{
        f"a close with {code}": (frame(FIN | CLOSE, struct.pack(">H", code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
    },
    "a close with a reason that is no UTF-8": (frame(FIN | CLOSE, b"\x03\xe8\xff"), 1007),
    "text that is no UTF-8": (frame(FIN | TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80"), 1007),
    "text that ends in a character": (frame(FIN | TEXT, b"\xe2\x82"), 1007),
    "text that is no UTF-8 in fragments": (frame(TEXT, b"\xe2\x82") + frame(FIN, b"a"), 1007),
    "an overlong form": (frame(FIN | TEXT, b"\xc0\xaf"), 1007),
}
WRONG_COMPRESSED: dict[str, tuple[bytes, int]] = {
    "reserved bit 2": (frame(FIN | RSV2 | TEXT), 1002),
    "two reserved bits": (frame(FIN | RSV1 | RSV3 | TEXT, packed(b"a")), 1002),
    "reserved bit 1 of a fragment": (frame(RSV1 | TEXT, packed(b"a")[:1]) + frame(FIN | RSV1, packed(b"a")[1:]), 1002),
    "reserved bit 1 of a ping": (frame(FIN | RSV1 | PING), 1002),
    "what cannot be inflated": (frame(FIN | RSV1 | TEXT, b"\xff\xff\xff"), 1007),
    "what is no UTF-8 when inflated": (frame(FIN | RSV1 | TEXT, packed(b"\xff")), 1007),
    "a final block": (frame(FIN | RSV1 | TEXT, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), 1007),
    "a distance beyond the window": (frame(FIN | RSV1 | TEXT, b"\x02\x02\x00\x00"), 1007),
}
RIGHT: dict[str, bytes] = {
    **{f"a close with {c}": frame(FIN | CLOSE, struct.pack(">H", c)) for c in (1000, 1003, 1007, 1014, 3000, 4999)},
    "a close of nothing": frame(FIN | CLOSE),
    "a close with a reason": frame(FIN | CLOSE, b"\x03\xe8" + "é".encode() * 61),
    "a ping of 125 bytes": frame(FIN | PING, b"a" * 125),
    "binary that is no UTF-8": frame(FIN | BINARY, b"\xff"),
    "a mask of zeros": frame(FIN | TEXT, b"abc", mask=bytes(4)),
}


class TestStrictness:
    """As in the cases of the Autobahn test suite: framing, reserved bits, opcodes, fragments, UTF-8, closing."""

    @pytest.mark.parametrize("name", WRONG)
    @pytest.mark.parametrize("step", [0, 1])
    def test_what_is_wrong_is_refused_with_its_status(self, name: str, step: int) -> None:
        data, code = WRONG[name]
        with pytest.raises(BadFrame) as refused:
            read(data, step=step)
        assert refused.value.code == code

    @pytest.mark.parametrize("name", WRONG_COMPRESSED)
    def test_the_same_where_messages_may_be_compressed(self, name: str) -> None:
        data, code = WRONG_COMPRESSED[name]
        with pytest.raises(BadFrame) as refused:
            read(data, deflates=True)
        assert refused.value.code == code

    @pytest.mark.parametrize("name", RIGHT)
    def test_what_is_right_passes(self, name: str) -> None:
        assert len(read(RIGHT[name])) == 1

    def test_a_masked_frame_of_a_server_is_refused(self) -> None:
        with pytest.raises(BadFrame, match="must not be masked"):
            read(frame(FIN | TEXT), is_masked=False)

    @pytest.mark.parametrize("name", [name for name, (_, code) in WRONG.items() if code == 1002 or "close" in name])
    def test_a_direction_that_is_not_looked_at_is_held_to_the_same_frames(self, name: str) -> None:
        frames = Frames(is_masked=True, may_compress=False)
        frames.feed(WRONG[name][0])
        with pytest.raises(BadFrame):
            list(items(Passing(frames)))

    @given(
        st.lists(st.sampled_from([data for data, _ in WRONG.values()] + list(RIGHT.values())), max_size=3), st.data()
    )
    def test_whatever_passes_here_passes_in_another_implementation_and_is_the_same_there(
        self, parts: list[bytes], data: st.DataObject
    ) -> None:
        mutated = bytearray(b"".join(parts) or b"\x81\x80abcd")
        for _ in range(data.draw(st.integers(0, 2))):
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
        text, deflates = bytes(mutated), data.draw(st.booleans())
        try:
            ours = read(text, deflates=deflates)
        except (BadFrame, TooLarge):
            return
        # No further: of a message that is not complete, the other one refuses a part sooner.
        found = list(itertools.islice(theirs(text, deflates=deflates), len(ours)))
        assert found == [(item.opcode, item.payload) for item in ours]


def theirs(data: bytes, *, deflates: bool) -> Iterator[tuple[int, bytes]]:
    """Yield what wsproto reads."""
    extension = PerMessageDeflate()
    decoder, messages = FrameDecoder(client=False, extensions=[extension] if deflates else []), MessageDecoder()
    decoder.receive_bytes(data)
    held = b""
    while (got := decoder.process_buffer()) is not None:
        if got.opcode.iscontrol():
            payload = got.payload
            assert isinstance(payload, bytes)
            yield int(got.opcode), payload
            if got.opcode == CLOSE:
                return
            continue
        part = messages.process_frame(got)
        held += part.payload.encode() if isinstance(part.payload, str) else bytes(part.payload)  # type: ignore[arg-type]  # no close frame
        if part.message_finished:
            yield int(part.opcode), held
            held = b""


class TestPassing:
    @given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
    def test_bytes_of_messages_stay_as_they_came(self, payloads: list[bytes], step: int) -> None:
        data = b"".join(frame(FIN | BINARY, payload) for payload in payloads)
        frames = Frames(is_masked=True, may_compress=False)
        source, out = Passing(frames), b""
        for at in range(0, len(data), step):
            frames.feed(data[at : at + step])
            out += b"".join(item.raw for item in items(source))
        assert out == data
        assert frames.is_between

    def test_it_says_whether_a_frame_is_under_way(self) -> None:
        frames = Frames(is_masked=False, may_compress=False)
        source = Passing(frames)
        frames.feed(frame(FIN | TEXT, b"abc", mask=None)[:3])
        assert [item.raw for item in items(source)] == [b"\x81\x03a"]
        assert not frames.is_between
        frames.feed(b"bc" + frame(FIN | PING, b"x", mask=None))
        assert list(items(source)) == [Part(b"bc"), Control(PING, b"x")]
        assert frames.is_between


class TestWriting:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
    @pytest.mark.parametrize("is_masked", [True, False])
    @pytest.mark.parametrize("compresses", [True, False])
    def test_others_read_what_was_written(self, size: int, is_masked: bool, compresses: bool) -> None:
        payload = bytes(at % 7 for at in range(size))
        writer = Writer(deflater(15, forgets=False), is_masked=is_masked)
        data = writer.message(Message(BINARY, payload, compresses)) + writer.control(Control(PONG, b"p"))
        decoder = FrameDecoder(client=not is_masked, extensions=[PerMessageDeflate()])
        decoder.receive_bytes(data)
        got, pong = decoder.process_buffer(), decoder.process_buffer()
        assert got is not None
        assert pong is not None
        assert (int(got.opcode), got.payload, got.message_finished) == (BINARY, payload, True)
        assert (int(pong.opcode), pong.payload) == (PONG, b"p")
        assert bool(data[0] & RSV1) is compresses

    def test_each_frame_has_a_mask_of_its_own(self) -> None:
        writer = Writer(None, is_masked=True)
        frames = {writer.message(Message(TEXT, b"the same", was_compressed=False)) for _ in range(10)}
        assert len({data[2:6] for data in frames}) == 10
        assert all(read(data) == [Message(TEXT, b"the same", was_compressed=False)] for data in frames)

    def test_what_cannot_be_compressed_for_the_other_side_goes_on_as_it_is(self) -> None:
        writer = Writer(deflater(8, forgets=False), is_masked=False)
        assert writer.message(Message(TEXT, b"abc", was_compressed=True)) == b"\x81\x03abc"

    def test_a_reason_is_cut_where_a_character_ends(self) -> None:
        payload = close_payload(1008, "é" * 100)
        assert (len(payload), payload[:2]) == (124, b"\x03\xf0")
        assert payload[2:].decode() == "é" * 61
        assert read(frame(FIN | CLOSE, payload))


def test_another_implementation_refuses_what_is_wrong_too() -> None:
    """The table is no invention of ours, but for what is about a final block, and about a close frame's inside."""
    agree = [name for name, (data, _) in WRONG.items() if "close" not in name and not _passes_elsewhere(data)]
    assert len(agree) == len([name for name in WRONG if "close" not in name])


def _passes_elsewhere(data: bytes) -> bool:
    try:
        list(theirs(data, deflates=False))
    except ParseFailed:
        return False
    return True
