"""Finds files that are mount points themselves, as when a container is given a single file (Linux).
`proxy.policyfile.findings` calls it to warn that a reload will not see a new version of such a file.

Rules of this module:

- Such a mount shows the same file for ever, even if another file takes its name outside the container.
- If nothing can be found out, there is no warning.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def is_mounted_by_itself(path: Path) -> bool:
    """Tell whether the file itself was mounted, not the folder that it is in; a symbolic link is followed."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    # The fifth field; blanks and backslashes are octal escapes (proc_pid_mountinfo(5)).
    points = (line.split(b" ", 5)[4] for line in lines if line.count(b" ") >= 5)
    wanted = os.fsencode(os.path.realpath(path))
    return any(_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), point) == wanted for point in points)


def is_replaced(path: Path) -> bool:
    """Tell whether a mounted file has lost its name outside: it was removed, or another file took its name."""
    try:
        return path.stat().st_nlink == 0
    except OSError:
        return False
