"""Looking at header fields as they came.

mitmproxy's own look-ups decode and join every value on several generic layers, and take six times as long; there are a
dozen in each request.
"""

from __future__ import annotations

from mitmproxy import http

from proxy.core.http.heads import names_in


def values_of(headers: http.Headers, name: bytes) -> list[str]:
    """Return the values of a field, one for each time that it stands there.

    Args:
        headers: the header fields.
        name: the field's name in lower case.
    """
    if name not in names_in(headers.fields):
        return []
    return [value.decode("utf-8", "surrogateescape") for key, value in headers.fields if key.lower() == name]


def has_field(headers: http.Headers, *names: bytes) -> bool:
    """Tell whether one of these fields is there.

    Args:
        headers: the header fields.
        names: names in lower case.
    """
    return not names_in(headers.fields).isdisjoint(names)
