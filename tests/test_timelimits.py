"""Every time limit stands once, in `proxy.timelimits`, with its reason; no other module has one of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import timelimits

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "proxy" / "timelimits.py"
SOURCES = sorted(
    path for folder in ("overcoat", "proxy", "addons") for path in (ROOT / folder).rglob("*.py") if path != HOME
)
# What waits, or keeps time, and which of its arguments says for how long.
WAITS = {
    "acquire": 1,
    "call_later": 0,
    "create_connection": 1,
    "join": 0,
    "poll": 0,
    "run": None,
    "select": 0,
    "settimeout": 0,
    "sleep": 0,
    "timedelta": 0,
    "timeout": 0,
    "urlopen": None,
    "wait": 0,
    "wait_for": 1,
}
KEYWORDS = {"timeout", "delay", "seconds", "minutes", "hours", "days", "weeks"}


def _is_number(node: ast.expr) -> bool:
    """Whether it is a number that is written here, and not 0, which means not to wait."""
    if isinstance(node, ast.BinOp):
        return _is_number(node.left) and _is_number(node.right)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0


def own_limits(source: str) -> Iterator[str]:
    """Find the time limits that a module sets by itself: constants by their name, and numbers where something waits."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for each in ast.walk(target):
                    name = each.id if isinstance(each, ast.Name) else ""
                    if re.search(r"(^|_)SECONDS$", name):
                        yield f"line {node.lineno} assigns {name}"
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = WAITS.get(name)
            given = [node.args[place]] if place is not None and len(node.args) > place else []
            given += [each.value for each in node.keywords if each.arg in KEYWORDS and name in WAITS]
            given += [each.value for each in node.keywords if each.arg in ("timeout", "delay")]
            if any(_is_number(each) for each in given):
                yield f"line {node.lineno} gives {name} a number"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_module_has_a_time_limit_of_its_own(path: Path) -> None:
    assert list(own_limits(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("FLUSH_SECONDS = 30.0", "line 1 assigns FLUSH_SECONDS"),
        ("_SECONDS: float = 30.0", "line 1 assigns _SECONDS"),
        ("class A:\n    A_SECONDS = B = 1", "line 2 assigns A_SECONDS"),
        ("A, B_SECONDS = 1, 2", "line 1 assigns B_SECONDS"),
        ("asyncio.timeout(5)", "line 1 gives timeout a number"),
        ("loop.call_later(2 * 60, f)", "line 1 gives call_later a number"),
        ("sleep(0.5)", "line 1 gives sleep a number"),
        ("urlopen(url, timeout=3)", "line 1 gives urlopen a number"),
        ("x.anything(delay=3)", "line 1 gives anything a number"),
        ("timedelta(days=3)", "line 1 gives timedelta a number"),
        ("wait_for(x, 3)", "line 1 gives wait_for a number"),
        ("loop.call_later(timelimits.FLUSH_SECONDS / 4, f)", None),
        ("sleep(0)", None),
        ("', '.join(names)", None),
        ("timedelta(days=days)", None),
    ],
)
def test_a_limit_of_its_own_is_found(source: str, found: str | None) -> None:
    assert list(own_limits(source)) == ([] if found is None else [found])


def test_each_has_its_reason_in_the_line_above_and_is_a_number() -> None:
    lines = HOME.read_text("utf-8").splitlines()
    body = ast.parse(HOME.read_text("utf-8")).body
    assert isinstance(body[0], ast.Expr)  # its docstring
    for node in body[1:]:
        assert isinstance(node, ast.Assign), f"line {node.lineno}: not a constant"  # nor an import
        (target,) = node.targets
        assert isinstance(target, ast.Name)
        if not target.id.startswith("_"):
            assert target.id.endswith("_SECONDS")
            assert re.fullmatch(r"# [A-Z].*\.", lines[node.lineno - 2]), f"{target.id}: no reason"
            assert getattr(timelimits, target.id) > 0


def test_each_is_kept_by_somebody() -> None:
    everything = "\n".join(path.read_text("utf-8") for path in SOURCES if path.name != "__init__.py")
    names = [name for name in vars(timelimits) if name.endswith("_SECONDS")]
    assert [name for name in names if f"timelimits.{name}" not in everything] == []
