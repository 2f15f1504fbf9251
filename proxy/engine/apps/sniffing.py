"""Recognises what an app speaks inside CONNECT by its first bytes: TLS, HTTP or neither. `apps.connect` calls it, and
so does the speaker for transparent listeners.

Rules of this module:

- Only a complete ClientHello that can be parsed is TLS, and only `METHOD SP` is HTTP. Everything else is neither.
- A server name that cannot be read as exactly one name is not "no name": it is "", which matches no host.
- Too few bytes give no answer: a ClientHello cut after one byte must not become a raw tunnel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from mitmproxy.net.check import is_valid_host

from proxy.core.clienthello import ClientHello, read_client_hello

MAX_RECORDS = 64  # a ClientHello is in one record, or in a few from odd clients
MAX_CLIENT_HELLO = 64 * 1024  # a ClientHello with post-quantum key shares has about 2 KiB

_HOST_NAME = 0  # the only kind of server name that there is (RFC 6066, section 3)
_RECORD = re.compile(rb"\x16\x03[\x00-\x03]")  # the start of a record with a handshake, of any version

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
    """The result for the first bytes of an app.

    Attributes:
        sni: the server name in the ClientHello, if it names one; "" if that is not exactly one valid name.
        alpn: the protocols that the ClientHello offers, in its order.
    """

    speech: Speech
    sni: str | None = None
    alpn: tuple[bytes, ...] = ()


def listen(data: bytes) -> Heard:
    """Judge the first bytes that an app has sent inside CONNECT."""
    if data[:1] == b"\x16":
        return _listen_to_tls(data)
    if _HTTP_START.match(data):  # HTTP/2's preface, too (RFC 9113, section 3.4): the speaker for HTTP/1 recognises it
        return Heard(Speech.HTTP)
    return Heard(Speech.UNDECIDED if _HTTP_MAYBE.fullmatch(data) else Speech.OTHER)


def _listen_to_tls(data: bytes) -> Heard:
    if len(data) < 3:
        return Heard(Speech.UNDECIDED if data[1:2] in (b"", b"\x03") else Speech.OTHER)
    if not _RECORD.match(data):
        return Heard(Speech.OTHER)
    if data[5:6] not in (b"", b"\x01"):  # a handshake record, but no ClientHello
        return Heard(Speech.OTHER)
    try:
        message = _message(data)
        if message is None:
            return Heard(Speech.UNDECIDED if len(data) <= MAX_CLIENT_HELLO else Speech.OTHER)
        hello = read_client_hello(message)
    except ValueError:
        return Heard(Speech.OTHER)
    return Heard(Speech.TLS, _server_name(hello), hello.alpn)


def _message(data: bytes) -> bytes | None:
    """Join the content of a ClientHello from its records; None if it is not complete.

    Until it is complete, only the records' headers are looked at, so that no byte is read again and again.

    Raises:
        ValueError: it comes in empty records, in more than an honest one would, or mixed with other records.
    """
    size = at = 0
    header = b""  # the message's type and length, which may be in several records, too
    needed: int | None = None
    records: list[tuple[int, int]] = []  # begin and end of the content of each
    while at + 5 <= len(data) and (needed is None or size < needed):
        length = int.from_bytes(data[at + 3 : at + 5])
        if length == 0 or len(records) == MAX_RECORDS:
            raise ValueError("an empty record, or too many")
        start, end = at + 5, at + 5 + length
        records.append((start, end))
        if needed is None:
            header += data[start : min(end, start + 4 - len(header))]
            needed = 4 + int.from_bytes(header[1:]) if len(header) == 4 else None
        if end > len(data):
            return None
        size += length
        at = end
    if needed is None or size < needed:
        return None
    if not all(_RECORD.match(data, start - 5) for start, _ in records):
        raise ValueError("a record of another kind")
    return b"".join(data[start:end] for start, end in records)[4:needed]


def _server_name(hello: ClientHello) -> str | None:
    match hello.server_names:
        case None:
            return None
        case ((kind, name),) if kind == _HOST_NAME and is_valid_host(name):
            return name.decode("ascii")
    return ""
