"""The local CA: creates and loads it, and signs the certificates that apps see when their https is inspected. The
engine calls it for handshakes with apps; `overcoat ca` prints its certificate.

Rules of this module:

- The CA's key is made once, on this machine; only its owner can read it; and it signs nothing but leaf certificates.
- Each leaf certificate has a key of its own, which is never written to disk. It is valid for a week.
- A CA that is constrained to some hosts is an intermediate one, whose root apps trust. The root's key is never written.
- A damaged or foreign CA is an error that says what to do; it is never replaced silently, because apps trust the old
  one. The same holds for a CA that has ended: it signs nothing (`proxy.core.certificates.localca`), while everything
  that needs no certificate goes on.
- A leaf certificate never outlives the CA, and is used only while it is valid by the current time.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy import timelimits
from proxy.core.certificates.constraints import Constraints
from proxy.core.certificates.localca import Lifetime, Mandate
from proxy.disk.issuing import ca_certificate, constrained_chain, private_pem, server_certificate, valid_from
from proxy.disk.publishing import published, write_public
from proxy.disk.reading import Version, read_regular, version_of
from proxy.health import data_folder

KEY_FILE = "ca-key.pem"
NEXT_FILE = "ca-next-key.pem"  # the successor, while a rotation is under way; see `proxy.disk.rotating`
CERTIFICATE_FILE = "ca-cert.pem"
BUILT = date(2026, 11, 23)  # no true clock is before this version was made; set anew for each release
_MAX_BYTES = 64 * 1024
_MARK = re.compile(rb"^cookie-mark: ([0-9a-f]{12})$", re.MULTILINE)  # outside the PEM blocks (RFC 7468, section 2)


class CaError(Exception):
    """The local CA cannot be used. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate for one host, its key, and the certificate of the CA that signed it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    issuer: x509.Certificate

    def is_fresh(self, now: datetime) -> bool:
        """Tell whether it is valid, and for more than a day; or for as long as the CA could sign one now."""
        end = self.certificate.not_valid_after_utc
        spare = (
            timedelta() if end == self.issuer.not_valid_after_utc else timedelta(seconds=timelimits.LEAF_RENEW_SECONDS)
        )
        return self.certificate.not_valid_before_utc <= now < end - spare


def data_directory(env: Mapping[str, str]) -> Path:
    """Return where Overcoat keeps its state; see `proxy.health.data_folder`.

    Raises:
        CaError: the environment names no folder, and there is no home directory.
    """
    try:
        return Path(data_folder(env))
    except RuntimeError as e:
        raise CaError(str(e)) from None


