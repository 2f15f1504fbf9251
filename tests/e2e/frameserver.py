"""An upstream for tests that speaks HTTP/2 frame by frame, as the test says, on each of its connections.

Rules of this module:

- It keeps what came on which connection, in order, and serves each connection in a thread of its own.
- The test decides what happens to a request: `answer` is called with each complete one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted
from tests.e2e.frames import (
    ACK,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Frame,
    Peer,
    block,
    data,
    headers,
    settings,
    window_update,
)
from tests.e2e.http2 import frame
from tests.e2e.listeners import listen

DEADLINE = 10.0


@dataclass
class Got:
    """A request.

    Attributes:
        peer: the connection that it came on; a test that answers later does so there.
        is_whole: whether its end has come.
        reset: with which code it was given up, or None.
    """

    peer: Serving
    stream: int
    fields: dict[str, str]
    body: bytes = b""
    is_whole: bool = False
    reset: int | None = None

    @property
    def path(self) -> str:
        return self.fields[":path"]

    @property
    def method(self) -> str:
        return self.fields[":method"]

    def reply(self, body: bytes = b"ok", *, status: int = 200) -> None:
        """Answer it."""
        head = headers(self.stream, block((":status", str(status))), END_HEADERS)
        self.peer.send(head + data(self.stream, body, last=True))


class Serving(Peer):
    """One connection."""

    def __init__(self, accepted: Accepted, first: bytes, number: int) -> None:
        super().__init__(accepted, first)
        self.number = number
        self.requests: dict[int, Got] = {}
        self.goaway: int | None = None
        self.pongs = 0  # answers to its own PING: what it sent before that has been read
        self.is_over = False


class FrameServer:
    """The upstream.

    Args:
        authority: who issues its certificate.
        host: its name.
        answer: called with each whole request, in the thread of its connection.
        first: what it says first.
        alpn: what it speaks, the best first.
        http1: serves what speaks HTTP/1.1.
        began: called with each head, before the request is whole.
        hesitates: seconds before each handshake.
    """

    def __init__(
        self,
        authority: Authority,
        host: str,
        answer: Callable[[Got], None],
        *,
        first: bytes | None = None,
        alpn: tuple[str, ...] = ("h2",),
        http1: Callable[[Accepted], None] | None = None,
        began: Callable[[Got], None] | None = None,
        hesitates: float = 0,
    ) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue(host).load_into(self._tls)
        self._tls.set_alpn_protocols(list(alpn))
        self._answer = answer
        self._began = began or (lambda _: None)
        self._first = settings() if first is None else first
        self._http1 = http1
        self._hesitates = hesitates
        self._listener = listen()
        self.port = self._listener.getsockname()[1]
        self.authority = f"{host}:{self.port}"
        self._changed = threading.Condition()
        self.connections: list[Serving] = []
        self.requests: list[Got] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                accepted, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other end is gone
            threading.Event().wait(self._hesitates)
            sock = self._tls.wrap_socket(accepted, server_side=True)
            if sock.selected_alpn_protocol() != "h2":
                assert self._http1 is not None
                self._http1(Accepted(sock))
                return
            client = Accepted(sock)
            client.read_exactly(24)
            with self._changed:
                peer = Serving(client, self._first, len(self.connections))
                self.connections.append(peer)
            sock.settimeout(60)
            try:
                while (found := peer.read()) is not None:
                    self._take(peer, found)
            finally:
                with self._changed:
                    peer.is_over = True
                    self._changed.notify_all()
                client.close()

    def _take(self, peer: Serving, found: Frame) -> None:
        got = peer.requests.get(found.stream)
        if found.kind == HEADERS and got is None:
            got = Got(peer, found.stream, dict(found.fields))
            with self._changed:
                peer.requests[found.stream] = got
                self.requests.append(got)
                self._changed.notify_all()
            self._began(got)
        elif found.kind == DATA and got is not None:
            got.body += found.payload
            if found.payload:
                peer.send(window_update(0, len(found.payload)) + window_update(found.stream, len(found.payload)))
        elif found.kind == RST_STREAM and got is not None:
            with self._changed:
                got.reset = found.code
                self._changed.notify_all()
        elif found.kind == GOAWAY:
            with self._changed:
                peer.goaway = found.code
                self._changed.notify_all()
        elif found.kind == SETTINGS and not found.flags & ACK:
            peer.send(settings(flags=ACK))
        elif found.kind == PING and not found.flags & ACK:
            peer.send(frame(PING, ACK, 0, found.payload))
        elif found.kind == PING:
            with self._changed:
                peer.pongs += 1
                self._changed.notify_all()
        if got is not None and found.is_end:
            with self._changed:
                got.is_whole = True
                self._changed.notify_all()
            self._answer(got)

    def wait(self, is_so: Callable[[], object], what: str = "what was waited for") -> None:
        """Wait until something is so.

        Raises:
            AssertionError: it was not in time.
        """
        end = time.monotonic() + DEADLINE
        with self._changed:
            while not is_so():
                assert self._changed.wait(end - time.monotonic()), f"{what} did not happen; came: {self.requests}"

    def wait_for(self, count: int) -> list[Got]:
        """Return the requests once so many have come; more is a failure."""
        self.wait(lambda: len(self.requests) >= count, f"{count} requests")
        assert len(self.requests) == count
        return list(self.requests)

    def close(self) -> None:
        self._listener.close()
        for peer in self.connections:
            peer.client.close()


@contextmanager
def frame_server(
    authority: Authority, host: str, answer: Callable[[Got], None] = lambda got: got.reply(), **options: object
) -> Iterator[FrameServer]:
    """Make an upstream for as long as it is needed."""
    server = FrameServer(authority, host, answer, **options)  # type: ignore[arg-type]  # passed on
    try:
        yield server
    finally:
        server.close()
