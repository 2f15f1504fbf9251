"""What is open when the policy changes: a tunnel, a WebSocket, a response that does not end. If the reload has changed
the promise for its host, it is gone within ten seconds; if not, it goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

NO_PIN = "sha256/" + "A" * 42 + "E="
SWITCH = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
AT_MOST = 10.0  # seconds
KINDS = ("tunnel", "websocket", "response")


def policy(rule: str = "", more: str = "") -> str:
    return f'rules:\n  - {{name: here, hosts: ["127.0.0.1"]{rule}}}\n{more}'


class Open:
    """Something open through a sidecar: `kind` says what."""

    def __init__(self, kind: str, authority: Authority, folder: Path) -> None:
        self.kind = kind
        self.stack = contextlib.ExitStack()
        self.go_on = threading.Event()
        self.upstream = self.stack.enter_context(TlsUpstream(authority, respond=self._respond))
        inspected = f', pins: {{any_of: ["{self.upstream.pin}"]}}' if kind == "websocket" else ""
        self.base = inspected
        self.sidecar = self.stack.enter_context(Sidecar(policy(inspected), folder, authority=authority))
        head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{self.upstream.port}\r\n".encode()
        if kind == "response":
            self.client = self.stack.enter_context(RawClient(self.sidecar.address))
            self.client.send(head.replace(b"GET /", f"GET {self.upstream.url('/')}".encode()) + b"\r\n")
            self.client.read_until(b"half")
            return
        self.client = self.stack.enter_context(connect(self.sidecar, f"127.0.0.1:{self.upstream.port}"))
        roots = self.sidecar.ca_file if kind == "websocket" else authority.write_pem(folder / "upstream.pem")
        self.client.start_tls("127.0.0.1", ca_file=roots)
        if kind == "websocket":
            self.client.send(head + SWITCH)
            assert self.client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")

    def _respond(self, _: RecordedRequest) -> bytes | Iterator[bytes]:
        if self.kind == "websocket":
            return b"HTTP/1.1 101 Switching Protocols\r\n" + SWITCH
        return self._slowly()

    def _slowly(self) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"
        self.go_on.wait(30)
        yield b"half"

    def still_works(self) -> bool:
        """Whether bytes still come through, after all that may end it has had its time."""
        time.sleep(AT_MOST)
        try:
            if self.kind == "websocket":
                self.client.send(b"\x81\x85\0\0\0\0later")
                time.sleep(0.2)
                return self.upstream.received.endswith(b"later")
            if self.kind == "tunnel":
                self.go_on.set()
                self.client.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{self.upstream.port}\r\n\r\n".encode())
                return self.client.read_response().status == 200
            self.go_on.set()
            return self.client.read_exactly(4) == b"half"
        except (OSError, AssertionError):
            return False

    def ends_within(self, seconds: float) -> float:
        """Wait for the end; return how many seconds it took."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            with contextlib.suppress(TimeoutError):
                self.client.read_to_end()
                break
        return time.monotonic() - began


@pytest.fixture
def opened(authority: Authority, tmp_path: Path) -> Iterator[Callable[[str], Open]]:
    made: list[Open] = []

    def make(kind: str) -> Open:
        made.append(Open(kind, authority, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.go_on.set()
        each.stack.close()


@pytest.mark.parametrize("kind", KINDS)
def test_other_pins_end_what_is_open(opened: Callable[[str], Open], kind: str) -> None:
    it = opened(kind)
    reload(it.sidecar, policy(f', pins: {{any_of: ["{NO_PIN}"]}}'))
    assert it.ends_within(AT_MOST) < AT_MOST
    line = it.sidecar.wait_for_decision(lambda each: each["reason"] == "policy_changed")
    assert line["outcome"] == "drained"
    assert "the policy for 127.0.0.1 has changed" in line["detail"]


@pytest.mark.parametrize(
    "change",
    [
        "other roots",
        "a rule that rejects",
        "a destination that is forbidden",
        "a client that is not let in",
    ],
)
def test_so_does_whatever_changes_the_promise(opened: Callable[[str], Open], change: str, tmp_path: Path) -> None:
    it = opened("tunnel")
    if change == "other roots":
        Authority().write_pem(tmp_path / "other.pem")
        text = policy(", trust: {roots: other.pem}")
    elif change == "a rule that rejects":
        text = policy(", https: reject")
    elif change == "a destination that is forbidden":
        text = policy(", destinations: {allow: [private]}")
    else:
        text = policy(more="clients: {allow: [10.0.0.0/8]}\n")
    reload(it.sidecar, text)
    assert it.ends_within(AT_MOST) < AT_MOST


@pytest.mark.parametrize("kind", KINDS)
def test_a_reload_that_is_about_something_else_ends_nothing(opened: Callable[[str], Open], kind: str) -> None:
    it = opened(kind)
    reload(
        it.sidecar,
        policy(it.base, more='  - {name: other, hosts: [other.example], pins: {any_of: ["' + NO_PIN + '"]}}\n'),
    )
    assert it.still_works()


@pytest.mark.parametrize("kind", KINDS)
def test_keep_leaves_alone_what_is_open(opened: Callable[[str], Open], kind: str) -> None:
    it = opened(kind)
    reload(it.sidecar, policy(f', pins: {{any_of: ["{NO_PIN}"]}}', more="open_connections: keep\n"))
    assert it.still_works()
