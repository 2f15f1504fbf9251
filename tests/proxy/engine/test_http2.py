"""One connection of HTTP/2 takes its turns, keeps within its bounds, and takes no message for whole that is not.

Proves that no app can hold up the others by what it sends on one connection, and DESIGN rule 1 (fail closed) where
frames say how long a message is. What the windows bound is in tests/e2e/test_http2_pace.py, on real sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http2 import Http2Connection

from proxy.engine.http2 import (
    CONNECTION_WINDOW,
    FRAMES_A_TURN,
    MAX_BLOCK,
    MAX_TABLE,
    MERGED_AT_MOST,
    OWED_AT_MOST,
    RESETS_AT_ONCE,
    STREAM_WINDOW,
    AppHttp2,
    AwaitRoom,
    AwaitTurn,
    Leave,
    PacedConnection,
    UpstreamHttp2,
)
from proxy.engine.upstream import MAX_INTERIM
from tests.proxy.engine.test_internals import client_context

REQUEST = [(":method", "POST"), (":scheme", "https"), (":authority", "api.example"), (":path", "/")]
HEADERS, CONTINUATION = 1, 9


class Peer:
    """The other end of a connection, and the layer that it talks to."""

    def __init__(self, layer: Http2Connection, conn: Connection, *, client_side: bool) -> None:
        # What is wrong with a message is for the test to say.
        config = h2.config.H2Configuration(client_side=client_side, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.layer = layer
        self.conn = conn
        self.closed = False
        self.events: list[h2.events.Event] = []  # what it got
        self.passed_on: list[http_events.HttpEvent] = []  # what the layer made of what it sent
        self.turns: list[AwaitTurn] = []
        self.rooms: list[AwaitRoom] = []
        self.sent = b""  # by the layer
        self.h2.initiate_connection()
        self.give(events.Start())

    def give(self, event: events.Event) -> None:
        """Give the layer an event, and take what it sends."""
        for command in self.layer.handle_event(event):
            if isinstance(command, AwaitTurn):
                self.turns.append(command)
            elif isinstance(command, AwaitRoom):
                self.rooms.append(command)
            elif isinstance(command, commands.CloseConnection):
                self.closed = True
            elif isinstance(command, ReceiveHttp):
                self.passed_on.append(command.event)
            elif isinstance(command, commands.SendData):
                self.sent += command.data
                self.events += self.h2.receive_data(command.data)

    def send(self, data: bytes) -> None:
        self.give(events.DataReceived(self.conn, data))

    def flush(self) -> None:
        """Send what its own end has to say, and let the layer pass on all that it asks for room for."""
        self.send(self.h2.data_to_send())
        while self.turns or self.rooms:
            self.give(events.Wakeup(self.turns.pop() if self.turns else self.rooms.pop()))

    def next_turn(self) -> None:
        self.give(events.Wakeup(self.turns.pop()))

    @property
    def acknowledged(self) -> int:
        return sum(isinstance(each, h2.events.PingAckReceived) for each in self.events)

    def passed[T: http_events.HttpEvent](self, kind: type[T]) -> list[T]:
        return [each for each in self.passed_on if isinstance(each, kind)]


class App(Peer):
    """An app."""

    def __init__(self) -> None:
        self.context = client_context()
        super().__init__(AppHttp2(self.context), self.context.client, client_side=True)

    def begin(self, *fields: tuple[str, str]) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*REQUEST, *fields])
        self.flush()
        return stream

    def answer(self, stream: int, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Have the layer send a response without a body."""
        response = http.Response(b"HTTP/1.1", 200, b"", http.Headers(list(fields)), None, None, 0, None)
        self.give(http_events.ResponseHeaders(stream, response, end_stream=True))


class Far(Peer):
    """An upstream."""

    def __init__(self) -> None:
        self.context = client_context()
        super().__init__(UpstreamHttp2(self.context), self.context.server, client_side=False)
        self.flush()
        self._asked = -1

    def ask(self, method: str = "GET") -> int:
        """Have the layer send a request; return its stream's number on both sides of the layer."""
        self._asked += 2
        fields = http.Headers()
        request = http.Request(
            "api.example",
            443,
            method.encode(),
            b"https",
            b"api.example",
            b"/",
            b"HTTP/2.0",
            fields,
            None,
            None,
            0,
            None,
        )
        self.give(http_events.RequestHeaders(self._asked, request, end_stream=True))
        self.give(http_events.RequestEndOfMessage(self._asked))
        return self._asked

    def respond(self, stream: int, status: str, *fields: tuple[str, str], end: bool = False) -> None:
        self.h2.send_headers(stream, [(":status", status), *fields], end_stream=end)
        self.flush()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def pings(app: App, count: int) -> bytes:
    for number in range(count):
        app.h2.ping(number.to_bytes(8))
    return app.h2.data_to_send()


