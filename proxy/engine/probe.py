"""Asks a server a question on a connection of its own: what certificates it shows (`overcoat pins`), what it answers
over http and over https (`overcoat suggest`), and which keys it publishes (`overcoat check`). It uses the policy's
roots, allowed destinations and upstream proxy, as requests do.

Rules of this module:

- What the policy forbids is not reached, in observe mode either: nobody but this command wants it.
- `probe` sends nothing but the handshake. `ask` sends one GET without credentials or cookies, and follows nothing.
- `fetch` says why no keys came with `SupplyFailed`.
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
from mitmproxy.connection import Client, ConnectionState, Server
from prometheus_client import CollectorRegistry

from addons.metrics import Metrics
from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.jose.keys import KeySet, Supply
from proxy.core.reasons import Reason
from proxy.core.rules.policy import ListenerKind, Mode, Policy
from proxy.disk.ca import LocalCa
from proxy.engine.flows import new_context
from proxy.engine.hookdata import Context
from proxy.engine.roots import with_roots
from proxy.engine.server import Engine
from proxy.engine.unverified import NoHandshake, sent_chain
from proxy.engine.upstreams.asking import ask_server
from proxy.engine.upstreams.dialling import connect
from proxy.engine.upstreams.handshake import secure
from proxy.engine.upstreams.route import reach
from proxy.engine.upstreams.supplies import fetch_keys

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


@dataclass(frozen=True, slots=True)
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
        authority = LocalCa.open(Path(folder), datetime.now(UTC), any_clock=True)
    complete = replace(with_roots(policy), mode=Mode.ENFORCE)
    return Engine(complete, authority, Metrics(CollectorRegistry()), lambda _line: None)


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
    services = place.engine.services
    answer = await ask_server(services, destination, path, place.record, tls=tls, most=_MOST_BYTES, keeps=False)
    locations = answer.values(b"location")
    return Answered(answer.status, answer.length, locations[0].decode("latin-1") if locations else "")


async def fetch(policy: Policy, key_set: KeySet, supply: Supply) -> KeySet:
    """Fetch the keys of a set once, as the sidecar does.

    Args:
        policy: as for `probe`.
        key_set: the set.
        supply: its supply.

    Raises:
        SupplyFailed: they cannot be fetched, or none can be used.
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    place = _place(_engine(policy), Destination(supply.host, supply.port), tls=True)
    return await fetch_keys(place.engine.services, place.record.policy, key_set, supply)
