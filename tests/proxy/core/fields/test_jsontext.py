"""The scanner against two public suites, a naive recursive reference, and texts made to hurt it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.fields import spans
from proxy.core.fields.automaton import Marks
from proxy.core.fields.jsontext import NotJson, Span, TooMuchSelected, find_spans, member_path, string_value
from proxy.core.fields.selectors import BadSelector, Choice, Every, Segment, Slice, parse_selector
from proxy.core.fields.spans import MAX_DEPTH

VECTORS = Path(__file__).resolve().parents[4].parent / "shared" / "vectors"
EVERYTHING = [Marks((parse_selector("$..*"),))]
NOTHING_HERE = [Marks((parse_selector("$.no.such.name"),))]


def spans_of(text: bytes, *jobs: str | Sequence[str]) -> list[Span]:
    selectors = [[job] if isinstance(job, str) else job for job in jobs]
    return find_spans(text, [Marks(tuple(parse_selector(selector) for selector in job)) for job in selectors])


def values(text: bytes, *jobs: str | Sequence[str]) -> list[bytes]:
    return [text[span.start : span.end] for span in spans_of(text, *jobs)]


# The reference: a tree of nodes that remembers where each value was written, and RFC 9535 word by word.


@dataclass(eq=False)
class Node:
    """A JSON value; `children` holds (name or index, value), duplicate names included."""

    kind: str  # object, array, or the scalar's own JSON spelling
    children: list[tuple[str | int, Node]] = field(default_factory=list)
    path: str = "$"
    start: int = 0
    end: int = 0
    name: tuple[int, int] | None = None

    def family(self) -> Iterator[Node]:
        yield self
        for _, child in self.children:
            yield from child.family()


def tree_of(value: Any) -> Node:
    if isinstance(value, dict):
        return Node("object", [(name, tree_of(item)) for name, item in value.items()])
    if isinstance(value, list):
        return Node("array", [(index, tree_of(item)) for index, item in enumerate(value)])
    return Node(json.dumps(value))


def accepts(choice: Choice, key: str | int, parent: Node) -> bool:
    if isinstance(choice, Every):
        return True
    if isinstance(choice, Slice):
        taken = slice(choice.start, choice.end, choice.step)
        return isinstance(key, int) and choice.step != 0 and key in range(len(parent.children))[taken]
    if isinstance(choice, int) and choice < 0:
        return isinstance(key, int) and key == len(parent.children) + choice
    return type(choice) is type(key) and choice == key


def naive_select(root: Node, segments: Sequence[Segment]) -> list[Node]:
    nodes = [root]
    for segment in segments:
        parents = [member for node in nodes for member in node.family()] if segment.descendant else nodes
        nodes = [
            child
            for parent in parents
            for choice in segment.choices
            for key, child in parent.children
            if accepts(choice, key, parent)
        ]
    return nodes


def naive_spans(root: Node, jobs: Sequence[Sequence[Sequence[Segment]]]) -> list[Span]:
    """Return the outermost selected nodes in document order, each with its first job."""
    chosen = [{node for segments in selectors for node in naive_select(root, segments)} for selectors in jobs]

    def walk(node: Node) -> Iterator[Span]:
        for job, nodes in enumerate(chosen):
            if node in nodes:
                yield Span(node.start, node.end, node.path, job, node.name)
                return
        for _, child in node.children:
            yield from walk(child)

    return list(walk(root))


class Writer:
    """Writes a tree as JSON with random blanks and escapes, and notes in each node where it stands."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = bytearray()

    def write(self, root: Node) -> bytes:
        self.blank()
        self.value(root)
        self.blank()
        return bytes(self.text)

    def blank(self) -> None:
        if self.random.random() < 0.3:
            self.text += "".join(self.random.choices(" \t\n\r", k=self.random.randint(1, 3))).encode()

    def value(self, node: Node) -> None:
        node.start = len(self.text)
        if node.kind in ("object", "array"):
            self.text += b"{" if node.kind == "object" else b"["
            self.blank()
            for number, (key, child) in enumerate(node.children):
                if number:
                    self.text += b","
                    self.blank()
                child.name = None
                if isinstance(key, str):
                    name_start = len(self.text)
                    self.text += self.string(key).encode()
                    child.name = (name_start, len(self.text))
                    self.blank()
                    self.text += b":"
                    self.blank()
                child.path = node.path + self.step(key)
                self.value(child)
                self.blank()
            self.text += b"}" if node.kind == "object" else b"]"
        elif node.kind.startswith('"'):
            self.text += self.string(json.loads(node.kind)).encode()
        else:
            self.text += node.kind.encode()
        node.end = len(self.text)

    def string(self, value: str) -> str:
        return '"' + "".join(map(self.character, value)) + '"'

    def character(self, value: str) -> str:
        plain = value >= " " and value not in '"\\'
        if plain and self.random.random() < 0.7:
            return value
        if value in '"\\/' and self.random.random() < 0.5:
            return "\\" + value
        units = value.encode("utf-16-be").hex()
        units = units.upper() if self.random.random() < 0.5 else units
        return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

    @staticmethod
    def step(key: str | int) -> str:
        if isinstance(key, int):
            return "[*]"
        if key and not key[0].isdigit() and all(c.isascii() and (c.isalnum() or c == "_") for c in key):
            return "." + key
        short = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", "'": "\\'", "\\": "\\\\"}
        return (
            "['"
            + "".join(
                short.get(c) or (c if " " <= c <= "~" else json.dumps(c)[1:-1].replace("\x7f", r"\u007f")) for c in key
            )
            + "']"
        )


