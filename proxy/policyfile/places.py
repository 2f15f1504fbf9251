"""What lies where a policy file, or one that it names, was looked for: a name of nearly the same, a folder, or nothing.

Rules of this module:

- It looks for words to say only. Nothing that is found here is ever read in place of the file that was named.
- A folder is looked through so far and no further: it may be anybody's, and hold anything.
"""

from __future__ import annotations

import difflib
import itertools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

DEFAULT_FILE = Path("overcoat.yaml")
_LIKELY = ("policy.yaml", "policy.yml")
_ENDINGS = (".yaml", ".yml")
_ALIKE = 0.82  # of two names that only a typing error, an ending or a case tells apart
_MAX_LOOKED_AT = 2000
_MAX_NAME = 40
_SHOWN = 5


def is_there(path: Path) -> bool:
    """Tell whether there is something of this name, be it a link that leads nowhere, or out of sight."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # whoever reads it is told what is wrong
    return True


def nearly_named(folder: Path, name: str, likely: Sequence[str] = _LIKELY) -> list[str]:
    """Return the names in a folder that may be meant by another, the likeliest first.

    Args:
        folder: the folder; one that cannot be read has none.
        name: the name that was looked for.
        likely: names in lower case that may be meant however unlike they are; without more, those of a policy.
    """
    found = {}
    for each in _names(folder):
        plain = each.lower()
        alike = 1.0 if plain in likely else 0.0
        if len(each) <= _MAX_NAME:
            alike = max(alike, difflib.SequenceMatcher(None, plain, name.lower(), autojunk=False).ratio())
        if alike >= _ALIKE and each != name:
            found[each] = alike
    return sorted(found, key=lambda each: (-found[each], each))[:_SHOWN]


def what_lies_there(path: Path) -> str:
    """Return, as the end of a message, what there is in place of a policy file that cannot be opened; else nothing."""
    inside = path / DEFAULT_FILE
    if path.is_dir():
        if is_there(inside):
            return f"; it is a folder, and the policy in it is {inside}"
        return (
            "; it is a folder: Docker makes one where the file that is to be mounted is missing, so see that it is "
            "there, and mount the folder that it is in"
        )
    if path.is_symlink():
        return f"; it is a link to {os.readlink(path)}"
    if is_there(path):
        return ""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    found = nearly_named(path.parent, path.name)
    if found:
        return f"; but there is {' and '.join(found)}: rename it, or name it with -p or OVERCOAT_POLICY"
    others = sorted(each for each in _names(path.parent) if each.endswith(_ENDINGS))[:_SHOWN]
    if others:
        return f"; of YAML, there is {', '.join(others)}"
    return f"; in {path.parent.resolve()} there is {'no YAML file' if _names(path.parent) else 'nothing at all'}"


def unreadable(path: Path, error: OSError) -> str:
    """Return the message on a file that a policy names and that cannot be read, with what there is instead.

    Args:
        path: the file, as the policy and its folder give it.
        error: why it cannot be read.
    """
    told = f"{path} cannot be read: {error.strerror}{whose(path, error)}"
    if is_there(path):
        return told
    if not path.parent.is_dir():
        return f"{told}; there is no folder {path.parent}"
    found = nearly_named(path.parent, path.name, likely=())
    if found:
        return f"{told}; but there is {' and '.join(found)}"
    return told if path.is_absolute() else f"{told}; it was looked for in {path.parent.resolve()}"


def whose(path: Path, error: OSError) -> str:
    """Return, as the end of a message, whose a file is that this process may not read; else nothing.

    Args:
        path: the file.
        error: why it cannot be read.
    """
    if not isinstance(error, PermissionError):
        return ""
    try:
        status = path.stat()
    except OSError:
        return f"; Overcoat runs as user {os.geteuid()}, and may not look into one of the folders above it"
    mode = stat.S_IMODE(status.st_mode)
    return f"; it belongs to user {status.st_uid} with mode {mode:04o}, and Overcoat runs as user {os.geteuid()}"


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, _MAX_LOOKED_AT)]
    except OSError:
        return []
