"""Two connected sockets inside the process, each of which can tell the other how it ended.

Rules of this module:

- The kernel knows of no reset between such sockets, and of no missing close_notify: an end says so before it closes,
  and the other one asks when it reads an EOF.
"""

from __future__ import annotations

import enum
import socket


class Ending(enum.Enum):
    """How a connection ended."""

    IN_ORDER = enum.auto()
    GONE = enum.auto()  # in order, and whoever was there reads no more
    CUT = enum.auto()  # nobody broke it off, but nobody said either that this is all (RFC 8446, section 6.1)
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
    """Return how the other end of a socket says that it ended; one that is no pair's leaves that to the kernel."""
    return connection.ending if isinstance(connection, PairedSocket) else Ending.IN_ORDER


def say_ending(connection: socket.socket, ending: Ending) -> None:
    """Let the other end know how this one ends, if that is not said yet; does nothing where the kernel says it."""
    if isinstance(connection, PairedSocket) and connection.other.ending is Ending.IN_ORDER:
        connection.other.ending = ending
