"""An app for end-to-end tests: it sends one request at a time, byte for byte, as plain http, inside CONNECT, or as a
test says, and checks what the sidecar says about it.

answer = ask(sidecar, upstream, "pay.example", "/v1/charges", body=b'{"card": 1}')
assert answer.status == 200
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Protocol

import pytest

from tests.e2e.clients import Answer, RawClient
from tests.e2e.sidecar import Decision
from tests.e2e.upstream import PlainUpstream, TlsUpstream

Fields = tuple[tuple[str, str], ...]
JSON: Fields = (("Content-Type", "application/json"),)


class Proxy(Protocol):
    """What an app has for its proxy: a `Sidecar`, or a `Mitmdump` with the addon."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""

    @property
    def ca_file(self) -> Path:
        """The certificate of the local authority."""

    def decisions(self) -> list[Decision]:
        """Return the decision lines so far."""

    def wait_for_decision(self, predicate: Callable[[Decision], bool] = ...) -> Decision:
        """Return the first decision line that the predicate is true of, once it is written."""


_ports_used: set[int] = set()


def fresh[U: TlsUpstream | PlainUpstream](make: Callable[[], U]) -> U:
    """Return an upstream on a port that no test of this process used before, so that the port identifies its decision
    lines.
    """
    while (upstream := make()).port in _ports_used:
        pass
    _ports_used.add(upstream.port)
    return upstream


class Way(Enum):
    """How a request gets to the sidecar."""

    HTTP = "plain http in absolute form, which is upgraded"
    CONNECT = "https through CONNECT, which is inspected"


def request(
    target: str,
    authority: str,
    *,
    method: str = "POST",
    headers: Fields = JSON,
    body: bytes = b"",
    chunks: Iterable[bytes] | None = None,
) -> bytes:
    """Return the bytes of an HTTP/1.1 request.

    Args:
        target: the request target.
        authority: the Host field.
        method: the method.
        headers: further fields.
        body: the body, with its Content-Length.
        chunks: the body in these chunks instead.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {authority}", *(f"{name}: {value}" for name, value in headers)]
    if chunks is not None:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    elif body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def connect(proxy: Proxy, authority: str) -> RawClient:
    """Open a tunnel through the proxy.

    Raises:
        AssertionError: it was not granted.
    """
    client = RawClient(proxy.address)
    client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
    answer = client.read_response(method="CONNECT")
    assert answer.status == 200, f"CONNECT was answered {answer.status}"
    return client


def open_way(proxy: Proxy, host: str, port: int, way: Way = Way.HTTP) -> RawClient:
    """Return a connection on which a request for this host may be sent."""
    if way is Way.HTTP:
        return RawClient(proxy.address)
    ca_file = proxy.ca_file  # asked for first: it may run a command, and the sidecar waits only so long for a handshake
    client = connect(proxy, f"{host}:{port}")
    client.start_tls(host, ca_file)
    return client


def ask(
    proxy: Proxy,
    upstream: TlsUpstream | PlainUpstream,
    host: str,
    path: str = "/",
    *,
    way: Way = Way.HTTP,
    method: str = "POST",
    headers: Fields = JSON,
    body: bytes = b"",
    chunks: Iterable[bytes] | None = None,
) -> Answer:
    """Send one request and return its answer; see `request`."""
    authority = f"{host}:{upstream.port}"
    target = f"http://{authority}{path}" if way is Way.HTTP else path
    with open_way(proxy, host, upstream.port, way) as client:
        client.send(request(target, authority, method=method, headers=headers, body=body, chunks=chunks))
        return client.read_response(method=method)


def decision_of(proxy: Proxy, upstream: TlsUpstream | PlainUpstream) -> Decision:
    """Return the decision line of the one request that was meant for an upstream, which is a `fresh` one.

    Raises:
        AssertionError: there is none, or more than one, a CONNECT whose requests were seen not counted.
    """
    port = f":{upstream.port}"
    found = proxy.wait_for_decision(lambda decision: (decision["destination"] or "").endswith(port))
    lines = [line for line in proxy.decisions() if (line["destination"] or "").endswith(port)]
    assert len(lines) == 1, f"more than one decision line: {lines!r}"
    return found


def assert_denied(proxy: Proxy, upstream: TlsUpstream | PlainUpstream, answer: Answer, reason: str) -> None:
    """Check everything about a denial before the upstream: problem details, a decision line, not one byte sent on."""
    assert answer.headers.get("content-type") == "application/problem+json", answer
    problem = answer.json()
    assert (problem["reason"], problem["status"]) == (reason, answer.status)
    assert f'details="{reason}"' in (answer.headers.get("proxy-status") or "")
    line = decision_of(proxy, upstream)
    assert (line["action"], line["reason"], line["status"]) == ("deny", reason, answer.status)
    upstream.assert_no_application_bytes()


def careless() -> ssl.SSLContext:
    """Return a TLS context that accepts any name and any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello(name: str | None = None) -> bytes:
    """Return a ClientHello for a name, or for an address."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        careless().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()
