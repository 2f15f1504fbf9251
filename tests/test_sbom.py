"""The bill of materials says what the lock says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.sbom import bill, read_lock

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    target = tmp_path_factory.mktemp("sbom") / "overcoat.cdx.json"
    subprocess.run([sys.executable, "-m", "docs.sbom", str(target)], cwd=ROOT, check=True, timeout=60)
    found: dict[str, object] = json.loads(target.read_text())
    return found


def test_each_package_is_in_it_with_all_hashes() -> None:
    components = {each["name"]: each for each in bill(LOCK, PROJECT)["components"]}
    assert [f"{each['name']}=={each['version']}" for each in components.values()] == re.findall(
        r"^[a-z0-9][^\s;]*==[^\s;]+", LOCK, re.MULTILINE
    )
    hashes = [each["content"] for made in components.values() for each in made["externalReferences"][0]["hashes"]]
    assert hashes == re.findall(r"sha256:([0-9a-f]{64})", LOCK)
    for each in components.values():
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"


def test_it_says_what_needs_what() -> None:
    made = bill(LOCK, PROJECT)
    needs = {each["ref"].split("/")[1].split("@")[0]: each["dependsOn"] for each in made["dependencies"]}
    for name in ("overcoat", "mitmproxy", "pydantic", "jinja2"):
        wanted = {
            canonicalize_name(each.name)
            for each in map(Requirement, requires(name) or [])
            if each.marker is None or each.marker.evaluate({"extra": ""})
        }
        found = {each.split("/")[1].split("@")[0] for each in needs[name]}
        assert wanted <= found
    refs = {each["bom-ref"] for each in made["components"]} | {made["metadata"]["component"]["bom-ref"]}
    assert {each["ref"] for each in made["dependencies"]} == refs
    assert {needed for each in made["dependencies"] for needed in each["dependsOn"]} <= refs


def test_it_has_the_form_of_cyclonedx(made: dict[str, object]) -> None:
    assert made == bill(LOCK, PROJECT)
    assert (made["bomFormat"], made["specVersion"], made["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(made["serialNumber"]))
    about = made["metadata"]
    assert isinstance(about, dict)
    assert about["component"]["version"] == version("overcoat")


@pytest.mark.parametrize("line", ["flask>=2", "git+https://a.example/b", "    --hash=md5:00", "    # because of x"])
def test_a_line_of_another_form_is_not_passed_over(line: str) -> None:
    with pytest.raises(ValueError, match="is not understood"):
        read_lock(f"{LOCK}{line}\n")
