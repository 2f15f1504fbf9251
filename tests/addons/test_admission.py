"""Who may use the proxy: addresses, and users with their passwords."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest
from mitmproxy import connection, http

from addons.admission import Admission
from addons.sessions import Sessions
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import ListenerKind, Policy
from proxy.core.who.addresses import AddressSet
from proxy.core.who.clients import ClientRules, PasswordHash, User
from proxy.core.who.credentials import Verifier

VERIFIER = Verifier(b"", lambda: 0.0)
POLICY = Policy()


def credentials(text: str) -> tuple[bytes, bytes]:
    return b"Proxy-Authorization", b"Basic " + base64.b64encode(text.encode())


def new_flow(client: connection.Client, *fields: tuple[bytes, bytes]) -> http.HTTPFlow:
    """Return a flow of the client's whose request has these fields."""
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request.make("GET", "http://api.example/", headers=http.Headers(fields))
    return flow


def passed(sessions: Sessions, flow: http.HTTPFlow, verifier: Verifier = VERIFIER) -> None:
    Admission(verifier).admit(flow, sessions.exchange(flow), sessions.of(flow.client_conn))


def refused(sessions: Sessions, flow: http.HTTPFlow, verifier: Verifier = VERIFIER) -> Denied:
    with pytest.raises(Denied) as caught:
        passed(sessions, flow, verifier)
    return caught.value


class TestCredentials:
    RIGHT, WRONG = credentials("app:one"), credentials("app:two")
    SALT = b"8 bytes."
    USERS = (User("app", PasswordHash(10, 1, 1, SALT, hashlib.scrypt(b"one", salt=SALT, n=1024, r=1, p=1, dklen=32))),)

    def flow(
        self, client: connection.Client, *shown: tuple[bytes, bytes], kind: ListenerKind = ListenerKind.FORWARD
    ) -> tuple[Sessions, http.HTTPFlow]:
        sessions = Sessions()
        sessions.open(client, replace(POLICY, clients=ClientRules(users=self.USERS)), kind)
        return sessions, new_flow(client, *shown)

    @pytest.mark.parametrize(
        ("shown", "said"),
        [
            ((), "carries no credentials"),
            ((WRONG,), "carries a name or a password that is not the proxy's"),
            ((RIGHT, WRONG), "carries a name or a password that is not the proxy's"),
            ((RIGHT, RIGHT), "carries a name or a password that is not the proxy's"),
        ],
    )
    @pytest.mark.parametrize("kind", [ListenerKind.FORWARD, ListenerKind.SOCKS5])
    def test_without_one_users_own_nothing_passes(
        self, client: connection.Client, kind: ListenerKind, shown: tuple[tuple[bytes, bytes], ...], said: str
    ) -> None:
        sessions, flow = self.flow(client, *shown, kind=kind)
        denied = refused(sessions, flow)
        assert denied.reason is Reason.PROXY_AUTHENTICATION_REQUIRED
        assert said in denied.detail

    @pytest.mark.parametrize("kind", [ListenerKind.FORWARD, ListenerKind.SOCKS5])
    def test_with_them_it_passes(self, client: connection.Client, kind: ListenerKind) -> None:
        passed(*self.flow(client, self.RIGHT, kind=kind))

    @pytest.mark.parametrize("kind", [ListenerKind.REVERSE, ListenerKind.TRANSPARENT])
    def test_where_an_app_knows_of_no_proxy_none_are_asked_for(
        self, client: connection.Client, kind: ListenerKind
    ) -> None:
        passed(*self.flow(client, kind=kind))

    def test_inside_connect_they_are_not_asked_for_again(self, client: connection.Client) -> None:
        sessions, flow = self.flow(client)
        sessions.of(client).connect = sessions.exchange(new_flow(client))
        passed(sessions, flow)

    def test_connect_itself_shows_them(self, client: connection.Client) -> None:
        sessions, flow = self.flow(client)
        sessions.of(client).connect = sessions.exchange(flow)
        assert refused(sessions, flow).reason is Reason.PROXY_AUTHENTICATION_REQUIRED

    def test_what_a_connection_has_shown_is_not_looked_at_again_while_the_users_stay(
        self, client: connection.Client
    ) -> None:
        """So whoever guesses from the same address keeps no connection out that is in."""
        sessions, flow = self.flow(client, self.RIGHT)
        asked: list[str] = []

        class Counting(Verifier):
            def verify(self, users: tuple[User, ...], value: str, client: str) -> bool:
                asked.append(value)
                return super().verify(users, value, client)

        counting = Counting(b"", lambda: 0.0)
        passed(sessions, flow, counting)
        right = self.RIGHT[1].decode()
        assert asked == [right]
        asked.clear()
        passed(sessions, new_flow(client, self.RIGHT), counting)
        assert asked == []
        refused(sessions, new_flow(client, self.WRONG), counting)
        assert asked == [self.WRONG[1].decode()]
        others = (replace(self.USERS[0], name="other"),)
        session = sessions.of(client)
        session.policy = replace(session.policy, clients=ClientRules(users=others))
        refused(sessions, new_flow(client, self.RIGHT), counting)


class TestClients:
    def test_another_policy_is_asked_again_whether_the_client_may_use_the_proxy(
        self, client: connection.Client
    ) -> None:
        sessions = Sessions()
        session = sessions.open(client, POLICY)
        for _ in range(2):
            passed(sessions, new_flow(client))
        nowhere = replace(POLICY, clients=ClientRules(addresses=AddressSet()))
        session.policy = nowhere
        for _ in range(2):  # who was refused is not let in by asking again
            assert refused(sessions, new_flow(client)).reason is Reason.CLIENT_FORBIDDEN
        session.policy = POLICY
        passed(sessions, new_flow(client))
        session.policy = nowhere
        assert refused(sessions, new_flow(client)).reason is Reason.CLIENT_FORBIDDEN
