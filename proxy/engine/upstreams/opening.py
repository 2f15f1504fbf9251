"""A way to an upstream for one request: a connection of its own, or a stream of one that is shared.

Rules of this module:

- Where HTTP/2 may come of it, one connection is opened for all who wait, not one for each; and what is wrong with the
  upstream is found once for all of them.
- Over TLS the server chooses the version (ALPN, RFC 7301); without, HTTP/2 is spoken only where the app has said by
  speaking so itself that the server does (prior knowledge, RFC 9113, section 3.3).
"""

from __future__ import annotations

import asyncio

from mitmproxy.connection import Server
from mitmproxy.proxy.context import Context

from addons.exchange import Upstream
from proxy.core.decisions import Denied
from proxy.engine.streams import UpstreamStream, Version
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.http2 import UpstreamHttp2
from proxy.engine.upstreams.route import dial
from proxy.engine.upstreams.services import Services

_OFFERS = {
    Version.HTTP1: (b"http/1.1",),
    Version.EITHER: (b"http/1.1", b"h2"),
    Version.HTTP2: (b"h2", b"http/1.1"),
    Version.ONLY_HTTP2: (b"h2", b"http/1.1"),  # what speaks HTTP/1.1 only can be told of
}


async def open_stream(
    services: Services, server: Server, key: object, record: Upstream, context: Context, *, version: Version
) -> UpstreamStream:
    """Open a way to an upstream.

    Args:
        services: what every upstream connection needs.
        server: what to connect to; its `address` and `tls` are set.
        key: what the pool may reuse it for.
        record: where the handshake notes what it found.
        context: the client on whose behalf it is, for the hooks.
        version: which version of HTTP will do.

    Raises:
        Denied: it cannot be opened, or what answers is not to be trusted.
    """
    pool = services.pool
    is_plain = not server.tls and not version.is_of_http2
    if version is Version.HTTP1 or is_plain or pool.speaks_only_http1(key, version):
        return await _dial(services, server, key, record, context)
    while (opening := pool.opening(key)) is not None:
        await asyncio.wait((opening,))  # not the future itself, which ends for all if one waits no longer
        if (other := opening.result()) is not None:
            record.pin, record.observed = other.pin, other.observed
            raise _again(other.denied)
        if (found := pool.take(key, version)) is not None:
            return found
        if pool.speaks_only_http1(key, version):
            return await _dial(services, server, key, record, context)
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


def _again(denied: Denied | None) -> Denied:
    """Return a denial for another who waited: an exception that is raised twice keeps all that it has come through."""
    assert denied is not None
    return Denied(denied.reason, denied.detail, denied.hint, denied.proxy_error)


def _share(services: Services, upstream: UpstreamConnection) -> UpstreamStream:
    shared = UpstreamHttp2(services, upstream)
    stream = shared.open()
    if not shared.is_over:
        services.pool.share(upstream.key, shared)
    return stream
