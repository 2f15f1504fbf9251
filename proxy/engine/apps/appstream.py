"""The interface between a conversation and the app's side, whatever version of HTTP is spoken: `apps.conversation`
answers each request on an `AppStream`. `apps.http1` is one for a whole connection, `apps.http2stream` is one for
each stream.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Client

from addons.sessions import Session
from proxy.core.http.heads import Fields
from proxy.engine.apps.house import House
from proxy.engine.apps.speaker import Speaker
from proxy.engine.clock import ResponseClock
from proxy.engine.hookdata import Context
from proxy.engine.streams import Version


class App(Protocol):
    """The connection of an app, as far as a conversation needs it: `apps.socket.AppSocket`."""

    @property
    def house(self) -> House:
        """What all connections share."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""

    @property
    def client(self) -> Client:
        """The connection, as hooks see it."""

    @property
    def context(self) -> Context:
        """The same, as hooks of an upstream's handshake see it."""

    @property
    def session(self) -> Session:
        """What the addons know about it."""

    def after_step(self) -> None:
        """Write what was gathered; close if the connection is to end and nothing is under way."""

    def after_upstream(self) -> None:
        """Do the same, and note that bytes have moved."""


class AppStream(Protocol):
    """Where an app has sent a request and gets its response: a connection of HTTP/1 for a while, or a stream
    of HTTP/2.
    """

    @property
    def app(self) -> App:
        """The connection that it belongs to."""

    @property
    def is_congested(self) -> bool:
        """Whether the app takes no more of the response for now."""

    @property
    def is_last(self) -> bool:
        """Whether no other request follows on the connection."""

    @property
    def clock(self) -> ResponseClock:
        """Measures how long the upstream takes."""

    def version(self, request: http.Request) -> Version:
        """Return the version of HTTP in which a request is to go out."""

    def hold(self, why: str, is_held: bool) -> None:
        """Read no more of the request's body while there is any reason to wait."""

    def last(self) -> None:
        """Serve no other request on this connection, if that would be ambiguous or is not wanted."""

    def interim(self, response: http.Response) -> None:
        """Send an interim response, if the app can take one."""

    def begin(self, response: http.Response, *, has_body: bool) -> None:
        """Send the head of a response; without `has_body`, no body follows."""

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""

    def end(self, trailers: Fields = ()) -> None:
        """End the response."""

    def answer(self, response: http.Response, body: bytes) -> None:
        """Send a complete response that was made here."""

    def flush(self) -> None:
        """Send what was gathered now."""

    def switch(self, speaker: Speaker) -> bytes:
        """Give the connection to a speaker for WebSocket; return the bytes for it that have come already."""

    def next(self) -> None:
        """Called when the conversation has ended in order."""

    def close(self) -> None:
        """End it, after what was sent has arrived."""

    def crash(self, error: Exception) -> None:
        """End it, because something inside has failed."""

    def abort(self) -> None:
        """Break it off, so that the app cannot take what it has for everything."""
