"""Connects to a destination along its route: directly, or through another proxy by CONNECT (`upstream_proxy`).
`upstreams.opening` and the tunnels call `dial`; `probe` calls `reach`.

Theory of operation. The caller gets a connected socket. Through a proxy, that socket is one end of a pair; a `_Link`
carries bytes between the other end and the connection to the proxy, which may be TLS itself. So the code above sees no
difference, and TLS to the destination runs end to end inside.

Rules of this module:

- If the proxy fails or refuses, the request is denied: it never goes directly instead.
- An https proxy is verified like any upstream, and must match its own pins, even in observe mode: it sees where we go.
- Once its pins have ended, no connection through it is used again, as with a rule's own.
- The proxy's credentials go only to the proxy, and only inside TLS if it is an https proxy.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence

from mitmproxy.connection import Server

from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.http.heads import HeadEnd
from proxy.core.reasons import Reason
from proxy.core.rules.policy import UpstreamProxy
from proxy.core.rules.transport import own_listener
from proxy.engine.hookdata import Context
from proxy.engine.life import Life
from proxy.engine.streams import NoResponses
from proxy.engine.transport import SocketTransport
from proxy.engine.upstreams.connection import MAX_INTERIM, UpstreamConnection
from proxy.engine.upstreams.dialling import check_address, connect, is_loopback, local_address_to
from proxy.engine.upstreams.handshake import secure
from proxy.engine.upstreams.pairs import Ending, PairedSocket, paired_sockets, say_ending
from proxy.engine.upstreams.services import Services

_ABOUT_TRUST = frozenset((Reason.CERTIFICATE_INVALID, Reason.PIN_MISMATCH, Reason.PINS_EXPIRED))
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}[ \r]")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


async def dial(
    services: Services, server: Server, key: object, record: Upstream, context: Context
) -> UpstreamConnection:
    """Open a connection: TCP, then TLS if the server is to speak it.

    Args:
        services: what every upstream connection needs.
        server: the server, with its `address` and `tls`.
        key: the key under which the pool may reuse it.
        record: notes the result of the handshake.
        context: the client for which it is made, for the hooks.

    Raises:
        Denied: it cannot be opened, or the server is not trusted.
    """
    assert server.address is not None
    connection = await reach(services, *server.address, record, context)
    upstream = await secure(services, server, connection, record, context)
    upstream.key, upstream.home = key, services.pool
    return upstream


async def reach(services: Services, host: str, port: int, record: Upstream, context: Context) -> socket.socket:
    """Open a connection to a destination, directly or through the policy's upstream proxy.

    Args:
        services: what every upstream connection needs.
        host: the canonical host.
        port: the port.
        record: has the policy; see `proxy.engine.upstreams.dialling.connect`.
        context: the client for which it is made.

    Raises:
        Denied: it cannot be opened, or must not be.
    """
    destination = Destination(host, port)
    through = record.policy.proxy_to(destination) if record.mirror is None else None
    if through is None:
        return await connect(services, host, port, record)
    check_address(host, record)  # the proxy resolves names; an address can be checked here
    there = "127.0.0.1" if is_loopback(host) else host
    if (here := local_address_to(there)) is not None and services.is_own_address((here, 0), (there, port)):
        raise own_listener(str(destination))
    seconds = record.policy.limits.connect_seconds
    try:
        async with asyncio.timeout(seconds):
            return await _through(services, through, destination, record, context)
    except TimeoutError:
        raise Denied(
            Reason.UPSTREAM_PROXY_FAILED, f"the upstream proxy {through.destination} gave no answer in {seconds} s"
        ) from None


async def _through(
    services: Services, proxy: UpstreamProxy, destination: Destination, record: Upstream, context: Context
) -> socket.socket:
    host, port = proxy.destination.host, proxy.destination.port
    server = Server(address=(host, port))
    server.tls = proxy.is_https
    of_proxy = Upstream(record.policy, proxy.rule, is_proxy=True)
    record.through = proxy.rule
    upstreams = services.sessions.of(context.client).upstreams
    upstreams[server.id] = of_proxy
    try:
        connection = await connect(services, host, port, of_proxy)
        outer = await secure(services, server, connection, of_proxy, context)
        if of_proxy.noted is not None:
            record.noted = of_proxy.noted.again(f"the upstream proxy: {of_proxy.noted.detail}")
            record.would_refuse = of_proxy.would_refuse
    except Denied as denied:
        detail = f"the upstream proxy: {denied.detail}"
        if denied.reason in _ABOUT_TRUST:
            raise denied.again(detail) from None
        raise Denied(Reason.UPSTREAM_PROXY_FAILED, detail) from None
    finally:
        upstreams.pop(server.id, None)
    ours, theirs = paired_sockets()
    link: _Link | None = None
    try:
        link = _Link(services, outer, ours)
        SocketTransport(services.loop, ours, link)
        if outer.heard_early():
            raise Denied(
                Reason.UPSTREAM_PROXY_FAILED, "the upstream proxy spoke, or closed, before it was asked anything"
            )
        outer.carry(link)
        await link.ask(destination, proxy, _via(services, record, context))
    except BaseException:
        outer.close()
        ours.close() if link is None else link.transport.abort()
        theirs.close()
        raise
    return theirs


def _via(services: Services, record: Upstream, context: Context) -> list[str]:
    """Return the Via values for our own CONNECT, including those of the app's: without them, a circle of CONNECTs never
    ends.
    """
    connect = services.sessions.of(context.client).connect
    before = [] if connect is None else list(connect.via)
    return before if record.policy.via is None else [*before, f"1.1 {record.policy.via}"]


class _Link(NoResponses, Life):
    """Asks the proxy for a tunnel, then carries bytes between the socket pair and the proxy."""

    def __init__(self, services: Services, outer: UpstreamConnection, inner: PairedSocket) -> None:
        super().__init__(services.timers)
        self._loop = loop = services.loop
        self._outer = outer
        self._inner = inner
        self._head = b""
        self._head_end = HeadEnd(of_request=False)
        self._interim = 0
        self._inner_has_ended = False
        self._outer_has_ended = False
        self._last_activity = loop.time()
        self._answer: asyncio.Future[None] | None = loop.create_future()

    async def ask(self, destination: Destination, proxy: UpstreamProxy, via: Sequence[str]) -> None:
        """Ask for a tunnel, and wait for it.

        Raises:
            Denied: the proxy gives none.
        """
        assert self._answer is not None
        name = destination.authority.encode("ascii")
        shown = b"".join(b"Via: %s\r\n" % each.encode("utf-8", "surrogateescape") for each in via)
        if proxy.authorization is not None:
            shown += b"Proxy-Authorization: %s\r\n" % proxy.authorization.reveal()
        self._outer.send(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (name, name, shown))
        await self._answer
        self._answer = None

    # -- from the socket pair

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        self._outer.send(data)

    def eof_received(self) -> bool:
        """Pass the end on."""
        self._inner_has_ended = True
        if self._outer_has_ended or self._inner.ending is not Ending.IN_ORDER:
            return False
        self._outer.half_close()
        self._watch_half_closed()
        return True

    def _watch_half_closed(self) -> None:
        """Break off if nothing moves any more: the user of the tunnel may be gone, which an EOF does not tell."""
        idle = self._loop.time() - self._last_activity
        if self._inner.ending is not Ending.IN_ORDER:
            self.transport.abort()
        elif idle < timelimits.HALF_CLOSED_SECONDS:
            self._start_timer("half-closed", timelimits.TUNNEL_CHECK_SECONDS, self._watch_half_closed)
        else:
            self._break_off()

    def _break_off(self) -> None:
        say_ending(self._inner, Ending.BROKEN)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the user of the tunnel is done."""
        self._stop_timers()
        if exc is not None or self._inner.ending is Ending.BROKEN:
            self._outer.reset()
        else:
            self._outer.finish()

    def pause_writing(self) -> None:
        """Read from the proxy only as much as is taken here."""
        self._outer.hold("user", True)

    def resume_writing(self) -> None:
        """Read on."""
        self._outer.hold("user", False)

    # -- from the proxy (its Receiver)

    def switched(self, data: bytes) -> None:
        """Handle the answer to CONNECT, then pass bytes on."""
        self._last_activity = self._loop.time()
        if self._answer is None or self._answer.done():
            self.transport.write(data)
            return
        self._head += data
        try:
            while (end := self._head_end.find(self._head)) is not None and _INTERIM.match(self._head):
                self._head = self._head[end:]
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    self._deny("sends interim responses (1xx) without an end")
                    return
        except Denied:
            self._deny("sent a head without an end")
            return
        if end is None:
            return
        status = _STATUS.match(self._head)
        if status is None:
            self._deny("answered with something that is not HTTP")
        elif not status[1].startswith(b"2"):
            hint = ""
            if status[1] == b"407":
                hint = "give its name and password in upstream_proxy.credentials"
            self._deny(f"answered CONNECT with {status[1].decode('ascii')}", hint)
        else:
            self._answer.set_result(None)
            if rest := self._head[end:]:
                self.transport.write(rest)

    def _deny(self, what: str, hint: str = "") -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Denied(Reason.UPSTREAM_PROXY_FAILED, f"the upstream proxy {what}", hint))

    def switched_end(self) -> None:
        """Pass the end on."""
        self._deny("closed the connection without an answer")
        self._outer_has_ended = True
        if self._outer.tls is not None and not self._outer.tls.was_closed:
            say_ending(self._inner, Ending.CUT)
        if self._inner_has_ended:
            self.transport.close()
        else:
            self._end_writing()

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Called when the proxy's connection broke: the connection of its user breaks, too."""
        self._deny("closed the connection without an answer")
        self._break_off()

    def upstream_congested(self, congested: bool) -> None:
        """Read from the socket pair only as much as the proxy takes."""
        self.hold("proxy", congested)

    def flush(self) -> None:
        """Do nothing: nothing is gathered here."""

    def crashed(self, error: Exception) -> None:
        """Break off."""
        self._deny("could not be read")
        self._break_off()
