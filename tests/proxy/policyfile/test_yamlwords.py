"""What is no YAML is said as what there is to mend, at its place."""

from __future__ import annotations

import pytest

from proxy.policyfile.yamltext import read_yaml

NO_KEY = (
    "no key may stand here; the line is indented too deep, or the one above lacks a blank behind its colon, or a text "
    "with a colon and a blank in it lacks its quotes"
)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a:\n\tb: 1\n", 2, 1, "there is a tab, and lines are indented with spaces only"),
        ("a: [*.pay.example]\n", 1, 5, 'text does not begin with * outside quotes: write "*.pay.example"'),
        ("a:\n- **.pay.example\n", 2, 3, 'text does not begin with * outside quotes: write "**.pay.example"'),
        ("a: *\n", 1, 4, "text does not begin with * outside quotes"),
        (f"a: *.{'x' * 58}\n", 1, 4, f'text does not begin with * outside quotes: write "*.{"x" * 58}"'),
        (f"a: *.{'x' * 59}\n", 1, 4, "text does not begin with * outside quotes"),
        ("a: %x\n", 1, 4, 'text does not begin with % outside quotes: write "%x"'),
        ("a: @x\n", 1, 4, 'text does not begin with @ outside quotes: write "@x"'),
        ("a:\n  - b: 1\n   c: 2\n", 3, 4, "the line is indented by 3, like none above that it could belong to"),
        ("a:\n  b: 1\n c: 2\n", 3, 2, "the line is indented by 1, like none above that it could belong to"),
        ("a: 1\n- b\n", 2, 1, "from line 1 on, items (with a - before them) and keys are mixed"),
        ("b:\n  - x\n  c: 1\n", 3, 3, "from line 2 on, items (with a - before them) and keys are mixed"),
        ("a: [1]}\n", 1, 7, "more stands here, behind what is closed already"),
        (
            "b: {c: {d: 1}\ne: 2\n",
            *(2, 1, "expected ',' or '}', but got '<scalar>'; what begins in line 1, column 4 is not closed"),
        ),
        ("a: 'x\n", 2, 1, "found unexpected end of stream; what begins in line 1, column 4 is not closed"),
        ("a: 1\n  b: 2\n", 2, 4, NO_KEY),
        ("a:1\nb: 2\n", 2, 2, NO_KEY),
        ("a: b: c\n", 1, 5, NO_KEY),
        ('a: "\\q"\n', 1, 6, "while scanning a double-quoted scalar: found unknown escape character 'q'"),
        ("a: - b\n", 1, 4, "sequence entries are not allowed here"),
    ],
)
def test_a_syntax_error_says_what_to_mend(text: str, line: int, column: int, words: str) -> None:
    (problem,) = read_yaml(text.encode(), frozenset()).problems
    assert (problem.line, problem.column, problem.message) == (line, column, f"this is not valid YAML: {words}")
