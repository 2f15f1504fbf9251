"""What a reload says is so: what changed, what did not, and what cannot be seen; in the log as in the metrics."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.core.who.clients import hash_password
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.processes import children
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import cannot_mount, edit, mounted
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

READ = re.compile(r"the policy was read again, and is (.*): hash ([0-9a-f]{12}), rules \d+, mode \w+")


def messages(sidecar: Sidecar) -> list[str]:
    return [json.loads(line)["message"] for line in sidecar.stderr.splitlines()]


def read_again(sidecar: Sidecar) -> tuple[str, str]:
    """Have the policy read again; return what is said of it, and the hash."""
    before = len(messages(sidecar))
    sidecar.signal(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for message in messages(sidecar)[before:]:
            if found := READ.fullmatch(message):
                return found[1], found[2]
        time.sleep(0.02)
    pytest.fail(f"nothing was said: {sidecar.stderr}")


def hash_in_force(sidecar: Sidecar) -> str:
    (labels,) = sidecar.metrics().labels("overcoat_policy_info")
    return labels["hash"]


def checked_hash(sidecar: Sidecar) -> str:
    """Return what `overcoat check` says of the same file."""
    return str(json.loads(sidecar.run("check", "--json", "-p", str(sidecar.policy_file)))["hash"])


def ask(client: RawClient, upstream: TlsUpstream) -> int:
    client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
    return client.read_response().status


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_the_same_is_not_taken_over(authority: Authority, tmp_path: Path, workers: int) -> None:
    policy = f'workers: {workers}\nrules: [{{name: here, hosts: ["127.0.0.1"]}}]'
    with (
        TlsUpstream(authority) as upstream,
        Sidecar(policy, tmp_path, authority=authority) as sidecar,
        RawClient(sidecar.address) as client,
    ):
        assert ask(client, upstream) == 200
        sidecar.policy_file.touch()
        said, short = read_again(sidecar)
        assert said == "unchanged"
        assert any(message.endswith(f"hash {short}") for message in messages(sidecar))  # at the start
        assert short == hash_in_force(sidecar) == checked_hash(sidecar)
        assert ask(client, upstream) == 200
        assert len(upstream.connections) == 1  # nothing was closed
        reloads = sidecar.metrics()
        assert reloads.value("overcoat_policy_reloads_total", result="unchanged") == 1
        assert reloads.value("overcoat_policy_reloads_total") == 1


POLICY = """\
workers: WORKERS
keys: {pay: {alg: ECDH-ES+A256KW, primary: {kid: pay, file: pay.pub.pem}}}
clients: {allow: [loopback], users: [{name: a, password_hash: {file: user.hash}}]}
upstream_proxy: {url: "http://127.0.0.1:9", credentials: {file: proxy.secret}}
rules:
  - name: here
    hosts: [api.pay.example]
    pins: {any_of: [{file: pinned.pem}]}
    request: [{encrypt: ["$.card"], key: pay}]
"""


def write_files(folder: Path, authority: Authority) -> dict[str, Callable[[], object]]:
    """Write all files that the policy names; return how each is changed."""

    def pin() -> None:
        (folder / "pinned.pem").write_bytes(authority.issue("api.pay.example").chain_pem[0])

    changes: dict[str, Callable[[], object]] = {
        "key": lambda: Receiver("pay").write_public(folder),
        "password": lambda: (folder / "user.hash").write_text(str(hash_password("x", os.urandom(16)))),
        "pin": pin,
        "roots": lambda: (folder / "roots.pem").write_bytes(authority.pem + Authority().pem),
    }
    for name, change in changes.items():
        if name != "roots":
            change()
    (folder / "proxy.secret").write_text("name:first")
    return changes


@pytest.mark.parametrize("workers", [1, 2])
def test_each_file_that_the_policy_names_counts(authority: Authority, tmp_path: Path, workers: int) -> None:
    changes = write_files(tmp_path, authority)
    with Sidecar(POLICY.replace("WORKERS", str(workers)), tmp_path, authority=authority) as sidecar:
        before = hash_in_force(sidecar)
        for name, change in changes.items():
            change()
            said, short = read_again(sidecar)
            assert (name, said) == (name, f"in force, in place of {before}")
            assert short != before
            assert short == hash_in_force(sidecar) == checked_hash(sidecar)
            before = short
        # What a person chose is in no hash that is shown: whoever reads it could try what it may have been.
        (tmp_path / "proxy.secret").write_text("name:second")
        said, short = read_again(sidecar)
        assert (said, short) == ("in force, with other credentials for the upstream proxy", before)
        assert read_again(sidecar) == ("unchanged", before)
        assert sidecar.metrics().value("overcoat_policy_reloads_total", result="taken") == 5


def test_no_worker_has_another_policy_than_the_one_that_is_said(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("workers: 2\n", tmp_path, authority=authority) as sidecar:
        first = hash_in_force(sidecar)
        workers = children(sidecar.pid)
        stuck = workers[0]
        os.kill(stuck, signal.SIGSTOP)
        try:
            sidecar.write_policy("workers: 2\nmode: observe\n")
            sidecar.signal(signal.SIGHUP)
            time.sleep(1)
            assert not any(READ.fullmatch(message) for message in messages(sidecar))
            assert hash_in_force(sidecar) == first
        finally:
            os.kill(stuck, signal.SIGCONT)
        wait_until(lambda: hash_in_force(sidecar) != first)
        assert hash_in_force(sidecar) == checked_hash(sidecar)
        (said,) = (found for message in messages(sidecar) if (found := READ.fullmatch(message)))
        assert said.groups() == (f"in force, in place of {first}", hash_in_force(sidecar))


def test_what_a_mount_of_a_single_file_does_not_show_is_said(authority: Authority, tmp_path: Path) -> None:
    if why := cannot_mount(tmp_path):
        pytest.skip(why)
    inside, outside = tmp_path / "a folder", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    with_rule = Sidecar("rules: [{name: here, hosts: [a.example]}]", outside, authority=authority).policy_file
    command = mounted(with_rule, inside / "policy.yaml")
    sidecar = Sidecar("", inside, authority=authority, command=command)
    with sidecar:
        (warning,) = (message for message in messages(sidecar) if "mounted as a single file" in message)
        first = hash_in_force(sidecar)
        assert read_again(sidecar) == ("unchanged", first)
        with_rule.write_text(with_rule.read_text() + "# in place\n")  # the same file: this is seen
        assert read_again(sidecar)[0] == f"in force, in place of {first}"
        second = hash_in_force(sidecar)
        edit(with_rule, with_rule.read_text().replace("a.example", "b.example"))
        before = len(messages(sidecar))
        assert read_again(sidecar) == ("unchanged", second)
        wait_until(lambda: len(messages(sidecar)) >= before + 2)
        assert "was replaced or removed outside" in messages(sidecar)[before + 1]
        assert json.loads(sidecar.stderr.splitlines()[before + 1])["level"] == "error"
    assert messages(sidecar).count(warning) == 3


def test_a_mount_of_its_directory_shows_it(authority: Authority, tmp_path: Path) -> None:
    if why := cannot_mount(tmp_path):
        pytest.skip(why)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    sidecar = Sidecar("", inside, authority=authority, command=mounted(outside, inside))
    shutil.copytree(inside, outside)
    with sidecar:
        assert not any("mounted" in message for message in messages(sidecar))
        first = hash_in_force(sidecar)
        edit(outside / "policy.yaml", sidecar.policy_file.read_text() + "# another\n")
        assert read_again(sidecar)[0] == f"in force, in place of {first}"
