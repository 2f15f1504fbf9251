r"""Is this the head of one well-formed HTTP/1 request? Checked on the bytes, before any parser reads them.

Rules of this module (RFC 9112):

- Two parsers that read one message differently are how requests are smuggled, so only the plain form passes:
  CRLF line ends, no folding, no space before a colon, no control characters, one Host, one framing.
- What is refused is named, with the line, but never quoted: header values may be credentials.
"""

from __future__ import annotations

import re

from proxy.core.decisions import Denied, Reason

MAX_HEAD_BYTES = 64 * 1024
BAD_REQUEST_LINE = "the request line is not `METHOD target HTTP/1.x` with single spaces and visible ASCII characters"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_TOKEN_START = re.compile(_TOKEN)
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")  # a leading zero is octal to some readers


def can_become_a_head(data: bytes) -> bool:
    """Tell whether a request head may still come of these first bytes, so that another protocol is answered at once.

    Args:
        data: the first bytes of what should be a request, at least one.
    """
    line, end, _ = data.partition(b"\r\n")
    if end:
        return _REQUEST_LINE.fullmatch(line) is not None
    return _TOKEN_START.match(data) is not None and b"\n" not in data


def check_request_head(head: bytes) -> None:
    """Check a request head, from its first byte up to and including the empty line.

    Args:
        head: the bytes, ending in CRLF CRLF.

    Raises:
        Denied: BAD_REQUEST, with the line number and what is wrong with it.
    """
    lines = head[:-4].split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise Denied(Reason.BAD_REQUEST, BAD_REQUEST_LINE)
    target, is_http11 = request_line[2], request_line[3] == b"1"
    if b"#" in target:
        raise Denied(Reason.BAD_REQUEST, "the request target has a fragment (RFC 9112, section 3.2)")
    seen: dict[bytes, list[bytes]] = {b"host": [], b"content-length": [], b"transfer-encoding": []}
    for number, line in enumerate(lines[1:], start=2):
        field = _FIELD.fullmatch(line)
        if field is None:
            wrong = _what_is_wrong(line)
            raise Denied(Reason.BAD_REQUEST, f"line {number} of the head is no valid header field: {wrong}")
        values = seen.get(field[1].lower())
        if values is not None:
            values.append(field[2].rstrip(b" \t"))
    _check_host(seen[b"host"], is_http11)
    _check_framing(seen[b"content-length"], seen[b"transfer-encoding"], is_http11)


def _what_is_wrong(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "it is folded (RFC 9112, section 5.2)"
    if b"\n" in line or b"\r" in line:
        return "it holds a bare CR or LF"
    name, colon, _ = line.partition(b":")
    if not colon:
        return "it has no colon"
    if name.rstrip(b" \t") != name:
        return "there is white space before the colon"
    return "the name is no token, or the value holds a control character"


def _check_host(values: list[bytes], is_http11: bool) -> None:
    if len(values) > 1:
        raise Denied(Reason.BAD_REQUEST, "the request has more than one Host field (RFC 9112, section 3.2)")
    if is_http11 and not values:
        raise Denied(Reason.BAD_REQUEST, "the HTTP/1.1 request has no Host field (RFC 9112, section 3.2)")


def _check_framing(lengths: list[bytes], codings: list[bytes], is_http11: bool) -> None:
    if lengths and codings:
        raise Denied(Reason.BAD_REQUEST, "both Content-Length and Transfer-Encoding are given (RFC 9112, section 6.1)")
    if len(lengths) > 1 or len(codings) > 1:
        raise Denied(Reason.BAD_REQUEST, "the length of the body is given more than once (RFC 9112, section 6.3)")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise Denied(Reason.BAD_REQUEST, "Content-Length is not a plain decimal number (RFC 9110, section 8.6)")
    if codings and (codings[0].lower() != b"chunked" or not is_http11):
        raise Denied(
            Reason.BAD_REQUEST, "the only Transfer-Encoding that passes is chunked, in HTTP/1.1 (RFC 9112, section 6.1)"
        )
