"""Requests that share a connection share nothing else: not who is let in, not who was authenticated, not what breaks.

Proves ARCHITECTURE's rule 1 where one connection of an app, or of an upstream, carries the requests of many.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient
from tests.e2e.frames import (
    END_HEADERS,
    END_STREAM,
    PREFACE,
    RST_STREAM,
    Code,
    Peer,
    asked,
    headers,
    reset,
    settings,
)
from tests.e2e.frameserver import FrameServer, Got, frame_server
from tests.e2e.http2 import HeaderList, Http2Client, agree_on_http2, speak
from tests.e2e.listeners import listen
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.test_gate import hashed

HOST, OTHER = "far.example", "other.example"
TRAILERS: HeaderList = [("te", "trailers")]


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder, hosts = tmp_path_factory.mktemp("together"), dict.fromkeys((HOST, OTHER), "127.0.0.1")
    with Sidecar("defaults: {https: inspect}", folder, authority=authority, hosts=hosts) as running:
        yield running


@pytest.mark.parametrize("how", ["Negotiate YIIabc", "NTLM TlRM"])
@pytest.mark.parametrize("is_given_up", [True, False])
def test_who_authenticates_a_connection_has_one_alone(
    sidecar: Sidecar, authority: Authority, how: str, is_given_up: bool
) -> None:
    heads: list[bytes] = []
    came, may_answer = threading.Event(), threading.Event()

    def http1(accepted: Accepted) -> None:
        heads.append(accepted.read_head())
        came.set()
        may_answer.wait(10)
        with suppress(OSError):  # it was given up
            accepted.send(wire.response(200, b"his"))

    with frame_server(authority, HOST, lambda got: got.reply(b"all"), alpn=("h2", "http/1.1"), http1=http1) as server:
        app = speak(sidecar, server.authority)
        other = speak(sidecar, server.authority)

        def ask(client: Http2Client, path: str, more: HeaderList) -> int:
            return client.send(server.authority, path, method="GET", headers=more)

        assert app.read(ask(app, "/before", TRAILERS)).body == b"all"
        stream = ask(app, "/his", [*TRAILERS, ("authorization", how)])
        assert came.wait(10)
        if is_given_up:
            app.give_up(stream)
        assert other.read(ask(other, "/others", TRAILERS)).body == b"all"
        may_answer.set()
        if not is_given_up:
            assert app.read(stream).body == b"his"
        assert other.read(ask(other, "/afterwards", [])).body == b"all"
        assert b"GET /his " in heads[0]
        assert len(heads) == 1


def test_an_upstream_that_allows_no_stream_harms_no_request_to_another(sidecar: Sidecar, authority: Authority) -> None:
    with frame_server(authority, HOST, lambda _: None) as good, Unwilling(authority) as unwilling:
        app = Peer(RawClient(sidecar.address), PREFACE + settings())
        app.send(headers(1, asked(good.authority, path="/slow"), END_HEADERS | END_STREAM))
        good.wait_for(1)
        app.send(headers(3, asked(unwilling.authority, *TRAILERS, path="/no"), END_HEADERS | END_STREAM))
        line = sidecar.wait_for_decision(lambda line: line["path"] == "/no")
        assert (line["reason"], line["status"]) == ("upstream_failed", 502)
        assert "allows no more streams" in line["detail"]
        good.requests[0].reply(b"well")
        assert app.body(1) == b"well"


class Unwilling:
    """A server that says with its handshake's last word, in TLS 1.2, that it takes no stream at all."""

    def __init__(self, authority: Authority) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue(OTHER).load_into(self._context)
        self._context.maximum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["h2"])
        self._listener = listen()
        self.authority = f"{OTHER}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Unwilling:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed: the test is over
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(inside, outside, server_side=True)
        with suppress(OSError), connection:
            while True:
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                if out := outside.read():
                    connection.sendall(out)
                inside.write(connection.recv(65536) or os.urandom(1))
            tls.write(settings((3, 0)))
            connection.sendall(outside.read())
            while connection.recv(65536):
                pass


@pytest.mark.parametrize("spoke", [True, False], ids=["HTTP/2 was spoken", "it was not yet"])
def test_who_may_no_longer_use_the_proxy_begins_no_stream_in_an_old_connect(
    authority: Authority, tmp_path: Path, spoke: bool
) -> None:
    hashes = {name: hashed(f"{name}-password-long-enough") for name in ("ann", "bob")}

    def policy(name: str) -> str:
        return f"""
            clients: {{users: [{{name: {name}, password_hash: "{hashes[name]}"}}]}}
            defaults: {{https: inspect}}
        """

    def begin(sidecar: Sidecar, server: FrameServer) -> RawClient | None:
        """Return a CONNECT of ann's; None if she may have none."""
        client = RawClient(sidecar.address)
        shown = base64.b64encode(b"ann:ann-password-long-enough").decode()
        name = server.authority
        text = f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\nProxy-Authorization: Basic {shown}\r\n\r\n"
        client.send(text.encode())
        return client if client.read_response(method="CONNECT").status == 200 else None

    def last_of_the_old(sidecar: Sidecar, server: FrameServer) -> RawClient:
        """Return the last CONNECT before the policy was changed: one may not stay silent for long."""
        changing = threading.Thread(target=reload, args=(sidecar, policy("bob")))
        changing.start()
        found = None
        while (client := begin(sidecar, server)) is not None:
            found = client
        assert found is not None
        return found

    def answer(got: Got) -> None:
        if got.path != "/open":
            got.reply(b"ok")

    with (
        Sidecar(policy("ann"), tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
        frame_server(authority, HOST, answer) as server,
    ):
        ca_file, number = sidecar.ca_file, 1  # a command makes it, which takes long
        if spoke:
            client = begin(sidecar, server)
            assert client is not None
            agree_on_http2(client, HOST, ca_file)
            app = Peer(client, PREFACE + settings())
            app.send(headers(1, asked(server.authority, path="/open"), END_HEADERS | END_STREAM))
            server.wait_for(1)
            number = 3
            reload(sidecar, policy("bob"))
        else:
            client = last_of_the_old(sidecar, server)
            agree_on_http2(client, HOST, ca_file)
            app = Peer(client, PREFACE + settings())
        app.send(headers(number, asked(server.authority, path="/new"), END_HEADERS | END_STREAM))
        while (found := app.read()) is not None and found.stream != number:
            pass
        assert found is not None
        assert (found.kind, found.code) == (RST_STREAM, Code.REFUSED_STREAM)
        if spoke:  # what is under way is not harmed
            server.requests[0].reply(b"well")
            assert app.body(1) == b"well"
        app.send(reset(number, Code.CANCEL))
        assert "/new" not in [got.path for got in server.requests]
