from __future__ import annotations

import tomllib
from pathlib import Path

from proxy.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_that_of_the_project() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"] == VERSION
