"""Decides which responses may hold fields to decrypt, and adjusts header fields where a body is decrypted. The addon
`addons.encryption` calls it for requests and responses of a rule with `response` entries.

Rules of this module:

- A response reaches the app without a look at its body only if its label (Content-Type) says that it is no JSON. If the
  label says nothing, or several things, the body is looked at.
- A header field that is true only of the body as the server sent it (a digest, a length, a strong ETag) goes with no
  other body: it is left out, or made weak.
- Servers are not asked for a part of a body: a token in a part cannot be opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from functools import lru_cache

from proxy.core.http.digests import is_digest
from proxy.core.http.heads import Fields

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # RFC 9110's token, not a secret
_MEDIA_TYPE = re.compile(rf"[ \t]*+({_TOKEN})/({_TOKEN})[ \t]*+(?:;|\Z)")
_ENTITY_TAG = re.compile(rb'(?:W/)?+("[^"]*+")')
# The beginning of text that a guessing reader takes for JSON with names or strings: also after a byte order mark, and
# in UTF-16 and UTF-32, which have NULs in between.
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?+[\x00 \t\r\n]*+[{\[\"]")
_OF_PARTS = (b"range", b"if-range")
# Also behind another name, as Elasticsearch has it: application/vnd.elasticsearch+x-ndjson.
_LINES = re.compile(r"(?:.*\+)?+(?:x-)?+(?:(?:nd|ld)-?+json|json-?+(?:lines|l|stream))|stream\+json")
_SEQUENCE = re.compile(r"(?:.*\+)?+(?:x-)?+json-seq")


class Label(Enum):
    """What the Content-Type fields of a response say about its body."""

    JSON = auto()
    LINES = auto()  # a JSON text a line
    RECORDS = auto()  # a JSON text behind each record separator
    EVENTS = auto()  # a JSON text in each server-sent event
    NOTHING = auto()  # there is none, there are several, or it is no media type
    OTHER = auto()


def label_of(content_types: Sequence[str]) -> Label:
    """Return what the Content-Type fields say.

    JSON is every type with `json` in its subtype: `application/json`, `text/json`, `application/x-json`, types that end
    in `+json` (RFC 6839, section 3.1), `application/x-amz-json-1.1`; but for the types for several JSON texts, of which
    each is read. Where fields say several of these things, all of the body must be one JSON text, or it does not pass.

    Args:
        content_types: the values of all fields of that name.
    """
    types = [_MEDIA_TYPE.match(value) for field in content_types for value in field.split(",")]
    found = {_label_of_type(each[1].lower(), each[2].lower()) for each in types if each is not None}
    said = found - {Label.OTHER}
    if said:
        return said.pop() if len(said) == 1 else Label.JSON
    return Label.OTHER if types and None not in types else Label.NOTHING


@lru_cache(maxsize=64)
def _label_of_type(kind: str, subtype: str) -> Label:
    if (kind, subtype) == ("text", "event-stream"):
        return Label.EVENTS
    if is_sequence(subtype):
        return Label.RECORDS
    if is_lines(subtype):
        return Label.LINES
    return Label.JSON if "json" in subtype else Label.OTHER


def is_lines(subtype: str) -> bool:
    """Tell whether a media type is of JSON texts of which each is a line, by its subtype in lower case."""
    return _LINES.fullmatch(subtype) is not None


def is_sequence(subtype: str) -> bool:
    """Tell whether it is of JSON texts behind record separators (RFC 7464)."""
    return _SEQUENCE.fullmatch(subtype) is not None


def comes_in_texts(label: Label) -> bool:
    """Tell whether a body has several JSON texts, of which each goes on as soon as it is there."""
    return label in (Label.LINES, Label.RECORDS, Label.EVENTS)


def may_be_json(text: bytes) -> bool:
    """Tell whether the first bytes of a body without a label may be taken for JSON that has names or strings in it."""
    return _JSON_START.match(text) is not None


def asked(fields: Fields) -> Fields:
    """Return a request's header fields for a server whose response may be decrypted.

    They ask for no ranges, so the server sends the whole (RFC 9110, section 14.2). Weak ETags that `told` has made
    become the server's strong ones again in `If-Match`, which never matches a weak one (section 8.8.3.2). In
    `If-None-Match` both stand: the weak one may be the server's own, and not all servers compare them weakly.
    """
    return tuple(_with_own_tags(field) for field in fields if field[0].lower() not in _OF_PARTS)


def _with_own_tags(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = field
    lower = name.lower()
    if lower == b"if-match":
        return name, _ENTITY_TAG.sub(rb"\1", value)
    if lower == b"if-none-match":
        return name, _ENTITY_TAG.sub(lambda tag: tag[0] if tag[0] == tag[1] else tag[0] + b", " + tag[1], value)
    return field  # itself: its type may say that no table may keep it


def told(fields: Fields, *, with_length: bool, with_coding: bool = True) -> Fields:
    """Return a response's header fields for a body that differs from the server's.

    Args:
        fields: as the server sent them.
        with_length: whether Content-Length stays, because the caller sets it anew.
        with_coding: whether Content-Encoding stays, because the body goes on in the same codings.

    Returns:
        The fields without digests and offers of ranges, and with a weak ETag instead of a strong one.
    """
    kept: list[tuple[bytes, bytes]] = []
    left_out = {b"accept-ranges"}
    left_out |= set() if with_length else {b"content-length"}
    left_out |= set() if with_coding else {b"content-encoding"}
    for field in fields:
        name, value = field
        lower = name.lower()
        if is_digest(name) or lower in left_out:
            continue
        if lower == b"etag" and not value.startswith(b"W/"):
            if not value.startswith(b'"'):
                continue  # not an entity tag
            field = (name, b"W/" + value)  # noqa: PLW2901  # the same field, changed
        kept.append(field)
    return tuple(kept)
