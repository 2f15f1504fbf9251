"""A load generator for what wrk cannot do: CONNECT with TLS inside, a fixed rate, a fixed number of requests.

Rules of this module:

- One thread, non-blocking sockets, one request at a time on each connection. It is the same for every contender.
- At a fixed rate the next request goes out when it is due, on a connection that is free, and latency counts from the
  moment of sending. If none is free, it goes out as soon as one is, and its latency counts from when it was due. A rate
  that is not kept is an error.
- Any answer but a complete 200, and any connection that ends, is an error. The result is one line of JSON.
- It runs as a script of its own, with nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import ssl
import sys
import time
from collections import deque
from typing import Any

TIMEOUT = 30.0


class Failed(Exception):
    """The load could not be made as requested."""


class Connection:
    """One connection that is ready for requests."""

    def __init__(self, options: argparse.Namespace, context: ssl.SSLContext | None) -> None:
        host, _, port = options.server.rpartition(":")
        self.socket: socket.socket = socket.create_connection((host, int(port)), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.connect:
            self._connect(options.connect)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=(options.connect or host).split(":")[0])
        self.socket.setblocking(False)
        self.sent_at = 0.0
        self._answer = b""

    def _connect(self, authority: str) -> None:
        self.socket.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise Failed("CONNECT was not answered")
            answer += byte
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise Failed(f"CONNECT was answered {answer[:80]!r}")

    def send(self, request: bytes, since: float) -> None:
        """Send a request, which always fits the socket's buffer; its latency counts from `since`."""
        self.sent_at = since
        if self.socket.send(request) != len(request):
            raise Failed("a request did not fit the socket's buffer")

    def receive(self) -> bool:
        """Read what is there; tell whether an answer is complete."""
        while True:
            try:
                data = self.socket.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):
                return False
            if not data:
                raise Failed("a connection ended")
            self._answer += data
            if self._is_complete():
                self._answer = b""
                return True

    def _is_complete(self) -> bool:
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end:
            return False
        lines = head.split(b"\r\n")
        if b" 200" not in lines[0]:
            raise Failed(f"a request was answered {lines[0]!r}")
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return len(body) >= int(value)
        raise Failed("an answer had no Content-Length")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the load; return what was measured.

    Raises:
        Failed: an answer was not what it should be.
        OSError: a connection failed.
    """
    context = None
    if options.ca_file:
        context = ssl.create_default_context(cafile=options.ca_file)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # proxy.py's certificates lack an authority key identifier
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    request = f"GET {options.target} HTTP/1.1\r\nHost: {options.host}\r\nUser-Agent: bench\r\n\r\n".encode("ascii")
    connections = [Connection(options, context) for _ in range(options.connections)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    latencies: list[float] = []
    free = deque(connections)
    start = time.perf_counter()
    end = start + options.seconds if options.seconds and not options.rate else float("inf")
    count = int(options.rate * options.seconds) or options.count
    sent = 0
    is_late = False  # whether no connection was free when the next request was due
    while True:
        now = time.perf_counter()
        may_send = now < end and (not count or sent < count)
        if not may_send and len(free) == len(connections):
            break
        due = start + sent / options.rate if options.rate else now
        while may_send and due <= now:
            if not free:
                is_late = bool(options.rate)
                break
            free.popleft().send(request, due if is_late else time.perf_counter())
            sent += 1
            may_send = not count or sent < count
            due = start + sent / options.rate if options.rate else now
        is_late = is_late and due <= now
        wait = max(0.0, due - now) if options.rate and may_send and free else TIMEOUT
        ready = selector.select(wait)
        if not ready and wait == TIMEOUT:
            raise Failed(f"no answer came in {TIMEOUT:.0f} s")
        for key, _ in ready:
            answered: Connection = key.data
            if answered.receive():
                latencies.append(time.perf_counter() - answered.sent_at)
                free.append(answered)
    seconds = time.perf_counter() - start
    for connection in connections:
        connection.socket.close()
    if options.rate and seconds > 1.2 * options.seconds + 1.0:
        raise Failed(f"{sent / seconds:.1f} requests/s were answered, not {options.rate}")
    latencies.sort()
    return {
        "requests": len(latencies),
        "seconds": seconds,
        "p50_ms": _percentile(latencies, 0.50) * 1000,
        "p99_ms": _percentile(latencies, 0.99) * 1000,
    }


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> int:
    """Read the arguments, make the load, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="HOST:PORT to connect to: the proxy's, or the server's own")
    parser.add_argument("--target", required=True, help="the request target, as it stands in the request line")
    parser.add_argument("--host", required=True, help="the Host header")
    parser.add_argument("--connect", help="HOST:PORT to ask CONNECT for")
    parser.add_argument("--ca-file", help="speak TLS (inside CONNECT, if that is asked for), and trust this CA alone")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0 for as many as possible")
    options = parser.parse_args()
    if bool(options.seconds) == bool(options.count) or (options.rate and not options.seconds):
        parser.error("say either --seconds, with or without --rate, or --count")
    try:
        result = run(options)
    except (Failed, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
