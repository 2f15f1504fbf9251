"""permessage-deflate: which offers go on, which answers are answers to them, and messages within limits."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.http.permessage import (
    BadAnswer,
    BadMessage,
    Deflater,
    Inflater,
    Parameters,
    TooLarge,
    agreed,
    deflater,
    offers,
)

LIMIT = 10_000
PMD = "permessage-deflate"


class TestOffers:
    @pytest.mark.parametrize(
        "offer",
        [
            PMD,
            f"{PMD}; client_max_window_bits",
            f"{PMD}; client_max_window_bits=15; server_max_window_bits=8",
            f"{PMD};server_no_context_takeover;client_no_context_takeover",
            f'{PMD}; server_max_window_bits="10"',
            f"{PMD}; client_max_window_bits; server_max_window_bits = 10, {PMD}",
        ],
    )
    def test_what_is_known_goes_on_as_it_came(self, offer: str) -> None:
        assert offers([offer]) == offer

    @pytest.mark.parametrize(
        "offer",
        [
            "",
            " , ",
            "x-webkit-deflate-frame",
            "permessage-bzip2",
            "Permessage-Deflate-2",
            f"{PMD}; unknown",
            f"{PMD}; server_max_window_bits",
            f"{PMD}; server_max_window_bits=7",
            f"{PMD}; server_max_window_bits=16",
            f"{PMD}; server_max_window_bits=08",
            f"{PMD}; server_max_window_bits=10; server_max_window_bits=10",
            f"{PMD}; server_no_context_takeover=1",
            f"{PMD}; client_max_window_bits=x",
            f"{PMD}; =",
            f"{PMD};",
            f'{PMD}; server_max_window_bits="10',
        ],
    )
    def test_what_is_unknown_or_wrong_ends_here(self, offer: str) -> None:
        assert offers([offer]) == ""
        assert offers([f"{offer}, {PMD}", "foo"]) == PMD

    def test_several_fields_are_one_list(self) -> None:
        assert offers(["foo", f"{PMD}; client_max_window_bits", f"bar, {PMD}"]) == (
            f"{PMD}; client_max_window_bits, {PMD}"
        )


class TestAnswers:
    @pytest.mark.parametrize(
        ("offer", "answer", "agreement"),
        [
            (PMD, "", None),
            ("", "", None),
            (PMD, PMD, Parameters()),
            (PMD, f"{PMD}; server_max_window_bits=10", Parameters(server_bits=10)),
            (PMD, f"{PMD}; server_no_context_takeover", Parameters(server_forgets=True)),
            (PMD, f"{PMD}; client_no_context_takeover", Parameters(client_forgets=True)),
            (f"{PMD}; server_max_window_bits=10", f"{PMD}; server_max_window_bits=9", Parameters(server_bits=9)),
            (f"{PMD}; client_no_context_takeover", PMD, Parameters()),
            (
                f"{PMD}; client_max_window_bits",
                f"{PMD}; client_max_window_bits=8",
                Parameters(client_bits=8, takes_client_bits=True),
            ),
            (f"{PMD}; client_max_window_bits=12", PMD, Parameters()),
            (
                f"{PMD}; client_max_window_bits=12",
                f"{PMD}; client_max_window_bits=12",
                Parameters(client_bits=12, takes_client_bits=True),
            ),
            (f"foo, {PMD}; server_max_window_bits=8, {PMD}", PMD, Parameters()),
        ],
    )
    def test_what_was_agreed_on(self, offer: str, answer: str, agreement: Parameters | None) -> None:
        assert agreed([offer], [answer]) == agreement

    @pytest.mark.parametrize(
        ("offer", "answer"),
        [
            ("", PMD),
            ("foo", PMD),
            (PMD, "foo"),
            (PMD, f"{PMD}, {PMD}"),
            (PMD, f"{PMD}; unknown"),
            (PMD, f"{PMD}; client_max_window_bits=10"),
            (f"{PMD}; client_max_window_bits", f"{PMD}; client_max_window_bits"),
            (f"{PMD}; client_max_window_bits=12", f"{PMD}; client_max_window_bits=13"),
            (f"{PMD}; server_max_window_bits=10", PMD),
            (f"{PMD}; server_max_window_bits=10", f"{PMD}; server_max_window_bits=11"),
            (f"{PMD}; server_no_context_takeover", PMD),
        ],
    )
    def test_what_was_not_offered_cannot_be_agreed_on(self, offer: str, answer: str) -> None:
        with pytest.raises(BadAnswer):
            agreed([offer], [answer])


class TestMessages:
    @given(
        st.lists(st.binary(max_size=500), max_size=5),
        st.integers(9, 15),
        st.booleans(),
    )
    def test_what_was_deflated_inflates_again(self, payloads: list[bytes], bits: int, forgets: bool) -> None:
        ours, theirs = Deflater(bits, forgets=forgets), Inflater(bits, forgets=forgets)
        for payload in [*payloads, b"", b"", b"a" * 5000]:
            data = ours.deflate(payload)
            assert data
            assert theirs.inflate(data, LIMIT) + theirs.end(LIMIT) == payload

    @given(st.lists(st.binary(max_size=500), max_size=5), st.integers(9, 15), st.booleans())
    def test_what_zlib_deflated_in_one_context_inflates(self, payloads: list[bytes], bits: int, forgets: bool) -> None:
        inflater, context = Inflater(bits, forgets=forgets), zlib.compressobj(wbits=-bits)
        for payload in payloads:
            if forgets:
                context = zlib.compressobj(wbits=-bits)
            data = context.compress(payload) + context.flush(zlib.Z_SYNC_FLUSH)
            data = data.removesuffix(b"\x00\x00\xff\xff") or b"\x00"
            pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
            assert b"".join(inflater.inflate(piece, LIMIT) for piece in pieces) + inflater.end(LIMIT) == payload

    def test_ours_refer_no_further_back_than_was_agreed_on_and_use_little_memory(self) -> None:
        words = bytes(range(256)) * 2
        for bits in (9, 12, 15):
            ours, theirs = Deflater(bits, forgets=False), Inflater(bits, forgets=False)
            for at in range(40):
                payload = words + b"%d" % at
                assert theirs.inflate(ours.deflate(payload), LIMIT) + theirs.end(LIMIT) == payload

    def test_a_long_one_is_deflated_piece_by_piece(self) -> None:
        pauses: list[None] = []
        payload = random.Random(4711).randbytes(100_000) + b"a" * 100_000
        ours, theirs = Deflater(15, forgets=False), Inflater(15, forgets=False)
        data = ours.deflate(payload, lambda: pauses.append(None))
        assert theirs.inflate(data, 200_000) + theirs.end(0) == payload
        assert len(pauses) > 10

    def test_a_context_is_forgotten_where_that_was_agreed_on(self) -> None:
        ours = Deflater(15, forgets=True)
        first = ours.deflate(b"some words that come again")
        assert ours.deflate(b"some words that come again") == first
        kept = Deflater(15, forgets=False)
        assert len(kept.deflate(b"some words that come again")) > len(kept.deflate(b"some words that come again"))

    @pytest.mark.parametrize("most", [0, 1, 99, 100])
    def test_nothing_is_inflated_beyond_the_limit(self, most: int) -> None:
        data = Deflater(15, forgets=False).deflate(b"x" * 100)
        inflater = Inflater(15, forgets=False)
        if most < 100:
            with pytest.raises(TooLarge):
                inflater.inflate(data, most)
        else:
            assert inflater.inflate(data, most) + inflater.end(0) == b"x" * 100

    def test_a_bomb_takes_no_memory(self) -> None:
        context = zlib.compressobj(9, wbits=-15)
        data = context.compress(bytes(100_000_000)) + context.flush(zlib.Z_SYNC_FLUSH)
        inflater = Inflater(15, forgets=False)
        with pytest.raises(TooLarge):
            inflater.inflate(data, LIMIT)

    @pytest.mark.parametrize("data", [b"\xff\xff", b"\x06", b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"])
    def test_what_cannot_be_read_is_refused(self, data: bytes) -> None:
        with pytest.raises(BadMessage):
            Inflater(15, forgets=False).inflate(data, LIMIT)

    def test_a_window_that_zlib_does_not_make_is_not_used(self) -> None:
        assert deflater(8, forgets=False) is None
        assert deflater(9, forgets=False) is not None
        assert deflater(None, forgets=False) is not None
