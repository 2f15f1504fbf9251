"""Three replicas behind HAProxy, as docs/scaling.md has it: they are restarted one after the other and get another
policy while apps ask without a pause. No request is lost or sent twice, and every decision is right.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.disk.ca import LocalCa
from tests.e2e.certificates import Authority
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

MakeTls = Callable[..., TlsUpstream]
OPEN, CHANGING = "open.example", "changing.example"
HOSTS = dict.fromkeys((OPEN, CHANGING), "127.0.0.1")
# Addresses that nothing else has: a port that a replica leaves for a moment is taken by nobody.
BALANCER, REPLICAS = "127.0.7.10", ("127.0.7.1", "127.0.7.2", "127.0.7.3")
CONFIG = """
global
  maxconn 1000
defaults
  mode tcp
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  option redispatch
frontend apps
  bind {address}:{port}
  default_backend replicas
backend replicas
  balance roundrobin
  option httpchk GET /ready
  default-server check inter 50 fall 1 rise 1
{servers}
"""


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass
class Replica:
    """One of the sidecars: always at the same addresses, with the CA that all of them have."""

    folder: Path
    address: str
    authority: Authority
    upstream: TlsUpstream
    running: Sidecar = field(init=False)

    def __post_init__(self) -> None:
        self.port, self.probes = free_port(self.address), free_port(self.address)
        self.folder.mkdir()
        LocalCa.open(self.folder.parent / "ca", datetime.now(UTC))
        shutil.copytree(self.folder.parent / "ca", self.folder / "data")

    def policy(self, changing: str) -> str:
        return f"""
            listen: [forward://{self.address}:{self.port}]
            probes: {self.address}:{self.probes}
            drain_wait: 1
            workers: 1
            rules:
              - {{name: open, hosts: [{OPEN}], https_port: {self.upstream.port}}}
              - {{name: changing, hosts: [{CHANGING}], {changing}}}
        """

    def start(self) -> None:
        self.running = Sidecar(
            self.policy(f"https_port: {self.upstream.port}"), self.folder, authority=self.authority, hosts=HOSTS
        )
        self.running.start()

    def stop(self) -> None:
        assert self.running.stop() == 0

    def is_asked(self) -> bool:
        """Tell whether it has answered somebody since it was started."""
        return self.running.metrics().value("overcoat_requests_total") > 0

    def change(self) -> None:
        """Give it the other policy, as a changed file and SIGHUP do it."""
        self.running.write_policy(self.policy("plain_http: reject"))
        self.running.signal(signal.SIGHUP)
        wait_until(lambda: self.running.metrics().value("overcoat_policy_reloads_total", result="taken") == 1)


@dataclass(frozen=True)
class Asked:
    """A request of an app: when it was sent, whether to the host whose rule changes, and what became of it."""

    at: float
    changing: bool
    status: int
    reason: str | None


class App:
    """Asks without a pause, either on a connection for each request or on kept ones. It never tries again."""

    def __init__(self, port: int, upstream: TlsUpstream, *, keeps: bool) -> None:
        self._port = port
        self._upstream = upstream
        self._keeps = keeps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.asked: list[Asked] = []
        self.lost: list[str] = []
        self._thread.start()

    def _ask(self) -> None:
        client = http.client.HTTPConnection(BALANCER, self._port, timeout=15)
        while not self._stop.is_set():
            changing = len(self.asked) % 2 == 1
            at = time.monotonic()
            try:
                client.request(
                    "GET",
                    f"http://{CHANGING if changing else OPEN}/",
                    headers={} if self._keeps else {"Connection": "close"},
                )
                response = client.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                client.close()
                continue
            reason = json.loads(body)["reason"] if response.status != 200 else None
            self.asked.append(Asked(at, changing, response.status, reason))
        client.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)


@pytest.fixture
def replicas(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> Iterator[list[Replica]]:
    """The sidecars, started."""
    upstream = tls_upstream(*HOSTS)
    found = [Replica(tmp_path / address, address, authority, upstream) for address in REPLICAS]
    with contextlib.ExitStack() as stack:
        for each in found:
            each.start()
            stack.callback(each.stop)
        yield found


@pytest.fixture
def balancer(replicas: list[Replica], tmp_path: Path) -> Iterator[int]:
    """The port of a HAProxy in front of them."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("haproxy is not installed (Debian: haproxy)")
    port = free_port(BALANCER)
    servers = "\n".join(f"  server r{n} {r.address}:{r.port} port {r.probes}" for n, r in enumerate(replicas))
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(address=BALANCER, port=port, servers=servers))
    with subprocess.Popen([program, "-db", "-q", "-f", config], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: _answers(port), "HAProxy takes connections")
            yield port
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((BALANCER, port), 1):
        return True
    return False


def test_nothing_is_lost_and_every_decision_is_right(replicas: list[Replica], balancer: int) -> None:
    upstream = replicas[0].upstream
    apps = [App(balancer, upstream, keeps=number % 2 == 1) for number in range(4)]
    try:
        for each in replicas:
            each.stop()
            each.start()
            wait_until(each.is_asked, "it is asked again")
        begins = time.monotonic()
        for each in replicas:
            each.change()
        ends = time.monotonic()
        asked = [len(app.asked) for app in apps]
        wait_until(lambda: all(len(app.asked) > count + 10 for app, count in zip(apps, asked, strict=True)))
    finally:
        for app in apps:
            app.stop()
    assert [app.lost for app in apps] == [[], [], [], []]
    found = [each for app in apps for each in app.asked]
    rejected = (403, "plain_http_rejected")
    assert {(each.status, each.reason) for each in found if not each.changing} == {(200, None)}
    assert {(each.status, each.reason) for each in found if each.changing and each.at < begins - 1} == {(200, None)}
    assert {(each.status, each.reason) for each in found if each.changing and each.at > ends} == {rejected}
    assert {(each.status, each.reason) for each in found if each.changing} == {(200, None), rejected}
    assert len(upstream.requests) == sum(each.status == 200 for each in found)
    authorities = {(each.folder / "data" / "ca-cert.pem").read_bytes() for each in replicas}
    assert len(authorities) == 1
