"""Writes the bill of materials (CycloneDX 1.6, JSON) from requirements.lock: `make sbom`.

Rules of this module:

- It tells what the lock tells: each package with its version, the hashes of its files, and what needs it.
- Nothing is asked for anywhere, and it depends on the lock and pyproject.toml only: a second run changes nothing.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OWN = "overcoat"

_PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)(?: ; (.+?))? \\")
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?")
_NEEDED_BY = re.compile(r"    #(?: via |   )([a-z0-9][a-z0-9._-]*)(?: \(pyproject\.toml\))?")
_HEAD = re.compile(r"#.*|    # via|    #   -c \S+|")


@dataclass
class Package:
    """A package of the lock."""

    name: str
    version: str
    marker: str | None
    hashes: list[str] = field(default_factory=list)
    needed_by: list[str] = field(default_factory=list)

    @property
    def ref(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(text: str) -> list[Package]:
    """Return the packages of a lock file that `make lock` wrote.

    Raises:
        ValueError: a line has a form that is not known, so that something could be left out.
    """
    packages: list[Package] = []
    for number, line in enumerate(text.splitlines(), 1):
        if found := _PIN.fullmatch(line):
            packages.append(Package(found[1], found[2], found[3]))
        elif packages and (found := _HASH.fullmatch(line)):
            packages[-1].hashes.append(found[1])
        elif packages and (found := _NEEDED_BY.fullmatch(line)):
            packages[-1].needed_by.append(found[1])
        elif not _HEAD.fullmatch(line):
            raise ValueError(f"line {number} of the lock is not understood: {line}")
    return packages


def bill(lock: str, project: str) -> dict[str, Any]:
    """Return the bill of materials.

    Args:
        lock: the text of requirements.lock.
        project: the text of pyproject.toml.
    """
    about = tomllib.loads(project)["project"]
    packages = read_lock(lock)
    own = f"pkg:pypi/{OWN}@{about['version']}"
    needs: dict[str, list[str]] = {own: [], **{each.ref: [] for each in packages}}
    refs = {OWN: own, **{each.name: each.ref for each in packages}}
    for each in packages:
        for name in each.needed_by:
            needs[refs[name]].append(each.ref)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, own + lock)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": OWN,
                "version": about["version"],
                "description": about["description"],
                "licenses": [{"license": {"id": about["license"]}}],
                "purl": own,
            }
        },
        "components": [_component(each) for each in packages],
        "dependencies": [{"ref": ref, "dependsOn": sorted(found)} for ref, found in needs.items()],
    }


def _component(package: Package) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": each} for each in package.hashes]
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.ref,
        "name": package.name,
        "version": package.version,
        "scope": "required" if package.marker is None else "optional",
        "purl": package.ref,
        # Of each file by which it may come (a wheel for each platform, the sources), not of one thing.
        "externalReferences": [{"type": "distribution", "url": package.ref, "hashes": hashes}],
    }
    if package.marker is not None:
        made["properties"] = [{"name": "overcoat:marker", "value": package.marker}]
    return made


def main(target: Path) -> None:
    """Write it."""
    made = bill((ROOT / "requirements.lock").read_text("utf-8"), (ROOT / "pyproject.toml").read_text("utf-8"))
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    print(f"wrote {target}: {len(made['components'])} packages")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