class LocalCa:
    """A loaded CA.

    Attributes:
        directory: where it lies.
        certificate: the certificate that apps trust.
        issuer: the certificate whose key signs: the same, or that of an intermediate CA below it.
        constraints: the hosts for which it may sign; None for any.
        successor: the certificate of the CA that will take its place, which apps should trust, too; None if there is
            none.
        tag: a short word that only holders of the CA's key can know, and that stays the same as long as the CA and its
            successors.
    """

    certificate: x509.Certificate
    issuer: x509.Certificate
    constraints: Constraints | None
    successor: x509.Certificate | None
    tag: str
    _key: ec.EllipticCurvePrivateKey

    def __init__(self, directory: Path) -> None:
        """Load it; see `open` and `load`."""
        self.directory = directory
        self._versions = self._look()
        self._read()

    @property
    def lifetime(self) -> Lifetime:
        """The time in which it may sign."""
        return Lifetime(self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc)

    @property
    def mandate(self) -> Mandate:
        """What it may sign."""
        return Mandate(self.lifetime, self.constraints)

    @property
    def pem(self) -> bytes:
        """The CA's certificate, for apps to trust, and then that of its successor."""
        own = self.certificate.public_bytes(serialization.Encoding.PEM)
        return own if self.successor is None else own + self.successor.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def open(
        cls, directory: Path, now: datetime, *, constraints: Constraints | None = None, any_clock: bool = False
    ) -> LocalCa:
        """Load the CA from a directory; create it there first if there is none.

        Args:
            directory: the data directory.
            now: the current time.
            constraints: the hosts for which one that is to be made may sign; None for any.
            any_clock: make a CA even if the clock must be wrong, since nothing that it signs will be used.

        Raises:
            CaError: the files cannot be read or written, do not match each other, or can be read by others; or one is
                to be made, and the clock is before this version was.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (directory / KEY_FILE).exists():
                if not any_clock:
                    check_clock(directory, now)
                create(directory / KEY_FILE, now, constraints=constraints)
            authority = cls.load(directory)
            write_public(directory / CERTIFICATE_FILE, authority.pem)
            return authority
        except OSError as e:
            raise no_access(directory, e) from None

    @classmethod
    def examine(cls, directory: Path, now: datetime) -> None:
        """Check what `open` would check, and change nothing.

        Args:
            directory: the data directory.
            now: the current time.

        Raises:
            CaError: as for `open`.
        """
        try:
            existing = next(each for each in (directory, *directory.absolute().parents) if os.path.lexists(each))
            if not existing.is_dir():
                raise OSError(errno.EEXIST if existing == directory else errno.ENOTDIR, "")
            has_key = (directory / KEY_FILE).exists()
            is_written = not has_key or published(directory / CERTIFICATE_FILE) != cls.load(directory).pem
            if is_written and not os.access(existing, os.W_OK | os.X_OK):
                is_read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
                raise OSError(errno.EROFS if is_read_only else errno.EACCES, "")
            if not has_key:
                check_clock(directory, now)
        except OSError as e:
            raise no_access(directory, e) from None

    @classmethod
    def find(cls, directory: Path) -> LocalCa | None:
        """Load the CA from a directory, and change nothing; return None if there is none.

        Raises:
            CaError: a file is not as it should be, or cannot be read.
        """
        try:
            return cls(directory) if (directory / KEY_FILE).exists() else None
        except OSError as e:
            raise no_access(directory, e) from None

    @classmethod
    def load(cls, directory: Path) -> LocalCa:
        """Load the CA from a directory, and change nothing.

        Raises:
            CaError: a file is not as it should be.
            OSError: it cannot be read.
        """
        return cls(directory)

    def renew(self) -> bool:
        """Read the CA again if its files are others by now; return whether they are.

        Raises:
            CaError: they cannot be read, or are not as they should be; it is raised once, and this CA stays as it was.
        """
        found = self._look()
        if found == self._versions:
            return False
        self._versions = found
        try:
            self._read()
        except OSError as e:
            raise no_access(self.directory, e) from None
        return True

    def _look(self) -> tuple[Version, ...]:
        return tuple(version_of(self.directory / name) for name in (KEY_FILE, NEXT_FILE))

    def _read(self) -> None:
        # The successor comes last: a rotation that ends meanwhile takes it away, and is seen at the next look.
        found = _read_ca(self.directory / KEY_FILE)
        successor = None
        if (self.directory / NEXT_FILE).exists():
            with contextlib.suppress(FileNotFoundError):
                successor = _read_ca(self.directory / NEXT_FILE).root
        secret = found.key.private_numbers().private_value.to_bytes(32)
        own = hmac.digest(secret, b"overcoat: the mark of cookies", "sha256").hex()[:12]
        self.certificate, self.issuer, self._key, self.constraints = (
            found.root,
            found.issuer,
            found.key,
            found.constraints,
        )
        self.successor, self.tag = successor, found.mark or own

    def leaf(self, host: str, now: datetime) -> Leaf:
        """Sign a certificate for a host.

        Args:
            host: a canonical host name or IP address.
            now: the time from which it is valid, within the CA's lifetime. It ends after a week, or earlier with the
                CA.
        """
        ends = min(now + timedelta(seconds=timelimits.LEAF_SECONDS), self.issuer.not_valid_after_utc)
        key = ec.generate_private_key(ec.SECP256R1())  # a tenth of the time that the certificate takes
        certificate = server_certificate(host, key.public_key(), self.issuer, self._key, valid_from(now, ends))
        return Leaf(certificate, key, self.issuer)


def published_lifetime(directory: Path) -> Lifetime | None:
    """Return the lifetime of the CA in a directory, from its public certificate; None if that cannot be read."""
    return next((each.lifetime for each in published_mandates(directory)), None)


def published_mandates(directory: Path) -> list[Mandate]:
    """Return what the CA in a directory may sign, and then its successor, from their public certificates; nothing if
    these cannot be read.
    """
    try:
        pem, _ = read_regular(directory / CERTIFICATE_FILE, _MAX_BYTES)
        return [
            Mandate(Lifetime(each.not_valid_before_utc, each.not_valid_after_utc), Constraints.of(each))
            for each in x509.load_pem_x509_certificates(pem)
        ]
    except (OSError, ValueError, x509.InvalidVersion):
        return []  # there is none, or this user may not read it; `LocalCa.open` says what is wrong


def check_clock(directory: Path, now: datetime) -> None:
    """Check that a CA can be made now: with a wrong clock it would have ended, or not have begun, by a right one.

    Raises:
        CaError: the clock is before this version was made.
    """
    if now.date() < BUILT:
        raise CaError(
            f"no local CA is made in {directory}: this machine's clock says {now:%Y-%m-%d}, and this version is of "
            f"{BUILT:%Y-%m-%d}, so that apps would refuse the CA once the clock is right; set the clock"
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a CA's file holds.

    Attributes:
        issuer: the certificate of its key.
        root: the certificate that apps trust: the same, or the one behind it in the file, if that has signed it.
        mark: the mark of cookies that it has taken over; empty if there is none.
    """

    key: ec.EllipticCurvePrivateKey
    issuer: x509.Certificate
    root: x509.Certificate
    constraints: Constraints | None
    mark: str