NAMES = st.one_of(
    st.sampled_from(["a", "b", "ssn", "é", "\U0001f600"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), NAMES
).map(lambda value: Node(json.dumps(value)))


def containers(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    arrays = st.lists(children, max_size=4).map(lambda items: Node("array", list(enumerate(items))))
    objects = st.lists(st.tuples(NAMES, children), max_size=4).map(lambda members: Node("object", list(members)))
    return arrays | objects


TREES = st.recursive(SCALARS, containers, max_leaves=20)
EDGES = st.none() | st.integers(-4, 4)
CHOICES: st.SearchStrategy[Choice] = st.one_of(
    NAMES, st.integers(-3, 3), st.builds(Slice, EDGES, EDGES, EDGES), st.just(Every.EVERY)
)
SEGMENTS = st.builds(Segment, st.booleans(), st.lists(CHOICES, min_size=1, max_size=2).map(tuple))
JOBS = st.lists(st.lists(st.lists(SEGMENTS, max_size=4), min_size=1, max_size=2), max_size=3)


def choice_text(choice: Choice) -> str:
    if isinstance(choice, str):
        return '"' + "".join(f"\\u{ord(c):04x}" if c < " " else f"\\{c}" if c in '"\\' else c for c in choice) + '"'
    if isinstance(choice, Slice):
        start, end, step = ("" if part is None else str(part) for part in (choice.start, choice.end, choice.step))
        return f"{start}:{end}:{step}"
    return choice.value if isinstance(choice, Every) else str(choice)


def selector_text(segments: Sequence[Segment]) -> str:
    return "$" + "".join(
        f"{'..' if segment.descendant else ''}[{', '.join(map(choice_text, segment.choices))}]" for segment in segments
    )


@given(TREES, JOBS, st.integers(0, 2**32))
@example(Node("array", [(0, Node("array", [(0, Node("1"))]))]), [[[Segment(True, (-1,))]]], 0)
@example(Node("object", [("a", Node("1")), ("a", Node("2"))]), [[[Segment(False, ("a",))]]], 0)
def test_the_spans_are_those_of_a_naive_reading_of_the_rfc(
    root: Node, jobs: list[list[list[Segment]]], seed: int
) -> None:
    text = Writer(seed).write(root)
    written = [[selector_text(segments) for segments in selectors] for selectors in jobs]
    assert spans_of(text, *written) == naive_spans(root, jobs)


@given(TREES, st.integers(0, 2**32))
def test_every_text_that_the_writer_makes_is_json_to_another_parser(root: Node, seed: int) -> None:
    json.loads(Writer(seed).write(root))


# The public suites.


def json_cases(prefix: str) -> list[Any]:
    if not VECTORS.is_dir():
        return [pytest.param(None, marks=pytest.mark.skip(reason="no ../shared/vectors beside this checkout"))]
    return [pytest.param(path, id=path.stem) for path in sorted((VECTORS / "json_parsing").glob(f"{prefix}_*.json"))]


@pytest.mark.parametrize("path", json_cases("y"))
def test_what_the_json_suite_accepts_is_accepted(path: Path) -> None:
    text = path.read_bytes()
    if path.stem == "y_object_escaped_null_in_key":  # JSON, but parsers differ in what the name is
        with pytest.raises(NotJson, match="NUL"):
            find_spans(text, NOTHING_HERE)
        return
    assert find_spans(text, NOTHING_HERE) == []
    for span in find_spans(text, EVERYTHING):
        json.loads(text[span.start : span.end])


@pytest.mark.parametrize("selectors", [NOTHING_HERE, EVERYTHING], ids=["skipping", "selecting"])
@pytest.mark.parametrize("path", json_cases("n"))
def test_what_the_json_suite_refuses_is_refused(path: Path, selectors: Any) -> None:
    with pytest.raises(NotJson):
        find_spans(path.read_bytes(), selectors)


def compliance_cases() -> list[dict[str, Any]]:
    if not VECTORS.is_dir():
        pytest.skip("no ../shared/vectors beside this checkout")
    cases: list[dict[str, Any]] = json.loads((VECTORS / "jsonpath_cts.json").read_text("utf-8"))["tests"]
    return cases


def in_subset(case: dict[str, Any]) -> bool:
    return not case.get("invalid_selector") and "?" not in case["selector"]


def test_the_compliance_suite_selects_the_same_values() -> None:
    cases = [case for case in compliance_cases() if in_subset(case)]
    assert len(cases) > 100
    for case in cases:
        segments = parse_selector(case["selector"]).segments
        root = tree_of(case["document"])
        text = Writer(len(case["name"])).write(root)
        # First the reference is held against the suite, with all nested and repeated results, then the scanner
        # against the reference.
        reference = [json.loads(text[node.start : node.end]) for node in naive_select(root, segments)]
        wanted = case.get("results") or [case["result"]]
        assert sorted(map(json.dumps, reference)) == sorted(map(json.dumps, wanted[0])), case["name"]
        assert spans_of(text, case["selector"]) == naive_spans(root, [[segments]]), case["name"]


def is_refused(selector: str) -> bool:
    try:
        parse_selector(selector)
    except BadSelector:
        return True
    return False


def test_the_compliance_suites_other_selectors_are_refused() -> None:
    cases = [case for case in compliance_cases() if not in_subset(case)]
    assert len(cases) > 400
    for case in cases:
        assert is_refused(case["selector"]), case["name"]


# Against another parser: what is accepted must be the same.


def another_parser_accepts(text: bytes) -> bool:
    def refuse(_: str) -> Any:
        raise ValueError

    def refuse_names(members: list[tuple[str, Any]]) -> None:
        for name, _ in members:
            name.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
            if "\0" in name:
                raise ValueError

    try:
        json.loads(text.decode(), parse_constant=refuse, object_pairs_hook=refuse_names)
    except ValueError:
        return False
    return True


def is_json(text: bytes, selectors: Any) -> bool:
    try:
        find_spans(text, selectors)
    except NotJson:
        return False
    return True


PUNCTUATION = ["{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "'", "/**/", "\x00", "\x0b"]
PIECES = ["0", "-", "1", ".5", "e+1", "true", "null", "NaN", "[]", "{}", '{"a":1}', "[1,2]", '"a"', '"a":', "é"]
ESCAPES = ["\\n", "\\u00e9", "\\ud83d", "\\ude00", "\\u0000", "\\\\u0000"]
FRAGMENTS = st.sampled_from(PUNCTUATION + PIECES + ESCAPES)


@given(
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.sampled_from([NOTHING_HERE, EVERYTHING, [Marks((parse_selector("$..a[-1]"),))]]),
)
@example('{"\\ud83d\\ude00":1}', NOTHING_HERE)
@example('{"\\ud83d":1}', NOTHING_HERE)
@example('{"a\\u0000":1}', EVERYTHING)
@example('{"a\\\\u0000":1}', EVERYTHING)
@example('["a\\u0000"]', EVERYTHING)
def test_exactly_what_another_strict_parser_accepts_is_accepted(text: str, selectors: Any) -> None:
    body = text.encode()
    assert is_json(body, selectors) == another_parser_accepts(body)


@given(TREES, st.integers(0, 2**32), st.data())
def test_a_text_with_one_byte_changed_is_accepted_only_if_another_parser_accepts_it(
    root: Node, seed: int, data: st.DataObject
) -> None:
    text = bytearray(Writer(seed).write(root))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    assert is_json(bytes(text), NOTHING_HERE) == another_parser_accepts(bytes(text))


# One by one.


def test_paths_have_stars_for_indexes_and_names_in_dot_or_quoted_form() -> None:
    text = rb"""{"items":[{"secret":1}],"a-b":{"it's":2},"":3,"9":4,"_9":5,"\u0001\n\\":6,"\u00e9":7}"""
    assert [span.path for span in spans_of(text, "$.items[0].secret", "$['a-b'].*", "$.*")] == [
        "$.items",
        "$['a-b']",
        "$['']",
        "$['9']",
        "$._9",
        r"$['\u0001\n\\']",
        r"$['\u00e9']",
    ]
    assert [span.path for span in spans_of(text, "$.items[0].secret", "$['a-b'].*")] == [
        "$.items[*].secret",
        r"$['a-b']['it\'s']",
    ]


def test_the_root_can_be_selected_without_the_blanks_round_it() -> None:
    assert spans_of(b' {"a": [1]}\n', "$") == [Span(1, 11, "$", 0)]
    assert spans_of(b"\t1 ", "$") == [Span(1, 2, "$", 0)]


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        (rb'{"\u0073sn":"s"}', "$.ssn"),
        (rb'{"\u0073\u0073\u006E":"s"}', "$..ssn"),
        (rb'{"\ud83d\ude00":"s"}', "$['\U0001f600']"),
        ('{"\U0001f600":"s"}'.encode(), r"$['\ud83d\ude00']"),
        (rb'{"a\/b":"s"}', "$['a/b']"),
        (rb'{"":"s"}', "$['']"),
    ],
)
def test_names_are_compared_after_unescaping(text: bytes, selector: str) -> None:
    assert values(text, selector) == [b'"s"']


@pytest.mark.parametrize("text", [b'{"SSN":1}', b'{"ssn ":1}', rb'{"\\u0073sn":1}', '{"e\u0301":1}'.encode()])
def test_names_that_only_look_alike_are_others(text: bytes) -> None:
    assert values(text, "$.ssn", "$['\u00e9']") == []


def test_every_duplicate_of_a_name_is_selected_however_it_is_escaped() -> None:
    assert values(rb'{"ssn":1,"x":2,"s\u0073n":3,"ssn":{"ssn":4}}', "$.ssn") == [b"1", b"3", b'{"ssn":4}']


def test_of_nested_values_the_outermost_counts_whichever_job_selects_it() -> None:
    text = b'{"card":{"number":1},"number":2}'
    assert [(text[s.start : s.end], s.job) for s in spans_of(text, "$..number", "$.card")] == [
        (b'{"number":1}', 1),
        (b"2", 0),
    ]


def test_of_several_jobs_that_select_a_value_the_first_counts() -> None:
    assert [span.job for span in spans_of(b'{"a":1,"b":2,"c":3}', "$.c", ["$.b", "$.a"], "$.*")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("$[-1]", [b"[3,[4,5]]"]),
        ("$[-3]", [b"[[],1]"]),
        ("$[-4]", []),
        ("$[0]", [b"[[],1]"]),
        ("$[3]", []),
        ("$[*][-2]", [b"[]", b"3"]),
        ("$[-2,-1]", [b'{"a":[2]}', b"[3,[4,5]]"]),
        ("$..a[-1]", [b"2"]),
        ("$[-1][-1][-1]", [b"5"]),
        ("$[*]['0','-1']", []),
    ],
)
def test_indexes_count_from_the_start_and_from_the_end(selector: str, expected: list[bytes]) -> None:
    assert values(b'[[[],1],{"a":[2]},[3,[4,5]]]', selector) == expected


