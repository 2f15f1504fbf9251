"""Computes the pin of a PEM file that holds a certificate, a public key or a private key. The policy file's reader
calls it for a pin that is given as `{file: …}`.

Rules of this module:

- The hash is over the SubjectPublicKeyInfo as the server's certificate has it, octet for octet. A library that reads a
  key and writes it again may change these octets: it drops the parameters of an RSA-PSS key, and knows only one form of
  an elliptic curve and its points.
- So a public key is hashed as it stands in its file. From a private key file, the algorithm with its parameters and an
  elliptic key's curve and point are taken as they stand, because the certificate is made from them.
- No message quotes key material.
"""

from __future__ import annotations

import base64
import re

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from proxy.core.certificates.der import BIT_STRING, SEQUENCE, Element, element, elements, encoded
from proxy.core.pins import Pin, pin_of_public_key_info, spki_pin

_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_RSASSA_PSS = bytes.fromhex("06092a864886f70d01010a")  # 1.2.840.113549.1.1.10 (RFC 4055, section 3.1)
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")  # 1.2.840.10045.2.1 (RFC 5480, section 2.1.1)
_CURVE, _POINT = 0xA0, 0xA1  # [0] and [1] of an ECPrivateKey (RFC 5915, section 3)


def pin_of_pem(data: bytes) -> Pin:
    """Return the public-key pin of the one certificate, public key or private key in a PEM file (RFC 7468).

    Raises:
        ValueError: there is no such PEM block, there are several, or it cannot be read. No key material is quoted.
    """
    labels = [label.decode("ascii") for label in _LABEL.findall(data) if label != b"EC PARAMETERS"]
    if not labels:
        raise ValueError("no PEM block found: -----BEGIN CERTIFICATE----- or -----BEGIN PUBLIC KEY----- is expected")
    if len(labels) > 1:
        raise ValueError(f"the file holds {len(labels)} PEM blocks; keep the one certificate or key to pin")
    label = labels[0]
    if label != "CERTIFICATE" and not label.endswith(("PUBLIC KEY", "PRIVATE KEY")):
        raise ValueError(f"a PEM block {label} cannot be pinned; a certificate or a public key can")
    try:
        if label == "CERTIFICATE":
            return spki_pin(x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER))
        if label.endswith("PUBLIC KEY"):
            return pin_of_public_key_info(_of_public_key(data, label))
        return pin_of_public_key_info(_of_private_key(load_pem_private_key(data, password=None), data, label))
    except TypeError:  # cryptography raises this if a password is needed
        raise ValueError("the private key is encrypted; put its public half into a file and name that") from None
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
    ):  # its message is not passed on: it may describe the key
        raise ValueError(f"the PEM block {label} cannot be read: it is damaged or of an unknown kind") from None


def _contents(data: bytes, label: str) -> bytes:
    """Return the DER in the PEM block with this label. A library has already read the block, so it is well-formed."""
    _, _, rest = data.partition(f"-----BEGIN {label}-----".encode("ascii"))
    text, _, _ = rest.partition(f"-----END {label}-----".encode("ascii"))
    return base64.b64decode(b"".join(text.split()))


def _of_public_key(data: bytes, label: str) -> bytes:
    key = load_pem_public_key(data)
    if label == "PUBLIC KEY":
        return _contents(data, label)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # PKCS #1 has only one encoding


def _of_private_key(key: PrivateKeyTypes, data: bytes, label: str) -> bytes:
    public = key.public_key()
    if label == "PRIVATE KEY":
        der = _contents(data, label)
        _, algorithm, inner, *_ = elements(der, element(der, 0, len(der)))  # RFC 5958, section 2
        name = _cut(der, next(elements(der, algorithm)))
        if isinstance(public, rsa.RSAPublicKey) and name == _RSASSA_PSS:
            return _info(_cut(der, algorithm), public.public_bytes(Encoding.DER, PublicFormat.PKCS1))
        if isinstance(public, ec.EllipticCurvePublicKey):
            _, point = _of_elliptic_key(der, element(der, inner.start, inner.end))
            return _info(_cut(der, algorithm), point or _uncompressed(public))
    elif isinstance(public, ec.EllipticCurvePublicKey):
        der = _contents(data, label)
        curve, point = _of_elliptic_key(der, element(der, 0, len(der)))
        return _info(encoded(SEQUENCE, _EC_PUBLIC_KEY + curve), point or _uncompressed(public))
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _of_elliptic_key(der: bytes, key: Element) -> tuple[bytes, bytes]:
    """Return an ECPrivateKey's curve and its point; b"" for one that is missing."""
    curve = point = b""
    for field in elements(der, key):
        if field.tag == _CURVE:
            curve = der[field.start : field.end]
        elif field.tag == _POINT:
            bits = element(der, field.start, field.end)
            point = der[bits.start + 1 : bits.end]  # after the octet that counts unused bits
    return curve, point


def _uncompressed(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _cut(der: bytes, found: Element) -> bytes:
    return der[found.at : found.end]


def _info(algorithm: bytes, key: bytes) -> bytes:
    return encoded(SEQUENCE, algorithm + encoded(BIT_STRING, b"\0" + key))
