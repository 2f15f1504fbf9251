"""The speakers for the listeners besides forward: reverse, SOCKS5, transparent and mirror. Each turns what the app
sends into what the forward listener knows. `server` calls `meet` for each connection that it accepts.

Rules of this module:

- Whatever the listener, a request has one canonical destination, and the policy decides on it.
- A reverse listener stands for one https host; the app's Host names the listener, and is replaced.
- A transparent listener takes the port that the app dialled, and the host that the app names: that name is resolved and
  dialled, never the address that the app happened to dial. Without a name, it is that address.
- SOCKS5 (RFC 1928) is another form of CONNECT: all other commands are refused.
- A mirror listener is a server, not a proxy: whatever its peers ask goes to the one server behind it, with Host as it
  came; that names a host for which it stands (`addons.gate` looks).
"""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
from abc import abstractmethod
from dataclasses import dataclass, replace

from mitmproxy import http

from proxy.core.decisions import Denied
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, BadDestination, Destination, canonical_host, parse_authority
from proxy.core.http.heads import Fields, RequestHead, names_in, read_request_head
from proxy.core.http.names import is_own_name, read_host_field
from proxy.core.reasons import Reason
from proxy.core.rules.policy import ListenerKind, Mirror
from proxy.core.who.addresses import parse_ip
from proxy.engine.apps.connect import Connect
from proxy.engine.apps.http1 import AppHttp1
from proxy.engine.apps.sniffing import Speech, listen
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import Speaker
from proxy.engine.hookdata import TlsData
from proxy.engine.messages import request_of

_SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>; IPv6 has the same number
_VERSION = b"\x05"
_NO_AUTHENTICATION, _PASSWORD, _NONE_FITS = 0, 2, 0xFF
_SUCCEEDED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
_REPLIES = {403: 2, 504: 4, 502: 5}  # not allowed by the ruleset, host unreachable, connection refused
_MAX_EARLY = 64 * 1024  # bytes that may wait if they come before the answer
_GENERAL_FAILURE, _COMMAND_NOT_SUPPORTED, _ADDRESS_NOT_SUPPORTED = 1, 7, 8


def meet(app: AppSocket) -> None:
    """Give an app that has just connected its first speaker, by the kind of its listener; or refuse it."""
    try:
        app.house.admit(app.session)
        app.speaker = _speaker_for(app)
    except Denied as denied:
        mirror = app.listener.mirror
        if app.listener.kind in (ListenerKind.FORWARD, ListenerKind.REVERSE) or (mirror and mirror.cert is None):
            AppHttp1(app, None).deny(denied)
        else:
            app.close_denied(denied)
        if not app.house.may_linger():
            app.transport.close()


def _speaker_for(app: AppSocket) -> Speaker:
    """Return the first speaker for an app.

    Raises:
        Denied: the app has connected to a transparent listener directly.
    """
    listener = app.listener
    match listener.kind:
        case ListenerKind.REVERSE:
            assert listener.to is not None
            host, port = app.transport.get_extra_info("sockname")[:2]
            here = Destination(str(parse_ip(host)), port)
            return AppHttp1(app, None, Reverse(listener.to, here, app.session.policy.names))
        case ListenerKind.SOCKS5:
            return Socks5(app)
        case ListenerKind.TRANSPARENT:
            return Transparent(app, original_destination(app.transport.get_extra_info("socket")))
        case ListenerKind.MIRROR:
            assert listener.mirror is not None
            return AppHttp1(app, None, Mirrored(listener.mirror)) if listener.mirror.cert is None else PeerHello(app)
        case ListenerKind.FORWARD:
            return AppHttp1(app, None)


@dataclass(frozen=True, slots=True)
class Reverse:
    """Requests in origin form to one https host."""

    to: Destination
    here: Destination
    names: frozenset[str]
    is_https = any_scheme = True

    def aim(self, head: RequestHead) -> tuple[RequestHead, Destination, Destination | None]:
        """Return a request's head as it goes on, its destination, and the destination as the app knows it.

        Raises:
            Denied: BAD_REQUEST if its Host is no host; HOST_MISMATCH if Host names something that may be somebody
                else's.
        """
        front = self.here  # HTTP/1.0 needs no Host
        fields: Fields = tuple(field for field in head.fields if field[0].lower() != b"host")
        if len(fields) < len(head.fields):
            front = _named(head.fields, HTTP_PORT)
            if not is_own_name(front.host, self.names):
                raise Denied(
                    Reason.HOST_MISMATCH,
                    f"the Host field names {front}, which is no name of this listener",
                    "call the listener by an address, localhost, a name without a public domain, or one of the "
                    "policy's `names` (rebinding attacks come by names of their own)",
                )
        host = self.to.url_host if self.to.port == 443 else self.to.authority
        target = head.target
        if head.is_http2:  # its `:authority` names the listener, too, and is replaced
            path = target.split(b"/", 3)[3:]
            target = b"/" + path[0] if path else b"*"
        return replace(head, target=target, fields=((b"Host", host.encode("ascii")), *fields)), self.to, front


