"""Bodies that need not be held: which they are, and what a long form becomes while it streams."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields.bodies import BodyHead
from proxy.core.fields.entries import FieldEntry, OnFailure, OtherBodies, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.uploads import MOST_LOOKED_AT, Upload, may_stream, passes
from proxy.core.fields.values import Setting
from proxy.core.jose import jwe, sealing
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.jose.place import Place
from proxy.core.reasons import Reason

TODAY = date(2026, 11, 23)
KEYS = KeySet("app", Alg.A256KW, new_key(Alg.A256KW, kid="one"))
ENTRY = FieldEntry((parse_selector("$.ssn"),), KEYS, form=("ssn",))
PASSING = replace(ENTRY, form=(), other_bodies=OtherBodies.PASS)
SETTING = Setting("a.example", 1000, TODAY)
FORM = BodyHead(["multipart/form-data; boundary=b"])


def part(name: str, value: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


class TestWhatMayStream:
    def test_multipart_forms_may(self) -> None:
        assert may_stream(FORM, [ENTRY])
        assert may_stream(FORM, [ENTRY, PASSING])

    @pytest.mark.parametrize(
        ("head", "entries"),
        [
            (BodyHead(["application/json"]), [ENTRY]),
            (BodyHead(["multipart/form-data; boundary=b"], "gzip"), [ENTRY]),
            (BodyHead(["multipart/form-data, a/b"]), [ENTRY]),
            (FORM, [replace(ENTRY, form=())]),
            (FORM, [ENTRY, replace(ENTRY, form=())]),
            (FORM, [PASSING]),
        ],
    )
    def test_others_may_not(self, head: BodyHead, entries: list[FieldEntry]) -> None:
        assert not may_stream(head, entries)


class TestWhatPasses:
    @pytest.mark.parametrize(
        ("content_type", "beginning", "expected"),
        [
            ("text/plain", b"", None),
            ("text/plain", b" \r\n", None),
            ("text/plain", b" " * MOST_LOOKED_AT, False),
            ("text/plain", b" \n<a>", True),
            ("text/plain", b"\n[1", False),
            ("application/octet-stream", b"\xef\xbb\xbf", None),
            ("application/octet-stream", b'\xef\xbb\xbf{"a', False),
            ("application/json", b"<", False),
            ("application/x-ndjson", b"<", False),
            ("application/x-www-form-urlencoded", b"a=1", True),
            ("application/x-www-form-urlencoded", b"{", False),
            ("application/grpc", b"", True),
            ("image/png", b"{", True),
            ("multipart/form-data; boundary=b", b"", True),
            ("multipart/form-data, a/b", b"", False),
        ],
    )
    def test_what_does_not_begin_like_json(self, content_type: str, beginning: bytes, expected: bool | None) -> None:
        assert passes(BodyHead([content_type]), [PASSING], beginning) is expected

    def test_on_a_mirror_all_but_multipart_forms(self) -> None:
        entry = replace(PASSING, work=Work.DECRYPT, other_bodies=OtherBodies.DENY)
        assert passes(BodyHead(["image/png"]), [entry], b"") is True
        assert passes(BodyHead(["text/plain"]), [entry], b"{") is False
        assert passes(FORM, [entry], b"") is False
        assert may_stream(FORM, [entry])

    def test_only_where_every_entry_lets_it(self) -> None:
        head = BodyHead(["text/plain"])
        for entry in (
            replace(PASSING, other_bodies=OtherBodies.DENY),
            replace(PASSING, required=True),
            replace(PASSING, selectors=(parse_selector("$"),)),
        ):
            assert passes(head, [PASSING, entry], b"<") is False
        assert passes(BodyHead(["text/plain"], "gzip"), [PASSING], b"<") is False
        assert passes(FORM, [replace(PASSING, form=("ssn",))], b"") is False


class TestUploads:
    FILE = part("file", b"x" * 5000)

    def test_marked_parts_are_sealed_and_the_rest_passes(self) -> None:
        upload = Upload(FORM, [ENTRY], SETTING)
        text = self.FILE + part("ssn", b"078") + self.FILE + b"--b--\r\n"
        out = b"".join(upload.feed(text[at : at + 7]) for at in range(0, len(text), 7))
        assert out.startswith(self.FILE)
        assert out.endswith(b"\r\n--b")
        out += upload.end()
        token = out[len(self.FILE) + len(part("ssn", b"")) - 2 :].partition(b"\r\n")[0]
        assert out == self.FILE + part("ssn", token) + self.FILE + b"--b--\r\n"
        assert jwe.open_token(token.decode(), KEYS, Place("a.example", "$.ssn"), TODAY) == b'"078"'
        assert upload.counts == (1,)

    def test_or_opened(self) -> None:
        token = sealing.seal(b'"078"', KEYS, Place("a.example", "$.ssn")).encode()
        upload = Upload(FORM, [replace(ENTRY, work=Work.DECRYPT)], SETTING)
        assert upload.feed(part("ssn", token) + b"--b--") + upload.end() == part("ssn", b"078") + b"--b--"

    @pytest.mark.parametrize("end", [b"--b--", b""])
    def test_what_a_mirror_cannot_open_is_told_as_such(self, end: bytes) -> None:
        token = b"" if not end else sealing.seal(b'"078"', KEYS, Place("b.example", "$.ssn")).encode()
        upload = Upload(FORM, [replace(ENTRY, work=Work.DECRYPT)], SETTING)

        def whole() -> None:
            upload.feed(part("ssn", token) + end)
            upload.end()

        with pytest.raises(Denied) as denied:
            whole()
        assert denied.value.reason is Reason.REQUEST_NOT_OPENED

    UNREADABLE = (
        b"x" + FILE,
        FILE + b"--b-",
        FILE + b"--bx\r\n" + FILE,
        FILE + part("a", b"1").replace(b'name="a"', b"name=a b") + b"--b--",
        FILE + b"--b--\r\nx",
        part("ssn", b"t") + part("ssn", b"x" * 1001) + FILE,
        part("ssn", b"t") + b"--b--x",
        FILE,
        b"",
    )

    @pytest.mark.parametrize("text", UNREADABLE)
    @pytest.mark.parametrize("size", [1, 50, 100_000])
    @pytest.mark.parametrize("form", [("ssn",), ()])
    def test_what_a_mirror_cannot_read_passes_as_it_came_where_the_entries_say_so(
        self, text: bytes, size: int, form: tuple[str, ...]
    ) -> None:
        """As a form that is held does; without `form` only JSON in it would be opened."""
        opening = replace(ENTRY, work=Work.DECRYPT, form=form)
        failed: list[str] = []
        setting = SETTING._replace(of_request=True, failed=lambda name, _: failed.append(name))
        passing = Upload(FORM, [replace(opening, on_failure=OnFailure.PASS)], setting)
        out = b"".join(passing.feed(text[at : at + size]) for at in range(0, len(text), size)) + passing.end()
        assert out == text
        assert len(failed) == 1
        denying = Upload(FORM, [opening], setting)

        def whole() -> None:
            for at in range(0, len(text), size):
                denying.feed(text[at : at + size])
            denying.end()

        with pytest.raises(Denied) as denied:
            whole()
        assert denied.value.reason is Reason.REQUEST_NOT_OPENED

    def test_so_does_one_whose_boundary_cannot_be_read(self) -> None:
        head, opening = BodyHead(["multipart/form-data"]), replace(ENTRY, work=Work.DECRYPT)
        passing = Upload(head, [replace(opening, on_failure=OnFailure.PASS)], SETTING)
        assert passing.feed(b"--b") + passing.feed(b"x") + passing.end() == b"--bx"
        with pytest.raises(Denied) as denied:
            Upload(head, [opening], SETTING)
        assert denied.value.reason is Reason.REQUEST_NOT_OPENED
        with pytest.raises(Denied) as denied:
            Upload(head, [ENTRY], SETTING)
        assert denied.value.reason is Reason.BODY_UNREADABLE

    def test_a_part_that_opens_to_more_than_one_value_is_not_opened(self) -> None:
        token = sealing.seal(b'1,"admin":true', KEYS, Place("a.example", "$.ssn")).encode()
        text = part("x", b'{"ssn":"%s"}' % token).replace(b'"x"', b'"x"\r\nContent-Type: application/json') + b"--b--"
        with pytest.raises(Denied) as denied:
            Upload(FORM, [replace(ENTRY, work=Work.DECRYPT)], SETTING).feed(text)
        assert denied.value.reason is Reason.REQUEST_NOT_OPENED

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (part("ssn", b"x" * 1001) + b"--b--", Reason.BODY_TOO_LARGE),
            (part("ssn", b"\xff"), Reason.BODY_UNREADABLE),
            (part("a", b"1"), Reason.BODY_UNREADABLE),
            (part("a", b"1") + b"--b--", Reason.FIELDS_MISSING),
            (part("ssn", b"1") + b"--b--x", Reason.BODY_UNREADABLE),
        ],
    )
    def test_what_cannot_be_protected_is_denied(self, text: bytes, reason: Reason) -> None:
        upload = Upload(FORM, [replace(ENTRY, required=True)], SETTING)

        def whole() -> None:
            upload.feed(text)
            upload.end()

        with pytest.raises(Denied) as denied:
            whole()
        assert denied.value.reason is reason

    def test_a_signature_over_what_changes_is_denied(self) -> None:
        upload = Upload(FORM._replace(signature="the field X"), [ENTRY], SETTING)
        assert upload.feed(self.FILE)
        with pytest.raises(Denied) as denied:
            upload.feed(part("ssn", b"1") + b"--b--")
        assert denied.value.reason is Reason.SIGNED_BODY

    def test_a_value_too_long_for_a_token_is_denied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jwe, "MAX_TOKEN_CHARACTERS", 100)
        monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", 100, raising=False)
        with pytest.raises(Denied) as denied:
            Upload(FORM, [ENTRY], SETTING).feed(part("ssn", b"x" * 900) + b"--b--")
        assert denied.value.reason is Reason.BODY_TOO_LARGE
