"""A real container engine: brings a folder's services up, runs a command beside them, and takes them down.

`make test-containers` uses `docker compose` where an engine answers. On a machine without one, OVERCOAT_CONTAINERS may
name a script that brings one along: `SCRIPT build FOLDER` builds the services' images, and `CHECK=COMMAND SCRIPT run
FOLDER` brings them up, runs the command where their ports are, and takes them down. Else the tests are skipped.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_CLONED = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "tests", "bench", "docs")


def run(folder: Path, *command: str, env: dict[str, str] | None = None) -> None:
    """Run a command in a folder; show all that it wrote if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-20_000:]}", pytrace=False)


def engine_answers() -> bool:
    """Tell whether there is a docker command, an engine behind it, and Compose."""
    if shutil.which("docker") is None:
        return False
    return all(
        subprocess.run(["docker", *asked], capture_output=True, timeout=30, check=False).returncode == 0
        for asked in (["info"], ["compose", "version"])
    )


def copy_of_the_clone(folder: Path) -> None:
    """Copy what the image and the compose files are made of, so that files may be put beside them."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_CLONED))


def readable_for_all(folder: Path) -> None:
    """Let the users inside containers read what is mounted, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else path.stat().st_mode | 0o044)


def evidence_of(folder: Path, probe: Path, found: Path, *, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what a probe wrote while the services of a folder's docker-compose.yml were up.

    Args:
        folder: where the file is.
        probe: a Python script; its argument is the JSON file to write.
        found: that file.
        env: further variables for Compose.
    """
    env = {"PYTHONPATH": str(ROOT), **(env or {})}
    asking = [sys.executable, str(probe), str(found)]
    script = os.environ.get("OVERCOAT_CONTAINERS")
    if script:
        run(folder, "bash", script, "build", str(folder), env=env)
        run(folder, "bash", script, "run", str(folder), env={"CHECK": shlex.join(asking), **env})
    elif engine_answers():
        try:
            run(folder, "docker", "compose", "up", "--build", "--detach", env=env)
            run(folder, *asking, env=env)
        finally:
            run(folder, "docker", "compose", "down", "--volumes", "--timeout", "5", env=env)
    else:
        pytest.skip("no container engine answers `docker info`, and OVERCOAT_CONTAINERS names no script that has one")
    return dict(json.loads(found.read_text(encoding="utf-8")))
