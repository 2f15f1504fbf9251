"""The state of each client connection (`Session`), and of all of them together (`Sessions`). The engine opens and
closes sessions; the addons look them up in their hooks. It is state, not an addon of the pipeline.

Rules of this module:

- A session keeps the policy for whatever begins on its connection.
- Each flow has one exchange, which is found here by the flow alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mitmproxy import connection, http

from addons.exchange import Exchange
from addons.upstream import Upstream
from proxy.core.decisions import Action, Denied
from proxy.core.http.redirects import Trail
from proxy.core.reasons import Reason
from proxy.core.rules.policy import ListenerKind, Mirror, Policy
from proxy.core.who.addresses import network_of
from proxy.core.who.clients import User

_KEY = "overcoat"


@dataclass(slots=True)
class Session:
    """One client connection.

    Attributes:
        policy: the policy for whatever begins on this connection.
        listener_kind: the kind of listener through which it came.
        mirror: what that mirrors, if it is a mirror listener.
        connect: the CONNECT request that opened a tunnel on it, if any.
        is_admitted: whether it is counted among the connections whose number is limited.
        admitted_by: the policy that last allowed its client to use the proxy.
        verified: the users, and the credentials of one of them that this connection has sent.
        user: the name of that one.
        speaks_http: whether plain http came inside that tunnel, whose requests are read here.
        trail: the redirects that an upgraded app follows on it.
        upstreams: the upstream connections that are being opened, by mitmproxy's connection id.
        busy: the number of upstream connections that it uses, or dials, for single requests.
        unfinished: the exchanges whose decision lines are not written yet.
        requests: the number of requests, without CONNECT.
        sent: bytes sent to upstreams for this connection, including TLS.
        received: bytes received from them.
    """

    policy: Policy
    client: str
    listener_kind: ListenerKind = ListenerKind.FORWARD
    mirror: Mirror | None = None
    connect: Exchange | None = None
    is_admitted: bool = False
    admitted_by: Policy | None = None
    user: str | None = None
    verified: tuple[tuple[User, ...], str] | None = field(default=None, repr=False)
    speaks_http: bool = False
    trail: Trail = field(default_factory=Trail)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    busy: int = 0
    unfinished: set[Exchange] = field(default_factory=set)
    requests: int = 0
    sent: int = 0
    received: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way. A CONNECT whose requests are read here does not count: its requests do."""
        return not self.under_way

    @property
    def under_way(self) -> list[Exchange]:
        """What is under way on it."""
        return [
            exchange
            for exchange in self.unfinished
            if not (
                exchange is self.connect
                and (
                    self.speaks_http
                    or (
                        exchange.decision is not None
                        and exchange.decision.action is Action.INSPECT
                        and not exchange.observing
                    )
                )
            )
        ]

    def tls_failed(self, why: str = "") -> bool:
        """Note that the app did not complete TLS with us; return whether there was a CONNECT to note it for.

        Args:
            why: the reason as far as it is known, for the end of a sentence.
        """
        if self.connect is None:
            return False
        detail = f"the app did not complete TLS with the local CA{why}"
        self.connect.break_off(Denied(Reason.APP_TLS_FAILED, detail))
        return True

    def idled(self, seconds: float) -> None:
        """Note that everything under way ends because nothing has moved."""
        self.cut_off(Denied(Reason.IDLE_TIMEOUT, f"no byte passed for {seconds:.0f} s"))

    def cut_off(self, denied: Denied) -> int:
        """Note why everything under way ends here; return how much that is."""
        cut = [exchange for exchange in self.under_way if not exchange.finished]
        for exchange in cut:
            exchange.break_off(denied)
        return len(cut)

    def failed(self, denied: Denied) -> None:
        """Note that something inside has failed: for the requests under way or, if there are none, for the CONNECT."""
        if not self.cut_off(denied) and self.connect is not None and not self.requests:
            self.connect.break_off(denied)


class Sessions:
    """The live sessions, by mitmproxy's client connection id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Session] = {}
        self._counts: Counter[str] = Counter()
        self.admitted = 0
        self.busy = 0  # the sum over all sessions; see `Session`

    def open(
        self,
        client: connection.Client,
        policy: Policy,
        listener_kind: ListenerKind = ListenerKind.FORWARD,
        mirror: Mirror | None = None,
    ) -> Session:
        """Start a session."""
        session = self._by_id[client.id] = Session(policy, client.peername[0], listener_kind, mirror)
        return session

    def admit(self, session: Session) -> None:
        """Count a session from now on: in all, and for its client's address."""
        session.is_admitted = True
        self._counts[network_of(session.client)] += 1
        self.admitted += 1

    def take(self, session: Session, count: int) -> None:
        """Add to the number of upstream connections that a session uses; a negative count subtracts."""
        session.busy += count
        self.busy += count

    def close(self, client: connection.Client) -> None:
        """Forget a session."""
        session = self._by_id.pop(client.id, None)
        if session is not None and session.is_admitted:
            self.admitted -= 1
            self._counts[network_of(session.client)] -= 1
            if not self._counts[network_of(session.client)]:
                del self._counts[network_of(session.client)]

    def all(self) -> list[Session]:
        """Return the live sessions."""
        return list(self._by_id.values())

    def count(self, client: str) -> int:
        """Return the number of admitted sessions of a client's address, or of its network (IPv6)."""
        return self._counts[network_of(client)]

    def of(self, client: connection.Client) -> Session:
        """Return the session of a client connection.

        Raises:
            KeyError: it has none: it did not come from one of our listeners.
        """
        return self._by_id[client.id]

    def exchange(self, flow: http.HTTPFlow) -> Exchange:
        """Return the exchange of a flow; it is made at the first call."""
        try:
            return flow.metadata[_KEY]  # type: ignore[no-any-return]  # it is what `begin` has put there
        except KeyError:
            return self.begin(flow)

    def begin(self, flow: http.HTTPFlow) -> Exchange:
        """Make the exchange of a flow that has none yet.

        Raises:
            KeyError: as `of`.
        """
        session = self.of(flow.client_conn)
        data = flow.request.data
        path = data.path.partition(b"?")[0].decode("utf-8", "surrogateescape")
        # The bytes of the method: mitmproxy's property turns them to upper case, and `connect` is not CONNECT.
        method = data.method.decode("ascii", "replace")
        exchange = Exchange(session.policy, session.client, method, path)
        flow.metadata[_KEY] = exchange
        session.unfinished.add(exchange)
        if method == "CONNECT":
            exchange.path = ""
        else:
            session.requests += 1
        return exchange
