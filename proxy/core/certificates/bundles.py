"""Reads a PEM file of trusted roots: finds its certificates, and names what else is in it. The policy file's reader
calls it to check the file, and the engine to load it.

Rules of this module:

- A block that is cut off or damaged is an error, and is never skipped: a list of roots is trusted as a whole.
- Text around the blocks means nothing (RFC 7468, section 2).
- The time is linear in the length of the text.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----")
_BLANK = re.compile(rb"[ \t\r\n]+")
_CERTIFICATE = (b"CERTIFICATE", b"X509 CERTIFICATE")


class BadBundle(ValueError):
    """The file is refused. The message names the line and says what is wrong there."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of a file of trusted roots.

    Attributes:
        certificates: the certificates in DER, in the order of the file; they are not parsed.
        lines: the line, from 1, in which each certificate begins.
        others: the label of each other block, and the line in which it begins.
    """

    certificates: tuple[bytes, ...]
    lines: tuple[int, ...]
    others: tuple[tuple[str, int], ...]


def read_bundle(data: bytes) -> Bundle:
    """Read a bundle of certificates in PEM (RFC 7468).

    Args:
        data: the content of a file.

    Raises:
        BadBundle: a block is cut off or damaged, or there is no certificate.
    """
    certificates: list[bytes] = []
    lines: list[int] = []
    others: list[tuple[str, int]] = []
    found = list(_BEGIN.finditer(data))
    line, counted = 1, 0
    for number, begin in enumerate(found):
        line += data.count(b"\n", counted, begin.start())
        counted = begin.start()
        label = begin[1]
        limit = found[number + 1].start() if number + 1 < len(found) else len(data)
        end = data.find(b"-----END " + label + b"-----", begin.end(), limit)
        if end < 0:
            raise BadBundle(f"the {label.decode()} that begins in line {line} is cut off: it has no END line")
        if label not in _CERTIFICATE:
            others.append((label.decode(), line))
            continue
        try:
            certificates.append(base64.b64decode(_BLANK.sub(b"", data[begin.end() : end]), validate=True))
        except binascii.Error:
            raise BadBundle(f"the certificate that begins in line {line} is damaged: it is no base64") from None
        lines.append(line)
    if not certificates:
        is_der = data[:1] == b"\x30"
        raise BadBundle(
            "there is no certificate in PEM in it"
            + (": it may be DER, which `openssl x509 -inform DER` turns into PEM" if is_der else "")
        )
    return Bundle(tuple(certificates), tuple(lines), tuple(others))
