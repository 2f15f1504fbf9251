"""Looks for connections that a program makes past the sidecar, as far as Linux shows them. `overcoat run` calls it.

Rules of this module:

- The kernel's tables of sockets are looked at several times a second; a socket counts if a process below this one has
  it open. So a connection that lives shorter may be missed, and so may one of a process that nobody else may look into.
- What goes to this machine itself (loopback), what others opened towards the program, and name lookups do not count.
- Looking costs little: a socket's owner is looked for once, and after a slow look there is a longer pause.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy import timelimits
from proxy.health import address_text

MOST = 1000  # places that are held apart
_LISTENING = "0A"
_LEAVING = {"01": "tcp", "02": "tcp", "04": "tcp", "05": "tcp", "08": "tcp"}  # established, SYN sent, being closed
_DNS_PORT = 53
_PAUSES = 10  # times the processor time of a look is the pause behind it, at least
_LOOKS = 3  # at which the owner of a socket is looked for: it may belong to a process that has only just begun


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere that a program had a connection to.

    Attributes:
        address: `HOST:PORT`; the host is an address.
        protocol: `tcp` or `udp`.
        program: the name of the process that had it.
    """

    address: str
    protocol: str
    program: str


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that is open towards somewhere else: its inode, and where it leads."""

    inode: str
    host: str
    port: int
    protocol: str


def sockets_in(text: str, protocol: str) -> Iterator[Socket]:
    """Yield the sockets of a table (/proc/net/tcp, tcp6, udp, udp6) that were opened towards somewhere else.

    Args:
        text: the table.
        protocol: `tcp` or `udp`.
    """
    rows = [line.split() for line in text.splitlines()[1:]]
    listening = {row[1].rpartition(":")[2] for row in rows if protocol == "tcp" and row[3] == _LISTENING}
    for row in rows:
        local, remote, state, inode = row[1].rpartition(":")[2], row[2], row[3], row[9]
        if state not in _LEAVING or inode == "0" or local in listening:
            continue
        packed, _, port = remote.partition(":")
        address = _address(packed)
        if int(port, 16) == 0 or address.is_loopback or address.is_unspecified:
            continue
        if protocol == "udp" and int(port, 16) == _DNS_PORT:
            continue
        yield Socket(inode, str(address), int(port, 16), protocol)


def _address(packed: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as the kernel's tables have it: words of 32 bits in this machine's order."""
    words = [int(packed[start : start + 8], 16) for start in range(0, len(packed), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def processes_below(roots: Iterable[int]) -> Iterator[int]:
    """Yield the processes and all that they have started, as far as these are still below them."""
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children_of(pid)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has as children now; none where it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text("ascii").split())
    return found


def name_of(pid: int) -> str:
    """Return a process's name; `?` where it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"


class Watch:
    """Looks on in a thread, from its creation until `end`.

    Attributes:
        places: where connections were seen to, in the order in which they were.
        hidden: names of processes that could not be looked into.
    """

    def __init__(self, roots: Callable[[], Iterable[int]]) -> None:
        """Begin.

        Args:
            roots: returns the processes to look at; those that they start count, too.
        """
        self._roots = roots
        self._looked: dict[Socket, int] = {}  # how often an owner was looked for
        self._is_over = threading.Event()
        self.places: dict[Place, None] = {}
        self.hidden: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        pause = 0.0
        while not self._is_over.wait(pause):
            began = time.thread_time()
            self.look()
            pause = max(timelimits.SIGHT_SECONDS, _PAUSES * (time.thread_time() - began))

    def look(self) -> None:
        """Look once."""
        pids = list(processes_below(self._roots()))
        networks: dict[str, int] = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                networks.setdefault(os.readlink(f"/proc/{pid}/ns/net"), pid)
        sockets = {found for pid in networks.values() for found in _tables(pid)}
        self._looked = {each: self._looked.get(each, 0) for each in sockets}
        unknown = {f"socket:[{each.inode}]": each for each, times in self._looked.items() if times < _LOOKS}
        if not unknown:
            return
        for each in unknown.values():
            self._looked[each] += 1
        for pid in pids:
            for link in self._open_files(pid):
                if (found := unknown.get(link)) is not None:
                    self._looked[found] = _LOOKS
                    self._add(Place(address_text(found.host, found.port), found.protocol, name_of(pid)))

    def _add(self, place: Place) -> None:
        if len(self.places) < MOST:
            self.places[place] = None

    def _open_files(self, pid: int) -> Iterator[str]:
        folder = f"/proc/{pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except FileNotFoundError:
            return  # it has ended
        except OSError:
            self.hidden.add(name_of(pid))
            return
        for each in descriptors:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                yield os.readlink(f"{folder}/{each}")


def _tables(pid: int) -> Iterator[Socket]:
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with contextlib.suppress(OSError):
            yield from sockets_in(Path(f"/proc/{pid}/net/{name}").read_text("ascii"), name[:3])
