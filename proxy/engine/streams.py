"""The interface between a conversation and an upstream, whatever version of HTTP is spoken: `apps.conversation` sends
each request on an `UpstreamStream`, and is the `Receiver` of its response. The app's side is in `apps.appstream`.

Rules of this module:

- A head is the same object for both versions; only the connection knows how it is written on the wire.
- A sender is told when to wait, and nothing is received faster than it can be passed on.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Server

from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.http.heads import Fields, ResponseHead


class Version(Enum):
    """The version of HTTP in which a request is to go out."""

    HTTP1 = "1.1"  # HTTP/1.1 only
    EITHER = "either"  # the one that the server prefers
    HTTP2 = "2"  # if the server speaks it
    ONLY_HTTP2 = "2 or none"  # HTTP/2 only: HTTP/1.1 cannot carry it

    @property
    def is_of_http2(self) -> bool:
        """Whether HTTP/2 is wanted."""
        return self in (Version.HTTP2, Version.ONLY_HTTP2)


class Receiver(Protocol):
    """Gets the response of one request."""

    def response_head(self, head: ResponseHead) -> None:
        """Called with the head; perhaps several times with a 1xx before the final one."""

    def response_data(self, data: bytes) -> None:
        """Called with a piece of the body, which is never empty."""

    def response_end(self, trailers: Fields = ()) -> None:
        """Called at the end of the response, with the trailers that may go on."""

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Called when there is no response, or no more of it.

        Args:
            denied: why.
            began: whether any byte of it had come.
            is_untouched: whether the upstream has said that it did nothing about the request, so that any request may
                be sent again.
        """

    def wants_http1(self) -> None:
        """Called when the upstream wants the request in HTTP/1.1; `response_failed` follows."""

    def switched(self, data: bytes) -> None:
        """Called with bytes of a tunnel, or of the protocol that a 101 switched to."""

    def switched_end(self) -> None:
        """Called when no more such bytes will come."""

    def upstream_congested(self, congested: bool) -> None:
        """Called when the upstream takes no more for now, and when it does again."""

    def flush(self) -> None:
        """Called after all bytes of one read were handled: pass on what was gathered."""

    def crashed(self, error: Exception) -> None:
        """Called when the receiver itself raised; nothing more will come."""


class NoResponses:
    """A receiver of bytes that are not read as HTTP."""

    def wants_http1(self) -> None:
        """Never called."""
        raise RuntimeError("a version where none is spoken")

    def response_head(self, head: ResponseHead) -> None:
        """Never called."""
        raise RuntimeError("a response where none is read")

    def response_data(self, data: bytes) -> None:
        """Never called."""
        raise RuntimeError("a response where none is read")

    def response_end(self, trailers: Fields = ()) -> None:
        """Never called."""
        raise RuntimeError("a response where none is read")


class UpstreamStream(Protocol):
    """Carries one request to an upstream: a connection of HTTP/1 for a while, or a stream of HTTP/2."""

    server: Server
    record: Upstream
    is_congested: bool
    is_http2: bool

    def heard_early(self) -> bool:
        """Tell whether the peer of a new connection has sent bytes, or closed, before any request."""

    def ask(
        self, receiver: Receiver, request: http.Request, body: bytes, *, is_whole: bool, trailers: Fields, te: bool
    ) -> None:
        """Send a request.

        Args:
            receiver: gets the response.
            request: the head.
            body: the part of the body that is there.
            is_whole: whether that is all of it.
            trailers: the fields after the body, if that is all of it.
            te: whether the app accepts trailers in the response.
        """

    def send_body(self, data: bytes) -> None:
        """Send a piece of the body."""

    def end(self, trailers: Fields) -> None:
        """End the request."""

    def send(self, data: bytes) -> None:
        """Send bytes of the protocol that a 101 switched to."""

    def hold(self, why: str, is_held: bool) -> None:
        """Read no more of the response while there is any reason to wait."""

    def unsent(self) -> int:
        """Return how many bytes of the request have not reached the upstream yet, as far as that is known."""

    def give_back(self) -> None:
        """Called after a complete response: another request may follow, if that is possible."""

    def part(self) -> None:
        """Never serve another conversation on the same connection."""

    def finish(self) -> None:
        """Close after what was sent has arrived."""

    def close(self) -> None:
        """Give the request up."""
