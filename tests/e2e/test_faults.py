"""What goes wrong round the process: dying workers and upstreams, a full disk, no descriptors left, a clock that jumps.

Proves ARCHITECTURE's rules 1 and 2 where the machine fails: a request is answered rightly, denied with a reason or
broken off, never half of it taken for the whole; and when the fault is over, so is its effect.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.app import careless, connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl
from tests.e2e.frames import END_HEADERS, PREFACE, Peer, asked, headers, settings
from tests.e2e.movedclock import Clock
from tests.e2e.processes import workers
from tests.e2e.sidecar import ROOT, Decision, Sidecar, overcoat_command
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

on_linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, which is Linux's")


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


def request(upstream: TlsUpstream, path: str = "/", method: str = "GET", body: bytes = b"") -> bytes:
    head = f"{method} {upstream.url(path)} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def is_of(path: str, line: Decision) -> bool:
    return bool(line["path"] == path)


def ask(sidecar: Sidecar, upstream: TlsUpstream, path: str = "/") -> int:
    with RawClient(sidecar.address) as client:
        client.send(request(upstream, path))
        return client.read_response().status


@on_linux
def test_a_worker_killed_under_load_loses_only_what_it_had_in_hand(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    answered: Counter[str] = Counter()
    broken: list[str] = []
    stop = threading.Event()

    def load(name: int) -> None:
        number = 0
        while not stop.is_set():
            path = f"/{name}/{number}"
            number += 1
            try:
                with RawClient(sidecar.address) as client:
                    client.send(request(upstream, path, "POST", b"{}"))
                    assert client.read_response().status == 200
                answered[path] += 1
            except (OSError, ValueError):  # reset, or ended before the answer was whole
                broken.append(path)

    with Sidecar("workers: 2\n", tmp_path, authority=authority) as sidecar:
        apps = [threading.Thread(target=load, args=(name,)) for name in range(4)]
        for app in apps:
            app.start()
        time.sleep(0.3)
        victim, _ = workers(sidecar.pid)
        os.kill(victim, signal.SIGKILL)
        try:
            wait_until(lambda: len(workers(sidecar.pid)) == 2 and victim not in workers(sidecar.pid))
            time.sleep(0.3)
        finally:
            stop.set()
            for app in apps:
                app.join()
        assert [ask(sidecar, upstream) for _ in range(10)] == [200] * 10
        assert sidecar.metrics().value("overcoat_worker_restarts_total") == 1
    arrived = Counter(got.target for got in upstream.requests)
    assert len(answered) > 20
    assert len(broken) <= len(apps)  # at most what each app had in hand
    assert all(arrived[path] == 1 for path in answered)
    assert all(arrived[path] <= 1 for path in broken)  # a POST is never sent a second time


HALF_A_BODY = """
import socket, ssl, sys, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection = context.wrap_socket(listener.accept()[0], server_side=True)
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\n" + sys.argv[2].encode().decode("unicode_escape").encode("latin-1"))
    time.sleep(60)
