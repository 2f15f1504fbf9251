"""The state of one request (`Exchange`), for all addons and the engine: the addons' hooks read and write it, the engine
reads it. What became of it tells `addons.outcomes`; what is known of the connection that carries it, `addons.upstream`.

Rules of this module:

- An addon keeps what it knows about a request in the `Exchange` of its flow, and has no such state of its own.
- An addon denies a request with `Exchange.deny`; in observe mode this only notes what would have happened.
- A flow keeps the policy with which it began; everything inside a CONNECT keeps the CONNECT's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mitmproxy import http

from addons.denials import problem_response
from addons.fieldcounts import FieldCounts
from addons.headers import values_of
from addons.ids import id_of, next_number
from addons.upstream import Upstream
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.messages import Plan
from proxy.core.fields.readings import Readings
from proxy.core.fields.shapes import Shape
from proxy.core.http.traces import trace_id
from proxy.core.reasons import UPSTREAM_FAILURES, Outcome, Reason
from proxy.core.rules.appview import View
from proxy.core.rules.policy import Mode, Policy, Rule

_OF_TLS = frozenset((Reason.TLS_FAILED, Reason.CERTIFICATE_INVALID, Reason.CLIENT_CERTIFICATE_REFUSED))


@dataclass(slots=True, eq=False)
class Exchange:
    """One request in the pipeline.

    Attributes:
        number: its number in this process; see `id`.
        user: the name with which its app has shown who it is, if the policy has users.
        trace_id: the app's own id for it (W3C Trace Context).
        asked: the canonical destination that the app asked for.
        front: the destination as the app knows it, if a reverse listener stands for it.
        decision: the decision of the transport rules.
        view: the app's view of the server, if it differs from the server's.
        origin: the Origin that the app sent.
        jar: the names of the cookies that the app sent.
        via: the proxies that a CONNECT has passed.
        denied: why the request is denied; in observe mode, why it would be, unless something else really denies it.
        is_carried_out: whether it is really denied for that reason. In observe mode, this is so only for requests that
            cannot go on.
        observed: in observe mode, why it would have been denied, if it was really denied for another reason.
        upstream: the connection that carries it, or that could not be opened.
        aside: in observe mode, a handshake with its server beside it, which tells what its pins would have come to.
        has_left: whether any of it was sent to the upstream.
        has_switched: whether it has become a WebSocket, which lasts.
        app_left: whether the app went away before it was over.
        readings: how servers may read its method and path, once that was asked.
        looks_inside: whether its body may ask for another method, to which an entry would apply.
        holds_request: whether the request's body is held until its fields are encrypted.
        lets_stream: asked about a held request's body while it comes: its beginning, and whether it is too long to be
            held. Returns what it streams through from now on, or None while it is held. None where it is held anyway.
        holds_response: whether the response's body is held until its fields are decrypted.
        changes_response: whether it is changed while it passes.
        lets_pass: tells whether a held response that cannot be looked at goes on as it came, and counts that.
        fields: what was done with marked fields, if anything was; in observe mode, what would have been.
        plan: of a WebSocket whose messages may have marked fields: how they are read.
        looks_secret: in observe mode, the paths in the request's body whose values look like secrets, and like which.
        ready: when it could be sent, on the clock of `started_monotonic`; this and the next three are 0 before.
        sent: when the last piece of a body that streams was there.
        headed: when the head of its response had come.
        whole: when the rest of its response had, too.
        waited: for how many seconds its body was awaited, if that is held.
        counted: how many of the bytes sent and received are counted already, while it runs.
        outcome: how it ended, once its decision line is written.
        observing: whether denials are only noted, not carried out: the mode of its rule, or the policy's, is observe.
    """

    policy: Policy
    client: str
    method: str = ""
    path: str = ""
    number: int = field(default_factory=next_number)
    user: str | None = None
    trace_id: str | None = None
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
    is_carried_out: bool = False
    observed: Denied | None = None
    upstream: Upstream | None = None
    aside: Upstream | None = None
    has_left: bool = False
    has_switched: bool = False
    app_left: bool = False
    readings: Readings | None = None
    looks_inside: bool = False
    holds_request: bool = False
    lets_stream: Callable[[bytes, bool], Callable[[bytes], bytes] | None] | None = None
    holds_response: bool = False
    changes_response: bool = False
    lets_pass: Callable[[Denied], bool] | None = None
    fields: FieldCounts | None = None
    plan: Plan | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    looks_secret: dict[str, Shape] = field(default_factory=dict)
    ready: float = 0.0
    sent: float = 0.0
    headed: float = 0.0
    whole: float = 0.0
    waited: float = 0.0
    counted: tuple[int, int] = (0, 0)
    outcome: Outcome | None = None
    observing: bool = field(init=False)

    def __post_init__(self) -> None:
        self.observing = self.policy.observes(self.rule)

    def settle(self, rule: Rule | None, decision: Decision) -> None:
        """Take what the policy says: the rule that counts, which also says whether it is only observed."""
        self.rule, self.decision = rule, decision
        if rule is not None and rule.mode is not None:
            self.observing = rule.mode is Mode.OBSERVE

    @property
    def is_observed_whole(self) -> bool:
        """Of a CONNECT: whether whatever comes inside is only observed, be it https, plain http, or neither."""
        rule = self.policy.rule_for_plain_http(self.asked) if self.observing and self.asked is not None else None
        return self.observing and self.policy.observes(rule)

    @property
    def rule_name(self) -> str | None:
        """The name of the rule that counts."""
        return self.rule.name if self.rule else None

    def count_sent(self, data: bytes) -> bytes:
        """Count a piece of a streamed request body, and return it."""
        self.bytes_sent += len(data)
        return data

    def count_received(self, data: bytes) -> bytes:
        """Count a piece of a streamed response body, and return it."""
        self.bytes_received += len(data)
        return data

    def count_fields(self, entries: Sequence[FieldEntry], counts: Sequence[int]) -> None:
        """Count values that were encrypted or decrypted, for each entry; in observe mode, that would have been."""
        if any(counts):
            self._field_counts().add(entries, counts)

    def count_failure(self, entry: str, reason: Reason) -> None:
        """Count that the work of an entry on a body, a message or a value has failed, whatever that leads to.

        Args:
            entry: the entry's name.
            reason: why; one of `FIELD_REASONS`.
        """
        self._field_counts().fail(entry, reason)

    def _field_counts(self) -> FieldCounts:
        if self.fields is None:
            self.fields = FieldCounts()
        return self.fields

    @property
    def fields_encrypted(self) -> int:
        """How many values were encrypted."""
        return 0 if self.fields is None else self.fields.total(Work.ENCRYPT)

    @property
    def fields_decrypted(self) -> int:
        """How many values were decrypted."""
        return 0 if self.fields is None else self.fields.total(Work.DECRYPT)

    @property
    def response_work(self) -> Work:
        """What is done to the fields of its response, if anything is."""
        is_mirrored = self.decision is not None and self.decision.action is Action.MIRROR
        return Work.ENCRYPT if is_mirrored else Work.DECRYPT

    @property
    def id(self) -> str:
        """Its own name, in its line, its denial and its metric's exemplar."""
        return id_of(self.number)

    @property
    def finished(self) -> bool:
        """Whether its decision line has been written."""
        return self.outcome is not None

    def trace(self, headers: http.Headers) -> None:
        """Take the app's own id for the request from its header fields."""
        self.trace_id = trace_id(values_of(headers, b"traceparent"))

    def uncounted(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Return how many bytes are to be counted in each direction; they count as counted from now on."""
        sent, received = self.counted
        self.counted = self.bytes_sent, self.bytes_received
        return ("sent", self.bytes_sent - sent), ("received", self.bytes_received - received)

    def note_aside(self) -> None:
        """Note what the handshake beside it says against it. That it did not come about says nothing."""
        denied = None if self.aside is None else self.aside.denied
        if denied is not None and denied.reason not in UPSTREAM_FAILURES:
            self.note_reason(denied)

    def note_reason(self, denied: Denied) -> None:
        """Remember why the request is denied, without denying it; the first reason stays."""
        if self.denied is None:
            self.denied = denied

    def deny(self, flow: http.HTTPFlow, denied: Denied) -> None:
        """Answer with problem details; in observe mode, only note the reason."""
        self.note_reason(denied)
        if not self.observing:
            self.deny_always(flow, denied)

    def break_off(self, denied: Denied) -> None:
        """Remember why the request ends, in any mode, without an answer; the first such reason stays."""
        if not self.is_carried_out:
            self._carry_out(denied)

    def _carry_out(self, denied: Denied) -> None:
        if self.observing and not self.is_carried_out:
            self.observed = self.denied
        self.denied = denied
        self.is_carried_out = True

    def deny_always(self, flow: http.HTTPFlow, denied: Denied) -> None:
        """Answer with problem details in any mode: for a request that cannot go on at all."""
        if self.decision is not None and self.decision.is_by_hsts and denied.reason in _OF_TLS:
            why = "upgraded though plain_http is allow, since its Strict-Transport-Security says https only"
            denied = denied.again(f"{denied.detail}; {why}")
        self._carry_out(denied)  # the app is told this reason, so it is the one that counts
        fields = flow.request.headers
        accept, content_type = fields.get("accept", ""), fields.get("content-type", "")
        flow.response = problem_response(denied, self.rule_name, accept, content_type, id=self.id)
        # With `stream`, the answer is sent at once, and the rest of the request's body is discarded.
        flow.request.stream = True
        flow.request.headers.pop("expect", None)
