"""The addon that the engine calls last: when a request is over, it writes the decision line and counts the request for
Prometheus.

Rules of this addon:

- There is exactly one decision line for each request, when it is over; a tunnel is one request.
- Each ends in one outcome, the same in line and metric.
- Metric labels are limited by the policy and by our own enums (rule, action, reason), never chosen by a client.
- No header value, query or body ever gets into a line.
- A line that cannot be written is counted; it never stops a request that was decided.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import connection, http

from addons import marked
from addons.decisionline import line_of
from addons.exchange import Exchange
from addons.handshakecounts import HandshakeCounts
from addons.metrics import Metrics
from addons.outcomes import is_denied, never_left, outcome_of
from addons.requestcounts import RequestCounts
from addons.sessions import Sessions
from addons.underway import UnderWay
from addons.upstream import Upstream
from proxy.core.rules.policy import ListenerKind

if TYPE_CHECKING:  # two MiB, with all that it imports; see proxy.engine.hookdata
    from mitmproxy import tls

_SWITCHES = 101


class Telemetry:
    """Writes decision lines, and counts."""

    def __init__(self, sessions: Sessions, metrics: Metrics, write: Callable[[str], object]) -> None:
        self.sessions = sessions
        self.metrics = metrics
        self.write = write
        self.under_way = UnderWay(sessions, metrics, write)
        self.handshakes = HandshakeCounts(metrics)
        self.requests = RequestCounts(metrics, self.handshakes)

    def client_connected(self, _client: connection.Client) -> None:
        """Count a client connection."""
        self.metrics.clients.inc()

    def response(self, flow: http.HTTPFlow) -> None:
        """Finish a request that has its response."""
        exchange = self.sessions.exchange(flow)
        if flow.response is not None and flow.response.data.status_code == _SWITCHES:
            exchange.has_switched = True
            self.under_way.opened(exchange, _SWITCHES)
        elif flow.response is not None:
            if not exchange.bytes_received and not is_denied(exchange):  # our own answers did not come from an upstream
                exchange.bytes_received = len(flow.response.data.content or b"")
            self._close(flow, exchange, flow.response.data.status_code)

    def error(self, flow: http.HTTPFlow) -> None:
        """Finish a request that ended without a complete response."""
        exchange = self.sessions.exchange(flow)
        exchange.app_left = True  # unless something else ended it, which is noted then
        self._close(flow, exchange, None)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """Finish a WebSocket that one side has closed in order."""
        self._close(flow, self.sessions.exchange(flow), None)

    def http_connect_error(self, flow: http.HTTPFlow) -> None:
        """Finish a denied CONNECT. If it stands for a connection through another kind of listener, the app got no
        status.
        """
        is_told = self.sessions.of(flow.client_conn).listener_kind is ListenerKind.FORWARD
        status = flow.response.status_code if flow.response and is_told else None
        self._close(flow, self.sessions.exchange(flow), status)

    def _close(self, flow: http.HTTPFlow, exchange: Exchange, status: int | None) -> None:
        self.finish(exchange, status, flow)
        self.sessions.of(flow.client_conn).unfinished.discard(exchange)

    def tls_established_server(self, data: tls.TlsData) -> None:
        """Count the handshake with an upstream."""
        self.handshakes.established(self._upstream_of(data), data.ssl_conn, str(data.conn.sni))

    def tls_failed_server(self, data: tls.TlsData) -> None:
        """Count a handshake that failed."""
        self.handshakes.count(self._upstream_of(data))

    def _upstream_of(self, data: tls.TlsData) -> Upstream | None:
        return self.sessions.of(data.context.client).upstreams.get(data.conn.id)

    def tls_failed_client(self, data: tls.TlsData) -> None:
        """Note that the app did not accept our certificate."""
        self.sessions.of(data.context.client).tls_failed()

    def client_disconnected(self, client: connection.Client) -> None:
        """Finish a tunnel, and an inspected connection that carried no request."""
        self.metrics.clients.dec()
        session = self.sessions.of(client)
        for exchange in session.unfinished:
            if exchange is session.connect:
                carried_requests = session.requests > 0 and exchange.denied is None
                if carried_requests or exchange.finished:
                    continue  # the lines of its requests say everything
                exchange.bytes_sent, exchange.bytes_received = session.sent, session.received
                exchange.has_left = session.sent > 0
            else:
                exchange.app_left = True
            self.finish(exchange, None, None)
        self.sessions.close(client)

    def finish(self, exchange: Exchange, status: int | None, flow: http.HTTPFlow | None) -> None:
        """Write the decision line of an exchange and count it, once."""
        if exchange.finished:
            return
        if exchange.has_switched or exchange.method == "CONNECT":
            self.under_way.closed(exchange)
        if exchange.has_switched:
            status = _SWITCHES
        upstream = exchange.upstream
        if upstream is not None:
            if upstream.denied is not None:
                exchange.break_off(upstream.denied)
            if upstream.observed is not None:
                exchange.note_reason(upstream.observed)
                exchange.observed = exchange.observed or upstream.observed
        if exchange.aside is not None:
            exchange.note_aside()
        if exchange.denied is not None and never_left(exchange):
            exchange.bytes_sent = 0
            if exchange.fields is not None:
                exchange.fields.forget()
        if exchange.denied is not None:
            for name in marked.concerned(exchange, exchange.denied):
                exchange.count_failure(name, exchange.denied.reason)
        exchange.outcome = outcome_of(exchange)
        seconds = time.monotonic() - exchange.started_monotonic
        self.requests.count(exchange, status, seconds)
        try:
            self.write(line_of(exchange, status, flow, seconds))
        except OSError:
            self.metrics.lines_lost.inc()