def _read_ca(path: Path) -> _Found:
    """Read a CA's file.

    Raises:
        CaError: the file is not as it should be.
        OSError: it cannot be read.
    """
    remedy = f"move {path.name} out of {path.parent} to have a new CA made, and make the apps trust that one"
    # Key and certificate are in one file, so that no half-made CA can exist. The certificate file beside it is for
    # apps.
    pem = _read_private(path)
    try:
        key = serialization.load_pem_private_key(pem, None)
        certificate, *others = x509.load_pem_x509_certificates(pem)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        constraints = Constraints.of(certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise CaError(f"{path} holds no CA key and certificate: {remedy}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CaError(f"the key in {path} is not on the curve P-256: {remedy}")
    if key.public_key() != certificate.public_key() or not basic.ca:
        raise CaError(f"the key and the certificate in {path} are not those of one CA: {remedy}")
    mark = _MARK.search(pem)
    root = others[0] if others and _has_signed(others[0], certificate) else certificate
    return _Found(key, certificate, root, constraints, mark[1].decode() if mark is not None else "")


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def create(
    path: Path, now: datetime, mark: str = "", *, constraints: Constraints | None = None, replaces: bool = False
) -> None:
    """Make a CA. If two processes do so at once, the first one's is kept.

    Args:
        path: its file.
        now: the current time.
        mark: the mark of cookies of the CA whose place it takes; empty if there is none.
        constraints: the hosts for which it may sign; None for any.
        replaces: whether it takes the place of a file that is there.

    Raises:
        OSError: it cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = valid_from(now, now + timedelta(seconds=timelimits.CA_SECONDS))
    name = f"Overcoat local CA {secrets.token_hex(4)}"
    certificates = (
        (ca_certificate(name, key, lifetime),)
        if constraints is None
        else constrained_chain(name, key, lifetime, constraints)
    )
    content = private_pem(key) + b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)
    content += f"cookie-mark: {mark}\n".encode() if mark else b""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(temporary, content, 0o600)
        if replaces:
            os.replace(temporary, path)
            return
        with contextlib.suppress(FileExistsError):  # another process was first: its CA is used
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_private(path: Path) -> bytes:
    """Read a file that only this user may read; it is checked and read through one descriptor.

    Raises:
        CaError: it is not this user's, or others may read it.
        OSError: it cannot be read, or is no regular file.
    """
    pem, status = read_regular(path, _MAX_BYTES)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        raise CaError(f"{path} is another user's, who could sign for every host: run chown {os.geteuid()} {path}")
    if mode & 0o077:
        raise CaError(f"{path} is readable by others (mode {mode:04o}): run chmod 600 {path}")
    return pem


def no_access(directory: Path, error: OSError) -> CaError:
    """Return what to say where the system refuses something."""
    return CaError(
        f"the local CA in {directory} cannot be read or written: {os.strerror(error.errno or 0)}; "
        "set OVERCOAT_DATA to a directory that this user owns"
    )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # before it gets its name: a crash must not leave half a CA there
