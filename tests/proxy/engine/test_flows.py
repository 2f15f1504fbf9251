"""What is made without mitmproxy's constructors is what these would have made, attribute by attribute.

A failure after a new version of mitmproxy means: it has an attribute that `proxy.engine.flows` does not set yet.
"""

from __future__ import annotations

import time

import pytest
from mitmproxy import http
from mitmproxy.connection import Client, Connection, ConnectionState, Server

from proxy.engine.flows import new_client, new_flow, new_request, new_response, new_server

PEER, OURS = ("127.0.0.1", 4711), ("127.0.0.1", 8080)
FIELDS = ((b"Host", b"a"), (b"x", b"1"), (b"X", b"2"))


def request() -> http.Request:
    return new_request(
        "a.example",
        80,
        b"GET",
        scheme=b"http",
        authority=b"",
        path=b"/p?q=1",
        version=b"HTTP/1.1",
        headers=http.Headers(FIELDS),
    )


def without_id(thing: object) -> dict[str, object]:
    return {name: value for name, value in vars(thing).items() if name != "id"}


def shared_by(one: object, other: object) -> set[str]:
    """Return the attributes by which two objects share what can be changed."""
    frozen = (
        str,
        bytes,
        int,
        float,
        tuple,
        type(None),
        ConnectionState,
        type(Client(peername=PEER, sockname=OURS).proxy_mode),
    )
    return {
        name
        for name, value in vars(one).items()
        if value is vars(other).get(name) and not isinstance(value, (*frozen, Connection, http.Request))
    }


def test_a_request_is_as_mitmproxy_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    made = request()
    theirs = http.Request(
        "a.example", 80, b"GET", b"http", b"", b"/p?q=1", b"HTTP/1.1", http.Headers(FIELDS), None, None, 1234.5, None
    )
    assert type(made) is http.Request
    assert vars(made).keys() == vars(theirs).keys()
    assert type(made.data) is http.RequestData
    assert vars(made.data) == vars(theirs.data)
    assert made.stream is theirs.stream is False


def test_a_response_is_as_mitmproxy_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    made = new_response(b"HTTP/1.1", 404, b"Not Found", http.Headers(FIELDS))
    theirs = http.Response(b"HTTP/1.1", 404, b"Not Found", http.Headers(FIELDS), None, None, 1234.5, None)
    assert type(made) is http.Response
    assert vars(made).keys() == vars(theirs).keys()
    assert type(made.data) is http.ResponseData
    assert vars(made.data) == vars(theirs.data)
    assert made.stream is theirs.stream is False


def test_a_client_is_as_mitmproxy_makes_it() -> None:
    made = new_client(PEER, OURS, 1234.5)
    theirs = Client(peername=PEER, sockname=OURS, timestamp_start=1234.5, state=ConnectionState.OPEN)
    assert type(made) is Client
    assert without_id(made) == without_id(theirs)
    assert shared_by(made, new_client(PEER, OURS, 1.0)) == set()


@pytest.mark.parametrize("tls", [True, False])
def test_a_server_is_as_mitmproxy_makes_it(tls: bool) -> None:
    made = new_server(("a.example", 443), tls=tls)
    theirs = Server(address=("a.example", 443), tls=tls)
    assert type(made) is Server
    assert without_id(made) == without_id(theirs)
    assert shared_by(made, new_server(("a.example", 443), tls=tls)) == set()
    made.timestamp_start = 1.0  # what is set later is its own
    assert new_server(("a.example", 443), tls=tls).timestamp_start is None


def test_a_flow_is_as_mitmproxy_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    client, asked = new_client(PEER, OURS, 1.0), request()
    made = new_flow(client, asked)
    theirs = http.HTTPFlow(client, made.server_conn, True)
    theirs.request = asked
    assert type(made) is http.HTTPFlow
    assert without_id(made) == without_id(theirs)
    assert without_id(made.server_conn) == without_id(Server(address=None))
    assert {**made.get_state(), "id": ""} == {**theirs.get_state(), "id": ""}
    assert shared_by(made, new_flow(client, asked)) == set()


def test_all_that_is_made_has_an_identifier_of_its_own() -> None:
    client = new_client(PEER, OURS, 1.0)
    connections = (client, new_client(PEER, OURS, 1.0), new_server(("a.example", 443), tls=True))
    flows = (new_flow(client, request()), new_flow(client, request()))
    identifiers = {*(each.id for each in connections), *(each.id for each in flows)}
    assert len(identifiers) == 5
    assert all(isinstance(each, str) and len(each) < 32 for each in identifiers)  # a UUID has 36 characters
