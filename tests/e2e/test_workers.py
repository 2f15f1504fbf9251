"""Several workers: one set of listeners, one admin endpoint, one orderly end; and one that dies is replaced.

Proves that what holds for one process holds for several (ARCHITECTURE.md, rules 1 and 7), from outside: the processes
are found and killed by their ids.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.processes import children, is_alive, workers
from tests.e2e.sidecar import ROOT, SidecarFailed, overcoat_command
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc (Linux)")
COUNT = 3


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


@pytest.fixture
def sidecar(authority: Authority, tmp_path: Path) -> Iterator[Sidecar]:
    with Sidecar(f"workers: {COUNT}\n", tmp_path, authority=authority) as running:
        yield running


def ask(sidecar: Sidecar, upstream: TlsUpstream, path: str = "/") -> int:
    with RawClient(sidecar.address) as client:
        client.send(f"GET {upstream.url(path)} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
        return client.read_response().status


def test_the_workers_share_the_work_and_their_metrics_are_added_up(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    assert len(workers(sidecar.pid)) == COUNT
    assert [ask(sidecar, upstream, f"/{n}") for n in range(60)] == [200] * 60
    assert sidecar.metrics().value("overcoat_requests_total", rule="-", action="upgrade", reason="-") == 60
    assert len(sidecar.wait_for_decisions(60)) == 60
    # Each worker has a pool of its own: as many upstream connections as workers that had something to do.
    assert 2 <= len(upstream.connections) <= COUNT
    assert sorted(request.target for request in upstream.requests) == sorted(f"/{n}" for n in range(60))


def test_a_worker_that_dies_is_replaced_and_counted_and_no_later_request_fails(
    sidecar: Sidecar, upstream: TlsUpstream
) -> None:
    victim, *others = workers(sidecar.pid)
    os.kill(victim, signal.SIGKILL)
    assert [ask(sidecar, upstream) for _ in range(20)] == [200] * 20  # also those that wait in the dead one's queue
    wait_until(lambda: len(workers(sidecar.pid)) == COUNT)
    assert set(others) < set(workers(sidecar.pid))
    assert victim not in workers(sidecar.pid)
    assert "a worker was killed by signal 9 (Killed), and is replaced" in sidecar.stderr
    assert sidecar.metrics().value("overcoat_worker_restarts_total") == 1
    assert sidecar.admin_get("/ready")[0] == 200


def test_successors_go_on_counting_in_the_same_files(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Sidecar("workers: 2\n", tmp_path, authority=authority, env={"TMPDIR": str(temporary)}) as sidecar:

        def counted() -> float:  # a little after its app has the answer
            return sidecar.metrics().value("overcoat_requests_total", rule="-", action="upgrade", reason="-")

        assert [ask(sidecar, upstream) for _ in range(20)] == [200] * 20
        wait_until(lambda: counted() == 20)
        files = sorted(temporary.rglob("*.db"))
        for victim in workers(sidecar.pid):
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: sidecar.metrics().value("overcoat_worker_restarts_total") == 2)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 200)
        assert [ask(sidecar, upstream) for _ in range(20)] == [200] * 20
        assert sorted(temporary.rglob("*.db")) == files
        wait_until(lambda: counted() == 40)
        wait_until(lambda: sidecar.metrics().value("overcoat_client_connections") == 0)
    assert list(temporary.iterdir()) == []


def test_without_processes_a_dead_worker_is_replaced_later(authority: Authority, tmp_path: Path) -> None:
    launcher = (
        "import os, pathlib, sys\nfork, folder = os.fork, pathlib.Path(sys.argv.pop(1))\n"
        "def limited():\n    if (folder / 'none').exists():\n        raise BlockingIOError(11, 'no process')\n"
        "    return fork()\nos.fork = limited\nsys.path.append(sys.argv.pop(1))\nsys.argv[0] = 'overcoat'\n"
        "from proxy.cli import main\nmain()\n"
    )
    (tmp_path / "limited.py").write_text(launcher)
    command = [sys.executable, "-P", str(tmp_path / "limited.py"), str(tmp_path), str(ROOT)]
    with Sidecar("workers: 2\n", tmp_path, authority=authority, command=command) as sidecar:
        (tmp_path / "none").touch()
        victim = workers(sidecar.pid)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "no process for a worker" in sidecar.stderr)
        assert sidecar.admin_get("/ready")[0] == 503
        (tmp_path / "none").unlink()
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 200)
        assert len(workers(sidecar.pid)) == 2


def test_the_admin_endpoint_is_replaced_where_it_was(sidecar: Sidecar) -> None:
    (endpoint,) = set(children(sidecar.pid)) - set(workers(sidecar.pid))
    os.kill(endpoint, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return sidecar.admin_get("/ready")[0] == 200 and endpoint not in children(sidecar.pid)
        except OSError:
            return False

    wait_until(is_back)
    assert sidecar.metrics().value("overcoat_worker_restarts_total") == 1


def test_a_worker_that_hangs_is_told_from_the_others_by_when_it_measured_itself(sidecar: Sidecar) -> None:
    def silent_for(process: str) -> float:
        metrics, name = sidecar.metrics(), "overcoat_process_measured_timestamp_seconds"
        return metrics.value(name, process="admin") - metrics.value(name, process=process)

    stopped = workers(sidecar.pid)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        names = [str(number) for number in range(COUNT)]
        wait_until(lambda: sum(silent_for(name) > 8 for name in names) == 1)
        assert sorted(silent_for(name) > 8 for name in names) == [False] * (COUNT - 1) + [True]
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_the_admin_endpoint_cannot_be_reached_through_any_worker(sidecar: Sidecar) -> None:
    port = int(sidecar.admin_url.rsplit(":", 1)[1])
    for _ in range(10):
        with RawClient(sidecar.address) as client:
            client.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert client.read_response(method="CONNECT").status == 403


def test_running_requests_end_before_any_worker_does(authority: Authority, tmp_path: Path) -> None:
    release = threading.Event()

    def respond(_: object) -> bytes:
        release.wait(20)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    with (
        TlsUpstream(authority, respond=respond) as upstream,
        Sidecar(f"workers: {COUNT}\n", tmp_path, authority=authority) as sidecar,
    ):
        answers: list[int] = []
        asking = [threading.Thread(target=lambda: answers.append(ask(sidecar, upstream))) for _ in range(6)]
        for thread in asking:
            thread.start()
        upstream.wait_for_requests(6)
        sidecar.signal(signal.SIGTERM)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 503)
        release.set()
        for thread in asking:
            thread.join(20)
        assert answers == [200] * 6
        assert sidecar.wait() == 0


def test_the_end_does_not_wait_for_workers_that_are_not_there(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("workers: 2\n", tmp_path, authority=authority) as sidecar:
        for worker in workers(sidecar.pid):
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: sidecar.stderr.count("is replaced") == 2)  # else one of the two ends badly while it drains
        began = time.monotonic()
        sidecar.signal(signal.SIGTERM)
        assert sidecar.wait() == 0
        assert time.monotonic() - began < 3


def test_it_is_not_ready_while_a_worker_is_missing(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("workers: 2\n", tmp_path, authority=authority) as sidecar:
        os.kill(workers(sidecar.pid)[0], signal.SIGKILL)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 503)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 200)


def test_a_successor_trusts_the_roots_that_the_others_trust(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path
) -> None:
    with Sidecar("workers: 2\n", tmp_path, authority=authority, arguments=["--no-watch"]) as sidecar:
        Authority().write_pem(tmp_path / "roots.pem")  # another authority's, which nobody has asked to be taken over
        for worker in workers(sidecar.pid):
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: sidecar.metrics().value("overcoat_worker_restarts_total") == 2)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 200)
        assert [ask(sidecar, upstream) for _ in range(10)] == [200] * 10
        sidecar.signal(signal.SIGHUP)
        wait_until(lambda: "is in force" in sidecar.stderr)
        assert [ask(sidecar, upstream) for _ in range(10)] == [502] * 10


def test_a_child_of_somebody_else_does_not_keep_it(authority: Authority, tmp_path: Path) -> None:
    command = ["sh", "-c", 'sleep 30 >/dev/null 2>&1 & echo $! > sleep.pid; exec "$0" "$@"', *overcoat_command()]
    with Sidecar("workers: 2\n", tmp_path, authority=authority, command=command) as sidecar:
        began = time.monotonic()
        sidecar.signal(signal.SIGTERM)
        assert sidecar.wait() == 0
        assert time.monotonic() - began < 5
        os.kill(int((tmp_path / "sleep.pid").read_text()), signal.SIGKILL)


def test_a_worker_that_does_not_drain_is_ended(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("workers: 2\n", tmp_path, authority=authority) as sidecar:
        stuck = workers(sidecar.pid)[0]
        os.kill(stuck, signal.SIGSTOP)
        sidecar.signal(signal.SIGTERM)
        wait_until(lambda: not is_alive(sidecar.pid), seconds=20)
        assert sidecar.wait() == 1  # whatever it had in hand was cut off
        assert not is_alive(stuck)
        assert "a worker is not over in time" in sidecar.stderr


@pytest.mark.parametrize("count", [1, 2])
def test_a_standard_output_that_is_closed_is_no_reason_to_fail(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, count: int
) -> None:
    command = ["sh", "-c", 'exec "$0" "$@" >&-', *overcoat_command()]
    with Sidecar(f"workers: {count}\n", tmp_path, authority=authority, command=command) as sidecar:
        assert ask(sidecar, upstream) == 200


@pytest.mark.parametrize("count", [1, 2])
def test_a_reload_that_is_asked_for_too_early_does_no_harm(authority: Authority, tmp_path: Path, count: int) -> None:
    sidecar = Sidecar(f"workers: {count}\n", tmp_path, authority=authority)
    stop = threading.Event()

    def ask_for_it() -> None:
        while not stop.wait(0.02):
            try:
                pid = sidecar.pid
            except AssertionError:
                continue
            with contextlib.suppress(OSError):  # it has ended, which fails the test elsewhere
                if (Path(f"/proc/{pid}/cmdline")).read_bytes().count(b"serve") and _ignores_hangups(pid):
                    os.kill(pid, signal.SIGHUP)

    asking = threading.Thread(target=ask_for_it)
    asking.start()
    try:
        with sidecar:
            assert sidecar.admin_get("/ready")[0] == 200
            stop.set()
            asking.join()
    finally:
        stop.set()


def _ignores_hangups(pid: int) -> bool:
    """Tell whether a process is past its first moments, in which no program can have said what SIGHUP is to mean."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn", "SigCgt"))}
    return bool((masks["SigIgn"] | masks["SigCgt"]) & 1)


