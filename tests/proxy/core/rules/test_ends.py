"""How requests can end: each way once, and none of another mode."""

from __future__ import annotations

import pytest

from proxy.core.decisions import Action
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.ends import ends, status_class
from proxy.core.rules.policy import Mode


@pytest.mark.parametrize("mode", Mode)
def test_each_end_is_there_once_and_no_mode_has_one_of_the_others(mode: Mode) -> None:
    found = list(ends(mode))
    assert len(set(found)) == len(found)
    assert {end.reason for end in found} == {"-", *(reason.code for reason in Reason)}
    assert {end.status for end in found} == {"-", "1xx", "2xx", "3xx", "4xx", "5xx"}
    others = Outcome.OBSERVED if mode is Mode.ENFORCE else Outcome.OK
    assert {end.outcome for end in found} == set(Outcome) - {others}


@pytest.mark.parametrize("mode", Mode)
def test_peers_of_a_mirror_have_ends_of_their_own(mode: Mode) -> None:
    found = list(ends(mode, is_mirrored=True))
    assert len(set(found)) == len(found)
    assert {end.action for end in found} == {Action.MIRROR, Action.DENY}
    assert {end.reason for end in found} == {"-", *(each.code for each in Reason if each is not Reason.APP_TLS_FAILED)}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(None, "-"), (101, "1xx"), (200, "2xx"), (399, "3xx"), (404, "4xx"), (599, "5xx"), (999, "5xx")],
)
def test_a_status_counts_with_its_class(status: int | None, kind: str) -> None:
    assert status_class(status) == kind
