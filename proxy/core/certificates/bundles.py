"""What a file of trusted roots holds: its certificates, and what else lies in it.

Rules of this module:

- A block that is cut off or damaged is an error, never left out: who trusts a list trusts the whole of it.
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
    """A bundle that is refused. The message says in which line, and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was found.

    Attributes:
        certificates: in DER, in the order of the file; none of them was looked into.
        lines: where each begins, from 1.
        others: the labels of all other blocks, and the lines where they begin.
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
