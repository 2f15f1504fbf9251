"""What ends at a proxy, and what goes through as it came (ARCHITECTURE.md, rule 5)."""

from __future__ import annotations

import pytest

from proxy.core.http.heads import Fields
from proxy.core.http.hops import (
    has_come_through,
    is_last_request,
    keeps_alive,
    one_forward_less,
    trailers_to_relay,
    without_framing,
    without_hop,
)


def fields(text: str) -> Fields:
    """Return fields written as `Name: value` with `|` between them."""
    pairs = (line.split(": ", 1) for line in text.split("|")) if text else ()
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)


WEBSOCKET = "Upgrade: websocket|Connection: Upgrade|Sec-WebSocket-Key: x"


class TestFieldsOfOneConnection:
    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            pytest.param("", "", id="nothing"),
            pytest.param("A: 1|b: 2|A: 3", "A: 1|b: 2|A: 3", id="nothing of that kind"),
            pytest.param("Connection: close|A: 1", "A: 1", id="close"),
            pytest.param("CONNECTION: Keep-Alive|Keep-Alive: timeout=5|A: 1", "A: 1", id="keep-alive"),
            pytest.param("Keep-Alive: timeout=5|A: 1", "A: 1", id="Keep-Alive alone"),
            pytest.param("TE: trailers|A: 1", "A: 1", id="TE alone"),
            pytest.param("Connection: TE|TE: trailers|A: 1", "A: 1", id="TE"),
            pytest.param("Proxy-Connection: keep-alive|A: 1", "A: 1", id="Proxy-Connection"),
            pytest.param("Connection: X-Hop|x-hop: 1|A: 1|X-HOP: 2", "A: 1", id="listed"),
            pytest.param("Connection: x ,\tX-Hop|Connection: y|X: 1|Y: 2|X-Hop: 3|Z: 4", "Z: 4", id="several listed"),
            pytest.param("Connection: X-Hopper|X-Hop: 1", "X-Hop: 1", id="no prefix"),
            pytest.param("X-Hop: 1|A: 1|Connection: X-Hop", "A: 1", id="listed afterwards"),
            pytest.param("Connection: |A: 1", "A: 1", id="an empty list"),
            pytest.param("Connection: Host|Host: a", "Host: a", id="Host stays"),
            pytest.param("Connection: Content-Length|Content-Length: 1", "Content-Length: 1", id="a length stays"),
            pytest.param(
                "Connection: transfer-encoding|Transfer-Encoding: chunked",
                "Transfer-Encoding: chunked",
                id="so a coding",
            ),
            pytest.param(
                WEBSOCKET, "Upgrade: websocket|Sec-WebSocket-Key: x|Connection: Upgrade", id="an offer of WebSocket"
            ),
            pytest.param(
                "Connection: keep-alive, Upgrade|Upgrade: websocket",
                "Upgrade: websocket|Connection: Upgrade",
                id="an offer with keep-alive, as Firefox sends it",
            ),
            pytest.param(
                "Connection: upgrade|Upgrade: WebSocket", "Upgrade: WebSocket|Connection: Upgrade", id="its case"
            ),
            pytest.param("Upgrade: websocket|A: 1", "A: 1", id="an offer that Connection does not list"),
            pytest.param("Upgrade: websocket|Connection: close|A: 1", "A: 1", id="one that lists something else"),
            pytest.param("Upgrade: websocket|Connection: Upgrade|Upgrade: websocket", "", id="WebSocket twice"),
            pytest.param("Upgrade: h2c|Connection: Upgrade|A: 1", "A: 1", id="an offer of h2c"),
            pytest.param(
                "Connection: Upgrade, HTTP2-Settings|Upgrade: H2C|HTTP2-Settings: AAMAAABk|A: 1", "A: 1", id="as it is"
            ),
            pytest.param("Upgrade: h2c|HTTP2-Settings: AAMAAABk|A: 1", "A: 1", id="an offer of h2c, unlisted"),
            pytest.param("Upgrade: h2c, websocket|Connection: Upgrade", "", id="h2c, then WebSocket"),
            pytest.param("Upgrade: websocket, h2c|Connection: Upgrade", "", id="WebSocket, then h2c"),
            pytest.param("Upgrade: websocket|Upgrade: h2c|Connection: Upgrade", "", id="h2c in a second field"),
            pytest.param("Upgrade: TLS/1.0|Connection: Upgrade", "", id="TLS inside HTTP"),
            pytest.param("Upgrade: |Connection: Upgrade", "", id="an empty offer"),
            pytest.param(
                "Connection: Proxy-Authorization|Proxy-Authorization: x", "Proxy-Authorization: x", id="for the gate"
            ),
            pytest.param(
                "Connection: upgrade, x-hop|Upgrade: websocket|X-Hop: 1",
                "Upgrade: websocket|Connection: Upgrade",
                id="an offer with something listed",
            ),
        ],
    )
    def test_they_are_removed_and_all_others_stay_as_they_were(self, sent: str, kept: str) -> None:
        assert without_hop(fields(sent)) == fields(kept)

    def test_in_a_version_without_offers_there_is_none(self) -> None:
        assert without_hop(fields(f"A: 1|{WEBSOCKET}"), may_offer=False) == fields("A: 1|Sec-WebSocket-Key: x")


class TestFraming:
    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            ("", ""),
            ("A: 1|CONTENT-length: 0|B: 2", "A: 1|B: 2"),
            ("Transfer-Encoding: chunked|A: 1|transfer-encoding: chunked", "A: 1"),
            ("Content-Encoding: gzip|Content-Length-X: 1", "Content-Encoding: gzip|Content-Length-X: 1"),
        ],
    )
    def test_what_has_no_body_says_nothing_of_how_long_it_is(self, sent: str, kept: str) -> None:
        assert without_framing(fields(sent)) == fields(kept)


