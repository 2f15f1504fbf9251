"""Makes mitmproxy's flow, connection and message objects for each request, at a fraction of the cost of mitmproxy's own
constructors. The conversations and `messages` call it.

Rules of this module:

- Each object but the context (`hookdata`) has mitmproxy's own class and every attribute that its constructor sets:
  `tests/proxy/engine/test_flows.py` compares them one by one.
- Identifiers are counted. They are unique within the process, which they never leave, and none looks like the UUIDs of
  objects that mitmproxy makes itself.
- Nothing is checked here: the values come from our own code, whose types mypy checks.

For one request, mitmproxy's constructors take some 120 µs: most of it for looking up the type of each field of each
message, and for random UUIDs, each of which is a system call. This module takes 3 µs.
"""

from __future__ import annotations

import itertools
import time

from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState, Server

from proxy.engine.hookdata import Context

_count = itertools.count(1)
_CLIENT = vars(Client(peername=("", 0), sockname=("", 0), state=ConnectionState.OPEN, timestamp_start=0.0))
_SERVER = vars(Server(address=None))
_NO_SERVER = Server(address=None)


def _next_id() -> str:
    return f"o{next(_count)}"


def new_flow(client: Client, request: http.Request) -> http.HTTPFlow:
    """Return a live flow for a request, without an upstream yet.

    Args:
        client: the connection on which the request came.
        request: the request.
    """
    # One by one: that takes half as long as filling the dictionary.
    flow = http.HTTPFlow.__new__(http.HTTPFlow)
    flow.id = _next_id()
    flow.client_conn = client
    flow.server_conn = _NO_SERVER
    flow.live = True
    flow.timestamp_created = time.time()
    flow.intercepted = False
    flow._resume_event = None
    flow._backup = None
    flow.marked = ""
    flow.is_replay = None
    flow.metadata = {}
    flow.comment = ""
    flow.request = request
    return flow


def new_client(peername: tuple[str, int], sockname: tuple[str, int], started: float) -> Client:
    """Return an open client connection.

    Args:
        peername: the client's address and port.
        sockname: our address and port.
        started: when it was accepted, in seconds since 1970.
    """
    client = Client.__new__(Client)
    vars(client).update(_CLIENT, id=_next_id(), peername=peername, sockname=sockname, timestamp_start=started)
    return client


def new_server(address: tuple[str, int] | None, *, tls: bool) -> Server:
    """Return a connection to an upstream that is not open yet.

    Args:
        address: the upstream's host and port; None if they are not known yet.
        tls: whether it will use TLS.
    """
    server = Server.__new__(Server)
    vars(server).update(_SERVER, id=_next_id(), address=address, tls=tls)
    return server


def new_context(client: Client) -> Context:
    """Return the context, which hooks get, for a client whose upstream is not known yet.

    Args:
        client: the client.
    """
    return Context(client, new_server(None, tls=False))


def new_request(
    host: str,
    port: int,
    method: bytes,
    *,
    scheme: bytes,
    authority: bytes,
    path: bytes,
    version: bytes,
    headers: http.Headers,
) -> http.Request:
    """Return a request that begins now, with no body yet.

    Args:
        host: its canonical host.
        port: 1 to 65535.
        method: as sent.
        scheme: `http`, `https`, or empty for CONNECT.
        authority: the authority of an absolute-form target or of a CONNECT; empty for origin form.
        path: with the query; empty for CONNECT.
        version: in mitmproxy's spelling: `HTTP/1.1`, `HTTP/2.0`.
        headers: the header fields.
    """
    data = http.RequestData.__new__(http.RequestData)
    data.host = host
    data.port = port
    data.method = method
    data.scheme = scheme
    data.authority = authority
    data.path = path
    data.http_version = version
    data.headers = headers
    data.content = data.trailers = data.timestamp_end = None
    data.timestamp_start = time.time()
    request = http.Request.__new__(http.Request)
    request.data = data
    return request


def new_response(version: bytes, status: int, reason: bytes, headers: http.Headers) -> http.Response:
    """Return a response that begins now, with no body yet.

    Args:
        version: as for a request.
        status: the status code.
        reason: the reason phrase.
        headers: the header fields.
    """
    data = http.ResponseData.__new__(http.ResponseData)
    data.http_version = version
    data.status_code = status
    data.reason = reason
    data.headers = headers
    data.content = data.trailers = data.timestamp_end = None
    data.timestamp_start = time.time()
    response = http.Response.__new__(http.Response)
    response.data = data
    return response
