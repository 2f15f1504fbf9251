"""Servers that are wrong in one way, for `test_farm`: certificates that no careful library writes, groups of the key
exchange, and handshakes by hand for what OpenSSL itself speaks no more.

Rules of this module:

- Certificates are made by `Party.issues`, which writes what RFC 5280 wants unless it is told otherwise: each caller
  changes one thing. What the library refuses to write is put into the octets, and signed again.
- A server's key lives as long as its test; none is written down. The one that takes long to find is composed of primes
  that everybody knows (RFC 3526 and RFC 7919), so that it need not be searched.
- A handshake by hand sends no more than its first flight. Whether a client would have gone on is told by its next
  record: a handshake message, or an alert.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from tests.e2e import wire
from tests.e2e.certificates import Identity
from tests.e2e.listeners import listen

DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Fields = list[bytes]  # the fields of a TBSCertificate, each with its tag and length (RFC 5280, section 4.1)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of this length; there is one."""
    return _huge() if bits == 8192 else rsa.generate_private_key(65537, bits)


def _huge() -> rsa.RSAPrivateKey:
    """Return a key of 8192 bits: its primes are those of the groups modp4096 (RFC 3526) and ffdhe4096 (RFC 7919)."""
    unit = 1 << 4100
    e, term, n = 0, unit, 0
    while term:
        e, n = e + term, n + 1
        term //= n
    pi = 4 * (4 * _arctan(unit, 5) - _arctan(unit, 239))
    frame = 2**4096 - 2**4032 - 1
    p = frame + 2**64 * ((pi >> 4100 - 3966) + 240904)
    q = frame + 2**64 * ((e >> 4100 - 3966) + 5736041)
    d = pow(65537, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPublicNumbers(65537, p * q)
    exponents = d % (p - 1), d % (q - 1), pow(q, -1, p)
    private = rsa.RSAPrivateNumbers(p, q, d, *exponents, numbers)
    return private.private_key(unsafe_skip_rsa_key_validation=True)  # which takes ten seconds


def _arctan(unit: int, of: int) -> int:
    total, term, n = 0, unit // of, 1
    while term:
        total += term // n if n % 4 == 1 else -(term // n)
        term, n = term // (of * of), n + 2
    return total


def usage(*names: str) -> x509.KeyUsage:
    """Return a key usage with these bits."""
    signing = ("digital_signature", "content_commitment", "key_cert_sign", "crl_sign")
    others = ("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{bit: bit in names for bit in (*signing, *others)})


def purposes(*names: str) -> x509.ExtendedKeyUsage:
    """Return an extended key usage of `server`, `client` or `any`."""
    known = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
        "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    }
    return x509.ExtendedKeyUsage([known[name] for name in names])


def alternative(*names: str | x509.GeneralName) -> x509.SubjectAlternativeName:
    """Return a subjectAltName: texts are DNS names, or addresses if they look like one."""
    return x509.SubjectAlternativeName([_general(name) if isinstance(name, str) else name for name in names])


def _general(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    return x509.DNSName(name)


@dataclass(frozen=True)
class Party:
    """A certificate, its key, and those that are sent behind it.

    Attributes:
        der: the certificate.
        name: its subject.
        key: its key.
        behind: the certificates of its issuers that a server sends, without the root's.
        is_root: whether it has signed itself.
    """

    der: bytes
    name: x509.Name
    key: Key
    behind: tuple[bytes, ...] = ()
    is_root: bool = False

    @property
    def pem(self) -> bytes:
        """The certificate as PEM, and be its octets as they may."""
        return ssl.DER_cert_to_PEM_cert(self.der).encode()

    @property
    def identity(self) -> Identity:
        """What a server presents."""
        secret = self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Identity(secret, tuple(ssl.DER_cert_to_PEM_cert(each).encode() for each in (self.der, *self.behind)))

    @classmethod
    def root(cls, name: str, **changes: Any) -> Party:
        """Return an authority that has signed itself; the arguments are those of `issues`."""
        return _certificate(None, name, (), is_ca=True, **changes)

    def authority(self, name: str, **changes: Any) -> Party:
        """Return an authority that this one has signed; the arguments are those of `issues`."""
        return _certificate(self, name, (), is_ca=True, **changes)

    def issues(self, *names: str | x509.GeneralName, subject: str | None = "server", **changes: Any) -> Party:
        """Return a server's certificate.

        Args:
            names: its names; see `alternative`.
            subject: its common name; None for an empty subject.
            changes: what is other than it should be; see `_certificate`.
        """
        return _certificate(self, subject, names, is_ca=False, **changes)

    def crl(self, *revoked: Party, ends: float = 7) -> bytes:
        """Return this authority's revocation list in PEM.

        Args:
            revoked: whose certificates are on it.
            ends: days from now.
        """
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now - timedelta(days=1), now + timedelta(days=ends))
        for each in revoked:
            number = x509.load_der_x509_certificate(each.der).serial_number
            entry = x509.RevokedCertificateBuilder(number, now - timedelta(days=1)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(PEM)


def _certificate(
    by: Party | None,
    subject: str | None,
    names: Sequence[str | x509.GeneralName],
    *,
    is_ca: bool,
    key: Key | None = None,
    begins: float = -1,
    ends: float = 30,
    has_sha1: bool = False,
    serial: int | None = None,
    put: Iterable[x509.ExtensionType] = (),
    marked: Mapping[type[x509.ExtensionType], bool] | None = None,
    without: Iterable[type[x509.ExtensionType]] = (),
    edit: Callable[[Fields], Fields] | None = None,
) -> Party:
    """Return a certificate that is as RFC 5280 wants it, but for what the arguments say.

    Args:
        by: who signs it; itself if None.
        subject: its common name, or None.
        names: its other names; no extension if there are none.
        is_ca: whether it is an authority's.
        key: its key; a new one if None.
        begins: days from now.
        ends: days from now.
        has_sha1: whether the hash of its signature is SHA-1, and not SHA-256.
        serial: its serial number; random if None.
        put: extensions in place of those of the same kind, or more of them.
        marked: whether a kind of extension is critical, where that is other than usual.
        without: kinds of extension that it lacks.
        edit: changes the fields before they are signed.
    """
    key = key or new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])] if subject is not None else [])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by.name if by is not None else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
    )
    signer = by.key if by is not None else key
    usual: list[x509.ExtensionType] = [
        x509.BasicConstraints(ca=is_ca, path_length=None),
        usage(*(("key_cert_sign", "crl_sign") if is_ca else ("digital_signature", "key_encipherment"))),
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
    ]
    if by is not None:
        usual.append(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()))
    if not is_ca:
        usual.append(purposes("server"))
    if names:
        usual.append(alternative(*names))
    found = {each.oid: each for each in (*usual, *put)}
    critical = {x509.BasicConstraints: True, x509.KeyUsage: True, x509.NameConstraints: True}
    critical |= {x509.SubjectAlternativeName: subject is None, x509.UnrecognizedExtension: True} | dict(marked or {})
    lacking = {each.oid for each in without}
    for oid, extension in found.items():
        if oid not in lacking:
            builder = builder.add_extension(extension, critical.get(type(extension), False))
    made = builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    der = made.public_bytes(DER)
    if edit is not None or has_sha1:
        fields = _parts(made.tbs_certificate_bytes)
        der = _signed(fields if edit is None else edit(fields), signer, has_sha1=has_sha1)
    behind = () if by is None or by.is_root else (by.der, *by.behind)
    return Party(der, name, key, behind, is_root=by is None)


