"""The house: no circle of imports, none that ARCHITECTURE.md does not allow, no name that a room does not offer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house import Place, Tree, acts, circle, offers, places, wrong_imports, wrong_offers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def house() -> Tree:
    """The sources of the product."""
    return Tree(ROOT, ["overcoat", "proxy", "addons"])


def made_up(folder: Path, **files: str) -> Tree:
    """Return a small tree below a package `p`; a module's name has `__` for a dot."""
    for name, text in files.items():
        path = folder / "p" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for each in {path.parent for path in folder.rglob("*.py")}:
        (each / "__init__.py").touch()
    return Tree(folder, ["p"])


def test_no_modules_import_each_other_in_a_circle(house: Tree) -> None:
    path = circle(house.graph())
    assert not path, " → ".join(path)


def test_nor_does_what_measures_and_documents_it() -> None:
    path = circle(Tree(ROOT, ["bench", "docs"]).graph())
    assert not path, " → ".join(path)


def test_modules_import_only_what_the_architecture_allows(house: Tree) -> None:
    wrong = wrong_imports(house, places((ROOT / "ARCHITECTURE.md").read_text("utf-8")))
    assert not wrong, "\n".join(wrong)


def test_rooms_offer_what_others_import_and_nothing_else(house: Tree) -> None:
    wrong = wrong_offers(house)
    assert not wrong, "\n".join(wrong)


def test_the_core_decides_and_never_acts(house: Tree) -> None:
    assert acts(house, "proxy/core") == []


def test_packages_import_nothing(house: Tree) -> None:
    """What must be imported first, such as `prepare_metrics`, would come too late if a package imported others."""
    assert [each for each in house.imports if house.is_package(each.importer)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from p import a",
        "from p.a import X",
        "import p.a",
        "from . import a",
        "from .a import X",
        "if TYPE_CHECKING:\n    from p.a import X",
        "def later():\n    from p.a import X",
        "COMMANDS = {'a': 'p.a'}",
    ],
)
def test_a_circle_is_found_however_a_module_is_imported(tmp_path: Path, line: str) -> None:
    tree = made_up(tmp_path, a="from p.b import Y", b="from p.c import Z", c=line)
    assert circle(tree.graph()) == ["p.a", "p.b", "p.c", "p.a"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import re\nfrom collections.abc import Mapping", []),
        ("import os.path", ["p.a imports os.path"]),
        ("from urllib.request import urlopen", ["p.a imports urllib.request"]),
        ("def later():\n    from socket import create_server", ["p.a imports socket"]),
        ("from . import time", []),
        ("from pathlib import Path\nPath('x').read_text()", ["p.a calls .read_text"]),
        ("from datetime import date\ndate.today()", ["p.a calls .today"]),
        ("open('x')", ["p.a calls open"]),
        ("def use(it):\n    return it.open('x'), it.now", []),
    ],
)
def test_what_acts_is_found(tmp_path: Path, line: str, found: list[str]) -> None:
    assert acts(made_up(tmp_path, a=line, r__b="import os"), "p/a.py") == found


def test_of_two_circles_the_shorter_is_shown(tmp_path: Path) -> None:
    tree = made_up(tmp_path, a="from p.b import X", b="from p.c import X", c="from p import a, d", d="from p import c")
    assert circle(tree.graph()) == ["p.c", "p.d", "p.c"]


def test_where_there_is_no_circle_none_is_shown(tmp_path: Path) -> None:
    tree = made_up(tmp_path, a="from p import b, c", b="from p.c import X", c="import json", d="from p.a import X")
    assert circle(tree.graph()) == []


def test_a_relative_import_of_a_room_above_is_found(tmp_path: Path) -> None:
    tree = made_up(tmp_path, a="from p.r.b import X", r__b="from ..a import Y")
    assert circle(tree.graph()) == ["p.a", "p.r.b", "p.a"]


def test_a_package_that_imports_its_own_module_is_found(tmp_path: Path) -> None:
    made_up(tmp_path, r__b="X = 0")
    (tmp_path / "p" / "r" / "__init__.py").write_text("from .b import X", "utf-8")
    assert Tree(tmp_path, ["p"]).graph()["p.r"] == {"p.r.b"}


def rows(*lines: str) -> list[Place]:
    """Return the places of a table with these lines."""
    head = "## The house\n\n| place | what lives there | may import |\n| --- | --- | --- |\n"
    return places(head + "\n".join(lines) + "\n\n## Next\n\n| `q` | not a place | `r` |\n")


