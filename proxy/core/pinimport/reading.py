"""Finds out which program's pins a text has, and reads it. `overcoat pins import` calls it.

Rules of this module:

- The kind is told by words that no other of these formats has, or by who imports; nothing is tried one after another.
- The text is read as a whole, up to `MOST_BYTES`: such files are small.
"""

from __future__ import annotations

from enum import StrEnum

from proxy.core.pinimport import android, hpkp, okhttp, trustkit
from proxy.core.pinimport.rules import Imported

MOST_BYTES = 1024 * 1024


class Kind(StrEnum):
    """Whose pins they are."""

    ANDROID = "android"
    OKHTTP = "okhttp"
    HPKP = "hpkp"
    TRUSTKIT = "trustkit"


class NotReadable(ValueError):
    """The text is not what it should be. The message says why."""


def kind_of(data: bytes) -> Kind | None:
    """Return whose pins a text seems to have; None if it seems to have none."""
    if android.ROOT.encode() in data:
        return Kind.ANDROID
    if trustkit.DOMAINS.encode() in data:
        return Kind.TRUSTKIT
    if okhttp.MARK.encode() in data:
        return Kind.OKHTTP
    return Kind.HPKP if hpkp.MARK.encode() in data.lower() else None


def import_pins(data: bytes, kind: Kind, host: str | None = None) -> Imported:
    """Return the rules that a text's pins become.

    Args:
        data: the text, UTF-8.
        kind: whose pins they are.
        host: of a Public-Key-Pins field: the host that sent it.

    Raises:
        NotReadable: the text is not of that kind.
    """
    if len(data) > MOST_BYTES:
        raise NotReadable(f"it has more than {MOST_BYTES} bytes")
    try:
        if kind is Kind.ANDROID:
            return android.read_android(data)
        if kind is Kind.TRUSTKIT and b"<plist" in data:
            return trustkit.read_plist(data)
        text = data.decode("utf-8-sig", "replace")
        if kind is Kind.TRUSTKIT:
            return trustkit.read_dictionary(text)
        if kind is Kind.OKHTTP:
            return okhttp.read_okhttp(text)
        if host is None:
            raise ValueError("a Public-Key-Pins field names no host: say which one sent it (--host)")
        return hpkp.read_hpkp(text, host)
    except ValueError as error:
        raise NotReadable(str(error)) from None