@dataclass(frozen=True, slots=True)
class Redirected:
    """Requests in origin form that were sent to an address and redirected, and that name a host."""

    dialled: Destination
    is_https = any_scheme = False

    def aim(self, head: RequestHead) -> tuple[RequestHead, Destination, Destination | None]:
        """As `Reverse.aim`.

        Raises:
            Denied: BAD_REQUEST: its Host is no host.
        """
        if not any(name.lower() == b"host" for name, _ in head.fields):
            return head, self.dialled, None
        return head, Destination(_named(head.fields, HTTP_PORT).host, self.dialled.port), None


@dataclass(frozen=True, slots=True)
class Mirrored:
    """Requests to a mirror listener, which its server is asked."""

    mirror: Mirror
    any_scheme = True

    @property
    def is_https(self) -> bool:
        """Whether the server behind it speaks TLS itself."""
        return not self.mirror.is_plain

    def aim(self, head: RequestHead) -> tuple[RequestHead, Destination, Destination | None]:
        """As `Reverse.aim`. A request of HTTP/1.0 that names no host is for the only one, if there is only one.

        Raises:
            Denied: BAD_REQUEST: it is a CONNECT.
        """
        if head.method.upper() == b"CONNECT":
            raise Denied(
                Reason.BAD_REQUEST,
                "a mirror listener is a server, not a proxy, and opens no tunnels",
                "set a forward:// listener as the app's proxy, and send requests for the server here",
            )
        fields, names = head.fields, self.mirror.names
        if head.target.startswith(b"/") and len(names) == 1 and b"host" not in names_in(fields):
            fields = ((b"Host", Destination(names[0], HTTPS_PORT).url_host.encode("ascii")), *fields)
        return replace(head, fields=fields), self.mirror.to, None


def _named(fields: Fields, default_port: int) -> Destination:
    value = next(value for name, value in fields if name.lower() == b"host")
    return read_host_field(value.decode("ascii", "replace"), default_port)


def original_destination(connection: socket.socket) -> Destination:
    """Return the destination of an app's connection before the kernel redirected it here (Linux: REDIRECT, DNAT).

    Raises:
        Denied: DESTINATION_FORBIDDEN: it was not redirected.
    """
    with contextlib.suppress(OSError, BadDestination):
        if connection.family == socket.AF_INET:
            raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
            port, address = struct.unpack_from("!2xH4s", raw)
            found = Destination(canonical_host(socket.inet_ntop(socket.AF_INET, address)), port)
        else:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
            port, address = struct.unpack_from("!2xH4x16s", raw)
            found = Destination(canonical_host(f"[{socket.inet_ntop(socket.AF_INET6, address)}]"), port)
        if (found.host, found.port) != connection.getsockname()[:2]:
            return found
    raise Denied(
        Reason.DESTINATION_FORBIDDEN,
        "the connection was not redirected here by the kernel, so it has no destination",
        "redirect the app's connections with nftables or iptables, or give it a forward:// listener",
    )


