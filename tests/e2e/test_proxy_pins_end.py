"""The pins of an upstream proxy whose last day passes while the sidecar runs: what goes through it ends, as it would
with a rule's own pins. What does not go through it goes on, and so does what the policy keeps, or only warns of.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.app import ask, connect
from tests.e2e.certificates import Authority, pin_of
from tests.e2e.clients import RawClient
from tests.e2e.lasting import SWITCH, Lasting
from tests.e2e.movedclock import Clock
from tests.e2e.sidecar import Sidecar
from tests.e2e.test_upstream_proxy import Corporate
from tests.e2e.upstream import TlsUpstream

THROUGH, DIRECT = "api.example", "straight.example"
HOSTS = dict.fromkeys((THROUGH, DIRECT, "proxy.example"), "127.0.0.1")
AT_MOST = 10.0  # seconds
Serve = Callable[..., contextlib.AbstractContextManager[Sidecar]]


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def serve(authority: Authority, clock: Clock, tmp_path: Path) -> Iterator[Serve]:
    """Return what starts a sidecar behind a proxy whose pins end today; hosts are inspected or go in tunnels."""
    identity = authority.issue("proxy.example")
    (tmp_path / "proxy.pem").write_bytes(identity.key_pem + b"".join(identity.chain_pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "proxy.pem")
    corporate = Corporate(context)

    def make(pins: str = "", more: str = "", https: str = "inspect") -> Sidecar:
        last = f'any_of: ["{pin_of(identity.certificate)}"], expires: {datetime.now(UTC).date()}'
        policy = f"""
            upstream_proxy:
              url: https://proxy.example:{corporate.port}
              direct: [{DIRECT}]
              pins: {{{last}{pins}}}
            rules: [{{name: both, hosts: [{THROUGH}, {DIRECT}], https: {https}}}]
            {more}
        """
        return Sidecar(policy, tmp_path, authority=authority, command=clock.command(HOSTS))

    yield make
    corporate.close()


@pytest.mark.parametrize("pins", ["", ", after_expiry: warn", ", mode: observe"])
def test_a_connection_that_was_opened_through_it_is_not_used_again(
    serve: Serve, clock: Clock, authority: Authority, pins: str
) -> None:
    still = 200 if pins else 502
    with TlsUpstream(authority, THROUGH, DIRECT) as upstream, serve(pins) as sidecar:
        for host in (THROUGH, THROUGH, DIRECT, DIRECT):
            assert ask(sidecar, upstream, host).status == 200
        through, direct = upstream.wait_for_connections(2)
        clock.move(days=2)
        answer = ask(sidecar, upstream, THROUGH)
        assert answer.status == still
        assert ask(sidecar, upstream, DIRECT).status == 200
        assert (len(through.requests), len(direct.requests)) == (3 if pins else 2, 3)
        if not pins:
            problem = json.loads(answer.body)
            assert problem["reason"] == "pins_expired"
            assert problem["detail"].startswith("the upstream proxy: the pins of upstream_proxy expired on ")


class Open:
    """A tunnel, a WebSocket or a response that does not end, to each of the two hosts."""

    def __init__(self, kind: str, authority: Authority, folder: Path) -> None:
        self.kind = kind
        self.stack = contextlib.ExitStack()
        lasting = Lasting()
        self.go_on = lasting.go_on
        self.upstream = self.stack.enter_context(TlsUpstream(authority, THROUGH, DIRECT, respond=lasting.respond))
        self._roots = authority.write_pem(folder / "upstream.pem")

    def start(self, sidecar: Sidecar) -> dict[str, RawClient]:
        return {host: self.stack.enter_context(self._start(sidecar, host)) for host in (THROUGH, DIRECT)}

    def _start(self, sidecar: Sidecar, host: str) -> RawClient:
        named = f"{host}:{self.upstream.port}"
        client = connect(sidecar, named)
        client.start_tls(host, ca_file=self._roots if self.kind == "tunnel" else sidecar.ca_file)
        more = SWITCH if self.kind == "websocket" else b"\r\n"
        client.send(f"GET / HTTP/1.1\r\nHost: {named}\r\n".encode() + more)
        client.read_until(b"\r\n\r\n" if self.kind == "websocket" else b"half")
        return client

    def goes_on(self, client: RawClient) -> bool:
        try:
            if self.kind != "websocket":
                self.go_on.set()
                return client.read_exactly(4) == b"half"
            before = self.upstream.received.count(b"later")
            client.send(b"\x81\x85\0\0\0\0later")
            time.sleep(0.3)
            return self.upstream.received.count(b"later") > before
        except (OSError, AssertionError):
            return False


@pytest.mark.parametrize("more", ["", "open_connections: keep"])
@pytest.mark.parametrize("kind", ["tunnel", "websocket", "response"])
def test_what_is_open_through_it_ends_within_ten_seconds(
    serve: Serve, clock: Clock, authority: Authority, tmp_path: Path, kind: str, more: str
) -> None:
    opened = Open(kind, authority, tmp_path)
    with opened.stack, serve("", more, "tunnel" if kind == "tunnel" else "inspect") as sidecar:
        clients = opened.start(sidecar)
        clock.move(days=2)
        if not more:
            line = sidecar.wait_for_decision(lambda line: line["reason"] == "policy_changed", deadline=AT_MOST)
            assert line["detail"] == "the pins of the upstream proxy have ended"
            assert line["destination"] == f"{THROUGH}:{opened.upstream.port}"
        else:
            time.sleep(AT_MOST / 2)  # more than one look at what is open
        assert {host: opened.goes_on(client) for host, client in clients.items()} == {THROUGH: bool(more), DIRECT: True}
        for client in clients.values():
            client.close()
        if not more:
            assert [each["reason"] for each in sidecar.decisions()].count("policy_changed") == 1
