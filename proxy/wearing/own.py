"""Writes what one user needs beside the files that are the same for all: what the user's variables name already is
read, and ours added to a copy of it. `overcoat run` and `overcoat env` call it.

Rules of this module:

- Of a bundle of certificates only the certificates are copied. A copy of settings, which may hold a password, is the
  user's alone.
- A file that is named and cannot be read is an error: nothing else is taken in its place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from proxy.core.certificates.bundles import BadBundle, read_bundle
from proxy.disk.publishing import bundle, write_public
from proxy.disk.reading import MAX_ROOTS_BYTES, read_regular
from proxy.wearing.variables import ADDING, APT, BUNDLE, CA, REPLACING, wgetrc

_MAX_SETTINGS = 1024 * 1024  # bytes of a .wgetrc or apt.conf


class NotReadable(Exception):
    """A file that one of the user's variables names cannot be read. The message names both."""


def write_own(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Write what is this user's alone, beside the files of `write_files`.

    Args:
        folder: where those are.
        env: the user's variables.

    Returns:
        for each variable that is to name another file than the usual one, that file.

    Raises:
        NotReadable: a variable names a file that cannot be read.
        OSError: the folder cannot be written.
    """
    authority = (folder / CA).read_bytes()
    own: dict[str, str] = {}
    for name in (*ADDING, *REPLACING):
        source = env.get(name, "")
        if not source:
            continue
        if Path(source).parent == folder:  # ours, from before
            own[name] = source
            continue
        path = folder / f"ca-own-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}.pem"
        if str(path) not in own.values():
            write_public(path, bundle(authority, _certificates(name, source)))
        own[name] = str(path)
    if "SSL_CERT_FILE" in own:
        own["SSL_CERT_FILE"] = str(folder / BUNDLE)  # the sidecar has read it, and put it into the bundle
    own |= _own_settings(folder, env)
    return own


def _certificates(variable: str, source: str) -> list[bytes]:
    """Return the certificates in a file, in DER; or in the files of a folder, which some programs take as well. What
    else is in there, as a key may be, is left out.
    """
    path = Path(source)
    try:
        files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        contents = [read_regular(each, MAX_ROOTS_BYTES)[0] for each in files]
        with_some = contents if len(files) == 1 else [each for each in contents if b"-----BEGIN CERT" in each]
        found = [certificate for each in with_some for certificate in read_bundle(each).certificates]
    except OSError as e:
        raise NotReadable(f"{variable} names {source}, which cannot be read: {e.strerror}") from None
    except BadBundle as e:
        raise NotReadable(f"{variable} names {source}, which cannot be read: {e}") from None
    return list(dict.fromkeys(found))


def _own_settings(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Write copies of the user's settings of wget and apt, with ours behind them."""
    own: dict[str, str] = {}
    named = env.get("WGETRC", "")
    rc = Path(named) if named else Path(env.get("HOME", "")) / ".wgetrc"
    if rc.parent == folder:  # ours, from before
        own["WGETRC"] = str(rc)
    elif rc.is_absolute() and rc.is_file():
        before = _settings("WGETRC", rc)
        own["WGETRC"] = str(folder / "wgetrc-own")
        _write_private(folder / "wgetrc-own", before.rstrip(b"\n") + b"\n" + wgetrc(str(folder)))
    conf = env.get("APT_CONFIG", "")
    if Path(conf).parent == folder:
        own["APT_CONFIG"] = conf
    elif conf:
        own["APT_CONFIG"] = str(folder / "apt-own.conf")
        _write_private(folder / "apt-own.conf", _settings("APT_CONFIG", Path(conf)) + (folder / APT).read_bytes())
    return own


def _settings(variable: str, path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_SETTINGS)[0]
    except OSError as e:
        raise NotReadable(f"{path}, which {variable} stands for, cannot be read: {e.strerror}") from None


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
