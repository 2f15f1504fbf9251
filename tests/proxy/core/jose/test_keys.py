"""Keys: names, dates, sets, thumbprints, both written forms, and what they never show."""

from __future__ import annotations

import json
import pprint
import traceback
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from proxy.core.jose.keys import BadKey, Bind, Key, KeySet, NoKey, SecretBytes, Supply, load_key, new_key
from proxy.core.jose.keywriting import thumbprint, to_jwk, to_pem
from tests.proxy.core.jose.eachkind import AES, ALL, ECDH, KEYS, PAIRS, RSA


def supply() -> Supply:
    """A place from which keys come later."""
    return Supply("https://keys.example/jwks", "keys.example", 443, "/jwks", 3600)


def _kind(key: Key) -> str:
    return key.kid


@pytest.mark.parametrize("key", ALL, ids=_kind)
def test_a_new_key_opens_and_is_secret(key: Key) -> None:
    assert key.can_open
    assert key.is_secret


def test_two_new_keys_differ() -> None:
    assert thumbprint(new_key(AES)) != thumbprint(new_key(AES))


def test_new_keys_are_of_the_kind_that_was_asked_for() -> None:
    assert to_jwk(KEYS["P-256"], private=False)["crv"] == "P-256"
    assert to_jwk(KEYS["X25519"], private=False)["crv"] == "X25519"
    assert KEYS["RSA"].material.key_size == 3072  # type: ignore[union-attr]  # an RSA key, which the test is about
    assert len(KEYS["oct"].material.reveal()) == 32  # type: ignore[union-attr]  # SecretBytes, likewise


@pytest.mark.parametrize("key", PAIRS, ids=_kind)
def test_the_public_half_seals_but_does_not_open_and_keeps_name_and_date(key: Key) -> None:
    public = replace(key, not_after=date(2027, 1, 31)).public()
    assert not public.can_open
    assert not public.is_secret
    assert (public.kid, public.alg, public.not_after) == (key.kid, key.alg, date(2027, 1, 31))
    assert public.public() == public


def test_a_symmetric_key_has_no_public_half() -> None:
    with pytest.raises(BadKey, match="no public half"):
        KEYS["oct"].public()


@pytest.mark.parametrize("key", ALL, ids=_kind)
def test_a_key_without_a_name_is_called_by_its_thumbprint(key: Key) -> None:
    members = to_jwk(key, private=True)
    del members["kid"]
    assert load_key(json.dumps(members).encode(), alg=key.alg).kid == thumbprint(key)
    assert new_key(AES).kid not in ("", "a")


def test_the_given_name_counts_where_the_key_has_none() -> None:
    assert load_key(to_pem(KEYS["P-256"], private=False), alg=ECDH, kid="pay").kid == "pay"


def test_the_name_in_the_jwk_and_the_given_one_must_agree() -> None:
    data = json.dumps(to_jwk(KEYS["oct"], private=True)).encode()
    assert load_key(data, alg=AES, kid="a").kid == "a"
    with pytest.raises(BadKey, match="kid is 'a', not 'b'"):
        load_key(data, alg=AES, kid="b")


@pytest.mark.parametrize("kid", ["", "k" * 257, "a\nb", "\ud800", "\x00"])
def test_a_name_that_is_empty_too_long_or_not_printable_is_refused(kid: str) -> None:
    with pytest.raises(BadKey, match="1 to 256 printable"):
        new_key(AES, kid=kid)


def test_a_name_of_256_characters_is_accepted() -> None:
    assert new_key(AES, kid="ü" * 256).kid == "ü" * 256


def test_a_key_is_good_on_its_last_day_and_no_longer() -> None:
    key = replace(KEYS["oct"], not_after=date(2027, 1, 31))
    assert not key.expired(date(2027, 1, 31))
    assert key.expired(date(2027, 2, 1))


def test_a_key_without_a_last_day_never_expires() -> None:
    assert not KEYS["oct"].expired(date.max)


def test_material_that_does_not_fit_the_algorithm_makes_no_key() -> None:
    with pytest.raises(BadKey, match="takes an RSA key"):
        Key("k", RSA, SecretBytes(bytes(32)))


