"""Directories of metrics: those of the dead are removed at the next start, and no others."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from proxy.processes import metricsfiles
from tests.e2e.sidecar import ROOT

START = (
    "import sys; sys.path.append(sys.argv[1])\n"
    "from proxy.processes.metricsfiles import prepare_metrics\n"
    "print(prepare_metrics(), flush=True); sys.stdin.readline()\n"
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def start() -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", START, str(ROOT)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_directory_of_a_killed_process_goes_at_the_next_start_and_that_of_a_living_one_stays(
    temporary: Path,
) -> None:
    (one, dead), (other, living) = start(), start()
    end(one)
    (dead / "counter_1.db").write_bytes(bytes(8))
    third, new = start()
    assert set(temporary.iterdir()) == {living, new}
    end(other)
    end(third)


def test_what_is_not_one_of_a_dead_process_stays(temporary: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "in-use").touch()
    (temporary / "overcoat-metrics-link").symlink_to(elsewhere)
    (temporary / "overcoat-metrics-file").touch()
    (temporary / "overcoat-metrics-without").mkdir()
    (temporary / "overcoat-metrics-without" / "something").touch()
    (temporary / "overcoat-metrics-empty").mkdir()  # of which only the lock was removed when that was cut short
    begun = temporary / "overcoat-begun-now"
    begun.mkdir()
    process, new = start()
    end(process)
    assert {path.name for path in temporary.iterdir()} == {
        "overcoat-metrics-link",
        "overcoat-metrics-file",
        "overcoat-metrics-without",
        begun.name,
        new.name,
    }
    assert list(elsewhere.iterdir()) == [elsewhere / "in-use"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_nor_does_one_of_another_user(temporary: Path) -> None:
    theirs = temporary / "overcoat-metrics-theirs"
    theirs.mkdir()
    (theirs / "in-use").touch()
    os.chown(theirs, 10001, 10001)
    process, new = start()
    end(process)
    assert set(temporary.iterdir()) == {theirs, new}


def test_a_child_holds_it_after_its_parent_is_gone(temporary: Path) -> None:
    directory = metricsfiles._make_locked()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    for number in range(3, 256):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == str(directory / "in-use"):
                os.close(number)
        except OSError:
            continue
    lock = os.open(directory / "in-use", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(theirs)
    os.waitpid(child, 0)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for number in (lock, ours):
        os.close(number)


def test_many_starts_at_once_remove_nothing_of_each_other(temporary: Path) -> None:
    started: list[tuple[subprocess.Popen[str], Path]] = []
    threads = [threading.Thread(target=lambda: started.append(start())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(temporary.iterdir()) == {directory for _, directory in started}
    assert len(started) == 6
    for process, _ in started:
        end(process)
