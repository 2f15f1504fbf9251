"""The addon that decides what a client connection carries inside stock mitmproxy: requests, a tunnel, TLS that is
decrypted, or nothing. It picks the layer of mitmproxy for that. `proxy.stock` puts it into the pipeline.

Rules of this addon:

- Only known protocols go on: TLS to a tunnelled host; TLS or http to an inspected one. mitmproxy would take anything
  else for raw TCP, DNS or http.
- Nothing is decided before enough bytes have come: a ClientHello may come in pieces.
- The TLS server name must be the host of CONNECT; otherwise the policy would have decided on a host other than the one
  that the app reaches.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from mitmproxy import connection, tls
from mitmproxy.exceptions import AddonHalt
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import layer, layers
from mitmproxy.proxy.layers.http import HTTPMode

from addons.exchange import Exchange
from addons.sessions import Sessions
from addons.stock.dials import Dials
from addons.stock.guard import Closed
from proxy.core.certificates.localca import Mandate
from proxy.core.decisions import Action, Denied
from proxy.core.http.heads import can_become_a_head
from proxy.core.http.names import check_server_name
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy
from proxy.core.who.clients import check_client

logger = logging.getLogger("overcoat")

_ENOUGH = 3  # bytes that are enough to recognise a TLS record
_SERVER_NAME = 0  # RFC 6066, section 3


class Apps:
    """Lets apps in, and decides which protocol is spoken on their connections."""

    def __init__(self, sessions: Sessions, policy: Policy, dials: Dials, mandate: Mandate) -> None:
        self._sessions = sessions
        self._policy = policy
        self._dials = dials
        self._mandate = mandate
        self._refused: set[str] = set()

    def client_connected(self, client: connection.Client) -> None:
        """Start a session; refuse a client that may not connect, or that is one too many."""
        session = self._sessions.open(client, self._policy)
        try:
            check_client(self._policy.clients, session.client)
            limits = self._policy.limits
            if self._sessions.admitted >= limits.connections:
                raise Denied(Reason.TOO_MANY_CONNECTIONS, f"limits.connections ({limits.connections}) are open")
            if self._sessions.count(session.client) >= limits.client_connections:
                where = f"limits.client_connections ({limits.client_connections}) are open from {session.client}"
                raise Denied(Reason.TOO_MANY_CONNECTIONS, where)
        except Denied as denied:
            client.error = f"{denied.reason.code}: {denied.detail}"
            logger.warning("a client connection was refused: %s", client.error)
        else:
            self._sessions.admit(session)

    def client_disconnected(self, client: connection.Client) -> None:
        """Forget a connection."""
        self._refused.discard(client.id)

    def next_layer(self, data: layer.NextLayer) -> None:
        """Decide which protocol is spoken from here on."""
        context = data.context
        if not any(isinstance(each, layers.HttpLayer) for each in context.layers):
            data.layer = layers.HttpLayer(context, HTTPMode.regular)
            return
        session = self._sessions.of(context.client)
        connect = session.connect
        if connect is None:
            raise RuntimeError("something else than requests outside CONNECT")
        if context.client.tls_established:
            data.layer = layers.HttpLayer(context, HTTPMode.transparent)
            return
        first = data.data_client()
        if len(first) < _ENOUGH:
            raise AddonHalt  # mitmproxy asks again when more bytes have come
        if starts_like_tls_record(first):
            outside = layers.ServerTLSLayer(context)
            outside.child_layer = layers.ClientTLSLayer(context)
            data.layer = outside
        elif can_become_a_head(first):
            session.speaks_http = True
            data.layer = layers.HttpLayer(context, HTTPMode.transparent)
        else:
            what = f"what the app sent through CONNECT {connect.asked} is neither TLS nor an HTTP request"
            connect.note_reason(Denied(Reason.NOT_HTTP, what))
            data.layer = self._relay(context.client, connect, data) if connect.is_observed_whole else Closed(context)

    def _relay(self, client: connection.Client, connect: Exchange, data: layer.NextLayer) -> layer.Layer:
        self._dials.carry(client, connect)
        return layers.TCPLayer(data.context, ignore=True)

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Decrypt an app's TLS, carry it unchanged, or end it."""
        client = data.context.client
        connect = self._sessions.of(client).connect
        if connect is None or connect.asked is None or connect.decision is None:
            raise RuntimeError("TLS from an app outside CONNECT")
        try:
            if connect.decision.denied is not None:
                raise connect.decision.denied
            check_server_name(_server_name(data.client_hello), connect.asked)
            if connect.decision.action is Action.INSPECT:
                self._mandate.check(connect.asked.host, datetime.now(UTC))
        except Denied as denied:
            if not connect.observing:
                connect.break_off(denied)
                self._refused.add(client.id)
                return
            connect.note_reason(denied)
        if connect.observing or connect.decision.action is Action.TUNNEL:
            self._dials.carry(client, connect)
            data.ignore_connection = True

    def tls_start_client(self, data: tls.TlsData) -> None:
        """End TLS that was refused. This must run before any addon that makes the connection object."""
        if data.context.client.id in self._refused:
            raise AddonHalt


def _server_name(hello: tls.ClientHello) -> str | None:
    """Return the server name; None if there is none, "" if it is not exactly one valid name, which mitmproxy hides."""
    if hello.sni is None and any(kind == _SERVER_NAME for kind, _ in hello.extensions):
        return ""
    return hello.sni
