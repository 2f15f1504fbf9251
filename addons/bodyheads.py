"""Says what the header fields of a message tell about its body: its type and coding, its length, what signs it. The
addon `addons.encryption` and what it calls ask, and put a changed body in the place of one.

Rules of this module:

- What the fields say is read once: most heads come again.
- A body that is replaced has the length that its head says; nothing else of the head changes here.
"""

from __future__ import annotations

from functools import lru_cache

from mitmproxy import http

from addons.headers import has_field, values_in, with_length
from proxy.core.fields import bodies, signatures
from proxy.core.fields.pauses import SHORT
from proxy.core.http.digests import without_digests
from proxy.core.http.heads import KEPT, Fields


def head(message: http.Message) -> bodies.BodyHead:
    """Return what a message's header fields say about its body."""
    return _head(message.data.headers.fields)


@lru_cache(KEPT)
def _head(fields: Fields) -> bodies.BodyHead:
    types, codings = values_in(fields, b"content-type"), values_in(fields, b"content-encoding")
    return bodies.BodyHead(tuple(types), ", ".join(codings) if codings else None)


@lru_cache(KEPT)
def length_said(fields: Fields) -> int:
    """Return the length of the body, as a request's header fields say it; 0 if they do not."""
    return max(map(int, values_in(fields, b"content-length")), default=0)


def signed_head(request: http.Request) -> bodies.BodyHead:
    """Return the same for a request whose body has come, with what signs it, also in its trailers."""
    query, trailers = request.data.path.partition(b"?")[2], request.data.trailers
    return _signed_head(request.data.headers.fields, () if trailers is None else trailers.fields, query)


@lru_cache(KEPT)
def _signed_head(fields: Fields, trailers: Fields, query: bytes) -> bodies.BodyHead:
    said, both = _head(fields), fields + trailers
    signature = signatures.covering(both, query.decode("latin-1"))
    return bodies.BodyHead(said.content_types, said.content_encoding, signature, both)


def told_head(response: http.Response) -> bodies.BodyHead:
    """Return the same for a response that is to be sealed, with what signs it. Digests do not count: they are left out
    of what is told.
    """
    fields = without_digests(response.headers.fields)
    return head(response)._replace(signature=signatures.covering(fields), fields=fields)


def takes_long(message: http.Message, body: bytes | bytearray) -> bool:
    """Tell whether it may take long to work on a held body."""
    return len(body) > SHORT or (len(body) > 0 and has_field(message.headers, b"content-encoding"))


def replace_body(message: http.Message, body: bytes) -> None:
    """Set the body to send, and its Content-Length if the message has one."""
    if message.data.content is body:
        return
    message.data.content = body
    headers = message.data.headers
    if not has_field(headers, b"transfer-encoding"):
        headers.fields = with_length(headers.fields, len(body))