def test_a_second_signal_ends_all_at_once(authority: Authority, tmp_path: Path) -> None:
    release = threading.Event()

    def respond(_: object) -> bytes:
        release.wait(20)
        return b""

    with TlsUpstream(authority, respond=respond) as upstream:
        sidecar = Sidecar(f"workers: {COUNT}\n", tmp_path, authority=authority)
        with sidecar, RawClient(sidecar.address) as client:
            client.send(f"GET {upstream.url()} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
            wait_until(lambda: any(c.received for c in upstream.connections))
            pids = children(sidecar.pid)
            sidecar.signal(signal.SIGTERM)
            wait_until(lambda: sidecar.admin_get("/ready")[0] == 503)
            began = time.monotonic()
            sidecar.signal(signal.SIGTERM)
            assert sidecar.wait() == 1
            assert time.monotonic() - began < 1
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
            release.set()


def test_workers_end_when_their_parent_is_killed(authority: Authority, tmp_path: Path) -> None:
    with Sidecar(f"workers: {COUNT}\n", tmp_path, authority=authority) as sidecar:
        pids = children(sidecar.pid)
        assert len(pids) == COUNT + 1
        sidecar.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_what_a_killed_parent_leaves_behind_goes_at_the_next_start(authority: Authority, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary), "OVERCOAT_SHARE_CA": "1"}
    first = Sidecar("workers: 2\n", tmp_path, authority=authority, env=env)
    with first, Sidecar("workers: 2\n", tmp_path, authority=authority, env=env) as other:
        (lives,) = (other_folder for other_folder in temporary.iterdir() if holds(other.pid, other_folder))
        first.kill()
        wait_until(lambda: len(list(temporary.iterdir())) == 2)
        time.sleep(1)  # its workers hold what they use as long as they live
        with Sidecar("workers: 2\n", tmp_path, authority=authority, env=env) as third:
            assert lives in temporary.iterdir()
            assert len(list(temporary.iterdir())) == 2
            assert third.metrics().value("overcoat_client_connections") == 0
            assert other.metrics().value("overcoat_client_connections") == 0
    assert list(temporary.iterdir()) == []


