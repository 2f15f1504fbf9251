"""The local CA's end: where it could vouch for nothing, a CONNECT whose https would be opened is denied.

Rules of this addon:

- It is said in answer to CONNECT, while the app can still read why. A CONNECT to port 80 is mostly for plain http (a
  WebSocket, say), which needs no certificate: there, what is asked inside it decides (`FirstBytes`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from mitmproxy import http

from addons.sessions import Sessions
from proxy.core.certificates.localca import Lifetime
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import HTTP_PORT


class LocalCaGuard:
    """Denies what would take a certificate that nobody would believe. Stands behind the gate, which decides."""

    def __init__(self, sessions: Sessions, lifetime: Lifetime) -> None:
        self._sessions = sessions
        self._lifetime = lifetime

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Deny a CONNECT to a host whose https is inspected."""
        exchange = self._sessions.exchange(flow)
        decision = exchange.decision
        if flow.response is not None or decision is None or decision.action is not Action.INSPECT:
            return
        if decision.target is not None and decision.target.port == HTTP_PORT:
            return
        try:
            self._lifetime.check(datetime.now(UTC))
        except Denied as denied:
            exchange.deny(flow, denied)
