"""Credentials are compared slowly, never twice, and nobody's guesses help him or keep others out."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.who import clients, credentials
from proxy.core.who.clients import PasswordHash, User
from proxy.core.who.credentials import (
    _MAX_CREDENTIALS,
    GUESSES_OF_ONE,
    TRIED_A_SECOND,
    TRIED_OF_SUSPECTS,
    Verifier,
    read_basic,
)
from proxy.timelimits import SUSPECT_SECONDS


def cheap(password: bytes, salt: bytes = b"8 bytes.") -> PasswordHash:
    """Return a hash that takes little time."""
    digest = hashlib.scrypt(password, salt=salt, n=1024, r=1, p=1, dklen=32)
    return PasswordHash(10, 1, 1, salt, digest)


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode("ascii")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def verifier(clock: Clock | None = None) -> Verifier:
    return Verifier(b"secret", clock or Clock())


class TestReadingBasic:
    @given(st.from_regex(r"[^:\x00-\x1f\x7f]{1,64}", fullmatch=True), st.text(max_size=100))
    def test_what_was_written_is_read(self, name: str, password: str) -> None:
        assert read_basic(basic(name, password)) == (name, password.encode())

    @pytest.mark.parametrize(
        "value", ["", "Basic", "Basic ", "Bearer YTpi", "Basic !!!!", "Basic YQ==", "Basic /zpi", "Basic " + "A" * 1028]
    )
    def test_anything_else_is_nothing(self, value: str) -> None:
        assert read_basic(value) is None

    def test_the_longest_that_is_read(self) -> None:
        longest = "YTpi" * (_MAX_CREDENTIALS // 4)
        assert read_basic(f"Basic {longest}") is not None
        assert read_basic(f"Basic {longest}YTpi") is None

    def test_the_schemes_case_makes_no_difference(self) -> None:
        assert read_basic("bAsIc YTpi") == ("a", b"b")


class TestVerifying:
    USERS = (User("app", cheap(b"one")), User("other", cheap(b"two")))

    @pytest.mark.parametrize(
        ("value", "is_right"),
        [
            (basic("app", "one"), True),
            (basic("other", "two"), True),
            (basic("app", "two"), False),
            (basic("nobody", "one"), False),
            (basic("app", ""), False),
            ("Bearer one", False),
        ],
    )
    def test_a_name_goes_with_its_own_password(self, value: str, is_right: bool) -> None:
        to_try = verifier()
        assert [to_try.verify(self.USERS, value, "1.1.1.1") for _ in range(2)] == [is_right] * 2

    def test_what_was_found_once_is_not_looked_for_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[bytes] = []
        original = clients._scrypt

        def counting(password: bytes, salt: bytes, ln: int, r: int, p: int) -> bytes:
            asked.append(password)
            return original(password, salt, ln, r, p)

        monkeypatch.setattr(clients, "_scrypt", counting)
        to_try = verifier()
        for _ in range(3):
            assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
            assert not to_try.verify(self.USERS, basic("app", "wrong"), "1.1.1.1")
        assert asked == [b"one", b"wrong"]

    def test_what_is_right_is_not_told_faster_because_somebody_knows_it(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        for client in ("2.2.2.2", "1.1.1.1"):
            clock.now += 1
            for number in range(GUESSES_OF_ONE):
                assert not to_try.verify(self.USERS, basic("app", f"{client} {number}"), client)
            for guess in ("any", "one"):
                with pytest.raises(Denied):
                    to_try.verify(self.USERS, basic("app", guess), client)

    def test_nor_where_guesses_are_not_even_looked_at(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        assert not to_try.verify(self.USERS, basic("app", "wrong"), "1.1.1.1")
        clock.now += 1
        for number in range(TRIED_OF_SUSPECTS):
            to_try.verify(self.USERS, basic("app", str(number)), f"1.1.2.{number}")
        for number in range(GUESSES_OF_ONE):
            with pytest.raises(Denied):
                to_try.verify(self.USERS, basic("app", f"more {number}"), "1.1.1.1")
        with pytest.raises(Denied):
            to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")

    def test_nor_for_a_name_that_is_none(self) -> None:
        to_try = verifier()
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        for _ in range(GUESSES_OF_ONE):
            assert not to_try.verify(self.USERS, basic("nobody", "one"), "1.1.1.1")
        with pytest.raises(Denied):
            to_try.verify(self.USERS, basic("nobody", "one"), "1.1.1.1")

    def test_what_is_known_to_be_wrong_of_one_name_tells_nothing_of_others(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        assert not to_try.verify(self.USERS, basic("nobody", "x"), "1.1.1.1")
        clock.now += 1
        for number in range(GUESSES_OF_ONE):
            to_try.verify(self.USERS, basic("nobody", str(number)), "1.1.1.1")
        for name in ("somebody", "app", "other"):
            with pytest.raises(Denied):
                to_try.verify(self.USERS, basic(name, "x"), "1.1.1.1")

    def test_one_address_cannot_guess_away_what_is_there_for_others(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        for number in range(GUESSES_OF_ONE):
            assert not to_try.verify(self.USERS, basic("nobody", str(number)), "1.1.1.1")
        with pytest.raises(Denied) as refused:
            to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        assert refused.value.reason is Reason.TOO_MANY_ATTEMPTS
        assert to_try.verify(self.USERS, basic("app", "one"), "2.2.2.2")
        clock.now += 1
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")

    def test_a_network_of_ipv6_is_one(self) -> None:
        to_try = verifier()
        for number in range(GUESSES_OF_ONE):
            assert not to_try.verify(self.USERS, basic("app", str(number)), f"2001:db8::{number}")
        with pytest.raises(Denied):
            to_try.verify(self.USERS, basic("app", "one"), "2001:db8::ffff:0:0:1")
        assert to_try.verify(self.USERS, basic("app", "one"), "2001:db8:0:1::1")

    def test_some_is_left_for_who_has_not_guessed(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        for number in range(4 * TRIED_A_SECOND):  # becoming known for it takes a guess each
            clock.now += 1
            to_try.verify(self.USERS, basic("app", str(number)), f"1.1.1.{number}")
        clock.now += 1
        tried = 0
        for number in range(4 * TRIED_A_SECOND):
            try:
                to_try.verify(self.USERS, basic("app", f"again {number}"), f"1.1.1.{number}")
                tried += 1
            except Denied:
                pass
        assert tried == TRIED_OF_SUSPECTS
        assert to_try.verify(self.USERS, basic("app", "one"), "2.2.2.2")

    def test_who_has_guessed_is_forgiven(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        to_try.verify(self.USERS, basic("app", "wrong"), "1.1.1.1")
        clock.now += SUSPECT_SECONDS
        for number in range(TRIED_OF_SUSPECTS):
            to_try.verify(self.USERS, basic("app", str(number)), f"1.1.2.{number}")
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")

    def test_all_together_can_try_so_often_only(self) -> None:
        to_try = verifier()
        for number in range(TRIED_A_SECOND):
            to_try.verify(self.USERS, basic("app", str(number)), f"1.1.1.{number}")
        with pytest.raises(Denied):
            to_try.verify(self.USERS, basic("app", "one"), "2.2.2.2")

    def test_wrong_guesses_do_not_make_it_forget_who_is_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(credentials, "_REMEMBERED", 3)
        clock = Clock()
        to_try = verifier(clock)
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        for number in range(6):
            clock.now += 1
            assert not to_try.verify(self.USERS, basic("app", f"guess {number}"), "1.1.1.1")
        assert (len(to_try._right), len(to_try._wrong)) == (1, 3)
        assert b"guess" not in repr(vars(to_try._wrong)).encode()
