"""Which `traceparent` fields have a trace id (W3C Trace Context, section 3.2)."""

from __future__ import annotations

import pytest

from proxy.core.http.traces import trace_id

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GOOD = f"00-{ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "value", [GOOD, f" {GOOD}\t", f"cc-{ID}-00f067aa0ba902b7-01", f"cc-{ID}-00f067aa0ba902b7-01-x"]
)
def test_a_valid_one_has_an_id(value: str) -> None:
    assert trace_id([value]) == ID


@pytest.mark.parametrize(
    "values",
    [
        [],
        [GOOD, GOOD],
        [""],
        [ID],
        [GOOD.upper()],
        [f"{GOOD}-x"],
        [f"ff-{ID}-00f067aa0ba902b7-01"],
        [f"00-{'0' * 32}-00f067aa0ba902b7-01"],
        [f"00-{ID}-{'0' * 16}-01"],
        [f"00-{ID}-00f067aa0ba902b7-1"],
        [f"00-{ID[:-1]}-00f067aa0ba902b7-01"],
        [f"00-{ID[:-1]}g-00f067aa0ba902b7-01"],
        [f'00-{ID}-00f067aa0ba902b7-01"'],
        [f"cc-{ID}-00f067aa0ba902b7-01-{'x' * 256}"],
        [f"00-{ID.replace('4', '٤')}-00f067aa0ba902b7-01"],
    ],
)
def test_anything_else_has_none(values: list[str]) -> None:
    assert trace_id(values) is None
