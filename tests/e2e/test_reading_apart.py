"""The policy is read by a process of its own: whatever becomes of it, the sidecar serves, and says what happened."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from proxy.processes.reload import KEPT
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.processes import children, is_alive, workers
from tests.e2e.sidecar import SidecarFailed
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc (Linux)")
ROOT = Path(__file__).resolve().parents[2]
NO_PIN = "sha256/" + "A" * 42 + "E="
COUNTS = pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
HARMLESS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
UNWATCHED = ("--no-watch",)


def policy(count: int, pin: str | None = None) -> str:
    pins = f', pins: {{any_of: ["{pin}"]}}' if pin else ""
    return f'workers: {count}\nrules:\n  - {{name: here, hosts: ["127.0.0.1"]{pins}}}\n'


@pytest.fixture(scope="module")
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


def ask(sidecar: Sidecar, upstream: TlsUpstream) -> int:
    with RawClient(sidecar.address) as client:
        client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
        return client.read_response().status


def reloads(sidecar: Sidecar, result: str) -> float:
    return sidecar.metrics().value("overcoat_policy_reloads_total", result=result)


def is_reloaded(sidecar: Sidecar, result: str) -> Callable[[], bool]:
    return lambda: reloads(sidecar, result) == 1


def patched(folder: Path, lines: str) -> list[str]:
    """Return a command that does this first, and then what `overcoat` does."""
    script = folder / "patched.py"
    script.write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\nfrom proxy import timelimits\n"
        f"from proxy.processes import apart\n{lines}\n"
        'sys.argv[0] = "overcoat"\nfrom proxy.cli import main\nmain()\n'
    )
    return [sys.executable, "-P", str(script)]


def is_a_reader(pid: int) -> bool:
    """Return whether this is what reads a policy: until it has that program, who starts it waits for it."""
    try:
        return b"proxy.processes.apart" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def stopped(sidecar: Sidecar, begin: Callable[[], object]) -> int:
    """Have the policy read, and stop the process that reads it; return that."""
    before = children(sidecar.pid)
    begin()
    end = time.monotonic() + 10
    while not (found := [pid for pid in children(sidecar.pid) if pid not in before and is_a_reader(pid)]):
        assert time.monotonic() < end, "no process reads it"
    os.kill(found[0], signal.SIGSTOP)
    return found[0]


def to(sidecar: Sidecar, text: str) -> Callable[[], object]:
    """Return what asks for another policy."""

    def begin() -> None:
        sidecar.write_policy(text)
        sidecar.signal(signal.SIGHUP)

    return begin


@COUNTS
def test_who_serves_has_not_what_reads_a_policy(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority) as sidecar:
        sidecar.signal(signal.SIGHUP)
        wait_until(is_reloaded(sidecar, "unchanged"), "it was read again")
        assert ask(sidecar, upstream) == 200
        for pid in [sidecar.pid, *children(sidecar.pid)]:
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "_ssl.cpython" in maps  # what is there can be seen
            assert "pydantic" not in maps
            assert "/_yaml." not in maps


@COUNTS
def test_apps_are_served_while_it_is_read_by_the_policy_before(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority) as sidecar:
        reader = stopped(sidecar, to(sidecar, policy(count, NO_PIN)))
        assert [ask(sidecar, upstream) for _ in range(5)] == [200] * 5
        assert sidecar.admin_get("/ready")[0] == 200
        assert is_alive(reader)
        os.kill(reader, signal.SIGCONT)
        wait_until(is_reloaded(sidecar, "taken"), "the policy is taken over")
        assert [ask(sidecar, upstream) for _ in range(5)] == [502] * 5
        assert not is_alive(reader)


@COUNTS
def test_what_is_asked_for_meanwhile_is_read_afterwards(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority, arguments=UNWATCHED) as sidecar:
        sidecar.write_policy(policy(count, NO_PIN))
        reader = stopped(sidecar, partial(sidecar.signal, signal.SIGHUP))
        for _ in range(3):
            sidecar.signal(signal.SIGHUP)
            assert ask(sidecar, upstream) == 200  # it has acted on the signal
        os.kill(reader, signal.SIGCONT)
        wait_until(is_reloaded(sidecar, "unchanged"), "it was read once more")
        assert ask(sidecar, upstream) == 502
        assert reloads(sidecar, "taken") == 1


@COUNTS
def test_if_it_is_killed_the_policy_stays_and_it_is_said(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority, arguments=UNWATCHED) as sidecar:
        reader = stopped(sidecar, to(sidecar, policy(count, NO_PIN)))
        os.kill(reader, signal.SIGKILL)
        wait_until(is_reloaded(sidecar, "refused"), "it is refused")
        assert f"{KEPT}: the process that reads it was killed by signal 9" in sidecar.stderr
        assert sidecar.metrics().value("overcoat_policy_refused") == 1
        assert not Path(f"/proc/{reader}").exists()  # no zombie
        assert ask(sidecar, upstream) == 200
        sidecar.signal(signal.SIGHUP)
        wait_until(is_reloaded(sidecar, "taken"), "the next one is taken over")
        assert ask(sidecar, upstream) == 502


@COUNTS
def test_files_whose_reading_was_killed_are_read_again(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    command = patched(tmp_path, "timelimits.READ_AGAIN_SECONDS = 0.1")
    with Sidecar(policy(count), tmp_path, authority=authority, command=command) as sidecar:
        reader = stopped(sidecar, lambda: sidecar.write_policy(policy(count, NO_PIN)))
        os.kill(reader, signal.SIGKILL)
        wait_until(is_reloaded(sidecar, "taken"), "it was read again")
        assert ask(sidecar, upstream) == 502
        assert reloads(sidecar, "refused") == 1


@COUNTS
def test_no_other_signal_ends_it(authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority) as sidecar:
        reader = stopped(sidecar, to(sidecar, policy(count, NO_PIN)))
        for number in HARMLESS:
            os.kill(reader, number)
        os.kill(reader, signal.SIGCONT)
        wait_until(is_reloaded(sidecar, "taken"), "the policy is taken over")
        assert ask(sidecar, upstream) == 502


@COUNTS
def test_the_end_does_not_wait_for_it(authority: Authority, tmp_path: Path, count: int) -> None:
    with Sidecar(policy(count) + "drain_wait: 2\n", tmp_path, authority=authority) as sidecar:
        reader = stopped(sidecar, to(sidecar, policy(count, NO_PIN)))
        sidecar.signal(signal.SIGTERM)
        wait_until(lambda: not is_alive(reader), "it is given up")
        assert sidecar.admin_get("/live")[0] == 200  # and not only at the very end
        assert sidecar.wait() == 0
        assert "rror" not in sidecar.stderr


def sockets(pid: int) -> set[str]:
    """Return the sockets that a process has open."""
    names = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return {name for name in names if name.startswith("socket:")}


def test_a_worker_that_begins_meanwhile_has_no_part_in_it(authority: Authority, tmp_path: Path) -> None:
    with Sidecar(policy(2), tmp_path, authority=authority) as sidecar:
        before = sockets(sidecar.pid)
        reader = stopped(sidecar, partial(sidecar.signal, signal.SIGHUP))
        (wire,) = sockets(sidecar.pid) - before
        known = workers(sidecar.pid)
        os.kill(known[0], signal.SIGKILL)
        wait_until(lambda: len(set(workers(sidecar.pid)) - set(known)) == 1, "it is replaced")
        (new,) = set(workers(sidecar.pid)) - set(known)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 200, "it serves")
        assert wire not in sockets(new)
        os.kill(reader, signal.SIGCONT)
        wait_until(is_reloaded(sidecar, "unchanged"), "it was read")


@COUNTS
def test_one_that_takes_too_long_is_given_up(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    command = patched(tmp_path, "timelimits.READ_POLICY_SECONDS = 8.0")  # the first one must not take as long
    with Sidecar(policy(count), tmp_path, authority=authority, command=command, arguments=UNWATCHED) as sidecar:
        reader = stopped(sidecar, to(sidecar, policy(count, NO_PIN)))
        wait_until(is_reloaded(sidecar, "refused"), "it is refused", seconds=20)
        assert f"{KEPT}: reading it took more than 8 s" in sidecar.stderr
        assert not is_alive(reader)
        assert ask(sidecar, upstream) == 200


# The system allows so many processes that read the policy, and no further one.
FULL = """
start, left = apart.start, [None] * {allowed}
def full(wire):
    if not left:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    left.pop()
    return start(wire)
