"""The life of an app's connection and of a request on it: both tables whole, and what follows from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import IntEnum

import pytest

from proxy.engine.apps.states import AFTER_CONVERSATION, AFTER_SOCKET, SocketEvent, SocketState
from proxy.engine.apps.states import ConversationEvent as Event
from proxy.engine.apps.states import ConversationState as State
from proxy.engine.transitions import IllegalTransition

# Written a second time on purpose: in columns, so that a state that is changed by mistake shows.
OF_SOCKETS = {
    SocketState.OPEN: "START_TLS>HANDSHAKE END>ENDED CLOSE>CLOSING ABORT>ABORTED LOSE>LOST BREAK>RESET",
    SocketState.HANDSHAKE: "SECURE>OPEN END>ENDED CLOSE>CLOSING ABORT>ABORTED LOSE>LOST BREAK>RESET",
    SocketState.ENDED: "START_TLS>ENDED END>ENDED CLOSE>CLOSING ABORT>ABORTED LOSE>LOST BREAK>RESET",
    SocketState.CLOSING: "END>CLOSING ABORT>ABORTED LOSE>LOST BREAK>RESET",
    SocketState.ABORTED: "END>ABORTED ABORT>ABORTED LOSE>LOST BREAK>RESET",
    SocketState.LOST: "ABORT>LOST",
    SocketState.RESET: "ABORT>RESET",
}
OF_CONVERSATIONS = {
    State.HOLDING: "STREAM>STREAMING REQUEST_DATA>HOLDING END>HELD DENY>DISCARDING BREAK>OVER",
    State.HELD: "ASK>HELD GATHER>GATHERING BEGIN>ANSWERING SWITCH>SWITCHED DENY>OVER BREAK>OVER",
    State.STREAMING: "REQUEST_DATA>STREAMING END>STREAMED ASK>STREAMING GATHER>EARLY_GATHERING BEGIN>EARLY_ANSWERING "
    "DENY>DISCARDING BREAK>OVER",
    State.STREAMED: "ASK>STREAMED GATHER>GATHERING BEGIN>ANSWERING SWITCH>SWITCHED DENY>OVER BREAK>OVER",
    State.EARLY_GATHERING: "REQUEST_DATA>EARLY_GATHERING END>GATHERING RESPONSE_DATA>EARLY_GATHERING "
    "BEGIN>EARLY_ANSWERING COMPLETE>DISCARDING DENY>DISCARDING BREAK>OVER",
    State.GATHERING: "RESPONSE_DATA>GATHERING BEGIN>ANSWERING COMPLETE>OVER DENY>OVER BREAK>OVER",
    State.EARLY_ANSWERING: "REQUEST_DATA>EARLY_ANSWERING END>ANSWERING RESPONSE_DATA>EARLY_ANSWERING "
    "COMPLETE>DISCARDING BREAK>OVER",
    State.ANSWERING: "RESPONSE_DATA>ANSWERING COMPLETE>OVER BREAK>OVER",
    State.SWITCHED: "BREAK>OVER",
    State.DISCARDING: "REQUEST_DATA>DISCARDING END>OVER BREAK>OVER",
    State.OVER: "REQUEST_DATA>OVER END>OVER RESPONSE_DATA>OVER",
}


def read[S: IntEnum, E: IntEnum](written: Mapping[S, str], states: type[S], events: type[E]) -> dict[S, dict[E, S]]:
    """Return a table as it is written here."""
    return {
        state: {events[name]: states[after] for name, _, after in (each.partition(">") for each in text.split())}
        for state, text in written.items()
    }


def by_state[S: IntEnum, E: IntEnum](table: Mapping[E, Mapping[S, S]], states: type[S]) -> dict[S, dict[E, S]]:
    """Return a table as it is in the product."""
    return {state: {event: row[state] for event, row in table.items() if state in row} for state in states}


SOCKETS, CONVERSATIONS = by_state(AFTER_SOCKET, SocketState), by_state(AFTER_CONVERSATION, State)


def test_the_tables_are_as_they_are_written_here() -> None:
    assert read(OF_SOCKETS, SocketState, SocketEvent) == SOCKETS
    assert read(OF_CONVERSATIONS, State, Event) == CONVERSATIONS


@pytest.mark.parametrize(
    ("state", "event"),
    [pair for pair in itertools.product(SocketState, SocketEvent) if pair[1] not in SOCKETS[pair[0]]],
    ids=lambda each: each.name,
)
def test_whatever_else_happens_to_a_socket_raises(state: SocketState, event: SocketEvent) -> None:
    with pytest.raises(IllegalTransition, match=f"^{event.name} in {state.name}$"):
        AFTER_SOCKET[event][state]


@pytest.mark.parametrize(
    ("state", "event"),
    [pair for pair in itertools.product(State, Event) if pair[1] not in CONVERSATIONS[pair[0]]],
    ids=lambda each: each.name,
)
def test_whatever_else_happens_in_a_conversation_raises(state: State, event: Event) -> None:
    with pytest.raises(IllegalTransition, match=f"^{event.name} in {state.name}$"):
        AFTER_CONVERSATION[event][state]


def reached[S: IntEnum, E: IntEnum](
    table: Mapping[S, Mapping[E, S]], start: S, without: frozenset[E] = frozenset()
) -> set[S]:
    """Return the states that one leads to, itself included, where some things never happen."""
    found, left = {start}, [start]
    while left:
        for event, state in table[left.pop()].items():
            if event not in without and state not in found:
                found.add(state)
                left.append(state)
    return found


def test_every_state_is_reached_and_leads_to_the_end() -> None:
    assert reached(SOCKETS, SocketState.OPEN) == set(SocketState)
    assert all(SocketState.LOST in reached(SOCKETS, state) for state in SocketState if state is not SocketState.RESET)
    assert reached(CONVERSATIONS, State.HOLDING) == set(State)
    assert all(State.OVER in reached(CONVERSATIONS, state) for state in State)


def test_what_has_ended_never_goes_on() -> None:
    closed = {SocketState.CLOSING, SocketState.ABORTED, SocketState.LOST, SocketState.RESET}
    assert all(reached(SOCKETS, state) <= closed for state in closed)
    assert reached(CONVERSATIONS, State.OVER) == {State.OVER}


def test_whatever_happens_it_can_be_broken_off() -> None:
    assert all(SocketEvent.ABORT in SOCKETS[state] for state in SocketState)
    assert all(CONVERSATIONS[state][Event.BREAK] is State.OVER for state in State if state is not State.OVER)


def test_a_request_is_sent_only_once_it_is_held_whole_or_while_it_streams() -> None:
    assert {state for state in State if Event.ASK in CONVERSATIONS[state]} == {
        State.HELD,
        State.STREAMING,
        State.STREAMED,
    }
    kept_back = reached(CONVERSATIONS, State.HOLDING, frozenset({Event.STREAM, Event.END}))
    assert not any(Event.ASK in CONVERSATIONS[state] for state in kept_back)


def test_an_app_gets_one_response() -> None:
    to_the_app = {Event.BEGIN, Event.SWITCH, Event.DENY}
    for state in State:
        for event in to_the_app & set(CONVERSATIONS[state]):
            then = reached(CONVERSATIONS, CONVERSATIONS[state][event])
            assert not any(to_the_app & set(CONVERSATIONS[each]) for each in then)


def test_nothing_is_sent_after_an_answer_of_our_own() -> None:
    for state in State:
        if Event.DENY in CONVERSATIONS[state]:
            then = reached(CONVERSATIONS, CONVERSATIONS[state][Event.DENY])
            assert not any({Event.ASK, Event.COMPLETE} & set(CONVERSATIONS[each]) for each in then)


def test_without_the_end_of_the_request_it_is_over_only_by_a_break() -> None:
    without = frozenset({Event.END, Event.BREAK})
    assert State.OVER not in reached(CONVERSATIONS, State.HOLDING, without)
