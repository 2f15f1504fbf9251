"""Tables of states: for each event and each state, the state that follows. `upstreams.state` and the apps' side have
one table for each kind of connection or request.

An event that the table does not have in a state is a mistake of ours. It raises, and the caller that guards the step
closes the connection or stream. So a mistake fails closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class IllegalTransition(RuntimeError):
    """An event has happened that cannot happen in this state. The message names both."""


class _Row[State: IntEnum](dict[State, State]):
    """The states that follow one event, by the state in which it happens."""

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
