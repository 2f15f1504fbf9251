"""Reads TrustKit's configuration: a property list (Info.plist), or the dictionary in Swift or Objective-C text.

Rules of this module, as TrustKit reads it:

- The most specific domain counts. `TSKIncludeSubdomains` is off unless it is on; `TSKEnforcePinning` is on unless it is
  off, which only reports.
- `TSKExcludeSubdomainFromParentPolicy` (whose text begins with `kSK`, by an old mistake) makes an exception.
- On the day `TSKExpirationDate` pinning stops, so the day before is the last one.
"""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from proxy.core.pinimport.rules import Imported, Pinned, in_order, last_day_before, pattern_of, pin_of_base64, quoted
from proxy.core.pinimport.source import Reader, Token, tokens_of

DOMAINS = "TSKPinnedDomains"
_IGNORE = "TSKIgnorePinningForUserDefinedTrustAnchors"
_EXCLUDE = "TSKExcludeSubdomainFromParentPolicy"
_YES, _NO = frozenset(("true", "YES", "TRUE")), frozenset(("false", "NO", "FALSE"))
_KNOWN = {  # what has nothing to do with which key is right
    "TSKReportUris": "decision lines and metrics report",
    "TSKDisableDefaultReportUri": "",
    "TSKPublicKeyAlgorithms": "",
    "TSKAdditionalTrustAnchors": "name a PEM file in trust.roots",
}
_MOST_DEPTH = 24
_MOST_TRIES = 16  # of places that may begin the dictionary


class Unknown:
    """A value that is known only while the program runs."""


UNKNOWN = Unknown()


def read_plist(data: bytes) -> Imported:
    """Return the pins of a property list in XML.

    Raises:
        ValueError: it is none, or has no TSKPinnedDomains.
    """
    try:
        found = plistlib.loads(data, fmt=plistlib.FMT_XML)
    except Exception:  # it raises what its parser meets: errors of XML, of dates, of numbers, of types
        raise ValueError("it is no property list in XML (plutil -convert xml1 makes one)") from None
    for where in (found, found.get("TSKConfiguration") if isinstance(found, dict) else None):
        if isinstance(where, dict) and isinstance(where.get(DOMAINS), dict):
            return _converted(where[DOMAINS], where, [])
    raise ValueError(f"there is no {DOMAINS} in it")


def read_dictionary(text: str) -> Imported:
    """Return the pins of the dictionary in program text.

    Raises:
        ValueError: there is no kTSKPinnedDomains with a dictionary.
    """
    reader = _Values(Reader(tokens_of(text)))
    for place in reader.places_of(DOMAINS)[:_MOST_TRIES]:
        domains, _ = reader.value(place, 0)
        if isinstance(domains, dict):
            ignores = any(reader.value(each, 0)[0] is True for each in reader.places_of(_IGNORE)[:1])
            return _converted(domains, {_IGNORE: ignores}, reader.notes)
    raise ValueError(f"there is no k{DOMAINS} with a dictionary in it")


