"""Cookies for https only, in a jar that knows no https: kept, given back, and never given to anybody else."""

from __future__ import annotations

import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.http.cookies import Cookies, Delivery, names_sent

COOKIES = Cookies("tag")


HOST = "a.site.example"
UPGRADED = Delivery(over_tls=True, is_translated=True, host=HOST)
PLAIN = Delivery(over_tls=False, host=HOST)
INSPECTED = Delivery(over_tls=True, host=HOST)


def mark(kind: str, host: str) -> str:
    """Return a mark as jars have it."""
    return f"_oc{hmac.digest(b'tag', f'{kind} {host}'.encode(), 'sha256').hex()[:16]}_"


# What stands for marks in the texts below: of the host itself, of the domain above it, of another host.
MARKS = {"_octag_": mark("host", HOST), "_ocdom_": mark("domain", "site.example"), "_ocnot_": mark("host", "b.example")}


def marked(text: str) -> str:
    for short, whole in MARKS.items():
        text = text.replace(short, whole)
    return text


def unmarked(text: str) -> str:
    for short, whole in MARKS.items():
        text = text.replace(whole, short)
    return text


def told(value: str, way: Delivery = UPGRADED, jar: frozenset[str] = frozenset()) -> list[str]:
    fields = ((b"A", b"1"), (b"Set-Cookie", marked(value).encode("utf-8", "surrogateescape")))
    found = COOKIES.received(fields, way, frozenset(map(marked, jar)))
    assert found[0] == fields[0]
    assert {name for name, _ in found[1:]} <= {b"Set-Cookie"}
    return [unmarked(cookie.decode("utf-8", "surrogateescape")) for _, cookie in found[1:]]


def received(value: str, way: Delivery = UPGRADED) -> str | None:
    cookies = told(value, way)
    assert len(cookies) <= 1
    return cookies[0] if cookies else None


def sent(value: str, way: Delivery) -> str | None:
    found = COOKIES.sent(((b"A", b"1;2"), (b"cOOKIE", marked(value).encode())), way)
    assert found[0] == (b"A", b"1;2")
    return unmarked(found[1][1].decode()) if len(found) > 1 else None


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
        ("__secure-a=b; Secure; Partitioned; Domain=.Site.example", "_ocdom___secure-a=b; Domain=.Site.example"),
        ("a=b; Secure; Domain=", "_octag_a=b; Domain="),
        ("a=b; Secure; Domain=site.example.", "_ocdom_a=b; Domain=site.example."),
        ("a=b; Secure; Domain=b\u00fccher.example", None),  # who knows how a jar spells that
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
        ("=__Host-a=b; Path=/; Secure", None),
        ("__Secure-a; Secure", None),
        ("b", "b"),
        ("a=b; Domain=b\u00fccher.example", "a=b; Domain=b\u00fccher.example"),
        ("a=b; Mood=None", "a=b; Mood=None"),
        ("a=b\x07", None),
        ("a=b\tc", "a=b\tc"),
    ],
)
def test_what_came_over_tls_for_an_app_that_asked_by_http(value: str, kept: str | None) -> None:
    assert received(value) == kept


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a=b; Secure; HttpOnly", "a=b; HttpOnly"),
        ("a=b; SameSite=None; Secure", "a=b"),
        ("__Host-a=b; Path=/; Secure", "_octag___Host-a=b; Path=/"),
        ("__Secure-a=b; Secure", "_octag___Secure-a=b"),
        ("a=b", "a=b"),
        ("b; Secure", "b"),
        ("__Secure-a; Secure", None),
    ],
)
def test_where_no_plain_http_passes_a_cookie_keeps_its_name_unless_no_jar_would_take_it(value: str, kept: str) -> None:
    way = replace(UPGRADED, may_be_plain=False)
    assert received(value, way) == kept
    if kept is not None:
        assert sent(kept.partition(";")[0], way) == value.partition(";")[0]


def test_a_policy_that_comes_to_let_plain_http_pass_changes_the_name() -> None:
    assert told("a=c; Secure", jar=frozenset("a"))[1].startswith("a=; Max-Age=0")
    _, gone = told("a=c; Secure", replace(UPGRADED, may_be_plain=False), frozenset(["_octag_a"]))
    assert gone.startswith("_octag_a=;")


def test_an_app_that_knows_the_server_by_another_name_keeps_no_domain() -> None:
    behind = Delivery(over_tls=True, is_translated=True, behind="api.example")
    kept = received("a=b; Domain=x.example; Path=/", behind)
    assert kept is not None
    assert kept == f"{mark('behind', 'api.example')}a=b; Path=/"
    assert received("b", behind) is None


