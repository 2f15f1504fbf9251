"""Content-Encoding: what is understood, what is refused, and that nothing inflates beyond the limit."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied, Reason
from proxy.core.fields.encodings import Encoding, beginning, decode, encode, parse_encoding

BODY = b'{"card": {"number": "4111"}}' * 20
ZIPPED = encode(BODY, Encoding.GZIP)


@pytest.mark.parametrize("value", [None, "", " \t", "identity", " Identity\t"])
def test_no_coding_and_identity_are_identity(value: str | None) -> None:
    assert parse_encoding(value) is Encoding.IDENTITY


@pytest.mark.parametrize("value", ["gzip", "GZIP", "x-gzip", "\tX-GZip "])
def test_gzip_and_its_old_name_are_gzip(value: str) -> None:
    assert parse_encoding(value) is Encoding.GZIP


@pytest.mark.parametrize(
    "value",
    [
        "br",
        "deflate",
        "zstd",
        "hex",
        "base64",
        "gzip, br",
        "gzip,gzip",
        "identity, gzip",
        "gzip,",
        ",",
        "gzip;q=1",
        "*",
    ],
)
def test_any_other_coding_and_every_stack_of_codings_is_refused(value: str) -> None:
    with pytest.raises(Denied) as denied:
        parse_encoding(value)
    assert denied.value.reason is Reason.ENCODING_UNSUPPORTED
    assert "gzip" in denied.value.hint


@given(st.binary(max_size=10_000), st.sampled_from(Encoding))
def test_what_was_encoded_decodes_to_itself(body: bytes, encoding: Encoding) -> None:
    assert decode(encode(body, encoding), encoding, len(body)) == body


def test_identity_is_the_same_object() -> None:
    assert encode(BODY, Encoding.IDENTITY) is BODY
    assert decode(BODY, Encoding.IDENTITY, len(BODY)) is BODY


def test_gzip_carries_no_time_and_no_name_so_that_equal_bodies_stay_equal() -> None:
    assert ZIPPED[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    assert gzip.decompress(ZIPPED) == BODY


def test_all_members_of_a_gzip_file_are_decoded() -> None:
    members = [b"[1,", b"", b"2,", b"3]" * 5000]
    file = b"".join(gzip.compress(member, mtime=0) for member in members)
    assert decode(file, Encoding.GZIP, 20_000) == b"".join(members)


def test_a_gzip_header_with_name_and_time_is_read() -> None:
    header = b"\x1f\x8b\x08\x08\x01\x02\x03\x04\x00\x03name\x00"
    assert decode(header + ZIPPED[10:], Encoding.GZIP, len(BODY)) == BODY


def test_every_truncation_is_refused() -> None:
    for length in range(len(ZIPPED)):
        with pytest.raises(Denied) as denied:
            decode(ZIPPED[:length], Encoding.GZIP, len(BODY))
        assert denied.value.reason is Reason.ENCODING_UNSUPPORTED
        assert "cut off" in denied.value.detail


def test_a_second_member_that_is_cut_off_is_refused() -> None:
    with pytest.raises(Denied, match="cut off"):
        decode(ZIPPED + ZIPPED[:-1], Encoding.GZIP, 2 * len(BODY))


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("no gzip", BODY),
        ("raw deflate", zlib.compress(BODY, wbits=-15)),
        ("zlib", zlib.compress(BODY)),
        ("a wrong checksum", ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:]),
        ("a wrong length", ZIPPED[:-1] + bytes([ZIPPED[-1] ^ 1])),
        ("damaged data", ZIPPED[:10] + bytes([ZIPPED[10] ^ 0x07]) + ZIPPED[11:]),
        ("text behind it", ZIPPED + b"garbage"),
        ("zeros behind it", ZIPPED + bytes(512)),
    ],
)
def test_what_is_no_intact_gzip_file_is_refused(what: str, body: bytes) -> None:
    with pytest.raises(Denied) as denied:
        decode(body, Encoding.GZIP, 2 * len(BODY))
    assert denied.value.reason is Reason.ENCODING_UNSUPPORTED, what
    assert "no intact gzip" in denied.value.detail


@pytest.mark.parametrize("encoding", Encoding)
def test_exactly_the_limit_passes_and_one_byte_more_does_not(encoding: Encoding) -> None:
    coded = encode(BODY, encoding)
    assert decode(coded, encoding, len(BODY)) == BODY
    with pytest.raises(Denied) as denied:
        decode(coded, encoding, len(BODY) - 1)
    assert denied.value.reason is Reason.BODY_TOO_LARGE


def test_the_limit_counts_all_members_together() -> None:
    with pytest.raises(Denied) as denied:
        decode(ZIPPED * 3, Encoding.GZIP, 3 * len(BODY) - 1)
    assert denied.value.reason is Reason.BODY_TOO_LARGE


def test_an_empty_body_passes_a_limit_of_zero_and_one_byte_does_not() -> None:
    assert decode(encode(b"", Encoding.GZIP), Encoding.GZIP, 0) == b""
    with pytest.raises(Denied) as denied:
        decode(encode(b"0", Encoding.GZIP), Encoding.GZIP, 0)
    assert denied.value.reason is Reason.BODY_TOO_LARGE


def test_a_body_that_would_inflate_a_thousandfold_is_refused_without_inflating_it() -> None:
    bomb = encode(bytes(50_000_000), Encoding.GZIP)
    tracemalloc.start()
    try:
        with pytest.raises(Denied) as denied:
            decode(bomb, Encoding.GZIP, 100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert denied.value.reason is Reason.BODY_TOO_LARGE
    assert peak < 1_000_000


def test_very_many_empty_members_take_linear_time() -> None:
    empty = encode(b"", Encoding.GZIP)
    started = time.monotonic()
    assert decode(empty * 100_000, Encoding.GZIP, 10) == b""
    assert time.monotonic() - started < 5


def test_a_refusal_quotes_nothing_of_the_body() -> None:
    with pytest.raises(Denied) as denied:
        decode(b"4111111111111111", Encoding.GZIP, 100)
    assert "4111" not in f"{denied.value} {denied.value.hint} {denied.value.__context__!r}"


@pytest.mark.parametrize(
    ("body", "coding", "seen"),
    [
        (BODY, "", BODY[:50]),
        (BODY[:9], "identity", BODY[:9]),
        (ZIPPED, "gzip", BODY[:50]),
        (ZIPPED[:-9], "gzip", BODY[:50]),  # only its beginning was kept
        (BODY, "gzip", b""),
        (BODY, "br", b""),
        (b"", "gzip", b""),
    ],
)
def test_a_look_at_the_beginning_takes_what_can_be_read(body: bytes, coding: str, seen: bytes) -> None:
    assert beginning(body, coding, 50) == seen
