"""What lies where a policy file was looked for, if not the file: a name of nearly the same, a folder, or nothing.

Rules of this module:

- It looks for words to say only. Nothing that is found here is ever read in place of the file that was named.
- A folder is looked through so far and no further: it may be anybody's, and hold anything.
"""

from __future__ import annotations

import difflib
import itertools
import os
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


def nearly_named(folder: Path, name: str) -> list[str]:
    """Return the names in a folder that may be meant for a policy's name, the likeliest first.

    Args:
        folder: the folder; one that cannot be read has none.
        name: the name that was looked for.
    """
    likely = {}
    for each in _names(folder):
        plain = each.lower()
        alike = 1.0 if plain in _LIKELY else 0.0
        if len(each) <= _MAX_NAME:
            alike = max(alike, difflib.SequenceMatcher(None, plain, name.lower(), autojunk=False).ratio())
        if alike >= _ALIKE and each != name:
            likely[each] = alike
    return sorted(likely, key=lambda each: (-likely[each], each))[:_SHOWN]


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


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, _MAX_LOOKED_AT)]
    except OSError:
        return []
