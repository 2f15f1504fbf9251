"""What happens to one value: padding, envelopes, other names, and values that were sealed before."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe as joserfc_jwe
from joserfc.jwk import OctKey

from proxy.core.decisions import Denied
from proxy.core.fields.entries import AlreadySealed, FieldEntry, Work
from proxy.core.fields.envelopes import Envelope
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.splice import Spliced, splice
from proxy.core.fields.values import MAX_OPENED, Setting, counting, kid_fields, opening, sealing, told_kids
from proxy.core.jose.encoding import base64url, unbase64url
from proxy.core.jose.keys import Alg, Bind, Key, KeySet, SecretBytes, new_key
from proxy.core.jose.place import Place
from proxy.core.jose.profiles import Profile
from proxy.core.jose.sealing import seal
from proxy.core.reasons import Reason

HOST = "api.pay.example"
SETTING = Setting(HOST, 1 << 24, date(2026, 6, 1))
KEY = new_key(Alg.A256KW, kid="one")
KEYS = KeySet("app", Alg.A256KW, KEY)
PRIVATE = new_key(Alg.ECDH_ES_A256KW, kid="pair")
SECRET = KeySet("pair", PRIVATE.alg, PRIVATE)
PUBLIC = replace(SECRET, primary=PRIVATE.public())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c.d"]), inner, max_size=3),
    max_leaves=8,
)


def entry_of(*selectors: str, keys: KeySet = KEYS, **more: Any) -> FieldEntry:
    return FieldEntry(tuple(map(parse_selector, selectors)), keys, name="request[0]", **more)


def sealed(body: bytes, entry: FieldEntry, setting: Setting = SETTING) -> Spliced:
    return splice(body, sealing([entry], setting))


def opened(body: bytes, entry: FieldEntry) -> Spliced:
    return splice(body, opening([replace(entry, work=Work.DECRYPT)], SETTING))


def by_itself(token: str) -> tuple[str, bytes]:
    """Return the `cty` and the plaintext of a token, by somebody else's library."""
    assert isinstance(KEY.material, SecretBytes)
    key = OctKey.import_key(KEY.material.reveal())
    got = joserfc_jwe.decrypt_compact(token, key, algorithms=["A256KW", "A256GCM", "A128GCM"])
    assert got.plaintext is not None
    return got.headers()["cty"], got.plaintext


def reason_of(caught: pytest.ExceptionInfo[Denied]) -> Reason:
    assert caught.value.entries == ("request[0]",)
    return caught.value.reason


class TestPadding:
    @pytest.mark.parametrize(
        ("value", "pad", "length"),
        [
            (b'"12345678"', 1, 10),
            (b'"12345678"', 16, 16),
            (b'"12345678901234"', 16, 16),
            (b'"123456789012345"', 16, 32),
            (b'"\xc3\xbc\xc3\xbc\xc3\xbc\xc3\xbc"', 16, 16),
            (b"4111", 16, 16),
            (b'{"a":[1, 2]}', 64, 64),
        ],
    )
    def test_the_plaintext_gets_blanks_up_to_a_multiple_and_comes_back_without(
        self, value: bytes, pad: int, length: int
    ) -> None:
        entry = entry_of("$.a", pad=pad)
        body = b'{"a": %s }' % value
        out = sealed(body, entry).body
        token = json.loads(out)["a"]
        _, plaintext = by_itself(token)
        assert plaintext == value + b" " * (length - len(value))
        assert json.loads(plaintext) == json.loads(value)
        assert len(unbase64url(token.split(".")[3])) == length
        assert opened(out, entry).body == body
        assert opened(out, replace(entry, pad=1)).body == body  # whoever opens need not know

    @given(JSON, st.integers(1, 50))
    @settings(max_examples=40, deadline=None)
    def test_any_value_comes_back_exactly(self, value: object, pad: int) -> None:
        body = b'{"a":%s}' % json.dumps(value).encode()
        entry = entry_of("$.a", pad=pad)
        assert opened(sealed(body, entry).body, entry).body == body


