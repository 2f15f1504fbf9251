"""Bodies of HTTP/1, however they are cut: where they end, what is in them, and what is no body.

Proves ARCHITECTURE's rule 4 for bodies: what is read here is what every other reader reads, or it is refused.
"""

from __future__ import annotations

import h11
import pytest
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.http.framing import (
    CHUNKS_AT_ONCE,
    MAX_CHUNK_LINE,
    MAX_TRAILERS,
    BadFraming,
    Body,
    body_of,
    chunk,
    last_chunk,
)
from proxy.core.http.heads import CHUNKED, MAX_HEAD_BYTES, UNTIL_CLOSE


def fed(body: Body, *pieces: bytes) -> tuple[bytes, bytes | None]:
    """Return what a body gives for these pieces, and what follows it; pieces after its end are what follows."""
    got, rest = b"", None
    for piece in pieces:
        if rest is not None:
            rest += piece
            continue
        more, rest = body.feed(piece)
        got += more
    return got, rest


CHUNKS = b"2\r\nab\r\n" + b"A;name=value\r\n0123456789\r\n" + b"0\r\nX-Trailer: 1\r\n\r\n"


class TestBodies:
    @pytest.mark.parametrize(
        ("size", "data", "expected"),
        [
            (3, b"ab", (b"ab", None)),
            (3, b"abc", (b"abc", b"")),
            (3, b"abcd", (b"abc", b"d")),
            (CHUNKED, b"1\r\na\r\n", (b"a", None)),
            (CHUNKED, b"0\r\n\r\n", (b"", b"")),
            (CHUNKED, b'3  \r\nabc\r\n00;a="b c";d\r\n\r\n', (b"abc", b"")),
            (CHUNKED, b"ffffffffffffffff\r\nabc", (b"abc", None)),
            (CHUNKED, CHUNKS + b"GET", (b"ab0123456789", b"GET")),
            (UNTIL_CLOSE, b"abc", (b"abc", None)),
        ],
    )
    def test_a_body_ends_where_its_framing_says(
        self, size: int, data: bytes, expected: tuple[bytes, bytes | None]
    ) -> None:
        assert fed(body_of(size), data) == expected
        assert fed(body_of(size), *(data[i : i + 1] for i in range(len(data)))) == expected

    def test_what_stands_in_the_trailer_section_is_kept_in_its_order(self) -> None:
        body, data = body_of(CHUNKED), b"0\r\nX-A:  1 \r\nb:\r\nX-A: 2\r\n\r\n"
        for i in range(len(data)):
            assert body.trailers == ()
            body.feed(data[i : i + 1])
        assert body.trailers == ((b"X-A", b"1"), (b"b", b""), (b"X-A", b"2"))
        assert last_chunk(body.trailers) == b"0\r\nX-A: 1\r\nb: \r\nX-A: 2\r\n\r\n"
        assert last_chunk(()) == b"0\r\n\r\n"

    def test_a_piece_of_a_chunk_is_given_before_the_chunk_is_whole(self) -> None:
        assert body_of(CHUNKED).feed(b"ff\r\nab") == (b"ab", None)

    @pytest.mark.parametrize(
        "data",
        [
            b"\r\n",
            b"g\r\n",
            b"-1\r\na\r\n",
            b"+1\r\na\r\n",
            b"0x1\r\na\r\n",
            b" 1\r\na\r\n",
            b"1_0\r\na\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1" * 25 + b"\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\nX: \x00\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"1\na\r\n",
            b"1;a\nb\r\n",
            b"1;a\rb\r\n",
            b"1;\x00\r\n",
            b"1 1\r\n",
            b"1\r\na\r\r\n",
            b"0\n\n",
            b"0\r\n\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\nX: 1\n\n",
            b"1" * 17 + b"\r\n",
        ],
    )
    def test_chunks_of_another_form_are_refused(self, data: bytes) -> None:
        with pytest.raises(BadFraming) as caught:
            body_of(CHUNKED).feed(data)
        assert str(caught.value) == ""

    @pytest.mark.parametrize("start", [b"1;", b'1;a="', b"1   "])
    def test_the_line_of_a_chunk_has_a_limit(self, start: bytes) -> None:
        line = start + b" " * (MAX_CHUNK_LINE - len(start) - 2)
        assert body_of(CHUNKED).feed(line + b"\r\na") == (b"a", None)
        for cut in (1, len(line), len(line) + 2):
            with pytest.raises(BadFraming):
                fed(body_of(CHUNKED), line[:cut], line[cut:] + b" \r\na")
        body = body_of(CHUNKED)
        assert body.feed(line + b"  ") == (b"", None)
        with pytest.raises(BadFraming):
            body.feed(b" ")

    @pytest.mark.parametrize("lines", [(b"X: " + b"1" * 995 + b"\r\n") * 60, b""], ids=["many lines", "one line"])
    def test_a_trailer_section_has_a_limit(self, lines: bytes) -> None:
        body = body_of(CHUNKED)
        left = MAX_HEAD_BYTES - len(lines) - 3
        assert body.feed(b"0\r\n" + lines + b"X: " + b"a" * left) == (b"", None)
        with pytest.raises(BadFraming):
            body.feed(b"a")

    def test_one_that_comes_at_once_has_the_same(self) -> None:
        whole = b"X: " + b"a" * (MAX_HEAD_BYTES - 5) + b"\r\n"
        assert body_of(CHUNKED).feed(b"0\r\n" + whole + b"\r\n") == (b"", b"")
        with pytest.raises(BadFraming):
            body_of(CHUNKED).feed(b"0\r\nY" + whole + b"\r\n")

    def test_a_bare_lf_is_no_end_of_it_wherever_it_comes(self) -> None:
        for cut in range(3):
            body = body_of(CHUNKED)
            body.feed(b"0\r\n")
            with pytest.raises(BadFraming):
                body.feed(b"X:"[:cut] + b"\n")

    @pytest.mark.parametrize("cut", [0, 3])
    def test_so_many_fields_may_stand_in_it(self, cut: int) -> None:
        line = b"X: 1\r\n"
        assert body_of(CHUNKED).feed(b"0\r\n" + line * MAX_TRAILERS + b"\r\n") == (b"", b"")
        with pytest.raises(BadFraming):
            body_of(CHUNKED).feed(b"0\r\n" + line * (MAX_TRAILERS + 1) + b"\r\n"[:cut])

    def test_a_chunk_itself_has_none(self) -> None:
        body = body_of(CHUNKED)
        assert body.feed(b"100000\r\n" + b"a" * 0xFFFFF) == (b"a" * 0xFFFFF, None)
        assert body.feed(b"a\r\n0\r\n\r\n") == (b"a", b"")

    @given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.data())
    def test_chunks_come_back_together_however_they_are_cut(self, pieces: list[bytes], data: st.DataObject) -> None:
        sent = b"".join(chunk(piece) for piece in pieces) + b"0\r\n\r\nGET"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
        parts = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        assert fed(body_of(CHUNKED), *(part for part in parts if part)) == (b"".join(pieces), b"GET")

    @given(
        st.lists(st.sampled_from([b"0", b"1", b"a", b"5;x", b"\r\n", b"\r", b"\n", b" ", b"X: 1", b"\0"]), max_size=12)
    )
    def test_it_takes_nothing_that_another_reader_refuses_and_reads_the_same(self, parts: list[bytes]) -> None:
        data = b"".join(parts)
        try:
            got = fed(body_of(CHUNKED), *(data[i : i + 1] for i in range(len(data))))
        except BadFraming:
            return
        reader, buffer, pieces = ChunkedReader(), ReceiveBuffer(), []
        buffer += data
        while isinstance(event := reader(buffer), h11.Data):
            pieces.append(bytes(event.data))
        rest = None if event is None else bytes(buffer)
        assert got == (b"".join(pieces), rest)
        assert fed(body_of(CHUNKED), data) == got


