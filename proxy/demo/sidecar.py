"""Runs the demo's two other processes: the sidecar, and a client that only knows HTTP_PROXY. `proxy.demo.cases` calls
it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxy import timelimits

_URLLIB = (
    "import sys, urllib.request, urllib.error\n"
    "data = sys.argv[2].encode() if len(sys.argv) > 2 else None\n"
    "headers = {'Content-Type': 'application/json'} if data else {}\n"
    "request = urllib.request.Request(sys.argv[1], data, headers)\n"
    f"try:\n    response = urllib.request.urlopen(request, timeout={timelimits.DEMO_SECONDS})\n"
    "except urllib.error.HTTPError as e:\n    response = e\n"
    "sys.stdout.write(response.read().decode() + '\\n%d' % response.status)\n"
)


class DemoFailed(Exception):
    """The demo could not be run. The message says what failed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The response that the client received.

    Attributes:
        status: the HTTP status.
        body: the JSON body; {} if there was none.
    """

    status: int
    body: dict[str, Any]


class Sidecar:
    """`overcoat serve` as a separate process, on free ports."""

    def __init__(self, policy: Path, data: Path, listen: str | None = "forward://127.0.0.1:0") -> None:
        """Start it; `wait` waits until it is ready.

        Args:
            policy: its policy file.
            data: its own folder.
            listen: where it listens; None for what the policy says.
        """
        self._process = subprocess.Popen(  # noqa: S603  # it is our own command
            [
                *(sys.executable, "-P", "-m", "overcoat", "serve", "--policy", str(policy)),
                *(("--listen", listen) if listen is not None else ()),
                *("--admin", "127.0.0.1:0"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_without_proxies() | {"OVERCOAT_DATA": str(data)},
        )
        self.decisions: list[dict[str, Any]] = []
        self._said: list[str] = []
        self._ready = threading.Event()
        self._address = ""
        self._readers = [
            threading.Thread(target=self._read_stderr, daemon=True),
            threading.Thread(target=self._read_stdout, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> tuple[str, int]:
        """Wait until it is ready, and return host and port where it listens.

        Raises:
            DemoFailed: it did not start.
        """
        if not self._ready.wait(timelimits.DEMO_SECONDS) or not self._address:
            self.stop()
            raise DemoFailed("the sidecar did not start:\n" + "".join(self._said))
        host, _, port = self._address.rpartition(":")
        return host, int(port)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if '"event": "ready"' in line:
                self._address = json.loads(line)["listen"][0]
                self._ready.set()
        self._ready.set()  # it has ended

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.decisions.append(json.loads(line))

    @property
    def url(self) -> str:
        """The value for HTTP_PROXY."""
        return f"http://{self._address}"

    def stop(self) -> int:
        """End it as a supervisor would, and return its exit status."""
        self._process.terminate()
        try:
            status = self._process.wait(timelimits.DEMO_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for reader in self._readers:
            reader.join(timelimits.DEMO_SECONDS)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self.stop()


def client_name() -> str:
    """Return which client the demo uses: curl if it is installed, otherwise Python's urllib."""
    return "curl" if shutil.which("curl") else "urllib"


def ask(proxy_url: str, url: str, body: str | None) -> Answer:
    """Let the client send a request, with only HTTP_PROXY set in its environment.

    Raises:
        DemoFailed: the client itself failed.
    """
    # curl reads only the lower-case spelling for http; urllib reads both.
    env = _without_proxies() | {"HTTP_PROXY": proxy_url, "http_proxy": proxy_url}
    if client_name() == "curl":
        command = ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}", url]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "--data-binary", body]
    else:
        command = [sys.executable, "-c", _URLLIB, url, *([body] if body is not None else [])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603  # built above
    if done.returncode != 0:
        raise DemoFailed(f"{client_name()} failed: {done.stderr.strip()}")
    text, _, status = done.stdout.rpartition("\n")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    return Answer(int(status), answer)


def _without_proxies() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
