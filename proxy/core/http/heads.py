"""Reads the head of an HTTP/1 request or response from its bytes, and refuses every head that is not well-formed. The
engine calls it for each message; so does `addons.stock` inside stock mitmproxy.

Rules of this module (RFC 9112):

- Requests are smuggled where two parsers read one message differently. So only the plain form passes: CRLF line ends,
  no folding, no space before a colon, no control characters, one Host, one framing, and no name in a request that a
  server may take for one of the framing's.
- An error names what is wrong, and in which line, but never quotes it: header values may be credentials.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from proxy.core.decisions import Denied
from proxy.core.reasons import Reason

MAX_HEAD_BYTES = 64 * 1024
BAD_REQUEST_LINE = "the request line is not `METHOD target HTTP/1.x` with single spaces and visible ASCII characters"
_OTHER_PROTOCOLS = {  # by the first byte: RFC 8446, section 5.1; RFC 1928, section 3
    b"\x16": "TLS came where http is spoken: write http:// for this address, in HTTPS_PROXY, too",
    b"\x05": "SOCKS came where http is spoken: give such apps the address of a socks5:// listener",
    b"\x04": "SOCKS 4 came where http is spoken: give such apps the address of a socks5:// listener, and version 5",
}
UNTIL_CLOSE = -1
CHUNKED = -2

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*+))?")
_TOKEN_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")
_VALUE = rb"[\t -~\x80-\xff]*+"
# Possessive, so that each byte of a line is looked at once, although blanks may stand in the value, too.
FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+(" + _VALUE + rb")")
# The same for all lines at once: the first tells whether each line is a field, the second finds the fields.
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+")
_EACH_FIELD = re.compile(rb"(?m)^([^:\n]++):[ \t]*+(.*)\r\n")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")  # some readers take a leading zero for octal
_BARE_LF = re.compile(rb"(?<!\r)\n")
_TWO_LENGTHS = "the length of the body is given more than once (RFC 9112, section 6.3)"
# Names of the framing with another sign for the dash. Servers that hand names on in variables (CGI, WSGI, PHP) read
# them as the same; the next request on a connection, which may be another app's, would begin elsewhere for them.
LIKE_FRAMING = frozenset(
    b"%s%c%s" % (one, sign, other)
    for one, other in ((b"content", b"length"), (b"transfer", b"encoding"))
    for sign in b"!#$%&'*+.^_`|~"
)
DISGUISED = (
    "a field's name is Content-Length or Transfer-Encoding but for the sign in the place of the dash, and some servers "
    "take it for that"
)
_SEEN = frozenset((b"host", b"content-length", b"transfer-encoding")) | LIKE_FRAMING
KEPT, _KEPT_BYTES = 32, 1024  # heads to keep, and the longest of them: most heads of an app and its servers come again

type Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request.

    Attributes:
        fields: name and value of each header field, in order and as sent, without white space round the value.
        body: the body's length in bytes, or `CHUNKED`; in HTTP/2, `CHUNKED` means that the length is not known.
        is_http2: whether it came in a header block of HTTP/2, and was then written like one of HTTP/1.1.
    """

    method: bytes
    target: bytes
    is_http11: bool
    fields: Fields
    body: int
    is_http2: bool = False


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response.

    Attributes:
        fields: as in a request.
        body: the body's length in bytes, `CHUNKED` or `UNTIL_CLOSE`; for a response that can have a body.
        is_http2: as in a request.
        is_all: whether the response ended with its head, so that no body and no trailers follow.
    """

    status: int
    reason: bytes
    is_http11: bool
    fields: Fields
    body: int
    is_http2: bool = False
    is_all: bool = False


@lru_cache(KEPT)
def names_in(fields: Fields) -> frozenset[bytes]:
    """Return the names of the fields, in lower case."""
    return frozenset([name.lower() for name, _ in fields])


def can_become_a_head(data: bytes) -> bool:
    """Tell whether these first bytes may still become a request head. If not, another protocol can be answered at once.

    Args:
        data: the first bytes of what should be a request, at least one.
    """
    line, end, _ = data.partition(b"\r\n")
    if end:
        return _REQUEST_LINE.fullmatch(line) is not None
    return _TOKEN_START.match(data) is not None and b"\n" not in data


class HeadEnd:
    """Finds where a head ends, while its bytes come. It looks at each byte once, however small the pieces are.

    Once it has found an end, it begins anew with the next head.
    """

    def __init__(self, *, of_request: bool) -> None:
        """Start.

        Args:
            of_request: whether it is a request's head. Then the first line is checked as soon as it is there, so that
                another protocol is answered at once.
        """
        self._of_request = of_request
        self._has_line = not of_request
        self._looked = 0

    def find(self, data: bytes, most: int = MAX_HEAD_BYTES) -> int | None:
        """Return the position after the empty line; None until that line has come.

        Args:
            data: everything that has come since the head began; each call passes the bytes of the call before and new
                ones.
            most: the greatest length of the head in bytes, without the empty line.

        Raises:
            Denied: BAD_REQUEST or HEADERS_TOO_LARGE; for a response, UPSTREAM_FAILED.
        """
        if not self._looked and 0 <= (end := data.find(b"\r\n\r\n")) <= most:  # all at once, as nearly always
            return end + 4
        looked, self._looked = self._looked, len(data)
        end = data.find(b"\r\n\r\n", max(looked - 3, 0))
        if (end if end >= 0 else len(data) - 3) > most:  # up to three of the four bytes that end it may be there
            raise self._denied(f"head is longer than {most} bytes", Reason.HEADERS_TOO_LARGE)
        if end >= 0:
            self._has_line, self._looked = not self._of_request, 0
            return end + 4
        if not self._has_line and not self._can_have_line(data, looked):
            raise Denied(Reason.BAD_REQUEST, _OTHER_PROTOCOLS.get(data[:1], BAD_REQUEST_LINE))
        if _BARE_LF.search(data, looked):  # if this is the last line, the head would never end
            raise self._denied("head holds a line that ends in a bare LF", Reason.BAD_REQUEST)
        return None

    def _can_have_line(self, data: bytes, looked: int) -> bool:
        end = data.find(b"\r\n", max(looked - 1, 0))
        self._has_line = end >= 0
        if self._has_line:
            return _REQUEST_LINE.fullmatch(data, 0, end) is not None
        return _TOKEN_START.match(data) is not None and data.find(b"\n", looked) < 0

    def _denied(self, what: str, reason: Reason) -> Denied:
        if self._of_request:
            return Denied(reason, f"the {what}")
        return Denied(Reason.UPSTREAM_FAILED, f"the upstream's {what}")


def read_request_head(head: bytes) -> RequestHead:
    """Read a request head, from its first byte up to and including the empty line.

    Args:
        head: the bytes, ending in CRLF CRLF.

    Raises:
        Denied: BAD_REQUEST; the detail says what is wrong, and in which line.
    """
    return _kept_request(head) if len(head) <= _KEPT_BYTES else _read_request(head)


def _read_request(head: bytes) -> RequestHead:
    end = head.find(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(head, 0, end)
    if request_line is None:
        raise Denied(Reason.BAD_REQUEST, BAD_REQUEST_LINE)
    method, target, minor = request_line.groups()
    if b"#" in target:
        raise Denied(Reason.BAD_REQUEST, "the request target has a fragment (RFC 9112, section 3.2)")
    is_http11 = minor == b"1"
    fields, seen = _read_fields(head, end + 2, Reason.BAD_REQUEST)
    hosts = seen.get(b"host", ())
    if len(hosts) > 1:
        raise Denied(Reason.BAD_REQUEST, "the request has more than one Host field (RFC 9112, section 3.2)")
    if is_http11 and not hosts:
        raise Denied(Reason.BAD_REQUEST, "the HTTP/1.1 request has no Host field (RFC 9112, section 3.2)")
    if not LIKE_FRAMING.isdisjoint(seen):
        raise Denied(Reason.BAD_REQUEST, DISGUISED)
    body = _framing(seen, is_http11, Reason.BAD_REQUEST)
    if method == b"CONNECT" and body not in (0, UNTIL_CLOSE):
        raise Denied(
            Reason.BAD_REQUEST,
            "the CONNECT announces a body, which could be read as the first bytes for the tunnel as well "
            "(RFC 9110, section 9.3.6)",
        )
    return RequestHead(method, target, is_http11, fields, 0 if body == UNTIL_CLOSE else body)


def read_response_head(head: bytes) -> ResponseHead:
    """Read a response head, from its first byte up to and including the empty line.

    Args:
        head: the bytes, ending in CRLF CRLF.

    Raises:
        Denied: UPSTREAM_FAILED; the detail says what is wrong, and in which line.
    """
    return _kept_response(head) if len(head) <= _KEPT_BYTES else _read_response(head)


def _read_response(head: bytes) -> ResponseHead:
    end = head.find(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(head, 0, end)
    if status_line is None:
        raise Denied(Reason.UPSTREAM_FAILED, "the upstream's status line is not `HTTP/1.x status reason`")
    minor, status, reason = status_line.groups()
    fields, seen = _read_fields(head, end + 2, Reason.UPSTREAM_FAILED)
    return ResponseHead(
        int(status), reason or b"", minor == b"1", fields, _framing(seen, minor == b"1", Reason.UPSTREAM_FAILED)
    )


def _read_fields(head: bytes, start: int, reason: Reason) -> tuple[Fields, dict[bytes, list[bytes]]]:
    """Read the fields that begin at a position; also return the values of those that this module checks."""
    section = head[start:-2]
    found = _kept_section(section) if len(section) <= _KEPT_BYTES else _read_section(section)
    if found is None:
        raise _no_field(head, reason)
    return found


def _read_section(section: bytes) -> tuple[Fields, dict[bytes, list[bytes]]] | None:
    """Read all lines of a header section, including their line ends; None if one of them is no field."""
    if not _FIELDS.fullmatch(section):
        return None
    fields: Fields = tuple(_EACH_FIELD.findall(section))
    if b" \r\n" in section or b"\t\r\n" in section:
        fields = tuple((name, value.rstrip(b" \t")) for name, value in fields)
    seen: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        if (key := name.lower()) in _SEEN:
            seen.setdefault(key, []).append(value)
    return fields, seen


# Heads are kept as a whole, since the same request comes again; and header sections, since only its first line may
# differ. What is refused is not kept.
_kept_request, _kept_response = lru_cache(KEPT)(_read_request), lru_cache(KEPT)(_read_response)
_kept_section = lru_cache(KEPT)(_read_section)


def _no_field(head: bytes, reason: Reason) -> Denied:
    """Return the denial that names the first line that is no field."""
    lines = enumerate(head[:-4].split(b"\r\n"))
    number, line = next((number, line) for number, line in lines if number and not FIELD_LINE.fullmatch(line))
    return Denied(reason, f"line {number + 1} of the head is no valid header field: {_what_is_wrong(line)}")


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


def _framing(seen: dict[bytes, list[bytes]], is_http11: bool, reason: Reason) -> int:
    lengths, codings = seen.get(b"content-length", []), seen.get(b"transfer-encoding", [])
    if not lengths and not codings:
        return UNTIL_CLOSE
    if lengths and codings:
        raise Denied(reason, "both Content-Length and Transfer-Encoding are given (RFC 9112, section 6.1)")
    if len(codings) > 1:
        raise Denied(reason, _TWO_LENGTHS)
    if codings:
        if codings[0].lower() != b"chunked" or not is_http11:
            raise Denied(
                reason, "the only Transfer-Encoding that passes is chunked, in HTTP/1.1 (RFC 9112, section 6.1)"
            )
        return CHUNKED
    length = read_length(lengths, reason)
    return UNTIL_CLOSE if length is None else length


def read_length(lengths: Sequence[bytes], reason: Reason) -> int | None:
    """Return the number of bytes that a message's Content-Length fields name; None if there is no such field.

    Args:
        lengths: the values of these fields.
        reason: the reason of the denial if they are not right.

    Raises:
        Denied: there are several values, or one is no plain number.
    """
    if not lengths:
        return None
    if len(lengths) > 1:
        raise Denied(reason, _TWO_LENGTHS)
    if not _LENGTH.fullmatch(lengths[0]):
        raise Denied(reason, "Content-Length is not a plain decimal number (RFC 9110, section 8.6)")
    return int(lengths[0])
