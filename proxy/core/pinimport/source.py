"""Reads program text (Java, Kotlin, Swift, Objective-C) as far as string literals, names and brackets go.
`okhttp` and `trustkit` look for calls and dictionaries in it.

Rules of this module:

- Comments are no code, and what stands in a string is neither: a pin that is commented out is not imported.
- A string that is put together while the program runs has no value here. Concatenated literals have one, and so has a
  name that is given one literal in the same text, and only one.
- The time is linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_BLANK = re.compile(r"\s++")
_LINE_COMMENT = re.compile(r"//[^\n]*+")
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*+)"')
_CHARACTER = re.compile(r"'(?:[^'\\\n]|\\.){1,8}'")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*+")
_NUMBER = re.compile(r"[0-9][A-Za-z0-9_.]*+")
_TEMPLATE = re.compile(r"(?<!\\)\$[A-Za-z_{]|\\\(")
_ESCAPE = re.compile(r"\\(u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f"}
_GIVES = {":", "String", "?", "!"}  # between a name and the sign that gives it a value


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        kind: what it is.
        text: a word, a sign, or a string's value; None for a string that has none.
        line: its line, from 1.
    """

    kind: Literal["string", "word", "number", "sign"]
    text: str | None
    line: int


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of program text; what is none is left out."""
    found: list[Token] = []
    at, line, counted = 0, 1, 0
    while at < len(text):
        line += text.count("\n", counted, at)
        counted = at
        if blank := _BLANK.match(text, at) or _LINE_COMMENT.match(text, at):
            at = blank.end()
        elif text.startswith("/*", at):
            end = text.find("*/", at + 2)
            at = len(text) if end < 0 else end + 2
        elif text.startswith('"""', at):
            end = text.find('"""', at + 3)
            end = len(text) if end < 0 else end
            raw = text[at + 3 : end]
            found.append(Token("string", None if _TEMPLATE.search(raw) else raw.strip(), line))
            at = end + 3
        elif string := _STRING.match(text, at):
            found.append(Token("string", _value(string[1]), line))
            at = string.end()
        elif text[at] == '"':  # it does not end in its line, which is no code that compiles
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif character := _CHARACTER.match(text, at):
            at = character.end()
        elif word := _WORD.match(text, at):
            found.append(Token("word", word[0], line))
            at = word.end()
        elif number := _NUMBER.match(text, at):
            found.append(Token("number", number[0], line))
            at = number.end()
        else:
            found.append(Token("sign", text[at], line))
            at += 1
    return found


def _value(raw: str) -> str | None:
    if _TEMPLATE.search(raw):
        return None
    try:
        return _ESCAPE.sub(_escaped, raw)
    except (ValueError, OverflowError):
        return None


def _escaped(match: re.Match[str]) -> str:
    digits = match[2] or match[3]
    return chr(int(digits, 16)) if digits else _ESCAPED.get(match[1], match[1])


class Reader:
    """Reads expressions of strings in tokens, from a place on."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.constants = _constants(tokens)

    def at(self, place: int) -> Token | None:
        """Return the token at a place; None behind the last."""
        return self.tokens[place] if place < len(self.tokens) else None

    def is_sign(self, place: int, sign: str) -> bool:
        """Tell whether a sign stands there."""
        token = self.at(place)
        return token is not None and token.kind == "sign" and token.text == sign

    def text(self, place: int) -> tuple[str | None, int]:
        """Read literals and names, joined by `+` or by nothing; return the value (None if there is none), and the place
        behind.
        """
        parts: list[str | None] = []
        while (token := self.at(place)) is not None:
            if token.kind == "string":
                parts.append(token.text)
            elif token.kind == "word" and token.text is not None and (not parts or self.is_sign(place - 1, "+")):
                while (
                    self.is_sign(place + 1, ".") and (after := self.at(place + 2)) is not None and after.kind == "word"
                ):
                    place, token = place + 2, after  # of `Config.HOST` the last name tells
                parts.append(self.constants.get(token.text or ""))
            elif token.kind != "sign" or token.text not in ("+", "@"):
                break
            place += 1
        if not parts or None in parts:
            return None, place
        return "".join(part for part in parts if part is not None), place


def _constants(tokens: list[Token]) -> dict[str, str]:
    """Return the names that are given one literal, and only one."""
    found: dict[str, str | None] = {}
    for place, token in enumerate(tokens):
        if token.kind != "sign" or token.text != "=":
            continue
        before = place - 1
        while before >= 0 and place - before <= len(_GIVES) and tokens[before].text in _GIVES:
            before -= 1
        if before < 0 or tokens[before].kind != "word":
            continue
        after = place + 1
        if after < len(tokens) and tokens[after].text == "@":
            after += 1
        value = tokens[after].text if after < len(tokens) and tokens[after].kind == "string" else None
        is_alone = after + 1 >= len(tokens) or tokens[after + 1].text != "+"
        name = tokens[before].text or ""
        value = value if is_alone else None
        found[name] = value if found.get(name, value) == value else None
    return {name: value for name, value in found.items() if value is not None}
