"""Packages of npm for tests: another language's libraries at the other end of the wire.

They are fetched once a session, with npm as it is set up on the machine, into a folder of the tests; where there is no
Node.js, no npm or no registry, whoever asks for them is skipped and says so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("jose@6", "mastercard-client-encryption@1")
_FETCH_SECONDS = 60


class Node:
    """Runs programs for Node.js that may import the packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def with_packages(cls, folder: Path) -> Node:
        """Fetch the packages into a folder, or skip the test that asks."""
        if shutil.which("node") is None or shutil.which("npm") is None:
            pytest.skip("there is no Node.js with npm (Debian: nodejs, npm)")
        (folder / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
        try:
            got = subprocess.run(
                [*command, *PACKAGES], cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip("npm fetched no packages in time")
        if got.returncode != 0:
            pytest.skip(f"npm could not fetch {' and '.join(PACKAGES)}")
        return cls(folder)

    def run(self, program: str, **given: Any) -> Any:
        """Run a program, and return the JSON that it prints.

        Args:
            program: the body of an async function in CommonJS; `given` is in scope, what it returns is printed.
            given: what it is told.
        """
        script = (
            f"const given = {json.dumps(given)};\n"
            f"(async () => {{ {program} }})().then((got) => process.stdout.write(JSON.stringify(got)));\n"
        )
        done = subprocess.run(
            ["node", "--input-type=commonjs", "-e", script],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
