"""What is open when the policy changes: tunnels, a WebSocket, a response that does not end. What a reload has changed
the promise for is gone within ten seconds; the rest goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import connect, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.lasting import SWITCH, Lasting
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

NO_PIN = "sha256/" + "A" * 42 + "E="
OTHER_PINS = f', pins: {{any_of: ["{NO_PIN}"]}}'
AT_MOST = 10.0  # seconds
TUNNELS = ("roots", "rejected", "forbidden", "alone")
KINDS = (*TUNNELS, "websocket", "response")
HOSTS = {f"{kind}.example": "127.0.0.1" for kind in KINDS}


def policy(rules: Mapping[str, str], more: str = "") -> str:
    """Return a policy with a rule for each host, and what it says beside the host."""
    own = {"websocket": ", https: inspect", **rules}
    return "".join(
        ["rules:\n", *(f"  - {{name: {kind}, hosts: [{kind}.example]{own.get(kind, '')}}}\n" for kind in KINDS), more]
    )


class Open:
    """All of these open through one sidecar, each to a host of its own."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.stack = contextlib.ExitStack()
        lasting = Lasting()
        self.go_on = lasting.go_on
        self.upstream = self.stack.enter_context(TlsUpstream(authority, *HOSTS, respond=lasting.respond))
        self.sidecar = self.stack.enter_context(Sidecar(policy({}), folder, authority=authority, hosts=HOSTS))
        roots = authority.write_pem(folder / "upstream.pem")
        self.clients: dict[str, RawClient] = {}
        for kind in (*TUNNELS, "websocket"):
            client = self.stack.enter_context(connect(self.sidecar, f"{kind}.example:{self.upstream.port}"))
            client.start_tls(f"{kind}.example", ca_file=self.sidecar.ca_file if kind == "websocket" else roots)
            self.clients[kind] = client
        self.clients["websocket"].send(self._head("websocket", "/") + SWITCH)
        assert self.clients["websocket"].read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        self.clients["response"] = self.stack.enter_context(RawClient(self.sidecar.address))
        url = self.upstream.url(host="response.example")
        self.clients["response"].send(self._head("response", url) + b"\r\n")
        self.clients["response"].read_until(b"half")

    def _head(self, kind: str, target: str) -> bytes:
        return f"GET {target} HTTP/1.1\r\nHost: {kind}.example:{self.upstream.port}\r\n".encode()

    def has_ended(self, kind: str) -> bool:
        """Whether it has ended by now."""
        client = self.clients[kind]
        try:
            if kind == "response":
                return client.read_exactly(4) != b"half"
            if kind == "websocket":
                client.send(b"\x81\x85\0\0\0\0later")
                time.sleep(0.2)
                return b"later" not in self.upstream.received
            client.send(self._head(kind, "/") + b"\r\n")
            return client.read_response().status != 200
        except (OSError, AssertionError):
            return True

    def ended(self) -> set[str]:
        """Return what has ended, once all that may be ended has had its time."""
        time.sleep(AT_MOST)
        self.go_on.set()
        return {kind for kind in KINDS if self.has_ended(kind)}


@pytest.fixture
def opened(authority: Authority, tmp_path: Path) -> Iterator[Open]:
    it = Open(authority, tmp_path)
    yield it
    it.go_on.set()
    it.stack.close()


def test_other_pins_end_whatever_is_open_and_the_lines_say_why(opened: Open) -> None:
    reload(opened.sidecar, policy(dict.fromkeys(KINDS, OTHER_PINS)))
    assert opened.ended() == set(KINDS)
    lines = [line for line in opened.sidecar.decisions() if line["reason"] == "policy_changed"]
    assert {line["rule"] for line in lines} == set(KINDS)
    assert {line["outcome"] for line in lines} == {"drained"}
    assert all(f"the policy for {line['rule']}.example has changed" in line["detail"] for line in lines)


def test_so_does_each_change_of_the_promise_for_its_own_host_alone(opened: Open, tmp_path: Path) -> None:
    Authority().write_pem(tmp_path / "other.pem")
    changes = {
        "roots": ", trust: {roots: other.pem}",
        "rejected": ", https: reject",
        "forbidden": ", destinations: {allow: [private]}",
    }
    reload(opened.sidecar, policy(changes))
    assert opened.ended() == set(changes)


def test_so_does_a_change_of_who_may_use_the_proxy(opened: Open) -> None:
    reload(opened.sidecar, policy({}, "clients: {allow: [10.0.0.0/8]}\n"))
    assert opened.ended() == set(KINDS)


def test_keep_leaves_alone_what_is_open(opened: Open) -> None:
    reload(opened.sidecar, policy(dict.fromkeys(KINDS, OTHER_PINS), "open_connections: keep\n"))
    assert opened.ended() == set()


KEYS = """
    keys:
      pay: {{alg: ECDH-ES+A256KW, {pay}}}
      app: {{alg: A256KW, {app}}}
    rules:
      - name: keys
        hosts: [response.example]
        request: [{{encrypt: [$.ssn], key: pay}}]
        response: [{{decrypt: [$.token], key: app}}]
"""


@pytest.mark.parametrize("is_retired", [False, True])
def test_a_rotation_of_keys_loses_no_request_until_its_own_is_retired(
    authority: Authority, tmp_path: Path, is_retired: bool
) -> None:
    pay = {kid: Receiver(kid) for kid in ("pay-1", "pay-2")}
    app = {kid: Receiver(kid, Alg.A256KW) for kid in ("app-1", "app-2")}
    for receiver in pay.values():
        receiver.write_public(tmp_path)
    for receiver in app.values():
        receiver.write_private(tmp_path)

    def keys(pay_kids: tuple[str, ...], app_kids: tuple[str, ...]) -> str:
        def said(kids: tuple[str, ...], end: str) -> str:
            first, *older = (f"{{kid: {kid}, file: {kid}.{end}}}" for kid in kids)
            return f"primary: {first}" + (f", older: [{', '.join(older)}]" if older else "")

        return KEYS.format(pay=said(pay_kids, "pub.pem"), app=said(app_kids, "jwk"))

    is_asked, goes_on = threading.Event(), threading.Event()

    def respond(_: RecordedRequest) -> bytes:
        is_asked.set()
        goes_on.wait(30)
        return wire.response(200, b'{"token":%s}' % app["app-1"].seal(b"1", "response.example", "$.token"))

    with (
        TlsUpstream(authority, *HOSTS, respond=respond) as upstream,
        Sidecar(keys(("pay-1",), ("app-1",)), tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        RawClient(sidecar.address) as client,
    ):
        url = upstream.url(host="response.example")
        client.send(request(url, f"response.example:{upstream.port}", body=b'{"ssn":1}'))
        assert is_asked.wait(AT_MOST)
        # where values are sealed the new key is at the front already, where they are opened it is there
        reload(sidecar, keys(("pay-2",) if is_retired else ("pay-2", "pay-1"), ("app-1", "app-2")))
        time.sleep(AT_MOST)
        goes_on.set()
        answer = client.read_response()
    if is_retired:
        assert (answer.status, answer.json()["reason"]) == (503, "policy_changed")
    else:
        assert (answer.status, answer.body) == (200, b'{"token":1}')
