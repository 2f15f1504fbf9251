"""Two sidecars on one data directory share a CA only if somebody says so, and no CA is made by a wrong clock.

Sidecars and commands are started as users start them. Only the clock cannot be set: the day before which it is wrong is
moved instead.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.disk.ca import BUILT, CERTIFICATE_FILE, KEY_FILE, CaError, LocalCa
from proxy.disk.sharing import LOCK_FILE, Hold, InUse
from tests.e2e.sidecar import ROOT, Sidecar, SidecarFailed, clean_environment, overcoat_command, run_command
from tests.waiting import wait_until


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def first(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sidecar]:
    (tmp_path / "first").mkdir()
    with Sidecar(f"workers: {request.param}", tmp_path / "first") as sidecar:
        yield sidecar


def second(first: Sidecar, *, share: str = "", variable: str = "", workers: int = 1) -> Sidecar:
    """Return another sidecar with the data directory of the first."""
    folder = first.data.parent.parent / "second"
    folder.mkdir(exist_ok=True)
    env = {"OVERCOAT_DATA": str(first.data)} | ({"OVERCOAT_SHARE_CA": variable} if variable else {})
    return Sidecar(f"workers: {workers}", folder, env=env, arguments=[share] if share else [])


def refused(sidecar: Sidecar) -> str:
    with pytest.raises(SidecarFailed) as caught:
        sidecar.start()
    assert caught.value.status == 2
    return caught.value.stderr


class TestTwoSidecars:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_second_says_who_has_it_and_what_would_be_right(self, first: Sidecar, workers: int) -> None:
        said = refused(second(first, workers=workers))
        for words in (str(first.data), "an OVERCOAT_DATA of its own", "--share-ca (OVERCOAT_SHARE_CA=1)"):
            assert words in said
        if Path("/proc/locks").exists():
            assert f"(process {first.pid})" in said

    @pytest.mark.parametrize(("share", "variable"), [("--share-ca", ""), ("", "1")])
    def test_it_starts_where_that_is_meant_and_then_a_third_must_say_so_too(
        self, first: Sidecar, share: str, variable: str
    ) -> None:
        with second(first, share=share, variable=variable) as other:
            assert not (other.data / CERTIFICATE_FILE).exists()  # that is its own folder
            assert first.stop() == 0
            refused(first)
        first.start()
        assert first.stop() == 0

    def test_commands_need_no_permission(self, first: Sidecar) -> None:
        env = clean_environment({"OVERCOAT_DATA": str(first.data)})
        for command in (["ca"], ["check", "-p", str(first.policy_file)], ["run", "--", "true"]):
            done = run_command([*overcoat_command(), *command], first.data, env)
            assert done.returncode == 0, done.stderr

    def test_one_that_was_killed_holds_nothing_even_while_its_workers_drain(self, first: Sidecar) -> None:
        with socket.create_connection(first.address) as app:
            app.sendall(b"GET http://a.example/ HTTP/1.1\r\n")  # under way, so a worker waits for it
            wait_until(lambda: first.metrics().value("overcoat_client_connections") == 1)
            os.kill(first.pid, signal.SIGKILL)
            app.setblocking(False)
            if "workers: 2" in first.policy_file.read_text():
                with pytest.raises(BlockingIOError):  # its worker is still there
                    app.recv(1)
            with second(first):
                pass
        first.kill()

    def test_it_starts_where_nothing_can_be_locked(self, tmp_path: Path) -> None:
        LocalCa.open(tmp_path / "data", datetime.now(UTC))
        (tmp_path / "data" / LOCK_FILE).mkdir()
        with Sidecar("", tmp_path) as sidecar:
            assert "whether another sidecar uses" in sidecar.stderr


class TestTheLock:
    def test_it_is_held_once_or_shared(self, tmp_path: Path) -> None:
        alone = Hold(tmp_path, shares=False)
        with pytest.raises(InUse):
            Hold(tmp_path, shares=False)
        sharing = Hold(tmp_path, shares=True)
        alone.forget()
        with pytest.raises(InUse):
            Hold(tmp_path, shares=False)
        sharing.forget()
        last = Hold(tmp_path, shares=False)
        assert last.problem is None
        last.forget()

    def test_a_read_only_folder_means_sharing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> int:
            raise OSError(30, "")  # EROFS

        monkeypatch.setattr(os, "open", fail)
        hold = Hold(tmp_path, shares=False)
        assert (hold.is_shared_by_design, hold.problem) == (True, "read-only file system")


LATE = (
    "import datetime, sys; sys.path.append({root!r}); import proxy.disk.ca as ca; "
    "ca.BUILT = datetime.date(9000, 1, 1); "
    "from proxy.cli import main; main(prog_name='overcoat')"
)


def late(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a version that is made in the far future, so that this machine's clock is wrong."""
    return subprocess.run(
        [sys.executable, "-P", "-c", LATE.format(root=str(ROOT)), *arguments],
        env=clean_environment({"OVERCOAT_DATA": str(folder / "data")}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestAWrongClock:
    @pytest.mark.parametrize("command", ["serve", "ca", "check"])
    def test_no_ca_is_made(self, tmp_path: Path, command: str) -> None:
        (tmp_path / "p.yaml").write_text("version: 1\nlisten: [forward://127.0.0.1:0]\nadmin: null\n")
        given = ["-p", "p.yaml"] if command != "ca" else []
        done = late(tmp_path, command, *given)
        said = done.stdout + done.stderr
        assert done.returncode in (1, 2)
        assert f"clock says {datetime.now(UTC):%Y-%m-%d}, and this version is of 9000-01-01" in said
        assert "set the clock" in said
        assert not (tmp_path / "data" / KEY_FILE).exists()

    def test_one_that_is_there_is_used(self, tmp_path: Path) -> None:
        made = LocalCa.open(tmp_path / "data", datetime.now(UTC))
        done = late(tmp_path, "ca")
        assert (done.returncode, done.stdout) == (0, made.pem.decode())

    def test_the_day_itself_is_right_and_the_one_before_is_not(self, tmp_path: Path) -> None:
        day = datetime(BUILT.year, BUILT.month, BUILT.day, tzinfo=UTC)
        with pytest.raises(CaError, match="set the clock"):
            LocalCa.open(tmp_path / "early", day - timedelta(seconds=1))
        LocalCa.open(tmp_path / "early", day)

    def test_the_day_is_plausible(self) -> None:
        """It is no later than now, and no earlier than the newest version that has a date."""
        dated = [
            line.rpartition(" ")[2]
            for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
            if line.startswith(("## [", "## 0", "## 1"))
        ]
        assert datetime.now(UTC).date() >= BUILT
        assert not dated or max(dated) <= BUILT.isoformat()
        assert BUILT.isoformat() >= "2026-11-23"
