"""mitmproxy's flows as it keeps, shows and answers them.

Rules of this module:

- What mitmproxy saves, copies and shows are plain values: an exchange stands beside its flow.
- A denial takes the place of a response wherever mitmproxy has put something of the upstream's there.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import http

from addons.decisionline import done
from addons.exchange import Exchange, denies, problem_response
from addons.sessions import Sessions

_FACTS = "overcoat"  # in a flow's metadata
_DENIED = ":no_entry:"
_PROTECTED = ":lock:"


class StockSessions(Sessions):
    """Sessions whose exchanges stand beside their flows: a flow that was copied or loaded is another one."""

    def __init__(self) -> None:
        super().__init__()
        self._exchanges: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()

    def exchange(self, flow: http.HTTPFlow) -> Exchange:
        """Return the exchange of a flow, made at its first use.

        Raises:
            KeyError: its client connection has no session.
        """
        exchange = self._exchanges.get(flow)
        if exchange is None:
            kept, flow.metadata = flow.metadata, {}
            try:
                exchange = self._exchanges[flow] = super().exchange(flow)
            finally:
                flow.metadata = kept
        return exchange


class Answers:
    """Stands before all others, and puts a denial where mitmproxy has filled in the upstream's body meanwhile."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def response(self, flow: http.HTTPFlow) -> None:
        """Answer instead of the upstream, unless it has been streamed already."""
        exchange = self._sessions.exchange(flow)
        if flow.response is None or flow.response.data.content is None:
            return
        if denies(exchange) and exchange.denied is not None:
            accept = flow.request.headers.get("accept", "")
            flow.response = problem_response(exchange.denied, exchange.rule_name, accept)


class Shown:
    """Stands behind all others: sees to it that mitmproxy can give the answer, and shows what the policy did."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """End a connection with the refusal: what a client that did not wait has sent is no request (RFC 9931)."""
        if flow.response is not None:
            flow.response.headers["connection"] = "close"

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Let a denied body be read first: mitmproxy cannot answer what it streams."""
        if flow.response is not None:
            flow.request.stream = False

    def response(self, flow: http.HTTPFlow) -> None:
        """Show what became of a request, and keep the body of a denial from who asked for none."""
        exchange, response = self._sessions.exchange(flow), flow.response
        if exchange.method == "HEAD" and denies(exchange) and response is not None and response.data.content:
            response.data.content = b""  # its length stays (RFC 9110, section 9.3.2)
        self._show(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """Show why it has no whole response."""
        self._show(flow)

    def _show(self, flow: http.HTTPFlow) -> None:
        exchange = self._sessions.exchange(flow)
        facts: dict[str, Any] = {"action": done(exchange).value, "rule": exchange.rule_name}
        if exchange.denied is not None:
            facts["reason"] = exchange.denied.reason.code
            facts["detail"] = exchange.denied.detail
        if exchange.upstream is not None and exchange.upstream.pin is not None:
            facts["pin"] = exchange.upstream.pin.value
        for what in ("encrypted", "decrypted"):
            if count := getattr(exchange, f"fields_{what}"):
                facts[what] = count
        flow.metadata[_FACTS] = facts
        flow.comment = "overcoat: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        if denies(exchange):
            flow.marked = _DENIED
        elif exchange.fields_encrypted or exchange.fields_decrypted:
            flow.marked = _PROTECTED
