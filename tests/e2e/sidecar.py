"""Runs `overcoat serve` as a process of its own, and reads all that it says.

Rules of this module:

- What is tested is the installed command, as a user starts it: the console script beside this Python. Only a test that
  needs host names (`hosts=`) starts it through `named_hosts`, and only a checkout that is not installed is run from its
  source. Where nothing depends on the start itself, the script runs in a fork that has its imports already
  (`tests.e2e.forks`); a `StartedSidecar`, and any in `make coverage`, is never one.
- The sidecar's environment has no proxy and no `OVERCOAT_*` variable but those that a test gives; its state lies under
  the test's own folder.
- A sidecar that dies, or that ends with another status than 0, fails the test, which then shows its standard error.

    policy = "rules: [{name: pay, hosts: [api.pay.example]}]"
    with Sidecar(policy, tmp_path, authority=authority, hosts={"api.pay.example": "127.0.0.1"}) as sidecar:
        answer = curl("-d", "{}", f"http://api.pay.example:{upstream.port}/v1", proxy=sidecar.proxy_url)
        decision = sidecar.wait_for_decision(lambda d: d["action"] == "upgrade")
        assert sidecar.metrics().value("overcoat_requests_total", action="upgrade") == 1

A policy may leave out `version`, `listen`, `admin` and `trust`: then version 1, a forward and an admin listener on free
ports, and the test's authority as the only root are added at its end, where they move no line number.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.certificates import Authority
from tests.e2e.forks import Fork, can_fork, fork
from tests.e2e.forks import run as run_fork

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE = 30.0  # seconds; a cold start on a busy machine takes two or three
STOP_DEADLINE = 15.0
WAIT_DEADLINE = 5.0
SHOWN = 8_000  # characters of its standard error that a failing test shows

Decision = dict[str, Any]


# What the log says about unforeseen exceptions.
INSIDE = re.compile(
    r"a client connection failed, and is closed|the end of a client connection failed|the event loop met an error|"
    r"a handshake with an upstream failed inside|a stream of a client connection failed|the \w+ hook failed"
)


class SidecarFailed(AssertionError):
    """The sidecar did not start, or did not end as it should.

    Attributes:
        status: its exit status, negative for a signal; None where it still ran and had to be killed.
        stdout: what it wrote to standard output.
        stderr: what it wrote to standard error.
    """

    def __init__(self, what: str, status: int | None, stdout: str, stderr: str) -> None:
        super().__init__(f"{what}\n{_shown(stderr)}")
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


@dataclass(frozen=True, slots=True)
class Metrics:
    """One scrape of /metrics.

    Attributes:
        samples: (name, labels, value) of each sample.
        text: the exposition as it came.
    """

    samples: tuple[tuple[str, Mapping[str, str], float], ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Read the Prometheus text format."""
        families = text_string_to_metric_families(text)
        return cls(tuple((s.name, dict(s.labels), float(s.value)) for f in families for s in f.samples), text)

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of this name that have these labels; 0 where there is none."""
        return sum(value for found, has, value in self.samples if found == name and labels.items() <= dict(has).items())

    def labels(self, name: str) -> tuple[Mapping[str, str], ...]:
        """Return the labels of every sample of this name."""
        return tuple(has for found, has, _ in self.samples if found == name)


class _Output:
    """A process's output stream, read by a thread so that the pipe never fills."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True)
        self._thread.start()

    def _drain(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line.decode("utf-8", "backslashreplace"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def lines(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def ended(self) -> bool:
        with self._changed:
            return self._ended

    def first[T](self, find: Callable[[list[str]], T | None], deadline: float) -> T | None:
        """Return what `find` first finds in the lines; None after `deadline` seconds or at the stream's end."""
        end = time.monotonic() + deadline
        with self._changed:
            while (found := find(self._lines)) is None and not self._ended:
                if not self._changed.wait(end - time.monotonic()):
                    return find(self._lines)
            return found

    def join(self) -> None:
        self._thread.join(STOP_DEADLINE)


class Sidecar:
    """A running `overcoat serve`; a context manager.

    Args:
        policy: the policy file's YAML, in block style; common indentation is taken off.
        folder: a folder of the test's own; the policy stands there, so that relative paths lead there.
        authority: whose certificates it trusts; its certificate is written to `roots.pem` beside the policy.
        hosts: host names and the loopback addresses that they lead to, for this sidecar only.
        env: further environment variables.
        arguments: further arguments of `overcoat serve`.
        command: what to run instead of the installed `overcoat`; it is never a fork, since it may change the product
            before all is imported. Without one, nothing inside may fail.
        deadline: seconds until it must be ready.

    Attributes:
        policy_file: where the policy stands.
        data: the sidecar's state folder.
        may_be_forked: whether a start may be a fork; see `tests.e2e.forks`.
    """

    may_be_forked: ClassVar[bool] = True

    def __init__(
        self,
        policy: str,
        folder: Path,
        *,
        authority: Authority | None = None,
        hosts: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str] | None = None,
        deadline: float = START_DEADLINE,
    ) -> None:
        self.policy_file = folder / "policy.yaml"
        self.data = folder / "data"
        self._ca_file = folder / "overcoat-ca.pem"
        self._roots = authority.write_pem(folder / "roots.pem") if authority is not None else None
        self._command = list(command) if command is not None else overcoat_command(hosts)
        self._is_broken = command is not None
        self._may_fork = self.may_be_forked and command is None
        self._arguments = list(arguments)
        self._environment = clean_environment({"OVERCOAT_DATA": str(self.data), **(env or {})})
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._ended_by_test = False
        self._listen: tuple[str, ...] = ()
        self._admin = ""
        self._probes = ""
        self.write_policy(policy)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problem = None
        if not self._ended_by_test:
            early = self._running.poll()
            status = self.stop()
            if early is not None:
                problem = self._failed(f"overcoat serve ended by itself with status {early}", early)
            elif status != 0:
                problem = self._failed(f"overcoat serve ended with status {status} at SIGTERM", status)
            elif not self._is_broken and (inside := INSIDE.search(self.stderr)):
                problem = self._failed(f"something inside failed: {inside[0]}", status)
        if error is not None:
            error.add_note(_shown(self.stderr))
        elif problem is not None:
            raise problem

    def write_policy(self, policy: str) -> None:
        """Write the policy file anew; see the module's text for what is added to it."""
        text = textwrap.dedent(policy).strip("\n") + "\n"
        additions = {
            "version": "1",
            "listen": "[forward://127.0.0.1:0]",
            "admin": "127.0.0.1:0",
            "destinations": "{allow: [loopback]}",
            **({"trust": "{roots: roots.pem}"} if self._roots is not None else {}),
        }
        for key, value in additions.items():
            if not re.search(rf"^{key}:", text, re.MULTILINE):
                text += f"{key}: {value}\n"
        self.policy_file.write_text(text, encoding="utf-8")

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            SidecarFailed: it ended, or was not ready in time.
        """
        command = [*self._command, "serve", "-p", str(self.policy_file), *self._arguments]
        if self._may_fork and can_fork(command, self._environment):
            self._process = fork(command, self.policy_file.parent, self._environment)
        else:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                cwd=self.policy_file.parent,
            )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout = _Output(self._process.stdout)
        self._stderr = _Output(self._process.stderr)
        ready = self._stderr.first(_ready_line, self._deadline)
        if ready is None:
            status = self.wait() if self._stderr.ended else None
            if status is None:
                self.kill()
                raise self._failed(f"overcoat serve was not ready within {self._deadline} s", None)
            raise self._failed(f"overcoat serve ended with status {status} before it was ready", status)
        self._listen = tuple(ready["listen"])
        self._admin = ready["admin"]
        self._probes = ready["probes"]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    def resident_bytes(self, *, peak: bool = False) -> int:
        """Return how much memory is resident, or was at most (Linux)."""
        key = "VmHWM:" if peak else "VmRSS:"
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

    def open_files(self) -> int:
        """Return how many descriptors are open (Linux; for others than root from 6.2 on)."""
        folder = f"/proc/{self.pid}/fd"
        return len(os.listdir(folder)) if os.geteuid() == 0 else os.stat(folder).st_size

    @property
    def listen(self) -> tuple[str, ...]:
        """`host:port` of each listener, in the policy's order."""
        return self._listen

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first listener, for a `RawClient`."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each listener."""
        parts = [listener.rpartition(":") for listener in self._listen]
        return [(host.strip("[]"), int(port)) for host, _, port in parts]

    @property
    def proxy_url(self) -> str:
        """What an app would have in HTTP_PROXY: the first listener."""
        return f"http://{self._listen[0]}"

    @property
    def admin_url(self) -> str:
        """The admin listener's URL without a path."""
        return f"http://{self._admin}"

    @property
    def probes_url(self) -> str:
        """The probes listener's URL without a path."""
        return f"http://{self._probes}"

    @property
    def ca_file(self) -> Path:
        """The local authority's certificate as `overcoat ca` prints it, in a file."""
        if not self._ca_file.exists():
            self._ca_file.write_text(self.run("ca"), encoding="ascii")
        return self._ca_file

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self._stdout.text

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self._stderr.text

    def run(self, *arguments: str) -> str:
        """Run another `overcoat` command with this sidecar's environment, and return its standard output.

        Raises:
            SidecarFailed: it ended with another status than 0.
        """
        done = run_command(
            [*self._command, *arguments],
            self.policy_file.parent,
            self._environment,
            may_be_forked=self._may_fork,
        )
        if done.returncode != 0:
            what = f"overcoat {' '.join(arguments)} ended with status {done.returncode}"
            raise SidecarFailed(what, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def decisions(self) -> list[Decision]:
        """Return the decision lines so far of what is over.

        Raises:
            AssertionError: a line on standard output is no JSON object.
        """
        return [line for line in self.lines() if "event" not in line]

    def lines(self) -> list[Decision]:
        """Return all decision lines so far, also those of tunnels that are open.

        Raises:
            AssertionError: a line on standard output is no JSON object.
        """
        return [_decision(line) for line in self._stdout.lines if line.endswith("\n")]

    def wait_for_decision(
        self, predicate: Callable[[Decision], bool] = lambda _: True, *, deadline: float = WAIT_DEADLINE
    ) -> Decision:
        """Return the first decision line that the predicate is true of, once it is written.

        Raises:
            AssertionError: there is none within `deadline` seconds.
        """

        def find(_: list[str]) -> Decision | None:
            return next((decision for decision in self.decisions() if predicate(decision)), None)

        found = self._stdout.first(find, deadline)
        assert found is not None, f"no such decision within {deadline} s among {self.decisions()!r}"
        return found

    def wait_for_decisions(self, count: int, *, deadline: float = WAIT_DEADLINE) -> list[Decision]:
        """Wait until exactly `count` decision lines are written, and return them.

        Raises:
            AssertionError: after `deadline` seconds there were fewer, or there are more.
        """
        self._stdout.first(lambda _: self.decisions() if len(self.decisions()) >= count else None, deadline)
        found = self.decisions()
        assert len(found) == count, f"{len(found)} decisions where {count} were expected: {found!r}"
        return found

    def metrics(self) -> Metrics:
        """Scrape /metrics."""
        status, body = self.admin_get("/metrics")
        assert status == 200, f"/metrics answered {status}"
        return Metrics.parse(body)

    def admin_get(self, path: str) -> tuple[int, str]:
        """Return the status and the body of a GET on the admin listener."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AnyStatus())
        with opener.open(self.admin_url + path, timeout=WAIT_DEADLINE) as answer:
            return answer.status, answer.read().decode("utf-8")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGHUP, which reads the policy again."""
        self._running.send_signal(number)

    def stop(self) -> int:
        """End it with SIGTERM, wait until its output is read, and return its exit status.

        Raises:
            SidecarFailed: it did not end in time; it is killed then.
        """
        self._ended_by_test = True
        self._running.terminate()
        try:
            status = self._running.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failed(f"overcoat serve did not end within {STOP_DEADLINE} s of SIGTERM", None) from None
        self._join()
        return status

    def kill(self) -> int:
        """End it with SIGKILL, wait until its output is read, and return its exit status."""
        self._ended_by_test = True
        self._running.kill()
        status = self._running.wait(STOP_DEADLINE)
        self._join()
        return status

    def wait(self, *, deadline: float = STOP_DEADLINE) -> int:
        """Wait until it ends by itself, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after `deadline` seconds.
        """
        status = self._running.wait(deadline)
        self._ended_by_test = True
        self._join()
        return status

    @property
    def _running(self) -> subprocess.Popen[bytes] | Fork:
        assert self._process is not None, "the sidecar was never started"
        return self._process

    def _join(self) -> None:
        self._stdout.join()
        self._stderr.join()

    def _failed(self, what: str, status: int | None) -> SidecarFailed:
        return SidecarFailed(what, status, self.stdout, self.stderr)


class StartedSidecar(Sidecar):
    """One that is always started as a user starts it: for tests of what a start itself does."""

    may_be_forked = False


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Hands every answer over instead of raising for 400 and above."""

    def http_response(self, request: Any, response: Any) -> Any:
        """Return the response as it is."""
        return response


def labels_of(line: Decision) -> tuple[str, ...]:
    """Return the labels with which the request of a decision line is counted: rule, mode, and how it ended."""
    action = line["would"] if line["mode"] == "observe" else line["action"]
    status = f"{line['status'] // 100}xx" if line["status"] else "-"
    return (line["rule"] or "-", line["mode"], action, line["outcome"], line["reason"] or "-", status)


def series_of(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the requests that were counted, by the labels of `labels_of`."""
    names = ("rule", "mode", "action", "outcome", "reason", "status")
    return {
        tuple(labels[name] for name in names): value
        for found, labels, value in metrics.samples
        if found == "overcoat_requests_total" and value
    }


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without proxy, certificate, buffering and `OVERCOAT_*` variables.

    Args:
        extra: variables to set on top.
    """
    unwanted = re.compile(
        r"(?i)(https?|all|no|ftp)_proxy|OVERCOAT_.*|SSL_CERT_(FILE|DIR)|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE"
        r"|PYTHONUNBUFFERED"  # it would hide a line that is never flushed
        r"|PYTHONDONTWRITEBYTECODE"  # it would have each start compile all of the product anew
    )
    kept = {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)}
    return {**kept, **(extra or {})}


def overcoat_command(hosts: Mapping[str, str] | None = None) -> list[str]:
    """Return the command line that starts `overcoat`, to which its arguments are added.

    Args:
        hosts: host names that shall lead to loopback addresses; see `named_hosts`.
    """
    launcher = Path(__file__).with_name("named_hosts.py")
    if hosts:
        return [sys.executable, "-P", str(launcher), json.dumps({n.lower(): a for n, a in hosts.items()})]
    installed = Path(sys.executable).with_name("overcoat")
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-P", str(launcher), ""]


def run_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, may_be_forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command of `overcoat_command` to its end, with nothing to read, and return its status and its output.

    Args:
        command: `overcoat_command` and its arguments.
        folder: where it is run.
        environment: all its variables.
        may_be_forked: whether it may be a fork; see `tests.e2e.forks`.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; it is killed then.
    """
    if may_be_forked and can_fork(command, environment):
        return run_fork(command, folder, environment, timeout=START_DEADLINE)
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_DEADLINE,
        check=False,
    )


def _shown(stderr: str) -> str:
    """Return the end of a standard error, where the reasons are."""
    cut = "" if len(stderr) <= SHOWN else f"(the first {len(stderr) - SHOWN} characters are left out)\n"
    return f"--- the sidecar's standard error ---\n{cut}{stderr[-SHOWN:] or '(empty)'}"


def _ready_line(lines: list[str]) -> dict[str, Any] | None:
    for line in lines:
        if line.startswith("{") and line.endswith("\n"):
            found = json.loads(line)
            if found.get("event") == "ready":
                return dict(found)
    return None


def _decision(line: str) -> Decision:
    try:
        found = json.loads(line)
    except ValueError:
        raise AssertionError(f"a line on standard output is no JSON: {line!r}") from None
    assert isinstance(found, dict), f"a line on standard output is no JSON object: {line!r}"
    return found