class TestEnvelopes:
    @pytest.mark.parametrize(
        ("selector", "body", "path"),
        [
            ("$", b'{"card":{"number":"4111"} , "n":1.0}', "$"),
            ("$", b"[1, 2]", "$"),
            ("$", b' "x"', "$"),
            ("$.card", b'{"card":{"number":"4111"}, "n":1.0}', "$.card"),
            ("$.items[*]", b'{"items":[ {"a":1}]}', "$.items[*]"),
        ],
    )
    def test_a_value_an_object_or_a_whole_body_goes_into_one_and_comes_out(
        self, selector: str, body: bytes, path: str
    ) -> None:
        entry = entry_of(selector, envelope=Envelope("encryptedData"))
        spliced = sealed(body, entry)
        assert spliced.counts == (1,)
        (made,) = _envelopes(json.loads(spliced.body))
        assert made.keys() == {"encryptedData"}
        cty, plaintext = by_itself(made["encryptedData"])
        assert cty == Place(HOST, path).media_type  # where the value stood, and not the member of the envelope
        assert plaintext in body
        assert opened(spliced.body, entry).body == body

    def test_a_response_may_have_another_name(self) -> None:
        out = sealed(b'{"a":1}', entry_of("$", envelope=Envelope("encData"))).body
        got = opened(out, entry_of("$", envelope=Envelope("encryptedData")))
        assert (got.body, got.counts) == (out, (0,))
        assert opened(out, entry_of("$", envelope=Envelope("encData"))).body == b'{"a":1}'

    @pytest.mark.parametrize("body", [b"{}", b'{"encData":"no token"}', b'{"encData":1}', b"[]", b'"x"', b'{"a":"b"}'])
    def test_what_was_never_sealed_passes(self, body: bytes) -> None:
        got = opened(body, entry_of("$", envelope=Envelope("encData")))
        assert (got.body, got.counts) == (body, (0,))

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            pytest.param(b"%s", "not alone in its envelope", id="bare"),
            pytest.param(b'{"encData":%s,"a":1}', "not alone in its envelope", id="with another member behind"),
            pytest.param(b'{"a":1,"encData":%s}', "not alone in its envelope", id="with another member before"),
            pytest.param(b'{"encData":%s,"encData":%s}', "not alone in its envelope", id="twice"),
            pytest.param(
                b'{"protected":%s,"ciphertext":"","encrypted_key":""}', "not in its compact form", id="in JSON form"
            ),
        ],
    )
    def test_a_token_that_lies_there_in_another_way_is_refused_and_does_not_pass(
        self, body: bytes, message: str
    ) -> None:
        token = b'"%s"' % seal(b"1", KEYS, Place(HOST, "$")).encode()
        body = body.replace(b"%s", token)
        with pytest.raises(Denied, match=message) as caught:
            opened(body, entry_of("$", envelope=Envelope("encData")))
        assert reason_of(caught) is Reason.DECRYPTION_FAILED

    def test_a_token_that_does_not_open_is_refused(self) -> None:
        token = seal(b"1", KEYS, Place(HOST, "$.elsewhere"))
        with pytest.raises(Denied, match="sealed for another place") as caught:
            opened(b'{"encData":"%s"}' % token.encode(), entry_of("$", envelope=Envelope("encData")))
        assert reason_of(caught) is Reason.DECRYPTION_FAILED


def _envelopes(value: object) -> list[dict[str, str]]:
    if isinstance(value, list):
        return [found for each in value for found in _envelopes(each)]
    if isinstance(value, dict) and "encryptedData" not in value:
        return [found for each in value.values() for found in _envelopes(each)]
    return [value] if isinstance(value, dict) else []


