"""What did the app start to speak inside CONNECT? Decided on its first bytes, and only once they are enough.

Rules of this module:

- Only a complete, parseable ClientHello is TLS, and only `METHOD SP` is HTTP. Everything else is neither.
- A server name that cannot be read as exactly one name is not "no name": it is "", which no host matches.
- Too few bytes are not an answer: a ClientHello cut after one byte must not turn into a raw tunnel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy.layers.tls import parse_client_hello
from mitmproxy.tls import ClientHello

MAX_RECORDS = 64  # a ClientHello is in one record, or cut in a few by those who want to be odd
MAX_CLIENT_HELLO = 64 * 1024  # a ClientHello with post-quantum key shares has about 2 KiB

_SERVER_NAME = 0  # the extension's type (RFC 6066, section 3)

_HTTP_START = re.compile(rb"[A-Z][A-Z-]{2,19} ")
_HTTP_MAYBE = re.compile(rb"(?:[A-Z][A-Z-]{0,19})?")


class Speech(Enum):
    """What the first bytes are."""

    UNDECIDED = "undecided"
    TLS = "tls"
    HTTP = "http"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Heard:
    """The verdict on an app's first bytes.

    Attributes:
        sni: the server name in the ClientHello, if it is TLS and names one; "" if that is not exactly one valid name.
        alpn: the protocols that the ClientHello offers, in its order.
    """

    speech: Speech
    sni: str | None = None
    alpn: tuple[bytes, ...] = ()


def listen(data: bytes) -> Heard:
    """Judge the first bytes that an app sent through CONNECT."""
    if data[:1] == b"\x16":
        return _listen_to_tls(data)
    if _HTTP_START.match(data):  # the preface of HTTP/2 as well (RFC 9113, section 3.4): who reads HTTP/1 sees that
        return Heard(Speech.HTTP)
    return Heard(Speech.UNDECIDED if _HTTP_MAYBE.fullmatch(data) else Speech.OTHER)


def _listen_to_tls(data: bytes) -> Heard:
    if len(data) < 3:
        return Heard(Speech.UNDECIDED if data[1:2] in (b"", b"\x03") else Speech.OTHER)
    if not starts_like_tls_record(data):
        return Heard(Speech.OTHER)
    if data[5:6] not in (b"", b"\x01"):  # a handshake record that is no ClientHello
        return Heard(Speech.OTHER)
    try:
        if not _is_whole(data):
            return Heard(Speech.UNDECIDED if len(data) <= MAX_CLIENT_HELLO else Speech.OTHER)
        hello = parse_client_hello(data)
    except ValueError:
        return Heard(Speech.OTHER)
    if hello is None:
        return Heard(Speech.OTHER)
    return Heard(Speech.TLS, _server_name(hello), tuple(hello.alpn_protocols))


def _is_whole(data: bytes) -> bool:
    """Tell, without reading it all again for each byte that comes, whether a ClientHello can be complete.

    Raises:
        ValueError: it comes in empty records, or in more than any honest one.
    """
    handshake = records = at = 0
    header = b""  # the message's type and length, which may be spread over records, too
    needed: int | None = None
    while at + 5 <= len(data) and (needed is None or handshake < needed):
        length = int.from_bytes(data[at + 3 : at + 5])
        records += 1
        if length == 0 or records > MAX_RECORDS:
            raise ValueError("an empty record, or too many")
        if needed is None:
            header += data[at + 5 : at + 5 + min(length, 4 - len(header))]
            needed = 4 + int.from_bytes(header[1:]) if len(header) == 4 else None
        if at + 5 + length > len(data):
            return False
        handshake += length
        at += 5 + length
    return needed is not None and handshake >= needed


def _server_name(hello: ClientHello) -> str | None:
    extensions = sum(kind == _SERVER_NAME for kind, _ in hello.extensions)
    if extensions == 0:
        return None
    # mitmproxy gives the first extension's name, and none where its list holds several or an invalid one.
    return hello.sni or "" if extensions == 1 else ""