def holds(pid: int, folder: Path) -> bool:
    """Tell whether a process has the lock of a directory, as the kernel lists it."""
    status = (folder / "in-use").stat()
    return any(
        line.split()[4] == str(pid) and line.split()[5].endswith(f":{status.st_ino}")
        for line in Path("/proc/locks").read_text().splitlines()
    )


@pytest.mark.parametrize("which", ["listen", "admin"])
def test_a_port_in_use_is_one_line_and_status_1(authority: Authority, tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        key = f"listen: [forward://{where}]" if which == "listen" else f"admin: {where}"
        with pytest.raises(SidecarFailed) as failed, Sidecar(f"workers: 2\n{key}\n", tmp_path, authority=authority):
            pass
        assert failed.value.status == 1
        (line,) = [line for line in failed.value.stderr.splitlines() if '"level": "error"' in line]
        assert where in line
        assert "Traceback" not in failed.value.stderr


@pytest.mark.parametrize("count", ["0", "65", "true", '"many"', "-1"])
def test_a_wrong_number_of_workers_is_refused(authority: Authority, tmp_path: Path, count: str) -> None:
    with pytest.raises(SidecarFailed) as failed, Sidecar(f"workers: {count}\n", tmp_path, authority=authority):
        pass
    assert failed.value.status == 2
    assert "workers: " in failed.value.stderr
    assert "from 1 to 64, or auto" in failed.value.stderr
