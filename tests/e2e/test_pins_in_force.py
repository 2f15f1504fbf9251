"""The pins in force decide, whatever was before them: a session of TLS that could be resumed, a connection that lies
idle, an app that stays connected, a policy that changes while everything is busy.

Proves ARCHITECTURE's rules 3 (nothing leaves early) and 8 (never weaker than without it) across connections and
reloads.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from h2.exceptions import ProtocolError

from tests.e2e import wire
from tests.e2e.certificates import Authority, Identity
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client, Http2Upstream, Message
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

HOST = "api.pay.example"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def pinning(*identities: Identity) -> str:
    pins = ", ".join(f'"{each.pin}"' for each in identities)
    return f"rules: [{{name: pay, hosts: [{HOST}], pins: {{any_of: [{pins}]}}}}]\n"


@dataclass
class Changing:
    """A server that shows another key when it is told to, and a sidecar with changing pins.

    Attributes:
        upstream: the server; a client may resume any session that it had there.
        first: the identity that it has at the beginning.
        second: another one of the same authority.
    """

    sidecar: Sidecar
    upstream: TlsUpstream
    first: Identity
    second: Identity

    def ask(self) -> str:
        """Ask once; return the reason for which it was denied, or ""."""
        authority = f"{HOST}:{self.upstream.port}"
        with RawClient(self.sidecar.address) as client:
            client.send(f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            answer = client.read_response()
        return "" if answer.status == 200 else str(answer.json()["reason"])

    def ask_anew(self) -> str:
        """Ask once all of the server's connections have ended."""
        self.upstream.hang_up()
        self.upstream.wait_for_connections(len(self.upstream.connections), closed=True)
        return self.ask()


