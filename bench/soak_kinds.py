"""What the soak asks for, what became of it, and what all its clients share."""

from __future__ import annotations

import random
import ssl
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import PLAIN_VALUES
from bench.peers import FIELDS

SECRETS = tuple(value.encode("ascii") for value in PLAIN_VALUES.values() if len(value) > 4)
LARGE = 300_000  # bytes of a large answer


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request.

    Attributes:
        weight: its share.
        statuses: which answers are right; empty for those that get none, or whose client does not wait.
        arrivals: how often it may arrive.
    """

    weight: float
    statuses: range
    arrivals: tuple[int, ...]


_GOOD, _DENIED, _BAD_UPSTREAM, _NONE = range(200, 201), range(400, 500), range(502, 503), range(0)
# Those of HTTP/2 have names that begin with `h2-`; the weights of either version are for themselves.
KINDS = {
    "get": Kind(42, _GOOD, (1,)),
    "close": Kind(10, _GOOD, (1,)),  # a client connection of its own
    "post": Kind(10, _GOOD, (1,)),
    "fields": Kind(15, _GOOD, (1,)),  # four fields encrypted
    "inspected": Kind(5, _GOOD, (1,)),
    "tunnelled": Kind(4, _GOOD, (1,)),
    "slow": Kind(3, _GOOD, (1,)),  # the answer comes in pieces
    "broken": Kind(3, _DENIED, (0,)),  # a body that cannot be encrypted
    "vanish-head": Kind(1, _NONE, (0,)),  # the client is gone in the middle of the head
    "vanish-body": Kind(1, _NONE, (0,)),  # … of a body that must be encrypted
    "vanish-wait": Kind(2, _NONE, (0, 1)),  # … after the whole request
    "reset": Kind(0.7, _BAD_UPSTREAM, (1, 2)),  # the upstream resets once it has read the request, a GET
    "reset-post": Kind(0.8, _BAD_UPSTREAM, (1,)),  # … or a POST
    "garbage": Kind(1.5, _BAD_UPSTREAM, (1,)),  # … answers what is no HTTP
    "cut": Kind(0.8, _NONE, (1,)),  # … ends in the middle of the answer's body
    "stall": Kind(0.2, _NONE, (0, 1)),  # … never answers
    "h2-get": Kind(42, _GOOD, (1,)),
    "h2-post": Kind(13, _GOOD, (1,)),
    "h2-fields": Kind(15, _GOOD, (1,)),
    "h2-held": Kind(2, _GOOD, (1,)),  # a large body with fields to be encrypted
    "h2-large": Kind(3, _GOOD, (1,)),  # large bodies both ways
    "h2-lazy": Kind(1, _GOOD, (1,)),  # a large answer, read slowly
    "h2-slow": Kind(4, _GOOD, (1,)),
    "h2-refused": Kind(5, _GOOD, (1,)),  # the upstream says REFUSED_STREAM to it, once
    "h2-early": Kind(2, _GOOD, (1,)),  # … answers before it has the body, and wants no more of it
    "h2-broken": Kind(3, _DENIED, (0,)),
    "h2-reset": Kind(3, _NONE, (0, 1)),  # the app resets the stream after the whole request
    "h2-reset-body": Kind(2, _NONE, (0,)),  # … in the middle of a body that must be encrypted
    "h2-resets": Kind(2, _BAD_UPSTREAM, (1,)),  # the upstream resets the stream of a POST
    "h2-cut": Kind(2, _NONE, (1,)),  # … in the middle of the answer's body
    "h2-vanish": Kind(0, _NONE, (0, 1)),  # was under way when the app's connection was reset
}


@dataclass(slots=True)
class Tally:
    """What happened.

    Attributes:
        arrivals: how often each request arrived, by its number.
        kinds: the kind of each request, by its number; "" while it is not over.
        silent_closes: how often the upstream closed a connection without having said so.
        unkept: how many requests with a body that no proxy can keep the upstream has not looked at, by its GOAWAY.
        refused: the good requests that were answered with 502.
        seen: what else happened, and how often, to show that it did.
        faults: what went wrong, and how often.
        examples: the first few of what went wrong, in words.
    """

    arrivals: bytearray
    kinds: list[str]
    silent_closes: int = 0
    unkept: int = 0
    refused: list[int] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fault(self, what: str, detail: str) -> None:
        """Note a fault."""
        self.faults[what] += 1
        if self.faults[what] <= 5:
            self.examples.append(f"{what}: {detail}")

    def arrived(self, kind: str, number: int, body: bytes) -> None:
        """Count a request that the upstream has read; `kind` is without the prefix that says HTTP/2."""
        self.arrivals[number] += 1
        is_protected = kind in ("fields", "held")
        if is_protected and (any(secret in body for secret in SECRETS) or body.count(b'"eyJ') != len(FIELDS)):
            self.fault("in the clear", f"request {number}")

    def judge(self, kind: str, number: int, status: int, body: bytes, *, may_be_refused: bool = True) -> None:
        """Say what is wrong with an answer that is whole.

        Args:
            kind: the kind of the request.
            number: its number.
            status: the answer's status.
            body: … and body.
            may_be_refused: whether the upstream may have ended the connection so that it cannot be sent once more.
        """
        if status == 200 and body != answer_of(kind, number):
            self.fault("crossed", f"{kind} {number} was answered {len(body)} bytes, {body[:40]!r}")
        elif kind in ("cut", "h2-cut"):
            if status == 200:
                self.fault("completed", f"{kind} {number} was answered as if it were whole")
        elif status == 502 and KINDS[kind].statuses == _GOOD and may_be_refused:
            self.refused.append(number)
        elif status not in KINDS[kind].statuses:
            self.fault("unexpected", f"{kind} {number}: {status} {body[:200]!r}")


class Soak:
    """What all clients share."""

    def __init__(self, total: int, seed: int, authorities: dict[str, Path]) -> None:
        self.tally = Tally(bytearray(total), [""] * total)
        self.numbers = iter(number for number in range(total) if number % 3)
        self.http2_numbers = iter(range(0, total, 3))
        self.random = random.Random(seed)
        self.names = [name for name in KINDS if not name.startswith("h2-")]
        self.weights = [KINDS[name].weight for name in self.names]
        self.contexts = {kind: ssl.create_default_context(cafile=file) for kind, file in authorities.items()}
        self.http2_context = context_of(authorities["inspected"])
        self.port = self.upstream_port = self.tunnel_port = self.http2_port = 0


def context_of(ca_file: Path) -> ssl.SSLContext:
    """Return the TLS of an app that speaks HTTP/2."""
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2"])
    return context


def answer_of(kind: str, number: int) -> bytes:
    """Return the body of a good answer: the request's number, with a long tail where it is to be large."""
    body = str(number).encode("ascii")
    return body.ljust(LARGE, b".") if kind.removeprefix("h2-") in ("large", "lazy") else body
