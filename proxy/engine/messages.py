"""Converts between heads of the core and mitmproxy's message objects, with pure functions. The speakers, the
conversations and the upstream connections call it.

Rules of this module:

- A field goes on as it came, unless it is about one connection only (`proxy.core.http.hops`).
- A request target is read by our parser only; mitmproxy's takes port 0 for none, and decodes A-labels.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Protocol

from mitmproxy import http

from addons.headers import has_field, values_of
from proxy.core.decisions import Denied
from proxy.core.destinations import CACHED, HTTP_PORT, HTTPS_PORT, BadDestination, Destination, parse_authority
from proxy.core.http.heads import KEPT, Fields, RequestHead, ResponseHead, names_in
from proxy.core.http.hops import without_hop
from proxy.core.reasons import Reason
from proxy.engine.flows import new_request, new_response

_OF_THE_CONNECTION = ("negotiate", "ntlm")  # schemes that authenticate a connection, not a request (RFC 4559)
_NO_HEADERS = http.Headers()
_PORTS = {b"http": HTTP_PORT, b"https": HTTPS_PORT}
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_ABSOLUTE = re.compile(rb"([^:/?]*+)://([^/?]*+)(.*+)", re.DOTALL)
_WEBSOCKET = {b"ws": b"http", b"wss": b"https"}  # schemes that some apps use to ask for WebSocket (RFC 6455, section 3)


class ListenerTarget(Protocol):
    """Says where a request goes that does not name a proxy destination itself, by the listener that it came through."""

    @property
    def is_https(self) -> bool:
        """Whether they are for https, however they came."""

    @property
    def any_scheme(self) -> bool:
        """Whether a target may name another scheme: the app knows the listener by another one than the server's."""

    def aim(self, head: RequestHead) -> tuple[RequestHead, Destination, Destination | None]:
        """Return a request's head as it goes on, its destination, and what the app takes that for.

        Raises:
            Denied: the head names no host, or one that is not the listener's.
        """


def aimed(
    head: RequestHead, inside: Destination | None, listener_target: ListenerTarget | None, *, is_tls: bool
) -> tuple[RequestHead, http.Request, Destination | None]:
    """Return a head as it goes on, its request object, and what the app takes its destination for, if for another.

    Args:
        head: the head that an app sent.
        inside: the destination of the CONNECT that it came through, or None.
        listener_target: says where it is meant to go, if it cannot say so itself.
        is_tls: whether it came through TLS.

    Raises:
        Denied: BAD_REQUEST, HOST_MISMATCH: it cannot go on.
    """
    front, any_scheme = None, False
    if listener_target is not None:
        head, inside, front = listener_target.aim(head)
        is_tls, any_scheme = listener_target.is_https, listener_target.any_scheme
    return head, request_of(head, inside, is_tls=is_tls, any_scheme=any_scheme), front


def request_of(
    head: RequestHead, inside: Destination | None, *, is_tls: bool, any_scheme: bool = False
) -> http.Request:
    """Return mitmproxy's request object for a head that an app sent.

    Args:
        head: the head.
        inside: the destination of the CONNECT that it came through, or None.
        is_tls: whether it came through TLS inside that CONNECT.
        any_scheme: whether its target may name another scheme, as to a reverse listener, which the app knows by http.

    Raises:
        Denied: BAD_REQUEST: the target is not one that a proxy can be sent there.
    """
    host, port, scheme, authority, path, version, fields = _meant(head, inside, is_tls, any_scheme)
    return new_request(
        host,
        port,
        head.method,
        scheme=scheme,
        authority=authority,
        path=path,
        version=version,
        headers=headers_of(fields),
    )


