"""The transport decision, carried out on the request (ARCHITECTURE.md, rules 2 and 5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mitmproxy import connection, http
from mitmproxy.test import tflow

from addons.exchange import Exchange
from addons.gate import Gate
from addons.sessions import Sessions
from addons.transport import Transport
from proxy.core.http.cookies import Cookies
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.who.credentials import Verifier

KNOWN = KnownHosts(lambda: 0.0, lambda _: False)

POLICY = Policy(
    rules=(
        Rule("moved", (HostPattern("exact", "moved.example"),), PlainHttp.UPGRADE, Https.TUNNEL, https_port=8443),
        Rule("allowed", (HostPattern("exact", "allowed.example"),), PlainHttp.ALLOW, Https.TUNNEL),
        Rule("only-plain", (HostPattern("exact", "only-plain.example"),), PlainHttp.ALLOW, Https.REJECT),
        Rule("rejected", (HostPattern("exact", "rejected.example"),), PlainHttp.REJECT, Https.REJECT),
    )
)


def run(
    headers: list[tuple[bytes, bytes]],
    *,
    host: str = "api.example",
    port: int = 80,
    scheme: bytes = b"http",
    version: bytes = b"HTTP/1.1",
    authority: bytes = b"",
    policy: Policy = POLICY,
    method: bytes = b"GET",
) -> http.HTTPFlow:
    """Send a request through the gate and the transport addon, and return its flow."""
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
    sessions = Sessions()
    sessions.open(client, policy)
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request(
        host=host,
        port=port,
        method=method,
        scheme=scheme,
        authority=authority,
        path=b"/",
        http_version=version,
        headers=http.Headers(headers),
        content=None,
        trailers=None,
        timestamp_start=0.0,
        timestamp_end=None,
    )
    for addon in (Gate(sessions, Verifier(b"", lambda: 0.0), KNOWN), Transport(sessions, KNOWN, Cookies("x"))):
        if method == b"CONNECT":
            addon.http_connect(flow)
        else:
            addon.requestheaders(flow)
    return flow


def exchange_of(flow: http.HTTPFlow) -> Exchange:
    found = flow.metadata["overcoat"]
    assert isinstance(found, Exchange)
    return found


class TestUpgrade:
    @pytest.mark.parametrize(
        ("host", "port", "name", "dialled", "host_field"),
        [
            ("api.example", 80, b"api.example", 443, b"api.example"),
            ("api.example", 80, b"api.example:80", 443, b"api.example"),
            ("api.example", 80, b"API.example.", 443, b"API.example."),
            ("api.example", 8080, b"api.example:8080", 8080, b"api.example:8080"),
            ("api.example", 443, b"api.example:443", 443, b"api.example:443"),
            ("moved.example", 80, b"moved.example", 8443, b"moved.example:8443"),
            ("moved.example", 8443, b"Moved.example:8443", 8443, b"Moved.example:8443"),
            ("2001:db8::1", 80, b"[2001:DB8::1]:80", 443, b"[2001:db8::1]"),
            ("2001:db8::1", 80, b"[2001:DB8::1]", 443, b"[2001:DB8::1]"),
        ],
    )
    def test_the_port_is_dialled_over_tls_and_host_follows_only_where_it_must(
        self, host: str, port: int, name: bytes, dialled: int, host_field: bytes
    ) -> None:
        flow = run([(b"A", b"1"), (b"hOST", name), (b"B", b"2")], host=host, port=port)
        assert (flow.request.scheme, flow.request.host, flow.request.port) == ("https", host, dialled)
        assert [value for field, value in flow.request.headers.fields if field.lower() == b"host"] == [host_field]
        assert [field.lower() for field, _ in flow.request.headers.fields] == [b"a", b"host", b"b"]

    def test_a_request_without_host_gets_none(self) -> None:
        flow = run([], version=b"HTTP/1.0")
        assert flow.request.scheme == "https"
        assert flow.request.headers.fields == ()

    def test_the_authority_of_http_2_follows_as_well(self) -> None:
        flow = run([], host="moved.example", authority=b"moved.example", version=b"HTTP/2.0")
        assert flow.request.data.authority == b"moved.example:8443"

    def test_in_observe_mode_nothing_is_upgraded(self) -> None:
        flow = run([(b"Host", b"api.example")], policy=replace(POLICY, mode=Mode.OBSERVE))
        assert (flow.request.scheme, flow.request.port) == ("http", 80)


def test_what_is_allowed_stays_plain() -> None:
    flow = run([(b"Host", b"allowed.example")], host="allowed.example")
    assert (flow.request.scheme, flow.request.port, flow.response) == ("http", 80, None)


def test_https_keeps_its_port_whatever_the_rule_says_of_upgrades() -> None:
    flow = run([(b"Host", b"moved.example")], host="moved.example", port=443, scheme=b"https")
    assert (flow.request.scheme, flow.request.port) == ("https", 443)


@pytest.mark.parametrize(("scheme", "port"), [(b"http", 80), (b"https", 443)])
def test_what_is_rejected_is_answered_and_never_upgraded(scheme: bytes, port: int) -> None:
    flow = run([(b"Host", b"rejected.example")], host="rejected.example", scheme=scheme, port=port)
    assert flow.response is not None
    assert flow.response.status_code == 403
    assert flow.request.scheme == scheme.decode()


@pytest.mark.parametrize(
    ("host", "port", "answered"),
    [
        ("rejected.example", 443, True),
        ("rejected.example", 8080, True),
        ("only-plain.example", 443, True),
        ("only-plain.example", 8080, False),
        ("api.example", 443, False),
    ],
)
def test_a_connect_is_rejected_at_once_unless_it_may_be_meant_for_plain_http(
    host: str, port: int, answered: bool
) -> None:
    authority = f"{host}:{port}".encode()
    flow = run([(b"Host", authority)], host=host, port=port, scheme=b"", method=b"CONNECT")
    assert (flow.response is not None) is answered


class TestFieldsThatEndHere:
    def fields(self, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        flow = run([(b"Host", b"api.example"), *headers])
        return [(name, value) for name, value in flow.request.headers.fields if name != b"Host"]

    def test_credentials_for_the_proxy_are_not_passed_on(self) -> None:
        left = self.fields((b"Proxy-Authorization", b"x"), (b"PROXY-connection", b"close"), (b"Authorization", b"y"))
        assert left == [(b"Authorization", b"y")]

    def test_nothing_else_is_touched(self) -> None:
        headers = [(b"Connection", b"close,  x"), (b"TE", b"trailers"), (b"Keep-Alive", b"5")]
        assert self.fields(*headers) == headers


def test_what_an_app_says_of_its_trace_and_its_cookies_is_noted_if_that_is_all_that_it_says() -> None:
    traced = exchange_of(
        run([(b"Host", b"api.example"), (b"Traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")])
    )
    assert traced.trace_id == "a" * 32
    assert exchange_of(run([(b"Host", b"api.example"), (b"Cookie", b"a=1; b=2")])).jar == {"a", "b"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("via", [None, "here"])
def test_via_is_added_where_the_policy_says_so_and_not_in_observe_mode(mode: Mode, via: str | None) -> None:
    flow = run([(b"Host", b"api.example")], policy=replace(POLICY, mode=mode, via=via))
    is_added = via is not None and mode is Mode.ENFORCE
    assert flow.request.headers.get("via") == ("1.1 here" if is_added else None)


@pytest.mark.parametrize(
    ("method", "mode", "forwards", "goes_on_with"),
    [
        (b"OPTIONS", Mode.ENFORCE, b"1", "0"),
        (b"TRACE", Mode.ENFORCE, b"5", "4"),
        (b"OPTIONS", Mode.ENFORCE, b"0", None),
        (b"GET", Mode.ENFORCE, b"0", "0"),
        (b"OPTIONS", Mode.OBSERVE, b"0", "0"),
        (b"OPTIONS", Mode.OBSERVE, b"5", "5"),
    ],
)
def test_forwards_are_counted_of_the_methods_that_have_them(
    method: bytes, mode: Mode, forwards: bytes, goes_on_with: str | None
) -> None:
    fields = [(b"Host", b"api.example"), (b"Max-Forwards", forwards)]
    flow = run(fields, method=method, policy=replace(POLICY, mode=mode))
    assert (flow.response is None) is (goes_on_with is not None)
    if goes_on_with is not None:
        assert flow.request.headers["max-forwards"] == goes_on_with


class TestResponses:
    """What a server says of itself, as it reaches the app."""

    def answer(
        self,
        host: str,
        *fields: tuple[str, str],
        mode: Mode = Mode.ENFORCE,
        via: str | None = None,
        scheme: str = "http",
    ) -> tuple[http.Response, KnownHosts]:
        client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
        sessions, known = Sessions(), KnownHosts(lambda: 0.0, lambda _: False)
        sessions.open(client, replace(POLICY, mode=mode, via=via))
        flow = http.HTTPFlow(client, connection.Server(address=None))
        flow.request = http.Request.make("GET", f"{scheme}://{host}/", headers=http.Headers(Host=host))
        flow.request.data.authority = b""
        transport = Transport(sessions, known, Cookies("x"))
        Gate(sessions, Verifier(b"", lambda: 0.0), known).requestheaders(flow)
        transport.requestheaders(flow)
        flow.response = http.Response.make(200, b"", http.Headers([(a.encode(), b.encode()) for a, b in fields]))
        transport.responseheaders(flow)
        return flow.response, known

    @pytest.mark.parametrize(("host", "is_learned"), [("api.example", True), ("allowed.example", False)])
    def test_that_https_only_is_wanted_counts_over_https_only(self, host: str, is_learned: bool) -> None:
        """RFC 6797, section 8.1: over plain http anybody could have said it."""
        _, known = self.answer(host, ("Strict-Transport-Security", "max-age=9"))
        assert known.knows(host, uses_preload=False) is is_learned

    @pytest.mark.parametrize(
        ("scheme", "host", "mode", "is_kept"),
        [
            ("http", "api.example", Mode.ENFORCE, False),
            ("http", "allowed.example", Mode.ENFORCE, True),
            ("https", "allowed.example", Mode.ENFORCE, False),
            ("https", "allowed.example", Mode.OBSERVE, True),
        ],
    )
    def test_a_way_past_the_proxy_is_not_shown(self, scheme: str, host: str, mode: Mode, is_kept: bool) -> None:
        response, _ = self.answer(host, ("Alt-Svc", 'h3=":443"'), ("X", "1"), mode=mode, scheme=scheme)
        assert ("alt-svc" in response.headers) is is_kept
        assert response.headers["x"] == "1"

    def test_a_secure_cookie_is_one_that_an_app_on_plain_http_keeps(self) -> None:
        response, _ = self.answer("api.example", ("Set-Cookie", "a=1; Secure"))
        assert "secure" not in response.headers["set-cookie"].lower()

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("via", [None, "here"])
    def test_via_is_added_as_on_the_way_there(self, mode: Mode, via: str | None) -> None:
        response, _ = self.answer("api.example", mode=mode, via=via)
        assert response.headers.get("via") == ("1.1 here" if via is not None and mode is Mode.ENFORCE else None)


class TestWhatIsKeptOfAConnection:
    """How an app saw the last host is kept with its connection, and never used for another host or policy."""

    def test_each_host_and_each_policy_has_a_view_of_its_own(self) -> None:
        client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
        sessions = Sessions()
        session = sessions.open(client, POLICY)
        known = KnownHosts(lambda: 0.0, lambda _: False)
        addons = (Gate(sessions, Verifier(b"", lambda: 0.0), known), Transport(sessions, known, Cookies("x")))

        def location(host: str, url: str) -> str:
            """Ask for something, be redirected to a URL, and return what the app is told."""
            flow = tflow.tflow(client_conn=client, resp=True)
            flow.request = http.Request.make("GET", f"http://{host}/", headers=http.Headers(host=host))
            flow.response = None
            for addon in addons:
                addon.requestheaders(flow)
            flow.response = http.Response.make(302, headers=http.Headers(location=url))
            addons[1].responseheaders(flow)
            told: str = flow.response.headers["location"]
            return told

        for _ in range(2):
            assert location("api.example", "https://api.example/x") == "http://api.example/x"
            assert location("api.example", "https://moved.example:8443/x") == "http://moved.example/x"
            assert location("moved.example", "https://moved.example:8443/x") == "http://moved.example/x"
            assert location("api.example", "https://allowed.example/x") == "https://allowed.example/x"
            assert location("box", "https://box/x") == "http://box/x"  # a local name, for who asked it
            assert location("api.example", "https://box/x") == "https://box/x"
        session.policy = replace(POLICY, rules=POLICY.rules[1:])  # `moved.example` has no rule, hence no other port
        assert location("moved.example", "https://moved.example:8443/x") == "http://moved.example:8443/x"
        assert location("moved.example", "https://moved.example/x") == "http://moved.example/x"
        session.policy = POLICY
        assert location("moved.example", "https://moved.example/x") == "https://moved.example/x"
