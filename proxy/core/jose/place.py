"""The place of a sealed value (its host and its path in the body), and how the token names it: in the parameters of the
header member `cty`. `proxy.core.jose.jwe` writes and checks it; `proxy.core.fields` knows the places.

`cty` is the media type of what is sealed (RFC 7516, section 4.1.12), and a media type has parameters. Even libraries
that refuse unknown header members accept these, so a place needs no header member of its own:
`application/json;host="api.pay.example";path="$.items[*].secret"`.

Rules of this module:

- A place has one spelling, in printable ASCII: the canonical host, and the path in the form that `ascii_text` returns.
- A media type can be read in one way only: a parameter that comes twice, or text after the last one, is refused.
- Reading takes linear time: no pattern here backtracks.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # RFC 9110's token, not a secret
_QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*+"'
_TYPE = re.compile(rf"(?:{_TOKEN}/)?+{_TOKEN}")
_PARAMETER = re.compile(rf"[ \t]*+;[ \t]*+(?:({_TOKEN})=({_TOKEN}|{_QUOTED}))?+")
_PAIR = re.compile(r"\\(.)")
_TO_PAIRS = str.maketrans({'"': '\\"', "\\": "\\\\"})
_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]")

JSON_TYPES = frozenset({"json", "application/json"})  # equal: `application/` may be left out if no other `/` is in it


class Place(NamedTuple):
    """Where a sealed value stands.

    Attributes:
        host: the canonical destination.
        path: the normalised path in the body, with `*` for each array index: `$.items[*].secret`. In JSON text inside a
            string, it is the string's path, directly followed by the path in that text: `$.Message$.card.number`.
    """

    host: str
    path: str

    @property
    def media_type(self) -> str:
        """The `cty` of a value at this place."""
        return f"application/json;host={_quoted(self.host)};path={_quoted(self.path)}"


def ascii_text(text: str) -> str:
    r"""Return a text with each character beyond printable ASCII as `\uXXXX` in lower case, or as two of these beyond 16
    bits.

    Args:
        text: a path; such an escape in it means the same (RFC 9535, section 2.3.1.2).
    """

    def escape(found: re.Match[str]) -> str:
        units = found[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))

    return _NOT_PRINTABLE_ASCII.sub(escape, text)


def read_media_type(text: str) -> tuple[str, dict[str, str]]:
    """Read a media type and its parameters (RFC 9110, section 8.3.1; the type may be a subtype alone, as in `cty`).

    Args:
        text: the value.

    Returns:
        The type in lower case, and the parameters: names in lower case, values without their quotes.

    Raises:
        ValueError: the value is no media type, or a parameter comes twice. The message quotes nothing.
    """
    found = _TYPE.match(text)
    if found is None:
        raise ValueError("not a media type (RFC 9110, section 8.3.1)")
    parameters: dict[str, str] = {}
    media_type, position = found[0].lower(), found.end()
    while parameter := _PARAMETER.match(text, position):
        position = parameter.end()
        name, value = parameter.groups()
        if name is None:  # an empty parameter, as in `a/b;`
            continue
        if name.lower() in parameters:
            raise ValueError("a media type whose parameter stands twice")
        parameters[name.lower()] = _PAIR.sub(r"\1", value[1:-1]) if value.startswith('"') else value
    if text[position:].strip(" \t"):
        raise ValueError("not a media type with parameters (RFC 9110, section 5.6.6)")
    return media_type, parameters


def _quoted(text: str) -> str:
    """Return a quoted string (RFC 9110, section 5.6.4)."""
    return f'"{ascii_text(text).translate(_TO_PAIRS)}"'
