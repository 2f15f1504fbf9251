"""Reasons: each fit for all who are told of it, and each with one outcome."""

from __future__ import annotations

import re

import pytest

from proxy.core.reasons import Outcome, Reason


def test_every_reason_has_a_code_of_its_own() -> None:
    assert len({reason.code for reason in Reason}) == len(list(Reason)) > 10


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.code)
def test_a_reason_is_fit_for_a_metric_label_a_status_line_and_a_reader(reason: Reason) -> None:
    assert reason.code == reason.name.lower()
    assert re.fullmatch(r"[a-z_]+", reason.code)
    assert 400 <= reason.status < 600
    assert re.fullmatch(r"[a-z_]+", reason.proxy_error)
    assert reason.title
    assert reason.meaning.endswith(".")


def test_a_reason_leads_to_one_outcome_and_what_is_nobodys_no_is_not_denied() -> None:
    found = {outcome: {reason.code for reason in Reason if reason.outcome is outcome} for outcome in Outcome}
    del found[Outcome.DENIED]
    assert found == {
        Outcome.OK: set(),
        Outcome.OBSERVED: set(),
        Outcome.UPSTREAM_FAILED: {
            *("upstream_unreachable", "upstream_proxy_failed", "upstream_timeout", "upstream_failed", "tls_failed"),
            "client_certificate_refused",
        },
        Outcome.UPSTREAM_CUT: {"upstream_cut"},
        Outcome.APP_LEFT: {"app_tls_failed"},
        Outcome.DRAINED: {"drain_timeout", "policy_changed"},
        Outcome.IDLE: {"idle_timeout"},
    }
    assert Reason.PIN_MISMATCH.outcome is Reason.CERTIFICATE_INVALID.outcome is Outcome.DENIED
