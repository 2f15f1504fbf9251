"""Calls the addons' hooks inside stock mitmproxy, closed when in doubt.

mitmproxy logs what a hook raises and lets the flow go on. So it gets one addon, `Guard`, which calls all of ours.

Rules of this module:

- Whatever a hook raises, what it was called for does not go on: a request is answered with `internal_error`, or killed
  where an answer is not possible any more; of anything else the client connection is broken, and stays so.
- A client connection that was never seen to open (from before this addon was loaded, or a flow that is replayed) has no
  session, so each of its hooks raises.
- What mitmproxy or other addons would fill in where ours has said no is kept back with `AddonHalt`.
- An exception's message is never logged: it may quote what it choked on.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import connection, http, tls
from mitmproxy import flow as mitmproxy_flow
from mitmproxy.exceptions import AddonHalt
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from addons.exchange import Exchange, denies, problem_response
from addons.sessions import Sessions
from addons.telemetry import done
from proxy.core.decisions import Denied, Reason
from proxy.log import describe

logger = logging.getLogger("overcoat")

Cut = Callable[[connection.Client, connection.Server | None], object]

_DENIED = ":no_entry:"
_PROTECTED = ":lock:"


class StockSessions(Sessions):
    """Sessions whose exchanges stand beside their flows: what mitmproxy writes to files must be plain values."""

    def __init__(self) -> None:
        super().__init__()
        self._exchanges: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()

    def exchange(self, flow: http.HTTPFlow) -> Exchange:
        """Return the exchange of a flow, made at its first use."""
        exchange = self._exchanges.get(flow)
        if exchange is None:
            before = dict(flow.metadata)
            exchange = self._exchanges[flow] = super().exchange(flow)
            flow.metadata = before
        return exchange


class Closed(layer.Layer):
    """Stands where nothing may follow."""

    def _handle_event(self, _event: events.Event) -> layer.CommandGenerator[None]:
        yield commands.CloseConnection(self.context.client)


class Guard:
    """The one addon that mitmproxy knows; its stages are called in their order.

    Until it has stages, everything is denied.
    """

    def __init__(self, cut: Cut) -> None:
        """Start.

        Args:
            cut: ends a client connection, or one to an upstream, before another byte of it is written.
        """
        self.sessions = StockSessions()
        self._cut = cut
        self._stages: tuple[object, ...] = ()
        self._count_failure: Callable[[], object] = lambda: None
        self._broken: set[str] = set()

    def open(self, stages: Iterable[object], count_failure: Callable[[], object]) -> None:
        """Begin to let through what these stages do.

        Args:
            stages: the addons, in the order of the pipeline.
            count_failure: called for each hook that raised.
        """
        self._stages, self._count_failure = tuple(stages), count_failure

    def shut(self) -> None:
        """Deny everything from now on."""
        self._stages = ()

    async def _call(self, name: str, subject: Any) -> bool:
        """Call a hook of every stage; return whether none raised."""
        is_fine = True
        for stage in self._stages or (_Unready(),):
            try:
                hook: Callable[[Any], object] | None = getattr(stage, name, None)
                result = hook(subject) if hook is not None else None
                if inspect.isawaitable(result):
                    await _finish(result)
            except AddonHalt:
                raise
            except Exception as e:
                is_fine = False
                self._count_failure()
                logger.error("the %s hook failed, and what it was about is denied: %s", name, describe(e))
                if isinstance(subject, http.HTTPFlow):
                    self._deny(name, subject)
        return is_fine

    def _deny(self, name: str, flow: http.HTTPFlow) -> None:
        denied = Denied(Reason.INTERNAL_ERROR, f"the {name} stage failed")
        response = flow.response
        try:
            exchange = self.sessions.exchange(flow)
        except KeyError:
            flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)
            return
        exchange.stop(denied)
        # A streamed body is not kept; one that is whole here, and be it empty, can still be held back.
        is_on_its_way = (
            (name == "request" and flow.request.data.content is None)
            or name == "responseheaders"
            or (name == "response" and response is not None and response.data.content is None)
        )
        if is_on_its_way:
            flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)
        elif name in ("http_connect", "requestheaders", "request", "response"):
            exchange.refuse(flow, denied)

    def _break(self, client: connection.Client) -> None:
        self._broken.add(client.id)

    # -- requests

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        """Decide on a CONNECT."""
        if self._is_broken(flow):
            return
        await self._call("http_connect", flow)
        if flow.response is not None:  # what a client that did not wait has sent must not become a request (RFC 9931)
            flow.response.headers["connection"] = "close"

    async def http_connect_error(self, flow: http.HTTPFlow) -> None:
        """A CONNECT was refused."""
        await self._call("http_connect_error", flow)

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decide on a request, by its head."""
        if self._is_broken(flow):
            return
        await self._call("requestheaders", flow)
        if flow.response is not None:
            flow.request.stream = False  # mitmproxy cannot answer what it streams

    async def request(self, flow: http.HTTPFlow) -> None:
        """A request is whole."""
        await self._call("request", flow)

    async def responseheaders(self, flow: http.HTTPFlow) -> None:
        """A response has begun."""
        await self._call("responseheaders", flow)

    async def response(self, flow: http.HTTPFlow) -> None:
        """A response is whole."""
        self._answer_instead(flow)
        await self._call("response", flow)
        self._show(flow)

    def _answer_instead(self, flow: http.HTTPFlow) -> None:
        """Put a denial in a response's place. mitmproxy fills the upstream's body into what a hook put there before."""
        exchange = self._known(flow)
        if flow.response is None or flow.response.data.content is None or exchange is None:
            return
        if denies(exchange) and exchange.denied is not None:
            accept = flow.request.headers.get("accept", "")
            flow.response = problem_response(exchange.denied, exchange.rule_name, accept)

    async def error(self, flow: http.HTTPFlow) -> None:
        """A request ended without a whole response."""
        await self._call("error", flow)
        self._show(flow)

    def _is_broken(self, flow: http.HTTPFlow) -> bool:
        if flow.client_conn.id not in self._broken:
            return False
        flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)
        return True

    def _known(self, flow: http.HTTPFlow) -> Exchange | None:
        try:
            return self.sessions.exchange(flow)
        except KeyError:
            return None

    def _show(self, flow: http.HTTPFlow) -> None:
        """Let a person see in mitmproxy what the policy did with a flow."""
        exchange = self._known(flow)
        if exchange is None:
            return
        facts: dict[str, Any] = {"action": done(exchange).value, "rule": exchange.rule_name}
        if exchange.denied is not None:
            facts["reason"] = exchange.denied.reason.code
            facts["detail"] = exchange.denied.detail
        if exchange.upstream is not None and exchange.upstream.pin is not None:
            facts["pin"] = exchange.upstream.pin.value
        for what in ("encrypted", "decrypted"):
            if count := getattr(exchange, f"fields_{what}"):
                facts[what] = count
        flow.metadata["overcoat"] = facts
        flow.comment = "overcoat: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        if denies(exchange):
            flow.marked = _DENIED
        elif exchange.fields_encrypted or exchange.fields_decrypted:
            flow.marked = _PROTECTED

    # -- connections

    async def client_connected(self, client: connection.Client) -> None:
        """Let an app in, or not."""
        if not await self._call("client_connected", client):
            self._break(client)
            client.error = client.error or Reason.INTERNAL_ERROR.code

    async def client_disconnected(self, client: connection.Client) -> None:
        """An app is gone."""
        await self._call("client_disconnected", client)
        self._broken.discard(client.id)

    async def next_layer(self, data: layer.NextLayer) -> None:
        """Decide what is spoken."""
        client = data.context.client
        if client.id in self._broken or not await self._call("next_layer", data):
            self._break(client)
            data.layer = Closed(data.context)

    async def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Decide whether an app's TLS is opened."""
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
            data.ssl_conn = None  # without one, mitmproxy closes the connection; its own addon would make one
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
        """Look at what was dialled."""
        if not await self._call("server_connected", data):
            self._break(data.client)
            self._cut(data.client, data.server)

    async def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """An upstream was not dialled, or took no connection."""
        await self._call("server_connect_error", data)

    async def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """A connection to an upstream is over."""
        await self._call("server_disconnected", data)

    # -- what there is no policy for

    def tcp_start(self, flow: mitmproxy_flow.Flow) -> None:
        """Nothing that is not understood passes."""
        self._cut(flow.client_conn, None)

    udp_start = dns_request = tcp_start


class _Unready:
    """Stands where there are no stages, and raises at whatever it is asked."""

    def __getattr__(self, _name: str) -> Callable[[object], None]:
        raise RuntimeError("there is no policy in force")


async def _finish(waiting: Awaitable[object]) -> None:
    await waiting
