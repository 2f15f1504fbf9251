"""What ends in HTTP/2 ends alone: a stream, a connection, an app, a policy; and what was not begun is begun elsewhere.

Proves ARCHITECTURE's rule 1 (nothing leaves twice, nothing is lost silently) where many requests share a connection.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.engine.apps.conversation import MAX_TRIES
from proxy.engine.http2state import MAX_STREAMS
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    Code,
    asked,
    block,
    by_hand,
    data,
    goaway,
    headers,
    reset,
    settings,
)
from tests.e2e.frameserver import FrameServer, Got, frame_server
from tests.e2e.http2 import Http2Client, Message, agree_on_http2, frame, speak
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.waiting import wait_until

HOST = "far.example"
POLICY = "defaults: {https: inspect}"


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("ends")
    with Sidecar(POLICY, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running
        assert '"level": "error"' not in running.stderr, running.stderr
        assert running.metrics().value("overcoat_hook_failures_total") == 0


def whole(client: Http2Client, server: FrameServer, path: str) -> int:
    """Send a GET that ends with its head, and return its stream's number."""
    head = [(":method", "GET"), (":scheme", "https"), (":authority", server.authority), (":path", path)]
    return client.begin_raw(head, last=True)


def assert_failed(message: Message, reason: str = "upstream_failed") -> None:
    assert message.status == 502, message
    assert json.loads(message.body)["reason"] == reason


def echo(got: Got) -> None:
    got.reply(f"{got.method} {got.path} ".encode() + got.body)


