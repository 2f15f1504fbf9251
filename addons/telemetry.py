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

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime

from mitmproxy import connection, http, tls

from addons import marked
from addons.decisionline import line_of
from addons.exchange import Exchange, Upstream, action_of, is_denied, never_left, outcome_of
from addons.metrics import NO_LEVEL, NO_RULE, UPSTREAM_PROXY, Metrics, pins_mode
from addons.requestcounts import RequestCounts
from addons.sessions import Sessions
from addons.underway import UnderWay
from proxy.core.decisions import Outcome
from proxy.core.handshakes import group_of
from proxy.core.pins import PinVerdict
from proxy.core.rules.ends import NO_REASON, status_class
from proxy.core.rules.policy import ListenerKind, Mode

_SWITCHES = 101
MOST_HOSTS = 100  # of a rule, of whose certificates the first end is shown


class Telemetry:
    """Writes decision lines, and counts."""

    def __init__(self, sessions: Sessions, metrics: Metrics, write: Callable[[str], object]) -> None:
        self.sessions = sessions
        self.metrics = metrics
        self.write = write
        self._certificates: dict[str, dict[str, float]] = {}  # when they end: by rule, and by host
        self.under_way = UnderWay(sessions, metrics, write)
        # `labels` always returns the same object for the same labels, and is slow; so the objects are kept.
        self._requests = functools.cache(functools.partial(RequestCounts, metrics))
        self._pins = functools.cache(metrics.pins.labels)

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
        """Count the handshake, and the pins that the chain has; note when the certificate of a rule's upstream ends."""
        record = self.sessions.of(data.context.client).upstreams.get(data.conn.id)
        if record is not None and data.ssl_conn is not None:
            record.group = group_of(data.ssl_conn.get_group_name())
        self._count_handshake(record)
        certificate = data.ssl_conn.get_peer_certificate() if data.ssl_conn is not None else None
        if record is None or record.rule is None or record.is_proxy or certificate is None:
            return
        ends, host = certificate.get_notAfter(), str(data.conn.sni)
        if ends is not None:
            when = datetime.strptime(ends.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
            known = self._certificates.setdefault(record.rule.name, {})
            known.pop(host, None)
            known[host] = when
            if len(known) > MOST_HOSTS:
                del known[next(iter(known))]
            self.metrics.certificate_expiry.labels(record.rule.name).set(min(known.values()))

    def tls_failed_server(self, data: tls.TlsData) -> None:
        """Count a handshake that failed."""
        self._count_handshake(self.sessions.of(data.context.client).upstreams.get(data.conn.id))

    def _count_handshake(self, record: Upstream | None) -> None:
        """Count its group and the pins that matched; of the upstream proxy, which no request tells of, the check."""
        if record is not None and record.group is not None and not record.is_proxy:
            self.metrics.handshakes.labels(record.rule.name if record.rule else NO_RULE, record.group).inc()
        if record is None or record.rule is None or record.rule.pins is None or record.pin is None:
            return
        name = UPSTREAM_PROXY if record.is_proxy else record.rule.name
        for match in record.matches:
            self.metrics.pin_matches.labels(name, match.pin.short, match.level).inc()
        if record.is_proxy:
            self._count_check(name, Mode.ENFORCE, record)

    def _count_check(self, rule: str, mode: Mode, record: Upstream) -> None:
        assert record.rule is not None
        if record.rule.pins is not None and isinstance(record.pin, PinVerdict):
            is_match = record.pin is PinVerdict.MATCH
            level = record.matches[0].level.value if is_match and record.matches else NO_LEVEL
            self._pins(rule, pins_mode(record.rule.pins, mode), record.pin.value, level).inc()

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
        self._count(exchange, status, seconds)
        try:
            self.write(line_of(exchange, status, flow, seconds))
        except OSError:
            self.metrics.lines_lost.inc()

    def _count(self, exchange: Exchange, status: int | None, seconds: float) -> None:
        rule, mode = exchange.rule_name or NO_RULE, Mode.OBSERVE if exchange.observing else Mode.ENFORCE
        outcome, reason = exchange.outcome, exchange.denied.reason.code if exchange.denied else NO_REASON
        assert outcome is not None
        counts = self._requests(rule, mode, action_of(exchange), outcome, reason, status_class(status))
        sent, received = exchange.counted
        counts.add(seconds, exchange.bytes_sent - sent, exchange.bytes_received - received)
        if exchange.headed:
            own = exchange.ready - exchange.started_monotonic - exchange.waited
            if exchange.whole:
                own += exchange.started_monotonic + seconds - exchange.whole
            whole = exchange.sent if exchange.sent <= exchange.headed else 0.0
            counts.add_times(own, exchange.headed - max(exchange.ready, whole))
        if exchange.user is not None:
            self.metrics.users.labels(self.metrics.user_label(exchange.policy, exchange.user), outcome).inc()
        if outcome is not Outcome.OK and outcome is not Outcome.OBSERVED:
            counts.remember(exchange.id)
        if exchange.fields is not None:
            self.metrics.count_fields(exchange.fields.take(), rule, mode)
        if exchange.upstream is not None and exchange.upstream.rule is not None:
            self._count_check(rule, mode, exchange.upstream)
