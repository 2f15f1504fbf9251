"""Every regular expression in the sources takes linear time, whatever text it is used on.

How it works. The sources are read for calls of `re`'s functions. What each compiles is found in the imported module,
with the methods by which it is used anywhere; what is compiled inside a function is looked up in `MADE_INSIDE`, unless
it is a constant. So a new one is tried by itself, or fails a test here until it is named. The texts that a pattern is
tried on are made of its own parse tree: what its repeats take, many times over, behind what leads there and before what
lets it fail, and its beginnings over and over.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]  # the one parser of what `re` takes
from typing import Any

import pytest

from proxy.core.fields.automaton import Marks, automaton_of
from proxy.core.fields.entries import PathGlob
from proxy.core.fields.quickwalk import _known_places, _looking
from proxy.core.fields.selectors import parse_selector
from tests.growth import TOO_MUCH, growth

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("proxy", "addons") for path in (ROOT / folder).rglob("*.py"))
MOST = 64 * 1024
METHODS = ("match", "fullmatch", "search", "findall", "finditer", "sub", "split")
GLOBS = ("/v1/**", "/v1/*/a*b*c/**/x*y", "/**/a/**/b/*/**/c", "/*a*a*a*a", "/**/*a*a*/**/*a*a", "/a/**/**/**/b", "/**")
NAMED = Marks(tuple(parse_selector(text) for text in ("$.a.b", "$.a['']", "$.ssn")))


def method_of(match: Any) -> re.Pattern[Any]:
    """Return the pattern whose method this is."""
    pattern: re.Pattern[Any] = match.__self__
    return pattern


MADE_INSIDE: dict[tuple[str, str], list[tuple[re.Pattern[Any], str]]] = {
    ("proxy/core/fields/entries.py", "parse"): [(PathGlob.parse(text).pattern, "fullmatch") for text in GLOBS],
    ("proxy/core/fields/quickwalk.py", "_looking"): [
        (method_of(_looking(frozenset(names), frozenset(folded))), "match")
        for names, folded in (((b"ssn", b"a", b"", b"\xc3\xa9"), ()), ((b"ssn",), (b"a", b"\xc3\xa9")))
    ],
    ("proxy/core/fields/quickwalk.py", "_known_places"): [
        (method_of(KNOWN.match), "match") for KNOWN in [_known_places(automaton_of((NAMED,)))] if KNOWN
    ],
}


@dataclass(frozen=True)
class Use:
    """A pattern, and a method by which it is used."""

    where: str
    pattern: re.Pattern[Any]
    method: str


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield the calls of `re`'s functions, and the name of the function round each."""

    def inside(node: ast.AST, function: str) -> Iterator[tuple[ast.Call, str]]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"))):
                    yield child, function
            name = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield from inside(child, name)

    return inside(tree, "")