apart.start = full
"""


@COUNTS
def test_if_the_system_allows_none_the_policy_stays(
    authority: Authority, tmp_path: Path, upstream: TlsUpstream, count: int
) -> None:
    command = patched(tmp_path, FULL.format(allowed=1))
    with Sidecar(policy(count), tmp_path, authority=authority, command=command, arguments=UNWATCHED) as sidecar:
        to(sidecar, policy(count, NO_PIN))()
        wait_until(is_reloaded(sidecar, "refused"), "it is refused")
        why = "the process that reads it cannot be started: resource temporarily unavailable"
        assert f"{KEPT}: {why}" in sidecar.stderr
        assert ask(sidecar, upstream) == 200


def test_at_the_start_nothing_is_served_then(authority: Authority, tmp_path: Path) -> None:
    command = patched(tmp_path, FULL.format(allowed=0))
    with (
        pytest.raises(SidecarFailed, match="cannot be started: resource temporarily unavailable") as failed,
        Sidecar(policy(1), tmp_path, authority=authority, command=command),
    ):
        pass
    assert failed.value.status == 1


# The process that reads the policy tells of itself before it does so.
TELLING = """
apart._CODE = apart._CODE.replace("; serve_input()", '''
import ctypes, os, proxy.processes.apart as apart
answer = apart._answer
def telling(question):
    told = [str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)), open("/proc/self/oom_score_adj").read().strip()]
    told += open("/proc/self/limits").read().split("Max core file size")[1].split()[:2]
    told += [os.readlink("/proc/self/fd/1")]
    told += [name for name in ("APP_KEY", "OTHER") if name in open("/proc/self/environ").read()]
    open("TOLD", "w").write(" ".join(told))
    return answer(question)
apart._answer = telling
serve_input()
''')
"""


def test_it_is_private_writes_no_line_and_is_the_first_to_go_where_memory_is_short(
    authority: Authority, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    command = patched(tmp_path, TELLING.replace("TOLD", str(told)))
    jwk = json.dumps({"kty": "oct", "k": "A" * 42 + "E"})
    text = policy(1) + "keys: {app: {alg: A256KW, primary: {kid: one, key: {env: APP_KEY}}}}\n"
    with Sidecar(text, tmp_path, authority=authority, command=command, env={"APP_KEY": jwk, "OTHER": "x"}) as sidecar:
        assert told.read_text() == "0 1000 0 0 /dev/null"
        assert Path(f"/proc/{sidecar.pid}/oom_score_adj").read_text().strip() != "1000"
