"""The addon that checks heads inside stock mitmproxy with the core's rules, after mitmproxy's own parser has accepted
them. `proxy.stock` puts it before all others.

Rules of this addon:

- A head that mitmproxy has accepted, although two parsers may read it differently, is refused.
- A request becomes what our engine would have made of it: fields about one connection only are removed.
- A head that mitmproxy itself refuses gets a reason, too.
- An upstream connection is not used again after a response that was refused, or that was its last.
"""

from __future__ import annotations

from mitmproxy import http

from addons.headers import has_field
from addons.sessions import Sessions
from proxy.core.decisions import Denied
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.http.heads import Fields, read_request_head, read_response_head
from proxy.core.http.heads2 import read_http2_request, read_http2_response
from proxy.core.http.hops import without_hop
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Limits

_INTERIM = Denied(
    Reason.UPSTREAM_FAILED, "the upstream sent an interim response, which mitmproxy takes for the final one"
)
_INVALID = Denied(Reason.BAD_REQUEST, "mitmproxy does not take the request's header fields")


class Heads:
    """Checks heads, and removes the fields that must not go on."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Check the head of a CONNECT."""
        self._check(flow, flow.request.data.authority)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Check the head of a request, and remove fields that must not go on."""
        if flow.error is not None:  # mitmproxy answers it, whatever happens here
            self._sessions.exchange(flow).break_off(_INVALID)
            return
        self._check(flow, flow.request.data.path)
        request = flow.request
        if flow.response is not None or request.is_http2:
            return
        is_http11 = request.data.http_version == b"HTTP/1.1"
        fields = without_hop(request.headers.fields, may_offer=is_http11)
        if not is_http11:  # HTTP/1.0 has no Expect (RFC 9110, section 10.1.1), and needs no Host
            fields = tuple(field for field in fields if field[0].lower() != b"expect")
        if not has_field(request.headers, b"host"):
            named = Destination(request.host, request.port)
            is_default = named.port == (HTTPS_PORT if request.scheme == "https" else HTTP_PORT)
            fields = (
                (b"Host", (named.url_host if is_default else named.authority).encode("ascii", "replace")),
                *fields,
            )
        request.headers.fields = fields

    def _check(self, flow: http.HTTPFlow, target: bytes) -> None:
        exchange, request = self._sessions.exchange(flow), flow.request
        try:
            check_size(request, exchange.policy.limits)
            if request.is_http2:
                read_http2_request(block_of(request), is_whole=False)
            else:
                read_request_head(as_http1(request, target))
        except Denied as denied:
            exchange.deny_always(flow, denied)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Check the head of a response, and remove fields that must not go on."""
        exchange, response = self._sessions.exchange(flow), flow.response
        if response is None or exchange.is_carried_out:
            return
        try:
            if response.is_http2:
                status = (b":status", b"%d" % response.data.status_code)
                read_http2_response((status, *response.headers.fields), is_whole=False, may_have_body=True)
            else:
                read_response_head(response_as_http1(response))
            if response.status_code < 200 and response.status_code != 101:
                raise _INTERIM
        except Denied as denied:
            exchange.deny_always(flow, denied)
            response.headers["connection"] = "close"  # else mitmproxy would use the connection again
            return
        fields = without_hop(response.headers.fields)
        if not response.is_http2 and fields is not response.headers.fields:
            flow.response = response.copy()  # mitmproxy looks at the original
            flow.response.headers.fields = fields


def check_size(request: http.Request, limits: Limits) -> None:
    """Check that a head is not larger than the policy allows.

    Raises:
        Denied: HEADERS_TOO_LARGE.
    """
    data, fields = request.data, request.headers.fields
    size = sum(len(part) for part in (data.method, data.scheme, data.authority, data.path))
    size += sum(len(name) + len(value) + 4 for name, value in fields)
    if len(fields) > limits.header_count or size > limits.header_bytes:
        raise Denied(Reason.HEADERS_TOO_LARGE, "the header fields are more, or longer, than the limits")


def block_of(request: http.Request) -> Fields:
    """Return the fields of an HTTP/2 request as they came, as far as mitmproxy keeps them apart."""
    data = request.data
    pseudo = ((b":method", data.method), (b":scheme", data.scheme), (b":path", data.path))
    named = ((b":authority", data.authority),) if data.authority else ()
    return (*pseudo, *named, *request.headers.fields)


def as_http1(request: http.Request, target: bytes) -> bytes:
    """Return a request's head as it came, as far as mitmproxy has kept it.

    Args:
        request: the request.
        target: the target to write.
    """
    data = request.data
    lines = [data.method + b" " + target + b" " + data.http_version]
    lines += [name + b": " + value for name, value in request.headers.fields]
    return b"\r\n".join([*lines, b"", b""])


def response_as_http1(response: http.Response) -> bytes:
    """Return a response's head; see `as_http1`."""
    data = response.data
    lines = [b"%b %d %b" % (data.http_version, data.status_code, data.reason)]
    lines += [name + b": " + value for name, value in response.headers.fields]
    return b"\r\n".join([*lines, b"", b""])
