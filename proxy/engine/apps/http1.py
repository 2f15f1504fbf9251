"""The speaker for HTTP/1: reads an app's requests one after the other, makes a conversation of each, and writes the
responses. `apps.socket` gives it the app's bytes.

Rules of this module:

- A head is read strictly, within the policy's limits. Bytes that cannot become a head are answered at once.
- The next request is not read before the current one has its response, so pipelined requests keep their order.
- If very many small chunks come at once, only some are read; the rest waits for a later turn, after all other
  connections.
- It is decided here whether another request may follow on the connection, and where a response ends.
"""

from __future__ import annotations

import re

from mitmproxy import http

from addons.denials import problem_response
from addons.exchange import Exchange
from proxy.core.decisions import Denied
from proxy.core.http.framing import BadFraming, Body, body_of, chunk, last_chunk
from proxy.core.http.heads import MAX_HEAD_BYTES, Fields, HeadEnd, names_in, read_request_head
from proxy.core.http.hops import is_last_request, trailers_to_relay
from proxy.core.reasons import Reason
from proxy.engine.apps.connect import Connect
from proxy.engine.apps.conversation import Conversation
from proxy.engine.apps.http2 import AppHttp2
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import Speaker
from proxy.engine.clock import ResponseClock
from proxy.engine.http2 import PREFACE
from proxy.engine.messages import ListenerTarget, aimed, response_head
from proxy.engine.streams import Version

MAX_PIPELINED = MAX_HEAD_BYTES
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")