class TestGoaway:
    @pytest.mark.parametrize("each", [1, 3, 10])
    def test_one_after_every_few_streams_loses_nothing(self, sidecar: Sidecar, authority: Authority, each: int) -> None:
        served: Counter[str] = Counter()

        def began(got: Got) -> None:
            if len(got.peer.requests) == each:
                got.peer.send(goaway(got.stream))

        def answer(got: Got) -> None:
            if len([stream for stream in got.peer.requests if stream <= got.stream]) <= each:
                served[got.path] += 1
                echo(got)

        with frame_server(authority, HOST, answer, began=began) as server:
            client = speak(sidecar, server.authority)
            streams: dict[str, tuple[int, str]] = {}
            for number in range(60):
                if number and number % (3 * each) == 0:  # each try serves as many; there are four
                    for stream, _ in streams.values():
                        client.read(stream)
                path = f"/{number}"
                if number % 3:
                    streams[path] = client.send(server.authority, path, method="GET"), f"GET {path} "
                else:
                    stream = client.begin(server.authority, path)
                    client.go_on(stream, b"bo", last=False)
                    client.go_on(stream, b"dy", last=True)
                    streams[path] = stream, f"POST {path} body"
            for stream, body in streams.values():
                message = client.read(stream)
                assert (message.status, message.body.decode()) == (200, body)
            assert served == Counter(dict.fromkeys(streams, 1))

    def test_what_is_above_the_last_is_sent_again_once_and_what_is_below_ends(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        def answer(got: Got) -> None:
            if got.peer.number:
                echo(got)
            elif len([each for each in got.peer.requests.values() if each.is_whole]) == 3:
                first = min(got.peer.requests.values(), key=lambda each: each.stream)
                got.peer.send(goaway(first.stream))
                echo(first)

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            streams = [client.send(server.authority, "/1", method="GET")]
            server.wait_for(1)
            streams += [client.send(server.authority, "/2", body=b"two"), client.send(server.authority, "/3")]
            bodies = [client.read(stream).body for stream in streams]
            assert bodies == [b"GET /1 ", b"POST /2 two", b"POST /3 "]
            assert sorted((got.path, got.peer.number) for got in server.wait_for(5)) == [
                *(("/1", 0), ("/2", 0), ("/2", 1), ("/3", 0), ("/3", 1))
            ]

    def test_a_first_one_that_names_no_last_ends_nothing(self, sidecar: Sidecar, authority: Authority) -> None:
        def answer(got: Got) -> None:
            if got.path == "/first":
                got.peer.send(goaway(2**31 - 1) + frame(PING, 0, 0, bytes(8)))
            else:
                echo(got)

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            first = client.send(server.authority, "/first", method="GET")
            (got,) = server.wait_for(1)
            server.wait(lambda: got.peer.pongs, "the GOAWAY to be read")
            second = client.send(server.authority, "/second", method="GET")
            assert client.read(second).body == b"GET /second "
            got.peer.send(goaway(got.stream))
            echo(got)
            assert client.read(first).body == b"GET /first "
            server.wait(lambda: server.connections[0].is_over, "the end of the first connection")
            assert [each.peer.number for each in server.requests] == [0, 1]

    def test_an_apps_own_loses_nothing_under_way(self, sidecar: Sidecar, authority: Authority) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            peer = by_hand(sidecar, server.authority)
            peer.send(
                headers(1, asked(server.authority, path="/1")),
                headers(3, asked(server.authority, path="/3", method="POST"), END_HEADERS),
            )
            server.wait(lambda: len(server.requests) == 2)
            peer.send(goaway(0))
            peer.send(data(3, b"the rest", last=True))
            server.wait(lambda: all(got.is_whole for got in server.requests))
            for got in server.requests:
                echo(got)
            bodies: dict[int, bytes] = {1: b"", 3: b""}
            while (found := peer.read()) is not None:
                if found.kind == DATA:
                    bodies[found.stream] += found.payload
                assert found.kind != GOAWAY or found.code == Code.NO_ERROR
            assert bodies == {1: b"GET /1 ", 3: b"POST /3 the rest"}

    def test_what_came_before_the_end_is_read_to_its_end(self, sidecar: Sidecar, authority: Authority) -> None:
        """As nginx ends: answers in more frames than one turn has, GOAWAY, and close_notify, all at once."""
        count = 60

        def answer(got: Got) -> None:
            if len(server.requests) < count or not all(each.is_whole for each in server.requests):
                return
            sock = got.peer.client._socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            for each in server.requests:
                each.reply(each.path.encode())
            got.peer.send(goaway(2 * count - 1))
            sock.settimeout(0)
            with suppress(ssl.SSLWantReadError):  # the other end's close_notify is not waited for
                sock.unwrap()  # type: ignore[attr-defined]  # it is TLS
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            streams = [client.send(server.authority, f"/{each}", body=b"once") for each in range(count)]
            answers = [client.read(stream) for stream in streams]
            assert [(each.status, each.body) for each in answers] == [(200, b"/%d" % each) for each in range(count)]
            assert len(server.connections) == 1


class TestAgain:
    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("refusals", [1, MAX_TRIES - 1])
    def test_what_is_refused_is_sent_again(
        self, sidecar: Sidecar, authority: Authority, method: str, refusals: int
    ) -> None:
        def answer(got: Got) -> None:
            if len(server.requests) <= refusals:
                got.peer.send(reset(got.stream, Code.REFUSED_STREAM))
            else:
                echo(got)

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            message = client.read(client.send(server.authority, "/x", method=method, body=b"body"))
            assert (message.status, message.body.decode()) == (200, f"{method} /x body")
            assert [got.body for got in server.wait_for(refusals + 1)] == [b"body"] * (refusals + 1)

    def test_but_not_for_ever(self, sidecar: Sidecar, authority: Authority) -> None:
        with frame_server(authority, HOST, lambda got: got.peer.send(reset(got.stream, Code.REFUSED_STREAM))) as server:
            client = speak(sidecar, server.authority)
            assert_failed(client.read(client.send(server.authority, method="GET")))
            server.wait_for(MAX_TRIES)

    def test_http_1_1_is_spoken_where_it_is_required(self, sidecar: Sidecar, authority: Authority) -> None:
        seen = []

        def http1(accepted: Accepted) -> None:
            for _ in range(2):
                seen.append(accepted.read_head())
                accepted.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")

        def answer(got: Got) -> None:
            got.peer.send(reset(got.stream, Code.HTTP_1_1_REQUIRED))

        # The sidecar likes HTTP/1.1 better, and says so; this server does not ask.
        with frame_server(authority, HOST, answer, alpn=("h2", "http/1.1"), http1=http1) as server:
            client = speak(sidecar, server.authority)
            for path in ("/1", "/2"):
                message = client.read(whole(client, server, path))
                assert (message.status, message.body) == (200, b"old")
            assert [head.split()[1] for head in seen] == [b"/1", b"/2"]
            server.wait_for(2)  # each has asked in HTTP/2 first: what is required of one is not so of another

    @pytest.mark.parametrize(
        "end",
        [
            lambda got: got.peer.send(reset(got.stream, Code.INTERNAL_ERROR)),
            lambda got: got.peer.send(goaway(got.stream), reset(got.stream, Code.CANCEL)),
            lambda got: got.peer.client.close(),
            lambda got: got.peer.client.reset(),
            lambda got: got.peer.send(headers(got.stream, block((":status", "103")), END_HEADERS),
                                      reset(got.stream, Code.REFUSED_STREAM)),
        ],
        ids=["a reset", "a reset behind GOAWAY", "the end", "a broken connection", "a refusal behind a response"],
    )  # fmt: skip
    @pytest.mark.parametrize("is_first", [True, False])
    def test_what_may_have_been_processed_is_not(
        self, sidecar: Sidecar, authority: Authority, end: object, is_first: bool
    ) -> None:
        def answer(got: Got) -> None:
            if got.path == "/first":
                echo(got)
            else:
                end(got)  # type: ignore[operator]  # one of the functions above

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            if not is_first:
                client.read(client.send(server.authority, "/first", method="GET"))
            assert_failed(client.read(client.send(server.authority, "/pay", body=b"1 EUR")))
            server.wait_for(1 if is_first else 2)

    def test_a_get_on_a_connection_that_ends_is(self, sidecar: Sidecar, authority: Authority) -> None:
        def answer(got: Got) -> None:
            if got.path == "/2" and not got.peer.number:
                got.peer.client.close()
            else:
                echo(got)

        with frame_server(authority, HOST, answer) as server:
            client = speak(sidecar, server.authority)
            for path in ("/1", "/2"):
                assert client.read(whole(client, server, path)).body == f"GET {path} ".encode()
            assert [got.peer.number for got in server.wait_for(3)] == [0, 0, 1]


OK = block((":status", "200"))
type Makes = Callable[[int], bytes]
MALFORMED: dict[str, Makes] = {
    "no status": lambda n: headers(n, block(("a", "b"))),
    "an upper-case name": lambda n: headers(n, OK + block(("A", "b"))),
    "a line in a value": lambda n: headers(n, OK + block(("a", "b\r\nc: d"))),
    "Connection": lambda n: headers(n, OK + block(("connection", "close"))),
    "Transfer-Encoding": lambda n: headers(n, OK + block(("transfer-encoding", "chunked")), 4),
    "101": lambda n: headers(n, block((":status", "101"))),
    "two statuses": lambda n: headers(n, OK + OK),
    "a body without a head": lambda n: data(n, b"x", last=True),
    "an end without a head": lambda n: data(n, b"", last=True),
    "a body before its head": lambda n: data(n, b"x") + headers(n, OK),
    "no head but an interim one": lambda n: headers(n, block((":status", "103")), 4) + data(n, b"x", last=True),
    "an interim head that ends": lambda n: headers(n, block((":status", "103"))),
    "a length and no body": lambda n: headers(n, OK + block(("content-length", "1"))),
    "two lengths": lambda n: headers(n, OK + 2 * block(("content-length", "0"))),
}
BROKEN_OFF: dict[str, Makes] = {
    "an interim head behind it": lambda n: headers(n, block((":status", "103")), 4),
    "another head": lambda n: headers(n, OK, 4),
    "another head that ends": lambda n: headers(n, OK),
    "malformed trailers": lambda n: headers(n, block(("A", "b"))),
    "more than its length": lambda n: data(n, b"xyz", last=True),
    "more than its length, and no end": lambda n: data(n, b"xyz"),
    "less than its length": lambda n: data(n, b"", last=True),
    "a window that opens nothing": lambda n: bytes.fromhex("000004 08 00") + n.to_bytes(4) + bytes(4),
}


class TestMalformed:
    """Of one response, while another is under way on the same connection."""

    def ask(self, sidecar: Sidecar, authority: Authority, makes: Makes) -> Message:
        with frame_server(authority, HOST, lambda _: None) as server:
            other = speak(sidecar, server.authority)
            under_way = other.send(server.authority, "/other", method="GET")
            (first,) = server.wait_for(1)
            client = speak(sidecar, server.authority)
            stream = client.send(server.authority, "/bad", method="GET")
            got = server.wait_for(2)[1]
            assert got.peer is first.peer
            got.peer.send(makes(got.stream))
            message = client.read(stream)
            echo(first)
            assert other.read(under_way).body == b"GET /other "
            again = client.send(server.authority, "/again", method="GET")
            server.wait(lambda: len(server.requests) == 3)
            last = server.requests[-1]
            assert last.peer is first.peer
            echo(last)
            assert client.read(again).body == b"GET /again "
            return message

    @pytest.mark.parametrize("makes", MALFORMED.values(), ids=MALFORMED)
    def test_it_ends_its_stream_alone(self, sidecar: Sidecar, authority: Authority, makes: Makes) -> None:
        assert_failed(self.ask(sidecar, authority, makes))

    @pytest.mark.parametrize("makes", BROKEN_OFF.values(), ids=BROKEN_OFF)
    def test_so_it_does_behind_a_head(self, sidecar: Sidecar, authority: Authority, makes: Makes) -> None:
        def behind(number: int) -> bytes:
            head = headers(number, OK + block(("content-length", "2")), END_HEADERS)
            return head + data(number, b"x") + makes(number)

        message = self.ask(sidecar, authority, behind)
        assert (message.reset, message.ended) == (Code.INTERNAL_ERROR, False)
        assert message.body in (b"", b"x")  # and nothing beyond the length

    @pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("GET", "304")])
    def test_a_body_where_none_may_be_goes_nowhere(
        self, sidecar: Sidecar, authority: Authority, method: str, status: str
    ) -> None:
        def answer(got: Got) -> None:
            if got.path == "/bad":
                got.peer.send(headers(got.stream, block((":status", status)), END_HEADERS))
                got.peer.send(data(got.stream, b"HTTP/1.1 200 OK", last=True))
            else:
                echo(got)

        with frame_server(authority, HOST, answer) as server:
            peer = by_hand(sidecar, server.authority)
            peer.send(headers(1, asked(server.authority, path="/bad", method=method)))
            found = peer.head(1)
            assert (found.get(":status"), found.is_end) == (status, True)
            peer.send(headers(3, asked(server.authority, path="/next")))
            seen = peer.find(lambda each: each.kind == DATA)
            assert (seen.stream, seen.payload) == (3, b"GET /next ")
            assert len(server.connections) == 1


