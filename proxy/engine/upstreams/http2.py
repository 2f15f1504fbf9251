"""HTTP/2 with an upstream: one connection that carries many requests, also of several apps. `upstreams.opening` makes
it, and the pool gives its streams to conversations.

Rules of this module:

- It carries only requests of the rule and policy for which it was opened, like every connection of the pool.
- A request that the upstream has surely not handled (REFUSED_STREAM, or a stream above GOAWAY's last) may be sent
  again, whatever it is. A stream that ends in any other way is treated like a connection of HTTP/1 that ends.
- A malformed response ends only its stream.
- After the upstream's GOAWAY no stream is begun; streams that it still serves are served to their end.
- A connection that may be dead gets no new stream: a request was given up on it, and no byte has come since it was
  sent.
"""

from __future__ import annotations

from collections.abc import Callable

import h2.events
from h2.errors import ErrorCodes
from mitmproxy import http

from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.http.framing import MAX_TRAILERS
from proxy.core.http.heads import MAX_HEAD_BYTES, Fields
from proxy.core.http.heads2 import read_http2_response, read_http2_trailers
from proxy.core.http.hops import trailers_to_relay
from proxy.core.reasons import Reason
from proxy.engine.http2 import Connection, Stream, name_of
from proxy.engine.http2state import MAX_STREAMS, NeverIndexed
from proxy.engine.streams import NoResponses, Receiver
from proxy.engine.upstreams.connection import MAX_INTERIM, UpstreamConnection
from proxy.engine.upstreams.services import Services
from proxy.engine.upstreams.state import SHARED_AFTER, Sharing, SharingEvent

MAX_STREAM_ID = 2**30  # half of all numbers; then another connection is opened
_NOT_IN_HTTP2 = frozenset(
    (b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"host", b"te")
)
_SECRET = frozenset((b"authorization", b"cookie"))  # fields that no table should keep (RFC 7541, section 7.1.3)
_FULL = "the upstream allows no more streams, on a new connection either (SETTINGS_MAX_CONCURRENT_STREAMS)"
_ENDED = "the upstream closed the connection before its response was whole"


