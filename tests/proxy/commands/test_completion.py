"""The scripts for shells, run by the shells that are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cli import _COMMANDS
from tests.e2e.sidecar import clean_environment, overcoat_command

COMMAND = Path(sys.executable).with_name("overcoat")


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [*overcoat_command(), *arguments],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


def completed(*words: str, tmp_path: Path) -> list[str]:
    """Return what bash offers for the last of these words."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    script = (
        'eval "$(overcoat completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "compopt() { echo compopt-$2; }; _overcoat_completion overcoat; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    environment = clean_environment({"PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"})
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(not COMMAND.exists(), reason="the command is not installed beside this Python")
class TestBash:
    def test_it_offers_the_commands(self, tmp_path: Path) -> None:
        assert completed("overcoat", "", tmp_path=tmp_path) == list(_COMMANDS)
        assert completed("overcoat", "ch", tmp_path=tmp_path) == ["check"]

    def test_it_offers_what_a_command_takes(self, tmp_path: Path) -> None:
        assert completed("overcoat", "serve", "--no", tmp_path=tmp_path) == ["--no-watch"]
        assert completed("overcoat", "serve", "--mode", "", tmp_path=tmp_path) == ["enforce", "observe"]
        assert "seal" in completed("overcoat", "keys", "", tmp_path=tmp_path)

    @pytest.mark.parametrize("command", ["serve", "check", "run"])
    def test_a_policy_is_a_file(self, tmp_path: Path, command: str) -> None:
        assert "compopt-default" in completed("overcoat", command, "-p", "over", tmp_path=tmp_path)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_theirs(shell: str) -> None:
    script = run("completion", shell)
    assert f"_OVERCOAT_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=30)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_script_asks_is_answered_without_loading_any_command(shell: str) -> None:
    found = run(
        _OVERCOAT_COMPLETE=f"{shell}_complete", COMP_WORDS="overcoat he", COMP_CWORD="he" if shell == "fish" else "1"
    )
    assert "healthcheck" in found
