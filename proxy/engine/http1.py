"""The two ends of HTTP/1, the app's and the upstream's: strict and bounded where mitmproxy's are neither.

Rules of this module:

- A head is checked on its bytes before any parser reads it, and never grows past `MAX_HEAD_BYTES`.
- What is sent is framed: a body without a length, which HTTP/2 allows, never follows a head that announces none.
- An error is answered with problem details, and the connection is closed after it.

Every override names the behaviour of mitmproxy 12.2 that it replaces; `tests/proxy/engine/test_internals.py` fails
when those move.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from mitmproxy import connection, http
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server, make_body_reader

from addons.exchange import Exchange, problem_response
from proxy.core.decisions import Denied, Reason
from proxy.core.destinations import parse_authority
from proxy.core.heads import BAD_REQUEST_LINE, MAX_HEAD_BYTES, can_become_a_head, check_request_head
from proxy.core.policy import HTTP_PORT, HTTPS_PORT

if TYPE_CHECKING:
    from proxy.engine.layers import Line

Commands = layer.CommandGenerator[None]

_HEAD_END = re.compile(rb"\n\r?\n")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_INTERIM = re.compile(rb"HTTP/1\.1 1(?!01)[0-9]{2}[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n")  # RFC 9110, section 15.2


class Http1App(Http1Server):
    """The app's side of HTTP/1: strict heads, bounded, with answers as problem details."""

    def __init__(self, ctx: context.Context, mode: http_layers.HTTPMode, line: Line) -> None:
        super().__init__(ctx)
        self._mode = mode
        self._line = line

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        """Read one request head. Replaces a reader that takes bare LF and has no size limit."""
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        if empty_lines := _EMPTY_LINES.match(bytes(self.buf)):  # RFC 9112, section 2.2: passed over before a request
            self.buf.maybe_extract_at_most(empty_lines.end())
        buffered = bytes(self.buf)
        if buffered in (b"", b"\r"):
            return
        end = _HEAD_END.search(buffered)
        try:
            if end is None:
                if len(buffered) > MAX_HEAD_BYTES:
                    raise Denied(Reason.HEADERS_TOO_LARGE, f"the head is longer than {MAX_HEAD_BYTES} bytes")
                if not can_become_a_head(buffered):
                    raise Denied(Reason.BAD_REQUEST, BAD_REQUEST_LINE)
                return
            head = buffered[: end.end()]
            self.buf.maybe_extract_at_most(len(head))
            request = self._parse(head)
        except Denied as denied:
            yield from self._refuse(denied)
            return
        self.request = request
        size = http1.expected_http_body_size(request)
        yield ReceiveHttp(http_events.RequestHeaders(self.stream_id, request, size == 0))
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def _parse(self, head: bytes) -> http.Request:
        if len(head) > MAX_HEAD_BYTES:
            raise Denied(Reason.HEADERS_TOO_LARGE, f"the head is longer than {MAX_HEAD_BYTES} bytes")
        if not head.endswith(b"\r\n\r\n"):
            raise Denied(Reason.BAD_REQUEST, "the head holds a line that ends in a bare LF")
        check_request_head(head)
        lines = head[:-4].split(b"\r\n")
        try:
            request = http1.read_request_head(lines)
            if self._mode is http_layers.HTTPMode.regular and request.data.authority:
                _read_authority(request)
        except ValueError:
            raise Denied(
                Reason.BAD_REQUEST,
                "the request target is not valid: it needs a host, a port from 1 to 65535, and http or https",
            ) from None
        if self._mode is http_layers.HTTPMode.regular and request.method != "CONNECT" and not request.host:
            raise Denied(
                Reason.BAD_REQUEST,
                "the request names no host in its target: a proxy is sent `GET http://host/path` or CONNECT",
                "set this address as the app's HTTP_PROXY or HTTPS_PROXY instead of calling it directly",
            )
        return request

    def _refuse(self, denied: Denied) -> Commands:
        session = self._line.sessions.of(self.context.client)
        exchange = Exchange(session.policy, session.client)
        exchange.note(denied)
        self._line.refused(exchange, denied.reason.status)
        yield commands.SendData(self.conn, _closing_response(denied))
        yield commands.CloseConnection(self.conn)
        self.state = self.done

    def send(self, event: http_events.HttpEvent) -> Commands:
        """Send to the app. mitmproxy answers protocol errors with a page of HTML; this, with problem details."""
        if (
            isinstance(event, http_events.ResponseProtocolError)
            and not self.response
            and (status := event.code.http_status_code()) is not None
            and self.conn.state & connection.ConnectionState.CAN_WRITE
        ):
            reason = Reason.BAD_REQUEST if status < 500 else Reason.UPSTREAM_FAILED
            yield commands.SendData(self.conn, _closing_response(Denied(reason, reason.meaning)))
            yield commands.CloseConnection(self.conn)
            return
        yield from super().send(event)

    def wait(self, event: events.Event) -> Commands:
        """Wait for the response; pipelined requests stay in the buffer, which mitmproxy lets grow for ever."""
        if isinstance(event, events.DataReceived) and len(self.buf) > MAX_HEAD_BYTES:
            yield commands.CloseConnection(self.conn)
            return
        yield from super().wait(event)

    def read_body(self, event: events.Event) -> Commands:
        """Read a body, without its trailers."""
        yield from _without_trailers(self, super().read_body(event), http_events.RequestEndOfMessage)


