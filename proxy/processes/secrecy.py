"""Keeps other users and programs from reading this process's secrets: its memory, its environment, and core dumps. The
command calls `keep_private` first of all; the policy is read with `SecretVariables`.

Rules of this module:

- There is never a core dump, whatever the system's setting. On Linux the process is not dumpable: only root can read
  its memory and its environment, not other programs of the same user. Forked processes inherit both.
- A secret in an environment variable is removed from the environment when it is read. Its copy where the kernel shows
  the environment that a process was started with is overwritten.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping

_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15


def keep_private(*, is_limited: bool = True) -> None:
    """Prevent core dumps, and keep other programs of this user from looking inside (Linux).

    Args:
        is_limited: whether the limit for core dumps is lowered, which a program that this process runs inherits. Linux
            makes none of an undumpable process in any case.

    Raises:
        OSError: the system refuses it.
    """
    if is_limited:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0))) != 0:
            raise OSError(ctypes.get_errno(), "this process cannot be made undumpable")


def name_process(name: str) -> None:
    """Give this process another name for `ps` and `top` (Linux); its other details are hidden from other users.

    Args:
        name: ASCII; only the first 15 characters count.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode("ascii"), *map(ctypes.c_ulong, (0, 0, 0)))


class SecretVariables(Mapping[str, str]):
    """The environment's variables. One that is read is removed from the environment, and kept here for later reads."""

    def __init__(self, taken: Mapping[str, str] | None = None) -> None:
        """Start.

        Args:
            taken: variables that are in the environment no more, since another process has read them.
        """
        self._taken = dict(taken or {})

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

    @property
    def taken(self) -> list[str]:
        """The names of the variables that were read."""
        return sorted(self._taken)

    @property
    def kept(self) -> Mapping[str, str]:
        """The variables that were read."""
        return dict(self._taken)

    def take(self, names: Iterable[str]) -> None:
        """Read variables, so that they leave the environment."""
        for name in names:
            self.get(name)

    def forget(self) -> None:
        """Forget all kept values: for a process that never reads the policy again."""
        self._taken.clear()


def _overwrite(name: bytes) -> None:
    """Write zeros over the value of a variable, wherever the C library has it."""
    variables = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while (address := variables[index]) is not None:
        found, _, value = ctypes.string_at(address).partition(b"=")
        if found == name:
            ctypes.memset(address + len(name) + 1, 0, len(value))
        index += 1
