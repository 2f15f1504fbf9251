"""What the pipeline knows about one request, and about one connection to an upstream.

Rules of this module:

- An addon reads and writes the `Exchange` of its flow; it keeps no state of its own about requests.
- `Exchange.deny` is the one way to stop a request; in observe mode it only notes what would have happened.
- A flow keeps the policy snapshot that it started with; all that a CONNECT carries, the one of the CONNECT.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mitmproxy import http

from proxy.core.decisions import Action, Decision, Denied, Reason
from proxy.core.destinations import Destination
from proxy.core.fields.readings import Readings
from proxy.core.http.problems import (
    JSON_TYPE,
    PAGE_TYPE,
    grpc_fields,
    problem_details,
    problem_page,
    proxy_status,
    wants_page,
)
from proxy.core.pins import PinVerdict
from proxy.core.rules.appview import View
from proxy.core.rules.policy import Mode, Policy, Rule

_OF_TLS = frozenset((Reason.TLS_FAILED, Reason.CERTIFICATE_INVALID))


@dataclass(slots=True)
class Upstream:
    """One connection to an upstream: the rule it was opened for, and what its handshake showed.

    Attributes:
        policy: the policy that it was opened under.
        rule: the rule whose pins it is held to; a request of another rule never uses this connection.
        denied: why it could not be used.
        observed: in observe mode, why it would not have been.
        is_proxy: whether it leads to the policy's upstream proxy.
        alpn: the protocols to offer there, in the order of preference (RFC 7301).
    """

    policy: Policy
    rule: Rule | None
    pin: PinVerdict | None = None
    denied: Denied | None = None
    observed: Denied | None = None
    is_proxy: bool = False
    alpn: tuple[bytes, ...] = (b"http/1.1",)


@dataclass(slots=True, eq=False)
class Exchange:
    """One request on its way through the pipeline.

    Attributes:
        asked: the canonical destination that the app asked for.
        front: what the app takes the destination for, where a reverse listener stands for it.
        decision: what the transport rules say.
        view: how the app sees the server, if not as it is.
        origin: the Origin that the app sent.
        jar: the names of the cookies that the app sent.
        via: the proxies that a CONNECT has come through.
        denied: why the request was stopped, or in observe mode would have been, as long as nothing else stops it.
        is_refused: whether it was really stopped for that, as in observe mode only what cannot go on is.
        observed: in observe mode, why it would have been stopped that was then stopped for another reason.
        upstream: the connection that carries it, or that could not be opened.
        has_left: whether anything of it was sent there.
        readings: how its method and path may be read, once that was asked.
        looks_inside: whether its body may ask for another method, by which an entry would apply.
        holds_request: whether the request's body is held until its fields are encrypted.
        holds_response: whether the response's body is held until its fields are decrypted.
        finished: whether its decision line has been written.
        observing: whether decisions are only noted.
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
    view: View | None = None
    origin: str = ""
    jar: frozenset[str] = frozenset()
    via: tuple[str, ...] = ()
    denied: Denied | None = None
    is_refused: bool = False
    observed: Denied | None = None
    upstream: Upstream | None = None
    has_left: bool = False
    readings: Readings | None = None
    looks_inside: bool = False
    holds_request: bool = False
    holds_response: bool = False
    fields_encrypted: int = 0
    fields_decrypted: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    finished: bool = False
    observing: bool = field(init=False)

    def __post_init__(self) -> None:
        self.observing = self.policy.mode is Mode.OBSERVE

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
        """Remember why what was asked for is not done, whatever the mode; the first such reason stays."""
        if not self.is_refused:
            self._stopped(denied)

    def _stopped(self, denied: Denied) -> None:
        if self.observing and not self.is_refused:
            self.observed = self.denied
        self.denied = denied
        self.is_refused = True

    def refuse(self, flow: http.HTTPFlow, denied: Denied) -> None:
        """Answer the flow with problem details, whatever the mode: for what cannot go on at all."""
        if self.decision is not None and self.decision.is_by_hsts and denied.reason in _OF_TLS:
            why = "upgraded though plain_http is allow, since its Strict-Transport-Security says https only"
            denied = Denied(denied.reason, f"{denied.detail}; {why}", denied.hint)
        self._stopped(denied)  # what the app is told now is the one reason
        fields = flow.request.headers
        accept, content_type = fields.get("accept", ""), fields.get("content-type", "")
        flow.response = problem_response(denied, self.rule_name, accept, content_type)
        # A streamed request is answered at once, and what is left of its body is discarded; see the engine's Stream.
        flow.request.stream = True
        flow.request.headers.pop("expect", None)


def problem_response(denied: Denied, rule: str | None, accept: str = "", content_type: str = "") -> http.Response:
    """Return the response to a denied request (RFC 9457, RFC 9209), or a page for who accepts only pages.

    Args:
        denied: the reason.
        rule: the name of the rule that matched, or None.
        accept: the request's Accept field, or "".
        content_type: its Content-Type field, or "".
    """
    is_page = wants_page(accept)
    headers = {
        "Content-Type": PAGE_TYPE if is_page else JSON_TYPE,
        "Proxy-Status": proxy_status(denied),
        "Cache-Control": "no-store",
        **grpc_fields(denied, content_type),
    }
    if denied.reason is Reason.PROXY_AUTHENTICATION_REQUIRED:
        headers["Proxy-Authenticate"] = 'Basic realm="overcoat", charset="UTF-8"'
    if denied.reason is Reason.TOO_MANY_ATTEMPTS:
        headers["Retry-After"] = "1"
    if is_page:
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        headers["X-Content-Type-Options"] = "nosniff"
    body = problem_page(denied, rule) if is_page else problem_details(denied, rule)
    return http.Response.make(denied.reason.status, body, headers)


def denies(exchange: Exchange) -> bool:
    """Whether the exchange is stopped (and not only would be)."""
    return exchange.denied is not None and (exchange.is_refused or not exchange.observing)


# What an upstream's failure is called. In observe mode, where plain http stays plain, it says nothing of enforcing.
_FAILURES = frozenset(
    (
        Reason.UPSTREAM_UNREACHABLE,
        Reason.UPSTREAM_TIMEOUT,
        Reason.UPSTREAM_FAILED,
        Reason.UPSTREAM_CUT,
        Reason.TLS_FAILED,
    )
)


def would_deny(exchange: Exchange) -> bool:
    """Whether enforcing would have denied what observing let pass."""
    found = (exchange.denied, exchange.observed)
    return exchange.observing and any(denied is not None and denied.reason not in _FAILURES for denied in found)


def never_left(exchange: Exchange) -> bool:
    """Whether the request was stopped before anything of it had reached the upstream."""
    return denies(exchange) and not exchange.has_left


def action_of(exchange: Exchange) -> Action:
    """Return what the policy says of an exchange: the label of its line and its metrics."""
    if exchange.decision is None or (exchange.denied is not None and (would_deny(exchange) or not exchange.observing)):
        return Action.DENY
    return exchange.decision.action
