"""What a start takes beyond a policy that is right: a place for its data with a sound local CA, addresses to listen on.

Rules of this module:

- `check` asks here what `serve` finds out by doing it, and both say it in the same words.
- Nothing is made, written or dialled, and no connection is taken.
- An address that is in use is none of this: the sidecar whose policy is checked may be the one that uses it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from proxy.core.rules.policy import Listener, Policy
from proxy.disk.ca import CaError, LocalCa, data_directory
from proxy.engine.server import BindError, bind
from proxy.processes.admin import bind_admin


def obstacles(policy: Policy, env: Mapping[str, str]) -> list[str]:
    """Return why `serve` would not start here with this policy, one line each.

    Args:
        policy: the policy.
        env: the environment, for where Overcoat keeps its data.
    """
    found = []
    try:
        LocalCa.examine(data_directory(env))
    except CaError as e:
        found.append(str(e))
    for attempt in _bindings(policy):
        try:
            for bound in attempt():
                bound.close()
        except BindError as e:
            if e.number != errno.EADDRINUSE:
                found.append(str(e))
    return found


def bind_own(listener: Listener | None, name: str) -> socket.socket | None:
    """Bind where the admin listener, or that of the probes, is to listen; None if it is to listen nowhere.

    Raises:
        BindError: it cannot be bound.
    """
    try:
        return None if listener is None else bind_admin(listener.host, listener.port)
    except OSError as e:
        assert listener is not None
        raise BindError(f"{listener.address} ({name})", e) from None


def _bindings(policy: Policy) -> Iterator[Callable[[], list[socket.socket]]]:
    for listener in policy.listen:
        yield partial(_sockets_of, listener)
    for own, name in ((policy.admin, "admin"), (policy.probes, "probes")):
        yield partial(_own_sockets_of, own, name)


def _sockets_of(listener: Listener) -> list[socket.socket]:
    return [place.socket for share in bind(listener, 1) for place in share]


def _own_sockets_of(listener: Listener | None, name: str) -> list[socket.socket]:
    bound = bind_own(listener, name)
    return [] if bound is None else [bound]
