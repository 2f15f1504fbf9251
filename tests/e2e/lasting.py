"""Answers of an upstream that last: a WebSocket, or a response that stops half-way until a test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from tests.e2e.connection import RecordedRequest

SWITCH = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Lasting:
    """What an upstream answers with; `go_on` lets the rest of each response come."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def respond(self, request: RecordedRequest) -> bytes | Iterator[bytes]:
        """Switch to a WebSocket if that is asked for, or begin a response."""
        if request.headers.get("upgrade"):
            return b"HTTP/1.1 101 Switching Protocols\r\n" + SWITCH
        return self._slowly()

    def _slowly(self) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"
        self.go_on.wait(30)
        yield b"half"
