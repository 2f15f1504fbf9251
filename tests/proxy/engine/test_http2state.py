"""What is done here without h2, to save its time, is what h2 would do."""

from __future__ import annotations

from typing import Any

import h2.events
import h2.exceptions
import pytest
from h2.settings import SettingCodes
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.engine.http2state import State
from tests.e2e.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    RST_STREAM,
    block,
    data,
    headers,
    settings,
    window_update,
)
from tests.e2e.http2 import frame

REQUEST = block((":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/"))
WHOLE = END_HEADERS | END_STREAM
ANSWER = [(b":status", b"200"), (b"x-own", b"1")]
NUMBERS = st.sampled_from([1, 1, 3, 3, 5, 7, 2, 0])
SIZES = st.sampled_from([1, 100, 16_384])  # a frame holds no more
BLOCKS = st.sampled_from(
    [
        REQUEST,
        REQUEST + block(("content-length", "5")),
        REQUEST + b"\x40" + block(("x-new", "kept"))[1:],
        REQUEST + b"\xbe",  # what the table has, or it has nothing
        REQUEST + b"\x10" + block(("x-key", "secret"))[1:],
        block((":status", "200")),
        b"",
        b"\x80",
        REQUEST + b"\x20",
        REQUEST + block(("a", "b" * 1000)),
    ]
)
FLAGS = st.sampled_from(
    [WHOLE, WHOLE, END_HEADERS, 0, END_STREAM, END_HEADERS | PADDED, WHOLE | PRIORITIZED, WHOLE | 0x40, 0xFF]
)
FRAMES = st.one_of(
    st.builds(headers, NUMBERS, BLOCKS, FLAGS),
    st.builds(headers, NUMBERS),
    st.builds(lambda number, flags: frame(CONTINUATION, flags, number, REQUEST), NUMBERS, FLAGS),
    st.builds(lambda number, last: data(number, b"12345", last=last), NUMBERS, st.booleans()),
    st.builds(lambda number: frame(RST_STREAM, 0, number, bytes(4)), NUMBERS),
    st.builds(window_update, NUMBERS, SIZES),
    st.builds(lambda size: settings((SettingCodes.INITIAL_WINDOW_SIZE, size)), SIZES),
    st.builds(lambda number: frame(PRIORITY, 0, number, bytes(5)), NUMBERS),
    st.builds(lambda kind: frame(kind, 0, 0, bytes(8)), st.sampled_from([PING, GOAWAY, 0x55])),
)
BEGUN, ASKED = ("take", headers(1, REQUEST)), ("take", headers(3, REQUEST))
STEPS = st.one_of(
    st.tuples(st.just("take"), FRAMES),
    st.tuples(st.just("head"), NUMBERS, st.booleans()),
    st.tuples(st.just("piece"), NUMBERS, SIZES, st.booleans()),
    st.tuples(st.just("reset"), NUMBERS),
)


class Short:
    """Goes the short way."""

    def __init__(self) -> None:
        self.state = State(is_client=False, header_bytes=1000)
        self.state.receive_data(PREFACE + settings())
        self.state.data_to_send()

    def head(self, number: int, is_all: bool) -> None:
        self.state.send_head(number, ANSWER, is_all=is_all)

    def piece(self, number: int, size: int, is_last: bool) -> None:
        self.state.send_piece(number, bytes(size), is_last=is_last)

    def reset(self, number: int) -> None:
        self.state.reset_stream(number)

    def request(self, given: bytes) -> Any:
        return self.state.receive_request(int.from_bytes(given[5:9]), given[4], given)

    def take(self, given: bytes) -> list[tuple[object, ...]]:
        fields = self.request(given) if given[3] == HEADERS else None
        if fields is not None:
            number = int.from_bytes(given[5:9])
            return [("request", number, fields), *([("ended", number)] if given[4] & END_STREAM else [])]
        told: list[tuple[object, ...]] = []
        for event in self.state.receive_data(given):
            if isinstance(event, h2.events.RequestReceived):
                told.append(("request", event.stream_id, tuple(event.headers)))
            elif isinstance(event, h2.events.StreamEnded):
                told.append(("ended", event.stream_id))
            elif not isinstance(event, h2.events.PriorityUpdated):  # nobody asks for it
                told.append((repr(event),))
        return told

    def do(self, what: str, *arguments: Any) -> object:
        """Take a step; return what is told of it, or what it raises."""
        if what != "take" and arguments[0] not in self.state.streams:
            return None
        if what == "head" and self.state.streams[arguments[0]].state_machine.headers_sent:
            arguments = (arguments[0], True)  # trailers, with which a stream ends
        try:
            return getattr(self, what)(*arguments)
        except h2.exceptions.ProtocolError as e:
            return "raised", type(e), e.error_code

    def known(self) -> object:
        """Return everything that is to be sent, and that it knows of its streams."""
        state = self.state
        streams = {
            number: (
                each.state_machine.__dict__,
                each.outbound_flow_control_window,
                each.inbound_flow_control_window,
                each.max_outbound_frame_size,
            )
            for number, each in state.streams.items()
        }
        windows = state.outbound_flow_control_window, state.inbound_flow_control_window
        table = list(state.decoder.header_table.dynamic_entries)
        return state.data_to_send(), state.state_machine.state, streams, state.highest_inbound_stream_id, windows, table


