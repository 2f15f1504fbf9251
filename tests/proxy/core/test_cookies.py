"""Cookies for https only, in a jar that knows no https: kept, given back, and never given to anybody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cookies import Cookies

COOKIES = Cookies("tag")


def received(value: str, *, is_translated: bool = True, keeps_domain: bool = True) -> str | None:
    fields = ((b"A", b"1"), (b"Set-Cookie", value.encode("utf-8", "surrogateescape")))
    found = COOKIES.received(fields, is_translated=is_translated, keeps_domain=keeps_domain)
    assert found[0] == fields[0]
    return found[1][1].decode("utf-8", "surrogateescape") if len(found) > 1 else None


def sent(value: str, *, over_tls: bool) -> str | None:
    found = COOKIES.sent(((b"A", b"1"), (b"cOOKIE", value.encode())), over_tls=over_tls)
    return found[1][1].decode() if len(found) > 1 else None


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a=b; Secure; HttpOnly", "_octag_a=b; HttpOnly"),
        ("a=b;secure", "_octag_a=b"),
        (" a = b ; Secure", "_octag_a = b "),
        ("a=b; SameSite=None; Secure; Path=/", "_octag_a=b; Path=/"),
        ("a=b; SameSite=Lax", "a=b; SameSite=Lax"),
        ("a=secure; Path=/secure", "a=secure; Path=/secure"),
        ("a=b; Domain=x.example", "a=b; Domain=x.example"),
        ("__Host-a=b; Path=/; Secure", "_octag___Host-a=b; Path=/"),
        ("__secure-a=b; Secure; Partitioned; Domain=x", "_octag___secure-a=b; Domain=x"),
        ("__Other-a=b", "__Other-a=b"),
        ("__Host-a=b; Path=/", None),  # none of these would a browser take
        ("__Host-a=b; Path=/x; Secure", None),
        ("__Host-a=b; Secure", None),
        ("__hOST-a=b; Path=/; Secure; Domain=x", None),
        ("__Secure-a=b", None),
        ("b; Secure", None),
        ("=b; Secure", None),
        ("_octag_a=b", None),
        (" _octag_a=b; Secure", None),
    ],
)
def test_what_came_over_tls_for_an_app_that_asked_by_http(value: str, kept: str | None) -> None:
    assert received(value) == kept


def test_an_app_that_knows_the_server_by_another_name_keeps_no_domain() -> None:
    assert received("a=b; Domain=x.example; Path=/", keeps_domain=False) == "a=b; Path=/"


@pytest.mark.parametrize("value", ["a=b; Secure", "__Secure-a=b", "b; Secure"])
def test_what_is_not_translated_stays_but_for_our_mark(value: str) -> None:
    assert received(value, is_translated=False) == value
    assert received("_octag_a=b", is_translated=False) is None


@pytest.mark.parametrize(
    ("value", "over_tls", "plain"),
    [
        ("_octag___Host-a=b; c=d; _octag_e=f", "__Host-a=b; c=d; e=f", "c=d"),
        ("_octag_a=b", "a=b", None),
        ("a=_octag_b", "a=_octag_b", "a=_octag_b"),
        ("a=b;c=d", "a=b;c=d", "a=b;c=d"),
        ("_ocother_a=b", "_ocother_a=b", "_ocother_a=b"),
    ],
)
def test_what_the_app_sends_back(value: str, over_tls: str, plain: str | None) -> None:
    assert sent(value, over_tls=True) == over_tls
    assert sent(value, over_tls=False) == plain


@given(
    st.sampled_from(["__Secure-", "__x-", ""]),
    st.from_regex(r"[a-z]{1,5}=[a-z]{0,5}", fullmatch=True),
)
def test_a_secure_cookie_goes_back_as_it_was_and_never_in_plain_text(prefix: str, pair: str) -> None:
    kept = received(f"{prefix}{pair}; Secure")
    assert kept is not None
    assert sent(kept, over_tls=True) == f"{prefix}{pair}"
    assert sent(kept, over_tls=False) is None