def test_an_index_selects_nothing_in_an_object_and_a_name_nothing_in_an_array() -> None:
    assert values(b'{"0":1,"-1":2}', "$[0]", "$[-1]") == []
    assert values(b"[1]", "$['0']") == []


def test_brackets_in_strings_do_not_count_for_lengths() -> None:
    assert values(rb'[",[\"{", {"a":"]"}, [ ], 9]', "$[-1]", "$[-3].a") == [b'"]"', b"9"]


@pytest.mark.parametrize("value", [rb'"\ud800"', rb'"\udc00\ud800"', b'"\x7f"', '"\u2028\uffff"'.encode()])
def test_odd_but_legal_strings_pass_as_values(value: bytes) -> None:
    assert values(b'{"a":%s}' % value, "$.a") == [value]
    assert spans_of(b'{"a":%s}' % value, "$.b") == []


@pytest.mark.parametrize(
    ("text", "offset", "said"),
    [
        (b"", 0, "ends where a value"),
        (b" \n", 2, "ends where a value"),
        (b"[1,", 3, "ends where a value"),
        (b"[1,]", 3, "expected a value"),
        (b"[NaN]", 1, "expected a value"),
        (b"[-Infinity]", 1, "expected a value"),
        (b"[01]", 2, "expected a comma or the end of an array"),
        (b"[1}", 2, "expected a comma or the end of an array"),
        (b"[1", 2, "expected a comma or the end of an array"),
        (b'{"a":1]', 6, "expected a comma or the end of an object"),
        (b'{"a":1', 6, "expected a comma or the end of an object"),
        (b'{"a":nul}', 5, "expected a value"),
        (b'{"a" 1}', 1, "expected a colon"),
        (b"{a:1}", 1, "expected a member name, in double quotes and"),
        (b"{'a':1}", 1, "expected a member name, in double quotes and"),
        (b'{"a":1,}', 7, "expected a member name"),
        (b'{"a', 1, "expected a member name"),
        (rb'{"\ud800":1}', 1, "half a surrogate pair"),
        (rb'{"\udc00":1}', 1, "half a surrogate pair"),
        (rb'{"\ud800\u0041":1}', 1, "half a surrogate pair"),
        (rb'{"x":[{"\uD800\uD800":1,"b":2}]}', 7, "half a surrogate pair"),
        (rb'{"ssn\u0000x":1}', 1, "NUL"),
        (rb'{"\u0000ssn":1}', 1, "NUL"),
        (rb'{"x":[{"a":"\u0000","\\\u0000":1}]}', 20, "NUL"),
        (b'["a\tb"]', 1, "control character"),
        (rb'["\x41"]', 1, "unknown escape"),
        (b'["a', 1, "not closed"),
        (b"1 1", 2, "something follows"),
        (b"{},", 2, "something follows"),
        (b"1\0", 1, "something follows"),
        (b"[1]//", 3, "something follows"),
        (b"[1,/**/2]", 3, "expected a value"),
        (b'\xef\xbb\xbf{"a":1}', 0, "byte order mark"),
        ('{"a":1}'.encode("utf-16"), 0, "not UTF-8"),
        ('{"a":1}'.encode("utf-16-le"), 1, "expected a member name"),
        ('{"a":1}'.encode("utf-16-be"), 0, "expected a value"),
        ('{"a":1}'.encode("utf-32-be"), 0, "expected a value"),
        (b'["\xff"]', 2, "not UTF-8"),
        (b'["\xc0\xaf"]', 2, "not UTF-8"),
        (b'["\xed\xa0\x80"]', 2, "not UTF-8"),
        (b'["\xe2\x82', 2, "not UTF-8"),
    ],
)
@pytest.mark.parametrize("selector", ["$.no.such", "$..*", "$..[-1]"])
def test_what_is_not_strict_json_is_refused_at_its_byte(text: bytes, offset: int, said: str, selector: str) -> None:
    with pytest.raises(NotJson) as refused:
        spans_of(text, selector)
    assert refused.value.offset == offset
    assert said in str(refused.value)
    assert str(refused.value).endswith(f"at byte {offset}")


