"""mitmproxy's flow, connection and message objects, made for every request without what that costs there.

Rules of this module:

- What is made is an object of mitmproxy's own class with every attribute that its constructor sets, and nothing else
  of it is changed: `tests/proxy/engine/test_flows.py` compares them one by one.
- Identifiers are counted: unique within the process, which they never leave. None looks like the UUIDs of objects that
  mitmproxy makes itself.
- Nothing is checked here. The values come from our own code, whose types mypy checks.

For one request, mitmproxy's constructors take some 120 µs, most of it for looking up the type of each field of each
message, and for a random UUID for each flow and connection, which is a system call. This takes 3 µs.
"""

from __future__ import annotations

import itertools
import time

from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState, Server

_count = itertools.count(1)
_CLIENT = vars(Client(peername=("", 0), sockname=("", 0), state=ConnectionState.OPEN, timestamp_start=0.0))
_SERVER = vars(Server(address=None))
_NO_SERVER = Server(address=None)


def _next_id() -> str:
    return f"o{next(_count)}"


def new_flow(client: Client, request: http.Request) -> http.HTTPFlow:
    """Return a live flow of a request, which has no upstream yet.

    Args:
        client: the connection that the request came on.
        request: the request.
    """
    # One by one, which takes half as long as filling its dictionary does.
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
        sockname: ours.
        started: when it was accepted, in seconds since 1970.
    """
    client = Client.__new__(Client)
    vars(client).update(_CLIENT, id=_next_id(), peername=peername, sockname=sockname, timestamp_start=started)
    return client


def new_server(address: tuple[str, int], *, tls: bool) -> Server:
    """Return a connection to an upstream that is still to be opened.

    Args:
        address: the upstream's host and port.
        tls: whether TLS is to be spoken on it.
    """
    server = Server.__new__(Server)
    vars(server).update(_SERVER, id=_next_id(), address=address, tls=tls)
    return server


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
    """Return a request that begins now, without a body yet.

    Args:
        host: the canonical host that it is meant for.
        port: 1 to 65535.
        method: as sent.
        scheme: `http`, `https`, or empty for CONNECT.
        authority: of an absolute-form target or a CONNECT; empty for origin form.
        path: with the query; empty for CONNECT.
        version: as mitmproxy writes it: `HTTP/1.1`, `HTTP/2.0`.
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
    """Return a response that begins now, without a body yet.

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
