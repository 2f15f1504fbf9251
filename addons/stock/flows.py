"""Adapts exchanges and denials to the way in which stock mitmproxy keeps, shows and answers flows. `addons.stock.guard`
calls these parts before and after all other addons.

Rules of this module:

- mitmproxy saves, copies and shows flows as plain values. So an exchange is kept beside its flow, not in it.
- A denial replaces a response wherever mitmproxy has put something from the upstream there.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import http

from addons.denials import problem_response
from addons.exchange import Exchange
from addons.outcomes import done, is_denied
from addons.sessions import Sessions

_FACTS = "overcoat"  # in a flow's metadata
_DENIED = ":no_entry:"
_PROTECTED = ":lock:"


class StockSessions(Sessions):
    """Sessions whose exchanges are kept beside their flows: a flow that was copied or loaded counts as another one."""

    def __init__(self) -> None:
        super().__init__()
        self._exchanges: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()

    def exchange(self, flow: http.HTTPFlow) -> Exchange:
        """Return the exchange of a flow; it is made at the first call.

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
    """Comes before all other addons; puts a denial back if mitmproxy has filled in the upstream's body meanwhile."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def response(self, flow: http.HTTPFlow) -> None:
        """Answer instead of the upstream, unless its response has been streamed already."""
        exchange = self._sessions.exchange(flow)
        if flow.response is None or flow.response.data.content is None:
            return
        if is_denied(exchange) and exchange.denied is not None:
            accept = flow.request.headers.get("accept", "")
            flow.response = problem_response(exchange.denied, exchange.rule_name, accept, id=exchange.id)


class Shown:
    """Comes after all other addons; makes sure that mitmproxy can send the answer, and shows what the policy did."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """End the connection after a denied CONNECT: bytes from a client that did not wait are no request (RFC
        9931).
        """
        if flow.response is not None:
            flow.response.headers["connection"] = "close"

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Let a denied body be read first: mitmproxy cannot answer a request that it streams."""
        if flow.response is not None:
            flow.request.stream = False

    def response(self, flow: http.HTTPFlow) -> None:
        """Show what became of a request; and remove the body of a denial if the request cannot have one."""
        exchange, response = self._sessions.exchange(flow), flow.response
        if exchange.method == "HEAD" and is_denied(exchange) and response is not None and response.data.content:
            response.data.content = b""  # Content-Length stays (RFC 9110, section 9.3.2)
        self._show(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """Show why a request has no complete response."""
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
        if is_denied(exchange):
            flow.marked = _DENIED
        elif exchange.fields_encrypted or exchange.fields_decrypted:
            flow.marked = _PROTECTED
