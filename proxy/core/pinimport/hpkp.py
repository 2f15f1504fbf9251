"""Reads a `Public-Key-Pins` field (RFC 7469), which browsers took until 2020.

Rules of this module:

- It names no host: who imports it says which host sent it.
- `max-age` was renewed with each response, so there is no last day to be carried over; `max-age=0` means no pins.
- A line that begins with a blank goes on with the field of the line before, as RFC 7469 prints its examples.
- `Public-Key-Pins-Report-Only` only reported: its pins are observed.
"""

from __future__ import annotations

import re

from proxy.core.pinimport.rules import Imported, Pinned, in_order, pattern_of, pin_of_base64, quoted

MARK = "pin-sha256"
_FIELD = re.compile(r"public-key-pins(-report-only)?[ \t]*+:", re.IGNORECASE)
_FOLD = re.compile(r"\r?+\n[ \t]++")
_DIRECTIVE = re.compile(r'([A-Za-z0-9-]++)[ \t]*+(?:=[ \t]*+(?:"([^"]*+)"|([^;"\s]*+)))?')


def read_hpkp(text: str, host: str) -> Imported:
    """Return the pins of such a field.

    Args:
        text: its value, or the field with its name, or a whole head with it.
        host: the host that sent it.

    Raises:
        ValueError: it has no pin, or the host is none.
    """
    named = _FIELD.search(text)
    observes = named is not None and named[1] is not None
    value = text
    if named is not None:
        value = _FOLD.sub(" ", text[named.end() :]).lstrip("\r\n").partition("\n")[0]
    pins, notes, kind, is_over = [], [], "exact", False
    for directive in _DIRECTIVE.finditer(value):
        name, argument = directive[1].lower(), directive[2] if directive[2] is not None else directive[3]
        if name == "pin-sha256":
            try:
                pins.append(pin_of_base64(argument or ""))
            except ValueError as error:
                notes.append(f"{error}, and not carried over")
        elif name == "includesubdomains":
            kind = "any_depth"
        elif name == "max-age":
            is_over = argument == "0"
            notes.append(
                f"max-age={quoted(argument or '')[1:-1]} is not carried over: each response renewed it, so the pins "
                "have no last day; give them one in expires"
            )
        elif name == "report-uri":
            notes.append("report-uri is not carried over: decision lines and metrics report")
        else:
            notes.append(f"{quoted(name)} is not known, and not carried over")
    if is_over:
        raise ValueError("max-age=0 tells browsers to forget the pins: there are none to import")
    if not pins:
        raise ValueError("there is no pin-sha256 in it")
    found = Pinned((pattern_of(host, kind),), tuple(dict.fromkeys(pins)), observes=observes)
    return in_order([found], notes)