"""
FRAMINGS = {
    "length": "Content-Length: 1000\\r\\n\\r\\nhalf",
    "chunks": "Transfer-Encoding: chunked\\r\\n\\r\\n4\\r\\nhalf\\r\\n",
    "until it closes": "Connection: close\\r\\n\\r\\nhalf",
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("way", ["upgraded", "inspected"])
def test_an_upstream_killed_in_the_middle_of_a_body_never_looks_whole(
    authority: Authority, tmp_path: Path, framing: str, way: str
) -> None:
    identity = authority.issue("127.0.0.1")
    pem = tmp_path / "server.pem"
    pem.write_bytes(identity.key_pem + b"".join(identity.chain_pem))
    server = subprocess.Popen([sys.executable, "-c", HALF_A_BODY, pem, FRAMINGS[framing]], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        policy = f"defaults: {{https: {'inspect' if way == 'inspected' else 'tunnel'}}}"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar, _client(sidecar, port, way) as client:
            target = f"http://127.0.0.1:{port}/" if way == "upgraded" else "/"
            client.send(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            client.read_until(b"half")
            server.kill()
            with pytest.raises(ConnectionError):  # a reset: an end in order would be the end of the body to some
                client._socket.recv(4096)
            line = sidecar.wait_for_decision(lambda line: line["method"] == "GET")
            assert line["status"] is None
            assert sidecar.metrics().value("overcoat_hook_failures_total") == 0
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def _client(sidecar: Sidecar, port: int, way: str) -> RawClient:
    if way == "upgraded":
        return RawClient(sidecar.address)
    client = connect(sidecar, f"127.0.0.1:{port}")
    client.start_tls("127.0.0.1", sidecar.ca_file)
    return client


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is Linux's")
@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
def test_a_full_disk_costs_decision_lines_and_no_request(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, count: int
) -> None:
    command = ["sh", "-c", 'exec "$@" >/dev/full', "sh", *overcoat_command()]
    with Sidecar(f"workers: {count}\n", tmp_path, authority=authority, command=command) as sidecar:
        assert [ask(sidecar, upstream) for _ in range(20)] == [200] * 20
        lost = "overcoat_decision_lines_lost_total"
        wait_until(lambda: sidecar.metrics().value(lost) == 20)
        assert sidecar.admin_get("/ready")[0] == 200
        said = [json.loads(line) for line in sidecar.stderr.splitlines() if "decision lines" in line]
        assert 1 <= len(said) <= count  # once each, and not for each line
        assert {(each["level"], each["message"]) for each in said} == {
            ("error", "decision lines cannot be written, and are lost: no space left on device")
        }


LIMIT = 64


@on_linux
def test_without_descriptors_new_apps_wait_and_afterwards_all_is_well(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    command = ["sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh", *overcoat_command()]
    with Sidecar("", tmp_path, authority=authority, command=command) as sidecar, TlsUpstream(authority) as elsewhere:
        with RawClient(sidecar.address) as early, contextlib.ExitStack() as crowd:
            early.send(request(upstream, "/before"))
            assert early.read_response().status == 200
            upstream.wait_for_connections(1)
            for _ in range(2 * LIMIT):
                crowd.enter_context(socket.create_connection(sidecar.address, 5))
            wait_until(lambda: sidecar.open_files() >= LIMIT * 3 // 4)
            time.sleep(1)  # whoever is refused lingers for so long
            early.send(request(upstream, "/pooled"))  # needs no new descriptor
            assert early.read_response().status == 200
            early.send(request(elsewhere, "/new"))  # takes one of those that apps are not let have
            assert early.read_response().status == 200
            assert [sidecar.admin_get(path)[0] for path in ("/live", "/ready", "/metrics")] == [200] * 3
        wait_until(lambda: sidecar.open_files() < LIMIT // 2)
        wait_until(lambda: ask(sidecar, upstream) == 200)  # who was refused may linger for a moment
        assert [ask(sidecar, upstream) for _ in range(5)] == [200] * 5
        assert sidecar.stderr.count("a new connection must wait: too many open files") <= 1  # and no flood of it
        assert "Traceback" not in sidecar.stderr


@on_linux
def test_apps_of_http_2_that_hold_many_servers_leave_descriptors_to_others(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    command = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *overcoat_command()]
    with Sidecar("", tmp_path, authority=authority, command=command) as sidecar:
        name = f"127.0.0.1:{upstream.port}"
        apps = [Peer(RawClient(sidecar.address), PREFACE + settings()) for _ in range(3)]
        fields = asked(name, path="/never-ends", method="POST")
        for app in apps:
            for number in range(100):  # as many as may be, each on a connection of its own there
                app.send(headers(2 * number + 1, fields, END_HEADERS))
        line = sidecar.wait_for_decision(lambda line: line["reason"] == "too_many_connections")
        assert "has several upstream connections already" in line["detail"]
        assert [ask(sidecar, upstream) for _ in range(5)] == [200] * 5
        assert "a new connection must wait" not in sidecar.stderr
        for app in apps:
            app.client.close()


LINGERING = """
import sys
from proxy import timelimits
timelimits.LINGER_SECONDS = 600.0
sys.argv[0] = "overcoat"
from overcoat.__main__ import main
main()
"""


@on_linux
@pytest.mark.parametrize("kind", ["forward", "socks5"])
def test_who_is_refused_keeps_nobody_waiting(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, kind: str
) -> None:
    """However fast they come, and however long they could take to read why."""
    command = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", sys.executable, "-P", "-c", LINGERING]
    policy = f"listen: ['{kind}://127.0.0.1:0', 'forward://127.0.0.1:0']\nlimits: {{client_connections: 2}}\n"
    with Sidecar(policy, tmp_path, authority=authority, command=command) as sidecar, contextlib.ExitStack() as crowd:
        for _ in range(600):
            crowd.enter_context(socket.create_connection(sidecar.address, 5, source_address=("127.0.0.5", 0)))
        with RawClient(sidecar.addresses[1]) as other:
            other.send(request(upstream))
            assert other.read_response().status == 200
        sidecar.wait_for_decisions(599)  # each refusal has its line, and the answer its request


@on_linux
def test_where_nothing_can_be_opened_any_more_requests_are_denied_and_the_admin_listener_answers(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    with Sidecar("", tmp_path, authority=authority) as sidecar, RawClient(sidecar.address) as early:
        early.send(request(upstream, "/before"))
        assert early.read_response().status == 200
        _, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, hard))
        early.send(request(upstream, "/pooled"))
        assert early.read_response().status == 200
        elsewhere = f"127.0.0.1:{upstream.port + 1}"
        early.send(f"GET http://{elsewhere}/ HTTP/1.1\r\nHost: {elsewhere}\r\n\r\n".encode())
        answer = json.loads(early.read_response().body)
        assert answer["reason"] == "upstream_unreachable"
        assert "no descriptor is left" in answer["detail"]
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert ask(sidecar, upstream) == 200


@on_linux
@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
def test_idle_connections_by_the_thousand_silence_nobody(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, count: int
) -> None:
    soft_and_hard = 'ulimit -Sn 256; ulimit -Hn 1024; exec "$@"'
    command = ["sh", "-c", soft_and_hard, "sh", *overcoat_command()]
    with Sidecar(f"workers: {count}\n", tmp_path, authority=authority, command=command) as sidecar:
        said = "limits.connections is 8192, but 1024 descriptors carry 480 connections"
        assert said in sidecar.stderr.partition('"event": "ready"')[0]
        with RawClient(sidecar.address) as early, contextlib.ExitStack() as crowd:
            early.send(request(upstream, "/before"))
            assert early.read_response().status == 200
            for _ in range(1100 * count):
                crowd.enter_context(socket.create_connection(sidecar.address, 5))
            wait_until(lambda: sidecar.metrics().value("overcoat_client_connections") >= 480 * count)
            before = processor_seconds(sidecar.pid)
            assert [sidecar.admin_get(path)[0] for path in ("/live", "/ready", "/metrics")] == [200] * 3
            early.send(request(upstream, "/after"))
            assert early.read_response().status == 200
            time.sleep(2)
            assert processor_seconds(sidecar.pid) - before < 1  # nobody asks again and again for what there is not
            with RawClient(sidecar.address) as late:
                late.send(request(upstream, "/late"))
                answer = late.read_response()
                assert (answer.status, json.loads(answer.body)["reason"]) == (503, "too_many_connections")
                assert "descriptors" in json.loads(answer.body)["detail"]


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


DAY = 86400.0


@pytest.mark.parametrize("jump", [-400 * DAY, -3600.0, 3600.0, 300 * DAY])
def test_a_clock_that_jumps_harms_no_request_for_longer_than_it_is_wrong(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, jump: float
) -> None:
    clock = Clock(tmp_path)
    policy = f'rules: [{{name: pinned, hosts: ["127.0.0.1"], pins: {{any_of: ["{upstream.pin}"]}}}}]'
    with Sidecar(policy, tmp_path, authority=authority, command=clock.command()) as sidecar:
        for moved in (0.0, jump, 0.0):
            clock.move(moved)
            assert ask(sidecar, upstream, f"/{moved}") == 200
            if moved < -7 * DAY:  # before the local CA began, no certificate of its can be made
                answer = curl(upstream.url(scheme="https"), proxy=sidecar.proxy_url)
                assert "503" in answer.error
                line = sidecar.wait_for_decision(lambda line: line["reason"] == "local_ca_expired")
                assert (line["method"], line["status"]) == ("CONNECT", 503)
                continue
            with connect(sidecar, f"127.0.0.1:{upstream.port}") as client:
                client.start_tls("127.0.0.1", context=careless())  # its dates may be far from the app's
                client.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
                assert client.read_response().status == 200
            line = sidecar.wait_for_decision(partial(is_of, f"/{moved}"))
            assert 0 <= line["seconds"] < 10
            assert abs(datetime.fromisoformat(line["time"]).timestamp() - moved - datetime.now(UTC).timestamp()) < 60
        assert sidecar.metrics().value("overcoat_hook_failures_total") == 0


MISTAKEN = """
import sys
sys.path.append(sys.argv.pop(1))
from proxy.engine.upstreams.state import AFTER, Event, State
del AFTER[Event.ANSWER][State.WAITING]
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""


def test_a_step_that_a_connection_may_not_take_fails_closed(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    """As if by a mistake of ours a response came where none may come: here, to a request that was sent whole."""
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    command = [sys.executable, "-P", str(tmp_path / "mistaken.py"), str(ROOT)]
    with Sidecar("", tmp_path, authority=authority, command=command) as sidecar:
        for number in (1, 2):  # what is broken is one request, not the sidecar
            with RawClient(sidecar.address) as client, contextlib.suppress(ConnectionError):
                client.send(request(upstream))
                assert client.read_to_end() == b""  # cut off at once, with nothing of the response
            line = sidecar.wait_for_decisions(number)[-1]
            assert (line["status"], line["reason"]) == (None, "internal_error")
        assert "IllegalTransition in __missing__" in sidecar.stderr
        assert len(upstream.connections) == 2  # each was closed, none was used again