class TestTurns:
    def test_what_is_more_than_a_turn_waits_for_the_next(self) -> None:
        app = App()
        app.send(app.h2.data_to_send())
        app.send(pings(app, 3 * FRAMES_A_TURN))
        seen = [app.acknowledged]
        while app.turns:
            app.next_turn()
            seen.append(app.acknowledged)
        assert seen == [FRAMES_A_TURN, 2 * FRAMES_A_TURN, 3 * FRAMES_A_TURN]

    def test_meanwhile_more_is_only_kept(self) -> None:
        app = App()
        app.send(app.h2.data_to_send() + pings(app, FRAMES_A_TURN))
        before = app.acknowledged
        app.send(pings(app, 1))
        assert app.acknowledged == before
        app.next_turn()
        assert app.acknowledged == FRAMES_A_TURN + 1

    def test_the_end_comes_after_all_that_came_before_it(self) -> None:
        app = App()
        app.send(app.h2.data_to_send() + pings(app, 2 * FRAMES_A_TURN))
        app.give(events.ConnectionClosed(app.context.client))
        assert not app.closed
        while app.turns:
            app.next_turn()
        assert app.closed
        assert app.acknowledged == 2 * FRAMES_A_TURN

    @given(st.lists(st.integers(1, 40), max_size=60))
    def test_it_makes_no_difference_where_the_bytes_are_cut(self, cuts: Sequence[int]) -> None:
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
    def test_what_is_no_http2_is_closed(self, data: bytes) -> None:
        app = App()
        app.send(data)
        assert app.closed


class TestHeaderBlocks:
    """A block in several frames is one block, however it is cut."""

    def begin(self, size: int) -> App:
        """Return an app that has sent `size` bytes of a block that has not ended."""
        app = App()
        app.flush()
        app.send(frame(HEADERS, 0, 1, b"\0" * 1000))
        for start in range(1000, size, 10_000):
            app.send(frame(CONTINUATION, 0, 1, b"\0" * min(10_000, size - start)))
        return app

    def test_one_that_is_too_long_closes_the_connection_before_it_has_ended(self) -> None:
        app = self.begin(MAX_BLOCK)
        assert not app.closed
        app = self.begin(MAX_BLOCK + 1)
        assert app.closed
        (goodbye,) = [each for each in app.events if isinstance(each, h2.events.ConnectionTerminated)]
        assert goodbye.error_code == ErrorCodes.ENHANCE_YOUR_CALM

    def test_blocks_are_counted_one_by_one(self) -> None:
        app = App()
        app.flush()
        value = "x" * 30_000
        for _ in range(2 * MAX_BLOCK // len(value)):
            stream = app.begin(("a", value))
            app.h2.reset_stream(stream)
        app.flush()
        assert not app.closed


class TestTables:
    """The table of names and values is searched from end to end for each field: it stays as small as it begins."""

    FIELDS = tuple((b"x-%d" % number, b"v" * 90) for number in range(40))  # more than a table holds

    def first_block(self, app: App) -> bytes:
        """Have the layer answer a request, and return the header block as it is sent."""
        stream = app.begin()
        before = len(app.sent)
        app.answer(stream, self.FIELDS)
        return app.sent[before + 9 :]

    def updates(self, block: bytes) -> list[int]:
        """Return the table sizes that a block begins with (RFC 7541, section 6.3)."""
        found = []
        while block[0] & 0xE0 == 0x20:
            size, block = block[0] & 0x1F, block[1:]
            shift = 0
            more = size == 0x1F
            while more:
                more = bool(block[0] & 0x80)
                size += (block[0] & 0x7F) << shift
                shift += 7
                block = block[1:]
            found.append(size)
        return found

    def test_the_table_that_an_app_has_by_default_is_left_as_it_is(self) -> None:
        app = App()
        assert self.updates(self.first_block(app)) == []
        assert app.layer.h2_conn.encoder.header_table_size == MAX_TABLE

    @pytest.mark.parametrize("sizes", [[2**16], [2**31], [2**16, 2**20, 2**17, 2**18]], ids=str)
    def test_a_larger_one_is_not_made_use_of(self, sizes: list[int]) -> None:
        app = App()
        app.flush()
        for size in sizes:
            app.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
            app.flush()
        updates = self.updates(self.first_block(app))
        assert len(updates) <= 2  # RFC 7541, section 4.2
        assert all(size <= MAX_TABLE for size in updates)
        assert app.layer.h2_conn.encoder.header_table_size == MAX_TABLE

    def test_a_smaller_one_is_kept_to(self) -> None:
        app = App()
        app.flush()
        for size in (0, 100):
            app.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
            app.flush()
        assert self.updates(self.first_block(app)) == [0, 100]
        assert app.layer.h2_conn.encoder.header_table_size == 100

    @given(st.lists(st.one_of(st.none(), st.sampled_from([0, 100, 4096, 5000, 2**20])), max_size=8))
    def test_whatever_an_app_says_and_when_it_can_read_the_answers(self, steps: list[int | None]) -> None:
        app = App()
        app.flush()
        for step in [*steps, None, None]:
            if step is None:
                app.events.clear()
                app.answer(app.begin(), self.FIELDS)
                (response,) = [each for each in app.events if isinstance(each, h2.events.ResponseReceived)]
                assert [(bytes(k), bytes(v)) for k, v in response.headers][1:] == list(self.FIELDS)
            else:
                app.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: step})
                app.flush()
        assert app.layer.h2_conn.encoder.header_table_size <= MAX_TABLE


