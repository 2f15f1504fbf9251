"""Heads in stock mitmproxy are held to the core's rules, whatever it has taken (ARCHITECTURE.md, rule 1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mitmproxy import connection, http
from mitmproxy import flow as mitmproxy_flow

from addons.stock.flows import StockSessions
from addons.stock.heads import Heads
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Limits, Policy

Fields = tuple[tuple[bytes, bytes], ...]
HOST = (b"Host", b"api.example")


class Setting:
    """The addon, and a client connection."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.sessions = StockSessions()
        self.heads = Heads(self.sessions)
        self.client = connection.Client(peername=("127.0.0.1", 5), sockname=("127.0.0.1", 8080))
        self.sessions.open(self.client, policy or Policy())

    def flow(
        self,
        fields: Fields = (HOST,),
        *,
        version: bytes = b"HTTP/1.1",
        authority: bytes = b"",
        method: bytes = b"POST",
        path: bytes = b"/",
    ) -> http.HTTPFlow:
        flow = http.HTTPFlow(self.client, connection.Server(address=None))
        headers = http.Headers(fields)
        parts = (method, b"https" if version == b"HTTP/2.0" else b"http", authority, path, version)
        flow.request = http.Request("api.example", 80, *parts, headers, None, None, 0.0, None)
        return flow

    def reason(self, flow: http.HTTPFlow) -> Reason | None:
        denied = self.sessions.exchange(flow).denied
        assert (denied is None) == (flow.response is None)
        return denied.reason if denied else None


class TestRequests:
    @pytest.mark.parametrize(
        "fields",
        [
            (HOST, HOST),
            (),
            (HOST, (b"X", b"a\r\n b")),
            (HOST, (b"X", b"a\nb")),
            (HOST, (b"X Y", b"a")),
            (HOST, (b"Content-Length", b"+2")),
            (HOST, (b"Content-Length", b"2"), (b"Transfer-Encoding", b"chunked")),
            (HOST, (b"Transfer-Encoding", b"gzip, chunked")),
        ],
    )
    def test_what_can_be_read_in_two_ways_is_refused(self, fields: Fields) -> None:
        setting = Setting()
        flow = setting.flow(fields)
        setting.heads.requestheaders(flow)
        assert setting.reason(flow) is Reason.BAD_REQUEST

    def test_a_plain_one_passes(self) -> None:
        setting = Setting()
        flow = setting.flow((HOST, (b"Content-Length", b"2")))
        setting.heads.requestheaders(flow)
        assert setting.reason(flow) is None
        assert flow.request.headers.fields == (HOST, (b"Content-Length", b"2"))

    @pytest.mark.parametrize("limits", [Limits(header_count=1), Limits(header_bytes=1024)])
    def test_one_that_is_too_large_is_refused(self, limits: Limits) -> None:
        setting = Setting(replace(Policy(), limits=limits))
        small, large = setting.flow(), setting.flow((HOST, (b"X", b"y" * 1024)))
        for flow in (small, large):
            setting.heads.requestheaders(flow)
        assert setting.reason(small) is None
        assert setting.reason(large) is Reason.HEADERS_TOO_LARGE

    def test_http_1_0_gets_the_host_that_what_goes_on_needs(self) -> None:
        setting = Setting()
        flow = setting.flow(((b"Expect", b"100-continue"), (b"Upgrade", b"websocket")), version=b"HTTP/1.0")
        setting.heads.requestheaders(flow)
        assert setting.reason(flow) is None
        assert flow.request.headers.fields == ((b"Host", b"api.example"),)

    def test_one_that_mitmproxy_refuses_has_a_reason_and_its_answer(self) -> None:
        setting = Setting()
        flow = setting.flow()
        flow.error = mitmproxy_flow.Error("Received invalid header")
        setting.heads.requestheaders(flow)
        denied = setting.sessions.exchange(flow).denied
        assert denied is not None
        assert denied.reason is Reason.BAD_REQUEST
        assert flow.response is None

    def test_a_connect_with_a_body_is_refused(self) -> None:
        setting = Setting()
        fields = (HOST, (b"Content-Length", b"2"))
        flow = setting.flow(fields, method=b"CONNECT", authority=b"api.example:443", path=b"")
        setting.heads.http_connect(flow)
        assert setting.reason(flow) is Reason.BAD_REQUEST


class TestHttp2:
    def test_a_plain_one_passes_untouched(self) -> None:
        setting = Setting()
        fields = ((b"te", b"trailers"), (b"x", b"y"))
        flow = setting.flow(fields, version=b"HTTP/2.0", authority=b"api.example")
        setting.heads.requestheaders(flow)
        assert setting.reason(flow) is None
        assert flow.request.headers.fields == fields

    @pytest.mark.parametrize(
        ("authority", "fields"),
        [
            (b"", ()),
            (b"api.example", ((b"host", b"other.example"),)),
            (b"api.example", ((b"connection", b"close"),)),
            (b"api.example", ((b"te", b"gzip"),)),
            (b"api.example", ((b"X", b"y"),)),
            (b"user@api.example", ()),
        ],
    )
    def test_a_malformed_one_is_refused(self, authority: bytes, fields: Fields) -> None:
        setting = Setting()
        flow = setting.flow(fields, version=b"HTTP/2.0", authority=authority)
        setting.heads.requestheaders(flow)
        assert setting.reason(flow) is Reason.BAD_REQUEST


class TestResponses:
    def ask(self, status: int, *fields: tuple[bytes, bytes], version: bytes = b"HTTP/1.1") -> http.HTTPFlow:
        setting = Setting()
        flow = setting.flow()
        flow.response = http.Response(version, status, b"", http.Headers(fields), None, None, 0.0, None)
        setting.heads.responseheaders(flow)
        return flow

    def status(self, flow: http.HTTPFlow) -> int:
        assert flow.response is not None
        return flow.response.status_code

    @pytest.mark.parametrize(
        "fields", [((b"X", b"a\x01b"),), ((b"Content-Length", b"1"), (b"Content-Length", b"1")), ((b"X Y", b"1"),)]
    )
    def test_a_malformed_one_is_refused(self, fields: Fields) -> None:
        assert self.status(self.ask(200, *fields)) == 502

    @pytest.mark.parametrize(("status", "expected"), [(103, 502), (100, 502), (101, 101), (204, 204)])
    def test_no_interim_one_is_final(self, status: int, expected: int) -> None:
        assert self.status(self.ask(status)) == expected

    def test_what_is_about_one_connection_ends_here_and_mitmproxy_still_knows_of_it(self) -> None:
        setting = Setting()
        flow = setting.flow()
        fields = ((b"Connection", b"close"), (b"X", b"y"))
        original = flow.response = http.Response(b"HTTP/1.1", 200, b"", http.Headers(fields), None, None, 0.0, None)
        setting.heads.responseheaders(flow)
        assert flow.response is not None
        assert flow.response.headers.fields == ((b"X", b"y"),)
        assert original.headers.fields == fields

    @pytest.mark.parametrize(("name", "expected"), [(b"x", 200), (b"connection", 502), (b"X", 502)])
    def test_http2_has_rules_of_its_own(self, name: bytes, expected: int) -> None:
        assert self.status(self.ask(200, (name, b"y"), version=b"HTTP/2.0")) == expected

    def test_our_own_answer_is_not_judged(self) -> None:
        setting = Setting()
        flow = setting.flow((HOST, HOST))
        setting.heads.requestheaders(flow)
        answer = flow.response
        setting.heads.responseheaders(flow)
        assert flow.response is answer