class Long(Short):
    """Asks h2 about everything."""

    def head(self, number: int, is_all: bool) -> None:
        self.state.send_headers(number, ANSWER, end_stream=is_all)

    def piece(self, number: int, size: int, is_last: bool) -> None:
        self.state.send_data(number, bytes(size), end_stream=is_last)

    def request(self, given: bytes) -> Any:
        return None


@given(st.lists(STEPS, max_size=30))
@example([BEGUN, ASKED, ("head", 3, False), ("piece", 3, 100, True), ("piece", 3, 1, False)])
@example([BEGUN, ASKED, ("head", 3, True), ("head", 3, True), ("take", headers(5, REQUEST))])
@example([BEGUN, ASKED, ("head", 3, False), ("piece", 3, 1, False), ("head", 3, True)])
@example([BEGUN, ASKED, ("reset", 3), ("head", 3, False)])
@example([BEGUN, ASKED, ("reset", 3), ("piece", 3, 1, False)])
@example([BEGUN, ASKED, ("head", 3, False), ("take", frame(GOAWAY, 0, 0, bytes(8))), ("piece", 3, 1, False)])
@example([BEGUN, ("take", headers(3, REQUEST, END_HEADERS)), ("head", 3, False), ("piece", 3, 1, True)])
@example([("take", headers(1, REQUEST)), ("take", headers(3, b"\x80"))])
@example([("take", headers(1, REQUEST)), ("take", headers(3, REQUEST, END_STREAM)), ("take", headers(5, REQUEST))])
@example([("take", headers(1, REQUEST)), ("take", frame(GOAWAY, 0, 0, bytes(8))), ("take", headers(3, REQUEST))])
@example([("take", headers(1, REQUEST)), ("take", frame(GOAWAY, 0, 0, bytes(8))), ("head", 1, True)])
@example([("take", headers(3, REQUEST)), ("take", headers(1, REQUEST))])
def test_a_step_comes_to_the_same_without_h2(steps: list[tuple[Any, ...]]) -> None:
    ours, theirs = Short(), Long()
    for step in steps:
        found = ours.do(*step)
        assert found == theirs.do(*step)
        assert ours.known() == theirs.known()
        if step[0] == "take" and isinstance(found, tuple):
            break  # the connection is over


@pytest.mark.parametrize(
    ("flags", "number", "is_short"),
    [
        (WHOLE, 3, True),
        (END_HEADERS, 3, True),
        (END_STREAM, 3, False),
        (WHOLE | PADDED, 3, False),
        (WHOLE | PRIORITIZED, 3, False),
        (WHOLE, 1, False),
        (WHOLE, 2, False),
        (WHOLE, 4, False),
        (WHOLE, 0, False),
    ],
)
def test_the_short_way_is_for_a_new_stream_whose_head_is_one_plain_frame(
    flags: int, number: int, is_short: bool
) -> None:
    state = Short().state
    assert state.receive_request(1, WHOLE, headers(1, REQUEST)) is None  # nothing has begun before the first one
    state.receive_data(headers(1, REQUEST))
    assert (state.receive_request(number, flags, headers(number, REQUEST, flags)) is not None) is is_short


def test_finished_streams_are_forgotten_on_the_short_way_too() -> None:
    way = Short()
    for number in range(1, 2001, 2):
        way.take(headers(number, REQUEST))
        way.head(number, True)
        way.state.data_to_send()
    assert len(way.state.streams) < 40


def test_a_status_in_a_request_is_for_our_own_rules() -> None:
    """h2 would take 103 for an interim response, and reset the stream; so it is answered as any other status is."""
    way = Short()
    way.take(headers(1, REQUEST))
    ((what, _, fields), _) = way.take(headers(3, block((":status", "103"))))
    assert (what, fields) == ("request", ((b":status", b"103"),))
