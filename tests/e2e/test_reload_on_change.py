"""A file of the policy changes, and no signal comes: the policy is taken over whole, or not at all.

Proves for each way in which files are replaced that the next requests are decided by the new policy while requests go
on; and ARCHITECTURE's rule 1: what cannot be read takes no protection away, and is said.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from proxy.core.who.clients import hash_password
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import cannot_mount, edit, mounted, reload
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

KEPT = "the policy was not taken over; the one before stays in force"
NO_PIN = "sha256/" + "A" * 42 + "E="
LOOKS = 1.5  # seconds in which a change is surely seen, come to rest, and read


def policy(pin: str | None = None, workers: int = 1, more: str = "") -> str:
    pins = f', pins: {{any_of: ["{pin}"]}}' if pin else ""
    return f'workers: {workers}\nrules:\n  - {{name: here, hosts: ["127.0.0.1"]{pins}}}\n{more}'


def ask(sidecar: Sidecar, upstream: TlsUpstream, fields: str = "") -> int:
    with RawClient(sidecar.address) as client:
        client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n{fields}\r\n".encode())
        return client.read_response().status


def reloads(sidecar: Sidecar, result: str) -> float:
    return sidecar.metrics().value("overcoat_policy_reloads_total", result=result)


def wait_for(sidecar: Sidecar, result: str, change: Callable[[], object]) -> None:
    """Make a change, and wait until it has come to this, once."""
    before = reloads(sidecar, result)
    change()
    wait_until(lambda: reloads(sidecar, result) > before, f"the policy is {result}")
    assert reloads(sidecar, result) == before + 1


def in_turn(*changes: Callable[[], object]) -> None:
    for change in changes:
        change()


class App:
    """Asks again and again, for as long as it runs."""

    def __init__(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        self.statuses: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(sidecar, upstream))

    def _run(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        with RawClient(sidecar.address) as client:
            while not self._stop.wait(0.01):
                client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
                self.statuses.append(client.read_response().status)

    def __enter__(self) -> App:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def as_editors_do(path: Path, text: str) -> None:
    """The old file is moved away, and a new one is written."""
    path.rename(path.with_suffix(".yaml~"))
    path.write_text(text)


def deleted_and_back(path: Path, text: str) -> None:
    path.unlink()
    time.sleep(LOOKS)  # its absence is seen, and refused
    path.write_text(text)


def in_halves(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text[: text.index("any_of")])
        file.flush()
        time.sleep(LOOKS)  # longer than anything is waited for: the half is read, and refused
        file.write(text[file.tell() :])


def by_a_link(path: Path, text: str) -> None:
    """What the name leads to is another file, which was there before."""
    target = path.with_name("target.yaml")
    target.write_text(text)
    link = path.with_name("link")
    link.symlink_to(target.name)
    link.replace(path)


@pytest.fixture(scope="module")
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with Sidecar(policy(), tmp_path_factory.mktemp("ways"), authority=authority) as running:
        yield running


@pytest.mark.parametrize("way", [in_place, edit, as_editors_do, by_a_link, deleted_and_back, in_halves])
def test_next_requests_are_decided_by_the_new_one_and_none_is_lost(
    sidecar: Sidecar, upstream: TlsUpstream, way: Callable[[Path, str], object]
) -> None:
    before = ask(sidecar, upstream)
    after = 502 if before == 200 else 200
    old = sidecar.policy_file.read_text()
    new = policy(NO_PIN if before == 200 else upstream.pin) + old[old.index("version:") :]
    with App(sidecar, upstream) as app:
        wait_for(sidecar, "taken", lambda: way(sidecar.policy_file, new))
        assert [ask(sidecar, upstream) for _ in range(5)] == [after] * 5
        count = len(app.statuses)
        wait_until(lambda: len(app.statuses) > count + 5)
    switched = app.statuses.index(after)
    assert app.statuses == [before] * switched + [after] * (len(app.statuses) - switched)
    assert switched > 0
    assert sidecar.metrics().value("overcoat_policy_refused") == 0
    assert f"{sidecar.policy_file} changed: the policy was read again, and is in force" in sidecar.stderr


def test_what_is_wrong_keeps_the_last_good_one_and_is_said_once(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    sidecar.write_policy(policy(NO_PIN))
    reload(sidecar, result="taken" if ask(sidecar, upstream) == 200 else "unchanged")
    before = reloads(sidecar, "refused")
    said = sidecar.stderr.count(KEPT)
    wait_for(sidecar, "refused", lambda: sidecar.write_policy(policy(more="pinz: 1")))
    assert ask(sidecar, upstream) == 502  # what was pinned still is
    metrics = sidecar.metrics()
    assert metrics.value("overcoat_policy_refused") == 1
    assert sidecar.admin_get("/ready")[0] == 200
    time.sleep(LOOKS)
    assert reloads(sidecar, "refused") == before + 1
    assert sidecar.stderr.count(KEPT) == said + 1
    assert "policy.yaml:4:1: pinz: unknown key" in sidecar.stderr
    wait_for(sidecar, "unchanged", lambda: sidecar.write_policy(policy(NO_PIN)))
    assert sidecar.metrics().value("overcoat_policy_refused") == 0


def test_a_file_that_is_missing_is_waited_for(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    key = "keys: {pay: {alg: ECDH-ES+A256KW, primary: {kid: pay, file: pay.pub.pem}}}"
    wait_for(sidecar, "refused", lambda: sidecar.write_policy(policy(more=key)))
    assert "pay.pub.pem cannot be read" in sidecar.stderr
    wait_for(sidecar, "taken", lambda: Receiver("pay").write_public(sidecar.policy_file.parent))
    assert ask(sidecar, upstream) == 200


def test_what_takes_a_restart_is_said(sidecar: Sidecar) -> None:
    wait_for(sidecar, "refused", lambda: sidecar.write_policy(policy(workers=2)))
    assert "a change of workers takes a restart" in sidecar.stderr


FILES = """\
workers: 2
keys: {pay: {alg: ECDH-ES+A256KW, primary: {kid: pay, file: pay.pub.pem}}}
clients: {allow: [loopback], users: [{name: a, password_hash: {file: user.hash}}]}
rules:
  - name: here
    hosts: ["127.0.0.1"]
    pins: {any_of: [{file: pinned.pem}]}
    request: [{encrypt: ["$.card"], key: pay}]
