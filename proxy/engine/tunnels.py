"""What CONNECT leads to where Overcoat does not look inside: a tunnel, or nothing.

Rules of this module:

- A tunnel changes no byte, and keeps its directions apart: one may end long before the other.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import TCPLayer

Commands = layer.CommandGenerator[None]


class HalfClose(commands.ConnectionCommand):
    """Send an EOF and read on. Not a kind of CloseConnection, which a CONNECT would turn into a full close."""


class Tunnel(TCPLayer):
    """Carries bytes both ways; each direction ends by itself, as on a direct connection."""

    def __init__(self, ctx: context.Context) -> None:
        super().__init__(ctx, ignore=True)

    def relay_messages(self, event: events.Event) -> Commands:
        """Pass on what comes, and a half-close as one."""
        for command in super().relay_messages(event):
            if isinstance(command, commands.CloseTcpConnection) and command.half_close:
                yield HalfClose(command.connection)
            else:
                yield command


class Refused(layer.Layer):
    """Closes the client connection, whatever comes."""

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start):
            yield commands.CloseConnection(self.context.client)
