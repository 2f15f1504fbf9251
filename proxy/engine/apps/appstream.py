"""What a conversation needs of the app's side, whichever version of HTTP is spoken there.

`apps.conversation` answers each request on an `AppStream`: `apps.http1` is one for a whole connection, `apps.http2` has
one for each stream.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context

from addons.sessions import Session
from proxy.core.http.heads import Fields
from proxy.engine.apps.house import House
from proxy.engine.apps.speaker import Speaker
from proxy.engine.clock import ResponseClock
from proxy.engine.streams import Version


class App(Protocol):
    """The app's connection, as far as a conversation needs it; `apps.socket.AppSocket` is one."""

    @property
    def house(self) -> House:
        """What all connections share."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""

    @property
    def client(self) -> Client:
        """The connection, as the hooks know it."""

    @property
    def context(self) -> Context:
        """The same, as the hooks of an upstream's handshake know it."""

    @property
    def session(self) -> Session:
        """What the addons know of it."""

    def after_step(self) -> None:
        """Write what was gathered; end if the connection is to end, and nothing is under way."""

    def after_upstream(self) -> None:
        """Do the same, and take note that bytes have moved."""


class AppStream(Protocol):
    """Where an app has asked, and is answered: all of a connection of HTTP/1 for a while, or a stream of HTTP/2."""

    @property
    def app(self) -> App:
        """The connection that it belongs to."""

    @property
    def is_congested(self) -> bool:
        """Whether the app takes no more of the response for now."""

    @property
    def is_last(self) -> bool:
        """Whether no other request is served behind this one."""

    @property
    def clock(self) -> ResponseClock:
        """How long the upstream may take."""

    def version(self, request: http.Request) -> Version:
        """Return which version a request is to go out in."""

    def hold(self, why: str, is_held: bool) -> None:
        """Take no more of the request's body while there is any reason not to."""

    def last(self) -> None:
        """Serve no other request behind this one, where that would be ambiguous or is not wanted."""

    def interim(self, response: http.Response) -> None:
        """Send an interim response, if the app can take one."""

    def begin(self, response: http.Response, *, has_body: bool) -> None:
        """Send a response's head; no body follows where it has none."""

    def send(self, data: bytes) -> None:
        """Send a piece of its body."""

    def end(self, trailers: Fields = ()) -> None:
        """End it."""

    def answer(self, response: http.Response, body: bytes) -> None:
        """Send a response that was made here, whole."""

    def flush(self) -> None:
        """Send at once what was gathered."""

    def switch(self, speaker: Speaker) -> bytes:
        """Give the connection to what speaks WebSocket; return what has come of that already."""

    def next(self) -> None:
        """Take that the conversation is over, in order."""

    def close(self) -> None:
        """End what is left of it, once what was sent has arrived."""

    def crash(self, error: Exception) -> None:
        """End it, since something inside failed."""

    def abort(self) -> None:
        """Break it off, so that the app cannot take what it has for all there was."""
