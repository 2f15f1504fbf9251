"""What the pipeline knows of a connection: its exchanges, and nothing any more once it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from mitmproxy import connection, http

from addons.sessions import Sessions
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.policy import Mode, Policy

NewFlow = Callable[..., http.HTTPFlow]


class TestSessions:
    def test_a_flow_has_one_exchange_with_its_path_without_the_query(
        self, sessions: Sessions, client: connection.Client, new_flow: NewFlow
    ) -> None:
        flow = new_flow()
        exchange = sessions.exchange(flow)
        assert sessions.exchange(flow) is exchange
        assert (exchange.method, exchange.path, exchange.client) == ("GET", "/a", "127.0.0.1")
        assert sessions.of(client).requests == 1
        assert sessions.of(client).connect is None

    def test_a_connect_is_no_request_and_has_no_path(
        self, sessions: Sessions, client: connection.Client, new_flow: NewFlow
    ) -> None:
        exchange = sessions.exchange(new_flow("CONNECT", ""))
        assert exchange.path == ""
        assert sessions.of(client).requests == 0

    def test_a_connection_without_a_session_is_an_error(self, client: connection.Client) -> None:
        with pytest.raises(KeyError):
            Sessions().of(client)

    def test_a_closed_session_is_forgotten_and_may_be_closed_again(
        self, sessions: Sessions, client: connection.Client
    ) -> None:
        for _ in range(2):
            sessions.close(client)
        with pytest.raises(KeyError):
            sessions.of(client)

    def test_only_those_that_were_admitted_count_and_no_longer_than_they_last(self) -> None:
        sessions = Sessions()
        clients = [
            connection.Client(peername=(host, port), sockname=("127.0.0.1", 2))
            for host, port in (("1.1.1.1", 1), ("1.1.1.1", 2), ("1.1.1.1", 3), ("2.2.2.2", 1))
        ]
        opened = [sessions.open(each, Policy()) for each in clients]
        for each in (opened[0], opened[1], opened[3]):
            sessions.admit(each)

        def counts() -> tuple[int, int, int]:
            return sessions.admitted, sessions.count("1.1.1.1"), sessions.count("2.2.2.2")

        assert counts() == (3, 2, 1)
        sessions.close(clients[2])  # it was not
        assert counts() == (3, 2, 1)
        sessions.close(clients[0])
        assert counts() == (2, 1, 1)
        sessions.close(clients[0])
        assert counts() == (2, 1, 1)
        sessions.close(clients[1])
        assert counts() == (1, 0, 1)
        assert list(sessions._counts) == ["2.2.2.2"]  # of those that are gone nothing is kept

    def test_tls_that_fails_is_that_of_a_connect(
        self, sessions: Sessions, client: connection.Client, new_flow: NewFlow
    ) -> None:
        session = sessions.of(client)
        session.tls_failed()
        connect = session.connect = sessions.exchange(new_flow("CONNECT", ""))
        before = connect.denied
        assert before is None
        session.tls_failed(": the reason")
        assert connect.denied is not None
        assert connect.denied.reason is Reason.APP_TLS_FAILED
        assert connect.denied.detail == "the app did not complete TLS with the local CA: the reason"

    def test_a_flow_keeps_the_policy_of_its_connection(self, client: connection.Client, new_flow: NewFlow) -> None:
        sessions = Sessions()
        policy = replace(Policy(), mode=Mode.OBSERVE)
        sessions.open(client, policy)
        assert sessions.exchange(new_flow()).policy is policy


@pytest.mark.parametrize(
    ("method", "decided", "mode", "idle"),
    [
        ("GET", Action.UPGRADE, Mode.ENFORCE, False),
        ("CONNECT", Action.TUNNEL, Mode.ENFORCE, False),
        ("CONNECT", Action.INSPECT, Mode.ENFORCE, True),  # what counts is what it carries
        ("CONNECT", Action.INSPECT, Mode.OBSERVE, False),  # observed, it is a tunnel
        ("CONNECT", None, Mode.ENFORCE, False),
    ],
)
def test_a_session_is_idle_when_nothing_is_under_way(
    client: connection.Client, method: str, decided: Action | None, mode: Mode, idle: bool, new_flow: NewFlow
) -> None:
    sessions = Sessions()
    session = sessions.open(client, replace(Policy(), mode=mode))
    assert session.is_idle
    exchange = sessions.exchange(new_flow(method))
    session.connect = exchange if method == "CONNECT" else None
    exchange.decision = Decision(decided) if decided else None
    assert session.is_idle is idle
    session.unfinished.discard(exchange)
    assert session.is_idle


def test_what_is_cut_off_is_counted_without_the_connect_that_carries_it(
    sessions: Sessions, client: connection.Client, new_flow: NewFlow
) -> None:
    session = sessions.of(client)
    connect = session.connect = sessions.exchange(new_flow("CONNECT", ""))
    session.speaks_http = True
    one, other, over = (sessions.exchange(new_flow()) for _ in range(3))
    over.outcome = Outcome.OK
    denied = Denied(Reason.DRAIN_TIMEOUT, "the end")
    assert session.cut_off(denied) == 2
    assert (one.denied, other.denied, over.denied, connect.denied) == (denied, denied, None, None)


@pytest.mark.parametrize("requests", [0, 1])
def test_what_failed_inside_is_the_requests_or_without_any_the_connects(
    sessions: Sessions, client: connection.Client, new_flow: NewFlow, requests: int
) -> None:
    session = sessions.of(client)
    connect = session.connect = sessions.exchange(new_flow("CONNECT", ""))
    session.speaks_http = True
    carried = [sessions.exchange(new_flow()) for _ in range(requests)]
    session.failed(Denied(Reason.INTERNAL_ERROR, "x"))
    assert (connect.denied is not None) is (requests == 0)
    assert all(exchange.denied is not None for exchange in carried)


def test_what_failed_inside_after_the_requests_is_no_fault_of_the_connect(
    sessions: Sessions, client: connection.Client, new_flow: NewFlow
) -> None:
    session = sessions.of(client)
    session.failed(Denied(Reason.INTERNAL_ERROR, "before anything was asked"))
    connect = session.connect = sessions.exchange(new_flow("CONNECT", ""))
    session.speaks_http = True
    session.unfinished.discard(sessions.exchange(new_flow()))
    session.failed(Denied(Reason.INTERNAL_ERROR, "x"))
    assert connect.denied is None
