"""An upstream that speaks HTTP/1 to an app that speaks HTTP/2: mitmproxy's layer for it, made as strict as our own.

Rules of this module:

- One reader of heads and one of chunks for all upstreams, whatever the app speaks.
- What came at once is one piece, unless it was very many chunks: the rest of those has a later turn.
- A body that only its connection ends is whole only if the upstream said so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import h11
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client

from proxy.core.decisions import Denied, Reason
from proxy.core.framing import BadFraming, ChunkedBody
from proxy.core.heads import CHUNKED, HeadEnd, ResponseHead, read_response_head
from proxy.core.hops import without_framing
from proxy.engine.http2 import AwaitTurn
from proxy.engine.messages import response_of
from proxy.engine.upstream import MAX_INTERIM

if TYPE_CHECKING:
    from h11._receivebuffer import ReceiveBuffer
    from mitmproxy.proxy.context import Context

Commands = layer.CommandGenerator[None]


class ChunkedReader:
    """Reads a chunked body the way that mitmproxy expects of h11."""

    def __init__(self) -> None:
        self._body = ChunkedBody()
        self._has_ended = False
        self.waits_for_turn = False  # it has more to give, but not now

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """Return the next event, taking its bytes out of the buffer, or None if there is none yet.

        Raises:
            h11.RemoteProtocolError: it is not framed as chunks are.
        """
        if self._has_ended:
            return h11.EndOfMessage()
        if self.waits_for_turn:
            return None
        data = buffer.maybe_extract_at_most(len(buffer)) or b""
        if not data and not self._body.has_more:
            return None
        try:
            piece, rest = self._body.feed(bytes(data))
        except BadFraming:
            raise h11.RemoteProtocolError("the body is not framed as its head says") from None
        self.waits_for_turn = self._body.has_more
        if rest is not None:
            self._has_ended = True
            buffer += rest
        if piece:
            return h11.Data(data=piece)
        return h11.EndOfMessage() if self._has_ended else None

    def read_eof(self) -> NoReturn:
        """Take that the connection has ended.

        Raises:
            h11.RemoteProtocolError: always, since the last chunk has not come.
        """
        raise h11.RemoteProtocolError("the connection ended before its last chunk")


class CutOff(events.ConnectionClosed):
    """The end of a connection whose peer has not said that this is all (RFC 8446, section 6.1)."""


class Http1Upstream(Http1Client):
    """The upstream's side of HTTP/1."""

    _interim = 0  # responses so far; one connection serves one request

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._head_end = HeadEnd(of_request=False)
        self._chunks: ChunkedReader | None = None
        self._end: events.ConnectionClosed | None = None  # it has ended, while a body has a turn to come

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Wakeup):
            yield from self._take_turn()
        elif self._chunks is None or not self._chunks.waits_for_turn:
            yield from super()._handle_event(event)
        elif isinstance(event, events.DataReceived):
            self.buf += event.data
        elif isinstance(event, events.ConnectionClosed):
            self._end = event
        else:
            yield from super()._handle_event(event)

    def _take_turn(self) -> Commands:
        if self._chunks is not None:
            self._chunks.waits_for_turn = False
        if self.state != self.read_body:
            return  # nobody wants the rest any more
        yield from self.read_body(events.DataReceived(self.conn, b""))
        if self._end is not None and self._chunks is not None and not self._chunks.waits_for_turn:
            end, self._end = self._end, None
            yield from super()._handle_event(end)

    def send(self, event: http_events.HttpEvent) -> Commands:
        """Send to the upstream what the app may have sent as HTTP/2, where neither a length nor trailers are special.

        mitmproxy sends a body without a length as it is, behind a head that announces none: to the upstream it would
        be the next request. So would what follows an empty piece. For trailers it raises.
        """
        if isinstance(event, http_events.RequestTrailers):
            return
        if isinstance(event, http_events.RequestData) and not event.data:
            return  # as a chunk, it would be the last one
        if isinstance(event, http_events.RequestHeaders) and event.request.is_http2:
            fields = event.request.headers
            fields.pop("te", None)  # says what the app takes of us, and we take no trailers (RFC 9110, section 10.1.4)
            if not event.end_stream and "content-length" not in fields:
                fields["transfer-encoding"] = "chunked"
        yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        """Read one response head, as strictly as for an app that speaks HTTP/1. mitmproxy takes much for one."""
        if not isinstance(event, events.DataReceived) or self.request is None:
            yield from super().read_headers(event)
            return
        assert self.stream_id is not None
        try:
            head = self._final_head()
        except Denied:  # handle_protocol_error says it in its own words
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                http_events.ResponseProtocolError(self.stream_id, "", http_events.ErrorCode.GENERIC_SERVER_ERROR)
            )
            return
        if head is None:
            return
        has_body = self.request.data.method != b"HEAD" and head.status not in (204, 304)
        size = head.body if has_body else 0
        self.response = response_of(head, head.fields if head.status != 204 else without_framing(head.fields))
        yield ReceiveHttp(http_events.ResponseHeaders(self.stream_id, self.response, size == 0))
        if size == CHUNKED:
            self._chunks = ChunkedReader()
            self.body_reader = self._chunks  # type: ignore[assignment]  # read as h11's is
        else:
            self.body_reader = _http1.make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def _final_head(self) -> ResponseHead | None:
        """Take the final response's head out of the buffer, and all interim ones before it; None if it is not whole.

        Raises:
            Denied: UPSTREAM_FAILED: what came is no head, or none of a response that may come here.
        """
        while True:
            end = self._head_end.find(data := bytes(self.buf))
            if end is None:
                return None
            self._head_end = HeadEnd(of_request=False)
            self.buf.maybe_extract_at_most(end)
            head = read_response_head(data[:end])
            if head.status >= 200:
                return head
            self._interim += 1
            if head.status == 101 or self._interim > MAX_INTERIM:
                raise Denied(Reason.UPSTREAM_FAILED, "the upstream does not come to its final response")

    def read_body(self, event: events.Event) -> Commands:
        """Read a body. One that only its connection ends is not whole if that was cut off.

        A response may be whole before its request is. What follows it then was asked for by nobody, and is the end of
        this connection, but not of the request: the app may send it to its end, and has its answer.
        """
        if self.response_done:
            self.buf.maybe_extract_at_most(len(self.buf))
            yield commands.CloseConnection(self.conn)
            return
        if isinstance(event, CutOff):
            assert self.stream_id is not None
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                http_events.ResponseProtocolError(self.stream_id, "", http_events.ErrorCode.GENERIC_SERVER_ERROR)
            )
            return
        yield from super().read_body(event)
        if self._chunks is not None and self._chunks.waits_for_turn:
            yield AwaitTurn(self.conn)
