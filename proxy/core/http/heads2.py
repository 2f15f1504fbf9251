"""Reads the head of an HTTP/2 request or response from the fields of its header block, and refuses every head that is
not well-formed. The engine calls it for each stream of HTTP/2; so does `addons.stock` inside stock mitmproxy.

Rules of this module (RFC 9113, section 8):

- A head is turned into what it would be in HTTP/1.1, and checked like that: what is ambiguous there is refused here,
  too.
- A field about one connection only (`Connection` and the like) is malformed; `te` may say `trailers` and nothing else.
- An error names what is wrong, but never quotes it: header values may be credentials.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from proxy.core.decisions import Denied
from proxy.core.http.heads import (
    CHUNKED,
    DISGUISED,
    LIKE_FRAMING,
    UNTIL_CLOSE,
    Fields,
    RequestHead,
    ResponseHead,
    read_length,
)
from proxy.core.reasons import Reason

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++")
_VALUE = re.compile(rb"(?:[^\x00-\x08\x0a-\x1f\x7f \t](?:[^\x00-\x08\x0a-\x1f\x7f]*+(?<![ \t]))?+)?+")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_VISIBLE = re.compile(rb"[\x21-\x7e]++")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*+")  # RFC 3986, section 3.1
_AUTHORITY = re.compile(rb"[^\x00-\x20\x7f-\xff/?#@\\]++")  # without characters that begin a path or end a user name
_STATUS = re.compile(rb"[1-9][0-9]{2}")
_OF_A_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_OF_REQUESTS = frozenset((b":method", b":scheme", b":authority", b":path"))
_OF_RESPONSES = frozenset((b":status",))


def read_http2_request(block: Iterable[tuple[bytes, bytes]], *, is_whole: bool) -> RequestHead:
    """Read the head of a request, as if it were an HTTP/1.1 request with an absolute target and a Host field.

    Args:
        block: name and value of each field, in order; pseudo-header fields are among them.
        is_whole: whether the request ends with its head.

    Raises:
        Denied: BAD_REQUEST; the detail says what is wrong.
    """
    pseudo, fields = _split(block, _OF_REQUESTS, Reason.BAD_REQUEST)
    method = pseudo.get(b":method", b"")
    if not _METHOD.fullmatch(method):
        raise _malformed("its :method is missing, or no token")
    if method == b"CONNECT":
        raise _malformed("a CONNECT in a stream is not served: send it over HTTP/1.1", "RFC 9113, section 8.5")
    scheme, path = pseudo.get(b":scheme", b""), pseudo.get(b":path", b"")
    if not _SCHEME.fullmatch(scheme):
        raise _malformed("its :scheme is missing, or none")
    if not _VISIBLE.fullmatch(path) or b"#" in path or not (path[:1] == b"/" or (path, method) == (b"*", b"OPTIONS")):
        raise _malformed("its :path is missing, or no path that begins with a slash")
    hosts = [value for name, value in fields if name == b"host"]
    authority = pseudo.get(b":authority")
    if len(hosts) > 1 or (hosts and authority is not None and hosts[0].lower() != authority.lower()):
        raise _malformed("its :authority and its Host fields name more than one host", "section 8.3.1")
    named = hosts[0] if authority is None and hosts else authority or b""
    if not _AUTHORITY.fullmatch(named):
        raise _malformed("it has neither an :authority nor a Host field that names a host", "section 8.3.1")
    kept = [field for field in fields if field[0] not in (b"host", b"cookie")]
    if len(kept) + len(hosts) < len(fields):  # section 8.2.3: in HTTP/1.1, all cookies are one field
        kept.append((b"cookie", b"; ".join(value for name, value in fields if name == b"cookie" and value)))
    length = read_length(_values(fields, b"content-length"), Reason.BAD_REQUEST)
    if is_whole and length:
        raise _malformed("it says that a body follows, and none does", "section 8.1.1")
    target = scheme + b"://" + named + (path if path != b"*" else b"")
    body = 0 if is_whole else CHUNKED if length is None else length
    return RequestHead(method, target, True, ((b"host", named), *kept), body, is_http2=True)


def read_http2_response(block: Iterable[tuple[bytes, bytes]], *, is_whole: bool, may_have_body: bool) -> ResponseHead:
    """Read the head of a response.

    Args:
        block: as of a request.
        is_whole: whether the response ends with its head.
        may_have_body: whether a response to this request can have a body (not to HEAD).

    Raises:
        Denied: UPSTREAM_FAILED; the detail says what is wrong.
    """
    pseudo, fields = _split(block, _OF_RESPONSES, Reason.UPSTREAM_FAILED)
    text = pseudo.get(b":status", b"")
    if not _STATUS.fullmatch(text) or text == b"101":  # section 8.6
        raise Denied(Reason.UPSTREAM_FAILED, "the upstream's :status is missing, or none (RFC 9113, section 8.3.2)")
    status = int(text)
    length = read_length(_values(fields, b"content-length"), Reason.UPSTREAM_FAILED)
    if is_whole and length and may_have_body and status not in (204, 304):
        raise Denied(Reason.UPSTREAM_FAILED, "the upstream says that a body follows, and none does")
    body = UNTIL_CLOSE if length is None else length
    return ResponseHead(status, b"", True, fields, body, is_http2=True, is_all=is_whole)


def read_http2_trailers(block: Iterable[tuple[bytes, bytes]], reason: Reason) -> Fields:
    """Read the fields that follow a body.

    Args:
        block: name and value of each field.
        reason: the reason of the denial if they are malformed.

    Raises:
        Denied: they are malformed.
    """
    return _split(block, frozenset(), reason)[1]


def _split(
    block: Iterable[tuple[bytes, bytes]], known: frozenset[bytes], reason: Reason
) -> tuple[dict[bytes, bytes], Fields]:
    """Return the pseudo-header fields, and the others unchanged. (The type of a field may say that no table may keep
    it.)

    Raises:
        Denied: they are malformed.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for field in block:
        name, value = field
        if name[:1] == b":":
            if fields or name not in known or name in pseudo:
                raise _malformed("a pseudo-header field is unknown, doubled or out of its place", "8.3", reason)
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _malformed("a field's name is no lower-case token, or its value malformed", "8.2.1", reason)
        if name in LIKE_FRAMING and known is _OF_REQUESTS:
            raise Denied(reason, DISGUISED)
        if name in _OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise _malformed("a field is about one connection, which HTTP/2 has other words for", "8.2.2", reason)
        fields.append(field)
    return pseudo, tuple(fields)


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]


def _malformed(what: str, where: str = "8.3.1", reason: Reason = Reason.BAD_REQUEST) -> Denied:
    whose = "upstream's response" if reason is Reason.UPSTREAM_FAILED else "request"
    section = where if where.startswith("RFC") else f"RFC 9113, section {where.removeprefix('section ')}"
    return Denied(reason, f"the {whose} is malformed: {what} ({section})")