@pytest.mark.parametrize("text", [b'{"card":"4111', b'{"card":"4111"} 4111', b'["4111\xff"]', rb'{"4111\ud800":1}'])
def test_a_refusal_carries_nothing_of_the_text(text: bytes) -> None:
    with pytest.raises(NotJson) as refused:
        spans_of(text, "$.card")
    assert "4111" not in str(refused.value)
    assert "4111" not in repr(refused.value)
    assert refused.value.__context__ is None


DEEP = 30_000


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
@pytest.mark.parametrize("selector", ["$.x", "$..x", "$..[-2]"])
def test_thirty_thousand_levels_are_decided_quickly(opening: bytes, closing: bytes, selector: str) -> None:
    started = time.thread_time()
    assert spans_of(opening * DEEP + b"1" + closing * DEEP, selector) == []
    with pytest.raises(NotJson):
        spans_of(opening * DEEP, selector)
    with pytest.raises(NotJson):
        spans_of(opening * DEEP + b"1" + closing * (DEEP - 1), selector)
    assert time.thread_time() - started < 10  # it takes about half a second; quadratic work takes minutes


@pytest.mark.parametrize(
    "selector", ["$" + "..*" * 200 + ".x", "$" + "..a" * 200 + ".b", "$..a.*.*.*.*.*.*.*.*..b[-9]"]
)
def test_long_runs_of_descendant_segments_take_linear_time(selector: str) -> None:
    started = time.thread_time()
    assert spans_of(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, selector) == []
    assert time.thread_time() - started < 5


