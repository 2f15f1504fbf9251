"""Content-Encoding: what is understood, what is refused, and that nothing inflates beyond the limit."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields.encodings import (
    MAX_CODINGS,
    Decoder,
    Encoding,
    beginning,
    decode,
    encode,
    parse_encoding,
    take_off,
)
from proxy.core.reasons import Reason

BODY = b'{"card": {"number": "4111"}}' * 20
GZIP, DEFLATE, RAW, BR, ZSTD = Encoding
ZIPPED = encode(BODY, [GZIP])


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-15)


# What somebody else's encoder makes of a body.
THEIRS: dict[Encoding, Callable[[bytes], bytes]] = {
    GZIP: gzip.compress,
    DEFLATE: zlib.compress,
    RAW: raw_deflate,
    BR: brotli.compress,
    ZSTD: lambda body: zstandard.ZstdCompressor(write_checksum=True).compress(body),
}
THEIR_DECODERS: dict[Encoding, Callable[[bytes], bytes]] = {
    GZIP: gzip.decompress,
    DEFLATE: zlib.decompress,
    RAW: lambda body: zlib.decompress(body, -15),
    BR: brotli.decompress,
    ZSTD: lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}


def refused(body: bytes, *codings: Encoding, limit: int = 10_000) -> str:
    with pytest.raises(Denied) as denied:
        decode(body, codings, limit)
    assert denied.value.reason is Reason.ENCODING_UNSUPPORTED
    return denied.value.detail


def assert_too_large(body: bytes, *codings: Encoding, limit: int) -> None:
    with pytest.raises(Denied) as denied:
        decode(body, codings, limit)
    assert denied.value.reason is Reason.BODY_TOO_LARGE


class TestNames:
    @pytest.mark.parametrize("value", [None, "", " \t", "identity", " Identity\t", "identity, identity"])
    def test_no_coding_and_identity_are_none(self, value: str | None) -> None:
        assert parse_encoding(value) == ()

    @pytest.mark.parametrize(
        ("value", "codings"),
        [
            ("gzip", (GZIP,)),
            ("GZIP", (GZIP,)),
            ("\tX-GZip ", (GZIP,)),
            ("deflate", (DEFLATE,)),
            ("br", (BR,)),
            ("zstd", (ZSTD,)),
            ("gzip, br", (GZIP, BR)),
            ("identity,ZSTD , gzip", (ZSTD, GZIP)),
            ("gzip,gzip,gzip", (GZIP, GZIP, GZIP)),
        ],
    )
    def test_a_coding_has_a_name_in_any_case_and_several_have_an_order(
        self, value: str, codings: tuple[Encoding, ...]
    ) -> None:
        assert parse_encoding(value) == codings

    @pytest.mark.parametrize(
        "value",
        [
            *("hex", "base64", "compress", "dcb", "dcz", "deflate without zlib's header", "gzip,", ",", "gzip,,br"),
            *("gzip;q=1", "*", "gzip br", "gzip,gzip,gzip,gzip", "identity,identity,identity,gzip", "gzip\x0b"),
        ],
    )
    def test_any_other_is_refused_and_so_are_too_many(self, value: str) -> None:
        with pytest.raises(Denied) as denied:
            parse_encoding(value)
        assert denied.value.reason is Reason.ENCODING_UNSUPPORTED
        assert denied.value.hint
        assert MAX_CODINGS == 3


class TestDecoded:
    @given(st.binary(max_size=10_000), st.lists(st.sampled_from(Encoding), max_size=3))
    def test_what_was_encoded_decodes_to_itself(self, body: bytes, codings: list[Encoding]) -> None:
        coded = encode(body, codings)
        assert take_off(coded, codings, len(body))[0] == body
        for coding in reversed(codings):
            coded = THEIR_DECODERS[coding](coded)
        assert coded == body

    @given(
        st.binary(max_size=10_000), st.lists(st.sampled_from(Encoding), max_size=3), st.lists(st.integers(0, 99_999))
    )
    def test_pieces_of_any_length_give_the_same(self, body: bytes, codings: list[Encoding], cuts: list[int]) -> None:
        coded = body
        for coding in codings:
            coded = THEIRS[coding](coded)
        named = [DEFLATE if coding is RAW else coding for coding in codings]
        decoder = Decoder(named)
        at = [0, *sorted({cut % (len(coded) + 1) for cut in cuts}), len(coded)]
        assert b"".join(p for a, b in itertools.pairwise(at) for p in decoder.feed(coded[a:b], 20_000)) == body
        decoder.end()
        assert list(decoder.codings) == codings

    @pytest.mark.parametrize("coding", Encoding)
    def test_a_body_longer_than_what_is_decoded_at_once_is_whole(self, coding: Encoding) -> None:
        for body in (bytes(range(256)) * 2000, bytes(64 * 1024), bytes(3 * 64 * 1024), bytes(200_001)):
            assert decode(THEIRS[coding](body), [DEFLATE if coding is RAW else coding], len(body)) == body

    def test_without_a_coding_it_is_the_same_object(self) -> None:
        assert encode(BODY, []) is BODY
        assert decode(BODY, [], len(BODY)) is BODY
        assert list(Decoder([]).feed(BODY, len(BODY))) == [BODY]
        Decoder([]).end()

    def test_gzip_carries_no_time_and_no_name_so_that_equal_bodies_stay_equal(self) -> None:
        assert ZIPPED[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"

    @pytest.mark.parametrize("coding", Encoding)
    def test_the_same_body_always_gives_the_same_bytes(self, coding: Encoding) -> None:
        assert encode(BODY, [coding]) == encode(BODY, [coding])

    @pytest.mark.parametrize("coding", Encoding)
    def test_a_long_body_is_coded_piece_by_piece(self, coding: Encoding) -> None:
        pauses: list[None] = []
        body = random.Random(4711).randbytes(1_000_000)
        coded = encode(body, [coding], pause=lambda: pauses.append(None))
        assert THEIR_DECODERS[coding](coded) == body
        assert len(pauses) > 10

    def test_all_members_of_a_gzip_file_are_decoded(self) -> None:
        members = [b"[1,", b"", b"2,", b"3]" * 5000]
        file = b"".join(gzip.compress(member, mtime=0) for member in members)
        assert decode(file, [GZIP], 20_000) == b"".join(members)

    def test_a_gzip_header_with_name_and_time_is_read(self) -> None:
        header = b"\x1f\x8b\x08\x08\x01\x02\x03\x04\x00\x03name\x00"
        assert decode(header + ZIPPED[10:], [GZIP], len(BODY)) == BODY

    def test_all_frames_of_zstd_are_decoded_and_skippable_ones_skipped(self) -> None:
        skippable = b"\x5e\x2a\x4d\x18\x04\x00\x00\x00abcd"
        frames = [b"[1,", b"", b"2,", b"3]" * 5000]
        file = skippable.join([b"", *map(THEIRS[ZSTD], frames), b""])
        assert decode(file, [ZSTD], 20_000) == b"".join(frames)
        assert decode(skippable, [ZSTD], 0) == b""

    def test_zstd_without_a_length_in_its_head_is_read(self) -> None:
        stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        parts = [stream.compress(BODY), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK), stream.compress(BODY)]
        assert decode(b"".join([*parts, stream.flush()]), [ZSTD], 2 * len(BODY)) == 2 * BODY

    def test_deflate_stays_what_it_was(self) -> None:
        for coded, found in ((zlib.compress(BODY), DEFLATE), (raw_deflate(BODY), RAW)):
            assert take_off(coded, [DEFLATE], len(BODY)) == (BODY, (found,))
            inner = take_off(encode(coded, [BR]), [DEFLATE, BR], len(BODY))
            assert inner == (BODY, (found, BR))


class TestRefused:
    @pytest.mark.parametrize("coding", Encoding)
    def test_every_truncation_is_refused(self, coding: Encoding) -> None:
        coded = THEIRS[coding](BODY)
        for length in range(len(coded)):
            assert "cut off" in refused(coded[:length], DEFLATE if coding is RAW else coding)

    @pytest.mark.parametrize("coding", [GZIP, ZSTD])
    def test_a_second_member_that_is_cut_off_is_refused(self, coding: Encoding) -> None:
        assert "cut off" in refused(THEIRS[coding](BODY) + THEIRS[coding](BODY)[:-1], coding)

    @pytest.mark.parametrize("coding", Encoding)
    @pytest.mark.parametrize("tail", [b"garbage", bytes(512), b"\x00", b"\n"])
    @pytest.mark.parametrize("step", [1, 100_000])
    def test_what_follows_the_end_is_refused(self, coding: Encoding, tail: bytes, step: int) -> None:
        coded = THEIRS[coding](BODY) + tail
        decoder = Decoder([DEFLATE if coding is RAW else coding])

        def read() -> None:
            for start in range(0, len(coded), step):
                list(decoder.feed(coded[start : start + step], 10_000))
            decoder.end()

        with pytest.raises(Denied, match=r"not intact|cut off"):
            read()

    @pytest.mark.parametrize("coding", [GZIP, DEFLATE, ZSTD])
    def test_every_change_is_refused_by_the_checksum(self, coding: Encoding) -> None:
        coded = THEIRS[coding](BODY)
        for at in range(len(coded) - 4, len(coded)):
            changed = coded[:at] + bytes([coded[at] ^ 1]) + coded[at + 1 :]
            assert "not intact" in refused(changed, coding)

    @pytest.mark.parametrize("coding", Encoding)
    @pytest.mark.parametrize("other", [None, *Encoding])
    def test_another_coding_than_the_field_says_is_refused(self, coding: Encoding, other: Encoding | None) -> None:
        if coding is RAW or other is coding or {coding, other} == {DEFLATE, RAW}:
            return
        body = BODY if other is None else THEIRS[other](BODY)
        assert refused(body, coding)

    def test_damaged_data_is_refused(self) -> None:
        assert "not intact gzip" in refused(ZIPPED[:10] + bytes([ZIPPED[10] ^ 0x07]) + ZIPPED[11:], GZIP)

    def test_a_window_of_more_than_eight_mebibytes_is_refused(self) -> None:
        """RFC 9659: decoders must support 8 MiB, and encoders must not use more."""
        for log, is_taken in ((23, True), (24, False)):
            parameters = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=False)
            stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
            coded = stream.compress(BODY) + stream.flush()
            if is_taken:
                assert decode(coded, [ZSTD], len(BODY)) == BODY
            else:
                assert "not intact zstd" in refused(coded, ZSTD)

    @pytest.mark.parametrize(
        "frame", [b"\x27\xb5\x2f\xfd" + bytes(20), b"\x28\xb5\x2f\xfd\x21\x07\x01\x01\x00\x00\x00", b"\x37\xa4\x30\xec"]
    )
    def test_old_frames_and_dictionaries_of_zstd_are_refused(self, frame: bytes) -> None:
        refused(frame, ZSTD)

    def test_a_preset_dictionary_of_zlib_is_refused(self) -> None:
        stream = zlib.compressobj(zdict=BODY)
        refused(stream.compress(BODY) + stream.flush(), DEFLATE)

    def test_a_refusal_quotes_nothing_of_the_body(self) -> None:
        for coding in Encoding:
            with pytest.raises(Denied) as denied:
                decode(b"4111111111111111", [coding], 100)
            assert "4111" not in f"{denied.value} {denied.value.hint} {denied.value.__context__!r}"


class TestLimits:
    @pytest.mark.parametrize("codings", [[], *([each] for each in Encoding), [GZIP, BR], [ZSTD, DEFLATE, GZIP]])
    def test_exactly_the_limit_passes_and_one_byte_more_does_not(self, codings: list[Encoding]) -> None:
        coded = encode(BODY, codings)
        assert decode(coded, codings, len(BODY)) == BODY
        assert_too_large(coded, *codings, limit=len(BODY) - 1)

    @pytest.mark.parametrize("coding", [GZIP, ZSTD])
    def test_the_limit_counts_all_members_together(self, coding: Encoding) -> None:
        assert_too_large(THEIRS[coding](BODY) * 3, coding, limit=3 * len(BODY) - 1)

    @pytest.mark.parametrize("coding", Encoding)
    def test_an_empty_body_passes_a_limit_of_zero_and_one_byte_does_not(self, coding: Encoding) -> None:
        assert decode(encode(b"", [coding]), [coding], 0) == b""
        assert_too_large(encode(b"0", [coding]), coding, limit=0)

    @pytest.mark.parametrize("coding", Encoding)
    def test_a_body_that_would_inflate_a_thousandfold_is_refused_without_inflating_it(self, coding: Encoding) -> None:
        bomb = encode(bytes(50_000_000), [coding])
        tracemalloc.start()
        try:
            assert_too_large(bomb, coding, limit=100_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 3_000_000

    @pytest.mark.parametrize("inner", [GZIP, ZSTD])
    @pytest.mark.parametrize("outer", Encoding)
    def test_a_bomb_of_empty_members_within_another_coding_is_refused(self, inner: Encoding, outer: Encoding) -> None:
        """What it decodes to is short in the end, but not in between."""
        bomb = encode(encode(b"", [inner]) * 1_000_000, [outer])
        assert_too_large(bomb, inner, outer, limit=100_000)

    @pytest.mark.parametrize("coding", [GZIP, ZSTD])
    def test_very_many_empty_members_take_linear_time(self, coding: Encoding) -> None:
        empty = encode(b"", [coding])
        started = time.thread_time()
        assert decode(empty * 100_000, [coding], 10) == b""
        assert time.thread_time() - started < 5

    def test_the_limit_of_a_stream_is_that_of_a_piece(self) -> None:
        decoder = Decoder([GZIP])
        for _ in range(3):
            assert len(b"".join(decoder.feed(ZIPPED, len(BODY)))) == len(BODY)


_STREAM = brotli.Compressor()
UNFINISHED = _STREAM.process(BODY) + _STREAM.flush()


class TestBeginning:
    @pytest.mark.parametrize(
        ("body", "coding", "seen"),
        [
            (BODY, "", BODY[:50]),
            (BODY[:9], "identity", BODY[:9]),
            (ZIPPED, "gzip", BODY[:50]),
            (ZIPPED[:-9], "gzip", BODY[:50]),  # only its beginning was kept
            (zlib.compress(BODY)[:-3], "deflate", BODY[:50]),
            (raw_deflate(BODY)[:-3], "deflate", BODY[:50]),
            (UNFINISHED, "br", BODY[:50]),
            (THEIRS[ZSTD](BODY)[:-4], "zstd", BODY[:50]),
            (brotli.compress(ZIPPED), "gzip, br", BODY[:50]),
            (BODY, "gzip", b""),
            (BODY, "compress", b""),
            (b"", "gzip", b""),
        ],
    )
    def test_a_look_at_the_beginning_takes_what_can_be_read(self, body: bytes, coding: str, seen: bytes) -> None:
        assert beginning(body, coding, 50) == seen

    def test_a_bomb_shows_its_beginning(self) -> None:
        assert beginning(encode(bytes(10_000_000), [ZSTD]), "zstd", 50) == bytes(50)
        assert beginning(encode(bytes(10_000_000), [GZIP, GZIP]), "gzip, gzip", 50) == bytes(50)


def test_somebody_elses_reader_reads_what_is_written() -> None:
    with zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024).stream_reader(
        io.BytesIO(encode(BODY, [ZSTD]))
    ) as f:
        assert f.read() == BODY
