"""Wraps many keys at once with AES Key Wrap (RFC 3394). `proxy.core.jose.jwe` calls it for the content keys of tokens.

Rules of this module:

- The result for each key is that of RFC 3394, section 2.2.1. Only the order of work differs: each of the 24 steps is
  done for all keys in one call of AES, because in Python the calls take most of the time.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

KEY_BYTES = 32
_HALF = 8  # bytes: half a block of AES, a semiblock in RFC 3394
_SEMIBLOCKS = KEY_BYTES // _HALF
_ROUNDS = 6
_INITIAL_VALUE = b"\xa6" * _HALF  # RFC 3394, section 2.2.3.1
_STEPS = _ROUNDS * _SEMIBLOCKS


def wrap_all(wrapping_key: bytes, keys: Sequence[bytes]) -> list[bytes]:
    """Wrap 256-bit keys.

    Args:
        wrapping_key: 16, 24 or 32 bytes.
        keys: 32 bytes each.

    Returns:
        40 bytes for each key.

    Raises:
        ValueError: a key has another length.
    """
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"a key to be wrapped has {KEY_BYTES} bytes")
    encrypt = Cipher(AES(wrapping_key), ECB()).encryptor().update  # noqa: S305  # RFC 3394 is built on it
    parts = array("Q", b"".join(keys))
    registers = [parts[part::_SEMIBLOCKS] for part in range(_SEMIBLOCKS)]
    size = _HALF * len(keys)
    checks = array("Q", _INITIAL_VALUE * len(keys))
    ones = int.from_bytes((1).to_bytes(_HALF) * len(keys))  # multiplied by a step's number: that number for every key
    blocks = array("Q", bytes(2 * size))
    for step in range(_STEPS):
        part = step % _SEMIBLOCKS
        blocks[0::2], blocks[1::2] = checks, registers[part]
        encrypted = array("Q", encrypt(blocks.tobytes()))
        numbered = int.from_bytes(encrypted[0::2].tobytes()) ^ ones * (step + 1)
        checks = array("Q", numbered.to_bytes(size))
        registers[part] = encrypted[1::2]
    wrapped = array("Q", bytes((_SEMIBLOCKS + 1) * _HALF * len(keys)))
    for part, values in enumerate((checks, *registers)):
        wrapped[part :: _SEMIBLOCKS + 1] = values
    data, length = wrapped.tobytes(), (_SEMIBLOCKS + 1) * _HALF
    return [data[start : start + length] for start in range(0, len(data), length)]
