"""What an upgraded app and its server are told of each other: translated where it must be, else as it came."""

from __future__ import annotations

import pytest

from proxy.core.destinations import Destination
from proxy.core.rules.appview import (
    interim_fields,
    renamed,
    request_fields,
    response_fields,
    upgraded,
)
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Defaults, HostPattern, Https, PlainHttp, Policy, Rule

ASKED = Destination("api.example", 80)


def pattern(host: str) -> HostPattern:
    return HostPattern("exact", host, None)


POLICY = Policy(
    rules=(
        Rule("moved", (pattern("moved.example"),), PlainHttp.UPGRADE, Https.TUNNEL, https_port=8443),
        Rule("plain", (pattern("plain.example"),), PlainHttp.ALLOW, Https.TUNNEL),
        Rule("local", (pattern("named.internal"),), PlainHttp.UPGRADE, Https.TUNNEL),
        Rule("never", (pattern("never.example"),), PlainHttp.REJECT, Https.TUNNEL),
    )
)


def response(name: str, value: str, asked: Destination = ASKED) -> str | None:
    fields = response_fields(((name.encode(), value.encode()),), upgraded(POLICY, asked))
    return fields[0][1].decode() if fields else None


def request(name: str, value: str) -> str:
    ((_, changed),) = request_fields(((name.encode(), value.encode()),), upgraded(POLICY, ASKED))
    return changed.decode()


URLS = [
    ("https://api.example/a?b=c#d", "http://api.example/a?b=c#d"),
    ("https://api.example", "http://api.example"),
    ("HTTPS://API.Example/", "http://api.example/"),
    ("https://api.example:443/", "http://api.example/"),
    ("https://api.example:8080/", "http://api.example:8080/"),  # RFC 6797, section 8.3: other ports stay
    ("https://www.api.example/", "http://www.api.example/"),
    ("https://example/", "http://example/"),
    ("https://other.example/", "http://other.example/"),
    ("https://intranet/", "https://intranet/"),  # the app may have another way to what is local
    ("https://printer.lan/", "https://printer.lan/"),
    ("https://192.0.2.1/", "https://192.0.2.1/"),
    ("https://[2001:db8::1]/", "https://[2001:db8::1]/"),
    ("https://named.internal/", "http://named.internal/"),  # a rule names it
    ("https://moved.example:8443/", "http://moved.example/"),
    ("https://moved.example/", "https://moved.example/"),  # its upgrade leads elsewhere
    ("https://plain.example/", "https://plain.example/"),  # as http it would stay http
    ("https://never.example/", "https://never.example/"),
    ("/relative", "/relative"),
    ("//api.example/", "//api.example/"),
    ("http://api.example/", "http://api.example/"),
    ("https://user@api.example/", "https://user@api.example/"),
    # Where the authority ends is not for us to guess.
    *(
        (f"https://api.example{end}@plain.example/", f"https://api.example{end}@plain.example/")
        for end in "\\;,'\"\t<> &"
    ),
    ("https://api.example\\", "https://api.example\\"),
    ("https://api.example:99999/", "https://api.example:99999/"),
    ("https:/api.example/", "https:/api.example/"),
    ("", ""),
]


@pytest.mark.parametrize(("sent", "seen"), URLS)
@pytest.mark.parametrize("name", ["Location", "content-location", "Access-Control-Allow-Origin"])
def test_a_url_is_shown_as_the_app_would_ask_for_it(name: str, sent: str, seen: str) -> None:
    assert response(name, sent) == seen


@pytest.mark.parametrize(
    ("asked", "sent", "seen"),
    [
        (Destination("api.example", 443), "https://api.example/", "http://api.example:443/"),
        (Destination("moved.example", 9), "https://moved.example:8443/", "http://moved.example:9/"),
        (Destination("moved.example", 9), "https://www.moved.example/", "http://www.moved.example/"),
        (Destination("::1", 8080), "https://[::1]:8080/", "http://[::1]:8080/"),
        (Destination("nas.lan", 80), "https://www.nas.lan/", "http://www.nas.lan/"),  # what is local, but near
        (Destination("www.nas.lan", 80), "https://nas.lan/", "http://nas.lan/"),
        (Destination("www.nas.lan", 80), "https://tv.nas.lan/", "https://tv.nas.lan/"),
    ],
)
def test_the_port_that_the_app_used_comes_first(asked: Destination, sent: str, seen: str) -> None:
    assert response("Location", sent, asked) == seen


