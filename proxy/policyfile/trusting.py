"""Builds what a policy says about upstreams' certificates and its own: trusted roots, revocation lists and client
certificates, with the files that hold them. `proxy.policyfile.build` makes one reader for each policy.

Rules of this module:

- A file that is named is read, or the policy is refused: nothing is skipped in silence.
- A rule's `trust` replaces key by key what the policy's says, and is complete when it has been read.
- A client certificate and its key belong together, or the policy is refused.
- Nothing here depends on the present time: what has ended is told by `proxy.policyfile.findings`.
"""

from __future__ import annotations

import fnmatch
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from proxy.core.certificates.bundles import BadBundle, Bundle, read_bundle
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.rules.trust import ClientCertificate, Crls, Trust
from proxy.disk.keyfiles import KeyFileError, read_key_file
from proxy.disk.reading import MAX_ROOTS_BYTES, list_folder
from proxy.policyfile.keysets import variable_name
from proxy.policyfile.model.trust import (
    SYSTEM_ROOTS,
    ClientCertificateSection,
    CrlsSection,
    RuleTrustSection,
    TrustSection,
)
from proxy.policyfile.nearby import missing, unreadable
from proxy.policyfile.yamltext import Steps, path_text

_MAX_CHAIN_BYTES = 256 * 1024
_MIN_RSA_BITS = 2048


class ReadFile(Protocol):
    """Reads a file that the policy names; reports an error and returns None if that fails."""

    def __call__(self, steps: Steps, name: str, limit: int, /) -> bytes | None:
        """Read it.

        Args:
            steps: where the policy names it.
            name: the name, relative to the policy file.
            limit: the greatest length in bytes.
        """


@dataclass(slots=True)
class TrustReader:
    """Reads roots, revocation lists and client certificates of one policy.

    Attributes:
        folder: what relative names are relative to.
        env: the variables that `{env: NAME}` means.
        is_without_secrets: whether secrets that are not there are no error.
        read: reads a file.
        report: takes errors.
        note: takes the content of what was read otherwise, for the policy's hash.
        files: the files that were looked for are appended here.
        remarks: what is no error but needs attention is appended here.
        unchecked: what was not there is appended here.
    """

    folder: Path
    env: Mapping[str, str]
    is_without_secrets: bool
    read: ReadFile
    report: Callable[[Steps, str], None]
    note: Callable[[bytes], None]
    files: list[Path]
    remarks: list[str]
    unchecked: list[str]

    def trust(self, section: TrustSection) -> Trust:
        """Return the policy's own `Trust`."""
        steps: Steps = ("trust",)
        roots, anchors = self._roots(steps, section.roots)
        crls = self._crls(steps, section.crls) if section.crls is not None else None
        return Trust(roots, section.min_tls, section.strict, anchors, section.key_exchange, crls)

    def trust_of_rule(self, steps: Steps, section: RuleTrustSection, base: Trust) -> Trust:
        """Return a rule's `Trust`.

        Args:
            steps: where the rule's `trust` is.
            section: what it says.
            base: the policy's own, which counts for what it does not say.
        """
        trust = base
        if section.roots is not None:
            roots, anchors = self._roots(steps, section.roots)
            trust = replace(trust, roots=roots, anchors=anchors)
        if section.crls is not None:
            trust = replace(trust, crls=self._crls(steps, section.crls))
        return replace(
            trust,
            min_tls=section.min_tls or trust.min_tls,
            strict=trust.strict if section.strict is None else section.strict,
            key_exchange=section.key_exchange or trust.key_exchange,
        )

    def _roots(self, steps: Steps, name: str) -> tuple[Path | None, tuple[bytes, ...] | None]:
        if name == SYSTEM_ROOTS:
            return None, None
        at: Steps = (*steps, "roots")
        path = self.folder / name
        content = self.read(at, name, MAX_ROOTS_BYTES)
        anchors: tuple[bytes, ...] = ()
        if content is not None:
            try:
                anchors = self._anchors(at, path, read_bundle(content))
            except BadBundle as error:
                self.report(at, f"{path}: {error}")
        return path, anchors

    def _anchors(self, at: Steps, path: Path, bundle: Bundle) -> tuple[bytes, ...]:
        _check_certificates(bundle)
        for label, line in bundle.others:
            if label.endswith("PRIVATE KEY"):
                self.remarks.append(
                    f"{path_text(at)}: {path} holds a private key, in line {line}: who only verifies needs none, and "
                    "it is of use to whoever reads the file; take it out"
                )
            elif label == "X509 CRL":
                raise BadBundle(f"there is a CRL in line {line}: name its file under trust.crls, and take it out here")
            elif not label.endswith("PARAMETERS"):
                raise BadBundle(f"there is a {label} in line {line}: only certificates (CERTIFICATE) are taken")
        return bundle.certificates

    def _crls(self, steps: Steps, section: CrlsSection) -> Crls:
        lists: list[bytes] = []
        paths: list[Path] = []
        for index, name in enumerate(section.files):
            at: Steps = (*steps, "crls", "files", index)
            for each in self._matching(at, name):
                content = self.read(at, each, MAX_ROOTS_BYTES)
                if content is None:
                    continue
                paths.append(self.folder / each)
                try:
                    lists += _crls_in(content)
                except ValueError as error:
                    self.report(at, f"{self.folder / each}: {error}")
        return Crls(tuple(paths), section.when, tuple(dict.fromkeys(lists)))

    def _matching(self, at: Steps, name: str) -> list[str]:
        """Return the files that a name with `*` stands for; what does not exist is returned to be reported."""
        folder, pattern = os.path.split(name)
        if "*" in folder:
            self.report(at, "`*` stands only in the last part of a path")
            return []
        if "*" not in pattern:
            return [name]
        try:
            there = list_folder(self.folder / folder)
        except OSError as error:
            self.report(at, unreadable(self.folder / folder, "", error))
            return []
        found = sorted(each for each in there if fnmatch.fnmatchcase(each, pattern) and not each.startswith("."))
        if not found:
            self.report(at, f"no file matches {self.folder / name}")
        return [os.path.join(folder, each) for each in found]

    def client_certificate(self, steps: Steps, section: ClientCertificateSection) -> ClientCertificate | None:
        """Return a client certificate and its key; None if something is wrong with them, or the key is not there and
        need not be.
        """
        at: Steps = (*steps, "cert")
        path = self.folder / section.cert
        content = self.read(at, section.cert, _MAX_CHAIN_BYTES)
        if content is None:
            return None
        try:
            bundle = read_bundle(content)
            _check_certificates(bundle)
        except BadBundle as error:
            self.report(at, f"{path}: {error}")
            return None
        with warnings.catch_warnings(action="ignore"):
            own = x509.load_der_x509_certificate(bundle.certificates[0])
        key = self._private_key((*steps, "key"), section)
        if key is None:
            return None
        encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        if own.public_key().public_bytes(encoding, form) != key.public_key().public_bytes(encoding, form):
            self.report(
                (*steps, "key"),
                f"this key does not belong to the first certificate of {path}; the certificate comes first there, its "
                "issuers behind it",
            )
            return None
        private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        ends = own.not_valid_after_utc.astimezone(UTC)
        return ClientCertificate(path, bundle.certificates, SecretBytes(private), ends)

    def _private_key(self, steps: Steps, section: ClientCertificateSection) -> _PrivateKey | None:
        source = section.key
        at: Steps = (*steps, "file" if source.file is not None else "env")
        try:
            if source.file is not None:
                self.files.append(self.folder / source.file)
                data = read_key_file(self.folder / source.file, unsafe_permissions=section.unsafe_key_permissions)
            elif source.env in self.env:
                data = os.fsencode(self.env[source.env or ""])
            else:
                self._missing(at, f"the environment variable {variable_name(source.env or '')} is not set")
                return None
            self.note(data)
            return _read_private_key(data)
        except FileNotFoundError:
            self._missing(at, missing(self.folder, source.file or ""))
        except OSError as error:
            self.report(at, unreadable(self.folder, source.file or "", error))
        except (KeyFileError, ValueError) as error:
            self.report(at, str(error))
        return None

    def _missing(self, at: Steps, what: str) -> None:
        if self.is_without_secrets:
            self.unchecked.append(f"{path_text(at)}: {what}")
        else:
            self.report(at, what)


