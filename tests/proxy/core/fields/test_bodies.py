"""A body as a whole: what is denied before it is there, what comes out, and what is bounded."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import replace
from datetime import date

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.core.decisions import Denied
from proxy.core.fields.automaton import Marks
from proxy.core.fields.bodies import (
    MAX_SEALED,
    BodyHead,
    Changed,
    Required,
    acceptable,
    change,
    check_before,
    count_marked,
    covered_by,
    followed_digests,
    too_large,
    unchangeable,
    with_digests,
)
from proxy.core.fields.entries import Digests, FieldEntry, OnFailure, Signed, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.signatures import covering
from proxy.core.fields.splice import Job, splice
from proxy.core.fields.values import MAX_OPENED, Setting
from proxy.core.jose import sealing
from proxy.core.jose.jwe import open_token
from proxy.core.jose.keys import Alg, Key, KeySet, new_key
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import seal
from proxy.core.reasons import Reason

TODAY = date(2026, 11, 23)
KEY = new_key(Alg.A256KW, kid="one")
KEYS = KeySet("app", Alg.A256KW, KEY)
ENTRY = FieldEntry((parse_selector("$..ssn"),), KEYS, name="request[2]")
HOST = "api.example"
LIMIT = 1 << 20
SETTING = Setting("api.pay.example", LIMIT, date(2026, 6, 1))
PLAIN = BodyHead(["application/json"])


def encrypt(body: bytes, head: BodyHead, entries: list[FieldEntry], limit: int = LIMIT) -> tuple[bytes, int]:
    """Return the encrypted body and the number of values in it."""
    changed = change(body, head, entries, Setting(HOST, limit, TODAY))
    return changed.body, sum(changed.counts)


def decrypt(body: bytes, head: BodyHead, entries: list[FieldEntry], limit: int = LIMIT) -> tuple[bytes, int]:
    """Return the decrypted body and the number of values in it."""
    opening = [replace(entry, work=Work.DECRYPT) for entry in entries]
    changed = change(body, head, opening, Setting(HOST, limit, TODAY))
    return changed.body, sum(changed.counts)


def reason_of(denied: pytest.ExceptionInfo[Denied]) -> Reason:
    return denied.value.reason


class TestBefore:
    def test_an_ordinary_body_may_come(self) -> None:
        check_before(PLAIN, [ENTRY], TODAY)
        check_before(BodyHead([], "gzip"), [ENTRY], TODAY)

    @pytest.mark.parametrize(
        "content_type",
        [
            "application/json; charset=utf-7",
            "application/json;CHARSET = 'utf-16'",
            "application/json; charset=utf-8; charset=latin-1",
            "text/plain; charset*=utf-16",
        ],
    )
    def test_another_charset_is_denied(self, content_type: str) -> None:
        with pytest.raises(Denied) as denied:
            check_before(BodyHead([content_type]), [ENTRY], TODAY)
        assert reason_of(denied) is Reason.ENCODING_UNSUPPORTED

    @pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "us-ascii", "utf8 "])
    def test_utf_8_by_any_of_its_names_is_not(self, charset: str) -> None:
        check_before(BodyHead([f"application/json; charset={charset}"]), [ENTRY], TODAY)

    def test_two_content_types_are_denied(self) -> None:
        with pytest.raises(Denied):
            check_before(BodyHead(["application/json", "application/json"]), [ENTRY], TODAY)

    def test_a_coding_that_cannot_be_undone_is_denied(self) -> None:
        with pytest.raises(Denied) as denied:
            check_before(BodyHead([], "compress"), [ENTRY], TODAY)
        assert reason_of(denied) is Reason.ENCODING_UNSUPPORTED

    def test_an_expired_key_is_denied_by_its_name(self) -> None:
        old = new_key(Alg.A256KW, kid="old")
        expired = type(old)(old.kid, old.alg, old.material, date(2026, 11, 22))
        entry = replace(ENTRY, keys=KeySet("app", Alg.A256KW, expired), name="request[7]")
        with pytest.raises(Denied, match="key old of key set app") as denied:
            check_before(PLAIN, [entry], TODAY)
        assert reason_of(denied) is Reason.KEY_UNAVAILABLE
        assert denied.value.entries == ("request[7]",)


class TestEncrypting:
    @pytest.mark.parametrize("coding", [None, "gzip"])
    def test_what_is_encrypted_opens_again_to_the_very_bytes(self, coding: str | None) -> None:
        body = b'{"ssn" : "078",  "x":1}'
        sent = gzip.compress(body, mtime=0) if coding else body
        head = BodyHead(["application/json"], coding)
        protected, count = encrypt(sent, head, [ENTRY])
        assert count == 1
        assert b'"078"' not in (gzip.decompress(protected) if coding else protected)
        opened, opened_count = decrypt(protected, head, [ENTRY])
        assert (gzip.decompress(opened) if coding else opened) == body
        assert opened_count == 1

    def test_a_packed_body_with_nothing_marked_is_not_packed_anew(self) -> None:
        packed = gzip.compress(b"[1]", 1) + gzip.compress(b" ")
        head = BodyHead(["application/json"], "gzip")
        assert encrypt(packed, head, [ENTRY]) == (packed, 0)
        assert decrypt(packed, head, [ENTRY]) == (packed, 0)

    @pytest.mark.parametrize("body", [b"", b'{"x":1}', b" []"])
    def test_a_body_with_nothing_marked_is_the_same_object(self, body: bytes) -> None:
        protected, count = encrypt(body, PLAIN, [ENTRY])
        assert protected is body
        assert count == 0

    def test_a_signature_over_what_changes_is_denied_and_over_what_does_not_passes(self) -> None:
        head = BodyHead(signature="the field X")
        passing = replace(ENTRY, signed=Signed.PASS)
        with pytest.raises(Denied, match="the field X covers the body") as denied:
            encrypt(b'{"ssn":1,"x":2}', head, [replace(passing, selectors=(parse_selector("$.x"),), name="p"), ENTRY])
        assert reason_of(denied) is Reason.SIGNED_BODY
        assert denied.value.entries == ("request[2]",)
        assert encrypt(b'{"ssn":1}', head, [passing])[1] == 1
        assert encrypt(b'{"ssn":1}', head, [passing, ENTRY])[1] == 1  # the first entry's
        with pytest.raises(Denied, match="covers the body"):
            count_marked(b'{"ssn":1}', head, [ENTRY, passing], SETTING)
        assert encrypt(b'{"x":1}', head, [ENTRY]) == (b'{"x":1}', 0)

    def test_as_many_fields_as_are_allowed_and_one_more(self) -> None:
        def body(count: int) -> bytes:
            return json.dumps([{"ssn": 1}] * count).encode()

        assert count_marked(body(MAX_SEALED), PLAIN, [ENTRY], SETTING) == (MAX_SEALED,)
        with pytest.raises(Denied) as denied:
            encrypt(body(MAX_SEALED + 1), PLAIN, [ENTRY])
        assert reason_of(denied) is Reason.BODY_TOO_LARGE

    def test_a_value_too_long_for_a_token_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", 100)
        with pytest.raises(Denied) as denied:
            encrypt(b'{"ssn":"078"}', PLAIN, [ENTRY])
        assert reason_of(denied) is Reason.BODY_TOO_LARGE
        assert denied.value.detail == too_large(LIMIT).detail

    def test_counting_changes_nothing_and_counts_the_same(self) -> None:
        body = b'{"ssn":1,"a":[{"ssn":2}]}'
        assert count_marked(body, PLAIN, [ENTRY], SETTING) == (2,)

    @pytest.mark.parametrize("body", [b"", b'{"x":1}', b"[]", gzip.compress(b"", mtime=0)])
    def test_a_request_in_which_nothing_is_found_is_denied_where_that_is_required(self, body: bytes) -> None:
        entry = replace(ENTRY, required=True, form=("pin",), name="request[1]")
        head = BodyHead(["application/json"], "gzip" if body.startswith(b"\x1f") else None)
        with pytest.raises(Denied, match=r"at [$][.][.]ssn, pin, which") as denied:
            encrypt(body, head, [ENTRY, entry])
        assert (reason_of(denied), denied.value.entries) == (Reason.FIELDS_MISSING, ("request[1]",))
        with pytest.raises(Denied):
            count_marked(body, head, [entry], SETTING)
        assert encrypt(body, head, [ENTRY]) == (body, 0)

    def test_what_is_found_and_stays_as_it_is_counts_as_found(self) -> None:
        required = Required([replace(ENTRY, required=True)])
        kept = Job(Marks((parse_selector("$.ssn"),)), lambda _value, _path: None)
        splice(b'{"ssn":1}', required.watching([kept]))
        required.check()
        assert encrypt(b'{"ssn":1}', PLAIN, [replace(ENTRY, required=True)])[1] == 1

    def test_forms_are_sealed_too(self) -> None:
        form = BodyHead(["application/x-www-form-urlencoded"])
        entry = replace(ENTRY, form=("ssn",))
        protected, count = encrypt(b"a=1&ssn=0%2078", form, [entry])
        token = protected.removeprefix(b"a=1&ssn=").decode()
        assert count == 1
        assert open_token(token, KEYS, Place(HOST, "$.ssn"), TODAY) == b'"0 78"'


class TestDecrypting:
    @staticmethod
    def sealed(value: bytes, place: str = "$.ssn", host: str = HOST) -> bytes:
        return b'{"ssn":"' + seal(value, KEYS, Place(host, place)).encode() + b'"}'

    def test_what_was_sealed_elsewhere_opens(self) -> None:
        assert decrypt(self.sealed(b"1e2"), PLAIN, [ENTRY]) == (b'{"ssn":1e2}', 1)

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b'{"ssn":"e30.e30.AAAAAAAAAAAAAAAA.AA.AAAAAAAAAAAAAAAAAAAAAA"}', "cannot be decrypted"),
            (
                b'{"ssn":{"protected":"e30","ciphertext":"AA"}}',
                r"a value at \$\.\.ssn is a JWE, but not in its compact",
            ),
            (b'{"ssn":', "cannot be decrypted"),
            (b"<html>", "cannot be decrypted"),
        ],
    )
    def test_what_does_not_open_is_denied(self, body: bytes, why: str) -> None:
        with pytest.raises(Denied, match=why) as denied:
            decrypt(body, PLAIN, [ENTRY])
        assert reason_of(denied) is Reason.DECRYPTION_FAILED

    def test_the_detail_names_the_key_set_and_the_selectors_but_nothing_of_the_body(self) -> None:
        body = (
            b'{"canary":{"ssn":"%s"}}'
            % seal(b"1", replace(KEYS, primary=replace(KEY, kid="new")), Place(HOST, "$.canary.ssn")).encode()
        )
        with pytest.raises(Denied) as denied:
            decrypt(body, PLAIN, [ENTRY])
        assert denied.value.detail == (
            "the response cannot be decrypted: a value at $..ssn is not opened by key set app: "
            "header parameter kid: names none of the keys of this set"
        )
        assert denied.value.entries == (ENTRY.name,)

    def test_a_value_sealed_for_another_place_or_host_is_denied(self) -> None:
        for body in (self.sealed(b"1", place="$.other"), self.sealed(b"1", host="other.example")):
            with pytest.raises(Denied) as denied:
                decrypt(body, PLAIN, [ENTRY])
            assert reason_of(denied) is Reason.DECRYPTION_FAILED

    def test_what_opens_to_more_than_one_value_is_denied(self) -> None:
        with pytest.raises(Denied, match="not one JSON value"):
            decrypt(self.sealed(b'1,"admin":true'), PLAIN, [ENTRY])

    def test_another_charset_is_denied(self) -> None:
        with pytest.raises(Denied) as denied:
            decrypt(b"{}", BodyHead(["application/json; charset=utf-7"]), [ENTRY])
        assert reason_of(denied) is Reason.DECRYPTION_FAILED

    def test_more_tokens_than_can_be_opened_in_short_time_are_denied_and_plain_values_are_no_tokens(self) -> None:
        plain = b'{"ssn":null}'

        def opened(*items: bytes) -> tuple[bytes, int]:
            body = b"[" + b",".join([*items, *[plain] * (MAX_OPENED + 1)]) + b"]"
            return decrypt(body, PLAIN, [ENTRY], 16 * LIMIT)

        each = [self.sealed(b"1", place="$[*].ssn") for _ in range(MAX_OPENED + 1)]  # one body each
        assert opened(*each[1:])[1] == MAX_OPENED
        with pytest.raises(Denied, match="too many fields to decrypt"):
            opened(*each)
        together = 1 + 8 * (MAX_OPENED - 1)  # sealed as one body, so with one content key
        assert opened(*each[:1] * together)[1] == together
        with pytest.raises(Denied, match="too many fields to decrypt"):
            opened(*each[:1] * (together + 1))

    @pytest.mark.parametrize(("bits", "most"), [(2048, MAX_OPENED), (4096, 90)])
    def test_of_those_for_a_long_rsa_key_fewer_are_opened_in_the_same_time(self, bits: int, most: int) -> None:
        private = rsa.generate_private_key(65537, bits)
        key = Key("rsa", Alg.RSA_OAEP_256, private)
        older = Key("short", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048))
        entry = replace(ENTRY, keys=KeySet("app", Alg.RSA_OAEP_256, older, (key,)))
        public = KeySet("k", key.alg, key.public())
        items = [b'{"ssn":"%s"}' % seal(b"1", public, Place(HOST, "$[*].ssn")).encode() for _ in range(most + 1)]
        assert decrypt(b"[" + b",".join(items[1:]) + b"]", PLAIN, [entry], 16 * LIMIT)[1] == most
        with pytest.raises(Denied, match="too many fields to decrypt"):
            decrypt(b"[" + b",".join(items) + b"]", PLAIN, [entry], 16 * LIMIT)

    @pytest.mark.parametrize("value", [b"null", b"4111", b"true", b'"4111"', b"{}", b"[1]", b'{"ciphertext":1}'])
    def test_what_was_never_sealed_stays_the_very_same_body(self, value: bytes) -> None:
        body = b'{"ssn":%s}' % value
        got, count = decrypt(body, PLAIN, [ENTRY])
        assert (got is body, count) == (True, 0)

    @pytest.mark.parametrize("types", [(), ("application/json", "text/plain"), ("text/plain", "x")])
    def test_a_body_whose_label_says_nothing_is_looked_at(self, types: tuple[str, ...]) -> None:
        head = BodyHead(types)
        opened = decrypt(self.sealed(b"1", place="$.ssn"), head, [ENTRY])
        assert opened == (b'{"ssn":1}', 1)
        for packed in (gzip.compress(b"{canary"), gzip.compress(b"\xff\xfe{\x00")):
            with pytest.raises(Denied, match="cannot be decrypted"):
                decrypt(packed, BodyHead(types, "gzip"), [ENTRY])

    def test_a_body_without_a_label_that_is_no_json_stays_as_it_is(self) -> None:
        for body, coding in ((b"not found", None), (gzip.compress(b"\x89PNG"), "gzip"), (b"", "compress")):
            assert decrypt(body, BodyHead((), coding), [ENTRY]) == (body, 0)


@pytest.mark.parametrize(
    ("offered", "acceptable_here"),
    [
        ("gzip, br", "gzip, br"),
        ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
        ("dcb,GZIP;q=0.5 ,compress, x-gzip", "GZIP;q=0.5, x-gzip"),
        ("compress", "identity"),
        ("", "identity"),
        ("*", "identity"),
        ("*;q=0.1, br", "br"),
        ("gzip, * ; q=0.000", "gzip, * ; q=0.000"),
        ("identity;q=0, br;Q=1", "identity;q=0, br;Q=1"),
        ("gzip;q=0", "gzip;q=0"),
    ],
)
def test_what_of_an_offer_can_be_opened_here(offered: str, acceptable_here: str) -> None:
    assert acceptable(offered) == acceptable_here


@pytest.mark.parametrize("name", ["jsonrpc", "result", "error", "data", "errors", "extensions"])
def test_an_array_of_answers_that_a_mirror_has_sealed_is_opened_for_the_app(name: str) -> None:
    entry = replace(ENTRY, selectors=(parse_selector(f"$.{name}.a"),))
    body = b'[ {"%s":{"a": 1}}, {"%s":{"a":"2"},"b":3}]' % (name.encode(), name.encode())
    sealed, count = encrypt(body, PLAIN, [entry])
    assert count == 2
    assert decrypt(sealed, PLAIN, [entry]) == (body, 2)


def token(host: str) -> bytes:
    """Return a token of `1` at `$.a`."""
    return seal(b"1", KEYS, Place(host, "$.a")).encode("ascii")


class TestRequestsThatAreOpened:
    """At a mirror listener, where requests are opened and responses sealed."""

    def opened(self, body: bytes, *types: str, coding: str | None = None) -> bytes:
        """Open a request's body."""
        opening = replace(ENTRY, selectors=(parse_selector("$.a"),), work=Work.DECRYPT)
        return change(body, BodyHead(types, coding), [opening], Setting(HOST, 1000, TODAY, of_request=True)).body

    def test_a_token_that_does_not_open_is_the_requests_fault(self) -> None:
        other = token("other.example")
        with pytest.raises(Denied) as caught:
            self.opened(b'{"a":"%s"}' % other, "application/json")
        assert caught.value.reason is Reason.REQUEST_NOT_OPENED
        assert caught.value.entries == ("request[2]",)

    @pytest.mark.parametrize("types", [("application/json",), ("text/plain",), ()])
    def test_what_is_json_is_opened_whatever_it_is_called(self, types: tuple[str, ...]) -> None:
        assert self.opened(b' {"a":"%s"}' % token(HOST), *types) == b' {"a":1}'

    def refused(self, body: bytes, *types: str, coding: str | None = None) -> None:
        """Check that a request does not get to the server."""
        with pytest.raises(Denied) as caught:
            self.opened(body, *types, coding=coding)
        assert caught.value.reason is Reason.REQUEST_NOT_OPENED

    @pytest.mark.parametrize("body", [b"{", b'{"a":1', b"[NaN]", b'"a', b"-" * 2000])
    def test_what_says_that_it_is_json_must_be_read(self, body: bytes) -> None:
        self.refused(body, "application/json")
        assert self.opened(body, "application/octet-stream") == body

    @pytest.mark.parametrize(
        ("types", "coding"),
        [
            pytest.param(("text/plain",), "gzip", id="longer than what is held"),
            pytest.param(("text/plain; charset=iso-8859-1",), None, id="another charset"),
            pytest.param(("text/plain; charset=iso-8859-1", "multipart/form-data"), None, id="two labels"),
        ],
    )
    def test_what_begins_like_json_must_be_read_whatever_it_is_called(
        self, types: tuple[str, ...], coding: str | None
    ) -> None:
        body = b'{"a":"%s"}' % token("other.example")
        if coding is not None:
            body = gzip.compress(body + b" " * 2000)
        self.refused(body, *types, coding=coding)
        assert self.opened(body, "image/png; charset=iso-8859-1", coding=coding) == body
        other = b"-" if coding is None else gzip.compress(b"-" * 2000)
        assert self.opened(other, "text/plain; charset=iso-8859-1", coding=coding) == other

    def test_tokens_do_not_pass_because_there_are_too_many(self) -> None:
        opening = replace(ENTRY, selectors=(parse_selector("$[*].a"),), work=Work.DECRYPT)
        setting = Setting(HOST, LIMIT, TODAY, of_request=True)
        element = b'{"a":"%s"}' % seal(b"1", KEYS, Place(HOST, "$[*].a")).encode("ascii")
        for elements in ([element] * (MAX_OPENED * 8 + 1), [b'{"a":1}'] * MAX_SEALED + [element]):
            with pytest.raises(Denied) as caught:
                change(b"[%s]" % b",".join(elements), BodyHead(["text/plain"]), [opening], setting)
            assert caught.value.reason is Reason.REQUEST_NOT_OPENED

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            pytest.param("application/x-www-form-urlencoded; charset=iso-8859-1", b"card=%s", id="another charset"),
            pytest.param("application/x-www-form-urlencoded", b'{"x=1&card=%s', id="a form that begins like JSON"),
            pytest.param("application/x-www-form-urlencoded", b"card=%s" + b"&a" * 10_000, id="too many fields"),
            pytest.param(
                "multipart/form-data; boundary=b",
                b'--b\r\nContent-Disposition: form-data; name="card"\r\n\r\n%s\r\n'
                b'--b\r\nContent-Disposition: form-data; name="x"\r\nContent-Type: application/json\r\n\r\n{\r\n'
                b"--b--\r\n",
                id="a part that is no JSON",
            ),
        ],
    )
    def test_a_form_with_fields_to_open_must_be_read(self, content_type: str, body: bytes) -> None:
        body = body.replace(b"%s", seal(b'"1"', KEYS, Place(HOST, "$.card")).encode("ascii"))
        opening, setting = replace(ENTRY, work=Work.DECRYPT), Setting(HOST, LIMIT, TODAY, of_request=True)
        with pytest.raises(Denied) as caught:
            change(body, BodyHead([content_type]), [replace(opening, form=("card",))], setting)
        assert caught.value.reason is Reason.REQUEST_NOT_OPENED
        assert change(body, BodyHead([content_type]), [opening], setting).body == body

    def test_other_kinds_are_opened_as_they_are_sealed(self) -> None:
        lines = b'{"a":"%s"}\n' % token(HOST)
        assert self.opened(lines * 2, "application/x-ndjson") == b'{"a":1}\n' * 2
        assert self.opened(gzip.compress(b""), "application/json", coding="gzip") == gzip.compress(b"")

    def test_so_must_its_coding(self) -> None:
        with pytest.raises(Denied) as caught:
            self.opened(b"{}", "application/json", coding="unknown")
        assert caught.value.reason is Reason.REQUEST_NOT_OPENED
        assert self.opened(b"{}", "image/png", coding="unknown") == b"{}"

    def test_a_token_in_what_says_that_it_is_no_json_must_open_as_well(self) -> None:
        with pytest.raises(Denied) as caught:
            self.opened(b'{"a":"%s"}' % token("other.example"), "text/plain")
        assert caught.value.reason is Reason.REQUEST_NOT_OPENED


