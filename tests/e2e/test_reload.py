"""SIGHUP: the policy is read again and taken over whole, or not at all; nothing that runs is harmed.

Proves that a policy is swapped whole, that a request keeps the one it began with, and ARCHITECTURE's rule 1: a policy
that cannot be read takes no protection away.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client
from tests.e2e.processes import children
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Metrics, Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

NO_PIN = "sha256/" + "A" * 42 + "E="
MakeSidecar = Callable[[str], Sidecar]


@pytest.fixture(params=[1, 3], ids=["one process", "three workers"])
def workers(request: pytest.FixtureRequest) -> int:
    """How many processes serve: what holds must hold for any number."""
    count: int = request.param
    return count


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


@pytest.fixture
def sidecar(authority: Authority, tmp_path: Path, workers: int) -> Iterator[Sidecar]:
    with Sidecar(policy(workers), tmp_path, authority=authority) as running:
        yield running


def policy(workers: int, pin: str | None = None, more: str = "") -> str:
    pins = f', pins: {{any_of: ["{pin}"]}}' if pin else ""
    return f'workers: {workers}\nrules:\n  - {{name: here, hosts: ["127.0.0.1"]{pins}}}\n{more}'


def get(client: RawClient, upstream: TlsUpstream) -> tuple[int, bytes]:
    client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
    answer = client.read_response()
    return answer.status, answer.body


def ask(sidecar: Sidecar, upstream: TlsUpstream) -> int:
    with RawClient(sidecar.address) as client:
        return get(client, upstream)[0]


def test_new_pins_hold_for_every_connection_from_then_on(sidecar: Sidecar, upstream: TlsUpstream, workers: int) -> None:
    assert [ask(sidecar, upstream) for _ in range(10)] == [200] * 10
    opened = len(upstream.connections)  # idle ones, opened while nothing was pinned, are in the pools now
    reload(sidecar, policy(workers, NO_PIN))
    assert [ask(sidecar, upstream) for _ in range(10)] == [502] * 10
    assert {line["reason"] for line in sidecar.wait_for_decisions(20)[10:]} == {"pin_mismatch"}
    assert len(upstream.requests) == 10
    reload(sidecar, policy(workers, upstream.pin))
    assert [ask(sidecar, upstream) for _ in range(10)] == [200] * 10
    assert len(upstream.connections) > opened + 10  # none of before was used again


def test_an_app_that_stays_connected_does_not_keep_the_old_policy(authority: Authority, tmp_path: Path) -> None:
    with (
        TlsUpstream(authority) as upstream,
        Sidecar(policy(1), tmp_path, authority=authority) as sidecar,
        RawClient(sidecar.address) as client,
    ):
        assert get(client, upstream)[0] == 200
        reload(sidecar, policy(1, NO_PIN))
        status, body = get(client, upstream)
        assert (status, json.loads(body)["reason"]) == (502, "pin_mismatch")


def test_nor_does_one_that_speaks_inside_connect(sidecar: Sidecar, upstream: TlsUpstream, workers: int) -> None:
    reload(sidecar, policy(workers, upstream.pin))  # pins make it inspected
    with connect(sidecar, f"127.0.0.1:{upstream.port}") as client:
        client.start_tls("127.0.0.1", ca_file=sidecar.ca_file)
        client.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
        assert client.read_response().status == 200
        reload(sidecar, policy(workers, NO_PIN))
        assert client.read_to_end() == b""  # closed, since nothing was under way


def test_nor_does_one_that_speaks_http_2_which_is_told_so(
    sidecar: Sidecar, upstream: TlsUpstream, workers: int
) -> None:
    reload(sidecar, policy(workers, upstream.pin))
    client = connect(sidecar, f"127.0.0.1:{upstream.port}")
    app = Http2Client.open(client, "127.0.0.1", sidecar.ca_file)
    assert app.read(app.send(f"127.0.0.1:{upstream.port}", method="GET")).status == 200
    reload(sidecar, policy(workers, NO_PIN))
    assert app.read_farewell() == ErrorCodes.NO_ERROR
    client.close()


def test_what_may_pass_from_now_on_is_said(sidecar: Sidecar, workers: int) -> None:
    reload(sidecar, policy(workers), "unchanged")
    assert "Secure cookies" not in sidecar.stderr
    reload(sidecar, policy(workers, more="  - {name: open, hosts: [open.example], plain_http: allow}"))
    assert "Secure cookies" in sidecar.stderr


def test_nor_does_one_that_speaks_plain_http_inside_connect(
    sidecar: Sidecar, upstream: TlsUpstream, workers: int
) -> None:
    with connect(sidecar, f"127.0.0.1:{upstream.port}") as client:
        request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode()
        client.send(request)
        assert client.read_response().status == 200
        reload(sidecar, policy(workers, NO_PIN))
        assert client.read_to_end() == b""
    assert len(upstream.requests) == 1


def test_a_running_request_ends_under_the_policy_it_began_with(
    authority: Authority, tmp_path: Path, workers: int
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(_: RecordedRequest) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"
        begun.set()
        go_on.wait(20)
        yield b"half"

    with (
        TlsUpstream(authority, respond=slowly) as upstream,
        Sidecar(policy(workers), tmp_path, authority=authority) as sidecar,
        RawClient(sidecar.address) as client,
    ):
        client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
        assert begun.wait(10)
        client.read_until(b"half")
        reload(sidecar, policy(workers, NO_PIN))
        go_on.set()
        assert client.read_exactly(4) == b"half"


def test_a_tunnel_lasts(
    sidecar: Sidecar, upstream: TlsUpstream, workers: int, authority: Authority, tmp_path: Path
) -> None:
    with connect(sidecar, f"127.0.0.1:{upstream.port}") as client:
        client.start_tls("127.0.0.1", ca_file=authority.write_pem(tmp_path / "upstream.pem"))
        reload(sidecar, policy(workers, NO_PIN))
        client.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
        assert client.read_response().status == 200


def test_so_does_a_websocket(authority: Authority, tmp_path: Path, workers: int) -> None:
    switch = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    with (
        TlsUpstream(authority, respond=lambda _: b"HTTP/1.1 101 Switching Protocols\r\n" + switch) as upstream,
        Sidecar(policy(workers, upstream.pin), tmp_path, authority=authority) as sidecar,
        connect(sidecar, f"127.0.0.1:{upstream.port}") as client,
    ):
        client.start_tls("127.0.0.1", ca_file=sidecar.ca_file)
        client.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n".encode() + switch)
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        reload(sidecar, policy(workers, NO_PIN))
        client.send(b"\x81\x85\0\0\0\0later")
        client.close()
        upstream.wait_for_connections(1, closed=True)
        assert upstream.received.endswith(b"\x81\x85\0\0\0\0later")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("rules: [{name: here, hosts: [], pinz: 1}]", "rules[0].pinz", id="errors"),
        pytest.param("rules: [{", "policy.yaml", id="no YAML"),
        pytest.param("listen: [forward://127.0.0.1:1]", "a change of listen takes a restart", id="another listener"),
        pytest.param("admin: null", "a change of admin takes a restart", id="no admin listener"),
        pytest.param("trust: {roots: gone.pem}", "gone.pem", id="roots that are not there"),
        pytest.param("keys: {a: {alg: A256KW, primary: {file: gone.jwk}}}", "gone.jwk", id="a key that is not there"),
    ],
)
def test_what_cannot_be_taken_over_changes_nothing(
    sidecar: Sidecar, upstream: TlsUpstream, workers: int, text: str, said: str
) -> None:
    reload(sidecar, policy(workers, NO_PIN))
    reload(sidecar, f"workers: {workers}\n{text}\n", "refused")
    assert ask(sidecar, upstream) == 502  # what was pinned still is
    assert said in sidecar.stderr
    assert sidecar.admin_get("/ready")[0] == 200
    reload(sidecar, policy(workers, upstream.pin))
    assert ask(sidecar, upstream) == 200


def test_another_number_of_workers_takes_a_restart(sidecar: Sidecar, upstream: TlsUpstream, workers: int) -> None:
    reload(sidecar, policy(workers + 1), "refused")
    assert "a change of workers takes a restart" in sidecar.stderr
    assert ask(sidecar, upstream) == 200


def test_a_file_that_is_gone_does_not_mean_the_built_in_policy(
    sidecar: Sidecar, upstream: TlsUpstream, workers: int
) -> None:
    reload(sidecar, policy(workers, NO_PIN))
    sidecar.policy_file.unlink()
    sidecar.signal(signal.SIGHUP)
    wait_until(lambda: "the one before stays in force" in sidecar.stderr)
    assert ask(sidecar, upstream) == 502


@pytest.mark.parametrize("what", ["policy", "roots", "key", "password"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, workers: int, what: str
) -> None:
    files = {"policy": "policy.yaml", "roots": "roots.pem", "key": "key.jwk", "password": "user.hash"}
    more = {
        "key": "keys: {a: {alg: A256KW, primary: {file: key.jwk}}}",
        "password": "clients: {allow: [loopback], users: [{name: a, password_hash: {file: user.hash}}]}",
    }
    with Sidecar(policy(workers, NO_PIN), tmp_path, authority=authority) as sidecar:
        if what in more:
            sidecar.write_policy(policy(workers, NO_PIN, more[what]))
        place = sidecar.policy_file.parent / files[what]
        place.unlink(missing_ok=True)
        os.mkfifo(place)
        sidecar.signal(signal.SIGHUP)
        wait_until(lambda: "the one before stays in force" in sidecar.stderr)
        assert re.search("(no|not a) regular file", sidecar.stderr)
        assert ask(sidecar, upstream) == 502
        sidecar.signal(signal.SIGTERM)
        assert sidecar.wait(deadline=10) == 0


def test_under_load_no_request_is_lost(sidecar: Sidecar, upstream: TlsUpstream, workers: int) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.append(ask(sidecar, upstream))

    apps = [threading.Thread(target=load) for _ in range(3)]
    for app in apps:
        app.start()
    try:
        for number in range(4):
            reload(sidecar, f"{policy(workers, upstream.pin)}# {number}\n")
    finally:
        stop.set()
        for app in apps:
            app.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_the_metrics_show_the_pins_that_are_in_force(sidecar: Sidecar, upstream: TlsUpstream, workers: int) -> None:
    def expiring() -> list[str]:
        return [labels["rule"] for labels in sidecar.metrics().labels("overcoat_pins_expire_timestamp_seconds")]

    dated = f'{{any_of: ["{upstream.pin}"], expires: 2099-01-01}}'
    reload(sidecar, f'workers: {workers}\nrules: [{{name: dated, hosts: ["127.0.0.1"], pins: {dated}}}]\n')
    assert expiring() == ["dated"]
    reload(sidecar, policy(workers, upstream.pin))
    assert expiring() == []


def test_a_key_is_changed_like_all_else(authority: Authority, tmp_path: Path, workers: int) -> None:
    first, second = Receiver("first"), Receiver("second")

    def fields(receiver: Receiver) -> str:
        key = f"{{alg: ECDH-ES+A256KW, primary: {{kid: {receiver.kid}, file: {receiver.write_public(tmp_path)}}}}}"
        rule = '{name: pay, hosts: ["127.0.0.1"], request: [{encrypt: ["$.card"], key: pay}]}'
        return f"workers: {workers}\nkeys: {{pay: {key}}}\nrules: [{rule}]\n"

    with TlsUpstream(authority) as upstream, Sidecar(fields(first), tmp_path, authority=authority) as sidecar:
        reload(sidecar, fields(second))
        for _ in range(6):
            with RawClient(sidecar.address) as client:
                head = f"POST {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\nContent-Length: 13\r\n"
                client.send(head.encode() + b'Content-Type: application/json\r\n\r\n{"card":4111}')
                assert client.read_response().status == 200
        for request in upstream.requests:
            token = json.loads(request.body)["card"].encode()
            assert second.open(token, host="127.0.0.1", path="$.card") == b"4111"


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc (Linux)")


@on_linux
def test_the_workers_stay(authority: Authority, tmp_path: Path) -> None:
    with Sidecar(policy(2), tmp_path, authority=authority) as sidecar:
        first = children(sidecar.pid)
        reload(sidecar, policy(2, NO_PIN))
        assert children(sidecar.pid) == first
        assert len(first) == 3
        assert sidecar.metrics().value("overcoat_worker_restarts_total") == 0


@on_linux
def test_a_worker_that_takes_nothing_over_is_replaced_by_one_that_has(authority: Authority, tmp_path: Path) -> None:
    with TlsUpstream(authority) as upstream, Sidecar(policy(3), tmp_path, authority=authority) as sidecar:
        before = set(children(sidecar.pid))
        (stuck,) = sorted(before)[:1]
        os.kill(stuck, signal.SIGSTOP)
        sidecar.write_policy(policy(3, NO_PIN))
        sidecar.signal(signal.SIGHUP)

        def is_replaced() -> bool:
            now = children(sidecar.pid)
            return stuck not in now and len(now) == 4

        wait_until(is_replaced, seconds=20)
        assert before - set(children(sidecar.pid)) == {stuck}
        assert [ask(sidecar, upstream) for _ in range(12)] == [502] * 12


@on_linux
def test_waiting_for_a_worker_does_not_hold_up_the_end(authority: Authority, tmp_path: Path) -> None:
    with Sidecar(policy(2), tmp_path, authority=authority) as sidecar:
        stuck = min(children(sidecar.pid))
        os.kill(stuck, signal.SIGSTOP)
        sidecar.write_policy(policy(2, NO_PIN))
        sidecar.signal(signal.SIGHUP)
        threading.Event().wait(0.5)
        began = time.monotonic()
        sidecar.signal(signal.SIGTERM)
        threading.Event().wait(0.5)
        sidecar.signal(signal.SIGTERM)
        assert sidecar.wait() == 1
        assert time.monotonic() - began < 3


def test_that_a_policy_is_refused_is_told_until_one_is_not(sidecar: Sidecar, workers: int) -> None:
    def refused() -> float:
        return sidecar.metrics().value("overcoat_policy_refused")

    good, bad = policy(workers), policy(workers, more="rules: []")
    assert refused() == 0
    reload(sidecar, bad, "refused")
    assert refused() == 1
    reload(sidecar, good, "unchanged")
    assert refused() == 0
    reload(sidecar, policy(workers + 1), "refused")  # right, and yet not in force
    assert refused() == 1
    reload(sidecar, policy(workers, NO_PIN))
    assert refused() == 0


RULES_THAT_GO = """
    workers: {workers}
    open_connections: keep
    keys:
      fetched: {{jwks: "https://127.0.0.1:{port}/keys", alg: ECDH-ES+A256KW}}
    rules:
      - {{name: {name}, hosts: [{host}], request: [{{encrypt: [$.a], key: fetched, when: {{methods: [PUT]}}}}]}}
