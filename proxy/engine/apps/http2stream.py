"""One stream of an app's HTTP/2: passes its request to a conversation, and is the `AppStream` on which that answers.
`http2` makes one for each request.

Rules of this module:

- Whatever goes wrong in a stream ends this stream, and no other.
- What is answered has only fields that HTTP/2 has; what no table may keep stays so marked (RFC 7541, section 6.2.3).
- A denial of a gRPC call is told in its own form: a head without a body.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from functools import lru_cache

from h2.errors import ErrorCodes
from mitmproxy import http

from addons.denials import problem_response
from addons.headers import has_field, values_of
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.http.heads import KEPT, Fields
from proxy.core.http.heads2 import read_http2_trailers
from proxy.core.http.problems import is_grpc
from proxy.core.reasons import Reason
from proxy.engine.apps.conversation import MAX_DISCARDED, Conversation
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import Speaker
from proxy.engine.clock import ResponseClock
from proxy.engine.http2 import Connection, Stream
from proxy.engine.http2state import NeverIndexed
from proxy.engine.streams import Version
from proxy.log import describe

logger = logging.getLogger("overcoat")

_NOT_IN_HTTP2 = frozenset((b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"upgrade"))


class StreamOwner(Connection["AppHttp2Stream"]):
    """The connection of such streams, as far as they need it.

    Attributes:
        app: the app's socket.
        inside: the destination of the CONNECT inside which it is spoken, if any.
    """

    app: AppSocket
    inside: Destination | None

    @abstractmethod
    def clock(self) -> ResponseClock:
        """Return a clock for a stream; it may be one that another stream has used."""

    @abstractmethod
    def take_clock(self, clock: ResponseClock) -> None:
        """Take a clock back."""

    @abstractmethod
    def check_limits(self, fields: Fields, before: int, what: str) -> None:
        """Check that fields are no more, and no longer, than those of a head of HTTP/1 may be.

        Args:
            fields: the fields of a head, or trailers.
            before: the number of bytes before them.
            what: their name, for the message.

        Raises:
            Denied: HEADERS_TOO_LARGE.
        """

    @abstractmethod
    def forget(self, stream: AppHttp2Stream) -> None:
        """Forget a stream whose conversation is over."""


class AppHttp2Stream(Stream):
    """One request of an app, and where it is answered; see `AppStream`."""

    is_last = False

    def __init__(self, connection: StreamOwner, number: int) -> None:
        super().__init__(number)
        self.app = connection.app
        self.conversation: Conversation | None = None
        self.is_congested = connection.is_socket_congested
        self._connection = connection
        self._clock: ResponseClock | None = None
        self._behind: Fields = ()
        self._discarded = 0
        self._held_timer: asyncio.TimerHandle | None = None

    # -- receiving

    def data(self, data: bytes) -> None:
        """Handle a piece of the request's body."""
        if self.conversation is None:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED:
                self._connection.reset(self, ErrorCodes.NO_ERROR)
        elif self.expected is not None and self.expected < 0:
            self.conversation.broken()
        elif data:
            self.conversation.request_data(data)

    def behind(self, block: list[tuple[bytes, bytes]]) -> None:
        """Handle trailers."""
        try:
            self._behind = read_http2_trailers(block, Reason.BAD_REQUEST)
            self._connection.check_limits(self._behind, 0, "trailer")
        except Denied as denied:
            if self.conversation is not None:
                self.conversation.give_up(denied)

    def ended(self) -> None:
        """Handle the end of the request."""
        if self._held_timer is not None:
            self._held_timer.cancel()
        conversation = self.conversation
        self._connection.peer_ended(self)
        if conversation is None:
            return
        if self.expected:
            conversation.broken()
        else:
            conversation.request_end(self._behind)

    def gone(self) -> None:
        """Called when the app has reset the stream, or is gone."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            conversation.gone()
        self._connection.forget(self)
        self.over()

    @property
    def is_asking(self) -> bool:
        """Whether a request is under way whose decision line is not written yet."""
        return self.conversation is not None and not self.conversation.exchange.finished

    def break_off(self, denied: Denied) -> None:
        """Note why it ends without an answer."""
        if self.conversation is not None:
            self.conversation.exchange.break_off(denied)

    def over(self) -> None:
        """Release everything that belongs to it."""
        clock, self._clock = self._clock, None
        if clock is not None:
            self._connection.take_clock(clock)
        if self._held_timer is not None:
            self._held_timer.cancel()

    def watch_held(self) -> None:
        """Set the time limit for a held body."""
        if self.conversation is not None and self.conversation.holds_body:
            seconds = self.app.session.policy.limits.request_seconds
            self._held_timer = self.app.loop.call_later(seconds, self.app.guarded, self._too_slow)

    def _too_slow(self) -> None:
        if self.conversation is not None and self.conversation.holds_body:
            seconds = self.app.session.policy.limits.request_seconds
            late = Denied(Reason.REQUEST_TIMEOUT, f"the app did not send all of it within {seconds} s")
            self.conversation.give_up(late)

    def deny(self, denied: Denied, block: Fields) -> None:
        """Answer a head that is no request; `block` has its fields."""
        content_type = next((value for name, value in block if name == b"content-type"), b"")
        exchange = self.app.denied(denied)
        kind = content_type.decode("ascii", "replace")
        response = problem_response(denied, None, content_type=kind, id=exchange.id)
        self.answer(response, response.data.content or b"")
        self.app.write_denied(exchange, response.status_code)

    # -- as the `AppStream` of a conversation

    @property
    def clock(self) -> ResponseClock:
        """Measures how long the upstream takes."""
        if self._clock is None:
            self._clock = self._connection.clock()
        return self._clock

    def version(self, request: http.Request) -> Version:
        """Return the version in which a request is to go out: HTTP/2 if HTTP/1.1 could not carry everything."""
        types = values_of(request.data.headers, b"content-type")
        if types and any(is_grpc(each) for each in types):
            return Version.ONLY_HTTP2
        mirror = self.app.session.mirror
        if mirror is not None and mirror.is_plain:  # its server may speak HTTP/1.1 only, which no handshake tells
            return Version.HTTP1
        is_known = request.data.scheme == b"http" and self._connection.inside is not None
        if is_known or (self.conversation is not None and self.conversation.takes_trailers):
            return Version.HTTP2
        return Version.EITHER

    def hold(self, why: str, is_held: bool) -> None:
        """Open no window for more of the request's body."""
        self._connection.hold(self, why, is_held)

    def last(self) -> None:
        """Do nothing: in HTTP/2 nothing after a request is ambiguous."""

    def congested(self, is_congested: bool) -> None:
        """Called when the app takes no more of the response for now, and when it does again."""
        if self.conversation is not None:
            self.conversation.app_congested(is_congested)

    def interim(self, response: http.Response) -> None:
        """Send an interim response."""
        self._connection.send_head(self, _fields(response), is_all=False)

    def begin(self, response: http.Response, *, has_body: bool) -> None:
        """Send the head of a response."""
        self._connection.send_head(self, _fields(response), is_all=not has_body)

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self._connection.send(self, data)

    def end(self, trailers: Fields = ()) -> None:
        """End the response."""
        self._connection.finish(self, tuple(_like(field, field[0].lower(), field[1]) for field in trailers))

    def answer(self, response: http.Response, body: bytes) -> None:
        """Send a complete response that was made here."""
        fields = _fields(response)
        if has_field(response.headers, b"grpc-status"):
            fields, body = _trailers_only(fields), b""
        self._connection.send_head(self, fields, is_all=not body)
        if body:
            self._connection.send(self, body)
            self._connection.finish(self)

    def flush(self) -> None:
        """Do nothing: what was gathered is sent at the end of the turn, with the bytes of other streams."""

    def switch(self, speaker: Speaker) -> bytes:
        """Never called: no switch is offered."""
        raise RuntimeError("a switch of protocols in HTTP/2")

    def next(self) -> None:
        """Called when the conversation has ended in order."""
        self.conversation = None
        self._connection.forget(self)

    def close(self) -> None:
        """End it: the app need not send the rest."""
        self.conversation = None
        self._connection.forget(self)
        if self.has_ended and not self.is_all_sent:
            return  # it ends after what waits; bytes from the app are thrown away
        self._connection.reset(self, ErrorCodes.NO_ERROR if self.has_ended else ErrorCodes.CANCEL)

    def crash(self, error: Exception) -> None:
        """End the stream, because something inside has failed; other streams go on."""
        logger.error("a stream of a client connection failed, and is ended: %s", describe(error))
        self.break_off(Denied(Reason.INTERNAL_ERROR, "the engine failed"))
        self.abort()
        self.gone()

    def abort(self) -> None:
        """Break it off."""
        self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)


def _fields(response: http.Response) -> list[tuple[bytes, bytes]]:
    data = response.data
    return [(b":status", b"%d" % data.status_code), *_lower(data.headers.fields)]


@lru_cache(KEPT)
def _lower(fields: Fields) -> Fields:
    """Return the fields of a response in the form of HTTP/2."""
    found = ((field, field[0].lower()) for field in fields)
    return tuple(_like(field, key, field[1].strip(b" \t")) for field, key in found if key not in _NOT_IN_HTTP2)


def _like(field: tuple[bytes, bytes], name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a field that replaces another one; if no table may keep that one, none may keep this."""
    return NeverIndexed(name, value) if isinstance(field, NeverIndexed) else (name, value)


def _trailers_only(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a denial in gRPC's form: a head without a body, with status 200 and gRPC's content type."""
    left_out = (b":status", b"content-type", b"content-length")
    kept = [field for field in fields if field[0] not in left_out]
    return [(b":status", b"200"), (b"content-type", b"application/grpc"), *kept]
