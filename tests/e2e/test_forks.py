"""A fork of `tests.e2e.forks` is what a started command is: modules, environment, streams, signals and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.e2e import forks, forkserver
from tests.e2e.forks import can_fork, fork, run
from tests.e2e.sidecar import Sidecar, StartedSidecar, clean_environment

pytestmark = pytest.mark.skipif(
    not can_fork(["overcoat"], clean_environment()), reason="needs pidfd (Linux), and no measuring of processes"
)

OURS = ("proxy", "addons", "overcoat")

SHOW = """\
import gc, json, os, resource, signal, sys, threading
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
facts = {
    "signals": [status[name] for name in ("SigBlk\\n", "SigIgn", "SigCgt", "SigPnd") if name in status],
    "dispositions": [str(signal.getsignal(number)) for number in signal.valid_signals()],
    "limits": [resource.getrlimit(getattr(resource, each)) for each in dir(resource) if each.startswith("RLIMIT_")],
    "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1],
    "threads": threading.active_count(),
    "group": os.getpgid(0),
    "session": os.getsid(0),
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "arguments": sys.argv,
    "path": sys.path,
    "name": __name__,
    "file": __file__,
    "umask": os.umask(0),
    "streams": [
        (each.encoding, each.errors, each.line_buffering, each.write_through, each.isatty())
        for each in (sys.stdin, sys.stdout, sys.stderr)
    ],
    "input": sys.stdin.read(),
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
    "time zone": __import__("time").tzname,
    "encodings": [sys.getdefaultencoding(), sys.getfilesystemencoding()],
}
print(json.dumps(facts))
sys.stderr.write("é\\n")
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "show.py"
    path.write_text(SHOW)
    return path


def modules_of_a_start(folder: Path) -> set[str]:
    """Return the modules that a sidecar which was started has imported when it is ready, with those of the process that
    has read its policy.
    """
    command = [sys.executable, "-P", str(forks.SERVER.with_name("named_hosts.py")), "{}"]
    found = {"proxy.commands", "proxy.commands.serve"}  # `importlib.import_module` is not told
    process = subprocess.Popen(
        [*command, "serve", "-p", "policy.yaml"],
        cwd=folder,
        env=clean_environment({"OVERCOAT_DATA": str(folder / "data"), "PYTHONPROFILEIMPORTTIME": "1"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("import time:"):
                found.add(line.rpartition("|")[2].strip())
            elif '"event": "ready"' in line:
                process.terminate()
    assert process.returncode == 0
    return found


class TestModules:
    def test_a_fork_has_nothing_that_a_ready_sidecar_has_not(self, tmp_path: Path) -> None:
        (tmp_path / "policy.yaml").write_text("version: 1\nlisten: [forward://127.0.0.1:0]\nadmin: 127.0.0.1:0\n")
        started = modules_of_a_start(tmp_path)
        script = tmp_path / "modules.py"
        script.write_text("import sys; print(*sys.modules)")
        forked = set(run([str(script)], tmp_path, clean_environment(), timeout=30).stdout.split())
        assert {name for name in forked if name.partition(".")[0] in OURS} <= started
        others = set(packages_distributions())
        theirs = {name.partition(".")[0] for name in forked} & others
        assert theirs <= {name.partition(".")[0] for name in started}
        assert {"mitmproxy", "prometheus_client", "pydantic", "yaml"} <= theirs


class TestProcess:
    def test_it_is_as_one_that_was_started(self, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # What this process hands down may have changed since its server began: tests of commands lower limits.
        monkeypatch.setattr(forks, "_server", forks._Server())
        environment = clean_environment({"OVERCOAT_ONE": "1", "ODD": "a=b\udcff"})
        started = subprocess.run(
            [sys.executable, str(script), "x", "y z"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        forked = run([str(script), "x", "y z"], tmp_path, environment, timeout=30)
        assert (forked.returncode, forked.stderr) == (started.returncode, started.stderr) == (3, "é\n")
        ours, theirs = json.loads(forked.stdout), json.loads(started.stdout)
        for name in theirs:
            assert ours[name] == theirs[name], name
        assert ours["threads"] == 1

    def test_an_exception_ends_it_as_ever(self, tmp_path: Path) -> None:
        script = tmp_path / "fails.py"
        script.write_text("raise LookupError('why')")
        done = run([str(script)], tmp_path, clean_environment(), timeout=30)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "LookupError: why")

    def test_signals_end_it_and_its_number_is_its_own_until_it_was_waited_for(self, tmp_path: Path) -> None:
        script = tmp_path / "waits.py"
        script.write_text("import time; print('here', flush=True); time.sleep(60)")
        first, second = (fork([str(script)], tmp_path, clean_environment()) for _ in range(2))
        for process in (first, second):
            assert process.stdout.readline() == b"here\n"
            assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(0.05)
        first.terminate()
        assert first.stdout.read() == b""
        os.kill(first.pid, 0)
        assert first.wait(30) == -signal.SIGTERM
        assert second.poll() is None
        second.kill()
        assert (second.wait(30), second.wait(), second.poll(), second.returncode) == (-signal.SIGKILL,) * 4
        for process in (first, second):
            process.stdout.close()
            process.stderr.close()

    def test_what_is_read_at_the_start_of_an_interpreter_is_no_fork(self, tmp_path: Path) -> None:
        run([str(self.empty(tmp_path))], tmp_path, clean_environment(), timeout=30)
        for name in ("PYTHONPATH", "PYTHONHASHSEED", "MALLOC_ARENA_MAX", "TZ", "LC_ALL", "COVERAGE_PROCESS_CONFIG"):
            assert not can_fork(["overcoat"], clean_environment({name: "1"})), name
        assert can_fork(["overcoat"], clean_environment({"OVERCOAT_TZ": "1"}))

    def empty(self, folder: Path) -> Path:
        script = folder / "empty.py"
        script.write_text("")
        return script


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sidecar_is_forked_unless_it_says_that_it_is_started(workers: int, tmp_path: Path) -> None:
    for kind, is_fork in ((Sidecar, True), (StartedSidecar, False)):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        with kind(f"workers: {workers}", folder) as sidecar:
            parent = Path(f"/proc/{sidecar.pid}/stat").read_text().rpartition(")")[2].split()[1]
            assert (parent != str(os.getpid())) == is_fork
            assert sidecar.metrics().value("overcoat_policy_reads_total") == 0
            assert sidecar.run("ca").startswith("-----BEGIN")


def test_the_server_imports_all_it_needs_from_where_the_launcher_does() -> None:
    before = list(sys.path)
    forkserver.import_all()
    assert sys.path == before
