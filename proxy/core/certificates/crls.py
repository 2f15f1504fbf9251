"""Until when the certificate revocation lists of a policy are good (RFC 5280, section 5.1.2.5). `overcoat check`, the
log, the status page and the metrics say it; OpenSSL alone judges a certificate by them.

Rules of this module:

- Of several lists of one issuer and one scope the newest counts, as for OpenSSL: an older file beside it harms nothing.
- A list without a nextUpdate has no end.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509


def ends_of(lists: Iterable[bytes]) -> list[tuple[str, datetime]]:
    """Return the issuers (RFC 4514) of lists that end, and when the newest list of each ends; one entry for each scope.

    Args:
        lists: lists in DER, as they are in a policy that was read.
    """
    found: dict[tuple[str, bytes], datetime] = {}
    for der in lists:
        crl = x509.load_der_x509_crl(der)
        if (end := crl.next_update_utc) is None:
            continue
        whose = crl.issuer.rfc4514_string(), _scope(crl)
        found[whose] = max(end, found.get(whose, end))
    return [(issuer, end) for (issuer, _), end in found.items()]


def _scope(crl: x509.CertificateRevocationList) -> bytes:
    """Return which of its issuer's certificates a list is about (section 5.2.5); b"" for all."""
    try:
        return crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value.public_bytes()
    except x509.ExtensionNotFound:
        return b""
