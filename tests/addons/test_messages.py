"""What the end-to-end tests of messages cannot isolate: what the addon does to offers, answers and the flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage

from addons.encryption import Encryption
from addons.messages import Messages
from addons.outcomes import is_denied
from addons.sessions import Sessions
from proxy.core.decisions import Action, Decision
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, When, Work
from proxy.core.fields.messages import Plan
from proxy.core.fields.selectors import parse_selector
from proxy.core.http.permessage import Parameters
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.reasons import Reason
from proxy.core.rules.policy import HostPattern, Https, Limits, Mode, PlainHttp, Policy, Rule

SEALS = FieldEntry((parse_selector("$.a"),), KeySet("k", Alg.A256KW, new_key(Alg.A256KW)), name="request[0]")
OPENS = replace(SEALS, work=Work.DECRYPT, name="response[0]")
OTHERS = When(methods=frozenset({"PUT"}))
PMD = "permessage-deflate"


class Stage:
    """The addons with one flow that asks for a WebSocket."""

    def __init__(
        self,
        *,
        mode: Mode = Mode.ENFORCE,
        offer: str | None = None,
        when: When | None = None,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        entries = (SEALS, OPENS) if when is None else (replace(SEALS, when=when), replace(OPENS, when=when))
        hosts = (HostPattern("exact", "pay.example"),)
        rule = Rule("pay", hosts, PlainHttp.UPGRADE, Https.INSPECT, request=entries[:1], response=entries[1:])
        sessions = Sessions()
        self.encryption = Encryption(sessions)
        self.messages = Messages(sessions, self.encryption.setting)
        self.flow = tflow.tflow()
        self.flow.request.method = "GET"
        self.flow.request.headers = http.Headers([(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), *more])
        if offer is not None:
            self.flow.request.headers["Sec-WebSocket-Extensions"] = offer
        sessions.open(self.flow.client_conn, Policy(mode=mode, limits=Limits(10_000), rules=(rule,)))
        self.exchange = sessions.exchange(self.flow)
        self.exchange.asked = Destination("pay.example", 443)
        self.exchange.method = "GET"
        self.exchange.settle(rule, Decision(Action.INSPECT, self.exchange.asked))
        self.encryption.requestheaders(self.flow)

    def switch(self, answer: str | None = None) -> Plan | None:
        self.flow.response = http.Response.make(101)
        if answer is not None:
            self.flow.response.headers["Sec-WebSocket-Extensions"] = answer
        self.encryption.responseheaders(self.flow)
        return self.exchange.plan

    def message(self, payload: bytes, *, from_app: bool = True) -> WebSocketMessage:
        message = WebSocketMessage(1, from_app, payload)
        self.flow.websocket = WebSocketData(messages=[message])
        self.messages.websocket_message(self.flow)
        return message

    @property
    def offer(self) -> str | None:
        return self.flow.request.headers.get("sec-websocket-extensions")


@pytest.mark.parametrize("body", [None, b'{"a":1}', b"no JSON"])
def test_the_request_may_go_on_and_is_held_only_for_a_body(body: bytes | None) -> None:
    """No client sends one with it, but a server may read it."""
    fields = [] if body is None else [(b"Content-Length", b"%d" % len(body))]
    stage = Stage(more=fields)
    assert stage.exchange.holds_request is (body is not None)
    stage.flow.request.data.content = body or b""
    stage.encryption.request(stage.flow)
    assert (stage.exchange.denied is not None) is (body == b"no JSON")
    assert stage.exchange.fields_encrypted == (1 if body == b'{"a":1}' else 0)


@pytest.mark.parametrize(("offer", "kept"), [(None, None), (PMD, PMD), (f"a, {PMD}", PMD), ("a", None)])
def test_only_what_is_known_is_offered(offer: str | None, kept: str | None) -> None:
    assert Stage(offer=offer).offer == kept


def test_nothing_is_left_out_where_no_message_is_looked_at() -> None:
    assert Stage(offer="a", mode=Mode.OBSERVE).offer == "a"
    stage = Stage(offer="a", when=OTHERS)
    assert stage.offer == "a"
    assert stage.switch("a") is None


def test_the_plan_has_the_entries_and_what_was_agreed_on() -> None:
    assert Stage().switch() == Plan((SEALS,), (OPENS,))
    assert Stage(offer=PMD).switch(PMD) == Plan((SEALS,), (OPENS,), Parameters())
    assert Stage(mode=Mode.OBSERVE).switch() == Plan((SEALS,), ())


def test_another_answer_is_denied_and_in_observe_mode_it_is_none_of_ours() -> None:
    stage = Stage(offer=PMD)
    assert stage.switch("a") is None
    assert is_denied(stage.exchange)
    assert stage.flow.response is not None
    assert stage.flow.response.status_code == 502
    stage = Stage(offer="a", mode=Mode.OBSERVE)
    assert stage.switch("a") is None
    assert stage.exchange.denied is None


def test_messages_are_changed_and_counted() -> None:
    stage = Stage()
    stage.switch()
    sealed = stage.message(b'{"a":1}').content
    assert sealed.startswith(b'{"a":"')
    assert stage.message(sealed, from_app=False).content == b'{"a":1}'
    assert (stage.exchange.fields_encrypted, stage.exchange.fields_decrypted) == (1, 1)


@pytest.mark.parametrize(("from_app", "name"), [(True, "request[0]"), (False, "response[0]")])
def test_what_must_not_go_on_is_dropped_and_denied_for_its_entry(from_app: bool, name: str) -> None:
    stage = Stage()
    stage.switch()
    assert stage.message(b'{"a":', from_app=from_app).dropped
    assert stage.exchange.denied is not None
    assert stage.exchange.denied.entries == (name,)
    assert is_denied(stage.exchange)


def test_observing_counts_and_changes_nothing() -> None:
    stage = Stage(mode=Mode.OBSERVE)
    stage.switch()
    for payload in (b'{"a":1}', b"no JSON", b'{"a":2}'):
        message = stage.message(payload)
        assert (message.content, message.dropped) == (payload, False)
    assert stage.message(b'{"a":', from_app=False).content == b'{"a":'
    assert stage.exchange.fields_encrypted == 2
    assert stage.exchange.denied is not None
    assert (stage.exchange.denied.reason, stage.exchange.denied.entries) == (Reason.BODY_NOT_JSON, ("request[0]",))
    assert not is_denied(stage.exchange)


def test_observing_opens_nothing_of_what_an_app_sends_to_a_mirror() -> None:
    stage = Stage(mode=Mode.OBSERVE)
    assert stage.exchange.rule is not None
    stage.exchange.rule = replace(stage.exchange.rule, request=(replace(SEALS, work=Work.DECRYPT),))
    assert stage.switch() is None


def test_without_a_plan_or_messages_nothing_is_done() -> None:
    stage = Stage()
    assert stage.message(b"no JSON").content == b"no JSON"
    stage.switch()
    stage.flow.websocket = None
    stage.messages.websocket_message(stage.flow)
    assert stage.exchange.denied is None
