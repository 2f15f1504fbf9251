"""Writes what apps trust into a folder of its own, so that a container can be given that folder and never the CA's key.
`overcoat serve --publish-ca` calls it at the start.

Rules of this module:

- Only public parts are written: `ca.pem` is the local CA's certificate, for programs that add one to the system's
  roots; `ca-bundle.pem` is the system's roots and that certificate, for those that take one file in their place.
- A file is replaced whole, and only where it differs. Everybody may read it.
"""

from __future__ import annotations

import base64
import os
import secrets
import textwrap
from collections.abc import Iterable
from pathlib import Path

from proxy.disk.reading import MAX_ROOTS_BYTES, read_regular

CA_FILE = "ca.pem"
BUNDLE_FILE = "ca-bundle.pem"


class PublishingError(Exception):
    """The files cannot be written. The message is one line."""


def bundle(authority: bytes, roots: Iterable[bytes]) -> bytes:
    """Return a PEM bundle of trusted roots.

    Args:
        authority: the local CA's certificate, in PEM.
        roots: the other certificates, in DER.
    """
    return authority + b"".join(map(_pem, roots))


def publish_ca(folder: Path, authority: bytes, roots: Iterable[bytes]) -> None:
    """Write `ca.pem` and `ca-bundle.pem`; make the folder if there is none.

    Args:
        folder: where to.
        authority: the local CA's certificate, in PEM.
        roots: the system's roots, in DER.

    Raises:
        PublishingError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_public(folder / CA_FILE, authority)
        write_public(folder / BUNDLE_FILE, bundle(authority, roots))
    except OSError as e:
        raise PublishingError(
            f"the local CA's certificate cannot be written to {folder}: {os.strerror(e.errno or 0).lower()}"
        ) from None


def write_public(path: Path, content: bytes) -> None:
    """Write a file that everybody may read, in one step, unless it has that content already.

    Raises:
        OSError: it cannot be written.
    """
    if published(path) == content:
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: another user's app reads it
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def published(path: Path) -> bytes:
    """Return what a published file holds; empty if there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return read_regular(path, MAX_ROOTS_BYTES)[0]
    except FileNotFoundError:
        return b""


def _pem(certificate: bytes) -> bytes:
    body = textwrap.wrap(base64.b64encode(certificate).decode("ascii"), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *body, "-----END CERTIFICATE-----", ""]).encode("ascii")