@pytest.fixture(params=VERSIONS, ids=["TLS 1.2", "TLS 1.3"])
def changing(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> Iterator[Changing]:
    first, second = authority.issue(HOST), authority.issue(HOST)
    with (
        TlsUpstream(authority, identity=first, max_tls=request.param) as upstream,
        Sidecar(pinning(first), tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
    ):
        yield Changing(sidecar, upstream, first, second)


def can_resume(upstream: TlsUpstream, roots: Path, other: Identity) -> bool:
    """Tell whether a client that wants to can resume a session after the server has got another key."""
    context = ssl.create_default_context(cafile=roots)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def talk(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        with (
            socket.create_connection((upstream.address, upstream.port)) as connection,
            context.wrap_socket(connection, server_hostname=HOST, session=session) as tls,
        ):
            tls.sendall(f"GET /direct HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert tls.recv(4096)  # and the ticket, with TLS 1.3
            return tls.session, bool(tls.session_reused)

    session, _ = talk(None)
    upstream.present(other, keeps_sessions=True)
    return talk(session)[1]


def test_another_key_on_the_next_connection_is_held_to_the_pins_and_no_session_passes_them_by(
    changing: Changing, roots: Path
) -> None:
    upstream, first, second = changing.upstream, changing.first, changing.second
    # A client that resumes sessions does not see that the key has changed: this server is one that lets it.
    assert can_resume(upstream, roots, second)
    directly = len(upstream.connections)
    upstream.present(first, keeps_sessions=True)
    assert changing.ask() == ""
    upstream.present(second, keeps_sessions=True)
    assert changing.ask_anew() == "pin_mismatch"
    reload(changing.sidecar, pinning(second))
    assert changing.ask() == ""
    upstream.present(first, keeps_sessions=True)
    assert changing.ask_anew() == "pin_mismatch"
    reload(changing.sidecar, pinning(first, second))
    assert changing.ask() == ""
    # The connection of just now lies idle. It was right under other pins.
    reload(changing.sidecar, pinning(second))
    assert changing.ask() == "pin_mismatch"
    reload(changing.sidecar, pinning(first))
    assert changing.ask() == ""
    upstream.settle()
    its = upstream.connections[directly:]
    assert [len(each.requests) for each in its] == [1, 0, 1, 0, 1, 0, 1]
    assert not any(each.session_reused for each in its)
    assert all(each.received == b"" for each in its if not each.requests)


@dataclass(frozen=True)
class Change:
    """What a reload changes of a rule, and why its host is denied then."""

    rule: str
    reason: str


CHANGES = {
    "pins": Change(f'pins: {{any_of: ["sha256/{"A" * 42}E="]}}', "pin_mismatch"),
    "trust": Change("trust: {roots: other.pem}", "certificate_invalid"),
    "rule": Change("destinations: {allow: [private]}", "destination_forbidden"),
}
AT_MOST = 10.0  # seconds in which what is open ends
SWITCH = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"


class App(threading.Thread):
    """Asks again and again, and connects anew where its connection was closed.

    Attributes:
        results: when each request began, and the reason for which it was denied, or "".
        is_open: since when something that lasts is open; None if nothing is.
    """

    def __init__(self, sidecar: Sidecar, authority: str) -> None:
        super().__init__(daemon=True)
        self.sidecar, self.authority = sidecar, authority
        self.results: list[tuple[float, str]] = []
        self.is_open: float | None = None
        self.stopped = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopped.wait(0.02):
                began = time.monotonic()
                try:
                    result = self.once(began)
                except (
                    OSError,
                    AssertionError,
                    ProtocolError,
                ):  # closed, since the policy has changed: it connects anew
                    self.part()
                    continue
                if result is not None:
                    self.results.append((began, result))
        except BaseException as error:
            self.failure = error

    def once(self, began: float) -> str | None:
        """Ask once; return the reason, "", or None if that is noted already."""
        raise NotImplementedError

    def part(self) -> None:
        """Forget the connection."""

    def get(self, path: str, more: bytes = b"") -> bytes:
        """Return a request of plain http, which is upgraded."""
        return f"GET http://{self.authority}{path} HTTP/1.1\r\nHost: {self.authority}\r\n".encode() + more + b"\r\n"

    @contextmanager
    def open(self, began: float) -> Iterator[None]:
        """While what was asked for lasts."""
        self.results.append((began, ""))
        self.is_open = began
        try:
            yield
        finally:
            self.is_open = None


class Http1(App):
    """HTTP/1.1 on a connection that stays."""

    client: RawClient | None = None

    def once(self, began: float) -> str:
        self.client = self.client or RawClient(self.sidecar.address)
        self.client.send(self.get("/"))
        answer = self.client.read_response()
        return "" if answer.status == 200 else str(answer.json()["reason"])

    def part(self) -> None:
        self.client = None


class Http2(App):
    """HTTP/2 inside CONNECT, inspected."""

    client: Http2Client | None = None

    def once(self, began: float) -> str | None:
        if self.client is None:
            raw = RawClient(self.sidecar.address)
            raw.send(f"CONNECT {self.authority} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode())
            answer = raw.read_response(method="CONNECT")
            if answer.status != 200:
                return str(answer.json()["reason"])
            self.client = Http2Client.open(raw, self.authority.partition(":")[0], self.sidecar.ca_file)
        return self.ask(self.client, began)

    def ask(self, client: Http2Client, began: float) -> str | None:
        """Ask on a connection that there is."""
        return self.result(client.read(client.send(self.authority, method="GET")))

    def result(self, message: Message) -> str:
        """Return the reason, or ""."""
        if message.reset is not None:
            raise ConnectionResetError("the stream is over")
        return "" if message.status == 200 else str(json.loads(message.body)["reason"])

    def part(self) -> None:
        self.client = None


class Http2Response(Http2):
    """A response that does not end, in a stream of HTTP/2."""

    def ask(self, client: Http2Client, began: float) -> str | None:
        stream = client.send(self.authority, "/slow", method="GET")
        if client.read_head(stream).status != 200:
            return self.result(client.read(stream))
        with self.open(began):
            client.read(stream)
        return None


class Response(App):
    """A response that does not end."""

    path, more, status = "/slow", b"Connection: close\r\n", b"200"

    def once(self, began: float) -> str | None:
        with RawClient(self.sidecar.address) as client:
            client.send(self.get(self.path, self.more))
            if client.read_ahead(12)[-3:] != self.status:
                return str(client.read_response().json()["reason"])
            with self.open(began):
                client.read_to_end()
        return None


class WebSocket(Response):
    """A WebSocket."""

    path, more, status = "/socket", SWITCH, b"101"


LASTING: list[type[App]] = [Response, WebSocket, Http2Response]
KINDS: list[type[App]] = [Http1, Http2, *LASTING]


class Load:
    """Apps of each kind for each host whose rule is changed, and the servers that they ask."""

    def __init__(self, stack: ExitStack, authority: Authority, folder: Path, workers: int) -> None:
        self.hosts = {change: f"{change}.example" for change in CHANGES}
        self.go_on = threading.Event()
        self.http1 = stack.enter_context(TlsUpstream(authority, *self.hosts.values(), respond=self._respond))
        self.http2 = stack.enter_context(Http2Upstream(authority, *self.hosts.values()))
        Authority().write_pem(folder / "other.pem")
        self.workers = workers
        names = dict.fromkeys(self.hosts.values(), "127.0.0.1")
        policy = self.policy(is_changed=False)
        self.sidecar = stack.enter_context(Sidecar(policy, folder, authority=authority, hosts=names))
        assert self.sidecar.ca_file.exists()  # written before several apps want it
        self.apps = {
            (change, kind): kind(self.sidecar, f"{host}:{(self.http2 if kind is Http2 else self.http1).port}")
            for change, host in self.hosts.items()
            for kind in KINDS
        }
        for app in self.apps.values():
            app.start()
        stack.callback(self.stop)

    def policy(self, *, is_changed: bool) -> str:
        """Return the policy, or what it is changed to."""
        pins = f'pins: {{any_of: ["{self.http1.pin}", "{self.http2.pin}"]}}'
        rules = [
            f"  - {{name: {name}, hosts: [{self.hosts[name]}], {', '.join(self._keys(name, pins, is_changed))}}}\n"
            for name in CHANGES
        ]
        return "".join((f"workers: {self.workers}\nrules:\n", *rules))

    def _keys(self, name: str, pins: str, is_changed: bool) -> list[str]:
        change = CHANGES[name].rule
        if not is_changed:
            return [pins]
        return [change] if name == "pins" else [pins, change]

    def _respond(self, request: RecordedRequest) -> bytes | Iterator[bytes]:
        if request.target == "/socket":
            return b"HTTP/1.1 101 Switching Protocols\r\n" + SWITCH + b"\r\n"
        return self._slowly() if request.target == "/slow" else wire.response(200, b"{}")

    def _slowly(self) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"
        self.go_on.wait(60)
        yield b"half"

    def are_busy(self, since: float, *, count: int = 3) -> bool:
        """Tell whether each app has got results for requests that began since then; of what lasts one is enough."""
        return all(
            app.is_open is not None or len([began for began, _ in app.results if began >= since]) >= count
            for app in self.apps.values()
        )

    def has_ended(self) -> bool:
        """Tell whether nothing lasts any more."""
        return all(app.is_open is None for app in self.apps.values())

    def stop(self) -> None:
        """End all."""
        for app in self.apps.values():
            app.stopped.set()
        self.go_on.set()
        self.http1.hang_up()
        for app in self.apps.values():
            app.join(30)
            if app.failure is not None:
                raise app.failure


@pytest.mark.parametrize("workers", [1, 2])
def test_reloads_while_everything_is_busy(authority: Authority, tmp_path: Path, workers: int) -> None:
    with ExitStack() as stack:
        load = Load(stack, authority, tmp_path, workers)
        phases: list[tuple[float, float, bool]] = []
        for is_changed in (False, True, False):
            if phases:
                reload(load.sidecar, load.policy(is_changed=is_changed))
            since = time.monotonic()
            if is_changed:  # what is open under the policy of before ends
                wait_until(load.has_ended, "all have ended", seconds=AT_MOST)
            wait_until(partial(load.are_busy, since), "all are busy", seconds=30)
            phases.append((since, time.monotonic(), is_changed))
        for (change, kind), app in load.apps.items():
            for since, until, is_changed in phases:
                said = {result for began, result in app.results if since <= began <= until}
                reasons = {CHANGES[change].reason} if is_changed else {""}
                is_idle = not said and not is_changed and kind in LASTING  # what was open went on
                assert said == reasons or is_idle, (change, kind)
