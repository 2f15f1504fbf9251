"""Listening sockets on ports that this process has not used before. The servers of the tests listen on them.

The kernel gives out a free port again within some hundred sockets. A sidecar that serves the tests of a whole module
would then have decision lines, connections and learned facts of an earlier upstream under the name of a later one.
"""

from __future__ import annotations

import contextlib
import socket

_given: set[int] = set()


def listen(address: str = "127.0.0.1", *, port: int = 0, backlog: int = 128) -> socket.socket:
    """Return a socket that listens at an IP address, on a port that this function has not given before, or on this one:
    it is free for sure only in a network of the test's own.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if port:
        return socket.create_server((address, port), family=family, backlog=backlog)
    with contextlib.ExitStack() as refused:  # kept open meanwhile, so that the kernel does not give them again
        while True:
            listener = socket.create_server((address, 0), family=family, backlog=backlog)
            given: int = listener.getsockname()[1]
            if given not in _given:
                _given.add(given)
                return listener
            refused.enter_context(listener)


def closed_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with listen() as unused:
        port: int = unused.getsockname()[1]
    return port
