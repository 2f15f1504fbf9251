"""Starts `overcoat` as `subprocess` does, but by a fork of a process that has the modules already
(`tests.e2e.forkserver`): a start costs a tenth, and most tests here start a sidecar of their own.

Rules of this module:

- The process is what it would be otherwise: its own, with the environment, the folder and the streams that were asked
  for, running the same script from its first line. `tests/e2e/test_forks.py` compares the two.
- What the interpreter, or a library, reads from the environment when it begins cannot change in a fork. `can_fork` says
  whether there is such a difference; it is False, too, where the system has no `pidfd`, and where coverage is measured
  in processes (`make coverage` thus starts the command itself, always).
- There is one server for each test process. It ends with it.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SERVER = Path(__file__).with_name("forkserver.py")
AT_START = re.compile(r"PYTHON.*|LD_.*|MALLOC_.*|GLIBC_.*|OPENSSL_.*|LC_.*|LANG|LANGUAGE|TZ|COVERAGE_.*")


class Fork:
    """A process; it has what a `subprocess.Popen` with pipes has, as far as the tests use it.

    Attributes:
        pid: its process id.
        stdout: the end of the pipe of its standard output.
        stderr: that of its standard error.
        returncode: its exit status, or its signal below 0; None while it runs.
    """

    def __init__(self, server: socket.socket, command: Sequence[str], folder: Path, environment: Mapping[str, str]):
        script = _script(command)
        asked = {
            "command": script,
            "script_is_on_path": len(script) == len(command),
            "folder": str(folder),
            "environment": dict(environment),
        }
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, err = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            socket.send_fds(server, [json.dumps(asked).encode()], [nothing, out[1], err[1], theirs.fileno()])
        finally:
            theirs.close()
            for each in (nothing, out[1], err[1]):
                os.close(each)
        self.stdout, self.stderr = os.fdopen(out[0], "rb"), os.fdopen(err[0], "rb")
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self.pid = int(self._socket.recv(64))

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._socket], [], [], timeout)[0]:
                self.returncode = int(self._socket.recv(64))
                self._socket.close()
            return self.returncode


class _Server:
    """The server, started when it is first needed, with the environment of the first that asks."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._begun: dict[str, str] = {}
        self._lock = threading.Lock()

    def fits(self, environment: Mapping[str, str]) -> bool:
        with self._lock:
            return self._socket is None or self._begun == _at_start(environment)

    def fork(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Fork:
        with self._lock:
            if self._socket is None:
                self._start(environment)
            assert self._socket is not None
            return Fork(self._socket, command, folder, environment)

    def _start(self, environment: Mapping[str, str]) -> None:
        self._begun = _at_start(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", str(SERVER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._end, process, os.getpid())

    def _end(self, process: subprocess.Popen[bytes], owner: int) -> None:
        if self._socket is not None and owner == os.getpid():
            self._socket.close()
            process.wait(30)


_server = _Server()


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a fork is the same as starting this command with this environment."""
    return hasattr(os, "pidfd_open") and "COVERAGE_PROCESS_CONFIG" not in environment and _server.fits(environment)


def fork(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Fork:
    """Start a Python script in a folder, with pipes for its output and nothing to read; `can_fork` must say so.

    Args:
        command: the script and its arguments; or a Python, -P, the script and its arguments.
        folder: where it is run.
        environment: all its variables.
    """
    return _server.fork(command, folder, environment)


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, as `fork` starts it, and return what it wrote.

    Raises:
        subprocess.TimeoutExpired: it still ran after `timeout` seconds; it is killed then.
    """
    process = fork(command, folder, environment)
    with process.stdout, process.stderr, ThreadPoolExecutor(2) as readers:
        out, err = (readers.submit(stream.read) for stream in (process.stdout, process.stderr))
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(command, status, out.result().decode(), err.result().decode())


def _script(command: Sequence[str]) -> list[str]:
    return list(command[2:] if command[1:2] == ["-P"] else command)


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if AT_START.fullmatch(name)}
