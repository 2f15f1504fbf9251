"""The life of an upstream connection, state by state: the whole table, and what follows from it."""

from __future__ import annotations

import itertools

import pytest

from proxy.engine.transitions import IllegalTransition
from proxy.engine.upstreams.state import AFTER, CLOSED, Event, State

# Written a second time on purpose: in columns, so that a state that is changed by mistake shows.
LEGAL = {
    State.READY: "START_TLS>HANDSHAKE ASK>SENDING ASK_WHOLE>WAITING CARRY>CARRYING",
    State.HANDSHAKE: "SECURE>READY",
    State.SENDING: "SENT>WAITING ANSWER>EARLY",
    State.WAITING: "ANSWER>READING",
    State.EARLY: "SENT>READING DISREGARD>SENDING COMPLETE>SPENT COMPLETE_LAST>SPENT SWITCH>CARRYING END>ENDED",
    State.READING: "DISREGARD>WAITING COMPLETE>DONE COMPLETE_LAST>SPENT SWITCH>CARRYING END>ENDED",
    State.DONE: "REST>IDLE",
    State.SPENT: "",
    State.IDLE: "TAKE>READY",
    State.CARRYING: "END>ENDED",
    State.ENDED: "SENT>ENDED COMPLETE>SPENT COMPLETE_LAST>SPENT END>ENDED",
    State.CLOSING: "CARRY>CLOSING",
    State.LOST: "CARRY>LOST SENT>LOST COMPLETE>LOST COMPLETE_LAST>LOST CLOSE>LOST",
}
EXPECTED = {
    state: {Event[name]: State[after] for name, _, after in (each.partition(">") for each in text.split())}
    | ({Event.CLOSE: State.CLOSING, Event.LOSE: State.LOST} if state is not State.LOST else {})
    for state, text in LEGAL.items()
}
BY_STATE = {state: {event: row[state] for event, row in AFTER.items() if state in row} for state in State}
ILLEGAL = [pair for pair in itertools.product(State, Event) if pair[1] not in EXPECTED[pair[0]]]


def test_the_table_is_as_it_is_written_here() -> None:
    assert BY_STATE == EXPECTED


@pytest.mark.parametrize(("state", "event"), ILLEGAL, ids=lambda each: each.name)
def test_whatever_else_happens_raises(state: State, event: Event) -> None:
    with pytest.raises(IllegalTransition, match=f"^{event.name} in {state.name}$"):
        AFTER[event][state]


def reached(start: State, without: frozenset[Event] = frozenset()) -> set[State]:
    """Return the states that one leads to, itself included, where some things never happen."""
    found, left = {start}, [start]
    while left:
        for event, state in BY_STATE[left.pop()].items():
            if event not in without and state not in found:
                found.add(state)
                left.append(state)
    return found


def test_every_state_is_reached_and_leads_to_the_end() -> None:
    assert reached(State.READY) == set(State)
    assert all(State.LOST in reached(state) for state in State)


def test_whatever_happens_it_can_be_closed() -> None:
    assert all(AFTER[Event.CLOSE][state] in (State.CLOSING, State.LOST) for state in State)


@pytest.mark.parametrize("state", CLOSED)
def test_what_is_closed_never_opens_again(state: State) -> None:
    assert reached(state) <= CLOSED | {State.SPENT}
    assert reached(State.SPENT) <= CLOSED | {State.SPENT}


def test_before_the_handshake_is_complete_nothing_is_asked_or_carried() -> None:
    assert reached(State.HANDSHAKE, frozenset({Event.SECURE})) == {State.HANDSHAKE, State.CLOSING, State.LOST}


def test_only_a_whole_request_with_a_whole_response_leads_to_the_pool() -> None:
    leads_there = [(state, event) for state in State for event, after in BY_STATE[state].items() if after is State.IDLE]
    assert leads_there == [(State.DONE, Event.REST)]
    leads_there = [(state, event) for state in State for event, after in BY_STATE[state].items() if after is State.DONE]
    assert leads_there == [(State.READING, Event.COMPLETE)]
    # … and none is read but one that was sent whole
    assert State.READING not in reached(State.SENDING, frozenset({Event.SENT}))


def test_a_second_request_waits_for_the_response_to_the_first() -> None:
    asked = {State.SENDING, State.WAITING, State.EARLY, State.READING, State.DONE, State.SPENT, State.IDLE}
    assert not any(event in BY_STATE[state] for state in asked for event in (Event.ASK, Event.ASK_WHOLE))