class TestRenaming:
    @pytest.mark.parametrize(
        ("body", "selector", "names", "place"),
        [
            (b'{"card":{"number" : "4111"}}', "$..number", ("number", "encryptedNumber"), "$.card.number"),
            (b'{"a.b":{"number":1}}', "$..number", ("number", "x y"), "$['a.b'].number"),
            (b'{"a[":{"number":1}}', "$..number", ("number", "odd ["), "$['a['].number"),
            (b'{"it\'s [":1}', "$['it\\'s [']", ("it's [", "sealed"), "$['it\\'s [']"),
            (b'{"a[\'b":1}', "$['a[\\'b']", ("a['b", "sealed"), "$['a[\\'b']"),
            (b'{"a":[{"n":null}]}', "$.a[*].n", ("n", "m"), "$.a[*].n"),
        ],
    )
    def test_the_member_has_the_other_name_and_the_token_says_the_first(
        self, body: bytes, selector: str, names: tuple[str, str], place: str
    ) -> None:
        plain, other = names
        spliced = sealed(body, entry_of(selector, rename=other))
        assert _strings(json.loads(spliced.body), plain) == []
        (token,) = _strings(json.loads(spliced.body), other)
        assert by_itself(token)[0] == Place(HOST, place).media_type
        got = opened(spliced.body, entry_of(f"$..['{other}']", rename=plain))
        assert (json.loads(got.body), got.counts) == (json.loads(body), (1,))

    def test_a_member_whose_value_was_never_sealed_keeps_its_name(self) -> None:
        got = opened(b'{"sealed":1}', entry_of("$.sealed", rename="plain"))
        assert (got.body, got.counts) == (b'{"sealed":1}', (0,))

    def test_a_token_that_was_sealed_before_gets_the_name_too(self) -> None:
        first = sealed(b'{"a":1}', entry_of("$.a")).body
        again = sealed(first, entry_of("$.a", rename="b"))
        assert again.body == first.replace(b'"a"', b'"b"')


def _strings(value: Any, name: str) -> list[str]:
    if isinstance(value, list):
        return [found for each in value for found in _strings(each, name)]
    if not isinstance(value, dict):
        return []
    return [found for key, each in value.items() for found in ([each] if key == name else _strings(each, name))]


