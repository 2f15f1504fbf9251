"""Looks up header fields in mitmproxy's header objects, as they came. Addons and engine call it a dozen times for each
request; mitmproxy's own look-ups decode and join every value in several layers, and take six times as long.
"""

from __future__ import annotations

from functools import lru_cache

from mitmproxy import http

from proxy.core.http.heads import KEPT, Fields, names_in


def values_of(headers: http.Headers, name: bytes) -> list[str]:
    """Return all values of a field.

    Args:
        headers: the header fields.
        name: the field's name in lower case.
    """
    return values_in(headers.fields, name)


def values_in(fields: Fields, name: bytes) -> list[str]:
    """Return the same of fields that are in no object yet, or any more."""
    if name not in names_in(fields):
        return []
    return [value.decode("utf-8", "surrogateescape") for key, value in fields if key.lower() == name]


def has_field(headers: http.Headers, *names: bytes) -> bool:
    """Tell whether one of these fields exists.

    Args:
        headers: the header fields.
        names: names in lower case.
    """
    return not names_in(headers.fields).isdisjoint(names)


def with_length(fields: Fields, length: int) -> Fields:
    """Return fields that say another length of the body: in the place of the one that they have, or at the end."""
    at = _place_of_length(fields)
    name = b"content-length" if at == len(fields) else fields[at][0]
    return (*fields[:at], (name, b"%d" % length), *fields[at + 1 :])


@lru_cache(KEPT)
def _place_of_length(fields: Fields) -> int:
    """Return which of the fields says the length of the body; their number if none does. There is never a second."""
    return next((at for at, (name, _) in enumerate(fields) if name.lower() == b"content-length"), len(fields))
