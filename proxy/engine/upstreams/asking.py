"""Asks a server one question of Overcoat's own, on a connection of its own: a GET without credentials or cookies.
`supplies` fetches keys with it, and `proxy.engine.probe` asks for commands.

Rules of this module:

- One answer is taken, whatever it is: nothing is followed, and nothing is asked again.
- The answer is limited in length and in time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState

from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.http.heads import Fields, ResponseHead
from proxy.core.reasons import Reason
from proxy.engine.flows import new_context, new_request, new_server
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.route import dial
from proxy.engine.upstreams.services import Services

_HERE = ("127.0.0.1", 0)


@dataclass(slots=True)
class Answer:
    """A server's answer.

    Attributes:
        status: the status code.
        fields: its header fields.
        body: the body as it came, or as much of it as was to be kept.
        length: bytes of the body that came.
        is_whole: whether that is all of it.
    """

    status: int
    fields: Fields
    body: bytearray
    length: int = 0
    is_whole: bool = False

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header field.

        Args:
            name: in lower case.
        """
        return [value for each, value in self.fields if each.lower() == name]


async def ask_server(
    services: Services,
    destination: Destination,
    path: str,
    record: Upstream,
    *,
    tls: bool = True,
    accept: str = "*/*",
    most: int,
    keeps: bool = True,
) -> Answer:
    """Ask a server for a path.

    Args:
        services: what every upstream connection needs.
        destination: the server.
        path: begins with a slash; ASCII without blanks.
        record: the policy and the rule that hold for the connection.
        tls: whether https is spoken.
        accept: the media types that are asked for.
        most: so many bytes of the body are taken; a longer one is no longer whole.
        keeps: whether they are kept, or only counted.

    Raises:
        Denied: the server cannot be reached, its certificate is not trusted, or it gives no whole answer in time.
    """
    client = Client(peername=_HERE, sockname=_HERE, timestamp_start=time.time(), state=ConnectionState.OPEN)
    session = services.sessions.open(client, record.policy)
    server = new_server((destination.host, destination.port), tls=tls)
    session.upstreams[server.id] = record
    upstream: UpstreamConnection | None = None
    try:
        async with asyncio.timeout(timelimits.QUESTION_SECONDS):
            upstream = await dial(services, server, None, record, new_context(client))
            receiver = _Receiver(most, keeps=keeps)
            upstream.ask(
                receiver, _request(destination, path, accept, tls=tls), b"", is_whole=True, trailers=(), te=False
            )
            return await receiver.answer
    except TimeoutError:
        seconds = timelimits.QUESTION_SECONDS
        raise Denied(Reason.UPSTREAM_TIMEOUT, f"{destination} gave no whole answer in {seconds:.0f} s") from None
    finally:
        if upstream is not None:
            upstream.close()
        services.sessions.close(client)


def _request(destination: Destination, path: str, accept: str, *, tls: bool) -> http.Request:
    scheme, is_usual = (b"https", destination.port == HTTPS_PORT) if tls else (b"http", destination.port == HTTP_PORT)
    fields = (
        (b"Host", (destination.url_host if is_usual else destination.authority).encode("ascii")),
        (b"User-Agent", b"overcoat"),
        (b"Accept", accept.encode("ascii")),
        (b"Connection", b"close"),
    )
    return new_request(
        destination.host,
        destination.port,
        b"GET",
        scheme=scheme,
        authority=b"",
        path=path.encode("ascii"),
        version=b"HTTP/1.1",
        headers=http.Headers(fields),
    )


class _Receiver:
    """Receives an answer."""

    def __init__(self, most: int, *, keeps: bool) -> None:
        self._most = most
        self._keeps = keeps
        self._found: Answer | None = None
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def response_head(self, head: ResponseHead) -> None:
        """Take the head, unless it is an interim one."""
        if head.status >= 200:
            self._found = Answer(head.status, head.fields, bytearray())

    def response_data(self, data: bytes) -> None:
        """Take a piece of the body."""
        found = self._found
        if found is None or self.answer.done():
            return
        found.length += len(data)
        if self._keeps:
            found.body += data[: max(0, self._most - len(found.body))]
        if found.length > self._most:
            self.answer.set_result(found)

    def response_end(self, trailers: Fields = ()) -> None:
        """Take the end."""
        del trailers
        if self._found is not None and not self.answer.done():
            self._found.is_whole = True
            self.answer.set_result(self._found)

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Take it that there is no answer."""
        del began, is_untouched
        if not self.answer.done():
            self.answer.set_exception(denied)

    def switched(self, data: bytes) -> None:
        """Do nothing: it was not asked to switch."""

    def switched_end(self) -> None:
        """Do nothing, too."""

    def wants_http1(self) -> None:
        """Do nothing: it is spoken."""

    def upstream_congested(self, congested: bool) -> None:
        """Do nothing: all is sent."""

    def flush(self) -> None:
        """Do nothing: nothing is passed on."""

    def crashed(self, error: Exception) -> None:
        """Take it that there is no answer."""
        if not self.answer.done():
            self.answer.set_exception(error)
