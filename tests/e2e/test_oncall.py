"""What a person asks at 3 a.m. has an answer in /metrics: is it us or them, is it full, what ends when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.core.who.clients import hash_password
from tests.e2e.app import Way, ask, open_way
from tests.e2e.app import request as as_bytes
from tests.e2e.certificates import Authority
from tests.e2e.clients import curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.e2e.wire import response
from tests.waiting import wait_until

HOSTS = dict.fromkeys(("pay.example", "plain.example"), "127.0.0.1")
POLICY = """
    workers: {workers}
    keys:
      pay:
        alg: ECDH-ES+A256KW
        primary: {{kid: new, file: {key}, not_after: 2099-12-31}}
        older: [{{kid: old, file: {key}, not_after: 2098-12-31}}]
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$.a"], key: pay}}]}}
      - {{name: plain, hosts: [plain.example], plain_http: allow}}
"""
PAUSE = 0.3


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "workers"])
def sidecar(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("oncall")
    policy = POLICY.format(key=Receiver("pay").write_public(folder), workers=request.param)
    with Sidecar(policy, folder, authority=authority, hosts=HOSTS) as running:
        yield running


def test_the_upstreams_time_is_told_apart_from_our_own(sidecar: Sidecar, authority: Authority) -> None:
    def slow(_: RecordedRequest) -> bytes:
        time.sleep(PAUSE)
        return response(200, b"{}")

    with TlsUpstream(authority, "pay.example", respond=slow) as upstream:
        for way in Way:
            assert ask(sidecar, upstream, "pay.example", way=way, body=b'{"a": 1}').status == 200
    value = sidecar.metrics().value
    for name in ("own", "upstream", "request"):
        assert value(f"overcoat_{name}_seconds_count", rule="pay") == 2
        assert value(f"overcoat_{name}_seconds_bucket", rule="pay", le="+Inf") == 2
    own, upstream_time = (value(f"overcoat_{name}_seconds_sum", rule="pay") for name in ("own", "upstream"))
    total = value("overcoat_request_seconds_sum", rule="pay")
    assert 2 * PAUSE <= upstream_time < total
    assert 0 < own < total - 2 * PAUSE
    assert own + upstream_time <= total


def test_a_body_that_the_app_sends_slowly_is_nobodys_time_here(sidecar: Sidecar, authority: Authority) -> None:
    before = sidecar.metrics()
    with TlsUpstream(authority, "pay.example") as upstream:
        name = f"pay.example:{upstream.port}"
        with open_way(sidecar, "pay.example", upstream.port) as client:
            whole = as_bytes(f"http://{name}/", name, body=b'{"a": 12345}')
            client.send(whole[:-5])
            time.sleep(PAUSE)
            client.send(whole[-5:])
            assert client.read_response().status == 200
    after = sidecar.metrics()
    grown = {
        each: after.value(f"overcoat_{each}_seconds_sum", rule="pay")
        - before.value(f"overcoat_{each}_seconds_sum", rule="pay")
        for each in ("own", "upstream", "request")
    }
    assert grown["request"] >= PAUSE
    assert grown["own"] + grown["upstream"] <= grown["request"] - PAUSE * 0.9


def test_upstreams_statuses_are_told_apart(sidecar: Sidecar) -> None:
    statuses = iter((200, 404, 503))
    with PlainUpstream(respond=lambda _: response(next(statuses), b"x")) as upstream:
        for _ in range(3):
            curl(upstream.url(host="plain.example"), proxy=sidecar.proxy_url)
    for status in ("2xx", "4xx", "5xx"):
        assert sidecar.metrics().value("overcoat_requests_total", rule="plain", outcome="ok", status=status) == 1


def test_each_process_says_what_it_takes(sidecar: Sidecar) -> None:
    processes = {"0"} if "workers: 1" in sidecar.policy_file.read_text() else {"0", "1", "admin"}
    metrics = sidecar.metrics()
    for name in ("resident_memory_bytes", "open_descriptors", "max_descriptors", "cpu_seconds_total"):
        found = {
            labels["process"]: metrics.value(f"overcoat_process_{name}", **labels)
            for labels in metrics.labels(f"overcoat_process_{name}")
        }
        assert found.keys() == processes
        assert all(value > 0 for value in found.values()), (name, found)
    assert all(20e6 < metrics.value("overcoat_process_resident_memory_bytes", process=each) < 1e9 for each in processes)
    before = metrics.value("overcoat_process_cpu_seconds_total", process="0")
    wait_until(lambda: sidecar.metrics().value("overcoat_process_cpu_seconds_total", process="0") > before)


def test_what_ends_is_told_before_it_does(sidecar: Sidecar, authority: Authority) -> None:
    with TlsUpstream(authority, "pay.example") as upstream:
        assert ask(sidecar, upstream, "pay.example", body=b"{}").status == 200
    value = sidecar.metrics().value
    ends = value("overcoat_upstream_certificate_expiry_timestamp_seconds", rule="pay")
    assert ends == datetime(3000, 1, 1, tzinfo=UTC).timestamp()  # the tests' certificates last
    assert value("overcoat_upstream_certificate_expiry_timestamp_seconds", rule="plain") == 0
    for kid, use, year in (("new", "primary", 2099), ("old", "older", 2098)):
        last = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
        assert value("overcoat_key_expiry_timestamp_seconds", key="pay", kid=kid, use=use) == last


def test_the_policy_has_an_age_and_a_last_reading(sidecar: Sidecar) -> None:
    def times() -> tuple[float, float]:
        value = sidecar.metrics().value
        return value("overcoat_policy_taken_timestamp_seconds"), value("overcoat_policy_read_timestamp_seconds")

    taken, read = times()
    assert time.time() - 600 < taken <= read <= time.time()
    text = sidecar.policy_file.read_text()
    sidecar.policy_file.write_text("version: 1\nrules: wrong\n")
    reload(sidecar, result="refused")
    assert times()[0] == taken
    assert times()[1] > read
    assert sidecar.metrics().value("overcoat_policy_refused") == 1
    sidecar.policy_file.write_text(text + "drain_timeout: 7\n")
    reload(sidecar)
    assert times()[0] > taken
    assert sidecar.metrics().value("overcoat_policy_refused") == 0


def test_requests_are_counted_by_user_where_there_are_users(tmp_path: Path) -> None:
    hashed = hash_password("secret", bytes(16))
    policy = f"""
    defaults: {{plain_http: allow}}
    clients: {{users: [{{name: ann, password_hash: "{hashed}"}}, {{name: bob, password_hash: "{hashed}"}}]}}
    """
    with PlainUpstream() as upstream, Sidecar(policy, tmp_path) as sidecar:
        proxy = sidecar.proxy_url.replace("http://", "http://ann:secret@")
        assert curl(upstream.url(), upstream.url(), proxy=proxy).status == 200
        assert curl(upstream.url(), proxy=proxy.replace("ann", "eve")).status == 407
        sidecar.wait_for_decisions(3)
        value = sidecar.metrics().value
        assert value("overcoat_user_requests_total", user="ann", outcome="ok") == 2
        assert value("overcoat_user_requests_total") == 2
        assert {labels["user"] for labels in sidecar.metrics().labels("overcoat_user_requests_total")} == {"ann", "bob"}
