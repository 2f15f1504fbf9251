"""Messages between the parent and its children: each child has a socket pair with it.

Rules of this module:

- A message comes whole or not at all. The end of the other process is the end of the wire.
- A policy is pickled: the one way to hand over the very policy that the parent has checked, keys and all, instead of
  reading files again that may have changed. Only parent and child hold the wire, and only the parent's policies are
  unpickled. Nothing that comes from a network or a file ever is.
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

from proxy.core.rules.policy import Policy

SERVES = b"serves"  # from a child, once it does what it is there for
TAKEN = b"taken"  # from a child, once the policy it was sent is in force
DRAIN = b"drain"  # to a worker: take no new connection, let what runs end, and end
REOPEN = b"reopen"  # to a worker: open the file of decision lines again
SECONDS = 5.0  # for the other process to take or to send the rest of a message
_LENGTH = struct.Struct("!Q")


def new_wire() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a wire."""
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(SECONDS)
    return ends


def framed(message: bytes) -> bytes:
    """Return a message as it is sent."""
    return _LENGTH.pack(len(message)) + message


def unframed(data: bytearray) -> Iterator[bytes]:
    """Take every whole message off what has come."""
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
    """Return the next message, or None if the other process is gone.

    Raises:
        TimeoutError: there is none, or not the whole of one.
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


def pack(policy: Policy) -> bytes:
    """Return a policy as a message."""
    packed = io.BytesIO()
    _Packer(packed, pickle.HIGHEST_PROTOCOL).dump(policy)
    return packed.getvalue()


def unpack(message: bytes) -> Policy:
    """Return the policy of a message that `pack` made."""
    policy = pickle.loads(message)  # noqa: S301  # from the parent, over a socket pair that nobody else holds
    assert isinstance(policy, Policy)
    return policy


class _Packer(pickle.Pickler):
    """Packs keys, too, which do not offer it themselves."""

    def reducer_override(self, value: object) -> Any:
        """Return how to make a key again; everything else is done as usual."""
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
