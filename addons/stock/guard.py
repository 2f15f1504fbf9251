"""Calls our addons' hooks inside stock mitmproxy, and fails closed. mitmproxy logs what a hook raises, and lets the
flow go on; so it gets only one addon, `Guard`, which calls all others. `proxy.stock` makes it. It is long for an addon,
because each of mitmproxy's hooks stands in it, with what failing closed means there.

Rules of this module:

- If a hook raises, whatever it was called for does not go on. A request is answered with `internal_error`, or killed if
  no answer is possible any more. For anything else, the client connection is broken, and stays so.
- A client connection that was not seen to open (it is older than this addon, or belongs to a replayed flow) has no
  session, so each of its hooks raises.
- `AddonHalt` keeps mitmproxy and other addons from filling in what ours have denied.
- An exception's message is never logged: it may quote secrets.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from mitmproxy import connection, http, tls
from mitmproxy import flow as mitmproxy_flow
from mitmproxy.exceptions import AddonHalt
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from addons.outcomes import is_denied
from addons.stock.flows import Answers, Shown, StockSessions
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.log import describe

logger = logging.getLogger("overcoat")

Cut = Callable[[connection.Client, connection.Server | None], object]
_Change = Callable[[bytes], bytes | Iterable[bytes]]


class Closed(layer.Layer):
    """A layer behind which nothing follows."""

    def _handle_event(self, _event: events.Event) -> layer.CommandGenerator[None]:
        yield commands.CloseConnection(self.context.client)


class Guard:
    """The one addon that mitmproxy knows. It calls its stages in order; while it has none, it denies everything."""

    def __init__(self, cut: Cut) -> None:
        """Start.

        Args:
            cut: ends a client connection, or one to an upstream, before another byte is written to it.
        """
        self.sessions = StockSessions()
        self._cut = cut
        self._stages: tuple[object, ...] = ()
        self._count_failure: Callable[[], object] = lambda: None
        self._first, self._last = Answers(self.sessions), Shown(self.sessions)
        self._broken: set[str] = set()

    def open(self, stages: Iterable[object], count_failure: Callable[[], object]) -> None:
        """Start to let through what these stages allow.

        Args:
            stages: the addons, in the order of the pipeline.
            count_failure: called for each hook that raised.
        """
        self._stages, self._count_failure = tuple(stages), count_failure

    def shut(self) -> None:
        """Deny everything from now on."""
        self._stages = ()

    async def _call(self, name: str, subject: Any) -> bool:
        """Call a hook of every stage; return whether none of them raised."""
        is_fine = True
        for stage in (self._first, *(self._stages or (_Unready(),)), self._last):
            try:
                hook: Callable[[Any], object] | None = getattr(stage, name, None)
                result = hook(subject) if hook is not None else None
                if inspect.isawaitable(result):
                    await _finish(result)
            except AddonHalt:
                raise
            except Exception as e:
                is_fine = False
                if isinstance(subject, http.HTTPFlow):
                    self._deny_or_kill(name, subject)
                self._count_failure()
                logger.error("the %s hook failed, and what it was about is denied: %s", name, describe(e))
        return is_fine

    def _deny_or_kill(self, name: str, flow: http.HTTPFlow) -> None:
        try:
            self._deny(name, flow)
        except Exception as e:  # whatever it was: mitmproxy would let the flow go on
            _kill(flow)
            if not isinstance(e, KeyError):
                logger.error("a request was killed that could not be denied: %s", describe(e))

    def _deny(self, name: str, flow: http.HTTPFlow) -> None:
        denied = Denied(Reason.INTERNAL_ERROR, f"the {name} stage failed")
        response, exchange = flow.response, self.sessions.exchange(flow)
        exchange.break_off(denied)
        # A streamed body is not kept. A body that is complete here, even an empty one, can still be held back.
        is_leaving = (
            (name == "request" and flow.request.data.content is None)
            or name == "responseheaders"
            or (name == "response" and response is not None and response.data.content is None)
        )
        if is_leaving:
            _kill(flow)
        elif name in ("http_connect", "requestheaders", "request", "response"):
            exchange.deny_always(flow, denied)

    def _break(self, client: connection.Client) -> None:
        self._broken.add(client.id)

    # -- requests

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        """Decide on a CONNECT."""
        if self._is_broken(flow):
            return
        await self._call("http_connect", flow)

    async def http_connect_error(self, flow: http.HTTPFlow) -> None:
        """A CONNECT was denied."""
        await self._call("http_connect_error", flow)

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decide on a request, by its head."""
        if self._is_broken(flow):
            return
        await self._call("requestheaders", flow)

    async def request(self, flow: http.HTTPFlow) -> None:
        """A request is complete."""
        await self._call("request", flow)

    async def responseheaders(self, flow: http.HTTPFlow) -> None:
        """A response has begun."""
        await self._call("responseheaders", flow)
        if flow.response is not None and callable(flow.response.stream):
            flow.response.stream = self._closing(flow, flow.response.stream)

    def _closing(self, flow: http.HTTPFlow, stream: _Change) -> _Change:
        """Return what changes a streamed body, and ends the client connection if that raises: mitmproxy would leave it
        open.
        """

        def change(data: bytes) -> bytes | Iterable[bytes]:
            try:
                return stream(data)
            except Exception as e:
                if not isinstance(e, Denied):  # of which the decision line tells
                    logger.error("a streamed body could not be changed, and is broken off: %s", describe(e))
                self._break(flow.client_conn)
                self._cut(flow.client_conn, None)
                return b""

        return change

    async def response(self, flow: http.HTTPFlow) -> None:
        """A response is complete."""
        await self._call("response", flow)

    async def error(self, flow: http.HTTPFlow) -> None:
        """A request ended without a complete response."""
        await self._call("error", flow)

    async def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Decide on a message of a WebSocket. What is denied ends it: mitmproxy can only drop a message."""
        is_fine = await self._call("websocket_message", flow)
        if not is_fine or is_denied(self.sessions.exchange(flow)):
            if flow.websocket is not None:
                flow.websocket.messages[-1].drop()
            self._cut(flow.client_conn, None)

    def _is_broken(self, flow: http.HTTPFlow) -> bool:
        if flow.client_conn.id not in self._broken:
            return False
        _kill(flow)
        return True

    # -- connections

    async def client_connected(self, client: connection.Client) -> None:
        """Let an app in, or not."""
        if not await self._call("client_connected", client):
            self._break(client)
            client.error = client.error or Reason.INTERNAL_ERROR.code

    async def client_disconnected(self, client: connection.Client) -> None:
        """An app has disconnected."""
        await self._call("client_disconnected", client)
        self._broken.discard(client.id)

    async def next_layer(self, data: layer.NextLayer) -> None:
        """Decide which protocol is spoken."""
        client = data.context.client
        if client.id in self._broken or not await self._call("next_layer", data):
            self._break(client)
            data.layer = Closed(data.context)

    async def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Decide whether an app's TLS is decrypted."""
        if not await self._call("tls_clienthello", data):
            data.ignore_connection = False
            self._break(data.context.client)

    async def tls_start_client(self, data: tls.TlsData) -> None:
        """Prepare the handshake with an app."""
        await self._start_tls("tls_start_client", data)

    async def tls_start_server(self, data: tls.TlsData) -> None:
        """Prepare the handshake with an upstream."""
        await self._start_tls("tls_start_server", data)

    async def _start_tls(self, name: str, data: tls.TlsData) -> None:
        client = data.context.client
        if client.id in self._broken or not await self._call(name, data):
            self._break(client)
            data.ssl_conn = None  # without it, mitmproxy closes the connection; its own addon would make one
            raise AddonHalt

    async def tls_failed_client(self, data: tls.TlsData) -> None:
        """An app did not complete TLS."""
        await self._call("tls_failed_client", data)

    async def tls_failed_server(self, data: tls.TlsData) -> None:
        """An upstream did not complete TLS, or was refused."""
        await self._call("tls_failed_server", data)

    async def server_connect(self, data: ServerConnectionHookData) -> None:
        """Decide whether an upstream is dialled."""
        if data.client.id in self._broken or not await self._call("server_connect", data):
            self._break(data.client)
            data.server.error = data.server.error or Reason.INTERNAL_ERROR.code

    async def server_connected(self, data: ServerConnectionHookData) -> None:
        """Check the address that was dialled."""
        if not await self._call("server_connected", data):
            self._break(data.client)
            try:
                self._cut(data.client, data.server)
            except Exception as e:  # mitmproxy would use the connection; a cancelled task uses nothing
                logger.error("a connection could not be cut, and is left alone: %s", describe(e))
                raise asyncio.CancelledError from None

    async def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """An upstream was not dialled, or accepted no connection."""
        await self._call("server_connect_error", data)

    async def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """A connection to an upstream has ended."""
        await self._call("server_disconnected", data)

    # -- protocols without a policy

    def tcp_start(self, flow: mitmproxy_flow.Flow) -> None:
        """Let no unknown protocol pass."""
        self._cut(flow.client_conn, None)

    udp_start = dns_request = tcp_start


def _kill(flow: http.HTTPFlow) -> None:
    """End a flow without an answer, in any state: mitmproxy's own `kill` refuses some states."""
    flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)


class _Unready:
    """Used while there are no stages: raises whenever it is asked for a hook."""

    def __getattr__(self, _name: str) -> Callable[[object], None]:
        raise RuntimeError("there is no policy in force")


async def _finish(waiting: Awaitable[object]) -> None:
    await waiting
