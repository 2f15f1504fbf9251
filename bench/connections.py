"""How much memory an app's open connection takes: `python -m bench.connections`. docs/scaling.md has its figures.

Each connection makes one request and then stays open, idle. What is told is how much more resident memory the sidecar
has afterwards, for each of them. The upstream's connections are those that the sidecar makes by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

from bench.lab import HOST, NAME, Lab, Settings
from bench.peers import Contender, Job, overcoat

KIB = 1024
SECONDS = 30.0


def plain(lab: Lab, contender: Contender) -> socket.socket:
    """Ask over http, and keep the connection."""
    connection = socket.create_connection((HOST, contender.port), SECONDS)
    _ask(connection, f"http://{HOST}/bench")
    return connection


def connected(lab: Lab, contender: Contender, trusted: Path | None) -> socket.socket:
    """CONNECT, ask over TLS inside, and keep the connection."""
    connection = socket.create_connection((HOST, contender.port), SECONDS)
    authority = f"{NAME}:{lab.upstream.port}"
    connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    _read_head(connection)
    context = ssl.create_default_context(cafile=trusted)
    inside = context.wrap_socket(connection, server_hostname=NAME)
    _ask(inside, "/bench", authority)
    return inside


def _ask(connection: socket.socket, target: str, host: str = HOST) -> None:
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _, rest = _read_head(connection).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode("latin-1").partition("\r\n")[0])
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(rest) < length:
        rest += connection.recv(65536)


def _read_head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise RuntimeError("the connection ended")
        data += more
    return data


def main() -> int:
    """Measure the three kinds, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overcoat", type=Path, default=Path(sys.executable).with_name("overcoat"))
    parser.add_argument("--connections", type=int, default=1000)
    options = parser.parse_args()
    count = options.connections
    more = {"limits": {"connections": 4 * count, "client_connections": 4 * count, "idle_seconds": 600}}
    with Lab(Settings(), options.overcoat, has_peers=False) as lab:
        kinds: list[tuple[str, Job, Callable[[Contender], socket.socket]]] = [
            ("http, upgraded", Job(more=more), lambda contender: plain(lab, contender)),
            ("https, inspected", Job(inspect=True, more=more), lambda c: connected(lab, c, c.ca_file)),
            ("https, tunnelled", Job(tunnel=True, more=more), lambda c: connected(lab, c, lab.ca_file)),
        ]
        for name, job, connect in kinds:
            with contextlib.ExitStack() as open_ones, lab.row():
                contender = overcoat(lab, job)
                open_ones.enter_context(connect(contender))  # what the first one brings is not counted
                before = contender.running.rss()
                for _ in range(count):
                    open_ones.enter_context(connect(contender))
                grown = contender.running.rss() - before
            print(f"{name}: {grown / count / KIB:.1f} KiB for each of {count} idle connections", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
