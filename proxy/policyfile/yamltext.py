"""Reads YAML text into plain data, with the line and column of each key and value. The policy file's reader calls it
first.

Rules of this module:

- Only what a policy needs is accepted: mappings with text keys, lists, text, whole decimal numbers, true/false, dates.
  Anchors, aliases, merge keys, tags and further documents are refused. So the text means what it looks like, and no
  data can be larger than its text.
- A key that comes twice is refused: readers disagree on which of the two counts.
- Text that YAML 1.1 reads differently from people (`1.2`, `0123`, `12:30`, `no`) is refused, or kept with its source
  text, so that the message can say "write it in quotes".
- Size and depth are limited, and nothing recurses. No text makes the reader raise: it returns problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Final

import yaml

from proxy.policyfile.refusal import shown
from proxy.policyfile.yamlwords import yaml_words

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 16

Steps = tuple[str | int, ...]
"""The path to a value: the keys and list positions that lead to it."""

ANY_INDEX: Final = -1  # stands for every position of a list

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Line breaks that editors do not show, and controls of the writing direction: with these, a person could see a comment
# where YAML reads a key, or the reverse.
_HIDDEN = re.compile("[\x85\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
_DROPPED = "\0"  # begins the step of a value that is dropped; no usable key begins so, so its marks hide no others
# A character within quotes as it is written.
_IN_SINGLE_QUOTES = re.compile("''|[^']")
_IN_DOUBLE_QUOTES = re.compile(r"\\(?:x..|u.{4}|U.{8}|.)|[^\\]")
_EMPTY = "the file is empty; `version: 1` is the least it needs"
_TRUE = frozenset({"true", "yes", "on"})


class Unusable:
    """Replaces text that could not be used; its problem has been reported."""


UNUSABLE: Final = Unusable()


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the text, and the text of a scalar there.

    Attributes:
        line: from 1.
        column: from 1, in characters.
        text: the scalar as it is read; "" for a list or mapping.
        written: the scalar as it stands in the file, with its quotes.
    """

    line: int
    column: int
    text: str = ""
    written: str = ""

    def column_of(self, position: int) -> int:
        """Return the column of a character of the scalar; of the scalar's beginning, if it stands in several lines.

        Args:
            position: of the character, in `text`, from 0; its length for what comes behind.
        """
        if self.written[:1] not in ("'", '"'):
            return self.column + position if self.written == self.text else self.column
        character = _IN_SINGLE_QUOTES if self.written[0] == "'" else _IN_DOUBLE_QUOTES
        written = character.findall(self.written[1:-1])
        if len(written) != len(self.text):
            return self.column
        return self.column + 1 + sum(map(len, written[:position]))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the text."""

    steps: Steps
    line: int
    column: int
    message: str


@dataclass(slots=True)
class Document:
    """The result of reading.

    Attributes:
        data: dicts, lists, str, int, bool, None, date and `UNUSABLE`.
        values: the start of each value.
        keys: the start of each mapping key, by the steps of its value.
        problems: everything that is wrong with the text, in its order.
    """

    data: object = UNUSABLE
    values: dict[Steps, Mark] = field(default_factory=dict)
    keys: dict[Steps, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def mark(self, steps: Steps, *, of_key: bool = False) -> Mark:
        """Return the position of a value (or its key); for one that is missing, the position of its nearest
        container.
        """
        if of_key and steps in self.keys:
            return self.keys[steps]
        while steps and steps not in self.values:
            steps = steps[:-1]
        return self.values.get(steps, Mark(1, 1))


class _Fatal(Exception):
    """Reading cannot go on; the problem has been added."""


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is being read."""

    steps: Steps
    container: dict[str, object] | list[object]
    key: str | None = None  # a mapping's key, if its value comes next
    dropped: bool = False  # that value is dropped: its key is unusable, or came before


def read_yaml(source: bytes, nullable: frozenset[Steps] = frozenset()) -> Document:
    """Read one YAML document.

    Args:
        source: UTF-8, with or without a byte order mark.
        nullable: the steps of the values that may be null, with `ANY_INDEX` for the number of an entry.

    Returns:
        The data with all its marks, and the problems. After a syntax error the data is `UNUSABLE`.
    """
    document = Document()
    try:
        _Reader(_decode(source, document), document, nullable).read()
    except _Fatal:
        document.data = UNUSABLE
    return document


