"""What the pipeline knows of a request: denials, and what observing makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from mitmproxy import connection, http

from addons.exchange import Exchange, action_of, is_denied, never_left, problem_response, would_deny
from addons.sessions import Sessions
from proxy.core.decisions import Action, Decision, Denied, Outcome, Reason
from proxy.core.destinations import Destination
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

    def test_the_answer_is_problem_details_with_a_proxy_status(self) -> None:
        response = problem_response(FIRST, "payments", id="0-1")
        problem: dict[str, Any] = json.loads(response.content or b"")
        assert problem["status"] == response.status_code == 403
        assert (problem["reason"], problem["rule"], problem["hint"]) == ("plain_http_rejected", "payments", "a hint")
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["proxy-status"].startswith("overcoat; error=http_request_denied")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-length"] == str(len(response.content or b""))


@pytest.mark.parametrize(
    ("decision", "denied", "action"),
    [
        (None, None, Action.DENY),  # nothing was decided: closed
        (Decision(Action.UPGRADE, Destination("api.example", 443)), None, Action.UPGRADE),
        (Decision(Action.UPGRADE, Destination("api.example", 443)), FIRST, Action.DENY),
        (Decision(Action.TUNNEL, Destination("api.example", 443)), None, Action.TUNNEL),
    ],
)
def test_what_the_policy_says_of_an_exchange(decision: Decision | None, denied: Denied | None, action: Action) -> None:
    exchange = Exchange(Policy(), "127.0.0.1", decision=decision, denied=denied)
    assert action_of(exchange) is action
    assert is_denied(exchange) is (denied is not None)


@pytest.mark.parametrize(
    ("mode", "reason", "would", "is_kept"),
    [
        (Mode.ENFORCE, Reason.PIN_MISMATCH, False, True),
        (Mode.ENFORCE, Reason.UPSTREAM_TIMEOUT, False, True),
        (Mode.OBSERVE, Reason.PIN_MISMATCH, True, False),
        (Mode.OBSERVE, Reason.UPSTREAM_FAILED, False, False),
        (Mode.OBSERVE, Reason.UPSTREAM_UNREACHABLE, False, False),
        (Mode.OBSERVE, Reason.UPSTREAM_CUT, False, False),
    ],
)
def test_what_would_be_denied_and_what_has_left(mode: Mode, reason: Reason, would: bool, is_kept: bool) -> None:
    exchange = Exchange(replace(Policy(), mode=mode), "127.0.0.1", "GET", "/")
    exchange.decision = Decision(Action.UPGRADE)
    assert not would_deny(exchange)
    assert not never_left(exchange)
    exchange.note_reason(Denied(reason, "x"))
    assert would_deny(exchange) is would
    assert never_left(exchange) is is_kept
    exchange.has_left = True
    assert not never_left(exchange)
    is_denied_here = mode is Mode.ENFORCE and reason.outcome is Outcome.DENIED
    assert (action_of(exchange) is Action.DENY) is (is_denied_here or would)


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


@pytest.mark.parametrize(
    ("reason", "accept", "names"),
    [
        (Reason.BAD_REQUEST, "", set()),
        (Reason.PROXY_AUTHENTICATION_REQUIRED, "", {"proxy-authenticate"}),
        (Reason.TOO_MANY_ATTEMPTS, "", {"retry-after"}),
        (Reason.BAD_REQUEST, "text/html", {"content-security-policy", "x-content-type-options"}),
    ],
)
def test_an_answer_has_the_fields_that_its_reason_and_its_form_want(
    reason: Reason, accept: str, names: set[str]
) -> None:
    response = problem_response(Denied(reason, "x"), None, accept, id="0-1")
    found = {name.lower() for name in response.headers}
    assert found - {"content-type", "proxy-status", "cache-control", "content-length"} == names
    assert response.headers["content-type"].startswith("text/html" if accept else "application/problem+json")
    assert (response.content or b"").startswith(b"<!" if accept else b"{")