def test_a_key_set_finds_its_keys_by_name() -> None:
    older = new_key(AES, kid="old")
    keys = KeySet("app", AES, KEYS["oct"], (older,))
    assert keys.by_kid("a") is KEYS["oct"]
    assert keys.by_kid("old") is older
    assert keys.by_kid("other") is None
    assert keys.bind is Bind.PLACE


def test_a_key_set_has_keys_of_one_algorithm_only() -> None:
    with pytest.raises(BadKey, match="'p' is for ECDH-ES\\+A256KW; every key of set 'app' must be for A256KW"):
        KeySet("app", AES, KEYS["oct"], (KEYS["P-256"],))


def test_a_key_set_has_no_two_keys_of_the_same_name() -> None:
    with pytest.raises(BadKey, match="same kid"):
        KeySet("app", AES, KEYS["oct"], (new_key(AES, kid="a"),))


@pytest.mark.parametrize("key", ALL, ids=_kind)
def test_nothing_that_prints_a_key_shows_its_secret(key: Key) -> None:
    secrets = [
        value for name, value in to_jwk(key, private=True).items() if name in ("d", "k", "p", "q", "dp", "dq", "qi")
    ]
    raw = key.material.reveal() if isinstance(key.material, SecretBytes) else b"\0" * 32
    keys = KeySet("set", key.alg, key)
    try:
        raise RuntimeError(key, keys)
    except RuntimeError as error:
        trace = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
    shown = f"{key} {key!r} {keys} {keys!r} {[key]} {key.material!r} {pprint.pformat(keys)} {trace}"
    assert "redacted" in repr(key)
    assert secrets
    assert not [secret for secret in secrets if secret in shown]
    assert repr(raw)[2:-1] not in shown
    assert raw.hex() not in shown


class TestDays:
    """When a key seals and opens: 2027-01-10 to 2027-01-20, in a set with ten days of grace."""

    KEY = replace(KEYS["oct"], not_before=date(2027, 1, 10), not_after=date(2027, 1, 20))
    KEYS = KeySet("app", AES, KEY, grace=10)

    @pytest.mark.parametrize(
        ("day", "seals", "opens"),
        [
            (date(2027, 1, 9), False, True),
            (date(2027, 1, 10), True, True),
            (date(2027, 1, 20), True, True),
            (date(2027, 1, 21), False, True),
            (date(2027, 1, 30), False, True),
            (date(2027, 1, 31), False, False),
        ],
    )
    def test_a_key_seals_between_its_days_and_opens_until_the_end_of_the_grace(
        self, day: date, seals: bool, opens: bool
    ) -> None:
        assert self.KEYS.opens_with(self.KEY, day) is opens
        if seals:
            assert self.KEYS.sealing_key(day) is self.KEY
        else:
            with pytest.raises(NoKey):
                self.KEYS.sealing_key(day)

    def test_what_is_wrong_is_said_and_what_to_do(self) -> None:
        with pytest.raises(NoKey, match="key a of key set app is not good before 2027-01-10") as early:
            self.KEYS.sealing_key(date(2027, 1, 1))
        assert "make another key the primary" in early.value.hint
        with pytest.raises(NoKey, match="key a of key set app is past its not_after date") as late:
            self.KEYS.sealing_key(date(2027, 2, 1))
        assert "give key set app a new primary key" in late.value.hint

    def test_each_day_counts_alone(self) -> None:
        day = date(2027, 1, 10)
        first, last = replace(KEYS["oct"], not_before=day), replace(KEYS["oct"], not_after=day)
        for key, other in ((first, date(2027, 1, 9)), (last, date(2027, 1, 11))):
            keys = KeySet("app", AES, key)
            assert keys.sealing_key(day) is key
            with pytest.raises(NoKey):
                keys.sealing_key(other)

    def test_the_last_day_is_not_before_the_first(self) -> None:
        replace(KEYS["oct"], not_before=date(2027, 1, 10), not_after=date(2027, 1, 10))
        with pytest.raises(BadKey, match="last day \\(2027-01-09\\) is before its first"):
            replace(KEYS["oct"], not_before=date(2027, 1, 10), not_after=date(2027, 1, 9))

    def test_a_key_without_days_opens_for_ever(self) -> None:
        keys = KeySet("app", AES, KEYS["oct"])
        assert keys.opens_with(KEYS["oct"], date.max)
        assert keys.last_opening(KEYS["oct"]) is None

    @pytest.mark.parametrize(
        ("members", "first", "last", "made"),
        [
            ({}, None, None, None),
            ({"nbf": 1798761600}, date(2027, 1, 1), None, None),  # midnight
            ({"nbf": 1798761600.5}, date(2027, 1, 1), None, None),
            ({"nbf": 1798761601}, date(2027, 1, 2), None, None),
            ({"exp": 1798761600}, None, date(2026, 12, 31), None),
            ({"exp": 1798847999}, None, date(2026, 12, 31), None),
            ({"exp": 1798848000}, None, date(2027, 1, 1), None),
            ({"iat": 1798847999}, None, None, datetime(2027, 1, 1, 23, 59, 59, tzinfo=UTC)),
        ],
    )
    def test_a_jwk_says_its_days_itself(
        self, members: dict[str, float], first: date | None, last: date | None, made: datetime | None
    ) -> None:
        key = load_key(json.dumps(to_jwk(KEYS["oct"], private=True) | members).encode(), alg=AES)
        assert (key.not_before, key.not_after, key.made) == (first, last, made)

    @pytest.mark.parametrize("value", ["1798761600", -1, True, None, [], 1e15])
    @pytest.mark.parametrize("name", ["nbf", "exp", "iat"])
    def test_what_is_no_time_is_refused(self, name: str, value: object) -> None:
        data = json.dumps(to_jwk(KEYS["oct"], private=True) | {name: value}).encode()
        with pytest.raises(BadKey, match=f"member {name} must be a time in seconds since 1970"):
            load_key(data, alg=AES)

    def test_of_the_days_in_policy_and_jwk_the_narrower_count(self) -> None:
        data = json.dumps(to_jwk(KEYS["oct"], private=True) | {"nbf": 1798761600, "exp": 1801440000}).encode()
        wide = load_key(data, alg=AES, not_before=date(2026, 1, 1), not_after=date(2028, 1, 1))
        assert (wide.not_before, wide.not_after) == (date(2027, 1, 1), date(2027, 1, 31))
        narrow = load_key(data, alg=AES, not_before=date(2027, 1, 2), not_after=date(2027, 1, 30))
        assert (narrow.not_before, narrow.not_after) == (date(2027, 1, 2), date(2027, 1, 30))


