"""Tables of transitions: what they have is looked up, what they don't have raises."""

from __future__ import annotations

from enum import IntEnum

import pytest

from proxy.engine.transitions import IllegalTransition, table


class State(IntEnum):
    OPEN = 1
    SHUT = 2


class Event(IntEnum):
    PUSH = 1
    PULL = 2


DOOR = table({State.OPEN: {Event.PUSH: State.SHUT}, State.SHUT: {}}, Event)


def test_what_is_in_the_table_leads_on() -> None:
    assert DOOR[Event.PUSH][State.OPEN] is State.SHUT


@pytest.mark.parametrize(
    ("state", "event", "message"),
    [(State.OPEN, Event.PULL, "PULL in OPEN"), (State.SHUT, Event.PUSH, "PUSH in SHUT")],
)
def test_what_is_not_raises_and_says_what_where(state: State, event: Event, message: str) -> None:
    with pytest.raises(IllegalTransition, match=f"^{message}$"):
        DOOR[event][state]
    with pytest.raises(IllegalTransition):  # the first time has not put it there
        DOOR[event][state]
