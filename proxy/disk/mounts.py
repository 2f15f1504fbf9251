"""Files that are mount points themselves, as where a container is given a single file (Linux).

Rules of this module:

- Such a mount shows one file for ever, also after another one took its name outside: what is read is the old one.
- Where nothing can be known, nothing is said.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def is_mounted_by_itself(path: Path) -> bool:
    """Tell whether a file, and not the folder that it lies in, was mounted; a symbolic link is followed."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    # The fifth field, with blanks and backslashes as octal escapes (proc_pid_mountinfo(5)).
    points = (line.split(b" ", 5)[4] for line in lines if line.count(b" ") >= 5)
    wanted = os.fsencode(os.path.realpath(path))
    return any(_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), point) == wanted for point in points)


def is_replaced(path: Path) -> bool:
    """Tell whether a file has no name outside any more, since it was removed, or another one took its place."""
    try:
        return path.stat().st_nlink == 0
    except OSError:
        return False
