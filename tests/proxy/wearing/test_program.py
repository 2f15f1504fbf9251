"""Which signals a program under `overcoat run` is sent, and how it is looked for."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from proxy.wearing.program import NOT_EXECUTABLE, NOT_FOUND, CannotRun, Program, Signals, find


class Scripted(Signals):
    """Signals as a test says them: each with whether the terminal sent it; at last the end of the program."""

    def __init__(self, *script: tuple[int, bool]) -> None:
        self.before = set()
        self._script = list(script)

    def next(self) -> tuple[int, bool]:
        if self._script:
            return self._script.pop(0)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        return signal.SIGCHLD, False


def test_what_the_terminal_sends_to_the_whole_group_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    signals = Scripted((signal.SIGINT, True), (signal.SIGWINCH, True), (signal.SIGTERM, False), (signal.SIGUSR1, False))
    sent: list[tuple[int, int]] = []
    running = Program(sys.executable, [sys.executable, "-c", "import time; time.sleep(0.2)"], os.environ, signals)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert running.wait(0, lambda: None) == 0
    assert sent == [(running.pid, signal.SIGTERM), (running.pid, signal.SIGUSR1)]


def test_a_program_is_found_as_a_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, text = tmp_path / "tool", tmp_path / "text"
    tool.touch(mode=0o755)
    text.touch(mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("tool") == find(str(tool)) == str(tool)
    for name, status in (("text", NOT_FOUND), (str(text), NOT_EXECUTABLE), (str(tmp_path / "none"), NOT_FOUND)):
        with pytest.raises(CannotRun) as refused:
            find(name)
        assert refused.value.status == status


def test_what_the_system_refuses_is_said(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"\0no program")
    odd.chmod(0o755)
    with pytest.raises(CannotRun, match="odd cannot be run: exec format error"):
        Program(str(odd), [str(odd)], os.environ, Scripted())
