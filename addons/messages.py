"""The addon for WebSocket messages, whose hooks the engine calls: marked fields of the app's messages become JWEs, and
marked fields of the server's become plaintext. `proxy.core.fields.messages` does the work.

Rules of this addon:

- The entries are those whose `when` is about the request that asked for the WebSocket.
- Only permessage-deflate is offered to the server, and its answer must be to that offer: messages in another form could
  not be looked at.
- A message that should be protected and cannot be does not go on, and ends the WebSocket.
- In observe mode everything passes as it came, and what would have been done is only counted.
"""

from __future__ import annotations

from typing import Protocol

from mitmproxy import http

from addons import marked
from addons.exchange import Exchange
from addons.headers import has_field, values_of
from addons.sessions import Sessions
from proxy.core.decisions import Denied
from proxy.core.fields import messages
from proxy.core.fields.entries import Work
from proxy.core.fields.messages import Plan
from proxy.core.fields.values import Setting
from proxy.core.http.permessage import BadAnswer, agreed, offers
from proxy.core.reasons import Reason

_EXTENSIONS = b"sec-websocket-extensions"


def is_opening(request: http.Request) -> bool:
    """Tell whether a request asks for a WebSocket, and has no body."""
    headers = request.headers
    return has_field(headers, b"upgrade") and not has_field(headers, b"content-length", b"transfer-encoding")


def narrow_offer(exchange: Exchange, request: http.Request) -> None:
    """Leave out the offers of extensions in whose messages nobody here could find a field; none in observe mode."""
    offered = values_of(request.headers, _EXTENSIONS)
    if not offered or exchange.observing or not (marked.of_request(exchange) or marked.of_response(exchange)):
        return
    fields = request.headers.fields
    request.headers.fields = tuple(field for field in fields if field[0].lower() != _EXTENSIONS)
    if kept := offers(offered):
        request.headers["Sec-WebSocket-Extensions"] = kept


def plan(exchange: Exchange, request: http.Request, response: http.Response) -> None:
    """Find out how the messages of a WebSocket are to be read, if they may have fields.

    Raises:
        Denied: the server takes what was not offered.
    """
    of_request, of_response = marked.of_request(exchange), marked.of_response(exchange)
    if exchange.observing and any(entry.work is Work.DECRYPT for entry in of_request):  # and observing opens nothing
        of_request = ()
    if not of_request and not of_response:
        return
    offered, answered = (values_of(each.headers, _EXTENSIONS) for each in (request, response))
    try:
        exchange.plan = Plan(of_request, of_response, agreed(offered, answered))
    except BadAnswer as e:
        if not exchange.observing:  # there, what the app offered went on, and may have been taken
            raise Denied(Reason.UPSTREAM_FAILED, f"the upstream opens a WebSocket, but {e}") from None


class Settings(Protocol):
    """Returns what counts for the work on the bodies and messages of an exchange: `Encryption.setting`."""

    def __call__(self, exchange: Exchange, *, of_request: bool) -> Setting:
        """Return it for one direction."""


class Messages:
    """Replaces the fields of messages."""

    def __init__(self, sessions: Sessions, setting: Settings) -> None:
        """Start.

        Args:
            sessions: what is known of client connections.
            setting: returns what counts for the work on a message.
        """
        self._sessions = sessions
        self._setting = setting

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Encrypt or decrypt the fields of the last message."""
        exchange, data = self._sessions.exchange(flow), flow.websocket
        plan = exchange.plan
        if plan is None or data is None:
            return
        message = data.messages[-1]
        entries = plan.request if message.from_client else plan.response
        if not entries:
            return
        setting = self._setting(exchange, of_request=message.from_client)
        try:
            if exchange.observing:
                counts = messages.count_marked(message.content, entries, setting, is_text=message.is_text)
            else:
                changed = messages.change(message.content, entries, setting, is_text=message.is_text)
                message.content, counts = changed.body, changed.counts
        except Denied as denied:
            denied.entries = denied.entries or tuple(entry.name for entry in entries)
            if exchange.observing:
                exchange.note_reason(denied)
            else:
                exchange.break_off(denied)
                message.drop()
        else:
            exchange.count_fields(entries, counts)
