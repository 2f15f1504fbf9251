"""WebSocket (RFC 6455): may a connection switch to it, and what passes the app's bytes on from then on.

`conversation` asks `may_switch` about each 101, and then puts a `Switched` in the place of HTTP/1.
"""

from __future__ import annotations

from typing import Protocol

from mitmproxy import http

from proxy.engine.apps.speaker import Speaker
from proxy.engine.streams import UpstreamStream


def may_switch(request: http.Request, response: http.Response) -> bool:
    """Tell whether a 101 switches to WebSocket, and the request has asked for that."""
    asked, answered = (message.headers.get("upgrade", "").lower() for message in (request, response))
    return bool(asked == answered == "websocket")


class Switchable(Protocol):
    """The conversation that has switched."""

    @property
    def upstream(self) -> UpstreamStream | None:
        """Where the app's bytes go, as long as it is open."""

    def gone(self) -> None:
        """Take that the app will send no more."""

    def app_congested(self, is_congested: bool) -> None:
        """Take that the app takes nothing more for now, or again."""


class Switched(Speaker):
    """The app's side of a connection that switched to WebSocket: bytes pass both ways, close codes and all."""

    def __init__(self, conversation: Switchable) -> None:
        self._conversation = conversation

    def feed(self, data: bytes) -> None:
        """Pass bytes on."""
        upstream = self._conversation.upstream
        if upstream is not None:
            upstream.send(data)

    def eof(self) -> None:
        """The app ended it."""
        self._conversation.gone()

    def gone(self) -> None:
        """The app is gone."""
        self._conversation.gone()

    def congested(self, is_congested: bool) -> None:
        """Pass back-pressure on."""
        self._conversation.app_congested(is_congested)

    def too_slow(self) -> None:
        """Never called: nothing is owed after a switch."""
        raise RuntimeError("a deadline after a switch")

    def drain(self, _is_fresh: bool) -> bool:
        """Nothing: it lasts until one of its ends closes it."""
        return True
