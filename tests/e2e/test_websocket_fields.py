"""Marked fields of WebSocket messages: sealed on their way to the server, opened on their way to the app.

Proves ARCHITECTURE's rule 1 (fail closed), rule 3 (nothing leaves early) and rule 5 (touch only what is marked) for
messages, with clients, servers and a framing that are not the product's.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

from proxy.core.jose.keys import Alg
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient, send_until_blocked
from tests.e2e.mirrors import NAME, mirror, rule_of_app
from tests.e2e.receiver import Marked, Pieces, Receiver, assert_only_marked_changed, plain
from tests.e2e.scripted import Upstream, scripted_upstream
from tests.e2e.sidecar import Decision, Sidecar, clean_environment, overcoat_command
from tests.e2e.websockets import CLOSE, DEADLINE, PING, PONG, TEXT, Server, client, for_two_threads, frame

BOTH, SEALS, OPENS, FREE, SEEN, WHEN = (
    f"{name}.example" for name in ("both", "seals", "opens", "free", "seen", "when")
)
HOSTS = (BOTH, SEALS, OPENS, FREE, SEEN, WHEN)
LIMIT = 65536

POLICY = """
    limits: {{held_body: 65536}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      app: {{alg: A256KW, primary: {{kid: app, file: {app}}}}}
    rules:
      - name: both
        hosts: [both.example]
        request: [{{encrypt: ["$..ssn", "$.card.number"], key: pay}}]
        response: [{{decrypt: ["$..secret"], key: app}}]
      - {{name: seals, hosts: [seals.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: opens, hosts: [opens.example], response: [{{decrypt: ["$..secret"], key: app}}]}}
      - {{name: free, hosts: [free.example], https: inspect}}
      - {{name: seen, hosts: [seen.example], mode: observe, request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - name: when
        hosts: [when.example]
        request: [{{encrypt: ["$..ssn"], key: pay, when: {{paths: [/sealed/**]}}}}]
"""
PIECES: Pieces = (
    b' {"id":1.0, "ssn" :',
    Marked(b'"078-05-1120"', "$.ssn"),
    b', "z":"\xe2\x82\xac\\u0041", "card":{"number":\t',
    Marked(b"4111", "$.card.number"),
    b'}, "dup":1,"dup":2}\n',
)


@pytest.fixture(scope="module")
def receivers() -> dict[str, Receiver]:
    """Who opens what the sidecar seals, and who seals what it opens."""
    return {"pay": Receiver("pay"), "app": Receiver("app", Alg.A256KW)}


@pytest.fixture(scope="module")
def sidecar(
    authority: Authority, receivers: dict[str, Receiver], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("messages")
    files = {"pay": receivers["pay"].write_public(folder), "app": receivers["app"].write_private(folder)}
    with Sidecar(POLICY.format(**files), folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as it:
        yield it


@pytest.fixture
def sealed(receivers: dict[str, Receiver]) -> str:
    """A message of a server, with a value that is opened on its way."""
    token = receivers["app"].seal(b'{"a" : 1}', BOTH, "$.x.secret").decode()
    return f'{{"x":{{"secret":{token}}},"y":"\u20ac"}}'


OPENED = '{"x":{"secret":{"a" : 1}},"y":"\u20ac"}'


def line_of(sidecar: Sidecar, port: int) -> Decision:
    return sidecar.wait_for_decision(lambda line: (line["destination"] or "").endswith(f":{port}"))


def deflates(**more: Any) -> dict[str, Any]:
    return {"extensions": [ClientPerMessageDeflateFactory(**more)]}


class TestWhatArrives:
    @pytest.mark.parametrize("over_tls", [True, False], ids=["wss", "ws"])
    @pytest.mark.parametrize(
        ("asked", "taken"),
        [
            (None, None),
            ({}, {}),
            ({"client_max_window_bits": True}, {"client_max_window_bits": 9, "server_max_window_bits": 9}),
            ({"server_no_context_takeover": True}, {"client_no_context_takeover": True}),
            ({"client_max_window_bits": 10, "server_max_window_bits": 11}, {"server_no_context_takeover": True}),
            ({}, None),
        ],
        ids=["plain", "deflate", "9 bits", "no contexts", "other bits", "not taken"],
    )
    def test_fields_are_sealed_and_opened_and_all_other_bytes_are_the_same(
        self,
        sidecar: Sidecar,
        authority: Authority,
        receivers: dict[str, Receiver],
        sealed: str,
        over_tls: bool,
        asked: dict[str, Any] | None,
        taken: dict[str, Any] | None,
    ) -> None:
        factory = None if taken is None else ServerPerMessageDeflateFactory(**taken)
        with Server(authority, *HOSTS, answer=lambda _: sealed, deflate=factory) as server:
            more = {} if asked is None else deflates(**asked)
            with client(sidecar, BOTH, server.port, over_tls=over_tls, **more) as app:
                seen = server.first()
                for _ in range(4):  # the later ones refer to the earlier, where contexts are kept
                    app.send(plain(PIECES).decode())
                    assert app.recv(timeout=DEADLINE) == OPENED
                    got = seen.next()
                    assert isinstance(got, str)
                    assert_only_marked_changed(got.encode(), PIECES, receivers["pay"], BOTH)
                assert bool(app.protocol.extensions) is (asked is not None and taken is not None)
            assert seen.wait_for_end() == (1000, "")
        line = line_of(sidecar, server.port)
        assert (line["status"], line["outcome"], line["action"]) == (101, "ok", "inspect" if over_tls else "upgrade")
        assert (line["encrypted"], line["decrypted"], line["fields"]) == (8, 4, {"request[0]": 8, "response[0]": 4})

    def test_keys_open_opens_a_value_at_its_place_in_its_message(
        self, sidecar: Sidecar, authority: Authority, receivers: dict[str, Receiver], tmp_path: Path
    ) -> None:
        key = receivers["pay"].write_private(tmp_path)
        message = '{"arguments":[{"ssn":"078"}]}\x1e{"ssn":1}\x1e'  # each text of it is a message of its own (SignalR)
        with Server(authority, *HOSTS) as server, client(sidecar, BOTH, server.port) as app:
            app.send(message)
            got = server.first().next()
        assert isinstance(got, str)
        first, second, _ = got.split("\x1e")

        def opened(token: str, path: str, status: int = 0) -> str:
            command = [
                *overcoat_command(),
                "keys",
                "open",
                "--key",
                key,
                "--kid",
                "pay",
                "--host",
                BOTH,
                "--path",
                path,
            ]
            done = subprocess.run(
                command, input=token, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
            )
            assert done.returncode == status, done.stderr
            return done.stdout.strip() if status == 0 else done.stderr

        token = json.loads(first)["arguments"][0]["ssn"]
        assert opened(token, "$.arguments[*].ssn") == '"078"'
        assert opened(json.loads(second)["ssn"], "$.ssn") == "1"
        assert "$.arguments[*].ssn" in opened(token, "$.ssn", status=1)

    @pytest.mark.parametrize("more", [{}, deflates()], ids=["plain", "deflate"])
    def test_fragments_are_put_together_in_both_directions(
        self, sidecar: Sidecar, authority: Authority, receivers: dict[str, Receiver], sealed: str, more: dict[str, Any]
    ) -> None:
        def greet(connection: ServerConnection) -> None:
            connection.send(sealed[at : at + 3] for at in range(0, len(sealed), 3))

        factory = ServerPerMessageDeflateFactory()
        with (
            Server(authority, *HOSTS, greet=greet, deflate=factory) as server,
            client(sidecar, BOTH, server.port, **more) as app,
        ):
            assert app.recv(timeout=DEADLINE) == OPENED
            text = plain(PIECES).decode()
            app.send(text[at : at + 2] for at in range(0, len(text), 2))
            got = server.first().next()
            assert isinstance(got, str)
            assert_only_marked_changed(got.encode(), PIECES, receivers["pay"], BOTH)

    @pytest.mark.parametrize("more", [{}, deflates()], ids=["plain", "deflate"])
    def test_messages_without_fields_arrive_byte_for_byte(
        self, sidecar: Sidecar, authority: Authority, more: dict[str, Any]
    ) -> None:
        messages: list[str | bytes] = [
            '{ "a" : 1e400,\n"a":"\\u0041" }',
            "2",
            "",
            " [] ",
            b'{"in":"binary"}',
            b"",
            json.dumps(["\u20ac" * 9000]),
        ]
        with Server(
            authority, *HOSTS, answer=lambda message: message, deflate=ServerPerMessageDeflateFactory()
        ) as server:
            with client(sidecar, BOTH, server.port, **more) as app:
                for message in messages:
                    app.send(message)
                    assert app.recv(timeout=DEADLINE) == message
            seen = server.first()
            assert [seen.next() for _ in messages] == messages
        assert "fields" not in line_of(sidecar, server.port)

    def test_json_in_binary_messages_and_several_records_in_one_are_sealed(
        self, sidecar: Sidecar, authority: Authority, receivers: dict[str, Receiver]
    ) -> None:
        """The latter are of SignalR's JSON protocol."""
        with Server(authority, *HOSTS) as server, client(sidecar, SEALS, server.port) as app:
            seen = server.first()
            app.send(b'{"ssn":1}')
            got = seen.next()
            assert isinstance(got, bytes)
            assert_only_marked_changed(got, (b'{"ssn":', Marked(b"1", "$.ssn"), b"}"), receivers["pay"], SEALS)
            app.send('{"protocol":"json","version":1}\x1e')
            assert seen.next() == '{"protocol":"json","version":1}\x1e'
            app.send('{"type":6}\x1e{"arguments":[{"ssn":2}]}\x1e')
            text = seen.next()
            assert isinstance(text, str)
            pieces = (b'{"type":6}\x1e{"arguments":[{"ssn":', Marked(b"2", "$.arguments[*].ssn"), b"}]}\x1e")
            assert_only_marked_changed(text.encode(), pieces, receivers["pay"], SEALS)

    def test_a_subscription_of_graphql_is_sealed_in_its_variables(
        self, sidecar: Sidecar, authority: Authority, receivers: dict[str, Receiver]
    ) -> None:
        pieces: Pieces = (
            b'{"id":"1","type":"subscribe","payload":{"query":"subscription($s:String!){a(s:$s)}","variables":{"ssn":',
            Marked(b'"078"', "$.payload.variables.ssn"),
            b"}}}",
        )
        protocol = "graphql-transport-ws"
        with (
            Server(authority, *HOSTS, subprotocols=[protocol]) as server,
            client(sidecar, SEALS, server.port, subprotocols=[protocol]) as app,
        ):
            assert app.subprotocol == protocol
            app.send('{"type":"connection_init"}')
            app.send(plain(pieces).decode())
            seen = server.first()
            assert seen.next() == '{"type":"connection_init"}'
            got = seen.next()
            assert isinstance(got, str)
            assert_only_marked_changed(got.encode(), pieces, receivers["pay"], SEALS)

    def test_what_a_server_says_that_is_no_json_passes(self, sidecar: Sidecar, authority: Authority) -> None:
        with (
            Server(authority, *HOSTS, answer=lambda message: message) as server,
            client(sidecar, OPENS, server.port) as app,
        ):
            for message in ("hello", '42["a",1]', b"\x00\x01", "\u20ac" * 10):
                app.send(message)
                assert app.recv(timeout=DEADLINE) == message

    def test_a_direction_without_entries_is_not_held_to_any_length(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        large = b"x" * (20 * LIMIT)
        with (
            Server(authority, *HOSTS, greet=lambda connection: connection.send(large)) as server,
            client(sidecar, SEALS, server.port, **deflates()) as app,
        ):
            assert app.recv(timeout=DEADLINE) == large

    def test_pings_are_answered_by_the_other_end(self, sidecar: Sidecar, authority: Authority) -> None:
        with Server(authority, *HOSTS) as server, client(sidecar, BOTH, server.port) as app:
            assert app.ping(b"are you there").wait(DEADLINE)

    @pytest.mark.parametrize(("path", "count"), [("/sealed/chat", 1), ("/open/chat", 0)])
    def test_the_request_that_asked_for_it_says_which_entries_count(
        self, sidecar: Sidecar, authority: Authority, path: str, count: int
    ) -> None:
        with Server(authority, *HOSTS) as server:
            with client(sidecar, WHEN, server.port, path) as app:
                app.send('{"ssn":1}')
                got = server.first().next()
            assert (got == '{"ssn":1}') is (count == 0)
        assert line_of(sidecar, server.port)["encrypted"] == count


class TestOtherListeners:
    @pytest.mark.parametrize("kind", ["reverse", "socks5"])
    def test_messages_are_sealed_there_too(
        self, authority: Authority, receivers: dict[str, Receiver], tmp_path_factory: pytest.TempPathFactory, kind: str
    ) -> None:
        folder = tmp_path_factory.mktemp(kind)
        files = {"pay": receivers["pay"].write_public(folder), "app": receivers["app"].write_private(folder)}
        with Server(authority, *HOSTS) as server:
            to = (
                f"reverse://127.0.0.1:0?to=https://{BOTH}:{server.port}"
                if kind == "reverse"
                else "socks5://127.0.0.1:0"
            )
            policy = f"    listen: ['{to}']\n" + POLICY.format(**files)
            with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
                connection = socket.create_connection(sidecar.address, DEADLINE)
                if kind == "socks5":
                    name = BOTH.encode()
                    asked = b"\x05\x01\x00\x03%c%b%b" % (len(name), name, server.port.to_bytes(2))
                    connection.sendall(b"\x05\x01\x00" + asked)
                    assert connection.recv(12, socket.MSG_WAITALL)[:4] == b"\x05\x00\x05\x00"
                place = f"{BOTH}:{server.port}" if kind == "socks5" else f"127.0.0.1:{sidecar.address[1]}"
                with connect(f"ws://{place}/chat", sock=connection, proxy=None, compression=None) as app:
                    app.send(plain(PIECES).decode())
                    got = server.first().next()
                assert isinstance(got, str)
                assert_only_marked_changed(got.encode(), PIECES, receivers["pay"], BOTH)


class TestBothEnds:
    """An app with a sidecar, and a server with a mirror, whose work is the other way round."""

    @pytest.mark.parametrize("more", [{}, deflates()], ids=["plain", "deflate"])
    def test_app_and_server_see_what_they_would_without_any(
        self, authority: Authority, receivers: dict[str, Receiver], tmp_path: Path, more: dict[str, Any]
    ) -> None:
        said, answer = '{ "card":{"number" : "4111"},"n":1.0, "a":{"secret":null} }', '{"token" : "t", "z":[ ]}'
        pay, app_key = receivers["pay"], receivers["app"]
        folder = tmp_path / "app"
        folder.mkdir()
        with (
            Server(None, answer=lambda _: answer, deflate=ServerPerMessageDeflateFactory()) as server,
            mirror(tmp_path / "server", server.port, authority, pay, app_key) as beside,
            Sidecar(rule_of_app(folder, pay, app_key), folder, authority=authority, hosts={NAME: "127.0.0.1"}) as front,
        ):
            with client(front, NAME, beside.address[1], over_tls=False, **more) as app:
                for _ in range(3):
                    app.send(said)
                    assert app.recv(timeout=DEADLINE) == answer
                    assert server.seen.queue[0].next() == said
                assert bool(app.protocol.extensions) is bool(more)
            lines = [sidecar.wait_for_decision(lambda line: line["path"] == "/chat") for sidecar in (front, beside)]
        assert [(line["encrypted"], line["decrypted"]) for line in lines] == [(6, 3), (3, 6)]

    @pytest.mark.parametrize(
        ("host_of_token", "answer", "reason"),
        [("other.example", "[]", "request_not_opened"), (NAME, "no JSON", "response_not_sealed")],
    )
    def test_what_does_not_open_or_cannot_be_sealed_ends_it(
        self,
        authority: Authority,
        receivers: dict[str, Receiver],
        tmp_path: Path,
        host_of_token: str,
        answer: str,
        reason: str,
    ) -> None:
        token = receivers["pay"].seal(b'"4111"', host_of_token, "$.card.number").decode()
        tls = for_two_threads(ssl.create_default_context(cadata=authority.pem.decode()))
        with (
            Server(None, answer=lambda _: answer) as server,
            mirror(tmp_path / "server", server.port, authority, receivers["pay"], receivers["app"]) as beside,
        ):
            url, connection = f"wss://{NAME}/chat", socket.create_connection(beside.address, DEADLINE)
            with connect(url, sock=connection, ssl=tls, server_hostname=NAME, proxy=None, compression=None) as app:
                app.send(f'{{"card":{{"number":{token}}}}}')
                with pytest.raises(ConnectionClosed) as closed:
                    app.recv(timeout=DEADLINE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.reason.startswith(f"overcoat: {reason}: ")
            line = beside.wait_for_decision(lambda line: line["path"] == "/chat")
            assert line["reason"] == reason
            assert list(server.first().messages.queue) == (
                [] if host_of_token != NAME else ['{"card":{"number":"4111"}}']
            )


class TestDenied:
    """Each has one cause; what came before it, and what has none, passes."""

    @pytest.mark.parametrize(
        ("message", "code", "reason"),
        [
            ("hello", 1008, "body_not_json"),
            ('42["message",{"ssn":"078-05"}]', 1008, "body_not_json"),
            (b"\x82\xa3ssn\x01", 1008, "body_not_json"),
            ('{"ssn":"078-05","ssn":', 1008, "body_not_json"),
            ('{"x":"' + "a" * LIMIT + '"}', 1009, "body_too_large"),
        ],
    )
    @pytest.mark.parametrize("more", [{}, deflates()], ids=["plain", "deflate"])
    def test_what_cannot_be_protected_does_not_go_on_and_both_ends_hear_why(
        self, sidecar: Sidecar, authority: Authority, message: str | bytes, code: int, reason: str, more: dict[str, Any]
    ) -> None:
        failures = {"rule": "seals", "entry": "request[0]", "reason": reason}
        before = sidecar.metrics().value("overcoat_field_failures_total", **failures)
        with Server(authority, *HOSTS, deflate=ServerPerMessageDeflateFactory()) as server:
            with client(sidecar, SEALS, server.port, **more) as app:
                app.send('{"ssn":1}')
                seen = server.first()
                assert "ssn" in str(seen.next())
                with contextlib.suppress(ConnectionClosed):
                    app.send(message)
                with pytest.raises(ConnectionClosed) as closed:
                    app.recv(timeout=DEADLINE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
            assert closed.value.rcvd.reason.startswith(f"overcoat: {reason}: ")
            assert "078" not in closed.value.rcvd.reason
            assert seen.wait_for_end() == (1011, closed.value.rcvd.reason)
            assert seen.messages.empty()
        line = line_of(sidecar, server.port)
        assert (line["reason"], line["outcome"], line["status"], line["encrypted"]) == (reason, "denied", 101, 1)
        assert line["field_failures"] == {"request[0]": {reason: 1}}
        assert sidecar.metrics().value("overcoat_field_failures_total", **failures) == before + 1

    def test_a_token_that_does_not_open_does_not_reach_the_app(
        self, sidecar: Sidecar, authority: Authority, receivers: dict[str, Receiver]
    ) -> None:
        token = receivers["app"].seal(b"1", "other.example", "$.secret").decode()
        foreign = f'{{"secret":{token}}}'
        with Server(authority, *HOSTS, greet=lambda connection: connection.send(foreign)) as server:
            with client(sidecar, OPENS, server.port) as app, pytest.raises(ConnectionClosed) as closed:
                app.recv(timeout=DEADLINE)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason.split(": ")[1]) == (1011, "decryption_failed")
            end = server.first().wait_for_end()
            assert end is not None
            assert end[0] == 1008
        line = line_of(sidecar, server.port)
        assert (line["reason"], line["field_failures"]) == (
            "decryption_failed",
            {"response[0]": {"decryption_failed": 1}},
        )

    @pytest.mark.parametrize(
        ("offered", "kept"),
        [
            ("permessage-deflate; client_max_window_bits, x-unknown", "permessage-deflate; client_max_window_bits"),
            ("x-unknown; a=1", None),
            ("permessage-deflate; unknown", None),
        ],
    )
    def test_extensions_that_nobody_knows_are_not_offered(
        self, sidecar: Sidecar, authority: Authority, offered: str, kept: str | None
    ) -> None:
        with (
            Server(authority, *HOSTS) as server,
            client(sidecar, BOTH, server.port, additional_headers={"Sec-WebSocket-Extensions": offered}),
        ):
            assert server.first().offered == ([] if kept is None else [kept])

    def test_where_nothing_is_looked_at_they_are(self, sidecar: Sidecar, authority: Authority) -> None:
        offer = {"Sec-WebSocket-Extensions": "x-unknown; a=1"}
        for host, issuer in ((FREE, authority), (SEEN, None)):
            with (
                Server(issuer, *HOSTS) as server,
                client(sidecar, host, server.port, over_tls=issuer is not None, additional_headers=offer),
            ):
                assert server.first().offered == ["x-unknown; a=1"]


class TestObserving:
    def test_messages_pass_as_they_came_and_are_counted(self, sidecar: Sidecar) -> None:
        with Server(None, deflate=ServerPerMessageDeflateFactory()) as server:
            with client(sidecar, SEEN, server.port, over_tls=False, **deflates()) as app:
                seen = server.first()
                for message in ('{"ssn":1,"a":{"ssn":2}}', "hello", '{"ssn":3}'):
                    app.send(message)
                    assert seen.next() == message
            assert seen.wait_for_end() == (1000, "")
        line = line_of(sidecar, server.port)
        assert (line["encrypted"], line["would_encrypt"], line["would_fields"]) == (0, 3, {"request[0]": 3})
        assert (line["reason"], line["would_deny"], line["outcome"]) == ("body_not_json", True, "observed")


UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


def port_of(far: Upstream) -> int:
    return int(far.authority.rpartition(":")[2])


class Ends:
    """An app and a server that send and see every byte."""

    def __init__(self, app: RawClient, far: Upstream, server: Accepted) -> None:
        self.app = app
        self.port = port_of(far)
        self.server = server

    def unmasked(self) -> tuple[int, bytes]:
        """Return the first byte and the payload of the next frame at the server."""
        first, size = self.server.read_exactly(2)
        size &= 0x7F
        if size == 126:
            size = int.from_bytes(self.server.read_exactly(2))
        mask, payload = self.server.read_exactly(4), self.server.read_exactly(size)
        return first, bytes(each ^ mask[at % 4] for at, each in enumerate(payload))

    def closing(self) -> tuple[int, str]:
        """Return the status and the reason of the close frame that the app gets, and see that nothing follows."""
        data = self.app.read_to_end()
        assert (data[0], data[1]) == (CLOSE, len(data) - 2)
        return int.from_bytes(data[2:4]), data[4:].decode()


@contextlib.contextmanager
def raw(sidecar: Sidecar, authority: Authority, host: str = BOTH, *, deflate: bool = False) -> Iterator[Ends]:
    """Open a WebSocket whose ends are written byte for byte."""
    offer = DEFLATE if deflate else ""
    with scripted_upstream(host, authority) as far, RawClient(sidecar.address) as app:
        app.send(far.request("/chat", UPGRADE + offer))
        with far.accept() as server:
            server.read_head()
            answer = SWITCH + offer.encode() + b"\r\n"
            server.send(answer)
            assert app.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101")
            yield Ends(app, far, server)


class TestAttacks:
    def test_frames_may_be_cut_anywhere(
        self, sidecar: Sidecar, authority: Authority, receivers: dict[str, Receiver]
    ) -> None:
        message = plain(PIECES)
        data = frame(0x01, message[:10]) + frame(PING, b"p") + frame(0x80, message[10:])
        with raw(sidecar, authority) as ends:
            for at in range(len(data)):
                ends.app.send(data[at : at + 1])
            assert ends.unmasked() == (PING, b"p")
            first, payload = ends.unmasked()
            assert first == TEXT
            assert_only_marked_changed(payload, PIECES, receivers["pay"], BOTH)
            ends.server.send(frame(PONG, b"p", mask=None))
            assert ends.app.read_exactly(3) == frame(PONG, b"p", mask=None)

    def test_masks_are_fresh(self, sidecar: Sidecar, authority: Authority) -> None:
        with raw(sidecar, authority) as ends:
            ends.app.send(frame(TEXT, b"[]", mask=bytes(4)) * 8)
            masks = {ends.server.read_exactly(8)[2:6] for _ in range(8)}
        assert len(masks) == 8
        assert bytes(4) not in masks

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            pytest.param(frame(TEXT, b"[]", mask=None), 1002, id="not masked"),
            pytest.param(frame(0xC1, b"[]"), 1002, id="a reserved bit"),
            pytest.param(frame(0x83), 1002, id="a reserved opcode"),
            pytest.param(frame(0x80, b"[]"), 1002, id="a fragment of nothing"),
            pytest.param(frame(PING, b"a" * 126), 1002, id="a ping that is too long"),
            pytest.param(frame(0x09, b"a"), 1002, id="a fragment of a ping"),
            pytest.param(frame(TEXT, b"[]", length=b"\xfe\x00\x02"), 1002, id="a length too long"),
            pytest.param(frame(TEXT, b'"\xed\xa0\x80"'), 1007, id="no UTF-8"),
            pytest.param(frame(CLOSE, b"\x03"), 1002, id="a close of one byte"),
            pytest.param(frame(CLOSE, b"\x03\xed"), 1002, id="a close with 1005"),
            pytest.param(frame(TEXT, b"", length=b"\xff" + (1 << 62).to_bytes(8)), 1009, id="four exabytes"),
            pytest.param(frame(0x01, b"x" * LIMIT) + frame(0x00, b"x"), 1009, id="fragments that are too long"),
        ],
    )
    def test_what_breaks_the_protocol_ends_it_for_both(
        self, sidecar: Sidecar, authority: Authority, data: bytes, code: int
    ) -> None:
        with raw(sidecar, authority) as ends:
            ends.app.send(frame(TEXT, b"[1]") + data)
            assert ends.unmasked() == (TEXT, b"[1]")
            assert ends.closing()[0] == code
            first, payload = ends.unmasked()
            assert (first, int.from_bytes(payload[:2])) == (CLOSE, 1011)
            assert ends.server.read_to_end() == b""
            line = line_of(sidecar, ends.port)
        assert line["reason"] == ("body_too_large" if code == 1009 else "bad_request")

    @pytest.mark.parametrize(
        ("data", "code"),
        [(frame(TEXT, b"[]"), 1002), (frame(TEXT, b"\xff", mask=None), 1007), (frame(0xC2, b"", mask=None), 1002)],
        ids=["masked", "no UTF-8", "a reserved bit"],
    )
    def test_a_server_is_held_to_it_as_well(
        self, sidecar: Sidecar, authority: Authority, data: bytes, code: int
    ) -> None:
        with raw(sidecar, authority) as ends:
            ends.server.send(data)
            assert ends.closing()[0] == 1011
            first, payload = ends.unmasked()
            assert (first, int.from_bytes(payload[:2])) == (CLOSE, code)
            assert line_of(sidecar, ends.port)["reason"] == "upstream_cut"

    @pytest.mark.parametrize("parts", [1, 50])
    def test_a_bomb_is_not_unpacked(self, sidecar: Sidecar, authority: Authority, parts: int) -> None:
        context = zlib.compressobj(9, wbits=-15)
        bomb = context.compress(b" " * 50_000_000) + context.flush(zlib.Z_SYNC_FLUSH)
        size = len(bomb) // parts + 1
        pieces = [bomb[at : at + size] for at in range(0, len(bomb), size)]
        before = sidecar.resident_bytes(peak=True)
        with raw(sidecar, authority, deflate=True) as ends:
            for at, piece in enumerate(pieces):
                last = 0x80 if at == len(pieces) - 1 else 0
                with contextlib.suppress(OSError):
                    ends.app.send(frame(last | (0x41 if at == 0 else 0), piece))
            assert ends.closing()[0] == 1009
            assert ends.unmasked()[0] == CLOSE
        assert sidecar.resident_bytes(peak=True) - before < 20_000_000

    def test_fragments_without_an_end_take_no_memory_and_stop_nobody(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        before = sidecar.resident_bytes()
        with raw(sidecar, authority) as ends:
            ends.app.send(frame(0x01))
            for _ in range(200):
                ends.app.send(frame(0x00) * 1000)
            with raw(sidecar, authority) as other:
                other.app.send(frame(TEXT, b"[]"))
                assert other.unmasked() == (TEXT, b"[]")
            ends.app.send(frame(0x80, b"[2]"))
            assert ends.unmasked() == (TEXT, b"[2]")
        assert sidecar.resident_bytes() - before < 20_000_000

    def test_a_server_that_reads_nothing_stops_the_app_and_not_the_memory(
        self, sidecar: Sidecar, authority: Authority
    ) -> None:
        message = frame(TEXT, b'{"ssn":1,"x":"%s"}' % (b"x" * 4000))
        before = sidecar.resident_bytes(peak=True)
        with raw(sidecar, authority) as ends:
            everything = message * 6000
            sent = send_until_blocked(ends.app._socket, everything)
            assert sent < len(everything)
            assert sidecar.resident_bytes(peak=True) - before < 30_000_000
            for _ in range(sent // len(message)):  # and it goes on where it was
                first, size = ends.server.read_exactly(2)
                assert (first, size) == (TEXT, 0x80 | 126)
                ends.server.read_exactly(2 + 4 + int.from_bytes(ends.server.read_ahead(2)))

    @pytest.mark.parametrize("host", [BOTH, FREE])
    def test_what_a_slow_server_has_not_taken_yet_is_not_lost_when_the_app_is_gone(
        self, sidecar: Sidecar, authority: Authority, host: str
    ) -> None:
        with raw(sidecar, authority, host) as ends:
            message = frame(0x82, b"[" + b" " * 60_000 + b"]")
            sent = send_until_blocked(ends.app._socket, message * 400)

            def end() -> None:
                ends.app.send(message[sent % len(message) :])
                ends.app.finish()

            rest = threading.Thread(target=end)
            rest.start()
            size = 0
            while data := ends.server._socket.recv(65536):
                size += len(data)
                time.sleep(0.01)  # slower than all before it, whose buffers stay full
            rest.join()
            assert size == (sent // len(message) + 1) * len(message)

    def test_an_answer_that_was_not_offered_is_refused(self, sidecar: Sidecar, authority: Authority) -> None:
        for host, offer, answer in (
            (BOTH, "", DEFLATE),
            (OPENS, DEFLATE, "Sec-WebSocket-Extensions: x-unknown\r\n"),
            (SEALS, DEFLATE, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=10\r\n"),
        ):
            with scripted_upstream(host, authority) as far, RawClient(sidecar.address) as app:
                app.send(far.request("/chat", UPGRADE + offer))
                with far.accept() as server:
                    server.read_head()
                    server.send(SWITCH + answer.encode() + b"\r\n" + frame(TEXT, b"[]", mask=None))
                    got = app.read_response()
                    assert (got.status, got.json()["reason"]) == (502, "upstream_failed")
                    assert server.read_to_end() == b""
            assert line_of(sidecar, port_of(far))["status"] == 502

    def test_a_close_and_an_end_at_once_arrive(self, sidecar: Sidecar, authority: Authority) -> None:
        """What a slow server has not taken yet is not lost when the app is gone."""
        with raw(sidecar, authority) as ends:
            ends.app.send(frame(TEXT, b"[1]") * 200 + frame(CLOSE, b"\x03\xe8bye"))
            ends.app.finish()
            for _ in range(200):
                assert ends.unmasked() == (TEXT, b"[1]")
            assert ends.unmasked() == (CLOSE, b"\x03\xe8bye")
            assert ends.server.read_to_end() == b""
            assert line_of(sidecar, ends.port)["outcome"] == "ok"
