"""What of this process others may not read: secrets in its environment, its memory, and what a crash would leave.

Rules of this module:

- No core dump, whatever the system's pattern says; and on Linux a process that is not dumpable: its memory and its
  environment are open to root alone, not to other programs of the same user. Both pass on to processes that are forked.
- A secret that comes from an environment variable is taken out of the environment when it is read, and written over
  where the kernel shows the environment that a process was started with.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator, Mapping

_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15


def keep_private() -> None:
    """Leave no core dump, and let no other program of this user look inside (Linux).

    Raises:
        OSError: the system refuses it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0))) != 0:
            raise OSError(ctypes.get_errno(), "this process cannot be made undumpable")


def name_process(name: str) -> None:
    """Give this process another name, for `ps` and `top` (Linux): what else tells processes apart is closed to others.

    Args:
        name: ASCII, of which 15 characters count.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode("ascii"), *map(ctypes.c_ulong, (0, 0, 0)))


class SecretVariables(Mapping[str, str]):
    """The environment's variables; one that is read is taken out of it, and kept here for the next time."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name in os.environ:
            self._taken[name] = os.environ[name]
            _overwrite(os.fsencode(name))
            del os.environ[name]
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in self._taken or name in os.environ

    def __iter__(self) -> Iterator[str]:
        return iter({**self._taken, **os.environ})

    def __len__(self) -> int:
        return len({**self._taken, **os.environ})

    def forget(self) -> None:
        """Keep none any longer: for a process that reads no policy again."""
        self._taken.clear()


def _overwrite(name: bytes) -> None:
    """Write zeros over the value of a variable, at every place where the C library has it."""
    variables = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while (address := variables[index]) is not None:
        found, _, value = ctypes.string_at(address).partition(b"=")
        if found == name:
            ctypes.memset(address + len(name) + 1, 0, len(value))
        index += 1
