"""CONNECT and what follows it: a tunnel, TLS that is decrypted here, plain HTTP, or nothing. The speakers for HTTP/1
and SOCKS5 make a `Connect`; `FirstBytes` then decides by what the app sends.

Rules of this module:

- Only known protocols go on: TLS to a tunnelled host; TLS or http to an inspected one. Anything else is closed.
- The TLS server name must be the host of CONNECT; otherwise the policy would have decided on a host other than the one
  that the app reaches.
- A denied CONNECT ends its connection, and nothing more of it is read. A client that did not wait for the answer has
  sent bytes for the tunnel, and they must not become a request (RFC 9931, section 8).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from mitmproxy import http

from addons.exchange import Exchange
from addons.upstream import Upstream
from proxy.core.decisions import Action, Denied
from proxy.core.destinations import HTTP_PORT
from proxy.core.http.heads import MAX_HEAD_BYTES, can_become_a_head
from proxy.core.http.names import check_server_name
from proxy.core.reasons import Reason
from proxy.engine.apps.sniffing import Heard, Speech, listen
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import Speaker
from proxy.engine.apps.tunnels import Relay
from proxy.engine.flows import new_flow, new_server
from proxy.engine.hookdata import TlsData
from proxy.engine.http2 import PREFACE
from proxy.engine.upstreams.connection import UpstreamConnection
from proxy.engine.upstreams.route import dial

type Inside = Callable[[AppSocket, Exchange], Speaker]  # makes the speaker for the requests inside a CONNECT


class ConnectSpeaker(Protocol):
    """The speaker that read a CONNECT, or a request that means the same, and knows how to answer it."""

    app: AppSocket
    conversation: Any

    def established(self) -> bytes:
        """Return the answer that the connection is open."""

    def refusal(self, response: http.Response) -> bytes:
        """Return the answer that it is denied, and why; nothing follows it."""

    def take_rest(self) -> bytes:
        """Take the bytes that came after the request."""


class Connect:
    """A CONNECT request, until it is answered."""

    def __init__(self, speaker: ConnectSpeaker, request: http.Request, inside: Inside) -> None:
        """Start.

        Args:
            speaker: the speaker that read it.
            request: the request.
            inside: makes the speaker for requests inside.
        """
        self._inside = inside
        self._speaker = speaker
        self._app = speaker.app
        self._house = speaker.app.house
        self._flow = new_flow(self._app.client, request)
        self._dialling: asyncio.Task[None] | None = None
        self._is_over = False

    def start(self) -> None:
        """Pass it through the addons, and open what it asks for."""
        flow = self._flow
        self._house.dispatch.call("http_connect", flow)
        exchange = self._house.sessions.exchange(flow)
        # The upstream of a tunnel is opened before the 200, so that a failure can still be reported. Not at port 80:
        # the app may send http to upgrade, for which no plain connection must ever be opened.
        # Where all is only observed, it is opened for every CONNECT: the server may speak first.
        is_tunnel = exchange.decision is not None and exchange.decision.action is Action.TUNNEL
        opens_first = exchange.is_observed_whole or _is_raw(exchange) or (is_tunnel and flow.request.port != HTTP_PORT)
        if flow.response is not None:
            self._deny()
        elif opens_first:
            self._dialling = self._app.loop.create_task(self._dial(exchange))
        else:
            self._accept(exchange, None)

    async def _dial(self, exchange: Exchange) -> None:
        request = self._flow.request.data
        server = new_server((request.host, request.port), tls=False)
        record = exchange.upstream = Upstream(exchange.policy, exchange.rule)
        try:
            upstream = await dial(self._house.services, server, None, record, self._app.context)
        except Denied as denied:
            record.denied = denied
            if not self._is_over:
                exchange.deny_always(self._flow, denied)
                self._app.guarded(self._deny)
        except Exception as e:
            self._app.crash(e)
        else:
            if self._is_over:
                upstream.close()
            else:
                self._app.guarded(self._accept, exchange, upstream)

    def _deny(self) -> None:
        self._house.dispatch.call("http_connect_error", self._flow)
        self._app.session.connect = None  # its decision line is written, and it opened no tunnel
        response = self._flow.response
        assert response is not None
        self._is_over = True
        self._speaker.conversation = None
        self._app.write(self._speaker.refusal(response))
        self._app.close()

    def _accept(self, exchange: Exchange, upstream: UpstreamConnection | None) -> None:
        self._is_over = True
        self._app.hold("pipelining", False)
        self._app.write(self._speaker.established())
        self._speaker.conversation = None  # it is not needed any more, and refers back to this
        self._app.speaker = speaker = FirstBytes(self._app, exchange, upstream, self._inside)
        if rest := self._speaker.take_rest():
            speaker.feed(rest)
        if self._app.has_ended:  # meanwhile
            self._app.speaker.eof()

    def give_up(self, denied: Denied) -> None:
        """Deny it: it could not be opened in time."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._house.sessions.exchange(self._flow).deny_always(self._flow, denied)
        self._deny()

    def overdue(self, seconds: float) -> Denied | None:
        """Return why it must end after so long a silence: the upstream is still being dialled."""
        if self._dialling is None or self._is_over:
            return None
        return Denied(Reason.UPSTREAM_TIMEOUT, f"no connection was open after {seconds:.0f} s (limits.idle_seconds)")

    def gone(self) -> None:
        """Called when the app went away before the answer."""
        self._app.note_departure()
        self._is_over = True
        if self._dialling is not None:
            self._dialling.cancel()

    def app_congested(self, is_congested: bool) -> None:
        """Do nothing: nothing was sent yet."""


