"""Asks a server a question on a connection of its own: what certificates it shows (`overcoat pins`), and what it
answers over http and over https (`overcoat suggest`). It uses the policy's roots, allowed destinations and upstream
proxy, as requests do.

Rules of this module:

- What the policy forbids is not reached, in observe mode either: nobody but this command wants it.
- `probe` sends nothing but the handshake. `ask` sends one GET without credentials or cookies, and follows nothing.
- A chain that cannot be verified is shown only by `unverified`, whose name says so: its key may be anybody's.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.context import Context
from prometheus_client import CollectorRegistry

from addons.exchange import Upstream
from addons.metrics import Metrics
from proxy import timelimits
from proxy.core.decisions import Denied, Reason
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.http.heads import Fields, ResponseHead
from proxy.core.rules.policy import ListenerKind, Mode, Policy
from proxy.disk.ca import LocalCa
from proxy.engine.flows import new_context, new_request
from proxy.engine.server import Engine
from proxy.engine.unverified import NoHandshake, sent_chain
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.dialling import connect
from proxy.engine.upstreams.handshake import secure
from proxy.engine.upstreams.route import dial, reach

_MOST_BYTES = 4 * 1024 * 1024  # of a response that are counted


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of a handshake.

    Attributes:
        tls_version: such as `TLSv1.3`.
        chain: the verified chain, leaf to root; of `Prober.unverified` what the server sent, in its order.
    """

    tls_version: str
    chain: list[x509.Certificate]


@dataclass(slots=True)
class Answered:
    """A server's answer.

    Attributes:
        status: the status code.
        length: bytes of the body as they came; no more than some megabytes are counted.
        location: the value of Location; "" for none.
    """

    status: int
    length: int = 0
    location: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """Whence a question is asked: an engine that serves nobody, and a client that does not exist."""

    engine: Engine
    context: Context
    server: Server
    record: Upstream


def _engine(policy: Policy) -> Engine:
    """Return an engine that serves nobody.

    Raises:
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    with tempfile.TemporaryDirectory() as folder:  # for a CA that is needed, and signs nothing
        authority = LocalCa.open(Path(folder), datetime.now(UTC))
    return Engine(replace(policy, mode=Mode.ENFORCE), authority, Metrics(CollectorRegistry()), lambda _line: None)


def _place(engine: Engine, destination: Destination, *, tls: bool) -> _Place:
    """Return what a connection to a server needs, without pins."""
    policy, here = engine.policy, ("127.0.0.1", 0)
    client = Client(peername=here, sockname=here, timestamp_start=time.time(), state=ConnectionState.OPEN)
    session = engine.sessions.open(client, policy, ListenerKind.FORWARD)
    server = Server(address=(destination.host, destination.port))
    server.tls = tls
    through = policy.upstream_proxy
    rule = policy.rule_for(destination) if tls else policy.rule_for_plain_http(destination)
    record = Upstream(
        policy,
        replace(rule, pins=None, mode=None) if rule is not None else None,  # it says what is allowed and trusted
        is_proxy=through is not None and through.destination == destination,
    )
    session.upstreams[server.id] = record
    return _Place(engine, new_context(client), server, record)


class Prober:
    """Shakes hands with servers as the sidecar would, but without their pins, and closes. It is made inside a running
    event loop, and may be asked for several servers at once.
    """

    def __init__(self, policy: Policy) -> None:
        """Start.

        Args:
            policy: has the roots, the lowest TLS version, the allowed destinations and the upstream proxy. A
                destination may be that proxy itself, if it speaks TLS.

        Raises:
            proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
        """
        self._engine = _engine(policy)

    async def probe(self, destination: Destination) -> Shown:
        """Return what a server shows, once that is verified.

        Raises:
            Denied: it cannot be reached, or its certificate is not trusted.
        """
        place = _place(self._engine, destination, tls=True)
        services, record = place.engine.services, place.record
        connection = await _reach(place, destination)
        upstream = await secure(services, place.server, connection, record, place.context)
        assert upstream.tls is not None
        chain = upstream.tls.conn.get_verified_chain(as_cryptography=True)
        upstream.close()
        if not chain:
            raise Denied(Reason.INTERNAL_ERROR, "OpenSSL gave no verified chain")
        return Shown(upstream.tls.conn.get_protocol_version_name(), chain)

    async def unverified(self, destination: Destination) -> Shown:
        """Return what a server sends, whoever it is: nothing of it is checked, and nothing else is sent.

        Raises:
            Denied: it cannot be reached, or does not complete TLS.
        """
        connection = await _reach(_place(self._engine, destination, tls=True), destination)
        try:
            async with asyncio.timeout(timelimits.HANDSHAKE_SECONDS):
                version, chain = await sent_chain(connection, destination.host)
            return Shown(version, [x509.load_der_x509_certificate(each) for each in chain])
        except (OSError, NoHandshake, TimeoutError, ValueError, x509.InvalidVersion):
            raise Denied(
                Reason.TLS_FAILED, f"{destination.host} port {destination.port} did not complete a TLS handshake"
            ) from None
        finally:
            connection.close()


async def _reach(place: _Place, destination: Destination) -> socket.socket:
    services, host, port = place.engine.services, destination.host, destination.port
    if place.record.is_proxy:
        return await connect(services, host, port, place.record)
    return await reach(services, host, port, place.record, place.context)


async def probe(policy: Policy, destination: Destination) -> Shown:
    """Shake hands with one server; see `Prober`.

    Raises:
        Denied: it cannot be reached, or its certificate is not trusted.
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    return await Prober(policy).probe(destination)


