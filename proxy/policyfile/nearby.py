"""Finds the policy file; and finds out what is there instead, if it, or a file that it names, cannot be opened: a file
with a similar name, a folder, or nothing. The commands call the first, the policy file's reader the second.

Rules of this module:

- It makes messages better. A file that it finds is never read instead of the one that was named.
- It reads a limited number of a folder's entries: the folder may be anybody's, and hold anything.
- What stands in the place of a file's name may be the secret itself. It is repeated only if it is there, or looks like
  a name.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.policyfile.refusal import PolicyError, PolicyErrors

DEFAULT_FILE = Path("overcoat.yaml")
_LIKELY = ("policy.yaml", "policy.yml")
_ENDINGS = (".yaml", ".yml")
_ALIKE = 0.82  # likeness of two names that differ in a typing error, an ending, or upper and lower case
_MAX_LOOKED_AT = 2000
_MAX_NAME = 40
_MAX_NAMED = 4096
# A text that looks like a file's name, and like no key and no password: it has an ending, or leads from the root.
_OF_A_FILE = re.compile(
    r"(?=.{1,200}\Z)[^\n:=+]*[^\n:=+/]\.(?:pem|key|crt|cer|der|crl|p12|pfx|jwk|jwks|json|txt|pub|secret|token|hash|env|conf)|"
    r"(?:/[a-z0-9][a-z0-9._-]{0,40}){2,12}"
)
_SHOWN = 5


def find_policy(option: str | None, env: Mapping[str, str]) -> Path | None:
    """Return the policy file to read: the option, else `$OVERCOAT_POLICY`, else `./overcoat.yaml` if it exists.

    Returns:
        The file, which need not exist if it was named; None for the built-in default.

    Raises:
        PolicyErrors: the name that was given is empty; or none was given, and there is a file with nearly the default's
            name. Such a file must not be ignored for a policy that protects less.
    """
    for label, name in (("--policy", option), ("OVERCOAT_POLICY", env.get("OVERCOAT_POLICY"))):
        if name == "":
            raise PolicyErrors([PolicyError("", 0, 0, label, "the name of the policy file is empty")])
        if name is not None:
            return Path(name)
    if is_there(DEFAULT_FILE):
        return DEFAULT_FILE
    if found := nearly_named(Path(), DEFAULT_FILE.name):
        message = (
            f"there is no such file, but {' and '.join(found)}: rename it, or name it with -p or OVERCOAT_POLICY; the "
            "built-in default holds only where nothing of the kind is"
        )
        raise PolicyErrors([PolicyError(str(DEFAULT_FILE), 0, 0, "", message)])
    return None


def is_there(path: Path) -> bool:
    """Tell whether this name exists, even as a dangling link, or where this process may not look."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # reading it will tell what is wrong
    return True


def nearly_named(folder: Path, name: str, likely: Sequence[str] = _LIKELY) -> list[str]:
    """Return the names in a folder that may have been meant instead of another name, the likeliest first.

    Args:
        folder: the folder; if it cannot be read, there are none.
        name: the name that was looked for.
        likely: names in lower case that may be meant even if they are not similar; by default, those of a policy.
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
    """Return what is there instead of a policy file that cannot be opened, as the end of a message; "" if
    nothing is.
    """
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


def may_be_secret(folder: Path, name: str) -> bool:
    """Tell whether a text that should name a file may be a key or a password that was pasted there.

    Args:
        folder: the folder to which it is relative.
        name: the text, as it stands in the policy; "" for the folder itself, which is never meant as a secret.
    """
    path = folder / name
    try:
        os.lstat(path)
    except PermissionError:
        return False
    except (OSError, ValueError):
        is_in_folder = "/" in name and len(name) <= _MAX_NAMED and path.parent.is_dir()
        return name != "" and not is_in_folder and not looks_like_name(name)
    return False


def looks_like_name(text: str) -> bool:
    """Tell whether a text looks like a file's name, and like no key and no password."""
    return _OF_A_FILE.fullmatch(text) is not None


def missing(folder: Path, name: str) -> str:
    """Return the message about a file that a policy names and that is not there; see `may_be_secret`."""
    return "there is no such file" if may_be_secret(folder, name) else f"there is no {folder / name}"


def unreadable(folder: Path, name: str, error: OSError) -> str:
    """Return the message about a file that a policy names and that cannot be read, with what is there instead.

    Args:
        folder: the folder to which the name is relative.
        name: the file, as the policy names it; see `may_be_secret`.
        error: why it cannot be read.
    """
    path = folder / name
    if may_be_secret(folder, name):
        return f"there is no such file: {error.strerror}; this is the name of a file, never a key or a password itself"
    told = f"{path} cannot be read: {error.strerror}{whose(path, error)}"
    if is_there(path):
        return told
    if not path.parent.is_dir():
        return f"{told}; there is no folder {path.parent}"
    private = path.parent / path.name.replace(".pub.", ".", 1)
    if path.stem.endswith(".pub") and is_there(private):  # to name it is no way out
        return f"{told}; its private half is there: overcoat keys public {private} > {path} makes the public one anew"
    found = nearly_named(path.parent, path.name, likely=())
    if found:
        return f"{told}; but there is {' and '.join(found)}"
    return told if path.is_absolute() else f"{told}; it was looked for in {path.parent.resolve()}"


def whose(path: Path, error: OSError) -> str:
    """Return who owns a file that this process may not read, as the end of a message; "" for other errors.

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
