"""Starts the sidecar for one program, as a process of its own, and reads what it says. `overcoat run` calls it.

Rules of this module:

- The sidecar chooses its port itself and says which one, so that nobody can take it in between.
- It ends when this process ends, however that happens: it reads a pipe, whose other end only this process has.
- It has a session of its own, so that no key of the terminal (Ctrl-C, Ctrl-Z) reaches it.
- What it says is read all the time. Its warnings are passed on, in this process's form.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

from proxy import timelimits

Line = dict[str, Any]


class SidecarFailed(Exception):
    """The sidecar did not start. The message says why, and may have several lines.

    Attributes:
        status: with which status this process should end: 2 where the policy or an option is wrong, otherwise 1.
    """

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


class Sidecar:
    """A running `overcoat serve`.

    Attributes:
        pid: its process id.
        secrets: the variables that its policy has read a secret from, once it is ready.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it; `listen_to` must follow, and then `wait_until_ready`.

        Args:
            arguments: those of `overcoat serve`.
        """
        self._process = subprocess.Popen(  # noqa: S603  # it is our own command
            [sys.executable, "-P", "-m", "overcoat", "serve", "--until-eof", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},  # CMD's to answer
        )
        self.pid = self._process.pid
        self.secrets: tuple[str, ...] = ()
        self._said: list[str] = []
        self._address = ""
        self._has_spoken = threading.Event()
        self._readers: list[threading.Thread] = []

    def listen_to(self, take_line: Callable[[Line, str], object], warn: Callable[[str], object]) -> None:
        """Read what it says from now on, in threads.

        Args:
            take_line: called with each decision line, as read and as it came.
            warn: called with each warning.
        """
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for read, stream, use in (
            (self._read_lines, self._process.stdout, take_line),
            (self._read_log, self._process.stderr, warn),
        ):
            thread = threading.Thread(target=read, args=(stream, use), daemon=True)
            thread.start()
            self._readers.append(thread)

    def _read_lines(self, stream: IO[bytes], take: Callable[[Line, str], object]) -> None:
        for line in stream:
            text = line.decode("utf-8", "replace")
            take(json.loads(text), text)

    def _read_log(self, stream: IO[bytes], warn: Callable[[str], object]) -> None:
        for raw in stream:
            text = raw.decode("utf-8", "replace").rstrip("\n")
            try:
                said: Line = json.loads(text)
            except ValueError:  # before the log begins: a wrong policy or option
                self._said.append(text)
                continue
            if said.get("event") == "secrets":
                self.secrets = tuple(said["variables"])
            elif said.get("event") == "ready":
                self._address = said["listen"][0]
                self._has_spoken.set()
            elif said["level"] != "info":
                self._said.append(f"{said['level']}: {said['message']}")
                warn(self._said[-1])
        self._has_spoken.set()  # it has ended

    def wait_until_ready(self, is_given_up: Callable[[], bool]) -> str | None:
        """Return the address that it listens on, `HOST:PORT`; None if it was given up.

        Args:
            is_given_up: asked several times a second.

        Raises:
            SidecarFailed: it ended instead.
        """
        while not self._has_spoken.wait(timelimits.GIVE_UP_CHECK_SECONDS):
            if is_given_up():
                return None
        if not self._address:
            status = self._process.wait()
            raise SidecarFailed(
                "\n".join(self._said) or f"the sidecar ended with status {status}", 2 if status == 2 else 1
            )
        return self._address

    def ended(self) -> int | None:
        """Return its exit status if it has ended (negative for a signal), else None."""
        return self._process.poll()

    def end(self) -> int:
        """Let it drain and end; return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        status = self._process.wait()
        for reader in self._readers:
            reader.join()
        return status
