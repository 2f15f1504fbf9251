"""Opens an upstream stream for one request: a new connection, or a stream on one that is shared. The conversations call
it when the pool has none that fits.

Rules of this module:

- If the new connection may speak HTTP/2, one is opened for all requests that wait, not one for each. An error of the
  upstream is then found once, and all of them get it.
- Over TLS the server chooses the version (ALPN, RFC 7301). Without TLS, HTTP/2 is spoken only if the app speaks it with
  prior knowledge (RFC 9113, section 3.3): then the app knows that the server does, too.
"""

from __future__ import annotations

import asyncio

from mitmproxy.connection import Server

from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.engine.hookdata import Context
from proxy.engine.streams import UpstreamStream, Version
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.http2 import UpstreamHttp2
from proxy.engine.upstreams.route import dial
from proxy.engine.upstreams.services import Services

_OFFERS = {
    Version.HTTP1: (b"http/1.1",),
    Version.EITHER: (b"http/1.1", b"h2"),
    Version.HTTP2: (b"h2", b"http/1.1"),
    Version.ONLY_HTTP2: (b"h2", b"http/1.1"),  # so a server that speaks HTTP/1.1 only can be reported
}


async def open_stream(
    services: Services,
    server: Server,
    key: object,
    record: Upstream,
    context: Context,
    *,
    version: Version,
    may_share: bool = True,
) -> UpstreamStream:
    """Open a stream to an upstream.

    Args:
        services: what every upstream connection needs.
        server: the server, with its `address` and `tls`.
        key: the key under which the pool may reuse it.
        record: notes the result of the handshake.
        context: the client for which it is made, for the hooks.
        version: the version of HTTP that is wanted.
        may_share: whether a connection will do that has become open since the pool was asked.

    Raises:
        Denied: it cannot be opened, or the server is not trusted.
    """
    pool = services.pool
    is_plain = not server.tls and not version.is_of_http2
    if version is Version.HTTP1 or is_plain or pool.speaks_only_http1(key, version):
        return await _dial(services, server, key, record, context)
    while (opening := pool.opening(key)) is not None:
        await asyncio.wait((opening,))  # not the future itself: cancelling one waiter would cancel it for all
        if (other := opening.result()) is not None:
            record.pin, record.observed, record.matches = other.pin, other.observed, other.matches
            assert other.denied is not None
            raise other.denied.again()
        if (found := pool.take(key, version)) is not None:
            return found
        if pool.speaks_only_http1(key, version):
            return await _dial(services, server, key, record, context)
    if may_share and (found := pool.take(key, version)) is not None:
        return found  # it became open just before this began to run
    end = pool.begin_to_open(key)
    failed: Upstream | None = None
    try:
        record.alpn = _OFFERS[version]
        upstream = await _dial(services, server, key, record, context)
        if upstream.is_http2 or not server.tls:
            return _share(services, upstream)
        pool.only_http1(key, version)
        return upstream
    except Denied as denied:
        record.denied, failed = denied, record
        raise
    finally:
        end(failed)


async def _dial(
    services: Services, server: Server, key: object, record: Upstream, context: Context
) -> UpstreamConnection:
    services.pool.opens()
    return await dial(services, server, key, record, context)


def _share(services: Services, upstream: UpstreamConnection) -> UpstreamStream:
    shared = UpstreamHttp2(services, upstream)
    stream = shared.open()
    if not shared.is_over:
        services.pool.share(upstream.key, shared)
    return stream
