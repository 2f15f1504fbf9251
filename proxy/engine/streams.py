"""What a conversation and an upstream need of each other, whichever version of HTTP is spoken.

`apps.conversation` sends each request on an `UpstreamStream`, and is the `Receiver` of its response. What it needs of
the app's side is in `apps.appstream`.

Rules of this module:

- A head is one decision, whatever the wire; how it is framed there is for the wire to know.
- Whoever sends is told to wait, and what is received is read no faster than it can be passed on.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Server

from addons.exchange import Upstream
from proxy.core.decisions import Denied
from proxy.core.http.heads import Fields, ResponseHead


class Version(Enum):
    """Which version of HTTP a request is to go out in."""

    HTTP1 = "1.1"  # nothing else
    EITHER = "either"  # which the server prefers
    HTTP2 = "2"  # if the server speaks it
    ONLY_HTTP2 = "2 or none"  # which alone can carry it

    @property
    def is_of_http2(self) -> bool:
        """Whether HTTP/2 is what it should be."""
        return self in (Version.HTTP2, Version.ONLY_HTTP2)


class Receiver(Protocol):
    """Takes the response of one request."""

    def response_head(self, head: ResponseHead) -> None:
        """Take the head; may be called several times with a 1xx before the final one."""

    def response_data(self, data: bytes) -> None:
        """Take a piece of the body."""

    def response_end(self, trailers: Fields = ()) -> None:
        """Take the end of the response, with the fields behind its body that may go on."""

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Take that there is none, or no more of it.

        Args:
            denied: why.
            began: whether a byte of it had come.
            is_untouched: whether the upstream has said that it did nothing about the request, so that it may be sent
                again, whatever it is.
        """

    def wants_http1(self) -> None:
        """Take that the upstream wants the request in HTTP/1.1; that it has failed is said next."""

    def switched(self, data: bytes) -> None:
        """Take bytes of the protocol that a 101 switched to, or of a tunnel."""

    def switched_end(self) -> None:
        """Take that nothing more of them will come."""

    def upstream_congested(self, congested: bool) -> None:
        """Pause or resume what is being sent."""

    def flush(self) -> None:
        """Send on what was gathered from the bytes that came at once."""

    def crashed(self, error: Exception) -> None:
        """Take that it failed to take something; nothing more will come."""


class UpstreamStream(Protocol):
    """Where one request goes: a connection of HTTP/1 for a while, or a stream of HTTP/2."""

    server: Server
    record: Upstream
    is_congested: bool
    is_http2: bool

    def heard_early(self) -> bool:
        """Tell whether a new connection's peer has spoken, or closed, before it was asked anything."""

    def ask(
        self, receiver: Receiver, request: http.Request, body: bytes, *, is_whole: bool, trailers: Fields, te: bool
    ) -> None:
        """Send a request.

        Args:
            receiver: takes the response.
            request: the head.
            body: what there is of the body so far.
            is_whole: whether that is all.
            trailers: the fields behind it, if it is all.
            te: whether the app takes fields behind a response's body.
        """

    def send_body(self, data: bytes) -> None:
        """Send a piece of its body."""

    def end(self, trailers: Fields) -> None:
        """End it."""

    def send(self, data: bytes) -> None:
        """Send bytes of the protocol that was switched to."""

    def hold(self, why: str, is_held: bool) -> None:
        """Take no more of the response while there is any reason not to."""

    def unsent(self) -> int:
        """Return how many bytes of the request have not reached the upstream yet, as far as that can be told."""

    def give_back(self) -> None:
        """Take that the response was whole: another request may be sent, where that is possible."""

    def part(self) -> None:
        """Take that nobody else may be served on the same connection."""

    def close(self) -> None:
        """Give the request up."""
