"""What the pipeline knows of a request: denials, and what observing makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from mitmproxy import connection, http

from addons.exchange import Exchange
from addons.outcomes import action_of, is_denied, would_deny
from addons.sessions import Sessions
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Mode, Policy

NewFlow = Callable[..., http.HTTPFlow]
FIRST = Denied(Reason.PLAIN_HTTP_REJECTED, "first", "a hint")
SECOND = Denied(Reason.HOST_MISMATCH, "second")


class TestDenials:
    def test_the_first_reason_stays(self) -> None:
        exchange = Exchange(Policy(), "127.0.0.1")
        exchange.note_reason(FIRST)
        exchange.note_reason(SECOND)
        assert exchange.denied is FIRST

    def test_a_denied_flow_has_its_answer_and_is_not_asked_to_continue(
        self, sessions: Sessions, new_flow: NewFlow
    ) -> None:
        flow = new_flow()
        sessions.exchange(flow).deny(flow, FIRST)
        assert flow.response is not None
        assert flow.response.status_code == 403
        assert flow.request.stream is True
        assert "expect" not in flow.request.headers

    def test_observing_only_notes_a_denial_but_refuses_what_cannot_go_on(
        self, client: connection.Client, new_flow: NewFlow
    ) -> None:
        sessions = Sessions()
        sessions.open(client, replace(Policy(), mode=Mode.OBSERVE))
        flow = new_flow()
        exchange = sessions.exchange(flow)
        exchange.deny(flow, FIRST)
        assert not flow.response
        assert exchange.denied is FIRST
        assert not is_denied(exchange)
        assert would_deny(exchange)
        exchange.deny_always(flow, SECOND)
        assert flow.response
        assert json.loads(flow.response.content or b"")["reason"] == SECOND.reason.code
        assert (exchange.denied, exchange.observed) == (SECOND, FIRST)
        assert is_denied(exchange)

    def test_what_stops_it_in_the_end_stands_in_place_of_what_would_have(self) -> None:
        failed, late = (Denied(reason, "x") for reason in (Reason.UPSTREAM_FAILED, Reason.IDLE_TIMEOUT))
        exchange = Exchange(Policy(mode=Mode.OBSERVE), "127.0.0.1", decision=Decision(Action.UPGRADE))
        exchange.note_reason(FIRST)
        exchange.break_off(failed)
        exchange.break_off(late)
        assert (exchange.denied, exchange.observed) == (failed, FIRST)
        assert would_deny(exchange)  # though the failure itself says nothing of enforcing
        assert action_of(exchange) is Action.DENY

    def test_what_would_have_been_outlives_an_answer_that_follows_the_stop(self, new_flow: NewFlow) -> None:
        exchange, flow = Exchange(Policy(mode=Mode.OBSERVE), "127.0.0.1"), new_flow()
        exchange.note_reason(FIRST)
        exchange.break_off(SECOND)
        exchange.deny_always(flow, SECOND)
        assert (exchange.denied, exchange.observed) == (SECOND, FIRST)

    def test_nothing_is_observed_where_decisions_are_carried_out(self, sessions: Sessions, new_flow: NewFlow) -> None:
        flow = new_flow()
        exchange = sessions.exchange(flow)
        exchange.deny(flow, FIRST)
        assert (exchange.denied, exchange.observed) == (FIRST, None)

    def test_what_the_app_is_told_last_is_the_reason(self, sessions: Sessions, new_flow: NewFlow) -> None:
        """As where a hook fails on an answer of our own, which another takes the place of."""
        flow = new_flow()
        exchange = sessions.exchange(flow)
        exchange.deny(flow, FIRST)
        exchange.deny_always(flow, SECOND)
        assert flow.response is not None
        assert json.loads(flow.response.content or b"")["reason"] == SECOND.reason.code
        assert exchange.denied is SECOND


@pytest.mark.parametrize(
    ("is_by_hsts", "reason", "is_said"),
    [
        (True, Reason.TLS_FAILED, True),
        (True, Reason.CERTIFICATE_INVALID, True),
        (True, Reason.UPSTREAM_UNREACHABLE, False),
        (False, Reason.TLS_FAILED, False),
        (None, Reason.TLS_FAILED, False),
    ],
)
def test_that_only_the_server_wanted_https_is_said_where_its_tls_fails(
    sessions: Sessions, new_flow: NewFlow, is_by_hsts: bool | None, reason: Reason, is_said: bool
) -> None:
    flow = new_flow()
    exchange = sessions.exchange(flow)
    exchange.decision = None if is_by_hsts is None else Decision(Action.UPGRADE, is_by_hsts=is_by_hsts)
    exchange.deny_always(flow, Denied(reason, "failed"))
    assert exchange.denied is not None
    assert ("Strict-Transport-Security" in exchange.denied.detail) is is_said