class _ConnectSpeaker(Speaker):
    """Answers a CONNECT that came as SOCKS5 or was redirected, as the speaker for HTTP/1 does for its own."""

    def __init__(self, app: AppSocket) -> None:
        self.app = app
        self.conversation: Connect | None = None
        self._rest = b""

    def ask(self, destination: str, credentials: bytes, rest: bytes) -> None:
        """Pass a CONNECT through the addons."""
        self._rest = rest
        authorization = b"Proxy-Authorization: Basic %s\r\n" % credentials if credentials else b""
        name = destination.encode("ascii")
        head = read_request_head(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (name, name, authorization))
        self.app.session.policy = self.app.house.policy
        self.conversation = connect = Connect(self, request_of(head, None, is_tls=False), AppHttp1)
        connect.start()

    @abstractmethod
    def established(self) -> bytes:
        """Return the answer that the connection is open."""

    @abstractmethod
    def refusal(self, response: http.Response) -> bytes:
        """Return the answer that it is denied."""

    def take_rest(self) -> bytes:
        """Take the bytes that came after the request."""
        rest, self._rest = self._rest, b""
        return rest

    def eof(self) -> None:
        """End: the app will send no more."""
        if self.conversation is None:
            self.app.close()

    def gone(self) -> None:
        """End: the app's connection is over."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            conversation.gone()

    def congested(self, _is_congested: bool) -> None:
        """Do nothing: nothing was sent yet."""


class Socks5(_ConnectSpeaker):
    """Reads a SOCKS5 greeting, credentials if the policy has users, and a request to connect."""

    def __init__(self, app: AppSocket) -> None:
        super().__init__(app)
        self._data = b""
        self._step = self._greeting
        self._credentials = b""
        app.expect(True)

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        if self.conversation is not None:  # bytes that come before the answer wait
            self._rest += data
            self.app.hold("pipelining", len(self._rest) > _MAX_EARLY)
            return
        self._data += data
        while self.conversation is None and not self.app.is_closing and self.app.speaker is self and self._step():
            pass

    def _take(self, count: int) -> bytes:
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def _greeting(self) -> bool:
        if self._data[:1] not in (b"", _VERSION):
            return self._deny(b"", "what came is no SOCKS5 (RFC 1928)")
        if len(self._data) < 2 or len(self._data) < 2 + self._data[1]:
            return False
        methods = self._take(2 + self._data[1])[2:]
        method = _PASSWORD if self.app.house.policy.clients.users else _NO_AUTHENTICATION
        if method not in methods:
            wants = "a name and a password (clients.users), which the app does not offer to show"
            if method != _PASSWORD:
                wants = "no authentication, and the app insists on some"
            reason = Reason.PROXY_AUTHENTICATION_REQUIRED if method == _PASSWORD else Reason.BAD_REQUEST
            return self._deny(_VERSION + bytes((_NONE_FITS,)), f"this listener wants {wants}", reason)
        self.app.write(_VERSION + bytes((method,)))
        self._step = self._password if method == _PASSWORD else self._request
        return True

    def _password(self) -> bool:
        """Read a name and a password (RFC 1929)."""
        data = self._data
        if data[:1] not in (b"", b"\x01"):
            return self._deny(b"\x01\x01", "what came are no credentials (RFC 1929)")
        if len(data) < 2 or len(data) < 3 + data[1] or len(data) < 3 + data[1] + data[2 + data[1]]:
            return False
        name = data[2 : 2 + data[1]]
        password = data[3 + data[1] : 3 + data[1] + data[2 + data[1]]]
        self._take(3 + len(name) + len(password))
        self._credentials = base64.b64encode(name + b":" + password)
        users = self.app.house.policy.clients.users
        value = "Basic " + self._credentials.decode("ascii")
        try:
            is_right = b":" not in name and self.app.house.verifier.verify(users, value, self.app.session.client)
        except Denied as denied:
            return self._deny(b"\x01\x01", denied.detail, denied.reason)
        if not is_right:
            reason = Reason.PROXY_AUTHENTICATION_REQUIRED
            return self._deny(b"\x01\x01", "the app shows a name or a password that is not the proxy's", reason)
        self.app.write(b"\x01\x00")
        self._step = self._request
        return True

    def _request(self) -> bool:
        data = self._data
        if len(data) < 5:
            return False
        if data[:1] != _VERSION or data[2] != 0:
            return self._deny(_failure(_GENERAL_FAILURE), "what came is no SOCKS5 request")
        if data[1] != 1:
            return self._deny(_failure(_COMMAND_NOT_SUPPORTED), "only the command CONNECT is served")
        length = {1: 4, 3: 1 + data[4], 4: 16}.get(data[3])
        if length is None:
            return self._deny(_failure(_ADDRESS_NOT_SUPPORTED), "the kind of address is none that is known")
        if len(data) < 6 + length:
            return False
        kind, address, port = data[3], data[4 : 4 + length], int.from_bytes(data[4 + length : 6 + length])
        self._take(6 + length)
        try:
            if kind == 3:
                host = canonical_host(address[1:].decode("ascii", "replace"))
            else:
                family = socket.AF_INET if kind == 1 else socket.AF_INET6
                text = socket.inet_ntop(family, address)
                host = canonical_host(text if kind == 1 else f"[{text}]")
            destination = parse_authority(Destination(host, port).authority)
        except BadDestination:
            return self._deny(_failure(_GENERAL_FAILURE), "the destination is no valid host and port")
        rest, self._data = self._data, b""
        self.app.expect(False)
        self.ask(destination.authority, self._credentials, rest)
        return False

    def _deny(self, answer: bytes, detail: str, reason: Reason = Reason.BAD_REQUEST) -> bool:
        """Answer, write a decision line, and close; the current step is then over."""
        self.app.write(answer)
        self.app.close_denied(Denied(reason, detail))
        return False

    def established(self) -> bytes:
        """Return the answer that the connection is open, without an address: the app need not know it."""
        return _SUCCEEDED

    def refusal(self, response: http.Response) -> bytes:
        """Return the answer with the reason, as far as SOCKS has a code for it."""
        return _failure(_REPLIES.get(response.status_code, _GENERAL_FAILURE))

    def too_slow(self) -> None:
        """End: the first messages did not come in time."""
        self.app.close_denied(Denied(Reason.REQUEST_TIMEOUT, "the app did not finish its SOCKS5 request in time"))


def _failure(code: int) -> bytes:
    return bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))


class Transparent(_ConnectSpeaker):
    """Collects the first bytes of a redirected app, until they tell what it speaks, and to which host."""

    def __init__(self, app: AppSocket, dialled: Destination) -> None:
        super().__init__(app)
        self._dialled = dialled
        self._data = b""
        app.expect(True)

    def feed(self, data: bytes) -> None:
        """Collect bytes, and decide once they are enough."""
        if self.conversation is not None:
            self._rest += data
            self.app.hold("pipelining", len(self._rest) > _MAX_EARLY)
            return
        self._data += data
        heard = listen(self._data)
        if heard.speech is Speech.UNDECIDED:
            return
        self.app.expect(False)
        if heard.speech is Speech.HTTP:
            self.app.speaker = speaker = AppHttp1(self.app, None, Redirected(self._dialled))
            speaker.feed(self._data)
            return
        if heard.speech is Speech.OTHER:
            self._deny()
            return
        try:
            host = self._dialled.host if heard.sni is None else canonical_host(heard.sni)
        except BadDestination:
            self.app.close_denied(Denied(Reason.HOST_MISMATCH, "the TLS server name is not exactly one valid name"))
            return
        self.ask(Destination(host, self._dialled.port).authority, b"", self._data)

    def _deny(self) -> None:
        detail = f"what the app sent to {self._dialled} is neither TLS nor an HTTP request"
        self.app.close_denied(Denied(Reason.NOT_HTTP, detail))

    def established(self) -> bytes:
        """Return nothing: the app knows of no proxy."""
        return b""

    def refusal(self, response: http.Response) -> bytes:
        """Return nothing, as above."""
        return b""

    def too_slow(self) -> None:
        """End: the app did not send enough in time."""
        self._deny()


class PeerHello(Speaker):
    """Collects the first bytes of a peer of a mirror listener that speaks TLS, and begins the handshake."""

    def __init__(self, app: AppSocket) -> None:
        self.app = app
        self._data = b""
        app.expect(True)

    def feed(self, data: bytes) -> None:
        """Collect bytes, and decide once they are enough."""
        self._data += data
        heard = listen(self._data)
        if heard.speech is Speech.UNDECIDED:
            return
        app = self.app
        if heard.speech is Speech.TLS:
            assert app.listener.mirror is not None
            app.client.sni, app.client.alpn_offers = heard.sni, heard.alpn
            start = TlsData(app.client, app.context)
            app.house.dispatch.call("tls_start_client", start)
            assert start.ssl_conn is not None
            app.start_tls(start.ssl_conn)
            app.speaker = AppHttp1(app, None, Mirrored(app.listener.mirror))
            app.take(self._data)
        elif heard.speech is Speech.HTTP:
            AppHttp1(app, None).deny(
                Denied(
                    Reason.BAD_REQUEST,
                    "this listener speaks https, and the request came in plain http",
                    "send it with https://",
                )
            )
        else:
            app.close_denied(Denied(Reason.NOT_HTTP, "what the peer sent is no TLS"))

    def eof(self) -> None:
        """End: the peer has sent too little."""
        self.app.close()

    def too_slow(self) -> None:
        """End: the peer did not send a whole ClientHello in time."""
        self.app.close_denied(Denied(Reason.REQUEST_TIMEOUT, "the peer did not send a whole ClientHello in time"))

    def gone(self) -> None:
        """Do nothing: nothing was begun."""

    def congested(self, _is_congested: bool) -> None:
        """Do nothing: nothing was sent yet."""
