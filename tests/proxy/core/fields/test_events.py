"""Server-sent events: when each goes on, what of it is changed, and how it is written back."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields.events import Events
from proxy.core.reasons import Reason


def upper(text: bytes) -> bytes:
    return text.upper()


def stays(text: bytes) -> bytes:
    return text


def refuse(denied: Denied) -> None:
    raise denied


def read(stream: bytes) -> list[bytes]:
    """Read a stream as the HTML Standard says (section 9.2.6), with nothing of ours; an event at its end counts."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    found: list[bytes] = []
    data: list[bytes] = []
    for line in [*lines, b""]:
        name, _, value = line.partition(b":")
        if not line and data:
            found.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return found


def others(stream: bytes) -> list[bytes]:
    return [
        each
        for each in re.split(rb"(?<=\n)|(?<=\r)(?!\n)", stream.removeprefix(b"\xef\xbb\xbf"))
        if each.rstrip() not in (b"", b":") and not re.match(rb"data[:\r\n]|data\Z", each)
    ]


LINE = st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: a",
        b"data:  b",
        b"data:c",
        b": note",
        b"event: e",
        b"id: 1",
        b"datax: d",
        b"",
        b" data: e",
    ]
)
END = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAM = st.builds(
    lambda bom, lines, tail: bom + b"".join(line + end for line, end in lines) + tail,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(LINE, END), max_size=12),
    st.sampled_from([b"", b"", b"data: last", b": note", b"da"]),
)
CUTS = st.lists(st.integers(0, 10_000), max_size=30)


def fed(events: Events, stream: bytes, cuts: list[int]) -> bytes:
    at = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return b"".join(events.feed(stream[a:b]) for a, b in itertools.pairwise(at)) + events.end()


@given(STREAM, CUTS)
def test_what_is_not_changed_stays_byte_for_byte(stream: bytes, cuts: list[int]) -> None:
    seen: list[bytes] = []

    def note(text: bytes) -> bytes:
        seen.append(text)
        return text

    assert fed(Events(note, 1000, refuse), stream, cuts) == stream
    assert seen == read(stream)


@given(STREAM, CUTS, st.sampled_from([b"X", b"1\r\n2\n3\r4", b" 5\n\n 6", b""]))
def test_a_changed_text_is_read_as_it_was_written_and_all_else_stays(
    stream: bytes, cuts: list[int], new: bytes
) -> None:
    changed = fed(Events(lambda _: bytes(bytearray(new)), 1000, refuse), stream, cuts)
    assert read(changed) == [re.sub(rb"\r\n?", b"\n", new)] * len(read(stream))
    assert others(changed) == others(stream)


@given(STREAM)
def test_a_text_of_as_many_lines_keeps_their_leads_and_ends(stream: bytes) -> None:
    changed = fed(Events(upper, 1000, refuse), stream, [])
    assert changed.lower() == stream.lower()
    assert read(changed) == [text.upper() for text in read(stream)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_goes_on_with_its_blank_line_and_not_later(end: bytes) -> None:
    events = Events(upper, 100, refuse)
    assert events.feed(b"data: a" + end) == b""
    assert events.feed(b"id: 1" + end) == b""
    assert events.feed(end) == b"data: A" + end + b"id: 1" + end + end
    assert events.feed(b"data: b" + end + end) == b"data: B" + end + end


def test_a_line_end_may_be_cut_in_two() -> None:
    events = Events(upper, 100, refuse)
    assert events.feed(b"data: a\r") == b""
    assert events.feed(b"\ndata: b\r\n\r") == b"data: A\r\ndata: B\r\n\r"
    assert events.feed(b"\ndata: c\n\n") == b"\ndata: C\n\n"


def test_lines_before_the_first_data_go_on_at_once() -> None:
    events = Events(upper, 100, refuse)
    assert events.feed(b"\xef\xbb") == b""
    assert events.feed(b"\xbf: ping\n") == b"\xef\xbb\xbf: ping\n"
    assert events.feed(b"retry: 3\r\nda") == b"retry: 3\r\n"
    assert events.feed(b"ta: a\n\nevent: x\n") == b"data: A\n\nevent: x\n"
    assert events.feed(b"\xef\xbb\xbfdata: b\n\n") == b"\xef\xbb\xbfdata: b\n\n"  # only the first is a byte order mark


def test_the_last_event_needs_no_blank_line() -> None:
    events = Events(upper, 100, refuse)
    assert events.feed(b"data: a\ndata: b") == b""
    assert events.end() == b"data: A\ndata: B"
    assert events.end() == b""
    for new, expected in (
        (b"1\n2", b"data: 1\ndata: 2"),
        (b"1", b"data: 1\n"),
        (b"1\n2\n3", b"data: 1\ndata: 2\ndata: 3"),
    ):
        events = Events(lambda _, new=new: new, 100, refuse)
        events.feed(b"data: a\ndata: b")
        assert events.end() == expected


def test_an_event_is_held_up_to_the_limit() -> None:
    event = b"data: 12345\n\n"
    assert Events(upper, len(event), refuse).feed(event) == event
    for start in (event, event[:-1], b": a comment that does not end"):
        with pytest.raises(Denied) as denied:
            Events(upper, 11, refuse).feed(start)
        assert denied.value.reason is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_longer_event_goes_on_as_it_comes_where_it_may(end: bytes) -> None:
    skipped: list[Denied] = []
    events = Events(upper, 12, skipped.append)
    event = b"data: a long one" + end
    assert events.feed(event) == b"data: a long one"
    assert events.feed(b"data: more") == end + b"data: more"
    assert events.feed(end) == b""
    assert events.feed(end + b"data: b" + end) == end + end
    assert events.feed(end) == b"data: B" + end + end
    assert len(skipped) == 1
    events.feed(event)
    assert events.end() == end


def test_an_end_of_a_line_that_is_left_and_the_blank_line_do_not_become_one() -> None:
    events = Events(lambda text: text.replace(b"\n", b""), 100, refuse)
    assert events.feed(b"data: a\rdata: b\r\n\n") == b"data: ab\r:\r\n\n"
