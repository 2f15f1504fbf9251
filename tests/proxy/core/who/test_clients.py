"""Who may use the proxy: hashes that others can read, names, and addresses that may use the proxy."""

from __future__ import annotations

import base64
import hashlib

import pytest

from proxy.core.decisions import Denied
from proxy.core.who.addresses import AddressKind, AddressSet, parse_ip
from proxy.core.who.clients import (
    ClientRules,
    check_client,
    hash_password,
    may_ask,
    parse_password_hash,
    parse_user_name,
)


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

    @pytest.mark.parametrize("text", ["$scrypt$ln=10,r=1,p=1$" + "A" * 11 + "$" + "A" * 43])
    def test_the_least_that_is_enough(self, text: str) -> None:
        found = parse_password_hash(text)
        assert (found.ln, found.r, len(found.salt)) == (10, 1, 8)

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
        with pytest.raises(Denied, match=r"the mirror listener lets nobody at 192\.0\.2\.1"):
            check_client(ClientRules(), "192.0.2.1", is_at_mirror=True)

    def test_who_is_named(self) -> None:
        rules = ClientRules(AddressSet(frozenset({AddressKind.PRIVATE})))
        assert rules.admits(parse_ip("172.18.0.2"))
        assert not rules.admits(parse_ip("127.0.0.1"))


def test_this_machine_may_ask_the_admin_listener_and_others_as_the_policy_says() -> None:
    nobody, private = AddressSet(), AddressSet(frozenset((AddressKind.PRIVATE,)))
    for address in ("127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"):
        assert may_ask(nobody, address)
    assert may_ask(private, "172.18.0.3")
    assert may_ask(private, "::ffff:172.18.0.3")
    assert not may_ask(nobody, "172.18.0.3")
    assert not may_ask(private, "203.0.113.7")
