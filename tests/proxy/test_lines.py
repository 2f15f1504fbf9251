"""Decision lines are written in the background, in order, and what is lost is counted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from io import FileIO, TextIOWrapper

import pytest

from proxy import lines
from proxy.lines import LineWriter


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, TextIOWrapper]]:
    """A pipe: its reading and its writing end."""
    reader, writer = os.pipe()
    stream = TextIOWrapper(FileIO(writer, "w"))
    with FileIO(reader) as incoming, stream:
        yield incoming, stream


def test_lines_come_in_their_order_and_close_waits_for_the_last(pipe: tuple[FileIO, TextIOWrapper]) -> None:
    reader, stream = pipe
    lost: list[int] = []
    writer = LineWriter(stream, lost.append)
    for number in range(500):
        writer.write(f"{number}\n")
    writer.close()
    assert (reader.read(65536) or b"").decode().split() == [str(number) for number in range(500)]
    assert lost == []


def test_without_a_stream_every_line_is_lost_at_once() -> None:
    writer = LineWriter(None, lambda _: None)
    with pytest.raises(OSError, match="no standard output"):
        writer.write("x\n")
    writer.close()


def test_what_a_reader_that_is_gone_does_not_get_is_counted(pipe: tuple[FileIO, TextIOWrapper]) -> None:
    reader, stream = pipe
    reader.close()
    lost: list[int] = []
    writer = LineWriter(stream, lost.append)
    for _ in range(3):
        writer.write("x\n")
    writer.close()
    assert sum(lost) == 3


def test_a_line_that_finds_no_room_is_lost_and_nobody_waits(
    pipe: tuple[FileIO, TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_WAITING", 1000)
    monkeypatch.setattr(lines, "LAST_SECONDS", 0.1)
    reader, stream = pipe
    writer = LineWriter(stream, lambda _: None)
    line = "x" * 99 + "\n"
    start = time.monotonic()
    written = 0
    try:
        while written < 100_000:  # a pipe holds 64 KiB, or as much as a system likes, but not this much
            writer.write(line)
            written += 1
            time.sleep(0 if written % 5 else 0.0005)  # lets the thread run into the full pipe
    except BlockingIOError:
        pass
    else:
        pytest.fail("there was room without end")
    writer.close()
    assert time.monotonic() - start < 5
    got = b""
    while got.count(b"\n") < written:  # what was taken is not lost: it was only late
        got += reader.read(65536) or b""
    assert got == line.encode() * written
