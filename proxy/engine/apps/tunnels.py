"""A tunnel: carries bytes between an app and its upstream without reading them. `connect` makes one for a CONNECT whose
host is tunnelled, or whose rule lets any protocol pass.

Rules of this module:

- A tunnel changes no byte, and keeps its directions apart: one may end long before the other. A reset stays a reset.
- Nothing is read from one side faster than the other side takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from addons.exchange import Exchange
from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import Speaker
from proxy.engine.flows import new_server
from proxy.engine.sockets import Reading
from proxy.engine.streams import NoResponses
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.route import dial

MAX_BACKLOG = 256 * 1024  # bytes from the app that may wait while its upstream is dialled


class Relay(Speaker, NoResponses):
    """Both ends of a tunnel: the app's speaker, and the receiver of the upstream's bytes."""

    def __init__(self, app: AppSocket, upstream: UpstreamConnection | None, data: bytes) -> None:
        self._app = app
        self._upstream = upstream
        self._waiting = [data] if data else []
        self._backlog = len(data)
        self._dialling: asyncio.Task[None] | None = None
        self._app_has_ended = False
        self._upstream_has_ended = False

    def dial(self, connect: Exchange) -> None:
        """Open the upstream."""
        self._dialling = self._app.loop.create_task(self._dial(connect))

    async def _dial(self, connect: Exchange) -> None:
        assert connect.asked is not None
        record = connect.upstream = Upstream(connect.policy, connect.rule)
        server = new_server((connect.asked.host, connect.asked.port), tls=False)
        try:
            upstream = await dial(self._app.house.services, server, None, record, self._app.context)
        except Denied as denied:
            record.denied = denied
            self._app.close()
        except Exception as e:
            self._app.crash(e)
        else:
            self._app.guarded(self._connected, upstream)

    def _connected(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        upstream.carry(self)
        upstream.send(b"".join(self._waiting))
        self._waiting.clear()
        self._app.hold("dialling", False)
        if self._app_has_ended:
            self.eof()
        self.splice()

    def splice(self) -> None:
        """Pass the bytes of each socket directly to the other socket: a tunnel needs nothing in between."""
        upstream = self._upstream
        assert upstream is not None
        self._app.house.opened(self._app.session)
        if not self._app.transport.is_closing() and not upstream.transport.is_closing():
            self._app.flush()
            session = self._app.session

            def count_sent(size: int) -> None:
                session.sent += size

            def count_received(size: int) -> None:
                session.received += size

            self._app.transport.set_protocol(ShortCut(self._app, self._app, upstream.transport, count_sent))
            upstream.transport.set_protocol(ShortCut(self._app, upstream, self._app.transport, count_received))

    # -- from the app

    def feed(self, data: bytes) -> None:
        """Pass bytes on."""
        self._app.session.sent += len(data)
        if self._upstream is not None:
            self._upstream.send(data)
            return
        self._waiting.append(data)
        self._backlog += len(data)
        self._app.hold("dialling", self._backlog > MAX_BACKLOG)

    def eof(self) -> None:
        """Pass the half-close on."""
        self._app_has_ended = True
        if self._upstream is None:
            return
        self._upstream.half_close()
        if self._upstream_has_ended:
            self._end()

    def gone(self) -> None:
        """End: the app is gone, but the upstream still gets what is in the buffer."""
        if self._dialling is not None:
            self._dialling.cancel()
        if self._app.was_reset and not self._app_has_ended and not self._upstream_has_ended:
            self._app.note_departure()
        if self._upstream is not None:
            if self._app.was_reset:
                self._upstream.reset()
            else:
                self._upstream.finish()

    def congested(self, is_congested: bool) -> None:
        """Read from the upstream only as much as the app takes."""
        if self._upstream is not None:
            self._upstream.hold("app", is_congested)

    def too_slow(self) -> None:
        """Never called: nothing is owed in a tunnel."""
        raise RuntimeError("a deadline in a tunnel")

    # -- from the upstream (its Receiver)

    def switched(self, data: bytes) -> None:
        """Pass bytes on."""
        self._app.session.received += len(data)
        self._app.write(data)

    def switched_end(self) -> None:
        """Pass the half-close on."""
        self._upstream_has_ended = True
        self._app.half_close()
        if self._app_has_ended:
            self._end()

    def _end(self) -> None:
        if self._upstream is not None:
            self._upstream.finish()
        self._app.close()

    def upstream_congested(self, congested: bool) -> None:
        """Read from the app only as much as the upstream takes."""
        self._app.hold("upstream", congested)

    def flush(self) -> None:
        """Send the app what was gathered."""
        self._app.after_upstream()

    def crashed(self, error: Exception) -> None:
        """Close everything."""
        self._app.crash(error)

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Break off: the upstream's connection has not ended in order, and the app must see that."""
        connect = self._app.session.connect
        if connect is not None and not self._app_has_ended and not self._upstream_has_ended:
            connect.break_off(Denied(Reason.UPSTREAM_CUT, "the upstream broke the tunnel off"))
        self._app.abort()


class ShortCut(Reading):
    """One end of a tunnel: passes its bytes directly to the other end, and everything else to its owner."""

    def __init__(
        self,
        app: AppSocket,
        owner: AppSocket | UpstreamConnection,
        other: asyncio.Transport,
        count: Callable[[int], None],
    ) -> None:
        """Start.

        Args:
            app: the app's socket, which must not count as idle while bytes move.
            owner: the protocol that this one replaces.
            other: asyncio's transport of the other end.
            count: called with the number of bytes that pass.
        """
        self._touch = app.touch
        self._write = other.write
        self._count = count
        self.pause_writing = owner.pause_writing  # type: ignore[method-assign]  # the same method
        self.resume_writing = owner.resume_writing  # type: ignore[method-assign]  # the same method
        self.eof_received = owner.eof_received  # type: ignore[method-assign]  # the same method
        self.connection_lost = owner.connection_lost  # type: ignore[method-assign]  # the same method

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        self._count(len(data))
        self._touch()
        self._write(data)
