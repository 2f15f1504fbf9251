"""TLS over bytes in memory: ciphertext in, plaintext out, and the other way round.

Rules of this module:

- It does no I/O: whoever owns the socket feeds what came and sends what `outgoing` gives.
- An alert, garbage or a broken record ends the stream; what came before it still counts.
"""

from __future__ import annotations

import contextlib

from OpenSSL import SSL

_CHUNK = 16 * 1024  # a record holds no more (RFC 8446, section 5.1), and as much is asked of the heap each time


class TlsStream:
    """One TLS session on one OpenSSL connection object."""

    def __init__(self, conn: SSL.Connection) -> None:
        self.conn = conn
        self.is_established = False
        self.has_ended = False
        self.was_closed = False
        self._header = b""  # what has come of a record's header (RFC 8446, section 5.1)
        self._left = 0  # bytes that are still to come of a record

    @property
    def is_between_records(self) -> bool:
        """Whether the peer has ended the last record that it began."""
        return not self._left and not self._header

    def _take(self, data: bytes | memoryview) -> None:
        at = 0
        while at < len(data):
            if not self._left:
                part = bytes(data[at : at + 5 - len(self._header)])
                at += len(part)
                self._header += part
                if len(self._header) < 5:
                    break
                self._left, self._header = int.from_bytes(self._header[3:]), b""
            step = min(self._left, len(data) - at)
            self._left -= step
            at += step
        self.conn.bio_write(data)

    def handshake(self, data: bytes | memoryview) -> bool:
        """Go on with the handshake.

        Args:
            data: ciphertext that came; empty to begin.

        Returns:
            Whether it is complete; plaintext may then be there already (`receive(b"")`).

        Raises:
            OpenSSL.SSL.Error: it failed; the alert to send is in `outgoing`.
        """
        if data:
            self._take(data)
        try:
            self.conn.do_handshake()
        except SSL.WantReadError:
            return False
        self.is_established = True
        return True

    def receive(self, data: bytes | memoryview) -> bytes:
        """Decrypt what came.

        Afterwards `has_ended` tells whether more can come, and `was_closed` whether the peer said that this is all
        (close_notify): without it the end may be an attacker's (RFC 8446, section 6.1).
        """
        if data:
            self._take(data)
        pieces = []
        while True:
            try:
                pieces.append(self.conn.recv(_CHUNK))
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self.has_ended = self.was_closed = True
                break
            except SSL.Error:  # an alert, or a record that cannot be read
                self.has_ended = True
                break
        return b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Encrypt; the ciphertext waits in `outgoing`.

        Raises:
            OpenSSL.SSL.Error: the session is over.
        """
        view = memoryview(data)
        while view:
            view = view[self.conn.send(view[: 1 << 20]) :]

    def close(self) -> None:
        """Say that this is all; the close_notify waits in `outgoing`."""
        if self.is_established:
            with contextlib.suppress(SSL.Error):  # the session is broken already: there is nobody to tell
                self.conn.shutdown()

    def outgoing(self) -> bytes:
        """Take the ciphertext that waits to be sent."""
        pieces: list[bytes] = []
        while True:
            try:
                piece = self.conn.bio_read(_CHUNK)
            except SSL.WantReadError:
                return b"".join(pieces)
            pieces.append(piece)
            if len(piece) < _CHUNK:  # all that was there
                return b"".join(pieces)