class UpstreamHttp2(Connection["UpstreamHttp2Stream"], NoResponses):
    """A connection to an upstream that speaks HTTP/2; it is the receiver of the bytes of its carrier."""

    def __init__(self, services: Services, carrier: UpstreamConnection) -> None:
        """Start.

        Args:
            services: has the event loop and the pool.
            carrier: the connection, after its handshake.
        """
        # As large as an upstream's head may be in HTTP/1, plus the extra bytes that HTTP/2 counts for each field.
        super().__init__(services.loop, is_client=True, header_bytes=2 * MAX_HEAD_BYTES)
        self._pool = services.pool
        self.carrier = carrier
        self.sharing = Sharing.OPEN
        self.idle_since = self.heard = services.loop.time()
        self._touched: set[Receiver] = set()
        self._why = ""  # why the upstream ends the connection, if it has said so
        early = carrier.take_early()
        carrier.carry(self)
        if carrier.is_congested:
            self.socket_congested(True)
        if early:
            self.switched(early)

    # -- for the pool

    @property
    def has_room(self) -> bool:
        """Whether another stream may be begun now."""
        return self.takes_streams and len(self.streams) < min(
            MAX_STREAMS, self.state.remote_settings.max_concurrent_streams
        )

    @property
    def takes_streams(self) -> bool:
        """Whether new streams may be begun at all."""
        return self.sharing is Sharing.OPEN and not self.is_over and not self.carrier.is_closed

    @property
    def is_idle(self) -> bool:
        """Whether no stream is under way."""
        return not self.streams

    def leave(self) -> None:
        """Begin no new stream, and close once none is under way."""
        self.sharing = SHARED_AFTER[SharingEvent.LEAVE][self.sharing]
        if self.is_idle and not self.is_over:
            self.say_goaway(0, ErrorCodes.NO_ERROR)
            self.flush_now()
            self.is_over = True
            self.carrier.finish()

    def part(self) -> None:
        """Serve no new conversation; those under way go on."""
        self._pool.forget_shared(self)
        self.leave()

    def doubt(self) -> None:
        """Begin no new stream: the upstream may be dead."""
        self._pool.forget_shared(self)
        self.sharing = SHARED_AFTER[SharingEvent.LEAVE][self.sharing]

    def begin(self, stream: UpstreamHttp2Stream) -> None:
        """Give a stream its number, and begin to carry it."""
        self.sharing = SHARED_AFTER[SharingEvent.BEGIN][self.sharing]
        stream.number = self.state.get_next_available_stream_id()
        self.streams[stream.number] = stream
        if stream.number > MAX_STREAM_ID:
            self.sharing = SHARED_AFTER[SharingEvent.LEAVE][self.sharing]

    def open(self) -> UpstreamHttp2Stream:
        """Return a stream that has not begun."""
        return UpstreamHttp2Stream(self)

    # -- as the receiver of the carrier's bytes

    def switched(self, data: bytes) -> None:
        """Handle received bytes."""
        if not self.is_over:
            self.heard = self.loop.time()
            self.received(data)

    def switched_end(self) -> None:
        """Called when nothing more will come; what has come is read to its end."""
        if self.is_behind:
            self.sharing = SHARED_AFTER[SharingEvent.END][self.sharing]
            self._pool.forget_shared(self)
        else:
            self._lost()

    def caught_up(self) -> None:
        """Called when everything that has come is read."""
        if self.sharing is Sharing.ENDED or self.carrier.end_waits:
            self._lost()

    def response_failed(self, denied: Denied, began: bool, *, is_untouched: bool = False) -> None:
        """Called when the connection is over."""
        self._lost()

    def _lost(self) -> None:
        if not self.is_over:
            for stream in self.end():
                stream.failed(self.carrier.end_of_tls() or Denied(Reason.UPSTREAM_FAILED, _ENDED + self._why))
        self._pool.forget_shared(self)
        self.carrier.close()

    def upstream_congested(self, congested: bool) -> None:
        """Called when the socket takes no more for now, and when it does again."""
        self.socket_congested(congested)

    def flush(self) -> None:
        """Let each app for which something has come be sent it."""
        self.flush_now()
        touched, self._touched = self._touched, set()
        for receiver in touched:
            receiver.flush()

    def touch(self, receiver: Receiver) -> None:
        """Note that something is to be sent to an app."""
        self._touched.add(receiver)

    def crashed(self, error: Exception) -> None:
        """Close everything: the failure is not about one stream."""
        for stream in self.end():
            if stream.receiver is not None:
                stream.receiver.crashed(error)
        self._pool.forget_shared(self)

    # -- as the `Connection`

    def event(self, event: h2.events.Event, stream: UpstreamHttp2Stream | None) -> None:
        """Handle what a frame means."""
        if stream is None:
            if isinstance(event, h2.events.DataReceived):
                self.ignore_data(event)
            return
        if stream.receiver is not None:
            self._touched.add(stream.receiver)
        try:
            stream.take(event)
        except Exception as e:  # it concerns one app; the others go on
            receiver = stream.receiver
            stream.close()
            if receiver is None:
                raise
            receiver.crashed(e)

    def goaway(self, last: int, code: int) -> None:
        """Called when the upstream says that it serves no stream above `last`."""
        self.sharing = SHARED_AFTER[SharingEvent.LEAVE][self.sharing]
        if code != ErrorCodes.NO_ERROR:
            self._why = f" (GOAWAY, {name_of(code)})"
        self._pool.forget_shared(self)
        for stream in [each for each in self.streams.values() if each.number > last]:
            self.reset(stream, ErrorCodes.CANCEL)
            stream.failed(
                Denied(
                    Reason.UPSTREAM_FAILED,
                    f"the upstream ended the connection before it had looked at the request{self._why}",
                ),
                is_untouched=True,
            )
        self._leave_if_idle()

    def broken(self, streams: list[UpstreamHttp2Stream], why: str) -> None:
        """Close the connection."""
        self.flush_now()
        self._pool.forget_shared(self)
        for stream in streams:
            stream.failed(Denied(Reason.UPSTREAM_FAILED, f"the upstream breaks HTTP/2 on its connection: {why}"))
        self.carrier.finish()

    def closed(self, stream: UpstreamHttp2Stream) -> None:
        """Close the connection if this was the last stream, and the connection is to end."""
        self.idle_since = self.loop.time()
        if self.sharing is not Sharing.OPEN:
            self.loop.call_soon(self.guarded, self._leave_if_idle)

    def _leave_if_idle(self) -> None:
        if self.sharing is not Sharing.OPEN and self.is_idle and not self.is_over:
            self.leave()

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Run a step in a turn of its own, and handle what it raises."""
        self.carrier.guarded(step, *arguments)

    def pause(self, is_paused: bool) -> None:
        """Stop reading for now, or go on."""
        self.carrier.hold("turn", is_paused)

    def write(self, data: bytes) -> None:
        """Write bytes to the socket."""
        if not self.carrier.is_closed:
            self.carrier.send(data)


class UpstreamHttp2Stream(Stream):
    """One request and its response; see `UpstreamStream`."""

    is_http2 = True

    def __init__(self, connection: UpstreamHttp2) -> None:
        super().__init__(0)  # it gets its number when it begins
        self.connection = connection
        self.server = connection.carrier.server
        self.record = connection.carrier.record
        self.receiver: Receiver | None = None
        self.is_congested = connection.is_socket_congested
        self._method = b""
        self._asked = 0.0
        self._began = False
        self._has_body = True
        self._interim = 0
        self._behind: Fields = ()

    # -- as the `UpstreamStream` of a conversation

    def heard_early(self) -> bool:
        """Return False: in HTTP/2 both sides speak at once, and nothing comes on a stream that has not begun."""
        return False

    def ask(
        self, receiver: Receiver, request: http.Request, body: bytes, *, is_whole: bool, trailers: Fields, te: bool
    ) -> None:
        """Send a request."""
        connection, self.receiver = self.connection, receiver
        if not connection.has_room:
            self.is_open = False
            is_full = connection.takes_streams
            denied = Denied(Reason.UPSTREAM_FAILED, _FULL if is_full else _ENDED)
            connection.loop.call_soon(connection.guarded, lambda: self.failed(denied, is_untouched=True))
            return
        self._method = request.data.method
        self._asked = connection.loop.time()
        connection.begin(self)
        behind = trailers_to_relay(trailers, stays_apart=True)
        connection.send_head(self, _fields(request, te=te), is_all=is_whole and not body and not behind)
        if body:
            connection.send(self, body)
        if is_whole:
            connection.finish(self, behind)

    def send_body(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.connection.send(self, data)

    def end(self, trailers: Fields) -> None:
        """End the request."""
        self.connection.finish(self, trailers_to_relay(trailers, stays_apart=True))

    def send(self, data: bytes) -> None:
        """Never called: no switch is offered."""
        raise RuntimeError("a switch of protocols in HTTP/2")

    def finish(self) -> None:
        """Never called: no switch is offered."""
        raise RuntimeError("a switch of protocols in HTTP/2")

    def hold(self, why: str, is_held: bool) -> None:
        """Open no window for more of the response."""
        self.connection.hold(self, why, is_held)

    def congested(self, is_congested: bool) -> None:
        """Called when no more of the request should be sent for now, and when it may be again."""
        if self.receiver is not None:
            self.connection.touch(self.receiver)  # the app must be told that it may send more
            self.receiver.upstream_congested(is_congested)

    def unsent(self) -> int:
        """Return how many bytes wait for the upstream's windows, and in the socket."""
        return self.connection.unsent(self) + self.connection.carrier.unsent()

    def give_back(self) -> None:
        """End the stream; the connection has never left the pool. The rest of the request is not needed."""
        self.close()

    def part(self) -> None:
        """Begin no new stream on this connection."""
        self.close()
        self.connection.part()

    def close(self) -> None:
        """Give the request up."""
        self.receiver = None
        connection = self.connection
        if (
            self.is_open
            and self._asked
            and connection.loop.time() - max(self._asked, connection.heard) > timelimits.SILENT_SECONDS
        ):
            connection.doubt()
        connection.reset(self, ErrorCodes.CANCEL)

    # -- receiving

    def failed(self, denied: Denied, *, is_untouched: bool = False) -> None:
        """End without a complete response."""
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            try:
                receiver.response_failed(denied, self._began, is_untouched=is_untouched)
            except Exception as e:  # it concerns one app; the others must still be told
                receiver.crashed(e)
            receiver.flush()

    def take(self, event: h2.events.Event) -> None:
        """Handle what a frame means."""
        if self.receiver is None:
            if isinstance(event, h2.events.DataReceived):
                self.connection.take_data(self, event)
                self.connection.told(self)
            return
        try:
            if isinstance(event, h2.events.InformationalResponseReceived):
                self._take_interim(event)
            elif isinstance(event, h2.events.ResponseReceived):
                self._take_head(event)
            elif isinstance(event, h2.events.DataReceived):
                self._take_data(event)
            elif isinstance(event, h2.events.TrailersReceived):
                _check_size(event.headers or [], "trailer", MAX_TRAILERS)
                self._behind = read_http2_trailers(event.headers or [], Reason.UPSTREAM_FAILED)
            elif isinstance(event, h2.events.StreamEnded):
                self._take_end()
            elif isinstance(event, h2.events.StreamReset):
                self._take_reset(int(event.error_code or 0), is_peers=event.remote_reset)
        except Denied as denied:
            self.connection.reset(self, ErrorCodes.PROTOCOL_ERROR)
            self.failed(denied)

    def _take_interim(self, event: h2.events.InformationalResponseReceived) -> None:
        assert self.receiver is not None
        self._began = True
        self._interim += 1
        _check_size(event.headers or [], "header")
        head = read_http2_response(event.headers or [], is_whole=False, may_have_body=False)
        if self._interim > MAX_INTERIM:
            raise Denied(Reason.UPSTREAM_FAILED, "the upstream sends interim responses (1xx) without an end")
        self.receiver.response_head(head)

    def _take_head(self, event: h2.events.ResponseReceived) -> None:
        assert self.receiver is not None
        self._began = True
        has_body = self._method != b"HEAD"
        is_whole = event.stream_ended is not None
        _check_size(event.headers or [], "header")
        head = read_http2_response(event.headers or [], is_whole=is_whole, may_have_body=has_body)
        self._has_body = has_body and head.status not in (204, 304)
        self.expected = head.body if head.body >= 0 and self._has_body else None
        self.receiver.response_head(head)

    def _take_data(self, event: h2.events.DataReceived) -> None:
        assert self.receiver is not None
        data = self.connection.take_data(self, event)
        if data and (not self._has_body or (self.expected is not None and self.expected < 0)):
            raise Denied(Reason.UPSTREAM_FAILED, "the upstream sent more of a body than it had said")
        if data:
            self.receiver.response_data(data)
        self.connection.told(self)

    def _take_end(self) -> None:
        assert self.receiver is not None
        self.connection.peer_ended(self)
        if self.expected:
            raise Denied(Reason.UPSTREAM_FAILED, "the upstream sent less of a body than it had said")
        receiver, self.receiver = self.receiver, None
        receiver.response_end(trailers_to_relay(self._behind, stays_apart=True))

    def _take_reset(self, code: int, *, is_peers: bool) -> None:
        if is_peers and code == ErrorCodes.HTTP_1_1_REQUIRED and not self._began:
            if self.receiver is not None:
                self.receiver.wants_http1()
            denied = Denied(Reason.UPSTREAM_FAILED, "the upstream wants HTTP/1.1 for this request (HTTP_1_1_REQUIRED)")
            self.failed(denied, is_untouched=True)
            return
        what = "reset the stream" if is_peers else "broke the rules of HTTP/2 in its stream"
        denied = Denied(Reason.UPSTREAM_FAILED, f"the upstream {what} ({name_of(code)})")
        is_untouched = is_peers and code == ErrorCodes.REFUSED_STREAM and not self._began
        self._began = not is_untouched  # the upstream has acted on the request: it must not be sent twice
        self.failed(denied, is_untouched=is_untouched)


