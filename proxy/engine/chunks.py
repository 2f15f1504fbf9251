"""Chunked bodies for mitmproxy's HTTP/1 layer: read by our own reader, in the place of h11's.

One reader for all, as strict for an upstream behind HTTP/2 as for any other; and what came at once is one piece,
however many chunks it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import h11
from mitmproxy.proxy.layers.http import _http1

from proxy.core.framing import BadFraming, ChunkedBody

if TYPE_CHECKING:
    from h11._receivebuffer import ReceiveBuffer

_by_mitmproxy: Callable[[int | None], object] = _http1.make_body_reader


class ChunkedReader:
    """Reads a chunked body the way that mitmproxy expects of h11."""

    def __init__(self) -> None:
        self._body = ChunkedBody()
        self._has_ended = False

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """Return the next event, taking its bytes out of the buffer, or None if there is none yet.

        Raises:
            h11.RemoteProtocolError: it is not framed as chunks are.
        """
        if self._has_ended:
            return h11.EndOfMessage()
        data = buffer.maybe_extract_at_most(len(buffer))
        if not data:
            return None
        try:
            piece, rest = self._body.feed(bytes(data))
        except BadFraming:
            raise h11.RemoteProtocolError("the body is not framed as its head says") from None
        if rest is not None:
            self._has_ended = True
            buffer += rest
        if piece:
            return h11.Data(data=piece)
        return h11.EndOfMessage() if self._has_ended else None

    def read_eof(self) -> NoReturn:
        """Take that the connection has ended.

        Raises:
            h11.RemoteProtocolError: always, since the last chunk has not come.
        """
        raise h11.RemoteProtocolError("the connection ended before its last chunk")


def body_reader(size: int | None) -> object:
    """Return a reader for a body of `size` bytes, by mitmproxy's convention: None for chunks."""
    return ChunkedReader() if size is None else _by_mitmproxy(size)