@pytest.mark.parametrize(
    ("work", "reason"), [(Work.ENCRYPT, Reason.RESPONSE_NOT_SEALED), (Work.DECRYPT, Reason.DECRYPTION_FAILED)]
)
def test_a_response_that_cannot_be_changed_says_what_was_to_be_done(work: Work, reason: Reason) -> None:
    denied = unchangeable(work, "it is late", ("response[1]",))
    assert (denied.reason, denied.entries) == (reason, ("response[1]",))
    assert "it is late" in denied.detail


class TestDigests:
    BODY = b'{"ssn":"078"}'
    MD5 = (b"Content-MD5", base64.b64encode(hashlib.md5(BODY, usedforsecurity=False).digest()))
    OTHER = (b"X-Other", b"kept")

    def change(
        self, entry: FieldEntry, *fields: tuple[bytes, bytes], trailing: tuple[tuple[bytes, bytes], ...] = ()
    ) -> tuple[Changed, tuple[tuple[bytes, bytes], ...]]:
        head = BodyHead(["application/json"], fields=(*fields, *trailing))
        changed = change(self.BODY, head, [entry], Setting(HOST, LIMIT, TODAY))
        return changed, with_digests(fields, head, [entry], self.BODY, changed)

    def test_behind_a_mirror_it_follows_the_body_or_stays_if_a_signature_covers_that(self) -> None:
        signed = (b"X-Hub-Signature-256", b"sha256=" + b"a1" * 32)
        strange = (b"Content-Digest", b"crc32c=:AAAA:")
        opening = [replace(ENTRY, work=Work.DECRYPT)]
        for fields, told in (
            ((self.MD5, strange, self.OTHER), (self.MD5, self.OTHER)),
            ((self.MD5, strange, signed), (self.MD5, strange, signed)),
        ):
            head = BodyHead(["application/json"], signature=covering(fields), fields=fields)
            assert followed_digests(fields, head, opening, b"sealed", self.BODY) == told

    def test_a_digest_is_denied_with_a_way_out(self) -> None:
        with pytest.raises(Denied, match="the field Content-MD5 holds a digest") as denied:
            self.change(ENTRY, self.MD5)
        assert "digests: recompute" in denied.value.hint
        assert denied.value.entries == ("request[2]",)

    def test_it_is_left_out_or_written_anew(self) -> None:
        assert self.change(replace(ENTRY, digests=Digests.DROP), self.MD5, self.OTHER)[1] == (self.OTHER,)
        for place in ("fields", "trailing"):
            entry = replace(ENTRY, digests=Digests.RECOMPUTE)
            fields = (self.MD5,) if place == "fields" else ()
            trailing = (self.MD5, self.OTHER) if place == "trailing" else ()
            changed, told = self.change(entry, *fields, trailing=trailing)
            assert told == ((b"Content-MD5", base64.b64encode(hashlib.md5(changed.body).digest())),)

    def test_what_cannot_be_written_anew_is_denied(self) -> None:
        with pytest.raises(Denied, match="does not fit") as denied:
            self.change(replace(ENTRY, digests=Digests.RECOMPUTE), (b"Content-MD5", b"AAAA"))
        assert denied.value.reason is Reason.SIGNED_BODY

    def test_nothing_of_it_changes_where_nothing_was_encrypted_or_a_field_signs_it(self) -> None:
        entry = replace(ENTRY, digests=Digests.DROP)
        head = BodyHead(fields=(self.MD5,))
        assert with_digests(head.fields, head, [entry], b"", Changed(b"", (0,))) == head.fields
        head = BodyHead(fields=(self.OTHER,))
        assert with_digests(head.fields, head, [entry], b"", Changed(b"", (1,))) is head.fields
        signing = replace(entry, signed=Signed.PASS, signed_headers=frozenset((b"x-other",)))
        assert self.change(signing, self.MD5, self.OTHER)[1] == (self.MD5, self.OTHER)
        with pytest.raises(Denied, match="the field X-Other covers the body"):
            self.change(replace(signing, signed=Signed.DENY), self.MD5, self.OTHER)

    def test_what_covers_a_body_is_said_in_words(self) -> None:
        assert covered_by(BodyHead(fields=(self.MD5,)), [ENTRY]) == "the field Content-MD5"
        assert covered_by(BodyHead(signature="the field X", fields=(self.MD5,)), [ENTRY]) == "the field X"
        assert covered_by(BodyHead(), [ENTRY]) is None


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_body_that_cannot_be_read_passes_if_all_entries_say_so(on_failure: OnFailure) -> None:
    opening = replace(ENTRY, work=Work.DECRYPT, on_failure=OnFailure.PASS)
    failed: list[tuple[str, Reason]] = []
    setting = Setting(HOST, LIMIT, TODAY, failed=lambda name, reason: failed.append((name, reason)))
    entries = [opening, replace(opening, on_failure=on_failure, name="request[3]")]
    if on_failure is OnFailure.DENY:
        with pytest.raises(Denied):
            change(b"{", PLAIN, entries, setting)
        assert not failed
    else:
        assert change(b"{", PLAIN, entries, setting).body == b"{"
        assert failed == [("request[2]", Reason.BODY_NOT_JSON), ("request[3]", Reason.BODY_NOT_JSON)]