class TestTurns:
    """Very many chunks that come at once are not read at once, and nothing of them is lost."""

    @pytest.mark.parametrize("count", [CHUNKS_AT_ONCE - 1, CHUNKS_AT_ONCE, CHUNKS_AT_ONCE + 1, 3 * CHUNKS_AT_ONCE])
    @pytest.mark.parametrize("rest", [b"", b"GET"])
    def test_so_many_chunks_are_read_at_once(self, count: int, rest: bytes) -> None:
        body = body_of(CHUNKED)
        data, got, found = b"1\r\nx\r\n" * count + b"0\r\nA: b\r\n\r\n" + rest, b"", None
        for turn in range(count):
            piece, found = body.feed(b"" if turn else data)
            assert len(piece) <= CHUNKS_AT_ONCE
            got += piece
            if not body.has_more:
                break
            assert found is None
        assert (got, found, body.trailers) == (b"x" * count, rest, ((b"A", b"b"),))
        assert turn == count // CHUNKS_AT_ONCE

    def test_more_may_come_before_the_next_turn(self) -> None:
        body, count = body_of(CHUNKED), CHUNKS_AT_ONCE + 5
        piece, rest = body.feed(b"1\r\nx\r\n" * count)
        more, rest = body.feed(b"0\r\n\r\nrest")
        assert (piece + more, rest, body.has_more) == (b"x" * count, b"rest", False)

    @pytest.mark.parametrize(("size", "data"), [(5, b"abc"), (UNTIL_CLOSE, b"abc"), (CHUNKED, b"3\r\nabc\r\n")])
    def test_otherwise_nothing_waits(self, size: int, data: bytes) -> None:
        body = body_of(size)
        assert body.feed(data) == (b"abc", None)
        assert not body.has_more

    def test_trailers_without_end_are_refused_before_all_of_them_are_read(self) -> None:
        with pytest.raises(BadFraming):
            body_of(CHUNKED).feed(b"0\r\n" + b"a:b\r\n" * (MAX_TRAILERS + 1))
