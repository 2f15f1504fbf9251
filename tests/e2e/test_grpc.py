"""gRPC works unmodified: a real client and a real server, with TLS that is inspected, and in plain text, upgraded.

Proves ARCHITECTURE's rules 1 to 3, 5 and 7 where an app speaks gRPC. What the upstream gets is compared with what it
gets from the same client without a sidecar.
"""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import grpc
import pytest

from proxy.engine.http2state import MAX_STREAMS
from tests.e2e.app import fresh, request
from tests.e2e.certificates import Authority, Identity
from tests.e2e.clients import RawClient
from tests.e2e.grpcs import (
    DEADLINE,
    Service,
    channel_to,
    path_of,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)
from tests.e2e.http2 import HeaderList, Http2Upstream, Message, Reply
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar, clean_environment

HOST = "grpc.example"
NO_PIN = "sha256/" + "A" * 42 + "E="
APP_PORT = 50051  # that a plain-text app knows; nothing is ever dialled there
RESPONSE_SECONDS = 1

POLICY = """
    listen: ["forward://127.0.0.1:0", "reverse://127.0.0.1:0?to=https://{host}:{port}"]
    rules:
      - name: grpc
        hosts: [{host}]
        https_port: {port}
        limits: {{response_seconds: {seconds}}}
        pins: {{any_of: ["{pin}"]}}
"""


class Way(Enum):
    """How an app gets to the sidecar."""

    INSPECTED = "a secure channel through CONNECT"
    UPGRADED = "an insecure channel through CONNECT"
    REVERSE = "an insecure channel to a reverse listener"


@dataclass(frozen=True)
class Setting:
    """A sidecar, and the server behind it."""

    sidecar: Sidecar
    service: Service

    def channel(self, way: Way) -> grpc.Channel:
        """Return a channel that leads there in a way."""
        return through(self.sidecar, way, self.service.port)


def through(sidecar: Sidecar, way: Way, port: int) -> grpc.Channel:
    """Return a channel that leads through a sidecar of this module's policy."""
    match way:
        case Way.INSPECTED:
            return channel_to(f"{HOST}:{port}", roots=sidecar.ca_file.read_bytes(), proxy=sidecar.proxy_url)
        case Way.UPGRADED:
            return channel_to(f"{HOST}:{APP_PORT}", proxy=sidecar.proxy_url)
        case Way.REVERSE:
            return channel_to(sidecar.listen[1])


def policy(port: int, pin: str) -> str:
    """Return this module's policy."""
    return POLICY.format(host=HOST, port=port, seconds=RESPONSE_SECONDS, pin=pin)


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    """The server's key, which the policy pins."""
    return authority.issue(HOST)


