"""The clients of the harness, without the product: curl, urllib and the raw socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl, urllib_request
from tests.e2e.upstream import PlainUpstream, TlsUpstream

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

MakeTls = Callable[..., TlsUpstream]


class TestClients:
    @pytest.fixture
    def proxy(self, plain_upstream: PlainUpstream) -> str:
        """A plain upstream in the place of a proxy sees what the client sends to one."""
        return f"http://127.0.0.1:{plain_upstream.port}"

    def test_curl_asks_the_proxy_and_reports_all_parts_of_the_answer(
        self, plain_upstream: PlainUpstream, proxy: str
    ) -> None:
        answer = curl("-d", "{}", "http://api.pay.example:8443/v1", proxy=proxy)
        assert answer.exit_status == 0, answer.error
        assert (answer.status, answer.headers.get("content-type")) == (200, "application/json")
        assert answer.json()["target"] == "http://api.pay.example:8443/v1"
        assert plain_upstream.requests[0].body == b"{}"

    def test_curl_trusts_the_given_authority_and_no_other(
        self, tls_upstream: MakeTls, roots: Path, tmp_path: Path
    ) -> None:
        upstream = tls_upstream()
        assert curl(upstream.url(scheme="https"), ca_file=roots).status == 200
        stranger = Authority().write_pem(tmp_path / "stranger.pem")
        refused = curl(upstream.url(scheme="https"), ca_file=stranger)
        assert (refused.status, refused.exit_status) == (0, 60)
        assert len(upstream.requests) == 1

    def test_urllib_asks_the_proxy_from_its_environment(self, plain_upstream: PlainUpstream, proxy: str) -> None:
        answer = urllib_request("http://api.pay.example/v1", proxy=proxy, body=b"\x00{}", headers={"X-One": "1"})
        assert answer.status == 200, answer.error
        (request,) = plain_upstream.requests
        assert (request.method, request.target, request.body) == ("POST", "http://api.pay.example/v1", b"\x00{}")
        assert request.headers.get("x-one") == "1"

    def test_urllib_trusts_the_given_authority_and_no_other(
        self, tls_upstream: MakeTls, roots: Path, tmp_path: Path
    ) -> None:
        upstream = tls_upstream()
        assert urllib_request(upstream.url(scheme="https"), ca_file=roots).status == 200
        stranger = Authority().write_pem(tmp_path / "stranger.pem")
        refused = urllib_request(upstream.url(scheme="https"), ca_file=stranger)
        assert refused.exit_status != 0
        assert "CERTIFICATE_VERIFY_FAILED" in refused.error

    def test_an_error_status_is_an_answer_for_both(self) -> None:
        denial = wire.response(403, b'{"reason": "plain_http_rejected"}')
        with PlainUpstream(respond=lambda _: denial) as upstream:
            for answer in (curl(upstream.url()), urllib_request(upstream.url())):
                assert (answer.status, answer.json()["reason"]) == (403, "plain_http_rejected")

    def test_no_proxy_variable_of_this_machine_reaches_them(
        self, plain_upstream: PlainUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "*")
        assert curl(plain_upstream.url()).status == 200
        assert urllib_request(plain_upstream.url()).status == 200

    def test_a_raw_client_leaves_what_follows_to_be_read(self) -> None:
        bodies = [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nto the end",
        ]
        with PlainUpstream(respond=lambda _: b"".join(bodies)) as upstream:
            with RawClient((upstream.address, upstream.port)) as client:
                client.send(GET)
                assert client.read_response().body == b"a"
                assert client.read_response().status == 204
                assert client.read_until(b"\r\n") == b"HTTP/1.0 200 OK\r\n"
            with RawClient((upstream.address, upstream.port)) as client:
                client.send(b"HEAD / HTTP/1.1\r\n\r\n")
                assert client.read_response(method="HEAD").body == b""