@pytest.mark.parametrize(
    ("name", "sent", "seen"),
    [
        ("Refresh", "5; url=https://api.example/x", "5; url=http://api.example/x"),
        ("Refresh", "0;URL='https://api.example/x'", "0;URL='http://api.example/x'"),
        ("Refresh", "5", "5"),
        ("Refresh", "5; https://api.example/x", "5; http://api.example/x"),
        ("Refresh", "0,https://api.example/x", "0,http://api.example/x"),
        ("Refresh", "0 url = https://api.example/x", "0 url = http://api.example/x"),
        ("Refresh", ' 1.5 ;\tURL="https://api.example/x"', ' 1.5 ;\tURL="http://api.example/x"'),
        ("Refresh", "0; url='https://api.example'; x", "0; url='http://api.example'; x"),
        ("Refresh", "0; url='https://api.example\"@plain.example/'", "0; url='https://api.example\"@plain.example/'"),
        ("Refresh", "0; url=https://api.example'@plain.example/", "0; url=https://api.example'@plain.example/"),
        ("Refresh", "x; url=https://api.example/x", "x; url=https://api.example/x"),
        (
            "Link",
            '</a>; title="<https://api.example/>", <https://api.example/b>',
            '</a>; title="<https://api.example/>", <http://api.example/b>',
        ),
        ("Link", '</a>; title="\\"", <https://api.example/b>', '</a>; title="\\"", <http://api.example/b>'),
        (
            "Link",
            '<https://api.example/a>; rel="next", </b>, <https://plain.example/>; rel=x',
            '<http://api.example/a>; rel="next", </b>, <https://plain.example/>; rel=x',
        ),
        ("Strict-Transport-Security", "max-age=1", None),
        ("Content-Security-Policy", "upgrade-insecure-requests", None),
        ("Content-Security-Policy", "default-src 'self'; Upgrade-Insecure-Requests ; x", "default-src 'self'; x"),
        ("Content-Security-Policy", "upgrade-insecure-requests, img-src *", " img-src *"),
        ("Content-Security-Policy", "img-src https://api.example/", "img-src https://api.example/"),
        ("X-Other", "https://api.example/", "https://api.example/"),
    ],
)
def test_other_fields_of_a_response(name: str, sent: str, seen: str | None) -> None:
    assert response(name, sent) == seen


@pytest.mark.parametrize(
    ("name", "sent", "told"),
    [
        ("Origin", "http://api.example", "https://api.example"),
        ("Origin", "http://moved.example", "https://moved.example:8443"),
        ("Origin", "http://plain.example", "http://plain.example"),
        ("Origin", "null", "null"),
        ("Origin", "http://localhost:3000", "http://localhost:3000"),  # as which it would not be shown again
        ("Origin", "http://www.other.example", "https://www.other.example"),
        ("Destination", "http://api.example/b", "https://api.example/b"),
        ("X-Forwarded-Port", "80", "443"),
        ("X-Forwarded-Port", "8080", "8080"),
        ("X-Forwarded-Ssl", "off", "on"),
        ("Front-End-Https", "Off", "on"),
        ("Referer", "http://api.example/a?b", "https://api.example/a?b"),
        ("Referer", "https://api.example/a", "https://api.example/a"),
        ("X-Forwarded-Proto", "http", "https"),
        ("X-Forwarded-Proto", "HTTP, http", "https, https"),
        ("X-Forwarded-Proto", "https", "https"),
        ("X-Forwarded-Proto", "httpx", "httpx"),
        ("Forwarded", "for=1.2.3.4;proto=http;host=x", "for=1.2.3.4;proto=https;host=x"),
        ("Forwarded", 'proto="http", for=b; Proto=http', 'proto="https", for=b; Proto=https'),
        ("Forwarded", "for=proto; by=http", "for=proto; by=http"),
        ("Forwarded", "proto=https", "proto=https"),
        ("X-Other", "http://api.example", "http://api.example"),
    ],
)
def test_the_server_is_told_of_the_app_as_it_knows_it(name: str, sent: str, told: str) -> None:
    assert request(name, sent) == told


def test_order_names_and_foreign_bytes_stay() -> None:
    fields = ((b"lOCATION", b"https://api.example/\xff"), (b"A", b"1"), (b"A", b"2"))
    seen = response_fields(fields, upgraded(POLICY, ASKED))
    assert seen == ((b"lOCATION", b"http://api.example/\xff"), *fields[1:])