def test_a_value_thirty_thousand_levels_deep_is_found() -> None:
    (span,) = spans_of(b"[" * DEEP + b'{"ssn":1}' + b"]" * DEEP, "$..ssn")
    assert (span.start, span.end) == (DEEP + 7, DEEP + 8)
    assert span.path == "$" + "[*]" * DEEP + ".ssn"


@pytest.mark.parametrize(
    "text",
    [
        b'"' + rb"\n" * 500_000 + b'"',
        b'{"' + rb"\u00e9" * 200_000 + b'":1}',
        b"[" + b"1," * 500_000 + b"1]",
        b"[" + b"[]," * 300_000 + b"{}]",
        b"{" + b'"b":1,' * 200_000 + b'"b":1}',
        b" " * 1_000_000 + b"1" * 1_000_000,
    ],
    ids=["escapes", "escaped name", "numbers", "empty arrays", "members", "blanks and digits"],
)
@pytest.mark.parametrize("selector", ["$.x.y", "$..x", "$[7].x"])
def test_long_texts_take_linear_time(text: bytes, selector: str) -> None:
    started = time.thread_time()
    assert spans_of(text, selector) == []
    assert time.thread_time() - started < 5


def test_many_values_in_very_deep_places_are_refused_since_their_paths_would_fill_the_memory() -> None:
    member = b'{"' + b"n" * 1000 + b'":'
    text = member * 300 + b"[" + b",".join([b'{"ssn":1}'] * 1000) + b"]" + b"}" * 300
    with pytest.raises(TooMuchSelected, match="characters"):
        spans_of(text, "$..ssn")
    assert spans_of(text, "$..other") == []