def methods_by_name() -> dict[tuple[str, str], set[str]]:
    """Return by which methods a name is used, in each of the sources; one without an underscore, in any of them."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=method) if method in METHODS:
                    where = str(path.relative_to(ROOT)) if name.startswith("_") else ""
                    found.setdefault((where, name), set()).add(method)
    return found


def held(module: Any) -> Iterator[tuple[str, re.Pattern[Any], str | None]]:
    """Yield the patterns that a module holds, and the method where that is what it holds."""
    for name, value in vars(module).items():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, re.Pattern):
                yield name, each, None
            elif isinstance(getattr(each, "__self__", None), re.Pattern):
                yield name, each.__self__, each.__name__


def uses() -> list[Use]:
    """Return all patterns of the sources with all their uses.

    Raises:
        AssertionError: there is one that this cannot find.
    """
    found: list[Use] = []
    by_name = methods_by_name()
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        outside = 0
        for call, function in calls(ast.parse(path.read_text("utf-8"))):
            assert isinstance(call.func, ast.Attribute)
            what = call.func.attr
            if what == "escape":
                continue
            if not function:
                outside += 1
            elif isinstance(call.args[0], ast.Constant):
                found.append(Use(f"{where}:{function}", re.compile(call.args[0].value), what))
            else:
                assert (where, function) in MADE_INSIDE, f"{where}: name what {function} compiles in MADE_INSIDE"
                found += [Use(f"{where}:{function}", *each) for each in MADE_INSIDE[where, function]]
        if not outside:
            continue
        module = importlib.import_module(where.removesuffix(".py").replace("/", "."))
        patterns = list(held(module))
        assert len({name for name, _, _ in patterns}) >= outside, f"{where}: {outside} patterns, found {patterns}"
        for name, pattern, method in patterns:
            ways = (
                [method]
                if method
                else sorted(by_name.get((where if name.startswith("_") else "", name), ()))
                or ["match", "fullmatch", "search"]
            )
            found += [Use(f"{where}:{name}", pattern, way) for way in ways]
    return found


# -- the texts

REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}
USUAL = "a0 \t\"'=;,.:/-_é"
OFTEN = 16  # a repeat that may be longer than this is what costs
FEW = 6
MANY = 250  # texts for one pattern


class Texts:
    """Makes the texts for one pattern."""

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        self.tree = _parser.parse(
            pattern.pattern, pattern.flags & ~re.UNICODE if pattern.flags & 256 else pattern.flags
        )
        self.is_bytes = isinstance(pattern.pattern, bytes)
        self.alphabet = "".join(dict.fromkeys([*self._literals(self.tree), *USUAL]))

    def _literals(self, tree: Any) -> Iterator[str]:
        for op, argument in tree:
            if str(op) in ("LITERAL", "NOT_LITERAL"):
                yield chr(argument)
            for inner in parts(op, argument):
                yield from self._literals(inner)
            if str(op) == "IN":
                yield from (chr(each) for kind, each in argument if str(kind) == "LITERAL")
                yield from (chr(each[0]) for kind, each in argument if str(kind) == "RANGE")

    def characters(self, op: Any, argument: Any) -> list[str]:
        """Return some of the characters that one step of a pattern takes."""
        taken = [each for each in self.alphabet if takes(op, argument, each)]
        return taken[:FEW]

    def some(self, tree: Any) -> list[str]:
        """Return some short texts that a pattern takes."""
        found = [""]
        for op, argument in tree:
            match str(op):
                case "LITERAL":
                    steps = [chr(argument)]
                case "NOT_LITERAL" | "ANY" | "IN":
                    steps = self.characters(op, argument)
                case "BRANCH":
                    steps = [text for each in argument[1] for text in self.some(each)[:FEW]]
                case "SUBPATTERN":
                    steps = self.some(argument[3])
                case "ATOMIC_GROUP":
                    steps = self.some(argument)
                case name if name in REPEATS:
                    least, _, inner = argument
                    once = self.some(inner)
                    steps = [text * max(least, 1) for text in once[:FEW]] + ([""] if least == 0 else [])
                case _:
                    steps = [""]
            found = [before + step for before, step in itertools.product(found[:FEW], steps or [""])]
        return list(dict.fromkeys(found))[: 2 * FEW]

    def repeats(self, tree: Any, before: list[str]) -> Iterator[tuple[str, str]]:
        """Yield what leads to each repeat, and what it takes once."""
        for op, argument in tree:
            if str(op) in REPEATS:
                _, most, inner = argument
                if most is _parser.MAXREPEAT or most > OFTEN:
                    for lead, once in itertools.product(before[:FEW], self.some(inner)):
                        if once:
                            yield lead, once
            for inner in parts(op, argument):
                yield from self.repeats(inner, before)
            step = self.some([(op, argument)])
            before = list(dict.fromkeys(lead + each for lead, each in itertools.product(before, step)))[: 2 * FEW]

    def make(self) -> Iterator[tuple[str, Callable[[int], Any]]]:
        """Yield texts, as functions of their length."""
        repeats = list(dict.fromkeys(self.repeats(self.tree, [""])))
        units = list(dict.fromkeys(once for _, once in repeats))
        wholes = self.some(self.tree)
        starts = {whole[:end] for whole in wholes[:FEW] for end in range(1, min(len(whole), 24) + 1)}
        shapes: list[tuple[str, tuple[str, ...], str]] = []
        for (lead, unit), end in itertools.product(repeats[:60], ("", "\x01", "!")):
            shapes.append((lead, (unit,), end))
        for lead, (one, other) in itertools.product(
            {lead for lead, _ in repeats[:12]}, itertools.permutations(units[:6], 2)
        ):
            shapes += [(lead, (one, other), "\x01"), (lead, (one + other,), "\x01")]
        shapes += [("", (start,), end) for start in sorted(starts) for end in ("", "\x01")]
        shapes += [("", (start + unit,), "\x01") for start in sorted(starts)[:12] for unit in units[:4]]
        shapes = list(dict.fromkeys(shapes))
        for lead, each, end in shapes[:: len(shapes) // MANY + 1]:
            yield f"{lead!r} {each!r} {end!r}", self._text(lead, each, end)

    def _text(self, lead: str, units: Iterable[str], end: str) -> Callable[[int], Any]:
        units = tuple(units)

        def text(length: int) -> Any:
            share = length // len(units)
            made = lead + "".join(unit * (share // len(unit) + 1) for unit in units) + end
            return made.encode("latin-1", "replace") if self.is_bytes else made

        return text


def parts(op: Any, argument: Any) -> list[Any]:
    """Return the patterns inside one step of a pattern."""
    match str(op):
        case "BRANCH":
            return list(argument[1])
        case "SUBPATTERN":
            return [argument[3]]
        case "ATOMIC_GROUP":
            return [argument]
        case "ASSERT" | "ASSERT_NOT":
            return [argument[1]]
        case name if name in REPEATS:
            return [argument[2]]
    return []


def takes(op: Any, argument: Any, character: str) -> bool:
    """Tell whether one step of a pattern takes a character."""
    code = ord(character)
    match str(op):
        case "ANY":
            return True
        case "NOT_LITERAL":
            return bool(code != argument)
    negated, found = False, False
    for kind, each in argument:
        match str(kind):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found = found or code == each
            case "RANGE":
                found = found or each[0] <= code <= each[1]
            case "CATEGORY":
                shorthand = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
                name = str(each).removeprefix("CATEGORY_")
                inside = re.fullmatch(shorthand[name.removeprefix("NOT_")], character) is not None
                found = found or inside != name.startswith("NOT_")
    return found != negated


def run(pattern: re.Pattern[Any], method: str) -> Callable[[Any], object]:
    """Return the use of a pattern on a text."""
    if method == "sub":
        return lambda text: pattern.sub(lambda _: text[:0], text)
    if method == "finditer":
        return lambda text: sum(1 for _ in pattern.finditer(text))
    use: Callable[[Any], object] = getattr(pattern, method)
    return use


USES = uses()


def test_they_were_found() -> None:
    for name in (
        "proxy/core/http/heads.py:FIELD_LINE",
        "proxy/core/fields/entries.py:parse",
        "proxy/core/fields/plainwalk.py:_skip_blank",
    ):
        assert any(use.where == name for use in USES), name


def try_all(pattern: re.Pattern[Any], method: str) -> None:
    read = run(pattern, method)
    for what, make in Texts(pattern).make():
        assert growth(read, make, MOST) < TOO_MUCH, what


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.where}.{use.method}")
def test_it_takes_linear_time(use: Use) -> None:
    try_all(use.pattern, use.method)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"<[^>]*>", "search"),
        (r'"(?:[^"\\]|\\.)*"|<[^<>]*>', "sub"),
        (r"charset[^;]*=", "findall"),
        (r"k:[ \t]*([^\x01]*)", "fullmatch"),
        (r"a*b?a*c", "match"),
        (r"\s+$", "search"),
    ],
)
def test_one_that_does_not_is_found(pattern: str, method: str) -> None:
    with pytest.raises(AssertionError):  # else nothing here would be proved
        try_all(re.compile(pattern), method)
