"""Compares what the tests run of each file with the share of its branches that they must run.

`make coverage` calls it with the report of `coverage json`; `tests/test_floors.py` tests it. What is wanted stands in
`tests/coverage.toml`, below `[floors]`: the folders, the share that holds for each of their files, and the files that
have a lower one, each with its reason.

Rules of this module:

- The files are those on disk. One that the report does not have was not run at all.
- A file without branches counts by its statements.
- A lower share that is no longer needed is said, and fails nothing: a branch that only a slow machine takes comes and
  goes.

    .venv/bin/python tests/floors.py coverage.json
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "tests" / "coverage.toml"


class BadFloors(ValueError):
    """The configuration asks for something that cannot be meant."""


@dataclass(frozen=True)
class Lower:
    """The share of one file, and why it is lower."""

    percent: float
    reason: str


@dataclass(frozen=True)
class Floors:
    """What is wanted of each file.

    Attributes:
        folders: whose files count, relative to the project's folder.
        percent: the share of a file's branches that the tests must run, 0 to 100.
        lower: the files of which less is wanted.
    """

    folders: tuple[str, ...]
    percent: float
    lower: Mapping[str, Lower]

    @classmethod
    def read(cls, text: str) -> Self:
        """Read the table `[floors]` of a TOML text.

        Raises:
            BadFloors: a file has a share that is not lower, has no reason, or lies in none of the folders.
        """
        table: dict[str, Any] = tomllib.loads(text)["floors"]
        floors = cls(
            tuple(table["folders"]),
            table["percent"],
            {name: Lower(**values) for name, values in table.get("lower", {}).items()},
        )
        for name, lower in floors.lower.items():
            if lower.percent >= floors.percent:
                raise BadFloors(f"{name}: {lower.percent} is not below {floors.percent}")
            if not lower.reason.strip():
                raise BadFloors(f"{name}: a lower share needs its reason")
            if not name.startswith(tuple(f"{folder}/" for folder in floors.folders)):
                raise BadFloors(f"{name}: it lies in none of the folders {', '.join(floors.folders)}")
        return floors

    def files(self, root: Path) -> list[str]:
        """Return the files that count, relative to the project's folder `root`, with / between names.

        Raises:
            BadFloors: a folder has no files, or a file with a lower share is not there.
        """
        found: list[str] = []
        for folder in self.folders:
            inside = sorted(each.relative_to(root).as_posix() for each in (root / folder).rglob("*.py"))
            if not inside:
                raise BadFloors(f"{folder}: no such folder, or no Python in it")
            found += inside
        for name in self.lower:
            if name not in found:
                raise BadFloors(f"{name}: no such file")
        return found

    def of(self, name: str) -> float:
        """Return the share, in per cent, that is wanted of a file."""
        return self.lower[name].percent if name in self.lower else self.percent


@dataclass(frozen=True)
class Verdict:
    """What is said of the files.

    Attributes:
        too_low: a line for each file of which too little is run.
        needless: a line for each file whose lower share is no longer needed.
    """

    too_low: tuple[str, ...]
    needless: tuple[str, ...]


def judge(floors: Floors, files: list[str], report: Mapping[str, Any]) -> Verdict:
    """Compare a report with what is wanted.

    Args:
        floors: what is wanted.
        files: the files that count.
        report: what `coverage json` wrote, with branches measured.

    Raises:
        BadFloors: the report has no branches.
    """
    if not report["meta"]["branch_coverage"]:
        raise BadFloors("the report was made without --branch")
    too_low, needless = [], []
    for name in files:
        found = report["files"].get(name)
        run = share(found["summary"]) if found is not None else 0.0
        if run < floors.of(name):
            not_run = "not run at all" if found is None else f"not run: {missing(found)}"
            too_low.append(f"{name}: {run:.1f} % of the branches, {floors.of(name):g} % are wanted; {not_run}")
        elif name in floors.lower and run >= floors.percent:
            needless.append(f"{name}: {run:.1f} % of the branches; it needs no share of its own any more")
    return Verdict(tuple(too_low), tuple(needless))


def share(summary: Mapping[str, int]) -> float:
    """Return the share of a file's branches that were run, in per cent; of its statements if it has no branch."""
    if summary["num_branches"]:
        return 100.0 * summary["covered_branches"] / summary["num_branches"]
    return 100.0 * summary["covered_lines"] / summary["num_statements"] if summary["num_statements"] else 100.0


def missing(found: Mapping[str, Any]) -> str:
    """Return the branches of a file that were not run, as `7→9` or `7→end`; its lines if it has no branch.

    In a report, a negative number stands for the end of the function, the class or the module that begins there.
    """
    if found["summary"]["num_branches"]:
        return ", ".join(f"{start}→{'end' if to < 0 else to}" for start, to in found["missing_branches"])
    return ", ".join(str(line) for line in found["missing_lines"])


def main(report: str) -> int:
    """Say what is too low; return the exit status."""
    floors = Floors.read(CONFIGURATION.read_text("utf-8"))
    files = floors.files(ROOT)
    try:
        found = json.loads(Path(report).read_text("utf-8"))
    except FileNotFoundError:
        print(f"{report}: there is no report; the tests were ended before they wrote it")
        return 1
    verdict = judge(floors, files, found)
    for line in (*verdict.needless, *verdict.too_low):
        print(line)
    if not verdict.too_low:
        print(f"{len(files)} files of {', '.join(floors.folders)}: the tests run as much of each as they must")
    return 1 if verdict.too_low else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