@pytest.mark.parametrize(
    ("text", "selector"), [(b"[1,2,3%s]", "$[*]"), (b'{"a":1,"b":2,"c":3%s}', "$['a','b','c','d']")]
)
def test_exactly_the_limit_of_values_is_allowed(text: bytes, selector: str) -> None:
    marks = [Marks((parse_selector(selector),))]
    assert len(find_spans(text % b"", marks, 3)) == 3
    with pytest.raises(TooMuchSelected, match="more than 3 values"):
        find_spans(text % (b",4" if text.startswith(b"[") else b',"d":4'), marks, 3)


def test_exactly_the_limit_of_path_characters_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MAX_PATHS", len("$[*]") * 3)
    assert len(spans_of(b"[1,2,3]", "$[*]")) == 3
    with pytest.raises(TooMuchSelected):
        spans_of(b"[1,2,3,4]", "$[*]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"abc"', "abc"),
        (rb'"\u0061\/\n"', "a/\n"),
        (b'""', ""),
        (b"1", None),
        (b"null", None),
        (b'["a"]', None),
        (b'"a', None),
        (b'"a"b"', None),
        (b' "a"', None),
        (b'"a\nb"', None),
        (b'"a\xff"', None),
    ],
)
def test_the_text_of_a_string_is_returned_and_none_for_any_other_value(value: bytes, expected: str | None) -> None:
    assert string_value(value) == expected


def test_a_text_nested_deeper_than_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    find_spans(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH, ())
    with pytest.raises(NotJson, match="nested in one another"):
        find_spans(b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1), ())


@pytest.mark.parametrize("name", ["card_number", "card[number]", "", "é 'x'", "a\\b"])
def test_the_path_of_a_member_is_the_one_that_it_would_have_in_an_object(name: str) -> None:
    (span,) = find_spans(json.dumps({name: 1}).encode(), EVERYTHING)
    assert member_path(name) == span.path


@pytest.mark.parametrize(("selector", "expected"), [("$[::-2]", b"02"), ("$[::2]", b"02"), ("$[1::-1]", b"01")])
def test_a_slice_backwards_begins_at_the_end_of_the_array(selector: str, expected: bytes) -> None:
    assert b"".join(values(b"[0,1,2]", selector)) == expected
