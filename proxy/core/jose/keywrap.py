"""Wraps content keys with AES Key Wrap (RFC 3394), one or many at once. `proxy.core.jose.sealing` calls it.

Rules of this module:

- The result for each key is that of RFC 3394, section 2.2.1. With many keys only the order of work differs: each of the
  steps is done for all keys in one call of AES, because in Python the calls take most of the time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

KEY_BYTES = (16, 32)
_HALF = 8  # bytes: half a block of AES, a semiblock in RFC 3394
_ROUNDS = 6
_INITIAL_VALUE = b"\xa6" * _HALF  # RFC 3394, section 2.2.3.1
_WITH_STEP = [bytes(byte ^ step for byte in range(256)) for step in range(_ROUNDS * max(KEY_BYTES) // _HALF + 1)]
_ECB = ECB()  # noqa: S305  # RFC 3394 is built on it


def wrap(wrapping_key: bytes, key: bytes) -> bytes:
    """Wrap one key of 128 or 256 bits.

    Args:
        wrapping_key: 16, 24 or 32 bytes.
        key: 16 or 32 bytes.

    Returns:
        8 bytes more than the key has.

    Raises:
        ValueError: a key has another length.
    """
    _check([key])
    encrypt = _encryptor(wrapping_key)
    registers = [key[start : start + _HALF] for start in range(0, len(key), _HALF)]
    check = _INITIAL_VALUE
    step = 0
    for _ in range(_ROUNDS):
        for part, register in enumerate(registers):
            step += 1
            block = encrypt(check + register)
            check = block[:7] + (block[7] ^ step).to_bytes()  # 24 steps at most: the number fits into the last byte
            registers[part] = block[_HALF:]
    return check + b"".join(registers)


def wrap_all(wrapping_key: bytes, keys: Sequence[bytes]) -> list[bytes]:
    """Wrap many keys, which take little longer than one.

    Args:
        wrapping_key: 16, 24 or 32 bytes.
        keys: 16 bytes each, or 32 bytes each.

    Returns:
        The wrapped keys, as `wrap` returns them.

    Raises:
        ValueError: a key has another length.
    """
    key_bytes = _check(keys)
    encrypt = _encryptor(wrapping_key)
    semiblocks = key_bytes // _HALF
    parts = array("Q", b"".join(keys))
    registers = [parts[part::semiblocks] for part in range(semiblocks)]
    size = _HALF * len(keys)
    blocks = array("Q", bytes(2 * size))
    blocks[0::2] = array("Q", _INITIAL_VALUE * len(keys))
    for step in range(_ROUNDS * semiblocks):
        part = step % semiblocks
        blocks[1::2] = registers[part]
        encrypted = bytearray(encrypt(blocks.tobytes()))
        encrypted[7::16] = encrypted[7::16].translate(_WITH_STEP[step + 1])  # for all keys: see `wrap`
        blocks = array("Q", encrypted)
        registers[part] = blocks[1::2]
    wrapped = array("Q", bytes((semiblocks + 1) * size))
    for part, values in enumerate((blocks[0::2], *registers)):
        wrapped[part :: semiblocks + 1] = values
    data, length = wrapped.tobytes(), key_bytes + _HALF
    return [data[start : start + length] for start in range(0, len(data), length)]


def _encryptor(wrapping_key: bytes) -> Callable[[bytes], bytes]:
    return Cipher(AES(wrapping_key), _ECB).encryptor().update


def _check(keys: Sequence[bytes]) -> int:
    """Return the length of all these keys."""
    lengths = {len(key) for key in keys}
    if len(lengths) != 1 or not lengths <= set(KEY_BYTES):
        raise ValueError(f"the keys to be wrapped have {' or '.join(map(str, KEY_BYTES))} bytes, all the same")
    return lengths.pop()
