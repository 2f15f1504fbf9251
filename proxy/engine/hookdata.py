"""What the hooks about TLS get: the handshake, and whose it is. `proxy.engine.apps` and `proxy.engine.upstreams` make
both.

Rules of this module:

- Each class has the attributes of mitmproxy's class of that name, so that an addon need not know which of the two it
  gets; `tests/proxy/engine/test_hookdata.py` compares them. What nothing here has (`options`, `layers`) is empty.
- mitmproxy's own are not imported: their modules bring all its options and a YAML reader, two MiB in each process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mitmproxy.connection import Client, Connection, Server
from OpenSSL import SSL


@dataclass(slots=True, eq=False)
class Context:
    """Between whom it is.

    Attributes:
        client: the app's connection.
        server: the upstream's; without an address if that is not known yet.
        options: nothing: those of stock mitmproxy.
        layers: nothing: stock mitmproxy's protocols.
    """

    client: Client
    server: Server
    options: None = None
    layers: list[object] = field(default_factory=list)

    def with_server(self, server: Server) -> Context:
        """Return the same, with another upstream."""
        return Context(self.client, server)


@dataclass(slots=True, eq=False)
class TlsData:
    """A handshake.

    Attributes:
        conn: the connection on which it is made: one of the two of `context`.
        context: between whom it is.
        ssl_conn: what makes it, once a hook has said so.
        is_dtls: whether it is over UDP: never.
    """

    conn: Connection
    context: Context
    ssl_conn: SSL.Connection | None = None
    is_dtls: bool = False
