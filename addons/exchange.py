"""What the pipeline knows about one request, one client connection and one upstream connection.

Rules of this module:

- An addon reads and writes the `Exchange` of its flow; it keeps no state of its own about requests.
- `Exchange.deny` is the one way to stop a request; in observe mode it only notes what would have happened.
- A flow keeps the policy snapshot that it started with; all that a CONNECT carries, the one of the CONNECT.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from mitmproxy import connection, http

from proxy.core.clients import User
from proxy.core.decisions import Action, Decision, Denied, Reason
from proxy.core.destinations import Destination
from proxy.core.pins import PinVerdict
from proxy.core.policy import ListenerKind, Mode, Policy, Rule
from proxy.core.problems import JSON_TYPE, PAGE_TYPE, problem_details, problem_page, proxy_status, wants_page
from proxy.core.redirects import Trail

_KEY = "overcoat"


@dataclass(slots=True)
class Upstream:
    """One connection to an upstream: the rule it was opened for, and what its handshake showed.

    Attributes:
        policy: the policy that it was opened under.
        rule: the rule whose pins it is held to; a request of another rule never uses this connection.
        denied: why it could not be used.
        is_proxy: whether it leads to the policy's upstream proxy.
    """

    policy: Policy
    rule: Rule | None
    pin: PinVerdict | None = None
    denied: Denied | None = None
    is_proxy: bool = False


@dataclass(slots=True, eq=False)
class Exchange:
    """One request on its way through the pipeline.

    Attributes:
        asked: the canonical destination that the app asked for.
        front: what the app takes the destination for, where a reverse listener stands for it.
        decision: what the transport rules say.
        jar: the names of the cookies that the app sent.
        via: the proxies that a CONNECT has come through.
        denied: why the request was stopped, or in observe mode would have been.
        is_refused: whether it was answered with that, as in observe mode only what cannot go on is.
        upstream: the connection that carries it, or that could not be opened.
        holds_request: whether the request's body is held until its fields are encrypted.
        holds_response: whether the response's body is held until its fields are decrypted.
        finished: whether its decision line has been written.
    """

    policy: Policy
    client: str
    method: str = ""
    path: str = ""
    started: float = field(default_factory=time.time)
    started_monotonic: float = field(default_factory=time.monotonic)
    asked: Destination | None = None
    front: Destination | None = None
    rule: Rule | None = None
    decision: Decision | None = None
    jar: frozenset[str] = frozenset()
    via: tuple[str, ...] = ()
    denied: Denied | None = None
    is_refused: bool = False
    upstream: Upstream | None = None
    holds_request: bool = False
    holds_response: bool = False
    fields_encrypted: int = 0
    fields_decrypted: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    finished: bool = False

    @property
    def observing(self) -> bool:
        """Whether decisions are only noted."""
        return self.policy.mode is Mode.OBSERVE

    @property
    def rule_name(self) -> str | None:
        """The name of the rule that counts."""
        return self.rule.name if self.rule else None

    def count_sent(self, data: bytes) -> bytes:
        """Count a piece of a streamed request body on its way."""
        self.bytes_sent += len(data)
        return data

    def count_received(self, data: bytes) -> bytes:
        """Count a piece of a streamed response body on its way."""
        self.bytes_received += len(data)
        return data

    def note(self, denied: Denied) -> None:
        """Remember why the request is denied; the first reason stays."""
        if self.denied is None:
            self.denied = denied

    def deny(self, flow: http.HTTPFlow, denied: Denied) -> None:
        """Stop the request with problem details; in observe mode, only note it."""
        self.note(denied)
        if not self.observing:
            self.refuse(flow, denied)

    def stop(self, denied: Denied) -> None:
        """Remember why what was asked for is not done, whatever the mode."""
        self.note(denied)
        self.is_refused = True

    def refuse(self, flow: http.HTTPFlow, denied: Denied) -> None:
        """Answer the flow with problem details, whatever the mode: for what cannot go on at all."""
        self.stop(denied)
        flow.response = problem_response(denied, self.rule_name, flow.request.headers.get("accept", ""))
        # A streamed request is answered at once, and what is left of its body is discarded; see the engine's Stream.
        flow.request.stream = True
        flow.request.headers.pop("expect", None)


@dataclass(slots=True)
class Session:
    """One client connection.

    Attributes:
        policy: the snapshot that what begins on this connection is decided with.
        entry: the kind of listener that it came through.
        connect: the CONNECT request that opened a tunnel on it, if any.
        is_admitted: whether it counts among those that there may be only so many of.
        verified: the users whom this connection has shown the credentials of one, and these credentials.
        speaks_http: whether plain http came inside that tunnel, whose requests are read here.
        trail: the redirects that an upgraded app follows on it.
        upstreams: what is known of each upstream connection, by mitmproxy's connection id.
        unfinished: the exchanges whose decision line is still to be written.
        requests: how many requests were seen, CONNECT not counted.
        sent: bytes that went to upstreams on this connection's behalf, TLS and all.
        received: bytes that came back.
        client_tls_error: why the app's handshake with us failed.
    """

    policy: Policy
    client: str
    entry: ListenerKind = ListenerKind.FORWARD
    connect: Exchange | None = None
    is_admitted: bool = False
    verified: tuple[tuple[User, ...], str] | None = field(default=None, repr=False)
    speaks_http: bool = False
    trail: Trail = field(default_factory=Trail)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    unfinished: set[Exchange] = field(default_factory=set)
    requests: int = 0
    sent: int = 0
    received: int = 0
    client_tls_error: str | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way. A CONNECT whose requests are read here is not: they count."""
        return all(
            exchange is self.connect
            and (
                self.speaks_http
                or (
                    exchange.decision is not None
                    and exchange.decision.action is Action.INSPECT
                    and not exchange.observing
                )
            )
            for exchange in self.unfinished
        )

    def note_idle(self, seconds: float) -> None:
        """Note that what is under way, if anything, ends because nothing has moved."""
        if self.is_idle:
            return
        for exchange in self.unfinished:
            if not exchange.finished:
                exchange.stop(Denied(Reason.IDLE_TIMEOUT, f"no byte passed for {seconds:.0f} s"))


