"""The local CA's life: what it allows, what is said of it, and when that changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from proxy.core.certificates.constraints import Constraints
from proxy.core.certificates.localca import Lifetime, Mandate
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason

DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
BEGINS, ENDS = datetime(2027, 1, 15, tzinfo=UTC), datetime(2032, 1, 14, tzinfo=UTC)
LIFE = Lifetime(BEGINS, ENDS)


@pytest.mark.parametrize(
    ("now", "holds"),
    [(BEGINS - SECOND, False), (BEGINS, True), (ENDS - SECOND, True), (ENDS, False), (ENDS + DAY, False)],
)
def test_outside_its_life_nothing_is_signed(now: datetime, holds: bool) -> None:
    assert LIFE.holds(now) is holds
    if holds:
        LIFE.check(now)
        return
    with pytest.raises(Denied) as caught:
        LIFE.check(now)
    assert caught.value.reason is Reason.LOCAL_CA_EXPIRED


def test_who_has_a_wrong_clock_is_told_so_and_no_new_ca_is_asked_for() -> None:
    with pytest.raises(Denied) as caught:
        LIFE.check(BEGINS - 365 * DAY)
    assert caught.value.detail == "the local CA begins on 2027-01-15, and this machine's clock says 2026-01-15"
    assert caught.value.hint == "set the clock of the machine that Overcoat runs on"
    with pytest.raises(Denied, match="ended on 2032-01-14") as caught:
        LIFE.check(ENDS)
    assert "run `overcoat ca rotate`" in caught.value.hint


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEGINS - SECOND, "begins on 2027-01-15"),
        (BEGINS, None),
        (ENDS - 30 * DAY - SECOND, None),
        (ENDS - 30 * DAY, "ends on 2032-01-14, and from then on"),
        (ENDS - SECOND, "ends on 2032-01-14, and from then on"),
        (ENDS, "ended on 2032-01-14: inspected hosts are denied (local_ca_expired)"),
    ],
)
def test_its_end_is_spoken_of_from_thirty_days_before(now: datetime, said: str | None) -> None:
    warning = LIFE.warning(now)
    assert (warning is None) == (said is None)
    if said is not None and warning is not None:
        assert said in warning
        assert "clock" in warning or "overcoat ca rotate" in warning


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (BEGINS - DAY, DAY),
        (BEGINS, ENDS - 30 * DAY - BEGINS),
        (ENDS - 31 * DAY, DAY),
        (ENDS - 30 * DAY, 30 * DAY),
        (ENDS - SECOND, SECOND),
        (ENDS, None),
    ],
)
def test_when_something_else_is_to_be_said(now: datetime, left: timedelta | None) -> None:
    assert LIFE.until_change(now) == left


class TestItsMandate:
    def test_within_its_life_and_its_constraints_it_signs(self) -> None:
        Mandate(LIFE).check("a.example", BEGINS)
        Mandate(LIFE, Constraints.to(["a.example"])).check("a.example", BEGINS)

    def test_for_another_host_it_signs_nothing(self) -> None:
        with pytest.raises(Denied) as caught:
            Mandate(LIFE, Constraints.to(["a.example"])).check("b.example", BEGINS)
        assert (caught.value.reason, caught.value.detail) == (
            Reason.LOCAL_CA_CONSTRAINED,
            "the local CA may not sign for b.example",
        )
        assert "overcoat ca rotate" in caught.value.hint

    def test_after_its_end_that_is_the_reason(self) -> None:
        with pytest.raises(Denied) as caught:
            Mandate(LIFE, Constraints.to(["a.example"])).check("b.example", ENDS)
        assert caught.value.reason is Reason.LOCAL_CA_EXPIRED