@pytest.fixture(scope="module")
def setting(authority: Authority, identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One sidecar and one server for all tests here."""
    with (
        Service(identity) as service,
        Sidecar(
            policy(service.port, identity.pin),
            tmp_path_factory.mktemp("grpc"),
            authority=authority,
            hosts={HOST: "127.0.0.1"},
        ) as sidecar,
    ):
        yield Setting(sidecar, service)
        assert '"level": "error"' not in sidecar.stderr


@pytest.fixture(params=Way, ids=lambda way: way.name.lower())
def way(request: pytest.FixtureRequest) -> Way:
    """Each way."""
    found: Way = request.param
    return found


@pytest.fixture
def channel(setting: Setting, way: Way) -> Iterator[grpc.Channel]:
    """A channel, in each way."""
    with setting.channel(way) as channel:
        yield channel


@pytest.fixture
def recorder(authority: Authority) -> Iterator[Callable[..., Http2Upstream]]:
    """Makes servers of gRPC that record what comes."""
    made: list[Http2Upstream] = []

    def make(answer: Callable[[Message], bytes | Reply | None] | None = None) -> Http2Upstream:
        made.append(fresh(lambda: Http2Upstream(authority, HOST, "localhost", answer=answer or _answer)))
        return made[-1]

    yield make
    for upstream in made:
        upstream.__exit__(None, None, None)


def _answer(message: Message) -> Reply:
    """Answer a unary call with what was sent."""
    return Reply([(":status", "200"), ("content-type", "application/grpc")], message.body, [("grpc-status", "0")])


class TestCalls:
    def test_unary(self, channel: grpc.Channel) -> None:
        assert unary_unary(channel, "Echo")(b"\x00hello\xff", timeout=DEADLINE) == b"\x00hello\xff"

    def test_of_an_empty_message(self, channel: grpc.Channel) -> None:
        assert unary_unary(channel, "Echo")(b"", timeout=DEADLINE) == b""

    def test_server_streaming(self, channel: grpc.Channel) -> None:
        got = list(unary_stream(channel, "Count")(b"1000", timeout=DEADLINE))
        assert got == [b"%d" % number for number in range(1000)]

    def test_server_streaming_of_nothing(self, channel: grpc.Channel) -> None:
        """All of the response is a head: what gRPC calls Trailers-Only."""
        assert list(unary_stream(channel, "Count")(b"0", timeout=DEADLINE)) == []

    def test_client_streaming(self, channel: grpc.Channel) -> None:
        pieces = (b"x" * size for size in range(1000))
        assert stream_unary(channel, "Measure")(pieces, timeout=DEADLINE) == b"1000 499500"

    def test_client_streaming_of_nothing(self, channel: grpc.Channel) -> None:
        assert stream_unary(channel, "Measure")(iter(()), timeout=DEADLINE) == b"0 0"

    def test_two_way_streaming(self, channel: grpc.Channel) -> None:
        """Each message is sent only once the one before is back."""
        to_send: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = stream_stream(channel, "Chat")(iter(to_send.get, None), timeout=DEADLINE)
        for number in range(50):
            to_send.put(b"%d" % number)
            assert next(answers) == b"%d" % number
        to_send.put(None)
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK

    def test_large_messages(self, channel: grpc.Channel) -> None:
        message = os.urandom(8 * 1024 * 1024)
        assert unary_unary(channel, "Echo")(message, timeout=DEADLINE) == message

    def test_many_large_messages_in_both_directions(self, channel: grpc.Channel) -> None:
        """Windows and buffers are much smaller than all of it."""
        messages = [os.urandom(1024 * 1024) for _ in range(8)]
        assert list(stream_stream(channel, "Chat")(iter(messages), timeout=DEADLINE)) == messages

    def test_more_calls_at_once_than_there_may_be_streams_while_one_stays_open(self, channel: grpc.Channel) -> None:
        to_send: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = stream_stream(channel, "Chat")(iter(to_send.get, None), timeout=DEADLINE)
        to_send.put(b"before")
        assert next(answers) == b"before"
        call = unary_unary(channel, "Echo")
        calls = {number: call.future(b"%d" % number, timeout=DEADLINE) for number in range(2 * MAX_STREAMS)}
        assert all(future.result() == b"%d" % number for number, future in calls.items())
        to_send.put(b"after")
        assert next(answers) == b"after"
        to_send.put(None)
        assert list(answers) == []

    def test_all_calls_share_few_connections(self, setting: Setting, channel: grpc.Channel) -> None:
        """The server knows them by the port that its peer has."""
        call = unary_unary(channel, "Peer")
        peers = {call(b"", timeout=DEADLINE) for _ in range(20)}
        assert len(peers) == 1


class TestVariables:
    """An app that knows its proxy from its environment, and nothing else."""

    APP = """\
import sys, grpc
target, is_secure, path = sys.argv[1], sys.argv[2] == "secure", sys.argv[3]
channel = grpc.secure_channel(target, grpc.ssl_channel_credentials()) if is_secure else grpc.insecure_channel(target)
sys.stdout.buffer.write(channel.unary_unary(path)(b"hello", timeout=10))
"""

    @pytest.mark.parametrize("kind", ["secure", "insecure"])
    def test_are_enough(self, setting: Setting, kind: str) -> None:
        variables = {
            "HTTP_PROXY": "http://127.0.0.1:1",
            "http_proxy": setting.sidecar.proxy_url,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(setting.sidecar.ca_file),
        }
        target = f"{HOST}:{setting.service.port if kind == 'secure' else APP_PORT}"
        done = subprocess.run(
            [sys.executable, "-c", self.APP, target, kind, path_of("Echo")],
            env=clean_environment(variables),
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.stdout == b"hello", done.stderr.decode()


class TestMetadata:
    PAIRS: tuple[tuple[str, str | bytes], ...] = (
        ("x-one", "1"),
        ("x-one", "2"),
        ("x-under_score", "a b;,c"),
        ("x-dot.ted", "%41"),
        ("x-empty", ""),
        ("x-data-bin", b"\x00\xff\r\n,"),
    )

    def test_goes_there_and_comes_back_behind_the_response(self, setting: Setting, channel: grpc.Channel) -> None:
        _, call = unary_unary(channel, "Echo").with_call(b"", timeout=DEADLINE, metadata=self.PAIRS)
        got = [pair for pair in setting.service.metadata[-1] if pair[0].startswith("x-")]
        assert got == list(self.PAIRS)
        assert call.trailing_metadata() == self.PAIRS

    def test_comes_back_behind_a_failure(self, channel: grpc.Channel) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            unary_unary(channel, "Fail")(b"no", timeout=DEADLINE, metadata=self.PAIRS)
        assert tuple((pair.key, pair.value) for pair in caught.value.trailing_metadata()) == self.PAIRS


class TestFailures:
    def test_the_server_refuses(self, channel: grpc.Channel) -> None:
        """All of the response is a head."""
        with pytest.raises(grpc.RpcError) as caught:
            unary_unary(channel, "Fail")("100 % wröng\n".encode(), timeout=DEADLINE)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "100 % wröng\n"

    def test_there_is_no_such_method(self, channel: grpc.Channel) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            unary_unary(channel, "Nothing")(b"", timeout=DEADLINE)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_the_server_fails_behind_some_messages(self, channel: grpc.Channel) -> None:
        got: list[bytes] = []
        with pytest.raises(grpc.RpcError) as caught:
            got.extend(unary_stream(channel, "CountAndFail")(b"3", timeout=DEADLINE))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert caught.value.details() == "no more of them"

    @pytest.mark.parametrize("count", [0, 3])
    def test_what_came_before_is_there(self, channel: grpc.Channel, count: int) -> None:
        answers = unary_stream(channel, "CountAndFail")(b"%d" % count, timeout=DEADLINE)
        assert list(itertools.islice(answers, count)) == [b"%d" % number for number in range(count)]
        with pytest.raises(grpc.RpcError, match="no more of them"):
            next(answers)

    def test_a_deadline(self, setting: Setting, channel: grpc.Channel) -> None:
        before = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            unary_unary(channel, "Hang")(b"", timeout=0.3)
        assert time.monotonic() - before < RESPONSE_SECONDS
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        setting.service.wait_for_end("Hang")

    def test_a_deadline_while_messages_come(self, setting: Setting, channel: grpc.Channel) -> None:
        setting.service.forget_ends()
        answers = unary_stream(channel, "CountSlowly")(b"0.05", timeout=0.4)
        got: list[bytes] = []
        with pytest.raises(grpc.RpcError) as caught:
            got.extend(answers)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        setting.service.wait_for_end("CountSlowly")

    def test_the_server_hears_of_a_cancelled_call_and_others_go_on(
        self, setting: Setting, channel: grpc.Channel
    ) -> None:
        setting.service.forget_ends()
        answers = unary_stream(channel, "CountSlowly")(b"0.02", timeout=DEADLINE)
        others = unary_stream(channel, "CountSlowly")(b"0.02", timeout=DEADLINE)
        assert (next(answers), next(others)) == (b"0", b"0")
        answers.cancel()
        setting.service.wait_for_end("CountSlowly")
        assert [next(others) for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
        others.cancel()

    def test_the_server_goes_away(self, authority: Authority, identity: Identity, way: Way, tmp_path: Path) -> None:
        with Service(identity) as service:
            text = policy(service.port, identity.pin)
            with (
                Sidecar(text, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
                through(sidecar, way, service.port) as channel,
            ):
                answers = unary_stream(channel, "CountSlowly")(b"0.02", timeout=DEADLINE)
                assert next(answers) == b"0"
                service.stop()
                with pytest.raises(grpc.RpcError) as caught:
                    list(answers)
                assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                with pytest.raises(grpc.RpcError) as caught:
                    unary_unary(channel, "Echo")(b"", timeout=DEADLINE)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


class TestTime:
    def test_a_stream_may_last_longer_than_a_response_may_take_to_begin(self, channel: grpc.Channel) -> None:
        answers = unary_stream(channel, "CountSlowly")(b"0.7", timeout=DEADLINE)
        assert [next(answers) for _ in range(4)] == [b"0", b"1", b"2", b"3"]
        answers.cancel()

    def test_and_so_may_one_on_which_the_app_is_still_to_say_something(self, channel: grpc.Channel) -> None:
        """The server's head comes with its first message only."""
        to_send: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = stream_stream(channel, "Chat")(iter(to_send.get, None), timeout=DEADLINE)
        time.sleep(RESPONSE_SECONDS + 0.7)
        for number in range(2):
            to_send.put(b"%d" % number)
            assert next(answers) == b"%d" % number
            time.sleep(RESPONSE_SECONDS + 0.2)
        to_send.put(None)
        assert list(answers) == []

    def test_a_server_that_does_not_begin_is_told_of(self, setting: Setting, channel: grpc.Channel) -> None:
        setting.service.forget_ends()
        with pytest.raises(grpc.RpcError) as caught:
            unary_unary(channel, "Hang")(b"", timeout=DEADLINE)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # 504
        assert "response" in (caught.value.details() or "")
        setting.service.wait_for_end("Hang")


class TestWhatLeaves:
    def test_is_pinned_tls_to_the_upgraded_port_and_lined_as_such(self, setting: Setting, way: Way) -> None:
        name = f"Of{way.name}"  # which the server does not know: it is the only one of its name
        with setting.channel(way) as channel, pytest.raises(grpc.RpcError, match="Method not found"):
            unary_unary(channel, name)(b"", timeout=DEADLINE)
        line = setting.sidecar.wait_for_decision(lambda each: each["path"] == path_of(name))
        action = "upgrade" if way is Way.UPGRADED else "inspect"
        assert (line["action"], line["tls"], line["pin"], line["status"]) == (action, "TLSv1.3", "match", 200)
        assert (line["method"], line["rule"]) == ("POST", "grpc")

    def test_has_the_fields_that_it_has_without_a_sidecar(
        self, authority: Authority, recorder: Callable[..., Http2Upstream], way: Way, tmp_path: Path
    ) -> None:
        upstream = recorder()
        pairs = (("x-under_score", "1"), ("x-data-bin", b"\x00"), ("authorization", "Bearer t"))
        with channel_to(f"localhost:{upstream.port}", roots=authority.pem) as channel:
            unary_unary(channel, "Echo")(b"hello", timeout=DEADLINE, metadata=pairs)
        text = policy(upstream.port, upstream.pin)
        with (
            Sidecar(text, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
            through(sidecar, way, upstream.port) as channel,
        ):
            unary_unary(channel, "Echo")(b"hello", timeout=DEADLINE, metadata=pairs)
        direct, sent = upstream.wait_for_messages(2)
        named = f"{HOST}:{upstream.port}"
        expected = [(name, named if name == ":authority" else value) for name, value in direct.headers]
        assert sorted(_pseudo(sent.headers)) == sorted(_pseudo(expected))
        assert _others(sent.headers) == _others(expected)
        assert sent.get("te") == "trailers"
        assert sent.body == direct.body
        assert sent.get("grpc-timeout") is not None


class TestDenials:
    @pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
    def test_a_wrong_pin_lets_nothing_out_and_the_client_shows_why(
        self, authority: Authority, recorder: Callable[..., Http2Upstream], way: Way, tmp_path: Path, is_right: bool
    ) -> None:
        upstream = recorder()
        text = policy(upstream.port, upstream.pin if is_right else NO_PIN)
        with (
            Sidecar(text, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
            through(sidecar, way, upstream.port) as channel,
        ):
            call = unary_unary(channel, "Echo")
            if is_right:
                assert call(b"secret", timeout=DEADLINE) == b"secret"
                return
            with pytest.raises(grpc.RpcError) as caught:
                call(b"secret", timeout=DEADLINE)
            line = sidecar.wait_for_decision(lambda each: each["path"] == path_of("Echo"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "pins grpc.example" in (caught.value.details() or "")
        assert (line["reason"], line["status"]) == ("pin_mismatch", 502)
        upstream.assert_no_application_bytes()

    def test_of_a_body_whose_fields_cannot_be_encrypted(
        self, authority: Authority, recorder: Callable[..., Http2Upstream], way: Way, tmp_path: Path
    ) -> None:
        """It is held, and refused once it is whole; the message has what a field could not hold as it is."""
        upstream = recorder()
        key = Receiver("pay").write_public(tmp_path)
        text = policy(upstream.port, upstream.pin) + (
            f"        request: [{{encrypt: ['$.ssn'], key: pay}}]\n"
            f"    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}\n"
        )
        with (
            Sidecar(text, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
            through(sidecar, way, upstream.port) as channel,
        ):
            with pytest.raises(grpc.RpcError) as caught:
                unary_unary(channel, "Echo")(b"secret", timeout=DEADLINE)
            line = sidecar.wait_for_decision(lambda each: each["path"] == path_of("Echo"))
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert caught.value.details() == f"{line['detail']} (id {line['id']})"
        assert (line["reason"], line["status"]) == ("body_not_json", 422)
        upstream.assert_no_application_bytes()

    def test_over_http_1_they_are_problem_details_as_ever_and_name_both(self, setting: Setting) -> None:
        """Whatever such an app makes of them: gRPC itself speaks HTTP/2 only."""
        with RawClient(setting.sidecar.address) as client:
            named = "127.0.0.1:1"  # where nobody listens
            fields = (("Content-Type", "application/grpc"),)
            client.send(request(f"http://{named}/", named, headers=fields))
            answer = client.read_response()
        assert answer.status == 502
        assert answer.headers.get("content-type") == "application/problem+json"
        problem = answer.json()
        assert answer.headers.get("grpc-status") == str(grpc.StatusCode.UNAVAILABLE.value[0])
        named = problem["instance"].removeprefix("urn:uuid:")
        assert answer.headers.get("grpc-message") == f"{problem['detail']} (id {named})"

    def test_others_on_the_connection_go_on(self, setting: Setting) -> None:
        with setting.channel(Way.REVERSE) as channel:
            to_send: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            answers = stream_stream(channel, "Chat")(iter(to_send.get, None), timeout=DEADLINE)
            to_send.put(b"before")
            assert next(answers) == b"before"
            metadata = tuple((f"x-{number}", "") for number in range(300))  # more than there may be
            with pytest.raises(grpc.RpcError) as caught:
                unary_unary(channel, "Echo")(b"", timeout=DEADLINE, metadata=metadata)
            assert "header fields" in (caught.value.details() or "")
            to_send.put(b"after")
            assert next(answers) == b"after"
            to_send.put(None)
            assert list(answers) == []


class TestPlain:
    """Where the policy lets plain text be it passes as it came: HTTP/2 with prior knowledge."""

    @pytest.mark.parametrize(
        ("text", "mode"),
        [
            ("mode: observe", "observe"),
            (f"rules: [{{name: r, hosts: [{HOST}], plain_http: allow}}]", "enforce"),
        ],
        ids=["observed", "allowed"],
    )
    def test_it_passes_as_it_came(self, tmp_path: Path, text: str, mode: str) -> None:
        with (
            Service(None) as service,
            Sidecar(text, tmp_path, hosts={HOST: "127.0.0.1"}) as sidecar,
            channel_to(f"{HOST}:{service.port}", proxy=sidecar.proxy_url) as channel,
        ):
            assert unary_unary(channel, "Echo")(b"hello", timeout=DEADLINE) == b"hello"
            assert list(unary_stream(channel, "Count")(b"3", timeout=DEADLINE)) == [b"0", b"1", b"2"]
            with pytest.raises(grpc.RpcError, match="no more"):
                unary_unary(channel, "Fail")(b"no more", timeout=DEADLINE)
            line = sidecar.wait_for_decision(lambda each: each["path"] == path_of("Count"))
        assert (line["action"], line["mode"], line["tls"]) == ("allow", mode, None)


def _pseudo(fields: HeaderList) -> HeaderList:
    return [field for field in fields if field[0].startswith(":")]


def _others(fields: HeaderList) -> HeaderList:
    """Return the fields without those that differ from call to call, or are said anew on each connection."""
    return [field for field in fields if not field[0].startswith(":") and field[0] not in ("grpc-timeout", "te")]