"""


def post(sidecar: Sidecar, upstream: TlsUpstream, password: str = "first") -> int:
    credentials = base64.b64encode(f"a:{password}".encode()).decode()
    body = b'{"card":4111}'
    with RawClient(sidecar.address) as client:
        head = f"POST {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\nContent-Length: 13\r\n"
        fields = f"Proxy-Authorization: Basic {credentials}\r\nContent-Type: application/json\r\n\r\n"
        client.send(head.encode() + fields.encode() + body)
        return client.read_response().status


def test_each_file_counts_alone_and_in_all_workers(authority: Authority, tmp_path: Path, upstream: TlsUpstream) -> None:
    first, second = Receiver("pay"), Receiver("pay")
    first.write_public(tmp_path)
    roots, user, pinned = tmp_path / "roots.pem", tmp_path / "user.hash", tmp_path / "pinned.pem"
    user.write_text(str(hash_password("first", bytes(16))))
    pinned.write_bytes(upstream.identity.chain_pem[0])
    with Sidecar(FILES, tmp_path, authority=authority) as sidecar:

        def opened_by(receiver: Receiver) -> bool:
            assert [post(sidecar, upstream) for _ in range(4)] == [200] * 4
            tokens = [json.loads(request.body)["card"].encode() for request in upstream.requests[-4:]]
            return all(receiver.open(token, host="127.0.0.1", path="$.card") == b"4111" for token in tokens)

        assert opened_by(first)
        wait_for(sidecar, "taken", lambda: second.write_public(tmp_path))
        assert opened_by(second)
        mend: Callable[[], object] = dict  # so far nothing is broken
        for path, other, status in (
            (roots, Authority().pem, 502),
            (pinned, authority.issue("other.example").chain_pem[0], 502),
            (user, str(hash_password("second", bytes(16))).encode(), 407),
        ):
            good = path.read_bytes()
            wait_for(sidecar, "taken", partial(in_turn, mend, partial(path.write_bytes, other)))
            assert [post(sidecar, upstream) for _ in range(4)] == [status] * 4
            mend = partial(path.write_bytes, good)
        wait_for(sidecar, "taken", mend)
        assert post(sidecar, upstream) == 200


def test_so_do_the_systems_roots(authority: Authority, tmp_path: Path, upstream: TlsUpstream) -> None:
    roots = Authority().write_pem(tmp_path / "system.pem")
    with Sidecar(policy(), tmp_path, env={"SSL_CERT_FILE": str(roots)}) as sidecar:
        assert ask(sidecar, upstream) == 502
        wait_for(sidecar, "taken", lambda: authority.write_pem(roots))
        assert ask(sidecar, upstream) == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mounted_volume_is_swapped_as_a_whole(
    authority: Authority, tmp_path: Path, workers: int, upstream: TlsUpstream
) -> None:
    """As Kubernetes does it with a ConfigMap: each file leads through `..data`, which leads to another folder at once.
    It is mounted read-only.
    """
    if why := cannot_mount(tmp_path):
        pytest.skip(why)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    sidecar = Sidecar(
        policy(NO_PIN, workers),
        inside,
        authority=authority,
        command=mounted(outside, inside, "ro"),
        env={"OVERCOAT_DATA": str(tmp_path / "data")},
    )
    names = ("policy.yaml", "roots.pem")
    (outside / "..first").mkdir(parents=True)
    for name in names:
        shutil.move(inside / name, outside / "..first" / name)
        (outside / name).symlink_to(f"..data/{name}")
    (outside / "..data").symlink_to("..first")
    with sidecar, App(sidecar, upstream) as app:
        assert ask(sidecar, upstream) == 502
        shutil.copytree(outside / "..first", outside / "..second")
        text = (outside / "..second/policy.yaml").read_text()
        (outside / "..second/policy.yaml").write_text(text.replace(NO_PIN, upstream.pin))
        (outside / "..data_tmp").symlink_to("..second")

        def swap() -> None:
            (outside / "..data_tmp").replace(outside / "..data")
            shutil.rmtree(outside / "..first")

        wait_for(sidecar, "taken", swap)
        assert [ask(sidecar, upstream) for _ in range(6)] == [200] * 6
        wait_until(lambda: 200 in app.statuses)
    assert set(app.statuses) == {200, 502}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_only_touched_is_no_news(authority: Authority, tmp_path: Path, workers: int) -> None:
    with Sidecar(policy(None, workers), tmp_path, authority=authority) as sidecar:
        said = sidecar.stderr
        sidecar.policy_file.touch()
        edit(sidecar.policy_file, sidecar.policy_file.read_text())
        time.sleep(LOOKS)
        assert sidecar.metrics().value("overcoat_policy_reloads_total") == 0
        assert sidecar.stderr == said


def test_none_is_looked_at_where_only_signals_should_count(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream
) -> None:
    with Sidecar(policy(), tmp_path, authority=authority, arguments=["--no-watch"]) as sidecar:
        sidecar.write_policy(policy(NO_PIN))
        time.sleep(LOOKS)
        assert ask(sidecar, upstream) == 200
        assert sidecar.metrics().value("overcoat_policy_reloads_total") == 0
        sidecar.signal(signal.SIGHUP)
        wait_until(lambda: reloads(sidecar, "taken") == 1)
        assert ask(sidecar, upstream) == 502
