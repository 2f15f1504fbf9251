"""The status page of a running sidecar, as a browser without scripts would get it.

Proves ARCHITECTURE's rule 6 for it: no query, header field, body or key is on it.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

NO_PIN = "sha256/" + "A" * 42 + "E="
LAST_DAY = (datetime.now(UTC) + timedelta(days=40)).date()
POLICY = """
workers: WORKERS
keys: {pay: {alg: ECDH-ES+A256KW, primary: {kid: pay, file: pay.pub.pem, not_after: LAST_DAY}}}
rules:
  - {name: shop, hosts: ["127.0.0.1"], request: [{encrypt: ["$.card"], key: pay}]}
  - {name: closed, hosts: [localhost], pins: {any_of: ["NO_PIN"]}}
""".replace("NO_PIN", NO_PIN).replace("LAST_DAY", LAST_DAY.isoformat())


@pytest.fixture(scope="module")
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


@pytest.fixture(scope="module", params=[1, 3], ids=["one process", "three workers"])
def sidecar(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("status")
    Receiver("pay").write_public(folder)
    with Sidecar(POLICY.replace("WORKERS", str(request.param)), folder, authority=authority) as running:
        yield running


def ask(sidecar: Sidecar, upstream: TlsUpstream, path: str, host: str = "127.0.0.1") -> int:
    body = b'{"card": "4111 secret"}'
    with RawClient(sidecar.address) as client:
        fields = f"Host: {host}:{upstream.port}\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\n"
        head = f"POST http://{host}:{upstream.port}{path} HTTP/1.1\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        client.send(head.encode("latin-1") + body)
        return client.read_response().status


def told(sidecar: Sidecar) -> dict[str, Any]:
    asked = urllib.request.Request(sidecar.admin_url, headers={"Accept": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def paths(sidecar: Sidecar) -> set[str]:
    """Return the paths of the decisions that are shown."""
    return {each["path"] for each in told(sidecar)["decisions"]}


def test_the_last_fifty_decisions_of_all_workers_are_there(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    assert [ask(sidecar, upstream, f"/number/{number}?q=secret") for number in range(60)] == [200] * 60
    lines = {line["path"]: line for line in sidecar.wait_for_decisions(60)}
    wait_until(lambda: "/number/59" in paths(sidecar))
    found = told(sidecar)["decisions"]
    assert {each["path"] for each in found} == {f"/number/{number}" for number in range(10, 60)}
    assert all(each == lines[each["path"]] for each in found)


def test_a_rule_shows_its_denials_and_why(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    assert ask(sidecar, upstream, "/closed", "localhost") == 502
    wait_until(lambda: told(sidecar)["traffic"]["denied"] == 1)
    view = told(sidecar)
    closed = next(rule for rule in view["rules"] if rule["name"] == "closed")
    assert (closed["denied"], closed["last_reason"]["reason"]) == (1, "pin_mismatch")
    metrics = sidecar.metrics()
    for rule in view["rules"]:
        assert rule["requests"] == metrics.value("overcoat_requests_total", rule=rule["name"])
    page = sidecar.admin_get("/")[1]
    assert re.search(r"<b>closed</b>(?:(?!</tr>).)*<code>pin_mismatch</code>", page, re.DOTALL)


def test_what_a_person_wants_at_one_glance_is_on_it(sidecar: Sidecar) -> None:
    status, page = sidecar.admin_get("/")
    assert status == 200
    (labels,) = sidecar.metrics().labels("overcoat_policy_info")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for what in (
        "ready",
        "enforce",
        labels["hash"],
        "2 rules",
        "client connections",
        f"{LAST_DAY} key set pay: key pay",
    ):
        assert what in text
    assert "4111 secret" not in page


def test_no_secret_is_on_it(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    ask(sidecar, upstream, "/path?q=secret")
    wait_until(lambda: "/path" in paths(sidecar))
    for page in (sidecar.admin_get("/")[1], json.dumps(told(sidecar))):
        assert "secret" not in page.replace(str(sidecar.policy_file), "")


def test_what_an_app_asks_for_is_text_there(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    ask(sidecar, upstream, "/<script>alert(1)</script>/%1B[31m/'\"onload=x")
    wait_until(lambda: any("alert(1)" in path for path in paths(sidecar)))
    page = sidecar.admin_get("/")[1]
    assert "/&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page


@pytest.mark.parametrize("workers", [1, 2])
def test_its_age_is_that_of_the_policy_in_force(authority: Authority, tmp_path: Path, workers: int) -> None:
    Receiver("pay").write_public(tmp_path)
    policy = POLICY.replace("WORKERS", str(workers))
    with Sidecar(policy, tmp_path, authority=authority) as sidecar:
        before = told(sidecar)["policy"]
        wait_until(lambda: told(sidecar)["policy"]["age_seconds"] > 1)
        reload(sidecar, f"{policy}mode: observe\n")
        wait_until(lambda: told(sidecar)["mode"] == "observe")
        after = told(sidecar)["policy"]
        assert after["hash"] != before["hash"]
        assert after["in_force_since"] > before["in_force_since"]
        assert "protects nothing" in sidecar.admin_get("/")[1]
        reload(sidecar, "pinz: 1", "refused")
        wait_until(lambda: told(sidecar)["policy"]["refused"])
        assert "and the one before is in force" in sidecar.admin_get("/")[1]
        assert told(sidecar)["policy"]["in_force_since"] == after["in_force_since"]
