"""Parses the selectors of a policy: expressions of a subset of JSONPath (RFC 9535) that name values in JSON. The policy
file's reader calls it; `proxy.core.fields.jsontext` then finds the values in a body.

Rules of this module:

- The subset has everything that names values without computing: `$`, names (dot and bracket form), indexes (also
  negative), slices, `*`, the descendant segment `..`, and several of these in one bracket. Filters and functions are
  refused.
- Inside the subset the grammar is exactly RFC 9535's. A selector that another implementation would refuse or understand
  differently is refused, and the message names the character and what would be right. A name with NUL is refused, too:
  no body with such a name passes (`proxy.core.fields.jsontext`).
- A name is compared as decoded Unicode text, without normalisation and with regard to case (RFC 9535, section 2.3.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

MAX_INDEX = 2**53 - 1  # RFC 9535, section 2.1: indexes lie within I-JSON's range of exact integers (RFC 7493)


class Every(Enum):
    """The wildcard `*`: every member of an object, every element of an array."""

    EVERY = "*"


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of an array (RFC 9535, section 2.3.4): the elements from `start` to `end`, which is not among them.

    Attributes:
        start: the first index, negative from the end; None if it is left out.
        end: the index where it ends, likewise.
        step: from one to the next, None if it is left out; if negative, backwards; if 0, nothing is selected.
    """

    start: int | None
    end: int | None
    step: int | None


type Choice = str | int | Slice | Every


class BadSelector(ValueError):
    """A selector that is malformed or outside the subset.

    Attributes:
        position: the character of the selector where the problem is, counted from 0; the message counts from 1.
    """

    def __init__(self, problem: str, text: str, position: int) -> None:
        super().__init__(f"{problem} (character {position + 1} of {text!r})")
        self.position = position


