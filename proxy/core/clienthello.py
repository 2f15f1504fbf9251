"""Reads the ClientHello, with which an app begins TLS: the server that it names, and the protocols that it offers. The
engine asks it what stands inside a CONNECT (`proxy.engine.apps.sniffing`).

Rules of this module:

- It is read as RFC 8446, section 4.1.2, has it, to the last byte: where a length does not fit, it is none. A server
  that read it in another way could be asked for another name than the one that was judged.
- Of the rest only the lengths are looked at: what a client offers is for the two ends to judge.
- One of very many parts is none: to take it apart would cost 25 ms, and be done again in the next connection.
"""

from __future__ import annotations

from dataclasses import dataclass

_SERVER_NAME = 0  # types of extensions (RFC 6066, section 3; RFC 7301, section 3.1)
_ALPN = 16
_MAX_SESSION_ID = 32
_MOST_PARTS = 256  # extensions and what is listed in them: clients send some thirty, and 64 KiB hold 21,000


class BadClientHello(ValueError):
    """These bytes are no ClientHello."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client says at first.

    Attributes:
        server_names: kind and content of each entry of the lists of names; None if there is no such list.
        alpn: the protocols, in its order.
    """

    server_names: tuple[tuple[int, bytes], ...] | None = None
    alpn: tuple[bytes, ...] = ()


def read_client_hello(message: bytes) -> ClientHello:
    """Return what a ClientHello says.

    Args:
        message: the whole message, without the type and the length before it.

    Raises:
        BadClientHello: it is none.
    """
    hello = _Reader(message)
    hello.take(2 + 32)  # the version, and random bytes
    if len(hello.vector(1)) > _MAX_SESSION_ID:
        raise BadClientHello("the session's identifier is too long")
    if len(hello.vector(2)) % 2:
        raise BadClientHello("half a cipher suite")
    hello.vector(1)  # methods of compression
    if hello.is_at_end:  # as before TLS 1.2
        return ClientHello()
    names: list[tuple[int, bytes]] | None = None
    alpn: list[bytes] = []
    extensions = _Reader(hello.vector(2))
    hello.end()
    parts = 0

    def has_more(listed: _Reader) -> bool:
        nonlocal parts
        parts += 1
        if parts > _MOST_PARTS:
            raise BadClientHello("it has too many parts")
        return not listed.is_at_end

    while has_more(extensions):
        kind, body = extensions.number(2), _Reader(extensions.vector(2))
        if kind == _SERVER_NAME:
            names = names or []
            entries = _Reader(body.vector(2))
            while has_more(entries):
                names.append((entries.number(1), entries.vector(2)))
            body.end()
        elif kind == _ALPN:
            offers = _Reader(body.vector(2))
            while has_more(offers):
                alpn.append(offers.vector(1))
            body.end()
    return ClientHello(None if names is None else tuple(names), tuple(alpn))


class _Reader:
    """Reads bytes from the first to the last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def end(self) -> None:
        """Check that nothing is left."""
        if not self.is_at_end:
            raise BadClientHello("there is more than the lengths say")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if len(self._data) - self._at < count:
            raise BadClientHello("it ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        """Return the number in the next bytes."""
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """Return the bytes behind their own number, which takes `size` bytes."""
        return self.take(self.number(size))