def _check_size(block: list[tuple[bytes, bytes]], what: str, most: int | None = None) -> None:
    """Check that a header block is not longer than a head of HTTP/1 may be.

    Raises:
        Denied: UPSTREAM_FAILED.
    """
    if most is not None and len(block) > most:
        raise Denied(Reason.UPSTREAM_FAILED, f"the upstream sent more than {most} {what} fields")
    if sum([len(name) + len(value) + 4 for name, value in block]) > MAX_HEAD_BYTES:
        raise Denied(Reason.UPSTREAM_FAILED, f"the upstream's {what} fields are longer than {MAX_HEAD_BYTES} bytes")


def _fields(request: http.Request, *, te: bool) -> list[tuple[bytes, bytes]]:
    data = request.data
    authority = b""
    fields: list[tuple[bytes, bytes]] = []
    for field in data.headers.fields:
        name, value = field
        key = name.lower()
        if key == b"host":
            authority = value
        elif key in _SECRET or isinstance(field, NeverIndexed):  # RFC 7541, section 7.1.3
            fields.append(NeverIndexed(key, value))
        elif key not in _NOT_IN_HTTP2:
            fields.append((key, value))
    if te:
        fields.append((b"te", b"trailers"))
    return [
        (b":method", data.method),
        (b":scheme", data.scheme),
        (b":authority", authority),
        (b":path", data.path),
        *fields,
    ]
