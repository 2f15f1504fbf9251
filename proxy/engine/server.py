"""The engine put together: it listens, has the addons in their order, and starts, reloads and drains. `overcoat serve`
and the worker processes make one `Engine` each.

Rules of this module:

- It is ready only when every listener is bound; a listener that cannot be bound ends the start.
- `drain` accepts no new connections and lets running requests finish; what has not finished in time is cut off, and
  counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import ipaddress
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from addons.encryption import Encryption
from addons.exchange import Exchange
from addons.gate import Gate
from addons.localca import LocalCaGuard
from addons.messages import Messages
from addons.metrics import Metrics
from addons.pinning import Pinning
from addons.sessions import Session, Sessions
from addons.telemetry import Telemetry
from addons.transport import Transport
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.http.cookies import Cookies
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Listener, OpenConnections, Policy
from proxy.core.rules.promises import has_outlived, pins_have_ended
from proxy.core.who.addresses import parse_ip
from proxy.core.who.clients import check_client
from proxy.core.who.credentials import Verifier
from proxy.disk.ca import LocalCa
from proxy.disk.preload import is_preloaded
from proxy.engine.accepting import Door
from proxy.engine.apps.house import OpenConnection
from proxy.engine.apps.listeners import meet
from proxy.engine.apps.socket import AppSocket
from proxy.engine.descriptors import SHORTAGES, AppListener, carried
from proxy.engine.dispatch import Dispatcher
from proxy.engine.timers import Timers
from proxy.engine.tls import TlsConnections
from proxy.engine.turns import Turns
from proxy.engine.upstreams.asides import Asides
from proxy.engine.upstreams.pool import Pool
from proxy.engine.upstreams.services import Services
from proxy.engine.upstreams.supplies import Supplies
from proxy.engine.vitals import measure
from proxy.log import describe

logger = logging.getLogger("overcoat")

BACKLOG = 1024
RESOLVERS = 64
MOST_LINGERING = 256  # clients that were refused, and stay connected for a moment
SHARE_OF_LINGERING = 0.125  # the same, of the connections that descriptors allow
SHARE_OF_MORE = 0.75  # of the connections that descriptors allow: for upstream connections beyond a client's first


_BIND_HINTS = {
    errno.EADDRINUSE: "; something else listens there, such as another sidecar: end it, or take another port",
    errno.EADDRNOTAVAIL: "; this machine has no such address: 127.0.0.1 is its own, 0.0.0.0 means all that it has",
    errno.EACCES: "; this user may not take so low a port: take one from 1024 on",
}


class BindError(Exception):
    """A listener cannot be bound. The message is one line that says which one, and why.

    Attributes:
        number: the system's number of the error.
    """

    def __init__(self, where: object, error: OSError) -> None:
        why = (error.strerror or str(error)).lower()
        super().__init__(f"cannot listen on {where}: {why}{_BIND_HINTS.get(error.errno or 0, '')}")
        self.number = error.errno


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return the addresses that a listener's host stands for: a name may have several."""
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except ValueError:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))
    return [(socket.AF_INET6 if is_ipv6 else socket.AF_INET, host)]


class Bound(NamedTuple):
    """A bound socket, and the listener that it belongs to."""

    listener: Listener
    socket: socket.socket


