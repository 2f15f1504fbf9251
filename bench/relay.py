"""A TCP relay that makes a round trip take longer, for machines whose kernel cannot (no netem) or must not be asked.

Rules of this module:

- Every byte arrives half a round trip later than it was sent, in both directions.
- A relay's kernel answers the client's SYN at once, where a distant host would take a round trip. So what the client
  says first waits one round trip more. Everything later follows from that by itself.
- Threads that sleep, since `select` rounds to milliseconds. It runs as a script of its own: PORT UPSTREAM-PORT SECONDS.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time

HOST = "127.0.0.1"


class Direction:
    """Carries what one socket says to another, late."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float, first_delay: float) -> None:
        self._source, self._sink = source, sink
        self._delay, self._first_delay = delay, first_delay
        self._late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self.has_spoken = threading.Event()

    def start(self, other: Direction) -> None:
        """Start carrying; the first delay holds until the other direction has spoken."""
        threading.Thread(target=self._read, args=(other,), daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()

    def _read(self, other: Direction) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(65536)
            except OSError:  # a reset: the other side sees the end of the stream
                data = b""
            delay = self._delay if other.has_spoken.is_set() else self._first_delay
            self.has_spoken.set()
            self._late.put((time.monotonic() + delay, data))

    def _write(self) -> None:
        while True:
            due, data = self._late.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:  # the sink is gone, so this direction ends
                return


def main() -> None:
    """Relay until the process is ended."""
    port, upstream_port, round_trip = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    server = socket.create_server((HOST, port), backlog=256)
    while True:
        client, _ = server.accept()
        upstream = socket.create_connection((HOST, upstream_port))
        for one in (client, upstream):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        out = Direction(client, upstream, round_trip / 2, round_trip * 1.5)
        back = Direction(upstream, client, round_trip / 2, round_trip / 2)
        out.start(back)
        back.start(out)


if __name__ == "__main__":
    main()
