"""Messages between the parent process and its children, over one socket pair for each child; also between a process and
the one that reads the policy for it. `proxy.processes.supervisor`, `children` and `apart` use it.

Rules of this module:

- A message arrives as a whole or not at all. If one process ends, the wire ends.
- A policy is pickled. Only so can a process hand over exactly the policy that was checked, including its keys; files
  may have changed when another would read them. Only these two hold the wire, and only what a process of ours has made
  is unpickled: never anything from a network or a file.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from proxy import timelimits

SERVES = b"serves"  # from a child, once it does its work
TAKEN = b"taken"  # from a child, once the policy that it was sent is in force
PART = b"part"  # to a worker: let each response be the last on its connection; DRAIN follows
DRAIN = b"drain"  # to a worker: accept no more connections, finish what runs, and end
AUTHORITY = b"authority"  # to a worker: read the local CA again
REOPEN = b"reopen"  # to a worker: open the file of decision lines again
_LENGTH = struct.Struct("!Q")


def new_wire() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a wire."""
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(timelimits.WIRE_SECONDS)
    return ends


def framed(message: bytes) -> bytes:
    """Return a message in the form in which it is sent."""
    return _LENGTH.pack(len(message)) + message


def unframed(data: bytearray) -> Iterator[bytes]:
    """Take all complete messages out of the received bytes."""
    while len(data) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        if len(data) < end:
            return
        yield bytes(data[_LENGTH.size : end])
        del data[:end]


def send(wire: socket.socket, message: bytes) -> None:
    """Send a message.

    Raises:
        OSError: the other process is gone, or does not read (TimeoutError).
    """
    wire.sendall(framed(message))


def receive(wire: socket.socket) -> bytes | None:
    """Return the next message; None if the other process is gone.

    Raises:
        TimeoutError: no message, or only a part of one, has come.
    """
    try:
        length = _receive_exactly(wire, _LENGTH.size)
        return None if length is None else _receive_exactly(wire, *_LENGTH.unpack(length))
    except ConnectionError:
        return None


def _receive_exactly(wire: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        data = wire.recv(count - len(found))
        if not data:
            return None
        found += data
    return bytes(found)


def pack(value: object) -> bytes:
    """Return a policy, or what holds one, as a message."""
    packed = io.BytesIO()
    _Packer(packed, pickle.HIGHEST_PROTOCOL).dump(value)
    return packed.getvalue()


def unpack[T](message: bytes, kind: type[T]) -> T:
    """Return the value of a message that `pack` made.

    Args:
        message: the message.
        kind: the value's class.
    """
    value = pickle.loads(message)  # noqa: S301  # from a process of ours, over a socket pair that nobody else holds
    assert isinstance(value, kind)
    return value


class _Packer(pickle.Pickler):
    """Pickles keys, too, which do not support it themselves."""

    def reducer_override(self, value: object) -> Any:
        """Return how to rebuild a key; everything else is pickled as usual."""
        match value:
            case ec.EllipticCurvePublicKey() | X25519PublicKey() | rsa.RSAPublicKey():
                der = value.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
                return _public_key, (der,)
            case ec.EllipticCurvePrivateKey() | X25519PrivateKey() | rsa.RSAPrivateKey():
                der = value.private_bytes(
                    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
                return _private_key, (der,)
        return NotImplemented


def _public_key(der: bytes) -> object:
    return serialization.load_der_public_key(der)


def _private_key(der: bytes) -> object:
    return serialization.load_der_private_key(der, None)
