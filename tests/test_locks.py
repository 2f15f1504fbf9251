"""The lock files: they name what pyproject.toml asks for, with hashes, and nothing of the machine that wrote them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]
WANTED: dict[str, list[str]] = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-build.lock": GROUPS["build"],
    "requirements-dev.lock": [
        *PROJECT["project"]["dependencies"],
        *GROUPS["build"],
        *(entry for entry in GROUPS["dev"] if isinstance(entry, str)),
    ],
}


def locked(name: str) -> dict[str, list[str]]:
    """Return the versions that a lock has of each package; one that differs between systems has several."""
    found: dict[str, list[str]] = {}
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement, *hashes = line.split("--hash=")
            assert hashes, f"{line} has no hash"
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", digest) for digest in hashes)
            pinned = Requirement(requirement.strip())
            (specifier,) = pinned.specifier
            assert specifier.operator == "=="
            found.setdefault(canonicalize_name(pinned.name), []).append(specifier.version)
    return found


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_lock_pins_what_the_project_asks_for(name: str) -> None:
    pins = locked(name)
    for wanted in map(Requirement, WANTED[name]):
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        versions = pins.get(canonicalize_name(wanted.name))
        assert versions, f"{wanted} is not in {name}: run `make lock`"
        assert all(wanted.specifier.contains(version) for version in versions), (
            f"{wanted} is {versions}: run `make lock`"
        )


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_lock_names_no_index_no_address_and_no_path(name: str) -> None:
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        assert not re.search(r"://|--(extra-)?index|--find-links|--trusted|^\s*/|@ ", line), line


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_what_is_shipped_is_what_was_tested(name: str) -> None:
    tested = locked("requirements-dev.lock")
    assert {package: versions for package, versions in locked(name).items() if tested.get(package) != versions} == {}


def test_mitmproxy_stays_below_the_release_with_a_compromised_key() -> None:
    assert [version.rsplit(".", 1)[0] for version in locked("requirements.lock")["mitmproxy"]] == ["12.2"]
