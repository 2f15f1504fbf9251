"""Certificates that are made here: what they say, and that a strict client accepts them."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from proxy.core.certificates.localca import Lifetime
from proxy.disk.issuing import ca_certificate, private_pem, server_certificate

NOW = datetime.now(UTC).replace(microsecond=0)
LIFETIME = Lifetime(NOW - timedelta(hours=1), NOW + timedelta(hours=1))
CA_KEY, SERVER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
CA = ca_certificate("A CA", CA_KEY, LIFETIME)


def server(host: str) -> x509.Certificate:
    return server_certificate(host, SERVER_KEY.public_key(), CA, CA_KEY, LIFETIME)


def test_a_ca_signs_certificates_of_servers_alone() -> None:
    constraints = CA.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = CA.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert CA.subject.rfc4514_string() == "CN=A CA"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.example", x509.DNSName("a.example")),
        ("::1", x509.IPAddress(ipaddress.ip_address("::1"))),
        ("127.0.0.1", x509.IPAddress(ipaddress.ip_address("127.0.0.1"))),
    ],
)
def test_a_server_has_its_name_or_its_address(host: str, name: x509.GeneralName) -> None:
    names = server(host).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (names.critical, list(names.value)) == (True, [name])


@pytest.mark.parametrize("certificate", [CA, server("a.example")], ids=["CA", "server"])
def test_the_lifetime_is_the_one_that_was_asked_for(certificate: x509.Certificate) -> None:
    assert Lifetime(certificate.not_valid_before_utc, certificate.not_valid_after_utc) == LIFETIME


def test_a_private_key_is_readable_again() -> None:
    again = load_pem_private_key(private_pem(CA_KEY), None)
    assert again.public_key() == CA_KEY.public_key()


def test_a_strict_client_accepts_them(tmp_path: Path) -> None:
    chain = tmp_path / "server.pem"
    chain.write_bytes(private_pem(SERVER_KEY) + server("a.example").public_bytes(Encoding.PEM))
    ours, theirs = socket.socketpair()
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(chain)
    asking = ssl.create_default_context(cadata=CA.public_bytes(Encoding.PEM).decode("ascii"))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve() -> None:
        with accepting.wrap_socket(theirs, server_side=True):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    with asking.wrap_socket(ours, server_hostname="a.example") as tls:
        assert tls.version() == "TLSv1.3"
        assert tls.recv(1) == b""
    thread.join()
