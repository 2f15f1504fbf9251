"""Says what a refused certificate itself has to do with it: its dates and the present time, the names that it has, who
issued it. `addons.verification` puts that behind OpenSSL's own words; `overcoat pins` shows names with it.

Rules of this module:

- All names in a certificate are somebody else's text, in a denial mostly an attacker's. They are shown with printable
  ASCII characters only, in quotes unless they look like a host, cut at `MOST_CHARACTERS`, and few of them.
- No more of a certificate is read than is shown, so a very long one takes no longer.
- Nothing is judged here. What cannot be read is left out: OpenSSL's words stand without it.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from collections.abc import Iterator
from datetime import datetime

from cryptography import x509

from proxy.core.certificates.der import SEQUENCE, element, elements, to_be_signed

MOST_CHARACTERS = 120  # of one name that are shown
MOST_NAMES = 5  # of a certificate that are shown
_MOST_OCTETS = 4096  # of a subject or an issuer that is read
_HOST = re.compile(r"[A-Za-z0-9*._:-]+")
_EXTENSIONS, _DNS_NAME, _IP_ADDRESS = 0xA3, 0x82, 0x87  # [3] of a TBSCertificate; [2] and [7] of a GeneralName
_SUBJECT_ALT_NAME = bytes.fromhex("551d11")

# <openssl/x509_vfy.h>
_NO_ISSUER = frozenset((2, 20, 21))
_DATES = frozenset((9, 10))
# There is no list; or it is not verifiable, not yet valid, past its next update, or without an issuer; its issuer signs
# no lists or has no valid path; it has an unknown critical extension or another scope. That a certificate is revoked is
# none of these.
OF_CRLS = frozenset((3, 5, 8, 11, 12, 15, 16, 33, 35, 36, 44, 54))
_REVOKED = 23
_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN = 18, 19
_NAMES = frozenset((62, 64))


def circumstances(error: int, certificate_der: bytes, now: datetime) -> str:
    """Return what a certificate says about why it is refused; "" if nothing does, or it cannot be read.

    Args:
        error: OpenSSL's X.509 verification error code.
        certificate_der: the certificate that the error is about.
        now: the present time in UTC.
    """
    try:
        if error in _DATES:
            return _dates(certificate_der, now)
        if error in _NAMES:
            return _said_of_names(certificate_der)
        if error in _NO_ISSUER:
            return f"its issuer is {issuer_of(certificate_der)}, which is not trusted, and nothing sent leads to a root"
        if error in OF_CRLS:
            return f"what counts is the revocation list of {issuer_of(certificate_der)} (trust.crls)"
        if error == _SELF_SIGNED:
            return f"nobody but {subject_of(certificate_der)} itself vouches for it"
        if error == _SELF_SIGNED_IN_CHAIN:
            return f"the chain ends at {subject_of(certificate_der)}, which is no trusted root"
    except ValueError:
        pass
    return ""


def whose(certificate_der: bytes) -> str:
    """Return whose certificate one is, for who sees only the server's name; "" if it cannot be read."""
    try:
        return f"that is the certificate of {subject_of(certificate_der)}"
    except ValueError:
        return ""


def remedy(error: int) -> str:
    """Return what to do about a certificate that is refused; "" where no more can be said than the reason does.

    Args:
        error: OpenSSL's X.509 verification error code.
    """
    if error in _DATES:
        return "the server's operator must renew it; or set this machine's clock, if it is wrong"
    if error in _NAMES:
        return "call the server by a name that its certificate has, or have its operator get one with this name"
    if error in OF_CRLS:
        return "put a list of that issuer that is valid now into the files of trust.crls: they are read by themselves"
    if error == _REVOKED:
        return "the server's operator must get another certificate: its issuer has withdrawn this one"
    if error in _NO_ISSUER or error in (_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN):
        return (
            "if that is the server's own certificate, name its CA in trust.roots (which then counts alone), or have "
            "its operator send the intermediate certificates; if not, somebody on the way answers in its name"
        )
    return ""


def shown_name(text: str) -> str:
    """Return somebody else's text for a sentence: printable ASCII, cut, and in quotes unless it may be a host."""
    cut = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
    return cut if _HOST.fullmatch(cut) else json.dumps(cut).replace("\x7f", "\\u007f")


def subject_of(certificate_der: bytes) -> str:
    """Return a certificate's subject (RFC 4514), as `shown_name` does.

    Raises:
        ValueError: it is no certificate.
    """
    return _distinguished(certificate_der, 4)


def issuer_of(certificate_der: bytes) -> str:
    """Return a certificate's issuer (RFC 4514), as `shown_name` does.

    Raises:
        ValueError: it is no certificate.
    """
    return _distinguished(certificate_der, 2)


def _distinguished(der: bytes, number: int) -> str:
    field = to_be_signed(der)[number]
    if field.start == field.end:
        return "a name that is empty"
    if field.end - field.at > _MOST_OCTETS:
        return "a name that is too long to show"
    certificate = _loaded(der)
    name = certificate.issuer if number == 2 else certificate.subject
    return shown_name(name.rfc4514_string())


def _loaded(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except x509.InvalidVersion:
        raise ValueError("its version is none") from None


def _dates(der: bytes, now: datetime) -> str:
    certificate = _loaded(der)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    moment = "%Y-%m-%d %H:%M:%S"
    return f"it is valid from {begins:{moment}} to {ends:{moment}}, and now it is {now:{moment}} UTC"


def host_names(certificate_der: bytes) -> Iterator[str]:
    """Yield the DNS names and IP addresses of a certificate's subjectAltName (RFC 5280, section 4.2.1.6), as they are.

    Raises:
        ValueError: it is no certificate.
    """
    der = certificate_der
    for field in to_be_signed(der)[6:]:
        if field.tag != _EXTENSIONS:
            continue
        for extension in elements(der, element(der, field.start, field.end)):
            name, *rest = elements(der, extension)
            if der[name.start : name.end] != _SUBJECT_ALT_NAME or not rest:
                continue
            names = element(der, rest[-1].start, rest[-1].end)
            if names.tag == SEQUENCE:
                for each in elements(der, names):
                    if each.tag == _DNS_NAME:
                        yield der[each.start : each.end].decode("latin-1")
                    elif each.tag == _IP_ADDRESS and each.end - each.start in (4, 16):
                        yield str(ipaddress.ip_address(der[each.start : each.end]))


def _said_of_names(der: bytes) -> str:
    names = list(itertools.islice(host_names(der), MOST_NAMES + 1))
    if not names:
        return "it names no host"
    listed = ", ".join(shown_name(name) for name in names[:MOST_NAMES])
    return f"it names {listed}{', and more' if len(names) > MOST_NAMES else ''}"