class TestAlreadySealed:
    @pytest.mark.parametrize("keys", [KEYS, SECRET, PUBLIC], ids=["symmetric", "private", "public"])
    @pytest.mark.parametrize("envelope", [None, Envelope("encData")])
    @pytest.mark.parametrize("pad", [1, 32])
    def test_what_was_sealed_for_this_place_is_kept_so_that_a_retry_does_not_seal_twice(
        self, keys: KeySet, envelope: Envelope | None, pad: int
    ) -> None:
        entry = entry_of("$.card", keys=keys, envelope=envelope, pad=pad)
        first = sealed(b'{"card":"4111"}', entry)
        again = sealed(first.body, entry)
        assert (first.counts, again.counts) == ((1,), (0,))
        assert again.body is first.body

    @pytest.mark.parametrize("keys", [KEYS, SECRET, PUBLIC], ids=["symmetric", "private", "public"])
    def test_it_is_sealed_again_or_denied_if_the_entry_says_so(self, keys: KeySet) -> None:
        entry = entry_of("$.card", keys=keys)
        first = sealed(b'{"card":"4111"}', entry)
        again = sealed(first.body, replace(entry, already_sealed=AlreadySealed.SEAL))
        assert again.counts == (1,)
        assert opened(again.body, replace(entry, keys=KEYS if keys is KEYS else SECRET)).body == first.body
        with pytest.raises(Denied, match=r"a value at \$\.card is sealed already") as caught:
            sealed(first.body, replace(entry, already_sealed=AlreadySealed.DENY))
        assert reason_of(caught) is Reason.ALREADY_SEALED
        assert sealed(b'{"card":"4111"}', replace(entry, already_sealed=AlreadySealed.DENY)).counts == (1,)

    def look_alikes(self) -> dict[str, str]:
        token = seal(b'"4111"', SECRET, Place(HOST, "$.card"))
        header, *rest = token.split(".")
        named = json.loads(unbase64url(header))

        def with_header(**changes: object) -> str:
            return ".".join((base64url(json.dumps(named | changes).encode()), *rest))

        tag = "A" * 22 if rest[3] != "A" * 22 else "B" * 21 + "A"
        return {
            "five parts": "a.b.c.d.e",
            "a host": "www.shop.pay.example.org",
            "another kid": with_header(kid="other"),
            "no kid": with_header(kid=""),
            "another alg": with_header(alg="A256KW"),
            "another enc": with_header(enc="A128GCM"),
            "another field": seal(b'"4111"', SECRET, Place(HOST, "$.other")),
            "another host": seal(b'"4111"', SECRET, Place("other.example", "$.card")),
            "no place": seal(b'"4111"', SECRET, None),
            "no ephemeral key": with_header(epk={}),
            "a short IV": ".".join((header, rest[0], rest[1][:-4], *rest[2:])),
            "six parts": token + ".x",
            "does not open": ".".join((header, *rest[:3], tag)),
            "another key of that name": seal(
                b'"4111"', replace(SECRET, primary=replace(new_key(PRIVATE.alg), kid="pair")), Place(HOST, "$.card")
            ),
        }

    @pytest.mark.parametrize("rule", AlreadySealed)
    @pytest.mark.parametrize("keys", [SECRET, PUBLIC], ids=["private", "public"])
    def test_what_only_looks_like_it_is_sealed(self, keys: KeySet, rule: AlreadySealed) -> None:
        for what, text in self.look_alikes().items():
            if keys is PUBLIC and what in ("does not open", "another key of that name"):
                continue  # nobody can tell without the private key
            body = b'{"card":"%s"}' % text.encode()
            got = sealed(body, entry_of("$.card", keys=keys, already_sealed=rule))
            assert got.counts == (1,), what
            assert opened(got.body, entry_of("$.card", keys=SECRET)).body == body

    def test_in_an_envelope_only_what_is_in_one_was_sealed(self) -> None:
        token = seal(b'"4111"', KEYS, Place(HOST, "$.card"))
        entry = entry_of("$.card", envelope=Envelope("encData"))
        for body in (b'{"card":"%s"}', b'{"card":{"encData":"%s","a":1}}', b'{"card":{"other":"%s"}}'):
            assert sealed(body % token.encode(), entry).counts == (1,)
        assert sealed(b'{"card":{"encData":"%s"}}' % token.encode(), entry).counts == (0,)
        assert sealed(b'{"card":{"encData":"%s"}}' % token.encode(), entry_of("$.card")).counts == (1,)

    @pytest.mark.parametrize("bind", Bind)
    def test_the_place_is_compared_as_the_key_set_says(self, bind: Bind) -> None:
        keys = replace(PUBLIC, bind=bind)
        for place, kept in (
            (Place(HOST, "$.card"), (Bind.PLACE, Bind.HOST, Bind.NONE)),
            (Place(HOST, "$.other"), (Bind.HOST, Bind.NONE)),
            (Place("other.example", "$.card"), (Bind.NONE,)),
        ):
            body = b'{"card":"%s"}' % seal(b"1", keys, place).encode()
            assert (sealed(body, entry_of("$.card", keys=keys)).counts == (0,)) is (bind in kept)

    def test_of_an_older_key_it_was_sealed_before_too(self) -> None:
        old = new_key(Alg.A256KW, kid="old")
        body = b'{"card":"%s"}' % seal(b"1", KeySet("app", Alg.A256KW, old), Place(HOST, "$.card")).encode()
        assert sealed(body, entry_of("$.card", keys=replace(KEYS, older=(old,)))).counts == (0,)
        assert sealed(body, entry_of("$.card")).counts == (1,)

    def test_the_work_to_find_out_is_limited(self) -> None:
        key = Key("rsa", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048))
        keys = KeySet("rsa", key.alg, key)
        wrapped = base64url(bytes(255) + b"\1")
        header, _, *rest = seal(b"1", keys, Place(HOST, "$[*]")).split(".")
        tokens = [".".join((header, f"{number:08d}" + wrapped[8:], *rest)) for number in range(MAX_OPENED + 1)]
        entry = entry_of("$[*]", keys=keys)
        with pytest.raises(Denied, match="too many fields") as caught:
            sealed(json.dumps(tokens).encode(), entry)
        assert reason_of(caught) is Reason.BODY_TOO_LARGE
        public = replace(entry, keys=replace(keys, primary=key.public()))
        assert sealed(json.dumps(tokens).encode(), public).counts == (0,)  # by their headers, which is quick

    @pytest.mark.parametrize("rule", AlreadySealed)
    def test_counting_finds_what_sealing_would_replace(self, rule: AlreadySealed) -> None:
        entry = entry_of("$.*", already_sealed=rule, envelope=Envelope("e"))
        body = sealed(b'{"a":1,"b":2}', entry_of("$.a", envelope=Envelope("e"))).body
        if rule is AlreadySealed.DENY:
            with pytest.raises(Denied, match="sealed already"):
                splice(body, counting([entry], SETTING))
            return
        got = splice(body, counting([entry], SETTING))
        assert got.body == body
        assert got.counts == sealed(body, entry).counts == ((1,) if rule is AlreadySealed.KEEP else (2,))


