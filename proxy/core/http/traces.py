"""Reads the trace id of an app's request (W3C Trace Context, `traceparent`), for the decision line. `addons.sessions`
calls it for each request.

Rules of this module:

- Only an id that is valid in form becomes part of a line: it is hexadecimal, and nothing else of a peer's.
- The field itself goes on as it came: this proxy is no part of the trace.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Version 00 has exactly these parts; a later version may have more behind them (section 4.3 there).
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.ASCII)
_MAX = 256


def trace_id(values: Sequence[str]) -> str | None:
    """Return the trace id that a request carries, 32 hexadecimal digits; None if it carries none that is valid.

    Args:
        values: the values of its `traceparent` fields.
    """
    if len(values) != 1 or len(values[0]) > _MAX:
        return None
    found = _FORM.fullmatch(values[0].strip(" \t"))
    if found is None or (found[1] == "00" and found[3]):
        return None
    return found[2]
