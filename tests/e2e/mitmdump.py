"""Runs stock `mitmdump` with Overcoat's addon as a process of its own, and reads all that it says.

Rules of this module:

- It starts mitmproxy's own command, beside this Python, with only those options that a user would give.
- A test names hosts by loopback addresses, 127.0.0.2 and so on: nothing is changed in how mitmproxy looks names up.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mitmproxy import http, io

from tests.e2e.certificates import Authority
from tests.e2e.sidecar import ROOT, START_DEADLINE, STOP_DEADLINE, WAIT_DEADLINE, Decision, clean_environment

SCRIPT = ROOT / "config" / "mitmproxy_addon.py"
_LISTENS = re.compile(r"listening at (?:http://)?([0-9.]+):([0-9]+)")
_LINE = re.compile(r'\{"time": .*\}')


class Mitmdump:
    """A running `mitmdump -s config/mitmproxy_addon.py --set overcoat_policy=…`; a context manager.

    Args:
        policy: the policy file's YAML, whole.
        folder: a folder of the test's own; the policy stands there.
        authority: whose certificates are trusted; written to `roots.pem` beside the policy.
        options: further options of mitmdump.
        env: further environment variables.
        names_policy: whether it is told of the policy.
    """

    def __init__(
        self,
        policy: str,
        folder: Path,
        *,
        authority: Authority,
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
        names_policy: bool = True,
    ) -> None:
        self.folder = folder
        self.flows_file = folder / "flows"
        self.ca_file = folder / "data" / "ca-cert.pem"
        authority.write_pem(folder / "roots.pem")
        (folder / "policy.yaml").write_text(policy, encoding="utf-8")
        named = ("--set", "overcoat_policy=policy.yaml") if names_policy else ()
        self._command = [
            str(Path(sys.executable).with_name("mitmdump")),
            *("-s", str(SCRIPT), *named, "--set", f"confdir={folder / 'mitmproxy'}"),
            *("--listen-host", "127.0.0.1", "-p", "0", "-w", str(self.flows_file)),
            *options,
        ]
        extra = {"OVERCOAT_DATA": str(folder / "data"), "PYTHONUNBUFFERED": "1", **(env or {})}
        self._environment = clean_environment(extra)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            error.add_note(self.said[-8000:])

    def start(self, *, is_ready: bool = True) -> None:
        """Start it, and wait until it listens, or where `is_ready` is false, until it has ended by itself."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self.folder,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if is_ready:
            found = self._first(self._listens, START_DEADLINE)
            assert found is not None, f"mitmdump does not listen:\n{self.said}"
            self.address = found

    def _listens(self) -> tuple[str, int] | None:
        found = next((match for line in self._lines if (match := _LISTENS.search(line))), None)
        is_read = any("Overcoat: policy" in line for line in self._lines)
        return (found[1], int(found[2])) if found is not None and is_read else None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line.decode("utf-8", "backslashreplace"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _first[T](self, find: Callable[[], T | None], deadline: float) -> T | None:
        end = time.monotonic() + deadline
        with self._changed:
            while (found := find()) is None and not self._ended:
                if not self._changed.wait(end - time.monotonic()):
                    return find()
            return found

    @property
    def proxy_url(self) -> str:
        """What an app would have in HTTP_PROXY."""
        return "http://{}:{}".format(*self.address)

    @property
    def said(self) -> str:
        """All that it wrote."""
        with self._changed:
            return "".join(self._lines)

    def decisions(self) -> list[Decision]:
        """Return the decision lines so far."""
        return [json.loads(match[0]) for line in list(self._lines) if (match := _LINE.search(line))]

    def wait_for_decision(
        self, predicate: Callable[[Decision], bool] = lambda _: True, *, deadline: float = WAIT_DEADLINE
    ) -> Decision:
        """Return the first decision line that the predicate is true of, once it is written."""
        found = self._first(lambda: next((each for each in self.decisions() if predicate(each)), None), deadline)
        assert found is not None, f"no such decision within {deadline} s among {self.decisions()!r}"
        return found

    def wait_for(self, text: str) -> None:
        """Wait until it has said something."""
        found = self._first(lambda: True if any(text in line for line in self._lines) else None, WAIT_DEADLINE)
        assert found, f"never said: {text}"

    def wait(self) -> int:
        """Wait until it ends by itself, and return its exit status."""
        try:
            status = self._process.wait(START_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._reader.join(STOP_DEADLINE)
        return status

    def stop(self) -> int:
        """End it, and return its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self.wait()

    def flows(self) -> list[http.HTTPFlow]:
        """Return the flows that it has saved, as a person sees them in mitmproxy; it must have ended."""
        with self.flows_file.open("rb") as saved:
            found: list[Any] = list(io.FlowReader(saved).stream())
        return [flow for flow in found if isinstance(flow, http.HTTPFlow)]
