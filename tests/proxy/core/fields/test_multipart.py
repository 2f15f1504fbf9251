"""Multipart forms: one reading or none, whatever the pieces in which they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.fields.multipart import (
    MAX_PART_HEAD,
    MAX_PARTS,
    FormReader,
    PartHead,
    Value,
    boundary_of,
    check_kept,
    pieces_of,
    read_head,
)
from proxy.core.reasons import Reason

B = b"xYz"
DISPOSITION = b'Content-Disposition: form-data; name="%s"'


def part(value: bytes, head: bytes = DISPOSITION % b"ssn") -> bytes:
    return b"--%s\r\n%s\r\n\r\n%s\r\n" % (B, head, value)


def form(*parts: bytes, end: bytes = b"--xYz--\r\n") -> bytes:
    return b"".join(parts) + end


GOOD = form(part(b"a\r\nb", DISPOSITION % b"note"), part(b"078"), part(b"\0\xff--xY\r\n--x", DISPOSITION % b"file"))


def is_ssn(head: PartHead) -> bool:
    return head.name == "ssn"


def read(text: bytes, size: int = 0, limit: int = 1 << 20) -> list[bytes | Value]:
    reader = FormReader(B, is_ssn, limit)
    size = size or len(text) or 1
    found = [piece for at in range(0, len(text), size) for piece in reader.feed(text[at : at + size])]
    return [*found, reader.end()]


def values(text: bytes) -> list[bytes]:
    return [piece.text for piece in pieces_of(text, B, is_ssn) if isinstance(piece, Value)]


def reason_of(text: bytes) -> Reason:
    with pytest.raises(Denied) as denied:
        read(text)
    with pytest.raises(Denied) as bitwise:
        read(text, 1)
    assert denied.value.detail == bitwise.value.detail
    return denied.value.reason


@pytest.mark.parametrize("size", [*range(1, 40), 0])
def test_marked_parts_are_kept_and_all_other_bytes_pass(size: int) -> None:
    found = read(GOOD, size)
    (value,) = [piece for piece in found if isinstance(piece, Value)]
    assert (value.head, value.text) == (PartHead("ssn", is_file=False, is_text=True), b"078")
    assert GOOD[value.start : value.start + 3] == b"078"
    assert b"".join(piece if isinstance(piece, bytes) else piece.text for piece in found) == GOOD
    assert found[-1] == b"--\r\n"  # the last delimiter is not whole before the form is


@given(st.data())
def test_it_does_not_matter_how_a_form_is_cut(data: st.DataObject) -> None:
    text = form(*(part(data.draw(st.binary(max_size=40)).replace(B, b"")) for _ in range(data.draw(st.integers(0, 4)))))
    text = text if text.startswith(b"--xYz\r\n") else form()
    reader, rest = FormReader(B, is_ssn, 1 << 20), text
    found: list[bytes | Value] = []
    while rest:
        size = data.draw(st.integers(1, 9))
        found += reader.feed(rest[:size])
        rest = rest[size:]
    found.append(reader.end())
    assert [piece for piece in found if isinstance(piece, Value)] == [
        piece for piece in pieces_of(text, B, is_ssn) if isinstance(piece, Value)
    ]
    assert b"".join(piece if isinstance(piece, bytes) else piece.text for piece in found) == text


def test_a_form_may_be_empty_and_end_without_a_line_end() -> None:
    assert values(b"--xYz--") == []
    assert values(form(part(b""), part(b"1"), end=b"--xYz--")) == [b"", b"1"]


BAD = {
    "nothing": b"",
    "no boundary": b"ssn=078",
    "text before it": b"x\r\n" + GOOD,
    "a line end before it": b"\r\n" + GOOD,
    "text behind it": GOOD + b"x",
    "two line ends behind it": GOOD + b"\r\n",
    "another line end behind it": GOOD[:-2] + b"\n",
    "no last delimiter": GOOD[: -len(b"--xYz--\r\n")],
    "cut in the last delimiter": GOOD[:-3],
    "cut in a head": GOOD[:30],
    "cut in a part": form(part(b"078"))[:-12],
    "line ends without CR": GOOD.replace(b"\r\n", b"\n"),
    "a delimiter behind LF": form(part(b"a\n--xYz\r\n" + DISPOSITION % b"ssn" + b"\r\n\r\n078")),
    "a delimiter within a line": form(part(b"a--xYz\r\n")),
    "a blank behind a delimiter": GOOD.replace(b"--xYz\r\n", b"--xYz \r\n", 1),
    "a longer delimiter": form(part(b"a\r\n--xYzz\r\n")),
    "a delimiter at once": b"--xYz\r\n" + DISPOSITION % b"ssn" + b"\r\n\r\n--xYz--\r\n",
    "a delimiter in a head": form(part(b"1", DISPOSITION % b"ssn" + b"\r\nX: --xYz")),
    "no head": b"--xYz\r\n\r\n078\r\n--xYz--\r\n",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_parsers_read_differently_is_denied(text: bytes) -> None:
    assert reason_of(text) is Reason.BODY_UNREADABLE


BAD_HEADS = {
    "none": b"X: 1",
    "two": DISPOSITION % b"a" + b"\r\n" + DISPOSITION % b"ssn",
    "two types": DISPOSITION % b"a" + b"\r\nContent-Type: a/b\r\ncontent-type: a/b",
    "folded": b'Content-Disposition: form-data;\r\n name="ssn"',
    "a blank before the colon": b'Content-Disposition : form-data; name="ssn"',
    "a bare CR": DISPOSITION % b"a" + b"\rX: 1",
    "a bare LF": DISPOSITION % b"a" + b"\nX: 1",
    "NUL": DISPOSITION % b"a\0",
    "no field": DISPOSITION % b"a" + b"\r\nx",
    "another disposition": b'Content-Disposition: file; name="ssn"',
    "no disposition": b'Content-Disposition: name="ssn"',
    "no name": b"Content-Disposition: form-data",
    "a name twice": b'Content-Disposition: form-data; name="a"; name="ssn"',
    "a name twice, in another case": b'Content-Disposition: form-data; name="a"; NAME="ssn"',
    "name*": b"Content-Disposition: form-data; name=\"a\"; name*=utf-8''ssn",
    "an unknown parameter": b'Content-Disposition: form-data; name="a"; nam="ssn"',
    "an escaped name": b'Content-Disposition: form-data; name="s\\sn"',
    "an escaped quote": b'Content-Disposition: form-data; name="a"; filename="x\\"; name="ssn"',
    "an escaped quote at the end": b'Content-Disposition: form-data; name="a"; filename="x\\"',
    "a quote that is open": b'Content-Disposition: form-data; name="ssn',
    "text behind a quote": b'Content-Disposition: form-data; name="a"b',
    "an encoded word": b'Content-Disposition: form-data; name="=?utf-8?q?ssn?="',
    "a name in Latin-1": DISPOSITION % b"\xe9",
    "base64": DISPOSITION % b"ssn" + b"\r\nContent-Transfer-Encoding: base64",
    "parts in it": DISPOSITION % b"a" + b"\r\nContent-Type: Multipart/mixed; boundary=x",
    "a message in it": DISPOSITION % b"a" + b"\r\nContent-Type: message/rfc822",
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS)
def test_heads_that_parsers_read_differently_are_denied(head: bytes) -> None:
    with pytest.raises(Denied) as denied:
        read_head(head)
    assert denied.value.reason is Reason.BODY_UNREADABLE


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (DISPOSITION % b"a b", PartHead("a b", is_file=False, is_text=True)),
        (b"content-disposition:form-data;name=a", PartHead("a", is_file=False, is_text=True)),
        (b'Content-Disposition: form-data ; filename="C:\\x.txt" ; name="a" ', PartHead("a", True, True)),
        (b"Content-Disposition: form-data; name=a; filename*=utf-8''%e2", PartHead("a", True, True)),
        (DISPOSITION % "é".encode() + b"\r\nContent-Type: a/b;charset=UTF-8\r\nX: 1",
         PartHead("é", False, True, "a/b;charset=UTF-8")),
        (DISPOSITION % b"a" + b"\r\nContent-Type: text/plain; charset=latin-1",
         PartHead("a", False, False, "text/plain; charset=latin-1")),
        (DISPOSITION % b"a" + b"\r\nContent-Type: text", PartHead("a", False, True, "text")),
        (DISPOSITION % b"a" + b"\r\nContent-Type: ;", PartHead("a", False, False, ";")),
        (DISPOSITION % b"a" + b"\r\nContent-Transfer-Encoding: 8BIT", PartHead("a", False, True)),
    ],
)  # fmt: skip
def test_heads_as_clients_write_them(head: bytes, expected: PartHead) -> None:
    assert read_head(head) == expected


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=xYz", b"xYz"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="----=_a b"'.replace(" b", "b"), b"----=_ab"),
        ('multipart/form-data;boundary="a:b?c/d"', b"a:b?c/d"),
    ],
)
def test_a_boundary_is_read(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a; boundary*=b",
        'multipart/form-data; boundary="a\\b"',
        'multipart/form-data; boundary="a b"',
        "multipart/form-data; boundary=a b",
        f"multipart/form-data; boundary={'a' * 71}",
        "multipart/form-data, boundary=a",
    ],
)
def test_a_boundary_that_parsers_read_differently_is_denied(content_type: str) -> None:
    with pytest.raises(Denied) as denied:
        boundary_of(content_type)
    assert denied.value.reason is Reason.BODY_UNREADABLE


def test_a_marked_part_is_text_and_no_file() -> None:
    check_kept(Value(PartHead("ssn", is_file=False, is_text=True), 0, b""), may_be_file=False)
    check_kept(Value(PartHead("ssn", is_file=True, is_text=True), 0, b""), may_be_file=True)
    check_kept(Value(PartHead("_charset_", is_file=False, is_text=True), 0, b"utf-8"), may_be_file=False)
    for head, text, may_be_file in (
        (PartHead("ssn", is_file=True, is_text=True), b"", False),
        (PartHead("ssn", is_file=False, is_text=False), b"", False),
        (PartHead("ssn", is_file=True, is_text=False), b"", True),
        (PartHead("_charset_", is_file=False, is_text=True), b"latin-1", True),
    ):
        with pytest.raises(Denied):
            check_kept(Value(head, 0, text), may_be_file=may_be_file)


def test_what_is_kept_is_limited() -> None:
    assert read(form(part(b"1234567")), 1, limit=7)
    for size in (0, 1):
        with pytest.raises(Denied) as denied:
            read(form(part(b"12345678")), size, limit=7)
        assert denied.value.reason is Reason.BODY_TOO_LARGE
    other = form(part(b"x" * 100_000, DISPOSITION % b"file"))
    assert b"".join(piece for piece in read(other, 100, limit=7) if isinstance(piece, bytes)) == other


def test_a_kept_part_that_never_ends_is_denied_before_its_end() -> None:
    reader = FormReader(B, is_ssn, 100)
    list(reader.feed(b"--xYz\r\n" + DISPOSITION % b"ssn" + b"\r\n\r\n"))
    with pytest.raises(Denied):
        list(reader.feed(b"x" * 200))


def test_heads_and_their_number_are_limited() -> None:
    assert reason_of(b"--xYz\r\nX: " + b"x" * MAX_PART_HEAD) is Reason.BODY_TOO_LARGE
    assert len(values(form(part(b"") * (MAX_PARTS - 1)))) == MAX_PARTS - 1
    assert reason_of(form(part(b"") * MAX_PARTS)) is Reason.BODY_TOO_LARGE


def test_little_is_kept_of_a_part_that_passes() -> None:
    reader = FormReader(B, is_ssn, 100)
    passed = list(reader.feed(b"--xYz\r\n" + DISPOSITION % b"file" + b"\r\n\r\n" + b"x" * 100_000))
    assert sum(len(each) for each in passed if isinstance(each, bytes)) > 99_900
