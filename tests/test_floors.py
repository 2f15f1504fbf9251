"""The shares of branches that the tests must run: they are wanted of files that are there, and what lacks is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import floors
from tests.floors import CONFIGURATION, ROOT, BadFloors, Floors, judge

TEXT = """
[floors]
folders = ["a"]
percent = 90
[floors.lower]
"a/low.py" = {percent = 50, reason = "a fault of the disk"}
"""


def measured(covered: int, of: int, missing: list[tuple[int, int]] | None = None) -> dict[str, Any]:
    """Return what a report says of a file with branches."""
    return {
        "summary": {"num_branches": of, "covered_branches": covered, "num_statements": 100, "covered_lines": 100},
        "missing_branches": missing or [],
        "missing_lines": [],
    }


def statements(covered: int, of: int, missing: list[int] | None = None) -> dict[str, Any]:
    """Return what a report says of a file without branches."""
    return {
        "summary": {"num_branches": 0, "covered_branches": 0, "num_statements": of, "covered_lines": covered},
        "missing_branches": [],
        "missing_lines": missing or [],
    }


def report(**files: Any) -> dict[str, Any]:
    """Return a report of files of the folder `a`."""
    return {"meta": {"branch_coverage": True}, "files": {f"a/{name}.py": value for name, value in files.items()}}


class TestOurs:
    """What is wanted of the product."""

    def test_every_file_of_the_engine_and_the_addons_counts_and_no_lower_share_is_of_a_file_that_is_gone(self) -> None:
        ours = Floors.read(CONFIGURATION.read_text("utf-8"))
        assert ours.percent == 90
        expected = {each.relative_to(ROOT).as_posix() for each in ROOT.glob("proxy/engine/**/*.py")}
        expected |= {each.relative_to(ROOT).as_posix() for each in ROOT.glob("addons/**/*.py")}
        assert set(ours.files(ROOT)) == expected


class TestWhatIsWanted:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (("percent = 50", "percent = 90"), "is not below 90"),
            (("a fault of the disk", " "), "needs its reason"),
            (('"a/low.py"', '"b/low.py"'), "in none of the folders a"),
        ],
    )
    def test_a_lower_share_is_lower_has_a_reason_and_is_of_a_file_that_counts(
        self, change: tuple[str, str], said: str
    ) -> None:
        assert Floors.read(TEXT).lower["a/low.py"].percent == 50
        with pytest.raises(BadFloors, match=said):
            Floors.read(TEXT.replace(*change))

    def test_files_are_those_on_disk_and_those_below_them(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        for name in ("low.py", "b/deep.py", "b/paper.md"):
            (tmp_path / "a" / name).touch()
        assert Floors.read(TEXT).files(tmp_path) == ["a/b/deep.py", "a/low.py"]

    def test_a_file_that_is_gone_has_no_lower_share(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "other.py").touch()
        with pytest.raises(BadFloors, match=r"a/low\.py: no such file"):
            Floors.read(TEXT).files(tmp_path)

    def test_a_folder_that_is_gone_is_not_passed_over(self, tmp_path: Path) -> None:
        with pytest.raises(BadFloors, match="a: no such folder"):
            Floors.read(TEXT).files(tmp_path)


class TestJudgement:
    @pytest.mark.parametrize("covered", [90, 100])
    def test_enough_is_enough(self, covered: int) -> None:
        verdict = judge(Floors.read(TEXT), ["a/x.py"], report(x=measured(covered, 100)))
        assert (verdict.too_low, verdict.needless) == ((), ())

    def test_what_is_too_low_is_said_with_the_branches_that_were_not_run(self) -> None:
        found = report(x=measured(8, 10, [(7, 9), (12, -3)]))
        (line,) = judge(Floors.read(TEXT), ["a/x.py"], found).too_low
        assert line == "a/x.py: 80.0 % of the branches, 90 % are wanted; not run: 7→9, 12→end"

    def test_no_figure_is_rounded_up(self) -> None:
        assert judge(Floors.read(TEXT), ["a/x.py"], report(x=measured(8999, 10000))).too_low

    def test_a_file_that_no_process_has_loaded_is_too_low(self) -> None:
        (line,) = judge(Floors.read(TEXT), ["a/x.py"], report()).too_low
        assert line == "a/x.py: 0.0 % of the branches, 90 % are wanted; not run at all"

    def test_a_file_without_branches_counts_by_its_statements(self) -> None:
        assert not judge(Floors.read(TEXT), ["a/x.py"], report(x=statements(9, 10))).too_low
        (line,) = judge(Floors.read(TEXT), ["a/x.py"], report(x=statements(1, 3, [5, 6]))).too_low
        assert line.endswith("not run: 5, 6")

    def test_an_empty_file_has_nothing_to_run(self) -> None:
        assert not judge(Floors.read(TEXT), ["a/x.py"], report(x=statements(0, 0))).too_low

    def test_a_file_may_have_a_lower_share_and_no_more_than_that(self) -> None:
        wanted = Floors.read(TEXT)
        assert not judge(wanted, ["a/low.py"], report(low=measured(5, 10))).too_low
        assert judge(wanted, ["a/low.py"], report(low=measured(4, 10))).too_low

    def test_a_lower_share_that_is_not_needed_is_said_and_fails_nothing(self) -> None:
        verdict = judge(Floors.read(TEXT), ["a/low.py"], report(low=measured(9, 10)))
        assert verdict.too_low == ()
        assert "no share of its own any more" in verdict.needless[0]

    def test_a_report_without_branches_is_refused(self) -> None:
        with pytest.raises(BadFloors, match="--branch"):
            judge(Floors.read(TEXT), [], {"meta": {"branch_coverage": False}, "files": {}})


def test_without_a_report_nothing_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert floors.main(str(tmp_path / "coverage.json")) == 1
    assert "there is no report" in capsys.readouterr().out


@pytest.mark.parametrize(("covered", "status"), [(9, 0), (8, 1)])
def test_the_exit_status_says_whether_all_is_well(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    covered: int,
    status: int,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "low.py").touch()
    (tmp_path / "a" / "x.py").touch()
    (tmp_path / "coverage.toml").write_text(TEXT)
    (tmp_path / "coverage.json").write_text(json.dumps(report(low=measured(5, 10), x=measured(covered, 10))))
    monkeypatch.setattr(floors, "ROOT", tmp_path)
    monkeypatch.setattr(floors, "CONFIGURATION", tmp_path / "coverage.toml")
    assert floors.main(str(tmp_path / "coverage.json")) == status
    said = capsys.readouterr().out
    assert said.startswith("2 files of a: the tests" if status == 0 else "a/x.py: 80.0 %")