@lru_cache(KEPT)
def _meant(
    head: RequestHead, inside: Destination | None, is_tls: bool, any_scheme: bool
) -> tuple[str, int, bytes, bytes, bytes, bytes, Fields]:
    """Return what a request's head comes to: host, port, scheme, authority, path, version and fields."""
    target = head.target
    if head.method != b"CONNECT" and head.method.upper() == b"CONNECT":
        raise Denied(Reason.BAD_REQUEST, "a method is upper-case where it is CONNECT (RFC 9110, section 9.1)")
    scheme = authority = b""
    path, host, port = target, "", 0
    try:
        if head.method == b"CONNECT":
            if inside is not None:
                raise BadDestination("there is a CONNECT round it already")
            authority, path = target, b""
            destination = parse_authority(target.decode("ascii"))
            host, port = destination.host, destination.port
        elif not target.startswith(b"/") and target != b"*":
            scheme, destination, authority, path = _split(target)
            if not path:  # RFC 9112, section 3.2.4
                path = b"*" if head.method == b"OPTIONS" else b"/"
            host, port = destination.host, destination.port
    except BadDestination:  # its message quotes the target, which may hold a query or credentials
        raise Denied(
            Reason.BAD_REQUEST,
            "the request target is not valid: it needs a host, a port from 1 to 65535, and http or https",
        ) from None
    if inside is not None:
        host, port = inside.host, inside.port
        spoken = b"https" if is_tls else b"http"
        if scheme and scheme != spoken and not any_scheme:
            raise Denied(Reason.BAD_REQUEST, "the request target names another scheme than what it came through")
        scheme = spoken
    elif not host:
        raise Denied(
            Reason.BAD_REQUEST,
            "the request names no host in its target: a proxy is sent `GET http://host/path` or CONNECT",
            "set this address as the app's HTTP_PROXY or HTTPS_PROXY instead of calling it directly",
        )
    elif head.method != b"CONNECT":
        authority = b""  # mitmproxy's sign for origin form, in which upstreams get targets
    version = b"HTTP/2.0" if head.is_http2 else b"HTTP/1.1" if head.is_http11 else b"HTTP/1.0"
    fields = without_hop(head.fields, may_offer=head.is_http11)
    if not head.is_http11:  # it has no expectations, and what goes on is HTTP/1.1, which has (RFC 9110, section 10.1.1)
        fields = tuple(field for field in fields if field[0].lower() != b"expect")
    if scheme and b"host" not in names_in(fields):  # in HTTP/1.1 there is one
        named = Destination(host, port)  # what goes on is HTTP/1.1, where the field is needed (RFC 9112, section 3.2)
        value = named.url_host if port == _PORTS[scheme] else named.authority
        fields = ((b"Host", value.encode("ascii")), *fields)
    return host, port, scheme, authority, path, version, fields


def response_of(head: ResponseHead, fields: Fields) -> http.Response:
    """Return mitmproxy's response object for a head that an upstream sent, without a body yet.

    Args:
        head: the head.
        fields: those of its fields that are kept.
    """
    version = b"HTTP/2.0" if head.is_http2 else b"HTTP/1.1" if head.is_http11 else b"HTTP/1.0"
    return new_response(version, head.status, head.reason, headers_of(fields))


def authenticates_connection(request: http.Request, response: http.Response | None) -> bool:
    """Tell whether the upstream may take the next request on this connection for one of the same user."""
    asked = request.data.headers
    said = _NO_HEADERS if response is None else response.data.headers
    if b"authorization" not in names_in(asked.fields) and b"www-authenticate" not in names_in(said.fields):
        return False
    offers = values_of(asked, b"authorization") + values_of(said, b"www-authenticate")
    return any(offer.lower().lstrip().startswith(_OF_THE_CONNECTION) for offer in offers)


def headers_of(fields: Fields) -> http.Headers:
    """Return mitmproxy's headers object for fields that we have read: its constructor would copy and check
    them again.
    """
    headers = http.Headers.__new__(http.Headers)
    headers.fields = fields
    return headers


def _split(target: bytes) -> tuple[bytes, Destination, bytes, bytes]:
    """Split an absolute-form target into scheme, destination, authority as it stands there, and path with query.

    The path may be empty.

    Raises:
        BadDestination: its scheme is not one that is spoken here, or its authority names no destination.
    """
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise BadDestination("it has no scheme")
    scheme, authority, path = found.groups()
    scheme, destination = _origin(scheme, authority)
    return scheme, destination, authority, path if path.startswith(b"/") or not path else b"/" + path


@lru_cache(CACHED)
def _origin(scheme: bytes, authority: bytes) -> tuple[bytes, Destination]:
    scheme = _WEBSOCKET.get(scheme.lower(), scheme.lower())
    if scheme not in _PORTS:
        raise BadDestination("its scheme is neither http nor https")
    return scheme, parse_authority(authority.decode("ascii"), _PORTS[scheme])


def response_head(response: http.Response, *, is_closing: bool) -> bytes:
    """Return the head of a response in the form in which it is sent to the app."""
    data = response.data
    return _response_head(data.status_code, data.reason, data.headers.fields, is_closing)


@lru_cache(KEPT)
def _response_head(status: int, reason: bytes, fields: Fields, is_closing: bool) -> bytes:
    end = b"Connection: close\r\n\r\n" if is_closing else b"\r\n"
    return b"HTTP/1.1 %d %s\r\n%s%s" % (status, reason, _lines(fields), end)


def request_head(request: http.Request) -> bytes:
    """Return the head of a request in the form in which it is sent to an upstream."""
    data = request.data
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (data.method, data.path, _lines(data.headers.fields))


@lru_cache(KEPT)
def _lines(fields: Fields) -> bytes:
    return b"".join([name + b": " + value + b"\r\n" for name, value in fields])


def frame(request: http.Request, length: int | None) -> None:
    """Have a request that came in HTTP/2 say in HTTP/1.1 where its body ends: there it is a frame, here a length.

    Args:
        request: the request.
        length: bytes of its body, or None if that is not known yet.
    """
    headers = request.headers
    if has_field(headers, b"content-length", b"transfer-encoding"):
        return
    if length is None:
        headers.fields += ((b"Transfer-Encoding", b"chunked"),)
    elif length or request.data.method in _WITH_BODY:  # RFC 9110, section 8.6
        headers.fields += ((b"Content-Length", b"%d" % length),)