class _Values:
    """Reads literals of Swift and Objective-C: texts, yes and no, lists and dictionaries."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.notes: list[str] = []

    def places_of(self, name: str) -> list[int]:
        """Return where the values of a key stand."""
        return [
            place + 2
            for place, token in enumerate(self.reader.tokens)
            if token.text is not None and token.text.removeprefix("k") == name and self.reader.is_sign(place + 1, ":")
        ]

    def value(self, place: int, depth: int) -> tuple[Any, int]:
        """Return the value at a place, and the place of what ends it: a comma, a colon, a bracket."""
        reader = self.reader
        while reader.is_sign(place, "@") or reader.is_sign(place, "("):
            place += 1
        token = reader.at(place)
        found: Any = UNKNOWN
        if token is None or depth > _MOST_DEPTH:
            return UNKNOWN, self._end(place)
        if token.kind == "string":
            found, place = reader.text(place)
            found = UNKNOWN if found is None else found
        elif token.kind == "word":
            found, place = self._word(token, place)
        elif token.text in ("[", "{"):
            found, place = self._inside(place, depth)
        return found, self._end(place)

    def _word(self, token: Token, place: int) -> tuple[Any, int]:
        if token.text in _YES | _NO:
            return token.text in _YES, place + 1
        if token.text == "NSNumber" and self.reader.is_sign(place + 1, "("):  # NSNumber(value: true)
            return self._number(place)
        if token.text is not None and token.text.startswith("kTSK"):
            return token.text[1:], place + 1
        value, after = self.reader.text(place)
        return (UNKNOWN if value is None else value), max(after, place + 1)

    def _number(self, place: int) -> tuple[Any, int]:
        """Return the yes or no in an NSNumber, and the place behind its closing bracket."""
        found: Any = UNKNOWN
        while (token := self.reader.at(place)) is not None and token.text not in (")", "]"):
            if token.text in _YES | _NO:
                found = token.text in _YES
            place += 1
        return found, place + 1

    def _inside(self, place: int, depth: int) -> tuple[Any, int]:
        reader, close = self.reader, "}" if self.reader.is_sign(place, "{") else "]"
        listed: list[Any] = []
        named: dict[Any, Any] = {}
        place += 1
        if (first := reader.at(place)) is not None and first.text == "NSNumber":  # [NSNumber numberWithBool:YES]
            return self._number(place)
        if reader.is_sign(place, ":") and reader.is_sign(place + 1, close):  # Swift's empty dictionary
            return {}, place + 2
        while reader.at(place) is not None and not reader.is_sign(place, close):
            before = place
            line = reader.tokens[place].line
            found, place = self.value(place, depth + 1)
            if reader.is_sign(place, ":"):
                value, place = self.value(place + 1, depth + 1)
                if isinstance(found, str):
                    named[found] = value
                else:
                    self.notes.append(
                        f"line {line}: a key that is no literal is not carried over, nor what it stands for"
                    )
            else:
                listed.append(found)
            if reader.is_sign(place, ",") or place == before:
                place += 1
        is_named = bool(named) or close == "}"
        return (named if is_named else listed), place + 1

    def _end(self, place: int) -> int:
        """Return the place of the comma, colon or closing bracket that ends an expression."""
        depth = 0
        while (token := self.reader.at(place)) is not None:
            if token.kind == "sign" and token.text in ("(", "[", "{"):
                depth += 1
            elif token.kind == "sign" and token.text in (")", "]", "}"):
                if depth == 0 and token.text != ")":
                    break
                depth -= depth > 0
            elif depth == 0 and token.kind == "sign" and token.text in (",", ":", ";"):
                break
            place += 1
        return place


def _converted(domains: Mapping[Any, Any], around: Mapping[Any, Any], notes: list[str]) -> Imported:
    if around.get(_IGNORE) is True:
        notes.append(f"{_IGNORE} is not carried over: what such roots have signed is held to the pins here, too")
    found = []
    for number, (domain, said) in enumerate(domains.items()):
        if not isinstance(domain, str) or not isinstance(said, dict):
            notes.append(f"what stands for {quoted(str(domain))} is not known here, and not carried over")
            continue
        of_domain = {str(key).replace("kSKExclude", "TSKExclude"): value for key, value in said.items()}
        kind = "any_depth" if of_domain.get("TSKIncludeSubdomains") is True else "exact"
        try:
            pattern = pattern_of(domain, kind)
        except ValueError as error:
            notes.append(f"{error}, and not carried over")
            continue
        if of_domain.get(_EXCLUDE) is True:
            found.append(Pinned((pattern,), (), source=number))
            continue
        pinned = _pinned(of_domain, domain)
        if pinned.pins:
            found.append(Pinned((pattern,), pinned.pins, pinned.last_day, pinned.observes, pinned.notes, source=number))
        else:
            notes += [
                *pinned.notes,
                f"none of the pins of {quoted(domain)} could be carried over: it is NOT pinned here",
            ]
    return in_order(found, notes)


def _pinned(said: Mapping[str, Any], domain: str) -> Pinned:
    notes, pins, last_day = [], [], None
    hashes = said.get("TSKPublicKeyHashes")
    for each in hashes if isinstance(hashes, list) else [UNKNOWN]:
        try:
            pins.append(pin_of_base64(each if isinstance(each, str) else _unknown()))
        except ValueError as error:
            notes.append(f"{error}, and not carried over")
    if (expires := said.get("TSKExpirationDate")) is not None:
        text = expires.date().isoformat() if isinstance(expires, datetime) else expires
        try:
            last_day = last_day_before(text if isinstance(text, str) else _unknown())
            stops = date.fromordinal(last_day.toordinal() + 1)
            notes.append(f"TrustKit stops pinning on {stops}: the day before is the last, and after_expiry is warn")
        except ValueError as error:
            notes.append(f"TSKExpirationDate: {error}, and not carried over: the pins have no end")
    enforces = said.get("TSKEnforcePinning")
    if enforces is False:
        notes.append("TSKEnforcePinning is off there, so the pins are only observed here")
    for name, value in said.items():
        known = name in ("TSKPublicKeyHashes", "TSKExpirationDate", _EXCLUDE)
        is_yes_or_no = name in ("TSKEnforcePinning", "TSKIncludeSubdomains")
        if is_yes_or_no and not isinstance(value, bool):
            notes.append(f"{name} of {quoted(domain)} is not known here: its default counts")
        elif _KNOWN.get(name):
            notes.append(f"{name} is not carried over: {_KNOWN[name]}")
        elif not known and not is_yes_or_no and name not in _KNOWN:
            notes.append(f"{quoted(name)} is not known, and not carried over")
    return Pinned((), tuple(dict.fromkeys(pins)), last_day, enforces is False, tuple(notes))


def _unknown() -> str:
    raise ValueError("a value that is no literal")
