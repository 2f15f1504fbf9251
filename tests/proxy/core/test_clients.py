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
    ClientRules,
    PasswordHash,
    User,
    Verifier,
    hash_password,
    parse_password_hash,
    parse_user_name,
    read_basic,
)


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
            ("$scrypt$ln=17,r=8,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=16,r=9,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=14,r=0,p=1$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
            ("$scrypt$ln=14,r=8,p=5$" + "A" * 22 + "$" + "A" * 43, "the cost is"),
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
        assert [to_try.verify(self.USERS, value) for _ in range(2)] == [is_right] * 2

    def test_what_was_found_once_is_not_looked_for_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[bytes] = []
        original = clients._scrypt

        def counting(password: bytes, salt: bytes, ln: int, r: int, p: int) -> bytes:
            asked.append(password)
            return original(password, salt, ln, r, p)

        monkeypatch.setattr(clients, "_scrypt", counting)
        to_try = verifier()
        for _ in range(3):
            assert to_try.verify(self.USERS, basic("app", "one"))
            assert not to_try.verify(self.USERS, basic("app", "wrong"))
        assert asked == [b"one", b"wrong"]

    def test_a_wrong_name_takes_a_verification_too(self) -> None:
        clock = Clock()
        to_try = verifier(clock)
        for number in range(GUESSES_A_SECOND):
            assert not to_try.verify(self.USERS, basic("nobody", str(number)))
        assert not to_try.verify(self.USERS, basic("app", "one"))  # too many guesses in this second
        clock.now += 1
        assert to_try.verify(self.USERS, basic("app", "one"))

    def test_who_is_known_does_not_suffer_from_others_guesses(self) -> None:
        to_try = verifier()
        assert to_try.verify(self.USERS, basic("app", "one"))
        for number in range(GUESSES_A_SECOND * 2):
            assert not to_try.verify(self.USERS, basic("app", str(number)))
        assert to_try.verify(self.USERS, basic("app", "one"))

    def test_what_is_remembered_is_bounded_and_no_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clients, "_REMEMBERED", 3)
        to_try = verifier()
        for number in range(6):
            to_try.verify(self.USERS, basic("app", f"guess {number}"))
        assert len(to_try._found) == 3
        assert b"guess" not in repr(to_try._found).encode()


class TestAddresses:
    def test_by_default_only_this_machine(self) -> None:
        assert ClientRules().admits(parse_ip("127.0.0.1"))
        assert ClientRules().admits(parse_ip("::1"))
        assert not ClientRules().admits(parse_ip("172.18.0.2"))
        assert not ClientRules().admits(parse_ip("8.8.8.8"))

    def test_everybody_if_the_policy_says_so(self) -> None:
        assert ClientRules(None).admits(parse_ip("8.8.8.8"))

    def test_who_is_named(self) -> None:
        rules = ClientRules(AddressSet(frozenset({AddressKind.PRIVATE})))
        assert rules.admits(parse_ip("172.18.0.2"))
        assert not rules.admits(parse_ip("127.0.0.1"))
