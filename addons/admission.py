"""Checks who is asking: that the client's address may use the proxy, and that a user's name and password come with the
request where the policy has users. The addon `addons.gate` calls it first for each request.

Rules of this module:

- An address is checked once a connection and policy. Credentials are verified once a connection, and not again while
  the users stay the same: who guesses passwords from the same address must not disturb who was let in.
- Where an app knows of no proxy, it sends no credentials, so none are asked for; inside CONNECT, it has sent them.
- A denial says nothing about what the credentials ought to be.
"""

from __future__ import annotations

from mitmproxy import http

from addons.exchange import Exchange
from addons.headers import values_of
from addons.sessions import Session
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import ListenerKind
from proxy.core.who.clients import check_client
from proxy.core.who.credentials import Verifier, read_basic


class Admission:
    """Lets in who may use the proxy."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def admit(self, flow: http.HTTPFlow, exchange: Exchange, session: Session) -> None:
        """Check that the client may use the proxy.

        Raises:
            Denied: CLIENT_FORBIDDEN, PROXY_AUTHENTICATION_REQUIRED.
        """
        clients = exchange.policy.clients_of(session.mirror)
        if session.admitted_by is not exchange.policy:  # the policy may have changed
            check_client(clients, exchange.client, is_at_mirror=session.mirror is not None)
            session.admitted_by = exchange.policy
        if not clients.users:
            return
        if not _shows_credentials(session, exchange):
            exchange.user = session.connect.user if session.connect is not None else None
            return
        shown = values_of(flow.request.headers, b"proxy-authorization")
        if len(shown) == 1 and (clients.users, shown[0]) == session.verified:
            exchange.user = session.user
            return  # others who guess from this address must not disturb a connection that was let in
        if len(shown) != 1 or not self._verifier.verify(clients.users, shown[0], exchange.client):
            raise Denied(
                Reason.PROXY_AUTHENTICATION_REQUIRED,
                "the request carries a name or a password that is not the proxy's"
                if shown
                else "the request carries no credentials for the proxy",
            )
        session.verified = (clients.users, shown[0])
        credentials = read_basic(shown[0])
        exchange.user = session.user = credentials[0] if credentials is not None else None


def _shows_credentials(session: Session, exchange: Exchange) -> bool:
    """Tell whether an app sends credentials here: not if it does not know of a proxy, and not again inside
    CONNECT.
    """
    knows = session.listener_kind in (ListenerKind.FORWARD, ListenerKind.SOCKS5)
    return knows and (session.connect is None or session.connect is exchange)