class TestLearnedHosts:
    """What was learned counts for what the app says now, and not for what it is told to ask for later."""

    KNOWN = KnownHosts(lambda: 0.0, lambda host: host == "listed.example")
    KNOWN.learn("plain.example", "max-age=9")

    @pytest.mark.parametrize(
        ("host", "uses_preload", "seen"),
        [("plain.example", True, "https"), ("listed.example", False, "https"), ("listed.example", True, "http")],
    )
    def test_a_redirect(self, host: str, uses_preload: bool, seen: str) -> None:
        policy = Policy(defaults=Defaults(PlainHttp.ALLOW), hsts_preload=uses_preload)
        view = upgraded(policy, Destination(host, 80), self.KNOWN, self.KNOWN.lasting())
        ((_, value),) = response_fields(((b"Location", f"https://{host}/".encode()),), view)
        assert value.decode() == f"{seen}://{host}/"

    def test_an_origin(self) -> None:
        view = upgraded(POLICY, Destination("plain.example", 80), self.KNOWN, self.KNOWN.lasting())
        ((_, value),) = request_fields(((b"Origin", b"http://plain.example"),), view)
        assert value == b"https://plain.example"
        ((_, granted),) = response_fields(((b"Access-Control-Allow-Origin", value),), view, "http://plain.example")
        assert granted == b"http://plain.example"


class TestOrigins:
    """What a server grants to the origin that it was told is granted to the app's own."""

    @pytest.mark.parametrize("name", ["Access-Control-Allow-Origin", "Timing-Allow-Origin"])
    @pytest.mark.parametrize(
        ("sent", "granted", "seen"),
        [
            ("http://www.other.example", "https://www.other.example", "http://www.other.example"),
            ("http://moved.example", "https://moved.example:8443", "http://moved.example"),
            ("http://api.example:443", "https://api.example", "http://api.example:443"),
            ("http://localhost:3000", "http://localhost:3000", "http://localhost:3000"),
            ("http://localhost:3000", "https://localhost:3000", "https://localhost:3000"),
            ("http://www.other.example", "*", "*"),
            ("http://www.other.example", "null", "null"),
            ("http://www.other.example", "https://api.example", "http://api.example"),
            ("", "", ""),
        ],
    )
    def test_a_grant_is_of_the_apps_origin(self, name: str, sent: str, granted: str, seen: str) -> None:
        ((_, value),) = response_fields(((name.encode(), granted.encode()),), upgraded(POLICY, ASKED), sent)
        assert value.decode() == seen


def test_an_interim_response_is_shown_as_a_final_one_and_sets_no_cookies() -> None:
    fields = (
        (b"Link", b"<https://api.example/s.css>; rel=preload"),
        (b"Set-Cookie", b"a=b; Secure"),
        (b"Strict-Transport-Security", b"max-age=1"),
        (b"X", b"1"),
    )
    shown = interim_fields(fields, upgraded(POLICY, ASKED))
    assert shown == ((b"Link", b"<http://api.example/s.css>; rel=preload"), (b"X", b"1"))


class TestAHostByAnotherName:
    FRONT, TO = Destination("127.0.0.1", 9001), Destination("api.example", 443)
    VIEW = renamed(FRONT, TO)

    @pytest.mark.parametrize(
        ("name", "value", "seen"),
        [
            ("Location", "https://api.example/next", "http://127.0.0.1:9001/next"),
            ("Location", "https://other.example/next", "https://other.example/next"),
            ("Access-Control-Allow-Origin", "https://api.example", "http://127.0.0.1:9001"),
        ],
    )
    def test_the_app_sees_the_listener(self, name: str, value: str, seen: str) -> None:
        assert response_fields(((name.encode(), value.encode()),), self.VIEW)[0][1].decode() == seen

    @pytest.mark.parametrize(
        ("value", "seen"),
        [("http://127.0.0.1:9001", "https://api.example"), ("http://localhost:9001", "http://localhost:9001")],
    )
    def test_the_server_sees_itself(self, value: str, seen: str) -> None:
        assert request_fields(((b"Origin", value.encode()),), self.VIEW)[0][1].decode() == seen


def test_where_nothing_is_upgraded_the_port_stays() -> None:
    fields = ((b"X-Forwarded-Port", b"80"),)
    assert request_fields(fields, upgraded(POLICY, Destination("plain.example", 80))) == fields