class TestSupply:
    def test_a_set_whose_keys_come_later_has_none_at_first(self) -> None:
        keys = KeySet("partner", ECDH, None, supply=supply())
        assert keys.keys == ()
        assert keys.by_kid("p") is None
        assert keys.opening_cost == 1.0
        assert not keys.can_open
        with pytest.raises(NoKey, match="key set partner has no key yet: none could be fetched from https"):
            keys.sealing_key(date(2027, 1, 1))

    def test_a_set_that_was_fetched_answers_for_it(self) -> None:
        keys = KeySet("partner", ECDH, None, supply=(source := supply()))
        source.current = KeySet("partner", ECDH, KEYS["P-256"], (KEYS["X25519"],))
        assert keys.keys == (KEYS["P-256"], KEYS["X25519"])
        assert keys.sealing_key(date(2027, 1, 1)) is KEYS["P-256"]
        assert keys.by_kid("x") is KEYS["X25519"]
        assert keys.can_open

    def test_a_key_that_is_not_there_is_asked_for(self) -> None:
        asked: list[None] = []
        source = supply()
        keys = KeySet("partner", ECDH, None, supply=source)
        assert keys.by_kid("p") is None  # nobody fetches
        source.missed = lambda: asked.append(None)
        assert keys.by_kid("p") is None
        assert len(asked) == 1
        source.current = KeySet("partner", ECDH, KEYS["P-256"])
        assert keys.by_kid("p") is KEYS["P-256"]
        assert len(asked) == 1

    def test_a_set_without_keys_and_without_a_supply_seals_nothing(self) -> None:
        with pytest.raises(NoKey, match="fetched from nowhere"):
            KeySet("none", ECDH, None).sealing_key(date(2027, 1, 1))