@dataclass(frozen=True, slots=True)
class Segment:
    """One step from a value to values inside it.

    Attributes:
        descendant: whether the step starts at any depth (`..`), or only at the value itself.
        choices: the children that it selects: by member name, by index (a negative one from the end), a slice, or all.
    """

    descendant: bool
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector, made by `parse_selector`.

    Attributes:
        text: the selector as the policy spells it.
        segments: the steps from the root; none for `$`.
    """

    text: str
    segments: tuple[Segment, ...]

    @property
    def ends_in_name(self) -> bool:
        """Whether all that it selects are members by name."""
        return bool(self.segments) and all(isinstance(choice, str) for choice in self.segments[-1].choices)

    def __str__(self) -> str:
        return self.text


_BLANKS = " \t\n\r"
_NAME_FIRST = r"A-Za-z_\x80-\ud7ff\ue000-\U0010ffff"
_SHORTHAND = re.compile(rf"[{_NAME_FIRST}][0-9{_NAME_FIRST}]*")
_DOTTED = re.compile(rf"{_SHORTHAND.pattern}(?:\.{_SHORTHAND.pattern})*+")
_DIGITS = re.compile(r"[0-9]+")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_PLAIN_TEXT = re.compile(r"[^\x00-\x1f\\'\"\ud800-\udfff]+")
_HIGH_SURROGATE = re.compile(r"[Dd][89ABab][0-9A-Fa-f]{2}")
_LOW_SURROGATE = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})")
_ANY_SURROGATE = re.compile(r"[Dd][89A-Fa-f]")
_FOUR_HEX = re.compile(r"[0-9A-Fa-f]{4}")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\"}
_QUOTED_NAMES = (
    "a name with other characters than letters, digits and '_' goes into brackets and quotes: ['card-number']"
)
_SUBSET = "a selector here is made of names, indexes, slices, '*' and '..'"


def parse_selector(text: str) -> Selector:
    """Parse a selector (RFC 9535, the subset that the module's docstring names).

    Args:
        text: for example `$.card.number`, `$..ssn`, `$.items[*]['card number']`, `$.history[-1]`, `$.rows[1:]`.

    Raises:
        BadSelector: the text is malformed, or uses a filter or a function.
    """
    return _Parser(text).selector()


def _rooted(text: str) -> str:
    """Return what to write where the root is missing, if it is clear: for dotted names, and for a JSON Pointer."""
    names = text[1:].replace("/", ".") if text.startswith("/") else text
    return f": write $.{names}" if _DOTTED.fullmatch(names) else ""


class _Parser:
    """A cursor over one selector. Each method reads what its name says, and leaves the cursor after it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def selector(self) -> Selector:
        if not self.take("$"):
            raise self.refusal(f"a selector starts with '$', the root of the JSON text{_rooted(self.text)}")
        segments: list[Segment] = []
        while self.position < len(self.text):
            before_blank = self.position
            self.skip_blank()
            if self.position == len(self.text):
                self.position = before_blank
                raise self.refusal("nothing, not even a blank, may follow the last segment")
            segments.append(self.segment())
        return Selector(self.text, tuple(segments))

    def segment(self) -> Segment:
        if self.take(".."):
            return Segment(True, self.bracket() if self.take("[") else (self.wildcard_or_shorthand("'..'"),))
        if self.take("."):
            return Segment(False, (self.wildcard_or_shorthand("'.'"),))
        if self.take("["):
            return Segment(False, self.bracket())
        if self.next_is("("):
            raise self.refusal(f"functions are not supported; {_SUBSET}")
        raise self.refusal(f"expected '.', '..' or '[' here; {_QUOTED_NAMES}")

    def wildcard_or_shorthand(self, after: str) -> Choice:
        if self.take("*"):
            return Every.EVERY
        name = _SHORTHAND.match(self.text, self.position)
        if name is None:
            raise self.refusal(f"a name or '*' must follow {after} at once; {_QUOTED_NAMES}")
        self.position = name.end()
        return name[0]

    def bracket(self) -> tuple[Choice, ...]:
        """Read the choices in a bracket, after its `[`."""
        choices: list[Choice] = []
        while True:
            self.skip_blank()
            if not choices and self.next_is("]"):
                raise self.refusal("there is nothing between '[' and ']': write [*] for every element")
            choices.append(self.bracketed_choice())
            self.skip_blank()
            if self.take("]"):
                return tuple(choices)
            if not self.take(","):
                raise self.refusal("expected ',' or ']' here")

    def bracketed_choice(self) -> Choice:
        if self.take("*"):
            return Every.EVERY
        for quote in ("'", '"'):
            if self.take(quote):
                return self.quoted(quote)
        if self.next_is("?"):
            raise self.refusal(f"filters are not supported; {_SUBSET}")
        start = self.integer()
        before_blank = self.position
        self.skip_blank()
        if not self.take(":"):
            if start is None:
                raise self.refusal(
                    "expected a quoted name, '*', an index or a slice; a number has no '+', no leading zero and is "
                    "never -0"
                )
            self.position = before_blank
            return start
        self.skip_blank()
        end, step = self.integer(), None
        self.skip_blank()
        if self.take(":"):
            self.skip_blank()
            step = self.integer()
        return Slice(start, end, step)

    def integer(self) -> int | None:
        """Read an index, or a part of a slice; None if there is none."""
        number = _INTEGER.match(self.text, self.position)
        if number is None:
            return None
        if _DIGITS.match(self.text, number.end()):
            raise self.refusal("an index has no '+', no leading zero and is never -0")
        if len(number[0]) > 17 or abs(int(number[0])) > MAX_INDEX:  # 17: a very long run of digits is never converted
            raise self.refusal(f"an index lies between -{MAX_INDEX} and {MAX_INDEX}")
        self.position = number.end()
        return int(number[0])

    def quoted(self, quote: str) -> str:
        """Read the rest of a quoted name, after its opening quote."""
        parts: list[str] = []
        while not self.take(quote):
            plain = _PLAIN_TEXT.match(self.text, self.position)
            if plain:
                parts.append(plain[0])
                self.position = plain.end()
            elif self.take("\\"):
                parts.append(self.escaped(quote))
            elif self.next_is("'") or self.next_is('"'):  # the other kind of quote, which does not close this name
                parts.append(self.text[self.position])
                self.position += 1
            elif self.position == len(self.text):
                raise self.refusal(f"the closing {quote} is missing")
            else:
                raise self.refusal(
                    "a control character or half a surrogate pair cannot stand in a name; write it as an escape"
                )
        return "".join(parts)

    def escaped(self, quote: str) -> str:
        """Read the rest of an escape, after its backslash."""
        if self.take(quote):
            return quote
        if not self.take("u"):
            character = self.text[self.position : self.position + 1]
            if character not in _ESCAPES:
                raise self.refusal(rf"an escape is one of \b \f \n \r \t \/ \\ \{quote} and \uXXXX")
            self.position += 1
            return _ESCAPES[character]
        digits = _FOUR_HEX.match(self.text, self.position)
        if digits is None:
            raise self.refusal("four hexadecimal digits must follow \\u")
        if digits[0] == "0000":
            raise self.refusal("a name with NUL is in no body that passes, since parsers in C end it there")
        if not _ANY_SURROGATE.match(digits[0]):
            self.position = digits.end()
            return chr(int(digits[0], 16))
        low = _LOW_SURROGATE.match(self.text, digits.end())
        if low is None or not _HIGH_SURROGATE.match(digits[0]):
            raise self.refusal("half a surrogate pair; a character beyond U+FFFF is \\uD8XX\\uDCXX, high half first")
        self.position = low.end()
        return chr(0x10000 + ((int(digits[0], 16) & 0x3FF) << 10) + (int(low[1], 16) & 0x3FF))

    def skip_blank(self) -> None:
        while self.position < len(self.text) and self.text[self.position] in _BLANKS:
            self.position += 1

    def next_is(self, token: str) -> bool:
        return self.text.startswith(token, self.position)

    def take(self, token: str) -> bool:
        if self.next_is(token):
            self.position += len(token)
            return True
        return False

    def refusal(self, problem: str) -> BadSelector:
        return BadSelector(problem, self.text, self.position)