class Http1Upstream(Http1Client):
    """The upstream's side of HTTP/1: bounded heads, trailers passed over."""

    def send(self, event: http_events.HttpEvent) -> Commands:
        """Send to the upstream what the app may have sent as HTTP/2, where neither a length nor trailers are special.

        mitmproxy sends a body without a length as it is, behind a head that announces none: to the upstream it would
        be the next request. For trailers it raises.
        """
        if isinstance(event, http_events.RequestTrailers):
            return
        if isinstance(event, http_events.RequestHeaders) and not event.end_stream and event.request.is_http2:
            fields = event.request.headers
            if "content-length" not in fields:
                fields["transfer-encoding"] = "chunked"
        yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        """Read one response head."""
        while self.request is not None and (interim := _INTERIM.match(bytes(self.buf))):
            # mitmproxy would take it for the final response. Apps that wait for a 100 get theirs from mitmproxy.
            self.buf.maybe_extract_at_most(interim.end())
        is_endless = len(self.buf) > MAX_HEAD_BYTES and _HEAD_END.search(bytes(self.buf)[:MAX_HEAD_BYTES]) is None
        if isinstance(event, events.DataReceived) and self.stream_id is not None and is_endless:
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                http_events.ResponseProtocolError(self.stream_id, "", http_events.ErrorCode.GENERIC_SERVER_ERROR)
            )
            return
        yield from super().read_headers(event)

    def read_body(self, event: events.Event) -> Commands:
        """Read a body, without its trailers."""
        yield from _without_trailers(self, super().read_body(event), http_events.ResponseEndOfMessage)


def _without_trailers(side: Http1App | Http1Upstream, reading: Commands, end_of_message: type[Any]) -> Commands:
    """Drop the trailer section, for which mitmproxy raises (a proxy may drop it: RFC 9110, section 6.5.1)."""
    try:
        yield from reading
    except NotImplementedError:
        yield ReceiveHttp(end_of_message(side.stream_id))
        is_request = isinstance(side, Http1App)
        yield from side.mark_done(request=is_request, response=not is_request)


def _read_authority(request: http.Request) -> None:
    """Read the target's authority anew: mitmproxy takes port 0 for none, and decodes A-labels.

    Raises:
        ValueError: it is not valid.
    """
    default_port = {b"http": HTTP_PORT, b"https": HTTPS_PORT}.get(request.data.scheme)
    destination = parse_authority(request.data.authority.decode("ascii"), default_port)
    request.data.host, request.data.port = destination.host, destination.port


def _closing_response(denied: Denied) -> bytes:
    response = problem_response(denied, None)
    response.headers["connection"] = "close"
    return cast(bytes, http1.assemble_response(response))
