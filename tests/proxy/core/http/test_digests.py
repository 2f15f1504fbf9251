"""Which header fields hold digests."""

from __future__ import annotations

import pytest

from proxy.core.http.digests import is_digest


@pytest.mark.parametrize(
    "name",
    [b"Digest", b"content-digest", b"Repr-Digest", b"CONTENT-MD5", b"x-amz-checksum-crc32c", b"X-Checksum-Sha1"],
)
def test_a_digest_is_known_in_any_case(name: bytes) -> None:
    assert is_digest(name)


@pytest.mark.parametrize("name", [b"want-digest", b"digest-x", b"etag", b"x-amz-checksum", b""])
def test_other_fields_are_none(name: bytes) -> None:
    assert not is_digest(name)
