"""One upstream connection where something goes wrong inside: what may not happen closes it, and is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mitmproxy import http
from mitmproxy.connection import Server

from addons.upstream import Upstream
from proxy.core.rules.policy import Policy
from proxy.engine.transitions import IllegalTransition
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.state import Event, State

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Transport:
    """Stands for a transport; what it was made to do is in `calls`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.written = b""

    def is_closing(self) -> bool:
        return "abort" in self.calls

    def write(self, data: bytes) -> None:
        self.written += data

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


class Receiver:
    """Stands for a conversation; what it was told is in `calls`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None

    def crashed(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: self.calls.append(name)


@pytest.fixture
def made() -> Iterator[UpstreamConnection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timers: Any = SimpleNamespace(call_later=None)
        made = UpstreamConnection(Server(address=("api.example", 443)), Upstream(Policy(), None), ours, timers)
        made.connection_made(cast(asyncio.BaseTransport, Transport()))
        yield made


def ask(made: UpstreamConnection, *, is_whole: bool = True) -> Receiver:
    receiver = Receiver()
    request = http.Request.make("GET", "https://api.example/")
    made.ask(cast(Any, receiver), request, b"", is_whole=is_whole, trailers=(), te=False)
    return receiver


def test_a_response_is_told_and_then_another_request_may_follow(made: UpstreamConnection) -> None:
    receiver = ask(made)
    made.taken(memoryview(RESPONSE))
    assert receiver.calls == ["response_head", "response_data", "response_end", "flush"]
    assert (made.state, receiver.error) == (State.DONE, None)
    assert made.can_reuse


def test_a_response_to_a_request_that_was_not_whole_is_the_last(made: UpstreamConnection) -> None:
    receiver = ask(made, is_whole=False)
    made.taken(memoryview(RESPONSE))
    assert receiver.calls == ["response_head", "response_data", "response_end", "flush"]
    assert made.state is State.SPENT
    assert not made.can_reuse


@pytest.mark.parametrize("state", [State.READY, State.IDLE, State.HANDSHAKE, State.SPENT])
def test_what_may_not_be_fails_closed(made: UpstreamConnection, state: State) -> None:
    """As if by a mistake of ours a connection that somebody waits on were taken for one that nobody has asked on."""
    receiver = ask(made)
    made.state = state
    made.taken(memoryview(RESPONSE))
    assert isinstance(receiver.error, IllegalTransition)
    assert "response_end" not in receiver.calls
    assert made.state is State.CLOSING
    assert "abort" in cast(Any, made.transport).calls
    assert made.receiver is None


@pytest.mark.parametrize("state", [each for each in State if each is not State.READY])
def test_not_a_byte_of_a_request_leaves_where_none_may_be_asked(made: UpstreamConnection, state: State) -> None:
    made.state = state
    with pytest.raises(IllegalTransition, match=f"^ASK_WHOLE in {state.name}$"):
        ask(made)
    assert cast(Any, made.transport).written == b""


def test_one_is_given_to_the_pool_once(made: UpstreamConnection) -> None:
    ask(made)
    made.taken(memoryview(RESPONSE))
    made.rest(1.0)
    with pytest.raises(IllegalTransition, match=f"^{Event.REST.name} in IDLE$"):
        made.rest(2.0)
    assert made.idle_since == 1.0
