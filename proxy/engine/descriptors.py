"""Limits how many sockets and files this process opens, and keeps the last descriptors for its own needs. `accepting`
and `upstreams.dialling` ask it before they open connections; `overcoat serve` raises the limit at its start.

Rules of this module:

- The soft limit is raised to the hard one, which the owner of the machine has set.
- Connections from apps and to their servers never take the last descriptors: those are kept for the admin listener, a
  reload and the file of decision lines. New connections from apps are stopped first, so that open ones can still reach
  their servers.
- The system always gives the lowest free number (POSIX), so the number of a descriptor tells how many are in use.
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
_ENOUGH = 512  # with fewer descriptors than this, fewer are kept
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_OPEN_MAX = 10_240  # for macOS, whose hard limit may be higher than what the system gives

logger = logging.getLogger("overcoat")


def raise_limit() -> None:
    """Raise the soft limit to the hard one, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, _OPEN_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_MAX)):
        if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > soft):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def carried() -> float:
    """Return how many app connections this process can carry, each with one connection to its server."""
    return _free_after(KEPT_FROM_APPS) // 2


def _free_after(kept: int) -> float:
    """Return the number of descriptors without the last ones: `kept`, or fewer if there are few."""
    limit = _limit()
    return limit - min(1.0, limit / _ENOUGH) * kept


def _limit() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def warn_of_limit(policy: Policy) -> None:
    """Warn of limits in the policy that are higher than this process can carry."""
    if policy.limits.connections > carried():
        logger.warning(
            "limits.connections is %d, but %d descriptors carry %d connections, each with one to its server: what is "
            "over that is refused; raise the hard limit (LimitNOFILE=, --ulimit nofile=), or lower limits.connections",
            policy.limits.connections,
            _limit(),
            carried(),
        )


def is_taken(number: int, kept: int) -> bool:
    """Tell whether a descriptor number is among the last ones, of which `kept` are kept free (fewer if there
    are few).
    """
    return number >= _free_after(kept)


def shortage() -> OSError:
    """Return the error of a process that has used up its descriptors."""
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class AppListener(socket.socket):
    """A listening socket for apps: while only the last descriptors are free, new connections wait."""

    def accept(self) -> tuple[socket.socket, object]:
        """Accept a connection.

        Raises:
            OSError: there is none, or (EMFILE) no descriptor for it.
        """
        probe = os.dup(self.fileno())
        os.close(probe)
        if is_taken(probe, KEPT_FROM_APPS):
            raise shortage()
        return super().accept()
