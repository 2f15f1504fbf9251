"""Under systemd: the manager is told when the sidecar is ready and when it drains, the unit is sound."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.policyfile.load import load_policy
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.waiting import wait_until

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "overcoat.service"


class Manager:
    """Receives what a service tells its manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(10)

    def next(self) -> str:
        """Return the next message."""
        return self._socket.recv(4096).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(
    params=["file", pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux"))]
)
def manager(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager, at an address of either kind."""
    folder = tmp_path_factory.mktemp("manager")
    found = Manager(str(folder / "notify") if request.param == "file" else f"@{folder}")
    yield found
    found.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_manager_is_told_once_that_it_is_ready_and_that_it_drains(
    manager: Manager, tmp_path: Path, workers: int
) -> None:
    with Sidecar(f"workers: {workers}", tmp_path, env={"NOTIFY_SOCKET": manager.address}) as sidecar:
        assert manager.next() == "READY=1"
        assert sidecar.stop() == 0
        assert manager.next() == "STOPPING=1"


def test_a_manager_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    with Sidecar("mode: enforce", tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "none")}) as sidecar:
        told = "the service manager cannot be told READY=1: no such file or directory"
        wait_until(lambda: told in sidecar.stderr, "the warning")


def test_without_a_manager_nothing_is_said(tmp_path: Path) -> None:
    with Sidecar("mode: enforce", tmp_path) as sidecar:
        assert "service manager" not in sidecar.stderr


def settings() -> dict[str, str]:
    """The unit's settings; of one that is there several times the last."""
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE))


def test_systemd_finds_nothing_wrong_with_the_unit_and_its_sandbox(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    here = tmp_path / UNIT.name
    program = shlex.split(settings()["ExecStart"])[0]
    here.write_text(UNIT.read_text().replace(program, sys.executable))  # it must be there
    verified = subprocess.run([analyze, "verify", here], capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    rating = [analyze, "security", "--offline=true", "--no-pager", "--threshold=15", str(here)]  # of 100; 15 is "OK"
    done = subprocess.run(rating, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_it_waits_for_the_sidecar_to_drain(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    policy = load_policy(tmp_path / "policy.yaml", {})
    assert int(settings()["TimeoutStopSec"]) >= policy.drain_wait + policy.drain_timeout + 2


def test_it_does_not_forbid_what_callbacks_from_openssl_take() -> None:
    """Tried with the kernel's own switch (PR_SET_MDWE): the sidecar gets ready, and then no handshake succeeds."""
    assert "MemoryDenyWriteExecute" not in settings()