def _tlv(tag: int, content: bytes) -> bytes:
    """Return a DER element (X.690, section 8.1)."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _parts(element: bytes) -> list[bytes]:
    """Return the elements within an element."""
    rest = element[_header(element) :]
    found = []
    while rest:
        size = _header(rest) + _length(rest)
        found.append(rest[:size])
        rest = rest[size:]
    return found


def _header(element: bytes) -> int:
    return 2 + (element[1] & 0x7F if element[1] & 0x80 else 0)


def _length(element: bytes) -> int:
    return int.from_bytes(element[2 : _header(element)]) if element[1] & 0x80 else element[1]


_ECDSA_SHA256, _ECDSA_SHA1 = (bytes.fromhex(f"30{each}") for each in ("0a06082a8648ce3d040302", "0906072a8648ce3d0401"))


def _signed(fields: Fields, signer: Key, *, has_sha1: bool) -> bytes:
    """Return a certificate with these fields, signed by a key on P-256."""
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    tbs = _tlv(0x30, b"".join(fields))
    if has_sha1:
        tbs = _tlv(0x30, b"".join(_ECDSA_SHA1 if field == _ECDSA_SHA256 else field for field in fields))
    signature = signer.sign(tbs, ec.ECDSA(hashes.SHA1() if has_sha1 else hashes.SHA256()))
    return _tlv(0x30, tbs + (_ECDSA_SHA1 if has_sha1 else _ECDSA_SHA256) + _tlv(0x03, b"\0" + signature))


def with_serial(octets: bytes) -> Callable[[Fields], Fields]:
    """Return an edit: the serial number is this INTEGER, which no library writes."""
    return lambda fields: [fields[0], _tlv(0x02, octets), *fields[2:]]


def as_version_1(fields: Fields) -> Fields:
    """An edit: a certificate of X.509 version 1, which has no extensions."""
    return fields[1:7]


def with_names_twice(*names: str) -> Callable[[Fields], Fields]:
    """Return an edit: a second subjectAltName behind the first (RFC 5280, section 4.2, forbids it)."""
    value = _tlv(0x30, bytes.fromhex("0603551d11") + _tlv(0x04, alternative(*names).public_bytes()))
    return lambda fields: [*fields[:-1], _tlv(0xA3, _tlv(0x30, b"".join(_parts(_parts(fields[-1])[0])) + value))]


class _Threaded:
    """A server that serves one connection after another in a thread of its own, until it is closed.

    Attributes:
        port: where it listens.
        received: the bytes of applications.
    """

    def __init__(self) -> None:
        self.received = b""
        self._listener = listen()
        self.port: int = self._listener.getsockname()[1]
        self._served = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def settle(self) -> None:
        """Wait until all connections that were made are served: one that says nothing is the last of them."""
        while self._served.acquire(blocking=False):
            pass
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.shutdown(socket.SHUT_WR)
            last.settimeout(10)
            with contextlib.suppress(OSError):
                while last.recv(4096):
                    pass

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            with accepted, contextlib.suppress(OSError):
                accepted.settimeout(10)
                self.serve(accepted)

    def serve(self, accepted: socket.socket) -> None:
        """Serve one connection."""
        raise NotImplementedError


class GroupServer(_Threaded):
    """A TLS 1.3 server with chosen groups, made of the OpenSSL that Overcoat uses, which answers each request.

    Attributes:
        groups: of each handshake that came to its end.
    """

    def __init__(self, identity: Identity, groups: str) -> None:
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate(identity.certificate)
        for each in identity.chain_pem[1:]:
            self._context.add_extra_chain_cert(x509.load_pem_x509_certificate(each))
        key: Any = serialization.load_pem_private_key(identity.key_pem, None)
        self._context.use_privatekey(key)
        lib: Any = SSL._lib  # type: ignore[attr-defined]  # pyOpenSSL has no call for groups
        assert lib.SSL_CTX_set1_curves_list(self._context._context, groups.encode()) == 1
        self.groups: list[str | None] = []
        super().__init__()

    def serve(self, accepted: socket.socket) -> None:
        accepted.settimeout(None)  # pyOpenSSL takes only sockets that block
        connection = SSL.Connection(self._context, accepted)
        connection.set_accept_state()
        with contextlib.suppress(SSL.Error):
            connection.do_handshake()
            self.groups.append(connection.get_group_name())
            self.received += connection.recv(65536)
            connection.sendall(wire.response(200, b"{}", headers=(("Connection", "close"),)))
            connection.shutdown()


class ServerByHand(_Threaded):
    """A server of TLS 1.2 that takes a cipher suite whether it was offered or not, and sends its first flight.

    Args:
        party: has an RSA key.
        suite: the cipher suite (IANA's registry).
        parameters: the signed half of ServerKeyExchange; b"" for a suite that has none.
        ending: the last octets of its random, where a server that could have spoken a newer version says so.

    Attributes:
        took: how many clients went on.
        refused: how many sent an alert.
    """

    def __init__(self, party: Party, suite: int, parameters: bytes = b"", ending: bytes = b"") -> None:
        self._party, self._suite, self._parameters, self._ending = party, suite, parameters, ending
        self.took = 0
        self.refused = 0
        super().__init__()

    def serve(self, accepted: socket.socket) -> None:
        hello = _record(accepted)
        if hello[:1] != b"\x16":
            return
        random = (b"by hand" * 5)[: 32 - len(self._ending)] + self._ending
        accepted.sendall(b"".join(_handshake(kind, body) for kind, body in self._flight(hello[11:43], random)))
        answer = _record(accepted)
        self.took += answer[:1] == b"\x16"
        self.refused += answer[:1] == b"\x15"
        while answer:
            self.received += answer[5:] if answer[:1] not in (b"\x14", b"\x15", b"\x16") else b""
            accepted.shutdown(socket.SHUT_WR) if answer[:1] == b"\x16" else None
            answer = _record(accepted)

    def _flight(self, client_random: bytes, random: bytes) -> list[tuple[int, bytes]]:
        """Return ServerHello, Certificate, ServerKeyExchange and ServerHelloDone (RFC 5246, section 7.4)."""
        chain = b"".join(_sized(3, each) for each in (self._party.der, *self._party.behind))
        extensions = bytes.fromhex("ff01000100") + bytes.fromhex("000b00020100")  # RFC 5746, and uncompressed points
        hello = b"\x03\x03" + random + b"\0" + self._suite.to_bytes(2) + b"\0" + _sized(2, extensions)
        flight = [(2, hello), (11, _sized(3, chain))]
        if self._parameters:
            assert isinstance(self._party.key, rsa.RSAPrivateKey)
            signed = client_random + random + self._parameters
            signature = self._party.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
            flight.append((12, self._parameters + b"\x04\x01" + _sized(2, signature)))
        return [*flight, (14, b"")]


def _sized(octets: int, content: bytes) -> bytes:
    return len(content).to_bytes(octets) + content


def _handshake(kind: int, body: bytes) -> bytes:
    message = bytes((kind,)) + _sized(3, body)
    return b"\x16\x03\x03" + _sized(2, message)


def _record(connection: socket.socket) -> bytes:
    """Read one record with its header; b"" at the end."""
    found = b""
    while len(found) < 5 or len(found) < 5 + int.from_bytes(found[3:5]):
        wanted = 5 if len(found) < 5 else 5 + int.from_bytes(found[3:5])
        more = connection.recv(wanted - len(found))
        if not more:
            return b""
        found += more
    return found


def finite_field(bits: int) -> bytes:
    """Return ServerDHParams with a modulus of so many bits (RFC 5246, section 7.4.3). No client asks whether it is
    prime.
    """
    modulus, octets = (1 << bits) - 1 - 2**40, bits // 8
    return b"".join(_sized(2, each) for each in (modulus.to_bytes(octets), b"\x02", (modulus // 3).to_bytes(octets)))


def elliptic_curve() -> bytes:
    """Return ServerECDHParams with a new key on P-256 (RFC 8422, section 5.4)."""
    point = (
        new_key().public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    return b"\x03\x00\x17" + _sized(1, point)
