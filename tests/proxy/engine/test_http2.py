"""One connection of HTTP/2 takes its turns: some frames at a time, however small, and its end comes last.

Proves that no app can hold up the others by what it sends on one connection. What the windows bound is in
tests/e2e/test_http2_pace.py, on real sockets.
"""

from __future__ import annotations

from collections.abc import Sequence

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.proxy import commands, events

from proxy.engine.http2 import FRAMES_A_TURN, AppHttp2, AwaitTurn
from tests.proxy.engine.test_internals import client_context


class App:
    """An app's connection, and the layer that it talks to."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.context = client_context()
        self.layer = AppHttp2(self.context)
        self.closed = False
        self.acknowledged = 0
        self.turns: list[AwaitTurn] = []
        self.give(events.Start())

    def give(self, event: events.Event) -> None:
        """Give the layer an event, and take what it sends."""
        for command in self.layer.handle_event(event):
            if isinstance(command, AwaitTurn):
                self.turns.append(command)
            elif isinstance(command, commands.CloseConnection):
                self.closed = True
            elif isinstance(command, commands.SendData):
                found = self.h2.receive_data(command.data)
                self.acknowledged += sum(isinstance(each, h2.events.PingAckReceived) for each in found)

    def send(self, data: bytes) -> None:
        self.give(events.DataReceived(self.context.client, data))

    def next_turn(self) -> None:
        self.give(events.Wakeup(self.turns.pop()))


def pings(app: App, count: int) -> bytes:
    for number in range(count):
        app.h2.ping(number.to_bytes(8))
    return app.h2.data_to_send()


def test_what_is_more_than_a_turn_waits_for_the_next() -> None:
    app = App()
    app.send(app.h2.data_to_send())
    app.send(pings(app, 3 * FRAMES_A_TURN))
    seen = [app.acknowledged]
    while app.turns:
        app.next_turn()
        seen.append(app.acknowledged)
    assert seen == [FRAMES_A_TURN, 2 * FRAMES_A_TURN, 3 * FRAMES_A_TURN]


def test_meanwhile_more_is_only_kept() -> None:
    app = App()
    app.send(app.h2.data_to_send() + pings(app, FRAMES_A_TURN))
    before = app.acknowledged
    app.send(pings(app, 1))
    assert app.acknowledged == before
    app.next_turn()
    assert app.acknowledged == FRAMES_A_TURN + 1


def test_the_end_comes_after_all_that_came_before_it() -> None:
    app = App()
    app.send(app.h2.data_to_send() + pings(app, 2 * FRAMES_A_TURN))
    app.give(events.ConnectionClosed(app.context.client))
    assert not app.closed
    while app.turns:
        app.next_turn()
    assert app.closed
    assert app.acknowledged == 2 * FRAMES_A_TURN


@given(st.lists(st.integers(1, 40), max_size=60))
def test_it_makes_no_difference_where_the_bytes_are_cut(cuts: Sequence[int]) -> None:
    app = App()
    data = app.h2.data_to_send() + pings(app, 50)
    for cut in cuts:
        app.send(data[:cut])
        data = data[cut:]
    app.send(data)
    while app.turns:
        app.next_turn()
    assert app.acknowledged == 50


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n" * 4, b"\xff" * 100])
def test_what_is_no_http2_is_closed(data: bytes) -> None:
    app = App()
    app.send(data)
    assert app.closed
