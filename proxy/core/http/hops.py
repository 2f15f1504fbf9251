"""Finds the header fields that are about one connection only, and removes them (RFC 9110, section 7.6); also decides
whether a connection stays open. The engine calls it for each message that it passes on, and the addons for Via and
Max-Forwards.

Rules of this module:

- All other fields stay as they came.
- Of all offers to switch to another protocol only WebSocket's passes: Overcoat could not check what follows any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from proxy.core.http.heads import KEPT, Fields

_OF_THIS_HOP = frozenset((b"connection", b"keep-alive", b"te", b"proxy-connection"))
_OF_AN_OFFER = frozenset((b"upgrade", b"http2-settings"))
# Connection may not name these: framing and destination must stay, and credentials are checked before they are removed.
_NEVER_LISTED = frozenset((b"host", b"content-length", b"transfer-encoding", b"proxy-authorization"))
_BEFORE_THE_BODY = re.compile(
    rb"(?i)host|te|trailer|connection|keep-alive|upgrade|http2-settings|transfer-encoding|expect|max-forwards|via|"
    rb"content-(?:length|type|encoding|range|location|disposition|security-policy.*)|range|if-.+|cache-control|pragma|"
    rb"authorization|www-authenticate|proxy-.+|set-cookie2?|cookie|origin|referer|forwarded|x-forwarded-.+|location|"
    rb"refresh|link|retry-after|vary|age|date|expires|strict-transport-security|access-control-.+|accept.*|status|"
    rb"timing-allow-origin|destination|front-end-https|early-data|alt-svc|clear-site-data|sec-.+|proxy|"
    rb"x-(?:http-method|original|rewrite|real-ip|accel|sendfile).*"
)
_FORWARDS = re.compile(rb"[0-9]{1,9}")
_RECEIVED_BY = re.compile(r"(?:^|,)[ \t]*[^ \t,]+[ \t]+([^ \t,(:]+)")  # RFC 9110, section 7.6.3


@lru_cache(KEPT)
def without_hop(fields: Fields, *, may_offer: bool = True) -> Fields:
    """Return a message's fields without those about one connection only; an offer of WebSocket stays.

    Args:
        fields: name and value, as they came.
        may_offer: whether the message's version knows such offers; HTTP/1.0 does not (RFC 9110, section 7.8).
    """
    listed: set[bytes] = set()
    offers: list[bytes] = []
    has_hop = False
    for name, value in fields:
        key = name.lower()
        if key == b"connection":
            listed.update(_options(value))
        elif key == b"upgrade":
            offers.append(value.strip(b" \t").lower())
        has_hop = has_hop or key in _OF_THIS_HOP or key in _OF_AN_OFFER
    if not has_hop:
        return fields
    is_websocket = may_offer and offers == [b"websocket"] and b"upgrade" in listed
    ending = (listed - _NEVER_LISTED) | _OF_THIS_HOP | _OF_AN_OFFER
    if is_websocket:
        ending -= {b"upgrade"}
    kept = [field for field in fields if field[0].lower() not in ending]
    if is_websocket:
        kept.append((b"Connection", b"Upgrade"))
    return tuple(kept)


def _options(value: bytes) -> set[bytes]:
    return {option.strip(b" \t").lower() for option in value.split(b",")}


def trailers_to_relay(fields: Fields, *, stays_apart: bool = False) -> Fields:
    """Return the trailers that may go on: those that mean the same after a body as before it.

    A receiver may merge trailers into the header section. So none may say how a message is framed, routed,
    authenticated or read (RFC 9110, section 6.5.1). In HTTP/2 nobody merges them, and nobody takes `_` for `-`.

    Args:
        fields: name and value, as they came.
        stays_apart: whether they are received and sent in HTTP/2.
    """
    if not fields:  # as nearly always
        return ()
    return tuple(
        field
        for field in fields
        if not _BEFORE_THE_BODY.fullmatch(field[0].replace(b"_", b"-")) and (stays_apart or b"_" not in field[0])
    )


def without_framing(fields: Fields) -> Fields:
    """Remove the fields that a response without a body must not have (RFC 9112, sections 6.1 and 6.2)."""
    return tuple(field for field in fields if field[0].lower() not in (b"content-length", b"transfer-encoding"))


@lru_cache(KEPT)
def keeps_alive(is_http11: bool, fields: Fields) -> bool:
    """Tell whether a connection stays open after a message (RFC 9112, section 9.3).

    Args:
        is_http11: whether the message is of HTTP/1.1; if not, it is of HTTP/1.0.
        fields: name and value, as they came.
    """
    options: set[bytes] = set()
    for name, value in fields:
        if name.lower() == b"connection":
            options |= _options(value)
    return b"close" not in options and (is_http11 or b"keep-alive" in options)


@lru_cache(KEPT)
def is_last_request(fields: Fields) -> bool:
    """Tell whether no other request may be read after one of HTTP/1.1 on its connection: since it says so, or since the
    app may send another protocol right after it, without waiting for the answer.

    If no switch follows, these bytes must not be read as a request (RFC 9931, section 4.1). An offer of h2c alone,
    which some clients send with the first request to a host, is harmless: the bytes would begin with a preface that is
    made to be no valid request (RFC 9113, section 3.4), and is refused as one.

    Args:
        fields: name and value, as they came.
    """
    offers = [value for name, value in fields if name.lower() == b"upgrade"]
    return not keeps_alive(True, fields) or any(_options(value) - {b"h2c", b""} for value in offers)


def one_forward_less(fields: Fields) -> tuple[Fields, bool]:
    """Return the fields of a TRACE or OPTIONS with a lower Max-Forwards, and whether it may go on (RFC 9110, section
    7.6.2).

    Args:
        fields: name and value, as they came. A Max-Forwards that is no number, or comes twice, is ignored.
    """
    found = [at for at, (name, _) in enumerate(fields) if name.lower() == b"max-forwards"]
    if len(found) != 1 or not _FORWARDS.fullmatch(fields[found[0]][1]):
        return fields, True
    name, value = fields[found[0]]
    if int(value) == 0:
        return fields, False
    return (*fields[: found[0]], (name, b"%d" % (int(value) - 1)), *fields[found[0] + 1 :]), True


def has_come_through(via: Iterable[str], name: str) -> bool:
    """Tell whether a request has passed a proxy of this name before.

    Args:
        via: the values of its Via fields.
        name: the proxy's name.
    """
    return any(name.lower() in _RECEIVED_BY.findall(value.lower()) for value in via)