def bind(listener: Listener, count: int) -> list[list[Bound]]:
    """Bind a listener once for each of `count` workers.

    With several workers, the kernel distributes the connections among them (SO_REUSEPORT).

    Args:
        listener: the listener. Its name may stand for several addresses; port 0 asks for a free port.
        count: the number of workers.

    Returns:
        The sockets of each worker.

    Raises:
        BindError: it cannot be bound.
    """
    shares: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, address in _addresses(listener.host):
            port = listener.port
            for share in shares:
                bound: socket.socket = AppListener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                share.append(bound)
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # The first socket without it: another program on that port must be an error, not share the port.
                if share is not shares[0]:
                    shares[0][-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                bound.bind((address, port))
                port = bound.getsockname()[1]
    except OSError as e:
        for bound in (bound for share in shares for bound in share):
            bound.close()
        raise BindError(listener, e) from None
    return [[Bound(listener, bound) for bound in share] for share in shares]


class _Reports:
    """Logs exceptions that nothing has caught. asyncio's own report would quote their messages."""

    def __init__(self) -> None:
        self._shortage = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error; a shortage causes many, of which one in `SHORTAGE_SECONDS` is logged."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in SHORTAGES and "socket" in context:
            if loop.time() - self._shortage >= timelimits.SHORTAGE_LOG_SECONDS:
                self._shortage = loop.time()
                logger.error(
                    "a new connection must wait: %s; raise the limit (ulimit -n) or let fewer apps connect",
                    os.strerror(error.errno).lower(),
                )
            return
        logger.error("the event loop met an error: %s", describe(error) if error is not None else "no exception")


class Engine:
    """Runs the listeners and the pipeline of this process."""

    def __init__(self, policy: Policy, ca: LocalCa, metrics: Metrics, write_line: Callable[[str], object]) -> None:
        """Build the pipeline. It must be called inside a running event loop.

        Args:
            policy: the policy to begin with; see `take_over`.
            ca: signs the certificates that apps see.
            metrics: the counters.
            write_line: writes a decision line.

        Raises:
            proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
        """
        self.sessions = Sessions()
        self.verifier = Verifier(os.urandom(32), time.monotonic)
        self._ca = ca
        self._ca_guard = LocalCaGuard(self.sessions, ca.mandate)
        self._tls = TlsConnections(self.sessions, ca)
        self._tls.prepare(policy)
        self.loop = asyncio.get_running_loop()
        self.timers = Timers(self.loop)
        self.turns = Turns(self.loop.call_soon)
        # Names are resolved in threads; there must be more of them than one app can keep busy with slow names.
        resolvers = ThreadPoolExecutor(RESOLVERS, "resolver")
        self.loop.set_exception_handler(_Reports())
        self.policy = policy
        self.connections: set[OpenConnection] = set()
        self.pool = Pool(self.loop, metrics.count_connection)
        self._taken = self.loop.time()  # when the policy in force was taken over
        self.is_parting = False  # told to end; new connections are still taken, for `drain_wait`
        self.is_draining = False
        self._count_cuts = metrics.drain_cuts.inc
        self._nobody_left = asyncio.Event()
        self._doors: list[Door] = []
        self._watching: asyncio.Task[None] | None = None
        self._own: list[tuple[str, int]] = []
        known = self._known = KnownHosts(time.time, is_preloaded)
        telemetry = Telemetry(self.sessions, metrics, write_line)
        self._finish, self._under_way, self._handshakes = telemetry.finish, telemetry.under_way, telemetry.handshakes
        self._metrics = metrics
        self.take_over_ca()
        self.dispatch = Dispatcher(
            (
                self._tls,
                Gate(self.sessions, self.verifier, known),
                self._ca_guard,
                Transport(self.sessions, known, Cookies(ca.tag)),
                Pinning(self.sessions),
                encryption := Encryption(self.sessions, used=metrics.key_used, pause=self.turns.pause),
                Messages(self.sessions, encryption.setting),
                telemetry,
            ),
            self.sessions,
            metrics.hook_failures.inc,
        )
        self.services = Services(
            self.loop, self.timers, resolvers, self.sessions, self.dispatch, self.is_own_address, self.pool
        )

        self.asides = Asides(self.services)
        self._supplies = Supplies(self.services, metrics)

    def take_over_ca(self) -> None:
        """Go on with the local CA as it is now, after it was renewed (`LocalCa.renew`)."""
        self.local_ca = self._ca_guard.mandate = self._ca.mandate
        self._metrics.local_ca_expiry.set(int(self.local_ca.lifetime.ends.timestamp()))

    async def listen(self, sockets: Iterable[Bound]) -> None:
        """Accept connections on bound sockets (see `bind`), once keys that are to be fetched are there, or late.

        What there is then stays to the end, and the garbage collector leaves it out from now on. It takes 0.2 s to look
        through it with some hundred rules, and each scrape of the metrics makes it do so; meanwhile no app is served.
        """
        self._supplies.take_over(self.policy)
        await self._supplies.first()
        for listener, bound in sockets:
            protocol = functools.partial(AppSocket, self, listener, meet)
            bound.listen(BACKLOG)
            door = Door(self.loop, bound, protocol)
            door.open()
            self._doors.append(door)
            self._own.append(bound.getsockname()[:2])
        measure(self._metrics)
        self._watching = self._watching or self.loop.create_task(self._watch())
        gc.freeze()

    async def _watch(self) -> None:
        """Look at what is under way, now and then, until the end."""
        while True:
            due = self.loop.time() + timelimits.UNDER_WAY_SECONDS
            await asyncio.sleep(timelimits.UNDER_WAY_SECONDS)
            try:
                self._metrics.lag.labels(self._metrics.process).set(max(0.0, self.loop.time() - due))
                measure(self._metrics)
                for _ in self._under_way.look(timelimits.LINE_SECONDS):
                    await asyncio.sleep(0)
                await self._end_outlived()
            except Exception as e:  # whatever it is: metrics of what runs must go on
                logger.error("looking at what is under way failed: %s", describe(e))

    async def _end_outlived(self) -> None:
        """End what is open and has another promise by now, or whose pins have ended."""
        if self.policy.open_connections is OpenConnections.KEEP:
            return
        is_due = self.loop.time() >= self._taken + timelimits.OUTLIVED_SECONDS
        today = datetime.now(UTC).date()
        for connection in list(self.connections):
            await asyncio.sleep(0)
            if (why := self._outlived(connection.session, today, is_due=is_due)) is not None:
                denied = Denied(Reason.POLICY_CHANGED, why)
                connection.session.cut_off(denied)
                connection.cut_off(denied)

    def _outlived(self, session: Session, today: date, *, is_due: bool) -> str | None:
        """Return why something that is under way on a connection must end; None if nothing must.

        Args:
            session: the connection's session.
            today: the current day in UTC.
            is_due: whether what began under an earlier policy has had its time to end.
        """
        for exchange in session.under_way:
            if exchange.asked is None:
                continue
            if not exchange.observing and pins_have_ended(exchange.rule, today):
                return f"the pins of rule {exchange.rule_name} have ended"
            if exchange.upstream is not None and pins_have_ended(exchange.upstream.through, today):
                return "the pins of the upstream proxy have ended"
            if exchange.policy is self.policy or not is_due:
                continue
            action = exchange.decision.action if exchange.decision is not None else None
            if has_outlived(exchange.policy, exchange.rule, action, self.policy, exchange.asked, known=self._known):
                return f"the policy for {exchange.asked.host} has changed since this was opened"
            clients = self.policy.clients
            is_known = exchange.user is None or any(user.name == exchange.user for user in clients.users)
            if not is_known or not clients.admits(parse_ip(session.client)):
                return "this client may not use the proxy any more"
        return None

    def guard(self, address: tuple[str, int]) -> None:
        """Add another listener of this process (the admin listener) that must not be reached through the proxy."""
        self._own.append(address)

    def is_own_address(self, local: tuple[str, int], remote: tuple[str, int]) -> bool:
        """Tell whether a connection from `local` to `remote` leads to one of our own listeners."""
        return any(port == remote[1] for _, port in self._own) and is_same_machine(local, remote)

    def take_over(self, policy: Policy) -> None:
        """Decide every request that begins from now on with another policy.

        The decision about a CONNECT holds for everything inside it. So a connection with inspected https is closed as
        soon as no request is under way on it. What goes on is ended a little later if its host has another promise by
        then; see `_end_outlived`.

        Raises:
            proxy.engine.tls.NoRoots: the trusted roots cannot be found or read; then nothing has changed.
        """
        self._tls.prepare(policy)
        if policy.lets_plain_http_pass and not self.policy.lets_plain_http_pass:
            logger.warning("plain http may pass now: Secure cookies that apps have kept so far are not marked as such")
        before, self.policy, self._taken = self.policy, policy, self.loop.time()
        self._handshakes.take_over(before, policy)
        self._supplies.take_over(policy)
        self.pool.close()
        for connection in list(self.connections):
            if self.is_leaving(connection.session):
                connection.drain()

    def is_leaving(self, session: Session) -> bool:
        """Tell whether a client connection is to be closed as soon as no request is under way on it."""
        return self.is_draining or (session.connect is not None and session.connect.policy is not self.policy)

    def is_last_response(self, session: Session) -> bool:
        """Tell whether a response that begins now is the last one on its connection, where HTTP/1 is spoken."""
        return self.is_parting or (session.connect is not None and session.connect.policy is not self.policy)

    def part(self) -> None:
        """Say with each response from now on that its connection ends (RFC 9112, section 9.6), so that apps have left
        when the drain begins, and no request crosses with the end of an idle connection. Others may still come.
        """
        self.is_parting = True

    def admit(self, session: Session) -> None:
        """Admit a client connection that has just been opened.

        Raises:
            Denied: TOO_MANY_CONNECTIONS; CLIENT_FORBIDDEN if the client may not connect.
        """
        check_client(self.policy.clients_of(session.mirror), session.client, is_at_mirror=session.mirror is not None)
        limits = self.policy.limits
        if self.sessions.admitted >= (most := carried()):
            where = f"as many connections are open as this process has descriptors for ({most:.0f})"
            raise Denied(Reason.TOO_MANY_CONNECTIONS, where, "raise the limit of descriptors (ulimit -n)")
        if self.sessions.admitted >= limits.connections:
            where = f"limits.connections ({limits.connections}) are open"
            raise Denied(Reason.TOO_MANY_CONNECTIONS, where)
        if self.sessions.count(session.client) >= limits.client_connections:
            where = f"limits.client_connections ({limits.client_connections}) are open from {session.client}"
            raise Denied(Reason.TOO_MANY_CONNECTIONS, where)
        self.sessions.admit(session)
        session.admitted_by = self.policy

    def may_linger(self) -> bool:
        """Tell whether a client that was just refused may stay connected for a moment, so that it surely reads why.

        Each that does takes a descriptor, although it is not admitted: who is refused must not keep others waiting.
        """
        return len(self.connections) - self.sessions.admitted <= min(MOST_LINGERING, carried() * SHARE_OF_LINGERING)

    def check_room(self, session: Session) -> None:
        """Check that a client connection may have another upstream connection, beside its first.

        A connection of HTTP/2 may ask for a hundred. A quarter of the connections that descriptors allow is kept for
        new clients.

        Raises:
            Denied: TOO_MANY_CONNECTIONS.
        """
        if session.busy and self.sessions.admitted + self.sessions.busy >= 2 * carried() * SHARE_OF_MORE:
            where = "the app has several upstream connections already, and few descriptors are left for the others"
            raise Denied(Reason.TOO_MANY_CONNECTIONS, where, "raise the limit of descriptors (ulimit -n)")

    def began(self, connection: OpenConnection) -> None:
        """Note a client connection that was just accepted."""
        self.connections.add(connection)

    def ended(self, connection: OpenConnection) -> None:
        """Note that a client connection is over."""
        self.connections.discard(connection)
        if self.is_draining and not self.connections:
            self._nobody_left.set()

    def opened(self, session: Session) -> None:
        """Note that a connection's tunnel is open."""
        if session.connect is not None:
            self._under_way.opened(session.connect, None)

    def write_denied(self, exchange: Exchange, status: int | None) -> None:
        """Write the decision line of something that was no request, so that no addon has seen it.

        Args:
            exchange: what is known about it.
            status: the status that the app was told, if any.
        """
        self._finish(exchange, status, None)

    async def drain(self) -> int:
        """Stop listening, let requests finish within the policy's `drain_timeout`, then cut off the rest.

        Returns:
            The number of requests and tunnels that were cut off.
        """
        seconds = self.policy.drain_timeout
        self.is_parting = self.is_draining = True
        for door in self._doors:
            door.close()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._nobody_left.wait()
        if self._watching is not None:
            self._watching.cancel()
        cut = 0
        denied = Denied(Reason.DRAIN_TIMEOUT, f"Overcoat was told to end, and this was not over in {seconds} s")
        for connection in list(self.connections):
            cut += connection.session.cut_off(denied)
            connection.cut_off(denied)
        self.pool.close()
        self.asides.close()
        self._supplies.close()
        await asyncio.sleep(0)  # connection_lost is called in the next turn of the loop
        if cut:
            self._count_cuts(cut)
            logger.error("cut off at the end of draining, after %d s: requests and tunnels %d", seconds, cut)
        return cut


def is_same_machine(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Tell whether two socket addresses certainly belong to this machine: they are equal, or both loopback."""
    first, second = ipaddress.ip_address(one[0].partition("%")[0]), ipaddress.ip_address(other[0].partition("%")[0])
    return first == second or (first.is_loopback and second.is_loopback)
