"""The addon for field encryption, whose hooks the engine calls: marked fields of request bodies become JWEs, and marked
fields of responses become plaintext; behind a mirror listener it is the other way round. `proxy.core.fields` does the
work; `addons.marked` says which entries apply.

Rules of this addon:

- A body with fields to protect is held until it is complete and protected; any other body streams through.
- A body that should be protected and cannot be is denied before any of it has left.
- In observe mode a body passes as it came, and what would have been done to it is only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial

from mitmproxy import http

from addons import answers, bodyheads, marked, messages, uploads
from addons.exchange import Exchange
from addons.headers import has_field
from addons.observing import Tee, Watch
from addons.sessions import Sessions
from proxy.core.decisions import Denied
from proxy.core.fields import bodies, graphqlrequests, responses, values
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.values import Setting
from proxy.core.jose.keys import Key, KeySet
from proxy.core.jose.sealing import Sealers, Sealing


class Encryption:
    """Decides which bodies are held, and replaces their fields."""

    def __init__(
        self,
        sessions: Sessions,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
        *,
        used: Callable[[KeySet, Key, Work], Callable[[], object]] = lambda keys, key, work: never,
        pause: Pause = never,
    ) -> None:
        self.sessions = sessions
        self.today = today
        self._used = used
        self._pause = pause
        self._sealers = Sealers()

    def _sealing(self, keys: KeySet, key: Key) -> Sealing:
        return self._sealers.sealing(keys, key, time.time())

    def setting(self, exchange: Exchange, *, of_request: bool) -> Setting:
        """Return what counts for the work on a body, or a message, of an exchange."""
        limit, failed = exchange.policy.limits.held_body, exchange.count_failure
        host, today = marked.host(exchange), self.today()
        return Setting(host, limit, today, self._sealing, of_request, self._used, failed, self._pause)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Hold a body that has fields to change; let any other body stream."""
        exchange = self.sessions.exchange(flow)
        if flow.response is not None:
            return
        rule = exchange.rule
        if rule is None or not rule.fields:
            flow.request.stream = exchange.count_sent
        else:
            self._protect(flow, exchange)
        if exchange.observing and flow.response is None and callable(flow.request.stream):
            flow.request.stream = Watch(exchange, flow.request, flow.request.stream)

    def _protect(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        """Hold a body that has fields to change, and ask for a response whose fields can be changed."""
        marked.read_head(exchange, flow.request)
        entries, upgrades = marked.of_request(exchange), has_field(flow.request.headers, b"upgrade")
        if not entries and not exchange.looks_inside:
            flow.request.stream = exchange.count_sent
        else:
            try:
                self._check_before_body(exchange, entries, flow.request)
            except Denied as denied:
                exchange.deny(flow, denied)
            if exchange.observing:
                opens = any(entry.work is Work.DECRYPT for entry in entries)  # and observing opens nothing
                tee = Tee(exchange, flow.request, self.setting(exchange, of_request=True))
                flow.request.stream = exchange.count_sent if opens else tee
            elif flow.response is None and not (upgrades and messages.is_opening(flow.request)):  # which has no body
                uploads.hold(flow, exchange, entries, partial(self.setting, exchange, of_request=True))
        if upgrades:
            messages.narrow_offer(exchange, flow.request)
        if of_response := marked.of_response(exchange):
            try:
                self._check_before_response(of_response)
            except Denied as denied:
                exchange.deny(flow, denied)
            # The response must come in an encoding that can be decoded here (RFC 9110, section 12.5.3).
            offered = flow.request.headers.get("accept-encoding", "")
            if (wanted := bodies.acceptable(offered)) != offered:
                flow.request.headers["accept-encoding"] = wanted
            flow.request.headers.fields = responses.asked(flow.request.headers.fields)

    def _check_before_response(self, entries: tuple[FieldEntry, ...]) -> None:
        """Check, before a server is asked, whether its response could be sealed at all.

        Raises:
            Denied: KEY_UNAVAILABLE.
        """
        for entry in entries:
            if entry.work is Work.ENCRYPT:
                values.sealing_key(entry, self.today())

    def _check_before_body(self, exchange: Exchange, entries: tuple[FieldEntry, ...], request: http.Request) -> None:
        sealing = [entry for entry in entries if entry.work is Work.ENCRYPT]
        if sealing or not entries:
            bodies.check_before(bodyheads.head(request), sealing, self.today())
            graphqlrequests.check_target(request.path.partition("?")[2], sealing)
        limit, length = exchange.policy.limits.held_body, bodyheads.length_said(request.headers.fields)
        if length > limit and not uploads.may_be_long(exchange, request, entries):
            raise bodies.too_large(limit)

    def request(self, flow: http.HTTPFlow) -> None:
        """Encrypt the fields of a held body, or decrypt them."""
        exchange = self.sessions.exchange(flow)
        if not exchange.holds_request or flow.response is not None:
            return
        body = flow.request.data.content or b""
        try:
            marked.read_body(exchange, flow.request, body, self._pause)
            if not (entries := marked.of_request(exchange)):  # it was held only to look for another method
                exchange.bytes_sent = len(body)
                return
            head, setting = bodyheads.signed_head(flow.request), self.setting(exchange, of_request=True)
            kids = values.told_kids(entries, setting.today)  # the keys may change while the body is worked on
            changed = bodies.change(body, head, entries, setting)
            told = values.kid_fields(entries, changed.counts, kids)
            fields = flow.request.headers.fields
            if entries[0].work is Work.ENCRYPT:
                fields = bodies.with_digests(fields, head, entries, body, changed)
            elif any(changed.counts):
                fields = bodies.followed_digests(fields, head, entries, body, changed.body)
        except Denied as denied:
            exchange.deny(flow, denied)
            return
        flow.request.headers.fields = fields
        for name, kid in told.items():
            flow.request.headers[name] = kid
        exchange.count_fields(entries, changed.counts)
        exchange.bytes_sent = len(changed.body)
        bodyheads.replace_body(flow.request, changed.body)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Hold or change a response that may have fields to change; let any other response stream."""
        exchange = self.sessions.exchange(flow)
        response = flow.response
        if response is None or (exchange.denied is not None and not exchange.observing):
            return
        rule = exchange.rule
        if response.data.status_code == 101 and rule is not None and rule.fields:
            try:
                messages.plan(exchange, flow.request, response)
            except Denied as denied:
                exchange.deny_always(flow, denied)
                return
        if rule is None or not rule.response:
            response.stream = True
        else:
            answers.begin(exchange, flow, partial(self.setting, exchange, of_request=False))

    def response(self, flow: http.HTTPFlow) -> None:
        """Decrypt the fields of a held response, or encrypt them."""
        exchange = self.sessions.exchange(flow)
        if exchange.holds_response and flow.response is not None:
            answers.complete(exchange, flow, self.setting(exchange, of_request=False))
