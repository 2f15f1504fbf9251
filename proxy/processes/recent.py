"""Keeps the last decision lines of each process where the admin process can read them. `LineWriter` adds each line, and
`proxy.processes.status` reads those of all workers.

Rules of this module:

- Adding takes a microsecond and never waits: it is done for each request.
- The memory is bounded, and made before the processes fork, so that they share it. A successor goes on in the memory of
  the worker that it replaces.
- Whoever reads may meet a line, or its length, that is written in part: no write is atomic. Only a checksum tells, and
  such a line is left out.
- Lines with a reason are kept apart as well, else the last denial would be gone after fifty requests.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from typing import Any
from zlib import crc32

KEPT = 50
_SLOT = 2048  # bytes: a line has some 450
_HEAD = struct.Struct("=II")  # the length of the line, 0 if there is none yet, and its CRC-32
_ROOM = _SLOT - _HEAD.size
_WHOLE = struct.Struct(f"=II{_ROOM}s")  # the same with the line
_CUTS = (200, 40, 8)  # characters that are left of a text in a line for which there is no room; the last always fits
_WITHOUT_REASON = b'"reason": null'  # no text in a line can contain it, since JSON escapes the quotes there


class Recent:
    """The last decision lines of one process."""

    def __init__(self) -> None:
        self._all = _Ring()
        self._with_reason = _Ring()

    def add(self, line: bytes) -> None:
        """Keep a line, with its line feed."""
        if len(line) > _ROOM:
            line = _shortened(line)
        self._all.add(line)
        if line.find(_WITHOUT_REASON) < 0:  # `in` would first try to take it for a number, which takes as long
            self._with_reason.add(line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the last lines, in no order."""
        return self._all.lines()

    def lines_with_reason(self) -> Iterator[dict[str, Any]]:
        """Yield the last lines that say why something was denied or failed, in no order."""
        return self._with_reason.lines()


class _Ring:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, KEPT * _SLOT)
        self._count = 0

    def add(self, line: bytes) -> None:
        at = self._count % KEPT
        self._count = at + 1
        _WHOLE.pack_into(self._memory, at * _SLOT, len(line), crc32(line), line)

    def lines(self) -> Iterator[dict[str, Any]]:
        for start in range(0, KEPT * _SLOT, _SLOT):
            length, checksum = _HEAD.unpack_from(self._memory, start)
            data = self._memory[start + _HEAD.size : start + _HEAD.size + length]
            if length and crc32(data) == checksum:
                yield json.loads(data)


def _shortened(line: bytes) -> bytes:
    """Return a line with its long texts cut until there is room for it; without what is no single value."""
    values: dict[str, Any] = {k: v for k, v in json.loads(line).items() if not isinstance(v, list | dict)}
    for length in _CUTS:
        cut = {k: f"{v[:length]}…" for k, v in values.items() if isinstance(v, str) and len(v) > length}
        data = json.dumps(values | cut).encode("ascii") + b"\n"
        if len(data) <= _ROOM:
            break
    return data