class TestKeepAlive:
    @pytest.mark.parametrize(
        ("is_http11", "sent", "expected"),
        [
            (True, "", True),
            (True, "Connection: keep-alive", True),
            (True, "Connection: close", False),
            (True, "Connection: Close", False),
            (True, "connection: x, CLOSE", False),
            (True, "Connection: keep-alive|Connection: close", False),
            (True, "X: close", True),
            (True, "Connection: closed", True),
            (True, "Keep-Alive: close", True),
            (False, "", False),
            (False, "Connection: Keep-Alive", True),
            (False, "Connection: close", False),
            (False, "Connection: keep-alive, close", False),
        ],
    )
    def test_it_is_as_rfc_9112_says(self, is_http11: bool, sent: str, expected: bool) -> None:
        assert keeps_alive(is_http11, fields(sent)) is expected


class TestVia:
    @pytest.mark.parametrize(
        ("via", "expected"),
        [
            ([], False),
            (["1.1 coat"], True),
            (["1.1 COAT"], True),
            (["1.0 first, HTTP/2 coat:8080 (comment)"], True),
            (["1.0 first", "1.1 coat"], True),
            (["1.1 overcoat"], False),
            (["coat 1.1"], False),
            (["1.1 first (coat)"], False),
        ],
    )
    def test_a_proxy_is_known_by_its_name(self, via: list[str], expected: bool) -> None:
        assert has_come_through(via, "Coat") is expected


class TestTrailers:
    @pytest.mark.parametrize(
        "name", ["X-Sum", "Digest", "Content-Digest", "Repr-Digest", "ETag", "Server-Timing", "grpc-status"]
    )
    def test_what_means_the_same_behind_the_body_goes_on(self, name: str) -> None:
        sent = fields(f"{name}: 1|a: 2")
        assert trailers_to_relay(sent) == sent

    @pytest.mark.parametrize(
        "name",
        [
            *("Host", "Content-Length", "TRANSFER-ENCODING", "Connection", "TE", "Trailer", "Upgrade", "Expect"),
            *("Authorization", "Proxy-Authorization", "Cookie", "set-cookie", "Set-Cookie2", "WWW-Authenticate"),
            *("Content-Type", "Content-Encoding", "Content-Range", "Content-Security-Policy", "Range", "If-Match"),
            *("Cache-Control", "Location", "Refresh", "Origin", "X-Forwarded-For", "Forwarded", "Via"),
            *("Access-Control-Allow-Origin", "Strict-Transport-Security", "Timing-Allow-Origin", "Alt-Svc", "Status"),
            *("Destination", "Front-End-Https", "Early-Data", "Sec-Fetch-Site", "Proxy", "Proxy-Status"),
            *("X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Real-IP", "X-Accel-Redirect"),
            *("Transfer_Encoding", "Content_Length", "x_forwarded_for"),
        ],
    )
    def test_what_says_how_a_message_is_read_does_not_come_so_late(self, name: str) -> None:
        assert trailers_to_relay(fields(f"a: 1|{name}: x|b: 2")) == fields("a: 1|b: 2")

    @pytest.mark.parametrize(
        ("name", "goes_on", "goes_on_apart"),
        [
            ("x-sum", True, True),
            ("my_sum", False, True),  # some readers take `_` for `-`: of which field it would then be part, who knows
            ("content_length", False, False),
            ("x_forwarded_for", False, False),
            ("host", False, False),
        ],
    )
    def test_a_name_with_an_underscore_goes_on_where_no_hop_merges_it(
        self, name: str, goes_on: bool, goes_on_apart: bool
    ) -> None:
        sent = fields(f"{name}: 1")
        assert trailers_to_relay(sent) == (sent if goes_on else ())
        assert trailers_to_relay(sent, stays_apart=True) == (sent if goes_on_apart else ())


class TestMaxForwards:
    @pytest.mark.parametrize(
        ("sent", "kept", "may_go_on"),
        [
            ("A: 1", "A: 1", True),
            ("A: 1|max-forwards: 10|B: 2", "A: 1|max-forwards: 9|B: 2", True),
            ("Max-Forwards: 1", "Max-Forwards: 0", True),
            ("Max-Forwards: 0", "Max-Forwards: 0", False),
            ("Max-Forwards: 00", "Max-Forwards: 00", False),
            ("Max-Forwards: x", "Max-Forwards: x", True),
            ("Max-Forwards: -1", "Max-Forwards: -1", True),
            ("Max-Forwards: 0|Max-Forwards: 5", "Max-Forwards: 0|Max-Forwards: 5", True),
        ],
    )
    def test_each_proxy_takes_one(self, sent: str, kept: str, may_go_on: bool) -> None:
        assert one_forward_less(fields(sent)) == (fields(kept), may_go_on)


@pytest.mark.parametrize(
    ("sent", "is_last"),
    [
        ("", False),
        ("Connection: Upgrade|A: websocket", False),
        ("Upgrade: h2c", False),
        ("Upgrade: H2C , |Upgrade: ", False),
        ("Upgrade: websocket", True),
        ("UPGRADE: h2c, websocket", True),
        ("Upgrade: h2c|A: 1|Upgrade: TLS/1.0", True),
        ("Connection: close", True),
        ("A: 1|Connection: Upgrade, Close|Upgrade: h2c", True),
    ],
)
def test_no_request_is_read_after_one_that_says_so_or_offers_another_protocol(sent: str, is_last: bool) -> None:
    """RFC 9931, section 4.1; of h2c, what would follow is no request (RFC 9113, section 3.4)."""
    assert is_last_request(fields(sent)) is is_last
