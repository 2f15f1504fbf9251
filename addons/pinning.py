"""The addon for certificate pinning, called by the engine round each handshake with an upstream: it gives the handshake
a callback that checks the verified chain against the rule's pins (`addons.verification`), and it names the reason if it
fails.

Rules of this addon:

- Every handshake has a callback of its own; without one, none begins.
- The first reason stays: what the callback has named is not named again.
- Pins that have ended refuse the use of connections, too, that were opened before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mitmproxy.connection import Server
from OpenSSL import SSL

from addons.sessions import Sessions
from addons.verification import verifier
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.handshakes import handshake_failed
from proxy.core.rules.policy import Rule
from proxy.core.rules.promises import pins_have_ended
from proxy.core.rules.transport import hint_for_neighbour
from proxy.core.rules.unpinned import ended

if TYPE_CHECKING:  # two MiB, with all that it imports; see proxy.engine.hookdata
    from mitmproxy import tls


class Pinning:
    """Sets the callback for each handshake with an upstream, and names the reason if one fails."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def tls_start_server(self, data: tls.TlsData) -> None:
        """Set the callback for a handshake that is about to start."""
        upstream = self.sessions.of(data.context.client).upstreams[data.conn.id]
        if data.ssl_conn is None:
            raise RuntimeError("the engine made no TLS connection object")
        # On the connection, not its context: handshakes with other pins share that.
        data.ssl_conn.set_verify(SSL.VERIFY_PEER, verifier(upstream.policy, upstream, _destination(data)))

    def tls_failed_server(self, data: tls.TlsData) -> None:
        """Name the reason of a failed handshake, unless the callback has done so."""
        upstream = self.sessions.of(data.context.client).upstreams[data.conn.id]
        if upstream.denied is None:
            where = _destination(data)
            upstream.denied = handshake_failed(upstream.handshake(where), hint_for_neighbour(where.host, upstream.rule))


def _destination(data: tls.TlsData) -> Destination:
    if not isinstance(data.conn, Server) or data.conn.address is None:
        raise RuntimeError("an upstream without an address")
    return Destination(*data.conn.address)


def have_expired(rule: Rule | None) -> bool:
    """Tell whether the pins of a rule, or of an upstream proxy, have ended, and refuse everything. Then even a
    connection that was opened before must not be used.
    """
    return rule is not None and rule.pins is not None and pins_have_ended(rule, datetime.now(UTC).date())


def expired_pins(rule: Rule | None, *, is_proxy: bool = False) -> Denied | None:
    """Return the denial of everything under a rule whose pins have ended; None if they hold, or refuse nothing then.

    Args:
        rule: the rule.
        is_proxy: whether it stands for the pins of the upstream proxy.
    """
    if rule is None or rule.pins is None or not have_expired(rule):
        return None
    return ended(rule.pins, None if is_proxy else rule.name)
