"""One WebSocket message, from what came to what goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields.bodies import MAX_SEALED, Changed
from proxy.core.fields.entries import FieldEntry, OnFailure, OtherBodies, Work
from proxy.core.fields.messages import MAX_RECORDS, change, count_marked
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.values import Setting
from proxy.core.jose import jwe
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import seal
from proxy.core.reasons import Reason

TODAY = date(2026, 11, 23)
KEY = new_key(Alg.A256KW, kid="k")
KEYS = KeySet("app", Alg.A256KW, KEY)
SEAL = FieldEntry((parse_selector("$..ssn"),), KEYS, name="request[0]")
OPEN = replace(SEAL, work=Work.DECRYPT, name="response[0]")
SETTING = Setting("api.example", 1 << 20, TODAY, of_request=True)
OF_SERVER = SETTING._replace(of_request=False)


def sealed(payload: bytes, *, is_text: bool = True) -> tuple[bytes, tuple[int, ...]]:
    changed = change(payload, [SEAL], SETTING, is_text=is_text)
    assert count_marked(payload, [SEAL], SETTING, is_text=is_text) == changed.counts
    return changed.body, changed.counts


def opened(payload: bytes, *, is_text: bool = True) -> tuple[bytes, tuple[int, ...]]:
    changed = change(payload, [OPEN], OF_SERVER, is_text=is_text)
    return changed.body, changed.counts


class TestSealing:
    @pytest.mark.parametrize("is_text", [True, False])
    def test_json_is_sealed_and_opens_again_in_text_and_in_binary(self, is_text: bool) -> None:
        body, counts = sealed(b' {"ssn" : "078",  "x":1} ', is_text=is_text)
        assert counts == (1,)
        assert b'"078"' not in body
        token = json.loads(body)["ssn"]
        assert jwe.open_token(token, KEYS, Place("api.example", "$.ssn"), TODAY) == b'"078"'
        assert opened(body, is_text=is_text) == (b' {"ssn" : "078",  "x":1} ', (1,))

    @pytest.mark.parametrize("payload", [b"", b"2", b'{"x":1}', b'{"x":1}\x1e', b"\x1e", b'{}\x1e{"y":[]}\x1e'])
    def test_what_has_nothing_marked_is_the_same_object(self, payload: bytes) -> None:
        body, counts = sealed(payload)
        assert (body is payload, counts) == (True, (0,))

    def test_records_are_sealed_each_and_keep_their_ends(self) -> None:
        body, counts = sealed(b'{"type":6}\x1e{"ssn":1}\x1e\x1e{"a":{"ssn":2}}\x1e')
        assert counts == (2,)
        first, second, third, fourth, last = body.split(b"\x1e")
        assert (first, third, last) == (b'{"type":6}', b"", b"")
        assert set(json.loads(second)) == {"ssn"}
        assert opened(body) == (b'{"type":6}\x1e{"ssn":1}\x1e\x1e{"a":{"ssn":2}}\x1e', (2,))
        assert json.loads(fourth)["a"]["ssn"].count(".") == 4

    @pytest.mark.parametrize(
        "payload",
        [
            b"hello",
            b'42["message",{"ssn":1}]',  # socket.io
            b'{"ssn":1}\n{"ssn":2}',
            b'{"ssn":1}\x1e{"ssn":2}',  # the last record has no end
            b"CONNECT\naccept-version:1.2\n\n\x00",  # STOMP
            b"\xef\xbb\xbf{}",
            b'{"ssn":NaN}',
        ],
    )
    def test_text_that_is_no_json_is_denied(self, payload: bytes) -> None:
        for step in (change, count_marked):
            with pytest.raises(Denied) as denied:
                step(payload, [SEAL], SETTING, is_text=True)
            assert denied.value.reason is Reason.BODY_NOT_JSON

    @pytest.mark.parametrize("payload", [b"\x00\x01", b"\x82\xa3ssn\x01", b"hello", b"\xff\xfe{\x00", b'{"ssn":1'])
    def test_so_is_binary(self, payload: bytes) -> None:
        with pytest.raises(Denied) as denied:
            change(payload, [SEAL], SETTING, is_text=False)
        assert denied.value.reason is Reason.BODY_NOT_JSON

    def test_a_key_that_has_ended_meanwhile_seals_nothing(self) -> None:
        keys = KeySet("app", Alg.A256KW, replace(KEY, not_after=TODAY - timedelta(days=1)))
        for payload in (b"{}", b'{"ssn":1}'):
            with pytest.raises(Denied) as denied:
                change(payload, [replace(SEAL, keys=keys)], SETTING, is_text=True)
            assert (denied.value.reason, denied.value.entries) == (Reason.KEY_UNAVAILABLE, ("request[0]",))


class TestOtherKeysOfEntries:
    PASSING = replace(SEAL, other_bodies=OtherBodies.PASS, name="request[1]")

    def test_a_binary_message_is_another_body_and_text_is_not(self) -> None:
        payload = b"\x82\xa3ssn\x01"
        changed = change(payload, [self.PASSING], SETTING, is_text=False)
        assert (changed.body is payload, changed.counts) == (True, (0,))
        assert count_marked(payload, [self.PASSING], SETTING, is_text=False) == (0,)
        for entries, is_text in (([self.PASSING, SEAL], False), ([self.PASSING], True)):
            with pytest.raises(Denied) as denied:
                change(payload, entries, SETTING, is_text=is_text)
            assert denied.value.reason is Reason.BODY_NOT_JSON
        for is_text in (True, False):
            assert change(b'{"ssn":1}', [self.PASSING], SETTING, is_text=is_text).counts == (1,)

    def test_what_is_required_is_required_in_each_message(self) -> None:
        entry = replace(SEAL, required=True)
        assert change(b'{"ssn":1}', [entry], SETTING, is_text=True).counts == (1,)
        for payload in (b"{}", b"", b'{"ssn":1}\x1e{}\x1e'):
            with pytest.raises(Denied) as denied:
                change(payload, [entry], SETTING, is_text=True)
            assert (denied.value.reason, denied.value.entries) == (Reason.FIELDS_MISSING, ("request[0]",))

    @pytest.mark.parametrize("end", [b"", b"\x1e"])
    @pytest.mark.parametrize(
        ("query", "passes"), [(b'{a(ssn:\\"078\\")}', False), (b"query($s:String){a(ssn:$s)}", True)]
    )
    @pytest.mark.parametrize("form", [b'{"id":"1","type":"subscribe","payload":{"query":"%s"}}', b'{"query":"%s"}'])
    def test_no_literal_stands_in_a_query(self, form: bytes, query: bytes, passes: bool, end: bytes) -> None:
        entry, payload = replace(SEAL, graphql_arguments=frozenset(("ssn",))), form % query + end
        for step in (change, count_marked):
            if passes:
                step(payload, [entry], SETTING, is_text=True)
                continue
            with pytest.raises(Denied) as denied:
                step(payload, [entry], SETTING, is_text=True)
            assert "078" not in denied.value.detail
        assert change(payload, [SEAL], SETTING, is_text=True).counts == (0,)


class TestBesideAServer:
    """Behind a mirror listener it is the other way round."""

    def test_a_message_of_the_app_is_opened_and_one_of_the_server_sealed(self) -> None:
        body, counts = change(b'{"ssn":1}', [SEAL], OF_SERVER, is_text=True).body, (1,)
        assert change(body, [OPEN], SETTING, is_text=True) == Changed(b'{"ssn":1}', counts)

    @pytest.mark.parametrize(
        ("entry", "setting", "why"),
        [(OPEN, SETTING, Reason.REQUEST_NOT_OPENED), (SEAL, OF_SERVER, Reason.RESPONSE_NOT_SEALED)],
    )
    def test_what_cannot_be_done_has_the_reason_of_its_side(
        self, entry: FieldEntry, setting: Setting, why: Reason
    ) -> None:
        with pytest.raises(Denied) as denied:
            change(b'{"ssn":', [entry], setting, is_text=True)
        assert denied.value.reason is why


class TestOpening:
    @pytest.mark.parametrize("payload", [b"", b"hello", b'42["a"]', b"\x82\xa3ssn", b"3", b'{"x":1}'])
    def test_what_is_no_json_passes(self, payload: bytes) -> None:
        assert opened(payload) == (payload, (0,))
        assert opened(payload, is_text=False) == (payload, (0,))

    @pytest.mark.parametrize("payload", [b'{"ssn":', b'"', b'{"ssn":1}{}'])
    def test_what_may_be_taken_for_json_and_is_none_is_denied(self, payload: bytes) -> None:
        with pytest.raises(Denied) as denied:
            opened(payload)
        assert denied.value.reason is Reason.DECRYPTION_FAILED

    def test_it_passes_where_the_entry_says_so_and_is_counted(self) -> None:
        failed: list[tuple[str, Reason]] = []
        setting = OF_SERVER._replace(failed=lambda name, why: failed.append((name, why)))
        token = seal(b"1", KEYS, Place("other.example", "$.ssn"))
        payload = b'{"ssn":"%s"}\x1e{"ssn":"%s"}\x1e' % (
            token.encode(),
            seal(b"2", KEYS, Place("api.example", "$.ssn")).encode(),
        )
        entry = replace(OPEN, on_failure=OnFailure.PASS)
        changed = change(payload, [entry], setting, is_text=True)
        assert changed.body == b'{"ssn":"%s"}\x1e{"ssn":2}\x1e' % token.encode()
        assert (changed.counts, failed) == ((1,), [("response[0]", Reason.DECRYPTION_FAILED)])

    def test_a_token_of_another_place_is_denied_and_names_its_entry(self) -> None:
        token = seal(b"1", KEYS, Place("other.example", "$.ssn"))
        with pytest.raises(Denied) as denied:
            opened(b'{"a":1}\x1e{"ssn":"%s"}\x1e' % token.encode())
        assert (denied.value.reason, denied.value.entries) == (Reason.DECRYPTION_FAILED, ("response[0]",))


class TestLimits:
    @pytest.mark.parametrize(
        ("entry", "of_request", "why"),
        [
            (SEAL, True, Reason.BODY_TOO_LARGE),
            (OPEN, False, Reason.DECRYPTION_FAILED),
            (SEAL, False, Reason.RESPONSE_NOT_SEALED),
            (OPEN, True, Reason.REQUEST_NOT_OPENED),
        ],
    )
    def test_a_message_that_is_too_long_is_a_failure_of_its_entries(
        self, entry: FieldEntry, of_request: bool, why: Reason
    ) -> None:
        setting = SETTING._replace(limit=10, of_request=of_request)
        assert change(b" " * 8 + b"[]", [entry], setting, is_text=True).counts == (0,)
        with pytest.raises(Denied, match="longer than the 10 bytes") as denied:
            change(b" " * 9 + b"[]", [entry], setting, is_text=True)
        assert (denied.value.reason, denied.value.entries) == (why, (entry.name,))

    @pytest.mark.parametrize(("records", "passes"), [(MAX_RECORDS, True), (MAX_RECORDS + 1, False)])
    def test_records(self, records: int, passes: bool) -> None:
        payload = b"{}\x1e" * records
        if passes:
            assert sealed(payload)[0] is payload
        else:
            with pytest.raises(Denied, match=f"{MAX_RECORDS} records"):
                sealed(payload)

    def test_the_fields_of_all_records_count_together(self) -> None:
        record = b'{"a":[' + b",".join([b'{"ssn":1}'] * (MAX_SEALED // 2)) + b"]}\x1e"
        assert count_marked(record * 2, [SEAL], SETTING, is_text=True) == (MAX_SEALED,)
        with pytest.raises(Denied, match="too many fields"):
            count_marked(record * 2 + b'{"ssn":1}\x1e', [SEAL], SETTING, is_text=True)
