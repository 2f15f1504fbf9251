"""What is under way now: the lines of open tunnels and WebSockets, and the gauges of what is in flight, with the bytes
that have passed so far. `addons.telemetry` and the engine call it.

Rules of this module:

- Nothing of it is in the way of a request: the engine looks at what is under way every few seconds.
- A tunnel or a WebSocket has a line when it opens and one now and then, with its id and its bytes so far, and no
  outcome: that is in its last line.
- Bytes are counted once: what is counted here is left out when the request is over.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from addons.decisionline import Event, line_of
from addons.exchange import Exchange
from addons.metrics import NO_RULE, Metrics
from addons.sessions import Session, Sessions
from proxy.core.rules.policy import Mode

_AT_ONCE = 1000  # client connections that are looked at in one turn of the loop


class UnderWay:
    """Looks after what is under way."""

    def __init__(self, sessions: Sessions, metrics: Metrics, write: Callable[[str], object]) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._write = write
        self._said: dict[Exchange, float] = {}  # what is open, and when its last line was
        self._shown: set[tuple[str, str, str]] = set()

    def opened(self, exchange: Exchange, status: int | None) -> None:
        """Write the first line of a tunnel or a WebSocket.

        Args:
            exchange: what is open from now on.
            status: the status that the app was told, if that was one of HTTP.
        """
        now = time.monotonic()
        self._say(exchange, status, Event.OPENED, now)

    def closed(self, exchange: Exchange) -> None:
        """Forget something that is over."""
        self._said.pop(exchange, None)

    def look(self, line_seconds: float) -> Iterator[None]:
        """Look at all that is under way; yields after a bounded part of it, so that others have a turn.

        Args:
            line_seconds: the time between two lines about what is open.
        """
        found: Counter[tuple[str, str, str]] = Counter()
        for number, session in enumerate(self._sessions.all(), start=1):
            for exchange in session.under_way:
                if not exchange.finished:
                    self._look_at(session, exchange, found, line_seconds)
            if not number % _AT_ONCE:
                yield
        for labels in self._shown | found.keys():
            self._metrics.in_flight.labels(*labels).set(found[labels])
        self._shown = set(found)

    def _look_at(
        self, session: Session, exchange: Exchange, found: Counter[tuple[str, str, str]], line_seconds: float
    ) -> None:
        rule, mode = exchange.rule_name or NO_RULE, Mode.OBSERVE if exchange.observing else Mode.ENFORCE
        kind = "websocket" if exchange.has_switched else "request"
        if exchange is session.connect:
            kind = "tunnel"
            exchange.bytes_sent, exchange.bytes_received = session.sent, session.received
        found[rule, mode, kind] += 1
        if exchange.has_left or exchange is session.connect:
            for direction, count in exchange.uncounted():
                self._metrics.bytes.labels(rule, mode, direction).inc(count)
        if exchange.has_switched and exchange.fields is not None:
            self._metrics.count_fields(exchange.fields.take(), rule, mode)
        now = time.monotonic()
        last = self._said.get(exchange)
        if last is not None and now - last >= line_seconds:
            self._say(exchange, 101 if exchange.has_switched else None, Event.RUNNING, now)

    def _say(self, exchange: Exchange, status: int | None, event: Event, now: float) -> None:
        self._said[exchange] = now
        try:
            self._write(line_of(exchange, status, None, now - exchange.started_monotonic, event))
        except OSError:
            self._metrics.lines_lost.inc()