class Sessions:
    """The live sessions, by mitmproxy's client connection id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Session] = {}
        self._counts: Counter[str] = Counter()
        self.admitted = 0

    def open(self, client: connection.Client, policy: Policy, entry: ListenerKind = ListenerKind.FORWARD) -> Session:
        """Start a session."""
        session = self._by_id[client.id] = Session(policy, client.peername[0], entry)
        return session

    def admit(self, session: Session) -> None:
        """Count a session from now on, among all and among those of its client's address."""
        session.is_admitted = True
        self._counts[session.client] += 1
        self.admitted += 1

    def close(self, client: connection.Client) -> None:
        """Forget a session."""
        session = self._by_id.pop(client.id, None)
        if session is not None and session.is_admitted:
            self.admitted -= 1
            self._counts[session.client] -= 1
            if not self._counts[session.client]:
                del self._counts[session.client]

    def count(self, client: str) -> int:
        """Return how many are admitted of a client's address."""
        return self._counts[client]

    def of(self, client: connection.Client) -> Session:
        """Return the session of a client connection.

        Raises:
            KeyError: the connection has none: the flow is not from one of our listeners.
        """
        return self._by_id[client.id]

    def exchange(self, flow: http.HTTPFlow) -> Exchange:
        """Return the exchange of a flow, made at its first use."""
        exchange = flow.metadata.get(_KEY)
        if isinstance(exchange, Exchange):
            return exchange
        session = self.of(flow.client_conn)
        path, _, _ = flow.request.path.partition("?")
        # The method's own bytes: mitmproxy's property upper-cases, and `connect` is not CONNECT.
        method = flow.request.data.method.decode("ascii", "replace")
        exchange = Exchange(session.policy, session.client, method, path)
        flow.metadata[_KEY] = exchange
        session.unfinished.add(exchange)
        if method == "CONNECT":
            exchange.path = ""
        else:
            session.requests += 1
        return exchange


def problem_response(denied: Denied, rule: str | None, accept: str = "") -> http.Response:
    """Return the response to a denied request (RFC 9457, RFC 9209), or a page for who accepts only pages."""
    is_page = wants_page(accept)
    headers = {
        "Content-Type": PAGE_TYPE if is_page else JSON_TYPE,
        "Proxy-Status": proxy_status(denied),
        "Cache-Control": "no-store",
    }
    if denied.reason is Reason.PROXY_AUTHENTICATION_REQUIRED:
        headers["Proxy-Authenticate"] = 'Basic realm="overcoat", charset="UTF-8"'
    if is_page:
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        headers["X-Content-Type-Options"] = "nosniff"
    body = problem_page(denied, rule) if is_page else problem_details(denied, rule)
    return http.Response.make(denied.reason.status, body, headers)


def denies(exchange: Exchange) -> bool:
    """Whether the exchange is stopped (and not only would be)."""
    return exchange.denied is not None and (exchange.is_refused or not exchange.observing)


# What an upstream's failure is called. In observe mode, where plain http stays plain, it says nothing of enforcing.
_FAILURES = frozenset((Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_FAILED, Reason.TLS_FAILED))
_AFTER_IT_LEFT = frozenset(
    (
        Reason.UPSTREAM_FAILED,
        Reason.DECRYPTION_FAILED,
        Reason.REDIRECT_LOOP,
        Reason.IDLE_TIMEOUT,
        Reason.INTERNAL_ERROR,
    )
)


def would_deny(exchange: Exchange) -> bool:
    """Whether enforcing would have denied what observing let pass."""
    return exchange.observing and exchange.denied is not None and exchange.denied.reason not in _FAILURES


def never_left(exchange: Exchange) -> bool:
    """Whether the request was stopped before anything of it had reached the upstream."""
    return denies(exchange) and exchange.denied is not None and exchange.denied.reason not in _AFTER_IT_LEFT


def action_of(exchange: Exchange) -> Action:
    """Return what the policy says of an exchange: the label of its line and its metrics."""
    if exchange.decision is None or (exchange.denied is not None and (would_deny(exchange) or not exchange.observing)):
        return Action.DENY
    return exchange.decision.action
