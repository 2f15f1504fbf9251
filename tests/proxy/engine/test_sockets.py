"""What is read through the shared buffer is each reader's own."""

from __future__ import annotations

from proxy.engine.sockets import BUFFER, Reading


class Reader(Reading):
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.got.append(data)


def receive(reader: Reader, data: bytes) -> None:
    """Do as the transport does: read into the buffer, and show what was read."""
    BUFFER[: len(data)] = data
    reader.taken(BUFFER[: len(data)])


def test_what_was_read_stays_what_it_was_when_others_read() -> None:
    first, second = Reader(), Reader()
    receive(first, b"of the first")
    receive(second, b"of the other one")
    receive(first, b"more")
    assert first.got == [b"of the first", b"more"]
    assert second.got == [b"of the other one"]


def test_there_is_room_for_a_large_piece() -> None:
    reader = Reader()
    piece = bytes(range(256)) * 1024
    receive(reader, piece)
    assert reader.got == [piece]
