"""The local CA: made once, kept to its owner, refused when it is not in order, and a signer of leaves only."""

from __future__ import annotations

import ipaddress
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from proxy.core.certificates.constraints import Constraints
from proxy.core.certificates.localca import Lifetime
from proxy.disk.ca import (
    CERTIFICATE_FILE,
    KEY_FILE,
    CaError,
    Leaf,
    LocalCa,
    data_directory,
    published_lifetime,
    published_mandates,
)
from tests.e2e.sidecar import ROOT

NOW = datetime(2027, 1, 15, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "overcoat"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def chain_to_the_ca(leaf: Leaf, host: str, at: datetime) -> list[x509.Certificate]:
    """Verify a leaf for a host as a TLS client would, by a library that shares nothing with OpenSSL."""
    subject = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() or ":" in host else x509.DNSName(host)
    return (
        PolicyBuilder().store(Store([leaf.issuer])).time(at).build_server_verifier(subject).verify(leaf.certificate, [])
    )


class TestMaking:
    def test_it_is_made_once_and_then_loaded(self, folder: Path) -> None:
        first = LocalCa.open(folder, NOW)
        second = LocalCa.open(folder, NOW + DAY)
        assert first.certificate == second.certificate
        assert first.pem == (folder / CERTIFICATE_FILE).read_bytes()

    def test_only_its_owner_can_read_the_key_and_nothing_else_is_left_behind(self, folder: Path) -> None:
        before = os.umask(0)
        try:
            LocalCa.open(folder, NOW)
        finally:
            os.umask(before)
        assert mode_of(folder / KEY_FILE) == 0o600
        assert mode_of(folder) == 0o700
        assert mode_of(folder / CERTIFICATE_FILE) == 0o644
        assert sorted(path.name for path in folder.iterdir()) == sorted([KEY_FILE, CERTIFICATE_FILE])
        assert b"PRIVATE" not in (folder / CERTIFICATE_FILE).read_bytes()

    def test_every_machine_has_another_key_and_another_name(self, tmp_path: Path) -> None:
        one, other = LocalCa.open(tmp_path / "1", NOW), LocalCa.open(tmp_path / "2", NOW)
        assert one.certificate.public_key() != other.certificate.public_key()
        assert one.certificate.subject != other.certificate.subject

    def test_it_is_a_ca_that_may_sign_leaves_and_no_other_ca(self, folder: Path) -> None:
        certificate = LocalCa.open(folder, NOW).certificate
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert not usage.value.digital_signature

    def test_a_directory_that_cannot_be_made_is_an_error_with_a_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CaError, match="set OVERCOAT_DATA to a directory that this user owns"):
            LocalCa.open(tmp_path / "file" / "overcoat", NOW)

    def test_of_processes_that_make_it_at_once_all_have_the_same(self, folder: Path) -> None:
        script = (
            "import sys; sys.path.append(sys.argv[1])\n"
            "from datetime import UTC, datetime\nfrom pathlib import Path\nfrom proxy.disk.ca import LocalCa\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "print(LocalCa.open(Path(sys.argv[2]), datetime(2027, 1, 15, tzinfo=UTC)).certificate.serial_number)\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-c", script, str(ROOT), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        serials = {process.communicate(timeout=30)[0] for process in processes}
        assert [process.returncode for process in processes] == [0] * 4
        assert serials == {f"{LocalCa.open(folder, NOW).certificate.serial_number}\n"}
        assert (folder / CERTIFICATE_FILE).read_bytes() == LocalCa.open(folder, NOW).pem

    def test_one_that_is_made_at_the_same_moment_by_another_wins(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_link = os.link

        def link(source: Path, target: Path) -> None:
            monkeypatch.setattr(os, "link", real_link)
            rival = LocalCa.open(folder, NOW)  # comes between the look and the link
            rivals.append(rival)
            real_link(source, target)

        rivals: list[LocalCa] = []
        monkeypatch.setattr(os, "link", link)
        ours = LocalCa.open(folder, NOW)
        assert ours.certificate == rivals[0].certificate
        assert ours.pem == (folder / CERTIFICATE_FILE).read_bytes()

    @pytest.mark.parametrize("years", [-1, 6])
    def test_one_that_is_not_valid_now_is_loaded_for_what_needs_it_not(self, folder: Path, years: int) -> None:
        made = LocalCa.open(folder, NOW)
        loaded = LocalCa.open(folder, NOW + 365 * DAY * years)
        assert loaded.certificate == made.certificate  # never replaced in silence
        assert (folder / CERTIFICATE_FILE).read_bytes() == made.pem
        assert not loaded.lifetime.holds(NOW + 365 * DAY * years)
        assert loaded.lifetime == Lifetime(NOW - DAY, NOW + 5 * 365 * DAY)

    def test_when_it_ends_is_read_from_what_is_public(self, folder: Path) -> None:
        assert published_lifetime(folder) is None
        made = LocalCa.open(folder, NOW)
        (folder / KEY_FILE).unlink()
        assert published_lifetime(folder) == made.lifetime
        (folder / CERTIFICATE_FILE).write_text("no certificate")
        assert published_lifetime(folder) is None

    def test_a_certificate_file_that_got_lost_is_written_again(self, folder: Path) -> None:
        made = LocalCa.open(folder, NOW)
        (folder / CERTIFICATE_FILE).unlink()
        assert LocalCa.open(folder, NOW).certificate == made.certificate
        assert (folder / CERTIFICATE_FILE).read_bytes() == made.pem

    def test_one_that_is_there_is_left_alone(self, folder: Path) -> None:
        """An app may have it open, and a folder may be one that cannot be written any more."""
        LocalCa.open(folder, NOW)
        before = (folder / CERTIFICATE_FILE).stat()
        LocalCa.open(folder, NOW)
        assert (folder / CERTIFICATE_FILE).stat() == before


class TestRefusing:
    @pytest.fixture
    def key_file(self, folder: Path) -> Path:
        LocalCa.open(folder, NOW)
        return folder / KEY_FILE

    def refused(self, folder: Path) -> str:
        before = (folder / KEY_FILE).read_bytes()
        with pytest.raises(CaError) as caught:
            LocalCa.open(folder, NOW)
        assert (folder / KEY_FILE).read_bytes() == before  # never replaced in silence
        assert "PRIVATE" not in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
    def test_a_key_that_others_can_get_at(self, key_file: Path, mode: int) -> None:
        key_file.chmod(mode)
        assert f"chmod 600 {key_file}" in self.refused(key_file.parent)
        key_file.chmod(0o400)
        LocalCa.open(key_file.parent, NOW)

    def test_a_key_that_is_another_users(self, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if os.geteuid() == 0:
            os.chown(key_file, 4242, -1)
        else:
            monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
        assert "is another user's" in self.refused(key_file.parent)

    def test_a_key_of_another_ca(self, key_file: Path, tmp_path: Path) -> None:
        LocalCa.open(tmp_path / "other", NOW)
        foreign = (tmp_path / "other" / KEY_FILE).read_bytes()
        marker = b"-----BEGIN CERTIFICATE-----"
        own_certificate = marker + key_file.read_bytes().partition(marker)[2]
        key_file.write_bytes(foreign.partition(marker)[0] + own_certificate)
        assert "are not those of one CA" in self.refused(key_file.parent)

    @staticmethod
    def write(key_file: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, is_ca: bool) -> None:
        """Write a key and a certificate for it, in order but for what the test is about."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own")])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - DAY, NOW + 900 * DAY)
            .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key_file.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))

    @pytest.mark.parametrize(
        "make",
        [lambda: rsa.generate_private_key(65537, 2048), lambda: ec.generate_private_key(ec.SECP384R1())],
        ids=["RSA", "P-384"],
    )
    def test_a_key_of_another_kind(
        self, key_file: Path, make: Callable[[], rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]
    ) -> None:
        self.write(key_file, make(), is_ca=True)
        assert "is not on the curve P-256" in self.refused(key_file.parent)

    def test_a_certificate_that_is_no_cas(self, key_file: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.write(key_file, key, is_ca=False)
        assert "are not those of one CA" in self.refused(key_file.parent)
        self.write(key_file, key, is_ca=True)  # the twin
        LocalCa.open(key_file.parent, NOW)

    @pytest.mark.parametrize("damage", ["empty", "no certificate", "no key", "garbage", "encrypted"])
    def test_a_file_that_is_damaged(self, key_file: Path, damage: str) -> None:
        whole = key_file.read_bytes()
        marker = b"-----BEGIN CERTIFICATE-----"
        key, _, certificate = whole.partition(marker)
        locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
        key_file.write_bytes(
            {
                "empty": b"",
                "no certificate": key,
                "no key": marker + certificate,
                "garbage": b"\x00\xff" * 100,
                "encrypted": locked + marker + certificate,
            }[damage]
        )
        assert "holds no CA key and certificate: move" in self.refused(key_file.parent)


class TestLeaves:
    @pytest.fixture
    def ca(self, folder: Path) -> LocalCa:
        return LocalCa.open(folder, NOW)

    @pytest.mark.parametrize(
        "host", ["api.example", "xn--bcher-kva.example", f"{'a' * 63}.{'b' * 63}.example", "127.0.0.1", "2001:db8::1"]
    )
    def test_it_names_its_host_and_nothing_else_and_verifies(self, ca: LocalCa, host: str) -> None:
        leaf = ca.leaf(host, NOW)
        chain = chain_to_the_ca(leaf, host, NOW)
        assert chain == [leaf.certificate, ca.certificate]
        names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.critical  # since the subject is empty (RFC 5280, section 4.2.1.6)
        assert len(names.value) == 1
        other = "other.example" if names.value.get_values_for_type(x509.DNSName) else "192.0.2.7"
        with pytest.raises(VerificationError):
            chain_to_the_ca(leaf, other, NOW)

    def test_it_is_for_servers_and_signs_nothing(self, ca: LocalCa) -> None:
        extensions = ca.leaf("api.example", NOW).certificate.extensions
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
            ExtendedKeyUsageOID.SERVER_AUTH
        ]
        assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
        assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False

    def test_its_key_is_not_the_cas_and_not_that_of_another_process(self, ca: LocalCa, folder: Path) -> None:
        leaf = ca.leaf("api.example", NOW)
        assert leaf.key.public_key() == leaf.certificate.public_key()
        assert leaf.certificate.public_key() != ca.certificate.public_key()
        assert LocalCa.open(folder, NOW).leaf("api.example", NOW).certificate.public_key() != leaf.key.public_key()
        keys = {ca.leaf(host, NOW).key.private_numbers().private_value for host in ("a.example", "b.example")}
        assert len(keys) == 2  # of one process, too: each host has its own
        written = b"".join(path.read_bytes() for path in folder.iterdir())
        secret = leaf.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        assert secret not in written

    def test_serial_numbers_do_not_repeat(self, ca: LocalCa) -> None:
        serials = {ca.leaf("api.example", NOW).certificate.serial_number for _ in range(20)}
        assert len(serials) == 20

    def test_it_lives_a_week_and_is_renewed_a_day_before(self, ca: LocalCa) -> None:
        leaf = ca.leaf("api.example", NOW)
        assert leaf.certificate.not_valid_after_utc == NOW + 7 * DAY
        assert leaf.certificate.not_valid_before_utc == NOW - DAY
        assert leaf.is_fresh(NOW + 6 * DAY - timedelta(seconds=1))
        assert not leaf.is_fresh(NOW + 6 * DAY)

    def test_it_never_outlives_the_ca(self, ca: LocalCa) -> None:
        end = ca.certificate.not_valid_after_utc
        for left in (7 * DAY, DAY, timedelta(hours=1), timedelta(seconds=1)):
            leaf = ca.leaf("api.example", end - left)
            assert leaf.certificate.not_valid_after_utc == end
            # No later one could be made, so that it is used to the very end instead of being made for each handshake.
            assert leaf.is_fresh(end - timedelta(seconds=1))
            assert not leaf.is_fresh(end)

    def test_it_is_not_used_before_it_begins(self, ca: LocalCa) -> None:
        leaf = ca.leaf("api.example", NOW + 30 * DAY)
        assert leaf.is_fresh(NOW + 29 * DAY)
        assert not leaf.is_fresh(NOW + 29 * DAY - timedelta(seconds=1))  # the clock was set back

    def test_it_is_signed_with_sha256(self, ca: LocalCa) -> None:
        assert isinstance(ca.leaf("api.example", NOW).certificate.signature_hash_algorithm, hashes.SHA256)


class TestConstrained:
    """A CA that may sign for some hosts alone: an intermediate one, whose root nobody has the key of any more."""

    @pytest.fixture
    def ca(self, folder: Path) -> LocalCa:
        return LocalCa.open(folder, NOW, constraints=Constraints.to(["api.example", "192.0.2.7"]))

    @staticmethod
    def verify(ca: LocalCa, host: str) -> list[x509.Certificate]:
        """Verify a leaf, as a client that trusts the root alone and is sent the rest."""
        subject = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        leaf = ca.leaf(host, NOW)
        verifier = PolicyBuilder().store(Store([ca.certificate])).time(NOW).build_server_verifier(subject)
        return verifier.verify(leaf.certificate, [leaf.issuer])

    @pytest.mark.parametrize("host", ["api.example", "x.api.example", "192.0.2.7"])
    def test_a_leaf_for_a_listed_host_verifies(self, ca: LocalCa, host: str) -> None:
        assert self.verify(ca, host)[1:] == [ca.issuer, ca.certificate]

    @pytest.mark.parametrize("host", ["other.example", "example", "xapi.example", "192.0.2.8"])
    def test_a_leaf_for_any_other_does_not_although_the_key_signs_it(self, ca: LocalCa, host: str) -> None:
        with pytest.raises(VerificationError):
            self.verify(ca, host)

    def test_root_and_intermediate_have_the_constraints_and_critical(self, ca: LocalCa) -> None:
        for certificate, below in ((ca.certificate, 1), (ca.issuer, 0)):
            found = certificate.extensions.get_extension_for_class(x509.NameConstraints)
            assert found.critical
            assert Constraints.of(certificate) == ca.constraints
            basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            assert (basic.ca, basic.path_length) == (True, below)
        assert (ca.certificate.not_valid_before_utc, ca.certificate.not_valid_after_utc) == (
            ca.issuer.not_valid_before_utc,
            ca.issuer.not_valid_after_utc,
        )

    def test_apps_trust_the_root_whose_key_is_nowhere(self, ca: LocalCa, folder: Path) -> None:
        assert ca.pem == (folder / CERTIFICATE_FILE).read_bytes()
        assert x509.load_pem_x509_certificates(ca.pem) == [ca.certificate]
        key = serialization.load_pem_private_key((folder / KEY_FILE).read_bytes(), None)
        assert key.public_key() == ca.issuer.public_key() != ca.certificate.public_key()
        assert sorted(path.name for path in folder.iterdir()) == sorted([KEY_FILE, CERTIFICATE_FILE])
        assert (folder / KEY_FILE).read_bytes().count(b"PRIVATE KEY") == 2  # one key: begin and end

    def test_what_it_may_sign_is_read_again_and_is_public(self, ca: LocalCa, folder: Path) -> None:
        again = LocalCa.open(folder, NOW, constraints=Constraints.to(["ignored.example"]))
        assert (again.certificate, again.issuer, again.mandate) == (ca.certificate, ca.issuer, ca.mandate)
        assert published_mandates(folder) == [ca.mandate]
        assert ca.mandate.constraints == ca.constraints is not None

    def test_one_that_was_made_without_stays_as_it_is(self, folder: Path) -> None:
        made = LocalCa.open(folder, NOW)
        again = LocalCa.open(folder, NOW, constraints=Constraints.to(["api.example"]))
        assert (again.certificate, again.issuer, again.constraints) == (made.certificate, made.certificate, None)
        assert published_mandates(folder)[0].constraints is None

    def test_a_certificate_in_its_file_that_has_not_signed_it_is_no_root(self, ca: LocalCa, folder: Path) -> None:
        other = LocalCa.open(folder.parent / "other", NOW)
        pem = (folder / KEY_FILE).read_bytes()
        alone = pem.replace(ca.certificate.public_bytes(serialization.Encoding.PEM), other.pem)
        (folder / KEY_FILE).write_bytes(alone)
        assert LocalCa.open(folder, NOW).certificate == ca.issuer

    def test_find_finds_what_is_there(self, folder: Path, ca: LocalCa) -> None:
        found = LocalCa.find(folder)
        assert found is not None
        assert found.certificate == ca.certificate
        assert LocalCa.find(folder / "none") is None
        (folder / KEY_FILE).chmod(0o644)
        with pytest.raises(CaError, match="readable by others"):
            LocalCa.find(folder)


class TestDataDirectory:
    def test_the_variables_are_asked_in_their_order(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert data_directory({"OVERCOAT_DATA": "/a", "XDG_DATA_HOME": "/b"}) == Path("/a")
        assert data_directory({"OVERCOAT_DATA": "", "XDG_DATA_HOME": "/b"}) == Path("/b/overcoat")
        assert data_directory({}) == tmp_path / ".local" / "share" / "overcoat"
