"""Reads and creates key files, and checks who may read them. The policy file's reader and the command `overcoat keys`
call it.

Rules of this module:

- Type, mode and content come from one open file descriptor, so nothing can be swapped between check and use.
- A file with secret material that group or others may read or write is refused, unless the policy says that this is
  meant.
- A new file is created exclusively: an existing file is never overwritten, but for one that `replace_file` is asked to
  write anew, which keeps its mode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from proxy.core.jose.keyformats import looks_like_key
from proxy.core.jose.keys import is_public
from proxy.disk.reading import NotRegularError, read_regular

MAX_KEY_FILE_BYTES = 64 * 1024

_FOR_OTHERS = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


class KeyFileError(Exception):
    """The key file is refused. The message is one line: the path, what is wrong, and how to correct it."""


def check_permissions(path: Path, mode: int) -> None:
    """Refuse a secret file that users other than its owner may read or write.

    Args:
        path: its name, for the message.
        mode: its mode, from `os.fstat` of the open file.

    Raises:
        KeyFileError: the mode has a read or write bit for group or others.
    """
    if mode & _FOR_OTHERS:
        raise KeyFileError(
            f"{path}: mode {stat.S_IMODE(mode):04o} lets others at a secret key: chmod 600 {shlex.quote(str(path))}"
            " (where that cannot be changed, as with mounted Docker or Kubernetes secrets: --unsafe-key-permissions,"
            " in a policy unsafe_key_permissions: true)"
        )


def read_key_file(path: Path, *, unsafe_permissions: bool) -> bytes:
    """Read a key file.

    Args:
        path: the file; a symbolic link is followed.
        unsafe_permissions: whether others may read or write a file with secret material.

    Returns:
        Its content, at most 64 KiB.

    Raises:
        OSError: it cannot be opened or read.
        KeyFileError: it is no regular file, too large, or a secret that others may read or write.
    """
    try:
        data, status = read_regular(path, MAX_KEY_FILE_BYTES)
    except NotRegularError:
        raise KeyFileError(f"{path}: not a regular file; pipes, devices and directories are not read as keys") from None
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{path}: larger than {MAX_KEY_FILE_BYTES // 1024} KiB, which no key is")
    # A file that is no key gets that error, whatever its permissions.
    if not unsafe_permissions and looks_like_key(data) and not is_public(data):
        check_permissions(path, status.st_mode)
    return data


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[Path]:
    """Keep other calls of this function from the folder of a file meanwhile.

    Args:
        path: a file that exists.

    Yields:
        What the name leads to: a symbolic link stays one.

    Raises:
        OSError: there is no such file, or its folder cannot be opened.
    """
    real = path.resolve(strict=True)
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield real
    finally:
        os.close(folder)


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file anew in one step: whoever reads it gets the old content or the new one, after a crash, too.

    Args:
        path: the file; a symbolic link is followed, and stays one.
        data: the whole content.
        mode: the permission bits of a file that does not exist yet; another one keeps its mode and its owner.

    Raises:
        OSError: it cannot be written.
    """
    real = path.resolve()
    temporary = real.with_name(f".{real.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            try:
                before = os.stat(real)
            except FileNotFoundError:
                os.fchmod(file.fileno(), mode)
            else:
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            os.fsync(file.fileno())
        temporary.replace(real)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create_file(path: Path, data: bytes, *, mode: int) -> None:
    """Create a file with this content; if that fails, nothing of it remains.

    Args:
        path: a name that must not exist, not even as a dangling symbolic link.
        data: the whole content.
        mode: the permission bits, which the umask may narrow.

    Raises:
        OSError: it exists already (`FileExistsError`), or cannot be created or written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except OSError:
        path.unlink()
        raise
