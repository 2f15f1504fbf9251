"""Ordinary programs under `overcoat run`, each in a network of its own, against four servers: plain http that is
upgraded with an encrypted field, https that is inspected, https that is tunnelled, and a pin that does not match.

`make test-clients` installs the programs that are not everywhere, and records the results that docs/apps.md shows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.programs import CASES, CLIENTS, ROOT

RESULTS = Path(__file__).with_name("results.json")
INSIDE = Path(__file__).with_name("inside.py")


def cannot() -> str | None:
    """Return why no network and files of a test's own can be had here; None if they can."""
    for tool in ("unshare", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"there is no {tool} here"
    if not Path("/etc/ssl/certs/ca-certificates.crt").exists():
        return "the system's roots are not where Debian has them"
    tried = subprocess.run(
        ["unshare", "-n", "-m", "mount", "--bind", "/etc/hosts", "/etc/hosts"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


CANNOT = cannot()


@pytest.mark.skipif(CANNOT is not None, reason=CANNOT or "")
@pytest.mark.parametrize("name", CLIENTS)
def test_a_program_wears_overcoat(name: str, tmp_path: Path) -> None:
    client = CLIENTS[name]
    if missing := client.missing():
        remedy = "; make test-clients installs it" if client.is_heavy else ""
        pytest.skip(f"not here: {', '.join(missing)}{remedy}")
    done = subprocess.run(
        ["unshare", "-n", "-m", sys.executable, str(INSIDE), name, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    said = f"{result['stdout']}\n{result['stderr']}"
    assert result["cases"] == dict.fromkeys(CASES, "ok"), said
    assert result["past"] == [], said
    if os.environ.get("RECORD_CLIENTS"):
        record(name, result["version"])


def record(name: str, version: str) -> None:
    """Note that this version has passed all cases."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results[name] = {"version": version, "cases": dict.fromkeys(CASES, "ok")}
    ordered = {each: results[each] for each in CLIENTS if each in results}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")


def test_the_results_have_every_program_and_every_case() -> None:
    """What docs/apps.md shows was measured; `tests/test_docs.py` sees that the page shows it."""
    results = json.loads(RESULTS.read_text("utf-8"))
    assert list(results) == list(CLIENTS)
    for name, result in results.items():
        assert result["cases"] == dict.fromkeys(CASES, "ok"), name
        assert result["version"], name
