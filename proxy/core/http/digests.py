"""Knows which header fields hold a digest over a message's content. `proxy.core.fields` asks it before it changes a
body.

Rules of this module:

- A digest never goes on with content that was changed: a request with a digest is denied, and a response loses it.
"""

from __future__ import annotations

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


def is_digest(name: bytes) -> bool:
    """Tell whether a header field holds a digest over the content.

    Args:
        name: the field's name, in any case.
    """
    lower = name.lower()
    return lower in _NAMES or lower.startswith(_PREFIXES)
