"""Checks what a start needs beyond a right policy: a data directory with a sound local CA, and addresses to listen on.
`overcoat check` calls `obstacles`; `overcoat serve` calls `bind_own` and, before it makes a CA, `first_constraints`.

Rules of this module:

- `check` finds here what `serve` would find by starting, and both say it in the same words.
- Nothing is created, written or dialled, and no connection is accepted.
- An address in use is no obstacle: it may be used by the very sidecar whose policy is checked.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from proxy.core.certificates.constraints import Constraints
from proxy.core.rules.inspected import NotFixed, constraints_for, outside
from proxy.core.rules.policy import Listener, Policy
from proxy.disk.ca import CaError, LocalCa, data_directory
from proxy.engine.server import BindError, bind
from proxy.processes.admin import bind_admin

logger = logging.getLogger("overcoat")

_NO_WORDS = ("", "0", "false", "f", "no", "n", "off")  # as click reads a flag's variable


def obstacles(policy: Policy, env: Mapping[str, str]) -> list[str]:
    """Return the reasons why `serve` would not start here with this policy, one line each.

    Args:
        policy: the policy.
        env: the environment, which says where Overcoat keeps its data.
    """
    found = []
    try:
        directory = data_directory(env)
        LocalCa.examine(directory, datetime.now(UTC))
        authority = LocalCa.find(directory)
        if authority is not None and (said := unfit(policy, authority)) is not None:
            found.append(said)
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


def unfit(policy: Policy, authority: LocalCa) -> str | None:
    """Return why the local CA does not fit a policy, in one line; None if it may sign for all that is inspected."""
    left_out = outside(policy, authority.constraints)
    if left_out is None:
        return None
    successor = authority.successor
    if successor is not None and outside(policy, Constraints.of(successor)) is None:
        way = "`overcoat ca rotate` has made one that may; once the apps trust it: `overcoat ca rotate --finish`"
    else:
        way = "run `overcoat ca rotate`, which makes one that fits this policy"
    return f"the policy inspects {left_out}, for which the local CA in {authority.directory} may not sign: {way}"


def asks_to_constrain(env: Mapping[str, str]) -> bool:
    """Tell whether the environment wants a local CA that is made to be constrained, as `serve --constrain-ca` does."""
    return env.get("OVERCOAT_CONSTRAIN_CA", "").lower() not in _NO_WORDS


def first_constraints(policy: Policy, directory: Path) -> Constraints | None:
    """Return to which hosts a local CA is to be constrained that is made for a policy: those that it inspects. None if
    there is a CA already, or if these are no fixed list, which is logged.

    Args:
        policy: the policy to be served.
        directory: the data directory.

    Raises:
        CaError: it cannot be read.
    """
    if LocalCa.find(directory) is not None:
        return None
    try:
        return constraints_for(policy)
    except NotFixed as why:
        logger.warning("the new local CA may sign for any host (--constrain-ca): the policy: %s", why)
        return None


def bind_own(listener: Listener | None, name: str) -> socket.socket | None:
    """Bind the address of the admin or probes listener; return None if the policy has no such listener.

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
    return [bound.socket for share in bind(listener, 1) for bound in share]


def _own_sockets_of(listener: Listener | None, name: str) -> list[socket.socket]:
    bound = bind_own(listener, name)
    return [] if bound is None else [bound]
