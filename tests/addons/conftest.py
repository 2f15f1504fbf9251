"""What tests of addons have in common: a client connection, its session, and a flow on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mitmproxy import connection, http

from addons.sessions import Sessions
from proxy.core.policy import Policy


@pytest.fixture
def client() -> connection.Client:
    return connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))


@pytest.fixture
def sessions(client: connection.Client) -> Sessions:
    sessions = Sessions()
    sessions.open(client, Policy())
    return sessions


@pytest.fixture
def new_flow(client: connection.Client) -> Callable[..., http.HTTPFlow]:
    """Makes flows of the client's."""

    def make(method: str = "GET", path: str = "/a?b=c") -> http.HTTPFlow:
        flow = http.HTTPFlow(client, connection.Server(address=None))
        flow.request = http.Request.make(method, "http://api.example/", headers=http.Headers(Expect="100-continue"))
        flow.request.data.path = path.encode()
        return flow

    return make
