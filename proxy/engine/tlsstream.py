"""TLS over bytes in memory: ciphertext in, plaintext out, and the other way round.

Rules of this module:

- It does no I/O: whoever owns the socket feeds what came and sends what `outgoing` gives.
- An alert, garbage or a broken record ends the stream; what came before it still counts.
"""

from __future__ import annotations

from OpenSSL import SSL

_CHUNK = 65536


class TlsStream:
    """One TLS session on one OpenSSL connection object."""

    def __init__(self, conn: SSL.Connection) -> None:
        self.conn = conn
        self.is_established = False
        self.has_ended = False

    def handshake(self, data: bytes) -> bool:
        """Go on with the handshake.

        Args:
            data: ciphertext that came; empty to begin.

        Returns:
            Whether it is complete; plaintext may then be there already (`receive(b"")`).

        Raises:
            OpenSSL.SSL.Error: it failed; the alert to send is in `outgoing`.
        """
        if data:
            self.conn.bio_write(data)
        try:
            self.conn.do_handshake()
        except SSL.WantReadError:
            return False
        self.is_established = True
        return True

    def receive(self, data: bytes) -> bytes:
        """Decrypt what came. `has_ended` tells afterwards whether the peer closed the session."""
        if data:
            self.conn.bio_write(data)
        pieces = []
        while True:
            try:
                pieces.append(self.conn.recv(_CHUNK))
            except SSL.WantReadError:
                break
            except SSL.Error:  # close_notify, or an alert or record that cannot be read: the end either way
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

    def outgoing(self) -> bytes:
        """Take the ciphertext that waits to be sent."""
        pieces = []
        while True:
            try:
                pieces.append(self.conn.bio_read(_CHUNK))
            except SSL.WantReadError:
                return b"".join(pieces)
