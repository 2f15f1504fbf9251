"""Tables of what may happen to a thing in each state it can be in, and where that leads.

Each thing with a life of its own (a connection, a request) has one state and one such table. What the table doesn't
have is a mistake of ours: it raises, and whoever guards the step closes what it is about. So a mistake fails closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class IllegalTransition(RuntimeError):
    """Something happened that can't, in this state. The message names the event and the state."""


class _Row[State: IntEnum](dict[State, State]):
    """Where one event leads, from each state in which it may happen."""

    def __init__(self, event: IntEnum) -> None:
        super().__init__()
        self._event = event

    def __missing__(self, state: State) -> State:
        raise IllegalTransition(f"{self._event.name} in {state.name}")


def table[State: IntEnum, Event: IntEnum](
    rows: Mapping[State, Mapping[Event, State]], events: type[Event]
) -> Mapping[Event, Mapping[State, State]]:
    """Return for each event the state after it, by the state before it.

    It is written by state, as people read it, and looked up by event: a module that takes `table[Event.ASK]` once
    needs a single look-up for each step, `self.state = _ASK[self.state]`. Enums of numbers are hashed fastest.

    Args:
        rows: for each state what may happen in it, and the state after that.
        events: what may happen at all.

    Raises (when something is looked up that it doesn't have):
        IllegalTransition: it must not happen in that state.
    """
    found: dict[Event, _Row[State]] = {event: _Row(event) for event in events}
    for state, row in rows.items():
        for event, after in row.items():
            found[event][state] = after
    return found