def _decode(source: bytes, document: Document) -> str:
    if len(source) > MAX_BYTES:
        document.problems.append(Problem((), 1, 1, f"the file has {len(source)} bytes; {MAX_BYTES} is the most"))
        raise _Fatal
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(source[: error.start].decode("utf-8-sig", errors="replace"))
        document.problems.append(Problem((), line, column, "this byte is not UTF-8; save the file as UTF-8"))
        raise _Fatal from None
    if hidden := _HIDDEN.search(text):
        line, column = _position(text[: hidden.start()])
        what = f"the character U+{ord(hidden[0][0]):04X} is not what it looks like (a line break or writing direction)"
        document.problems.append(Problem((), line, column, f"{what}; remove it"))
        raise _Fatal
    return text


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


class _Reader:
    def __init__(self, text: str, document: Document, nullable: frozenset[Steps]) -> None:
        self.text = text
        self.document = document
        self.nullable = nullable
        self.stack: list[_Frame] = []

    def read(self) -> None:
        documents = 0
        for event in self._events():
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._fatal((), event, "a second document starts here; a policy is one document")
            elif isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
        if not documents:
            self._problem((), Mark(1, 1), _EMPTY)

    def _events(self) -> Iterator[yaml.Event]:
        loader = None
        try:
            loader = yaml.SafeLoader(self.text)
            while loader.check_event():
                yield loader.get_event()  # type: ignore[no-untyped-call]  # untyped in the stubs
        except yaml.reader.ReaderError as error:
            line, column = _position(self.text[: error.position])
            self._problem((), Mark(line, column), "this character is not allowed in YAML")
            raise _Fatal from None
        except yaml.MarkedYAMLError as error:
            line, column, words = yaml_words(error, self.text)
            self._problem((), Mark(line, column), f"this is not valid YAML: {words}")
            raise _Fatal from None
        except (yaml.YAMLError, ValueError, OverflowError):  # chr() and int() of an escape raise through PyYAML
            at = loader.get_mark() if loader else None
            mark = Mark(at.line + 1, at.column + 1) if at else Mark(1, 1)
            self._problem((), mark, "this is not valid YAML: an escape or a number is out of range")
            raise _Fatal from None
        finally:
            if loader:
                loader.dispose()

    def _problem(self, steps: Steps, mark: Mark, message: str) -> None:
        for depth, step in enumerate(steps):
            if isinstance(step, str) and step.startswith(_DROPPED):
                steps = steps[:depth]
                break
        self.document.problems.append(Problem(steps, mark.line, mark.column, message))

    def _fatal(self, steps: Steps, event: yaml.Event, message: str) -> _Fatal:
        self._problem(steps, _mark(event, self.text), message)
        return _Fatal()

    def _node(self, event: yaml.NodeEvent) -> None:
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.container, dict) and frame.key is None:
            self._key(frame, event)
            return
        steps = self._steps(frame)
        mark = _mark(event, self.text)
        self.document.values.setdefault(steps, mark)
        if isinstance(event, yaml.AliasEvent):
            self._problem(steps, mark, f"an alias (*{event.anchor}) is not accepted here: write the value out")
            self._put(UNUSABLE)
            return
        if event.anchor is not None:
            self._problem(steps, mark, f"an anchor (&{event.anchor}) is not accepted here: write each value out")
        if isinstance(event, yaml.ScalarEvent):
            self._put(self._scalar(steps, mark, event))
            return
        if isinstance(event, yaml.CollectionStartEvent) and event.tag is not None:
            self._problem(steps, mark, f"a tag ({event.tag}) is not accepted here: leave it out")
        if len(self.stack) >= MAX_DEPTH:
            raise self._fatal(steps, event, f"this is nested deeper than {MAX_DEPTH}")
        container: dict[str, object] | list[object] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._put(container)
        self.stack.append(_Frame(steps, container))

    def _key(self, frame: _Frame, event: yaml.NodeEvent) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise self._fatal(frame.steps, event, "a key is plain text, not a list, a mapping or an alias")
        mark = _mark(event, self.text)
        frame.key = f"{_DROPPED}{event.value}"
        frame.dropped = True
        steps = (*frame.steps, event.value)
        if event.anchor is not None or event.tag is not None:
            self._problem(frame.steps, mark, "a key has no anchor and no tag")
        elif event.value == "<<" and event.implicit[0]:
            self._problem(frame.steps, mark, "a merge key (<<) is not accepted here: write the keys out")
        elif _UNPRINTABLE.search(event.value):
            self._problem(frame.steps, mark, "this key holds a line break or a control character")
        elif event.implicit[0] and _resolve(event.value) != "str":
            message = (
                f"a key is text, and YAML reads {event.value} as {_KINDS[_resolve(event.value)]}: put it in quotes if "
                "a name is meant"
            )
            self._problem(frame.steps, mark, message)
        elif steps in self.document.keys:
            first = self.document.keys[steps]
            self._problem(steps, mark, f"the key {event.value!r} stands twice; first in line {first.line}")
        else:
            frame.key = event.value
            frame.dropped = False
            self.document.keys[steps] = mark

    @staticmethod
    def _steps(frame: _Frame | None) -> Steps:
        if frame is None:
            return ()
        if isinstance(frame.container, list):
            return (*frame.steps, len(frame.container))
        return (*frame.steps, frame.key or "")

    def _put(self, value: object) -> None:
        if not self.stack:
            self.document.data = value
            return
        frame = self.stack[-1]
        if isinstance(frame.container, list):
            frame.container.append(value)
            return
        if not frame.dropped and frame.key is not None:
            frame.container[frame.key] = value
        frame.key = None  # a collection continues in its own frame

    def _close(self) -> None:
        frame = self.stack.pop()
        if not frame.container and frame.steps:
            kind = "list" if isinstance(frame.container, list) else "mapping"
            self._problem(
                frame.steps,
                self.document.mark(frame.steps),
                f"an empty {kind} does nothing: fill it, or leave its key out",
            )

    def _scalar(self, steps: Steps, mark: Mark, event: yaml.ScalarEvent) -> object:
        text = event.value
        if event.tag is not None:
            self._problem(steps, mark, f"a tag ({event.tag}) is not accepted here: leave it out")
            return UNUSABLE
        if _UNPRINTABLE.search(text):  # the text is not shown: it may be a key that was pasted instead of its path
            self._problem(
                steps, mark, "this text holds a line break or a control character; one plain line is expected"
            )
            return UNUSABLE
        kind = _resolve(text) if event.implicit[0] else "str"
        if kind == "str":
            return text
        if kind == "null":
            if not steps:
                self._problem(steps, mark, _EMPTY)
                return UNUSABLE
            if tuple(ANY_INDEX if isinstance(step, int) else step for step in steps) not in self.nullable:
                self._problem(steps, mark, "the value is missing: write one, or leave its key out")
                return UNUSABLE
            return None
        if kind == "bool":
            return text.lower() in _TRUE
        if kind == "int" and _INTEGER.fullmatch(text):
            return int(text)
        if kind == "timestamp" and _DATE.fullmatch(text):
            try:
                return date.fromisoformat(text)
            except ValueError:
                self._problem(steps, mark, f"there is no such day as {text}")
                return UNUSABLE
        if kind == "int":
            message = (
                f"{shown(text)} is not a number in plain decimal: write it so, or put it in quotes if text is meant"
            )
            self._problem(steps, mark, message)
            return UNUSABLE
        self._problem(steps, mark, f"YAML reads {shown(text)} as {_KINDS[kind]}: put it in quotes if text is meant")
        return UNUSABLE


_KINDS = {
    "null": "nothing (null)",
    "bool": "true or false",
    "int": "a number",
    "float": "a number with a fraction",
    "timestamp": "a time",
    "merge": "a merge key",
    "value": "a special key",
}

_RESOLVER = yaml.SafeLoader("")


def _resolve(text: str) -> str:
    """Return the type that YAML 1.1 gives a plain scalar: the last part of the tag, such as `str`, `int` or `bool`."""
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # in the stubs
    return tag.rpartition(":")[2]


def _mark(event: yaml.Event, source: str) -> Mark:
    start, end = event.start_mark, event.end_mark
    if not start or not end:
        return Mark(1, 1)
    if not isinstance(event, yaml.ScalarEvent):
        return Mark(start.line + 1, start.column + 1)
    return Mark(start.line + 1, start.column + 1, event.value, source[start.index : end.index])


def path_text(steps: Steps) -> str:
    """Return steps in the form `rules[0].pins.any_of[1]`."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", step):
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text
