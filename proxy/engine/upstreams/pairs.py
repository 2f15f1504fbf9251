"""Two connected sockets within the process, each of which can tell the other how it ended. `upstreams.route` puts such
a pair between an upstream connection and the tunnel of another proxy.

Rules of this module:

- Between such sockets the kernel knows no reset, and no missing close_notify. So a side that ends says how before it
  closes, and the other side asks when it reads the end.
"""

from __future__ import annotations

import enum
import socket


class Ending(enum.Enum):
    """How a connection ended."""

    IN_ORDER = enum.auto()
    GONE = enum.auto()  # in order; its user reads no more
    CUT = enum.auto()  # not broken off, but without the message that this is all (RFC 8446, section 6.1)
    BROKEN = enum.auto()


class PairedSocket(socket.socket):
    """One end of a pair.

    Attributes:
        ending: how the other end ended, if it has.
        other: the other end.
    """

    ending: Ending = Ending.IN_ORDER
    other: PairedSocket


def paired_sockets() -> tuple[PairedSocket, PairedSocket]:
    """Return two connected sockets that do not block."""
    ends = [PairedSocket(each.family, each.type, each.proto, each.detach()) for each in socket.socketpair()]
    one, two = ends
    one.other, two.other = two, one
    for end in ends:
        end.setblocking(False)
    return one, two


def ending_of(connection: socket.socket) -> Ending:
    """Return how the other end of a socket says that it ended. For a socket without a pair, the kernel tells that."""
    return connection.ending if isinstance(connection, PairedSocket) else Ending.IN_ORDER


def say_ending(connection: socket.socket, ending: Ending) -> None:
    """Tell the other end how this one ends, unless that was said already; does nothing for a socket without a pair."""
    if isinstance(connection, PairedSocket) and connection.other.ending is Ending.IN_ORDER:
        connection.other.ending = ending
