"""Looking at header fields as they came.

mitmproxy's own look-ups decode and join every value on several generic layers, and take six times as long; there are a
dozen in each request.
"""

from __future__ import annotations

from mitmproxy import http


def values_of(headers: http.Headers, name: bytes) -> list[str]:
    """Return the values of a field, one for each time that it stands there.

    Args:
        headers: the header fields.
        name: the field's name in lower case.
    """
    return [value.decode("utf-8", "surrogateescape") for key, value in headers.fields if key.lower() == name]


def has_field(headers: http.Headers, *names: bytes) -> bool:
    """Tell whether one of these fields is there.

    Args:
        headers: the header fields.
        names: names in lower case.
    """
    for key, _ in headers.fields:  # noqa: SIM110  # `any` takes twice as long, several times in each request
        if key.lower() in names:
            return True
    return False


def names_of(headers: http.Headers) -> set[bytes]:
    """Return the names of the fields that are there, in lower case: to ask for several without looking at all again.

    Args:
        headers: the header fields.
    """
    return {key.lower() for key, _ in headers.fields}
