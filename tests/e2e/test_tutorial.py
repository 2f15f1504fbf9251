"""Each tutorial does what it says: its commands, one after the other, print what stands behind them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.listeners import listen

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BETWEEN = "-- the next block --"


def expected(text: str) -> str:
    """Return a pattern for what a block says: `…` is anything within a line."""
    return "".join(".*" if part == "…" else re.escape(part) for part in re.split("(…)", text))


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="bash, curl or openssl is not here")
@pytest.mark.parametrize("tutorial", ["tutorial.md", "tutorial-observe.md"])
def test_the_tutorial_prints_what_it_says(tmp_path: Path, tutorial: str) -> None:
    text = (DOCS / tutorial).read_text("utf-8")
    (folder := tmp_path / "work").mkdir()
    for port in ("8443", "8081", "8080", "9464"):
        with listen() as free:
            text = text.replace(port, str(free.getsockname()[1]))
    blocks = BLOCK.findall(text)
    assert len(blocks) > 10
    # A person reads on before they type; a decision line is written by a thread of its own.
    script = "\n".join(f"{code}\nsleep 0.3\necho '{BETWEEN}'" for language, code in blocks if language == "sh")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_PROXY": "localhost"}
    variables = {name: value for name, value in environment.items() if not name.startswith("OVERCOAT_")}
    command = ["bash", "-eu", "-o", "pipefail", "-c", script]
    with (tmp_path / "stdout").open("w+") as stdout, (tmp_path / "stderr").open("w+") as stderr:
        shell = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            status = shell.wait(90)
        finally:  # what it has started in the background, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    assert status == 0, (tmp_path / "stderr").read_text("utf-8")
    printed = iter((tmp_path / "stdout").read_text("utf-8").split(f"{BETWEEN}\n"))
    last = ""
    for language, code in blocks:
        if language == "sh":
            last = next(printed)
        else:
            assert re.fullmatch(expected(code), last if last.endswith("\n") else f"{last}\n"), last
