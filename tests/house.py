"""Reads from the sources who imports what, and compares it with what ARCHITECTURE.md and the rooms' docstrings allow.

`tests/test_house.py` calls it. Three words, as in ARCHITECTURE.md: a *module* is a file; a *room* is a package, that
is, the modules that lie directly in one folder; a *place* is a row of the table "The house".

Rules of this module:

- The sources are parsed, never imported, so imports inside functions and under `TYPE_CHECKING` count like all others.
- A text that is exactly the name of a module counts as an import of it: `proxy/cli.py` loads its commands like that.
- The standard library may be imported everywhere, so it is left out of what is found here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

# What of the standard library only computes: `pathlib` for paths as values, `secrets` for keys and nonces, `importlib`
# for what is large and seldom needed.
COMPUTING = frozenset(
    (
        *("__future__", "array", "base64", "binascii", "bisect", "collections", "collections.abc", "dataclasses"),
        *("datetime", "enum", "functools", "hashlib", "hmac", "html", "importlib", "ipaddress", "itertools", "json"),
        *("math",),
        *(
            "pathlib",
            "plistlib",
            "re",
            "secrets",
            "struct",
            "typing",
            "unicodedata",
            "urllib.parse",
            "warnings",
            "weakref",
        ),
        *("xml.parsers", "zlib"),
    )
)
ACTING_CALLS = frozenset(("open", "print", "input", "exec", "eval", "__import__"))
ACTING_METHODS = frozenset(
    ("now", "utcnow", "today", "urlopen", "read_text", "read_bytes", "write_text", "write_bytes", "exists", "stat")
)

STANDARD = {*sys.stdlib_module_names, "_typeshed"}  # typeshed's own names exist for type checkers only


@dataclass(frozen=True)
class Import:
    """One module imports names of another, or something of a third party."""

    importer: str  # a module of ours, such as proxy.core.pins
    target: str  # the same, or the name of a distribution, such as pyopenssl
    names: frozenset[str] = frozenset()  # what of a module of ours is used


@dataclass(frozen=True)
class Place:
    """A row of the table: the modules that it is about, and what they may import."""

    paths: tuple[str, ...]  # such as proxy/core/http or proxy/log.py
    allowed: tuple[str, ...]  # paths, and names of distributions


class Tree:
    """The sources of some packages below one folder."""

    def __init__(self, root: Path, packages: Iterable[str]) -> None:
        self.files = {
            name_of(path.relative_to(root)): path for each in packages for path in (root / each).rglob("*.py")
        }
        self.parsed = {name: ast.parse(path.read_text("utf-8")) for name, path in self.files.items()}
        self.imports = [found for name in sorted(self.files) for found in self._imports_of(name)]

    def is_package(self, module: str) -> bool:
        """Whether a module is the `__init__` of a package."""
        return self.files[module].name == "__init__.py"

    def path(self, module: str) -> str:
        """Return where a module lies, such as proxy/core/pins.py; a package's `__init__` lies in its folder."""
        folder = module.replace(".", "/")
        return f"{folder}/__init__.py" if self.is_package(module) else f"{folder}.py"

    def room(self, module: str) -> str:
        """Return the package that a module lies directly in."""
        return module if self.is_package(module) else module.rpartition(".")[0]

    def _imports_of(self, module: str) -> Iterator[Import]:
        tree = self.parsed[module]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield self._import(module, alias.name, frozenset("*"))  # which no room offers
            elif isinstance(node, ast.ImportFrom):
                source = self._source(module, node)
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    if whole in self.files:
                        yield self._import(module, whole, attributes(tree, alias.asname or alias.name))
                    else:
                        yield self._import(module, source, frozenset({alias.name}))
            elif isinstance(node, ast.Constant) and node.value in self.files and "." in node.value:
                yield Import(module, node.value)

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        """Return the full name of what a `from … import` reads, relative ones included."""
        if not node.level:
            return node.module or ""
        parts = self.room(module).split(".")
        return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])

    def _import(self, importer: str, target: str, names: frozenset[str]) -> Import:
        if target in self.files:
            return Import(importer, target, names)
        return Import(importer, distribution(target.partition(".")[0]))

    def graph(self) -> dict[str, set[str]]:
        """Return which modules each module imports."""
        graph: dict[str, set[str]] = {name: set() for name in self.files}
        for each in self.imports:
            if each.target in self.files:
                graph[each.importer].add(each.target)
        return graph


def name_of(path: Path) -> str:
    """Return the name that a source is imported by."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def attributes(tree: ast.Module, name: str) -> frozenset[str]:
    """Return what is used of a module that was imported as a whole, under the name that it has here."""
    return frozenset(
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    )


@cache
def distribution(package: str) -> str:
    """Return the name by which a third party's package is installed, or "" for one of the standard library."""
    return "" if package in STANDARD else normal(packages_distributions().get(package, [package])[0])


