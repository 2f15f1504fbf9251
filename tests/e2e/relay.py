"""A gateway between two sidecars: it ends TLS, records all that it could read, and passes every byte on.

with Relay(authority, "api.pay.example", mirror.address) as relay:
    mark = relay.mark()
    ...                                  # something sends a request to 127.0.0.1:relay.port
    assert b"4111" not in relay.seen(mark)
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.e2e.certificates import Authority
from tests.e2e.listeners import listen

DEADLINE = 5.0  # seconds that a peer may take


class Relay:
    """A gateway.

    Args:
        authority: who signs its certificate, and has signed that of the server behind.
        name: what it is called, and the server behind; or several names.
        to: where the server behind listens.
        alpn: the protocol that it agrees on with both sides.

    Attributes:
        instead: an answer to give in place of the server's; None for the server's own.
        asked: all that the app's side has sent, for each connection.
        told: all that the server's side has sent, for each connection.
    """

    def __init__(
        self, authority: Authority, name: str | tuple[str, ...], to: tuple[str, int], *, alpn: str = "http/1.1"
    ) -> None:
        names = (name,) if isinstance(name, str) else name
        self.instead: bytes | None = None
        self.asked: list[bytearray] = []
        self.told: list[bytearray] = []
        self._name, self._to = names[0], to
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue(*names).load_into(self._server)
        self._client = ssl.create_default_context(cadata=authority.pem.decode())
        self._server.set_alpn_protocols([alpn])
        self._client.set_alpn_protocols([alpn])
        self._listener = listen()
        self.port: int = self._listener.getsockname()[1]
        self._seen = bytearray()
        self._changed = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def mark(self) -> int:
        """Return how much has passed so far."""
        return len(self._seen)

    def seen(self, mark: int) -> bytes:
        """Return what has passed since then, in both directions."""
        with self._changed:
            return bytes(self._seen[mark:])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, socket.create_connection(self._to) as raw:
            app = self._server.wrap_socket(connection, server_side=True)
            server = self._client.wrap_socket(raw, server_hostname=self._name)
            asked, told = bytearray(), bytearray()
            with self._changed:
                self.asked.append(asked)
                self.told.append(told)
            while True:  # in one thread: a TLS session must not be read in one and written to in another
                for source, to in ((app, server), (server, app)):
                    source.settimeout(0)
                    with contextlib.suppress(ssl.SSLWantReadError):
                        if not (data := source.recv(65536)):
                            return
                        with self._changed:
                            self._seen += data
                            (asked if source is app else told).extend(data)
                        to.settimeout(DEADLINE)
                        to.sendall(self.instead if source is server and self.instead is not None else data)
                if not app.pending() and not server.pending():
                    select.select([app, server], [], [], DEADLINE)
