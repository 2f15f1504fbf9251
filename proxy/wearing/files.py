"""Writes the files that programs read to trust the local CA, into a folder of their own. `overcoat serve --publish-ca`
calls it for whatever mounts or reads that folder; `overcoat run` starts its sidecar so.

Rules of this module:

- Everybody may read the folder: it has nothing but public parts.
- None of the files has the sidecar's address in it: variables say that. Some name other files of the folder, so a
  container sees it under the same path.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from proxy.core.certificates.bundles import read_bundle
from proxy.disk.publishing import PublishingError, publish_ca, write_public
from proxy.wearing.variables import (
    APT,
    BUNDLE,
    JAVA_PASSWORD,
    JAVA_STORE,
    NODE,
    PHP,
    PHP_FIRST,
    WGETRC,
    wgetrc,
)

_HERE = Path(__file__).parent


def write_files(folder: Path, authority: bytes, roots: Iterable[bytes]) -> None:
    """Write all that is the same for every user of a sidecar; make the folder if there is none.

    Args:
        folder: where to.
        authority: the local CA's certificate, in PEM; a second one is its successor's.
        roots: the system's roots, in DER.

    Raises:
        PublishingError: the folder cannot be made or written.
    """
    own = read_bundle(authority).certificates
    roots = [root for root in dict.fromkeys(roots) if root not in own]  # a variable of the user's may name our bundle
    publish_ca(folder, authority, roots)
    named = folder.absolute()
    try:
        if (folder / PHP).is_symlink():  # whoever may write in the folder could lead us into another one
            (folder / PHP).unlink()
        (folder / PHP).mkdir(mode=0o755, exist_ok=True)
        _open_to_all(folder / PHP)
        write_public(folder / JAVA_STORE, java_store(authority, roots))
        write_public(folder / WGETRC, wgetrc(str(named)))
        write_public(folder / APT, f'Acquire::https::CAInfo "{named / BUNDLE}";\n'.encode())
        write_public(folder / NODE, (_HERE / "node.cjs").read_bytes())
        write_public(folder / PHP_FIRST, (_HERE / "first.php").read_bytes())
        write_public(folder / PHP / "overcoat.ini", php_ini(named))
    except OSError as e:
        why = os.strerror(e.errno or 0).lower()
        raise PublishingError(f"what apps trust cannot be written to {folder}: {why}") from None


def _open_to_all(folder: Path) -> None:
    """Let everybody read a folder, whatever the umask; never one that a link leads to."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(opened, 0o755)
    finally:
        os.close(opened)


def php_ini(folder: Path) -> bytes:
    """Return the settings of PHP: what curl and the streams trust, and which script comes first."""
    lines = [f'{name} = "{folder / BUNDLE}"' for name in ("curl.cainfo", "openssl.cafile")]
    return "\n".join([*lines, f'auto_prepend_file = "{folder / PHP_FIRST}"', ""]).encode()


def java_store(authority: bytes, roots: Iterable[bytes]) -> bytes:
    """Return a trust store for Java (PKCS#12), as `keytool -importcert` would have made it.

    Args:
        authority: the local CA's certificate, in PEM; a second one is its successor's.
        roots: further certificates, in DER; one that is no X.509 certificate is left out, as Java could not read it.
    """
    names = (b"overcoat", b"overcoat next")
    own = zip(x509.load_pem_x509_certificates(authority), names, strict=False)
    entries = [pkcs12.PKCS12Certificate(certificate, name) for certificate, name in own]
    for number, root in enumerate(roots, 1):
        try:
            with warnings.catch_warnings(action="ignore"):  # of old roots, whose serial numbers are 0 or negative
                certificate = x509.load_der_x509_certificate(root)
        except ValueError:
            continue
        entries.append(pkcs12.PKCS12Certificate(certificate, b"root %d" % number))
    return pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(JAVA_PASSWORD.encode()))