class Sender:
    """Our end of a connection, on which a response is sent, and the app's, whose window may be full."""

    def __init__(self, window: int) -> None:
        self.ours = PacedConnection(h2.config.H2Configuration(client_side=False, validate_outbound_headers=False))
        self.app = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.body = b""
        self.ends = 0
        self.unread = 0
        self.app.initiate_connection()
        self.app.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.app.send_headers(1, REQUEST, end_stream=True)
        self.ours.initiate_connection()
        self.ours.receive_data(self.app.data_to_send())
        self.ours.send_headers(1, [(":status", "200")])

    @property
    def waiting(self) -> list[int]:
        return [len(each.data) for each in self.ours.stream_buffers.get(1, ())]

    def exchange(self) -> None:
        """Give each end what the other one has sent."""
        for event in self.app.receive_data(self.ours.data_to_send()):
            if isinstance(event, h2.events.DataReceived):
                self.body += event.data
                self.unread += event.flow_controlled_length
            elif isinstance(event, h2.events.StreamEnded):
                self.ends += 1
        self.ours.receive_data(self.app.data_to_send())

    def read(self) -> None:
        """The app reads what has come, which opens the window again."""
        self.exchange()
        self.app.acknowledge_received_data(self.unread, 1)
        self.unread = 0
        self.ours.receive_data(self.app.data_to_send())
        self.exchange()


