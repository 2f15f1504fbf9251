"""A TCP relay for load generators that know no proxies: for each connection it asks a proxy for a tunnel by CONNECT.
`bench.measure` starts it.

Rules of this module:

- One thread, and as few system calls as possible: it shares a core with the load generator and the upstream.
- If a side does not take what is sent to it, nothing more is read from the other side until it does.
- It runs as a separate script, with the standard library only: PORT PROXY-PORT AUTHORITY.
"""

from __future__ import annotations

import selectors
import socket
import sys

HOST = "127.0.0.1"
READ = 65536


class End:
    """One of the two sockets of a relayed connection."""

    def __init__(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._socket = connection
        self._selector = selector
        self._unsent = b""
        self._events = 0
        self.other: End

    @property
    def is_watching(self) -> bool:
        """Whether it waits for anything: the turn of another socket may have ended that."""
        return self._events != 0

    def watch(self, events: int) -> None:
        """Wait for these events."""
        if events != self._events:
            (self._selector.modify if self._events else self._selector.register)(self._socket, events, self)
            self._events = events

    def ready(self, events: int) -> None:
        """Handle these events as far as possible."""
        try:
            if events & selectors.EVENT_WRITE:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if not self._unsent:
                    self.watch(selectors.EVENT_READ)
                    self.other.watch(selectors.EVENT_READ)
            elif data := self._socket.recv(READ):
                self.other.send(data)
            else:
                self._close_both()
        except BlockingIOError:  # it is not ready any more
            return
        except OSError:
            self._close_both()

    def send(self, data: bytes) -> None:
        """Send bytes; the other side waits for those that do not fit."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._unsent = data[sent:]
            self.watch(selectors.EVENT_WRITE)
            self.other.pause()

    def pause(self) -> None:
        """Wait for nothing."""
        if self._events:
            self._selector.unregister(self._socket)
            self._events = 0

    def _close_both(self) -> None:
        for end in (self, self.other):
            end.pause()
            end._socket.close()


def _connect(port: int, authority: str) -> socket.socket:
    """Return a tunnel through the proxy."""
    tunnel = socket.create_connection((HOST, port), 30.0)
    tunnel.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = tunnel.recv(1)  # bytes after the answer belong to the tunnel
        if not byte:
            break
        answer += byte
    if b" 200 " not in answer.split(b"\r\n")[0]:
        raise OSError(f"CONNECT was answered {answer[:80]!r}")
    return tunnel


def main() -> None:
    """Relay until the process is ended."""
    port, proxy_port, authority = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    selector = selectors.DefaultSelector()
    server = socket.create_server((HOST, port), backlog=256)
    selector.register(server, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            end: End | None = key.data
            if end is not None:
                if end.is_watching:
                    end.ready(events)
                continue
            client, _ = server.accept()
            try:
                tunnel = _connect(proxy_port, authority)
            except OSError as e:
                print(e, file=sys.stderr, flush=True)
                client.close()
                continue
            one, two = End(client, selector), End(tunnel, selector)
            one.other, two.other = two, one
            one.watch(selectors.EVENT_READ)
            two.watch(selectors.EVENT_READ)


if __name__ == "__main__":
    main()
