"""Pins: a server that does not have a pinned key gets an alert, and not one application byte.

Proves ARCHITECTURE's rules 2 (never a fallback to plain text), 3 (nothing leaves early), 7 (say why) and 8 (never
weaker than without it) for pinned hosts. The wrong servers here are wrong in one way only: their certificate is valid,
names the host and comes from the trusted authority; only the key is another one.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.e2e import wire
from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.clients import Answer, RawClient, curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

MakeTls = Callable[..., TlsUpstream]
Send = Callable[[TlsUpstream, str], Answer]

UNUSED_PIN = "sha256/" + "A" * 42 + "E="  # 255 zero bits and a one: no key has this hash
NAMES = (
    "leaf.example",
    "backup.example",
    "root.example",
    "intermediate.example",
    "certificate.example",
    "fresh.example",
    "expired.example",
    "sent.example",
    "nobody.example",
    "free.example",
    "inspected-free.example",
)
SHARED = "shared.example"
POLICY = """
    rules:
      - {{name: leaf, hosts: [leaf.example], pins: {{any_of: ["{leaf}"]}}}}
      - {{name: backup, hosts: [backup.example], pins: {{any_of: ["{unused}", "{leaf}"]}}}}
      - {{name: root, hosts: [root.example], pins: {{any_of: ["{root}"]}}}}
      - {{name: intermediate, hosts: [intermediate.example], pins: {{any_of: ["{intermediate}"]}}}}
      - {{name: certificate, hosts: [certificate.example], pins: {{any_of: ["{certificate}"]}}}}
      - {{name: fresh, hosts: [fresh.example], pins: {{any_of: ["{leaf}"], expires: {today}}}}}
      - {{name: expired, hosts: [expired.example], pins: {{any_of: ["{leaf}"], expires: {yesterday}}}}}
      - {{name: sent, hosts: [sent.example], pins: {{any_of: ["{stranger}"]}}}}
      - {{name: nobody, hosts: [nobody.example], pins: {{any_of: ["{unused}"]}}}}
      - {{name: inspected-free, hosts: [inspected-free.example], https: inspect}}
      - {{name: one, hosts: ["shared.example:8001"], https_port: {shared}, pins: {{any_of: ["{leaf}"]}}}}
      - {{name: two, hosts: ["shared.example:8002"], https_port: {shared}, pins: {{any_of: ["{unused}"]}}}}
      - {{name: three, hosts: ["shared.example:8003"], https_port: {shared}}}
