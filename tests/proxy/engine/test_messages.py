"""Between the wire and mitmproxy's messages: targets, fields that end here, and heads.

Proves ARCHITECTURE's rule 4: the destination is what the target says, read by one parser.
"""

from __future__ import annotations

import pytest
from mitmproxy import http

from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.http.heads import read_request_head, read_response_head
from proxy.core.reasons import Reason
from proxy.engine.messages import (
    authenticates_connection,
    headers_of,
    request_head,
    request_of,
    response_head,
    response_of,
)

INSIDE = Destination("api.example", 8443)


def request(
    line: str, *, inside: Destination | None = None, is_tls: bool = False, fields: str = "Host: api.example\r\n"
) -> http.Request:
    return request_of(read_request_head(f"{line}\r\n{fields}\r\n".encode("latin-1")), inside, is_tls=is_tls)


def test_headers_are_as_mitmproxy_makes_them() -> None:
    fields = ((b"Host", b"a"), (b"x", b"1"), (b"X", b"2"))
    made, theirs = headers_of(fields), http.Headers(fields)
    assert made == theirs
    assert vars(made) == vars(theirs)  # nothing that their constructor sets is missing


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "scheme", "host", "port", "path"),
        [
            ("http://api.example/v1?q=1", "http", "api.example", 80, "/v1?q=1"),
            ("http://api.example", "http", "api.example", 80, "/"),
            ("http://api.example/", "http", "api.example", 80, "/"),
            ("http://api.example?q=/a", "http", "api.example", 80, "/?q=/a"),
            ("http://api.example:8080/a", "http", "api.example", 8080, "/a"),
            ("http://api.example:/a", "http", "api.example", 80, "/a"),
            ("https://api.example/a", "https", "api.example", 443, "/a"),
            ("https://api.example:80/a", "https", "api.example", 80, "/a"),
            ("HTTP://API.Example./a", "http", "api.example", 80, "/a"),
            ("ws://api.example/a", "http", "api.example", 80, "/a"),
            ("WSS://api.example:8443/a", "https", "api.example", 8443, "/a"),
            ("http://[::1]:81/a", "http", "::1", 81, "/a"),
            ("http://[::ffff:192.0.2.1]/a", "http", "192.0.2.1", 80, "/a"),
            ("http://api.example/http://other.example/", "http", "api.example", 80, "/http://other.example/"),
            ("http://api.example/%2e%2e//a;b?c=%00", "http", "api.example", 80, "/%2e%2e//a;b?c=%00"),
            ("http://xn--bcher-kva.example/", "http", "xn--bcher-kva.example", 80, "/"),
        ],
    )
    def test_an_absolute_target_names_the_destination(
        self, target: str, scheme: str, host: str, port: int, path: str
    ) -> None:
        made = request(f"GET {target} HTTP/1.1")
        assert (made.scheme, made.data.host, made.data.port, made.path) == (scheme, host, port, path)
        assert made.data.authority == b""  # which is how mitmproxy knows the origin form
        assert (made.method, made.http_version, made.data.content, made.stream) == ("GET", "HTTP/1.1", None, False)

    @pytest.mark.parametrize(
        ("target", "path"),
        [("", "*"), ("/", "/"), ("?a", "/?a"), ("/*", "/*")],
        ids=["server", "root", "query", "path"],
    )
    def test_the_options_of_a_server_are_asked_for_by_an_asterisk(self, target: str, path: str) -> None:
        assert request(f"OPTIONS http://api.example{target} HTTP/1.1").path == path

    def test_connect_names_it_by_its_authority(self) -> None:
        made = request("CONNECT API.example:443 HTTP/1.1")
        assert (made.method, made.data.host, made.data.port, made.data.path) == ("CONNECT", "api.example", 443, b"")
        assert made.data.authority == b"API.example:443"

    @pytest.mark.parametrize(("is_tls", "scheme"), [(True, "https"), (False, "http")])
    @pytest.mark.parametrize("target", ["/v1?q=1", "*"])
    def test_inside_connect_the_destination_is_that_of_connect(self, target: str, is_tls: bool, scheme: str) -> None:
        made = request(f"OPTIONS {target} HTTP/1.1", inside=INSIDE, is_tls=is_tls)
        assert (made.scheme, made.data.host, made.data.port, made.path) == (scheme, "api.example", 8443, target)

    def test_an_absolute_target_inside_connect_keeps_its_authority_to_be_compared(self) -> None:
        made = request("GET https://other.example:1/a HTTP/1.1", inside=INSIDE, is_tls=True)
        assert (made.data.host, made.data.port, made.data.authority) == ("api.example", 8443, b"other.example:1")
        assert made.path == "/a"

    @pytest.mark.parametrize(("scheme", "is_tls"), [("https", False), ("wss", False), ("http", True), ("ws", True)])
    def test_one_that_names_another_scheme_is_refused(self, scheme: str, is_tls: bool) -> None:
        line = f"GET {scheme}://api.example:8443/a HTTP/1.1"
        with pytest.raises(Denied, match="another scheme") as caught:
            request(line, inside=INSIDE, is_tls=is_tls)
        assert caught.value.reason is Reason.BAD_REQUEST
        spoken = "http" if is_tls else "https"
        assert request(line, inside=INSIDE, is_tls=not is_tls).scheme == spoken
        head = read_request_head(f"{line}\r\nHost: a\r\n\r\n".encode())
        assert request_of(head, INSIDE, is_tls=is_tls, any_scheme=True).scheme != spoken

    def test_the_version_is_the_apps(self) -> None:
        assert request("GET http://a.example/ HTTP/1.0", fields="").http_version == "HTTP/1.0"

    @pytest.mark.parametrize(
        ("target", "inside", "is_tls", "value"),
        [
            ("http://API.example/a", None, False, b"api.example"),
            ("http://api.example:80/a", None, False, b"api.example"),
            ("http://api.example:443/a", None, False, b"api.example:443"),
            ("http://[::1]:81/a", None, False, b"[::1]:81"),
            ("http://[::1]/a", None, False, b"[::1]"),
            ("https://api.example/a", None, False, b"api.example"),
            ("/a", INSIDE, True, b"api.example:8443"),
            ("/a", Destination("api.example", 443), True, b"api.example"),
            ("/a", Destination("api.example", 443), False, b"api.example:443"),
        ],
    )
    def test_a_request_of_http_1_0_without_host_is_given_one(
        self, target: str, inside: Destination | None, is_tls: bool, value: bytes
    ) -> None:
        made = request(f"GET {target} HTTP/1.0", inside=inside, is_tls=is_tls, fields="X: 1\r\n")
        assert made.headers.fields == ((b"Host", value), (b"X", b"1"))

    @pytest.mark.parametrize(("version", "kept"), [("1.0", False), ("1.1", True)])
    def test_a_request_of_http_1_0_expects_nothing(self, version: str, kept: bool) -> None:
        made = request(
            f"POST http://api.example/a HTTP/{version}", fields="Host: api.example\r\nEXPECT: 100-continue\r\n"
        )
        assert ("expect" in made.headers) is kept

    def test_one_that_has_it_keeps_it_as_it_is(self) -> None:
        made = request("GET http://api.example/a HTTP/1.0", fields="X: 1\r\nhOST: API.example:80\r\n")
        assert made.headers.fields == ((b"X", b"1"), (b"hOST", b"API.example:80"))

    @pytest.mark.parametrize(
        "line",
        [
            "GET ftp://api.example/canary HTTP/1.1",
            "GET wsx://api.example/canary HTTP/1.1",
            "GET http:/api.example/canary HTTP/1.1",
            "GET http HTTP/1.1",
            "GET http:///canary HTTP/1.1",
            "GET http://:80/canary HTTP/1.1",
            "GET http://api.example:0/canary HTTP/1.1",
            "GET http://api.example:65536/ HTTP/1.1",
            "GET http://api.example:canary/ HTTP/1.1",
            "GET http://user:canary@api.example/ HTTP/1.1",
            "GET http://-canary.example/ HTTP/1.1",
            "GET http://0x7f.1/canary HTTP/1.1",
            "GET http://api.example\\@other.example/canary HTTP/1.1",
            "GET canary HTTP/1.1",
            "GET api.example:80 HTTP/1.1",
            "CONNECT api.example HTTP/1.1",
            "CONNECT api.example:443/canary HTTP/1.1",
            "CONNECT https://api.example:443 HTTP/1.1",
            "CONNECT /canary HTTP/1.1",
            "CONNECT * HTTP/1.1",
        ],
    )
    def test_any_other_target_is_refused_and_never_quoted(self, line: str) -> None:
        with pytest.raises(Denied) as caught:
            request(line)
        assert caught.value.reason is Reason.BAD_REQUEST
        assert caught.value.detail.startswith("the request target is not valid")
        assert "canary" not in repr(caught.value) + caught.value.detail + (caught.value.hint or "")

    def test_a_connect_inside_connect_is_refused(self) -> None:
        with pytest.raises(Denied) as caught:
            request("CONNECT api.example:443 HTTP/1.1", inside=INSIDE, is_tls=True)
        assert caught.value.reason is Reason.BAD_REQUEST

    @pytest.mark.parametrize("method", ["connect", "Connect"])
    def test_nor_is_it_one_in_other_letters(self, method: str) -> None:
        with pytest.raises(Denied, match="upper-case") as caught:
            request(f"{method} http://api.example/ HTTP/1.1")
        assert caught.value.reason is Reason.BAD_REQUEST

    def test_a_connect_of_http_1_0_needs_no_host_field(self) -> None:
        made = request("CONNECT api.example:443 HTTP/1.0", fields="")
        assert (made.host, made.port, made.headers.fields) == ("api.example", 443, ())

    @pytest.mark.parametrize("target", ["/canary", "*"])
    def test_a_request_that_is_not_for_a_proxy_is_refused(self, target: str) -> None:
        with pytest.raises(Denied) as caught:
            request(f"OPTIONS {target} HTTP/1.1")
        assert caught.value.reason is Reason.BAD_REQUEST
        assert "names no host" in caught.value.detail
        assert "canary" not in caught.value.detail


class TestHeads:
    def test_a_request_is_made_without_them(self) -> None:
        made = request("GET http://a.example/ HTTP/1.1", fields="Host: a.example\r\nConnection: x\r\nX: 1\r\nY: 2\r\n")
        assert made.headers.fields == ((b"Host", b"a.example"), (b"Y", b"2"))

    def test_a_responses_head_has_its_fields_as_they_came(self) -> None:
        response = http.Response(
            b"HTTP/1.0", 299, b"Fi\xe9ne", http.Headers(((b"a", b"1"), (b"A", b"\xe9 "))), None, None, 0, None
        )
        assert response_head(response, is_closing=False) == b"HTTP/1.1 299 Fi\xe9ne\r\na: 1\r\nA: \xe9 \r\n\r\n"

    def test_a_last_response_says_so(self) -> None:
        response = http.Response(b"HTTP/1.1", 204, b"", http.Headers(), None, None, 0, None)
        assert response_head(response, is_closing=True) == b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n"

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    def test_a_response_keeps_its_version(self, version: str) -> None:
        head = read_response_head(f"HTTP/{version} 200 OK\r\nX: 1\r\n\r\n".encode())
        assert response_of(head, head.fields).http_version == f"HTTP/{version}"

    @pytest.mark.parametrize(
        ("asked", "answered", "is_of_the_connection"),
        [
            ("Authorization: Negotiate abc\r\n", "", True),
            ("Authorization:  NTLM abc\r\n", "", True),
            ("Authorization: Basic abc\r\nAuthorization: ntlm abc\r\n", "", True),
            ("", "WWW-Authenticate: NTLM\r\n", True),
            ("", "WWW-Authenticate: Basic\r\nWWW-Authenticate: Negotiate\r\n", True),
            ("Authorization: Basic abc\r\n", "WWW-Authenticate: Basic\r\n", False),
            ("", "", False),
        ],
    )
    def test_some_credentials_are_those_of_the_connection(
        self, asked: str, answered: str, is_of_the_connection: bool
    ) -> None:
        made = request("GET http://a.example/ HTTP/1.1", fields=f"Host: a.example\r\n{asked}")
        head = read_response_head(f"HTTP/1.1 401 Unauthorized\r\n{answered}\r\n".encode())
        assert authenticates_connection(made, response_of(head, head.fields)) is is_of_the_connection
        assert authenticates_connection(made, None) is (is_of_the_connection and not answered)

    def test_a_requests_head_is_in_origin_form_and_http_1_1(self) -> None:
        made = request("PUT http://a.example:81/b?c HTTP/1.0", fields="hOST: a.example:81\r\nX: 1\r\nx:2\r\n")
        assert request_head(made) == b"PUT /b?c HTTP/1.1\r\nhOST: a.example:81\r\nX: 1\r\nx: 2\r\n\r\n"
