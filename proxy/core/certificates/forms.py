"""Checks the form of a server's certificate more strictly than OpenSSL 4.0 does. `addons.verification` calls it in
the handshake if the policy says `trust.strict`.

RFC 5280 wants two extensions marked critical. OpenSSL up to version 3 checks that under X509_STRICT; version 4.0
accepts certificates without the mark, since it understands these extensions anyway. With this module, Overcoat refuses
what `ssl.create_default_context()` of Python 3.13 refuses, with any version of OpenSSL.
"""

from __future__ import annotations

from proxy.core.certificates.der import BOOLEAN, SEQUENCE, element, elements, to_be_signed

_EXTENSIONS = 0xA3  # [3]
_BASIC_CONSTRAINTS = bytes.fromhex("551d13")
_SUBJECT_ALT_NAME = bytes.fromhex("551d11")


def form_defect(certificate_der: bytes) -> str | None:
    """Return what is wrong with the form of a certificate in a chain of two or more; None if nothing is.

    Args:
        certificate_der: a certificate that OpenSSL has accepted.
    """
    try:
        return _defect(certificate_der)
    except ValueError:
        return "not in DER"


def _defect(der: bytes) -> str | None:
    _, _, _, _, subject, _, *optional = to_be_signed(der)
    uncritical: dict[bytes, tuple[int, int]] = {}
    for field in optional:
        if field.tag != _EXTENSIONS:
            continue
        for extension in elements(der, element(der, field.start, field.end)):
            name, *rest = elements(der, extension)
            if len(rest) == 1:  # `critical` is left out if it is false
                uncritical[der[name.start : name.end]] = rest[0].start, rest[0].end
    if _BASIC_CONSTRAINTS in uncritical and _is_ca(der, *uncritical[_BASIC_CONSTRAINTS]):
        return "Basic Constraints of CA cert not marked critical"  # RFC 5280, section 4.2.1.9
    if _SUBJECT_ALT_NAME in uncritical and subject.start == subject.end:
        return "Subject empty and Subject Alt Name extension not critical"  # RFC 5280, section 4.2.1.6
    return None


def _is_ca(der: bytes, start: int, end: int) -> bool:
    constraints = element(der, start, end)
    first = next(elements(der, constraints), None)
    return constraints.tag == SEQUENCE and first is not None and first.tag == BOOLEAN and der[first.start] != 0