def normal(distribution: str) -> str:
    """Return the one spelling of a distribution's name (as PyPI compares them)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the shortest path that leads back to where it starts, both ends included; empty if there is none."""
    shortest: list[str] = []
    for start in sorted(graph):
        before = dict.fromkeys(sorted(graph[start]), start)
        queue = deque(before)
        while queue and start not in before:
            here = queue.popleft()
            for target in sorted(graph.get(here, ())):
                if target not in before:
                    before[target] = here
                    queue.append(target)
        if start in before:
            path = [start, before[start]]
            while path[-1] != start:
                path.append(before[path[-1]])
            if not shortest or len(path) < len(shortest):
                shortest = path[::-1]
    return shortest


def places(paper: str) -> list[Place]:
    """Read the table under the heading "The house"."""
    section = re.search(r"^## The house\n(.*?)(?=^## |\Z)", paper, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\|(.*)\|$", section[1], re.MULTILINE)[2:] if section else []
    cells = [row.split("|") for row in rows]
    return [
        Place(tuple(re.findall(r"`([^`]+)`", first)), tuple(re.findall(r"`([^`]+)`", last))) for first, _, last in cells
    ]


def home(rows: list[Place], path: str) -> int | None:
    """Return the number of the row that a module's path belongs to: the one with the longest path that it is under."""
    found = [(len(each), number) for number, row in enumerate(rows) for each in row.paths if is_under(path, each)]
    return max(found)[1] if found else None


def is_under(path: str, folder: str) -> bool:
    """Whether a path is a folder or file, or lies in it."""
    return path == folder or path.startswith(f"{folder}/")


def wrong_imports(tree: Tree, rows: list[Place]) -> list[str]:
    """Return what contradicts the table: what it does not allow, and what it allows but nobody does.

    A module may import its own row. What the third column names by its path is that row alone; a folder that is no row
    stands for all rows in it. Whoever imports stands above what is imported.
    """
    modules = [module for module in tree.files if not tree.is_package(module)]
    wrong = [f"{tree.path(module)}: in no row" for module in modules if home(rows, tree.path(module)) is None]
    used: dict[int, set[str]] = {number: set() for number in range(len(rows))}
    paths = {path for row in rows for path in row.paths}
    for each in tree.imports:
        here = home(rows, tree.path(each.importer))
        ours = each.target in tree.files
        there = home(rows, tree.path(each.target)) if ours else None
        if here is None or not each.target or (ours and there in (here, None)):
            continue
        named = {each.target} if there is None else set(rows[there].paths)
        allowing = {
            word
            for word in rows[here].allowed
            if word in named or (word not in paths and any(is_under(n, word) for n in named))
        }
        used[here] |= allowing
        if not allowing:
            wrong.append(f"{each.importer} imports {each.target}: not in the third column of {rows[here].paths[0]}")
        elif there is not None and there < here:
            wrong.append(
                f"{each.importer} imports {each.target}: {rows[there].paths[0]} stands above {rows[here].paths[0]}"
            )
    for number, row in enumerate(rows):
        wrong += [
            f"{row.paths[0]} may import {word}: nothing in it does" for word in row.allowed if word not in used[number]
        ]
    return sorted(set(wrong))


def acts(tree: Tree, folder: str) -> list[str]:
    """Return what in a folder could do more than decide: modules of the standard library that are not among those which
    only compute, and calls that read, write or ask for the time.
    """
    found = []
    for module in sorted(tree.files):
        if not is_under(tree.path(module), folder):
            continue
        for node in ast.walk(tree.parsed[module]):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            standard = [name for name in names if name.partition(".")[0] in STANDARD]
            found += [f"{module} imports {name}" for name in standard if name not in COMPUTING]
            match node:
                case ast.Call(func=ast.Name(id=called)) if called in ACTING_CALLS:
                    found.append(f"{module} calls {called}")
                case ast.Call(func=ast.Attribute(attr=called)) if called in ACTING_METHODS:
                    found.append(f"{module} calls .{called}")
    return found


def offers(docstring: str) -> dict[str, set[str]]:
    """Read what a room offers: under "Offers:", for each module the names, and after a semicolon what for."""
    _, _, listed = docstring.partition("\nOffers:\n\n")
    entries = re.findall(r"^- `(\w+)`: ([^;]+);", listed, re.MULTILINE)
    return {module: {name.strip() for name in names.split(",")} for module, names in entries}


def wrong_offers(tree: Tree) -> list[str]:
    """Return which names are imported though their room does not offer them, and which are offered to nobody."""
    offered = {
        (f"{module}.{name}", each)
        for module in tree.files
        if tree.is_package(module)
        for name, names in offers(ast.get_docstring(tree.parsed[module]) or "").items()
        for each in names
    }
    used = {
        (each.target, name): each.importer
        for each in tree.imports
        if each.target in tree.files and tree.room(each.target) != tree.room(each.importer)
        for name in each.names
    }
    return sorted(
        [
            f"{importer} imports {name} of {module}: {tree.room(module)} does not offer it"
            for (module, name), importer in used.items()
            if (module, name) not in offered
        ]
        + [f"{module} offers {name}: nobody else imports it" for module, name in offered if (module, name) not in used]
    )