@pytest.mark.parametrize("value", ["a=b; Secure", "__Secure-a=b", "b; Secure"])
def test_what_is_not_translated_stays_but_for_our_mark(value: str) -> None:
    assert received(value, INSPECTED) == value
    assert received("_octag_a=b", INSPECTED) is None


@pytest.mark.parametrize(
    "value",
    [
        "__Host-a=b; Path=/",
        "__secure-a=b; Secure",
        "=__Host-a=b",
        "__Host-a",
        "_octag_a=b",
        "=_octag_a=b",
        "\x0b__Host-a=b",
        "\xa0__Host-a=b",
        "\x85__Secure-a=b",
        "__Host-\x1fa=b",
        "\xa0_octag_a=b",
    ],
)
def test_plain_http_sets_nothing_that_means_https(value: str) -> None:
    assert received(value, PLAIN) is None
    assert received("a=b; Secure", PLAIN) == "a=b; Secure"


@pytest.mark.parametrize(
    ("value", "over_tls", "plain"),
    [
        ("_octag___Host-a=b; c=d; _octag_e=f", "__Host-a=b; c=d; e=f", "c=d"),
        ("_octag_a=b", "a=b", None),
        ("a=_octag_b", "a=_octag_b", "a=_octag_b"),
        ("a=b;c=d", "a=b;c=d", "a=b;c=d"),
        ("_ocother_a=b", "_ocother_a=b", "_ocother_a=b"),
        ("a=evil; _octag_a=b; A=c; d", "a=b; A=c; d", "a=evil; A=c; d"),
        ("_ocdom_a=b; _ocdom___Secure-c=d", "a=b; __Secure-c=d", None),
        ("_ocdom___Host-sid=evil; _ocdom___hOST-b=c; _octag___Host-sid=good", "__Host-sid=good", None),
        ("_ocnot_a=b; c=d", "c=d", "c=d"),
        ("_oc0123456789abcdef_a=b", None, None),
        ("a=evil; _ocdom_a=b", "a=b", "a=evil"),
        ("a=b; _ocnot_a=evil", "a=b", "a=b"),
    ],
)
def test_what_the_app_sends_back(value: str, over_tls: str | None, plain: str | None) -> None:
    assert sent(value, UPGRADED) == over_tls
    assert sent(value, PLAIN) == plain


def test_what_came_in_another_field_does_not_stand_in_for_a_secure_cookie_either() -> None:
    fields = ((b"Cookie", b"a=evil"), (b"cookie", marked("_octag_a=b").encode()))
    assert COOKIES.sent(fields, UPGRADED) == ((b"cookie", b"a=b"),)


@pytest.mark.parametrize("secure", ["; Secure", ""])
def test_what_is_one_servers_goes_to_no_other_behind_the_same_address(secure: str) -> None:
    one, other = (Delivery(over_tls=True, is_translated=True, behind=host) for host in ("one.example", "other.example"))
    kept = received(f"a=b{secure}", one)
    assert kept is not None
    assert sent(kept, one) == "a=b"
    assert [sent(kept, way) for way in (other, UPGRADED, PLAIN)] == [None] * 3


@pytest.mark.parametrize(
    ("value", "jar", "gone"),
    [
        ("a=; Max-Age=0; Path=/x", "_octag_a", "_octag_a=; Path=/x"),  # a logout, say
        ("a=; Max-Age=0; Domain=site.example", "_ocdom_a", "_ocdom_a=; Domain=site.example"),
        ("a=c; Secure; HttpOnly", "a", "a="),
        ("a=c", "a", None),
        ("a=c; Secure", "_octag_a", None),
        ("A=c", "_octag_a", None),
    ],
)
def test_a_cookie_that_becomes_secure_or_no_longer_is_stays_one(value: str, jar: str, gone: str | None) -> None:
    _, *more = told(value, jar=names_sent(((b"Cookie", f"x=1; {jar}=old".encode()),)))
    expired = "; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
    assert more == ([] if gone is None else [gone + expired])


def test_only_the_cookies_of_a_request_have_names() -> None:
    assert names_sent(((b"A", b"x=1"), (b"cOOKIE", b"y=2; z"))) == {"y", ""}


@given(
    st.sampled_from(["__Secure-", "__x-", ""]),
    st.from_regex(r"[a-z]{1,5}=[a-z]{0,5}", fullmatch=True),
)
def test_a_secure_cookie_goes_back_as_it_was_and_never_in_plain_text(prefix: str, pair: str) -> None:
    kept = received(f"{prefix}{pair}; Secure")
    assert kept is not None
    assert sent(kept, UPGRADED) == f"{prefix}{pair}"
    assert sent(kept, PLAIN) is None
