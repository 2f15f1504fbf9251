"""The addon, called by the engine after the gate, that denies a CONNECT whose https would be decrypted, if the local CA
has ended, or may not sign for that host: apps would not accept its certificates.

Rules of this addon:

- CONNECT itself is denied, while the app can still read why. A CONNECT to port 80 is mostly for plain http (a
  WebSocket, for instance), which needs no certificate; there, the bytes inside it decide (`FirstBytes`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from mitmproxy import http

from addons.sessions import Sessions
from proxy.core.certificates.localca import Mandate
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import HTTP_PORT


class LocalCaGuard:
    """Denies requests that need a certificate which no app would accept. Comes after the gate, whose decision
    it needs.

    Attributes:
        mandate: the CA's; another one once there is another CA.
    """

    def __init__(self, sessions: Sessions, mandate: Mandate) -> None:
        self._sessions = sessions
        self.mandate = mandate

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Deny a CONNECT to a host whose https is inspected."""
        exchange = self._sessions.exchange(flow)
        decision = exchange.decision
        if flow.response is not None or decision is None or decision.action is not Action.INSPECT:
            return
        if decision.target is None or decision.target.port == HTTP_PORT:
            return
        try:
            self.mandate.check(decision.target.host, datetime.now(UTC))
        except Denied as denied:
            exchange.deny(flow, denied)