class TestMerging:
    def test_small_pieces_that_wait_become_few(self) -> None:
        sender = Sender(window=10)
        pieces = [bytes([number % 251]) for number in range(3 * MERGED_AT_MOST)]
        for piece in pieces:
            sender.ours.send_data(1, piece)
        assert sender.waiting == [MERGED_AT_MOST] * 2 + [MERGED_AT_MOST - 10]
        assert sender.ours.unsent(1) == 3 * MERGED_AT_MOST - 10
        sender.ours.end_stream(1)
        while sender.ours.unsent(1):
            sender.read()
        sender.exchange()
        assert (sender.body, sender.ends) == (b"".join(pieces), 1)

    def test_what_need_not_wait_is_sent_at_once(self) -> None:
        sender = Sender(window=1000)
        sender.ours.send_data(1, b"a")
        sender.exchange()
        assert (sender.body, sender.waiting) == (b"a", [])

    def test_the_end_is_not_merged_away(self) -> None:
        sender = Sender(window=1)
        sender.ours.send_data(1, b"ab")
        sender.ours.send_data(1, b"c", end_stream=True)
        assert sender.waiting == [2]
        sender.read()
        assert (sender.body, sender.ends) == (b"ab", 0)
        sender.read()
        assert (sender.body, sender.ends) == (b"abc", 1)

    @given(
        st.integers(1, 70_000),
        st.lists(st.one_of(st.integers(0, 40), st.integers(0, 40_000), st.just("read")), max_size=60),
        st.booleans(),
    )
    @example(1, [1, MERGED_AT_MOST, MERGED_AT_MOST, 1], True)
    def test_nothing_is_lost_or_comes_in_another_order(
        self, window: int, steps: list[int | str], ends_with_data: bool
    ) -> None:
        sender = Sender(window)
        sent = b""
        for number, step in enumerate(steps):
            if step == "read":
                sender.read()
            else:
                assert isinstance(step, int)
                piece = (number.to_bytes(2) * (step // 2 + 1))[:step]
                sent += piece
                sender.ours.send_data(1, memoryview(piece))
                two = [one + other for one, other in zip(sender.waiting[1:], sender.waiting[2:], strict=False)]
                assert all(size > MERGED_AT_MOST for size in two)  # of any two that wait, or they would be one
        if ends_with_data:
            sender.ours.send_data(1, b"end", end_stream=True)
            sent += b"end"
        else:
            sender.ours.end_stream(1)
        assert sender.ends == 0
        while not sender.ends:
            before = len(sender.body)
            sender.read()
            assert sender.ends or len(sender.body) > before
        assert (sender.body, sender.ends, sender.waiting) == (sent, 1, [])


class TestEnds:
    def test_a_stream_is_ended_once_however_often_that_is_said(self) -> None:
        sender = Sender(window=10)
        sender.ours.send_data(1, b"x" * 25)
        for _ in range(3):
            sender.ours.end_stream(1)
        for _ in range(4):
            sender.read()
        assert (sender.body, sender.ends) == (b"x" * 25, 1)

    def test_a_connection_is_left_with_a_word(self) -> None:
        app = App()
        app.flush()
        app.give(Leave())
        (word,) = [each for each in app.events if isinstance(each, h2.events.ConnectionTerminated)]
        assert (word.error_code, app.closed) == (h2.errors.ErrorCodes.NO_ERROR, True)

    def test_the_settings_are_owed_as_the_preface_is(self) -> None:
        app = App()
        begin = app.h2.data_to_send()
        app.send(begin[:24])
        assert app.layer.owes_since is not None
        app.send(begin[24:])
        assert app.layer.owes_since is None


class TestEmptyFrames:
    """DATA frames without data and without an end cost no window, so they must cost nothing else."""

    def test_they_are_passed_over(self) -> None:
        app = App()
        stream = app.begin()
        for _ in range(100):
            app.h2.send_data(stream, b"")
        app.h2.send_data(stream, b"a")
        app.flush()
        assert [each.data for each in app.passed(http_events.RequestData)] == [b"a"]
        assert app.passed(http_events.RequestEndOfMessage) == []
        app.h2.send_data(stream, b"", end_stream=True)  # the twin: this one says something
        app.flush()
        assert len(app.passed(http_events.RequestEndOfMessage)) == 1
        assert app.passed(http_events.RequestProtocolError) == []

    def test_their_padding_is_acknowledged(self) -> None:
        app = App()
        stream = app.begin()
        for _ in range(2 * STREAM_WINDOW // 256):
            app.h2.send_data(stream, b"", pad_length=255)
            app.flush()
        assert app.h2.local_flow_control_window(stream) > STREAM_WINDOW // 3  # h2 updates one that is half used up
        app.h2.send_data(stream, b"a", end_stream=True)
        app.flush()
        assert [each.data for each in app.passed(http_events.RequestData)] == [b"a"]


class TestLengths:
    """A body is as long as its head says, in whatever way it ends; h2 looks only where it ends with data."""

    @pytest.mark.parametrize(("said", "is_right"), [("3", True), ("4", False), ("5", False)])
    def test_of_a_request_that_ends_with_trailers(self, said: str, is_right: bool) -> None:
        app = App()
        stream = app.begin(("content-length", said))
        app.h2.send_data(stream, b"ab")
        app.h2.send_data(stream, b"c")
        app.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
        app.flush()
        assert len(app.passed(http_events.RequestEndOfMessage)) == is_right
        assert len(app.passed(http_events.RequestProtocolError)) == (not is_right)
        resets = [each.error_code for each in app.events if isinstance(each, h2.events.StreamReset)]
        assert resets == ([] if is_right else [ErrorCodes.PROTOCOL_ERROR])
        assert not app.closed

    def test_after_its_answer_a_wrong_one_ends_no_more_than_itself(self) -> None:
        app = App()
        stream = app.begin(("content-length", "5"))
        app.answer(stream)
        app.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
        app.flush()
        assert len(app.passed(http_events.RequestProtocolError)) == 1
        assert not app.closed
        app.answer(app.begin())
        assert sum(isinstance(each, h2.events.ResponseReceived) for each in app.events) == 2

    @pytest.mark.parametrize(("said", "is_closed"), [("0", False), ("1", True)])
    def test_many_wrong_ones_are_a_flood_as_many_resets_are(self, said: str, is_closed: bool) -> None:
        app = App()
        for _ in range(RESETS_AT_ONCE + 10):
            stream = app.begin(("content-length", said))
            app.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
            app.answer(stream)
            app.flush()
            if app.closed:
                break
        assert app.closed == is_closed

    @pytest.mark.parametrize(("said", "is_right"), [("3", True), ("4", False)])
    def test_of_a_response_that_ends_with_trailers(self, said: str, is_right: bool) -> None:
        far = Far()
        stream = far.ask()
        far.respond(stream, "200", ("content-length", said))
        far.h2.send_data(stream, b"abc")
        far.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
        far.flush()
        assert len(far.passed(http_events.ResponseEndOfMessage)) == is_right
        assert len(far.passed(http_events.ResponseProtocolError)) == (not is_right)
        assert not far.closed

    @pytest.mark.parametrize("end", ["with the head", "with an empty frame"])
    def test_a_response_to_head_has_a_length_and_no_body(self, end: str) -> None:
        far = Far()
        stream = far.ask("HEAD")
        far.respond(stream, "200", ("content-length", "5"), end=end == "with the head")
        if end == "with an empty frame":
            far.h2.end_stream(stream)
            far.flush()
        assert len(far.passed(http_events.ResponseEndOfMessage)) == 1
        assert far.passed(http_events.ResponseProtocolError) == []


class TestWindows:
    """What was received on a stream that is given up counts for the connection no longer."""

    MANY = 2 * CONNECTION_WINDOW // OWED_AT_MOST

    def test_streams_that_an_app_ends_too_early(self) -> None:
        app = App()
        stream = app.begin(("content-length", "100000"))
        app.h2.send_data(stream, b"abc")
        app.flush()
        assert app.layer.h2_conn.owed == {stream: 3}
        app.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
        app.flush()
        assert app.layer.h2_conn.owed == {}

    def test_requests_that_are_answered_with_a_reset(self) -> None:
        app = App()
        for _ in range(self.MANY):
            stream = app.begin()
            for _ in range(4):
                app.h2.send_data(stream, b"x" * (OWED_AT_MOST // 4))
            app.flush()
            app.give(http_events.ResponseProtocolError(stream, "", http_events.ErrorCode.KILL))
        assert app.h2.outbound_flow_control_window > CONNECTION_WINDOW // 3

    def test_responses_that_an_app_has_cancelled(self) -> None:
        far = Far()
        for _ in range(self.MANY):
            stream = far.ask()
            far.respond(stream, "200")
            for _ in range(4):
                far.h2.send_data(stream, b"x" * (OWED_AT_MOST // 4))
            far.flush()
            far.give(http_events.RequestProtocolError(stream, "", http_events.ErrorCode.CANCEL))
        assert far.h2.outbound_flow_control_window > CONNECTION_WINDOW // 3
        assert not far.closed


class TestInterim:
    def test_so_many_interim_responses_may_come_before_the_final_one(self) -> None:
        far = Far()
        stream = far.ask()
        for _ in range(MAX_INTERIM):
            far.respond(stream, "103")
        far.respond(stream, "200", end=True)
        assert [each.response.status_code for each in far.passed(http_events.ResponseHeaders)] == [200]
        assert not far.closed

    def test_one_more_ends_the_connection(self) -> None:
        far = Far()
        stream = far.ask()
        for _ in range(MAX_INTERIM):
            far.respond(stream, "103")
        assert not far.closed
        far.respond(stream, "103")
        assert far.closed
        assert len(far.passed(http_events.ResponseProtocolError)) == 1

    def test_each_request_has_its_own(self) -> None:
        far = Far()
        for _ in range(3):
            stream = far.ask()
            for _ in range(MAX_INTERIM):
                far.respond(stream, "103")
            far.respond(stream, "200", end=True)
        assert not far.closed


class TestStatus:
    @pytest.mark.parametrize("status", ["200", "299", "404", "599"])
    def test_one_that_is_final_is_passed_on(self, status: str) -> None:
        far = Far()
        far.respond(far.ask(), status, end=True)
        assert [each.response.status_code for each in far.passed(http_events.ResponseHeaders)] == [int(status)]
        assert not far.closed

    @pytest.mark.parametrize("status", ["600", "999", "0200", "20", "099", "000", "+20", "-20", "2_0", "abc", ""])
    def test_any_other_ends_the_connection(self, status: str) -> None:
        far = Far()
        far.respond(far.ask(), status, end=True)
        assert far.closed
        assert far.passed(http_events.ResponseHeaders) == []
        assert len(far.passed(http_events.ResponseProtocolError)) == 1
