"""Knows which header fields hold a digest over a message's content, and writes them anew for other content.
`proxy.core.fields` asks it before it changes a body.

Rules of this module:

- A digest never goes on with content that was changed.
- Written anew are SHA-512, SHA-256, SHA-1 and MD5, in Content-Digest and Repr-Digest (RFC 9530), Digest (RFC
  3230) and Content-MD5; only the values change. Any other algorithm or field is refused: leaving it out would hide that
  it was there.
- A digest that does not fit the content as it came is refused, or a body that was damaged before would look intact.
- Each digest of a content is made once: a field may name an algorithm a thousand times.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache

from proxy.core.http.heads import KEPT, Fields, names_in

# RFC 9530 (content-digest, repr-digest; unencoded-digest is their sibling), RFC 3230, RFC 1864, and the fields of
# object stores.
_NAMES = frozenset(
    (
        b"content-digest",
        b"repr-digest",
        b"unencoded-digest",
        b"digest",
        b"content-md5",
        b"x-bz-content-sha1",
        b"x-goog-hash",
        b"x-ms-blob-content-md5",
        b"x-ms-content-crc64",
    )
)
_PREFIXES = (b"x-amz-checksum-", b"x-checksum-")
_OF_PARTS = b"content-range"  # then Repr-Digest and Digest are about more than the content

_MEMBER = re.compile(
    rb"(?P<before>[ \t]*+)(?P<name>[a-z*][a-z0-9_.*-]*+)(?P<is>=:)(?P<value>[A-Za-z0-9+/=]*+)(?P<after>:[ \t]*+)"
).fullmatch
_OLD_MEMBER = re.compile(
    rb"(?P<before>[ \t]*+)(?P<name>[A-Za-z0-9-]++)(?P<is>=)(?P<value>[A-Za-z0-9+/=]++)(?P<after>[ \t]*+)"
).fullmatch
_ALONE = re.compile(rb"(?P<before>[ \t]*+)(?P<name>)(?P<is>)(?P<value>[A-Za-z0-9+/=]++)(?P<after>[ \t]*+)").fullmatch
_MEMBERS = {b"content-digest": _MEMBER, b"repr-digest": _MEMBER, b"digest": _OLD_MEMBER, b"content-md5": _ALONE}


def _hash(name: str) -> Callable[[bytes], bytes]:
    return lambda content: base64.b64encode(hashlib.new(name, content, usedforsecurity=False).digest())


_ALGORITHMS: dict[bytes, Callable[[bytes], bytes]] = {
    b"sha-512": _hash("sha512"),
    b"sha-256": _hash("sha256"),
    b"sha": _hash("sha1"),
    b"md5": _hash("md5"),
    b"": _hash("md5"),  # Content-MD5 names none
}


class BadDigest(ValueError):
    """A digest cannot be written anew. The message quotes no value."""


def is_digest(name: bytes) -> bool:
    """Tell whether a header field holds a digest over the content.

    Args:
        name: the field's name, in any case.
    """
    lower = name.lower()
    return lower in _NAMES or lower.startswith(_PREFIXES)


@lru_cache(KEPT)
def first_digest(fields: Fields) -> str | None:
    """Return the name, as sent, of the first field that holds a digest; None if there is none."""
    if not _have_digest(names_in(fields)):
        return None
    return next(name.decode("latin-1") for name, _ in fields if is_digest(name))


@lru_cache(KEPT)  # of most requests the names are the same, whatever the values
def _have_digest(names: frozenset[bytes]) -> bool:
    return any(map(is_digest, names))


def without_digests(fields: Fields) -> Fields:
    """Return the fields that hold no digest."""
    return tuple(field for field in fields if not is_digest(field[0]))


def recomputed(fields: Fields, before: bytes, after: bytes) -> Fields:
    """Return header fields in which each digest is about other content.

    Args:
        fields: as they came.
        before: the content that they are about, as it came: with its content codings.
        after: the content that is sent instead.

    Raises:
        BadDigest: one cannot be written anew, or does not fit `before`.
    """
    is_part, old, new = _is_of_part(fields), _Made(before), _Made(after)
    return tuple(
        (name, _recomputed(name, value, old, new, is_part=is_part)) if is_digest(name) else (name, value)
        for name, value in fields
    )


def followed(fields: Fields, before: bytes, after: bytes) -> Fields:
    """Return header fields for content that was made what it was once: a digest that fits it already stays, one that
    fits it as it came is about it now, and any other is left out.

    Args:
        fields: as they came.
        before: the content as it came.
        after: the content that is sent instead.
    """
    is_part, old, new = _is_of_part(fields), _Made(before), _Made(after)
    kept: list[tuple[bytes, bytes]] = []
    for field in fields:
        if not is_digest(field[0]):
            kept.append(field)
            continue
        for made in (new, old):
            try:
                kept.append((field[0], _recomputed(*field, made, new, is_part=is_part)))
            except BadDigest:
                continue
            break
    return tuple(kept)


class _Made:
    """The digests of one content, each made once, however often a field asks for it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._made: dict[bytes, bytes] = {}

    def by(self, algorithm: bytes) -> bytes:
        """Return that of one of `_ALGORITHMS`."""
        if algorithm not in self._made:
            self._made[algorithm] = _ALGORITHMS[algorithm](self._content)
        return self._made[algorithm]


def _is_of_part(fields: Fields) -> bool:
    return any(name.lower() == _OF_PARTS for name, _ in fields)


def _recomputed(name: bytes, value: bytes, before: _Made, after: _Made, *, is_part: bool) -> bytes:
    shown = name.decode("latin-1")
    member = _MEMBERS.get(name.lower())
    if member is None or (is_part and name.lower() in (b"repr-digest", b"digest")):
        raise BadDigest(f"the field {shown} is of a kind that is not written anew")
    made = []
    for text in value.split(b","):
        found = member(text)
        if found is None:
            raise BadDigest(f"the field {shown} is not formed as it should be")
        algorithm = found["name"].lower()
        if algorithm not in _ALGORITHMS:
            raise BadDigest(f"the field {shown} has an algorithm that is not known here")
        if before.by(algorithm) != found["value"]:
            raise BadDigest(f"the field {shown} does not fit the body as it came")
        made.append(b"".join((found["before"], found["name"], found["is"], after.by(algorithm), found["after"])))
    return b",".join(made)