type _PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def _read_private_key(data: bytes) -> _PrivateKey:
    """Read a private key in PEM.

    Raises:
        ValueError: it is none that TLS uses, or has a password. The message quotes nothing.
    """
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:
        raise ValueError("the private key has a password; write it without (openssl pkey -in OLD -out NEW)") from None
    except Exception:  # the library has many, and some quote what they have read
        raise ValueError("there is no private key in PEM in it") from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _MIN_RSA_BITS:
        raise ValueError(f"an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} are the fewest that are accepted")
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise ValueError("the private key is of a kind that is not used here: RSA, EC and Ed25519 are")
    return key


def _check_certificates(bundle: Bundle) -> None:
    for certificate, line in zip(bundle.certificates, bundle.lines, strict=True):
        try:
            with warnings.catch_warnings(action="ignore"):  # about oddities: OpenSSL decides on them
                x509.load_der_x509_certificate(certificate)
        except (ValueError, x509.InvalidVersion):
            raise BadBundle(f"the certificate that begins in line {line} is damaged, or none (RFC 5280)") from None


_BEGIN_CRL, _END_CRL = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"


def _crls_in(content: bytes) -> list[bytes]:
    """Return the revocation lists of a file in DER.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    if content[:1] == b"\x30":
        return [_crl(content, "", x509.load_der_x509_crl)]
    parts = content.split(_BEGIN_CRL)[1:]
    if not parts:
        raise ValueError("there is no revocation list in it, neither PEM (X509 CRL) nor DER")
    found = []
    for number, part in enumerate(parts, 1):
        text, end, _ = part.partition(_END_CRL)
        found.append(_crl(_BEGIN_CRL + text + end + b"\n", f"{number} ", x509.load_pem_x509_crl))
    return found


def _crl(data: bytes, which: str, load: Callable[[bytes], x509.CertificateRevocationList]) -> bytes:
    try:
        return load(data).public_bytes(serialization.Encoding.DER)
    except ValueError:
        raise ValueError(f"revocation list {which}is damaged, or cut off") from None
