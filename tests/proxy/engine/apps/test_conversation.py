"""A conversation where something goes wrong inside: what may not happen ends it, and nothing leaves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from addons.exchange import Exchange
from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.http.heads import RequestHead, ResponseHead
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Limits, Policy
from proxy.engine.apps.conversation import Conversation
from proxy.engine.apps.states import ConversationState as State
from proxy.engine.transitions import IllegalTransition

MAY_ASK = (State.HELD, State.STREAMING, State.STREAMED)
HEAD = ResponseHead(200, b"OK", True, ((b"Content-Length", b"2"),), 2)


class Told:
    """Stands for whatever a conversation speaks with; what it was told is in `calls`."""

    def __init__(self, **attributes: object) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None
        vars(self).update(attributes)

    def crash(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: self.calls.append(name)


class World:
    """One conversation, and what is round it."""

    def __init__(self, state: State) -> None:
        self.hooks: list[str] = []
        dispatch = SimpleNamespace(call=lambda hook, _: self.hooks.append(hook))
        sessions = Told(begin=lambda _: Exchange(Policy(), "127.0.0.1"))
        house: Any = Told(dispatch=dispatch, sessions=sessions, is_last_response=lambda _: False)
        app: Any = Told(house=house, client=tflow.tclient_conn(), session=SimpleNamespace())
        self.stream: Any = Told(app=app, is_congested=False, is_last=False, clock=Told())
        self.upstream: Any = Told(
            heard_early=lambda: False, is_http2=False, is_congested=False, server=None, record=Upstream(Policy(), None)
        )
        head = RequestHead(b"GET", b"http://a.example/", True, (), 0)
        self.conversation = Conversation(cast(Any, self.stream), http.Request.make("GET", "http://a.example/"), head)
        self.conversation.state = state


@pytest.mark.parametrize("state", MAY_ASK, ids=lambda each: each.name)
def test_a_request_that_may_be_sent_is_sent(state: State) -> None:
    world = World(state)
    world.conversation._take_step(world.conversation._connected, world.upstream)
    assert world.stream.error is None
    assert world.upstream.calls == ["ask"]


@pytest.mark.parametrize("state", [each for each in State if each not in MAY_ASK], ids=lambda each: each.name)
def test_nothing_of_another_one_leaves_and_its_upstream_is_closed(state: State) -> None:
    """As where an upstream was open too late, and the request was answered meanwhile."""
    world = World(state)
    world.conversation._take_step(world.conversation._connected, world.upstream)
    assert isinstance(world.stream.error, IllegalTransition)
    assert world.upstream.calls == ["close"]


@pytest.mark.parametrize("state", [each for each in State if each not in MAY_ASK], ids=lambda each: each.name)
def test_an_app_is_sent_no_second_response(state: State) -> None:
    world = World(state)
    with pytest.raises(IllegalTransition):
        world.conversation.response_head(HEAD)
    assert "begin" not in world.stream.calls


@pytest.mark.parametrize(
    "state", [State.HELD, State.STREAMED, State.GATHERING, State.ANSWERING, State.SWITCHED], ids=lambda each: each.name
)
def test_nothing_is_taken_behind_the_end_of_a_request(state: State) -> None:
    world = World(state)
    world.conversation.upstream = world.upstream
    with pytest.raises(IllegalTransition):
        world.conversation.request_data(b"more")
    with pytest.raises(IllegalTransition):
        world.conversation.request_end()
    assert world.upstream.calls == []


ANSWERED = (State.DISCARDING, State.OVER)  # the app has a whole response, or will get no more


@pytest.mark.parametrize("state", ANSWERED, ids=lambda each: each.name)
def test_who_has_been_answered_is_given_no_reason_to_end(state: State) -> None:
    world = World(state)
    world.conversation.give_up(Denied(Reason.IDLE_TIMEOUT, "no byte passed"))
    assert world.stream.calls == ["last", "close"]
    assert world.hooks == []
    assert world.conversation.exchange.denied is None


@pytest.mark.parametrize("state", list(State), ids=lambda each: each.name)
def test_a_silence_is_answered_as_long_as_no_response_has_begun(state: State) -> None:
    begun = (State.ANSWERING, State.EARLY_ANSWERING, State.SWITCHED, *ANSWERED)
    denied = World(state).conversation.overdue(30.0)
    assert (denied is None) == (state in begun)


def test_a_response_that_is_too_long_to_be_held_may_go_on_and_all_of_it_counts() -> None:
    world = World(State.GATHERING)
    conversation, exchange = world.conversation, world.conversation.exchange
    exchange.policy = Policy(limits=Limits(held_body=4))
    exchange.lets_pass = lambda _: True
    conversation.flow.response = http.Response.make(200)
    conversation.response_data(b"1234")
    assert world.stream.calls == []
    conversation.response_data(b"5")
    conversation.response_data(b"678")
    assert world.stream.calls == ["begin", "send", "send"]
    assert exchange.bytes_received == 8


def test_a_response_leaves_before_the_pool_and_the_addons_hear_of_its_end() -> None:
    world = World(State.ANSWERING)
    conversation = world.conversation
    told = world.hooks = world.upstream.calls = world.stream.calls
    conversation.upstream = world.upstream
    conversation.flow.response = http.Response.make(200)
    conversation.flow.response.stream = True
    conversation.response_data(b"12")
    conversation.response_end()
    assert told[:3] == ["send", "flush", "give_back"]
    assert told.index("response") > 2
    assert told[-2:] == ["end", "next"]


def test_one_that_is_held_is_written_with_what_else_leaves_in_this_turn() -> None:
    world = World(State.GATHERING)
    conversation = world.conversation
    conversation.upstream = world.upstream
    conversation.flow.response = http.Response.make(200)
    conversation.response_data(b"12")
    conversation.response_end()
    assert world.stream.calls == ["begin", "send", "end", "next"]


@pytest.mark.parametrize("state", list(State), ids=lambda each: each.name)
def test_the_addons_hear_of_an_end_once(state: State) -> None:
    world = World(state)
    world.conversation.upstream = world.upstream
    world.conversation.gone()
    world.conversation.gone()
    assert world.hooks == ([] if state in ANSWERED else ["error"])
    assert world.conversation.state is State.OVER
    assert world.upstream.calls == ([] if state is State.OVER else ["close"])


@pytest.fixture
def switched() -> Conversation:
    """A conversation that has switched to WebSocket, with stand-ins for all that it talks to."""
    conversation = Conversation(MagicMock(), MagicMock(), MagicMock())
    conversation.state = State.SWITCHED
    conversation.upstream = MagicMock()
    conversation.exchange = MagicMock()
    return conversation


def test_an_end_in_order_lets_the_upstream_take_the_rest(switched: Conversation) -> None:
    upstream = switched.upstream
    switched.switched_end()
    assert isinstance(upstream, MagicMock)
    assert [call[0] for call in upstream.method_calls] == ["finish"]


def test_so_does_an_end_for_a_reason_and_the_last_words_come_before_it(switched: Conversation) -> None:
    upstream, stream = switched.upstream, switched.stream
    switched.break_switched(Denied(Reason.BODY_NOT_JSON, "why"), b"to the app", b"to the upstream")
    assert isinstance(upstream, MagicMock)
    assert isinstance(stream, MagicMock)
    assert [call[0] for call in upstream.method_calls] == ["send", "finish"]
    assert stream.send.call_args.args == (b"to the app",)
    assert [call[0] for call in stream.method_calls][-1] == "close"


def test_nothing_is_said_where_it_would_stand_within_a_frame(switched: Conversation) -> None:
    upstream, stream = switched.upstream, switched.stream
    switched.break_switched(Denied(Reason.BODY_NOT_JSON, "why"), b"", b"")
    assert isinstance(upstream, MagicMock)
    assert isinstance(stream, MagicMock)
    assert [call[0] for call in upstream.method_calls] == ["finish"]
    assert not stream.send.called


def test_an_app_that_is_gone_takes_nothing_more(switched: Conversation) -> None:
    upstream = switched.upstream
    switched.gone()
    assert isinstance(upstream, MagicMock)
    assert [call[0] for call in upstream.method_calls] == ["close"]
