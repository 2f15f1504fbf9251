"""Which header fields hold digests."""

from __future__ import annotations

import base64
import hashlib

import pytest

from proxy.core.http import digests
from proxy.core.http.digests import BadDigest, first_digest, followed, is_digest, recomputed, without_digests


@pytest.mark.parametrize(
    "name",
    [b"Digest", b"content-digest", b"Repr-Digest", b"CONTENT-MD5", b"x-amz-checksum-crc32c", b"X-Checksum-Sha1"],
)
def test_a_digest_is_known_in_any_case(name: bytes) -> None:
    assert is_digest(name)


@pytest.mark.parametrize("name", [b"want-digest", b"digest-x", b"etag", b"x-amz-checksum", b""])
def test_other_fields_are_none(name: bytes) -> None:
    assert not is_digest(name)


# The examples of RFC 9530, appendix B, over its body `{"hello": "world"}` with a line feed, and of RFC 1864.
HELLO = b'{"hello": "world"}\n'
SHA_256 = b"RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="


def test_a_digest_is_that_of_the_rfc() -> None:
    fields = ((b"Repr-Digest", b"sha-256=:" + SHA_256 + b":"), (b"A", b"b"))
    assert recomputed(fields, HELLO, HELLO) == fields


@pytest.mark.parametrize(
    "value",
    [
        b"sha-256=:%s:;a=b" % SHA_256,
        b"sha-256=%s" % SHA_256,
        b"sha-256=:%s:," % SHA_256,
        b"",
        b"SHA-256=:%s:" % SHA_256,
        b"sha-256",
    ],
)
def test_one_of_another_form_is_refused(value: bytes) -> None:
    with pytest.raises(BadDigest, match="not formed"):
        recomputed(((b"Content-Digest", value),), HELLO, b"")


def test_blanks_order_and_names_stay() -> None:
    fields = ((b"DIGEST", b" sha-256=%s\t, SHA-256=%s " % (SHA_256, SHA_256)),)
    made = recomputed(fields, HELLO, HELLO + b"x")
    assert made[0][0] == b"DIGEST"
    assert made[0][1].replace(made[0][1][9:53], SHA_256) == fields[0][1]
    assert made[0][1] != fields[0][1]


@pytest.mark.parametrize(
    ("name", "is_refused"), [(b"Digest", True), (b"Repr-Digest", True), (b"Content-Digest", False)]
)
def test_of_a_part_only_what_is_about_the_content_is_written_anew(name: bytes, is_refused: bool) -> None:
    mark = b":" if name != b"Digest" else b""
    fields = ((b"Content-Range", b"bytes 0-1/9"), (name, b"sha-256=" + mark + SHA_256 + mark))
    if is_refused:
        with pytest.raises(BadDigest, match="of a kind"):
            recomputed(fields, HELLO, HELLO)
    else:
        assert recomputed(fields, HELLO, HELLO) == fields


def test_the_first_is_named_and_all_are_left_out() -> None:
    fields = ((b"A", b"b"), (b"DIGEST", b""), (b"content-md5", b""))
    assert (first_digest(fields), first_digest(fields[:1])) == ("DIGEST", None)
    assert without_digests(fields) == fields[:1]


@pytest.mark.parametrize(("value", "why"), [(b"crc32c=AA==", "algorithm"), (b"sha-256=AA==", "does not fit")])
def test_no_refusal_quotes_a_value(value: bytes, why: str) -> None:
    with pytest.raises(BadDigest, match=why) as refused:
        recomputed(((b"Digest", value),), HELLO, b"")
    assert "AA" not in str(refused.value)


def sha_256(content: bytes) -> bytes:
    return b"sha-256=:%s:" % base64.b64encode(hashlib.sha256(content).digest())


def test_after_content_was_made_what_it_was_its_digests_follow() -> None:
    fits_new, fits_old, fits_none = sha_256(b"new"), sha_256(b"old"), sha_256(b"other")
    fields = (
        (b"A", b"b"),
        (b"Content-Digest", fits_new),
        (b"content-digest", fits_old),
        (b"CONTENT-DIGEST", fits_none),
        (b"Repr-Digest", b" " + fits_old + b"\t, " + fits_old),
        (b"Repr-Digest", fits_new + b"," + fits_old),
        (b"x-amz-checksum-sha256", b"AA=="),
        (b"Digest", b"crc32c=AA=="),
    )
    assert followed(fields, b"old", b"new") == (
        (b"A", b"b"),
        (b"Content-Digest", fits_new),
        (b"content-digest", fits_new),
        (b"Repr-Digest", b" " + fits_new + b"\t, " + fits_new),
    )


def test_each_digest_of_a_content_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    made = digests._ALGORITHMS[b"sha-256"]

    def make(content: bytes) -> bytes:
        asked.append(content)
        return made(content)

    monkeypatch.setitem(digests._ALGORITHMS, b"sha-256", make)
    fields = ((b"Content-Digest", b",".join([sha_256(b"old")] * 1000)), (b"Repr-Digest", sha_256(b"old")))
    recomputed(fields, b"old", b"new")
    assert asked == [b"old", b"new"]
    followed(fields, b"old", b"new")
    assert sorted(asked[2:]) == [b"new", b"old"]
