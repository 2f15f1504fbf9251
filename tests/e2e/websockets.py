"""WebSocket clients and servers for end-to-end tests: those of the `websockets` library, and frames byte for byte.

Rules of this module:

- It shares nothing with the product: what the library reads and opens is proof of the wire format (RFC 6455, 7692).
- TLS ends at 1.2 here. The library reads in one thread while it writes in another, which OpenSSL does not allow: with
  1.3, whose first records after the handshake are tickets, one connection of twelve broke or hung (Python 3.13.0), with
  no sidecar in between.
- A server keeps what it received, message by message, and how each connection ended.
"""

from __future__ import annotations

import contextlib
import queue
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.e2e.app import Proxy
from tests.e2e.certificates import Authority
from tests.e2e.listeners import listen

DEADLINE = 20.0  # on a busy machine, with threads on both ends


def for_two_threads(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a context speak no TLS whose handshake is followed by more of its own."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


MASK = b"\x37\xfa\x21\x3d"
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A

Handler = Callable[[ServerConnection], None]


def frame(first: int, payload: bytes = b"", *, mask: bytes | None = MASK, length: bytes | None = None) -> bytes:
    """Return a frame (RFC 6455, section 5.2).

    Args:
        first: its first byte: FIN, reserved bits and opcode.
        payload: its payload, which is masked here.
        mask: the mask of a client's frame; None for a server's.
        length: the second and further bytes in place of those that say the payload's length.
    """
    size, flag = len(payload), 0 if mask is None else 0x80
    if length is None:
        if size < 126:
            length = bytes((flag | size,))
        elif size < 0x10000:
            length = struct.pack(">BH", flag | 126, size)
        else:
            length = struct.pack(">BQ", flag | 127, size)
    if mask is None:
        return bytes((first,)) + length + payload
    return bytes((first,)) + length + mask + bytes(each ^ mask[at % 4] for at, each in enumerate(payload))


@dataclass
class Seen:
    """What one connection of a server was.

    Attributes:
        offered: the request's Sec-WebSocket-Extensions.
        messages: what was received.
        closed: the status and the reason of the client's close frame; None if there was none.
    """

    offered: list[str]
    messages: queue.Queue[str | bytes] = field(default_factory=queue.Queue)
    closed: tuple[int, str] | None = None
    is_over: threading.Event = field(default_factory=threading.Event)

    def next(self) -> str | bytes:
        """Return the next message."""
        return self.messages.get(timeout=DEADLINE)

    def wait_for_end(self) -> tuple[int, str] | None:
        """Wait until it is over; return how the client closed it."""
        assert self.is_over.wait(DEADLINE), "the connection to the server is still open"
        return self.closed


def receive_only(_: ServerConnection) -> None:
    """Say nothing."""


class Server:
    """A WebSocket server.

    Attributes:
        port: where it listens.
        seen: its connections.
    """

    def __init__(
        self,
        authority: Authority | None,
        *hosts: str,
        address: str = "127.0.0.1",
        greet: Handler = receive_only,
        answer: Callable[[str | bytes], str | bytes | None] = lambda _: None,
        deflate: ServerPerMessageDeflateFactory | None = None,
        **more: Any,
    ) -> None:
        """Start.

        Args:
            authority: who issues its certificate; None for a server without TLS.
            hosts: its names.
            address: the address that it listens on.
            greet: called with each connection first.
            answer: returns what to answer to a message.
            deflate: the compression that it takes; None for none.
            more: for the library.
        """
        tls = None
        if authority is not None:
            tls = for_two_threads(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            authority.issue(*hosts).load_into(tls)
        self._greet, self._answer = greet, answer
        self.seen: queue.Queue[Seen] = queue.Queue()
        listener = listen(address)
        self.port = listener.getsockname()[1]
        extensions = [deflate] if deflate is not None else []
        self._server = serve(
            self._serve, sock=listener, ssl=tls, compression=None, extensions=extensions, max_size=None, **more
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        seen = Seen(connection.request.headers.get_all("Sec-WebSocket-Extensions"))
        self.seen.put(seen)
        try:
            self._greet(connection)
            for message in connection:
                seen.messages.put(message)
                if (answer := self._answer(message)) is not None:
                    connection.send(answer)
        except ConnectionClosed:
            pass
        finally:
            got = connection.protocol.close_rcvd
            seen.closed = None if got is None else (got.code, got.reason)
            seen.is_over.set()

    def first(self) -> Seen:
        """Return the next connection."""
        return self.seen.get(timeout=DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(DEADLINE)


@contextlib.contextmanager
def client(
    proxy: Proxy, host: str, port: int, path: str = "/chat", *, over_tls: bool = True, **more: Any
) -> Iterator[ClientConnection]:
    """Open a WebSocket through a sidecar, by CONNECT, and close it at the end.

    Args:
        proxy: the sidecar.
        host: the server's name.
        port: its port.
        path: the path.
        over_tls: whether the app speaks wss, which is inspected, or ws, which is upgraded.
        more: for the library.
    """
    tls = for_two_threads(ssl.create_default_context(cafile=str(proxy.ca_file))) if over_tls else None
    scheme = "wss" if over_tls else "ws"
    address, number = proxy.address
    more.setdefault("compression", None)
    with connect(
        f"{scheme}://{host}:{port}{path}",
        proxy=f"http://{address}:{number}",
        ssl=tls,
        max_size=None,
        open_timeout=DEADLINE,
        close_timeout=DEADLINE,
        **more,
    ) as connection:
        yield connection