async def ask(policy: Policy, destination: Destination, path: str, *, tls: bool) -> Answered:
    """Ask a server for a path, over https or over plain http.

    Args:
        policy: as for `Prober`.
        destination: the server.
        path: begins with a slash; ASCII without blanks.
        tls: whether https is spoken.

    Raises:
        Denied: it cannot be reached, its certificate is not trusted, or it gives no whole answer in time.
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    place = _place(_engine(policy), destination, tls=tls)
    upstream = await dial(place.engine.services, place.server, None, place.record, place.context)
    scheme, is_usual = (b"https", destination.port == HTTPS_PORT) if tls else (b"http", destination.port == HTTP_PORT)
    fields = (
        (b"Host", (destination.url_host if is_usual else destination.authority).encode("ascii")),
        (b"User-Agent", b"overcoat"),
        (b"Accept", b"*/*"),
        (b"Connection", b"close"),
    )
    request = new_request(
        destination.host,
        destination.port,
        b"GET",
        scheme=scheme,
        authority=b"",
        path=path.encode("ascii"),
        version=b"HTTP/1.1",
        headers=http.Headers(fields),
    )
    listener = _Listener(upstream)
    upstream.ask(listener, request, b"", is_whole=True, trailers=(), te=False)
    try:
        async with asyncio.timeout(timelimits.QUESTION_SECONDS):
            return await listener.answer
    except TimeoutError:
        seconds = timelimits.QUESTION_SECONDS
        raise Denied(Reason.UPSTREAM_TIMEOUT, f"{destination} gave no whole answer in {seconds} s") from None
    finally:
        upstream.close()


class _Listener:
    """Receives an answer, and keeps nothing of its body."""

    def __init__(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self._found: Answered | None = None
        self.answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()

    def response_head(self, head: ResponseHead) -> None:
        if head.status >= 200:
            values = [value for name, value in head.fields if name.lower() == b"location"]
            self._found = Answered(head.status, location=values[0].decode("latin-1") if values else "")

    def response_data(self, data: bytes) -> None:
        if self._found is not None:
            self._found.length += len(data)
            if self._found.length >= _MOST_BYTES:
                self.response_end()

    def response_end(self, trailers: Fields = ()) -> None:
        if self._found is not None and not self.answer.done():
            self.answer.set_result(self._found)

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        del began, is_untouched
        if not self.answer.done():
            self.answer.set_exception(denied)

    def switched(self, data: bytes) -> None:
        """Do nothing: it was not asked to switch."""

    def switched_end(self) -> None:
        """Do nothing, too."""

    def wants_http1(self) -> None:
        """Do nothing: it is spoken."""

    def upstream_congested(self, congested: bool) -> None:
        """Do nothing: all is sent."""

    def flush(self) -> None:
        """Do nothing: nothing is passed on."""

    def crashed(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
