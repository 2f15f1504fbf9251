"""How many sockets and files this process may have open, and who may have the last of them.

Rules of this module:

- The soft limit is raised to the hard one, which is what the machine's owner has set.
- What apps cause, connections from them and to their servers, never takes the last descriptors: those are kept for the
  admin listener, a reload, the file of decision lines. Connections from apps stop first, so that those that are open
  can still reach their servers.
- The system gives the lowest number that is free (POSIX), so that a number tells how many there are.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket

from proxy.core.rules.policy import Policy

KEPT_FROM_DIALS = 32
KEPT_FROM_APPS = 64
_ENOUGH = 512  # of fewer descriptors fewer are kept
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_OPEN_MAX = 10_240  # of macOS, where the hard limit may say more than the system gives

logger = logging.getLogger("overcoat")


def raise_limit() -> None:
    """Raise the soft limit to the hard one, as far as the system lets it be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, _OPEN_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_MAX)):
        if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > soft):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def carried() -> float:
    """Return how many connections from apps this process carries, each with one to its server."""
    return (_limit() - _kept(KEPT_FROM_APPS)) // 2


def _kept(kept: int) -> float:
    return min(1.0, _limit() / _ENOUGH) * kept


def _limit() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def warn_of_limit(policy: Policy) -> None:
    """Say what of the policy's limits cannot be carried."""
    if policy.limits.connections > carried():
        logger.warning(
            "limits.connections is %d, but %d descriptors carry %d connections, each with one to its server: what is "
            "over that is refused; raise the hard limit (LimitNOFILE=, --ulimit nofile=), or lower limits.connections",
            policy.limits.connections,
            _limit(),
            carried(),
        )


def is_taken(number: int, kept: int) -> bool:
    """Tell whether a descriptor of this number is one of the last, of which so many are kept (of few, fewer)."""
    return number >= _limit() - _kept(kept)


def shortage() -> OSError:
    """Return the error of a process that has all descriptors that it may have."""
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class AppListener(socket.socket):
    """A listening socket for apps: while only the last descriptors are left, who connects has to wait."""

    def accept(self) -> tuple[socket.socket, object]:
        """Take a connection.

        Raises:
            OSError: there is none, or (EMFILE) no descriptor for it.
        """
        probe = os.dup(self.fileno())
        os.close(probe)
        if is_taken(probe, KEPT_FROM_APPS):
            raise shortage()
        return super().accept()
