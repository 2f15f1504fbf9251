"""Fixtures for the tests of addons: a flow on the client connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mitmproxy import connection, http


@pytest.fixture
def new_flow(client: connection.Client) -> Callable[..., http.HTTPFlow]:
    """Makes flows of the client's."""

    def make(method: str = "GET", path: str = "/a?b=c") -> http.HTTPFlow:
        flow = http.HTTPFlow(client, connection.Server(address=None))
        flow.request = http.Request.make(method, "http://api.example/", headers=http.Headers(Expect="100-continue"))
        flow.request.data.path = path.encode()
        return flow

    return make
