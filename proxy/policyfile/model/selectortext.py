"""Parses the selectors of the policy file. `proxy.policyfile.model.fields` calls it for each; `proxy.policyfile.load`
finds the place of what is wrong.

Rules of this module: those of `proxy.policyfile.model.values`; and an error knows the character at which the selector
is wrong.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from proxy.core.fields.automaton import MAX_INSIDE
from proxy.core.fields.selectors import BadSelector, Selector, parse_selector
from proxy.policyfile.model.values import parsed, text_schema


def _visible(text: str) -> Selector:
    for at, character in enumerate(text):
        if unicodedata.category(character) in ("Cf", "Zs", "Co", "Cn") and character != " ":
            problem = f"the character U+{ord(character):04X} cannot be seen; write it as an escape in ['…']"
            raise BadSelector(problem, text, at)
    return parse_selector(text)


class BadEntry(ValueError):
    """An entry of a list that stands in the place of one value.

    Attributes:
        number: which one, from 0.
        error: what is wrong with it.
    """

    def __init__(self, number: int, error: ValueError) -> None:
        super().__init__(f"entry {number + 1}: {error}")
        self.number = number
        self.error = error


def _inside(value: object) -> tuple[Selector, ...]:
    if isinstance(value, str):
        return (_visible(value),)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a selector, or a list of selectors, one for each string inside another")
    if not 1 <= len(value) <= MAX_INSIDE:
        raise ValueError(f"must be a list of 1 to {MAX_INSIDE} selectors: so many texts are looked for in one another")
    selectors: list[Selector] = []
    for number, text in enumerate(value):
        try:
            selectors.append(_visible(text))
        except ValueError as error:
            raise BadEntry(number, error) from None
    return tuple(selectors)


_SCHEMA = {"type": "string", "pattern": r"^\$"}

SelectorText = Annotated[Selector, parsed(_visible), text_schema(pattern=r"^\$")]
InsideText = Annotated[
    tuple[Selector, ...],
    PlainValidator(_inside),
    WithJsonSchema({"anyOf": [_SCHEMA, {"type": "array", "items": _SCHEMA, "minItems": 1, "maxItems": MAX_INSIDE}]}),
]
