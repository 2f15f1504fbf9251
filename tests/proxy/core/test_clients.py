"""Who may use the proxy: hashes that others can read, credentials that are compared slowly, and never twice."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import clients
from proxy.core.addresses import AddressKind, AddressSet, parse_ip
from proxy.core.clients import (
    GUESSES_A_SECOND,
    GUESSES_OF_ONE,
    ClientRules,
    PasswordHash,
    User,
    Verifier,
    check_client,
    hash_password,
    parse_password_hash,
    parse_user_name,
    read_basic,
)
from proxy.core.decisions import Denied, Reason


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


class TestHashes:
    def test_one_is_read_as_it_was_written(self) -> None:
        made = hash_password("correct horse", bytes(range(16)))
        assert parse_password_hash(str(made)) == made
        assert made.matches(b"correct horse")
        assert not made.matches(b"correct horses")
        assert str(made) not in repr(made)

    def test_one_that_another_tool_made(self) -> None:  # RFC 7914, section 12: the third vector has p = 1
        salt, n, r = b"SodiumChloride", 16384, 8
        digest = hashlib.scrypt(b"pleaseletmein", salt=salt, n=n, r=r, p=1, dklen=32)
        assert digest.hex().startswith("7023bdcb3afd7348461c06cd81fd38eb")
        salt64, digest64 = (base64.b64encode(part).decode().rstrip("=") for part in (salt, digest))
        assert parse_password_hash(f"$scrypt$ln=14,r=8,p=1${salt64}${digest64}").matches(b"pleaseletmein")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("hunter2", "no hash of a password"),
            ("$2b$12$abcdefghijklmnopqrstuv", "no hash of a password"),
            ("$scrypt$ln=14,r=8,p=1$A$AAAA", "not base64"),
            ("$scrypt$ln=14,r=8,p=1$AAAA$" + "A" * 43, "at least 8 bytes"),
            ("$scrypt$ln=14,r=8,p=1$" + "A" * 22 + "$" + "A" * 40, "at least 8 bytes"),
            ("$scrypt$ln=9,r=8,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=15,r=4,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=14,r=9,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=14,r=0,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=14,r=8,p=2$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
        ],
    )
    def test_what_is_none_or_a_bad_one_is_refused_without_a_quotation(self, text: str, said: str) -> None:
        with pytest.raises(ValueError, match=said) as refused:
            parse_password_hash(text)
        assert text not in str(refused.value)

    @pytest.mark.parametrize("name", ["", "a:b", "a\n", "x" * 65])
    def test_a_name_that_basic_cannot_carry_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="no colon"):
            parse_user_name(name)
        assert parse_user_name("jörg") == "jörg"


class TestReadingBasic:
    @given(st.from_regex(r"[^:\x00-\x1f\x7f]{1,64}", fullmatch=True), st.text(max_size=100))
    def test_what_was_written_is_read(self, name: str, password: str) -> None:
        assert read_basic(basic(name, password)) == (name, password.encode())

    @pytest.mark.parametrize(
        "value", ["", "Basic", "Basic ", "Bearer YTpi", "Basic !!!!", "Basic YQ==", "Basic /zpi", "Basic " + "A" * 1028]
    )
    def test_anything_else_is_nothing(self, value: str) -> None:
        assert read_basic(value) is None

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

    def test_one_address_cannot_guess_away_what_is_there_for_others(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        for number in range(GUESSES_OF_ONE):
            assert not to_try.verify(self.USERS, basic("nobody", str(number)), "1.1.1.1")
        with pytest.raises(Denied) as refused:
            to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        assert refused.value.reason is Reason.TOO_MANY_ATTEMPTS
        assert to_try.verify(self.USERS, basic("app", "one"), "2.2.2.2")
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")  # known now
        clock.now += 1
        assert to_try.verify(self.USERS, basic("other", "two"), "1.1.1.1")

    def test_all_together_can_guess_so_often_only(self) -> None:
        to_try = verifier()
        for number in range(GUESSES_A_SECOND):
            to_try.verify(self.USERS, basic("app", str(number)), f"1.1.1.{number}")
        with pytest.raises(Denied):
            to_try.verify(self.USERS, basic("app", "one"), "2.2.2.2")

    def test_wrong_guesses_do_not_make_it_forget_who_is_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clients, "_REMEMBERED", 3)
        clock = Clock()
        to_try = verifier(clock)
        assert to_try.verify(self.USERS, basic("app", "one"), "1.1.1.1")
        for number in range(6):
            clock.now += 1
            assert not to_try.verify(self.USERS, basic("app", f"guess {number}"), "1.1.1.1")
        assert (len(to_try._right), len(to_try._wrong)) == (1, 3)
        assert b"guess" not in repr(to_try._wrong).encode()


class TestAddresses:
    def test_by_default_only_this_machine(self) -> None:
        assert ClientRules().admits(parse_ip("127.0.0.1"))
        assert ClientRules().admits(parse_ip("::1"))
        assert not ClientRules().admits(parse_ip("172.18.0.2"))
        assert not ClientRules().admits(parse_ip("8.8.8.8"))

    def test_everybody_if_the_policy_says_so(self) -> None:
        assert ClientRules(None).admits(parse_ip("8.8.8.8"))

    def test_who_is_not_admitted_is_told(self) -> None:
        check_client(ClientRules(), "127.0.0.1")
        with pytest.raises(Denied, match=r"no app at 192\.0\.2\.1"):
            check_client(ClientRules(), "192.0.2.1")

    def test_who_is_named(self) -> None:
        rules = ClientRules(AddressSet(frozenset({AddressKind.PRIVATE})))
        assert rules.admits(parse_ip("172.18.0.2"))
        assert not rules.admits(parse_ip("127.0.0.1"))
