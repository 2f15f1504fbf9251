"""Decision lines are written in the background, in order, and what is lost is counted."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from io import FileIO, TextIOWrapper
from pathlib import Path

import pytest

from proxy import timelimits
from proxy.processes import decisionlines
from proxy.processes.decisionlines import LineWriter
from tests.waiting import wait_until


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
    monkeypatch.setattr(decisionlines, "MAX_WAITING", 1000)
    monkeypatch.setattr(timelimits, "LAST_LINES_SECONDS", 0.1)
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


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_that_lines_are_lost_is_said_once_with_its_reason_and_how_many_at_the_end(
    pipe: tuple[FileIO, TextIOWrapper], caplog: pytest.LogCaptureFixture
) -> None:
    reader, stream = pipe
    reader.close()
    lost: list[int] = []
    writer = LineWriter(stream, lost.append)
    for count in range(1, 4):
        writer.write("x\n")
        wait_until(partial(losses, lost, count))
    writer.close()
    assert said(caplog) == [
        "decision lines cannot be written, and are lost: broken pipe",
        "decision lines that were lost by the end: 3",
    ]


def test_where_there_is_no_stream_that_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    writer = LineWriter(None, lambda _: None)
    for _ in range(2):
        with pytest.raises(OSError, match="no standard output"):
            writer.write("x\n")
    writer.close()
    assert said(caplog) == [
        "decision lines cannot be written, and are lost: there is no standard output",
        "decision lines that were lost by the end: 2",
    ]


def test_what_a_reader_has_not_taken_by_the_end_is_counted_and_said(
    pipe: tuple[FileIO, TextIOWrapper], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timelimits, "LAST_LINES_SECONDS", 0.1)
    reader, stream = pipe
    lost: list[int] = []
    writer = LineWriter(stream, lost.append)
    line = "x" * 99 + "\n"
    for _ in range(4000):  # much more than a pipe holds, and less than may wait
        writer.write(line)
    writer.close()
    got = os.read(reader.fileno(), 10**6).count(b"\n")
    assert got > 100
    assert sum(lost) == 4000 - got
    assert said(caplog) == [
        "decision lines cannot be written, and are lost: they are read too slowly",
        f"decision lines that were lost by the end: {4000 - got}",
    ]


class Disk:
    """Stands in for `os.write`: takes so many bytes until it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        taken = min(self.room, len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return self._write(descriptor, data[:taken])


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("room", [20, 25, 29, 30])
def test_a_full_disk_tears_no_line_and_is_over_once_there_is_room(
    kind: str,
    room: int,
    tmp_path: Path,
    pipe: tuple[FileIO, TextIOWrapper],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(timelimits, "LOST_LINES_LOG_SECONDS", 0.0)
    reader, stream = pipe
    path = tmp_path / "lines"
    lost: list[int] = []
    writer = LineWriter(path if kind == "file" else stream, lost.append)
    disk = Disk(monkeypatch, room)
    for number in range(5):
        writer.write(f"{number:09}\n")
    is_ended = kind == "stream" and room == 29  # but for its line feed, which comes before the next line
    first = 2 if room == 30 or is_ended else 3
    wait_until(partial(losses, lost, first))
    writer.write(f"{5:09}\n")
    wait_until(partial(losses, lost, first + 1))
    disk.room = 10**6
    for number in (6, 7):
        writer.write(f"{number:09}\n")
    writer.close()
    got = path.read_bytes() if kind == "file" else os.read(reader.fileno(), 10**6)
    found = got.splitlines()
    whole = [f"{number:09}".encode() for number in range(room // 10 + is_ended)]
    torn = [b"000000002"[: room % 10]] if kind == "stream" and room % 10 and not is_ended else []
    assert found == [*whole, *torn, b"000000006", b"000000007"]
    assert got.endswith(b"\n")
    where = f" to {path}" if kind == "file" else ""
    assert said(caplog) == [
        f"decision lines cannot be written{where}, and are lost: no space left on device",
        f"decision lines are written again; lost in between: {sum(lost)}",
    ]


def test_a_reader_that_is_slow_again_and_again_is_not_spoken_of_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[int] = []
    writer = LineWriter(tmp_path / "lines", lost.append)
    disk = Disk(monkeypatch, 0)
    for count in range(1, 5):
        disk.room = 0
        writer.write("x\n")
        wait_until(partial(losses, lost, count))
        disk.room = 100
        writer.write("x\n")
        wait_until(partial(holds, tmp_path / "lines", b"x\n" * count))
    writer.close()
    assert said(caplog) == [
        f"decision lines cannot be written to {tmp_path / 'lines'}, and are lost: no space left on device",
        "decision lines that were lost by the end: 4",
    ]


def losses(lost: list[int], count: int) -> bool:
    return sum(lost) == count


def holds(path: Path, data: bytes) -> bool:
    return path.read_bytes() == data