def test_the_table_is_read() -> None:
    assert rows(
        "| [`p/a.py`](p/a.py), [`p/r`](p/r) | it has a `Name` | `p/b`, `pyopenssl` |", "| [`p/b`](p/b) | … | – |"
    ) == [
        Place(("p/a.py", "p/r"), ("p/b", "pyopenssl")),
        Place(("p/b",), ()),
    ]


TWO_ROOMS = {"top__a": "from p.low.b import X\nfrom p.top import c", "top__c": "import json", "low__b": "import click"}
TOP, LOW, REST = "| `p/top` | … | `p/low` |", "| `p/low` | … | `click` |", "| `p` | … | – |"


def test_a_folder_is_no_row_of_another_whose_name_begins_like_its_own(tmp_path: Path) -> None:
    tree = made_up(tmp_path, top__a="import json", topmost__b="import json")
    assert wrong_imports(tree, rows("| `p/top` | … | – |")) == ["p/topmost/b.py: in no row"]


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ([TOP, LOW, REST], []),
        (["| `p/top` | … | `p` |", LOW], []),
        (["| `p/top` | … | – |", LOW, REST], ["p.top.a imports p.low.b: not in the third column of p/top"]),
        ([TOP, "| `p/low` | … | – |", REST], ["p.low.b imports click: not in the third column of p/low"]),
        ([TOP, "| `p/low` | … | `click`, `rich` |", REST], ["p/low may import rich: nothing in it does"]),
        ([TOP, LOW, "| `p` | … | `p/low` |"], ["p may import p/low: nothing in it does"]),
        ([LOW, TOP, REST], ["p.top.a imports p.low.b: p/low stands above p/top"]),
        (["| `p/top` | … | – |"], ["p/low/b.py: in no row"]),
        (
            ["| `p/top` | … | `p` |", LOW, REST],
            ["p.top.a imports p.low.b: not in the third column of p/top", "p/top may import p: nothing in it does"],
        ),
    ],
    ids=[
        "right",
        "a folder",
        "not allowed",
        "a third party",
        "unused",
        "unused here",
        "above",
        "no row",
        "one row alone",
    ],
)
def test_imports_are_compared_with_the_table(tmp_path: Path, table: list[str], wrong: list[str]) -> None:
    assert wrong_imports(made_up(tmp_path, **TWO_ROOMS), rows(*table)) == wrong


LONG = 500  # lines
LONG_ONES = [
    path
    for folder in ("overcoat", "proxy", "addons", "bench", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if len(path.read_text("utf-8").splitlines()) > LONG
]


@pytest.mark.parametrize("path", LONG_ONES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_that_is_long_says_why(path: Path) -> None:
    said = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split())
    assert f"longer than {LONG} lines, because" in said


def test_an_offer_is_read() -> None:
    assert offers("One line.\n\n- `a`: X; no offer\n\nOffers:\n\n- `b`: X, Y; what\n  for\n- `c`: Z; more") == {
        "b": {"X", "Y"},
        "c": {"Z"},
    }
    assert offers("One line.") == {}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("from p.low.b import X", []),
        ("from p.low import b\nprint(b.X)", []),
        ("from p.low import b as named\nprint(named.X)", []),
        ("from p.low.b import X, Y", ["p.top imports Y of p.low.b: p.low does not offer it"]),
        ("from p.low import b\nprint(b.X, b.Y)", ["p.top imports Y of p.low.b: p.low does not offer it"]),
        (
            "import p.low.b\nprint(p.low.b.X)",
            ["p.low.b offers X: nobody else imports it", "p.top imports * of p.low.b: p.low does not offer it"],
        ),
        ("import json", ["p.low.b offers X: nobody else imports it"]),
    ],
    ids=["offered", "of a module", "renamed", "not offered", "not offered of a module", "by its path", "unused"],
)
def test_names_are_compared_with_what_their_room_offers(tmp_path: Path, line: str, wrong: list[str]) -> None:
    made_up(tmp_path, top=line, low__b="X = Y = 0", low__near="from p.low.b import Y")
    (tmp_path / "p" / "low" / "__init__.py").write_text(
        '"""The low room.\n\nOffers:\n\n- `b`: X; what for\n"""\n', "utf-8"
    )
    assert wrong_offers(Tree(tmp_path, ["p"])) == wrong
