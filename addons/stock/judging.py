"""Judges the addresses that stock mitmproxy is about to dial, and those that it has reached. `addons.stock.dials` asks.

Rules of this module:

- A name is looked up and judged here, and then mitmproxy looks it up again. So the address that it has really reached
  is judged again.
- mitmproxy's own ports are never a destination, by whatever address or name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection

from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy, Rule
from proxy.core.rules.transport import forbidden_address, own_listener, unresolved
from proxy.core.who.addresses import Address, AddressKind, kind_of, parse_ip


class Judge:
    """Says which addresses are forbidden."""

    def __init__(self, own_ports: Callable[[], Collection[int]]) -> None:
        """Start.

        Args:
            own_ports: returns the ports that mitmproxy itself listens on.
        """
        self._own_ports = own_ports

    async def before(self, policy: Policy, rule: Rule | None, host: str, port: int) -> Denied | None:
        """Look a host up; return why the policy forbids all its addresses, or None.

        Raises:
            Denied: it cannot be reached at all, or must not be in any mode.
        """
        found = await look_up(host, port, policy.limits.connect_seconds)
        if port in self._own_ports() and any(kind_of(each) is AddressKind.LOOPBACK for each in found):
            raise own_listener(f"{host} port {port}")
        reachable = policy.reachable(rule)
        kind = next((kind for each in found if (kind := reachable.forbids(each)) is not None), None)
        return None if kind is None else forbidden_address(host, kind, rule)

    def reached(self, record: Upstream, host: str, peer: tuple[str, int], here: str) -> Denied | None:
        """Return why the address that a connection has reached is forbidden; None if it is not.

        Args:
            record: what is known of the connection.
            host: the host that was to be dialled.
            peer: the address and port that were reached.
            here: the connection's own address.
        """
        there, own = parse_ip(peer[0]), parse_ip(here)
        if peer[1] in self._own_ports() and (there == own or (there.is_loopback and own.is_loopback)):
            return own_listener(f"{host} port {peer[1]}")
        kind = record.policy.reachable(record.rule).forbids(there)
        if kind is not None and record.observed is None:
            return forbidden_address(host, kind, record.rule)
        return None


async def look_up(host: str, port: int, seconds: float) -> list[Address]:
    """Return the addresses of a host.

    Args:
        host: the canonical host.
        port: the port.
        seconds: the time limit.

    Raises:
        Denied: UPSTREAM_UNREACHABLE, UPSTREAM_TIMEOUT.
    """
    try:
        return [parse_ip(host)]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise Denied(Reason.UPSTREAM_TIMEOUT, f"the name {host} was not resolved in {seconds} s") from None
    except (OSError, UnicodeError) as e:
        is_unknown = not isinstance(e, OSError) or e.errno == socket.EAI_NONAME
        raise unresolved(host, is_unknown=is_unknown) from None
    return [parse_ip(str(address[0])) for *_, address in found]
