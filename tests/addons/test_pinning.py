"""The hooks round a handshake with an upstream, and whether pins have ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from mitmproxy import connection, tls
from mitmproxy.proxy.context import Context
from OpenSSL import SSL

from addons import pinning
from addons.pinning import Pinning, expired_pins, have_expired
from addons.sessions import Sessions
from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.pins import AfterExpiry, Pin, PinSet
from proxy.core.reasons import Reason
from proxy.core.rules.policy import HostPattern, Https, PlainHttp, Policy, Rule

FREE = Rule("api", (HostPattern("exact", "api.example"),), PlainHttp.UPGRADE, Https.INSPECT)


def rule(expires: date | None = None, after: AfterExpiry = AfterExpiry.ENFORCE, *, observes: bool = False) -> Rule:
    return replace(FREE, pins=PinSet((Pin("spki", bytes(32)),), expires, after, observes))


def test_from_the_day_after_their_last_no_connection_is_used_on() -> None:
    today = datetime.now(UTC).date()
    assert not have_expired(None)
    assert not have_expired(FREE)
    assert not have_expired(rule())
    for days, is_over in ((-1, True), (0, False), (1, False)):
        assert have_expired(rule(expires=today + timedelta(days=days))) is is_over


@pytest.mark.parametrize("observes", [False, True])
@pytest.mark.parametrize("after", AfterExpiry)
@pytest.mark.parametrize(("moment", "has_ended"), [("06-30T23:59:59", False), ("07-01T00:00:00", True)])
def test_the_last_day_ends_with_its_last_second_in_utc(
    monkeypatch: pytest.MonkeyPatch, moment: str, has_ended: bool, after: AfterExpiry, observes: bool
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            return cls.fromisoformat(f"2027-{moment}+00:00")

    monkeypatch.setattr(pinning, "datetime", Clock)
    pinned = rule(date(2027, 6, 30), after, observes=observes)
    refuses = has_ended and after is AfterExpiry.ENFORCE and not observes
    assert have_expired(pinned) is refuses
    assert (expired_pins(pinned) is not None) is refuses


def test_whose_pins_have_ended_is_said() -> None:
    pinned = rule(date(2020, 1, 1))
    for is_proxy, whose in ((False, "rule api"), (True, "upstream_proxy")):
        denied = expired_pins(pinned, is_proxy=is_proxy)
        assert denied is not None
        assert denied.reason is Reason.PINS_EXPIRED
        assert denied.detail == f"the pins of {whose} expired on 2020-01-01"
    assert expired_pins(None) is expired_pins(FREE) is None


class TestHooks:
    @pytest.fixture
    def data(self) -> tls.TlsData:
        client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
        context = Context(client, None)  # type: ignore[arg-type]  # what the engine passes as well
        context.server = connection.Server(address=("api.example", 443))
        context.server.sni = "api.example"
        return tls.TlsData(context.server, context)

    @pytest.fixture
    def sessions(self, data: tls.TlsData) -> Sessions:
        sessions = Sessions()
        session = sessions.open(data.context.client, Policy())
        session.upstreams[data.conn.id] = Upstream(Policy(), None)
        return sessions

    def test_a_connection_object_gets_the_callback_and_must_verify(self, data: tls.TlsData, sessions: Sessions) -> None:
        data.ssl_conn = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        assert data.ssl_conn.get_verify_mode() == SSL.VERIFY_NONE
        Pinning(sessions).tls_start_server(data)
        assert data.ssl_conn.get_verify_mode() == SSL.VERIFY_PEER

    def test_without_a_connection_object_it_raises(self, data: tls.TlsData, sessions: Sessions) -> None:
        with pytest.raises(RuntimeError):
            Pinning(sessions).tls_start_server(data)

    def test_an_upstream_that_nobody_registered_raises(self, data: tls.TlsData, sessions: Sessions) -> None:
        sessions.of(data.context.client).upstreams.clear()
        data.ssl_conn = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        with pytest.raises(KeyError):
            Pinning(sessions).tls_start_server(data)

    def test_a_failure_that_the_callback_did_not_name_is_about_tls(self, data: tls.TlsData, sessions: Sessions) -> None:
        Pinning(sessions).tls_failed_server(data)
        upstream = sessions.of(data.context.client).upstreams[data.conn.id]
        assert upstream.denied is not None
        assert upstream.denied.reason is Reason.TLS_FAILED

    def test_a_failure_that_the_callback_named_keeps_its_name(self, data: tls.TlsData, sessions: Sessions) -> None:
        upstream = sessions.of(data.context.client).upstreams[data.conn.id]
        named = upstream.denied = Denied(Reason.PIN_MISMATCH, "x")
        Pinning(sessions).tls_failed_server(data)
        assert upstream.denied is named
