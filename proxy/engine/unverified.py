"""Reads the certificates that a server sends, without verifying anything. `proxy.engine.probe` calls it for
`overcoat pins fetch --insecure`.

Rules of this module:

- Nothing but a handshake is sent, and whatever it shows may be anybody's. No request ever goes this way.
"""

from __future__ import annotations

import asyncio
import socket

from OpenSSL import SSL, crypto

from proxy.engine.tls import expect_name

_PIECE = 16 * 1024


class NoHandshake(Exception):
    """There is no handshake."""


async def sent_chain(connection: socket.socket, host: str) -> tuple[str, list[bytes]]:
    """Shake hands on a connected socket, and return the TLS version and the certificates (DER) as they were sent.

    Args:
        connection: the socket; it does not block, and is left open.
        host: the name for SNI.

    Raises:
        NoHandshake: the server speaks no TLS.
        OSError: the connection broke.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    tls = SSL.Connection(context)
    expect_name(tls, host)
    tls.set_connect_state()
    loop = asyncio.get_running_loop()
    try:
        while True:
            try:
                tls.do_handshake()
                break
            except SSL.WantReadError:
                await _send(loop, connection, tls)
                data = await loop.sock_recv(connection, _PIECE)
                if not data:
                    raise NoHandshake from None
                tls.bio_write(data)
    except SSL.Error:
        raise NoHandshake from None
    chain = tls.get_peer_cert_chain() or []
    return tls.get_protocol_version_name(), [crypto.dump_certificate(crypto.FILETYPE_ASN1, each) for each in chain]


async def _send(loop: asyncio.AbstractEventLoop, connection: socket.socket, tls: SSL.Connection) -> None:
    try:
        while True:
            await loop.sock_sendall(connection, tls.bio_read(_PIECE))
    except SSL.WantReadError:
        pass
