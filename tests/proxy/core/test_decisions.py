"""How a denial is told."""

from __future__ import annotations

import json

import pytest

from proxy.core.decisions import Denied, late_response
from proxy.core.http.problems import problem_details, proxy_status
from proxy.core.reasons import Reason


def test_a_denial_is_told_with_its_code() -> None:
    denied = Denied(Reason.PIN_MISMATCH, "no pin of 2 matches", "check the pins")
    assert str(denied) == "pin_mismatch: no pin of 2 matches"
    assert (denied.reason, denied.detail, denied.hint) == (
        Reason.PIN_MISMATCH,
        "no pin of 2 matches",
        "check the pins",
    )


def test_problem_details_say_everything_once() -> None:
    denied = Denied(Reason.PLAIN_HTTP_REJECTED, "rule ü rejects", "use https")
    assert json.loads(problem_details(denied, "pay", "0-1")) == {
        "type": "urn:overcoat:reason:plain_http_rejected",
        "title": "Plain http is not allowed to this host",
        "status": 403,
        "detail": "rule ü rejects",
        "instance": "urn:uuid:0-1",
        "reason": "plain_http_rejected",
        "rule": "pay",
        "hint": "use https",
    }


def test_problem_details_leave_out_the_rule_where_there_is_none() -> None:
    problem = json.loads(problem_details(Denied(Reason.BAD_REQUEST, "x"), None, "0-1"))
    assert set(problem) == {"type", "title", "status", "detail", "instance", "reason", "hint"}


@pytest.mark.parametrize("reason", Reason)
def test_every_denial_says_what_to_change(reason: Reason) -> None:
    assert len(Denied(reason, "x").hint) > 10
    assert not Denied(reason, "x").hint.endswith(".")
    assert Denied(reason, "x", "do y").hint == "do y"


def test_the_proxy_status_names_the_error_and_the_reason() -> None:
    status = proxy_status(Denied(Reason.CERTIFICATE_INVALID, "expired"))
    assert status == 'overcoat; error=tls_certificate_error; details="certificate_invalid"'


def test_a_response_that_does_not_begin_is_told_as_such() -> None:
    """RFC 9209, section 2.3: a connection that was never open is another thing."""
    late = late_response(60)
    assert (late.reason, late.reason.status) == (Reason.UPSTREAM_TIMEOUT, 504)
    assert "60 s" in late.detail
    assert "limits.response_seconds" in late.hint
    assert proxy_status(late) == 'overcoat; error=http_response_timeout; details="upstream_timeout"'
    assert proxy_status(Denied(Reason.UPSTREAM_TIMEOUT, "x")) == (
        'overcoat; error=connection_timeout; details="upstream_timeout"'
    )
    assert "limits.idle_seconds" in late_response(1, "limits.idle_seconds").detail
    assert late_response(60, is_taken=False).detail.startswith("the upstream took no more of the request")
