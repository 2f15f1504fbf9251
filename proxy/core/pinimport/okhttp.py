"""Reads the `CertificatePinner` of OkHttp, as Java or Kotlin text.

Rules of this module, as OkHttp reads its patterns:

- `a.example` is that name; `*.a.example` has exactly one label more; `**.a.example` any number of them, none included.
- All patterns that a host matches count together: their pins are united. Here the first rule counts, so each rule has
  the pins of all patterns that cover its own.
- Pins of SHA-1 are not carried over: Overcoat takes none.
"""

from __future__ import annotations

from proxy.core.pinimport.rules import Imported, Pinned, in_order, limit, limit_pins, pattern_of, pin_of_base64, quoted
from proxy.core.pinimport.source import Reader, tokens_of
from proxy.core.pins import Pin
from proxy.core.rules.policy import HostPattern

MARK = "CertificatePinner"
_MOST_TOKENS = 400  # of the arguments of one call: what is in others, too, is not read over and over
_MOST_DEPTH = 8  # of brackets in them: so no token is read for more than so many calls that stand in one another


def read_okhttp(text: str) -> Imported:
    """Return the pins of the calls `.add(pattern, pin…)` in program text."""
    notes: list[str] = []
    pins: dict[HostPattern, list[Pin]] = {}
    reader = Reader(tokens_of(text))
    for place, token in enumerate(reader.tokens):
        if (
            token.text == "add"
            and token.kind == "word"
            and reader.is_sign(place - 1, ".")
            and reader.is_sign(place + 1, "(")
        ):
            _add(reader, place + 2, pins, notes)
    limit(len(pins))
    for wide, narrow in [(a, b) for a in pins for b in pins if a.kind == "one_label" and b.kind == "any_depth"]:
        if wide.matches_host(narrow.host):  # `*.x` and `**.a.x` both match a.x, and neither covers the other
            pins.setdefault(HostPattern("exact", narrow.host), [])
    found: list[Pinned] = []
    for pattern, listed in pins.items():
        united = [pin for other, its in pins.items() if other.covers(pattern) for pin in its]
        own = list(dict.fromkeys([*listed, *united]))
        limit_pins(len(own))
        joined = len(own) > len(dict.fromkeys(listed))
        said = ("OkHttp unites the pins of all patterns that a host matches: those of wider ones stand here, too",)
        if own:
            found.append(Pinned((pattern,), tuple(own), notes=said if joined else (), source=len(found)))
    return in_order(found, notes)


def _add(reader: Reader, place: int, pins: dict[HostPattern, list[Pin]], notes: list[str]) -> None:
    """Read the arguments of one call."""
    line = reader.tokens[place - 1].line
    arguments: list[str | None] = []
    depth, limit_at = 0, place + _MOST_TOKENS
    while (token := reader.at(place)) is not None and place < limit_at:
        if depth == 0 and token.kind in ("string", "word"):
            value, after = reader.text(place)
            end = reader.at(after)
            arguments.append(value if end is None or end.text in (",", ")") else None)
            place = after
            continue
        if token.kind == "sign" and token.text in ("(", "[", "{"):
            depth += 1
            if depth > _MOST_DEPTH:
                arguments.append(None)
                break
        elif token.kind == "sign" and token.text in (")", "]", "}"):
            if depth == 0:
                break
            depth -= 1
        place += 1
    hashes = [each for each in arguments[1:] if each is not None]
    if not any(each.startswith(("sha256/", "sha1/")) for each in hashes):
        if len(arguments) > 1 and arguments[0] is not None and "." in arguments[0] and None in arguments[1:]:
            notes.append(f"line {line}: the pins of {quoted(arguments[0])} are no literals, and not carried over")
        return
    if arguments[0] is None:
        notes.append(f"line {line}: a pattern that is no literal is not carried over, nor are its pins")
        return
    try:
        pattern = _pattern(arguments[0])
    except ValueError as error:
        notes.append(f"line {line}: {error}, and not carried over")
        return
    for each in arguments[1:]:
        if each is None:
            notes.append(f"line {line}: a pin of {pattern} that is no literal is not carried over")
        elif each.startswith("sha1/"):
            notes.append(f"line {line}: {quoted(each)} of {pattern} is not carried over: SHA-1 is no hash to pin with")
        else:
            try:
                pins.setdefault(pattern, []).append(pin_of_base64(each.removeprefix("sha256/")))
            except ValueError as error:
                notes.append(f"line {line}: {error}, and not carried over")


def _pattern(text: str) -> HostPattern:
    if text.startswith("**."):
        kind, host = "any_depth", text[3:]
    elif text.startswith("*."):
        kind, host = "one_label", text[2:]
    else:
        kind, host = "exact", text
    if "*" in host:
        raise ValueError(f"{quoted(text)} is no pattern of OkHttp's")
    return pattern_of(host, kind)
