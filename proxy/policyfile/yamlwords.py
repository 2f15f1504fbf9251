"""Explains syntax errors in YAML so that the author can correct them at once. `proxy.policyfile.yamltext` calls it with
the errors of PyYAML, which say what the grammar expected and where it gave up; people look for a tab, a quote, a
bracket or a blank.
"""

from __future__ import annotations

import re

import yaml

_MAX_SHOWN = 60
_PLAIN = re.compile(r"[^\s,\[\]{}\"'\\]+")  # one word that could be put in quotes unchanged


def yaml_words(error: yaml.MarkedYAMLError, text: str) -> tuple[int, int, str]:
    """Return where a text stops being YAML, and why: line and column (from 1), and one sentence."""
    began, stopped = error.context_mark, error.problem_mark or error.context_mark
    problem = error.problem or ""
    context = f"{error.context}: " if error.context else ""
    advice = ""
    if began and error.context == "while scanning an alias":
        stopped, context, problem = began, "", "text does not begin with * outside quotes"
        advice = _in_quotes(text, began.index)
    elif stopped and problem.endswith("that cannot start any token"):
        character = text[stopped.index : stopped.index + 1]
        context = ""
        if character == "\t":
            problem = "there is a tab, and lines are indented with spaces only"
        else:
            problem, advice = f"text does not begin with {character} outside quotes", _in_quotes(text, stopped.index)
    elif began and problem.startswith(("expected ',' or", "found unexpected end of stream")):
        context, advice = "", f"; what begins in line {began.line + 1}, column {began.column + 1} is not closed"
    elif began and stopped and problem.startswith("expected <block end>"):
        before = text[text.rfind("\n", 0, stopped.index) + 1 : stopped.index]
        context = ""
        if before.strip():
            problem = "more stands here, behind what is closed already"
        elif began.column == stopped.column:
            problem = f"from line {began.line + 1} on, items (with a - before them) and keys are mixed"
        else:
            problem = f"the line is indented by {len(before)}, like none above that it could belong to"
    elif problem == "mapping values are not allowed here":
        context, problem = "", "no key may stand here"
        advice = (
            "; the line is indented too deep, or the one above lacks a blank behind its colon, or a text with a colon "
            "and a blank in it lacks its quotes"
        )
    return (stopped.line + 1 if stopped else 1), (stopped.column + 1 if stopped else 1), f"{context}{problem}{advice}"


def _in_quotes(text: str, at: int) -> str:
    found = _PLAIN.match(text, at, at + _MAX_SHOWN + 1)
    return f': write "{found[0]}"' if found and 1 < len(found[0]) <= _MAX_SHOWN else ""