class FirstBytes(Speaker):
    """Collects an app's first bytes inside CONNECT, until they tell what follows."""

    def __init__(self, app: AppSocket, connect: Exchange, upstream: UpstreamConnection | None, inside: Inside) -> None:
        """Start.

        Args:
            app: the app's socket.
            connect: the CONNECT.
            upstream: the connection to its destination, if it is open already.
            inside: makes the speaker for requests inside.
        """
        self._inside = inside
        self._app = app
        self._connect = connect
        self._upstream = upstream
        self._data = b""
        # If any protocol may pass, the app may be waiting for the server to speak first.
        self._is_observed_whole = connect.is_observed_whole
        self._is_open = self._is_observed_whole or _is_raw(connect)
        if not self._is_open:
            app.expect(True)
        if upstream is not None:
            upstream.carry(Relay(app, upstream, b""))  # the first bytes of a server wait in its socket
            if not self._is_open:
                upstream.hold("first bytes", True)

    def feed(self, data: bytes) -> None:
        """Collect bytes, and decide once they are enough."""
        self._data += data
        if _is_raw(self._connect):
            self._relay()
            return
        heard = listen(self._data)
        if heard.speech is Speech.HTTP and self._is_observed_whole:
            # `EHLO me` begins like HTTP. If nothing may be denied, only a complete line counts as HTTP.
            has_line = b"\n" in self._data
            if not has_line and len(self._data) < MAX_HEAD_BYTES:
                return
            is_http2 = self._data.startswith(PREFACE[:16])  # its first line
            if not (has_line and (can_become_a_head(self._data) or is_http2)):
                heard = Heard(Speech.OTHER)
        if heard.speech is Speech.UNDECIDED:
            return
        self._app.expect(False)
        if heard.speech is Speech.HTTP:
            self._speak_http()
        elif heard.speech is Speech.TLS:
            self._decide_tls(heard)
        else:
            self._deny(
                Denied(
                    Reason.NOT_HTTP,
                    f"what the app sent through CONNECT {self._connect.asked} is neither TLS nor an HTTP request",
                ),
                is_observed=self._is_observed_whole,
            )

    def _speak_http(self) -> None:
        self._leave_upstream()
        self._app.session.speaks_http = True
        self._app.speaker = speaker = self._inside(self._app, self._connect)
        speaker.feed(self._data)

    def _decide_tls(self, heard: Heard) -> None:
        connect = self._connect
        assert connect.asked is not None
        assert connect.decision is not None
        try:
            if connect.decision.denied is not None:
                raise connect.decision.denied
            check_server_name(heard.sni, connect.asked)
            if connect.decision.action is Action.INSPECT:
                self._app.house.local_ca.check(connect.asked.host, datetime.now(UTC))
        except Denied as denied:
            self._deny(denied, is_observed=connect.observing)
            return
        if connect.observing:
            self._app.house.asides.note(connect)
        if connect.observing or connect.decision.action is Action.TUNNEL:
            self._relay()
        else:
            self._inspect(heard)

    def _deny(self, denied: Denied, *, is_observed: bool) -> None:
        if is_observed:
            self._connect.note_reason(denied)
            self._relay()
            return
        self._connect.break_off(denied)
        self._leave_upstream()
        self._app.close()

    def _relay(self) -> None:
        if self._upstream is not None:
            relay = self._upstream.receiver
            assert isinstance(relay, Relay)
            self._app.speaker = relay
            relay.feed(self._data)
            relay.splice()
            self._upstream.hold("app", self._app.is_congested)
            self._upstream.hold("first bytes", False)
        else:
            self._app.speaker = relay = Relay(self._app, None, self._data)
            relay.dial(self._connect)

    def _inspect(self, heard: Heard) -> None:
        app = self._app
        app.client.sni = heard.sni
        app.client.alpn_offers = heard.alpn
        assert self._connect.asked is not None
        app.context.server.address = self._connect.asked.host, self._connect.asked.port  # as mitmproxy sets it, too
        data = TlsData(app.client, app.context)
        app.house.dispatch.call("tls_start_client", data)
        assert data.ssl_conn is not None
        app.start_tls(data.ssl_conn)
        app.expect(True)  # the rest of the handshake
        app.speaker = self._inside(app, self._connect)
        app.take(self._data)

    def _leave_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.close()

    def too_slow(self) -> None:
        """End: the app did not send enough in time."""
        seconds = self._connect.policy.limits.request_seconds
        what = f"within {seconds} s no whole ClientHello or HTTP request line came"
        self._deny(Denied(Reason.NOT_HTTP, what), is_observed=self._is_observed_whole)

    def eof(self) -> None:
        """Decide: the app will send no more. If any protocol may pass, that is enough, however little it sent."""
        connect = self._connect
        if self._is_open:
            self._relay()
            self._app.speaker.eof()
        elif self._data:
            what = f"what the app sent through CONNECT {connect.asked} ended before it was TLS or an HTTP request"
            self._deny(Denied(Reason.NOT_HTTP, what), is_observed=False)
        else:
            self._leave_upstream()
            self._app.close()

    def gone(self) -> None:
        """End: the app is gone."""
        if self._app.was_reset:
            self._app.note_departure()
        self._leave_upstream()

    def congested(self, is_congested: bool) -> None:
        """Where anything passes, the server may speak first: read from it only as much as the app takes."""
        if self._upstream is not None and self._is_open:
            self._upstream.hold("app", is_congested)


def _is_raw(connect: Exchange) -> bool:
    return connect.rule is not None and connect.rule.raw_tcp
