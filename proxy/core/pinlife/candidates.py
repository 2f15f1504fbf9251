"""Reads what a server is to show one day: a new chain, or the request for a certificate (CSR). `overcoat pins check
--candidate` tests it against the pins before it is put in place.

Rules of this module:

- Of a request only the key is known, octet for octet as it stands in it (RFC 2986): no CA has vouched for it yet.
- Names are compared as in a handshake: only subjectAltName counts, and a star stands for the whole first label (RFC
  9525, section 6.3).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from proxy.core.certificates.bundles import BadBundle, read_bundle
from proxy.core.certificates.der import element, elements
from proxy.core.certificates.words import host_names
from proxy.core.pins import Pin, pin_of_public_key_info

_REQUEST = re.compile(rb"-----BEGIN (NEW )?CERTIFICATE REQUEST-----([^-]*+)-----END \1?CERTIFICATE REQUEST-----")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to come.

    Attributes:
        chain: the certificates in DER, the server's own first; empty for a request.
        key: the pin of the key of a request; None for a chain.
        names: the DNS names and addresses that it is for.
    """

    chain: tuple[bytes, ...]
    key: Pin | None
    names: tuple[str, ...]

    def is_for(self, host: str) -> bool:
        """Tell whether it is for a canonical host."""
        return any(_matches(name.lower(), host) for name in self.names)


def _matches(name: str, host: str) -> bool:
    if name.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == name[2:]
    return name == host


def read_candidate(data: bytes) -> Candidate:
    """Read a PEM file with a chain, leaf first, or with one request for a certificate (RFC 7468).

    Raises:
        ValueError: it holds neither.
    """
    requests = _REQUEST.findall(data)
    if requests:
        if len(requests) > 1:
            raise ValueError(f"the file holds {len(requests)} requests: one is tested at a time")
        return _request(requests[0][1])
    try:
        chain = read_bundle(data).certificates
    except BadBundle as error:
        raise ValueError(str(error)) from None
    for number, der in enumerate(chain, 1):
        try:
            x509.load_der_x509_certificate(der)
        except (ValueError, x509.InvalidVersion):
            raise ValueError(f"certificate {number} of the file is damaged, or none") from None
    return Candidate(chain, None, tuple(host_names(chain[0])))


def _request(text: bytes) -> Candidate:
    try:
        der = base64.b64decode(b"".join(text.split()), validate=True)
        request = x509.load_der_x509_csr(der)
        whole = element(der, 0, len(der))
        fields = list(elements(der, element(der, whole.start, whole.end)))
        info = fields[2]  # version, subject, subjectPKInfo (RFC 2986, section 4.1)
        is_signed = request.is_signature_valid
    except (ValueError, binascii.Error, x509.InvalidVersion, IndexError, UnsupportedAlgorithm):
        raise ValueError("the request for a certificate is damaged, or of an unknown kind") from None
    if not is_signed:
        raise ValueError("the request for a certificate is not signed with its own key")
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return Candidate((), pin_of_public_key_info(der[info.at : info.end]), ())
    texts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return Candidate((), pin_of_public_key_info(der[info.at : info.end]), tuple(texts))
