"""What did the app start to speak inside CONNECT? Decided on its first bytes, and only once they are enough.

Rules of this module:

- Only a complete, parseable ClientHello is TLS, and only `METHOD SP` is HTTP. Everything else is neither.
- Too few bytes are not an answer: a ClientHello cut after one byte must not turn into a raw tunnel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy.layers.tls import parse_client_hello

MAX_CLIENT_HELLO = 64 * 1024  # a ClientHello with post-quantum key shares has about 2 KiB

_HTTP_START = re.compile(rb"([A-Z]{3,20}) ")
_HTTP_MAYBE = re.compile(rb"[A-Z]{0,20}")


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
        sni: the server name in the ClientHello, if it is TLS and names one.
        alpn: the protocols that the ClientHello offers, in its order.
    """

    speech: Speech
    sni: str | None = None
    alpn: tuple[bytes, ...] = ()


def listen(data: bytes) -> Heard:
    """Judge the first bytes that an app sent through CONNECT."""
    if data[:1] == b"\x16":
        return _listen_to_tls(data)
    if start := _HTTP_START.match(data):
        # The preface of HTTP/2 in plain text (RFC 9113, section 3.4) parses as a request, but isn't one.
        return Heard(Speech.OTHER if start[1] == b"PRI" else Speech.HTTP)
    return Heard(Speech.UNDECIDED if _HTTP_MAYBE.fullmatch(data) else Speech.OTHER)


def _listen_to_tls(data: bytes) -> Heard:
    if len(data) > MAX_CLIENT_HELLO:
        return Heard(Speech.OTHER)
    if len(data) < 3:
        return Heard(Speech.UNDECIDED if data[1:2] in (b"", b"\x03") else Speech.OTHER)
    if not starts_like_tls_record(data):
        return Heard(Speech.OTHER)
    if data[5:6] not in (b"", b"\x01"):  # a handshake record that is no ClientHello
        return Heard(Speech.OTHER)
    try:
        hello = parse_client_hello(data)
        sni = hello.sni if hello else None
        alpn = tuple(hello.alpn_protocols) if hello else ()
    except ValueError:
        return Heard(Speech.OTHER)
    return Heard(Speech.TLS, sni, alpn) if hello else Heard(Speech.UNDECIDED)
