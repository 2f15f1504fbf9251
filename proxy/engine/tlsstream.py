"""TLS over bytes in memory: ciphertext in, plaintext out, and back. The connections of both sides (`apps.socket`,
`upstreams.connection`) have one each.

Rules of this module:

- It does no I/O: the owner of the socket feeds it with received bytes, and sends what `outgoing` returns.
- An alert, garbage or a broken record ends the stream; what came before still counts.
- OpenSSL is asked only if it can have an answer. A call without one raises an exception, and that would happen twice
  for each message. So the records are counted as they come, and it is remembered whether OpenSSL may have bytes to
  send.
- Records go to and from OpenSSL without pyOpenSSL's methods. Those check again what mypy has checked, and allocate
  memory each time: a twentieth of the cost of a request. On failure, pyOpenSSL is called, to name the error.
"""

from __future__ import annotations

import contextlib
from typing import Any

from OpenSSL import SSL

_CHUNK = 16 * 1024  # the most that a record holds (RFC 8446, section 5.1)
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # the functions on which pyOpenSSL is built
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]  # as above
_PIECE = _ffi.new("char[]", _CHUNK)  # shared by all sessions: its bytes are copied out at once
_HEADER = 5  # bytes of a record's header (RFC 8446, section 5.1)


def reasons(error: Exception) -> tuple[str, ...]:
    """Return OpenSSL's reasons for a failure, the first cause first; none for any other exception."""
    found = error.args[0] if isinstance(error, SSL.Error) and error.args else ()
    return tuple(str(entry[2]) for entry in found) if isinstance(found, list) else ()


class TlsStream:
    """One TLS session on one OpenSSL connection object.

    Attributes:
        errors: OpenSSL's reasons for the end of an established session, such as an alert of the peer; none if it has
            not ended, or ended in order.
    """

    def __init__(self, conn: SSL.Connection) -> None:
        self.conn = conn
        self._ssl: Any = conn._ssl
        self._into: Any = conn._into_ssl
        self._from: Any = conn._from_ssl
        self.is_established = False
        self.has_ended = False
        self.was_closed = False
        self.errors: tuple[str, ...] = ()
        self._header = b""  # the part of a record's header that has come (RFC 8446, section 5.1)
        self._left = 0  # bytes of the current record that are still to come
        self._due = 0  # the most reads that may return something: see `_take`
        self._may_owe = False  # whether OpenSSL may have bytes to send

    @property
    def is_between_records(self) -> bool:
        """Whether the peer has finished the last record that it began."""
        return not self._left and not self._header

    def _take(self, data: bytes | memoryview) -> None:
        """Give OpenSSL received bytes, at least one."""
        size = len(data)
        if not self._left and not self._header and int.from_bytes(data[3:_HEADER]) == size - _HEADER:
            self._due += 1  # exactly one record, as nearly always
        else:
            self._count_records(data, size)
        if _lib.BIO_write(self._into, _ffi.from_buffer(data), size) != size:
            raise MemoryError("OpenSSL has no room for what came")  # the only reason for which a memory BIO fails

    def _count_records(self, data: bytes | memoryview, size: int) -> None:
        """Count what OpenSSL may answer: when a record's header is there (garbage), and when the record is complete."""
        at = 0
        while at < size:
            end = at + _HEADER + int.from_bytes(data[at + 3 : at + _HEADER])
            if end <= size and not self._left and not self._header:  # a whole record, as most are
                self._due += 1
                at = end
                continue
            if not self._left:
                part = bytes(data[at : at + _HEADER - len(self._header)])
                at += len(part)
                self._header += part
                if len(self._header) < _HEADER:
                    break
                self._left, self._header = int.from_bytes(self._header[3:]), b""
                self._due += 1
                if at + self._left <= size:  # the record is complete
                    at += self._left
                    self._left = 0
                    continue
            step = min(self._left, size - at)
            self._left -= step
            at += step
            if not self._left:
                self._due += 1

    def handshake(self, data: bytes | memoryview) -> bool:
        """Go on with the handshake.

        Args:
            data: received ciphertext; empty to begin.

        Returns:
            Whether it is complete; then plaintext may be there already (`receive(b"")`).

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
        """Decrypt received bytes.

        Afterwards `has_ended` tells whether more can come, and `was_closed` whether the peer has said that this is all
        (close_notify). Without that, an attacker may have caused the end (RFC 8446, section 6.1).
        """
        if data:
            self._take(data)
        pieces = []
        while self._due:
            if (size := _lib.SSL_read(self._ssl, _PIECE, _CHUNK)) > 0:
                pieces.append(_ffi.unpack(_PIECE, size))
                self._due -= 1
                continue
            try:
                self.conn._raise_ssl_error(self._ssl, size)
            except SSL.Error as e:  # not data: a key update, say, or garbage, which OpenSSL answers
                self._due, self._may_owe = 0, True
                self.was_closed = self.was_closed or isinstance(e, SSL.ZeroReturnError)
                self.has_ended = self.has_ended or not isinstance(e, SSL.WantReadError)
                self.errors = self.errors or reasons(e)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Encrypt bytes; the ciphertext waits in `outgoing`.

        Raises:
            OpenSSL.SSL.Error: the session is over.
        """
        rest: Any = data  # as bytes, which are handed on as they are
        left = len(data)
        while left:  # OpenSSL takes one record at a time
            self._may_owe = True
            if (sent := _lib.SSL_write(self._ssl, rest, left)) <= 0:
                self.conn._raise_ssl_error(self._ssl, sent)
            left -= sent
            if left:
                rest = _ffi.from_buffer(memoryview(data)[-left:])

    def close(self) -> None:
        """End the session: the close_notify waits in `outgoing`."""
        if self.is_established:
            self._may_owe = True
            with contextlib.suppress(SSL.Error):  # the session is broken already: nobody is left to tell
                self.conn.shutdown()

    def outgoing(self) -> bytes:
        """Take the ciphertext that waits to be sent."""
        if not self._may_owe:
            return b""
        self._may_owe = False
        size = _lib.BIO_read(self._from, _PIECE, _CHUNK)
        if size < _CHUNK:  # this is all, as nearly always
            return _ffi.unpack(_PIECE, size) if size > 0 else b""
        pieces: list[bytes] = []
        while size > 0:
            pieces.append(_ffi.unpack(_PIECE, size))
            size = _lib.BIO_read(self._from, _PIECE, _CHUNK)
        return b"".join(pieces)
