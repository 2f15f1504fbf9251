"""Opens a TCP connection to a destination: resolves its name, keeps the addresses that the policy allows, and tries
them. `upstreams.route` calls it, for destinations and for the upstream proxy.

Rules of this module:

- The name is resolved once, and exactly those addresses are dialled that were checked. Another answer of the DNS a
  moment later changes nothing.
- A forbidden address is never sent a packet. In observe mode it is, and that is noted.
- Our own listeners are never a destination, whatever the policy says.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Sequence

from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Mirror
from proxy.core.rules.transport import (
    denied_by_address,
    forbidden_address,
    forbidden_behind_mirror,
    own_listener,
    unresolved,
    untaken,
)
from proxy.core.who.addresses import AddressKind, kind_of, parse_ip
from proxy.engine.descriptors import KEPT_FROM_DIALS, SHORTAGES, is_taken, shortage
from proxy.engine.sockets import tcp_socket
from proxy.engine.upstreams.services import Services

# What getaddrinfo(3) says of a name that the DNS does not have, or has no address for; anything else says that it gave
# no answer that could be used.
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


async def connect(services: Services, host: str, port: int, record: Upstream) -> socket.socket:
    """Open a TCP connection.

    Args:
        services: has the event loop, the resolvers, the pool, and our own addresses.
        host: the canonical host.
        port: the port.
        record: has the policy, which says what is allowed; in observe mode, it notes that a forbidden address was
            reached.

    Returns:
        A connected socket that does not block.

    Raises:
        Denied: it cannot be opened, or must not be.
    """
    seconds = record.policy.limits.connect_seconds
    try:
        async with asyncio.timeout(seconds):
            await _make_room(services)
            connection = await _first(services.loop, _allowed(await _look_up(services, host, port), host, record))
    except TimeoutError:
        raise Denied(Reason.UPSTREAM_TIMEOUT, f"{host} port {port} took no connection in {seconds} s") from None
    except socket.gaierror as e:
        raise unresolved(host, is_unknown=e.errno in _NO_SUCH_NAME) from None
    except (OSError, UnicodeError) as e:
        if isinstance(e, OSError) and e.errno in SHORTAGES:
            where = f"no descriptor is left for a connection to {host} port {port}"
            raise Denied(Reason.UPSTREAM_UNREACHABLE, where, "raise the limit of descriptors (ulimit -n)") from None
        raise untaken(host, port, is_behind_mirror=record.mirror is not None) from None
    try:
        is_own = services.is_own_address(connection.getsockname()[:2], connection.getpeername()[:2])
    except OSError:  # it was reset meanwhile
        connection.close()
        raise untaken(host, port) from None
    if is_own:
        connection.close()
        raise own_listener(f"{host} port {port}")
    return connection


async def _make_room(services: Services) -> None:
    """Close idle connections if their descriptors are needed."""
    with tcp_socket(socket.AF_INET) as probe:
        is_short = is_taken(probe.fileno(), KEPT_FROM_DIALS)
    if is_short:
        services.pool.close()
        await asyncio.sleep(0)  # a socket closes in the next turn
        await asyncio.sleep(0)


type _Found = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


async def _look_up(services: Services, host: str, port: int) -> list[_Found]:
    """Return the addresses of a host, in the order that the system prefers.

    Raises:
        OSError: it has none.
    """
    try:
        family = socket.AF_INET if parse_ip(host).version == 4 else socket.AF_INET6
    except ValueError:
        # Not in the loop's own executor: the process waits for that at its end, and the DNS may take minutes.
        look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await services.loop.run_in_executor(services.resolvers, look_up)
        return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]  # other families have others
    return [(family, (host, port))]


def is_loopback(host: str) -> bool:
    """Tell whether a host is a loopback address, or a name that always leads to one."""
    try:
        return kind_of(parse_ip(host)) is AddressKind.LOOPBACK
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def local_address_to(host: str) -> str | None:
    """Return the address from which this machine would connect to an address; for one of its own, that address itself.

    Args:
        host: an address. For a name, and for an address that cannot be reached, the result is None.
    """
    try:
        family = socket.AF_INET if parse_ip(host).version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as unused:
            unused.connect((host, 9))  # this sends nothing
            return str(unused.getsockname()[0])
    except (ValueError, OSError):
        return None


def check_address(host: str, record: Upstream) -> None:
    """Check a host that is an address, or a name that always leads to one. All other names pass: they are resolved
    elsewhere.

    Raises:
        Denied: DESTINATION_FORBIDDEN.
    """
    denied = denied_by_address(record.policy, record.rule, host)
    if denied is None:
        return
    if not record.policy.observes(record.rule):
        raise denied
    record.observed = denied


def _allowed(found: Sequence[_Found], host: str, record: Upstream) -> list[_Found]:
    """Return the addresses that may be dialled.

    Raises:
        Denied: there are none.
    """
    policy, is_observing = record.policy, record.policy.observes(record.rule)
    if record.mirror is not None:
        return _allowed_behind(record.mirror, found, host, record)
    allowed: list[_Found] = []
    forbidden: AddressKind | None = None
    for family, address in found:
        kind = policy.reachable(record.rule).forbids(parse_ip(address[0]))
        if record.is_proxy:
            kind = None  # the policy names it
        if kind is None or is_observing:
            allowed.append((family, address))
        forbidden = forbidden or kind
    if forbidden is not None:
        denied = forbidden_address(host, forbidden, record.rule)
        if not allowed:
            raise denied
        if is_observing:
            record.observed = denied
    return allowed


def _allowed_behind(mirror: Mirror, found: Sequence[_Found], host: str, record: Upstream) -> list[_Found]:
    """Return the addresses at which a mirror's server may be, in any mode.

    Raises:
        Denied: there are none.
    """
    allowed: list[_Found] = []
    for family, address in found:
        denied = forbidden_behind_mirror(
            record.policy, record.rule, host, parse_ip(address[0]), is_plain=mirror.is_plain
        )
        if denied is None:
            allowed.append((family, address))
    if not allowed and denied is not None:
        raise denied
    return allowed


async def _first(loop: asyncio.AbstractEventLoop, addresses: Sequence[_Found]) -> socket.socket:
    """Return a connection to the first address that accepts one; each gets a head start before the next is tried.

    Raises:
        OSError: none accepted.
    """
    if len(addresses) == 1:
        return await _try(loop, *addresses[0])
    waiting: set[asyncio.Task[socket.socket]] = set()
    left = _alternating(addresses)
    error: OSError = ConnectionRefusedError()
    try:
        while left or waiting:
            if left:
                waiting.add(loop.create_task(_try(loop, *left.pop(0))))
            done, waiting = await asyncio.wait(
                waiting, timeout=timelimits.NEXT_ADDRESS_SECONDS if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            connected = [task.result() for task in done if task.exception() is None]
            for superfluous in connected[1:]:
                superfluous.close()
            if connected:
                return connected[0]
            for task in done:
                failure = task.exception()
                if not isinstance(failure, OSError):
                    raise failure or RuntimeError("a dial without a result")
                error = failure
        raise error
    finally:
        for task in waiting:
            task.cancel()
            task.add_done_callback(_close_result)


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    """Close a connection that was made too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _alternating(addresses: Sequence[_Found]) -> list[_Found]:
    """Return the addresses in the order that the system prefers, but with alternating families (RFC 8305,
    section 4).
    """
    first = [each for each in addresses if each[0] == addresses[0][0]]
    other = [each for each in addresses if each[0] != addresses[0][0]]
    longer, shorter = (first, other) if len(first) >= len(other) else (other, first)
    turns = [each for pair in zip(first, other, strict=False) for each in pair]
    return turns + longer[len(shorter) :]


async def _try(
    loop: asyncio.AbstractEventLoop, family: socket.AddressFamily, address: tuple[str, int] | tuple[str, int, int, int]
) -> socket.socket:
    connection = tcp_socket(family)
    try:
        if is_taken(connection.fileno(), KEPT_FROM_DIALS):
            raise shortage()
        connection.setblocking(False)
        await loop.sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection
