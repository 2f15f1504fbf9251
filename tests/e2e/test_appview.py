"""An upgraded app does not notice: redirects, cookies and origins fit the plain http that it speaks.

Proves, at the bytes of both ends, that an app without TLS stays inside the sidecar.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import Answer, RawClient, curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOST = "app.example"
SIBLING, OTHER, SHUT = "www.app.example", "other.example", "shut.example"
SHOP = ("shop.example", "evil.shop.example")
NAMED = ("intranet", "127.0.0.9")  # local ones that a rule names
MakeTls = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    hosts = dict.fromkeys((HOST, SIBLING, OTHER, *SHOP), "127.0.0.1")
    policy = f"""
        rules:
          - {{name: named, hosts: [{", ".join(NAMED)}]}}
          - {{name: shut, hosts: [{SHUT}], plain_http: reject}}
    """
    with Sidecar(policy, tmp_path_factory.mktemp("appview"), authority=authority, hosts=hosts) as running:
        yield running


def answering(tls_upstream: MakeTls, *fields: tuple[str, str], status: int = 200, body: bytes = b"") -> TlsUpstream:
    upstream: TlsUpstream = tls_upstream(HOST, respond=lambda _: wire.response(status, body, headers=fields))
    return upstream


def ask(
    sidecar: Sidecar,
    upstream: TlsUpstream | PlainUpstream,
    path: str = "/",
    more: str = "",
    method: str = "GET",
    host: str = HOST,
) -> Answer:
    with RawClient(sidecar.address) as client:
        url = upstream.url(path, host=host)
        client.send(f"{method} {url} HTTP/1.1\r\nHost: {host}:{upstream.port}\r\n{more}\r\n".encode())
        return client.read_response(method=method)


class TestToTheApp:
    def test_urls_of_upgraded_hosts_are_http(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HOST, respond=self.urls)
        answer = ask(sidecar, upstream, "/here")
        origin = f"http://{HOST}:{upstream.port}"
        assert answer.headers.all("location") == (f"{origin}/there?a=b",)
        assert answer.headers.all("content-location") == ("http://other.example/x",)
        assert answer.headers.all("refresh") == (f"3; url={origin}/r",)
        assert answer.headers.all("link") == (f"<{origin}/l>; rel=next",)
        assert answer.body == f"https://{HOST}/".encode()  # a body is not touched

    def urls(self, request: RecordedRequest) -> bytes:
        origin = f"https://{request.headers.get('host')}"
        fields = (
            ("Location", f"{origin}/there?a=b"),
            ("Content-Location", "https://other.example/x"),
            ("Refresh", f"3; url={origin}/r"),
            ("Link", f"<{origin}/l>; rel=next"),
        )
        return wire.response(302, f"https://{HOST}/".encode(), headers=fields)

    def test_hsts_ends_here(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = answering(tls_upstream, ("Strict-Transport-Security", "max-age=9"), ("X-Kept", "1"))
        answer = ask(sidecar, upstream)
        assert "strict-transport-security" not in answer.headers
        assert answer.headers.get("x-kept") == "1"

    def test_curl_keeps_a_secure_cookie_and_sends_it_back_under_the_servers_name(
        self, sidecar: Sidecar, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = answering(
            tls_upstream,
            ("Set-Cookie", "__Host-sid=1; Path=/; Secure; HttpOnly"),
            ("Set-Cookie", "plain=2; Secure; SameSite=None"),
        )
        jar = tmp_path / "jar"
        for _ in range(2):
            answer = curl("-b", str(jar), "-c", str(jar), upstream.url("/", host=HOST), proxy=sidecar.proxy_url)
            assert answer.status == 200, answer.error
        _, second = upstream.wait_for_requests(2)
        cookies = sorted((second.headers.get("cookie") or "").split("; "))
        assert cookies == ["__Host-sid=1", "plain=2"]

    @pytest.mark.parametrize("to", [HOST, SIBLING, OTHER])
    def test_curl_follows_a_redirect_without_speaking_tls(
        self, sidecar: Sidecar, tls_upstream: MakeTls, to: str
    ) -> None:
        def respond(request: RecordedRequest) -> bytes:
            if request.target == "/there":
                return wire.response(200, b"arrived")
            port = (request.headers.get("host") or "").rpartition(":")[2]
            return wire.response(302, headers=(("Location", f"https://{to}:{port}/there"),))

        upstream = tls_upstream(HOST, to, respond=respond)
        answer = curl("-L", "--proto-redir", "=http", upstream.url("/", host=HOST), proxy=sidecar.proxy_url)
        assert (answer.status, answer.body) == (200, b"arrived"), answer.error
        assert [request.connection.sni for request in upstream.requests] == [HOST, to]

    @pytest.mark.parametrize(
        ("there", "scheme"),
        [
            ("127.0.0.1", "https"),  # the app may have another way to what is local
            ("127.0.0.9", "http"),
            ("[::1]", "https"),
            ("printer", "https"),
            ("intranet", "http"),
            (SHUT, "https"),  # as http it would be refused
            (OTHER, "http"),
        ],
    )
    def test_a_redirect_is_shown_as_http_only_where_the_app_gets_there_by_it(
        self, sidecar: Sidecar, tls_upstream: MakeTls, there: str, scheme: str
    ) -> None:
        upstream = answering(tls_upstream, ("Location", f"https://{there}:8443/a?b"), status=302)
        assert ask(sidecar, upstream).headers.get("location") == f"{scheme}://{there}:8443/a?b"


class TestLoops:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    @pytest.mark.parametrize("body", [b"", b"moved"])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_a_redirect_to_the_same_url_is_cut_with_its_reason(
        self, sidecar: Sidecar, tls_upstream: MakeTls, scheme: str, body: bytes, method: str
    ) -> None:
        def respond(request: RecordedRequest) -> bytes:
            location = f"{scheme}://{request.headers.get('host')}{request.target}"
            whole = wire.response(301, body, headers=(("Location", location),))
            return whole if method == "GET" else whole.removesuffix(body)

        upstream = tls_upstream(HOST, respond=respond)
        answer = ask(sidecar, upstream, "/spin?x", method=method)
        assert answer.status == 508
        assert "location" not in answer.headers
        if method == "GET":
            assert answer.json()["reason"] == "redirect_loop"
        line = sidecar.wait_for_decision(lambda line: line["destination"] == f"{HOST}:{upstream.port}")
        assert (line["action"], line["reason"], line["status"]) == ("deny", "redirect_loop", 508)

    def test_what_is_said_to_head_instead_has_no_body(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        """RFC 9110, section 9.3.2: an app would take one for the next response."""

        def respond(request: RecordedRequest) -> bytes:
            return wire.response(301, headers=(("Location", f"https://{request.headers.get('host')}/spin"),))

        upstream = tls_upstream(HOST, respond=respond)
        with RawClient(sidecar.address) as client:
            url = upstream.url("/spin", host=HOST)
            client.send(f"HEAD {url} HTTP/1.1\r\nHost: {HOST}:{upstream.port}\r\n\r\n".encode())
            client.finish()
            head, _, body = client.read_to_end().partition(wire.END_OF_HEAD)
        assert head.startswith(b"HTTP/1.1 508 ")
        assert body == b""

    def test_the_twin_that_sets_a_cookie_passes(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        def respond(request: RecordedRequest) -> bytes:
            location = f"https://{request.headers.get('host')}{request.target}"
            return wire.response(302, headers=(("Location", location), ("Set-Cookie", "seen=1")))

        upstream = tls_upstream(HOST, respond=respond)
        answer = ask(sidecar, upstream, "/once")
        assert answer.status == 302
        assert answer.headers.get("location") == f"http://{HOST}:{upstream.port}/once"

    @pytest.mark.parametrize("bounce", ["cookies", "hosts"])
    def test_curl_does_not_spin_in_a_circle_that_is_another_each_time(
        self, sidecar: Sidecar, tls_upstream: MakeTls, bounce: str
    ) -> None:
        def respond(request: RecordedRequest) -> bytes:
            host = request.headers.get("host") or ""
            to = host.replace("app.", "other.") if "app." in host else host.replace("other.", "app.")
            fields = (("Location", f"http://{to if bounce == 'hosts' else host}/"),)
            number = str(len(upstream.requests))
            return wire.response(302, headers=(*fields, ("Set-Cookie", f"sticky={number}"), ("X-Number", number)))

        upstream = tls_upstream(HOST, "other.example", respond=respond)
        answer = curl("-L", "--max-redirs", "40", upstream.url("/", host=HOST), proxy=sidecar.proxy_url)
        assert (answer.status, answer.json()["reason"]) == (508, "redirect_loop"), answer.error
        assert "x-number" not in answer.headers
        assert len(upstream.requests) < 20


class TestToTheServer:
    def test_origins_and_proxy_fields_say_https(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        upstream = answering(tls_upstream)
        origin = f"{HOST}:{upstream.port}"
        more = (
            f"Origin: http://{origin}\r\nReferer: http://{origin}/page?q\r\nX-Forwarded-Proto: http\r\n"
            "Forwarded: for=10.0.0.1;proto=http\r\nCookie: a=1; __Secure-b=2\r\n"
        )
        ask(sidecar, upstream, "/", more)
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("origin") == f"https://{origin}"
        assert got.headers.get("referer") == f"https://{origin}/page?q"
        assert got.headers.get("x-forwarded-proto") == "https"
        assert got.headers.get("forwarded") == "for=10.0.0.1;proto=https"
        assert got.headers.get("cookie") == "a=1; __Secure-b=2"

    @pytest.mark.parametrize(
        ("origin", "told"),
        [
            ("http://www.other.example", "https://www.other.example"),
            ("http://localhost:3000", "http://localhost:3000"),  # a developer's server, which speaks no https
        ],
    )
    def test_what_is_granted_to_another_upgraded_origin_is_granted_to_it_as_the_app_wrote_it(
        self, sidecar: Sidecar, tls_upstream: MakeTls, origin: str, told: str
    ) -> None:
        def respond(request: RecordedRequest) -> bytes:
            return wire.response(200, headers=(("Access-Control-Allow-Origin", request.headers.get("origin") or ""),))

        upstream = tls_upstream(HOST, respond=respond)
        answer = ask(sidecar, upstream, more=f"Origin: {origin}\r\n")
        assert upstream.requests[0].headers.get("origin") == told
        assert answer.headers.get("access-control-allow-origin") == origin


def test_what_is_not_upgraded_is_not_touched(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    upstream = answering(
        tls_upstream,
        ("Location", f"https://{HOST}/"),
        ("Set-Cookie", "a=b; Secure"),
        ("Strict-Transport-Security", "x"),
    )
    policy = "defaults: {https: inspect}"
    with Sidecar(policy, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar:
        answer = curl(upstream.url("/", scheme="https", host=HOST), proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
    assert answer.headers.get("location") == f"https://{HOST}/"
    assert answer.headers.get("set-cookie") == "a=b; Secure"
    assert answer.headers.get("strict-transport-security") == "x"


class TestStrictTransportSecurity:
    POLICY = "defaults: {plain_http: allow}\nrules: [{name: up, hosts: [first.example], plain_http: upgrade}]"
    HOSTS = {"first.example": "127.0.0.1", "sub.first.example": "127.0.0.1", "other.example": "127.0.0.1"}  # noqa: RUF012  # never changed

    def test_what_one_response_says_holds_for_later_requests(self, authority: Authority, tmp_path: Path) -> None:
        def respond(request: RecordedRequest) -> bytes:
            return (
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
                b"Strict-Transport-Security: max-age=600; includeSubDomains\r\n\r\n"
            )

        with (
            TlsUpstream(authority, *self.HOSTS, respond=respond) as secure,
            PlainUpstream() as plain,
            Sidecar(self.POLICY, tmp_path, authority=authority, hosts=self.HOSTS) as sidecar,
        ):
            # Before anything was learned, the policy lets it pass, and from plain http nothing is learned.
            assert ask(sidecar, plain, host="sub.first.example").status == 200
            answer = ask(sidecar, secure, host="first.example")
            assert answer.headers.get("strict-transport-security") is None  # the app could not keep to it
            assert ask(sidecar, secure, host="sub.first.example").status == 200
            assert ask(sidecar, plain, host="other.example").status == 200
            actions = [line["action"] for line in sidecar.wait_for_decisions(4)]
        assert actions == ["allow", "upgrade", "upgrade", "allow"]
        assert len(secure.requests) == 2

    def test_an_upgrade_that_only_that_asks_for_says_so_where_it_fails(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        fields = (("Strict-Transport-Security", "max-age=600"), ("Alt-Svc", 'h3=":443"'))
        policy = "defaults: {plain_http: allow, https: inspect}"
        with (
            TlsUpstream(authority, *self.HOSTS, respond=lambda _: wire.response(200, headers=fields)) as secure,
            PlainUpstream() as plain,
            Sidecar(policy, tmp_path, authority=authority, hosts=self.HOSTS) as sidecar,
        ):
            assert ask(sidecar, plain, host="first.example").status == 200
            answer = curl(
                secure.url("/", scheme="https", host="first.example"), proxy=sidecar.proxy_url, ca_file=sidecar.ca_file
            )
            assert (answer.status, "alt-svc" in answer.headers) == (200, False)  # which would lead past the sidecar
            denied = ask(sidecar, plain, host="first.example").json()
        assert denied["reason"] == "tls_failed"
        assert denied["detail"].endswith("since its Strict-Transport-Security says https only")

    def test_the_browsers_list_counts_where_the_policy_says_so(self, authority: Authority, tmp_path: Path) -> None:
        host = "www.paypal.com"
        for preload, reason in ((False, "allow"), (True, "upgrade")):
            policy = f"defaults: {{plain_http: allow}}\nhsts_preload: {str(preload).lower()}"
            with (
                PlainUpstream() as plain,
                Sidecar(policy, tmp_path, authority=authority, hosts={host: "127.0.0.1"}) as sidecar,
            ):
                status = ask(sidecar, plain, host=host).status
                assert sidecar.wait_for_decisions(1)[0]["action"] in (reason, "deny")
                assert status == (502 if preload else 200)  # the plain server speaks no TLS
                assert len(plain.requests) == (0 if preload else 1)


class TestSecureCookies:
    """What a server said is for https only never leaves in plain text, and nobody else can set it."""

    HOSTS = {"api.site.example": "127.0.0.1", "plain.site.example": "127.0.0.1"}  # noqa: RUF012  # never changed
    POLICY = "rules: [{name: plain, hosts: [plain.site.example], plain_http: allow}]"

    @pytest.fixture
    def sidecar(self, authority: Authority, tmp_path: Path) -> Iterator[Sidecar]:
        with Sidecar(self.POLICY, tmp_path, authority=authority, hosts=self.HOSTS) as running:
            yield running

    def test_they_go_back_over_tls_only(self, sidecar: Sidecar, authority: Authority, tmp_path: Path) -> None:
        jar = str(tmp_path / "jar")
        cookies = (
            ("Set-Cookie", "sid=SECRET; Domain=site.example; Secure"),
            ("Set-Cookie", "__Secure-t=SECRET; Domain=site.example; Secure"),
            ("Set-Cookie", "lang=en; Domain=site.example"),
        )
        with (
            TlsUpstream(authority, *self.HOSTS, respond=lambda _: wire.response(200, headers=cookies)) as secure,
            PlainUpstream() as plain,
        ):
            for upstream, host in ((secure, "api"), (plain, "plain"), (secure, "api")):
                url = upstream.url("/", host=f"{host}.site.example")
                assert curl("-b", jar, "-c", jar, url, proxy=sidecar.proxy_url).status == 200
            sent = set((secure.requests[1].headers.get("cookie") or "").split("; "))
            assert sent == {"sid=SECRET", "__Secure-t=SECRET", "lang=en"}
            assert plain.requests[0].headers.get("cookie") == "lang=en"
            assert b"SECRET" not in plain.received

    @pytest.mark.parametrize("over", ["tls", "plain"])
    def test_nobody_else_can_set_one(self, sidecar: Sidecar, authority: Authority, tmp_path: Path, over: str) -> None:
        jar = str(tmp_path / "jar")
        with TlsUpstream(
            authority,
            *self.HOSTS,
            respond=lambda _: wire.response(200, headers=(("Set-Cookie", "__Host-sid=1; Path=/; Secure"),)),
        ) as secure:
            url = secure.url("/", host="api.site.example")
            curl("-b", jar, "-c", jar, url, proxy=sidecar.proxy_url)
            mark = next(word for word in Path(jar).read_text().split() if word.startswith("_oc")).removesuffix(
                "__Host-sid"
            )
        forged = (
            ("Set-Cookie", f"{mark}__Host-sid=evil; Domain=site.example"),
            ("Set-Cookie", "__Host-sid=evil; Domain=site.example; Secure; Path=/"),
            ("Set-Cookie", "__Secure-sid=evil; Domain=site.example"),
            ("Set-Cookie", "ok=1"),
        )
        made = {
            "tls": lambda: TlsUpstream(authority, *self.HOSTS, respond=lambda _: wire.response(200, headers=forged))
        }
        made["plain"] = lambda: PlainUpstream(respond=lambda _: wire.response(200, headers=forged))  # type: ignore[assignment,return-value]  # either
        with made[over]() as upstream:
            host = "api" if over == "tls" else "plain"
            answer = curl(upstream.url("/", host=f"{host}.site.example"), proxy=sidecar.proxy_url)
        cookies = answer.headers.all("set-cookie")
        assert cookies == ("ok=1",)

    def test_a_logout_ends_the_session(self, sidecar: Sidecar, authority: Authority, tmp_path: Path) -> None:
        jar = str(tmp_path / "jar")
        answers = ["sid=1; Path=/; Secure", "sid=; Path=/; Max-Age=0", "other=1"]

        def respond(_: object) -> bytes:
            return wire.response(200, headers=(("Set-Cookie", answers.pop(0)),))

        with TlsUpstream(authority, *self.HOSTS, respond=respond) as secure:
            for _ in range(3):
                url = secure.url("/", host="api.site.example")
                assert curl("-b", jar, "-c", jar, url, proxy=sidecar.proxy_url).status == 200
            assert [request.headers.get("cookie") for request in secure.requests] == [None, "sid=1", None]


class TestCookiesWhereNoPlainHttpPasses:
    """Nothing could leave in plain text, so that only names which no jar would take without Secure are changed."""

    COOKIES = (
        ("Set-Cookie", "csrftoken=1; Path=/; Secure"),
        ("Set-Cookie", "__Host-sid=2; Path=/; Secure"),
        ("Set-Cookie", "__Secure-id=3; Secure"),
    )

    def test_a_script_finds_a_secure_cookie_by_its_name(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        kept, *marked = ask(sidecar, answering(tls_upstream, *self.COOKIES)).headers.all("set-cookie")
        assert kept == "csrftoken=1; Path=/"
        assert [re.sub(r"^_oc[0-9a-f]{16}_", "_oc_", cookie) for cookie in marked] == [
            "_oc___Host-sid=2; Path=/",
            "_oc___Secure-id=3",
        ]

    def test_the_twin_with_one_host_that_lets_it_pass_marks_all(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        policy = "rules: [{name: plain, hosts: [plain.example], plain_http: allow}]"
        with Sidecar(policy, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar:
            kept, *_ = ask(sidecar, answering(tls_upstream, *self.COOKIES)).headers.all("set-cookie")
        assert re.fullmatch(r"_oc[0-9a-f]{16}_csrftoken=1; Path=/", kept)

    @pytest.mark.parametrize("jar", ["curl", "http.cookiejar"])
    def test_a_jar_gives_them_all_back_as_the_server_set_them(
        self, sidecar: Sidecar, tls_upstream: MakeTls, tmp_path: Path, jar: str
    ) -> None:
        upstream = answering(tls_upstream, *self.COOKIES)
        url = upstream.url("/", host=HOST)
        file = str(tmp_path / "jar")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": sidecar.proxy_url}), urllib.request.HTTPCookieProcessor()
        )
        for _ in range(2):
            if jar == "curl":
                assert curl("-b", file, "-c", file, url, proxy=sidecar.proxy_url).status == 200
            else:
                assert opener.open(url, timeout=10).status == 200
        first, second = (request.headers.get("cookie") for request in upstream.requests)
        assert first is None
        assert set((second or "").split("; ")) == {"csrftoken=1", "__Host-sid=2", "__Secure-id=3"}

    @pytest.mark.parametrize("own", ["__Host-sid=good; Path=/; Secure", "lang=en"])
    def test_a_sibling_cannot_set_what_only_the_host_itself_can(
        self, sidecar: Sidecar, authority: Authority, roots: Path, tmp_path: Path, own: str
    ) -> None:
        """Through a tunnel, a sibling sees the names that the jar has, and sets any; so it learns its domain's mark."""
        shop, evil = SHOP

        def respond(request: RecordedRequest) -> bytes:
            if (request.headers.get("host") or "").startswith(shop):
                return wire.response(200, headers=(("Set-Cookie", own),))
            learned = re.search(r"(_oc[0-9a-f]{16}_)__Secure-t=1", request.headers.get("cookie") or "")
            if learned is None:
                cookies: tuple[str, ...] = ("__Secure-t=1; Domain=shop.example; Secure",)
            else:
                cookies = (f"{learned[1]}__Host-sid=evil; Domain=shop.example", f"{learned[1]}b=2; Domain=shop.example")
            return wire.response(200, headers=tuple(("Set-Cookie", cookie) for cookie in cookies))

        jar = str(tmp_path / "jar")
        with TlsUpstream(authority, *SHOP, respond=respond) as upstream:
            for scheme, host in (("http", shop), ("http", evil), ("https", evil), ("http", shop)):
                url = upstream.url("/", scheme=scheme, host=host)
                assert curl("-b", jar, "-c", jar, url, proxy=sidecar.proxy_url, ca_file=roots).status == 200
            assert "__Host-sid\tevil" in Path(jar).read_text()  # the jar has taken it
            # What a sibling could set without us, it can; but no name that only the host itself may give.
            seen = set((upstream.requests[-1].headers.get("cookie") or "").split("; "))
        assert seen == {own.partition(";")[0], "__Secure-t=1", "b=2"}


class TestPages:
    def test_a_browser_gets_a_page_and_an_app_problem_details(self, authority: Authority, tmp_path: Path) -> None:
        policy = "rules: [{name: shut, hosts: [shut.example], plain_http: reject}]"
        with Sidecar(policy, tmp_path, authority=authority) as sidecar:
            url = "http://shut.example/"
            page = curl("-H", "Accept: text/html,application/xhtml+xml,*/*;q=0.8", url, proxy=sidecar.proxy_url)
            details = curl(url, proxy=sidecar.proxy_url)
        assert page.status == details.status == 403
        assert page.headers.get("content-type") == "text/html; charset=utf-8"
        assert page.headers.get("content-security-policy") == "default-src 'none'; style-src 'unsafe-inline'"
        assert page.headers.get("proxy-status") == details.headers.get("proxy-status")
        assert b"rule shut rejects plain http to shut.example:80" in page.body
        assert b"plain_http_rejected" in page.body
        assert details.headers.get("content-type") == "application/problem+json"


class TestWhatElseAnUpgradedAppDoes:
    def test_a_websocket_is_opened_over_tls_and_its_close_code_survives(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        identity = authority.issue(HOST)
        (tmp_path / "server.pem").write_bytes(identity.key_pem + b"".join(identity.chain_pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        received: list[bytes] = []
        hello, close = b"\x82\x05hello", b"\x88\x02\x0f\xa1"  # a binary message; the close code 4001

        def serve(listener: socket.socket) -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as server:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += server.recv(65536)
                received.append(head)
                server.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                received.append(server.recv(65536))
                server.sendall(hello + close)
                received.append(server.recv(65536))

        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = threading.Thread(target=serve, args=(listener,), daemon=True)
            serving.start()
            name = f"{HOST}:{listener.getsockname()[1]}"
            with (
                Sidecar("mode: enforce", tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}) as sidecar,
                RawClient(sidecar.address) as client,
            ):
                client.send(
                    f"GET http://{name}/chat HTTP/1.1\r\nHost: {name}\r\nOrigin: http://{name}\r\n"
                    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
                )
                assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
                masked = b"\x82\x85\x01\x02\x03\x04ighhn"
                client.send(masked)
                assert client.read_exactly(len(hello + close)) == hello + close
                answer = b"\x88\x82\x01\x02\x03\x04\x0e\xa3"
                client.send(answer)
                client.read_to_end()
            serving.join(5)
        assert f"Origin: https://{name}\r\n".encode() in received[0]
        assert received[1:] == [masked, answer]

    def test_ranges_pass_both_ways(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        def respond(request: RecordedRequest) -> bytes:
            assert request.headers.get("range") == "bytes=2-4"
            return wire.response(206, b"234", headers=(("Content-Range", "bytes 2-4/10"),))

        answer = ask(sidecar, tls_upstream(HOST, respond=respond), more="Range: bytes=2-4\r\n")
        assert (answer.status, answer.body, answer.headers.get("content-range")) == (206, b"234", "bytes 2-4/10")

    def test_server_sent_events_come_as_they_are_sent(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        go_on = threading.Event()

        def respond(_: RecordedRequest) -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
            assert go_on.wait(10)
            yield b"data: 2\n\n"

        upstream = tls_upstream(HOST, respond=respond)
        with RawClient(sidecar.address) as client:
            name = f"{HOST}:{upstream.port}"
            client.send(f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            client.read_until(b"data: 1\n\n")
            go_on.set()
            client.read_until(b"data: 2\n\n")

    def test_trailers_go_through_on_both_sides(self, sidecar: Sidecar, tls_upstream: MakeTls) -> None:
        chunked = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"

        def respond(_: RecordedRequest) -> bytes:
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n" + chunked

        upstream = tls_upstream(HOST, respond=respond)
        with RawClient(sidecar.address) as client:
            name = f"{HOST}:{upstream.port}"
            head = f"POST http://{name}/ HTTP/1.1\r\nHost: {name}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            for _ in range(2):  # and the connection goes on
                client.send(head + chunked)
                answer = client.read_response()
                assert (answer.status, answer.body, answer.trailers.get("x-sum")) == (200, b"hello", "1")
        assert [(request.body, request.trailers.get("x-sum")) for request in upstream.requests] == [(b"hello", "1")] * 2
