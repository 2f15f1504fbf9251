"""TLS over bytes in memory: ciphertext in, plaintext out, and the other way round.

Rules of this module:

- It does no I/O: whoever owns the socket feeds what came and sends what `outgoing` gives.
- An alert, garbage or a broken record ends the stream; what came before it still counts.
- OpenSSL is asked only where it can have an answer: each question to it that has none ends in an exception, and there
  would be two for every message. So the records are counted as they come, and what it may have to send is remembered.
- Records go to OpenSSL and come from it without pyOpenSSL's methods, which check again what mypy has checked and get
  memory for each: a twentieth of what a request costs. What fails is left to pyOpenSSL to name.
"""

from __future__ import annotations

import contextlib
from typing import Any

from OpenSSL import SSL

_CHUNK = 16 * 1024  # a record holds no more (RFC 8446, section 5.1)
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # what pyOpenSSL itself is made of
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]
_PIECE = _ffi.new("char[]", _CHUNK)  # one for all sessions: what was written here is copied out before anything else
_HEADER = 5  # bytes of a record's header (RFC 8446, section 5.1)


class TlsStream:
    """One TLS session on one OpenSSL connection object."""

    def __init__(self, conn: SSL.Connection) -> None:
        self.conn = conn
        self._ssl: Any = conn._ssl
        self._into: Any = conn._into_ssl
        self._from: Any = conn._from_ssl
        self.is_established = False
        self.has_ended = False
        self.was_closed = False
        self._header = b""  # what has come of a record's header (RFC 8446, section 5.1)
        self._left = 0  # bytes that are still to come of a record
        self._due = 0  # how often there may be something to read, at most: see `_take`
        self._may_owe = False  # whether something may wait to be sent

    @property
    def is_between_records(self) -> bool:
        """Whether the peer has ended the last record that it began."""
        return not self._left and not self._header

    def _take(self, data: bytes | memoryview) -> None:
        """Give OpenSSL what came. Of a record it can say something by its header (garbage), and once it is whole."""
        at, size = 0, len(data)
        if not self._left and not self._header and int.from_bytes(data[3:_HEADER]) == size - _HEADER:
            self._due += 1  # one record, whole, as nearly always
            at = size
        while at < size:
            if not self._left:
                part = bytes(data[at : at + _HEADER - len(self._header)])
                at += len(part)
                self._header += part
                if len(self._header) < _HEADER:
                    break
                self._left, self._header = int.from_bytes(self._header[3:]), b""
                self._due += 1
                if at + self._left <= size:  # all of it is here
                    at += self._left
                    self._left = 0
                    continue
            step = min(self._left, size - at)
            self._left -= step
            at += step
            if not self._left:
                self._due += 1
        if data and _lib.BIO_write(self._into, _ffi.from_buffer(data), size) != size:
            raise MemoryError("OpenSSL has no room for what came")  # the one reason that a BIO in memory has

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
        self._may_owe = True
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
        while self._due:
            if (size := _lib.SSL_read(self._ssl, _PIECE, _CHUNK)) > 0:
                pieces.append(_ffi.buffer(_PIECE, size)[:])
                self._due -= 1
                continue
            try:
                self.conn._raise_ssl_error(self._ssl, size)
            except SSL.Error as e:  # it was no data; a key update is answered, and so is what cannot be read
                self._due, self._may_owe = 0, True
                self.was_closed = self.was_closed or isinstance(e, SSL.ZeroReturnError)
                self.has_ended = self.has_ended or not isinstance(e, SSL.WantReadError)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Encrypt; the ciphertext waits in `outgoing`.

        Raises:
            OpenSSL.SSL.Error: the session is over.
        """
        at = 0
        while at < len(data):  # it takes a record at a time
            self._may_owe = True
            rest = memoryview(data)[at:] if at else data
            if (sent := _lib.SSL_write(self._ssl, _ffi.from_buffer(rest), len(rest))) <= 0:
                self.conn._raise_ssl_error(self._ssl, sent)
            at += sent

    def close(self) -> None:
        """Say that this is all; the close_notify waits in `outgoing`."""
        if self.is_established:
            self._may_owe = True
            with contextlib.suppress(SSL.Error):  # the session is broken already: there is nobody to tell
                self.conn.shutdown()

    def outgoing(self) -> bytes:
        """Take the ciphertext that waits to be sent."""
        pieces: list[bytes] = []
        while self._may_owe:
            if (size := _lib.BIO_read(self._from, _PIECE, _CHUNK)) <= 0:
                break
            pieces.append(_ffi.buffer(_PIECE, size)[:])
            if size < _CHUNK:  # all that was there
                break
        self._may_owe = False
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