class TestOneBody:
    @pytest.mark.parametrize("keys", [KEYS, PUBLIC], ids=["symmetric", "public"])
    def test_entries_of_one_key_set_share_what_is_made_for_the_body(self, keys: KeySet) -> None:
        entries = [entry_of("$.a", keys=keys), entry_of("$.b", keys=keys), entry_of("$.c", keys=replace(keys))]
        out = json.loads(splice(b'{"a":1,"b":2,"c":3}', sealing(entries, SETTING)).body)
        wrapped = {name: token.split(".")[1] for name, token in out.items()}
        assert wrapped["a"] == wrapped["b"] != wrapped["c"]

    def test_nothing_is_made_for_a_body_without_marked_values(self) -> None:
        def never(keys: KeySet, key: Key) -> Any:
            raise AssertionError

        assert sealed(b'{"x":1}', entry_of("$.a"), SETTING._replace(sealing=never)).counts == (0,)


class TestKidFields:
    RSA = Key("visa-1", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048).public_key())
    VISA = KeySet("visa", RSA.alg, RSA, bind=Bind.NONE, profile=Profile.VISA_MLE)
    OTHER = replace(VISA, primary=replace(RSA, kid="visa-2"))

    def test_a_request_says_the_kid_that_its_body_was_sealed_with(self) -> None:
        today = SETTING.today
        visa, plain = entry_of("$", keys=self.VISA), entry_of("$")
        assert kid_fields([visa, plain], (1, 1), told_kids([visa, plain], today)) == {"keyId": "visa-1"}
        assert kid_fields([visa, visa], (1, 2), told_kids([visa, visa], today)) == {"keyId": "visa-1"}
        assert kid_fields([visa, plain], (0, 1), told_kids([visa, plain], today)) == {}
        assert told_kids([replace(visa, work=Work.DECRYPT)], today) == [None]
        assert kid_fields([plain], (1,), told_kids([plain], today)) == {}

    def test_two_of_them_are_denied(self) -> None:
        entries = [entry_of("$.a", keys=self.VISA), entry_of("$.b", keys=self.OTHER)]
        assert kid_fields(entries, (0, 1), told_kids(entries, SETTING.today)) == {"keyId": "visa-2"}
        with pytest.raises(Denied, match="sealed with two keys") as caught:
            kid_fields(entries, (1, 1), told_kids(entries, SETTING.today))
        assert reason_of(caught) is Reason.KEY_UNAVAILABLE
