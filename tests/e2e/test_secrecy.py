"""A secret from the environment is seen by nobody else: not there, not in a core, not by a program of the same user."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.processes import children
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.e2e.sidecar import clean_environment
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc (Linux)")
COUNTS = pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
RULE = 'rules: [{name: pay, hosts: ["127.0.0.1"], request: [{encrypt: ["$.card"], key: app}]}]'
SECRET = "c2VjcmV0" + base64.urlsafe_b64encode(b"4111-canary-4111-canary!").decode()


def policy(count: int) -> str:
    keys = "keys: {app: {alg: A256KW, primary: {kid: app-1, key: {env: APP_KEY}}}}"
    return f"workers: {count}\n{keys}\n{RULE}\n"


@pytest.fixture
def upstream(authority: Authority) -> Iterator[TlsUpstream]:
    with TlsUpstream(authority) as server:
        yield server


def jwk() -> str:
    return json.dumps({"kty": "oct", "k": base64.urlsafe_b64encode(SECRET[:32].encode()).decode().rstrip("=")})


def processes(sidecar: Sidecar) -> list[int]:
    return [sidecar.pid, *children(sidecar.pid)]


def was_read_again(sidecar: Sidecar, times: int) -> bool:
    return sidecar.stderr.count("the policy was read again") == times


def says_no(file: Path) -> bool:
    return file.exists() and file.read_text() == "0"


def send_card(sidecar: Sidecar, upstream: TlsUpstream) -> bytes:
    with RawClient(sidecar.address) as client:
        head = (
            f"POST {upstream.url()} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\nContent-Type: application/json\r\n"
        )
        client.send(head.encode() + b'Content-Length: 14\r\n\r\n{"card":"411"}')
        assert client.read_response().status == 200
    return upstream.requests[-1].body


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody but root can look")
@COUNTS
def test_it_is_in_no_environment_and_a_reload_has_it_still(
    authority: Authority, upstream: TlsUpstream, tmp_path: Path, count: int
) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority, env={"APP_KEY": jwk(), "OTHER": "seen"}) as sidecar:

        def environments() -> list[bytes]:
            return [Path(f"/proc/{pid}/environ").read_bytes() for pid in processes(sidecar)]

        assert len(environments()) == (1 if count == 1 else count + 2)
        assert all(b"OTHER=seen" in each and b"kty" not in each for each in environments())
        assert b"eyJ" in send_card(sidecar, upstream)
        for number in (1, 2):
            sidecar.signal(signal.SIGHUP)
            wait_until(partial(was_read_again, sidecar, number), "it was read again")
        assert b"eyJ" in send_card(sidecar, upstream)
        for pid in processes(sidecar)[1:]:
            os.kill(pid, signal.SIGKILL)  # and those that take their places
        wait_until(lambda: count == 1 or sidecar.stderr.count("is replaced") == count + 1, "they are replaced")
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 200, "it is ready")
        assert all(b"OTHER=seen" in each and b"kty" not in each for each in environments())
        assert b"eyJ" in send_card(sidecar, upstream)


@COUNTS
def test_no_process_may_leave_a_core(authority: Authority, tmp_path: Path, count: int) -> None:
    with Sidecar(policy(count), tmp_path, authority=authority, env={"APP_KEY": jwk()}) as sidecar:
        for pid in processes(sidecar):
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (core,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
            assert core == ["0", "0"]


# Starts the command, and asks the kernel from inside each process whether others of the same user may look in.
ASKING = """
import ctypes, os, pathlib, sys, threading, time
sys.path.append(sys.argv.pop(1))
folder = pathlib.Path(sys.argv.pop(1))
fork = os.fork

def tell():
    while True:
        (folder / f"dumpable-{os.getpid()}").write_text(str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))
        time.sleep(0.05)

def telling_fork():
    pid = fork()
    if not pid:
        threading.Thread(target=tell, daemon=True).start()
    return pid

os.fork = telling_fork
threading.Thread(target=tell, daemon=True).start()
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""


@COUNTS
def test_no_process_lets_others_of_its_user_look_in(authority: Authority, tmp_path: Path, count: int) -> None:
    (tmp_path / "asking.py").write_text(ASKING)
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-P", str(tmp_path / "asking.py"), root, str(tmp_path)]
    with Sidecar(policy(count), tmp_path, authority=authority, command=command, env={"APP_KEY": jwk()}) as sidecar:
        for pid in processes(sidecar):
            wait_until(partial(says_no, tmp_path / f"dumpable-{pid}"), f"{pid} is closed")


def test_commands_that_read_keys_are_as_careful(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n" + policy(1))
    script = (
        "import os, resource, sys; sys.path.append(sys.argv.pop(1))\n"
        "from proxy.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(resource.getrlimit(resource.RLIMIT_CORE), 'APP_KEY' in os.environ, file=sys.stderr)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    for words in (["check"], ["keys", "list"], ["explain", "https://127.0.0.1/"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, root, *words, "-p", "policy.yaml"],
            cwd=tmp_path,
            env=clean_environment({"APP_KEY": jwk()}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        assert done.stderr.splitlines()[-1] == "(0, 0) False", done.stderr
