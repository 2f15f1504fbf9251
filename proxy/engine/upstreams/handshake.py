"""Turns a connected socket into an upstream connection: does the TLS handshake, calls its hooks, and names the reason
if it fails. `upstreams.route` calls it for destinations and for an upstream proxy, `probe` for `overcoat pins fetch`.

Rules of this module:

- A hook prepares what is verified, including the pins. If this hook fails, there is no handshake.
- A failed handshake has a reason: the denial that the verification noted, if it noted one.
"""

from __future__ import annotations

import asyncio
import socket
import time

from mitmproxy.connection import ConnectionState, Server

from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason
from proxy.engine.dispatch import HookFailed
from proxy.engine.hookdata import Context, TlsData
from proxy.engine.transport import SocketTransport
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.services import Services


async def secure(
    services: Services, server: Server, connection: socket.socket, record: Upstream, context: Context
) -> UpstreamConnection:
    """Make an upstream connection of a connected socket, with TLS if the server is to speak it.

    Args:
        services: has the event loop and the hooks.
        server: the server, with its `address` and `tls`.
        connection: the socket.
        record: notes the result of the handshake.
        context: the client for which it is made, for the hooks.

    Raises:
        Denied: the handshake failed, or the server is not trusted.
    """
    assert server.address is not None
    upstream = UpstreamConnection(server, record, connection, services.timers)
    transport = SocketTransport(services.loop, connection, upstream)
    upstream.opened = services.loop.time()
    server.peername = transport.get_extra_info("peername")
    record.address = Destination(*server.peername[:2]).authority if server.peername else None
    server.sockname = transport.get_extra_info("sockname")
    server.timestamp_start = server.timestamp_tcp_setup = time.time()
    server.state = ConnectionState.OPEN
    if server.tls:
        await _secure(services, upstream, context)
    return upstream


async def _secure(services: Services, upstream: UpstreamConnection, context: Context) -> None:
    data = TlsData(upstream.server, context.with_server(upstream.server))
    try:
        services.dispatch.call("tls_start_server", data)
        assert data.ssl_conn is not None
        ready = services.loop.create_future()
        upstream.start_tls(data.ssl_conn, ready)
        async with asyncio.timeout(timelimits.HANDSHAKE_SECONDS):
            await ready
    except HookFailed:
        upstream.close()
        raise Denied(Reason.INTERNAL_ERROR, "the handshake could not be prepared") from None
    except TimeoutError:
        upstream.close()
        raise Denied(
            Reason.UPSTREAM_TIMEOUT,
            f"{upstream.server.sni} did not complete TLS in {timelimits.HANDSHAKE_SECONDS:.0f} s",
        ) from None
    except ConnectionError:
        services.dispatch.call("tls_failed_server", data)
        upstream.finish()  # not at once: the alert with the reason must still be sent
        raise upstream.record.denied or Denied(Reason.TLS_FAILED, "the TLS handshake failed") from None
    except BaseException:
        upstream.close()
        raise
    server = upstream.server
    assert upstream.tls is not None
    server.tls_version = upstream.tls.conn.get_protocol_version_name()  # type: ignore[assignment]  # one of the literals of that type
    server.timestamp_tls_setup = time.time()
    services.dispatch.call("tls_established_server", data)
