"""Responses whose fields are decrypted: which may hold any, and what their header fields may still say.

Rules of this module:

- A response reaches the app unopened only where its label says that it is no JSON. Where the label says nothing, or
  several things, the body is looked at.
- What is only true of the bytes that the server sent (a digest, a strong ETag, a length) is not said of others.
- A part of a body is not asked for: no token can be opened in one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto

from proxy.core.http.digests import is_digest
from proxy.core.http.heads import Fields

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # RFC 9110's token, no secret
_MEDIA_TYPE = re.compile(rf"[ \t]*+({_TOKEN})/({_TOKEN})[ \t]*+(?:;|\Z)")
_ENTITY_TAG = re.compile(rb'(?:W/)?+("[^"]*+")')
# What a reader that guesses takes for JSON with names or strings in it: behind a byte order mark, and in UTF-16 and
# UTF-32, too, which have NULs between.
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?+[\x00 \t\r\n]*+[{\[\"]")
_OF_PARTS = (b"range", b"if-range")


class Label(Enum):
    """What the Content-Type fields of a response say of it."""

    JSON = auto()
    NOTHING = auto()  # none, or several, or something that is no media type
    OTHER = auto()


def label_of(content_types: Sequence[str]) -> Label:
    """Return what Content-Type fields say.

    All types count whose subtype has `json` in it: `application/json`, `text/json`, `application/x-json`, what ends in
    `+json` (RFC 6839, section 3.1), `application/x-amz-json-1.1`, and those of several texts in a row, which cannot be
    read as one and so must not pass unopened.

    Args:
        content_types: the values of all fields of that name.
    """
    found = [_MEDIA_TYPE.match(value) for field in content_types for value in field.split(",")]
    if any(each is not None and "json" in each[2].lower() for each in found):
        return Label.JSON
    return Label.OTHER if found and None not in found else Label.NOTHING


def may_be_json(text: bytes) -> bool:
    """Tell whether a body without a label may be taken for JSON that has names or strings in it, by its first bytes."""
    return _JSON_START.match(text) is not None


def asked(fields: Fields) -> Fields:
    """Return a request's header fields as they go to a server whose response may be decrypted.

    Ranges are not asked for: the whole is what comes then (RFC 9110, section 14.2). The weak ETags that `told` makes
    are the server's strong ones again in `If-Match`, which would match no weak one (section 8.8.3.2).
    """
    return tuple(
        (field[0], _ENTITY_TAG.sub(rb"\1", field[1])) if field[0].lower() == b"if-match" else field
        for field in fields
        if field[0].lower() not in _OF_PARTS
    )


def told(fields: Fields, *, with_length: bool) -> Fields:
    """Return a response's header fields for a body other than the server's.

    Args:
        fields: as the server sent them.
        with_length: whether Content-Length stays, for whoever sets it anew.

    Returns:
        Them, without digests and offers of ranges, and with a weak ETag for a strong one.
    """
    kept: list[tuple[bytes, bytes]] = []
    for field in fields:
        name, value = field
        lower = name.lower()
        if is_digest(name) or lower == b"accept-ranges" or (lower == b"content-length" and not with_length):
            continue
        if lower == b"etag" and not value.startswith(b"W/"):
            if not value.startswith(b'"'):
                continue  # no entity tag
            field = (name, b"W/" + value)  # noqa: PLW2901  # the same field's
        kept.append(field)
    return tuple(kept)