class TestAppsGone:
    @pytest.mark.parametrize("is_reset", [True, False])
    def test_its_streams_are_cancelled_and_the_shared_connection_lives(
        self, sidecar: Sidecar, authority: Authority, is_reset: bool
    ) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            stays, goes = speak(sidecar, server.authority), speak(sidecar, server.authority)
            kept = stays.send(server.authority, "/stays", method="GET")
            (first,) = server.wait_for(1)
            goes.send(server.authority, "/goes", method="GET")
            goes.begin(server.authority, "/goes")
            server.wait_for(3)
            if is_reset:
                goes._client.reset()
            else:
                goes.close()
            server.wait(lambda: len([got for got in server.requests if got.reset == Code.CANCEL]) == 2, "two resets")
            assert {got.peer for got in server.requests} == {first.peer}
            echo(first)
            assert stays.read(kept).body == b"GET /stays "

    @pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("GET", "304")])
    def test_so_is_one_whose_answer_has_no_body_and_no_end(
        self, sidecar: Sidecar, authority: Authority, method: str, status: str
    ) -> None:
        """What the app has is whole, while the upstream has not ended it."""

        def answer(got: Got) -> None:
            got.peer.send(headers(got.stream, block((":status", status)), END_HEADERS))

        with frame_server(authority, HOST, answer) as server:
            peer = by_hand(sidecar, server.authority)
            peer.send(headers(1, asked(server.authority, path="/open", method=method)))
            assert peer.head(1).is_end
            peer.client.close()
            (got,) = server.wait_for(1)
            server.wait(lambda: got.reset == Code.CANCEL, "a reset")

    def test_streams_with_such_answers_count_as_others_do(self, sidecar: Sidecar, authority: Authority) -> None:
        def answer(got: Got) -> None:
            got.peer.send(headers(got.stream, block((":status", "204")), END_HEADERS))

        with frame_server(authority, HOST, answer) as server:
            peer = by_hand(sidecar, server.authority)
            for each in range(MAX_STREAMS):
                peer.send(headers(2 * each + 1, asked(server.authority)))
                assert peer.head(2 * each + 1).is_end
            last = 2 * MAX_STREAMS + 1
            peer.send(headers(last, asked(server.authority)))
            assert peer.find(lambda each: each.stream == last).code == Code.REFUSED_STREAM
            first = server.wait_for(MAX_STREAMS)[0]
            first.peer.send(data(first.stream, b"", last=True), frame(PING, 0, 0, bytes(8)))
            server.wait(lambda: first.peer.pongs, "an answer to PING")
            peer.send(headers(last + 2, asked(server.authority)))
            assert peer.find(lambda each: each.stream == last + 2).get(":status") == "204"

    @pytest.mark.parametrize("is_denied", [True, False])
    def test_those_with_an_early_answer_count_until_the_app_has_ended_them(
        self, sidecar: Sidecar, authority: Authority, is_denied: bool
    ) -> None:
        with frame_server(authority, HOST, began=lambda got: got.reply(b"", status=400)) as server:
            peer = by_hand(sidecar, server.authority)
            name = f"{HOST}:1" if is_denied else server.authority
            for each in range(MAX_STREAMS + 5):
                stream = 2 * each + 1
                peer.send(headers(stream, asked(name, method="POST"), END_HEADERS))
                assert peer.head(stream).get(":status") == ("421" if is_denied else "400")
                peer.send(data(stream, b"x", last=True))

    def test_one_whose_answer_came_early_and_without_an_end_is_ended_upstream(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        def begun(got: Got) -> None:
            got.peer.send(headers(got.stream, block((":status", "204")), END_HEADERS))

        with frame_server(authority, HOST, lambda _: None, began=begun) as server:
            peer = by_hand(sidecar, server.authority)
            peer.send(headers(1, asked(server.authority, method="POST"), END_HEADERS))
            assert peer.head(1).is_end
            peer.send(data(1, b"x", last=True))
            (got,) = server.wait_for(1)
            server.wait(lambda: got.is_whole, "the request's end")
            assert got.body == b"x"

    def test_one_that_is_given_up_is_cancelled_alone(self, sidecar: Sidecar, authority: Authority) -> None:
        with frame_server(authority, HOST, lambda _: None) as server:
            client = speak(sidecar, server.authority)
            kept, given_up = (client.send(server.authority, f"/{each}", method="GET") for each in range(2))
            first, second = sorted(server.wait_for(2), key=lambda got: got.path)
            client.give_up(given_up)
            server.wait(lambda: second.reset == Code.CANCEL, "a reset")
            echo(first)
            assert client.read(kept).body == b"GET /0 "


def test_no_more_streams_than_the_upstream_allows(sidecar: Sidecar, authority: Authority) -> None:
    def began(got: Got) -> None:
        if len(got.peer.requests) > 2:
            got.peer.send(reset(got.stream, Code.REFUSED_STREAM))

    with frame_server(authority, HOST, lambda _: None, first=settings((3, 2)), began=began) as server:
        client = speak(sidecar, server.authority)
        streams = [client.send(server.authority, f"/{number}", method="GET") for number in range(7)]
        server.wait(lambda: len(server.connections) >= 4, "a fourth connection")
        server.wait(lambda: sum(min(2, len(each.requests)) for each in server.connections) == 7, "seven requests")
        for each in list(server.connections):
            for got in list(each.requests.values())[:2]:
                echo(got)
        assert [client.read(stream).body for stream in streams] == [f"GET /{each} ".encode() for each in range(7)]
        assert len(server.connections) == 4


def test_what_is_under_way_ends_before_the_sidecar_does(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("drain")
    with (
        Sidecar(POLICY, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
        frame_server(authority, HOST, lambda _: None) as server,
    ):
        peer = by_hand(sidecar, server.authority)
        peer.send(
            headers(1, asked(server.authority, path="/1")),
            headers(3, asked(server.authority, path="/3", method="POST"), END_HEADERS),
        )
        server.wait(lambda: len(server.requests) == 2)
        sidecar.signal(signal.SIGTERM)
        first = peer.find(lambda each: each.kind == GOAWAY)
        assert (first.last, first.code) == (2**31 - 1, Code.NO_ERROR)
        peer.send(headers(5, asked(server.authority, path="/5")))  # it had not heard of it yet
        second = peer.find(lambda each: each.kind == GOAWAY)
        assert (second.last, second.code) == (5, Code.NO_ERROR)
        peer.send(headers(7, asked(server.authority, path="/7")))
        refused = peer.find(lambda each: each.kind == RST_STREAM)
        assert (refused.stream, refused.code) == (7, Code.REFUSED_STREAM)
        peer.send(data(3, b"the rest", last=True))
        server.wait(lambda: len(server.requests) == 3 and all(got.is_whole for got in server.requests))
        for got in server.requests:
            echo(got)
        bodies = {1: b"", 3: b"", 5: b""}
        while (found := peer.read()) is not None:
            if found.kind == DATA:
                bodies[found.stream] += found.payload
        assert bodies == {1: b"GET /1 ", 3: b"POST /3 the rest", 5: b"GET /5 "}
        assert sidecar.wait() == 0


NO_PIN = "sha256/" + "A" * 42 + "E="
AT_ONCE = 16


class TestReload:
    """Of a policy, while there are always streams under way."""

    @pytest.mark.parametrize(
        ("then", "status", "reason"),
        [
            (f'rules: [{{name: far, hosts: [{HOST}], pins: {{any_of: ["{NO_PIN}"]}}}}]', 502, "pin_mismatch"),
            (f"rules: [{{name: far, hosts: [{HOST}], https: reject}}]", 403, "https_rejected"),
            (f"rules: [{{name: far, hosts: [{HOST}]}}]", 200, None),
            ("limits: {header_count: 90}", 200, None),
        ],
        ids=["a pin", "a rejection", "a rule", "a limit"],
    )
    @pytest.mark.parametrize("heeds", [True, False], ids=["an app that heeds GOAWAY", "one that does not"])
    def test_the_next_stream_is_of_the_new_one_and_none_is_lost(
        self,
        authority: Authority,
        tmp_path: Path,
        then: str,
        status: int,
        reason: str | None,
        heeds: bool,
    ) -> None:
        def answer(got: Got) -> None:
            if got.path == "/new":
                echo(got)

        with (
            Sidecar(POLICY, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
            frame_server(authority, HOST, answer) as server,
        ):
            peer = by_hand(sidecar, server.authority)
            streams = range(1, 2 * AT_ONCE, 2)
            for stream in streams:
                flags = END_HEADERS if stream % 4 == 3 else END_HEADERS | END_STREAM
                peer.send(headers(stream, asked(server.authority, path=f"/{stream}", method="POST"), flags))
            server.wait_for(AT_ONCE)
            reload(sidecar, f"{POLICY}\n{then}")
            assert peer.find(lambda each: each.kind == GOAWAY).code == Code.NO_ERROR
            if heeds:
                message = ask_anew(sidecar, server)
                assert message is None or message.status == status
                if message is not None and reason is not None:
                    assert json.loads(message.body)["reason"] == reason
            else:
                peer.send(headers(99, asked(server.authority, path="/new")))
                found = peer.find(lambda each: each.kind == HEADERS)
                assert (found.stream, found.get(":status")) == (99, str(status))
                if reason is not None:
                    assert f'details="{reason}"' in (found.get("proxy-status") or "")
            new = [got for got in server.requests if got.path == "/new"]
            assert [got.peer.number for got in new] == ([1] if status == 200 else [])
            for stream in streams:
                if stream % 4 == 3:
                    peer.send(data(stream, b"late", last=True))
            old = [got for got in server.requests if got.path != "/new"]
            server.wait(lambda: all(got.is_whole for got in old))
            assert {got.peer.number for got in old} == {0}
            for got in old:
                echo(got)
            bodies = dict.fromkeys(streams, b"")
            while (each := peer.read()) is not None:
                if each.kind == DATA and each.stream in bodies:
                    bodies[each.stream] += each.payload
            assert bodies == {
                stream: f"POST /{stream} ".encode() + (b"late" if stream % 4 == 3 else b"") for stream in streams
            }
            server.wait(lambda: server.connections[0].is_over, "the end of the old connection")
            wait_until(lambda: sum(line["status"] == 200 for line in sidecar.decisions()) >= AT_ONCE, "a line for each")


def ask_anew(sidecar: Sidecar, server: FrameServer) -> Message | None:
    """Ask on a connection of its own; None where not even that is let through."""
    with RawClient(sidecar.address) as client:
        client.send(f"CONNECT {server.authority} HTTP/1.1\r\nHost: {server.authority}\r\n\r\n".encode())
        answer = client.read_response(method="CONNECT")
        if answer.status != 200:
            assert answer.status == 403
            return None
        agree_on_http2(client, HOST, sidecar.ca_file)
        speaker = Http2Client(client)
        return speaker.read(whole(speaker, server, "/new"))