"""
RULES_ABOUT_OTHERS = """
    workers: {workers}
    open_connections: keep
    rules:
      - {{name: {name}, hosts: [{host}]}}
"""
END = "overcoat_upstream_certificate_expiry_timestamp_seconds"


@pytest.mark.parametrize("way", ["its rule is gone", "its rule has other hosts"])
def test_no_gauge_tells_of_what_the_policy_has_no_more(
    authority: Authority, upstream: TlsUpstream, workers: int, tmp_path: Path, way: str
) -> None:
    """Else an alert about it would last until the next start."""
    before = RULES_THAT_GO.format(workers=workers, port=upstream.port, name="old", host="127.0.0.1")
    with Sidecar(before, tmp_path, authority=authority) as sidecar:
        for _ in range(10):
            with RawClient(sidecar.address) as client:
                client.send(f"GET {upstream.url()} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
                assert client.read_response().status == 200
        metrics = sidecar.metrics()
        assert metrics.value(END, rule="old") > 0
        assert metrics.labels("overcoat_jwks_fetched_timestamp_seconds") == ({"key": "fetched"},)
        assert {"rule": "old", "mode": "enforce", "kind": "request"} in metrics.labels("overcoat_in_flight")
        name = "other" if way == "its rule is gone" else "old"
        reload(sidecar, RULES_ABOUT_OTHERS.format(workers=workers, name=name, host="other.example"))
        wait_until(lambda: sidecar.metrics().value(END) == 0)
        metrics = sidecar.metrics()
        assert {labels["rule"] for labels in metrics.labels(END)} <= {name}
        assert metrics.labels("overcoat_jwks_fetched_timestamp_seconds") == ()
        assert {labels["rule"] for labels in metrics.labels("overcoat_in_flight")} == {name, "-"}
        assert metrics.value("overcoat_requests_total", rule="old") == 10  # what was counted stays
        one = Metrics.parse(sidecar.admin_get("/metrics?name[]=overcoat_client_connections")[1])
        assert {name for name, _, _ in one.samples} == {"overcoat_client_connections"}
