"""Shakes hands with a server, and returns the certificates that it shows; `overcoat pins fetch` calls it. It uses the
policy's roots, allowed destinations and upstream proxy, as requests do.

Rules of this module:

- Nothing but the handshake is sent.
- A chain that cannot be verified is not shown: its key may be anybody's.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from mitmproxy.connection import Client, ConnectionState, Server
from prometheus_client import CollectorRegistry

from addons.exchange import Upstream
from addons.metrics import Metrics
from proxy.core.decisions import Denied, Reason
from proxy.core.destinations import Destination
from proxy.core.rules.policy import ListenerKind, Policy
from proxy.disk.ca import LocalCa
from proxy.engine.flows import new_context
from proxy.engine.server import Engine
from proxy.engine.upstreams.dialling import connect
from proxy.engine.upstreams.handshake import secure
from proxy.engine.upstreams.route import reach


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of a handshake.

    Attributes:
        tls_version: such as `TLSv1.3`.
        chain: the verified chain, leaf to root.
    """

    tls_version: str
    chain: list[x509.Certificate]


async def probe(policy: Policy, destination: Destination) -> Shown:
    """Shake hands with a server as the sidecar would, but without pins, and close.

    Args:
        policy: has the roots, the lowest TLS version, the allowed destinations and the upstream proxy. The destination
            may be that proxy itself, if it speaks TLS.
        destination: the server.

    Raises:
        Denied: it cannot be reached, or its certificate is not trusted.
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    with tempfile.TemporaryDirectory() as folder:  # for a CA that is needed, and signs nothing
        authority = LocalCa.open(Path(folder), datetime.now(UTC))
    engine = Engine(policy, authority, Metrics(CollectorRegistry()), lambda _line: None)
    here = ("127.0.0.1", 0)
    client = Client(peername=here, sockname=here, timestamp_start=time.time(), state=ConnectionState.OPEN)
    session = engine.sessions.open(client, policy, ListenerKind.FORWARD)
    context = new_context(client)
    server = Server(address=(destination.host, destination.port))
    server.tls = True
    through = policy.upstream_proxy
    rule = policy.rule_for(destination)
    record = Upstream(
        policy,
        replace(rule, pins=None) if rule is not None else None,  # it says what is allowed and trusted
        is_proxy=through is not None and through.destination == destination,
    )
    session.upstreams[server.id] = record
    if record.is_proxy:
        connection = await connect(engine.services, destination.host, destination.port, record)
    else:
        connection = await reach(engine.services, destination.host, destination.port, record, context)
    upstream = await secure(engine.services, server, connection, record, context)
    assert upstream.tls is not None
    chain = upstream.tls.conn.get_verified_chain(as_cryptography=True)
    upstream.close()
    if not chain:
        raise Denied(Reason.INTERNAL_ERROR, "OpenSSL gave no verified chain")
    return Shown(upstream.tls.conn.get_protocol_version_name(), chain)
