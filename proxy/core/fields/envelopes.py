"""The envelope of a sealed value: an object with one member, which holds the token, in place of the value:
`{"encryptedData": "<JWE>"}`. `proxy.core.fields.values` puts tokens into envelopes, and takes them out.

Rules of this module:

- An envelope has exactly one member, of exactly the name that the policy says; escapes in the name mean what they say.
- A token that lies in an object in any other way is told apart from a value that was never sealed.
- Reading takes linear time.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from proxy.core.fields.automaton import Marks
from proxy.core.fields.jsontext import NotJson, find_spans, is_name, string_value
from proxy.core.fields.selectors import Segment, Selector

_BLANK = rb"[ \t\n\r]*+"
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_ENVELOPE = re.compile(rb"\{%s(%s)%s:%s(%s)%s\}" % (_BLANK, _STRING, _BLANK, _BLANK, _STRING, _BLANK))


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope of one name.

    Attributes:
        name: the name of its member.

    Raises:
        ValueError: no body that passes here has a member with such a name.
    """

    name: str
    _begin: bytes = field(init=False, repr=False, compare=False)
    _marks: Marks = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        written = json.dumps(self.name).encode("ascii")
        if not is_name(written):
            raise ValueError("a member's name has no NUL and no half of a surrogate pair in it")
        object.__setattr__(self, "_begin", b"{" + written + b":")
        selector = Selector(f"$[{self.name!r}]", (Segment(False, (self.name,)),))
        object.__setattr__(self, "_marks", Marks((selector,)))

    def around(self, sealed: bytes) -> bytes:
        """Return an envelope with a sealed value.

        Args:
            sealed: the JSON string that holds the token.
        """
        return b"%s%s}" % (self._begin, sealed)

    def content(self, value: bytes) -> bytes | None:
        """Return the JSON string in an envelope; None if the value is something else.

        Args:
            value: the exact bytes of one JSON value.
        """
        found = _ENVELOPE.fullmatch(value)
        return found[2] if found is not None and string_value(found[1]) == self.name else None

    def members(self, value: bytes) -> list[bytes]:
        """Return what members of the envelope's name hold in an object, which may have others beside them.

        Args:
            value: the exact bytes of one JSON value, as they stood in a body.
        """
        if not value.startswith(b"{"):
            return []
        try:
            return [value[span.start : span.end] for span in find_spans(value, [self._marks])]
        except NotJson:  # it was a part of a JSON text, so it can only be nested too deep
            return []