"""


@dataclass(frozen=True)
class World:
    """What the tests of this module share.

    Attributes:
        good: the identity whose key is pinned.
        wrong: one that differs from it in its key only.
        middle: an authority between the root and a server's certificate; its key is pinned.
        stranger: an authority that nobody trusts; its key is pinned.
        shared: an upstream that three rules lead to, under different pins; it has the good identity.
    """

    sidecar: Sidecar
    good: Identity
    wrong: Identity
    middle: Authority
    stranger: Authority
    shared: TlsUpstream


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    good, wrong = authority.issue(*NAMES, SHARED), authority.issue(*NAMES, SHARED)
    middle, stranger = authority.intermediate(), Authority()
    whole = hashlib.sha256(good.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    today = datetime.now(UTC).date()
    with TlsUpstream(authority, identity=good) as shared:
        policy = POLICY.format(
            leaf=good.pin,
            unused=UNUSED_PIN,
            root=authority.pin,
            intermediate=middle.pin,
            stranger=stranger.pin,
            certificate=f"cert-sha256/{whole}",
            today=today + timedelta(days=1),  # a run at midnight must not fail
            yesterday=today - timedelta(days=1),
            shared=shared.port,
        )
        hosts = dict.fromkeys((*NAMES, SHARED), "127.0.0.1")
        with Sidecar(policy, tmp_path_factory.mktemp("pins"), authority=authority, hosts=hosts) as sidecar:
            yield World(sidecar, good, wrong, middle, stranger, shared)


@pytest.fixture(params=["upgraded http", "http inside CONNECT", "inspected https"])
def send(request: pytest.FixtureRequest, world: World) -> Send:
    """Sends a POST with a secret body to a host name, in each of the ways that lead to a pinned upstream."""
    sidecar, way = world.sidecar, request.param

    def send_it(upstream: TlsUpstream, host: str) -> Answer:
        data = ("-d", "secret")
        if way == "upgraded http":
            return curl(*data, upstream.url(host=host), proxy=sidecar.proxy_url)
        if way == "http inside CONNECT":
            return curl("-p", *data, upstream.url(host=host), proxy=sidecar.proxy_url)
        url = upstream.url(scheme="https", host=host)
        return curl("--http1.1", *data, url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)

    return send_it


def assert_accepted(world: World, upstream: TlsUpstream, answer: Answer, host: str) -> None:
    assert answer.status == 200, answer
    (request,) = upstream.wait_for_requests(1)
    assert request.body == b"secret"
    decision = world.sidecar.wait_for_decision(
        lambda d: d["destination"] == f"{host}:{upstream.port}" and d["method"] == "POST"
    )
    assert decision["pin"] == "match"


def assert_refused(world: World, upstream: TlsUpstream, answer: Answer, host: str, reason: str, pin: str) -> None:
    """Check that the app was told why, and that the server saw the handshake fail and no application byte."""
    problem = answer.json()
    assert (answer.status, problem["reason"]) == (502, reason), problem
    assert problem["rule"] == host.removesuffix(".example")
    (connection,) = upstream.wait_for_connections(1, closed=True)
    upstream.assert_no_application_bytes()
    assert connection.handshake_error is not None
    assert "alert" in connection.handshake_error
    assert not connection.handshake_completed
    assert all(b"secret" not in c.wire and b"HTTP/1" not in c.wire for c in upstream.connections)
    decision = world.sidecar.wait_for_decision(
        lambda d: d["destination"] == f"{host}:{upstream.port}" and d["method"] == "POST"
    )
    assert (decision["action"], decision["reason"], decision["pin"]) == ("deny", reason, pin)


class TestWhatMatches:
    @pytest.mark.parametrize("host", ["leaf.example", "backup.example", "root.example", "certificate.example"])
    def test_a_key_of_the_verified_chain_is_enough(
        self, world: World, tls_upstream: MakeTls, send: Send, host: str
    ) -> None:
        upstream = tls_upstream(identity=world.good)
        assert_accepted(world, upstream, send(upstream, host), host)

    def test_the_key_of_an_intermediate_authority_is_enough(
        self, world: World, tls_upstream: MakeTls, send: Send
    ) -> None:
        upstream = tls_upstream(identity=world.middle.issue("intermediate.example"))
        assert_accepted(world, upstream, send(upstream, "intermediate.example"), "intermediate.example")

    def test_pins_count_until_their_last_day(self, world: World, tls_upstream: MakeTls, send: Send) -> None:
        upstream = tls_upstream(identity=world.good)
        assert_accepted(world, upstream, send(upstream, "fresh.example"), "fresh.example")


class TestWhatIsRefused:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_another_key_of_the_same_authority(
        self, world: World, tls_upstream: MakeTls, send: Send, version: ssl.TLSVersion
    ) -> None:
        upstream = tls_upstream(identity=world.wrong, min_tls=version, max_tls=version)
        answer = send(upstream, "leaf.example")
        assert_refused(world, upstream, answer, "leaf.example", "pin_mismatch", "mismatch")
        assert world.wrong.pin in answer.json()["detail"]  # what an operator must compare
        # The twin: only the pins are taken away.
        twin = tls_upstream(identity=world.wrong, min_tls=version, max_tls=version)
        assert send(twin, "inspected-free.example").status == 200

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_the_pinned_key_passes_under_the_same_versions(
        self, world: World, tls_upstream: MakeTls, send: Send, version: ssl.TLSVersion
    ) -> None:
        upstream = tls_upstream(identity=world.good, min_tls=version, max_tls=version)
        assert_accepted(world, upstream, send(upstream, "leaf.example"), "leaf.example")

    def test_another_certificate_where_a_whole_certificate_is_pinned(
        self, world: World, tls_upstream: MakeTls, send: Send
    ) -> None:
        upstream = tls_upstream(identity=world.wrong)
        answer = send(upstream, "certificate.example")
        assert_refused(world, upstream, answer, "certificate.example", "pin_mismatch", "mismatch")

    def test_a_server_straight_under_the_root_where_an_intermediate_is_pinned(
        self, world: World, tls_upstream: MakeTls, send: Send
    ) -> None:
        upstream = tls_upstream(identity=world.good)
        answer = send(upstream, "intermediate.example")
        assert_refused(world, upstream, answer, "intermediate.example", "pin_mismatch", "mismatch")

    def test_a_pinned_certificate_that_was_only_sent_along(
        self, world: World, tls_upstream: MakeTls, send: Send
    ) -> None:
        identity = world.good.also_sending(world.stranger.pem)
        upstream = tls_upstream(identity=identity)
        answer = send(upstream, "sent.example")
        assert_refused(world, upstream, answer, "sent.example", "pin_mismatch", "mismatch")
        # The twin: the same chain is fine where the key that did verify is pinned.
        twin = tls_upstream(identity=identity)
        assert send(twin, "leaf.example").status == 200

    def test_an_intermediate_that_was_only_sent_along(self, world: World, tls_upstream: MakeTls, send: Send) -> None:
        upstream = tls_upstream(identity=world.good.also_sending(world.middle.pem))
        answer = send(upstream, "intermediate.example")
        assert_refused(world, upstream, answer, "intermediate.example", "pin_mismatch", "mismatch")

    def test_the_right_key_after_the_pins_last_day(self, world: World, tls_upstream: MakeTls, send: Send) -> None:
        upstream = tls_upstream(identity=world.good)
        answer = send(upstream, "expired.example")
        assert_refused(world, upstream, answer, "expired.example", "pins_expired", "expired")

    def test_the_right_key_in_a_chain_that_does_not_verify(
        self, authority: Authority, world: World, tls_upstream: MakeTls
    ) -> None:
        """A pin narrows what is trusted; it never makes up for a certificate that is not valid."""
        late = authority.issue("late.example", variant=Variant.EXPIRED)
        folder = world.sidecar.policy_file.parent / "late"
        folder.mkdir()
        policy = f'rules: [{{name: late, hosts: [late.example], pins: {{any_of: ["{late.pin}", "{authority.pin}"]}}}}]'
        upstream = tls_upstream(identity=late)
        with Sidecar(policy, folder, authority=authority, hosts={"late.example": "127.0.0.1"}) as sidecar:
            answer = curl(upstream.url(host="late.example"), proxy=sidecar.proxy_url)
        assert (answer.status, answer.json()["reason"]) == (502, "certificate_invalid")
        upstream.assert_no_application_bytes()


class TestEveryConnection:
    def test_a_server_that_changes_its_key_is_refused_from_then_on(
        self, world: World, tls_upstream: MakeTls, send: Send
    ) -> None:
        def last(_: RecordedRequest) -> bytes:
            return wire.response(200, b"{}", headers=(("Connection", "close"),))

        upstream = tls_upstream(identity=world.good, respond=last)
        assert send(upstream, "leaf.example").status == 200
        before = upstream.received
        upstream.present(world.wrong)
        answer = send(upstream, "leaf.example")
        assert (answer.status, answer.json()["reason"]) == (502, "pin_mismatch")
        upstream.settle()
        assert upstream.received == before
        upstream.present(world.good)
        assert send(upstream, "leaf.example").status == 200
        assert not any(connection.session_reused for connection in upstream.connections)

    def test_on_one_app_connection_a_new_upstream_connection_is_checked_anew(
        self, world: World, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream(identity=world.wrong)
        request = f"GET http://leaf.example:{upstream.port}/ HTTP/1.1\r\nHost: leaf.example:{upstream.port}\r\n\r\n"
        with RawClient(world.sidecar.address) as client:
            for identity, status in ((world.wrong, 502), (world.good, 200), (world.good, 200)):
                upstream.present(identity)
                client.send(request.encode())
                assert client.read_response().status == status
        assert [c.handshake_completed for c in upstream.connections] == [False, True]
        assert len(upstream.connections[1].requests) == 2

    def test_a_connection_of_one_rule_never_carries_a_request_of_another(self, world: World) -> None:
        first = len(world.shared.connections)
        with RawClient(world.sidecar.address) as client:

            def ask(port: int) -> Answer:
                client.send(f"GET http://{SHARED}:{port}/{port} HTTP/1.1\r\nHost: {SHARED}:{port}\r\n\r\n".encode())
                return client.read_response()

            assert ask(8001).status == 200
            refused = ask(8002)
            assert (refused.status, refused.json()["reason"], refused.json()["rule"]) == (502, "pin_mismatch", "two")
            assert ask(8003).status == 200
            assert ask(8001).status == 200
            assert ask(8002).status == 502
        world.shared.settle()
        seen = [[r.target for r in c.requests] for c in world.shared.connections[first:]]
        targets = sorted(target for connection in seen for target in connection)
        assert targets == ["/8001", "/8001", "/8003"]
        assert all(len(set(connection)) <= 1 for connection in seen), seen

    def test_pinned_https_is_never_tunnelled_past_the_check(self, world: World, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(identity=world.good)
        own_authority = world.sidecar.policy_file.parent / "roots.pem"
        url = upstream.url(scheme="https", host="leaf.example")
        answer = curl(url, proxy=world.sidecar.proxy_url, ca_file=own_authority)
        assert (answer.status, answer.exit_status) == (0, 60)  # the app sees the local CA, not the upstream's
        upstream.assert_untouched()


def test_the_metrics_count_what_was_checked(world: World, tls_upstream: MakeTls) -> None:
    def counted(result: str) -> float:
        return world.sidecar.metrics().value("overcoat_pin_checks_total", rule="nobody", result=result)

    before = counted("mismatch")
    upstream = tls_upstream(identity=world.good)
    assert curl(upstream.url(host="nobody.example"), proxy=world.sidecar.proxy_url).status == 502
    assert counted("mismatch") == before + 1
    assert counted("match") == 0
    value: Any = world.sidecar.metrics().value(
        "overcoat_requests_total", rule="nobody", action="deny", reason="pin_mismatch"
    )
    assert value == before + 1
