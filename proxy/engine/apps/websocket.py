"""WebSocket (RFC 6455): decides whether a connection may switch to it, and passes the app's bytes on afterwards.
`conversation` asks `may_switch` about each 101, and then replaces the speaker for HTTP/1 with a `Switched`.
"""

from __future__ import annotations

from typing import Protocol

from mitmproxy import http

from proxy.engine.apps.speaker import Speaker


def may_switch(request: http.Request, response: http.Response) -> bool:
    """Tell whether a 101 switches to WebSocket, and the request has asked for that."""
    asked, answered = (message.headers.get("upgrade", "").lower() for message in (request, response))
    return bool(asked == answered == "websocket")


class Switchable(Protocol):
    """The conversation that has switched."""

    def switched_from_app(self, data: bytes) -> None:
        """Called with bytes of the app for the upstream."""

    def switched_end(self) -> None:
        """Called when the app ends it in order."""

    def gone(self) -> None:
        """Called when the app is gone."""

    def app_congested(self, is_congested: bool) -> None:
        """Called when the app takes no more for now, and when it does again."""


class Switched(Speaker):
    """The app's side of a connection that has switched to WebSocket: bytes pass in both directions, close codes
    included.
    """

    def __init__(self, conversation: Switchable) -> None:
        self._conversation = conversation

    def feed(self, data: bytes) -> None:
        """Pass bytes on."""
        self._conversation.switched_from_app(data)

    def eof(self) -> None:
        """End it: the app has."""
        self._conversation.switched_end()

    def gone(self) -> None:
        """End it: the app is gone."""
        self._conversation.gone()

    def congested(self, is_congested: bool) -> None:
        """Pass back-pressure on."""
        self._conversation.app_congested(is_congested)

    def too_slow(self) -> None:
        """Never called: nothing is owed after a switch."""
        raise RuntimeError("a deadline after a switch")

    def drain(self, _is_fresh: bool) -> bool:
        """Do nothing: the connection lasts until one of its ends closes it."""
        return True
