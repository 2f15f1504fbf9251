"""The gate: one canonical destination, named alike by target, Host, `:authority`, CONNECT and SNI.

Proves ARCHITECTURE's rule 4 (decide on the real destination).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from mitmproxy import connection, http

from addons.exchange import Exchange
from addons.gate import Gate
from addons.sessions import Sessions
from proxy.core.decisions import Action
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Defaults, Egress, HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.who.addresses import AddressSet
from proxy.core.who.clients import ClientRules
from proxy.core.who.credentials import Verifier

VERIFIER = Verifier(b"", lambda: 0.0)
KNOWN = KnownHosts(lambda: 0.0, lambda _: False)

RULE = Rule("inspected", (HostPattern("exact", "api.example"),), PlainHttp.UPGRADE, Https.INSPECT)
POLICY = Policy(rules=(RULE,), defaults=Defaults())


@pytest.fixture
def sessions(client: connection.Client) -> Sessions:
    sessions = Sessions()
    sessions.open(client, POLICY)
    return sessions


def new_flow(
    client: connection.Client,
    host: str = "api.example",
    port: int = 80,
    scheme: str = "http",
    *,
    names: tuple[str, ...] = ("api.example",),
    authority: str = "",
    version: str = "HTTP/1.1",
    method: str = "GET",
) -> http.HTTPFlow:
    """Return a flow as the layers hand it to the hooks."""
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request(
        host=host,
        port=port,
        method=method.encode(),
        scheme=scheme.encode(),
        authority=authority.encode(),
        path=b"/",
        http_version=version.encode(),
        headers=http.Headers([(b"Host", name.encode("latin-1")) for name in names]),
        content=None,
        trailers=None,
        timestamp_start=0.0,
        timestamp_end=None,
    )
    return flow


def passed(sessions: Sessions, flow: http.HTTPFlow) -> Exchange:
    Gate(sessions, VERIFIER, KNOWN).requestheaders(flow)
    exchange = sessions.exchange(flow)
    assert flow.response is None, flow.response.content if flow.response else ""
    return exchange


def refused(sessions: Sessions, flow: http.HTTPFlow) -> Reason:
    Gate(sessions, VERIFIER, KNOWN).requestheaders(flow)
    denied = sessions.exchange(flow).denied
    assert denied is not None
    assert flow.response is not None
    return denied.reason


class TestDestination:
    @pytest.mark.parametrize("host", ["api.example", "API.Example", "api.example."])
    def test_every_spelling_is_the_one_that_is_dialled_and_host_stays_as_it_came(
        self, sessions: Sessions, client: connection.Client, host: str
    ) -> None:
        flow = new_flow(client, host, names=("Api.EXAMPLE",))
        exchange = passed(sessions, flow)
        assert exchange.asked == Destination("api.example", 80)
        assert flow.request.data.host == "api.example"
        assert flow.request.headers["host"] == "Api.EXAMPLE"
        assert exchange.rule is RULE

    @pytest.mark.parametrize(
        ("host", "port"),
        [("", 80), ("127.1", 80), ("0x7f.1", 80), ("bücher.example", 80), ("a b", 80), ("api.example", 0)],
    )
    def test_what_is_no_destination_is_refused(
        self, sessions: Sessions, client: connection.Client, host: str, port: int
    ) -> None:
        assert refused(sessions, new_flow(client, host, port, names=())) is Reason.BAD_REQUEST

    def test_a_mapped_address_is_its_ipv4_address(self, sessions: Sessions, client: connection.Client) -> None:
        flow = new_flow(client, "::ffff:192.0.2.7", names=("[::ffff:192.0.2.7]",))
        assert passed(sessions, flow).asked == Destination("192.0.2.7", 80)

    @pytest.mark.parametrize("port", [1, 65535])
    def test_the_first_and_the_last_port_are_some(
        self, sessions: Sessions, client: connection.Client, port: int
    ) -> None:
        passed(sessions, new_flow(client, port=port, names=(f"api.example:{port}",)))

    @pytest.mark.parametrize(
        ("method", "path", "is_one"),
        [
            ("GET", "/", True),
            ("OPTIONS", "*", True),
            ("GET", "*", False),
            ("OPTIONS", "a", False),
            ("GET", "http://api.example/", False),
            ("GET", "", False),
        ],
    )
    def test_a_path_begins_with_a_slash(
        self, sessions: Sessions, client: connection.Client, method: str, path: str, is_one: bool
    ) -> None:
        flow = new_flow(client, method=method)
        flow.request.data.path = path.encode()
        if is_one:
            passed(sessions, flow)
        else:
            assert refused(sessions, flow) is Reason.BAD_REQUEST

    @pytest.mark.parametrize(
        ("version", "names", "authority", "is_refused"),
        [
            ("HTTP/2.0", (), "", True),
            ("HTTP/2.0", (), "api.example", False),
            ("HTTP/2.0", ("api.example",), "", False),
            ("HTTP/1.1", (), "", False),  # in HTTP/1.0 it may be missing; in HTTP/1.1 it cannot get here
        ],
    )
    def test_a_request_of_http2_names_its_host(
        self,
        sessions: Sessions,
        client: connection.Client,
        version: str,
        names: tuple[str, ...],
        authority: str,
        is_refused: bool,
    ) -> None:
        flow = new_flow(client, names=names, authority=authority, version=version)
        if is_refused:
            assert refused(sessions, flow) is Reason.BAD_REQUEST
        else:
            passed(sessions, flow)

    @pytest.mark.parametrize(
        ("host", "port", "reason"),
        [
            ("api.example", 443, None),
            ("other.example", 443, Reason.DESTINATION_FORBIDDEN),
            ("other.example", 80, Reason.DESTINATION_FORBIDDEN),
            ("plain.example", 80, None),  # named by a rule for what may come inside
            ("shut.example", 443, None),  # for `Transport` to deny
        ],
    )
    def test_where_only_listed_hosts_are_reached_connect_asks_for_one(
        self, client: connection.Client, host: str, port: int, reason: Reason | None
    ) -> None:
        plain = Rule("plain", (HostPattern("exact", "plain.example", 443),), PlainHttp.UPGRADE, Https.TUNNEL)
        shut = Rule("shut", (HostPattern("exact", "shut.example"),), PlainHttp.UPGRADE, Https.REJECT)
        sessions = Sessions()
        sessions.open(client, replace(POLICY, rules=(RULE, plain, shut), egress=Egress.LISTED))
        flow = new_flow(client, host, port, method="CONNECT", names=(f"{host}:{port}",))
        Gate(sessions, VERIFIER, KNOWN).http_connect(flow)
        denied = sessions.exchange(flow).denied
        assert (denied.reason if denied else None) is reason
        assert (flow.response is not None) is (reason is not None)

    @pytest.mark.parametrize("https", [Https.TUNNEL, Https.REJECT])
    def test_elsewhere_one_that_no_rule_names_may_be_meant_for_plain_http(
        self, client: connection.Client, https: Https
    ) -> None:
        sessions = Sessions()
        sessions.open(client, replace(POLICY, defaults=Defaults(https=https)))
        flow = new_flow(client, "other.example", 8080, method="CONNECT", names=("other.example:8080",))
        Gate(sessions, VERIFIER, KNOWN).http_connect(flow)
        assert sessions.exchange(flow).denied is None

    @pytest.mark.parametrize(("host", "action"), [("api.example", Action.UPGRADE), ("other.example", Action.ALLOW)])
    def test_plain_http_is_decided_as_such(self, client: connection.Client, host: str, action: Action) -> None:
        sessions = Sessions()
        sessions.open(client, replace(POLICY, defaults=Defaults(plain_http=PlainHttp.ALLOW)))
        decision = passed(sessions, new_flow(client, host, names=(host,))).decision
        assert decision is not None
        assert decision.action is action

    @pytest.mark.parametrize(("version", "kept"), [("HTTP/1.1", b""), ("HTTP/2.0", b"api.example")])
    def test_upstreams_get_the_form_of_their_version(
        self, sessions: Sessions, client: connection.Client, version: str, kept: bytes
    ) -> None:
        flow = new_flow(client, authority="api.example", version=version)
        passed(sessions, flow)
        assert flow.request.data.authority == kept

    def test_https_without_connect_is_inspected_since_its_tls_is_ours(
        self, sessions: Sessions, client: connection.Client
    ) -> None:
        exchange = passed(sessions, new_flow(client, "free.example", 443, "https", names=("free.example",)))
        assert exchange.decision is not None
        assert exchange.decision.action is Action.INSPECT


class TestNames:
    @pytest.mark.parametrize(
        ("scheme", "port", "name"),
        [
            ("http", 80, "api.example"),
            ("http", 80, "api.example:80"),
            ("http", 80, "api.example:"),
            ("https", 443, "api.example"),
            ("https", 443, "api.example:443"),
            ("https", 8443, "api.example:8443"),
        ],
    )
    def test_host_names_the_destination_with_the_default_port_of_the_scheme(
        self, sessions: Sessions, client: connection.Client, scheme: str, port: int, name: str
    ) -> None:
        passed(sessions, new_flow(client, port=port, scheme=scheme, names=(name,)))

    @pytest.mark.parametrize(
        ("scheme", "port", "name"),
        [
            ("http", 80, "other.example"),
            ("http", 80, "api.example:443"),
            ("http", 80, "sub.api.example"),
            ("https", 443, "api.example:80"),
            ("https", 8443, "api.example"),
        ],
    )
    def test_host_that_names_another_one_is_a_mismatch(
        self, sessions: Sessions, client: connection.Client, scheme: str, port: int, name: str
    ) -> None:
        assert refused(sessions, new_flow(client, port=port, scheme=scheme, names=(name,))) is Reason.HOST_MISMATCH

    @pytest.mark.parametrize("name", ["", "a b", "me@api.example", "api.example:x", "[api.example]", "127.1", "b\xfc"])
    def test_host_that_is_malformed_is_refused(self, sessions: Sessions, client: connection.Client, name: str) -> None:
        assert refused(sessions, new_flow(client, names=(name,))) is Reason.BAD_REQUEST

    def test_every_one_of_several_names_must_agree(self, sessions: Sessions, client: connection.Client) -> None:
        flow = new_flow(client, names=("api.example", "other.example"))
        assert refused(sessions, flow) is Reason.HOST_MISMATCH

    @pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2.0"])
    def test_the_authority_counts_in_every_version(
        self, sessions: Sessions, client: connection.Client, version: str
    ) -> None:
        right = new_flow(client, port=443, scheme="https", names=(), authority="api.example", version=version)
        passed(sessions, right)
        wrong = new_flow(client, port=443, scheme="https", names=(), authority="other.example", version=version)
        assert refused(sessions, wrong) is Reason.HOST_MISMATCH

    def test_an_authority_in_a_labels_is_compared_as_it_is(self, sessions: Sessions, client: connection.Client) -> None:
        host = "xn--bcher-kva.example"
        flow = new_flow(client, host, 443, "https", names=(), authority=host, version="HTTP/2.0")
        assert passed(sessions, flow).asked == Destination(host, 443)

    def test_a_mismatch_is_let_through_and_noted_in_observe_mode_but_no_destination_never_is(
        self, client: connection.Client
    ) -> None:
        sessions = Sessions()
        sessions.open(client, replace(POLICY, mode=Mode.OBSERVE))
        flow = new_flow(client, names=("other.example",))
        denied = passed(sessions, flow).denied
        assert denied is not None
        assert denied.reason is Reason.HOST_MISMATCH
        assert refused(sessions, new_flow(client, "127.1", names=())) is Reason.BAD_REQUEST

    def test_a_denial_tells_the_rule(self, sessions: Sessions, client: connection.Client) -> None:
        flow = new_flow(client, names=("other.example",))
        refused(sessions, flow)
        assert sessions.exchange(flow).rule is RULE


class TestConnect:
    def connect(self, sessions: Sessions, client: connection.Client, name: str = "api.example:443") -> http.HTTPFlow:
        flow = new_flow(client, port=443, scheme="", names=(name,), authority="api.example:443", method="CONNECT")
        Gate(sessions, VERIFIER, KNOWN).http_connect(flow)
        return flow

    def test_it_is_decided_as_https(self, sessions: Sessions, client: connection.Client) -> None:
        flow = self.connect(sessions, client)
        exchange = sessions.exchange(flow)
        assert flow.response is None
        assert exchange.decision is not None
        assert (exchange.decision.action, exchange.asked) == (Action.INSPECT, Destination("api.example", 443))

    @pytest.mark.parametrize("name", ["other.example:443", "api.example:444"])
    def test_its_host_must_repeat_the_target(self, sessions: Sessions, client: connection.Client, name: str) -> None:
        flow = self.connect(sessions, client, name)
        assert flow.response is not None
        assert flow.response.status_code == 421

    @pytest.mark.parametrize("sni", ["api.example", "API.example.", None])
    def test_the_server_name_inside_may_be_the_host_or_missing(
        self, sessions: Sessions, client: connection.Client, sni: str | None
    ) -> None:
        self.connect(sessions, client)
        client.sni = sni
        passed(sessions, new_flow(client, port=443, scheme="https"))

    @pytest.mark.parametrize("sni", ["other.example", "sub.api.example", ""])
    def test_another_server_name_inside_is_a_mismatch(
        self, sessions: Sessions, client: connection.Client, sni: str
    ) -> None:
        self.connect(sessions, client)
        client.sni = sni
        assert refused(sessions, new_flow(client, port=443, scheme="https")) is Reason.HOST_MISMATCH

    def test_who_may_not_use_the_proxy_learns_that_alone(self, client: connection.Client) -> None:
        sessions = Sessions()
        sessions.open(client, replace(POLICY, clients=ClientRules(addresses=AddressSet())))
        denied = sessions.exchange(self.connect(sessions, client, "evil.example:443")).denied
        assert denied is not None
        assert denied.reason is Reason.CLIENT_FORBIDDEN
        sessions.of(client).connect = None
        assert refused(sessions, new_flow(client, names=("evil.example",))) is Reason.CLIENT_FORBIDDEN