class AppHttp1(Speaker):
    """Reads requests from an app."""

    answers = True

    def __init__(self, app: AppSocket, tunnel: Exchange | None, listener_target: ListenerTarget | None = None) -> None:
        """Start.

        Args:
            app: the app's socket.
            tunnel: the CONNECT inside which it is spoken, if any.
            listener_target: says where requests go that name no destination themselves, by the listener.
        """
        self.app = app
        self._tunnel = tunnel
        self._inside = tunnel.asked if tunnel is not None else None
        self._listener_target = listener_target
        self._is_first = True  # whether no request has come yet
        self._is_chunked = False  # whether the current response is in chunks
        self.is_last = False  # whether no other request is served after the current one
        self.conversation: Conversation | Connect | None = None
        self._unread = b""
        self._head_end = HeadEnd(of_request=True)
        self._body: Body | None = None
        self._waits_for_turn = False
        self._is_due = False  # whether the next request has its turn soon
        self._has_ended = False

    def feed(self, data: bytes) -> None:
        """Handle received bytes."""
        self._unread = self._unread + data if self._unread else data
        if not self._is_due:
            self.advance()
        elif len(self._unread) > MAX_PIPELINED:
            self.app.hold("pipelining", True)

    def advance(self) -> None:
        """Read on, as far as the bytes go."""
        self._read_on()
        app = self.app
        if app.speaker is self and not app.is_closing:
            conversation = self.conversation
            if self._body is None:
                app.expect(conversation is None and self._unread != b"")
            else:
                app.expect(isinstance(conversation, Conversation) and conversation.holds_body)

    def _read_on(self) -> None:
        app = self.app
        while not app.is_closing and app.speaker is self:
            if self._body is not None:
                if not self._read_body(self._body) or self.conversation is None:
                    return  # if it was answered at once, the next one has a turn of its own: see below
            elif self.conversation is not None or app.is_congested:
                if len(self._unread) > MAX_PIPELINED:  # the others wait in the kernel's buffer
                    app.hold("pipelining", True)
                return
            elif not self._read_head():
                if self._has_ended:
                    app.close()
                return
            elif self.conversation is None:
                return  # it was answered at once; the next one waits for a later turn, after all other connections

    def _read_head(self) -> bool:
        # RFC 9112, section 2.2: empty lines before a request are skipped.
        if self._unread.startswith(b"\r\n") and (empty_lines := _EMPTY_LINES.match(self._unread)):
            self._unread = self._unread[empty_lines.end() :]
        stripped = self._unread
        if stripped in (b"", b"\r"):
            return False
        if self._is_first and stripped[:4] == PREFACE[:4] and PREFACE.startswith(stripped[: len(PREFACE)]):
            if len(stripped) >= len(PREFACE):
                self.speak_http2(stripped)
            return False
        try:
            limits = self.app.session.policy.limits
            end = self._head_end.find(stripped, limits.header_bytes)
            if end is None:
                return False
            self._unread = stripped[end:]
            head = read_request_head(stripped[:end])
            if len(head.fields) > limits.header_count:
                raise Denied(Reason.HEADERS_TOO_LARGE, f"there are more than {limits.header_count} header fields")
            head, request, front = aimed(head, self._inside, self._listener_target, is_tls=self.app.tls is not None)
        except Denied as denied:
            self.deny(denied)
            return False
        if self._inside is None:
            self.app.session.policy = self.app.house.policy  # the policy in force when the request begins
        elif self.app.house.is_leaving(self.app.session):
            self.app.close()  # a CONNECT keeps its policy, so no request begins inside it under another one
            return False
        if head.method == b"CONNECT":
            self.conversation = connect = Connect(self, request, AppHttp1)
            connect.start()
            return not self.app.is_closing
        self._is_first = False
        # RFC 9112, section 9.3: a proxy keeps no connection open with an HTTP/1.0 client, even if that asks for it.
        self.is_last = not head.is_http11 or is_last_request(head.fields)
        self.conversation = conversation = Conversation(self, request, head, front)
        self._body = body_of(head.body) if head.body else None
        conversation.start(has_body=self._body is not None)
        if self._body is None and not self.app.is_closing:
            conversation.request_end()
        return True

    def speak_http2(self, data: bytes = b"") -> None:
        """Give the connection to the speaker for HTTP/2, with its bytes that have come already."""
        self._unread = b""
        self.app.speaker = speaker = AppHttp2(self.app, self._tunnel, self._listener_target)
        speaker.feed(data)

    def deny(self, denied: Denied) -> None:
        """Answer bytes that are no request, or a request that did not come in time, and close."""
        exchange = self.app.denied(denied)
        response = problem_response(denied, None, id=exchange.id)
        self.app.write(response_head(response, is_closing=True) + (response.data.content or b""))
        self.app.write_denied(exchange, response.status_code)
        self.app.close()

    def _read_body(self, body: Body) -> bool:
        conversation = self.conversation
        assert isinstance(conversation, Conversation)
        if not self._unread and not body.has_more:
            return False
        data, self._unread = self._unread, b""
        try:
            piece, rest = body.feed(data)
        except BadFraming:
            conversation.broken()
            return False
        if piece:
            conversation.request_data(piece)
        if rest is None:
            if body.has_more and not self._waits_for_turn:
                self._waits_for_turn = True
                self.app.hold("turn", True)
                self.app.loop.call_soon(self.app.guarded, self._take_turn)
            return False
        self._body, self._unread = None, rest
        conversation.request_end(trailers_to_relay(body.trailers))
        return True

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self.app.hold("turn", False)
        self.advance()
        if self._has_ended and not self._waits_for_turn and not self.app.is_closing:
            self.eof()

    # -- as the `AppStream` of a conversation

    @property
    def is_congested(self) -> bool:
        """Whether the app takes no more for now."""
        return self.app.is_congested

    @property
    def clock(self) -> ResponseClock:
        """Measures how long the upstream takes."""
        return self.app.clock

    def version(self, _request: http.Request) -> Version:
        """Return the version in which a request is to go out: the one in which it came."""
        return Version.HTTP1

    def hold(self, why: str, is_held: bool) -> None:
        """Read nothing from the app while there is any reason to wait."""
        self.app.hold(why, is_held)

    def last(self) -> None:
        """Serve no other request on this connection."""
        self.is_last = True

    def interim(self, response: http.Response) -> None:
        """Send an interim response."""
        self.app.write(response_head(response, is_closing=False))

    def begin(self, response: http.Response, *, has_body: bool) -> None:
        """Send the head of a response."""
        self._is_chunked = has_body and b"transfer-encoding" in names_in(response.data.headers.fields)
        is_switch = response.data.status_code == 101
        self.app.write(response_head(response, is_closing=self.is_last and not is_switch))

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.app.write(chunk(data) if self._is_chunked else data)

    def end(self, trailers: Fields = ()) -> None:
        """End the response."""
        if self._is_chunked:
            self.app.write(last_chunk(trailers))

    def answer(self, response: http.Response, body: bytes) -> None:
        """Send a complete response that was made here."""
        self.app.write(response_head(response, is_closing=self.is_last) + body)

    def flush(self) -> None:
        """Send what was gathered now."""
        self.app.flush()

    def switch(self, speaker: Speaker) -> bytes:
        """Give the connection to the speaker for WebSocket; return the bytes for it that have come already."""
        self.app.speaker = speaker
        self.app.hold("pipelining", False)
        return self.take_rest()

    def close(self) -> None:
        """Close the connection."""
        self.app.close()

    def crash(self, error: Exception) -> None:
        """Close the connection, because something inside has failed."""
        self.app.crash(error)

    def abort(self) -> None:
        """Break the connection off."""
        self.app.flush()
        self.app.abort()

    def next(self) -> None:
        """Go on after a conversation."""
        self.conversation = None
        if not self.is_last:
            if self._unread or self._has_ended:
                self.app.hold("pipelining", len(self._unread) > MAX_PIPELINED)
                if not self._is_due:
                    # Not directly: the end of one request must not deepen the stack of the next.
                    self._is_due = True
                    self.app.loop.call_soon(self.app.guarded, self._take_due)
        else:
            self.app.close()

    def _take_due(self) -> None:
        self._is_due = False
        self.app.hold("pipelining", False)
        self.advance()

    def established(self) -> bytes:
        """Return the answer to a CONNECT that is open."""
        return b"HTTP/1.1 200 Connection established\r\n\r\n"

    def refusal(self, response: http.Response) -> bytes:
        """Return the answer to a CONNECT that is denied."""
        return response_head(response, is_closing=True) + (response.data.content or b"")

    def take_rest(self) -> bytes:
        """Take the bytes that came after a CONNECT."""
        rest, self._unread = self._unread, b""
        return rest

    def eof(self) -> None:
        """Called when the app will send no more. Complete requests, also pipelined ones, still get their responses."""
        self._has_ended = True
        if self._waits_for_turn:
            return  # not everything that it has sent is read yet
        if self._body is not None and self.conversation is not None:
            self.conversation.gone()
        elif self.conversation is None:
            self.advance()
        else:
            self.app.expect_departure()

    def end_silence(self, seconds: float) -> bool:
        """Answer the current request after so long a silence; return whether an answer was possible."""
        denied = None if self.conversation is None else self.conversation.overdue(seconds)
        if denied is not None:
            self.give_up(denied)
        return denied is not None

    def too_slow(self) -> None:
        """Called when the head, or a held body, did not come in time."""
        seconds = self.app.session.policy.limits.request_seconds
        denied = Denied(Reason.REQUEST_TIMEOUT, f"the app did not send all of it within {seconds} s")
        if isinstance(self.conversation, Conversation):
            self.conversation.give_up(denied)
        else:
            self.deny(denied)

    def give_up(self, denied: Denied) -> bool:
        """End the current request, if there is one, and the connection."""
        if self.conversation is not None:
            self.conversation.give_up(denied)
        else:
            self.app.close()
        return True

    def gone(self) -> None:
        """Called when the app's connection is over."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            conversation.gone()

    def congested(self, is_congested: bool) -> None:
        """Stop reading what the app cannot take."""
        if self.conversation is not None:
            self.conversation.app_congested(is_congested)
        elif not is_congested:
            self.app.hold("pipelining", False)
            self.advance()
